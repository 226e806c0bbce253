//! What to do about the packs of a census: pure.

use schema::PackId;

use crate::census::{Holding, Stays};

/// Packs that one epoch condemns at most: its object must stay small.
pub const CONDEMNED_MAX: usize = 1 << 20;

/// How much is rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of needed frames that one run moves at most.
    pub max_repack: u64,
    /// A pack is rewritten when at most this many per cent of its frames' bytes are needed, and not all of them; one with
    /// damaged frames that are not needed in it whenever there is room, so that nobody meets them again.
    pub repack_below: u64,
}

/// What to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Packs that hold nothing that is needed.
    pub dead: Vec<PackId>,
    /// Places, in the census, of packs to be rewritten.
    pub rewrite: Vec<usize>,
    /// What it comes to.
    pub sums: Sums,
}

/// Bytes in packs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sums {
    /// All packs.
    pub total: u64,
    /// Packs that hold nothing that is needed.
    pub dead: u64,
    /// Packs that are rewritten.
    pub rewritten: u64,
    /// What of those is needed and moves.
    pub moved: u64,
    /// Not needed, in packs that are as mostly dead as those that are rewritten, and wait for another run.
    pub later: u64,
    /// Not needed, in packs that are mostly needed.
    pub scattered: u64,
    /// In packs that stay because an open session stored something in them.
    pub held: u64,
    /// In packs that stay because they are damaged.
    pub damaged: u64,
    /// In packs that stay because the store does not give them.
    pub withheld: u64,
}

/// Decides. The packs with the least to move per byte gained come first.
pub fn plan(packs: &[Holding], limits: Limits) -> Plan {
    let mut plan = Plan::default();
    let mut partly: Vec<(usize, &Holding)> = Vec::new();
    for (place, holding) in packs.iter().enumerate() {
        plan.sums.total += holding.size;
        match holding.stays {
            Some(Stays::Damaged) => plan.sums.damaged += holding.size,
            Some(Stays::Withheld) => plan.sums.withheld += holding.size,
            Some(Stays::Session) => plan.sums.held += holding.size,
            None if holding.live_bytes > 0 => partly.push((place, holding)),
            None if plan.dead.len() < CONDEMNED_MAX => {
                plan.dead.push(holding.pack);
                plan.sums.dead += holding.size;
            }
            None => plan.sums.later += holding.size,
        }
    }
    partly.sort_by_key(|(_, holding)| share(holding));
    for (place, holding) in partly {
        let unneeded = holding.frames.saturating_sub(holding.live_bytes);
        let is_due = holding.is_rotten || share(holding) <= limits.repack_below * 100;
        if unneeded == 0 || !is_due {
            plan.sums.scattered += unneeded;
        } else if plan.sums.moved + holding.live_bytes > limits.max_repack
            || plan.dead.len() + plan.rewrite.len() >= CONDEMNED_MAX
        {
            plan.sums.later += unneeded;
        } else {
            plan.rewrite.push(place);
            plan.sums.rewritten += holding.size;
            plan.sums.moved += holding.live_bytes;
        }
    }
    plan
}

/// How much of a pack's frames is needed, in hundredths of a per cent.
fn share(holding: &Holding) -> u64 {
    let share = u128::from(holding.live_bytes) * 10_000 / u128::from(holding.frames.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(number: u8, size: u64, live: u32) -> Holding {
        let mut holding = Holding { frames: size, ..Holding::new(PackId::from_bytes([number; 16]), size) };
        if live > 0 {
            holding.set(0, live);
        }
        holding
    }

    #[test]
    fn dead_packs_go_and_the_deadest_of_the_others_are_rewritten_first() {
        let packs = [
            holding(1, 100, 0),
            holding(2, 100, 50),
            holding(3, 100, 10),
            holding(4, 100, 30),
            holding(5, 100, 51),
            Holding { stays: Some(Stays::Session), ..holding(6, 100, 0) },
            Holding { stays: Some(Stays::Damaged), ..holding(7, 100, 0) },
            Holding { stays: Some(Stays::Withheld), ..holding(8, 100, 0) },
        ];
        let plan = plan(&packs, Limits { max_repack: 45, repack_below: 50 });
        assert_eq!(plan.dead, [packs[0].pack]);
        assert_eq!(plan.rewrite, [2, 3]);
        let sums = Sums {
            total: 800,
            dead: 100,
            rewritten: 200,
            moved: 40,
            later: 50,
            scattered: 49,
            held: 100,
            damaged: 100,
            withheld: 100,
        };
        assert_eq!(plan.sums, sums);
    }

    #[test]
    fn what_is_damaged_and_healed_elsewhere_is_left_behind_however_much_is_needed_beside_it() {
        let rotten = |holding: Holding| Holding { is_rotten: true, ..holding };
        let packs = [
            rotten(holding(1, 100, 99)),
            holding(2, 100, 99),
            holding(3, 100, 20),
            rotten(holding(4, 100, 98)),
            Holding { stays: Some(Stays::Damaged), ..rotten(holding(5, 100, 97)) },
            rotten(holding(6, 100, 0)),
        ];
        let plan = plan(&packs, Limits { max_repack: 20 + 98 + 98, repack_below: 50 });
        // The deadest first, and no more than there is room for.
        assert_eq!((plan.rewrite, plan.dead), (vec![2, 3], vec![packs[5].pack]));
        assert_eq!((plan.sums.moved, plan.sums.later, plan.sums.scattered), (118, 1, 1));
    }

    #[test]
    fn a_budget_of_nothing_rewrites_nothing() {
        let plan = plan(&[holding(1, 100, 1)], Limits { max_repack: 0, repack_below: 50 });
        assert_eq!((plan.rewrite.len(), plan.sums.later), (0, 99));
    }

    #[test]
    fn a_small_pack_that_is_needed_throughout_stays() {
        let small = Holding { size: 1000, ..holding(1, 10, 10) };
        assert_eq!(plan(&[small], Limits { max_repack: 100, repack_below: 100 }).rewrite.len(), 0);
    }

    #[test]
    fn a_frame_is_needed_once_however_often_it_is_said() {
        let mut holding = holding(1, 100, 0);
        holding.set(9, 7);
        holding.set(9, 7);
        holding.set(1, 2);
        assert!(holding.needs(9) && holding.needs(1) && !holding.needs(0) && !holding.needs(1000));
        assert_eq!(holding.live_bytes, 9);
    }
}
