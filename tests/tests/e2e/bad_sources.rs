//! Sources that are missing, of the wrong kind, or change while they are read.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use tests::e2e::{Machine, Process, eventually, random_file};

fn prepared() -> Machine {
    let mut machine = Machine::new("m");
    machine.set("LVKEEP_REPO", &machine.place("repo"));
    machine.run(&["init", "--pack-size", "1MiB"]).ok();
    let image = machine.place("good.img");
    random_file(&image, 2 << 20, 1);
    machine.run(&["backup", "--name", "vm/good", &image]).ok();
    machine
}

fn only_good_is_there(machine: &Machine) {
    assert_eq!(machine.json(&["snapshots"]).as_array().map(Vec::len), Some(1));
    machine.restores("vm/good@latest", machine.place("good.img"));
    assert_eq!(machine.json(&["status"])["sessions"], serde_json::json!([]));
}

/// A slow backup of a fresh image, of which at least one pack is stored.
fn running(machine: &Machine, more: &[&str]) -> (Process, String) {
    let image = machine.place("changing.img");
    random_file(&image, 24 << 20, 2);
    let packs = || std::fs::read_dir(machine.place("repo/packs")).expect("packs").count();
    let before = packs();
    let mut arguments = vec!["--json", "backup", "--name", "vm/changing", "--limit-read", "6MiB", &image];
    arguments.extend(more);
    let mut backup = machine.start(&arguments);
    eventually("a pack is stored", || (packs() > before || backup.has_ended()).then_some(()));
    assert!(!backup.has_ended(), "the backup was over too soon to say anything");
    (backup, image)
}

#[test]
fn what_is_no_volume_is_named() {
    let machine = prepared();
    let (missing, folder, fifo) =
        (machine.place("missing.img"), machine.place("folder"), machine.place("fifo"));
    let named = machine.run(&["backup", "--name", "vm/x", &missing]).fails(4, &["vm/x: ", "No such file"]);
    for once in ["vm/x", "No such file", &missing] {
        assert_eq!(named.err.matches(once).count(), 1, "{once}: {named}");
    }
    // With details, the roles' own words, too.
    let detailed = machine.run(&["-v", "backup", "--name", "vm/x", &missing]).fails(4, &[&missing]);
    assert!(detailed.err.contains("gave up a message"), "{detailed}");
    std::fs::create_dir(&folder).expect("a folder");
    machine.run(&["backup", &folder]).fails(4, &[&folder, "neither a regular file nor a block device"]);
    let made = std::process::Command::new(tests::e2e::program("mkfifo")).arg(&fifo).status();
    assert!(made.is_ok_and(|status| status.success()), "a FIFO is made");
    machine.run(&["backup", &fifo]).fails(4, &[&fifo, "neither"]);
    machine.run(&["backup", "/dev/zero"]).fails(4, &["/dev/zero", "neither"]);
    let good = machine.place("good.img");
    machine.run(&["backup", "--name", "a@b", &good]).fails(2, &["a@b", "@"]);
    machine.run(&["backup", "--pre", "true", &good]).fails(3, &[&good, "--pre"]);
    let other = machine.place("other.img");
    std::fs::copy(&good, &other).expect("another image");
    machine.run(&["backup", "--name", "x", &good, &other]).fails(1, &["--name"]);
    only_good_is_there(&machine);
}

#[test]
fn a_source_that_shrinks_fails_the_backup() {
    let machine = prepared();
    let (backup, image) = running(&machine, &[]);
    OpenOptions::new()
        .write(true)
        .open(&image)
        .and_then(|file| file.set_len(1 << 20))
        .expect("a shorter file");
    backup.end().fails(4, &["vm/changing", &image]);
    only_good_is_there(&machine);
}

#[test]
fn a_source_that_changes_fails_the_backup() {
    let machine = prepared();
    let (backup, image) = running(&machine, &[]);
    let file = OpenOptions::new().write(true).open(&image).expect("the image");
    file.write_all_at(b"changed", 10).expect("the image changes");
    backup.end().fails(4, &["vm/changing", &image, "changed while it was read"]);
    only_good_is_there(&machine);
}

#[test]
fn a_source_that_changes_is_marked_when_that_is_allowed() {
    let machine = prepared();
    let (backup, image) = running(&machine, &["--allow-changes"]);
    let file = OpenOptions::new().write(true).open(&image).expect("the image");
    file.write_all_at(b"changed", 20 << 20).expect("the image changes");
    let done = backup.end().ok().json();
    assert_eq!(done["changed_while_read"], true, "{done}");
    let shown = machine.run(&["show", "vm/changing@latest"]).ok();
    assert!(shown.out.contains("CHANGED WHILE IT WAS READ"), "{shown}");
    let target = machine.place("restored.img");
    machine.run(&["restore", "vm/changing@latest", &target]).ok();
    machine.run(&["check", "--read-data"]).ok();
}

#[test]
fn a_source_that_is_replaced_fails_the_backup() {
    let machine = prepared();
    let (backup, image) = running(&machine, &[]);
    let other = machine.place("other.img");
    random_file(&other, 24 << 20, 3);
    std::fs::rename(&other, &image).expect("another file takes its place");
    backup.end().fails(4, &["vm/changing", &image]);
    only_good_is_there(&machine);
}

#[test]
fn a_source_in_a_read_only_folder_is_no_matter() {
    use std::os::unix::fs::PermissionsExt;
    let machine = prepared();
    let folder = machine.place("closed");
    std::fs::create_dir(&folder).expect("a folder");
    let image = format!("{folder}/disk.img");
    random_file(&image, 3 << 20, 4);
    for (path, mode) in [(&image, 0o400), (&folder, 0o500)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("permissions");
    }
    machine.run(&["backup", "--name", "vm/closed", &image]).ok();
    machine.restores("vm/closed@latest", &image);
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).expect("permissions");
}
