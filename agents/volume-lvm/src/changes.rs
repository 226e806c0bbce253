//! What changed in a logical volume since a snapshot of it, from LVM's own metadata.
//!
//! Nothing here guesses: every list is checked against what the kernel says of the same device, and one that does not
//! fit is refused by name, so that the caller reads the whole volume and says why. Lists are asked for *after* the newer
//! snapshot exists; what they hold beyond it is only read in vain.
//!
//! * Classic snapshots: the exception store on the baseline's `-cow` device, read past the page cache, which the
//!   kernel does not write through.
//! * Thin snapshots: `thin_delta` on a metadata snapshot of the pool, which is released on every way out
//!   ([`reservation`]). What it lists has to add up, on either side, to the number of blocks that the pool maps.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::delta::mappings::MappingsParser;
use crate::delta::{Delta, DeltaParser, XmlError};
use crate::dm::{DmName, NotThat, SnapshotStatus, SnapshotTable, ThinTable};
use crate::exceptions::{self, ExceptionsError};
use crate::ranges::Ranges;
use crate::report::LogicalVolume;
use crate::tools::{ToolError, Tools};

use direct::Direct;
use reservation::Reservation;

mod baselines;
mod direct;
pub mod reservation;
#[cfg(test)]
mod tests;

/// Time that a thin tool has from one piece of its output to the next; it reads all of two volumes' mappings first.
const LISTING: Duration = Duration::from_secs(1800);
/// Time that another process of ours has to finish with a pool.
const PATIENCE: Duration = Duration::from_secs(600);
/// Bytes of a tool's output that are taken at once.
const PIECE: usize = 64 << 10;

/// Why it is not known what changed. Each is a reason to read the whole volume.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The baseline is lost.
    #[error("the snapshot {snapshot} overflowed and is lost: give it more space, or let lvkeep extend it")]
    Overflowed {
        /// The baseline.
        snapshot: DmName,
    },
    /// It keeps its exceptions in memory only, or is being merged.
    #[error("the snapshot {snapshot} tells nothing about changes: {why}")]
    Useless {
        /// The baseline.
        snapshot: DmName,
        /// Why.
        why: &'static str,
    },
    /// What is on its device is not what it should be.
    #[error("the exception store {device} cannot be used: {why}")]
    Store {
        /// The `-cow` device.
        device: PathBuf,
        /// Why.
        why: ExceptionsError,
    },
    /// The store and the kernel contradict each other.
    #[error("the exception store {device} says {store} and the kernel says {kernel}")]
    Contradiction {
        /// The `-cow` device.
        device: PathBuf,
        /// What stands in it.
        store: String,
        /// What the kernel says.
        kernel: String,
    },
    /// A device is something else.
    #[error("{device}: {why}")]
    OtherDevice {
        /// The device.
        device: DmName,
        /// Why.
        why: NotThat,
    },
    /// A device has another size than the volume.
    #[error("{device} has {found} bytes instead of {expected}: the volume was resized")]
    Resized {
        /// The device.
        device: DmName,
        /// Its size.
        found: u64,
        /// The volume's size.
        expected: u64,
    },
    /// A device cannot be opened.
    #[error("cannot open {device}: {why}")]
    CannotOpen {
        /// Its node.
        device: PathBuf,
        /// Why.
        why: std::io::Error,
    },
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A tool printed what is not trusted.
    #[error("the list of `{tool}` for the thin pool {pool} cannot be used: {why}")]
    List {
        /// The tool.
        tool: &'static str,
        /// The pool.
        pool: DmName,
        /// Why.
        why: XmlError,
    },
    /// A tool did not list all, or too much.
    #[error("`{tool}` accounts for {listed} blocks of thin device {device} of {pool}, which maps {mapped}")]
    Incomplete {
        /// The tool.
        tool: &'static str,
        /// The pool.
        pool: DmName,
        /// Its id.
        device: u32,
        /// Blocks that are listed.
        listed: u64,
        /// Blocks that the pool maps.
        mapped: u64,
    },
    /// The pool has no such volume.
    #[error("the thin pool {pool} has no device {device}: was the baseline removed?")]
    NoDevice {
        /// The pool.
        pool: DmName,
        /// Its id.
        device: u32,
    },
    /// The pool's metadata can neither be changed nor trusted.
    #[error("the thin pool {pool} {why}; see `lvs -a` and lvmthin(7) about repairing it")]
    PoolBroken {
        /// The pool.
        pool: DmName,
        /// What it is.
        why: &'static str,
    },
    /// Another program has reserved the metadata snapshot.
    #[error(
        "the metadata snapshot of the thin pool {pool} is held by another program, at block {block}: when none uses \
         it, release it with `dmsetup message {pool} 0 release_metadata_snap`"
    )]
    HeldByAnother {
        /// The pool.
        pool: DmName,
        /// Where.
        block: u64,
    },
    /// Another of our processes works with the pool.
    #[error("another lvkeep process has worked with the thin pool {pool} for {} s (it holds {lock})", patience.as_secs())]
    Busy {
        /// The pool.
        pool: DmName,
        /// The lock's file.
        lock: String,
        /// How long it was waited for.
        patience: Duration,
    },
    /// The lock cannot be taken.
    #[error("cannot use the lock {lock}: {why}")]
    Lock {
        /// The lock's file.
        lock: String,
        /// Why.
        why: std::io::Error,
    },
    /// The process is on its way out.
    #[error("lvkeep is ending")]
    Ending,
}

/// A thin pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Its volume group.
    pub group: String,
    /// Its name.
    pub name: String,
}

impl Pool {
    /// That of a thin volume.
    pub fn of(volume: &LogicalVolume) -> Option<Self> {
        Some(Self { group: volume.vg.clone(), name: volume.pool.clone()? })
    }

    /// The device that takes messages.
    pub fn device(&self) -> DmName {
        DmName::of(&self.group, &self.name).layer("tpool")
    }

    /// The device that holds its metadata.
    pub fn metadata(&self) -> DmName {
        DmName::of(&self.group, &format!("{}_tmeta", self.name))
    }
}

/// What a thin volume maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mapped {
    /// Everything else reads as zero.
    Only(Ranges),
    /// Everything else reads as what another device holds there.
    ShinesThrough {
        /// That device, as `major:minor`.
        origin: String,
        /// What is mapped.
        mapped: Ranges,
    },
}

/// Finds out what changed on this host.
#[derive(Debug, Clone)]
pub struct Tracker {
    tools: Tools,
    devices: PathBuf,
    state: PathBuf,
    patience: Duration,
}

impl Tracker {
    /// With these tools. `state` is a directory that all lvkeep processes of this host share and that outlives them: it
    /// says which pool is worked with, and which metadata snapshot is ours.
    pub fn new(tools: Tools, state: impl Into<PathBuf>) -> Self {
        Self { tools, devices: DmName::DIRECTORY.into(), state: state.into(), patience: PATIENCE }
    }

    /// Releases the metadata snapshot of a pool, if a process of ours that died has left it reserved.
    pub async fn release_left(&self, pool: &Pool) -> Result<(), ChangeError> {
        Reservation::release_left(&self.tools, &self.state, pool.device()).await
    }

    /// The same where the devices' nodes are elsewhere, and another process is waited for as long as this.
    pub fn at(self, devices: impl Into<PathBuf>, patience: Duration) -> Self {
        Self { devices: devices.into(), patience, ..self }
    }

    /// The parts of an origin of `size` bytes that were written to since its classic snapshot `baseline` was taken.
    pub async fn changed_ranges_thick(&self, baseline: &DmName, size: u64) -> Result<Ranges, ChangeError> {
        let table = self.dmsetup("table", baseline, SnapshotTable::parse).await?;
        same_size(baseline, table.size, size)?;
        if !table.persistent {
            let why = "it keeps its exceptions in memory only";
            return Err(ChangeError::Useless { snapshot: baseline.clone(), why });
        }
        // First: areas that the kernel has begun before the list is read have to be in it.
        let areas = self.areas(baseline, table.chunk).await?;
        let device = self.devices.join(baseline.layer("cow").as_str());
        let listed = {
            let device = device.clone();
            let reading = tokio::task::spawn_blocking(move || read_store(&device, size));
            reading.await.map_err(|_| ChangeError::Ending)?
        };
        let listed = match listed {
            Err(ChangeError::Store { why: ExceptionsError::Overflowed, .. }) => {
                return Err(ChangeError::Overflowed { snapshot: baseline.clone() });
            }
            listed => listed?,
        };
        // Last: the kernel may have given it up without being able to write that down.
        self.areas(baseline, table.chunk).await?;
        let contradiction = |store: String, kernel: String| {
            Err(ChangeError::Contradiction { device: device.clone(), store, kernel })
        };
        let chunks = |bytes: u64| format!("chunks of {bytes} bytes");
        match () {
            () if listed.chunk != table.chunk => contradiction(chunks(listed.chunk), chunks(table.chunk)),
            () if listed.areas < areas => {
                contradiction(format!("{} metadata areas", listed.areas), format!("at least {areas}"))
            }
            () => Ok(listed.changed),
        }
    }

    /// How many metadata areas the kernel has begun.
    async fn areas(&self, snapshot: &DmName, chunk: u64) -> Result<u64, ChangeError> {
        match self.dmsetup("status", snapshot, SnapshotStatus::parse).await? {
            // The header is one chunk of the metadata, and each area is another.
            SnapshotStatus::Valid { metadata, .. } => Ok((metadata * 512 / chunk).saturating_sub(1)),
            SnapshotStatus::Invalid => Err(ChangeError::Overflowed { snapshot: snapshot.clone() }),
            SnapshotStatus::MergeFailed => {
                Err(ChangeError::Useless { snapshot: snapshot.clone(), why: "it is being merged" })
            }
        }
    }

    /// What differs between the thin device `older` of a pool and the active thin volume `newer`, which has `size`
    /// bytes and is no older.
    pub async fn changed_ranges_thin(
        &self,
        pool: &Pool,
        older: u32,
        newer: &DmName,
        size: u64,
    ) -> Result<Delta, ChangeError> {
        let table = self.dmsetup("table", newer, ThinTable::parse).await?;
        same_size(newer, table.size, size)?;
        let reserved = self.reserve(pool).await?;
        let delta = self.delta(pool, older, table.id, size).await;
        reserved.release().await;
        delta
    }

    async fn delta(&self, pool: &Pool, older: u32, newer: u32, size: u64) -> Result<Delta, ChangeError> {
        const TOOL: &str = "thin_delta";
        let counts = self.counts(pool, [older, newer]).await?;
        let ids = [older.to_string(), newer.to_string()];
        let mut list = DeltaParser::new(older, newer, size);
        let arguments = ["-m", "--thin1", &ids[0], "--thin2", &ids[1]];
        self.list(TOOL, &arguments, pool, |piece| list.push(piece)).await?;
        let delta = list.finish().map_err(unusable(TOOL, pool))?;
        let sides = [(older, delta.older_blocks), (newer, delta.newer_blocks)];
        for ((device, listed), mapped) in sides.into_iter().zip(counts) {
            if listed != mapped {
                return Err(incomplete(TOOL, pool, device, listed, mapped));
            }
        }
        Ok(delta)
    }

    /// How many blocks the pool believes that these devices map.
    async fn counts(&self, pool: &Pool, devices: [u32; 2]) -> Result<[u64; 2], ChangeError> {
        const TOOL: &str = "thin_dump";
        let mut list = MappingsParser::new(devices, 0);
        self.list(TOOL, &["-m", "--skip-mappings"], pool, |piece| list.push(piece)).await?;
        let [older, newer] = list.finish().map_err(unusable(TOOL, pool))?;
        let missing = |device| ChangeError::NoDevice { pool: pool.device(), device };
        let older = older.ok_or_else(|| missing(devices[0]))?;
        let newer = newer.ok_or_else(|| missing(devices[1]))?;
        Ok([older.blocks, newer.blocks])
    }

    /// What the active thin volume `volume` of `size` bytes maps.
    pub async fn mapped_ranges_thin(
        &self,
        pool: &Pool,
        volume: &DmName,
        size: u64,
    ) -> Result<Mapped, ChangeError> {
        let table = self.dmsetup("table", volume, ThinTable::parse).await?;
        same_size(volume, table.size, size)?;
        let reserved = self.reserve(pool).await?;
        let mapped = self.mappings(pool, table.id, size).await;
        reserved.release().await;
        let mapped = mapped?;
        Ok(match table.external_origin {
            None => Mapped::Only(mapped),
            Some(origin) => Mapped::ShinesThrough { origin, mapped },
        })
    }

    async fn mappings(&self, pool: &Pool, device: u32, size: u64) -> Result<Ranges, ChangeError> {
        const TOOL: &str = "thin_dump";
        let id = device.to_string();
        let mut list = MappingsParser::new([device], size);
        self.list(TOOL, &["-m", "--dev-id", &id], pool, |piece| list.push(piece)).await?;
        let [found] = list.finish().map_err(unusable(TOOL, pool))?;
        let found = found.ok_or_else(|| ChangeError::NoDevice { pool: pool.device(), device })?;
        match found.listed == found.blocks {
            true => Ok(found.ranges),
            false => Err(incomplete(TOOL, pool, device, found.listed, found.blocks)),
        }
    }

    /// Runs one of the thin tools on the pool's metadata and hands on what it prints.
    async fn list(
        &self,
        tool: &'static str,
        arguments: &[&str],
        pool: &Pool,
        mut push: impl FnMut(&[u8]) -> Result<(), XmlError>,
    ) -> Result<(), ChangeError> {
        let device = self.devices.join(pool.metadata().as_str());
        let device = device.to_string_lossy();
        let all: Vec<&str> = arguments.iter().copied().chain([&*device]).collect();
        let mut output = self.tools.with_limit(LISTING).stream(tool, &all)?;
        let mut buffer = vec![0; PIECE];
        loop {
            match output.read(&mut buffer).await? {
                0 => return Ok(()),
                read => push(&buffer[..read]).map_err(unusable(tool, pool))?,
            }
        }
    }

    async fn reserve(&self, pool: &Pool) -> Result<Reservation, ChangeError> {
        Reservation::take(&self.tools, &self.state, pool.device(), self.patience).await
    }

    async fn dmsetup<T>(
        &self,
        question: &str,
        device: &DmName,
        parse: fn(&str) -> Result<T, NotThat>,
    ) -> Result<T, ChangeError> {
        let said = self.tools.run("dmsetup", &[question, device.as_str()]).await?;
        parse(&said.text()).map_err(|why| ChangeError::OtherDevice { device: device.clone(), why })
    }
}

fn same_size(device: &DmName, found: u64, expected: u64) -> Result<(), ChangeError> {
    match found == expected {
        true => Ok(()),
        false => Err(ChangeError::Resized { device: device.clone(), found, expected }),
    }
}

fn read_store(device: &Path, size: u64) -> Result<exceptions::Exceptions, ChangeError> {
    let mut store =
        Direct::open(device).map_err(|why| ChangeError::CannotOpen { device: device.to_owned(), why })?;
    exceptions::read(&mut store, size).map_err(|why| ChangeError::Store { device: device.to_owned(), why })
}

fn unusable(tool: &'static str, pool: &Pool) -> impl Fn(XmlError) -> ChangeError {
    move |why| ChangeError::List { tool, pool: pool.device(), why }
}

fn incomplete(tool: &'static str, pool: &Pool, device: u32, listed: u64, mapped: u64) -> ChangeError {
    ChangeError::Incomplete { tool, pool: pool.device(), device, listed, mapped }
}
