//! One entry point per parser of what the host's devices and tools say, for `cargo fuzz` and for property tests.
//!
//! None may panic, hang, or allocate more than a small multiple of its input. Results are dropped on purpose. For
//! `cargo fuzz`, make a crate outside of the workspace, let it depend on this one, and give each target one line:
//! `fuzz_target!(|data: &[u8]| volume_lvm::fuzz::TARGETS.iter().for_each(|(_, parse)| parse(data)));`

use crate::delta::DeltaParser;
use crate::delta::mappings::MappingsParser;
use crate::dm::{PoolStatus, SnapshotStatus, SnapshotTable, ThinTable};
use crate::exceptions;

/// A name and a parser.
pub type Target = (&'static str, fn(&[u8]));

/// Bytes of the volume that lists are taken to be about.
const SIZE: u64 = 1 << 30;

/// Every target.
pub const TARGETS: &[Target] = &[
    ("exceptions", |bytes| drop(exceptions::read(&mut &*bytes, SIZE))),
    ("thin_delta", |bytes| {
        let mut parser = DeltaParser::new(1, 3, SIZE);
        let whole = bytes.chunks(61).try_for_each(|piece| parser.push(piece));
        drop(whole.and_then(|()| parser.finish()));
    }),
    ("thin_dump", |bytes| {
        let mut parser = MappingsParser::new([1, 3], SIZE);
        let whole = bytes.chunks(61).try_for_each(|piece| parser.push(piece));
        drop(whole.and_then(|()| parser.finish()));
    }),
    ("device_mapper", |bytes| {
        let text = String::from_utf8_lossy(bytes);
        drop(SnapshotTable::parse(&text));
        drop(SnapshotStatus::parse(&text));
        drop(ThinTable::parse(&text));
        drop(PoolStatus::parse(&text));
    }),
];
