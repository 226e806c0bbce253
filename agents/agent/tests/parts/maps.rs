//! Maps read back through an index that answers from a table: from the top down to leaves.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use agent::bus::Service;
use agent::index::IndexClient;
use agent::local::LocalBus;
use agent::maps::MapReader;
use agent::{Answerer, Context, Failure, Stop};
use async_trait::async_trait;
use bytes::Bytes;
use schema::limits::LEAF_SPAN;
use schema::map::{Content, Geometry, Leaf, Piece, build_nodes};
use schema::messages::{About, Copy, FailureKind, Locate, Located, Message};
use schema::names;
use schema::root::Root;
use schema::{ChunkId, Domain, PackId};

use crate::support::{VOLUME, World, pack_id};

type Table = Arc<Mutex<BTreeMap<ChunkId, Vec<Copy>>>>;

struct FromTable(Table);

#[async_trait]
impl Answerer for FromTable {
    async fn answer(&mut self, message: &Message) -> Result<Message, Failure> {
        let asked: Locate = message.read()?;
        let table = self.0.lock().unwrap();
        let copies = asked.ids.iter().map(|id| table.get(id).cloned().unwrap_or_default()).collect();
        Ok(Message::new(&About::nothing(), &Located { copies }))
    }
}

struct Maps {
    world: World,
    table: Table,
    index: IndexClient,
}

impl Maps {
    async fn new() -> Self {
        let world = World::new().await;
        let bus = Arc::new(LocalBus::new(world.environment.clone(), 1 << 20));
        let context = Context {
            bus: bus.clone(),
            environment: world.environment.clone(),
            counters: Arc::default(),
            stop: Stop::default(),
            host: "host".into(),
        };
        let table = Table::default();
        let answerer = FromTable(table.clone());
        tokio::spawn(async move { agent::serve(&context, &Service::index(0), answerer).await });
        let index = IndexClient::new(bus, world.environment.clone(), 1);
        Self { world, table, index }
    }

    /// Stores structure chunks in a pack and enters them behind what the table has.
    async fn store(&self, pack: u8, chunks: &[Bytes]) -> PackId {
        let (pack, _) = self.world.pack(pack, Domain::Structure, chunks).await;
        let (_, footer) = self.world.repository.read_footer(pack).await.unwrap();
        let mut table = self.table.lock().unwrap();
        for entry in footer.entries {
            table.entry(entry.id).or_default().push(Copy { pack, offset: entry.offset, len: entry.len });
        }
        pack
    }

    /// A volume whose leaves in `full` hold one chunk at their start, all others being zero.
    async fn volume(&self, size: u64, full: &[u64]) -> (Root, Vec<Bytes>) {
        let ids = self.world.repository.key.chunk_ids();
        let geometry = Geometry::new(size).unwrap();
        let mut chunks = Vec::new();
        let mut note = |bytes: Vec<u8>| {
            let id = ids.id(Domain::Structure, &bytes);
            chunks.push(Bytes::from(bytes));
            id
        };
        let row = (0..geometry.leaves())
            .map(|leaf| full.contains(&leaf).then(|| note(self.leaf(&geometry, leaf).encode())))
            .collect();
        let top = build_nodes(row, |node| Ok(note(node.encode()))).unwrap();
        (Root { size, top, ..self.world.root(1, 1, 0) }, chunks)
    }

    fn leaf(&self, geometry: &Geometry, leaf: u64) -> Leaf {
        let id = self.world.repository.key.chunk_ids().id(Domain::Data, &leaf.to_le_bytes());
        let range = geometry.leaf_range(leaf);
        let span = range.end - range.start;
        let rest = Piece { len: span as u32 - 4096, content: Content::Zero };
        Leaf::new(span, [Piece { len: 4096, content: Content::Chunk(id) }, rest]).unwrap()
    }

    fn reader(&self, root: Root) -> MapReader {
        MapReader::new(self.world.repository.clone(), self.index.clone(), root).unwrap()
    }
}

fn zero_leaf(span: u64) -> Leaf {
    Leaf::new(span, [Piece { len: span as u32, content: Content::Zero }]).unwrap()
}

/// Volumes of every depth, with the leaves at the edges of nodes.
#[tokio::test(start_paused = true)]
async fn leaves_are_found_from_the_top_down() {
    let cases: [(u64, &[u64]); 6] = [
        (8192, &[0]),
        (LEAF_SPAN, &[0]),
        (2 * LEAF_SPAN, &[1]),
        (1024 * LEAF_SPAN, &[0, 1023]),
        (1029 * LEAF_SPAN + 8192, &[0, 1023, 1024, 1029]),
        (3000 * LEAF_SPAN, &[2500]),
    ];
    for (size, full) in cases {
        let maps = Maps::new().await;
        let (root, chunks) = maps.volume(size, full).await;
        maps.store(1, &chunks).await;
        let reader = maps.reader(root);
        let geometry = Geometry::new(size).unwrap();
        let near = |leaf: &u64| [leaf.saturating_sub(1), *leaf, leaf + 1];
        for leaf in full.iter().flat_map(near).filter(|leaf| *leaf < geometry.leaves()) {
            let range = geometry.leaf_range(leaf);
            let expected = match full.contains(&leaf) {
                true => maps.leaf(&geometry, leaf),
                false => zero_leaf(range.end - range.start),
            };
            assert_eq!(reader.leaf(leaf).await.unwrap(), expected, "leaf {leaf} of {size} bytes");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_of_zeroes_needs_no_map() {
    let maps = Maps::new().await;
    let (root, chunks) = maps.volume(5 * LEAF_SPAN, &[]).await;
    assert_eq!((root.top, chunks.len()), (None, 0));
    let reader = maps.reader(root);
    assert_eq!(reader.leaf_id(3).await.unwrap(), None);
    assert_eq!(reader.leaf(4).await.unwrap(), zero_leaf(LEAF_SPAN));
}

/// A copy that is gone, one that is damaged, and one that is whole.
#[tokio::test(start_paused = true)]
async fn any_copy_that_is_whole_will_do() {
    let maps = Maps::new().await;
    let (root, chunks) = maps.volume(LEAF_SPAN, &[0]).await;
    let gone = maps.store(1, &chunks).await;
    let damaged = maps.store(2, &chunks).await;
    maps.store(3, &chunks).await;
    maps.world.repository.store.delete(&names::pack(gone)).await.unwrap();
    let mut bytes = maps.world.get(&names::pack(damaged)).await.unwrap().to_vec();
    bytes[48 + 48 + 20] ^= 1;
    maps.world.put(&names::pack(damaged), bytes.into()).await;
    let geometry = Geometry::new(LEAF_SPAN).unwrap();
    assert_eq!(maps.reader(root).leaf(0).await.unwrap(), maps.leaf(&geometry, 0));
}

#[tokio::test(start_paused = true)]
async fn a_map_without_a_whole_copy_is_named() {
    let maps = Maps::new().await;
    let (root, chunks) = maps.volume(LEAF_SPAN, &[0]).await;
    let top = root.top.unwrap();
    let failure = maps.reader(root.clone()).leaf(0).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Damaged);
    for part in [VOLUME, &root.slot.to_string(), &top.to_string()] {
        assert!(failure.why.contains(part), "{failure}");
    }
    let pack = maps.store(1, &chunks).await;
    let mut bytes = maps.world.get(&names::pack(pack)).await.unwrap().to_vec();
    bytes[48 + 48 + 20] ^= 1;
    maps.world.put(&names::pack(pack), bytes.into()).await;
    let failure = maps.reader(root).leaf(0).await.unwrap_err();
    assert!(failure.why.contains(&names::pack(pack_id(1))), "{failure}");
}

/// The root says that the volume is larger than its map.
#[tokio::test(start_paused = true)]
async fn a_map_that_ends_too_early_is_damaged() {
    let maps = Maps::new().await;
    let (root, chunks) = maps.volume(2 * LEAF_SPAN, &[0, 1]).await;
    maps.store(1, &chunks).await;
    let longer = Root { size: 3 * LEAF_SPAN, ..root };
    let reader = maps.reader(longer);
    assert!(reader.leaf(1).await.is_ok());
    let failure = reader.leaf(2).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Damaged);
    assert!(failure.why.contains("ends too early"), "{failure}");
}
