//! How the empty ranges of a snapshot come to read as zero on a logical volume, whatever stood there before.
//!
//! What works depends on the kind of volume: a discard says nothing about a thick one, forgets only whole blocks of a
//! thin one, and lets the origin shine through one with an external origin. Which steps are taken is decided by values
//! alone; the steps run over [`Blocks`], so that the same code runs over a device and over a model of a pool.
//!
//! Other threads write data next to an empty range at the same time, and that may make the pool give the volume a new
//! block full of somebody's old data. So only what nobody else writes to may be left as it is found: a part of a pool
//! block is always written, and never skipped for reading as zero now.

use std::io;
use std::ops::Range;

use agent::Stop;

#[cfg(test)]
mod tests;

/// Bytes that are read at once to see whether they are zero.
const LOOK: usize = 256 << 10;
/// Bytes in one discard at most, or one block: what is between two looks at the stop flag.
const STRIDE: u64 = 1 << 30;
/// What volumes without pool blocks are compared by.
pub(super) const UNIT: u64 = 64 << 10;

/// What matters about a logical volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Its extents are its own: linear, striped, mirrored, cached, or anything else that is no thin volume.
    Thick {
        /// Snapshots keep a copy of whatever is overwritten, equal or not.
        watched: bool,
    },
    /// It gets blocks from a pool when it is written to.
    Thin {
        /// Bytes of the pool's blocks.
        block: u64,
        /// The pool zeroes a new block before a part of it is written.
        zeroes: bool,
        /// The pool forgets blocks that are discarded.
        discards: bool,
        /// What was never written reads as another volume does.
        external_origin: bool,
    },
}

/// One step towards zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Zeroes are written.
    Zero(Range<u64>),
    /// Units that do not read as zero are overwritten with zeroes, whole; the last one may be shorter. Nobody else
    /// writes to any of them.
    Clear {
        /// Where.
        range: Range<u64>,
        /// Bytes of a unit, from the start of the range.
        unit: u64,
    },
    /// Whole blocks are forgotten, and thereby read as zero.
    Discard {
        /// Where.
        range: Range<u64>,
        /// Bytes of a block.
        unit: u64,
    },
}

impl Kind {
    /// The steps that make `range` of a volume of `size` bytes read as zero, in order.
    pub fn steps(&self, range: Range<u64>, size: u64) -> Vec<Step> {
        let steps = match *self {
            Self::Thick { watched: false } => vec![Step::Zero(range)],
            Self::Thick { watched: true } => vec![Step::Clear { range, unit: UNIT }],
            Self::Thin { block: 0, .. } => vec![Step::Zero(range)],
            Self::Thin { block, discards, external_origin, .. } => {
                by_blocks(range, size, block, discards && !external_origin)
            }
        };
        steps.into_iter().filter(|step| !step.range().is_empty()).collect()
    }

    /// Whether data that stands there already may be left alone. In a pool that does not zero new blocks it may not:
    /// a block that the volume does not have yet reads as zero until a neighbour of those zeroes is written.
    pub fn keeps_equal(&self) -> bool {
        match self {
            Self::Thick { .. } => true,
            Self::Thin { zeroes, .. } => *zeroes,
        }
    }
}

fn by_blocks(range: Range<u64>, size: u64, block: u64, discards: bool) -> Vec<Step> {
    let first = range.start.next_multiple_of(block);
    let last = range.end / block * block;
    // The volume's end may lie inside a block, of which nobody else has a part.
    let ends = range.end == size && last < range.end && first <= last;
    if first >= last && !ends {
        return vec![Step::Zero(range)];
    }
    let whole = first..last;
    let mut steps = vec![Step::Zero(range.start..first)];
    if discards {
        steps.push(Step::Discard { range: whole.clone(), unit: block });
    }
    if !discards || !block.is_power_of_two() {
        // The kernel may cut a long discard off the borders of blocks of an odd size, and drops what it cuts.
        steps.push(Step::Clear { range: whole, unit: block });
    }
    steps.push(match ends {
        true => Step::Clear { range: last..range.end, unit: block },
        false => Step::Zero(last..range.end),
    });
    steps
}

impl Step {
    fn range(&self) -> &Range<u64> {
        match self {
            Self::Zero(range) | Self::Clear { range, .. } | Self::Discard { range, .. } => range,
        }
    }
}

/// A device that ranges are emptied on. Every call may wait.
pub trait Blocks {
    /// Fills `buffer` from `offset`.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes zeroes.
    fn zero(&self, range: Range<u64>, halt: &Stop) -> io::Result<()>;

    /// Discards; false when the device cannot.
    fn discard(&self, range: Range<u64>) -> io::Result<bool>;
}

/// Takes the steps. Gives up between them, without an error, when `halt` is raised.
pub fn run(blocks: &impl Blocks, steps: &[Step], halt: &Stop) -> io::Result<()> {
    for step in steps {
        match step {
            Step::Zero(range) => blocks.zero(range.clone(), halt)?,
            Step::Clear { range, unit } => clear(blocks, range, *unit, halt)?,
            Step::Discard { range, unit } => discard(blocks, range, *unit, halt)?,
        }
    }
    Ok(())
}

fn clear(blocks: &impl Blocks, range: &Range<u64>, unit: u64, halt: &Stop) -> io::Result<()> {
    let mut buffer = vec![0; LOOK];
    for unit in strides(range, unit) {
        if halt.is_raised() {
            return Ok(());
        }
        if !is_zero(blocks, &unit, &mut buffer)? {
            blocks.zero(unit, halt)?;
        }
    }
    Ok(())
}

fn discard(blocks: &impl Blocks, range: &Range<u64>, unit: u64, halt: &Stop) -> io::Result<()> {
    let mut buffer = vec![0; LOOK];
    for part in strides(range, (STRIDE / unit).max(1).saturating_mul(unit)) {
        if halt.is_raised() {
            return Ok(());
        }
        // A look at both ends costs nothing, and finds out a pool that is not what its report says.
        let done = blocks.discard(part.clone())?
            && is_zero(blocks, &(part.start..part.end.min(part.start + UNIT)), &mut buffer)?
            && is_zero(blocks, &(part.start.max(part.end.saturating_sub(UNIT))..part.end), &mut buffer)?;
        if !done {
            clear(blocks, &part, unit, halt)?;
        }
    }
    Ok(())
}

fn is_zero(blocks: &impl Blocks, range: &Range<u64>, buffer: &mut [u8]) -> io::Result<bool> {
    for part in strides(range, buffer.len() as u64) {
        let part_len = (part.end - part.start) as usize;
        let bytes = &mut buffer[..part_len];
        blocks.read(part.start, bytes)?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The parts of a range, each `stride` long but the last.
fn strides(range: &Range<u64>, stride: u64) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = range.end;
    let mut at = range.start;
    std::iter::from_fn(move || {
        let part = at..at.saturating_add(stride).min(end);
        at = part.end;
        (!part.is_empty()).then_some(part)
    })
}
