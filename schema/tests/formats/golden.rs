//! Golden files: bytes of every stored or sent format, as version 1 wrote them.
//!
//! Reading is tested for all of them; where writing is deterministic, what is written today must be the file. The
//! compressed frames are only read: another zstd may compress otherwise. They are written by
//! `LVKEEP_BLESS=1 cargo test -p schema --test formats bless`, which leaves a version's folder that exists alone
//! unless `LVKEEP_BLESS_OVERWRITE=1` says that the version was never released.

use std::collections::BTreeMap;
use std::fmt::Debug;

use bytes::Bytes;
use schema::chunk::{Codec, FRAME_HEADER_LEN, FrameHeader, Opener};
use schema::config::{ConfigHead, FEATURE_BASE, FEATURE_SEALED_TOMBSTONES, FEATURE_SHARED_KEYS};
use schema::keys::{DataKey, FrameKey, Identity, KEY_PLAIN, KEY_STRUCTURE, SealedKey, WriterKey};
use schema::limits::LEAF_SPAN;
use schema::map::{Leaf, Node};
use schema::messages::Message;
use schema::pack::{self, PACK_HEADER_LEN};
use schema::tombstone::{TOMBSTONE_LEN, Tombstone, Tombstones};
use schema::{Domain, MarkId, Object, facts, names};

use crate::samples::*;
use crate::{files, messages, stream};

/// A golden file as it would be written today.
struct Written {
    name: String,
    bytes: Vec<u8>,
    /// Written again, it has the same bytes.
    deterministic: bool,
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(files::folder().join(name)).unwrap_or_else(|why| panic!("golden file {name}: {why}"))
}

pub fn identity() -> Identity {
    Identity::from_file(std::str::from_utf8(&golden("identity.txt")).unwrap()).unwrap()
}

pub fn sealed_data_key() -> SealedKey {
    SealedKey { id: data_key().id(), sealed: golden("data-key.age").into(), generation: 1 }
}

/// Everything, written with this identity and sealed data key.
fn written(identity: &Identity, sealed: &SealedKey) -> Vec<Written> {
    let (plain, writer) = (plain_writer(), writer(identity));
    let (none, data, structure) = (FrameKey::plain(), data_key().frame_key(), writer.structure_key());
    let raw = |key| frame(Domain::Data, &incompressible(), key);
    let zstd = |key| frame(Domain::Data, &compressible(), key);
    let map = |key| frame(Domain::Structure, &leaf().encode(), key);
    let slot = slot();
    let same: Vec<(&str, Vec<u8>)> = vec![
        ("identity.txt", identity.to_file().as_bytes().to_vec()),
        ("writer-key-plain.txt", plain.to_file().as_bytes().to_vec()),
        ("writer-key.txt", writer.to_file().as_bytes().to_vec()),
        ("writer-key-like-plain.txt", like(&plain).to_file().as_bytes().to_vec()),
        ("writer-key-like.txt", like(&writer).to_file().as_bytes().to_vec()),
        ("frame-raw-plain", raw(&none)),
        ("frame-raw-data", raw(&data)),
        ("frame-structure", map(&structure)),
        ("derived.txt", derived().into_bytes()),
        ("pack-plain", pack(Domain::Data, &[&raw(&none), &raw(&none)], None)),
        ("pack-data", pack(Domain::Data, &[&raw(&data)], Some(sealed))),
        ("pack-structure", pack(Domain::Structure, &[&map(&structure)], None)),
        ("stream", stream::changes()),
        ("stream-snapback", stream::snapback()),
        ("stream-lvmsync", stream::lvmsync_stream()),
        ("stream-replies.txt", stream::replies().into_bytes()),
        ("leaf", leaf().encode()),
        ("node", node().encode()),
        ("config-plain", config_requiring(&BEFORE_TOMBSTONES, &plain)),
        ("config-like-plain", config_requiring(&[FEATURE_BASE, FEATURE_SHARED_KEYS], &like(&plain))),
        ("config-tombstones-plain", config().encode(&plain, NONCE).unwrap()),
        ("config-tombstones-like-plain", config().encode(&like(&plain), NONCE).unwrap()),
        ("tombstone-plain", Tombstone::NEW.seal(&plain, &slot.snapshot(), NONCE).unwrap()),
        ("tombstone", Tombstone::NEW.seal(&writer, &slot.snapshot(), NONCE).unwrap()),
        ("root-plain", root().seal(&plain, &slot.snapshot(), NONCE).unwrap()),
        ("session-plain", session().seal(&plain, &names::session(session_id()), NONCE).unwrap()),
        ("session-undo", undoable_session().seal(&plain, &names::session(session_id()), NONCE).unwrap()),
        ("session-ended", ended_session().seal(&plain, &names::session(session_id()), NONCE).unwrap()),
        ("forgotten-plain", forgotten().seal(&plain, &slot.forgotten(), NONCE).unwrap()),
        ("epoch-plain", epoch().seal(&plain, &names::epoch(3), NONCE).unwrap()),
        ("verdict-plain", verdict().seal(&plain, &names::verdict(3), NONCE).unwrap()),
        ("awaited-plain", awaited().seal(&plain, &names::awaited(3), NONCE).unwrap()),
        ("hold-plain", hold().seal(&plain, &slot.mark(mark_id()), NONCE).unwrap()),
        ("labels-plain", labels().seal(&plain, &slot.labels(3), NONCE).unwrap()),
        ("hold", hold().seal(&writer, &slot.mark(mark_id()), NONCE).unwrap()),
        ("labels", labels().seal(&writer, &slot.labels(3), NONCE).unwrap()),
        ("mark-keys.txt", format!("{}\n{}\n", slot.mark(mark_id()), slot.labels(3)).into_bytes()),
        ("session-unforget", unforgetting().seal(&writer, &names::session(session_id()), NONCE).unwrap()),
        ("damage-plain", damage().seal(&plain, &names::damage(damage_id()), NONCE).unwrap()),
        ("holes-plain", holes().seal(&plain, &slot.holes(), NONCE).unwrap()),
        ("damage", damage().seal(&writer, &names::damage(damage_id()), NONCE).unwrap()),
        ("holes", holes().seal(&writer, &slot.holes(), NONCE).unwrap()),
        ("holes-unrecorded", unrecorded_holes().seal(&writer, &slot.holes(), NONCE).unwrap()),
        ("check-plain", check().seal(&plain, &names::check(job()), NONCE).unwrap()),
        ("check", check().seal(&writer, &names::check(job()), NONCE).unwrap()),
        ("check-ended", ended_check().seal(&writer, &names::check(job()), NONCE).unwrap()),
        ("check-failed", failed_check().seal(&writer, &names::check(job()), NONCE).unwrap()),
        ("check-cancelled", cancelled_check().seal(&writer, &names::check(job()), NONCE).unwrap()),
        ("check-unopened", unopened_check().seal(&writer, &names::check(job()), NONCE).unwrap()),
        ("root", root().seal(&writer, &slot.snapshot(), NONCE).unwrap()),
        ("forgotten", forgotten().seal(&writer, &slot.forgotten(), NONCE).unwrap()),
        ("session", session().seal(&writer, &names::session(session_id()), NONCE).unwrap()),
        ("epoch", epoch().seal(&writer, &names::epoch(3), NONCE).unwrap()),
        ("verdict", verdict().seal(&writer, &names::verdict(3), NONCE).unwrap()),
        ("awaited", awaited().seal(&writer, &names::awaited(3), NONCE).unwrap()),
    ];
    let other: Vec<(&str, Vec<u8>)> = vec![
        ("data-key.age", sealed.sealed.to_vec()),
        ("config", config_requiring(&BEFORE_TOMBSTONES, &writer)),
        ("config-tombstones", config().encode(&writer, NONCE).unwrap()),
        ("frame-zstd-plain", zstd(&none)),
        ("frame-zstd-data", zstd(&data)),
        ("fact-folded.txt", facts::fact("vgcfgbackup", long_text()).unwrap().1.into_bytes()),
    ];
    let written = |(name, bytes): (&str, Vec<u8>), deterministic| {
        let name = name.to_owned();
        Written { name, bytes, deterministic }
    };
    let messages = messages::all().into_iter().map(|sample| {
        let bytes = sample.message.to_bytes().unwrap().to_vec();
        Written { name: sample.name, bytes, deterministic: true }
    });
    let same = same.into_iter().map(|file| written(file, true));
    same.chain(other.into_iter().map(|file| written(file, false))).chain(messages).collect()
}

/// What the first repositories required.
const BEFORE_TOMBSTONES: [&str; 1] = [FEATURE_BASE];

fn config_requiring(features: &[&str], writer: &WriterKey) -> Vec<u8> {
    let features: Vec<String> = features.iter().map(|feature| (*feature).to_owned()).collect();
    config().encode_requiring(&features, &features, writer, NONCE).unwrap()
}

/// What derives from the keys is part of the format too: names, ids, cut points.
fn derived() -> String {
    let writer = plain_writer();
    let ids = writer.chunk_ids();
    let lines = [
        ids.id(Domain::Data, b"x").to_string(),
        ids.id(Domain::Structure, b"x").to_string(),
        format!("{:016x}", writer.cut_seed()),
        slot().snapshot(),
        slot().forgotten(),
        names::pack(pack_id()),
        names::session(session_id()),
        names::key(data_key().id()),
        names::verdict(3),
    ];
    lines.join("\n") + "\n"
}

#[test]
fn what_is_written_today_is_the_golden_file() {
    let written = written(&identity(), &sealed_data_key());
    for file in written.iter().filter(|file| file.deterministic) {
        assert!(
            golden(&file.name) == file.bytes,
            "{} is written otherwise than version 1 wrote it",
            file.name
        );
    }
    let mut names: Vec<&str> = written.iter().map(|file| file.name.as_str()).collect();
    names.sort_unstable();
    let files = files::all();
    assert_eq!(files.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), names);
}

fn opens(name: &str, want: &[u8], key: &FrameKey, codec: Codec) {
    let bytes = golden(name);
    let header = FrameHeader::parse(&bytes).unwrap();
    assert_eq!((header.codec, header.key, header.frame_len()), (codec, key.index(), bytes.len()), "{name}");
    let mut opener = Opener::new(plain_writer().chunk_ids()).unwrap();
    assert_eq!(opener.open(&header.id, &bytes, key).unwrap(), want, "{name}");
}

#[test]
fn frames_open() {
    let (none, data) = (FrameKey::plain(), data_key().frame_key());
    assert_eq!((none.index(), writer(&identity()).structure_key().index()), (KEY_PLAIN, KEY_STRUCTURE));
    opens("frame-raw-plain", &incompressible(), &none, Codec::Raw);
    opens("frame-raw-data", &incompressible(), &data, Codec::Raw);
    opens("frame-zstd-plain", &compressible(), &none, Codec::Zstd);
    opens("frame-zstd-data", &compressible(), &data, Codec::Zstd);
    opens("frame-structure", &leaf().encode(), &writer(&identity()).structure_key(), Codec::Raw);
}

#[test]
fn packs_are_read() {
    for (name, kind, frames, keys) in [
        ("pack-plain", Domain::Data, vec!["frame-raw-plain", "frame-raw-plain"], vec![]),
        ("pack-data", Domain::Data, vec!["frame-raw-data"], vec![sealed_data_key()]),
        ("pack-structure", Domain::Structure, vec!["frame-structure"], vec![]),
    ] {
        let bytes = golden(name);
        let (header, footer) = pack::parse_pack(&bytes).unwrap();
        assert_eq!(
            (header.repo, header.pack, header.kind, header.class),
            (repo(), pack_id(), kind, 0),
            "{name}"
        );
        assert_eq!((&footer.keys, &footer.sessions), (&keys, &vec![session_id()]), "{name}");
        assert_eq!(footer.entries.len(), frames.len(), "{name}");
        let mut at = PACK_HEADER_LEN;
        for (entry, frame) in footer.entries.iter().zip(frames) {
            let frame = golden(frame);
            assert_eq!((entry.offset as usize, entry.len as usize), (at, frame.len()), "{name}");
            assert_eq!(entry.id, FrameHeader::parse(&frame).unwrap().id, "{name}");
            assert_eq!(bytes[at..at + frame.len()], frame, "{name}");
            at += frame.len();
        }
        assert_eq!(
            pack::salvage(&bytes[..at]).unwrap(),
            (header, footer.entries),
            "{name} without its footer"
        );
    }
}

#[test]
fn maps_are_read() {
    assert_eq!(Leaf::parse(&golden("leaf"), LEAF_SPAN).unwrap(), leaf());
    assert_eq!(Node::parse(&golden("node"), 2).unwrap(), node());
}

#[test]
fn folded_facts_are_read() {
    let folded = String::from_utf8(golden("fact-folded.txt")).unwrap();
    let layout = BTreeMap::from([("vgcfgbackup.zst.base64".to_owned(), folded)]);
    assert_eq!(facts::unfolded(&layout), BTreeMap::from([("vgcfgbackup".to_owned(), long_text())]));
}

#[test]
fn configs_are_read() {
    let shared = [FEATURE_BASE, FEATURE_SHARED_KEYS];
    let all = [FEATURE_BASE, FEATURE_SEALED_TOMBSTONES, FEATURE_SHARED_KEYS];
    for (name, want, identity, features) in [
        ("config-plain", plain_writer(), None, &BEFORE_TOMBSTONES[..]),
        ("config-like-plain", like(&plain_writer()), None, &shared),
        ("config", writer(&identity()), Some(&identity()), &BEFORE_TOMBSTONES),
        ("config-tombstones-plain", plain_writer(), None, &all[..2]),
        ("config-tombstones-like-plain", like(&plain_writer()), None, &all),
        ("config-tombstones", writer(&identity()), Some(&identity()), &all[..2]),
    ] {
        let features: Vec<String> = features.iter().map(|feature| (*feature).to_owned()).collect();
        let head = ConfigHead::parse(&golden(name)).unwrap();
        assert_eq!((head.repo, head.encrypted), (want.repo(), identity.is_some()), "{name}");
        assert_eq!((&head.read_features, &head.write_features), (&features, &features), "{name}");
        let is_sealed = head.tombstones() == Tombstones::Sealed;
        assert_eq!(is_sealed, name.contains("tombstones"), "{name}");
        head.check_writable().unwrap();
        let key = head.writer_key(identity).unwrap();
        assert_eq!(key, want, "{name}");
        assert_eq!(head.open(&key).unwrap(), config(), "{name}");
    }
}

#[test]
fn objects_open() {
    fn opens<T: Object + PartialEq + Debug>(name: &str, writer: &WriterKey, key: &str, want: &T) {
        assert_eq!(&T::open(&golden(name), writer, key).unwrap(), want, "{name}");
    }
    let (writer, slot) = (writer(&identity()), slot());
    for (writer, plain) in [(&writer, ""), (&plain_writer(), "-plain")] {
        opens(&format!("root{plain}"), writer, &slot.snapshot(), &root());
        opens(&format!("forgotten{plain}"), writer, &slot.forgotten(), &forgotten());
        opens(&format!("hold{plain}"), writer, &slot.mark(mark_id()), &hold());
        opens(&format!("labels{plain}"), writer, &slot.labels(3), &labels());
        opens(&format!("session{plain}"), writer, &names::session(session_id()), &session());
        opens(&format!("epoch{plain}"), writer, &names::epoch(3), &epoch());
        opens(&format!("verdict{plain}"), writer, &names::verdict(3), &verdict());
        opens(&format!("awaited{plain}"), writer, &names::awaited(3), &awaited());
        opens(&format!("damage{plain}"), writer, &names::damage(damage_id()), &damage());
        opens(&format!("holes{plain}"), writer, &slot.holes(), &holes());
        opens(&format!("check{plain}"), writer, &names::check(job()), &check());
        opens(&format!("tombstone{plain}"), writer, &slot.snapshot(), &Tombstone::NEW);
        assert_eq!(golden(&format!("tombstone{plain}")).len() as u64, TOMBSTONE_LEN);
    }
    opens("holes-unrecorded", &writer, &slot.holes(), &unrecorded_holes());
    opens("session-undo", &plain_writer(), &names::session(session_id()), &undoable_session());
    opens("session-ended", &plain_writer(), &names::session(session_id()), &ended_session());
    opens("check-ended", &writer, &names::check(job()), &ended_check());
    opens("check-failed", &writer, &names::check(job()), &failed_check());
    opens("check-cancelled", &writer, &names::check(job()), &cancelled_check());
    opens("check-unopened", &writer, &names::check(job()), &unopened_check());
    opens("session-unforget", &writer, &names::session(session_id()), &unforgetting());
    assert_eq!(root().check(slot).unwrap(), root());
    assert_eq!(hold().check(slot, mark_id()).unwrap(), hold());
    let keys = String::from_utf8(golden("mark-keys.txt")).unwrap();
    let ids = [mark_id(), MarkId::from_parts(3, 0)];
    assert!(keys.lines().map(|key| names::parse_mark(key).unwrap()).eq(ids.map(|id| (slot, id))));
}

#[test]
fn keys_are_read() {
    let text = |name| String::from_utf8(golden(name)).unwrap();
    assert_eq!(WriterKey::from_file(&text("writer-key-plain.txt")).unwrap(), plain_writer());
    let writer = writer(&identity());
    assert_eq!(WriterKey::from_file(&text("writer-key.txt")).unwrap(), writer);
    assert_eq!((writer.recipients(), writer.generation()), (&identity().recipients()[..], 1));
    assert_eq!(WriterKey::from_file(&text("writer-key-like-plain.txt")).unwrap(), like(&plain_writer()));
    assert_eq!(WriterKey::from_file(&text("writer-key-like.txt")).unwrap(), like(&writer));
    let opened = DataKey::unseal(repo(), &sealed_data_key(), &identity()).unwrap();
    assert_eq!(opened.id(), data_key().id());
    opens("frame-raw-data", &incompressible(), &opened.frame_key(), Codec::Raw);
}

#[test]
fn messages_are_read() {
    for sample in messages::all() {
        let message = Message::from_bytes(Bytes::from(golden(&sample.name))).unwrap();
        (sample.check)(&message);
    }
}

#[test]
fn a_frames_header_is_where_it_says() {
    assert_eq!(golden("frame-raw-plain")[FRAME_HEADER_LEN..], incompressible());
}

/// Whether to write the files of a version, or why not.
fn may_bless(asked: bool, exists: bool, overwrite: bool) -> Result<bool, &'static str> {
    match (asked, exists, overwrite) {
        (false, _, _) => Ok(false),
        (true, true, false) => Err("this version has golden files: a changed format is a new version"),
        (true, _, _) => Ok(true),
    }
}

#[test]
fn bless() {
    for (asked, exists, overwrite, want) in [
        (false, false, true, Some(false)),
        (true, true, false, None),
        (true, true, true, Some(true)),
        (true, false, false, Some(true)),
    ] {
        assert_eq!(may_bless(asked, exists, overwrite).ok(), want);
    }
    let set = |name| std::env::var(name).is_ok_and(|value| value == "1");
    if !may_bless(set("LVKEEP_BLESS"), files::folder().exists(), set("LVKEEP_BLESS_OVERWRITE")).unwrap() {
        return;
    }
    std::fs::create_dir_all(files::folder()).unwrap();
    // What is random stays as it was, where it is still good.
    let identity = std::fs::read_to_string(files::folder().join("identity.txt"))
        .ok()
        .and_then(|text| Identity::from_file(&text).ok())
        .unwrap_or_else(Identity::generate);
    let sealed = std::fs::read(files::folder().join("data-key.age"))
        .map(|sealed| SealedKey { id: data_key().id(), sealed: sealed.into(), generation: 1 })
        .ok()
        .filter(|sealed| DataKey::unseal(repo(), sealed, &identity).is_ok())
        .unwrap_or_else(|| data_key().seal(&writer(&identity)).unwrap());
    for file in written(&identity, &sealed) {
        std::fs::write(files::folder().join(file.name), file.bytes).unwrap();
    }
}
