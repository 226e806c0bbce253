//! What a restore to a logical volume takes, and whether it may be: decided from LVM's report alone.
//!
//! Force overrides what protects others from being overwritten, emptied or overflowing. It never overrides what makes a
//! restore impossible or senseless: a volume that is too small, a part of another one, or one of lvkeep's own
//! snapshots. What may go wrong without being refused is noted.

use std::collections::BTreeMap;

use schema::messages::{NewVolume, Preparation, Safety};
use schema::{JobId, RepoId, SessionId};

use super::layout::Shape;
use super::room::{Promise, Promised};
use super::sharing::{self, Shared};
use crate::marks;
use crate::owner::Owner;
use crate::report::{Inventory, LogicalVolume, VolumeGroup};
use crate::snapshots;

#[cfg(test)]
mod tests;

/// The tag of a volume that was made for a restore that has not ended, with the job behind it.
pub(super) const UNFINISHED: &str = "lvkeep-unfinished=";
/// The tag of a volume that was made for a restore and is not all of its snapshot, with the snapshot behind it. It stays
/// when the restore is cut off, until one has ended well.
pub(super) const INCOMPLETE: &str = "lvkeep-incomplete=";
/// The tag of a snapshot of what a restore overwrote. It is the operator's: nothing of lvkeep's ever removes it.
pub(super) const SAFETY: &str = "lvkeep-safety";

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub vg: &'a str,
    pub lv: &'a str,
    /// Bytes that the volume must have, and those that are written and not known to be zero.
    pub size: u64,
    pub data: u64,
    /// Bytes that are restored when they are only a range; the rest of the volume stays as it is.
    pub only: Option<u64>,
    /// The layout of the volume that was backed up.
    pub layout: &'a BTreeMap<String, String>,
    pub repository: RepoId,
    pub snapshot: SessionId,
    pub job: JobId,
    pub preparation: &'a Preparation,
    pub force: bool,
    /// The volume to which the same snapshot was just restored.
    pub donor: Option<(&'a str, &'a str)>,
    /// Room that other restores take.
    pub promised: &'a Promised,
}

/// What is done, in this order.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    pub volume: Volume,
    /// Snapshots of lvkeep's that go before anything is written.
    pub drop: Vec<LogicalVolume>,
    pub safety: Option<SafetySnapshot>,
    /// What a new volume begins as.
    pub shares: Option<Shared>,
    /// Room that this restore takes.
    pub promises: Vec<Promise>,
    /// For the operator.
    pub notes: Vec<String>,
}

/// The volume itself.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Volume {
    /// It is there.
    There(Box<LogicalVolume>),
    /// An earlier delivery of this job has made it.
    Begun(Box<LogicalVolume>),
    /// An earlier restore of the same snapshot has made it, and was cut off.
    Incomplete(Box<LogicalVolume>),
    /// It is made by `lvcreate` with these arguments.
    New(Vec<String>),
}

/// A snapshot of what will be overwritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SafetySnapshot {
    pub name: String,
    /// An earlier delivery of this job has taken it: it holds more than one of now would.
    pub taken: bool,
    /// Bytes of its exception store; none where it is thin.
    pub size: Option<u64>,
    /// It cannot overflow.
    pub holds_all: bool,
}

impl Plan {
    /// One that takes no more than the volume.
    pub fn new(volume: Volume, notes: Vec<String>) -> Self {
        let (drop, promises) = (Vec::new(), Vec::new());
        Self { volume, drop, safety: None, shares: None, promises, notes }
    }
}

impl SafetySnapshot {
    /// The arguments of `lvcreate` for it.
    pub fn arguments(&self, target: &LogicalVolume) -> Vec<String> {
        let mut arguments: Vec<String> =
            ["--yes", "--quiet", "--snapshot", "--name", &self.name, "--addtag", SAFETY]
                .map(str::to_owned)
                .into();
        if let Some(size) = self.size {
            arguments.extend(["--size".to_owned(), format!("{size}b")]);
        }
        arguments.push(target.full_name());
        arguments
    }
}

/// The plan, or why there is none.
pub(super) fn plan(
    inventory: &Inventory,
    request: &Request<'_>,
    is_alive: impl Fn(&Owner) -> bool,
) -> Result<Plan, String> {
    let Request { vg, lv, preparation, .. } = request;
    let group = inventory.group(vg).ok_or_else(|| no_group(inventory, vg))?;
    if lv.starts_with(marks::PREFIX) {
        return Err(format!("volumes whose names begin with {} are lvkeep's own snapshots", marks::PREFIX));
    }
    let there = inventory.volumes.iter().find(|volume| volume.vg == *vg && volume.name == *lv);
    match (there, &preparation.create) {
        (Some(there), None) => existing(inventory, group, there, request, is_alive),
        (Some(there), Some(_)) if there.tags.contains(&unfinished(request.job)) => {
            let plan = existing(inventory, group, there, request, is_alive)?;
            Ok(Plan { volume: Volume::Begun(Box::new(there.clone())), ..plan })
        }
        (Some(there), Some(_)) if there.tags.contains(&incomplete(request.snapshot)) => {
            let plan = existing(inventory, group, there, request, is_alive)?;
            Ok(Plan { volume: Volume::Incomplete(Box::new(there.clone())), ..plan })
        }
        (Some(there), Some(_)) => Err(exists(there, request)),
        (None, Some(new)) => made(inventory, group, new, request),
        (None, None) => Err(format!("{vg} has no such volume; --create makes it")),
    }
}

fn unfinished(job: JobId) -> String {
    format!("{UNFINISHED}{job}")
}

fn incomplete(snapshot: SessionId) -> String {
    format!("{INCOMPLETE}{snapshot}")
}

/// Why a volume that is there is not made.
fn exists(there: &LogicalVolume, request: &Request<'_>) -> String {
    let (name, asked) = (there.full_name(), request.snapshot);
    if let Some(other) = there.tags.iter().find_map(|tag| tag.strip_prefix(INCOMPLETE)) {
        return format!(
            "it exists already, and is incomplete: a restore of {other} was cut off on it, and this one is of {asked}; \
             restore {other} to it, or `lvremove {name}`; without --create its content is overwritten"
        );
    }
    let which = match there.tags.iter().any(|tag| tag.starts_with(UNFINISHED)) {
        true => "is what an earlier restore has left unfinished",
        false => {
            "nothing on it says that it is incomplete: if an earlier run has restored it, leave it out of this one"
        }
    };
    format!("it exists already, and {which}; without --create its content is overwritten")
}

/// The arguments of `lvchange` for a volume whose restore is over; none when it has no tag that begins so.
pub(super) fn without_tags(volume: &LogicalVolume, start: &str) -> Option<Vec<String>> {
    let tags: Vec<&String> = volume.tags.iter().filter(|tag| tag.starts_with(start)).collect();
    let mut arguments = vec!["--quiet".to_owned()];
    arguments.extend(tags.iter().flat_map(|tag| ["--deltag".to_owned(), (*tag).clone()]));
    arguments.push(volume.full_name());
    (!tags.is_empty()).then_some(arguments)
}

fn no_group(inventory: &Inventory, vg: &str) -> String {
    let names: Vec<&str> = inventory.groups.iter().map(|group| group.name.as_str()).collect();
    match names.is_empty() {
        true => format!("there is no volume group {vg}, nor any other"),
        false => format!("there is no volume group {vg} (there are: {})", names.join(", ")),
    }
}

fn existing(
    inventory: &Inventory,
    group: &VolumeGroup,
    volume: &LogicalVolume,
    request: &Request<'_>,
    is_alive: impl Fn(&Owner) -> bool,
) -> Result<Plan, String> {
    usable(volume, request)?;
    let mut plan = Plan::new(Volume::There(Box::new(volume.clone())), Vec::new());
    if request.only.is_none() && volume.tags.contains(&incomplete(request.snapshot)) {
        plan.notes.push(format!("goes on with {}, on which a restore was cut off", volume.full_name()));
    }
    plan.notes.extend(larger(group, volume, request)?);
    ours(inventory, volume, request, is_alive, &mut plan)?;
    others(inventory, volume, request, &mut plan)?;
    plan.safety = match request.preparation.safety {
        Some(safety) => Some(safety_snapshot(inventory, group, volume, request, safety, &mut plan)?),
        None => None,
    };
    // Of what it has mapped, it may have to itself as little as nothing.
    let is_snapshot = volume.is_thin() && volume.origin.is_some();
    let shares = is_snapshot
        || plan.safety.is_some()
        || inventory.volumes.iter().any(|one| is_thin_snapshot(one, volume));
    if let Some(pool) = inventory.pool_of(volume) {
        let mapped = if shares { 0 } else { volume.used().unwrap_or(0) };
        let needed = request.data.saturating_sub(mapped);
        plan.promises.push(fits_pool(inventory, pool, needed, request)?);
    }
    Ok(plan)
}

/// What no force makes usable. Whether somebody has it open is seen when it is opened.
fn usable(volume: &LogicalVolume, request: &Request<'_>) -> Result<(), String> {
    let attributes = &volume.attributes;
    let pools = ["thin-pool", "vdo-pool", "cache-pool"];
    if volume.hidden || pools.contains(&volume.segtype.as_str()) {
        return Err("it is a pool, or a part of another volume".to_owned());
    }
    if volume.is_thick_snapshot() {
        let origin = volume.origin.as_deref().unwrap_or("another volume");
        return Err(format!("it is a snapshot of {origin}, which writing to it would fill"));
    }
    if attributes.is_merging() || attributes.kind() == 'O' {
        return Err("a snapshot is being merged: wait until lvs shows that it is done".to_owned());
    }
    if !attributes.is_writable() {
        return Err(format!("it is read-only: lvchange --permission rw {}", volume.full_name()));
    }
    if let Some(ailment) = attributes.ailment() {
        return Err(ailment.to_owned());
    }
    if !attributes.is_active() {
        return Err(format!("it is not active: lvchange --activate y {}", volume.full_name()));
    }
    if volume.size < request.size {
        let (has, needs) = (volume.size, request.size);
        return Err(format!(
            "it has {has} bytes, and {needs} are needed: lvextend it, make another, or restore only a range that fits"
        ));
    }
    Ok(())
}

/// What becomes of what stands behind the snapshot's end. Up to an extent comes of rounding: nobody else uses it.
fn larger(
    group: &VolumeGroup,
    volume: &LogicalVolume,
    request: &Request<'_>,
) -> Result<Option<String>, String> {
    let behind = volume.size.saturating_sub(request.size);
    if behind == 0 || request.only.is_some() {
        return Ok(None);
    }
    let tags = [unfinished(request.job), incomplete(request.snapshot)];
    let is_made_for_it = tags.iter().any(|tag| volume.tags.contains(tag));
    if behind > group.extent_size && !request.force && !is_made_for_it {
        let (has, needs, behind) = (volume.size, request.size, size(behind));
        return Err(format!(
            "it has {has} bytes, and {needs} are needed: the {behind} behind them would be made empty, whatever they hold; \
             force does that, lvreduce gives them back, and a range (0+{needs}) leaves them as they are"
        ));
    }
    let (name, behind) = (volume.full_name(), size(behind));
    Ok(Some(format!("{name} is larger than the snapshot: the {behind} behind its end are made empty")))
}

/// lvkeep's own snapshots of the target: baselines, and those that a backup reads just now.
fn ours(
    inventory: &Inventory,
    volume: &LogicalVolume,
    request: &Request<'_>,
    is_alive: impl Fn(&Owner) -> bool,
    plan: &mut Plan,
) -> Result<(), String> {
    let of_it: Vec<_> = snapshots::all(inventory).filter(|one| one.marks.origin == volume.uuid).collect();
    if of_it.is_empty() && request.preparation.drop_baseline {
        plan.notes.push("it has no baseline to remove".to_owned());
    }
    for one in of_it {
        let name = one.volume.full_name();
        if one.marks.owner.as_ref().is_some_and(&is_alive) {
            if !request.force {
                return Err(format!("a backup reads its snapshot {name}: wait until it is over"));
            }
            plan.notes.push(format!("a backup reads the snapshot {name}, and fails if that overflows"));
            continue;
        }
        let wanted = request.preparation.drop_baseline && one.marks.repository == request.repository;
        match snapshots::spared(inventory, &one) {
            None if wanted => {
                plan.notes.push(format!("its baseline {name} is removed: the next backup reads all of it"));
                plan.drop.push(one.volume.clone());
            }
            Some(why) if wanted => plan.notes.push(format!("its baseline {name} is not removed: {why}")),
            _ => plan.notes.push(baseline(&one, volume, request)),
        }
    }
    Ok(())
}

/// What becomes of a baseline that stays.
fn baseline(one: &snapshots::Ours<'_>, volume: &LogicalVolume, request: &Request<'_>) -> String {
    let name = one.volume.full_name();
    let advice = match one.marks.repository == request.repository {
        true => "; --drop-baseline removes it first".to_owned(),
        false => format!(" (it belongs to the repository {})", one.marks.repository),
    };
    match room(one.volume) {
        Some(room) if overflows(one.volume, volume) => format!(
            "its baseline {name} is lost when more than {} of it change, and the next backup then reads all of it{advice}",
            size(room)
        ),
        _ => format!("its baseline {name} stays: the next backup reads what this restore changes{advice}"),
    }
}

/// Snapshots that somebody else took: they overflow by what is overwritten.
fn others(
    inventory: &Inventory,
    volume: &LogicalVolume,
    request: &Request<'_>,
    plan: &mut Plan,
) -> Result<(), String> {
    let overwritten = request.only.unwrap_or(volume.size);
    for one in inventory.thick_snapshots_of(volume) {
        let is_ours = snapshots::all(inventory).any(|ours| ours.volume.uuid == one.uuid);
        if is_ours || one.attributes.is_invalid() {
            continue;
        }
        let name = one.full_name();
        match room(one) {
            Some(room) if overflows(one, volume) && room < store_of(overwritten) => {
                let why = format!(
                    "its snapshot {name} has room for {} of up to {} that are overwritten, and would be lost",
                    size(room),
                    size(overwritten)
                );
                if !request.force {
                    return Err(format!("{why}: lvextend it, or remove it; force restores all the same"));
                }
                plan.notes.push(why);
            }
            _ => plan.notes.push(format!("its snapshot {name} keeps what is overwritten")),
        }
    }
    Ok(())
}

fn is_thin_snapshot(one: &LogicalVolume, of: &LogicalVolume) -> bool {
    one.is_thin() && one.origin_uuid.as_ref() == Some(&of.uuid)
}

/// Bytes that a snapshot's exception store still takes; none where there is no such store.
fn room(snapshot: &LogicalVolume) -> Option<u64> {
    let is_store = snapshot.is_thick_snapshot();
    is_store.then(|| snapshot.size.saturating_sub(snapshot.used().unwrap_or(snapshot.size)))
}

/// Whether a snapshot cannot hold all of its origin: what it holds already is not copied again.
fn overflows(snapshot: &LogicalVolume, origin: &LogicalVolume) -> bool {
    snapshot.size < store_of(origin.size)
}

/// Bytes of an exception store that holds so many: chunks of 4 KiB with 16 bytes each, and some to spare.
fn store_of(bytes: u64) -> u64 {
    bytes + bytes / 200 + (64 << 10)
}

fn safety_snapshot(
    inventory: &Inventory,
    group: &VolumeGroup,
    volume: &LogicalVolume,
    request: &Request<'_>,
    safety: Safety,
    plan: &mut Plan,
) -> Result<SafetySnapshot, String> {
    let name = format!("lvkeep-safety-{}", request.job);
    if let Some(taken) = inventory.find(&volume.vg, &name) {
        if taken.origin_uuid.as_ref() != Some(&volume.uuid) || taken.attributes.is_invalid() {
            return Err(format!("its safety snapshot {} of an earlier attempt is lost", taken.full_name()));
        }
        return Ok(SafetySnapshot { name, taken: true, size: None, holds_all: taken.is_thin() });
    }
    if volume.is_thin() {
        return Ok(SafetySnapshot { name, taken: false, size: None, holds_all: true });
    }
    // What is dropped first gives its extents back.
    let dropped: u64 = plan.drop.iter().filter(|one| one.is_thick_snapshot()).map(|one| one.size).sum();
    let free = (free(inventory, group, request) + dropped) / group.extent_size.max(1) * group.extent_size;
    let whole = extents(store_of(volume.size), group);
    let fits = |bytes: u64| bytes <= free && bytes > 0;
    let bytes = match safety.size.map(|bytes| extents(bytes, group)) {
        Some(asked) if fits(asked) => asked.min(whole),
        Some(asked) => return Err(no_room(group, free, asked, "the safety snapshot")),
        None if fits(whole) => whole,
        None if fits(extents(volume.size / 5, group)) => free,
        None => {
            let why = no_room(group, free, whole, "the safety snapshot");
            return Err(format!("{why}; --safety-snapshot=SIZE takes a smaller one"));
        }
    };
    plan.promises.push(Promise::of_group(group, &name, bytes));
    let holds_all = bytes >= whole;
    if !holds_all {
        let (room, most) = (size(bytes), size(volume.size));
        plan.notes
            .push(format!("the safety snapshot has room for {room} of up to {most} that are overwritten"));
    }
    Ok(SafetySnapshot { name, taken: false, size: Some(bytes), holds_all })
}

fn made(
    inventory: &Inventory,
    group: &VolumeGroup,
    new: &NewVolume,
    request: &Request<'_>,
) -> Result<Plan, String> {
    let (shape, left_out) = match new {
        NewVolume::Plain => (Shape::Linear, None),
        NewVolume::Thin { pool } => (Shape::Thin { pool: pool.clone() }, None),
        NewVolume::Alike => Shape::of(request.layout)?,
    };
    let mut notes = vec![format!("{}/{} was made ({shape})", request.vg, request.lv)];
    notes.extend(left_out);
    let bytes = extents(request.size.max(1), group);
    let tags = [unfinished(request.job), incomplete(request.snapshot)];
    let mut promises = Vec::new();
    let mut arguments: Vec<String> = ["--yes", "--quiet", "--name", request.lv].map(str::to_owned).into();
    arguments.extend(added(&tags));
    match &shape {
        Shape::Thin { pool: name } => {
            let is_it =
                |one: &&LogicalVolume| one.vg == request.vg && one.name == *name && one.is_thin_pool();
            let pool = inventory.volumes.iter().find(is_it);
            let pool = pool.ok_or_else(|| format!("{} has no thin pool {name}", request.vg))?;
            let donor = sharing::donor(inventory, request, pool, bytes);
            if let Some(shared) = donor.map(|donor| Shared::with(donor, pool)) {
                return Ok(shared.plan(request.lv, &tags, notes));
            }
            promises.push(fits_pool(inventory, pool, request.data, request)?);
            arguments.extend(["--virtualsize".to_owned(), format!("{bytes}b")]);
            arguments.extend(["--thinpool".to_owned(), pool.full_name()]);
        }
        other => {
            let needed = bytes.saturating_mul(other.copies());
            let free = free(inventory, group, request);
            if needed > free {
                return Err(no_room(group, free, needed, "the volume"));
            }
            promises.push(Promise::of_group(group, request.lv, needed));
            arguments.extend(other.arguments());
            // Whatever the extents held before must not be taken for a file system, or part of an array, meanwhile.
            arguments.extend(["--wipesignatures", "y", "--zero", "y"].map(str::to_owned));
            arguments.extend(["--size".to_owned(), format!("{bytes}b"), request.vg.to_owned()]);
        }
    }
    Ok(Plan { promises, ..Plan::new(Volume::New(arguments), notes) })
}

/// Options of `lvcreate` for these tags.
pub(super) fn added(tags: &[String]) -> impl Iterator<Item = String> {
    tags.iter().flat_map(|tag| ["--addtag".to_owned(), tag.clone()])
}

fn fits_pool(
    inventory: &Inventory,
    pool: &LogicalVolume,
    needed: u64,
    request: &Request<'_>,
) -> Result<Promise, String> {
    let free = pool.size.saturating_sub(pool.used().unwrap_or(0));
    let promised = request.promised.of(&pool.uuid, inventory);
    if needed <= free.saturating_sub(promised) || request.force {
        return Ok(Promise::of_pool(pool, inventory, request.lv, needed));
    }
    let others = match promised {
        0 => String::new(),
        bytes => format!(", of which other restores take up to {},", size(bytes)),
    };
    Err(format!(
        "its pool {} has {} left{others} and up to {} are needed: when a pool is full, all of its volumes fail; extend \
         it (force restores all the same)",
        pool.full_name(),
        size(free),
        size(needed)
    ))
}

/// Bytes of a group that neither a volume has nor another restore takes.
fn free(inventory: &Inventory, group: &VolumeGroup, request: &Request<'_>) -> u64 {
    group.free.saturating_sub(request.promised.of(&group.uuid, inventory))
}

fn no_room(group: &VolumeGroup, free: u64, needed: u64, what: &str) -> String {
    let others = if free < group.free { " besides what other restores take" } else { "" };
    format!(
        "{what} needs {}, and the volume group {} has {} left{others}",
        size(needed),
        group.name,
        size(free)
    )
}

fn extents(bytes: u64, group: &VolumeGroup) -> u64 {
    match group.extent_size {
        0 => bytes,
        extent => bytes.div_ceil(extent).saturating_mul(extent),
    }
}

/// A size for people.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.into_iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((unit, shift)) => format!("{:.1} {unit}", bytes as f64 / (1_u64 << shift) as f64),
        None => format!("{bytes} bytes"),
    }
}
