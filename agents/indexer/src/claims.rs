//! Claims: who was told to store a chunk that nobody has yet.
//!
//! A claim is a courtesy that spares a second copy, never a promise: it is lost with the process, void after the
//! give-up time, and dropped when the table is full, oldest first. Each of these costs at most a double copy.
//! Time is passed in and never goes backwards.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use schema::{ChunkId, SessionId};

#[cfg(test)]
mod tests;

/// Whose a claim is: one extent of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The session.
    pub session: SessionId,
    /// Where its extent starts, in bytes.
    pub extent: u64,
}

#[derive(Debug, Clone, Copy)]
struct Claim {
    owner: Owner,
    since: Duration,
    serial: u64,
}

/// The table of claims; holds at most `limit`, about 200 bytes each.
#[derive(Debug)]
pub struct Claims {
    give_up: Duration,
    limit: usize,
    held: HashMap<ChunkId, Claim>,
    /// Every grant in order of time; one whose serial is not the claim's is outdated.
    grants: VecDeque<(ChunkId, u64)>,
    serial: u64,
}

impl Claims {
    /// An empty table of at most `limit` claims (at least one), each void when older than `give_up`.
    pub fn new(give_up: Duration, limit: usize) -> Self {
        Self { give_up, limit: limit.max(1), held: HashMap::new(), grants: VecDeque::new(), serial: 0 }
    }

    /// Whether `owner` is to store the chunk; if so, the claim is theirs from `now` on.
    ///
    /// It is when nobody holds it, when they hold it already (the same extent asks again), when the claim is void,
    /// and always with `force`.
    pub fn claim(&mut self, id: ChunkId, owner: Owner, force: bool, now: Duration) -> bool {
        self.drop_void(now);
        // Void claims are dropped above, so that whatever is held here counts.
        if !force && self.held.get(&id).is_some_and(|claim| claim.owner != owner) {
            return false;
        }
        self.serial += 1;
        self.held.insert(id, Claim { owner, since: now, serial: self.serial });
        self.grants.push_back((id, self.serial));
        while self.held.len() > self.limit {
            self.drop_oldest();
        }
        if self.grants.len() > 2 * self.limit {
            let held = &self.held;
            self.grants.retain(|(id, serial)| held.get(id).is_some_and(|claim| claim.serial == *serial));
        }
        true
    }

    /// The chunk is stored: nobody needs to claim it any more.
    pub fn settle(&mut self, id: &ChunkId) {
        self.held.remove(id);
        if self.held.is_empty() {
            self.grants.clear();
        }
    }

    /// Claims held, void ones included that nobody has met yet.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Grants are in order of time, so that the void ones are in front.
    fn drop_void(&mut self, now: Duration) {
        while let Some((id, serial)) = self.grants.front() {
            match self.held.get(id) {
                Some(claim) if claim.serial == *serial && now.saturating_sub(claim.since) <= self.give_up => {
                    return;
                }
                _ => self.drop_oldest(),
            }
        }
    }

    /// Drops the oldest grant, and its claim if that is still the one.
    fn drop_oldest(&mut self) {
        let Some((id, serial)) = self.grants.pop_front() else { return };
        if self.held.get(&id).is_some_and(|claim| claim.serial == serial) {
            self.held.remove(&id);
        }
    }
}
