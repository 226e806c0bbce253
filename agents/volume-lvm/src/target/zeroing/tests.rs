//! Emptying and writing at once, over models of what the kernel does, in any interleaving.

use std::cell::{Cell, RefCell};

use proptest::prelude::*;

use super::*;

const KIB: u64 = 1 << 10;

/// A volume as the kernel would have it.
struct Model {
    kind: Kind,
    size: u64,
    /// What each pool block holds, or nothing; a thick volume is one block.
    map: RefCell<Vec<Option<Vec<u8>>>>,
    /// What the external origin holds; it may be shorter than the volume.
    origin: Vec<u8>,
    /// What stands in blocks that the pool gives away.
    stale: Cell<u8>,
    /// What other threads have left to do, the next one last, and when they get their turns.
    others: RefCell<Vec<Task>>,
    turns: RefCell<Vec<bool>>,
}

/// What one thread of a restore does.
#[derive(Debug, Clone)]
enum Task {
    Write(Range<u64>, u8),
    Empty(Range<u64>),
}

impl Model {
    fn block(&self) -> u64 {
        match self.kind {
            Kind::Thick { .. } => self.size,
            Kind::Thin { block, .. } => block,
        }
    }

    /// The part of each block that a range touches: its number, and the bytes inside.
    fn touched(&self, range: &Range<u64>) -> Vec<(usize, Range<usize>)> {
        let block = self.block();
        let of = |number: u64| {
            let start = number * block;
            let from = range.start.max(start) - start;
            let to = range.end.min(start + block) - start;
            (number as usize, from as usize..to as usize)
        };
        (range.start / block..range.end.div_ceil(block)).map(of).collect()
    }

    fn unwritten(&self, number: usize) -> Vec<u8> {
        let (start, block) = (number * self.block() as usize, self.block() as usize);
        let shines = self.origin.get(start..).unwrap_or_default();
        let mut bytes = shines[..shines.len().min(block)].to_vec();
        bytes.resize(block, 0);
        bytes
    }

    /// A new block: the pool copies what the external origin has, and zeroes the rest if it zeroes.
    fn provisioned(&self, number: usize) -> Vec<u8> {
        let Kind::Thin { zeroes, block, .. } = self.kind else { unreachable!("thick blocks are there") };
        let mut bytes = self.unwritten(number);
        if !zeroes {
            let copied = self.origin.len().saturating_sub(number * block as usize).min(block as usize);
            bytes[copied..].fill(self.stale.replace(self.stale.get() | 1));
        }
        bytes
    }

    fn fill(&self, range: &Range<u64>, byte: u8) {
        for (number, inside) in self.touched(range) {
            let fresh = match self.map.borrow()[number] {
                None => Some(self.provisioned(number)),
                Some(_) => None,
            };
            let mut map = self.map.borrow_mut();
            let bytes = map[number].get_or_insert_with(|| fresh.expect("made above"));
            bytes[inside].fill(byte);
        }
    }

    fn look(&self, range: &Range<u64>) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, inside) in self.touched(range) {
            match &self.map.borrow()[number] {
                Some(bytes) => out.extend_from_slice(&bytes[inside]),
                None => out.extend_from_slice(&self.unwritten(number)[inside]),
            }
        }
        out
    }

    /// Between any two steps of a thread, others may get a turn.
    fn others_go(&self) {
        while self.turns.borrow_mut().pop().unwrap_or(false) {
            let Some(task) = self.others.borrow_mut().pop() else { return };
            self.perform(task);
        }
    }

    fn perform(&self, task: Task) {
        match task {
            Task::Empty(range) => run(self, &self.kind.steps(range, self.size), &Stop::default()).unwrap(),
            Task::Write(range, byte) => {
                self.others_go();
                let equal = self.look(&range).iter().all(|there| *there == byte);
                self.others_go();
                if !(equal && self.kind.keeps_equal()) {
                    self.fill(&range, byte);
                }
            }
        }
    }
}

impl Blocks for Model {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.others_go();
        buffer.copy_from_slice(&self.look(&(offset..offset + buffer.len() as u64)));
        Ok(())
    }

    fn zero(&self, range: Range<u64>, _: &Stop) -> io::Result<()> {
        self.others_go();
        self.fill(&range, 0);
        Ok(())
    }

    fn discard(&self, range: Range<u64>) -> io::Result<bool> {
        self.others_go();
        let Kind::Thin { block, discards, .. } = self.kind else {
            panic!("a discard promises nothing on a thick volume");
        };
        if !discards {
            return Ok(false);
        }
        for number in range.start.div_ceil(block)..range.end / block {
            self.map.borrow_mut()[number as usize] = None;
        }
        Ok(true)
    }
}

fn kinds() -> impl Strategy<Value = Kind> {
    let thin = (0..3u64, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(block, zeroes, discards, external_origin)| Kind::Thin {
            block: [64, 128, 192][block as usize] * KIB,
            zeroes,
            discards,
            external_origin,
        },
    );
    prop_oneof![1 => any::<bool>().prop_map(|watched| Kind::Thick { watched }), 4 => thin]
}

/// Runs of data (a byte) and of emptiness (zero), in units of 4 KiB.
fn runs() -> impl Strategy<Value = Vec<(u64, u8)>> {
    proptest::collection::vec((1..60u64, prop_oneof![Just(0u8), 1..4u8]), 1..12)
}

#[derive(Debug)]
struct Case {
    kind: Kind,
    runs: Vec<(u64, u8)>,
    /// Bytes by which the snapshot ends off a block.
    odd: u64,
    /// Blocks of 4 KiB behind the snapshot's end.
    behind: u64,
    mapped: Vec<Option<u8>>,
    origin_len: u64,
    order: Vec<usize>,
    turns: Vec<bool>,
}

fn cases() -> impl Strategy<Value = Case> {
    (
        kinds(),
        runs(),
        prop_oneof![Just(0u64), 1..4096u64],
        0..40u64,
        proptest::collection::vec(proptest::option::of(0..4u8), 40),
        0..400u64,
        proptest::collection::vec(any::<usize>(), 14),
        proptest::collection::vec(any::<bool>(), 0..60),
    )
        .prop_map(|(kind, runs, odd, behind, mapped, origin, order, turns)| Case {
            kind,
            runs,
            odd,
            behind,
            mapped,
            origin_len: origin * 4 * KIB,
            order,
            turns,
        })
}

fn check(case: Case) {
    let mut tasks = Vec::new();
    let mut expected = Vec::new();
    for (blocks, byte) in &case.runs {
        let range = expected.len() as u64..expected.len() as u64 + blocks * 4 * KIB;
        expected.resize(range.end as usize, *byte);
        tasks.push(if *byte == 0 { Task::Empty(range) } else { Task::Write(range, *byte) });
    }
    // The last run ends off a block, and the volume goes on behind it.
    let data = expected.len() as u64;
    if case.odd > 0 {
        expected.resize((data + case.odd) as usize, 3);
        tasks.push(Task::Write(data..data + case.odd, 3));
    }
    let end = expected.len() as u64;
    let size = end.next_multiple_of(4 * KIB) + case.behind * 4 * KIB;
    if size > end {
        tasks.push(Task::Empty(end..size));
        expected.resize(size as usize, 0);
    }
    let mut shuffled = Vec::new();
    for pick in case.order.iter().cycle() {
        if tasks.is_empty() {
            break;
        }
        shuffled.push(tasks.swap_remove(pick % tasks.len()));
    }
    let (map, origin) = match case.kind {
        Kind::Thick { .. } => (vec![Some(vec![0x77; size as usize])], Vec::new()),
        Kind::Thin { block, external_origin, .. } => {
            let of = |byte: &Option<u8>| byte.map(|byte| vec![byte; block as usize]);
            let map = case.mapped.iter().cycle().take(size.div_ceil(block) as usize).map(of).collect();
            (map, if external_origin { vec![0x55; case.origin_len as usize] } else { Vec::new() })
        }
    };
    let model = Model {
        kind: case.kind,
        size,
        map: RefCell::new(map),
        origin,
        stale: Cell::new(0xa5),
        others: RefCell::new(shuffled),
        turns: RefCell::new(case.turns),
    };
    loop {
        let Some(task) = model.others.borrow_mut().pop() else { break };
        model.perform(task);
    }
    let found = model.look(&(0..size));
    let differs = found.iter().zip(&expected).position(|(a, b)| a != b);
    assert_eq!(differs, None, "the first differing byte, of {size}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_byte_is_what_was_written_or_zero_whatever_was_there(case in cases()) {
        check(case);
    }

    #[test]
    fn steps_cover_their_range_and_nothing_else(
        kind in kinds(), start in 0..5000u64, len in 0..5000u64, behind in 0..200u64,
    ) {
        let range = start * 512..(start + len) * 512;
        let size = range.end + behind * 4096;
        let mut at = range.start;
        for step in kind.steps(range.clone(), size) {
            let step_range = step.range().clone();
            if let (Kind::Thin { block, .. }, Step::Discard { .. }) = (kind, &step) {
                prop_assert_eq!((step_range.start % block, step_range.end % block), (0, 0));
            }
            // A discard of blocks of an odd size is followed by a look at the same range.
            prop_assert!(step_range.start == at || step_range.end == at);
            at = at.max(step_range.end);
        }
        prop_assert_eq!(at, range.end);
    }
}

#[test]
fn each_kind_of_volume_has_its_way() {
    let thin =
        |zeroes, discards, external_origin| Kind::Thin { block: 64 * KIB, zeroes, discards, external_origin };
    let range = 60 * KIB..200 * KIB;
    let size = 1024 * KIB;
    let (head, whole, tail) = (60 * KIB..64 * KIB, 64 * KIB..192 * KIB, 192 * KIB..200 * KIB);
    let unit = 64 * KIB;
    let discarded = vec![
        Step::Zero(head.clone()),
        Step::Discard { range: whole.clone(), unit },
        Step::Zero(tail.clone()),
    ];
    let compared = vec![Step::Zero(head), Step::Clear { range: whole, unit }, Step::Zero(tail)];
    for (kind, expected) in [
        (Kind::Thick { watched: false }, vec![Step::Zero(range.clone())]),
        (Kind::Thick { watched: true }, vec![Step::Clear { range: range.clone(), unit }]),
        (thin(true, true, false), discarded.clone()),
        (thin(false, true, false), discarded),
        (thin(true, false, false), compared.clone()),
        (thin(true, true, true), compared),
    ] {
        assert_eq!(kind.steps(range.clone(), size), expected, "{kind:?}");
    }
    // Inside one block there is nothing to forget; at the volume's end the last block is nobody else's.
    assert_eq!(thin(true, true, false).steps(0..60 * KIB, size), [Step::Zero(0..60 * KIB)]);
    let end = 100 * KIB;
    assert_eq!(
        thin(true, true, false).steps(0..end, end),
        [Step::Discard { range: 0..unit, unit }, Step::Clear { range: unit..end, unit }]
    );
    assert!(!thin(false, true, false).keeps_equal());
}
