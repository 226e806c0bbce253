//! `restore --snapback`: a local file that puts back what a restore has overwritten, also when it was killed.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tests::e2e::{Machine, eventually, random_file, same_bytes};

const SIZE: u64 = 64 << 20;

/// Each restore that is killed leaves a file of its own; the newest is applied first.
#[test]
fn a_killed_restore_is_put_back_by_its_snapbacks() {
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
    for round in 0..3 {
        let mut kept = Vec::new();
        for attempt in 0..2 {
            let file = machine.place(&format!("kept-{round}-{attempt}"));
            let mut restoring = machine.start(&["restore", "vm/disk@latest", &target, "--snapback", &file]);
            let enough = random.random_range(0..SIZE / 2);
            let is_enough = |len: u64| len > enough;
            eventually("it keeps, or is over", || {
                let len = std::fs::metadata(&file).map_or(0, |found| found.len());
                (is_enough(len) || restoring.has_ended()).then_some(())
            });
            restoring.kill();
            kept.push(file);
        }
        let again = ["restore", "vm/disk@latest", &target, "--snapback", &kept[0]];
        machine.run(&again).fails(3, &[&kept[0], "exists already", "another file", "--unfinished"]);
        for file in kept.iter().rev().filter(|file| std::fs::exists(file).expect("a look")) {
            machine.run(&["apply", "--unfinished", file, &target]).ok();
        }
        same_bytes(&old, &target);
    }
    // One that ended well is whole.
    let file = machine.place("kept");
    let ran = machine.run(&["restore", "vm/disk@latest", &target, "--snapback", &file]).ok();
    same_bytes(&image, &target);
    assert!(ran.out.contains(&format!("`lvkeep apply {file} {target}`")), "{ran}");
    machine.run(&["apply", &file, &target]).ok();
    same_bytes(&old, &target);
}

#[test]
fn a_snapback_goes_together_with_one_local_target_that_is_there() {
    let machine = Machine::with_disk(1 << 20);
    let file = machine.place("kept");
    for (more, why) in [
        (&["--undo"][..], "one of these ways"),
        (&["--to-host", "h"], "an agent keeps no file"),
        (&["--also", "y"], "a file of its own"),
        (&["--create"], "nothing to be kept"),
    ] {
        let arguments = ["restore", "vm/disk@latest", "x", "--snapback", &file];
        machine.run(&[&arguments[..], more].concat()).fails(2, &["snapback", why]);
    }
    machine
        .run(&["restore", "--plan", "p", "--snapback", &file])
        .fails(2, &["snapback", "a plan is run again"]);
    let target = machine.place("target");
    machine.run(&["restore", "vm/disk@latest", &target, "--snapback", &file]).fails(3, &["nothing to keep"]);
    assert!(!std::fs::exists(&target).expect("a look") && !std::fs::exists(&file).expect("a look"));
    let inside = machine.place("repo/kept");
    std::fs::copy(machine.place("disk.img"), &target).expect("a copy");
    let arguments = ["restore", "vm/disk@latest", &target, "--snapback", &inside];
    machine.run(&arguments).fails(3, &["inside the repository"]);
}
