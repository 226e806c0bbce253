//! What is written to a device in one go: adjacent chunks, aligned in memory and on the device, so that it needs no
//! page cache.
//!
//! A file is written chunk by chunk: the page cache gathers anyhow, and a copy more would buy nothing.

use agent::Failure;
use agent::buffer::ALIGN;

use crate::reading::{Aligned, READ_MAX};
use crate::sink::Sink;

/// Adjacent bytes that are not written yet.
pub(crate) struct Batch<'a> {
    sink: &'a Sink,
    /// Where they wait; none when they are written at once.
    buffer: Option<&'a mut Aligned>,
    /// Where the first of them belongs.
    start: u64,
    len: usize,
}

impl<'a> Batch<'a> {
    /// Nothing yet, for this sink.
    pub fn new(sink: &'a Sink, buffer: &'a mut Aligned) -> Self {
        Self { sink, buffer: sink.is_device().then_some(buffer), start: 0, len: 0 }
    }

    /// Takes `bytes` for `offset`; writes what waits when these are not adjacent to it, or too much. Blocks.
    pub fn write(&mut self, mut offset: u64, mut bytes: &[u8]) -> Result<(), Failure> {
        if self.buffer.is_none() {
            return self.sink.write(offset, bytes);
        }
        if offset != self.start + self.len as u64 {
            self.flush()?;
        }
        while !bytes.is_empty() {
            if self.len == 0 {
                self.start = offset;
            }
            let skip = (self.start % ALIGN as u64) as usize;
            let room = READ_MAX as usize - skip - self.len;
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            if let Some(buffer) = &mut self.buffer {
                let from = skip + self.len;
                buffer.first(from + now.len())[from..].copy_from_slice(now);
            }
            self.len += now.len();
            (offset, bytes) = (offset + now.len() as u64, rest);
            if now.len() == room {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes what waits. Blocks.
    pub fn flush(&mut self) -> Result<(), Failure> {
        let (start, len) = (self.start, std::mem::take(&mut self.len));
        let Some(buffer) = self.buffer.as_mut().filter(|_| len > 0) else { return Ok(()) };
        let skip = (start % ALIGN as u64) as usize;
        let bytes = &buffer.first(skip + len)[skip..];
        // What is off a border, as an end of a range may be, goes by itself.
        let head = (ALIGN - skip) % ALIGN;
        let (head, bytes) = bytes.split_at(head.min(len));
        let (whole, tail) = bytes.split_at(bytes.len() / ALIGN * ALIGN);
        let mut at = start;
        for part in [head, whole, tail].into_iter().filter(|part| !part.is_empty()) {
            self.sink.write(at, part)?;
            at += part.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::Memory;

    /// Adjacent and not, off every border, longer than a buffer: each byte comes where it belongs.
    #[test]
    fn nothing_is_lost_or_moved_between_chunks() {
        let size = 4 * READ_MAX;
        let content: Vec<u8> = (0..size).map(|n| (n % 251) as u8 ^ (n >> 12) as u8).collect();
        let max = READ_MAX;
        for cuts in [
            (0..1).map(|_| 0..size).collect(),
            vec![0..1, 1..4096, 4096..max, max..max + 1, max + 1..size],
            vec![5..4000, 4000..4097, 9000..9001, max - 1..2 * max + 1, 2 * max + 1..size - 3],
            vec![8192..12_288, 4096..8192, 0..4096, 12_288..size],
            (0..size / 65_536).map(|n| n * 65_536..(n + 1) * 65_536).collect(),
        ] {
            let sink = Sink::Memory(Memory::new(0..size));
            let mut buffer = Aligned::new();
            let mut batch = Batch { sink: &sink, buffer: Some(&mut buffer), start: 0, len: 0 };
            let mut expected = vec![0; size as usize];
            for cut in cuts {
                let (from, to) = (cut.start as usize, cut.end as usize);
                batch.write(cut.start, &content[from..to]).unwrap();
                expected[from..to].copy_from_slice(&content[from..to]);
            }
            batch.flush().unwrap();
            assert!(sink.taken() == expected);
        }
    }
}
