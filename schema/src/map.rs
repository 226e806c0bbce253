//! Maps: a Merkle tree over a volume, of structure chunks that snapshots share when they are equal.
//!
//! ```text
//! leaf  "lL" version u16 = 1, count u32, then per piece: length u32, one zero byte or 33-byte id
//! node  "lN" version u16 = 1, level u8, 3 reserved, count u32, then per child: 33-byte id, or one zero byte
//! ```
//!
//! A leaf covers [`LEAF_SPAN`] bytes of the volume (the last one less). A piece is its length in bytes and either
//! one zero byte (the piece reads as zero) or a 33-byte chunk id, whose first byte is never zero. A child that
//! is a zero byte stands for a subtree that reads as zero throughout. A map of one leaf has no node.

use crate::cursor::Cursor;
use crate::limits::{CHUNK_MAX, LEAF_SPAN, MAP_DEPTH_MAX, NODE_FANOUT, STRUCTURE_MAX, VOLUME_MAX};
use crate::{ChunkId, Domain, FormatError, Result};

const LEAF_MAGIC: [u8; 2] = *b"lL";
const NODE_MAGIC: [u8; 2] = *b"lN";
const VERSION: u16 = 1;
const PIECE_MIN: usize = 5;

/// What one piece of a volume holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Zeroes.
    Zero,
    /// A data chunk.
    Chunk(ChunkId),
}

/// A run of a volume: zeroes of any length, or one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Its length in bytes.
    pub len: u32,
    /// What it holds.
    pub content: Content,
}

/// How a volume of one size is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    size: u64,
}

impl Geometry {
    /// The geometry of a volume of `size` bytes.
    pub fn new(size: u64) -> Result<Self> {
        if size > VOLUME_MAX {
            return Err(FormatError::TooLarge { what: "a volume", found: size, limit: VOLUME_MAX });
        }
        Ok(Self { size })
    }

    /// The volume's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many leaves the map has; a volume of no bytes has none.
    pub fn leaves(&self) -> u64 {
        self.size.div_ceil(LEAF_SPAN)
    }

    /// The range that a leaf covers.
    pub fn leaf_range(&self, leaf: u64) -> std::ops::Range<u64> {
        let start = leaf.saturating_mul(LEAF_SPAN).min(self.size);
        start..start.saturating_add(LEAF_SPAN).min(self.size)
    }

    /// The leaf that holds the byte at `offset`.
    pub fn leaf_of(offset: u64) -> u64 {
        offset / LEAF_SPAN
    }

    /// Levels of nodes above the leaves.
    pub fn depth(&self) -> u8 {
        let mut depth = 0;
        let mut width = self.leaves();
        while width > 1 {
            width = width.div_ceil(NODE_FANOUT as u64);
            depth += 1;
        }
        depth
    }
}

/// A leaf's pieces, in order; their lengths add up to the leaf's range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    pieces: Vec<Piece>,
}

impl Leaf {
    /// Joins neighbouring zero pieces, so that equal content has equal bytes, and checks the total.
    pub fn new(span: u64, pieces: impl IntoIterator<Item = Piece>) -> Result<Self> {
        let mut joined: Vec<Piece> = Vec::new();
        for piece in pieces {
            match joined.last_mut() {
                Some(last) if last.content == Content::Zero && piece.content == Content::Zero => {
                    last.len = last.len.saturating_add(piece.len);
                }
                _ => joined.push(piece),
            }
        }
        let leaf = Self { pieces: joined };
        leaf.check(span)?;
        Ok(leaf)
    }

    /// The pieces, in order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Whether the whole leaf reads as zero.
    pub fn is_zero(&self) -> bool {
        self.pieces.iter().all(|p| p.content == Content::Zero)
    }

    /// The pieces with their offsets in the volume, for a leaf that starts at `start`.
    pub fn located(&self, start: u64) -> impl Iterator<Item = (u64, Piece)> + '_ {
        self.pieces.iter().scan(start, |at, piece| {
            let offset = *at;
            *at += u64::from(piece.len);
            Some((offset, *piece))
        })
    }

    fn check(&self, span: u64) -> Result<()> {
        let what = "map leaf";
        let total: u64 = self.pieces.iter().map(|p| u64::from(p.len)).sum();
        if total != span {
            return Err(FormatError::invalid(
                what,
                format!("its pieces cover {total} bytes instead of {span}"),
            ));
        }
        for piece in &self.pieces {
            let limit = match piece.content {
                Content::Zero => LEAF_SPAN,
                Content::Chunk(_) => CHUNK_MAX as u64,
            };
            if piece.len == 0 || u64::from(piece.len) > limit {
                return Err(FormatError::invalid(what, format!("a piece is {} bytes long", piece.len)));
            }
            if let Content::Chunk(id) = piece.content
                && id.domain()? != Domain::Data
            {
                return Err(FormatError::invalid(what, "a piece is not a data chunk"));
            }
        }
        Ok(())
    }

    /// The bytes of its structure chunk.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + self.pieces.len() * 37);
        out.extend_from_slice(&LEAF_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(self.pieces.len() as u32).to_le_bytes());
        for piece in &self.pieces {
            out.extend_from_slice(&piece.len.to_le_bytes());
            match piece.content {
                Content::Zero => out.push(0),
                Content::Chunk(id) => out.extend_from_slice(id.as_bytes()),
            }
        }
        out
    }

    /// Reads a leaf that covers `span` bytes.
    pub fn parse(bytes: &[u8], span: u64) -> Result<Self> {
        let mut cursor = Cursor::new("map leaf", bytes);
        cursor.expect(&LEAF_MAGIC, VERSION)?;
        let count = cursor.count("pieces of a map leaf", PIECE_MIN, STRUCTURE_MAX / PIECE_MIN)?;
        let mut pieces = Vec::with_capacity(count);
        for _ in 0..count {
            let len = cursor.u32()?;
            pieces.push(Piece { len, content: content(&mut cursor)?.map_or(Content::Zero, Content::Chunk) });
        }
        cursor.end()?;
        let leaf = Self { pieces };
        leaf.check(span)?;
        Ok(leaf)
    }
}

/// A zero byte (none), or an id of 33 bytes.
fn content(cursor: &mut Cursor<'_>) -> Result<Option<ChunkId>> {
    let mut id = [0; 33];
    id[0] = cursor.u8()?;
    if id[0] == 0 {
        return Ok(None);
    }
    id[1..].copy_from_slice(cursor.take(32)?);
    ChunkId::parse(&id).map(Some)
}

/// A node's children: structure chunks, or none where everything below reads as zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    level: u8,
    children: Vec<Option<ChunkId>>,
}

impl Node {
    /// A node `level` levels above the leaves (1 and up).
    pub fn new(level: u8, children: Vec<Option<ChunkId>>) -> Result<Self> {
        let what = "map node";
        if level == 0 || level > MAP_DEPTH_MAX {
            return Err(FormatError::invalid(what, format!("its level is {level}")));
        }
        if children.is_empty() || children.len() > NODE_FANOUT {
            return Err(FormatError::invalid(what, format!("it has {} children", children.len())));
        }
        for child in children.iter().flatten() {
            if child.domain()? != Domain::Structure {
                return Err(FormatError::invalid(what, "a child is not a structure chunk"));
            }
        }
        Ok(Self { level, children })
    }

    /// Levels above the leaves.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Its children in order.
    pub fn children(&self) -> &[Option<ChunkId>] {
        &self.children
    }

    /// The bytes of its structure chunk.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(12 + self.children.len() * 33);
        out.extend_from_slice(&NODE_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[self.level, 0, 0, 0]);
        out.extend_from_slice(&(self.children.len() as u32).to_le_bytes());
        for child in &self.children {
            match child {
                None => out.push(0),
                Some(id) => out.extend_from_slice(id.as_bytes()),
            }
        }
        out
    }

    /// Reads a node of the given level.
    pub fn parse(bytes: &[u8], level: u8) -> Result<Self> {
        let what = "map node";
        let mut cursor = Cursor::new(what, bytes);
        cursor.expect(&NODE_MAGIC, VERSION)?;
        let found = cursor.u8()?;
        if found != level || cursor.take(3)? != [0; 3] {
            return Err(FormatError::invalid(what, format!("its level is {found}, expected {level}")));
        }
        let count = cursor.count("children of a map node", 1, NODE_FANOUT)?;
        let children = (0..count).map(|_| content(&mut cursor)).collect::<Result<_>>()?;
        cursor.end()?;
        Self::new(level, children)
    }
}

/// Builds the nodes over a row of leaves, bottom up: calls `store` with each node and returns the top of the map.
/// A volume that reads as zero throughout, or of no bytes, has no top.
pub fn build_nodes(
    leaves: Vec<Option<ChunkId>>,
    mut store: impl FnMut(Node) -> Result<ChunkId>,
) -> Result<Option<ChunkId>> {
    let mut row = leaves;
    let mut level = 0;
    while row.len() > 1 {
        level += 1;
        row = row
            .chunks(NODE_FANOUT)
            .map(|children| match children.iter().all(Option::is_none) {
                true => Ok(None),
                false => store(Node::new(level, children.to_vec())?).map(Some),
            })
            .collect::<Result<_>>()?;
    }
    Ok(row.into_iter().next().flatten())
}
