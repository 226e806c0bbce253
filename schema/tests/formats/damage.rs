//! What was damaged, cut off, moved, or written by a later version is refused, and never panics.

use bytes::Bytes;
use schema::chunk::{FRAME_HEADER_LEN, FrameHeader, Opener, split_frames};
use schema::config::{Config, ConfigHead};
use schema::keys::{DataKey, FrameKey, Identity, KEY_PLAIN, WriterKey};
use schema::limits::{LEAF_SPAN, NOTE_MAX, TAG_MAX, TAGS_MAX};
use schema::map::{Leaf, Node};
use schema::mark::{Mark, Says};
use schema::messages::{About, Flush, Message, Refusal};
use schema::root::Root;
use schema::tombstone::Tombstone;
use schema::{Domain, FormatError, MarkId, Object, RepoId, Result, names, pack};

use crate::files;
use crate::golden::{identity, sealed_data_key};
use crate::samples::*;

fn file(name: &str) -> Vec<u8> {
    files::all().into_iter().find(|(found, _)| found == name).unwrap().1
}

/// All ways of turning one bit.
fn flips(bytes: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> + '_ {
    (0..bytes.len() * 8).map(|bit| {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        (bit, flipped)
    })
}

#[test]
fn every_flipped_bit_of_a_frame_is_refused() {
    let structure = writer(&identity()).structure_key();
    let data = data_key().frame_key();
    let mut opener = Opener::new(plain_writer().chunk_ids()).unwrap();
    for (name, key) in [
        ("frame-raw-plain", &FrameKey::plain()),
        ("frame-zstd-plain", &FrameKey::plain()),
        ("frame-raw-data", &data),
        ("frame-zstd-data", &data),
        ("frame-structure", &structure),
    ] {
        let bytes = file(name);
        let id = FrameHeader::parse(&bytes).unwrap().id;
        let want = opener.open(&id, &bytes, key).unwrap().to_vec();
        for (bit, flipped) in flips(&bytes) {
            // A bit that zstd does not use changes nothing, and only a sealed frame can tell.
            match opener.open(&id, &flipped, key) {
                Ok(opened) => {
                    assert!(name == "frame-zstd-plain" && opened == want, "{name} with bit {bit} opens")
                }
                Err(FormatError::Damaged { .. }) => {}
                Err(FormatError::CannotOpen { .. } | FormatError::TooLarge { .. })
                    if key.index() == KEY_PLAIN => {}
                Err(other) => assert!(bit < FRAME_HEADER_LEN * 8, "{name} with bit {bit}: {other}"),
            }
        }
        for len in 0..bytes.len() {
            assert!(opener.open(&id, &bytes[..len], key).is_err(), "{name} cut to {len} bytes opens");
        }
    }
}

#[test]
fn a_frame_opens_only_as_its_own_chunk_and_with_its_own_key() {
    let bytes = file("frame-raw-data");
    let id = FrameHeader::parse(&bytes).unwrap().id;
    let mut opener = Opener::new(plain_writer().chunk_ids()).unwrap();
    let other = chunk_id(Domain::Data, 77);
    assert!(matches!(opener.open(&other, &bytes, &data_key().frame_key()), Err(FormatError::Damaged { .. })));
    let wrong = DataKey::new(&bytes_like_data_key()).frame_key();
    assert_eq!(wrong.index(), data_key().frame_key().index());
    assert!(matches!(opener.open(&id, &bytes, &wrong), Err(FormatError::Damaged { .. })));
    for key in [FrameKey::plain(), writer(&identity()).structure_key()] {
        assert!(matches!(opener.open(&id, &bytes, &key), Err(FormatError::CannotOpen { .. })));
    }
}

/// The same id, another secret.
fn bytes_like_data_key() -> [u8; 48] {
    let mut random = bytes(0x80);
    random[47] ^= 1;
    random
}

/// Compressed content that unpacks to more than it claims, or claims more than a chunk may have.
#[test]
fn decompression_bombs_are_refused() {
    let ids = plain_writer().chunk_ids();
    let mut opener = Opener::new(ids.clone()).unwrap();
    let frame_of = |body: &[u8], plain: &[u8]| {
        let mut frame = vec![b'l', b'F', 1, 1, 0, 0, 0, 0];
        frame.extend((body.len() as u32).to_le_bytes());
        frame.extend(ids.id(Domain::Data, plain).as_bytes());
        let check = blake3::hash(&frame);
        frame.extend(&check.as_bytes()[..3]);
        frame.extend(body);
        (ids.id(Domain::Data, plain), frame)
    };
    let small = zstd::bulk::compress(b"small", 3).unwrap();
    let huge = zstd::bulk::compress(&vec![0; 1 << 28], 3).unwrap();
    let (id, frame) = frame_of(&small, b"small");
    assert_eq!(opener.open(&id, &frame, &FrameKey::plain()).unwrap(), b"small");
    let (id, frame) = frame_of(&huge, b"");
    let refused = opener.open(&id, &frame, &FrameKey::plain());
    assert!(matches!(refused, Err(FormatError::TooLarge { .. })), "{refused:?}");
    let twice = [&small[..], &small].concat();
    let (id, frame) = frame_of(&twice, b"smallsmall");
    let refused = opener.open(&id, &frame, &FrameKey::plain());
    assert!(matches!(refused, Err(FormatError::Damaged { .. })), "{refused:?}");
    let (id, frame) = frame_of(&zstd::bulk::compress(b"", 3).unwrap(), b"");
    assert!(opener.open(&id, &frame, &FrameKey::plain()).is_err());
}

#[test]
fn every_flipped_bit_of_an_object_is_refused() {
    fn refused<T: Object>(name: &str, writer: &WriterKey, key: &str) {
        let bytes = file(name);
        for (bit, flipped) in flips(&bytes) {
            match T::open(&flipped, writer, key) {
                Ok(_) => panic!("{name} with bit {bit} turned opens"),
                Err(FormatError::UnknownVersion { .. }) => {
                    panic!("nobody wrote {name} with bit {bit} turned")
                }
                Err(_) => {}
            }
        }
        for len in 0..bytes.len() {
            assert!(T::open(&bytes[..len], writer, key).is_err(), "{name} cut to {len} bytes opens");
        }
        assert!(T::open(&[&bytes[..], b"\0"].concat(), writer, key).is_err());
        assert!(T::open(&bytes, writer, key).is_ok());
    }
    let writer = writer(&identity());
    refused::<Root>("root-plain", &plain_writer(), &slot().snapshot());
    refused::<Root>("root", &writer, &slot().snapshot());
    refused::<schema::session::Session>("session", &writer, &names::session(session_id()));
    refused::<schema::root::Forgotten>("forgotten", &writer, &slot().forgotten());
    refused::<schema::mark::Mark>("hold", &writer, &slot().mark(mark_id()));
    refused::<schema::mark::Mark>("labels", &writer, &slot().labels(3));
    refused::<schema::epoch::Epoch>("epoch", &writer, &names::epoch(3));
    refused::<schema::epoch::Verdict>("verdict", &writer, &names::verdict(3));
    refused::<schema::epoch::Awaited>("awaited", &writer, &names::awaited(3));
    refused::<schema::damage::Damage>("damage", &writer, &names::damage(damage_id()));
    refused::<schema::damage::Holes>("holes", &writer, &slot().holes());
    refused::<schema::check::Check>("check", &writer, &names::check(job()));
    refused::<Tombstone>("tombstone", &writer, &slot().snapshot());
    refused::<Tombstone>("tombstone-plain", &plain_writer(), &slot().snapshot());
}

#[test]
fn a_moved_root_is_refused() {
    let elsewhere = RepoId::from_bytes(bytes(0x77));
    for (name, writer, stranger) in [
        ("root-plain", plain_writer(), WriterKey::new(elsewhere, Vec::new(), &bytes(0x20)).unwrap()),
        (
            "root",
            writer(&identity()),
            WriterKey::new(elsewhere, identity().recipients(), &bytes(0x20)).unwrap(),
        ),
    ] {
        let (bytes, key) = (file(name), slot().snapshot());
        for moved in
            [parent().snapshot(), slot().forgotten(), names::epoch(1), String::new(), format!("{key} ")]
        {
            assert!(
                matches!(Root::open(&bytes, &writer, &moved), Err(FormatError::Damaged { .. })),
                "{moved}"
            );
        }
        assert!(matches!(Root::open(&bytes, &stranger, &key), Err(FormatError::Invalid { .. })));
        let mut patched = bytes.clone();
        patched[8..24].copy_from_slice(elsewhere.as_bytes());
        assert!(matches!(Root::open(&patched, &stranger, &key), Err(FormatError::Damaged { .. })));
        assert!(schema::root::Forgotten::open(&bytes, &writer, &key).is_err(), "another kind");
        assert!(Tombstone::open(&bytes, &writer, &key).is_err(), "another kind");
        let tombstone = file(&name.replace("root", "tombstone"));
        assert!(Root::open(&tombstone, &writer, &key).is_err(), "another kind");
        assert!(Tombstone::open(&tombstone, &writer, &parent().snapshot()).is_err(), "of another slot");
        Root::open(&bytes, &writer, &key).unwrap().check(parent()).unwrap_err();
    }
    let plain = file("root-plain");
    assert!(
        Root::open(&plain, &writer(&identity()), &slot().snapshot()).is_err(),
        "not as encrypted as its repository"
    );
}

#[test]
fn a_mark_of_another_snapshot_or_out_of_bounds_is_refused() {
    let first = MarkId::from_parts(1, 0);
    assert!(hold().check(parent(), mark_id()).is_err());
    assert!(hold().check(slot(), mark_id()).is_ok());
    let says = |tags: Vec<String>, note: usize| {
        let says = Says::Labels { number: 1, tags, note: Some("n".repeat(note)) };
        Mark { says, ..labels() }.check(slot(), first)
    };
    assert!(says(vec!["t".repeat(TAG_MAX); TAGS_MAX], NOTE_MAX).is_ok());
    assert!(says(vec![String::new(); TAGS_MAX + 1], 0).is_err());
    assert!(says(vec!["t".repeat(TAG_MAX + 1)], 0).is_err());
    assert!(says(Vec::new(), NOTE_MAX + 1).is_err());
    for number in [2, u64::MAX, (1 << 48) + 1] {
        let says = Says::Labels { number, tags: Vec::new(), note: None };
        assert!(Mark { says, ..labels() }.check(slot(), first).is_err(), "{number}");
    }
}

fn open_config(bytes: &[u8], identity: Option<&Identity>) -> Result<(Config, bool)> {
    let head = ConfigHead::parse(bytes)?;
    let key = head.writer_key(identity)?;
    Ok((head.open(&key)?, head.check_writable().is_ok()))
}

#[test]
fn every_flipped_bit_of_config_is_refused() {
    for (name, identity) in [("config-plain", None), ("config", Some(&identity()))] {
        let bytes = file(name);
        for (bit, flipped) in flips(&bytes) {
            let opened = open_config(&flipped, identity);
            assert!(opened.is_err(), "{name} with bit {bit} turned opens");
        }
        for len in 0..bytes.len() {
            assert!(open_config(&bytes[..len], identity).is_err(), "{name} cut to {len} bytes opens");
        }
        assert_eq!(open_config(&bytes, identity).unwrap(), (config(), true));
    }
    // Where it can be told, what is damaged is no wrong identity.
    let mut damaged = file("config");
    let mac = damaged.windows(5).position(|window| window == b"\n--- ").unwrap() + 5;
    damaged[mac] ^= 1;
    let said = open_config(&damaged, Some(&identity())).unwrap_err();
    assert!(matches!(said, FormatError::Invalid { .. }) && said.to_string().contains("damaged"), "{said}");
    let head = ConfigHead::parse(&file("config")).unwrap();
    assert!(matches!(head.writer_key(None), Err(FormatError::CannotOpen { .. })));
    assert!(head.open(&plain_writer()).is_err());
}

#[test]
fn every_flipped_bit_of_a_packs_ends_is_refused() {
    for name in ["pack-plain", "pack-data", "pack-structure"] {
        let bytes = file(name);
        let (_, footer) = pack::parse_pack(&bytes).unwrap();
        let last = footer.entries.last().unwrap();
        let frames = pack::PACK_HEADER_LEN..(last.offset + last.len) as usize;
        for (bit, flipped) in flips(&bytes).filter(|(bit, _)| !frames.contains(&(bit / 8))) {
            assert!(pack::parse_pack(&flipped).is_err(), "{name} with bit {bit} turned is read");
            drop(pack::salvage(&flipped));
        }
        for len in 0..bytes.len() {
            assert!(pack::parse_pack(&bytes[..len]).is_err(), "{name} cut to {len} bytes is read");
            if let Ok((_, entries)) = pack::salvage(&bytes[..len]) {
                assert_eq!(entries[..], footer.entries[..entries.len()]);
            }
        }
    }
}

#[test]
fn a_footer_with_a_true_check_sum_is_not_believed() {
    let bytes = file("pack-plain");
    let header = &bytes[..pack::PACK_HEADER_LEN];
    let with_footer = |frames: usize, footer: &[u8]| {
        let check = blake3::Hasher::new().update(header).update(footer).finalize();
        let len = (footer.len() as u32).to_le_bytes();
        [header, &vec![0; frames], footer, &len, &check.as_bytes()[..16], b"LVKPEND\0"].concat()
    };
    let entry = |len: u32| [&[9; 32][..], &len.to_le_bytes()].concat();
    let tail = &b"\x82\xa4keys\x90\xa8sessions\x90"[..];
    let count = |n: u32| n.to_le_bytes();
    let good = [&count(1)[..], &entry(48), tail].concat();
    assert!(pack::parse_pack(&with_footer(48, &good)).is_ok());
    for (why, frames, footer) in [
        ("nothing at all", 0, vec![]),
        ("more frames than entries", 49, good.clone()),
        ("more entries than frames", 47, good.clone()),
        ("an entry shorter than a header", 47, [&count(1)[..], &entry(47), tail].concat()),
        ("an entry of 4 GiB", 48, [&count(1)[..], &entry(u32::MAX), tail].concat()),
        ("more entries than bytes", 48, [&count(u32::MAX)[..], &entry(48), tail].concat()),
        ("no tail", 48, [&count(1)[..], &entry(48)].concat()),
        ("bytes after the tail", 48, [&good[..], b"\0"].concat()),
    ] {
        assert!(pack::parse_pack(&with_footer(frames, &footer)).is_err(), "{why}");
    }
    let pack = with_footer(48, &good);
    let trailer = pack::Trailer::parse(&pack, pack.len() as u64).unwrap();
    for size in [0, 1, 76, u64::from(u32::MAX) * 3, u64::MAX] {
        let suffix = &pack[pack.len() - trailer.suffix_len() as usize..];
        assert!(trailer.footer(header, suffix, size).is_err(), "a pack of {size} bytes");
    }
}

#[test]
fn maps_frames_and_messages_that_are_cut_off_are_refused() {
    let (leaf, node) = (file("leaf"), file("node"));
    for len in 0..leaf.len() {
        assert!(Leaf::parse(&leaf[..len], LEAF_SPAN).is_err());
    }
    for len in 0..node.len() {
        assert!(Node::parse(&node[..len], 2).is_err());
    }
    assert!(Leaf::parse(&[&leaf[..], b"\0"].concat(), LEAF_SPAN).is_err());
    assert!(Node::parse(&[&node[..], b"\0"].concat(), 2).is_err());
    let frames = Bytes::from(file("frame-raw-plain").repeat(2));
    assert_eq!(split_frames(&frames, 2).unwrap().len(), 2);
    assert!(matches!(split_frames(&frames, 1), Err(FormatError::TooLarge { .. })));
    assert!(split_frames(&Bytes::new(), 0).unwrap().is_empty());
    for len in (1..frames.len()).filter(|len| *len != frames.len() / 2) {
        assert!(split_frames(&frames.slice(..len), 2).is_err());
    }
    let whole = Message::new(&About::nothing(), &Flush { session: session_id() });
    let bytes = whole.to_bytes().unwrap();
    for len in 0..bytes.len() {
        assert!(Message::from_bytes(bytes.slice(..len)).is_err());
    }
    let message = |header: Vec<u8>| Message { header: header.into(), body: Bytes::new() };
    for len in 0..whole.header.len() {
        assert!(message(whole.header[..len].to_vec()).read::<Flush>().is_err());
    }
    let longer = message([&whole.header[..], b"\0"].concat()).read::<Flush>();
    assert!(longer.unwrap_err().to_string().contains("left over"));
}

#[test]
fn keys_that_are_cut_off_or_changed_are_refused() {
    let text = String::from_utf8(file("writer-key.txt")).unwrap();
    for len in 0..text.len() - 1 {
        assert!(WriterKey::from_file(&text[..len]).is_err(), "{len}");
    }
    let key = text.lines().last().unwrap();
    for at in 0..key.len() {
        let mut changed = key.as_bytes().to_vec();
        changed[at] = if changed[at] == b'a' { b'b' } else { b'a' };
        assert!(WriterKey::from_file(std::str::from_utf8(&changed).unwrap()).is_err(), "{at}");
    }
    assert!(WriterKey::from_file("LVKEEP-WRITER-KEY-1-é").is_err());
    let sealed = sealed_data_key();
    for (bit, flipped) in flips(&sealed.sealed) {
        let key = schema::keys::SealedKey { sealed: flipped.into(), ..sealed.clone() };
        if let Ok(opened) = DataKey::unseal(repo(), &key, &identity()) {
            assert_eq!(opened.id(), data_key().id(), "bit {bit}");
        }
    }
    let other = schema::keys::SealedKey { id: schema::KeyId::from_bytes(bytes(1)), ..sealed.clone() };
    assert!(DataKey::unseal(repo(), &other, &identity()).is_err());
    assert!(DataKey::unseal(RepoId::from_bytes(bytes(1)), &sealed, &identity()).is_err());
    assert!(Identity::from_file("# nothing\n").is_err());
}

/// `bytes` with a version put in at `at`.
fn with_version(mut bytes: Vec<u8>, at: usize, version: u8) -> Vec<u8> {
    bytes[at] = version;
    bytes
}

#[test]
fn later_versions_are_refused_by_name() {
    fn unknown<T: std::fmt::Debug>(what: &str, version: u8, result: Result<T>) {
        match result {
            Err(FormatError::UnknownVersion { found, known: 1, .. })
                if found == u16::from(version) && (version > 0 || what == "message") => {}
            Err(FormatError::Invalid { why, .. }) if version == 0 && why.contains("version is 0") => {}
            other => panic!("{what}: {other:?}"),
        }
    }
    for version in [3, 200] {
        // As later versions may write them: without any of today's fields.
        let key = WriterKey::read_plain(&[b"\x81\xa7version", &[0xcc, version][..]].concat());
        let is_named = |why| matches!(why, FormatError::UnknownVersion { found, known: 2, .. } if found == version.into());
        assert!(key.is_err_and(is_named), "writer key of version {version}");
    }
    let key = slot().snapshot();
    for version in [0, 2, 200] {
        let v = |name, at| with_version(file(name), at, version);
        // A later version has another check sum: one that fits is of a version that rotted.
        let rotted = FrameHeader::parse(&v("frame-raw-plain", 2));
        assert!(matches!(rotted, Err(FormatError::Damaged { .. })), "{rotted:?}");
        unknown("frame", version, FrameHeader::parse(&with_version(v("frame-raw-plain", 2), 46, version)));
        let mut written = v("frame-raw-plain", 2);
        assert!(!FrameHeader::is_later(&written));
        let sum = blake3::hash(&written[..45]);
        written[45..48].copy_from_slice(&sum.as_bytes()[..3]);
        assert_eq!(FrameHeader::is_later(&written), version > 1);
        unknown("pack", version, pack::parse_pack(&v("pack-plain", 8)));
        unknown("salvaged pack", version, pack::salvage(&v("pack-plain", 8)));
        unknown("leaf", version, Leaf::parse(&v("leaf", 2), LEAF_SPAN));
        unknown("node", version, Node::parse(&v("node", 2), 2));
        unknown("config", version, ConfigHead::parse(&v("config", 4)));
        let rotted = Root::open(&v("root", 4), &writer(&identity()), &key);
        assert_eq!(rotted.is_err_and(|why| matches!(why, FormatError::Damaged { .. })), version > 0);
        let mut written = v("root", 4);
        *written.last_mut().unwrap() ^= 1;
        unknown("root", version, Root::open(&written, &writer(&identity()), &key));
        let body = Root { version: version.into(), ..root() }.seal(&plain_writer(), &key, NONCE).unwrap();
        unknown("root's body", version, Root::open(&body, &plain_writer(), &key));
        let (key, body) = (names::check(job()), schema::check::Check { version: version.into(), ..check() });
        let body = body.seal(&plain_writer(), &key, NONCE).unwrap();
        unknown("check's body", version, schema::check::Check::open(&body, &plain_writer(), &key));
        let header = file("message-Flush");
        let at = header.windows(2).position(|w| w == b"\xa1v").unwrap() + 2;
        assert_eq!(header[at], 1);
        if version < 128 {
            let message = Message::from_bytes(with_version(header, at, version).into()).unwrap();
            unknown("message", version, message.read::<Flush>());
            unknown("message", version, message.about());
        }
    }
    unknown("writer key file", 2, WriterKey::from_file("LVKEEP-WRITER-KEY-2-whatever"));
    let flush = Message::new(&About::nothing(), &Flush { session: session_id() });
    assert!(
        flush.read::<Refusal>().unwrap_err().to_string().contains("Flush"),
        "another kind is refused by name"
    );
}

#[test]
fn unknown_features_are_refused_by_name() {
    // `base-1` stands in the head twice: required to read, then required to write.
    let plain = file("config-plain");
    let places: Vec<usize> =
        plain.windows(6).enumerate().filter(|(_, w)| w == b"base-1").map(|(at, _)| at).collect();
    assert_eq!(places.len(), 2);
    let with_feature = |at: usize| {
        let mut bytes = plain.clone();
        bytes[at..at + 6].copy_from_slice(b"warp-9");
        bytes
    };
    let unknown = |action| FormatError::UnknownFeature { feature: "warp-9".to_owned(), action };
    assert_eq!(ConfigHead::parse(&with_feature(places[0])).unwrap_err(), unknown("read"));
    let head = ConfigHead::parse(&with_feature(places[1])).unwrap();
    assert_eq!(head.check_writable().unwrap_err(), unknown("write"));
}

#[test]
fn empty_slices_are_refused() {
    let mut opener = Opener::new(plain_writer().chunk_ids()).unwrap();
    assert!(opener.open(&chunk_id(Domain::Data, 1), b"", &FrameKey::plain()).is_err());
    assert!(FrameHeader::parse(&[0; FRAME_HEADER_LEN - 1]).is_err());
    assert!(
        pack::parse_pack(b"").is_err()
            && pack::salvage(b"").is_err()
            && pack::Trailer::parse(b"", 0).is_err()
    );
    assert!(Leaf::parse(b"", 0).is_err() && Node::parse(b"", 1).is_err() && ConfigHead::parse(b"").is_err());
    assert!(Root::open(b"", &plain_writer(), "").is_err() && WriterKey::read_plain(b"").is_err());
    assert!(Message::from_bytes(Bytes::new()).is_err() && WriterKey::from_file("").is_err());
    assert!(Message { header: Bytes::new(), body: Bytes::new() }.about().is_err());
    assert_eq!(Leaf::parse(&Leaf::new(0, []).unwrap().encode(), 0).unwrap().pieces(), &[]);
    assert!(Node::new(1, vec![]).is_err());
}

#[test]
fn spans_lie_inside_of_a_volume() {
    use schema::limits::VOLUME_MAX;
    use schema::messages::{AskSpan, Span, SpanNow};
    let span = |offset, len| {
        let span = Span { range: Some((offset, len)), fetches: None };
        Message::new(&About::nothing(), &span).read::<Span>().is_ok()
    };
    let ask = |offset| {
        let ask = AskSpan { worker: 1, now: SpanNow::Working { offset, done: 0 } };
        Message::new(&About::nothing(), &ask).read::<AskSpan>().is_ok()
    };
    assert!(span(VOLUME_MAX, VOLUME_MAX) && ask(VOLUME_MAX));
    assert!(!span(VOLUME_MAX + 1, 1) && !span(0, u64::MAX) && !ask(u64::MAX));
}

#[test]
fn messages_about_what_is_unchanged_or_wanted_are_bounded() {
    use schema::limits::{LEAF_RUNS_MAX, UNCHANGED_RANGES_MAX, VOLUME_MAX};
    use schema::messages::{SessionEvent, Wanted};
    let unchanged = |ranges: Vec<(u64, u64)>| {
        let event = SessionEvent::Unchanged { reading: reading(), parent: session_id(), ranges };
        Message::new(&About::nothing(), &event).read::<SessionEvent>()
    };
    unchanged(vec![(VOLUME_MAX, VOLUME_MAX); UNCHANGED_RANGES_MAX]).unwrap();
    for bad in [vec![(0, 1); UNCHANGED_RANGES_MAX + 1], vec![(VOLUME_MAX + 1, 1)], vec![(0, u64::MAX)]] {
        assert!(matches!(unchanged(bad), Err(FormatError::TooLarge { .. })));
    }
    let wanted = |leaves: Vec<(u64, u64)>, forced: Vec<(u64, u64)>, whole: Vec<(u64, u64)>| {
        Message::new(&About::nothing(), &Wanted { over: false, leaves, forced, whole }).read::<Wanted>()
    };
    wanted(vec![(0, VOLUME_MAX)], vec![(7, 1); LEAF_RUNS_MAX], Vec::new()).unwrap();
    for bad in [vec![(0, 1); LEAF_RUNS_MAX + 1], vec![(u64::MAX, 1)]] {
        assert!(matches!(wanted(bad.clone(), Vec::new(), Vec::new()), Err(FormatError::TooLarge { .. })));
        assert!(matches!(wanted(Vec::new(), bad.clone(), Vec::new()), Err(FormatError::TooLarge { .. })));
        assert!(matches!(wanted(Vec::new(), Vec::new(), bad), Err(FormatError::TooLarge { .. })));
    }
}

#[test]
fn checks_of_no_share_are_refused() {
    use schema::check::{Check, Content};
    let (writer, key) = (plain_writer(), names::check(job()));
    for content in [
        Content::Percent { percent: 0, behind: None },
        Content::Percent { percent: 101, behind: None },
        Content::Share { number: 0, of: 3 },
        Content::Share { number: 4, of: 3 },
        Content::Share { number: 1, of: 0 },
    ] {
        let sealed = Check { content, ..check() }.seal(&writer, &key, NONCE).unwrap();
        assert!(Check::open(&sealed, &writer, &key).is_err(), "{content:?}");
    }
}
