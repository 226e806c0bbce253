//! The stream of the program lvmsync, protocol 3, to the byte.
//!
//! ```text
//! "lvmsync PROTO[3]\n", then until the end of the file: offset u64, length u32, both big-endian, content
//! ```
//!
//! There is no size, no check and no end marker: a stream that is cut off inside a record is refused, one that is cut
//! off between two records cannot be told from a whole one. Records come in any order and may overlap; the later one
//! holds. lvmsync itself writes a record that is shorter than it says when a chunk reaches beyond the end of its
//! volume; that, too, is refused here as cut off. Protocols 1 and 2 gave offsets in other units at either end.

use bytes::{Bytes, BytesMut};

use crate::limits::STREAM_DATA_MAX;
use crate::{FormatError, Result};

const WHAT: &str = "lvmsync stream";
const PROTOCOL: &[u8] = b"lvmsync PROTO[";
const HEAD_LEN: usize = 12;

/// The first line.
pub const GREETING: &[u8; 17] = b"lvmsync PROTO[3]\n";

/// What stands before a record's content.
pub fn head(offset: u64, len: u32) -> [u8; HEAD_LEN] {
    let mut head = [0; HEAD_LEN];
    head[..8].copy_from_slice(&offset.to_be_bytes());
    head[8..].copy_from_slice(&len.to_be_bytes());
    head
}

/// Part of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Where it stands, in bytes.
    pub offset: u64,
    /// At most [`STREAM_DATA_MAX`].
    pub content: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    Head,
    Content { offset: u64, left: u32 },
}

/// Reads a stream as its bytes arrive, and holds at most [`STREAM_DATA_MAX`] of it.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    records: u64,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// Expects the first line.
    pub fn new() -> Self {
        Self { state: State::Greeting, records: 0 }
    }

    /// Records of which all came.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Takes the next piece off the front of `buffer`; none when more bytes are needed.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Piece>> {
        loop {
            match self.state {
                State::Greeting => {
                    if !take_greeting(buffer)? {
                        return Ok(None);
                    }
                    self.state = State::Head;
                }
                State::Head => {
                    let Some(head) = buffer.first_chunk::<HEAD_LEN>() else { return Ok(None) };
                    let [offset @ .., a, b, c, d] = *head;
                    let (offset, len) = (u64::from_be_bytes(offset), u32::from_be_bytes([a, b, c, d]));
                    if offset.checked_add(u64::from(len)).is_none() {
                        let why = format!("record {} is about {len} bytes at offset {offset}", self.records);
                        return Err(FormatError::invalid(WHAT, why));
                    }
                    drop(buffer.split_to(HEAD_LEN));
                    self.state = State::Content { offset, left: len };
                }
                State::Content { left: 0, .. } => {
                    self.records += 1;
                    self.state = State::Head;
                }
                State::Content { offset, left } => {
                    let len = left.min(STREAM_DATA_MAX as u32);
                    if buffer.len() < len as usize {
                        return Ok(None);
                    }
                    let content = buffer.split_to(len as usize).freeze();
                    self.state = State::Content { offset: offset + u64::from(len), left: left - len };
                    return Ok(Some(Piece { offset, content }));
                }
            }
        }
    }

    /// No more bytes come after `rest`, which is what [`Self::decode`] left. Fails when they end inside a record.
    pub fn finish(&self, rest: &[u8]) -> Result<()> {
        let needed = match self.state {
            State::Head | State::Content { left: 0, .. } if rest.is_empty() => return Ok(()),
            State::Greeting => GREETING.len(),
            State::Head | State::Content { left: 0, .. } => HEAD_LEN,
            State::Content { left, .. } => left as usize,
        };
        Err(FormatError::Truncated {
            what: WHAT,
            needed: needed.saturating_sub(rest.len()),
            left: rest.len(),
        })
    }
}

/// Whether the first line was there.
fn take_greeting(buffer: &mut BytesMut) -> Result<bool> {
    let known = buffer.len().min(PROTOCOL.len());
    if buffer[..known] != PROTOCOL[..known] {
        return Err(FormatError::NotOurs { what: WHAT });
    }
    let Some(line) = buffer.get(..GREETING.len()) else { return Ok(false) };
    if line != GREETING {
        let text = String::from_utf8_lossy(line);
        let text = text.lines().next().unwrap_or_default();
        let why = format!("it says {text:?}, and only protocol 3 is understood");
        return Err(FormatError::invalid(WHAT, why));
    }
    drop(buffer.split_to(GREETING.len()));
    Ok(true)
}

/// Every piece of `bytes`, for fuzzing.
pub fn fuzz_decode(bytes: &[u8]) -> Result<()> {
    let (mut decoder, mut buffer) = (Decoder::new(), BytesMut::from(bytes));
    while decoder.decode(&mut buffer)?.is_some() {}
    decoder.finish(&buffer)
}
