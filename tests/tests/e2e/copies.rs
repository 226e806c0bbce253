//! `copy` with real processes: what comes back from the second repository is what was backed up to the first.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::process::Signal;
use schema::limits::CHUNK_MAX;
use schema::{Domain, names};
use tests::e2e::{Archive, Machine, eventually, random_file};

const MIB: u64 = 1 << 20;

/// How the second repository is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// With the keys of the first.
    Like,
    /// With keys of its own.
    Apart,
    /// Neither is encrypted.
    Plain,
}

struct Two {
    machine: Machine,
    first: Archive,
    second: Archive,
    way: Way,
}

fn two(way: Way) -> Two {
    let mut machine = Machine::new("m");
    let (repo, offsite) = (machine.place("repo"), machine.place("offsite"));
    machine.set("LVKEEP_REPO", &repo);
    let init = |arguments: &[&str]| {
        machine.json(&[&["init", "--pack-size", "1MiB"], arguments].concat())["identity"]
            .as_str()
            .map(str::to_owned)
    };
    let plain: &[&str] = if way == Way::Plain { &["--no-encryption"] } else { &[] };
    let identity = init(plain);
    let like: &[&str] = if way == Way::Apart { &[] } else { &["--like", &repo] };
    let other = init(&[&["--repo", &offsite], like].concat()).or(identity.clone());
    // Whatever opens a plain repository is not asked for.
    let open = |path: &str, identity: Option<String>| match identity {
        Some(identity) => Archive::in_directory(path, identity),
        None => Archive::plain_in_directory(path),
    };
    let (first, second) = (open(&repo, identity), open(&offsite, other));
    Two { machine, first, second, way }
}

impl Two {
    fn backup(&self, name: &str, image: &str) {
        self.machine.run(&["backup", "--name", name, image]).ok();
    }

    fn copy(&self) -> serde_json::Value {
        self.machine.json(&["copy", "--to", &self.machine.place("offsite")])
    }

    /// Works with the second repository from now on.
    fn go_offsite(&mut self) {
        self.machine.set("LVKEEP_REPO", &self.machine.place("offsite"));
    }
}

fn overwrite(path: &str, at: u64, len: u64, seed: u64) {
    let part = format!("{path}.part");
    random_file(&part, len, seed);
    let file = OpenOptions::new().write(true).open(path).expect("an image");
    file.write_all_at(&std::fs::read(&part).expect("random bytes"), at).expect("new bytes");
}

fn bytes(value: &serde_json::Value) -> u64 {
    value.as_u64().expect("a size")
}

/// What a MiB costs that was written to so many places: at each, a chunk begins before it and one ends behind it, by cuts
/// that differ from repository to repository; and what stands around the frames.
fn at_most(places: u64) -> u64 {
    MIB + places * 2 * CHUNK_MAX as u64 + MIB / 16
}

fn copies_are_incremental_and_restore(way: Way) {
    let mut two = two(way);
    let images = [0, 1, 2].map(|n| two.machine.place(&format!("{n}.img")));
    random_file(&images[0], 12 * MIB, 1);
    // Zeroes, and the same content twice.
    OpenOptions::new().write(true).open(&images[0]).expect("an image").set_len(80 * MIB).expect("zeroes");
    std::fs::copy(&images[0], &images[1]).expect("a copy");
    overwrite(&images[1], 4 * MIB, MIB, 2);
    overwrite(&images[1], 70 * MIB, MIB, 2);
    two.backup("vm/a", &images[0]);
    two.backup("vm/a", &images[1]);
    let dry = two.machine.json(&["copy", "--dry-run", "--to", &two.machine.place("offsite")]);
    assert_eq!((dry["copied"].as_array().map(Vec::len), two.second.size()), (Some(2), 0), "{dry}");

    let report = two.copy();
    assert_eq!(
        (&report["verbatim"], &report["verified"]),
        (&(way != Way::Apart).into(), &true.into()),
        "{report}"
    );
    let [whole, difference] = [0, 1].map(|n| bytes(&report["copied"][n]["bytes_stored"]));
    assert!(whole > 12 * MIB && whole < 13 * MIB, "{report}");
    assert!(difference > MIB && difference < at_most(2), "{report}");
    // What stands at two places is read twice where only its content tells its name.
    assert!(bytes(&report["copied"][1]["bytes_fetched"]) < 2 * at_most(2), "{report}");

    std::fs::copy(&images[1], &images[2]).expect("a copy");
    overwrite(&images[2], 40 * MIB, MIB, 3);
    two.backup("vm/a", &images[2]);
    let before = two.second.size();
    let report = two.copy();
    assert_eq!(
        (report["copied"].as_array().map(Vec::len), &report["present"]),
        (Some(1), &2.into()),
        "{report}"
    );
    assert!(two.second.size() - before < at_most(1), "{report}");
    assert!(bytes(&report["copied"][0]["bytes_fetched"]) < at_most(1), "{report}");
    let report = two.copy();
    assert_eq!(
        (report["copied"].as_array().map(Vec::len), &report["present"]),
        (Some(0), &3.into()),
        "{report}"
    );
    assert_eq!((two.first.open_sessions(), two.second.open_sessions()), (0, 0));
    let ids = |machine: &Machine| {
        let rows = machine.json(&["snapshots"]);
        let row =
            |row: &serde_json::Value| (row["generation"].clone(), row["time"].clone(), row["size"].clone());
        rows.as_array().expect("a list").iter().map(row).collect::<Vec<_>>()
    };
    let listed = ids(&two.machine);

    // The first is gone.
    std::fs::rename(two.machine.place("repo"), two.machine.place("gone")).expect("the first repository goes");
    two.go_offsite();
    assert_eq!(ids(&two.machine), listed);
    two.machine.run(&["check", "--read-data"]).ok();
    for (row, image) in two.machine.json(&["snapshots"]).as_array().expect("a list").iter().zip(&images) {
        two.machine.restores(row["id"].as_str().expect("an id"), image);
    }
    let again = two.machine.json(&["backup", "--name", "vm/a", &images[2]]);
    assert_eq!(again["generation"], 4, "{again}");
    // Other keys cut elsewhere.
    assert_eq!(bytes(&again["bytes_new"]) == 0, way != Way::Apart, "{again}");
    assert_eq!(two.second.copies().excess_percent(), 0.0);

    // And made again: what is copied back is whose copy it is.
    std::fs::rename(two.machine.place("gone"), two.machine.place("repo"))
        .expect("the first repository is back");
    let back = two.machine.json(&["copy", "--to", &two.machine.place("repo")]);
    assert_eq!((back["copied"].as_array().map(Vec::len), &back["present"]), (Some(1), &3.into()), "{back}");
}

#[test]
fn copies_with_shared_keys_are_incremental_and_restore() {
    copies_are_incremental_and_restore(Way::Like);
}

#[test]
fn copies_with_other_keys_are_incremental_and_restore() {
    copies_are_incremental_and_restore(Way::Apart);
}

#[test]
fn copies_without_encryption_are_incremental_and_restore() {
    copies_are_incremental_and_restore(Way::Plain);
}

fn what_a_killed_copy_stored_is_used(way: Way) {
    let mut two = two(way);
    two.machine.configure("pack_max_age = \"1s\"");
    let image = two.machine.place("disk.img");
    random_file(&image, 24 * MIB, 1);
    two.backup("vm/disk", &image);
    let other = two.machine.place("other.img");
    random_file(&other, MIB, 2);
    let other = two.machine.json(&["backup", "--name", "vm/other", &other]);
    let offsite = two.machine.place("offsite");
    let mut copy = two.machine.start(&["copy", "--limit-upload", "16MiB", "--to", &offsite]);
    eventually("packs are stored", || (two.second.packs()?.len() > 5 || copy.has_ended()).then_some(()));
    copy.kill();
    let stored = two.second.size();
    // Nothing of it is in sight, and the next one is not in its way.
    assert_eq!(two.machine.json(&["--repo", &offsite, "snapshots"]).as_array().map(Vec::len), Some(0));
    // What it reads is not collected.
    two.first.forget(other["snapshot"].as_str().expect("an id"));
    let pruned = two.machine.json(&["prune"]);
    assert_eq!((&pruned["finished"], &pruned["packs_deleted"]), (&false.into(), &0.into()), "{pruned}");
    assert_eq!(pruned["waits_for"][0]["kind"], "copy", "{pruned}");
    let report = two.copy();
    assert!(
        bytes(&report["copied"][0]["bytes_stored"]) <= 25 * MIB - stored,
        "{stored} bytes were there: {report}"
    );
    if two.way == Way::Like {
        assert!(bytes(&report["copied"][0]["bytes_fetched"]) <= 25 * MIB - stored, "{report}");
    }
    two.go_offsite();
    two.machine.restores("vm/disk@latest", &image);
    two.machine.run(&["check", "--read-data"]).ok();
    assert_eq!(two.second.copies().excess_percent(), 0.0);
    // Of the first repository's, and of the second's.
    assert_eq!((two.first.open_sessions(), two.second.open_sessions()), (1, 1));
}

/// What somebody stops has not failed, and what was not begun is said.
#[test]
fn a_copy_that_is_stopped_says_what_was_not_begun() {
    let two = two(Way::Like);
    for number in 0..3 {
        let image = two.machine.place("disk.img");
        random_file(&image, 8 * MIB, number);
        two.backup("vm/disk", &image);
    }
    let offsite = two.machine.place("offsite");
    let mut copy = two.machine.start(&["copy", "--limit-upload", "4MiB", "--to", &offsite]);
    eventually("packs are stored", || (!two.second.packs()?.is_empty() || copy.has_ended()).then_some(()));
    copy.signal(Signal::INT);
    let ended = copy.end().fails(7, &["interrupted"]);
    assert!(ended.out.contains("2 not begun"), "{ended}");
    assert_eq!((two.first.open_sessions(), two.second.open_sessions()), (0, 0));
}

#[test]
fn what_a_killed_copy_stored_is_used_with_shared_keys() {
    what_a_killed_copy_stored_is_used(Way::Like);
}

#[test]
fn what_a_killed_copy_stored_is_used_with_other_keys() {
    what_a_killed_copy_stored_is_used(Way::Apart);
}

fn a_damaged_chunk_fails_its_snapshot_alone(way: Way) {
    let mut two = two(way);
    let image = |name: &str| two.machine.place(&format!("{name}.img"));
    let images = ["a", "bad", "c"].map(image);
    for (seed, image) in images.iter().enumerate() {
        random_file(image, 2 * MIB, seed as u64);
        let name = Path::new(image).file_stem().and_then(|name| name.to_str()).expect("a name");
        two.backup(&format!("vm/{name}"), image);
        if name == "bad" {
            damage(&two);
        }
    }
    let offsite = two.machine.place("offsite");
    let ran = two.machine.run(&["--json", "copy", "--to", &offsite]).fails(6, &["vm/bad", "at offset"]);
    let report = ran.json();
    assert_eq!(report["copied"].as_array().map(Vec::len), Some(2), "{report}");
    assert_eq!(report["failed"][0]["volume"], "vm/bad", "{report}");
    assert_eq!((two.first.open_sessions(), two.second.open_sessions()), (0, 0));
    two.go_offsite();
    two.machine.run(&["check", "--read-data"]).ok();
    two.machine.restores("vm/a@latest", &images[0]);
    two.machine.restores("vm/c@latest", &images[2]);
}

/// Flips a bit of content in the newest pack of the first repository.
fn damage(two: &Two) {
    let mut packs = two.first.packs().expect("a listing");
    packs.sort();
    for pack in packs.into_iter().rev() {
        let (header, footer) =
            two.first.block_on(two.first.repository().read_footer(pack)).expect("a footer");
        if header.kind == Domain::Data {
            let path = format!("{}/{}", two.machine.place("repo"), names::pack(pack));
            let file = OpenOptions::new().read(true).write(true).open(path).expect("a pack");
            let (mut byte, at) = ([0], u64::from(footer.entries[0].offset) + 100);
            file.read_exact_at(&mut byte, at).expect("a byte");
            file.write_all_at(&[byte[0] ^ 4], at).expect("a flipped bit");
            return;
        }
    }
    panic!("no pack of content");
}

#[test]
fn a_damaged_chunk_fails_its_snapshot_alone_with_shared_keys() {
    a_damaged_chunk_fails_its_snapshot_alone(Way::Like);
}

#[test]
fn a_damaged_chunk_fails_its_snapshot_alone_with_other_keys() {
    a_damaged_chunk_fails_its_snapshot_alone(Way::Apart);
}

#[test]
fn only_what_is_asked_for_is_copied_and_frames_move_without_an_identity() {
    let mut two = two(Way::Like);
    let offsite = two.machine.place("offsite");
    let image = two.machine.place("disk.img");
    random_file(&image, MIB, 1);
    for name in ["vm/a", "vm/b", "undo/m/x"] {
        two.backup(name, &image);
    }
    let (repo, strange) = (two.machine.place("repo"), two.machine.place("strange"));
    two.machine.run(&["copy", "--to", &repo]).fails(3, &["itself"]);
    two.machine.run(&["copy", "--to", &strange]).fails(3, &["holds no repository"]);
    two.machine.run(&["init", "--repo", &offsite, "--like", &repo]).fails(3, &["holds a repository already"]);
    two.machine.run(&["init", "--repo", &strange, "--like", &strange]).fails(3, &["holds no repository"]);

    // What opens content is elsewhere.
    let identities = two.machine.home().join(".config/lvkeep/keys");
    for entry in std::fs::read_dir(&identities).expect("keys").map(|entry| entry.expect("a key").path()) {
        if entry.extension().is_some_and(|kind| kind == "identity") {
            let aside = entry.with_extension("aside");
            std::fs::rename(entry, aside).expect("an identity goes");
        }
    }
    two.machine.run(&["copy", "--to", &offsite]).fails(3, &["--identity", "--unverified"]);
    let report = two.machine.json(&["copy", "--to", &offsite, "--unverified", "--volume", "*/a"]);
    assert_eq!(
        (&report["copied"][0]["volume"], &report["verified"]),
        (&"vm/a".into(), &false.into()),
        "{report}"
    );
    for of in [["--volume", "nope"], ["--tag", "nope"], ["--host", "nope"]] {
        let copy = ["copy", "--to", &offsite, "--unverified", of[0], of[1]];
        two.machine.run(&copy).fails(3, &["no snapshot is what was asked for"]);
    }
    // Nothing was backed up then, which is no mistake.
    let none = two.machine.json(&["copy", "--to", &offsite, "--unverified", "--until", "2001-01-01"]);
    assert_eq!(none["copied"], serde_json::json!([]), "{none}");
    let hinted = two.machine.run(&["copy", "--to", &offsite, "--unverified", "--volume", "vm"]);
    hinted.fails(3, &["no volume is called \"vm\"", "'vm/*'"]);
    let said = two.machine.run(&["copy", "--to", &offsite, "--unverified"]).ok();
    assert!(said.out.contains("1 snapshots copied") && said.out.contains("NOT VERIFIED"), "{said}");
    assert!(said.err.contains("vm/b") && !said.err.contains("undo/"), "{said}");
    two.machine.run(&["init", "--repo", &strange, "--no-encryption"]).ok();
    two.machine.run(&["copy", "--to", &strange]).fails(3, &[&strange, "NOT", "--no-encryption"]);
    let plain = two.machine.run(&["copy", "--to", &strange, "--no-encryption", "--dry-run"]).ok();
    assert!(plain.out.contains("NOT ENCRYPTED"), "{plain}");
    two.machine
        .run(&["copy", "--to", &strange, "--no-encryption"])
        .fails(3, &["do not share their keys", "--identity"]);
    assert_eq!(two.first.open_sessions(), 0);

    for entry in std::fs::read_dir(&identities).expect("keys").map(|entry| entry.expect("a key").path()) {
        if entry.extension().is_some_and(|kind| kind == "aside") {
            std::fs::rename(&entry, entry.with_extension("identity")).expect("an identity is back");
        }
    }
    // What is tagged after the backup counts, and comes with its note.
    two.machine.run(&["tag", "undo/m/x@latest", "--add", "kept"]).ok();
    two.machine.run(&["note", "undo/m/x@latest", "for the audit"]).ok();
    let undo = two.machine.json(&["copy", "--to", &offsite, "--volume", "undo/*", "--tag", "kept"]);
    assert_eq!(undo["copied"][0]["volume"], "undo/m/x", "{undo}");
    two.go_offsite();
    let there = two.machine.json(&["snapshots", "--tag", "kept"]);
    assert_eq!(
        (there.as_array().map(Vec::len), &there[0]["note"]),
        (Some(1), &"for the audit".into()),
        "{there}"
    );
    two.machine.restores("vm/a@latest", &image);
    two.machine.run(&["check", "--read-data"]).ok();
}

#[test]
fn what_came_back_is_not_copied_again_and_a_note_that_is_missing_is_brought() {
    let mut two = two(Way::Like);
    let image = two.machine.place("disk.img");
    for seed in [1, 2] {
        random_file(&image, MIB, seed);
        two.backup("vm/disk", &image);
    }
    let first = two.machine.json(&["snapshots"])[0]["id"].as_str().expect("an id").to_owned();
    two.machine.run(&["note", &first, "for the audit"]).ok();
    assert_eq!(two.copy()["copied"].as_array().map(Vec::len), Some(2));
    two.machine.run(&["forget", &first]).ok();
    two.machine.run(&["unforget", &first]).ok();
    let report = two.copy();
    assert_eq!((&report["copied"], &report["present"]), (&serde_json::json!([]), &2.into()), "{report}");

    // As a copy leaves it that is killed after its commit.
    std::fs::remove_dir_all(two.machine.place("offsite/marks")).expect("the note goes");
    two.copy();
    let offsite = two.machine.place("offsite");
    let there = || two.machine.json(&["snapshots", "--repo", &offsite])[0].clone();
    assert_eq!(there()["note"], "for the audit");
    let id = there()["id"].as_str().expect("an id").to_owned();
    two.machine.run(&["note", "--repo", &offsite, &id, ""]).ok();
    two.copy();
    assert!(there()["note"].is_null(), "what was taken away there stays away");
    two.go_offsite();
    two.machine.run(&["check"]).ok();
}
