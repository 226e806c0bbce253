//! Emptying a real device: discards, zeroes that the kernel writes, and zeroes that are written by hand where it does not.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use agent::Stop;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

use super::zeroing::Blocks;

/// `BLKDISCARD` and `BLKZEROOUT` of linux/fs.h: each takes offset and length in bytes.
const DISCARD: Opcode = opcode::none(0x12, 119);
const ZERO_OUT: Opcode = opcode::none(0x12, 127);
/// What the kernel zeroes of any device: no logical block is larger.
const ALIGNMENT: u64 = 4096;
/// Bytes that the kernel zeroes between two looks at the stop flag.
const STRIDE: u64 = 64 << 20;
/// Bytes that are written at once by hand.
const ZEROES_LEN: u64 = 256 << 10;
static ZEROES: [u8; ZEROES_LEN as usize] = [0; ZEROES_LEN as usize];

/// A device that is open for writing.
#[derive(Debug)]
pub(crate) struct Device<'a>(pub &'a File);

impl Blocks for Device<'_> {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn zero(&self, range: Range<u64>, halt: &Stop) -> io::Result<()> {
        let inner = range.start.next_multiple_of(ALIGNMENT)..range.end / ALIGNMENT * ALIGNMENT;
        if inner.is_empty() {
            return self.write_zeroes(range, halt);
        }
        self.write_zeroes(range.start..inner.start, halt)?;
        self.write_zeroes(inner.end..range.end, halt)?;
        let mut at = inner.start;
        while at < inner.end && !halt.is_raised() {
            let part = at..inner.end.min(at + STRIDE);
            at = part.end;
            if !self.ask::<ZERO_OUT>(&part)? {
                self.write_zeroes(part, halt)?;
            }
        }
        Ok(())
    }

    fn discard(&self, range: Range<u64>) -> io::Result<bool> {
        self.ask::<DISCARD>(&range)
    }
}

impl Device<'_> {
    /// Asks the kernel; false when this device cannot do that.
    fn ask<const OPCODE: Opcode>(&self, range: &Range<u64>) -> io::Result<bool> {
        loop {
            match ask_once::<OPCODE>(self.0, [range.start, range.end - range.start]) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                // Busy: another process has pages of a device that is overwritten by force, or shared with it.
                Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::BUSY) => {
                    return Ok(false);
                }
                Err(why) => return Err(why.into()),
            }
        }
    }

    fn write_zeroes(&self, range: Range<u64>, halt: &Stop) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end && !halt.is_raised() {
            let len = (range.end - at).min(ZEROES_LEN);
            self.0.write_all_at(&ZEROES[..len as usize], at)?;
            at += len;
        }
        Ok(())
    }
}

#[allow(unsafe_code)]
fn ask_once<const OPCODE: Opcode>(file: &File, range: [u64; 2]) -> Result<(), Errno> {
    // SAFETY: both requests that this is called with only read two numbers of 64 bits from the pointer, which are there
    // as long as the call lasts, and change no memory of this process.
    unsafe { ioctl(file, Setter::<OPCODE, [u64; 2]>::new(range)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_zeroed_by_hand_and_exactly() {
        let mut file = tempfile::tempfile().unwrap();
        let mut expected = vec![0xee; 700_000];
        io::Write::write_all(&mut file, &expected).unwrap();
        let device = Device(&file);
        for range in [10..9000, 20_000..20_010, 40_960..49_152, 100_001..600_003_u64] {
            device.zero(range.clone(), &Stop::default()).unwrap();
            expected[range.start as usize..range.end as usize].fill(0);
        }
        let mut found = vec![0; expected.len()];
        device.read(0, &mut found).unwrap();
        assert!(found == expected);
        assert!(!device.discard(0..4096).unwrap(), "nothing is claimed that was not done");
    }

    #[test]
    fn the_requests_are_those_of_the_kernel() {
        assert_eq!((DISCARD, ZERO_OUT), (0x1277, 0x127f));
    }
}
