//! The steps of whoever holds snapshot 0, as `agent::forgetting::hold` takes them.

use crate::world::{Bounds, Broken, Hold, Slot, World, has};

/// What the hold is after the next step, if there is one.
pub fn next(bounds: &Bounds, world: &World) -> Option<Hold> {
    let looks_first = bounds.broken == Some(Broken::LooksBeforeItHolds);
    let is_visible = world.slots[0] == Slot::Snapshot && !has(world.markers, 0);
    match world.hold {
        Hold::Nothing if looks_first => Some(if is_visible { Hold::Looked } else { Hold::Refused }),
        // Whoever wants to hold it has seen it at some time.
        Hold::Nothing => Some(Hold::Written),
        Hold::Looked => Some(Hold::Held),
        Hold::Written => Some(if has(world.markers, 0) { Hold::Refused } else { Hold::Held }),
        Hold::Held | Hold::Refused => None,
    }
}
