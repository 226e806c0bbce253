//! A new thin volume that is to hold what another one of its pool holds already begins as a snapshot of that one: at
//! once, and on the same blocks. Then it is restored to like any volume with content, and nothing of it is believed.
//!
//! What comes of it is a volume of its own: writable, active, activated with the others, and still there when the other
//! one is removed. LVM names the other one as its origin while that is there, which means nothing for a thin volume.

use super::plan::{self, INCOMPLETE, Plan, Request, UNFINISHED, Volume};
use super::zeroing::{Step, UNIT};
use crate::dm::{DmName, PoolStatus};
use crate::report::{Inventory, LogicalVolume};
use crate::tools::Tools;

/// What a volume shares blocks with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shared {
    /// The volume that it begins as.
    pub donor: String,
    pool: DmName,
    /// Bytes of the pool's blocks.
    block: u64,
}

/// The volume that a new one of `bytes` in `pool` may begin as, if the restore knows one.
///
/// In a pool that does not zero new blocks everything is written, so that nothing would stay shared. What shines through
/// the other one is not in the pool.
pub(super) fn donor<'a>(
    inventory: &'a Inventory,
    request: &Request<'_>,
    pool: &LogicalVolume,
    bytes: u64,
) -> Option<&'a LogicalVolume> {
    let (vg, lv) = request.donor?;
    let donor = inventory.find(vg, lv)?;
    let attributes = &donor.attributes;
    let is_well = attributes.is_active() && !attributes.is_merging() && attributes.ailment().is_none();
    let is_whole =
        !donor.tags.iter().any(|tag| [UNFINISHED, INCOMPLETE].iter().any(|start| tag.starts_with(start)));
    let fits = inventory.pool_of(donor).is_some_and(|one| one.uuid == pool.uuid) && donor.size == bytes;
    let alone = donor.is_thin() && donor.origin.is_none();
    (is_well && is_whole && fits && alone && pool.attributes.zeroes()).then_some(donor)
}

impl Shared {
    /// With this volume of this pool.
    pub fn with(donor: &LogicalVolume, pool: &LogicalVolume) -> Self {
        let name = DmName::of(&pool.vg, &pool.name).layer("tpool");
        Self { donor: donor.full_name(), pool: name, block: pool.chunk_size }
    }

    /// Makes the new volume, which takes nothing of its pool.
    pub fn plan(self, lv: &str, tags: &[String], mut notes: Vec<String>) -> Plan {
        notes.push(format!("it began as a snapshot of {}, and is a volume of its own", self.donor));
        let volume = Volume::New(self.arguments(lv, tags));
        Plan { shares: Some(self), ..Plan::new(volume, notes) }
    }

    /// The arguments of `lvcreate`.
    fn arguments(&self, lv: &str, tags: &[String]) -> Vec<String> {
        let mut arguments: Vec<String> =
            ["--yes", "--quiet", "--snapshot", "--name", lv].map(str::to_owned).into();
        arguments.extend(plan::added(tags));
        let options = ["--permission", "rw", "--setactivationskip", "n", "--activate", "y"];
        arguments.extend(options.map(str::to_owned));
        arguments.push(self.donor.clone());
        arguments
    }

    /// Bytes of the pool that are in use; none when that cannot be told.
    pub async fn in_use(&self, tools: &Tools) -> Option<u64> {
        let said = tools.run("dmsetup", &["status", self.pool.as_str()]).await.ok()?;
        let status = PoolStatus::parse(&said.text()).ok()?;
        Some(status.data.used.saturating_mul(self.block))
    }
}

/// The same steps, except that zeroes are not written where there are some: a block would be shared no more. Only in a
/// pool that zeroes new blocks, so that what reads as zero stays zero whatever is written beside.
pub(super) fn sparing(steps: Vec<Step>) -> Vec<Step> {
    let spared = |step| match step {
        Step::Zero(range) => Step::Clear { range, unit: UNIT },
        other => other,
    };
    steps.into_iter().map(spared).collect()
}

#[cfg(test)]
mod tests {
    use schema::JobId;
    use schema::messages::Preparation;

    use super::super::room::Promised;
    use super::*;
    use crate::report::Attributes;
    use crate::testing::{inventory, linear, pool, repository, session, thin, thin_snapshot};

    const GIB: u64 = 1 << 30;

    #[test]
    fn only_a_whole_volume_of_the_same_pool_and_size_is_shared_with() {
        let (first, other) = (thin("vg0", "a", "pool", 1), thin("vg0", "o", "pool", 2));
        let with =
            |letters: &str, of: LogicalVolume| LogicalVolume { attributes: Attributes::new(letters), ..of };
        let tagged = |start| LogicalVolume { tags: vec![format!("{start}01")], ..first.clone() };
        let snapshot =
            LogicalVolume { name: "a".into(), ..with("Vwi-aotz--", thin_snapshot("vg0", "a", &other, 3)) };
        let the_pool = pool("vg0", "pool");
        let dirty = with("twi-aot---", the_pool.clone());
        let layout = std::collections::BTreeMap::new();
        let preparation = Preparation::default();
        for (found, pool, bytes, expected) in [
            (first.clone(), &the_pool, GIB, true),
            (first.clone(), &the_pool, GIB + 1, false),
            (first.clone(), &pool("vg0", "another"), GIB, false),
            (first.clone(), &dirty, GIB, false),
            (with("Vwi---tz--", first.clone()), &the_pool, GIB, false),
            (with("Vwi-aotzF-", first.clone()), &the_pool, GIB, false),
            (tagged(UNFINISHED), &the_pool, GIB, false),
            (tagged(INCOMPLETE), &the_pool, GIB, false),
            (snapshot, &the_pool, GIB, false),
            (linear("vg0", "a"), &the_pool, GIB, false),
        ] {
            let all = inventory([the_pool.clone(), found.clone()]);
            let mut request = Request {
                vg: "vg0",
                lv: "b",
                size: bytes,
                data: bytes,
                only: None,
                layout: &layout,
                repository: repository(1),
                snapshot: session(1),
                job: JobId::from_parts(1_700_000_000_000, 7),
                preparation: &preparation,
                force: false,
                donor: None,
                promised: &Promised::default(),
            };
            assert!(donor(&all, &request, pool, bytes).is_none(), "none is known");
            request.donor = Some(("vg0", "a"));
            assert_eq!(donor(&all, &request, pool, bytes).is_some(), expected, "{found:?}");
        }
    }

    #[test]
    fn a_volume_that_is_shared_is_one_of_its_own() {
        let shared = Shared::with(&thin("vg0", "a", "my-pool", 1), &pool("vg0", "my-pool"));
        assert_eq!(
            shared.arguments("b", &["t".to_owned()]).join(" "),
            "--yes --quiet --snapshot --name b --addtag t --permission rw --setactivationskip n --activate y vg0/a"
        );
        assert_eq!(shared.pool.as_str(), "vg0-my--pool-tpool");
    }

    #[test]
    fn zeroes_are_looked_for_before_they_are_written() {
        let discard = Step::Discard { range: 10..20, unit: 5 };
        let clear = Step::Clear { range: 3..10, unit: UNIT };
        assert_eq!(sparing(vec![Step::Zero(3..10), discard.clone()]), [clear, discard]);
    }
}
