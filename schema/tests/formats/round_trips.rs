//! Whatever is written reads back as it was, for any values within the limits.

use std::collections::HashMap;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use schema::check::{self, Check, Content};
use schema::chunk::{FrameHeader, Opener, Sealer, split_frames};
use schema::keys::{FrameKey, SealedKey, WriterKey};
use schema::limits::{CHUNK_MAX, LEAF_SPAN, NODE_FANOUT, STRUCTURE_MAX};
use schema::map::{Geometry, Leaf, Node, build_nodes};
use schema::mark::{Mark, Says};
use schema::messages::{
    About, AskSpan, Extent, FileIdentity, Located, Mapped, Message, Payload, SessionEvent, SharedPlace,
    SharedTarget, Span, SpanNow, Zeroing,
};
use schema::pack::{self, PackBuilder, PackHeader, Trailer};
use schema::{
    ChunkId, Domain, FormatError, JobId, KeyId, MarkId, Object, PackId, RepoId, SessionId, VolumeKey, names,
};

use crate::arbitrary::*;
use crate::golden::identity;
use crate::samples::{self, bytes, data_key, frame, plain_writer, writer};

fn keys() -> [FrameKey; 3] {
    [FrameKey::plain(), data_key().frame_key(), writer(&identity()).structure_key()]
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn frames(level in 1..=6i32, chunks in vec(content(8192), 1..6)) {
        let ids = plain_writer().chunk_ids();
        let (mut sealer, mut opener) = (Sealer::new(level).unwrap(), Opener::new(ids.clone()).unwrap());
        for key in keys() {
            let mut run = Vec::new();
            for chunk in &chunks {
                sealer.seal(ids.id(Domain::Data, chunk), chunk, &key, &mut run).unwrap();
            }
            let frames = split_frames(&run.into(), chunks.len()).unwrap();
            prop_assert_eq!(frames.len(), chunks.len());
            for ((header, frame), chunk) in frames.iter().zip(&chunks) {
                prop_assert_eq!(header, &FrameHeader::parse(frame).unwrap());
                prop_assert_eq!(opener.open(&header.id, frame, &key).unwrap(), &chunk[..]);
            }
        }
    }

    #[test]
    fn packs(chunks in vec(content(2000), 0..8), sessions in vec(session_id(), 1..4)) {
        let id = samples::pack_id();
        let header = PackHeader { repo: samples::repo(), pack: id, kind: Domain::Data, class: 0 };
        let mut builder = PackBuilder::new(header);
        let frames: Vec<_> = chunks.iter().map(|chunk| frame(Domain::Data, chunk, &FrameKey::plain())).collect();
        for (i, frame) in frames.iter().enumerate() {
            let parsed = FrameHeader::parse(frame).unwrap();
            builder.push(&[parsed], Bytes::copy_from_slice(frame), sessions[i % sessions.len()]).unwrap();
        }
        let key = SealedKey { id: KeyId::from_bytes(bytes(3)), sealed: Bytes::from_static(b"x"), generation: 2 };
        builder.add_key(&key);
        let (parts, written) = builder.finish();
        let whole = parts.concat();
        let (found, footer) = pack::parse_pack(&whole).unwrap();
        prop_assert_eq!((&found, &footer), (&header, &written));
        for (entry, frame) in footer.entries.iter().zip(&frames) {
            prop_assert_eq!(&whole[entry.offset as usize..][..entry.len as usize], &frame[..]);
        }
        prop_assert_eq!(pack::salvage(&whole).unwrap().1, footer.entries);
        let size = whole.len() as u64;
        let trailer = Trailer::parse(&whole[whole.len() - pack::TRAILER_LEN..], size).unwrap();
        let suffix = &whole[whole.len() - trailer.suffix_len() as usize..];
        prop_assert_eq!(trailer.footer(&whole[..pack::PACK_HEADER_LEN], suffix, size).unwrap(), (header, written));
    }

    #[test]
    fn leaves((span, leaf) in leaf(), start in 0u64..1 << 40) {
        prop_assert_eq!(&Leaf::parse(&leaf.encode(), span).unwrap(), &leaf);
        prop_assert!(Leaf::parse(&leaf.encode(), span + 1).is_err());
        let end = leaf.located(start).last().map_or(start, |(at, piece)| at + u64::from(piece.len));
        prop_assert_eq!(end, start + span);
    }

    #[test]
    fn equal_content_has_equal_leaves((span, pieces) in pieces(), cut in any::<prop::sample::Index>()) {
        let whole = Leaf::new(span, pieces.clone()).unwrap();
        let mut split = Vec::new();
        for (i, piece) in pieces.iter().enumerate() {
            let at = if cut.index(pieces.len()) == i { piece.len / 2 } else { 0 };
            match piece.content {
                schema::map::Content::Zero if at > 0 => {
                    split.push(schema::map::Piece { len: at, ..*piece });
                    split.push(schema::map::Piece { len: piece.len - at, ..*piece });
                }
                _ => split.push(*piece),
            }
        }
        prop_assert_eq!(Leaf::new(span, split).unwrap().encode(), whole.encode());
    }

    #[test]
    fn nodes(node in node()) {
        prop_assert_eq!(&Node::parse(&node.encode(), node.level()).unwrap(), &node);
        prop_assert!(Node::parse(&node.encode(), node.level() + 1).is_err());
    }

    #[test]
    fn maps(row in row()) {
        let mut stored = HashMap::new();
        let top = build_nodes(row.clone(), |node| {
            let bytes = node.encode();
            let id = plain_writer().chunk_ids().id(Domain::Structure, &bytes);
            stored.insert(id, bytes);
            Ok(id)
        })
        .unwrap();
        let geometry = Geometry::new(row.len() as u64 * LEAF_SPAN).unwrap();
        prop_assert_eq!(geometry.leaves(), row.len() as u64);
        let mut walked = vec![top];
        for level in (1..=geometry.depth()).rev() {
            let width = row.len().div_ceil(NODE_FANOUT.pow(u32::from(level) - 1));
            let children = |id: &Option<ChunkId>| match id {
                None => vec![None; NODE_FANOUT],
                Some(id) => Node::parse(&stored[id], level).unwrap().children().to_vec(),
            };
            walked = walked.iter().flat_map(children).collect();
            walked.truncate(width);
        }
        walked.truncate(row.len());
        prop_assert_eq!(walked, row);
    }

    #[test]
    fn roots(root in root(), nonce in any::<[u8; 12]>()) {
        for writer in [plain_writer(), writer(&identity())] {
            let key = root.slot.snapshot();
            let sealed = root.seal(&writer, &key, nonce).unwrap();
            let opened = schema::root::Root::open(&sealed, &writer, &key).unwrap();
            prop_assert_eq!(&opened, &root);
            prop_assert_eq!(opened.check(root.slot).unwrap(), root.clone());
        }
    }

    #[test]
    fn marks(slot in slot(), number in 0..1u64 << 48, tags in vec(".{0,40}", 0..8), note in proptest::option::of(".{0,99}"),
             nonce in any::<[u8; 12]>()) {
        let says = [Says::Hold { note: note.clone() }, Says::Labels { number, tags, note }];
        for mark in says.map(|says| Mark { slot, says, ..samples::hold() }) {
            let id = match mark.says {
                Says::Hold { .. } => samples::mark_id(),
                Says::Labels { number, .. } => MarkId::from_parts(number, 0),
            };
            let (writer, key) = (writer(&identity()), slot.mark(id));
            let opened = Mark::open(&mark.seal(&writer, &key, nonce).unwrap(), &writer, &key).unwrap();
            prop_assert_eq!(opened.check(slot, id).unwrap(), mark);
        }
    }

    #[test]
    fn checks(job in job_id(), behind in proptest::option::of(pack_id()), percent in 1..=100u8, of in 1..9u64,
              found in vec((".{0,40}", ".{0,60}"), 0..9), ranges in vec(any::<(u64, u64)>(), 0..9), nonce in any::<[u8; 12]>()) {
        let found: Vec<_> = found.into_iter().map(|(key, why)| check::Finding { key, why }).collect();
        let (share, rolling) = (Content::Share { number: of, of }, Content::Percent { percent, behind });
        for content in [Content::None, Content::All, share, rolling] {
            let mut checked = Check { job, content, ..samples::ended_check() };
            checked.reached.found = found.clone();
            checked.reached.unopened = of - 1;
            checked.reached.objects = (of > 2).then_some(of);
            checked.reached.bytes_read = (of > 3).then_some(of);
            (checked.reached.unopened_in, checked.reached.recorded) = (of / 2, of - 1);
            if let Some(check::End::Checked(report)) = &mut checked.end {
                (report.found, report.unopened, report.unopened_in) = (found.clone(), of - 1, of / 2);
                report.snapshots_damaged[0].lost = ranges.clone();
            }
            let (writer, key) = (writer(&identity()), names::check(job));
            let sealed = checked.seal(&writer, &key, nonce).unwrap();
            prop_assert_eq!(Check::open(&sealed, &writer, &key).unwrap(), checked);
            prop_assert_eq!(names::parse_check(&key).unwrap(), job);
        }
    }

    #[test]
    fn messages(session in session_id(), reading in reading(), offset in 0..=schema::limits::VOLUME_MAX,
                lens in vec((1..1u32 << 11, any::<bool>()), 0..400), body in vec(any::<u8>(), 0..2000),
                ids in vec((chunk_id(Domain::Data), pack_id()), 1..8), volume in ".{0,60}") {
        let about = About::session(session, volume);
        let extent = Extent { session, reading, offset, pieces: lens.clone(), force: false };
        let message = Message::with_body(&about, &extent, body.clone().into());
        let read = Message::from_bytes(message.to_bytes().unwrap()).unwrap();
        prop_assert_eq!(&read, &message);
        prop_assert_eq!((read.read::<Extent>().unwrap(), read.about().unwrap()), (extent, about.clone()));
        prop_assert!(read.read::<Located>().is_err());

        let mapped = |(i, (len, zero)): (usize, &(u32, bool))| match (zero, ids[i % ids.len()]) {
            (true, _) => (*len, Mapped::Zero),
            (false, (id, pack)) if i % 2 == 0 => (*len, Mapped::Known(id, pack)),
            (false, (id, _)) => (*len, Mapped::Pending(id)),
        };
        let pieces = lens.iter().enumerate().map(mapped).collect();
        let event = SessionEvent::Mapped { reading, offset, pieces, stored: 1, new: 2, chunks_new: 3 };
        let message = Message::from_bytes(Message::new(&about, &event).to_bytes().unwrap()).unwrap();
        prop_assert_eq!(message.read::<SessionEvent>().unwrap(), event);
    }

    #[test]
    fn spans(worker: u64, done: u64, numbers: [u64; 4], slot in slot(), is_zero: bool, path in ".{0,60}",
             offset in 0..=schema::limits::VOLUME_MAX, len in 0..=schema::limits::VOLUME_MAX, fetches: Option<u32>) {
        fn same<T: Payload + PartialEq + std::fmt::Debug>(payload: T) {
            let message = Message::new(&About::nothing(), &payload).to_bytes().unwrap();
            assert_eq!(Message::from_bytes(message).unwrap().read::<T>().unwrap(), payload);
        }
        let [device, inode, special, size] = numbers;
        let file = FileIdentity { boot: path.clone(), device, inode, special };
        let zeroing = Zeroing::Thick { watched: is_zero };
        let place = is_zero.then(|| SharedPlace { name: path.clone(), size, zeroing });
        same(SharedTarget { slot, path, file, place, is_zero, compares: !is_zero });
        same(AskSpan { worker, now: SpanNow::Working { offset, done } });
        same(Span { range: Some((offset, len)), fetches });
    }

    #[test]
    fn texts_of_ids(raw in any::<[u8; 16]>(), hash in any::<[u8; 32]>(), slot in slot(), job in job_id(), n: u64) {
        fn same<T: std::str::FromStr<Err = FormatError> + ToString + PartialEq + std::fmt::Debug>(id: T) {
            let text = id.to_string();
            assert_eq!(text.parse::<T>().unwrap(), id);
            for other in [text.to_lowercase(), text.to_uppercase(), format!("{text} "), text[1..].to_owned()] {
                assert_eq!(other.parse::<T>().is_ok(), other == text, "{other:?}");
            }
        }
        let (repo, key, volume) = (RepoId::from_bytes(raw), KeyId::from_bytes(raw), VolumeKey::from_bytes(raw));
        let mut id = [1; 33];
        id[1..].copy_from_slice(&hash);
        same(repo);
        same(key);
        same(volume);
        same(job);
        same(SessionId::from_bytes(raw));
        same(PackId::from_bytes(raw));
        same(ChunkId::parse(&id).unwrap());
        prop_assert_eq!(names::Slot::parse_key(&slot.snapshot()).unwrap(), slot);
        prop_assert_eq!(names::Slot::parse_key(&slot.forgotten()).unwrap(), slot);
        prop_assert_eq!(names::parse_pack(&names::pack(PackId::from_bytes(raw))).unwrap(), PackId::from_bytes(raw));
        let mark = MarkId::from_bytes(raw);
        same(mark);
        prop_assert_eq!(names::parse_mark(&slot.mark(mark)).unwrap(), (slot, mark));
        prop_assert_eq!(names::parse_epoch(&names::epoch(n)).unwrap(), (n, false));
        prop_assert_eq!(names::parse_epoch(&names::verdict(n)).unwrap(), (n, true));
    }
}

#[test]
fn names_have_one_spelling() {
    // The hexadecimal parser of the standard library reads a sign, that of ULIDs drops high bits.
    assert!("+1".repeat(16).parse::<RepoId>().is_err());
    assert!("8ZZZZZZZZZZZZZZZZZZZZZZZZZ".parse::<PackId>().is_err());
    assert!("7ZZZZZZZZZZZZZZZZZZZZZZZZZ".parse::<PackId>().is_ok());
    for bad in [
        "",
        "packs",
        "packs/",
        "packs/00/",
        "packs/00/7ZZZZZZZZZZZZZZZZZZZZZZZZZ",
        "xpacks/ff/7ZZZZZZZZZZZZZZZZZZZZZZZZZ",
    ] {
        assert!(names::parse_pack(bad).is_err(), "{bad:?}");
    }
    for bad in [
        "gc/1",
        "gc/+0000000000000000001",
        "gc/99999999999999999999",
        "gc/00000000000000000001.verdict.verdict",
        "gc/00000000000000000001.sessions",
    ] {
        assert!(names::parse_epoch(bad).is_err(), "{bad:?}");
    }
    for bad in ["", "snapshots", "snapshots/", "snapshots//", "snapshots/x/y"] {
        assert!(names::Slot::parse_key(bad).is_err(), "{bad:?}");
    }
}

/// The limits themselves are allowed, one more is not.
#[test]
fn limits_of_chunks() {
    let ids = plain_writer().chunk_ids();
    let (mut sealer, mut opener) = (Sealer::new(3).unwrap(), Opener::new(ids.clone()).unwrap());
    for (domain, limit) in [(Domain::Data, CHUNK_MAX), (Domain::Structure, STRUCTURE_MAX)] {
        for key in keys() {
            let chunk: Vec<u8> = (0..limit as u64 / 8).flat_map(|i| (i * i).to_le_bytes()).collect();
            let (id, mut out) = (ids.id(domain, &chunk), Vec::new());
            sealer.seal(id, &chunk, &key, &mut out).unwrap();
            assert_eq!(opener.open(&id, &out, &key).unwrap(), chunk);
            let longer = [&chunk[..], b"!"].concat();
            let refused = sealer.seal(ids.id(domain, &longer), &longer, &key, &mut Vec::new());
            assert!(matches!(refused, Err(FormatError::TooLarge { .. })), "{refused:?}");
            let refused = sealer.seal(ids.id(domain, b""), b"", &key, &mut Vec::new());
            assert!(matches!(refused, Err(FormatError::Invalid { .. })), "{refused:?}");
        }
    }
    assert!([0, 20, -1].iter().all(|level| Sealer::new(*level).is_err()));
}

/// Two builds of zstd may compress one leaf to the same length and different bytes; under the structure key, which
/// they share, that would repeat a nonce.
#[test]
fn what_the_structure_key_seals_does_not_depend_on_the_compressor() {
    let key = writer(&identity()).structure_key();
    let chunk = b"leaf ".repeat(1000);
    let id = plain_writer().chunk_ids().id(Domain::Structure, &chunk);
    let sealed = |level| {
        let mut out = Vec::new();
        Sealer::new(level).unwrap().seal(id, &chunk, &key, &mut out).unwrap();
        out
    };
    assert_eq!(sealed(1), sealed(19));
    assert_eq!(FrameHeader::parse(&sealed(1)).unwrap().codec, schema::chunk::Codec::Raw);
}

#[test]
fn geometry_at_its_edges() {
    let depth = |size| Geometry::new(size).map(|g| (g.leaves(), g.depth()));
    let wide = NODE_FANOUT as u64 * LEAF_SPAN;
    assert_eq!(depth(0), Ok((0, 0)));
    assert_eq!(depth(1), Ok((1, 0)));
    assert_eq!(depth(LEAF_SPAN), Ok((1, 0)));
    assert_eq!(depth(LEAF_SPAN + 1), Ok((2, 1)));
    assert_eq!(depth(wide), Ok((1024, 1)));
    assert_eq!(depth(wide + 1), Ok((1025, 2)));
    assert_eq!(depth(schema::limits::VOLUME_MAX), Ok((1 << 36, 4)));
    assert!(depth(schema::limits::VOLUME_MAX + 1).is_err());
    let geometry = Geometry::new(LEAF_SPAN + 5).unwrap();
    assert_eq!(geometry.leaf_range(1), LEAF_SPAN..LEAF_SPAN + 5);
    assert_eq!(geometry.leaf_range(u64::MAX), LEAF_SPAN + 5..LEAF_SPAN + 5);
    assert_eq!(build_nodes(Vec::new(), |_| unreachable!()), Ok(None));
    assert_eq!(build_nodes(vec![None; 3000], |_| unreachable!()), Ok(None));
}

#[test]
fn repositories_that_share_keys_open_each_others_data_keys_and_no_objects() {
    let first = writer(&identity());
    let second = samples::like(&first);
    let third = second.like(RepoId::from_bytes(bytes(0x12)));
    let stranger = WriterKey::new(second.repo(), identity().recipients(), &bytes(0x21)).unwrap();
    assert_eq!((third.family(), third.recipients()), (first.repo(), first.recipients()));
    for key in [&first, &second, &third] {
        assert!(key.shares_keys(&first) && first.shares_keys(key) && !key.shares_keys(&stranger));
        assert_eq!(key.chunk_ids().id(Domain::Data, b"x"), first.chunk_ids().id(Domain::Data, b"x"));
        let sealed = data_key().seal(key).unwrap();
        let opened = schema::keys::DataKey::unseal(third.family(), &sealed, &identity()).unwrap();
        assert_eq!(opened.id(), data_key().id());
        assert_eq!(&WriterKey::from_file(&key.to_file()).unwrap(), key);
        assert_eq!(&WriterKey::unseal(&key.seal().unwrap(), &identity()).unwrap(), key);
    }
    let slot = samples::slot();
    let sealed = samples::root().seal(&first, &slot.snapshot(), [0; 12]).unwrap();
    assert!(schema::root::Root::open(&sealed, &second, &slot.snapshot()).is_err());
    let name = "0".repeat(26);
    for (text, good) in [
        (format!("{}/{name}", first.repo()), true),
        (first.repo().to_string(), false),
        (format!("{}/", first.repo()), false),
        (format!("x/{name}"), false),
    ] {
        let parsed = text.parse::<schema::facts::Origin>();
        assert_eq!(parsed.map(|origin| origin.to_string()).ok(), good.then_some(text));
    }
}

#[test]
fn keys_with_one_more_recipient_and_with_too_many() {
    let key = writer(&identity());
    let other = schema::keys::Identity::generate();
    let more = key.with_recipient(&other.recipients()[0]).unwrap();
    assert_eq!((more.generation(), more.recipients().len()), (2, 2));
    assert_eq!(more.with_recipient(&other.recipients()[0]).unwrap(), more);
    assert_eq!(WriterKey::from_file(&more.to_file()).unwrap(), more);
    let sealed = data_key().seal(&more).unwrap();
    for identity in [identity(), other] {
        let opened = schema::keys::DataKey::unseal(samples::repo(), &sealed, &identity).unwrap();
        assert_eq!(opened.id(), data_key().id());
    }
    let stranger = schema::keys::Identity::generate();
    assert!(matches!(
        WriterKey::unseal(&more.seal().unwrap(), &stranger),
        Err(FormatError::CannotOpen { .. })
    ));
    assert!(plain_writer().with_recipient(&key.recipients()[0]).is_err());
    let crowd: Vec<_> = (0..64).map(|_| schema::keys::Identity::generate().recipients().remove(0)).collect();
    let full = WriterKey::new(samples::repo(), crowd, &bytes(1)).unwrap();
    assert_eq!(WriterKey::from_file(&full.to_file()).unwrap(), full);
    schema::config::ConfigHead::parse(&samples::config().encode(&full, [0; 12]).unwrap()).unwrap();
    assert!(matches!(full.with_recipient(&key.recipients()[0]), Err(FormatError::TooLarge { .. })));
    assert!(JobId::from_parts(u64::MAX, u128::MAX).to_string().parse::<JobId>().is_ok());
}

/// A frame that is refused leaves the pack as it was.
#[test]
fn a_refused_push_changes_nothing() {
    let header = PackHeader { repo: samples::repo(), pack: samples::pack_id(), kind: Domain::Data, class: 0 };
    let mut builder = PackBuilder::new(header);
    let data = frame(Domain::Data, b"data", &FrameKey::plain());
    let structure = frame(Domain::Structure, b"structure", &FrameKey::plain());
    let headers = [&data, &structure].map(|frame| FrameHeader::parse(frame).unwrap());
    let both = Bytes::from([&data[..], &structure].concat());
    builder.push(&headers, both, samples::session_id()).unwrap_err();
    builder.push(&headers[..1], Bytes::from_static(b"short"), samples::session_id()).unwrap_err();
    assert!(builder.is_empty());
    builder.push(&headers[..1], data.into(), samples::session_id()).unwrap();
    let whole = builder.finish().0.concat();
    assert_eq!(pack::parse_pack(&whole).unwrap().1.entries.len(), 1);
}
