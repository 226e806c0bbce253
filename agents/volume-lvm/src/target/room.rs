//! Room that restores which run will take of a pool or volume group: each alone would fit, and all of them together
//! must.
//!
//! A restore's volume takes its room little by little, which LVM's report shows. What was promised and is not taken yet
//! is not free. Whoever plans takes turns, and looks who is there before it asks LVM: a restore that ends meanwhile has
//! taken its room in that report, or still counts. Other processes are not known here.

use std::sync::{Arc, Weak};

use tokio::sync::{Mutex, MutexGuard};

use crate::report::{Inventory, LogicalVolume, Uuid, VolumeGroup};

/// What one restore takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Promise {
    whose: Uuid,
    /// The volume that takes it.
    vg: String,
    lv: String,
    bytes: u64,
    /// What the volume had of a pool already; none where it is made of a group's extents, all at once.
    mapped: Option<u64>,
}

impl Promise {
    /// Of a pool, for a volume that may be there.
    pub fn of_pool(pool: &LogicalVolume, inventory: &Inventory, lv: &str, bytes: u64) -> Self {
        let mapped = Some(mapped(inventory, &pool.vg, lv));
        Self { whose: pool.uuid.clone(), vg: pool.vg.clone(), lv: lv.to_owned(), bytes, mapped }
    }

    /// Of a group's extents, for a volume that is made.
    pub fn of_group(group: &VolumeGroup, lv: &str, bytes: u64) -> Self {
        Self { whose: group.uuid.clone(), vg: group.name.clone(), lv: lv.to_owned(), bytes, mapped: None }
    }

    /// Bytes that are not taken yet.
    fn left(&self, inventory: &Inventory) -> u64 {
        match self.mapped {
            Some(before) => {
                let taken = mapped(inventory, &self.vg, &self.lv).saturating_sub(before);
                self.bytes.saturating_sub(taken)
            }
            None if inventory.find(&self.vg, &self.lv).is_some() => 0,
            None => self.bytes,
        }
    }
}

fn mapped(inventory: &Inventory, vg: &str, lv: &str) -> u64 {
    inventory.find(vg, lv).and_then(LogicalVolume::used).unwrap_or(0)
}

/// What is promised to other restores.
#[derive(Debug, Clone, Default)]
pub(super) struct Promised(Vec<Arc<[Promise]>>);

impl Promised {
    /// Bytes of a pool or group that they still take.
    pub fn of(&self, whose: &Uuid, inventory: &Inventory) -> u64 {
        let of_it = self.0.iter().flat_map(|all| all.iter()).filter(|one| one.whose == *whose);
        of_it.map(|one| one.left(inventory)).fold(0, u64::saturating_add)
    }
}

/// The restores of this process. Each keeps what it was promised for as long as it needs it.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<Vec<Weak<[Promise]>>>);

/// A turn to plan.
pub(super) struct Turn<'a> {
    all: MutexGuard<'a, Vec<Weak<[Promise]>>>,
    /// What is promised to those who were there when the turn began.
    pub promised: Promised,
}

impl Ledger {
    /// Waits for a turn to plan, before LVM is asked.
    pub async fn turn(&self) -> Turn<'_> {
        let mut all = self.0.lock().await;
        all.retain(|one| one.strong_count() > 0);
        let promised = Promised(all.iter().filter_map(Weak::upgrade).collect());
        Turn { all, promised }
    }
}

impl Turn<'_> {
    /// Promises, until what is returned is dropped.
    pub fn promise(mut self, promises: &[Promise]) -> Arc<[Promise]> {
        let ours: Arc<[Promise]> = promises.into();
        self.all.push(Arc::downgrade(&ours));
        ours
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{group, inventory, linear, pool, thin};

    const GIB: u64 = 1 << 30;

    #[tokio::test]
    async fn what_is_promised_is_not_free_until_it_is_taken_or_let_go() {
        let ledger = Ledger::default();
        let (pool, group) = (pool("vg0", "pool"), group("vg0", 9 * GIB));
        let filled = |percent| {
            let web = LogicalVolume { data_percent: Some(percent), ..thin("vg0", "web", "pool", 1) };
            inventory([pool.clone(), web])
        };
        let before = filled(25.0);
        let promises = [
            Promise::of_pool(&pool, &before, "web", GIB / 2),
            Promise::of_pool(&pool, &before, "new", GIB),
            Promise::of_group(&group, "thick", 2 * GIB),
        ];
        let first = ledger.turn().await.promise(&promises);
        let promised = async |inventory: &Inventory| {
            let now = ledger.turn().await.promised;
            (now.of(&pool.uuid, inventory), now.of(&group.uuid, inventory))
        };
        assert_eq!(promised(&before).await, (GIB / 2 + GIB, 2 * GIB));
        assert_eq!(promised(&filled(50.0)).await, (GIB / 4 + GIB, 2 * GIB));
        assert_eq!(promised(&filled(100.0)).await, (GIB, 2 * GIB), "it takes no more than it was promised");
        assert_eq!(promised(&inventory([linear("vg0", "thick")])).await.1, 0, "it has its extents");
        // One who plans counts whoever ends meanwhile.
        let turn = ledger.turn().await;
        drop(first);
        assert_eq!(turn.promised.of(&group.uuid, &before), 2 * GIB);
        drop(turn);
        assert_eq!(promised(&before).await, (0, 0));
    }
}
