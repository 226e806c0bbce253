//! The census: what each pack holds that snapshots need. A proposal is made from it; it may be stale without harm.
//!
//! Of a chunk with several copies only the newest counts as needed: a copy that was stored again because an older one
//! could not be read is the newer one. A copy that is recorded as damaged counts only where there is no other: then its
//! pack stays as it is.

use std::collections::{BTreeSet, HashMap};

use agent::Failure;
use agent::repository::can_be_pack;
use futures::TryStreamExt;
use schema::names::{self, Slot};
use schema::pack::PackEntry;
use schema::{PackId, SessionId};

use crate::footers::{Found, Pack};
use crate::live::{LISTS, LiveIds, half};
use crate::mark::{Sources, mark};
use crate::structure::Structure;

/// Chunks with several copies that are told apart at once, some 50 bytes each; of more, every copy counts as needed.
const DOUBLES_MAX: usize = 1 << 20;

/// What is known of one pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The pack.
    pub pack: PackId,
    /// Its size in bytes.
    pub size: u64,
    /// Why it stays whatever it holds.
    pub stays: Option<Stays>,
    /// Bytes of its frames. What it holds besides is no reason to rewrite it: a new pack would have that too.
    pub frames: u64,
    /// Bytes of its frames that snapshots need.
    pub live_bytes: u64,
    /// One bit for each frame that is needed.
    pub(crate) needed: Vec<u8>,
}

/// Why a pack stays whatever it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stays {
    /// Its footer or all of it is damaged, or a chunk of which there is no other copy: what it holds may be wanted by
    /// whoever mends it.
    Damaged,
    /// An open session stored chunks in it.
    Session,
}

impl Holding {
    /// A pack of which nothing is needed so far.
    pub fn new(pack: PackId, size: u64) -> Self {
        Self { pack, size, stays: None, frames: 0, live_bytes: 0, needed: Vec::new() }
    }

    /// Whether the frame of this number is needed.
    pub fn needs(&self, frame: usize) -> bool {
        self.needed.get(frame / 8).is_some_and(|bits| bits & 1 << (frame % 8) != 0)
    }

    /// Notes whether a frame of `len` bytes is needed.
    pub fn set(&mut self, frame: usize, len: u32, needed: bool) {
        if self.needs(frame) == needed {
            return;
        }
        if self.needed.len() <= frame / 8 {
            self.needed.resize(frame / 8 + 1, 0);
        }
        self.needed[frame / 8] ^= 1 << (frame % 8);
        match needed {
            true => self.live_bytes += u64::from(len),
            false => self.live_bytes -= u64::from(len),
        }
    }
}

/// What stands in the bucket.
#[derive(Debug, Clone, Default)]
pub(crate) struct Census {
    /// Forgotten snapshots that were not collected yet.
    pub(crate) forgotten: Vec<Slot>,
    /// Packs, in order.
    pub(crate) packs: Vec<Holding>,
}

/// Step 1: forgotten markers, packs, open sessions, and what all snapshots need that are not forgotten.
pub(crate) async fn list_and_mark(sources: &Sources<'_>, memory: u64) -> Result<Census, Failure> {
    let store = &sources.repository.store;
    sources.footers.read_damages().await?;
    let forgotten: BTreeSet<Slot> = slots(&store.list(names::FORGOTTEN).await?);
    let mut packs: Vec<Holding> =
        sources.repository.list_packs().await?.into_iter().map(|(id, size)| Holding::new(id, size)).collect();
    packs.sort_by_key(|holding| holding.pack);
    let open: BTreeSet<SessionId> = crate::sessions::listed(sources.repository).await?;
    let existing = slots(&store.list(names::SNAPSHOTS).await?);
    let (forgotten, visible): (Vec<Slot>, Vec<Slot>) =
        existing.into_iter().partition(|slot| forgotten.contains(slot));

    let mut structure = Structure::of(sources.footers, packs.iter().map(|holding| holding.pack)).await?;
    let mut from = 0;
    while from < LISTS {
        let mut live = mark(sources, &mut structure, &visible, LiveIds::new(from, memory)).await?;
        count(sources, &packs, &mut live).await?;
        judge(sources, &mut packs, &live, &open).await?;
        from = live.range().end;
    }
    Ok(Census { forgotten, packs })
}

/// The slots in a listing that hold more than a tombstone.
fn slots(listed: &[agent::store::Listed]) -> BTreeSet<Slot> {
    let existing = listed.iter().filter(|listed| listed.size > 0);
    existing.filter_map(|listed| Slot::parse_key(&listed.key).ok()).collect()
}

/// The frames of a pack that may be moved or dropped: of a damaged one, where it is recorded that nobody relies on it.
fn entries(found: &Found, is_recorded: bool) -> &[PackEntry] {
    match found {
        Found::Pack(pack) if pack.is_whole() || is_recorded => &pack.footer.entries,
        _ => &[],
    }
}

async fn count(sources: &Sources<'_>, packs: &[Holding], live: &mut LiveIds) -> Result<(), Failure> {
    let ids: Vec<PackId> = packs.iter().map(|holding| holding.pack).collect();
    let damages = sources.footers.damages();
    let mut footers = std::pin::pin!(sources.footers.read(ids));
    while let Some((pack, found)) = footers.try_next().await? {
        let whole = entries(&found, false).iter().filter(|entry| !damages.has(&entry.id, &pack));
        whole.for_each(|entry| live.count(&entry.id));
    }
    Ok(())
}

async fn judge(
    sources: &Sources<'_>,
    packs: &mut Vec<Holding>,
    live: &LiveIds,
    open: &BTreeSet<SessionId>,
) -> Result<(), Failure> {
    let ids: Vec<PackId> = packs.iter().map(|holding| holding.pack).collect();
    let damages = sources.footers.damages();
    let mut doubles = Doubles::default();
    let mut gone = BTreeSet::new();
    let mut footers = std::pin::pin!(sources.footers.read(ids).map_ok(|(_, found)| found));
    // Packs come in order, the newest last: of two copies, the later one stays.
    let mut number = 0;
    while let Some(found) = footers.try_next().await? {
        match &found {
            Found::Gone => drop(gone.insert(packs[number].pack)),
            Found::Unreadable => packs[number].stays = Some(Stays::Damaged),
            // What could be had of it was moved.
            Found::Pack(_) if damages.packs().contains(&packs[number].pack) => {}
            Found::Pack(pack) => packs[number].stays = stays(pack, packs[number].size, open),
        }
        let entries = entries(&found, damages.packs().contains(&packs[number].pack));
        packs[number].frames = entries.iter().map(|entry| u64::from(entry.len)).sum();
        for (frame, entry) in entries.iter().enumerate() {
            if live.contains(&entry.id) != Some(true) {
                continue;
            }
            if damages.has(&entry.id, &packs[number].pack) {
                if live.counted(&entry.id) == 0 {
                    packs[number].set(frame, entry.len, true);
                    packs[number].stays = Some(Stays::Damaged);
                }
                continue;
            }
            let older = match live.counted(&entry.id) == 2 {
                true => doubles.replace(half(&entry.id), (number, frame, entry.len)),
                false => None,
            };
            if let Some((older, frame, len)) = older {
                packs[older].set(frame, len, false);
            }
            packs[number].set(frame, entry.len, true);
        }
        number += 1;
    }
    packs.retain(|holding| !gone.contains(&holding.pack));
    Ok(())
}

fn stays(pack: &Pack, size: u64, open: &BTreeSet<SessionId>) -> Option<Stays> {
    if !pack.is_whole() || !can_be_pack(size) {
        return Some(Stays::Damaged);
    }
    pack.footer.sessions.iter().any(|session| open.contains(session)).then_some(Stays::Session)
}

/// The newest copy of chunks that have several: pack, frame, and its length.
#[derive(Default)]
struct Doubles(HashMap<u128, (usize, usize, u32)>);

impl Doubles {
    /// Notes a newer copy, and returns the one before it.
    fn replace(&mut self, chunk: u128, copy: (usize, usize, u32)) -> Option<(usize, usize, u32)> {
        match self.0.len() < DOUBLES_MAX || self.0.contains_key(&chunk) {
            true => self.0.insert(chunk, copy),
            false => None,
        }
    }
}
