//! What the commands around backup and restore answer.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use tests::e2e::{Machine, Process, eventually, random_file};

/// A machine with a repository and two snapshots of `vm/disk`, the second with 1 MiB changed at 4 MiB.
fn prepared() -> Machine {
    let mut machine = Machine::new("m");
    machine.set("LVKEEP_REPO", &machine.place("repo"));
    machine.run(&["init"]).ok();
    let (image, change) = (machine.place("disk.img"), machine.place("change"));
    random_file(&image, 9 << 20, 1);
    machine.run(&["backup", "--name", "vm/disk", "--tag", "before", &image]).ok();
    random_file(&change, 1 << 20, 2);
    let changed = std::fs::read(&change).expect("the change");
    let file = std::fs::File::options().write(true).open(&image).expect("the image");
    file.write_all_at(&changed, 4 << 20).expect("the image changes");
    machine.run(&["backup", "--name", "vm/disk", "--tag", "after", &image]).ok();
    machine
}

#[test]
fn snapshots_are_found_shown_and_compared() {
    let machine = prepared();
    let listed = machine.json(&["snapshots", "--volume", "vm/*"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(2));
    assert_eq!(machine.json(&["snapshots", "--volume", "other/*"]).as_array().map(Vec::len), Some(0));
    let text = machine.run(&["snapshots"]).ok();
    assert!(text.out.contains("vm/disk") && text.out.contains("2 snapshots"), "{text}");
    let ids: Vec<&str> =
        listed.as_array().into_iter().flatten().filter_map(|row| row["id"].as_str()).collect();

    let shown = machine.json(&["show", "vm/disk@latest"]);
    assert_eq!((&shown["id"], &shown["parent"]), (&ids[1].into(), &ids[0].into()));
    assert_eq!(
        (&shown["volume"], &shown["size"], &shown["tags"][0]),
        (&"vm/disk".into(), &(9 << 20).into(), &"after".into())
    );
    let by_prefix = machine.json(&["show", &ids[0][..24]]);
    assert_eq!(by_prefix["tags"][0], "before");
    assert!(machine.run(&["show", ids[0]]).ok().out.contains("generation  1"));
    machine.run(&["show", "vm/other@latest"]).fails(3, &["vm/other", "has no snapshot"]);
    machine.run(&["show", "01ZZZZ"]).fails(3, &["01ZZZZ", "lvkeep snapshots"]);
    machine.run(&["show", &ids[0][..3]]).fails(3, &["write more of it"]);
    machine.run(&["show", "vm/disk@yesterday"]).fails(3, &["yesterday"]);
    machine.run(&["show", "vm/disk@2001-01-01"]).fails(3, &["no snapshot as old"]);

    let diff = machine.json(&["diff", ids[0], ids[1]]);
    let bytes = diff["bytes"].as_u64().expect("a count");
    assert!((1 << 20..2 << 20).contains(&bytes), "{diff}");
    let ranges = diff["ranges"].as_array().expect("ranges");
    let covers = |range: &serde_json::Value| {
        let (offset, len) = (range["offset"].as_u64().unwrap_or(0), range["len"].as_u64().unwrap_or(0));
        offset <= 4 << 20 && offset + len >= 5 << 20
    };
    assert!(ranges.len() == 1 && covers(&ranges[0]), "{diff}");
    assert_eq!(machine.json(&["diff", ids[0], ids[0]])["bytes"], 0);
}

#[test]
fn snapshots_are_filtered_and_changes_are_found() {
    let machine = prepared();
    let count = |more: &[&str]| {
        machine.json(&[&["snapshots"], more].concat()).as_array().map(Vec::len).expect("a list")
    };
    assert_eq!(count(&["--tag", "before"]), 1);
    assert_eq!(count(&["--tag", "before", "--tag", "after"]), 0);
    assert_eq!((count(&["--host", "*"]), count(&["--host", "no-such-*"])), (2, 0));
    assert_eq!((count(&["--since", "2001-01-01"]), count(&["--until", "2001-01-01"])), (2, 0));
    let text = machine.run(&["snapshots", "--volume", "vm"]).ok();
    assert!(text.out.contains("0 snapshots") && text.err.contains("'vm/*' means 1 volumes"), "{text}");

    let listed = machine.json(&["snapshots"]);
    let found = |offset: &str, length: &str| -> Vec<String> {
        let found = machine.json(&["find-change", "vm/disk", offset, "--length", length]);
        let ids = found.as_array().expect("a list").iter();
        ids.map(|one| one["id"].as_str().expect("an id").to_owned()).collect()
    };
    let ids: Vec<&str> =
        listed.as_array().expect("a list").iter().filter_map(|row| row["id"].as_str()).collect();
    assert_eq!(found("4MiB", "4KiB"), ids, "both the first and the second wrote there");
    assert_eq!(found("0", "1MiB"), ids[..1]);
    let range = machine.json(&["find-change", "vm/disk", "9437183+1MiB"]);
    assert_eq!(range[0]["ranges"][0], serde_json::json!({ "offset": 9_437_183, "len": 1 }));
    let twice = machine.run(&["find-change", "vm/disk", "0+1", "--length", "1"]);
    twice.fails(3, &["leave --length out"]);
    let text = machine.run(&["find-change", "vm/disk", "4300000"]).ok();
    assert!(text.out.contains(ids[1]) && text.out.contains("2 snapshots"), "{text}");
    machine.run(&["find-change", "vm/other", "0"]).fails(3, &["vm/other", "has no snapshot"]);
    assert_eq!(found("9437183", "1MiB"), ids[..1], "its last byte");
    machine.run(&["find-change", "vm/disk", "9MiB"]).fails(3, &["vm/disk has nothing", "9437184 bytes"]);
}

#[test]
fn targets_are_verified_and_only_what_differs_is_restored() {
    let machine = prepared();
    let (image, target) = (machine.place("disk.img"), machine.place("target.img"));
    machine.run(&["restore", "vm/disk@latest", &target, "--verify"]).ok();
    let same = machine.run(&["verify", "vm/disk@latest", &target]).ok();
    assert!(same.out.contains("is the same"), "{same}");
    let read = machine.run(&["verify", "vm/disk@latest"]).ok();
    assert!(read.out.contains("can be read"), "{read}");

    let listed = machine.json(&["snapshots"]);
    let first = listed[0]["id"].as_str().expect("an id");
    let differs = machine.run(&["--json", "verify", first, &target]);
    let differs = differs.fails(10, &["target.img differs from vm/disk", "first between"]).json();
    let bytes = differs["bytes_differing"].as_u64().expect("a count");
    assert!((1 << 20..2 << 20).contains(&bytes), "{differs}");
    machine.run(&["restore", first, &target]).fails(3, &["target.img"]);
    // One object per line: the restore's, and that of the comparison.
    let ran = machine.run(&["--json", "restore", first, &target, "--force", "--verify"]).ok();
    let lines: Vec<serde_json::Value> =
        ran.out.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let [restored, compared] = lines.as_slice() else { panic!("{ran}") };
    assert_eq!(compared["bytes_differing"], 0);
    let count = |name: &str| restored[name].as_u64().unwrap_or_else(|| panic!("{name}: {restored}"));
    assert!((1 << 20..2 << 20).contains(&count("bytes_written")), "{restored}");
    assert_eq!(count("bytes_kept") + count("bytes_written"), 9 << 20);
    assert_eq!(count("bytes_compared"), 9 << 20);
    machine.run(&["verify", first, &target]).ok();
    let full = machine.json(&["restore", "vm/disk@latest", &target, "--force", "--full"]);
    assert_eq!(full["bytes_written"], 9 << 20);
    tests::e2e::same_bytes(&image, &target);
    let cat = |more: &[&str]| {
        machine.command(&[&["cat", "vm/disk@latest"], more].concat()).output().expect("it runs")
    };
    let content = std::fs::read(&image).expect("the image");
    assert!(cat(&[]).stdout == content);
    assert!(cat(&["--range", "1000+4KiB"]).stdout == content[1000..5096]);
    machine.run(&["cat", "vm/disk@latest", "--range", "9MiB+1"]).fails(3, &["vm/disk has 9437184 bytes"]);
    // One that ends too early differs, and what stands behind its end is no question of the snapshot's.
    let file = std::fs::File::options().write(true).open(&target).expect("the target");
    file.set_len((9 << 20) + 5).expect("it grows");
    let longer = machine.run(&["verify", "vm/disk@latest", &target]).ok();
    assert!(
        longer.out.contains("is the same") && longer.out.contains("\n  5 bytes behind its end"),
        "{longer}"
    );
    assert_eq!(machine.json(&["verify", "vm/disk@latest", &target])["bytes_beyond"], 5);
    let part = machine.run(&["verify", "vm/disk@latest", &target, "--range", "4MiB+1MiB"]).ok();
    assert!(!part.out.contains("behind its end"), "{part}");
    file.set_len(8 << 20).expect("it shrinks");
    let shorter = machine.run(&["verify", "vm/disk@latest", &target]);
    let shorter = shorter.fails(10, &["8388608 bytes", "9437184", "from 8388608 on is missing"]);
    assert!(shorter.out.contains("1048576 bytes from 8388608 on are MISSING"), "{shorter}");
    let told = machine.run(&["--json", "verify", "vm/disk@latest", &target]).fails(10, &["missing"]).json();
    let missing = serde_json::json!([{ "offset": 8 << 20, "len": 1 << 20 }]);
    assert_eq!((&told["first_differences"], &told["bytes_differing"]), (&missing, &(1 << 20).into()));
    machine.run(&["verify", "vm/disk@latest", &target, "--range", "4MiB+1MiB"]).ok();
    machine.run(&["verify", "vm/disk@latest", &target, "--range", "8MiB+1"]).fails(10, &["from 8388608 on"]);
    machine.run(&["verify", first, "/no/such/target"]).fails(4, &["/no/such/target"]);
    // A volume's name means the volume, as for restore, and no path.
    machine.run(&["verify", first, "no-vg/no-lv"]).fails(4, &["/dev/mapper/no--vg-no--lv"]);
}

#[test]
fn a_target_that_is_overwritten_while_it_is_restored_differs() {
    let machine = prepared();
    let (image, target) = (machine.place("disk.img"), machine.place("target.img"));
    std::fs::copy(&image, &target).expect("a target");
    let file = std::fs::File::options().write(true).open(&target).expect("the target");
    let ended = Arc::new(AtomicBool::new(false));
    let until = ended.clone();
    let writing = std::thread::spawn(move || {
        while !until.load(Ordering::Relaxed) {
            file.write_all_at(b"somebody else's", 4096).expect("the target takes it");
        }
    });
    // Whether somebody writes in the moment between is the kernel's choice each time.
    let asked = ["restore", "vm/disk@latest", &target, "--force", "--force-in-use", &target, "--verify"];
    let restore = || machine.run(&asked);
    let restored = std::iter::repeat_with(restore).take(50).find(|ran| !ran.status.success());
    ended.store(true, Ordering::Relaxed);
    writing.join().expect("the writer ends");
    restored.expect("one that differs").fails(10, &["target.img differs from vm/disk, first between"]);
}

#[test]
fn changes_are_found_over_leaves_and_sizes() {
    let mut machine = Machine::new("m");
    machine.set("LVKEEP_REPO", &machine.place("repo"));
    machine.run(&["init"]).ok();
    let image = machine.place("disk.img");
    let file = std::fs::File::create(&image).expect("an image");
    let noise = |len: usize, seed: u8| -> Vec<u8> {
        (0..len / 64)
            .flat_map(|n| blake3::keyed_hash(&[seed; 32], &n.to_le_bytes()).as_bytes().repeat(2))
            .collect()
    };
    let write = |bytes: &[u8], at: u64| {
        file.write_all_at(bytes, at).expect("the image changes");
    };
    let backup = || drop(machine.run(&["backup", "--name", "vm/disk", &image]).ok());
    file.set_len(136 << 20).expect("a size");
    write(&noise(2 << 20, 1), 63 << 20);
    backup();
    // On both sides of the edge of two leaves.
    write(&noise(64 << 10, 2), (64 << 20) - (32 << 10));
    backup();
    for size in [130, 200_u64] {
        file.set_len(size << 20).expect("a size");
        backup();
    }
    let found = |offset: &str, length: &str| {
        let found = machine.json(&["find-change", "vm/disk", offset, "--length", length]);
        let one = |one: &serde_json::Value| (one["generation"].as_u64().unwrap_or(0), one["ranges"].clone());
        found.as_array().expect("a list").iter().map(one).collect::<Vec<_>>()
    };
    let range = |offset: u64, len: u64| serde_json::json!([{ "offset": offset, "len": len }]);
    let snapshots = machine.json(&["snapshots"]);
    let id = |n: usize| snapshots[n]["id"].as_str().expect("an id");
    let diff = |a: usize, b: usize| machine.json(&["diff", id(a), id(b)])["ranges"].clone();
    let all = found("0", "1GiB");
    assert_eq!(all, [(1, range(0, 136 << 20)), (2, diff(0, 1)), (3, diff(1, 2)), (4, diff(2, 3))]);
    assert_eq!(diff(1, 2), range(130 << 20, 6 << 20));
    assert_eq!(diff(2, 3), range(130 << 20, 70 << 20));
    let edge = range((64 << 20) - 100, 200);
    let chunks = found("67108764", "200");
    assert_eq!((chunks.len(), &chunks[0]), (2, &(1, edge)));
    // Of the second one, the chunks on both sides of it, as a whole.
    let bounds = |ranges: &serde_json::Value| {
        let number = |name: &str| ranges[0][name].as_u64().expect("a number");
        (number("offset"), number("offset") + number("len"))
    };
    let ((from, to), (first, last)) = (bounds(&chunks[1].1), bounds(&diff(0, 1)));
    assert!(from % 4096 == 0 && to % 4096 == 0 && first <= from && to <= last, "{chunks:?}");
    assert!(from <= (64 << 20) - 4096 && to >= (64 << 20) + 4096, "{chunks:?}");
    assert_eq!(found("63MiB", "4KiB"), [(1, range(63 << 20, 4096))]);
    let behind = range(135 << 20, 1 << 20);
    assert_eq!(found("135MiB", "1MiB"), [1, 3, 4].map(|generation| (generation, behind.clone())));
    assert_eq!(found("199MiB", "1GiB"), [(4, range(199 << 20, 1 << 20))]);
    let behind = machine.run(&["find-change", "vm/disk", "200MiB", "--length", "1GiB"]);
    behind.fails(3, &["nothing at offset 209715200"]);
}

#[test]
fn an_output_that_nobody_reads_keeps_no_cat_from_ending() {
    let machine = prepared();
    for signal in [Signal::TERM, Signal::INT] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut cat = machine.start_into(&["cat", "vm/disk@latest"], writer);
        // What does not fit into the pipe waits.
        eventually("it writes", || {
            assert!(!cat.has_ended(), "the snapshot is larger than the pipe");
            (rustix::io::ioctl_fionread(&reader).expect("a pipe's size") > 0).then_some(())
        });
        cat.signal(signal);
        cat.end().fails(7, &["vm/disk"]);
    }
    assert_eq!(machine.json(&["status"])["sessions"], serde_json::json!([]));
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    machine.start_into(&["cat", "vm/disk@latest"], writer).end().ok();
}

#[test]
fn the_repository_is_checked() {
    let machine = prepared();
    for arguments in [&["check"][..], &["check", "--read-data"]] {
        let found = machine.json(arguments);
        assert_eq!((&found["snapshots"], &found["damaged"]), (&2.into(), &serde_json::json!([])));
        machine.run(arguments).ok();
    }
    let rebuilt = machine.json(&["index", "rebuild"]);
    assert!(rebuilt["path"].is_string(), "{rebuilt}");
    machine.run(&["index", "rebuild"]).ok();
    machine.restores("vm/disk@latest", machine.place("disk.img"));
    // Without any cache at all.
    std::fs::remove_dir_all(machine.home().join(".cache")).expect("the cache goes");
    machine.restores("vm/disk@latest", machine.place("disk.img"));
}

#[test]
fn status_names_volumes_that_are_too_old() {
    let machine = prepared();
    let status = machine.json(&["status", "--max-age", "26h"]);
    assert_eq!(
        (&status["volumes"][0]["volume"], &status["volumes"][0]["too_old"]),
        (&"vm/disk".into(), &false.into())
    );
    assert_eq!(status["sessions"], serde_json::json!([]));
    assert!(machine.run(&["status"]).ok().out.contains("no session is open"));
    machine.run(&["status", "--max-age", "1ms"]).fails(8, &["vm/disk"]);
    let old = machine.run(&["--json", "status", "--max-age", "1ms"]).fails(8, &[]);
    assert_eq!(old.json()["volumes"][0]["too_old"], true);

    let mut empty = Machine::new("empty");
    empty.set("LVKEEP_REPO", &empty.place("repo"));
    empty.run(&["init"]).ok();
    empty.run(&["status", "--max-age", "26h"]).fails(8, &["no volume has a snapshot"]);
}

#[test]
fn keys_are_shown_added_and_checked() {
    let machine = prepared();
    let shown = machine.json(&["key", "show"]);
    assert_eq!((&shown["encrypted"], shown["recipients"].as_array().map(Vec::len)), (&true.into(), Some(1)));
    machine.run(&["key", "show"]).ok();
    let keys = machine.home().join(".config/lvkeep/keys");
    let identity = std::fs::read_dir(&keys)
        .expect("key files")
        .filter_map(|entry| entry.ok()?.path().to_str().map(str::to_owned))
        .find(|path| path.ends_with(".identity"))
        .expect("an identity");
    let checked = machine.json(&["key", "check", &identity]);
    assert!(checked["data_keys"].as_u64() > Some(0) && checked["chunks"].as_u64() > Some(0), "{checked}");

    // Another identity, from another repository, opens nothing until it is added.
    let other = Machine::new("other");
    let (repo, new) = (other.place("repo"), other.place("identity"));
    let made = other.json(&["init", "--repo", &repo, "--identity-out", &new]);
    let recipient = made["recipients"][0].as_str().expect("a recipient");
    machine.run(&["key", "check", &new]).fails(3, &["config"]);
    machine.run(&["key", "add", "age1nonsense"]).fails(3, &["age1nonsense"]);
    let outdated = machine.place("outdated");
    std::fs::copy(identity.replace(".identity", ".writer-key"), &outdated).expect("the writer key");
    let added = machine.json(&["key", "add", recipient]);
    assert_eq!(added["recipients"].as_array().map(Vec::len), Some(2), "{added}");
    let (repo, like) = (machine.place("repo"), machine.place("like"));
    machine
        .run(&["init", "--repo", &like, "--like", &repo, "--key", &outdated])
        .fails(3, &["outdated", "key add"]);
    machine.json(&["key", "check", &new]);
    machine.json(&["key", "check", &identity]);
    // Bucket and new identity are all that a restore needs; what is stored later is open to both, too.
    machine.run(&["backup", "--name", "vm/disk", &machine.place("disk.img")]).ok();
    let mut stranger = Machine::new("stranger");
    stranger.set("LVKEEP_REPO", &machine.place("repo"));
    stranger.set("LVKEEP_IDENTITY", &new);
    stranger.restores("vm/disk@latest", machine.place("disk.img"));
}

#[test]
fn settings_are_shown_with_their_origin_and_unknown_ones_refused() {
    let mut machine = Machine::new("m");
    machine.configure("level = 7\nhost = \"from-file\"\n[agent]\nroles = [\"reader\"]\n");
    machine.set("LVKEEP_HOST", "from-environment");
    let shown = machine.json(&["config", "show", "--memory", "128MiB"]);
    for (name, value, origin) in [
        ("level", serde_json::json!(7), "file"),
        ("host", serde_json::json!("from-environment"), "environment"),
        ("memory", serde_json::json!(128 << 20), "flag"),
        ("ask_again", serde_json::json!(20.0), "default"),
        ("redeliver", serde_json::json!(30.0), "default"),
    ] {
        assert_eq!((&shown[name]["value"], &shown[name]["origin"]), (&value, &origin.into()), "{name}");
    }
    let text = machine.run(&["config", "show"]).ok();
    assert!(text.out.contains("lvkeep.toml") && text.out.contains("256MiB"), "{text}");
    machine.configure("levle = 7\n");
    machine.run(&["config", "show"]).fails(1, &["lvkeep.toml", "levle"]);
    machine.configure("level = 77\n");
    machine.run(&["config", "show"]).fails(1, &["level", "77"]);
    machine.configure("memory = \"lots\"\n");
    machine.run(&["config", "show"]).fails(1, &["memory", "lots"]);
    machine.configure("memory = \"1MiB\"\n");
    machine.run(&["config", "show"]).fails(1, &["memory", "64MiB"]);
    machine.configure("");
    machine.run(&["--config", "/nowhere.toml", "config", "show"]).fails(1, &["/nowhere.toml"]);
    machine.run(&["backup"]).fails(2, &["SOURCE"]);
    machine.run(&["frobnicate"]).fails(2, &["frobnicate"]);
}

/// Whatever an option says that it cannot mean is wrong usage of that option, and nothing is begun.
#[test]
fn what_an_option_cannot_mean_is_wrong_usage() {
    let machine = Machine::new("m");
    for (command, option, value) in [
        (&["snapshots"][..], "--memory", "abc"),
        (&["snapshots"], "--memory", "1MiB"),
        (&["snapshots"], "--since", "1h"),
        (&["snapshots"], "--until", "yesterday"),
        (&["plan"], "--at", "latest"),
        (&["copy", "--to", "x"], "--since", "2026-13-01"),
        (&["copy", "--to", "x"], "--until", "soon"),
        (&["copy", "--to", "x"], "--level", "0"),
        (&["copy", "--to", "x"], "--limit-upload", "fast"),
        (&["backup", "x"], "--level", "99"),
        (&["backup", "x"], "--name", "a@b"),
        (&["backup", "x"], "--limit-read", "slow"),
        (&["init"], "--pack-size", "1KiB"),
        (&["status"], "--max-age", "1"),
        (&["prune"], "--wait", "abc"),
        (&["prune"], "--revoke-after", "1mo"),
        (&["prune"], "--max-repack", "all"),
        (&["forget"], "--keep-within", "xyz"),
        (&["cat", "vm@latest"], "--range", "5"),
        (&["verify", "vm@latest", "x"], "--range", "0-5"),
        (&["restore", "vm@latest", "x"], "--range", "0+x"),
        (&["restore", "vm@latest", "x"], "--also", "-"),
        (&["find-change", "vm", "0"], "--length", "many"),
        (&["send", "vg/lv", "x"], "--limit-read", "x"),
    ] {
        machine.run(&[command, &[option, value]].concat()).fails(2, &[option, value]);
    }
    machine.run(&["find-change", "vm", "everywhere"]).fails(2, &["everywhere", "OFFSET"]);
    machine.run(&["find-change", "vm", "0+many"]).fails(2, &["many", "OFFSET"]);
    machine.run(&["restore", "vm@latest", "-"]).fails(2, &["`-` is no target", "lvkeep cat"]);
    assert!(!machine.home().join(".local").exists(), "nothing was begun");
}

#[test]
fn what_a_target_cannot_mean_is_said() {
    let machine = prepared();
    let (target, same) = (machine.place("target.img"), machine.place("./target.img"));
    let twice = machine.run(&["restore", "vm/disk@latest", &target, "--also", &target]);
    twice.fails(3, &["is named twice"]);
    machine.run(&["restore", "vm/disk@latest", &target, "--also", &same]).fails(3, &["are the same"]);
    for command in [["restore", "vm/disk@latest", "nodir/x.img"], ["backup", "--name=vm/x", "nodir/x.img"]] {
        let failed = machine.run(&command);
        assert!(!failed.status.success(), "{failed}");
        for words in ["no folder `nodir`", "VG/LV", "`./nodir/x.img` names a file"] {
            assert!(failed.err.contains(words), "{failed}");
        }
    }
}

#[test]
fn a_pager_that_was_left_is_no_failure() {
    let machine = Machine::new("m");
    for words in [&["config", "show"], &["completions", "bash"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = machine.command(words);
        let ended = command.stdout(writer).output().expect("lvkeep runs");
        assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    }
}

#[test]
fn completions_manual_and_help_are_written() {
    let machine = Machine::new("m");
    for shell in ["bash", "zsh", "fish"] {
        assert!(machine.run(&["completions", shell]).ok().out.contains("snapshots"), "{shell}");
    }
    let folder = machine.place("man");
    machine.run(&["manual", &folder]).ok();
    let page = std::fs::read_to_string(format!("{folder}/lvkeep-restore.1")).expect("a page per command");
    assert!(page.contains("block device"), "{page}");
    let main = std::fs::read_to_string(format!("{folder}/lvkeep.1")).expect("the main page");
    assert!(main.contains("Exit codes"), "{main}");
    assert!(machine.run(&["--help"]).ok().out.contains("Exit codes"));
    machine.run(&["--version"]).ok();
}

#[test]
fn a_session_is_cancelled_by_name() {
    let machine = prepared();
    machine
        .run(&["cancel", "01ARZ3NDEKTSV4RRFFQ69G5FAV"])
        .fails(3, &["01ARZ3NDEKTSV4RRFFQ69G5FAV", "lvkeep status"]);
    machine.run(&["cancel", "nonsense"]).fails(3, &["nonsense"]);
    let torn = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    std::fs::create_dir_all(machine.place("repo/sessions")).expect("a folder");
    std::fs::write(machine.place(&format!("repo/sessions/{torn}")), "damaged").expect("an object");
    assert_eq!(machine.json(&["status"])["sessions"][0]["kind"], "unreadable");
    machine.run(&["cancel", torn]).fails(3, &[torn, "--force"]);
    machine.run(&["cancel", "--force", torn]).ok();

    let image = machine.place("slow.img");
    random_file(&image, 64 << 20, 5);
    let backup = machine.start(&["backup", "--name", "vm/slow", "--limit-read", "4MiB", &image]);
    let session = open_session(&machine);
    let cancelled = machine.json(&["cancel", &session]);
    assert_eq!(cancelled["volume"], "vm/slow");
    machine.run(&["cancel", &session]).fails(3, &[&session]);
    assert_eq!(machine.json(&["status"])["sessions"], serde_json::json!([]));
    // A process that shares only the bucket learns of it at its next checkpoint or at its commit; SIGINT is sooner.
    end_by_interrupt(backup);
    assert_eq!(machine.json(&["snapshots"]).as_array().map(Vec::len), Some(2));
}

#[test]
fn a_check_that_cannot_be_read_is_named_and_removed() {
    let machine = prepared();
    let job = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    machine.run(&["check", "--job", job]).fails(3, &[job, "lvkeep status"]);
    let folder = machine.place("repo/checks");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(format!("{folder}/{job}"), "damaged").expect("an object");
    let check = machine.json(&["status"])["checks"][0].clone();
    assert_eq!((&check["job"], &check["state"]), (&job.into(), &"unreadable".into()), "{check}");
    let remedy = format!("`lvkeep cancel {job}`");
    assert!(machine.run(&["status"]).ok().out.contains(&remedy));
    machine.run(&["check", "--job", job]).fails(6, &[&format!("checks/{job}"), &remedy]);
    machine.run(&["cancel", job]).ok();
    machine.run(&["cancel", job]).fails(3, &[job]);
    assert_eq!(machine.json(&["status"])["checks"], serde_json::json!([]));
}

#[test]
fn an_interrupted_backup_leaves_nothing_behind() {
    let machine = prepared();
    let image = machine.place("slow.img");
    random_file(&image, 64 << 20, 5);
    let backup = machine.start(&["backup", "--name", "vm/slow", "--limit-read", "4MiB", &image]);
    open_session(&machine);
    end_by_interrupt(backup);
    assert_eq!(machine.json(&["status"])["sessions"], serde_json::json!([]));
    assert_eq!(machine.json(&["snapshots"]).as_array().map(Vec::len), Some(2));
    machine.run(&["backup", "--name", "vm/slow", &image]).ok();
    machine.restores("vm/slow@latest", &image);
}

fn open_session(machine: &Machine) -> String {
    eventually("a session is open", || {
        let status = machine.json(&["status"]);
        status["sessions"][0]["session"].as_str().map(str::to_owned)
    })
}

fn end_by_interrupt(mut backup: Process) {
    backup.signal(Signal::INT);
    backup.end().fails(7, &["vm/slow"]);
}
