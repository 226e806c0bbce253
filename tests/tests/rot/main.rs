//! Bit rot: objects of every kind changed, cut off, exchanged or deleted behind everybody's back. A check finds and names
//! it, other volumes come back as they were, what comes back of the one that suffers is right but for what the check
//! says is lost, and the next backup heals what it still has.

mod agents;
mod back;
mod cancelled;
mod collections;
mod kept;
mod keys;
mod marking;
mod mending;
mod moved;
mod older;
mod takeover;
mod tombstones;
mod weak;
mod withheld;

use std::path::PathBuf;

use agent::{Failure, forgetting, marks};
use bytes::Bytes;
use checker::{Content, DamagedSnapshot, Report};
use schema::check::{Check, Reached};
use schema::damage::{Damage, Holes};
use schema::epoch::{Awaited, Epoch, Verdict};
use schema::names::Slot;
use schema::pack::PACK_HEADER_LEN;
use schema::root::{Forgotten, Root};
use schema::session::{Checkpoint, Session, SessionKind};
use schema::tombstone::{TOMBSTONE_LEN, Tombstone};
use schema::{Domain, JobId, PackId, VolumeKey, names};
use tests::e2e::random_file;
use tests::rot::{Objects, Rot};

const ALL: Content = Content::All { after: None };

/// Where each field of a small object's envelope begins: its version, kind, cipher, repository, nonce, and length.
const ENVELOPE: [usize; 8] = [4, 5, 6, 7, 8, 24, 36, 39];

/// A repository with a volume that nothing happens to, and one that suffers.
struct Victim {
    rot: Rot,
    good: (Root, Vec<u8>),
    bad: (Root, Vec<u8>),
    older: Root,
    path: PathBuf,
    objects: Objects,
    /// Keys of objects that the suffering volume brought.
    brought: Vec<String>,
    _folder: tempfile::TempDir,
}

async fn victim() -> Victim {
    let folder = tempfile::tempdir().expect("a folder");
    let rot = Rot::new(folder.path()).await.expect("a repository");
    let file = |name: &str, seed| {
        let path = folder.path().join(name);
        random_file(&path, 300_000, seed);
        path
    };
    let (path, of_bad) = (file("good.img", 1), file("bad.img", 2));
    let good = rot.backup("vm/good", &path).await.expect("a snapshot");
    let good = (good, std::fs::read(&path).expect("the file"));
    let before = rot.objects().await;
    let older = rot.backup("vm/bad", &of_bad).await.expect("a snapshot");
    let mut content = std::fs::read(&of_bad).expect("the file");
    content[150_000..152_000].fill(7);
    std::fs::write(&of_bad, &content).expect("the file changes");
    let bad = rot.backup("vm/bad", &of_bad).await.expect("a snapshot");
    let objects = rot.objects().await;
    let brought = objects.keys().filter(|key| !before.contains_key(*key)).cloned().collect();
    let (bad, path) = ((bad, content), of_bad);
    Victim { rot, good, bad, older, path, objects, brought, _folder: folder }
}

fn flipped(bytes: &Bytes, at: usize) -> Bytes {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 0x10;
    bytes.into()
}

impl Victim {
    /// A data key that the suffering volume brought.
    fn key(&self) -> schema::KeyId {
        let mut keys = self.brought.iter().filter_map(|key| key.strip_prefix("keys/"));
        keys.next().and_then(|id| id.parse().ok()).expect("a key")
    }

    fn packs(&self) -> impl Iterator<Item = (&String, &Bytes)> {
        let brought = self.brought.iter().filter(|key| key.starts_with("packs/"));
        brought.map(|key| (key, &self.objects[key]))
    }

    /// The newest pack of a kind, with the places of its frames.
    fn pack(&self, kind: Domain) -> (String, Vec<(usize, usize)>) {
        let of_kind = |(key, bytes): (&String, &Bytes)| {
            let (header, footer) = schema::pack::parse_pack(bytes).expect("a pack");
            let frames = footer.entries.iter().map(|entry| (entry.offset as usize, entry.len as usize));
            (header.kind == kind).then(|| (key.clone(), frames.collect()))
        };
        let newest = |(key, _): &(String, _)| key.rsplit('/').next().map(str::to_owned);
        self.packs().filter_map(of_kind).max_by_key(newest).expect("a pack of that kind")
    }

    /// The other volume comes back as it was.
    async fn good_is_unharmed(&self, rot: &Rot, case: &str) {
        let (root, content) = &self.good;
        let (restored, report) = rot.restore(root).await.unwrap_or_else(|why| panic!("{case}: {why}"));
        assert!(restored == *content && report.lost == 0, "{case}: {}", root.volume);
    }

    /// What cannot be read of the suffering volume is what the check says, to the byte.
    async fn lost_is_what_the_check_says(&self, rot: &Rot, report: &Report, case: &str) {
        let (root, content) = &self.bad;
        let damaged = report.damaged.iter().find(|damaged| damaged.slot == root.slot);
        let lost = damaged.map(|damaged| damaged.lost.clone()).unwrap_or_default();
        let is_lost = |at: u64| lost.iter().any(|range| range.contains(&at));
        let (restored, restored_report) =
            rot.restore(root).await.unwrap_or_else(|why| panic!("{case}: {why}"));
        assert_eq!(restored.len(), content.len(), "{case}");
        let said = damaged.map_or(0, DamagedSnapshot::bytes);
        assert_eq!(restored_report.lost, said, "{case}: {:?} {damaged:?}", restored_report.holes);
        let differs = (0..).zip(restored.iter().zip(content)).find(|(at, (a, b))| a != b && !is_lost(*at));
        assert!(differs.is_none(), "{case}: {differs:?}");
    }

    /// Damages a pack; the check's report and the repository.
    async fn with_pack(&self, key: &str, bytes: Option<Bytes>, case: &str) -> (Report, Rot) {
        let mut objects = self.objects.clone();
        match bytes {
            Some(bytes) => objects.insert(key.to_owned(), bytes),
            None => objects.remove(key),
        };
        let rot = self.rot.with(&objects).await.unwrap_or_else(|why| panic!("{case}: {why}"));
        let report = rot.check(ALL).await.unwrap_or_else(|why| panic!("{case}: {why}"));
        (report, rot)
    }
}

/// Whether a report speaks of an object, by its whole key; of a snapshot whose volume nobody knows any more, by the rest.
fn is_named(report: &Report, key: &str) -> bool {
    let is_it = |found: &str| {
        let parts = (found.split('/'), key.split('/'));
        found.split('/').count() == key.split('/').count()
            && parts.0.zip(parts.1).all(|(found, part)| found == part || found == "*")
    };
    let is_slot = |damaged: &DamagedSnapshot| damaged.volume.is_none() && damaged.slot.snapshot() == key;
    report.objects.iter().any(|found| is_it(&found.key) || found.why.contains(key))
        || report.damaged.iter().any(is_slot)
        || report.damaged.iter().flat_map(|damaged| &damaged.problems).any(|text| text.contains(key))
}

/// What an object is, by its name.
fn kind(key: &str) -> (&str, &str) {
    let folder = key.split('/').next().unwrap_or_default();
    (folder, key.rsplit_once('.').map(|(_, suffix)| suffix).unwrap_or_default())
}

/// Each byte region of a pack: header, some frames, footer, trailer.
fn regions(bytes: &Bytes) -> Vec<usize> {
    let (_, footer) = schema::pack::parse_pack(bytes).expect("a pack");
    let mut at: Vec<usize> = [0, 8, 10, 11, 13, 17, PACK_HEADER_LEN - 1].into();
    for entry in footer.entries.iter().take(2) {
        let (start, len) = (entry.offset as usize, entry.len as usize);
        at.extend([0, 2, 3, 5, 9, 12, 30, 46, 48, len / 2, len - 1].map(|within| start + within));
    }
    let end = footer.entries.last().map_or(0, |entry| (entry.offset + entry.len) as usize);
    at.extend([end, end + 5, end + 34, (end + bytes.len()) / 2, bytes.len() - 29]);
    at.extend([28, 24, 20, 9, 8, 1].map(|before| bytes.len() - before));
    at
}

#[tokio::test]
async fn every_region_of_a_pack_is_checked_and_what_is_lost_is_named() {
    let victim = victim().await;
    for (key, bytes) in victim.packs() {
        for at in regions(bytes) {
            let case = format!("{key}, byte {at} of {}", bytes.len());
            let (report, rot) = victim.with_pack(key, Some(flipped(bytes, at)), &case).await;
            assert!(is_named(&report, key), "{case}: {report:?}");
            victim.lost_is_what_the_check_says(&rot, &report, &case).await;
            victim.good_is_unharmed(&rot, &case).await;
        }
    }
}

#[tokio::test]
async fn packs_that_are_cut_off_exchanged_or_gone_are_found() {
    let victim = victim().await;
    for (key, bytes) in victim.packs() {
        let other = victim.packs().find(|(other, _)| *other != key).expect("another pack").1;
        let mut cases: Vec<(String, Option<Bytes>)> = [0, 1, 47, 60, bytes.len() / 2, bytes.len() - 1]
            .map(|len| (format!("cut to {len}"), Some(bytes.slice(..len))))
            .into();
        cases.push(("another pack".into(), Some(other.clone())));
        cases.push(("longer".into(), Some([&bytes[..], b"more"].concat().into())));
        cases.push(("deleted".into(), None));
        for (what, bytes) in cases {
            let case = format!("{key} {what}");
            let is_gone = bytes.is_none();
            let (report, rot) = victim.with_pack(key, bytes, &case).await;
            assert!(is_named(&report, key) || is_gone && !report.damaged.is_empty(), "{case}: {report:?}");
            let volumes: Vec<_> = report.damaged.iter().filter_map(|d| d.volume.as_deref()).collect();
            assert!(volumes.iter().all(|volume| *volume == "vm/bad"), "{case}: {volumes:?}");
            victim.lost_is_what_the_check_says(&rot, &report, &case).await;
            victim.good_is_unharmed(&rot, &case).await;
        }
    }
}

/// Two small objects of each kind besides those that backups made.
async fn with_small_objects(victim: &Victim) -> Rot {
    let rot = victim.rot.with(&victim.objects).await.expect("a repository");
    for number in [1, 2] {
        let gone = rot.backup(&format!("vm/gone-{number}"), &victim.path).await.expect("a snapshot").slot;
        put_small_objects(victim, &rot, number, gone).await.expect("small objects");
        let given_up = Slot { volume: given_up(&rot), session: rot.repository.environment().session_id() };
        let swept = Slot { session: rot.repository.environment().session_id(), ..victim.older.slot };
        let marker = Forgotten { slot: swept, time_ms: 0, by: "a test".into() };
        rot.put(&swept.forgotten(), &marker).await.expect("a marker");
        for slot in [given_up, swept] {
            rot.put(&slot.snapshot(), &Tombstone::NEW).await.expect("a tombstone");
        }
    }
    rot
}

/// The volume of sessions that were given up: nothing speaks of their slots.
fn given_up(rot: &Rot) -> VolumeKey {
    rot.repository.key.volume_key("vm/given-up")
}

async fn put_small_objects(victim: &Victim, rot: &Rot, number: u64, gone: Slot) -> Result<(), Failure> {
    let environment = rot.repository.environment();
    let marker = Forgotten { slot: gone, time_ms: 0, by: "a test".into() };
    rot.put(&gone.forgotten(), &marker).await?;
    let epoch = Epoch { number, forgotten: vec![gone], condemned: vec![PackId::from_bytes([9; 16])] };
    rot.put(&names::epoch(number), &epoch).await?;
    rot.put(&names::verdict(number), &Verdict { number, delete: vec![] }).await?;
    rot.put(&names::awaited(number), &Awaited { number, sessions: vec![] }).await?;
    for is_backup in [false, true] {
        let session = open_session(rot, &victim.bad.0, is_backup);
        rot.put(&names::session(session.id), &session).await?;
    }
    marks::hold(&rot.repository, victim.older.slot, None, "a test").await?;
    let root = if number == 1 { &victim.older } else { &victim.bad.0 };
    let slot = root.slot;
    let labelled = marks::label(&rot.repository, root, "a test", |labels| {
        labels.tags = vec![format!("tag-{number}")];
        labels.note = Some(format!("note {number}"));
    });
    labelled.await?;
    rot.put(
        &slot.holes(),
        &Holes { version: 1, slot, found_ms: 0, ranges: vec![(0, 4096)], is_unrecorded: false },
    )
    .await?;
    let packs = vec![PackId::from_bytes([9; 16])];
    let damage = Damage { version: 1, found_ms: 0, host: "host".into(), packs, chunks: vec![] };
    rot.put(&names::damage(environment.damage_id()), &damage).await?;
    let check = open_check(rot.repository.environment().job_id());
    rot.put(&names::check(check.job), &check).await
}

/// A session of a restore, or of a backup that has got somewhere.
fn open_session(rot: &Rot, root: &Root, is_backup: bool) -> Session {
    let environment = rot.repository.environment();
    let id = environment.session_id();
    Session {
        id,
        kind: if is_backup { SessionKind::Backup } else { SessionKind::Restore },
        slot: is_backup.then_some(Slot { session: id, ..root.slot }),
        job: environment.job_id(),
        volume: root.volume.clone(),
        host: "host".into(),
        started_ms: 0,
        checkpoint: is_backup.then(|| Checkpoint { reading: root.reading, size: root.size, leaves: vec![] }),
        ended: None,
        undo: Vec::new(),
    }
}

fn open_check(job: JobId) -> Check {
    Check {
        version: 1,
        job,
        by: "a test".into(),
        asked_ms: 0,
        content: schema::check::Content::All,
        worker: None,
        tries: 0,
        reached: Reached::default(),
        end: None,
    }
}

/// What leaves no trace when it is gone, and harms nothing.
fn may_be_gone(key: &str) -> bool {
    let folder = key.split('/').next().unwrap_or_default();
    match folder {
        "sessions" | "damage" | "holes" | "forgotten" | "marks" | "checks" => true,
        "gc" => key.ends_with(".sessions") || key.ends_with("2.verdict"),
        _ => false,
    }
}

/// What may be empty: what a repair has emptied of the collections before the latest.
fn may_be_empty(key: &str) -> bool {
    let is_latest =
        [names::epoch(2), names::verdict(2), names::awaited(2)].iter().any(|latest| latest == key);
    !is_latest && key.starts_with("gc/")
}

#[tokio::test]
async fn every_small_object_is_checked() {
    let victim = victim().await;
    let rot = with_small_objects(&victim).await;
    let objects = rot.objects().await;
    assert!(rot.check(ALL).await.expect("a report").is_clean());
    let good = |key: &str| victim.objects.contains_key(key) && !victim.brought.iter().any(|one| one == key);
    let mut wrong = Vec::new();
    for (key, bytes) in objects.iter().filter(|(key, _)| !key.starts_with("packs/")) {
        if good(key) && key != names::CONFIG {
            continue;
        }
        let leaves_no_trace =
            may_be_gone(key) || Slot::parse_key(key).is_ok_and(|slot| slot.volume == given_up(&rot));
        let step = (bytes.len() / 12).max(1);
        let mut cases: Vec<(String, Option<Bytes>, bool)> = (0..bytes.len())
            .step_by(step)
            .chain(ENVELOPE.into_iter().filter(|at| *at < bytes.len()))
            .chain([bytes.len() - 1])
            .map(|at| (format!("byte {at}"), Some(flipped(bytes, at)), true))
            .collect();
        let mut others = objects.iter().filter(|(other, _)| *other != key && kind(other) == kind(key));
        let other = others.next().map(|(_, other)| ("another's".into(), Some(other.clone()), true));
        assert!(other.is_some() || key == names::CONFIG, "{key} is the only one of its kind");
        cases.extend(other);
        // The next one in order, so that each kind is met.
        let strange = objects.range(key.clone()..).chain(&objects).map(|(other, bytes)| (kind(other), bytes));
        let strange =
            strange.filter(|(other, bytes)| *other != kind(key) && other.0 != "packs" && !bytes.is_empty());
        cases.extend(
            strange.map(|(other, bytes)| (format!("one of {other:?}"), Some(bytes.clone()), true)).take(1),
        );
        cases.extend(
            [1, bytes.len() / 2, bytes.len() - 1]
                .map(|len| (format!("cut to {len}"), Some(bytes.slice(..len)), true)),
        );
        cases.push(("empty".into(), Some(Bytes::new()), !may_be_empty(key)));
        if bytes.len() as u64 > TOMBSTONE_LEN {
            let short = bytes.slice(..TOMBSTONE_LEN as usize);
            cases.push(("as short as a tombstone".into(), Some(short), true));
        }
        cases.push(("deleted".into(), None, !leaves_no_trace));
        for (what, bytes, is_found) in cases {
            let case = format!("{key}: {what}");
            let mut objects = objects.clone();
            match bytes {
                Some(bytes) => objects.insert(key.clone(), bytes),
                None => objects.remove(key),
            };
            wrong.extend(small_object(&victim, &objects, key, is_found, &case).await);
        }
    }
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong.join("\n"));
}

/// What is wrong with what a check says of an object.
async fn small_object(
    victim: &Victim,
    objects: &Objects,
    key: &str,
    is_found: bool,
    case: &str,
) -> Option<String> {
    let found = async {
        let rot = victim.rot.with(objects).await?;
        let report = rot.check(Content::None).await?;
        victim.good_is_unharmed(&rot, case).await;
        Ok::<Report, Failure>(report)
    };
    match found.await {
        Ok(report) => (is_named(&report, key) != is_found).then(|| format!("{case}: {is_found}, {report:?}")),
        Err(why) => {
            let is_said = why.to_string().contains(key) || why.to_string().contains("no repository");
            (key != names::CONFIG || !is_said).then(|| format!("{case}: {why}"))
        }
    }
}

#[tokio::test]
async fn the_next_backup_heals_what_it_still_has() {
    let victim = victim().await;
    let (data, frames) = victim.pack(Domain::Data);
    let (map, leaves) = victim.pack(Domain::Structure);
    let damage = |key: &str, at: usize| Some(flipped(&victim.objects[key], at));
    let middle = |frames: &[(usize, usize)]| frames[0].0 + frames[0].1 / 2;
    for (key, bytes) in [
        (&data, damage(&data, middle(&frames))),
        (&data, None),
        (&map, damage(&map, middle(&leaves))),
        (&map, None),
    ] {
        let case = format!("{key}, {}", if bytes.is_some() { "a flipped bit" } else { "deleted" });
        let (report, rot) = victim.with_pack(key, bytes, &case).await;
        assert!(!report.damaged.is_empty() && report.recorded > 0, "{case}: {report:?}");
        let healed = rot.backup("vm/bad", &victim.path).await.unwrap_or_else(|why| panic!("{case}: {why}"));
        let report = rot.check(ALL).await.expect("a report");
        let damaged: Vec<_> = report.damaged.iter().map(|damaged| damaged.slot).collect();
        assert!(
            !damaged.contains(&victim.bad.0.slot) && !damaged.contains(&healed.slot),
            "{case}: {report:?}"
        );
        assert!(report.healed > 0 || report.settled > 0, "{case}: {report:?}");
        // What is recorded and whole elsewhere is no alarm any more.
        let lacks = report.damaged.iter().flat_map(|damaged| &damaged.problems).any(|why| why.contains(key));
        let is_told = report.objects.iter().any(|one| one.key == *key);
        assert_eq!(is_told, lacks && rot.objects().await.contains_key(key), "{case}: {report:?}");
        for root in [&healed, &victim.bad.0] {
            let (restored, report) = rot.restore(root).await.expect("a restore");
            assert!(restored == victim.bad.1, "{case}");
            assert_eq!((report.lost, report.rescued), (0, 0), "{case}: the damaged copy comes last");
        }
    }
}

#[tokio::test]
async fn torn_packs_are_salvaged_frame_by_frame() {
    let victim = victim().await;
    let (key, frames) = victim.pack(Domain::Data);
    let bytes = &victim.objects[&key];
    let footer = frames.last().map_or(0, |(start, len)| start + len);
    let no_header = flipped(&flipped(bytes, 9), footer + 3);
    // The footer is torn; the header is not as it was; a frame is lost with the footer.
    for (what, damaged, lost) in [
        ("footer", flipped(bytes, footer + 3), 0),
        ("header", flipped(bytes, 20), 0),
        ("cut off", bytes.slice(..footer), 0),
        ("frame and footer", flipped(&flipped(bytes, footer + 3), frames[0].0 + 5), 1),
        ("everything", no_header, frames.len() as u64),
    ] {
        let mut objects = victim.objects.clone();
        objects.insert(key.clone(), damaged);
        let rot = victim.rot.with(&objects).await.expect("a repository");
        let (mended, report) = rot.repair().await.unwrap_or_else(|why| panic!("{what}: {why}"));
        let moved = frames.len() as u64 - lost;
        assert_eq!(mended.packs.iter().map(|(_, moved)| moved).sum::<u64>(), moved, "{what}");
        assert_eq!(report.damaged.is_empty(), lost == 0, "{what}: {report:?}");
        assert!(rot.objects().await.contains_key(&key), "{what}: nothing is deleted");
        victim.lost_is_what_the_check_says(&rot, &report, what).await;
        // A second repair has nothing to do, and whoever checks is not told again.
        let (again, report) = rot.repair().await.unwrap_or_else(|why| panic!("{what}: {why}"));
        assert!(again.packs.is_empty() && (lost > 0 || report.is_clean()), "{what}: {report:?}");
        assert!(moved == 0 || !is_named(&report, &key) || lost > 0, "{what}: {report:?}");
    }
}

#[tokio::test]
async fn a_lost_key_comes_back_from_a_footer() {
    let victim = victim().await;
    let key = victim.brought.iter().find(|key| key.starts_with("keys/")).expect("a key").clone();
    for damaged in [None, Some(flipped(&victim.objects[&key], 200))] {
        let mut objects = victim.objects.clone();
        match damaged {
            Some(bytes) => objects.insert(key.clone(), bytes),
            None => objects.remove(&key),
        };
        let rot = victim.rot.with(&objects).await.expect("a repository");
        let (mended, report) = rot.repair().await.expect("a repair");
        assert_eq!(mended.keys.len(), 1);
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(rot.objects().await[&key], victim.objects[&key]);
    }
}

/// Nobody can open what a key has sealed that is gone: that is damage, which the next backup heals, and no repair stops
/// at it.
#[tokio::test]
async fn what_no_key_opens_is_damaged_and_stops_no_repair() {
    let victim = victim().await;
    let (pack, frames) = victim.pack(Domain::Data);
    let mut objects = victim.objects.clone();
    let (_, written) = schema::pack::parse_pack(&objects[&pack]).expect("a pack");
    objects.remove(&names::key(written.keys[0].id));
    let footer = frames.last().map_or(0, |(start, len)| start + len);
    objects.insert(pack.clone(), flipped(&objects[&pack], footer + 3));
    let rot = victim.rot.with(&objects).await.expect("a repository");
    let (mended, report) = rot.repair().await.expect("a repair");
    assert!(mended.packs.is_empty(), "{mended:?}");
    let [(stays, why)] = &mended.unsalvaged[..] else { panic!("{mended:?}") };
    assert!(names::pack(*stays) == pack && why.contains("no key opens"), "{why}");
    let damaged: Vec<_> = report.damaged.iter().map(|damaged| damaged.slot).collect();
    assert_eq!(damaged, [victim.bad.0.slot], "{report:?}");
    assert!(report.unopened == 0 && report.recorded > 0, "{report:?}");
    victim.lost_is_what_the_check_says(&rot, &report, "a lost key").await;
    rot.backup("vm/bad", &victim.path).await.expect("a backup");
    let report = rot.check(ALL).await.expect("a report");
    assert!(report.damaged.is_empty(), "{report:?}");
}

/// Empty is what somebody made empty.
#[tokio::test]
async fn an_emptied_key_stays_empty() {
    let victim = victim().await;
    let key = victim.brought.iter().find(|key| key.starts_with("keys/")).expect("a key").clone();
    let mut objects = victim.objects.clone();
    objects.insert(key.clone(), Bytes::new());
    let rot = victim.rot.with(&objects).await.expect("a repository");
    let (mended, _) = rot.repair().await.expect("a repair");
    assert!(mended.keys.is_empty() && rot.objects().await[&key].is_empty());
}

#[tokio::test]
async fn a_snapshot_with_holes_is_marked_until_they_are_healed() {
    let victim = victim().await;
    let (key, _) = victim.pack(Domain::Data);
    let mut objects = victim.objects.clone();
    objects.remove(&key);
    let rot = victim.rot.with(&objects).await.expect("a repository");
    let (_, report) = rot.repair().await.expect("a repair");
    let root = &victim.bad.0;
    let damaged = report.damaged.iter().find(|damaged| damaged.slot == root.slot).expect("it is damaged");
    let holes = rot.repository.read::<Holes>(&root.slot.holes()).await.expect("a read").expect("holes");
    let ranges: Vec<_> = holes.ranges.iter().map(|(start, len)| *start..start + len).collect();
    assert_eq!(ranges, damaged.lost);
    assert!(rot.repository.read::<Holes>(&victim.good.0.slot.holes()).await.expect("a read").is_none());
    // The rest is restored only by who says that the holes may be zero.
    let refused = rot.restore_as(root, false).await.expect_err("holes").to_string();
    assert!(
        refused.contains(&format!("{}+", ranges[0].start)) && refused.contains("--keep-going"),
        "{refused}"
    );
    victim.lost_is_what_the_check_says(&rot, &report, "marked").await;
    // A repair while it is forgotten leaves the mark to what may come back.
    forgetting::forget(&rot.repository, root, "a test").await.expect("it is forgotten");
    rot.repair().await.expect("a repair");
    let root = &forgetting::unforget(&rot.repository, root, "a test").await.expect("it is back").root;
    let kept = rot.repository.read::<Holes>(&root.slot.holes()).await.expect("a read").expect("holes");
    assert_eq!(kept.ranges, holes.ranges);
    rot.repair().await.expect("a repair, which records again what is lost");
    let healed = rot.backup("vm/bad", &victim.path).await.expect("a backup");
    let (_, report) = rot.repair().await.expect("a repair");
    assert!(report.damaged.iter().all(|damaged| damaged.slot == victim.older.slot), "{report:?}");
    for root in [root, &healed] {
        let (restored, _) = rot.restore_as(root, false).await.expect("a restore");
        assert!(restored == victim.bad.1);
    }
}

#[tokio::test]
async fn a_snapshot_that_is_newer_than_the_index_is_not_lost() {
    let victim = victim().await;
    random_file(&victim.path, 100_000, 3);
    let report = victim.rot.check_beside_backup("vm/new", &victim.path).await.expect("a report");
    assert!(report.is_clean() && report.snapshots == 4 && report.recorded == 0, "{report:?}");
}

#[tokio::test]
async fn what_is_sound_is_not_found_and_content_can_be_read_in_parts() {
    let victim = victim().await;
    let rot = victim.rot.with(&victim.objects).await.expect("a repository");
    let before: Vec<String> = rot.objects().await.into_keys().collect();
    let report = rot.check(ALL).await.expect("a report");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.snapshots, report.recorded, report.rescued), (3, 0, 0));
    assert!(report.packs_read >= report.packs);
    assert_eq!(before, rot.objects().await.into_keys().collect::<Vec<_>>(), "nothing is left behind");
    // A pack's content is checked by the share that it is in, and by no other.
    let (data, frames) = victim.pack(Domain::Data);
    let mut objects = victim.objects.clone();
    objects.insert(data.clone(), flipped(&objects[&data], frames[0].0 + frames[0].1 / 2));
    let mut found = 0;
    for number in 1..=3 {
        let rot = victim.rot.with(&objects).await.expect("a repository");
        let content = Content::Share(checker::Share { number, of: 3 });
        let report = rot.check(content).await.expect("a report");
        assert_eq!(report.is_clean(), !is_named(&report, &data));
        found += u32::from(!report.is_clean());
    }
    assert_eq!(found, 1);
    let rot = victim.rot.with(&objects).await.expect("a repository");
    assert!(rot.check(Content::None).await.expect("a report").is_clean(), "structure alone");
    assert!(!rot.check(ALL).await.expect("a report").is_clean());
    assert!(!rot.check(Content::None).await.expect("a report").is_clean(), "it is recorded by now");
}
