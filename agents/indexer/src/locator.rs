//! Finds where the chunks of a few snapshots are, for whoever only reads: without an index of everything else.
//!
//! The maps are walked level by level, and for each level the footers of structure packs are read; then those of data
//! packs, once. What is kept is what the snapshots want, every copy of it. So memory is bounded by
//! [`LocatorSettings::memory`], and what goes to disk by the snapshots' own chunks: some 62 bytes for each. What the
//! repository holds besides costs time, and 18 bytes of memory for each pack. What a part of a map names that could not
//! be read at first is looked for when somebody who could read it seeks it.

mod seeking;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use agent::repository::can_be_pack;
use agent::{Context, Failure, Repository, maps};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use schema::limits::{CHUNK_AVERAGE, LEAF_SPAN, NODE_FANOUT};
use schema::map::{Content, Geometry, Leaf, Node};
use schema::messages::{FailureKind, Locate, Located};
use schema::pack::PackEntry;
use schema::root::Root;
use schema::{ChunkId, Domain, PackId};

use crate::indexer::located;
use crate::sync::{Footer, footer_of};
use crate::table::{Spill, Table};
use crate::wanted::Wanted;

/// Requests to the store at once.
const AT_ONCE: usize = 32;

/// What a locator is made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocatorSettings {
    /// Bytes of memory for what is wanted and where it is; 1 MiB at least are used.
    pub memory: u64,
    /// A directory that does not exist yet, for what does not fit the memory. It is deleted in the end.
    pub scratch: PathBuf,
}

/// What is wanted of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The snapshot.
    pub root: Root,
    /// The bytes of the volume that are looked at.
    pub part: Range<u64>,
    /// Whether their content is wanted, too, and not the map alone.
    pub content: bool,
}

/// What finding the chunks took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LocatorReport {
    /// Packs in the listing.
    pub packs: u64,
    /// Footers read; those of structure packs once for each level of the maps.
    pub footers: u64,
    /// Copies that were kept.
    pub copies: u64,
    /// Whether they are on disk.
    pub spilled: bool,
}

/// Knows where the chunks of some snapshots are.
pub struct Locator {
    context: Context,
    repository: Repository,
    wanted: Wanted,
    table: Table,
    report: LocatorReport,
    /// The packs that were looked at.
    known: Packs,
    /// Those of them that the last look did not find any more.
    gone: BTreeSet<PackId>,
    /// Whether a part of a map could not be read, so that nobody knows what it names.
    is_partial: AtomicBool,
}

/// The packs of a repository by what they hold, in order. One whose header is damaged is in both.
#[derive(Clone, Default)]
struct Packs {
    structure: Vec<PackId>,
    data: Vec<PackId>,
}

impl Packs {
    fn has(&self, pack: &PackId) -> bool {
        self.structure.binary_search(pack).is_ok() || self.data.binary_search(pack).is_ok()
    }

    /// Those that hold this kind of chunk.
    fn of(&self, kind: Domain) -> &[PackId] {
        match kind {
            Domain::Structure => &self.structure,
            Domain::Data => &self.data,
        }
    }

    fn extend(&mut self, others: Self) {
        self.structure.extend(others.structure);
        self.data.extend(others.data);
        self.structure.sort_unstable();
        self.data.sort_unstable();
    }
}

impl Locator {
    /// Looks for everything that is wished for. What a damaged map leads to is not found: whoever reads the map says so.
    pub async fn find(
        context: Context,
        repository: Repository,
        settings: &LocatorSettings,
        wishes: &[Wish],
    ) -> Result<Self, Failure> {
        let memory = settings.memory.max(1 << 20);
        let expected = wishes.iter().map(Wish::chunks).fold(0, u64::saturating_add);
        let spill = Spill {
            path: settings.scratch.clone(),
            repo: repository.key.repo(),
            cache_bytes: (memory / 8).min(8 << 20),
        };
        let mut locator = Self {
            context,
            repository,
            wanted: Wanted::new(expected, memory / 2),
            table: Table::new(memory / 2, spill),
            report: LocatorReport::default(),
            known: Packs::default(),
            gone: BTreeSet::new(),
            is_partial: AtomicBool::new(false),
        };
        let packs = locator.packs().await?;
        let depth = |wish: &Wish| Geometry::new(wish.root.size).map(|geometry| geometry.depth());
        let depths = wishes.iter().map(depth).collect::<Result<Vec<u8>, _>>()?;
        for level in (0..=depths.iter().copied().max().unwrap_or(0)).rev() {
            for wish in wishes {
                locator.want_structure(wish, level).await?;
            }
            locator.look(&packs.structure, Domain::Structure).await?;
        }
        let mut content = false;
        for wish in wishes.iter().filter(|wish| wish.content) {
            content |= locator.want_content(wish).await?;
        }
        if content {
            locator.look(&packs.data, Domain::Data).await?;
        }
        locator.known.extend(packs);
        locator.report.spilled = locator.table.is_spilled();
        tracing::info!(report = ?locator.report, "found where the chunks are");
        Ok(locator)
    }

    /// What it took.
    pub fn report(&self) -> LocatorReport {
        self.report
    }

    /// All copies of chunks that were looked for, newest pack first. Refused for any other.
    pub fn locate(&self, asked: &Locate) -> Result<Located, Failure> {
        if let Some(id) = asked.ids.iter().find(|id| !self.wanted.has(id)) {
            let why = format!("chunk {id} was not looked for: it is in no map that was read");
            return Err(Failure::refused(why));
        }
        self.copies(&asked.ids)
    }

    fn copies(&self, ids: &[ChunkId]) -> Result<Located, Failure> {
        located(ids.iter().map(|id| self.table.copies(id)))
    }

    /// All packs that can hold anything, by what they hold.
    async fn packs(&mut self) -> Result<Packs, Failure> {
        let listed = self.repository.list_packs().await?;
        let listed: Vec<PackId> =
            listed.into_iter().filter(|(_, size)| can_be_pack(*size)).map(|(pack, _)| pack).collect();
        self.report.packs = listed.len() as u64;
        sorted(&self.context, &self.repository, listed).await
    }

    /// Keeps what these packs have of what is wanted.
    async fn look(&mut self, packs: &[PackId], kind: Domain) -> Result<(), Failure> {
        let repository = self.repository.clone();
        let repository = &repository;
        let footer = |pack: PackId| async move { (pack, footer_of(repository, pack, kind).await) };
        let mut footers = stream::iter(packs.iter().copied()).map(footer).buffer_unordered(AT_ONCE);
        while let Some((pack, footer)) = footers.next().await {
            unless_stopped(&self.context)?;
            // What cannot be read holds nothing that anybody could read.
            let Footer::Read(footer) = footer? else { continue };
            let entries = footer.entries.into_iter().filter(|entry| self.wanted.has(&entry.id));
            let entries: Vec<PackEntry> = entries.collect();
            self.report.footers += 1;
            self.report.copies += entries.len() as u64;
            self.table.add(pack, &entries)?;
        }
        self.table.sort();
        Ok(())
    }

    /// Wants the parts of a map at one level, 0 for leaves. Those above must have been found.
    async fn want_structure(&mut self, wish: &Wish, level: u8) -> Result<(), Failure> {
        let mut walk = Walk::new(wish, level)?;
        while let Some(parts) = walk.next(self).await? {
            parts.iter().for_each(|part| self.wanted.add(&part.id));
        }
        Ok(())
    }

    /// Wants what the leaves of a map name; whether that is anything.
    async fn want_content(&mut self, wish: &Wish) -> Result<bool, Failure> {
        let geometry = Geometry::new(wish.root.size)?;
        let (mut walk, mut any) = (Walk::new(wish, 0)?, false);
        while let Some(parts) = walk.next(self).await? {
            let Self { repository, table, wanted, is_partial, .. } = self;
            let (repository, table) = (&*repository, &*table);
            let read = |part: Part| async move {
                let range = geometry.leaf_range(part.first);
                let bytes = structure(repository, table, part.id).await?;
                Ok::<_, Failure>(bytes.and_then(|bytes| Leaf::parse(&bytes, range.end - range.start).ok()))
            };
            let mut leaves = stream::iter(parts).map(read).buffer_unordered(AT_ONCE);
            while let Some(leaf) = leaves.try_next().await? {
                is_partial.fetch_or(leaf.is_none(), Ordering::Relaxed);
                for piece in leaf.iter().flat_map(Leaf::pieces) {
                    if let Content::Chunk(id) = piece.content {
                        wanted.add(&id);
                        any = true;
                    }
                }
            }
        }
        Ok(any)
    }
}

fn unless_stopped(context: &Context) -> Result<(), Failure> {
    match context.stop.is_raised() {
        true => Err(Failure::new(FailureKind::Revoked, "stopped before the chunks were found")),
        false => Ok(()),
    }
}

/// Sorts packs by what their headers say that they hold.
async fn sorted(context: &Context, repository: &Repository, listed: Vec<PackId>) -> Result<Packs, Failure> {
    let mut packs = Packs::default();
    let mut kinds = stream::iter(listed)
        .map(|pack| async move { (pack, repository.read_header(pack).await) })
        .buffer_unordered(AT_ONCE);
    while let Some((pack, header)) = kinds.next().await {
        unless_stopped(context)?;
        let kind = match header {
            Ok(header) => Some(header.kind),
            Err(failure) if matches!(failure.kind, FailureKind::Damaged | FailureKind::Refused) => None,
            Err(failure) => return Err(failure),
        };
        if kind != Some(Domain::Data) {
            packs.structure.push(pack);
        }
        if kind != Some(Domain::Structure) {
            packs.data.push(pack);
        }
    }
    Ok(packs)
}

/// A part of a map, unless none of its copies is whole.
async fn structure(repository: &Repository, table: &Table, id: ChunkId) -> Result<Option<Bytes>, Failure> {
    match maps::read_structure(repository, id, &table.copies(&id)?).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(failure) if !failure.retry && failure.kind != FailureKind::Store => Ok(None),
        Err(failure) => Err(failure),
    }
}

impl Wish {
    /// What is wanted of a whole snapshot.
    pub fn all(root: Root) -> Self {
        Self { part: 0..root.size, root, content: true }
    }

    /// A snapshot's map.
    pub fn map(root: Root) -> Self {
        Self { content: false, ..Self::all(root) }
    }

    fn leaves(&self) -> Range<u64> {
        let end = self.part.end.min(self.root.size);
        Geometry::leaf_of(self.part.start)..end.div_ceil(LEAF_SPAN)
    }

    /// How many chunks that may be.
    fn chunks(&self) -> u64 {
        let leaves = self.leaves();
        let leaves = leaves.end.saturating_sub(leaves.start);
        let content = if self.content { leaves.saturating_mul(LEAF_SPAN) / CHUNK_AVERAGE as u64 } else { 0 };
        // Nodes are few.
        content.saturating_add(leaves.saturating_mul(2))
    }
}

/// A part of a map.
#[derive(Debug, Clone, Copy)]
struct Part {
    level: u8,
    /// The first leaf of it.
    first: u64,
    id: ChunkId,
}

/// The parts of a map at one level, those of one node at a time.
struct Walk {
    level: u8,
    leaves: Range<u64>,
    /// What is yet to be looked into: at most all of one node at each level.
    below: Vec<Part>,
}

impl Walk {
    fn new(wish: &Wish, level: u8) -> Result<Self, Failure> {
        let (depth, leaves) = (Geometry::new(wish.root.size)?.depth(), wish.leaves());
        let top = wish.root.top.filter(|_| depth >= level && !leaves.is_empty());
        let below = top.map(|id| Part { level: depth, first: 0, id }).into_iter().collect();
        Ok(Self { level, leaves, below })
    }

    async fn next(&mut self, locator: &Locator) -> Result<Option<Vec<Part>>, Failure> {
        while let Some(part) = self.below.pop() {
            unless_stopped(&locator.context)?;
            if part.level == self.level {
                return Ok(Some(vec![part]));
            }
            let bytes = structure(&locator.repository, &locator.table, part.id).await?;
            let Some(node) = bytes.and_then(|bytes| Node::parse(&bytes, part.level).ok()) else {
                locator.is_partial.store(true, Ordering::Relaxed);
                continue;
            };
            let children = self.children(&part, &node);
            match part.level - 1 == self.level {
                true => return Ok(Some(children)),
                false => self.below.extend(children),
            }
        }
        Ok(None)
    }

    fn children(&self, part: &Part, node: &Node) -> Vec<Part> {
        let level = part.level - 1;
        let width = (NODE_FANOUT as u64).pow(level.into());
        let child = |(number, id): (usize, &Option<ChunkId>)| {
            let first = part.first + number as u64 * width;
            let wanted = first < self.leaves.end && first + width > self.leaves.start;
            (*id).filter(|_| wanted).map(|id| Part { level, first, id })
        };
        node.children().iter().enumerate().filter_map(child).collect()
    }
}
