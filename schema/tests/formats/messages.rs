//! One message of every kind, and of every variant that has fields of its own.

use std::fmt::Debug;

use bytes::Bytes;
use schema::keys::SealedKey;
use schema::messages::*;
use schema::pack::PackEntry;
use schema::{Domain, KeyId};

use crate::samples::*;

/// A message and the check that one read back is the same.
pub struct Sample {
    pub name: String,
    pub message: Message,
    pub check: Box<dyn Fn(&Message)>,
}

fn sample<T: Payload + PartialEq + Debug + 'static>(variant: &str, payload: T, body: &[u8]) -> Sample {
    let about = About::session(session_id(), VOLUME);
    let body = Bytes::copy_from_slice(body);
    let message = Message::with_body(&about, &payload, body.clone());
    let check = move |read: &Message| {
        assert_eq!(read.read::<T>().unwrap(), payload);
        assert_eq!(read.kind().unwrap(), T::NAME);
        assert_eq!((read.about().unwrap(), &read.body), (about.clone(), &body));
    };
    Sample { name: format!("message-{}{variant}", T::NAME), message, check: Box::new(check) }
}

pub fn all() -> Vec<Sample> {
    [jobs(), readings(), session_events(), index(), sharing(), others()].into_iter().flatten().collect()
}

fn jobs() -> Vec<Sample> {
    let done = |outcome| JobDone { job: job(), outcome };
    let backup = BackupJob {
        job: job(),
        volume: VOLUME.into(),
        host: "host-a".into(),
        source: "vg0/root".into(),
        tags: vec!["nightly".into()],
        allow_changes: true,
        group: Some(Group {
            run: job(),
            name: "web".into(),
            members: vec!["vg0/web".into(), "vg0/web-data".into()],
        }),
        plain: false,
    };
    let plain = BackupJob { group: None, plain: true, ..backup.clone() };
    let restore = |preparation| {
        let target = "/dev/vg1/back".into();
        RestoreJob {
            job: job(),
            slot: slot(),
            target,
            force: true,
            preparation,
            full: false,
            untracked: false,
            donor: None,
            fetches: None,
            command: None,
            more: None,
        }
    };
    let prepared = Preparation {
        create: Some(NewVolume::Thin { pool: "pool".into() }),
        safety: Some(Safety { size: Some(1 << 30) }),
        drop_baseline: true,
    };
    let restored = |kept, compared, tracked, audited| JobOutcome::Restored {
        written: 1,
        kept,
        compared,
        tracked,
        audited,
        zeroed: 2,
        fetched: 3,
        notes: vec!["vg1/back was made".into()],
        copied: 0,
        rescued: 0,
        lost: 0,
        holes: Vec::new(),
        undo: None,
        verified: None,
        stands_on: None,
    };
    let lost = JobOutcome::Restored {
        written: 1,
        kept: 4,
        compared: 5,
        tracked: 0,
        audited: 0,
        zeroed: 2,
        fetched: 3,
        notes: Vec::new(),
        copied: 6,
        rescued: 7,
        lost: 4096,
        holes: vec![LostRange { offset: 8192, len: 4096, why: "packs/00/0: not found".into() }],
        undo: Some(slot()),
        verified: None,
        stands_on: None,
    };
    let again = |said| {
        let mut outcome = restored(0, 0, 0, 0);
        if let JobOutcome::Restored { verified, .. } = &mut outcome {
            *verified = Some(said);
        }
        outcome
    };
    let mut standing = restored(0, 0, 0, 0);
    if let JobOutcome::Restored { stands_on, .. } = &mut standing {
        let boot = "8a6c7a0e-64a7-4a8e-9a3c-6d1f4a3e3e3e".into();
        *stands_on = Some(Box::new(FileIdentity { boot, device: 5, inode: 1234, special: 64_769 }));
    }
    let unread = Verified::Unread { kind: FailureKind::Device, why: "not all of it was read".into() };
    let asked = RestoreJob { donor: Some("/dev/vg1/first".into()), ..restore(Preparation::default()) };
    let asked = asked.asking(More {
        range: Some((4096, 12_288)),
        keep_going: true,
        undo: Some(job()),
        put_back: true,
        ..More::default()
    });
    let verified = restore(Preparation::default()).asking(More { verify: true, ..More::default() });
    let same = More { put_back: true, same_device: true, ..More::default() };
    let same = restore(Preparation::default()).asking(same);
    let full = RestoreJob { full: true, ..restore(Preparation::default()) };
    let untracked = RestoreJob { untracked: true, ..restore(Preparation::default()) };
    let taken = More { force: true, in_use: true, ..More::default() };
    let taken = restore(Preparation::default()).asking(taken);
    let one_of = RestoreJob { command: Some(job()), ..restore(Preparation::default()) };
    let limited = RestoreJob { fetches: Some(4), ..restore(Preparation::default()) };
    let sealed = |notes, post_failed| JobOutcome::Sealed {
        slot: slot(),
        generation: 2,
        size: 10 << 30,
        statistics: statistics(),
        changed_while_read: true,
        tracking: tracking(),
        notes,
        post_failed,
    };
    let noted = sealed(vec!["something was left out".into()], Some("exit status: 7".into()));
    let (session, volume, statistics) = (session_id(), VOLUME.into(), statistics());
    let progress =
        Progress { job: job(), session, volume, total: 10 << 30, done: 1 << 30, statistics, undo: None };
    let kept = Progress { undo: Some(slot()), ..progress.clone() };
    vec![
        sample("", backup, b""),
        sample("-Plain", plain, b""),
        sample("-More", asked, b""),
        sample("-Lost", done(lost), b""),
        sample("-Kept", kept, b""),
        sample("", restore(Preparation::default()), b""),
        sample("-Prepared", restore(prepared), b""),
        sample("-Sealed", done(sealed(Vec::new(), None)), b""),
        sample("-Noted", done(noted), b""),
        sample("-Restored", done(restored(0, 0, 0, 0)), b""),
        sample("-Equal", done(again(Verified::Equal)), b""),
        sample("-Differs", done(again(Verified::Differs { bytes: 8192, start: 4096, end: 12_288 })), b""),
        sample("-Unread", done(again(unread)), b""),
        sample("-StandsOn", done(standing), b""),
        sample("-Compared", done(restored(4, 5, 0, 0)), b""),
        sample("-Tracked", done(restored(9, 5, 8, 2)), b""),
        sample("-Full", full, b""),
        sample("-Verified", verified, b""),
        sample("-SameDevice", same, b""),
        sample("-Untracked", untracked, b""),
        sample("-Fetches", limited, b""),
        sample("-InUse", taken, b""),
        sample("-Command", one_of, b""),
        sample("-Failed", done(JobOutcome::Failed { kind: FailureKind::Damaged, why: "lost".into() }), b""),
        sample("", progress, b""),
    ]
}

fn readings() -> Vec<Sample> {
    let read = ReadVolume {
        session: session_id(),
        repository: repo(),
        source: "vg0/root".into(),
        reading: Some(reading()),
        parent: Some(ParentSnapshot { session: parent().session, size: 10 << 30 }),
        request: 3,
        leaves: Some(vec![0, 300]),
        force: true,
        allow_changes: false,
        group: None,
        plain: false,
    };
    let plain = ReadVolume { plain: true, ..read.clone() };
    let wanted =
        Wanted { over: false, leaves: vec![(0, 3), (300, 1)], forced: vec![(5, 1)], whole: Vec::new() };
    let pieces = vec![(5, false), (3, true)];
    let extent = Extent { session: session_id(), reading: reading(), offset: 4096, pieces, force: false };
    vec![
        sample("", read, b""),
        sample("-Plain", plain, b""),
        sample("", CloseReading { session: session_id(), host: "host-a".into(), committed: true }, b""),
        sample("", extent, b"hello\0\0\0"),
        sample("", AskParentLeaf { session: session_id(), leaf: 7 }, b""),
        sample("", ParentLeaf { span: Some(64 << 20), lost: Vec::new() }, &leaf().encode()),
        sample("-Lost", ParentLeaf { span: Some(64 << 20), lost: vec![0, 2] }, &leaf().encode()),
        sample("", AskWanted { session: session_id(), request: 3 }, b""),
        sample("", wanted.clone(), b""),
        sample("-Whole", Wanted { whole: vec![(1, 1)], ..wanted }, b""),
    ]
}

fn session_events() -> Vec<Sample> {
    let layout = vec![("vg".to_owned(), "vg0".to_owned())];
    let id = |seed| chunk_id(Domain::Data, seed);
    let pieces = vec![
        (4096, Mapped::Zero),
        (8192, Mapped::Parent(id(1))),
        (16_384, Mapped::Known(id(2), pack_id())),
        (65_536, Mapped::Pending(id(3))),
    ];
    let mapped = SessionEvent::Mapped {
        reading: reading(),
        offset: 8192,
        pieces,
        stored: 900,
        new: 65_536,
        chunks_new: 1,
    };
    let unchanged = SessionEvent::Unchanged {
        reading: reading(),
        parent: parent().session,
        ranges: vec![(0, 64 << 20), (65 << 20, 4096)],
    };
    let tracked = SessionEvent::Tracked { reading: reading(), tracking: tracking(), distrusted: false };
    let failed = SessionEvent::Failed { kind: FailureKind::Device, why: "vg0/root: cannot be read".into() };
    vec![
        sample("-Opened", SessionEvent::Opened { reading: reading(), size: 10 << 30, layout }, b""),
        sample("-Tracked", tracked, b""),
        sample("-Unchanged", unchanged, b""),
        sample("-Mapped", mapped, b""),
        sample(
            "-Read",
            SessionEvent::Read { reading: reading(), request: 3, bytes_read: 1 << 20, changed: true },
            b"",
        ),
        sample("-Failed", failed, b""),
    ]
}

fn index() -> Vec<Sample> {
    let ids = vec![chunk_id(Domain::Data, 1), chunk_id(Domain::Structure, 2)];
    let entries =
        vec![PackEntry { id: ids[0], offset: 48, len: 400 }, PackEntry { id: ids[1], offset: 448, len: 60 }];
    let copy = Copy { pack: pack_id(), offset: 48, len: 400 };
    let key = SealedKey {
        id: KeyId::from_bytes(bytes(1)),
        sealed: Bytes::from_static(b"an age file"),
        generation: 1,
    };
    let kind = Domain8(Domain::Data);
    vec![
        sample("", NewChunks { session: session_id(), kind, key: Some(key) }, b"frames"),
        sample("", PackStored { pack: pack_id(), entries }, b""),
        sample(
            "",
            Ask { session: session_id(), extent: 1 << 20, force: true, shards: 4, ids: ids.clone() },
            b"",
        ),
        sample("", Answers { answers: vec![Answer::Known(pack_id()), Answer::Yours, Answer::Pending] }, b""),
        sample("", Locate { shards: 4, ids: ids.clone() }, b""),
        sample("", Located { copies: vec![vec![copy], vec![]] }, b""),
        sample("", Seek { shards: 4, ids, looked: vec![7] }, b""),
        sample("", Sought { copies: vec![vec![copy], vec![]], by: 7 }, b""),
    ]
}

fn sharing() -> Vec<Sample> {
    let file = FileIdentity { boot: "b2f5".into(), device: 5, inode: 77, special: 0xfd03 };
    let target = |place, is_zero| SharedTarget {
        slot: slot(),
        path: "/dev/dm-3".into(),
        file: file.clone(),
        place,
        is_zero,
        compares: !is_zero,
    };
    let place = |zeroing| Some(SharedPlace { name: "vg1/back".into(), size: 10 << 30, zeroing });
    let thin = Zeroing::Thin { block: 64 << 10, zeroes: true, discards: true, external_origin: false };
    let ask = |now| AskSpan { worker: 7, now };
    let offset = 3 << 30;
    let figures = SpanFigures {
        written: 1,
        kept: 2,
        zeroed: 3,
        compared: 4,
        fetched: 5,
        requests: 6,
        chunks: 7,
        rescued: 8,
    };
    vec![
        sample("", TargetShared { session: session_id() }, b""),
        sample("", AskTarget { session: session_id() }, b""),
        sample("", target(None, true), b""),
        sample("-Thick", target(place(Zeroing::Thick { watched: true }), false), b""),
        sample("-Thin", target(place(thin), false), b""),
        sample("-Idle", ask(SpanNow::Idle), b""),
        sample("-Working", ask(SpanNow::Working { offset, done: 1 << 20 }), b""),
        sample("-Done", ask(SpanNow::Done { offset, figures }), b""),
        sample("-Failed", ask(SpanNow::Failed { offset, why: "lost".into() }), b""),
        sample("", Span { range: Some((offset, 1 << 30)), fetches: None }, b""),
        sample("-None", Span { range: None, fetches: None }, b""),
        sample("-Fetches", Span { range: Some((offset, 1 << 30)), fetches: Some(3) }, b""),
    ]
}

fn others() -> Vec<Sample> {
    let agent = AgentIsThere {
        host: "host-a".into(),
        pid: 4711,
        roles: vec!["reader".into()],
        version: "0.1.0".into(),
        sessions: vec!["backup of host-a/vg0/root".into()],
        counters: vec![("bytes_read".into(), 1 << 40)],
    };
    vec![
        sample("", Refusal { why: "not my shard".into() }, b""),
        sample("", Flush { session: session_id() }, b""),
        sample("", Cancel { session: session_id() }, b""),
        sample("", StopRestore { job: job() }, b""),
        sample("", RestoreWaits { job: job(), host: "host-a".into(), why: "another restore".into() }, b""),
        sample("", CheckJob { job: job() }, b""),
        sample("", WhoIsThere { reply: "answers.1".into() }, b""),
        sample("", agent, b""),
    ]
}

/// What a job was before there was more to ask for.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct OldRestoreJob {
    target: String,
    force: bool,
}

impl Payload for OldRestoreJob {
    const NAME: &'static str = "RestoreJob";
}

/// An agent that knows less passes over what it does not know. So the target that it sees is none that it restores to.
#[test]
fn an_old_agent_is_told_no_target_that_it_would_overwrite() {
    let plain = RestoreJob {
        job: job(),
        slot: slot(),
        target: "/dev/vg1/back".into(),
        force: true,
        preparation: Preparation::default(),
        full: false,
        untracked: false,
        donor: None,
        fetches: None,
        command: None,
        more: None,
    };
    let seen =
        |job: &RestoreJob| Message::new(&About::nothing(), job).read::<OldRestoreJob>().unwrap().target;
    assert_eq!(seen(&plain.clone().asking(More::default())), "/dev/vg1/back");
    for more in [
        More { range: Some((0, 4096)), ..More::default() },
        More { keep_going: true, ..More::default() },
        More { undo: Some(job()), ..More::default() },
        More { put_back: true, ..More::default() },
        More { verify: true, ..More::default() },
        More { same_device: true, ..More::default() },
        More { force: true, ..More::default() },
        More { in_use: true, ..More::default() },
    ] {
        let job = plain.clone().asking(more);
        assert_eq!((seen(&job).as_str(), job.target()), (NEEDS_NEWER_AGENT, "/dev/vg1/back"));
        let careless = RestoreJob { target: "/dev/vg1/back".into(), ..job };
        Message::new(&About::nothing(), &careless).read::<RestoreJob>().unwrap_err();
    }
    assert!(!NEEDS_NEWER_AGENT.contains('/'));
}
