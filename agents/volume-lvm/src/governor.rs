//! The space governor: how much room a snapshot gets, whether there is that much, and what is done when it runs out.
//!
//! Pure: decisions from LVM's figures. A snapshot with an exception store that overflows is lost, and so is the
//! backup that reads it; a thin pool that overflows takes every volume in it along. Both are therefore refused
//! beforehand, with figures, or given up before it comes to that.

use std::fmt;

use crate::report::{LogicalVolume, VolumeGroup};

#[cfg(test)]
mod tests;

/// Smallest exception store, in bytes.
const STORE_MIN: u64 = 32 << 20;
/// Share of a volume that changes until the next run, where no earlier run says better: one in this many bytes.
const UNKNOWN_RATE: u64 = 10;
/// How much more room an exception store gets than the last one used.
const HEADROOM: u64 = 2;
/// Part of its size by which something is extended: one in this many bytes.
const STEP: u64 = 5;
/// Bytes that one exception takes in the store's own list.
const EXCEPTION: u64 = 16;

/// How large exception stores are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StoreSize {
    /// By what the last one used.
    Auto,
    /// This many percent of the volume.
    Percent(f64),
    /// This many bytes.
    Bytes(u64),
}

/// What the operator allows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// How large exception stores are.
    pub store: StoreSize,
    /// Stores and pools may be extended from their group's free space.
    pub extend: bool,
    /// Percent at which a store or a pool's data is extended, and above which no thin snapshot is taken.
    pub data_watermark: f64,
    /// The same for a pool's metadata.
    pub metadata_watermark: f64,
    /// Percent at which a backup is given up.
    pub give_up: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            store: StoreSize::Auto,
            extend: true,
            data_watermark: 80.0,
            metadata_watermark: 80.0,
            give_up: 95.0,
        }
    }
}

/// Why there is no snapshot: the figures.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NoRoom {
    /// The group has too little free space.
    #[error(
        "volume group {vg} has {} free, and a snapshot of {volume} needs {} ({why}): free some, or set the size of \
         snapshots (snapshot_size)",
        Mib(*.free),
        Mib(*.needed)
    )]
    Group {
        /// The group.
        vg: String,
        /// The volume.
        volume: String,
        /// Bytes that are free.
        free: u64,
        /// Bytes that are needed.
        needed: u64,
        /// Where that figure comes from.
        why: &'static str,
    },
    /// The pool is too full.
    #[error(
        "the {what} of thin pool {pool} is {found:.1} % full, and no snapshot is taken from {limit} % on: extend the \
         pool, or set the watermark ({setting})"
    )]
    Pool {
        /// The pool.
        pool: String,
        /// Data or metadata.
        what: &'static str,
        /// How full it is.
        found: f64,
        /// The watermark.
        limit: f64,
        /// The setting's name.
        setting: &'static str,
    },
    /// The pool cannot take a snapshot at all.
    #[error("thin pool {pool} takes no snapshot: {why}")]
    Unwell {
        /// The pool.
        pool: String,
        /// What LVM reports.
        why: &'static str,
    },
}

/// Bytes for people who compare them with LVM's.
struct Mib(u64);

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes < 10 << 30 => write!(f, "{:.1} MiB", bytes as f64 / (1 << 20) as f64),
            bytes => write!(f, "{:.1} GiB", bytes as f64 / (1u64 << 30) as f64),
        }
    }
}

/// Bytes of a store that can never overflow: every chunk of the origin, the list of them, and its header.
pub fn store_for_everything(origin: u64, chunk: u64) -> u64 {
    let chunk = chunk.max(4096);
    let chunks = origin.div_ceil(chunk);
    let areas = chunks.div_ceil(chunk / EXCEPTION) + 1;
    (chunks + areas + 1) * chunk
}

/// The size of a new exception store. `last` is what the last one used, from one run to the next.
pub fn store_size(
    origin: &LogicalVolume,
    group: &VolumeGroup,
    chunk: u64,
    last: Option<u64>,
    limits: &Limits,
) -> Result<u64, NoRoom> {
    let extent = group.extent_size.max(1);
    let most = round_up(store_for_everything(origin.size, chunk), extent);
    let free = group.free / extent * extent;
    let least = STORE_MIN.max(origin.size / 100);
    let (wanted, needed, why) = match (limits.store, last) {
        (StoreSize::Bytes(bytes), _) => (bytes, bytes, "as it was set"),
        (StoreSize::Percent(percent), _) => {
            let bytes = (origin.size as f64 * percent.clamp(0.0, 200.0) / 100.0).ceil() as u64;
            (bytes, bytes, "as it was set")
        }
        (StoreSize::Auto, Some(used)) => {
            let wanted = used.saturating_mul(HEADROOM).max(least);
            (wanted, used.saturating_add(used / STEP).max(least), "by what changed since the last run")
        }
        (StoreSize::Auto, None) => {
            ((origin.size / UNKNOWN_RATE).max(least), least, "no earlier run says how much changes")
        }
    };
    let fit = |bytes: u64| round_up(bytes.max(extent), extent).min(most);
    let (wanted, needed) = (fit(wanted), fit(needed));
    match needed <= free {
        // The rest is for others who need room, now or when their snapshots and pools fill up.
        true => Ok(wanted.min(needed.max(free / 2 / extent * extent))),
        false => Err(NoRoom::Group {
            vg: origin.vg.clone(),
            volume: origin.full_name(),
            free: group.free,
            needed,
            why,
        }),
    }
}

fn round_up(bytes: u64, unit: u64) -> u64 {
    bytes.div_ceil(unit).saturating_mul(unit)
}

/// Whether a pool may take one more snapshot.
pub fn pool_has_room(pool: &LogicalVolume, limits: &Limits) -> Result<(), NoRoom> {
    if let Some(why) = pool.attributes.ailment() {
        return Err(NoRoom::Unwell { pool: pool.full_name(), why });
    }
    let (data, metadata) = (limits.data_watermark, limits.metadata_watermark);
    for (what, found, limit, setting) in [
        ("data", pool.data_percent, data, "data_watermark"),
        ("metadata", pool.metadata_percent, metadata, "metadata_watermark"),
    ] {
        if let Some(found) = found.filter(|found| *found >= limit) {
            return Err(NoRoom::Pool { pool: pool.full_name(), what, found, limit, setting });
        }
    }
    Ok(())
}

/// What is done about something that fills up.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// It is extended by this many bytes: a store, or a pool's data.
    Extend(u64),
    /// A pool's metadata is extended by this many bytes.
    ExtendMetadata(u64),
    /// Backups that depend on it are given up.
    GiveUp(String),
}

/// Looks at a snapshot with an exception store that is being read.
pub fn watch_store(
    snapshot: &LogicalVolume,
    origin: u64,
    group: &VolumeGroup,
    limits: &Limits,
) -> Option<Act> {
    let name = snapshot.full_name();
    if snapshot.attributes.is_invalid() {
        return Some(Act::GiveUp(format!(
            "its snapshot {name} has overflowed: more was written than it had room for"
        )));
    }
    let most = round_up(store_for_everything(origin, snapshot.chunk_size), group.extent_size.max(1));
    let full = snapshot.data_percent.unwrap_or(0.0);
    fills(full, snapshot.size, most, limits.data_watermark, group, limits).map(|step| match step {
        Some(by) => Act::Extend(by),
        None => Act::GiveUp(format!(
            "its snapshot {name} is {full:.1} % full and cannot be extended ({} free in {}): given up before it \
             overflows",
            Mib(group.free),
            group.name
        )),
    })
}

/// Looks at a pool of which snapshots are being read: its data, and its metadata of `metadata` bytes.
pub fn watch_pool(pool: &LogicalVolume, metadata: u64, group: &VolumeGroup, limits: &Limits) -> Vec<Act> {
    let name = pool.full_name();
    let give_up = |what: &str, full: f64| {
        Act::GiveUp(format!(
            "the {what} of thin pool {name} is {full:.1} % full and cannot be extended ({} free in {}): given up \
             before the pool overflows",
            Mib(group.free),
            group.name
        ))
    };
    let mut acts = Vec::new();
    if let Some(full) = pool.data_percent {
        let step = fills(full, pool.size, u64::MAX, limits.data_watermark, group, limits);
        acts.extend(step.map(|by| by.map_or_else(|| give_up("data", full), Act::Extend)));
    }
    if let Some(full) = pool.metadata_percent {
        // The kernel uses no more than 16 GiB less a bit.
        let step = fills(full, metadata, 15 << 30, limits.metadata_watermark, group, limits);
        acts.extend(step.map(|by| by.map_or_else(|| give_up("metadata", full), Act::ExtendMetadata)));
    }
    acts
}

/// Nothing below the watermark; above it bytes to extend by, or nothing to give when it must be given up.
fn fills(
    full: f64,
    size: u64,
    most: u64,
    watermark: f64,
    group: &VolumeGroup,
    limits: &Limits,
) -> Option<Option<u64>> {
    if full < watermark.min(limits.give_up) {
        return None;
    }
    let extent = group.extent_size.max(1);
    let step = round_up((size / STEP).max(extent), extent);
    let room = group.free.min(most.saturating_sub(size)) / extent * extent;
    match (limits.extend, step.min(room)) {
        (true, by @ 1..) => Some(Some(by)),
        // It holds everything that there is.
        _ if size >= most => None,
        _ => (full >= limits.give_up).then_some(None),
    }
}
