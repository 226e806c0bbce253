//! What is forgotten, what is not, and what comes back: rules, holds, policies, and all of it at one moment.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use schema::tombstone::TOMBSTONE_LEN;
use tests::e2e::{Machine, random_file, same_bytes};

use super::prune::count;

/// A machine with `disk.img` of 2 MiB, backed up so often as `vm/disk`, each time with other first bytes; and the ids.
fn prepared(backups: u8) -> (Machine, Vec<String>) {
    let mut machine = Machine::new("m");
    machine.set("LVKEEP_REPO", &machine.place("repo"));
    // It names this host, and chooses no snapshots.
    machine.set("LVKEEP_HOST", "m");
    machine.run(&["init"]).ok();
    random_file(machine.place("disk.img"), 2 << 20, 1);
    let ids = (1..=backups).map(|number| back_up(&machine, number)).collect();
    (machine, ids)
}

/// Backs the disk up with other first bytes, and returns the snapshot's id.
fn back_up(machine: &Machine, number: u8) -> String {
    let image = machine.place("disk.img");
    let file = std::fs::File::options().write(true).open(&image).expect("the image");
    file.write_all_at(&[number; 4096], 0).expect("the image changes");
    let tag = format!("number-{number}");
    let done = machine.json(&["backup", "--name", "vm/disk", "--tag", &tag, &image]);
    done["snapshot"].as_str().expect("an id").to_owned()
}

fn ids(machine: &Machine, more: &[&str]) -> Vec<String> {
    let listed = machine.json(&[&["snapshots"], more].concat());
    let rows = listed.as_array().expect("a list").iter();
    rows.map(|row| row["id"].as_str().expect("an id").to_owned()).collect()
}

#[test]
fn what_no_rule_keeps_is_forgotten_and_comes_back() {
    let (machine, all) = prepared(3);
    machine.run(&["forget"]).fails(3, &["--keep-", "--dry-run"]);
    machine.run(&["forget", "--keep-last", "0"]).fails(2, &["--keep-last"]);
    machine.run(&["forget", "--keep-within", "2mo"]).fails(2, &["2mo", "14d"]);
    machine.run(&["forget", "--keep-last", "1", "--volume", "other/*"]).fails(3, &["no snapshot"]);

    let rules = ["forget", "--keep-last", "1", "--keep-tag", "number-2"];
    let dry = machine.json(&[&rules[..], &["--dry-run"]].concat());
    assert_eq!((&dry["kept"], &dry["forgotten"], &dry["dry_run"]), (&2.into(), &1.into(), &true.into()));
    let reasons: Vec<_> = (0..3).map(|at| dry["snapshots"][at]["reasons"].clone()).collect();
    assert_eq!(
        reasons,
        [serde_json::json!([]), serde_json::json!(["tag number-2"]), serde_json::json!(["newest", "last"])]
    );
    let text = machine.run(&[&rules[..], &["--dry-run"]].concat()).ok();
    assert!(text.out.contains("no rule keeps it") && text.out.contains("1 would be forgotten"), "{text}");
    assert_eq!(ids(&machine, &[]), all, "nothing was forgotten yet");

    let done = machine.run(&rules).ok();
    assert!(done.out.contains("1 is forgotten") && done.out.contains("unforget"), "{done}");
    assert_eq!(ids(&machine, &[]), all[1..]);
    assert_eq!(ids(&machine, &["--forgotten"]), all[..1]);
    let target = machine.place("target.img");
    for command in [&["show", &all[0]][..], &["restore", &all[0], &target], &["hold", &all[0]]] {
        machine.run(command).fails(3, &[&format!("lvkeep unforget {}", all[0])]);
    }
    assert_eq!(machine.json(&rules)["forgotten"], 0, "once more, nothing goes");

    let back = machine.json(&["unforget", &all[0]]);
    let id = back["snapshot"].as_str().expect("an id");
    assert_eq!(ids(&machine, &[]), [&[id.to_owned()], &all[1..]].concat(), "in its old place");
    assert_eq!(ids(&machine, &["--forgotten"]), Vec::<String>::new());
    assert_eq!(machine.json(&["unforget", &all[0]])["already"], true);
    machine.run(&["unforget", &all[1]]).fails(3, &["never forgotten"]);
    machine.run(&["restore", id, &target]).ok();
    let image = machine.place("disk.img");
    let mut expected = std::fs::read(&image).expect("the image");
    expected[..4096].fill(1);
    assert!(std::fs::read(&target).expect("the target") == expected);
    machine.run(&["check", "--read-data"]).ok();
    assert_eq!(machine.json(&["status"])["sessions"], serde_json::json!([]));
}

#[test]
fn what_is_held_stays_and_the_newest_goes_only_when_that_is_said() {
    let (machine, all) = prepared(3);
    machine.run(&["hold", &all[0], "--note", "before the migration"]).ok();
    let rules = ["forget", "--keep-last", "1"];
    let done = machine.json(&rules);
    assert_eq!((&done["kept"], &done["forgotten"]), (&2.into(), &1.into()));
    let why = done["snapshots"][0]["reasons"][0].as_str().expect("a reason");
    assert!(why.contains("held by m") && why.contains("before the migration"), "{done}");
    machine.run(&["forget", &all[0]]).fails(3, &[&all[0], "held by m", "before the migration"]);
    assert_eq!(machine.json(&["snapshots"])[0]["held"], true);
    assert!(machine.run(&["snapshots"]).ok().out.contains("(held)"));
    assert!(machine.run(&["show", &all[0]]).ok().out.contains("before the migration"));
    machine.run(&["release", &all[0]]).ok();
    machine.run(&["release", &all[0]]).fails(3, &["is not held"]);
    // When one of several must not go, none does.
    machine.run(&["forget", &all[0], &all[2]]).fails(3, &[&all[2], "--allow-last"]);
    assert_eq!(ids(&machine, &[]), [&all[0], &all[2]].map(String::as_str));
    machine.run(&["forget", &all[0]]).ok();
    machine.run(&["forget", "--allow-last", "vm/disk@latest"]).ok();
    assert_eq!(ids(&machine, &[]), Vec::<String>::new());
    assert_eq!(ids(&machine, &["--forgotten"]), all);
    // The next backup compares with none of them, and stays the latest whatever comes back.
    let fresh = back_up(&machine, 9);
    assert_eq!(machine.json(&["show", &fresh])["generation"], 4);
    machine.run(&["unforget", &all[2]]).ok();
    assert_eq!(machine.json(&["show", "vm/disk@latest"])["id"], fresh.as_str());
}

/// The root of a snapshot, in the repository's folder.
fn root(machine: &Machine, id: &str) -> PathBuf {
    let volumes = std::fs::read_dir(machine.place("repo/snapshots")).expect("a folder");
    let roots = volumes.map(|volume| volume.expect("a folder").path().join(id));
    roots.into_iter().find(|path| path.exists()).expect("the root")
}

#[test]
fn a_damaged_root_stands_in_nobodys_way_and_can_be_let_go() {
    let version = |root: &[u8]| [&root[..4], &[root[4] ^ 0x10], &root[5..]].concat();
    for damage in [|root: &[u8]| root[..root.len() - 1].to_vec(), |_: &[u8]| Vec::new(), version] {
        is_let_go(damage);
    }
}

fn is_let_go(damage: impl Fn(&[u8]) -> Vec<u8>) {
    let (machine, all) = prepared(3);
    let image = machine.place("disk.img");
    let other = machine.json(&["backup", "--name", "vm/other", &image])["snapshot"].clone();
    let whole = std::fs::read(root(&machine, &all[1])).expect("a root");
    std::fs::write(root(&machine, &all[1]), damage(&whole)).expect("it is damaged");

    let named = [all[1].as_str(), "lvkeep forget"];
    let listed = machine.run(&["snapshots"]).fails(6, &named);
    assert!([&all[0], &all[2]].iter().all(|id| listed.out.contains(*id)), "{listed}");
    machine.run(&["snapshots", "--volume", "vm/other"]).ok();
    machine.run(&["status"]).fails(6, &named);
    // What is meant by a name is not known any more, and an id means the same.
    let target = machine.place("target.img");
    machine.run(&["restore", "vm/disk@latest", &target]).fails(6, &named);
    machine.run(&["restore", &all[2], &target]).ok();
    same_bytes(&image, &target);

    let offsite = machine.place("offsite");
    machine.run(&["init", "--repo", &offsite, "--like", &machine.place("repo")]).ok();
    let copied = machine.run(&["copy", "--to", &offsite]).fails(6, &named);
    assert!(copied.out.contains("3 snapshots copied"), "{copied}");
    let done = machine.run(&["forget", "--keep-last", "1"]).fails(6, &named);
    assert!(done.out.contains("2 snapshots stay, 1 is forgotten"), "{done}");
    let fresh = machine.json(&["backup", "--name", "vm/disk", &image]);
    assert_eq!((&fresh["generation"], &fresh["bytes_new"]), (&4.into(), &0.into()), "{fresh}");

    machine.run(&["forget", &all[1][..20]]).fails(6, &named);
    machine.run(&["prune"]).fails(6, &named);
    machine.run(&["snapshots", "--tag", "none"]).fails(6, &named);
    let forget = ["forget", &all[1]];
    let text = machine.run(&[&forget[..], &["--dry-run"]].concat()).ok();
    assert!(text.out.contains("CANNOT BE BROUGHT BACK"), "{text}");
    let planned = machine.json(&[&forget[..], &["--dry-run"]].concat());
    assert_eq!((&planned["forgotten"], &planned["snapshots"][0]["damaged"]), (&1.into(), &true.into()));
    let done = machine.run(&forget).ok();
    assert!(done.out.contains("1 snapshot is forgotten") && !done.out.contains("unforget"), "{done}");
    for command in [&["unforget", &all[1]][..], &["snapshots", "--forgotten"], &["show", &all[1]]] {
        let said = machine.run(command).fails(6, &[&all[1], "cannot be brought back"]);
        assert!(!said.err.contains("lvkeep forget"), "{said}");
    }
    let left = [all[2].as_str(), fresh["snapshot"].as_str().expect("an id"), other.as_str().expect("an id")];
    assert_eq!(ids(&machine, &[]), left);
    assert_eq!(machine.json(&["prune"])["finished"], true);
    machine.run(&["check", "--read-data"]).ok();
}

/// Lists do not show it, as they do not show what sessions left that were given up; nothing of it is lost by that.
#[test]
fn a_root_that_is_as_short_as_a_tombstone_is_named_and_can_be_let_go() {
    let (machine, all) = prepared(2);
    machine.run(&["hold", &all[1]]).ok();
    let whole = std::fs::read(root(&machine, &all[1])).expect("a root");
    std::fs::write(root(&machine, &all[1]), &whole[..TOMBSTONE_LEN as usize]).expect("it is cut off");
    assert_eq!(ids(&machine, &[]), all[..1]);
    let checked = machine.run(&["check"]).fails(6, &["1 of 2 snapshots are damaged"]);
    let said = [&*all[1], &format!("lvkeep forget {}", all[1]), "lvkeep repair"];
    assert!(said.iter().all(|said| checked.out.contains(said)), "{checked}");
    machine.run(&["prune"]).fails(6, &[&all[1], "lvkeep forget", "lvkeep release"]);
    machine.run(&["forget", &all[1]]).fails(3, &["held"]);
    let released = machine.run(&["release", &all[1]]).ok();
    assert!(released.out.contains("cannot be read"), "{released}");
    machine.run(&["release", &all[1]]).fails(3, &["not held"]);
    // A mark that is damaged may have been a hold, and counts as one until it is released.
    machine.run(&["release", &all[0]]).fails(3, &["not held"]);
    let root = root(&machine, &all[1]);
    let slot = root.strip_prefix(machine.place("repo/snapshots")).expect("a slot");
    let marks = PathBuf::from(machine.place("repo/marks")).join(slot);
    std::fs::create_dir_all(&marks).expect("a folder");
    std::fs::write(marks.join("00000000010000000000000000"), "cut").expect("a mark");
    machine.run(&["forget", &all[1]]).fails(3, &["may be a hold"]);
    machine.run(&["release", &all[1]]).ok();
    let done = machine.run(&["forget", &all[1]]).ok();
    assert!(done.out.contains("1 snapshot is forgotten"), "{done}");
    assert_eq!(machine.json(&["prune"])["finished"], true);
    machine.run(&["check"]).fails(6, &[&all[1], "lvkeep repair"]);
    for command in ["forget", "unforget"] {
        machine.run(&[command, &all[1]]).fails(6, &["cannot be brought back"]);
    }
    let repaired = machine.run(&["repair"]).ok();
    assert!(repaired.out.contains("says again that a snapshot is forgotten"), "{repaired}");
    machine.run(&["check", "--read-data"]).ok();
}

#[test]
fn tags_and_notes_are_changed_and_found() {
    let (machine, all) = prepared(2);
    machine.run(&["tag", &all[0], "--add", "audit", "--remove", "number-1"]).ok();
    machine.run(&["note", &all[0], "seen by the auditors"]).ok();
    assert_eq!(ids(&machine, &["--tag", "audit"]), all[..1]);
    assert_eq!(ids(&machine, &["--tag", "number-1"]), Vec::<String>::new());
    let shown = machine.json(&["show", &all[0]]);
    assert_eq!(
        (&shown["tags"], &shown["note"]),
        (&serde_json::json!(["audit"]), &"seen by the auditors".into())
    );
    machine.run(&["forget", "--keep-tag", "audit", "--dry-run"]).ok();
    machine.run(&["tag", &all[0], "--set", "a", "--set", "b"]).ok();
    assert_eq!(machine.json(&["show", &all[0]])["tags"], serde_json::json!(["a", "b"]));
    machine.run(&["tag", &all[0], "--set", ""]).ok();
    assert_eq!(machine.json(&["snapshots"])[0]["tags"], serde_json::json!([]));
    machine.run(&["tag", &all[0]]).fails(2, &["--set"]);
    machine.run(&["tag", &all[0], "--add", "@vg"]).fails(3, &["@vg", "cannot be a tag"]);
    // What was said of it comes back with it.
    machine.run(&["tag", &all[0], "--add", "late"]).ok();
    machine.run(&["forget", &all[0]]).ok();
    let forgotten = machine.json(&["snapshots", "--forgotten", "--tag", "late"]);
    assert_eq!(forgotten[0]["note"], "seen by the auditors", "{forgotten}");
    machine.run(&["unforget", &all[0]]).ok();
    assert_eq!(machine.json(&["snapshots"])[0]["note"], "seen by the auditors");
}

#[test]
fn policies_are_applied_after_each_backup() {
    let (machine, _) = prepared(1);
    machine.configure("[[retention]]\nvolumes = \"vm/*\"\nkeep_last = 2\n");
    let later: Vec<String> = (2..5).map(|number| back_up(&machine, number)).collect();
    assert_eq!(ids(&machine, &[]), later[1..]);
    let image = machine.place("disk.img");
    // Another volume is not meant.
    for _ in 0..3 {
        machine.run(&["backup", "--name", "other/disk", &image]).ok();
    }
    assert_eq!(ids(&machine, &["--volume", "other/*"]).len(), 3);
    let backup = machine.run(&["backup", "--name", "vm/disk", &image]).ok();
    assert!(backup.out.contains("1 older snapshot was forgotten by policy"), "{backup}");
    machine.configure("[[retention]]\nvolumes = \"vm/*\"\nkeep_lsat = 2\n");
    machine.run(&["snapshots"]).fails(1, &["keep_lsat"]);
}

/// Conductors of agents collect by this configuration (`distributed.rs`).
#[test]
fn commands_that_need_no_agents_never_collect_unasked() {
    let (machine, _) = prepared(1);
    let retention = "[[retention]]\nvolumes = \"vm/*\"\nkeep_last = 1\n";
    // Each of the larger backups takes longer than it takes until an agent would have begun.
    machine.configure(&format!("limit_upload = \"1MiB\"\n[agent]\nprune_every = \"1s\"\n{retention}"));
    let packs = || {
        let prefixes = std::fs::read_dir(machine.place("repo/packs")).expect("a folder").flatten();
        let packs = prefixes.flat_map(|prefix| std::fs::read_dir(prefix.path()).expect("a folder").flatten());
        packs.map(|pack| pack.path()).collect::<BTreeSet<_>>()
    };
    let image = machine.place("disk.img");
    for number in 2..8 {
        let before = packs();
        if number % 3 == 0 {
            random_file(&image, 3 << 20, number.into());
        }
        back_up(&machine, number);
        assert!(packs().is_superset(&before), "a pack went in backup {number}");
    }
    let target = machine.place("target.img");
    machine.run(&["restore", "vm/disk@latest", &target]).ok();
    machine.run(&["check", "--read-data"]).ok();
    let forgotten = ids(&machine, &["--forgotten"]);
    assert_eq!((forgotten.len(), count(&machine.place("repo/gc"))), (6, 0), "no collection has begun");
    // There was something to collect all the time.
    let before = packs();
    let pruned = machine.json(&["prune"]);
    assert_eq!((&pruned["collection"], &pruned["snapshots_removed"]), (&1.into(), &6.into()), "{pruned}");
    assert!(!packs().is_superset(&before), "{pruned}");
    same_bytes(&image, &target);
}

/// Whoever holds a snapshot that somebody else forgets at this moment has it, or is told that it is forgotten.
#[test]
fn of_a_hold_and_a_forget_at_once_one_wins() {
    let (machine, all) = prepared(7);
    for id in &all[..6] {
        let content = machine.json(&["show", id])["top"].clone();
        let holding = machine.start(&["hold", id]);
        let forgetting = machine.start(&["forget", id]);
        let (held, forgotten) = (holding.end(), forgetting.end());
        let visible = machine.json(&["snapshots"]);
        let rows = visible.as_array().expect("a list").iter();
        let found: Vec<_> = rows
            .filter(|row| machine.json(&["show", row["id"].as_str().expect("an id")])["top"] == content)
            .collect();
        match held.status.success() {
            true => assert!(found.len() == 1 && found[0]["held"] == true, "{held}{forgotten}"),
            false => {
                held.fails(3, &[id.as_str(), "lvkeep unforget"]);
                assert!(found.len() <= 1, "{visible}");
                if found.is_empty() {
                    machine.run(&["unforget", id]).ok();
                }
            }
        }
    }
}

/// A parent may be forgotten while its child is made; snapshots come and go meanwhile.
#[test]
fn backups_go_on_while_their_parents_are_forgotten_and_brought_back() {
    let (machine, all) = prepared(2);
    let image = machine.place("disk.img");
    let backup = machine.start(&["backup", "--name", "vm/disk", &image]);
    machine.run(&["forget", "--allow-last", &all[0], &all[1]]).ok();
    machine.run(&["unforget", &all[0]]).ok();
    backup.end().ok();
    let target = machine.place("target.img");
    machine.run(&["restore", "vm/disk@latest", &target]).ok();
    same_bytes(&image, &target);
    machine.run(&["check", "--read-data"]).ok();
}

/// What was kept for an undo goes by name, and not before its restore is over.
#[test]
fn what_a_restore_may_have_to_undo_stays_until_it_ends() {
    let machine = Machine::with_disk(64 << 20);
    let target = machine.place("target.img");
    let sessions = machine.place("repo/sessions");
    // What is still being written has a # in its name.
    let open = || {
        let found = std::fs::read_dir(&sessions).into_iter().flatten().flatten().map(|found| found.path());
        found.filter(|path| !path.to_string_lossy().contains('#')).collect::<Vec<_>>()
    };
    let kept = || ids(&machine, &["--volume", "undo/*"]);
    // Until a restore is killed while it runs.
    let struck = (0..20).find_map(|round| {
        let (before, others) = (kept().len(), open());
        random_file(&target, 64 << 20, 100 + round);
        let mut restoring = machine.start(&["restore", "--undo", "vm/disk@latest", &target]);
        let own = loop {
            match open().into_iter().find(|session| !others.contains(session)) {
                Some(own) => break own,
                None => assert!(!restoring.has_ended(), "it has no session"),
            }
        };
        // It grows when it names what was kept.
        let len = || std::fs::metadata(&own).map_or(0, |found| found.len());
        let first = len();
        restoring.wait_for("puts it back");
        while len() <= first && !restoring.has_ended() {}
        restoring.kill();
        (len() > first).then(|| kept()[before].clone())
    });
    let id = struck.expect("one restore is killed while it runs");
    machine.run(&["forget", "--keep-last", "1"]).ok();
    machine.run(&["forget", &id]).fails(3, &[&id, "has not ended", "lvkeep cancel"]);
    machine.run(&["undo", &id]).ok();
    let open = machine.json(&["status"]);
    let open = open["sessions"].as_array().expect("the killed restore's");
    assert_eq!(open.len(), 1, "{open:?}");
    machine.run(&["cancel", open[0]["session"].as_str().expect("an id")]).ok();
    machine.run(&["forget", &id]).ok();
    assert!(!kept().contains(&id));
    machine.run(&["undo", &id]).fails(3, &["lvkeep unforget"]);
}

/// Files below a folder; what is still being written has a # in its name.
fn files_below(folder: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let count = |path: PathBuf| match path.is_dir() {
        true => files_below(&path),
        false => usize::from(!path.to_string_lossy().contains('#')),
    };
    entries.map(count).sum()
}

/// Both restores are killed in the middle, and their sessions ended. Of what was kept, the first is what stood there, and
/// the second a mixture.
#[test]
fn no_rule_forgets_what_a_killed_restore_may_have_overwritten() {
    let machine = Machine::with_disk(64 << 20);
    let marks = PathBuf::from(machine.place("repo/marks"));
    let kept = || ids(&machine, &["--volume", "undo/*"]);
    // It is held right before the first byte is overwritten.
    let is_struck = |target: &str| {
        let held = files_below(&marks);
        let mut restoring = machine.start(&["restore", "--undo", "vm/disk@latest", target]);
        while files_below(&marks) <= held && !restoring.has_ended() {
            std::thread::yield_now();
        }
        restoring.kill();
        files_below(&marks) > held
    };
    let struck = (0..20).find_map(|round| {
        let (target, before) = (machine.place(&format!("target-{round}.img")), kept());
        random_file(&target, 64 << 20, 100 + round);
        let new = |but: &[String]| kept().into_iter().find(|id| !before.contains(id) && !but.contains(id));
        let old = std::fs::read(&target).expect("the target");
        let first = is_struck(&target).then(|| new(&[])).flatten()?;
        let second = is_struck(&target).then(|| new(std::slice::from_ref(&first))).flatten()?;
        Some((target, old, first, second))
    });
    let (target, old, first, second) = struck.expect("two restores are killed while they run");
    let status = machine.json(&["status"]);
    for open in status["sessions"].as_array().expect("a list") {
        machine.run(&["cancel", open["session"].as_str().expect("an id")]).ok();
    }
    let by_rules = || machine.run(&["forget", "--volume", "undo/*", "--keep-last", "1"]).ok();
    let said = by_rules();
    assert!(said.out.contains("has not ended well"), "{said}");
    assert!(kept().contains(&first) && kept().contains(&second));
    let release = format!("lvkeep release {first}");
    machine.run(&["forget", &first]).fails(3, &[&first, "unfinished restore", &release]);
    machine.run(&["undo", &first]).ok();
    assert!(std::fs::read(&target).expect("the target") == old);
    by_rules();
    assert!(!kept().contains(&first), "what was put back is not needed any more");
}
