//! Reads the maps of snapshots: from the root's top down to leaves, through the index and the bucket.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use schema::chunk::Opener;
use schema::map::{Content, Geometry, Leaf, Node, Piece};
use schema::messages::{About, Copy, FailureKind};
use schema::root::Root;
use schema::{ChunkId, PackId};
use tokio::sync::OnceCell;

use crate::Failure;
use crate::index::IndexClient;
use crate::looks::Looks;
use crate::repository::Repository;

/// Nodes kept while a map is walked: one per level suffices.
const NODES_KEPT: usize = 8;
/// Leaves kept where they are: neighbouring parts of a volume lie in two at most.
const LEAVES_KEPT: usize = 2;

/// Leaves by their numbers, the latest last. Whoever wants one that is being read waits for it.
type Leaves = Mutex<Vec<(u64, Arc<OnceCell<Leaf>>)>>;

/// Reads one snapshot's map.
pub struct MapReader {
    repository: Repository,
    index: IndexClient,
    root: Root,
    geometry: Geometry,
    nodes: Mutex<BTreeMap<ChunkId, Node>>,
    leaves: Option<Leaves>,
    looks: Option<Looks>,
}

impl MapReader {
    /// A reader of the map of `root`.
    pub fn new(repository: Repository, index: IndexClient, root: Root) -> Result<Self, Failure> {
        let geometry = Geometry::new(root.size)?;
        Ok(Self { repository, index, root, geometry, nodes: Mutex::default(), leaves: None, looks: None })
    }

    /// Before anything counts as lost, the index looks at the bucket again.
    pub fn thorough(mut self) -> Self {
        self.looks = Some(Looks::new(self.repository.clone(), self.index.clone()));
        self
    }

    /// The latest leaves are kept: for whoever asks for each several times in a row.
    pub fn keeping_leaves(mut self) -> Self {
        self.leaves = Some(Leaves::default());
        self
    }

    /// The snapshot.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// How the volume is divided.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn about(&self) -> About {
        About { session: None, volume: self.root.volume.clone() }
    }

    /// The chunk of a leaf: none where it reads as zero.
    pub async fn leaf_id(&self, leaf: u64) -> Result<Option<ChunkId>, Failure> {
        let Some(mut id) = self.root.top else { return Ok(None) };
        for level in (1..=self.geometry.depth()).rev() {
            let width = (schema::limits::NODE_FANOUT as u64).pow(u32::from(level) - 1);
            let child = (leaf / width) % schema::limits::NODE_FANOUT as u64;
            let node = self.node(id, level).await?;
            match node.children().get(child as usize) {
                Some(Some(below)) => id = *below,
                Some(None) => return Ok(None),
                None => {
                    return Err(Failure::damaged(format!("the map of {} ends too early", self.root.slot)));
                }
            }
        }
        Ok(Some(id))
    }

    /// A leaf's pieces.
    pub async fn leaf(&self, leaf: u64) -> Result<Leaf, Failure> {
        let Some(leaves) = &self.leaves else { return self.unkept_leaf(leaf).await };
        let kept = kept(&mut leaves.lock().unwrap_or_else(PoisonError::into_inner), leaf);
        kept.get_or_try_init(|| self.unkept_leaf(leaf)).await.cloned()
    }

    async fn unkept_leaf(&self, leaf: u64) -> Result<Leaf, Failure> {
        let range = self.geometry.leaf_range(leaf);
        let span = range.end - range.start;
        match self.leaf_id(leaf).await? {
            Some(id) => self.read_leaf(id, span).await,
            None => Ok(Leaf::new(span, [Piece { len: span as u32, content: Content::Zero }])?),
        }
    }

    /// The leaf that a chunk holds.
    pub async fn read_leaf(&self, id: ChunkId, span: u64) -> Result<Leaf, Failure> {
        Ok(Leaf::parse(&self.structure(id).await?, span)?)
    }

    async fn node(&self, id: ChunkId, level: u8) -> Result<Node, Failure> {
        let kept = |nodes: &Mutex<BTreeMap<ChunkId, Node>>| {
            nodes.lock().ok().and_then(|nodes| nodes.get(&id).cloned())
        };
        if let Some(node) = kept(&self.nodes) {
            return Ok(node);
        }
        let node = Node::parse(&self.structure(id).await?, level)?;
        if let Ok(mut nodes) = self.nodes.lock() {
            if nodes.len() >= NODES_KEPT {
                nodes.clear();
            }
            nodes.insert(id, node.clone());
        }
        Ok(node)
    }

    /// The plaintext of a structure chunk, from any copy that is whole.
    pub async fn structure(&self, id: ChunkId) -> Result<Bytes, Failure> {
        let copies = self.index.locate(&self.about(), &[id]).await?.pop().unwrap_or_default();
        let read = match read_structure(&self.repository, id, &copies).await {
            Err(failure) if failure.kind == FailureKind::Damaged => {
                self.read_elsewhere(id, copies, failure).await
            }
            read => read,
        };
        read.map_err(|e| e.context(format!("the map of {} ({})", self.root.volume, self.root.slot)))
    }

    /// The same, of which no copy that the index named can be read.
    async fn read_elsewhere(
        &self,
        id: ChunkId,
        mut tried: Vec<Copy>,
        mut failure: Failure,
    ) -> Result<Bytes, Failure> {
        while let Some(more) = self.seek(&id, &tried).await? {
            match read_structure(&self.repository, id, &more).await {
                Err(why) if why.kind == FailureKind::Damaged => failure = why,
                read => return read,
            }
            tried.extend(more);
        }
        Err(failure)
    }

    /// Copies of a chunk that nobody has tried yet, none of which the index knew; none when there are no others. Fails
    /// when that cannot be known. Nobody looks unless this is [thorough](Self::thorough).
    pub async fn seek(&self, id: &ChunkId, tried: &[Copy]) -> Result<Option<Vec<Copy>>, Failure> {
        let Some(looks) = &self.looks else { return Ok(None) };
        let packs: Vec<PackId> = tried.iter().map(|copy| copy.pack).collect();
        let found = looks.seek(&self.about(), id, &packs).await?;
        let more: Vec<Copy> = found.into_iter().filter(|copy| !tried.contains(copy)).collect();
        Ok(Some(more).filter(|more| !more.is_empty()))
    }

    /// Where chunks are.
    pub async fn locate(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Copy>>, Failure> {
        self.index.locate(&self.about(), ids).await
    }
}

/// The place of a leaf among those that are kept.
fn kept(leaves: &mut Vec<(u64, Arc<OnceCell<Leaf>>)>, leaf: u64) -> Arc<OnceCell<Leaf>> {
    if let Some((_, kept)) = leaves.iter().find(|(number, _)| *number == leaf) {
        return kept.clone();
    }
    if leaves.len() >= LEAVES_KEPT {
        leaves.remove(0);
    }
    let new = Arc::default();
    leaves.push((leaf, Arc::clone(&new)));
    new
}

/// Reads a structure chunk from the first copy that is whole.
pub async fn read_structure(repository: &Repository, id: ChunkId, copies: &[Copy]) -> Result<Bytes, Failure> {
    let key = repository.key.structure_key();
    let mut opener = Opener::new(repository.key.chunk_ids())?;
    let mut last = Failure::damaged(format!("chunk {id} is in no pack that is known"));
    // Whether the chunk is lost is not known while one of its copies cannot be reached.
    let mut unreached = None;
    for copy in copies {
        let frame = match repository.read_frame(copy).await {
            Ok(frame) => frame,
            Err(error) if error.kind == FailureKind::Damaged => {
                last = error;
                continue;
            }
            Err(error) => {
                unreached = Some(error);
                continue;
            }
        };
        match opener.open(&id, &frame, &key) {
            Ok(plain) => return Ok(Bytes::copy_from_slice(plain)),
            Err(error) => {
                last =
                    Failure::from(error).context(format!("chunk {id} in {}", schema::names::pack(copy.pack)));
                tracing::warn!(%last, "trying another copy");
            }
        }
    }
    Err(unreached.unwrap_or(last))
}
