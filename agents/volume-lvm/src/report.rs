//! What LVM says about its volumes: the JSON reports of `lvs` and `vgs`, parsed into values.
//!
//! Pure, except for [`Inventory::load`]. Fields are asked for by name and found by name; a field that a volume has no
//! value for is an empty string in LVM's reports and `None` here. States come from `lv_attr`, whose letters mean the
//! same in every language and version (lvs(8), "lv_attr").

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use crate::tools::{Output, ToolError, Tools};

#[cfg(test)]
mod tests;

/// What is asked of `lvs`. Those of segments give one row per segment.
pub(crate) const LV_FIELDS: [&str; 22] = [
    "vg_uuid",
    "vg_name",
    "lv_uuid",
    "lv_name",
    "lv_attr",
    "lv_size",
    "lv_tags",
    "lv_layout",
    "lv_role",
    "origin",
    "origin_uuid",
    "pool_lv",
    "pool_lv_uuid",
    "metadata_lv",
    "data_percent",
    "metadata_percent",
    "segtype",
    "stripes",
    "stripe_size",
    "chunk_size",
    "thin_id",
    "discards",
];
/// What is asked of `vgs`.
pub(crate) const VG_FIELDS: [&str; 7] =
    ["vg_uuid", "vg_name", "vg_size", "vg_free", "vg_extent_size", "vg_attr", "vg_tags"];

/// An identity that LVM gave to a volume or a group; it outlives every renaming.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(String);

impl Uuid {
    /// LVM's text form: groups of letters and digits with hyphens between.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=64).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        fits.then(|| Self(text.to_owned()))
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A logical volume.
#[derive(Debug, Clone, PartialEq)]
pub struct LogicalVolume {
    /// Its group's identity.
    pub vg_uuid: Uuid,
    /// Its group's name.
    pub vg: String,
    /// Its identity.
    pub uuid: Uuid,
    /// Its name, without the brackets of hidden ones.
    pub name: String,
    /// A part of another volume, such as a pool's metadata.
    pub hidden: bool,
    /// The letters of `lv_attr`.
    pub attributes: Attributes,
    /// Bytes.
    pub size: u64,
    /// Its tags.
    pub tags: Vec<String>,
    /// LVM's words for how it is built, such as `thin,sparse`.
    pub layout: String,
    /// LVM's words for what it is for, such as `public,origin,thickorigin`.
    pub role: String,
    /// Name of the volume that it is a snapshot of, or whose bytes shine through it.
    pub origin: Option<String>,
    /// Identity of that volume.
    pub origin_uuid: Option<Uuid>,
    /// Name of its pool.
    pub pool: Option<String>,
    /// Identity of its pool.
    pub pool_uuid: Option<Uuid>,
    /// Of a pool: the name of the volume that holds its metadata.
    pub metadata_lv: Option<String>,
    /// How full it is: a snapshot's exception store, a pool's data, or how much of a thin volume is mapped.
    pub data_percent: Option<f64>,
    /// How full a pool's metadata is.
    pub metadata_percent: Option<f64>,
    /// The type of its first segment, such as `linear`, `striped`, `thin`, `thin-pool`, `snapshot`.
    pub segtype: String,
    /// Stripes of its first segment.
    pub stripes: u32,
    /// Bytes of a stripe; 0 where there are none.
    pub stripe_size: u64,
    /// Bytes of a chunk of a snapshot's exception store, or of a pool's block; 0 elsewhere.
    pub chunk_size: u64,
    /// Number of a thin volume in its pool.
    pub thin_id: Option<u32>,
    /// What a pool does with discards: `passdown`, `nopassdown` or `ignore`.
    pub discards: Option<String>,
}

/// How snapshots are taken of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// By an exception store: linear, striped, mirrored, cached and others.
    Thick,
    /// In its thin pool.
    Thin,
}

impl LogicalVolume {
    /// `vg/lv`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.vg, self.name)
    }

    /// Its name for device-mapper.
    pub fn dm_name(&self) -> String {
        dm_name(&self.vg, &self.name)
    }

    /// Its device, when it is active.
    pub fn device(&self) -> String {
        format!("/dev/mapper/{}", self.dm_name())
    }

    /// Of a snapshot with an exception store: the device of that store.
    pub fn cow_device(&self) -> String {
        format!("{}-cow", self.device())
    }

    /// A thin volume.
    pub fn is_thin(&self) -> bool {
        self.segtype == "thin"
    }

    /// A snapshot with an exception store.
    pub fn is_thick_snapshot(&self) -> bool {
        self.segtype == "snapshot" || matches!(self.attributes.kind(), 's' | 'S')
    }

    /// A pool of thin volumes.
    pub fn is_thin_pool(&self) -> bool {
        self.segtype == "thin-pool"
    }

    /// How a snapshot of it is taken; none where LVM takes none.
    pub fn kind(&self) -> Option<Kind> {
        let pools = ["thin-pool", "vdo-pool", "cache-pool"];
        if self.hidden || self.is_thick_snapshot() || pools.contains(&self.segtype.as_str()) {
            return None;
        }
        Some(if self.is_thin() { Kind::Thin } else { Kind::Thick })
    }

    /// Bytes of it that are in use, by its percentage.
    pub fn used(&self) -> Option<u64> {
        // Percentages have two digits after the point; rounding up is on the safe side.
        self.data_percent.map(|percent| (self.size as f64 * percent.clamp(0.0, 100.0) / 100.0).ceil() as u64)
    }
}

/// The letters of `lv_attr`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes(String);

impl Attributes {
    /// Takes the letters as they are.
    pub fn new(letters: impl Into<String>) -> Self {
        Self(letters.into())
    }

    fn letter(&self, index: usize) -> char {
        self.0.chars().nth(index).unwrap_or('-')
    }

    /// The type of the volume.
    pub fn kind(&self) -> char {
        self.letter(0)
    }

    /// May be written to.
    pub fn is_writable(&self) -> bool {
        self.letter(1) == 'w'
    }

    /// Has a device.
    pub fn is_active(&self) -> bool {
        matches!(self.letter(4), 'a' | 's' | 'I' | 'S' | 'm' | 'M')
    }

    /// A snapshot whose exception store overflowed.
    pub fn is_invalid(&self) -> bool {
        matches!(self.letter(4), 'I' | 'S')
    }

    /// A snapshot that is being merged back, or whose merging failed.
    pub fn is_merging(&self) -> bool {
        self.kind() == 'S' || matches!(self.letter(4), 'm' | 'M')
    }

    /// Somebody has its device open.
    pub fn is_open(&self) -> bool {
        self.letter(5) == 'o'
    }

    /// Of a pool: new blocks are zeroed before they are used.
    pub fn zeroes(&self) -> bool {
        self.letter(7) == 'z'
    }

    /// What ails it, in words; none when it is well.
    pub fn ailment(&self) -> Option<&'static str> {
        match self.letter(8) {
            'p' => Some("it lacks a physical volume"),
            'F' => Some("its pool has failed"),
            'D' => Some("its pool is out of data space"),
            'M' => Some("its pool's metadata is read-only"),
            'X' => Some("its state cannot be told"),
            _ => None,
        }
    }
}

impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A volume group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeGroup {
    /// Its identity.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Bytes that no volume has.
    pub free: u64,
    /// Bytes of an extent.
    pub extent_size: u64,
    /// The letters of `vg_attr`.
    pub attributes: String,
    /// Its tags.
    pub tags: Vec<String>,
}

/// What there is on this host.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inventory {
    /// All logical volumes, hidden ones too.
    pub volumes: Vec<LogicalVolume>,
    /// Their groups.
    pub groups: Vec<VolumeGroup>,
}

impl Inventory {
    /// Asks LVM about every group.
    pub async fn load(tools: &Tools) -> Result<Self, ToolError> {
        Self::ask(tools, &[]).await
    }

    /// Asks LVM about one group.
    pub async fn of_group(tools: &Tools, vg: &str) -> Result<Self, ToolError> {
        Self::ask(tools, &[vg]).await
    }

    /// Asks LVM about the volumes of one group, and nothing about the group.
    pub async fn volumes_of_group(tools: &Tools, vg: &str) -> Result<Self, ToolError> {
        let volumes = tools.report("lvs", &LV_FIELDS, &["-a", vg]).await?;
        Ok(Self { volumes: usable("lvs", &volumes, parse_volumes)?, groups: Vec::new() })
    }

    async fn ask(tools: &Tools, only: &[&str]) -> Result<Self, ToolError> {
        let mut arguments = vec!["-a"];
        arguments.extend_from_slice(only);
        let volumes = tools.report("lvs", &LV_FIELDS, &arguments).await?;
        let groups = tools.report("vgs", &VG_FIELDS, only).await?;
        Ok(Self {
            volumes: usable("lvs", &volumes, parse_volumes)?,
            groups: usable("vgs", &groups, parse_groups)?,
        })
    }

    /// The volume `vg/lv`.
    pub fn find(&self, vg: &str, lv: &str) -> Option<&LogicalVolume> {
        self.volumes.iter().find(|volume| volume.vg == vg && volume.name == lv && !volume.hidden)
    }

    /// The volume of this identity.
    pub fn by_uuid(&self, uuid: &Uuid) -> Option<&LogicalVolume> {
        self.volumes.iter().find(|volume| volume.uuid == *uuid)
    }

    /// The group of this name.
    pub fn group(&self, vg: &str) -> Option<&VolumeGroup> {
        self.groups.iter().find(|group| group.name == vg)
    }

    /// The pool of a thin volume.
    pub fn pool_of(&self, volume: &LogicalVolume) -> Option<&LogicalVolume> {
        match &volume.pool_uuid {
            Some(uuid) => self.by_uuid(uuid),
            None => {
                let pool = volume.pool.as_deref()?;
                self.volumes.iter().find(|other| other.vg == volume.vg && other.name == pool)
            }
        }
    }

    /// The snapshots with an exception store whose origin is this volume: removing it would take them along.
    pub fn thick_snapshots_of<'a>(
        &'a self,
        origin: &'a LogicalVolume,
    ) -> impl Iterator<Item = &'a LogicalVolume> {
        let snapshots = self.volumes.iter().filter(|other| other.is_thick_snapshot());
        snapshots.filter(|other| other.origin_uuid.as_ref() == Some(&origin.uuid))
    }
}

/// The name that device-mapper has for a volume: hyphens inside of names are doubled.
pub fn dm_name(vg: &str, lv: &str) -> String {
    format!("{}-{}", vg.replace('-', "--"), lv.replace('-', "--"))
}

/// The volume that device-mapper has under this name: the way back from [`dm_name`].
pub fn from_dm_name(name: &str) -> Option<(String, String)> {
    let bytes = name.as_bytes();
    let mut at = 0;
    while let Some(found) = name.get(at..)?.find('-').map(|found| at + found) {
        match bytes.get(found + 1) {
            Some(b'-') => at = found + 2,
            _ => {
                let plain = |part: &str| part.replace("--", "-");
                let (vg, lv) = (plain(&name[..found]), plain(&name[found + 1..]));
                return (is_name(&vg) && is_name(&lv)).then_some((vg, lv));
            }
        }
    }
    None
}

/// Whether LVM takes this as the name of a group or volume.
pub fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"+_.-".contains(&byte);
    !matches!(name, "" | "." | "..") && name.len() <= 127 && !name.starts_with('-') && name.bytes().all(fits)
}

fn usable<T>(
    program: &str,
    output: &Output,
    parse: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<T, ToolError> {
    parse(&output.stdout).map_err(|why| ToolError::Unusable { command: program.to_owned(), why })
}

type Row = BTreeMap<String, String>;

#[derive(Deserialize)]
struct Report {
    report: Vec<BTreeMap<String, serde_json::Value>>,
}

/// The rows of one kind. A log that LVM may be set to report with them is passed over.
fn rows(kind: &str, json: &[u8]) -> Result<Vec<Row>, String> {
    let report: Report = serde_json::from_slice(json).map_err(|why| format!("no JSON report: {why}"))?;
    let mut rows = Vec::new();
    for mut part in report.report {
        let Some(listed) = part.remove(kind) else { continue };
        let listed: Vec<Row> =
            serde_json::from_value(listed).map_err(|why| format!("the rows of {kind}: {why}"))?;
        rows.extend(listed);
    }
    Ok(rows)
}

/// The volumes of a report of `lvs`.
pub fn parse_volumes(json: &[u8]) -> Result<Vec<LogicalVolume>, String> {
    let mut volumes: Vec<LogicalVolume> = Vec::new();
    for row in rows("lv", json)? {
        let volume = volume(&Fields { kind: "lv_name", row: &row })?;
        // A volume of several segments has a row for each.
        if !volumes.iter().rev().any(|other| other.uuid == volume.uuid) {
            volumes.push(volume);
        }
    }
    Ok(volumes)
}

fn volume(fields: &Fields<'_>) -> Result<LogicalVolume, String> {
    let shown = fields.text("lv_name")?;
    let name = shown.trim_start_matches('[').trim_end_matches(']');
    Ok(LogicalVolume {
        vg_uuid: fields.uuid("vg_uuid")?,
        vg: fields.text("vg_name")?.to_owned(),
        uuid: fields.uuid("lv_uuid")?,
        name: name.to_owned(),
        hidden: name != shown,
        attributes: Attributes::new(fields.text("lv_attr")?),
        size: fields.number("lv_size")?,
        tags: fields.list("lv_tags"),
        layout: fields.optional("lv_layout").unwrap_or_default().to_owned(),
        role: fields.optional("lv_role").unwrap_or_default().to_owned(),
        origin: fields.optional("origin").map(bare),
        origin_uuid: fields.optional("origin_uuid").and_then(Uuid::parse),
        pool: fields.optional("pool_lv").map(bare),
        pool_uuid: fields.optional("pool_lv_uuid").and_then(Uuid::parse),
        metadata_lv: fields.optional("metadata_lv").map(bare),
        data_percent: fields.percent("data_percent")?,
        metadata_percent: fields.percent("metadata_percent")?,
        segtype: fields.text("segtype")?.to_owned(),
        stripes: fields.or_zero("stripes")? as u32,
        stripe_size: fields.or_zero("stripe_size")?,
        chunk_size: fields.or_zero("chunk_size")?,
        thin_id: fields.optional("thin_id").and_then(|text| text.parse().ok()),
        discards: fields.optional("discards").map(str::to_owned),
    })
}

/// The groups of a report of `vgs`.
pub fn parse_groups(json: &[u8]) -> Result<Vec<VolumeGroup>, String> {
    let group = |row: &Row| {
        let fields = Fields { kind: "vg_name", row };
        Ok(VolumeGroup {
            uuid: fields.uuid("vg_uuid")?,
            name: fields.text("vg_name")?.to_owned(),
            size: fields.number("vg_size")?,
            free: fields.number("vg_free")?,
            extent_size: fields.number("vg_extent_size")?,
            attributes: fields.text("vg_attr")?.to_owned(),
            tags: fields.list("vg_tags"),
        })
    };
    rows("vg", json)?.iter().map(group).collect()
}

fn bare(name: &str) -> String {
    name.trim_start_matches('[').trim_end_matches(']').to_owned()
}

/// The fields of one row, by name.
struct Fields<'a> {
    kind: &'static str,
    row: &'a Row,
}

impl Fields<'_> {
    fn whose(&self) -> &str {
        self.row.get(self.kind).map_or("a row without a name", String::as_str)
    }

    fn optional(&self, name: &str) -> Option<&str> {
        self.row.get(name).map(|text| text.trim()).filter(|text| !text.is_empty())
    }

    fn text(&self, name: &str) -> Result<&str, String> {
        self.optional(name).ok_or_else(|| format!("{} has no {name}", self.whose()))
    }

    fn number(&self, name: &str) -> Result<u64, String> {
        let text = self.text(name)?;
        text.parse().map_err(|_| format!("{name} of {} is {text:?} and no number of bytes", self.whose()))
    }

    fn or_zero(&self, name: &str) -> Result<u64, String> {
        match self.optional(name) {
            Some(_) => self.number(name),
            None => Ok(0),
        }
    }

    fn percent(&self, name: &str) -> Result<Option<f64>, String> {
        let Some(text) = self.optional(name) else { return Ok(None) };
        match text.parse::<f64>() {
            // An invalid snapshot has -1 in some versions.
            Ok(percent) if percent.is_finite() => Ok((percent >= 0.0).then_some(percent)),
            _ => Err(format!("{name} of {} is {text:?} and no percentage", self.whose())),
        }
    }

    fn uuid(&self, name: &str) -> Result<Uuid, String> {
        let text = self.text(name)?;
        Uuid::parse(text).ok_or_else(|| format!("{name} of {} is {text:?}", self.whose()))
    }

    fn list(&self, name: &str) -> Vec<String> {
        let text = self.optional(name).unwrap_or_default();
        text.split(',').filter(|tag| !tag.is_empty()).map(str::to_owned).collect()
    }
}
