//! Which snapshots there are, and which of them are missing elsewhere.
//!
//! A copy says where its snapshot was made, and so does one that came back under another id. Older programs brought
//! snapshots back without saying so, and made copies of those that name the other id: they are recognised by what
//! neither copying nor bringing back changes. Where that may be said of two snapshots, it says nothing, and a second
//! copy is made.

use std::collections::{BTreeMap, BTreeSet};

use agent::{Failure, Repository, Roots};
use schema::facts::{COPIED_FROM, Origin};
use schema::names::Slot;
use schema::root::{Root, Statistics};
use schema::{JobId, ReadingId, RepoId, SessionId, VolumeKey};

/// The visible snapshots, by volume, oldest first. One whose root is damaged does not stand in the way of the others.
pub async fn snapshots(repository: &Repository) -> Result<Roots, Failure> {
    let mut roots = repository.roots(None).await?;
    roots.readable.sort_by(|a, b| (&a.volume, a.generation, a.slot).cmp(&(&b.volume, b.generation, b.slot)));
    Ok(roots)
}

/// What a snapshot and its copies have in common. What is said of one volume says nothing about another.
pub(crate) fn by_origin(root: &Root, repository: &Repository) -> (String, Origin) {
    (root.volume.clone(), Origin::of(root, repository.key.repo()))
}

/// Some of what a snapshot shares with all that was made of it: its volume, where and when its id was made, its
/// reading, and its generation.
type Likeness = (String, RepoId, u64, ReadingId, u64);

/// Which snapshots of one repository have copies in another.
pub struct Copies<'a> {
    from: &'a Repository,
    to: &'a Repository,
    here: BTreeMap<Likeness, Vec<&'a Root>>,
    there: BTreeMap<Likeness, Vec<&'a Root>>,
    by_origin: BTreeMap<(String, Origin), &'a Root>,
    /// Where the snapshots of the first were made.
    origins: BTreeSet<(String, Origin)>,
}

impl<'a> Copies<'a> {
    /// `here` are the visible snapshots of the first repository, `there` those of the second.
    pub fn new(
        from: &'a Repository,
        here: impl Iterator<Item = &'a Root> + Clone,
        to: &'a Repository,
        there: impl Iterator<Item = &'a Root> + Clone,
    ) -> Self {
        Self {
            from,
            to,
            here: alike(here.clone(), from),
            there: alike(there.clone(), to),
            by_origin: there.map(|root| (by_origin(root, to), root)).collect(),
            origins: here.map(|root| by_origin(root, from)).collect(),
        }
    }

    /// The copy of a snapshot of the first repository.
    pub fn of(&self, root: &Root) -> Option<&'a Root> {
        self.by_origin.get(&by_origin(root, self.from)).copied().or_else(|| self.without_origin(root))
    }

    /// A copy that does not say that it is one of this snapshot, and of no other one either.
    fn without_origin(&self, root: &Root) -> Option<&'a Root> {
        let likeness = likeness(root, self.from);
        let shares_keys = self.from.key.shares_keys(&self.to.key);
        let is_same = |other: &Root| is_same(root, other, shares_keys);
        let is_nobodys = |other: &Root| !self.origins.contains(&by_origin(other, self.to));
        let found = self.there.get(&likeness)?.iter().filter(|other| is_same(other) && is_nobodys(other));
        let found: Vec<&Root> = found.copied().collect();
        let [only] = found[..] else { return None };
        let has_twin =
            self.here.get(&likeness)?.iter().any(|other| other.slot != root.slot && is_same(other));
        (!has_twin).then_some(only)
    }
}

fn alike<'a>(
    roots: impl Iterator<Item = &'a Root>,
    repository: &Repository,
) -> BTreeMap<Likeness, Vec<&'a Root>> {
    let mut alike: BTreeMap<_, Vec<_>> = BTreeMap::new();
    roots.for_each(|root| alike.entry(likeness(root, repository)).or_default().push(root));
    alike
}

fn likeness(root: &Root, repository: &Repository) -> Likeness {
    let Origin { repo, snapshot } = Origin::of(root, repository.key.repo());
    // What comes back takes the time of the id that it had.
    (root.volume.clone(), repo, snapshot.time_ms(), root.reading, root.generation)
}

/// Whether two roots of one likeness say the same of one content. Of a source that changed while it was read, the reading
/// does not say what the content is.
fn is_same(one: &Root, other: &Root, shares_keys: bool) -> bool {
    let is_same_content = match shares_keys {
        true => one.top == other.top,
        false => !one.changed_while_read,
    };
    is_same_content && kept(one) == kept(other)
}

/// What neither copying nor bringing back changes. Tags may be others by then.
fn kept(root: &Root) -> Root {
    let Statistics { bytes_read, bytes_zero, chunks, .. } = root.statistics;
    let nowhere = Slot { volume: VolumeKey::from_bytes([0; 16]), session: SessionId::from_bytes([0; 16]) };
    let mut layout = root.layout.clone();
    layout.remove(COPIED_FROM);
    Root {
        slot: nowhere,
        job: JobId::from_bytes([0; 16]),
        parent: None,
        top: None,
        sealed_ms: 0,
        layout,
        tags: Vec::new(),
        statistics: Statistics { bytes_read, bytes_zero, chunks, ..Statistics::default() },
        ..root.clone()
    }
}
