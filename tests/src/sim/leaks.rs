//! `no-plaintext-out`: what leaves a host is searched for content, and for data keys that are not sealed, in runs whose
//! repository is encrypted.
//!
//! Whatever a source gives to whoever reads it is sampled before anybody can send it; then each message, each answer and
//! each object is searched for the samples. Content may go from a reader to the hashers of its host, in their queue, and
//! nowhere else. A block that is stored or sent as it is is found wherever it stands.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent::Queue;
use bytes::Bytes;
use schema::chunk::{FrameHeader, is_plain};
use schema::keys::{DataKey, Identity, SealedKey};
use schema::messages::{Extent, Message, NewChunks, Payload};
use schema::{KeyId, RepoId, names};

use super::content::BLOCK;
use super::counts::Counts;
use super::trace::Trace;

/// Bytes of a sample: random ones, of which no other eight are the same.
const SAMPLE: usize = 8;
/// Bytes of a block in which one sample begins, among the first [`SLACK`].
const APART: usize = 256;
/// As many as it takes to come to a sample that tells something.
const SLACK: usize = 32;
/// Bytes from one place that is searched to the next: at each, a sample may begin in this many bytes. In every block that is
/// there as a whole, one such place begins before its last sample.
const STEP: usize = BLOCK as usize - PLACE;
const PLACE: usize = APART + SLACK;

/// What must not leave.
#[derive(Debug, Default)]
pub struct Leaks(Option<Watch>);

#[derive(Debug)]
struct Watch {
    family: RepoId,
    identity: Arc<Identity>,
    trace: Arc<Trace>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    samples: HashSet<u64>,
    /// Keys that are sealed.
    keys: BTreeMap<KeyId, Bytes>,
    searched: u64,
}

impl Leaks {
    /// Looks at what leaves a repository whose keys are of this family. Without an identity content may be anywhere.
    pub fn new(family: RepoId, identity: Option<Arc<Identity>>, trace: Arc<Trace>) -> Self {
        Self(identity.map(|identity| Watch { family, identity, trace, seen: Mutex::default() }))
    }

    /// A source gave these bytes, from the beginning of a block on.
    pub fn read(&self, bytes: &[u8]) {
        let Some(watch) = &self.0 else { return };
        let blocks = bytes.chunks_exact(BLOCK as usize);
        watch.seen().samples.extend(blocks.flat_map(|block| block.chunks_exact(APART)).filter_map(telling));
    }

    /// Somebody sends a message to a queue.
    pub fn published(&self, by: &str, queue: &Queue, message: &Message) {
        let is_extent = || message.kind().is_ok_and(|kind| kind == Extent::NAME);
        if queue.family() != "extents" || !is_extent() {
            self.told(by, &queue.to_string(), message);
        }
    }

    /// Somebody asks a service, answers, or tells everybody.
    pub fn told(&self, by: &str, to: &str, message: &Message) {
        let Some(watch) = &self.0 else { return };
        let wrong = |why: &str| watch.wrong(format_args!("{by} tells {to} {why}"));
        if watch.finds(&message.header) || watch.finds(&message.body) {
            wrong("what a source holds");
        }
        let Ok(new) = message.read::<NewChunks>() else { return };
        if new.key.is_some_and(|key| !watch.is_sealed(key.id, &key.sealed)) {
            wrong("of a data key that is not sealed");
        }
        if is_any_plain(&message.body) {
            wrong("of a chunk that is not encrypted");
        }
    }

    /// An object was written.
    pub fn written(&self, key: &str, bytes: &Bytes) {
        let Some(watch) = &self.0 else { return };
        if watch.finds(bytes) {
            watch.wrong(format_args!("{key} holds what a source holds"));
        }
        let id = key.strip_prefix(names::KEYS).and_then(|id| id.trim_start_matches('/').parse().ok());
        if id.is_some_and(|id| !watch.is_sealed(id, bytes)) {
            watch.wrong(format_args!("{key} is not sealed"));
        }
    }

    /// How much was looked at.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        if let Some(watch) = &self.0 {
            let seen = watch.seen();
            counts.add("samples of content", seen.samples.len() as u64);
            counts.add("messages and objects searched for content", seen.searched);
        }
        counts
    }
}

impl Watch {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wrong(&self, why: std::fmt::Arguments<'_>) {
        self.trace.wrong(format!("no-plaintext-out: {why}"));
    }

    fn finds(&self, bytes: &[u8]) -> bool {
        let mut seen = self.seen();
        seen.searched += u64::from(!bytes.is_empty());
        let places = (0..bytes.len()).step_by(STEP).flat_map(|from| from..from + PLACE);
        places.map_while(|at| bytes.get(at..at + SAMPLE)).any(|found| seen.samples.contains(&sample(found)))
    }

    /// Whether the identity, and nobody without one, finds this data key there.
    fn is_sealed(&self, id: KeyId, sealed: &Bytes) -> bool {
        if self.seen().keys.get(&id).is_some_and(|known| known == sealed) {
            return true;
        }
        let key = SealedKey { id, sealed: sealed.clone(), generation: 0 };
        let is_sealed = DataKey::unseal(self.family, &key, &self.identity).is_ok();
        if is_sealed {
            self.seen().keys.insert(id, sealed.clone());
        }
        is_sealed
    }
}

/// The first bytes, which are as many as a sample has or more.
fn sample(bytes: &[u8]) -> u64 {
    bytes.first_chunk::<SAMPLE>().map_or(0, |first| u64::from_le_bytes(*first))
}

/// The first sample that nothing but random bytes looks like: what is partly zeroes, or repeats itself, may stand in any
/// message.
fn telling(bytes: &[u8]) -> Option<u64> {
    let is_alone = |bytes: &[u8], n: usize| bytes[n] != 0 && !bytes[..n].contains(&bytes[n]);
    let is_telling = |bytes: &&[u8]| (0..SAMPLE).all(|n| is_alone(bytes, n));
    bytes[..SLACK + SAMPLE].windows(SAMPLE).find(is_telling).map(sample)
}

/// Whether any of these frames is not encrypted.
fn is_any_plain(mut frames: &[u8]) -> bool {
    while let Ok(header) = FrameHeader::parse(frames) {
        if is_plain(header.key) {
            return true;
        }
        frames = frames.get(header.frame_len()..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::environment::SimEnvironment;
    use agent::Environment;

    /// Wherever it stands, and beside whatever.
    #[tokio::test(start_paused = true)]
    async fn a_block_of_a_source_is_found_at_every_offset() {
        let environment = Arc::new(SimEnvironment::new(1));
        let random = |len: usize| {
            let mut bytes = vec![0; len];
            environment.fill_random(&mut bytes);
            bytes
        };
        let trace = Arc::new(Trace::new(environment.clone(), false, &[]));
        let (family, identity) = (RepoId::from_bytes([1; 16]), Some(Arc::new(Identity::generate())));
        let leaks = Leaks::new(family, identity, trace);
        let blocks = random(3 * BLOCK as usize);
        leaks.read(&blocks);
        let watch = leaks.0.as_ref().expect("it looks");
        let others = random(3 * BLOCK as usize);
        assert!(!watch.finds(&others) && !watch.finds(&[0; 9999]) && !watch.finds(&[]));
        for at in 0..=2 * BLOCK as usize {
            let mut bytes = others.clone();
            bytes[at..at + BLOCK as usize].copy_from_slice(&blocks[BLOCK as usize..2 * BLOCK as usize]);
            assert!(watch.finds(&bytes), "it is not found at {at}");
        }
    }
}
