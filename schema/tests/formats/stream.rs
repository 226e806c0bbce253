//! Change streams: whatever is written reads back however it arrives, and what was damaged, cut off, doubled, swapped
//! or taken from another stream is refused by name before any of it is believed.

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use schema::limits::STREAM_DATA_MAX;
use schema::lvmsync::{self, Piece};
use schema::messages::FailureKind;
use schema::stream::{Applied, Decoder, Encoder, Event, Format, Header, Kind, Reply, Totals};
use schema::{FormatError, StreamId};

use crate::arbitrary::cases;
use crate::samples::bytes;

const HEADER_LEN: usize = 62 + 16;
const RECORD_LEN: usize = 41;

pub fn header() -> Header {
    Header {
        id: StreamId::from_bytes(bytes(0x50)),
        kind: Kind::Changes,
        of: None,
        size: 1 << 20,
        first: 0,
        name: "vg0/web".to_owned(),
    }
}

/// One record of each kind, and the end.
pub fn changes() -> Vec<u8> {
    let events = [data(8192, b"what it became"), Event::Zero { offset: 65_536, len: 131_072 }];
    written(&header(), &events, true)
}

pub fn snapback() -> Vec<u8> {
    let header = Header {
        id: StreamId::from_bytes(bytes(0x60)),
        kind: Kind::Snapback,
        of: Some(header().id),
        first: 0,
        ..header()
    };
    written(&header, &[data(8192, b"what it was")], true)
}

/// By hand, from the description of the format and not by the code under test.
pub fn lvmsync_stream() -> Vec<u8> {
    let mut out = b"lvmsync PROTO[3]\n".to_vec();
    out.extend([0, 0, 0, 0, 0, 0x01, 0, 0, 0, 0, 0, 4]);
    out.extend(b"late");
    out.extend([0, 0, 0, 0x02, 0, 0, 0, 0, 0, 0, 0, 5]);
    out.extend(b"early");
    out
}

pub fn replies() -> String {
    reply_values().map(|reply| reply.to_string() + "\n").concat()
}

fn reply_values() -> [Reply; 4] {
    let applied = Applied { records: 17, written: 4096, zeroed: 65_536, saved: 8192 };
    let why = "/dev/vg0/web is mounted on /srv".to_owned();
    [
        Reply::Ready,
        Reply::Durable(17),
        Reply::Done(applied),
        Reply::Failed { kind: FailureKind::Refused, again: true, why },
    ]
}

fn data(offset: u64, content: &[u8]) -> Event {
    Event::Data { offset, content: Bytes::copy_from_slice(content) }
}

fn append(encoder: &mut Encoder, out: &mut Vec<u8>, event: &Event) {
    match event {
        Event::Data { offset, content } => {
            out.extend(encoder.data(*offset, content).unwrap());
            out.extend(content);
        }
        Event::Zero { offset, len } => out.extend(encoder.zero(*offset, *len).unwrap()),
        Event::Begun(_) | Event::Ended(_) => unreachable!("records only"),
    }
}

fn written(header: &Header, events: &[Event], ends: bool) -> Vec<u8> {
    let (mut encoder, mut out) = Encoder::begin(header).unwrap();
    events.iter().for_each(|event| append(&mut encoder, &mut out, event));
    if ends {
        out.extend(encoder.end());
    }
    out
}

/// Feeds `bytes` in pieces of `step`, to the end.
fn read(bytes: &[u8], step: usize) -> Result<Vec<Event>, (Vec<Event>, FormatError)> {
    let (mut decoder, mut buffer, mut events) = (Decoder::new(), BytesMut::new(), Vec::new());
    for part in bytes.chunks(step.max(1)) {
        buffer.extend_from_slice(part);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(why) => return Err((events, why)),
            }
        }
    }
    match decoder.finish(&buffer) {
        Ok(()) => Ok(events),
        Err(why) => Err((events, why)),
    }
}

fn records() -> impl Strategy<Value = Vec<Event>> {
    let content = (0u64..1 << 19, vec(any::<u8>(), 1..5000)).prop_map(|(offset, c)| data(offset, &c));
    let zero = (0u64..1 << 19, 1u64..1 << 19).prop_map(|(offset, len)| Event::Zero { offset, len });
    vec(prop_oneof![content, zero], 0..8)
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn streams_read_back_however_they_arrive(events in records(), first in any::<u32>(), step in 1usize..7000) {
        let header = Header { first: u64::from(first), ..header() };
        let read = read(&written(&header, &events, true), step).unwrap();
        let (begun, rest) = read.split_first().unwrap();
        let (ended, middle) = rest.split_last().unwrap();
        prop_assert_eq!(begun, &Event::Begun(header));
        prop_assert_eq!(middle, &events[..]);
        let len = |event: &Event| match event {
            Event::Data { content, .. } => (content.len() as u64, 0),
            Event::Zero { len, .. } => (0, *len),
            _ => (0, 0),
        };
        let (data, zero) = events.iter().map(len).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        prop_assert_eq!(ended, &Event::Ended(Totals { records: events.len() as u64, data, zero }));
    }

    #[test]
    fn a_stream_that_was_read_so_far_is_written_on(events in records(), at in any::<prop::sample::Index>()) {
        let at = at.index(events.len() + 1);
        let mut bytes = written(&header(), &events[..at], false);
        let (mut decoder, mut buffer) = (Decoder::new(), BytesMut::from(&bytes[..]));
        while decoder.decode(&mut buffer).unwrap().is_some() {}
        let mut encoder = decoder.into_encoder().unwrap();
        events[at..].iter().for_each(|event| append(&mut encoder, &mut bytes, event));
        bytes.extend(encoder.end());
        prop_assert_eq!(bytes, written(&header(), &events, true));
    }

    #[test]
    fn lvmsync_streams_read_back(records in vec((any::<u32>(), vec(any::<u8>(), 0..3000)), 0..6), step in 1usize..4000) {
        let mut stream = lvmsync::GREETING.to_vec();
        for (offset, content) in &records {
            stream.extend(lvmsync::head(u64::from(*offset) << 12, content.len() as u32));
            stream.extend(content);
        }
        let want: Vec<Piece> = records
            .iter()
            .filter(|(_, content)| !content.is_empty())
            .map(|(offset, content)| Piece { offset: u64::from(*offset) << 12, content: content.clone().into() })
            .collect();
        prop_assert_eq!(read_lvmsync(&stream, step), Ok(want));
    }
}

#[test]
fn every_cut_of_a_stream_is_refused_and_every_whole_record_before_it_is_told() {
    let bytes = changes();
    for len in 0..bytes.len() {
        let (events, why) = read(&bytes[..len], usize::MAX).unwrap_err();
        assert!(matches!(why, FormatError::Truncated { .. }), "cut to {len}: {why}");
        let second = HEADER_LEN + 7 + RECORD_LEN + b"what it became".len();
        let whole = [HEADER_LEN + 7, second, second + RECORD_LEN].iter().filter(|end| len >= **end).count();
        assert_eq!(events.len(), whole, "cut to {len}");
    }
}

#[test]
fn every_flipped_bit_is_refused_before_its_record_is_told() {
    for bytes in [changes(), snapback()] {
        let whole = read(&bytes, usize::MAX).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            match read(&flipped, usize::MAX) {
                Ok(_) => panic!("bit {bit} makes no difference"),
                Err((events, _)) => assert!(whole.starts_with(&events), "bit {bit} is told: {events:?}"),
            }
        }
    }
}

#[test]
fn records_that_are_missing_doubled_swapped_or_strange_are_named() {
    let events: Vec<Event> = (0..3).map(|i| data(i * 4096, &[i as u8; 100])).collect();
    let bytes = written(&header(), &events, true);
    let (begin, len) = (HEADER_LEN + 7, RECORD_LEN + 100);
    let record = |i: usize| bytes[begin + i * len..begin + (i + 1) * len].to_vec();
    let (head, end) = (bytes[..begin].to_vec(), bytes[begin + 3 * len..].to_vec());
    let other = Header { id: StreamId::from_bytes(bytes_of_another()), ..header() };
    let other = written(&other, &events, true);
    for (what, parts, words) in [
        ("missing", vec![head.clone(), record(0), record(2), end.clone()], "record 2 stands where 1"),
        ("doubled", vec![head.clone(), record(0), record(0)], "record 0 stands where 1"),
        ("swapped", vec![head.clone(), record(1), record(0)], "record 1 stands where 0"),
        ("early end", vec![head.clone(), record(0), end.clone()], "record 3 stands where 1"),
        (
            "another stream's",
            vec![head.clone(), other[begin..begin + len].to_vec()],
            "record 0 is damaged or",
        ),
        ("behind the end", vec![bytes.clone(), record(2)], "bytes follow its end"),
    ] {
        let (_, why) = read(&parts.concat(), usize::MAX).unwrap_err();
        assert!(why.to_string().contains(words), "{what}: {why}");
    }
}

fn bytes_of_another() -> [u8; 16] {
    bytes(0x70)
}

#[test]
fn what_a_stream_cannot_mean_is_neither_written_nor_read() {
    let (mut encoder, _) = Encoder::begin(&header()).unwrap();
    for (offset, len) in [(0, 0), (1 << 20, 1), ((1 << 20) - 1, 2), (u64::MAX, 2)] {
        assert!(encoder.zero(offset, len).is_err(), "{len} bytes at {offset}");
    }
    assert!(encoder.data(0, &vec![0; STREAM_DATA_MAX + 1]).is_err());
    assert!(Encoder::begin(&Header { name: "n".repeat(1025), ..header() }).is_err());
    // The same records in a stream of a smaller volume: their checks are good, and they reach beyond its end.
    let larger = written(&header(), &[data(4096, &[1; 4096])], true);
    let smaller = written(&Header { size: 8191, ..header() }, &[], false);
    let (_, why) = read(&[&smaller, &larger[HEADER_LEN + 7..]].concat(), usize::MAX).unwrap_err();
    assert!(why.to_string().contains("of a volume of 8191 bytes"), "{why}");
}

#[test]
fn another_version_is_refused_by_name() {
    let mut bytes = changes();
    bytes[8] = 2;
    let (_, why) = read(&bytes, usize::MAX).unwrap_err();
    assert!(matches!(why, FormatError::UnknownVersion { found: 2, known: 1, .. }), "{why}");
}

#[test]
fn formats_are_told_by_their_first_bytes() {
    let detect = |bytes: &[u8]| Format::detect(&bytes[..bytes.len().min(Format::LOOKED_AT)]);
    assert_eq!(detect(&changes()), Ok(Format::Native));
    assert_eq!(detect(&lvmsync_stream()), Ok(Format::Lvmsync));
    for bytes in [&b""[..], b"LVKSTR", b"lvmsync"] {
        assert!(matches!(detect(bytes), Err(FormatError::Truncated { .. })), "{bytes:?}");
    }
    for bytes in [&b"\x1f\x8b\x08 gzip"[..], b"lvmsink ", b"age-encryption.org"] {
        assert!(matches!(detect(bytes), Err(FormatError::Invalid { .. })), "{bytes:?}");
    }
}

fn read_lvmsync(bytes: &[u8], step: usize) -> Result<Vec<Piece>, FormatError> {
    let (mut decoder, mut buffer, mut pieces) = (lvmsync::Decoder::new(), BytesMut::new(), Vec::new());
    for part in bytes.chunks(step.max(1)) {
        buffer.extend_from_slice(part);
        while let Some(piece) = decoder.decode(&mut buffer)? {
            pieces.push(piece);
        }
    }
    decoder.finish(&buffer)?;
    Ok(pieces)
}

#[test]
fn lvmsyncs_own_bytes_are_read_and_written() {
    let pieces = read_lvmsync(&lvmsync_stream(), usize::MAX).unwrap();
    let piece = |offset, content: &'static [u8]| Piece { offset, content: Bytes::from_static(content) };
    assert_eq!(pieces, [piece(1 << 16, b"late"), piece(1 << 33, b"early")]);
    let mut ours = lvmsync::GREETING.to_vec();
    for Piece { offset, content } in &pieces {
        ours.extend(lvmsync::head(*offset, content.len() as u32));
        ours.extend(content);
    }
    assert_eq!(ours, lvmsync_stream());
}

#[test]
fn a_long_record_of_lvmsync_comes_in_pieces() {
    let mut stream = lvmsync::GREETING.to_vec();
    stream.extend(lvmsync::head(512, 3 << 20 | 7));
    stream.extend(vec![5; 3 << 20 | 7]);
    let pieces = read_lvmsync(&stream, 100_000).unwrap();
    let places: Vec<(u64, usize)> = pieces.iter().map(|p| (p.offset, p.content.len())).collect();
    let mib = 1 << 20;
    assert_eq!(places, [(512, mib), (512 + (1 << 20), mib), (512 + (2 << 20), mib), (512 + (3 << 20), 7)]);
}

#[test]
fn a_cut_of_lvmsyncs_stream_is_seen_inside_a_record_and_only_there() {
    let bytes = lvmsync_stream();
    let boundaries = [17, 17 + 12 + 4, bytes.len()];
    for len in 0..=bytes.len() {
        let read = read_lvmsync(&bytes[..len], usize::MAX);
        assert_eq!(read.is_ok(), boundaries.contains(&len), "cut to {len}: {read:?}");
    }
}

#[test]
fn other_protocols_of_lvmsync_are_refused_by_name() {
    for (first, words) in [
        (&b"lvmsync PROTO[2]\nxxxx"[..], "lvmsync PROTO[2]"),
        (b"lvmsync PROTO[30]\nxxx", "lvmsync PROTO[30]"),
        (b"lvmsync PROTO[3] checksum\n", "only protocol 3"),
    ] {
        let why = read_lvmsync(first, usize::MAX).unwrap_err();
        assert!(why.to_string().contains(words), "{why}");
    }
    let mut beyond = lvmsync::GREETING.to_vec();
    beyond.extend(lvmsync::head(u64::MAX - 2, 4));
    assert!(matches!(read_lvmsync(&beyond, usize::MAX), Err(FormatError::Invalid { .. })));
}

#[test]
fn answers_read_back_and_other_lines_are_none() {
    for reply in reply_values() {
        assert_eq!(Reply::parse(&reply.to_string()), Ok(Some(reply)));
    }
    for line in ["", "Welcome to web2", "lvkeep: restored", " lvkeep-apply 1 ready"] {
        assert_eq!(Reply::parse(line), Ok(None), "{line:?}");
    }
    for rest in
        ["", "1", "x ready", "1 ready now", "1 durable", "1 durable -1", "1 done 1 2 3", "1 failed", "1 what"]
    {
        assert!(Reply::parse(&format!("lvkeep-apply {rest}")).is_err(), "{rest:?}");
    }
    let why = Reply::parse("lvkeep-apply 2 ready").unwrap_err();
    assert!(matches!(why, FormatError::UnknownVersion { found: 2, .. }), "{why}");
    let long = Reply::Failed { kind: FailureKind::Device, again: false, why: "ö\n".repeat(4000) };
    assert!(long.to_string().len() < 4096 && !long.to_string().contains('\n'));
}
