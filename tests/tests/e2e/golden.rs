//! Whole repositories that earlier programs wrote, each in `tests/tests/golden/<version>`: they are read and written on,
//! and hold what they held.
//!
//! Written by `LVKEEP_BLESS=1 cargo test -p tests --test e2e golden::written`, which never touches a version that is there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schema::tombstone::TOMBSTONE_LEN;
use tests::e2e::Machine;

pub const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
/// The version that this program writes.
const WRITTEN: &str = "v2";
const KIB: usize = 1 << 10;

/// What a volume held on a day: bytes that depend on nothing but their names, beside repeated and empty ones.
pub fn content(volume: &str, day: u32) -> Vec<u8> {
    let mut bytes = vec![0; 1200 * KIB + 100];
    let mut put = |at: usize, length: usize, name: &str| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(name.as_bytes()).finalize_xof().fill(&mut bytes[at..at + length]);
    };
    put(0, 96 * KIB, "what all volumes share");
    put(200 * KIB, 64 * KIB, volume);
    if day > 1 {
        put(210 * KIB, 8 * KIB, &format!("{volume} on day {day}"));
        put(1200 * KIB, 100, "a tail that is no whole sector");
    }
    let line = format!("{volume} says the same all day long\n");
    line.bytes().cycle().zip(&mut bytes[500 * KIB..700 * KIB]).for_each(|(from, to)| *to = from);
    bytes
}

/// The snapshots, oldest first. The last of them was forgotten; since `v2`, another one was swept.
const SNAPSHOTS: [(&str, u32); 4] = [("vm/a", 1), ("vm/b", 1), ("vm/a", 2), ("vm/b", 2)];

pub fn machine_with(repository: &str, identity: &str) -> Machine {
    let mut machine = Machine::new("golden");
    machine.set("LVKEEP_REPO", repository);
    machine.set("LVKEEP_IDENTITY", identity);
    machine.set("LVKEEP_CACHE", &machine.place("cache"));
    machine
}

pub fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

pub fn back_up(machine: &Machine, volume: &str, day: u32) -> serde_json::Value {
    let image = machine.place("image");
    std::fs::write(&image, content(volume, day)).expect("an image");
    machine.json(&["backup", "--name", volume, &image])
}

pub fn id(done: &serde_json::Value) -> String {
    done["snapshot"].as_str().expect("a snapshot's id").to_owned()
}

pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).expect("a copy");
        }
    }
}

#[track_caller]
pub fn restores(machine: &Machine, snapshot: &str, volume: &str, day: u32) {
    let target = machine.place("restored");
    machine.run(&["restore", "--force", snapshot, &target]).ok();
    let restored = std::fs::read(target).expect("what was restored");
    assert!(restored == content(volume, day), "{snapshot} of {volume} holds something else");
}

#[test]
fn written() {
    let folder = Path::new(FOLDER).join(WRITTEN);
    if std::env::var_os("LVKEEP_BLESS").is_none() {
        assert!(folder.is_dir(), "{} is to be written: see the head of this file", folder.display());
        return;
    }
    assert!(!folder.exists(), "{} is there, and stays as it is", folder.display());
    std::fs::create_dir_all(&folder).expect("a folder");
    let (repository, identity) = (folder.join("repository"), folder.join("identity"));
    let machine = machine_with(path(&repository), path(&identity));
    machine.run(&["init", "--identity-out", path(&identity)]).ok();
    let ids = SNAPSHOTS.map(|(volume, day)| id(&back_up(&machine, volume, day)));
    machine.run(&["hold", &ids[0], "--note", "the first of all"]).ok();
    machine.run(&["tag", &ids[2], "--set", "second"]).ok();
    let swept = id(&back_up(&machine, "vm/c", 1));
    machine.run(&["forget", "--allow-last", &swept]).ok();
    assert_eq!(machine.json(&["prune"])["finished"], true);
    machine.run(&["forget", "--allow-last", &ids[3]]).ok();
    std::fs::write(folder.join("snapshots"), ids.join("\n") + "\n").expect("the ids");
}

/// Reads a version's repository, and writes on.
fn is_read(version: &Path) {
    let ids = std::fs::read_to_string(version.join("snapshots")).expect("the ids");
    let ids: Vec<&str> = ids.lines().collect();
    let mut machine = machine_with("", path(&version.join("identity")));
    let repository = machine.place("repository");
    machine.set("LVKEEP_REPO", &repository);
    copy(&version.join("repository"), Path::new(&repository));

    let checked = machine.run(&["check", "--read-data"]).ok();
    let is_sealed = machine.run(&["key", "show"]).ok().out.contains("sealed-tombstones-1");
    assert_eq!(checked.err.contains("before tombstones were sealed"), !is_sealed, "{checked}");
    let listed = machine.json(&["snapshots"]);
    let listed: BTreeMap<&str, &serde_json::Value> = listed
        .as_array()
        .expect("a list")
        .iter()
        .map(|row| (row["id"].as_str().expect("an id"), row))
        .collect();
    assert_eq!(listed.len(), 3, "{listed:?}");
    for (number, (id, (volume, day))) in ids.iter().zip(SNAPSHOTS).take(3).enumerate() {
        let row = listed[id];
        assert_eq!((&row["held"], &row["volume"]), (&(number == 0).into(), &volume.into()), "{row}");
        let tags = if number == 2 { serde_json::json!(["second"]) } else { serde_json::json!([]) };
        assert_eq!(row["tags"], tags, "{row}");
        restores(&machine, id, volume, day);
    }

    let done = back_up(&machine, "vm/a", 3);
    assert_eq!(done["generation"], 3, "its parent is read: {done}");
    let new = done["bytes_new"].as_u64().expect("a number");
    assert!(new < 200 * KIB as u64, "what is there is found again: {done}");
    restores(&machine, "vm/a@latest", "vm/a", 3);

    machine.run(&["forget", ids[0]]).fails(3, &["held"]);
    machine.run(&["unforget", ids[3]]).ok();
    restores(&machine, "vm/b@latest", "vm/b", 2);
    machine.run(&["forget", "--keep-last", "1"]).ok();
    assert_eq!(machine.json(&["prune"])["finished"], true);
    machine.run(&["check", "--read-data"]).ok();
    restores(&machine, ids[0], "vm/a", 1);
    restores(&machine, "vm/a@latest", "vm/a", 3);
    keeps_to_its_tombstones(version, Path::new(&repository));
}

/// What a repository's tombstones are was decided when it was made.
pub fn keeps_to_its_tombstones(version: &Path, repository: &Path) {
    let name = version.file_name().and_then(|name| name.to_str()).expect("a version's name");
    let size = if name.starts_with("v1") { 0 } else { TOMBSTONE_LEN };
    let volumes = std::fs::read_dir(repository.join("snapshots")).expect("slots");
    let slots =
        volumes.flat_map(|volume| std::fs::read_dir(volume.expect("a volume").path()).expect("slots"));
    let sizes: Vec<u64> =
        slots.map(|slot| slot.expect("a slot").metadata().expect("its size").len()).collect();
    let tombstones: Vec<&u64> = sizes.iter().filter(|size| **size <= TOMBSTONE_LEN).collect();
    assert!(!tombstones.is_empty() && tombstones.iter().all(|found| **found == size), "{name}: {sizes:?}");
}

#[test]
fn repositories_of_every_version_are_read() {
    let versions: Vec<PathBuf> = std::fs::read_dir(FOLDER)
        .expect("the folder of golden repositories")
        .map(|entry| entry.expect("an entry").path())
        // Those of `golden_marked` hold other snapshots.
        .filter(|version| !super::golden_marked::VERSIONS.iter().any(|marked| version.ends_with(marked)))
        .collect();
    assert!(versions.iter().any(|version| version.ends_with(WRITTEN)), "{versions:?}");
    versions.iter().for_each(|version| is_read(version));
}
