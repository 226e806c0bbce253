//! Reads a change stream as its bytes arrive, and holds no more of it than one record.

use bytes::{Bytes, BytesMut};

use super::{
    CHECK_LEN, Chain, DATA, DIGEST_LEN, END, Encoder, HEADER_FIXED, Header, Kind, MAGIC, RECORD_LEN, Totals,
    VERSION, WHAT, ZERO, header_check,
};
use crate::cursor::Cursor;
use crate::limits::{STREAM_DATA_MAX, VOLUME_MAX, VOLUME_NAME_MAX};
use crate::{FormatError, Result, StreamId};

/// What came next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The header.
    Begun(Header),
    /// These bytes stand at `offset`.
    Data {
        /// In bytes.
        offset: u64,
        /// At most [`STREAM_DATA_MAX`].
        content: Bytes,
    },
    /// This range reads as zero.
    Zero {
        /// In bytes.
        offset: u64,
        /// In bytes.
        len: u64,
    },
    /// All of it came.
    Ended(Totals),
}

#[derive(Debug)]
enum State {
    Header,
    Records(Box<Chain>),
    Ended,
}

/// Reads one stream.
#[derive(Debug)]
pub struct Decoder(State);

/// A record's head.
struct Head {
    kind: u8,
    number: u64,
    offset: u64,
    len: u64,
    check: [u8; CHECK_LEN],
}

impl Head {
    fn parse(fields: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new(WHAT, fields);
        let kind = cursor.u8()?;
        let [number, offset, len] =
            [cursor.array()?, cursor.array()?, cursor.array()?].map(u64::from_le_bytes);
        Ok(Self { kind, number, offset, len, check: cursor.array()? })
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// Expects a header.
    pub fn new() -> Self {
        Self(State::Header)
    }

    /// Takes what came next off the front of `buffer`; none when more bytes are needed, which are never more than
    /// one record's.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Event>> {
        match &mut self.0 {
            State::Header => {
                let Some(header) = take_header(buffer)? else { return Ok(None) };
                self.0 = State::Records(Box::new(Chain::new(&header)));
                Ok(Some(Event::Begun(header)))
            }
            State::Records(chain) => {
                let Some(event) = take_record(chain, buffer)? else { return Ok(None) };
                if matches!(event, Event::Ended(_)) {
                    self.0 = State::Ended;
                }
                Ok(Some(event))
            }
            State::Ended if buffer.is_empty() => Ok(None),
            State::Ended => Err(FormatError::invalid(WHAT, "bytes follow its end")),
        }
    }

    /// No more bytes come after `rest`, which is what [`Self::decode`] left. Fails when the end has not come.
    pub fn finish(&self, rest: &[u8]) -> Result<()> {
        let needed = match &self.0 {
            State::Header => HEADER_FIXED + CHECK_LEN,
            State::Records(_) => RECORD_LEN,
            State::Ended if rest.is_empty() => return Ok(()),
            State::Ended => return Err(FormatError::invalid(WHAT, "bytes follow its end")),
        };
        Err(FormatError::Truncated { what: WHAT, needed, left: rest.len() })
    }

    /// The number of the next record; 0 before the header came and after the end.
    pub fn next(&self) -> u64 {
        match &self.0 {
            State::Records(chain) => chain.next(),
            State::Header | State::Ended => 0,
        }
    }

    /// Goes on writing a stream of which all whole records were read; none before its header and after its end.
    pub fn into_encoder(self) -> Option<Encoder> {
        match self.0 {
            State::Records(chain) => Some(Encoder { chain: *chain }),
            State::Header | State::Ended => None,
        }
    }
}

fn take_header(buffer: &mut BytesMut) -> Result<Option<Header>> {
    if !buffer.starts_with(&MAGIC[..buffer.len().min(MAGIC.len())]) {
        return Err(FormatError::NotOurs { what: WHAT });
    }
    if buffer.len() < HEADER_FIXED {
        return Ok(None);
    }
    let mut cursor = Cursor::new(WHAT, buffer);
    cursor.expect(MAGIC, VERSION)?;
    let [kind, _reserved] = cursor.array()?;
    let id = StreamId::from_bytes(cursor.array()?);
    let of = cursor.array()?;
    let [size, first] = [cursor.array()?, cursor.array()?].map(u64::from_le_bytes);
    let name_len = usize::from(cursor.u16()?);
    if name_len > VOLUME_NAME_MAX {
        let (found, limit) = (name_len as u64, VOLUME_NAME_MAX as u64);
        return Err(FormatError::TooLarge { what: "the name in a change stream", found, limit });
    }
    if cursor.left() < name_len + CHECK_LEN {
        return Ok(None);
    }
    let name = String::from_utf8_lossy(cursor.take(name_len)?).into_owned();
    let check: [u8; CHECK_LEN] = cursor.array()?;
    if header_check(&buffer[..HEADER_FIXED + name_len]) != check {
        return Err(FormatError::Damaged { what: WHAT, check: "its header's check" });
    }
    if size > VOLUME_MAX {
        return Err(FormatError::TooLarge {
            what: "the size in a change stream",
            found: size,
            limit: VOLUME_MAX,
        });
    }
    let kind = match kind {
        1 => Kind::Changes,
        2 => Kind::Snapback,
        other => return Err(FormatError::invalid(WHAT, format!("it is of an unknown kind ({other})"))),
    };
    let of = (of != [0; 16]).then(|| StreamId::from_bytes(of));
    drop(buffer.split_to(HEADER_FIXED + name_len + CHECK_LEN));
    Ok(Some(Header { id, kind, of, size, first, name }))
}

fn take_record(chain: &mut Chain, buffer: &mut BytesMut) -> Result<Option<Event>> {
    let Some(fields) = buffer.get(..RECORD_LEN) else { return Ok(None) };
    let head = Head::parse(fields)?;
    let content_len = match head.kind {
        DATA if head.len > STREAM_DATA_MAX as u64 => {
            let limit = STREAM_DATA_MAX as u64;
            return Err(FormatError::TooLarge { what: "a record's length", found: head.len, limit });
        }
        DATA => head.len as usize,
        END => DIGEST_LEN,
        _ => 0,
    };
    if buffer.len() < RECORD_LEN + content_len {
        return Ok(None);
    }
    let record = buffer.split_to(RECORD_LEN + content_len).freeze();
    let content = record.slice(RECORD_LEN..);
    if chain.check(&record[..RECORD_LEN - CHECK_LEN], &content) != head.check {
        let why =
            format!("record {} is damaged or of another stream: its check does not match", chain.next());
        return Err(FormatError::invalid(WHAT, why));
    }
    if head.number != chain.next() {
        let (found, next) = (head.number, chain.next());
        let why =
            format!("record {found} stands where {next} was to come: records are missing or out of order");
        return Err(FormatError::invalid(WHAT, why));
    }
    event(chain, &head, content).map(Some)
}

/// What a whole record at its place says.
fn event(chain: &mut Chain, head: &Head, content: Bytes) -> Result<Event> {
    let Head { kind, offset, len, check, .. } = head;
    match *kind {
        DATA | ZERO => {
            chain.check_range(*offset, *len)?;
            chain.passed(*kind, *len, check);
            match *kind {
                DATA => Ok(Event::Data { offset: *offset, content }),
                _ => Ok(Event::Zero { offset: *offset, len: *len }),
            }
        }
        END => {
            let totals = chain.totals;
            if (*offset, *len) != (totals.data, totals.zero) {
                let why = format!(
                    "its end counts {offset} bytes and {len} of zeroes, but {} and {} came",
                    totals.data, totals.zero
                );
                return Err(FormatError::invalid(WHAT, why));
            }
            if *content != chain.digest.finalize().as_bytes()[..] {
                return Err(FormatError::Damaged { what: WHAT, check: "the digest at its end" });
            }
            Ok(Event::Ended(totals))
        }
        other => {
            Err(FormatError::invalid(WHAT, format!("record {} is of an unknown kind ({other})", head.number)))
        }
    }
}

/// Every event of `bytes`, for fuzzing.
pub fn fuzz_decode(bytes: &[u8]) -> Result<()> {
    let (mut decoder, mut buffer) = (Decoder::new(), BytesMut::from(bytes));
    while decoder.decode(&mut buffer)?.is_some() {}
    decoder.finish(&buffer)
}
