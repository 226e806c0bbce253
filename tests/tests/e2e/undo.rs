//! `restore --undo` and `undo`: what stood on a target comes back, also when the restore was killed on the way.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tests::e2e::{LoopDevice, Machine, program, random_file, same_bytes};

const SIZE: u64 = 64 << 20;

/// Ids of what was kept, the newest first.
fn kept(machine: &Machine) -> Vec<String> {
    let listed = machine.json(&["snapshots", "--volume", "undo/*"]);
    let mut snapshots = listed.as_array().expect("a list").clone();
    snapshots.sort_by_key(|snapshot| std::cmp::Reverse(snapshot["id"].as_str().map(str::to_owned)));
    snapshots.iter().map(|snapshot| snapshot["id"].as_str().expect("an id").to_owned()).collect()
}

#[test]
fn what_was_overwritten_is_put_back() {
    let machine = Machine::with_disk(SIZE);
    let (image, target) = (machine.place("disk.img"), machine.place("target.img"));
    // Half of it the same, another size, and holes.
    let mut old = std::fs::read(&image).expect("the image")[..48 << 20].to_vec();
    old[8 << 20..16 << 20].fill(0);
    old[24 << 20..32 << 20].fill(0xee);
    std::fs::write(&target, &old).expect("a file");

    let restored = machine.run(&["restore", "--undo", "vm/disk@latest", &target]).ok();
    same_bytes(&image, &target);
    let ids = kept(&machine);
    assert_eq!(ids.len(), 1);
    assert!(restored.err.contains(&format!("`lvkeep undo {}` puts it back", ids[0])), "{}", restored.err);
    let undone = machine.json(&["undo", &ids[0]]);
    assert!(std::fs::read(&target).expect("the target") == old);
    assert!(undone["bytes_written"].as_u64().expect("a number") <= 9 << 20, "only what differs: {undone}");

    // There is nothing to keep of what is not there; what is restored is no undo, nor is that of another host.
    let fresh = machine.place("fresh.img");
    machine.run(&["restore", "--undo", "vm/disk@latest", &fresh]).ok();
    same_bytes(&image, &fresh);
    assert_eq!(kept(&machine), ids);
    // A link in its place leads elsewhere.
    let away = machine.place("away.img");
    std::fs::rename(&target, &away).expect("a rename");
    std::os::unix::fs::symlink(&away, &target).expect("a link");
    machine.run(&["undo", &ids[0]]).fails(3, &[&target, "link", "force"]);
    machine.run(&["undo", "vm/disk@latest"]).fails(3, &["vm/disk", "--undo", "lvkeep restore"]);
    machine.run(&["--host", "elsewhere", "undo", &ids[0]]).fails(3, &["on host", "elsewhere"]);
}

/// What a guest has written beside a range since stays, unless all is asked for.
#[test]
fn of_a_range_only_that_is_put_back() {
    let machine = Machine::with_disk(SIZE);
    let target = machine.place("target.img");
    random_file(&target, SIZE, 7);
    let old = std::fs::read(&target).expect("the target");
    let range = ["--range", "1000+5MiB"];
    let restore = [&["restore", "--undo", "--verify", "vm/disk@latest", &target], &range[..]].concat();
    machine.run(&restore).ok();
    let id = &kept(&machine)[0];
    let verify = [&["verify", "vm/disk@latest", &target], &range[..]].concat();
    assert!(machine.run(&verify).ok().out.contains("is the same (5.0 MiB)"));
    let mut expected = old.clone();
    expected[40 << 20..41 << 20].fill(7);
    let guest = File::options().write(true).open(&target).expect("the target");
    guest.write_all_at(&expected[40 << 20..41 << 20], 40 << 20).expect("a write");
    drop(guest);
    let undone = machine.run(&["undo", id]).ok();
    assert!(undone.err.contains("only 1000+5242880 of") && undone.err.contains("--whole"), "{undone}");
    assert!(std::fs::read(&target).expect("the target") == expected);
    machine.run(&verify).fails(10, &["target.img differs"]);
    machine.run(&["undo", id, "--whole"]).ok();
    assert!(std::fs::read(&target).expect("the target") == old);
}

/// A device's name may mean another one by now, which takes a word, and no force: what protects it while it is in use
/// stays.
#[test]
fn what_stood_on_a_device_is_put_back_without_force() {
    let machine = Machine::with_disk(SIZE);
    let backing = machine.place("backing");
    random_file(&backing, SIZE, 7);
    let old = std::fs::read(&backing).expect("the device's file");
    let Some(device) = LoopDevice::over(&backing) else {
        println!("without devices, a file stands for one");
        return;
    };
    let restored = machine.run(&["restore", "--undo", "vm/disk@latest", device.path()]).ok();
    same_bytes(machine.place("disk.img"), device.path());
    let ids = kept(&machine);
    let works = format!("`lvkeep undo {} --same-device` puts it back", ids[0]);
    assert!(restored.err.contains(&works), "{restored}");
    machine.run(&["undo", &ids[0]]).fails(3, &[device.path(), "--same-device"]);
    let mut guest = Command::new(program("cat"));
    let open = File::options().read(true).write(true).open(device.path()).expect("the device");
    let mut running = guest.stdin(Stdio::piped()).stdout(open).spawn().expect("cat runs");
    drop(guest);
    let pid = running.id().to_string();
    machine.run(&["undo", &ids[0], "--same-device"]).fails(3, &[device.path(), "in use", &pid, "cat"]);
    same_bytes(machine.place("disk.img"), device.path());
    drop(running.stdin.take());
    running.wait().expect("cat ends");
    machine.run(&["undo", &ids[0], "--same-device"]).ok();
    assert!(std::fs::read(device.path()).expect("the device") == old);
}

/// How many MiB of a file differ from those of another one, as far as a look at a part of each tells.
fn touched(target: &str, old: &str) -> u64 {
    let [target, old] = [target, old].map(|path| std::fs::File::open(path).expect("a file"));
    let (mut now, mut before) = ([0; 4096], [0; 4096]);
    let differs = |at: &u64| {
        target.read_exact_at(&mut now, *at).expect("a part of it");
        old.read_exact_at(&mut before, *at).expect("a part of it");
        now != before
    };
    (0..SIZE).step_by(1 << 20).filter(differs).count() as u64
}

/// Whenever a restore is killed, the target is what it was, or what was kept puts it back.
#[test]
fn a_killed_restore_can_be_undone() {
    let machine = Machine::with_disk(SIZE);
    let (image, old, target) =
        (machine.place("disk.img"), machine.place("old.img"), machine.place("target.img"));
    random_file(&old, SIZE, 2);
    let seed = match std::env::var("LVKEEP_TEST_SEED") {
        Ok(text) => text.parse().expect("LVKEEP_TEST_SEED is a number"),
        Err(_) => rand::random(),
    };
    println!("moments by LVKEEP_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    std::fs::copy(&old, &target).expect("a copy");
    let (all, mut mixed) = (touched(&image, &old), 0);
    let new = std::fs::read(&image).expect("the image");
    for round in 0..8 {
        let before = kept(&machine).len();
        // Just after the first of it was overwritten, somewhere in each half, and at any time since the command began.
        let share = match round % 4 {
            0 => Some(1),
            1 => Some(random.random_range(1..=all / 2)),
            2 => Some(random.random_range(all / 2..=all)),
            _ => None,
        };
        let mut restoring = machine.start(&["restore", "--undo", "vm/disk@latest", &target]);
        match share {
            Some(share) => {
                restoring.wait_for("puts it back");
                while touched(&target, &old) < share && !restoring.has_ended() {
                    std::thread::yield_now();
                }
            }
            None => std::thread::sleep(Duration::from_millis(random.random_range(0..300))),
        }
        restoring.kill();
        let changed = touched(&target, &old);
        mixed += usize::from(changed > 0 && std::fs::read(&target).expect("the target") != new);
        let ids = kept(&machine);
        println!("round {round}: {} kept, {changed} of {all} MiB changed", ids.len() - before);
        if ids.len() > before {
            machine.run(&["undo", &ids[0]]).ok();
        }
        same_bytes(&old, &target);
    }
    assert!(mixed > 0, "no round has left half of a restore");
    machine.run(&["check"]).ok();
}

/// Begun again after it was cut off, a restore keeps a mixture; what was there first is named, and comes back. What was
/// kept of a restore that ended well is no mixture's, and is not named.
#[test]
fn what_was_kept_first_is_named_when_a_restore_is_begun_again() {
    let machine = Machine::with_disk(SIZE);
    let (image, target) = (machine.place("disk.img"), machine.place("target.img"));
    random_file(&target, SIZE, 3);
    let old = std::fs::read(&target).expect("the target");
    let restore = ["restore", "--undo", "vm/disk@latest", target.as_str()];
    let (pack, whole) = one_byte_wrong(&machine);
    machine.run(&restore).fails(6, &["at offset"]);
    let first = kept(&machine).remove(0);
    std::fs::write(&pack, whole).expect("the pack is whole again");
    let again = machine.run(&restore).ok();
    assert!(again.err.contains(&format!("is kept as {first}, too")), "{}", again.err);
    same_bytes(&image, &target);
    machine.run(&["undo", &first]).ok();
    assert!(std::fs::read(&target).expect("the target") == old);
    let later = machine.run(&restore).ok();
    assert!(!later.err.contains("too: after a restore that was cut off"), "{}", later.err);
    // What was kept is no volume that lacks backups.
    let status = machine.json(&["status"]);
    let volumes = status["volumes"].as_array().expect("a list");
    assert_eq!(volumes.len(), 1, "{status}");
}

/// Makes another one of the byte in the middle of a pack; the pack, and what it was.
fn one_byte_wrong(machine: &Machine) -> (std::path::PathBuf, Vec<u8>) {
    let mut packs: Vec<_> = walk(machine.place("repo/packs").as_ref());
    packs.sort_by_key(|pack| std::fs::metadata(pack).expect("a pack").len());
    let largest = packs.pop().expect("packs");
    let whole = std::fs::read(&largest).expect("a pack");
    let mut bytes = whole.clone();
    bytes[whole.len() / 2] ^= 1;
    std::fs::write(&largest, &bytes).expect("a pack");
    (largest, whole)
}

#[test]
fn many_targets_of_one_snapshot_are_read_from_the_repository_once() {
    let machine = Machine::with_disk(SIZE);
    let image = machine.place("disk.img");
    let targets: Vec<String> = (0..8).map(|n| machine.place(&format!("copy-{n}.img"))).collect();
    let mut arguments = vec!["restore", "vm/disk@latest", targets[0].as_str()];
    arguments.extend(targets[1..].iter().flat_map(|target| ["--also", target.as_str()]));
    let ran = machine.run(&[&["--json"], &arguments[..]].concat()).ok();
    let fetched = ran.out.lines().map(|line| {
        let done: serde_json::Value = serde_json::from_str(line).expect("JSON");
        done["bytes_fetched"].as_u64().expect("a number")
    });
    let fetched: Vec<u64> = fetched.collect();
    assert!(fetched[0] > 0 && fetched[1..].iter().all(|bytes| *bytes == 0), "{fetched:?}");
    assert_eq!(fetched.len(), targets.len());
    targets.iter().for_each(|target| same_bytes(&image, target));
    machine
        .run(&["restore", "vm/disk@latest", "x.img", "--also", "x.img"])
        .fails(3, &["x.img", "is named twice"]);
    // One that fails keeps no other from being restored, nor from being what the others take from.
    let (held, fresh) = (targets[0].as_str(), machine.place("fresh.img"));
    let ran = machine.run(&["--json", "restore", "vm/disk@latest", held, "--also", &fresh]);
    ran.fails(3, &["1 of 2 restores failed", held, "has content"]);
    same_bytes(&image, &fresh);
}

#[test]
fn the_rest_of_a_damaged_snapshot_is_restored_and_the_holes_are_listed() {
    let machine = Machine::with_disk(SIZE);
    let (image, target) = (machine.place("disk.img"), machine.place("target.img"));
    one_byte_wrong(&machine);
    machine.run(&["restore", "vm/disk@latest", &target]).fails(6, &["vm/disk", "at offset", "packs/"]);
    // It goes on with what the first one left.
    let ran = machine.run(&["--json", "restore", "--keep-going", "--force", "vm/disk@latest", &target]);
    let ran = ran.fails(6, &["cannot be read any more", "everything else was restored"]);
    let done = ran.json();
    let holes = done["holes"].as_array().expect("a list");
    assert_eq!(holes.len(), 1, "{done}");
    let number = |name: &str| holes[0][name].as_u64().expect("a number") as usize;
    let mut expected = std::fs::read(&image).expect("the image");
    expected[number("offset")..number("offset") + number("len")].fill(0);
    assert!(std::fs::read(&target).expect("the target") == expected);
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
