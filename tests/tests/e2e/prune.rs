//! `prune` with real processes: what is forgotten goes, what is listed restores, and a killed run is gone on with.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use agent::repository::AtSlot;
use schema::names::{self, Slot};
use schema::session::{Session, SessionKind};
use schema::{JobId, SessionId};
use tests::e2e::{Archive, Machine, eventually, random_file};

const MIB: u64 = 1 << 20;

/// An archive of two volumes; of one, the older snapshot is forgotten, which half of the newer one stands on.
pub fn littered() -> Machine {
    let mut machine = Machine::new("m");
    machine.set("LVKEEP_REPO", &machine.place("repo"));
    machine.set("LVKEEP_IDENTITY", &machine.place("identity"));
    machine.set("LVKEEP_CACHE", &machine.place("cache"));
    machine.run(&["init", "--identity-out", &machine.place("identity"), "--pack-size", "1MiB"]).ok();
    let [first, second, other] = ["first.img", "second.img", "other.img"].map(|name| machine.place(name));
    random_file(&first, 16 * MIB, 1);
    std::fs::copy(&first, &second).expect("a copy");
    overwrite(&second, 0..6, 2);
    // Every pack of the rest keeps a little.
    (6..16).for_each(|mib| scatter(&second, mib, 100 + mib));
    random_file(&other, 5 * MIB, 3);
    let forgotten = machine.json(&["backup", "--name", "vm/a", &first]);
    machine.run(&["backup", "--name", "vm/a", &second]).ok();
    machine.run(&["backup", "--name", "vm/b", &other]).ok();
    machine.run(&["forget", forgotten["snapshot"].as_str().expect("an id")]).ok();
    machine
}

fn overwrite(path: &str, mib: std::ops::Range<u64>, seed: u64) {
    let part = format!("{path}.part");
    random_file(&part, (mib.end - mib.start) * MIB, seed);
    let file = OpenOptions::new().write(true).open(path).expect("an image");
    file.write_all_at(&std::fs::read(&part).expect("random bytes"), mib.start * MIB).expect("new bytes");
}

/// Overwrites three quarters of a MiB.
pub fn scatter(path: &str, mib: u64, seed: u64) {
    let part = format!("{path}.part");
    random_file(&part, 3 * MIB / 4, seed);
    let file = OpenOptions::new().write(true).open(path).expect("an image");
    file.write_all_at(&std::fs::read(&part).expect("random bytes"), mib * MIB).expect("new bytes");
}

fn archive(machine: &Machine) -> Archive {
    Archive::in_directory(machine.place("repo"), machine.place("identity"))
}

fn size(machine: &Machine) -> u64 {
    archive(machine).size()
}

fn is_whole(machine: &Machine) {
    machine.run(&["check", "--read-data"]).ok();
    machine.restores("vm/a@latest", machine.place("second.img"));
    machine.restores("vm/b@latest", machine.place("other.img"));
}

#[test]
fn what_was_forgotten_goes_and_the_rest_restores() {
    let machine = littered();
    let before = size(&machine);
    let dry = machine.json(&["prune", "--dry-run"]);
    assert_eq!((size(&machine), &dry["snapshots_forgotten"]), (before, &1.into()), "{dry}");
    let told = machine.run(&["prune", "--dry-run"]).ok();
    assert!(told.out.contains("would remove 1 forgotten snapshot and"), "{told}");

    let pruned = machine.json(&["prune"]);
    assert_eq!((&pruned["collection"], &pruned["finished"]), (&1.into(), &true.into()), "{pruned}");
    assert_eq!(pruned["snapshots_removed"], 1);
    let [unneeded, rewritten, written] = ["packs_unneeded", "packs_rewritten", "packs_written"]
        .map(|name| pruned[name].as_u64().expect("a count"));
    assert!(unneeded > 0 && rewritten > 0 && written > 0, "{pruned}");
    let after = size(&machine);
    assert_eq!(before + pruned["bytes_written"].as_u64().expect("a size") - after, pruned["bytes_freed"]);
    assert!(before - after > 10 * MIB, "{before} bytes became {after}");
    is_whole(&machine);
    let again = machine.run(&["prune"]).ok();
    assert!(again.out.contains("nothing to collect"), "{again}");

    // What is gone is stored again when it comes back, also by a host whose index knew where it was.
    machine.run(&["backup", "--name", "vm/a", &machine.place("first.img")]).ok();
    machine.restores("vm/a@latest", machine.place("first.img"));
    machine.run(&["check", "--read-data"]).ok();
}

#[test]
fn a_session_is_waited_for_and_named_until_it_is_cancelled() {
    let machine = littered();
    let (id, slot) = open_session(&machine);
    let (cancel, whose) = (format!("lvkeep cancel {id}"), format!("vm/new on elsewhere since {SINCE}"));
    let left = ["snapshots_left", "packs_left", "bytes_left"];
    let of = |json: &serde_json::Value| left.map(|name| json[name].as_u64().expect("a number"));
    let waiting = machine.json(&["prune"]);
    let [snapshots, packs, bytes] = of(&waiting);
    assert!(snapshots == 1 && packs > 0 && bytes > 10 * MIB, "{waiting}");
    let said = format!("{packs} packs ({:.1} MiB)", bytes as f64 / MIB as f64);
    // Also who goes on with it knows, and counts nothing anew.
    for waiting in [waiting, machine.json(&["prune"])] {
        assert_eq!(
            (&waiting["finished"], &waiting["packs_deleted"]),
            (&false.into(), &0.into()),
            "{waiting}"
        );
        let waits = &waiting["waits_for"][0];
        assert_eq!((&waits["session"], &waits["started"]), (&id.to_string().into(), &SINCE.into()));
        assert_eq!(of(&waiting), [snapshots, packs, bytes], "{waiting}");
    }
    let told = machine.run(&["prune"]).ok();
    assert!([&whose, &cancel, &said].into_iter().all(|part| told.out.contains(part)), "{said}: {told}");
    let status = &machine.json(&["status"])["collection"];
    let waits = &status["waits_for"][0];
    assert_eq!((&waits["session"], &waits["started"]), (&id.to_string().into(), &SINCE.into()));
    assert_eq!(of(status), [snapshots, packs, bytes], "{status}");
    let told = machine.run(&["status"]).ok();
    let unfinished = "collection 1 is not finished";
    assert!([unfinished, &whose, &cancel, &said].into_iter().all(|part| told.out.contains(part)), "{told}");

    machine.run(&["cancel", &id.to_string()]).ok();
    let pruned = machine.json(&["prune"]);
    assert_eq!((&pruned["finished"], of(&pruned)), (&true.into(), [0, 0, 0]), "{pruned}");
    let freed = ["snapshots_removed", "packs_deleted", "bytes_freed"].map(|name| pruned[name].as_u64());
    assert_eq!(freed, [snapshots, packs, bytes].map(Some), "{pruned}");
    assert_eq!(machine.json(&["status"])["collection"], serde_json::Value::Null);
    let archive = archive(&machine);
    let at_slot = archive.block_on(archive.repository().at_slot(slot)).expect("the slot");
    assert!(matches!(at_slot, AtSlot::Tombstone), "{at_slot:?}");
    is_whole(&machine);
}

#[test]
fn a_dry_run_names_the_sessions_that_would_be_waited_for() {
    let machine = littered();
    assert_eq!(machine.json(&["prune", "--dry-run"])["waits_for"], serde_json::json!([]));
    let (id, _) = open_session(&machine);
    let before = size(&machine);
    let dry = machine.json(&["prune", "--dry-run"]);
    let waits = &dry["waits_for"][0];
    assert_eq!(
        (&waits["session"], &waits["kind"], &waits["volume"], &waits["host"], &waits["started"]),
        (&id.to_string().into(), &"backup".into(), &"vm/new".into(), &"elsewhere".into(), &SINCE.into()),
        "{dry}"
    );
    assert_eq!((&dry["collection"], &dry["finished"]), (&serde_json::Value::Null, &false.into()), "{dry}");
    let told = machine.run(&["prune", "--dry-run"]).ok();
    let who = format!("would wait for backup of vm/new on elsewhere since {SINCE} (`lvkeep cancel {id}`");
    let said =
        [&who, "would remove 1 forgotten snapshot and", "nothing would be deleted until they have ended"];
    assert!(said.into_iter().all(|part| told.out.contains(part)), "{told}");
    assert_eq!((size(&machine), count(&machine.place("repo/gc"))), (before, 0), "nothing has begun");

    // Once it has, it waits.
    machine.run(&["prune"]).ok();
    let told = machine.run(&["prune", "--dry-run"]).ok();
    assert!(told.out.contains("\nwaits for backup of vm/new") && !told.out.contains("would wait"), "{told}");
    machine.run(&["cancel", &id.to_string()]).ok();
    assert_eq!(machine.json(&["prune"])["finished"], true);
    // Where nothing is to be collected, nobody would be waited for.
    open_session(&machine);
    let told = machine.run(&["prune", "--dry-run"]).ok();
    assert!(told.out.contains("nothing to collect") && !told.out.contains("would wait"), "{told}");
}

/// When a session began that nobody drives.
const SINCE: &str = "2023-11-14T22:13:20.000Z";

/// Leaves the object of such a session.
fn open_session(machine: &Machine) -> (SessionId, Slot) {
    let archive = archive(machine);
    let repository = archive.repository();
    let id = repository.environment().session_id();
    let slot = Slot { volume: repository.key.volume_key("vm/new"), session: id };
    let session = Session {
        id,
        kind: SessionKind::Backup,
        slot: Some(slot),
        job: JobId::from_bytes([1; 16]),
        volume: "vm/new".into(),
        host: "elsewhere".into(),
        started_ms: 1_700_000_000_000,
        checkpoint: None,
        ended: None,
        undo: Vec::new(),
    };
    let key = names::session(id);
    let sealed = repository.seal(&key, &session).expect("a session object");
    archive.block_on(repository.store.create(&key, sealed)).expect("it is open");
    (id, slot)
}

/// Whether a moment has come in a repository.
type Moment = Box<dyn Fn(&str) -> bool>;

#[test]
fn a_killed_prune_is_gone_on_with_by_the_next() {
    let machine = littered();
    let [repo, kept] = ["repo", "kept"].map(|name| machine.place(name));
    copy(Path::new(&repo), Path::new(&kept));
    let packs = |at_least: usize| move |repo: &str| count(&format!("{repo}/packs")) >= at_least;
    let before = count(&format!("{repo}/packs"));
    let moments: [(&str, Moment); 6] = [
        ("it has begun", Box::new(|_| true)),
        ("a pack is written", Box::new(packs(before + 1))),
        ("the epoch is there", Box::new(|repo| count(&format!("{repo}/gc")) >= 1)),
        ("the verdict is there", Box::new(|repo| count(&format!("{repo}/gc")) >= 3)),
        ("a pack is gone", Box::new(move |repo| count(&format!("{repo}/packs")) < before)),
        ("many packs are gone", Box::new(move |repo| count(&format!("{repo}/packs")) + 6 < before)),
    ];
    for (moment, has_come) in moments {
        // Packs that were gone never come back but here, and an index may rely on that.
        std::fs::remove_dir_all(machine.place("cache")).expect("the index");
        std::fs::remove_dir_all(&repo).expect("the repository");
        copy(Path::new(&kept), Path::new(&repo));
        let mut prune = machine.start(&["prune"]);
        eventually(moment, || (has_come(&repo) || prune.has_ended()).then_some(()));
        println!("killed when {moment}, before its end: {}", !prune.has_ended());
        prune.kill();
        machine.run(&["check", "--read-data"]).ok();
        machine.run(&["prune"]).ok();
        assert_eq!(machine.json(&["status"])["collection"], serde_json::Value::Null);
        is_whole(&machine);
        machine.run(&["prune"]).ok();
        assert!(count(&format!("{repo}/packs")) < before);
    }
}

/// Files below a folder.
pub fn count(folder: &str) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let count_one = |path: String| if Path::new(&path).is_dir() { count(&path) } else { 1 };
    entries.flatten().filter_map(|entry| entry.path().to_str().map(str::to_owned)).map(count_one).sum()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder").flatten() {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).expect("a copy")),
        }
    }
}
