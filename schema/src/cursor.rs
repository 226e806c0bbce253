//! A reader over a byte slice that never reads past its end and never allocates.

use crate::{FormatError, Result};

pub(crate) struct Cursor<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }

    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        if len > self.rest.len() {
            return Err(FormatError::Truncated { what: self.what, needed: len, left: self.rest.len() });
        }
        let (head, rest) = self.rest.split_at(len);
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// A count of things that take at least `each` bytes, bounded by `limit` and by what is left.
    pub(crate) fn count(&mut self, field: &'static str, each: usize, limit: usize) -> Result<usize> {
        let n = self.u32()? as usize;
        if n > limit {
            return Err(FormatError::TooLarge { what: field, found: n as u64, limit: limit as u64 });
        }
        if n.saturating_mul(each) > self.rest.len() {
            return Err(FormatError::Truncated {
                what: self.what,
                needed: n.saturating_mul(each),
                left: self.rest.len(),
            });
        }
        Ok(n)
    }

    /// Checks magic bytes and a version up to `known`.
    pub(crate) fn expect(&mut self, magic: &[u8], known: u16) -> Result<u16> {
        if self.take(magic.len())? != magic {
            return Err(FormatError::NotOurs { what: self.what });
        }
        let found = self.u16()?;
        if found == 0 || found > known {
            return Err(FormatError::version(self.what, found, known));
        }
        Ok(found)
    }

    /// Fails when bytes are left over.
    pub(crate) fn end(self) -> Result<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(FormatError::invalid(self.what, format!("{} bytes are left over at its end", self.rest.len())))
    }
}
