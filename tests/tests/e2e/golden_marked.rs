//! A whole repository that an earlier program left in the middle of things: with recorded damage, a snapshot with holes,
//! a hold, tags and notes, a snapshot that is forgotten, and a collection that has condemned packs and waits. It is read,
//! healed, thinned out, and collected to the end.
//!
//! Written by `LVKEEP_BLESS=1 cargo test -p tests --test e2e golden_marked::written`, which touches nothing that is there.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use schema::names;
use schema::session::{Session, SessionKind};
use tests::e2e::{Archive, Machine};

use super::golden::{
    FOLDER, back_up, content, copy, id, keeps_to_its_tombstones, machine_with, path, restores,
};

/// What programs have written, the last of them this one.
pub const VERSIONS: [&str; 2] = ["v1-marked", "v2-marked"];

/// The snapshots, in the order in which they were made. The second one of them is forgotten, and the last one damaged.
const SNAPSHOTS: [(&str, u32); 5] = [("vm/a", 1), ("vm/b", 1), ("vm/a", 2), ("vm/b", 2), ("vm/c", 1)];

/// Flips a bit of what the newest pack of content holds.
fn damage(archive: &Archive, repository: &Path) {
    let mut packs = archive.packs().expect("a listing");
    packs.sort();
    for pack in packs.into_iter().rev() {
        let (header, footer) = archive.block_on(archive.repository().read_footer(pack)).expect("a footer");
        if header.kind == schema::Domain::Data {
            let file = repository.join(names::pack(pack));
            let file = OpenOptions::new().read(true).write(true).open(file).expect("a pack");
            let at = u64::from(footer.entries[0].offset) + u64::from(footer.entries[0].len) / 2;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("a byte");
            return file.write_all_at(&[byte[0] ^ 0x10], at).expect("a flipped bit");
        }
    }
    panic!("no pack of content");
}

/// Leaves the object of a session that nobody drives.
fn open_session(archive: &Archive) -> String {
    let repository = archive.repository();
    let environment = repository.environment();
    let id = environment.session_id();
    let session = Session {
        id,
        kind: SessionKind::Restore,
        slot: None,
        job: environment.job_id(),
        volume: "vm/a".into(),
        host: "elsewhere".into(),
        started_ms: environment.now_ms(),
        checkpoint: None,
        ended: None,
        undo: Vec::new(),
    };
    let key = names::session(id);
    let sealed = repository.seal(&key, &session).expect("a session");
    archive.block_on(repository.store.create(&key, sealed)).expect("a session");
    id.to_string()
}

#[test]
fn written() {
    let folder = Path::new(FOLDER).join(VERSIONS[VERSIONS.len() - 1]);
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
    machine.run(&["note", &ids[2], "for the audit"]).ok();
    machine.run(&["forget", &ids[1]]).ok();
    let archive = Archive::in_directory(&repository, &identity);
    damage(&archive, &repository);
    machine.run(&["repair", "--read-data"]).fails(6, &["damaged"]);
    let session = open_session(&archive);
    assert_eq!(machine.json(&["prune"])["finished"], false);
    std::fs::write(folder.join("snapshots"), ids.join("\n") + "\n").expect("the ids");
    std::fs::write(folder.join("session"), session + "\n").expect("the session");
}

fn lines(version: &Path, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(version.join(name)).expect("ids");
    text.lines().map(str::to_owned).collect()
}

/// Bytes that are lost of a snapshot, as the list says.
fn lost(machine: &Machine, id: &str) -> u64 {
    let listed = machine.json(&["snapshots"]);
    let mut rows = listed.as_array().expect("a list").iter();
    rows.find(|row| row["id"] == id).expect("the snapshot")["bytes_lost"].as_u64().expect("a number")
}

#[test]
fn what_was_left_in_the_middle_is_read_healed_and_collected() {
    VERSIONS.iter().for_each(|version| is_read_healed_and_collected(&Path::new(FOLDER).join(version)));
}

fn is_read_healed_and_collected(version: &Path) {
    let (ids, session) = (lines(version, "snapshots"), lines(version, "session").remove(0));
    let mut machine = machine_with("", path(&version.join("identity")));
    let repository = machine.place("repository");
    machine.set("LVKEEP_REPO", &repository);
    copy(&version.join("repository"), Path::new(&repository));

    // What is said of snapshots.
    let listed = machine.json(&["snapshots"]);
    let row = |id: &str| {
        let mut rows = listed.as_array().expect("a list").iter();
        rows.find(|row| row["id"] == id).expect("the snapshot").clone()
    };
    assert_eq!(listed.as_array().map(Vec::len), Some(4), "{listed}");
    assert_eq!(row(&ids[0])["held"], true);
    assert_eq!(
        (&row(&ids[2])["tags"], &row(&ids[2])["note"]),
        (&serde_json::json!(["second"]), &"for the audit".into())
    );
    let bytes_lost = lost(&machine, &ids[4]);
    assert!(bytes_lost > 0 && [0, 2, 3].iter().all(|at| lost(&machine, &ids[*at]) == 0), "{listed}");
    for command in [&["check"][..], &["check", "--read-data"]] {
        let found = machine.run(command).fails(6, &["1 of 4 snapshots are damaged"]);
        assert!(found.out.contains("DAMAGED vm/c"), "{found}");
    }
    for at in [0, 2, 3] {
        restores(&machine, &ids[at], SNAPSHOTS[at].0, SNAPSHOTS[at].1);
    }
    // Around the holes is what was there.
    let target = machine.place("holed");
    machine.run(&["restore", &ids[4], &target]).fails(6, &["--keep-going"]);
    machine.run(&["restore", "--keep-going", &ids[4], &target]).fails(6, &["vm/c"]);
    let (restored, expected) = (std::fs::read(&target).expect("a file"), content("vm/c", 1));
    let differing = restored.iter().zip(&expected).filter(|(a, b)| a != b).count() as u64;
    assert!(restored.len() == expected.len() && differing <= bytes_lost, "{differing} of {bytes_lost}");

    // What a collection has begun is gone on with, and what protects something holds.
    machine.run(&["forget", &ids[0]]).fails(3, &["the first of all"]);
    machine.run(&["unforget", &ids[1]]).fails(3, &["swept"]);
    assert_eq!(machine.json(&["prune"])["waits_for"][0]["session"], session.as_str());
    machine.run(&["cancel", &session]).ok();
    let pruned = machine.json(&["prune"]);
    assert_eq!((&pruned["finished"], &pruned["snapshots_removed"]), (&true.into(), &1.into()), "{pruned}");
    assert!(pruned["packs_deleted"].as_u64().expect("a number") > 0, "{pruned}");

    // What the volume still has heals what was lost.
    assert_eq!(back_up(&machine, "vm/c", 1)["generation"], 2);
    let repaired = machine.run(&["repair", "--read-data"]).ok();
    assert!(repaired.to_string().contains("1 chunk that was recorded as damaged is healed"), "{repaired}");
    assert_eq!(lost(&machine, &ids[4]), 0);
    restores(&machine, &ids[4], "vm/c", 1);
    machine.run(&["forget", "--keep-last", "1"]).ok();
    // The damaged copy goes with the pack that it is in.
    assert_eq!(machine.json(&["prune", "--repack-below", "100"])["finished"], true);
    machine.run(&["check", "--read-data"]).ok();
    restores(&machine, &ids[0], "vm/a", 1);
    restores(&machine, "vm/c@latest", "vm/c", 1);
    keeps_to_its_tombstones(version, Path::new(&repository));
}
