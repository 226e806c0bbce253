//! Volumes as LVM reports them, for tests.

use schema::{RepoId, SessionId};

use crate::marks::Marks;
use crate::owner::Owner;
use crate::report::{Attributes, Inventory, LogicalVolume, Uuid, VolumeGroup};

/// The identity of a volume, made from its name.
pub(crate) fn uuid(vg: &str, lv: &str) -> Uuid {
    let text: String =
        format!("{vg}-{lv}").chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    Uuid::parse(&text).unwrap()
}

/// A repository.
pub(crate) fn repository(n: u8) -> RepoId {
    RepoId::from_bytes([n; 16])
}

/// A session.
pub(crate) fn session(n: u128) -> SessionId {
    SessionId::from_parts(1_700_000_000_000, n)
}

/// A process.
pub(crate) fn owner(pid: u32) -> Owner {
    Owner::new("b007", pid, 1).unwrap()
}

/// A linear volume, active.
pub(crate) fn linear(vg: &str, lv: &str) -> LogicalVolume {
    LogicalVolume {
        vg_uuid: uuid(vg, ""),
        vg: vg.into(),
        uuid: uuid(vg, lv),
        name: lv.into(),
        hidden: false,
        attributes: Attributes::new("-wi-a-----"),
        size: 1 << 30,
        tags: Vec::new(),
        layout: "linear".into(),
        role: "public".into(),
        origin: None,
        origin_uuid: None,
        pool: None,
        pool_uuid: None,
        metadata_lv: None,
        data_percent: None,
        metadata_percent: None,
        segtype: "linear".into(),
        stripes: 1,
        stripe_size: 0,
        chunk_size: 0,
        thin_id: None,
        discards: None,
    }
}

/// A snapshot with an exception store, read-only.
pub(crate) fn thick_snapshot(vg: &str, lv: &str, origin: &str) -> LogicalVolume {
    LogicalVolume {
        attributes: Attributes::new("sri-a-s---"),
        size: 100 << 20,
        origin: Some(origin.into()),
        origin_uuid: Some(uuid(vg, origin)),
        data_percent: Some(10.0),
        chunk_size: 65536,
        ..linear(vg, lv)
    }
}

/// A thin pool.
pub(crate) fn pool(vg: &str, lv: &str) -> LogicalVolume {
    LogicalVolume {
        attributes: Attributes::new("twi-aotz--"),
        size: 10 << 30,
        segtype: "thin-pool".into(),
        metadata_lv: Some(format!("{lv}_tmeta")),
        data_percent: Some(20.0),
        metadata_percent: Some(5.0),
        chunk_size: 65536,
        ..linear(vg, lv)
    }
}

/// A thin volume.
pub(crate) fn thin(vg: &str, lv: &str, pool: &str, thin_id: u32) -> LogicalVolume {
    LogicalVolume {
        attributes: Attributes::new("Vwi-aotz--"),
        segtype: "thin".into(),
        pool: Some(pool.into()),
        pool_uuid: Some(uuid(vg, pool)),
        data_percent: Some(50.0),
        thin_id: Some(thin_id),
        ..linear(vg, lv)
    }
}

/// A thin snapshot, read-only and inactive.
pub(crate) fn thin_snapshot(vg: &str, lv: &str, origin: &LogicalVolume, thin_id: u32) -> LogicalVolume {
    LogicalVolume {
        attributes: Attributes::new("Vri---tz-k"),
        origin: Some(origin.name.clone()),
        origin_uuid: Some(origin.uuid.clone()),
        ..thin(vg, lv, origin.pool.as_deref().unwrap_or_default(), thin_id)
    }
}

/// The marks of a snapshot of `origin` for a session, without an owner.
pub(crate) fn marks(origin: &LogicalVolume, repository: RepoId, n: u128) -> Marks {
    Marks {
        id: session(n),
        repository,
        origin: origin.uuid.clone(),
        session: Some(session(n)),
        group: None,
        owner: None,
        embedded: false,
        baseline: false,
    }
}

/// A marked snapshot with an exception store.
pub(crate) fn ours(origin: &LogicalVolume, marks: &Marks) -> LogicalVolume {
    let name = Marks::name(marks.id);
    let snapshot = match origin.is_thin() {
        true => thin_snapshot(&origin.vg, &name, origin, 100),
        false => thick_snapshot(&origin.vg, &name, &origin.name),
    };
    LogicalVolume { tags: marks.tags(), ..snapshot }
}

/// A group with this much free space.
pub(crate) fn group(vg: &str, free: u64) -> VolumeGroup {
    VolumeGroup {
        uuid: uuid(vg, ""),
        name: vg.into(),
        size: 100 << 30,
        free,
        extent_size: 4 << 20,
        attributes: "wz--n-".into(),
        tags: Vec::new(),
    }
}

/// Everything of one group.
pub(crate) fn inventory(volumes: impl IntoIterator<Item = LogicalVolume>) -> Inventory {
    Inventory { volumes: volumes.into_iter().collect(), groups: vec![group("vg0", 50 << 30)] }
}
