//! `restore --undo` and `undo`: what stood on a target comes back, also when the restore was killed on the way.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tests::e2e::{Machine, random_file, same_bytes};

const SIZE: u64 = 64 << 20;

/// A repository with a snapshot of `disk.img`.
fn prepared() -> Machine {
    let mut machine = Machine::new("m");
    machine.set("LVKEEP_REPO", &machine.place("repo"));
    machine.run(&["init"]).ok();
    let image = machine.place("disk.img");
    random_file(&image, SIZE, 1);
    machine.run(&["backup", "--name", "vm/disk", &image]).ok();
    machine
}

/// Ids of what was kept, the newest first.
fn kept(machine: &Machine) -> Vec<String> {
    let listed = machine.json(&["snapshots", "--volume", "undo/*"]);
    let mut snapshots = listed.as_array().expect("a list").clone();
    snapshots.sort_by_key(|snapshot| std::cmp::Reverse(snapshot["id"].as_str().map(str::to_owned)));
    snapshots.iter().map(|snapshot| snapshot["id"].as_str().expect("an id").to_owned()).collect()
}

#[test]
fn what_was_overwritten_is_put_back() {
    let machine = prepared();
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
    machine.run(&["undo", "vm/disk@latest"]).fails(3, &["vm/disk", "--undo", "lvkeep restore"]);
    machine.run(&["--host", "elsewhere", "undo", &ids[0]]).fails(3, &["on host", "elsewhere"]);
}

/// Whenever a restore is killed, the target is what it was, or what was kept puts it back.
#[test]
fn a_killed_restore_can_be_undone() {
    let machine = prepared();
    let (old, target) = (machine.place("old.img"), machine.place("target.img"));
    random_file(&old, SIZE, 2);
    let seed = match std::env::var("LVKEEP_TEST_SEED") {
        Ok(text) => text.parse().expect("LVKEEP_TEST_SEED is a number"),
        Err(_) => rand::random(),
    };
    println!("moments by LVKEEP_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    std::fs::copy(&old, &target).expect("a copy");
    for round in 0..6 {
        let before = kept(&machine).len();
        let mut restoring = machine.start(&["restore", "--undo", "vm/disk@latest", &target]);
        // Half of the rounds strike when there is something to undo.
        if round % 2 == 0 {
            restoring.wait_for("puts it back");
        }
        std::thread::sleep(Duration::from_millis(random.random_range(0..300)));
        restoring.kill();
        let ids = kept(&machine);
        println!("round {round}: {} kept", ids.len() - before);
        if ids.len() > before {
            machine.run(&["undo", &ids[0]]).ok();
        }
        same_bytes(&old, &target);
    }
    machine.run(&["check"]).ok();
}
