//! Device-mapper's names, tables and states, as far as snapshots and thin pools are concerned.
//!
//! Pure: text in, values out. The fields are those of the kernel's `Documentation/admin-guide/device-mapper`
//! (`snapshot.rst`, `thin-provisioning.rst`). A device of more than one target is none of these.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::report::dm_name;

#[cfg(test)]
mod tests;

/// The name of a device, as below `/dev/mapper`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DmName(String);

impl DmName {
    /// Where the devices are.
    pub const DIRECTORY: &'static str = "/dev/mapper";

    /// That of a logical volume.
    pub fn of(group: &str, volume: &str) -> Self {
        Self(dm_name(group, volume))
    }

    /// That of a device that LVM puts below it: `cow` and `real` of a snapshot, `tpool` of a thin pool.
    pub fn layer(&self, layer: &str) -> Self {
        Self(format!("{}-{layer}", self.0))
    }

    /// As a string.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its device node.
    pub fn path(&self) -> PathBuf {
        Path::new(Self::DIRECTORY).join(&self.0)
    }
}

impl fmt::Display for DmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// That a device is not what it should be. Says what `dmsetup` printed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is not {expected}: dmsetup says `{said}`")]
pub struct NotThat {
    expected: &'static str,
    said: String,
}

/// One line of `dmsetup table` or `dmsetup status`: start, length, kind of target, and its fields.
struct Target<'a> {
    said: &'a str,
    /// Bytes of the device.
    size: u64,
    fields: Vec<&'a str>,
}

impl<'a> Target<'a> {
    fn parse(said: &'a str, expected: &'static str, kind: &str) -> Result<Self, NotThat> {
        let said = said.trim();
        let mut words = said.split_ascii_whitespace();
        let (start, length, found) = (words.next(), words.next(), words.next());
        let size = length.and_then(|sectors| sectors.parse::<u64>().ok()?.checked_mul(512));
        let is_whole = start == Some("0") && said.lines().count() == 1 && found == Some(kind);
        let target = Self { said, size: size.unwrap_or(0), fields: words.collect() };
        match is_whole && size.is_some() {
            true => Ok(target),
            false => Err(target.is_not(expected)),
        }
    }

    fn is_not(&self, expected: &'static str) -> NotThat {
        NotThat { expected, said: self.said.chars().take(200).collect() }
    }

    fn number<T: std::str::FromStr>(&self, field: usize) -> Option<T> {
        self.fields.get(field)?.parse().ok()
    }

    /// `used/total`.
    fn usage(&self, field: usize) -> Option<Usage> {
        let (used, total) = self.fields.get(field)?.split_once('/')?;
        Some(Usage { used: used.parse().ok()?, total: total.parse().ok()? })
    }
}

/// How much of something is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Taken.
    pub used: u64,
    /// There is.
    pub total: u64,
}

/// The table of a classic snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotTable {
    /// Bytes of the snapshot, and of its origin.
    pub size: u64,
    /// Whether its exceptions are kept on disk.
    pub persistent: bool,
    /// Bytes of a chunk.
    pub chunk: u64,
}

impl SnapshotTable {
    /// From `dmsetup table`.
    pub fn parse(said: &str) -> Result<Self, NotThat> {
        const EXPECTED: &str = "the device of a snapshot";
        let target = Target::parse(said, EXPECTED, "snapshot")?;
        let persistent = match target.fields.get(2).copied() {
            Some("P" | "PO") => true,
            Some("N" | "NO") => false,
            _ => return Err(target.is_not(EXPECTED)),
        };
        let sectors: u32 = target.number(3).ok_or_else(|| target.is_not(EXPECTED))?;
        Ok(Self { size: target.size, persistent, chunk: u64::from(sectors) * 512 })
    }
}

/// The state of a classic snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotStatus {
    /// It holds.
    Valid {
        /// Of its exception store, in sectors.
        store: Usage,
        /// Sectors for the header and the metadata areas that were begun.
        metadata: u64,
    },
    /// It overflowed, or could not be written to: it is lost.
    Invalid,
    /// It is being merged, and that failed.
    MergeFailed,
}

impl SnapshotStatus {
    /// From `dmsetup status`.
    pub fn parse(said: &str) -> Result<Self, NotThat> {
        const EXPECTED: &str = "the state of a snapshot";
        let target = Target::parse(said, EXPECTED, "snapshot")?;
        match target.fields.as_slice() {
            ["Invalid" | "Overflow"] => Ok(Self::Invalid),
            ["Merge", "failed"] => Ok(Self::MergeFailed),
            _ => {
                let figures = target.usage(0).zip(target.number(1));
                let (store, metadata) = figures.ok_or_else(|| target.is_not(EXPECTED))?;
                Ok(Self::Valid { store, metadata })
            }
        }
    }
}

/// The table of a thin volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThinTable {
    /// Bytes of the volume.
    pub size: u64,
    /// Its id in the pool.
    pub id: u32,
    /// The device that shines through where nothing is mapped, as `major:minor`.
    pub external_origin: Option<String>,
}

impl ThinTable {
    /// From `dmsetup table`.
    pub fn parse(said: &str) -> Result<Self, NotThat> {
        const EXPECTED: &str = "the device of a thin volume";
        let target = Target::parse(said, EXPECTED, "thin")?;
        let id = target.number(1).ok_or_else(|| target.is_not(EXPECTED))?;
        let external_origin = target.fields.get(2).map(|device| (*device).to_owned());
        Ok(Self { size: target.size, id, external_origin })
    }
}

/// What a pool lets happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// Everything.
    ReadWrite,
    /// No new blocks: it has none left.
    OutOfDataSpace,
    /// Nothing that changes its metadata.
    ReadOnly,
}

/// The state of a thin pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStatus {
    /// Its transaction id.
    pub transaction: u64,
    /// Blocks of metadata, of 4 KiB.
    pub metadata: Usage,
    /// Blocks of data.
    pub data: Usage,
    /// The block where a metadata snapshot is held, where one is.
    pub held: Option<u64>,
    /// What it lets happen.
    pub mode: PoolMode,
    /// Whether its metadata has to be repaired.
    pub needs_check: bool,
}

impl PoolStatus {
    /// From `dmsetup status` of the pool's `-tpool` device. A pool that failed altogether tells nothing but that.
    pub fn parse(said: &str) -> Result<Self, NotThat> {
        const EXPECTED: &str = "the state of a thin pool that works";
        let target = Target::parse(said, EXPECTED, "thin-pool")?;
        let figures = || {
            let held = match *target.fields.get(3)? {
                "-" => None,
                block => Some(block.parse().ok()?),
            };
            let mode = match *target.fields.get(4)? {
                "rw" => PoolMode::ReadWrite,
                "out_of_data_space" => PoolMode::OutOfDataSpace,
                "ro" => PoolMode::ReadOnly,
                _ => return None,
            };
            Some(Self {
                transaction: target.number(0)?,
                metadata: target.usage(1)?,
                data: target.usage(2)?,
                held,
                mode,
                needs_check: target.fields.contains(&"needs_check"),
            })
        };
        figures().ok_or_else(|| target.is_not(EXPECTED))
    }
}
