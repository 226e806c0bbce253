//! Writes a change stream: the header, heads of records that stand before their content, and the end.

use super::{
    CHECK_LEN, Chain, DATA, END, HEADER_FIXED, Header, MAGIC, RECORD_LEN, Totals, VERSION, WHAT, ZERO,
    header_check,
};
use crate::limits::{STREAM_DATA_MAX, VOLUME_NAME_MAX};
use crate::{FormatError, Result};

/// Writes one stream, or one connection's part of one.
#[derive(Debug)]
pub struct Encoder {
    pub(super) chain: Chain,
}

impl Encoder {
    /// Begins; the bytes come first.
    pub fn begin(header: &Header) -> Result<(Self, Vec<u8>)> {
        let name = header.name.as_bytes();
        let name_len = u16::try_from(name.len()).ok().filter(|len| usize::from(*len) <= VOLUME_NAME_MAX);
        let Some(name_len) = name_len else {
            let (found, limit) = (name.len() as u64, VOLUME_NAME_MAX as u64);
            return Err(FormatError::TooLarge { what: "the name in a change stream", found, limit });
        };
        let mut out = Vec::with_capacity(HEADER_FIXED + name.len() + CHECK_LEN);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[header.kind.code(), 0]);
        out.extend_from_slice(header.id.as_bytes());
        out.extend_from_slice(header.of.as_ref().map_or(&[0; 16], |of| of.as_bytes()));
        out.extend_from_slice(&header.size.to_le_bytes());
        out.extend_from_slice(&header.first.to_le_bytes());
        out.extend_from_slice(&name_len.to_le_bytes());
        out.extend_from_slice(name);
        let check = header_check(&out);
        out.extend_from_slice(&check);
        Ok((Self { chain: Chain::new(header) }, out))
    }

    /// What stands before `content`: the bytes at `offset`, at most [`STREAM_DATA_MAX`].
    pub fn data(&mut self, offset: u64, content: &[u8]) -> Result<[u8; RECORD_LEN]> {
        if content.len() > STREAM_DATA_MAX {
            let (found, limit) = (content.len() as u64, STREAM_DATA_MAX as u64);
            return Err(FormatError::TooLarge { what: "a record's content", found, limit });
        }
        self.record(DATA, offset, content.len() as u64, content)
    }

    /// A range that reads as zero.
    pub fn zero(&mut self, offset: u64, len: u64) -> Result<[u8; RECORD_LEN]> {
        self.record(ZERO, offset, len, &[])
    }

    /// The end.
    pub fn end(self) -> Vec<u8> {
        let Totals { data, zero, .. } = self.chain.totals;
        let digest = self.chain.digest.finalize();
        let (head, _) = self.head(END, data, zero, digest.as_bytes());
        [&head[..], digest.as_bytes()].concat()
    }

    /// The number of the next record.
    pub fn next(&self) -> u64 {
        self.chain.next()
    }

    fn record(&mut self, kind: u8, offset: u64, len: u64, content: &[u8]) -> Result<[u8; RECORD_LEN]> {
        self.chain.check_range(offset, len)?;
        let (head, check) = self.head(kind, offset, len, content);
        self.chain.passed(kind, len, &check);
        Ok(head)
    }

    fn head(&self, kind: u8, a: u64, b: u64, content: &[u8]) -> ([u8; RECORD_LEN], [u8; CHECK_LEN]) {
        let mut head = [0; RECORD_LEN];
        head[0] = kind;
        for (at, number) in [(1, self.chain.next()), (9, a), (17, b)] {
            head[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        let (fields, place) = head.split_at_mut(RECORD_LEN - CHECK_LEN);
        let check = self.chain.check(fields, content);
        place.copy_from_slice(&check);
        (head, check)
    }
}

impl std::fmt::Display for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{WHAT} {} of {}", self.id, self.name)
    }
}
