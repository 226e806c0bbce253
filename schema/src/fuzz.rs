//! One entry point per parser of stored or received bytes, for `cargo fuzz` and for property tests.
//!
//! None may panic, hang, or allocate more than a small multiple of its input (`frame_open`: the longest chunk
//! besides). Results are dropped on purpose. For `cargo fuzz`, make a crate outside of the workspace (`cargo fuzz
//! init`), let it depend on this one, and give each target one line:
//! `fuzz_target!(|data: &[u8]| schema::fuzz::TARGETS.iter().for_each(|(_, parse)| parse(data)));`
//! The files in `tests/golden` are a good corpus.

use std::sync::OnceLock;

use bytes::Bytes;

use crate::keys::{DataKey, Identity, SealedKey, WriterKey};
use crate::messages::{self, Message, Payload};
use crate::{
    KeyId, Object, RepoId, check, chunk, config, damage, epoch, lvmsync, map, mark, names, pack, root,
    session, stream, tombstone,
};

/// A name and a parser.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("frame_header", |b| drop(chunk::FrameHeader::parse(b))),
    ("frames", |b| drop(chunk::split_frames(&Bytes::copy_from_slice(b), 4096))),
    ("pack", |b| drop(pack::parse_pack(b))),
    ("pack_salvage", |b| drop(pack::salvage(b))),
    ("frame_open", chunk::fuzz_open),
    ("pack_trailer", |b| drop(pack::Trailer::parse(b, b.len() as u64))),
    ("pack_footer", pack::fuzz_footer),
    ("leaf", |b| drop(map::Leaf::parse(b, crate::limits::LEAF_SPAN))),
    ("node", |b| drop(map::Node::parse(b, 1))),
    ("config", |b| drop(config::ConfigHead::parse(b).and_then(|head| head.writer_key(None)))),
    ("root", object::<root::Root>),
    ("forgotten", object::<root::Forgotten>),
    ("mark", object::<mark::Mark>),
    ("session", object::<session::Session>),
    ("epoch", object::<epoch::Epoch>),
    ("verdict", object::<epoch::Verdict>),
    ("awaited", object::<epoch::Awaited>),
    ("damage", object::<damage::Damage>),
    ("holes", object::<damage::Holes>),
    ("check", object::<check::Check>),
    ("tombstone", object::<tombstone::Tombstone>),
    ("message", message),
    ("writer_key_file", |b| drop(WriterKey::from_file(&String::from_utf8_lossy(b)))),
    ("writer_key", |b| drop(WriterKey::read_plain(b))),
    ("sealed_key", sealed_key),
    ("identity_file", |b| drop(Identity::from_file(&String::from_utf8_lossy(b)))),
    ("stream", |b| drop(stream::fuzz_decode(b))),
    ("stream_reply", |b| drop(stream::Reply::parse(&String::from_utf8_lossy(b)))),
    ("lvmsync", |b| drop(lvmsync::fuzz_decode(b))),
    ("names", |b| {
        let text = String::from_utf8_lossy(b);
        drop(names::Slot::parse_key(&text));
        drop(names::parse_pack(&text));
        drop(names::parse_epoch(&text));
        drop(names::parse_session(&text));
        drop(names::parse_mark(&text));
        drop(names::parse_damage(&text));
        drop(names::parse_check(&text));
    }),
];

/// Both as an envelope and as the body inside one.
fn object<T: Object>(bytes: &[u8]) {
    if let Ok(writer) = WriterKey::new(RepoId::from_bytes([0; 16]), Vec::new(), &[7; 64]) {
        drop(T::open(bytes, &writer, "fuzz"));
    }
    drop(T::decode(bytes));
}

fn sealed_key(bytes: &[u8]) {
    static IDENTITY: OnceLock<Identity> = OnceLock::new();
    let key =
        SealedKey { id: KeyId::from_bytes([7; 16]), sealed: Bytes::copy_from_slice(bytes), generation: 1 };
    drop(DataKey::unseal(RepoId::from_bytes([0; 16]), &key, IDENTITY.get_or_init(Identity::generate)));
}

fn message(bytes: &[u8]) {
    fn body<T: Payload>(message: &Message) {
        drop(message.read::<T>());
    }
    let Ok(message) = Message::from_bytes(Bytes::copy_from_slice(bytes)) else { return };
    drop(message.about());
    for read in [
        body::<messages::BackupJob>,
        body::<messages::RestoreJob>,
        body::<messages::JobDone>,
        body::<messages::Progress>,
        body::<messages::ReadVolume>,
        body::<messages::CloseReading>,
        body::<messages::Extent>,
        body::<messages::SessionEvent>,
        body::<messages::NewChunks>,
        body::<messages::PackStored>,
        body::<messages::Ask>,
        body::<messages::Answers>,
        body::<messages::Locate>,
        body::<messages::Located>,
        body::<messages::Seek>,
        body::<messages::Sought>,
        body::<messages::Refusal>,
        body::<messages::AskParentLeaf>,
        body::<messages::ParentLeaf>,
        body::<messages::AskWanted>,
        body::<messages::Wanted>,
        body::<messages::TargetShared>,
        body::<messages::AskTarget>,
        body::<messages::SharedTarget>,
        body::<messages::AskSpan>,
        body::<messages::Span>,
        body::<messages::Flush>,
        body::<messages::Cancel>,
        body::<messages::StopRestore>,
        body::<messages::RestoreWaits>,
        body::<messages::CheckJob>,
        body::<messages::WhoIsThere>,
        body::<messages::AgentIsThere>,
    ] {
        read(&message);
    }
}
