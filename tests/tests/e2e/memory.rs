//! Memory stays within the default budget, whatever the volume's size.

use std::fs::File;
use std::os::unix::fs::FileExt;

use tests::e2e::{Machine, Process, eventually, random_file, same_bytes};

/// The default budget.
const BUDGET_KIB: u64 = 256 << 10;
/// What a budget of 64 MiB comes to, with everything that is in memory besides.
const SMALL_KIB: u64 = 100 << 10;
/// Parts of an image that change places.
const PART: u64 = 512 << 10;
/// How many of them another image is made of.
const SHUFFLED: u64 = 400;

#[test]
fn a_sparse_volume_of_64_gib_stays_within_the_budget() {
    let machine = prepared();
    let image = machine.place("sparse.img");
    let file = File::create(&image).expect("an image");
    file.set_len(64 << 30).expect("a large hole");
    for number in 0..64u64 {
        let block: Vec<u8> = (0..4096u64).map(|at| ((at * 31) ^ number) as u8).collect();
        file.write_all_at(&block, (number << 30) + 4096 * number).expect("some data");
    }
    drop(file);
    within_budget(&machine, "64 GiB, sparse", &["backup", "--name", "big", &image]);
    within_budget(&machine, "64 GiB, sparse, again", &["backup", "--name", "big", &image]);
    let target = machine.place("restored.img");
    within_budget(&machine, "64 GiB, sparse, restored", &["restore", "big@latest", &target]);
    let (original, restored) =
        (File::open(&image).expect("the image"), File::open(&target).expect("the target"));
    assert_eq!(restored.metadata().expect("metadata").len(), 64 << 30);
    for number in 0..64u64 {
        let [mut a, mut b] = [vec![0; 16384], vec![0; 16384]];
        original.read_exact_at(&mut a, number << 30).expect("a part of the image");
        restored.read_exact_at(&mut b, number << 30).expect("a part of the target");
        assert!(a == b, "GiB {number} differs");
    }
}

#[test]
fn incompressible_data_stays_within_the_budget() {
    let machine = prepared();
    let image = machine.place("random.img");
    random_file(&image, 600 << 20, 1);
    within_budget(&machine, "600 MB, random", &["backup", "--name", "random", &image]);
    within_budget(&machine, "600 MB, random, again", &["backup", "--name", "random", &image]);
    let target = machine.place("restored.img");
    within_budget(&machine, "600 MB, random, restored", &["restore", "random@latest", &target]);
    same_bytes(&image, &target);
}

#[test]
fn a_volume_from_all_over_the_archive_stays_within_a_small_budget() {
    let mut machine = prepared();
    let [image, shuffled, target, out] =
        ["random.img", "shuffled.img", "restored.img", "out.img"].map(|name| machine.place(name));
    random_file(&image, 400 << 20, 2);
    machine.run(&["backup", "--name", "random", &image]).ok();
    // Neighbours of one are in packs of the other that are far from each other.
    let (from, to) = (File::open(&image).expect("the image"), File::create(&shuffled).expect("another"));
    let mut part = vec![0; PART as usize];
    for number in 0..SHUFFLED {
        from.read_exact_at(&mut part, (number * 263 % ((400 << 20) / PART)) * PART).expect("a part");
        to.write_all_at(&part, number * PART).expect("a part");
    }
    machine.run(&["backup", "--name", "shuffled", &shuffled]).ok();
    machine.set("LVKEEP_MEMORY", "64MiB");
    let restored = machine.start(&["restore", "shuffled@latest", &target]);
    stays_within(SMALL_KIB, "from all over, restored", restored);
    same_bytes(&shuffled, &target);
    let cat = ["cat", "shuffled@latest"];
    let cat = machine.start_into(&cat, File::create(&out).expect("a file"));
    stays_within(SMALL_KIB, "from all over, to a pipe", cat);
    same_bytes(&shuffled, &out);
}

fn prepared() -> Machine {
    let mut machine = Machine::new("m");
    machine.set("LVKEEP_REPO", &machine.place("repo"));
    machine.run(&["init"]).ok();
    machine
}

fn within_budget(machine: &Machine, what: &str, arguments: &[&str]) {
    stays_within(BUDGET_KIB, what, machine.start(arguments));
}

fn stays_within(budget_kib: u64, what: &str, mut process: Process) {
    // Its memory is looked at each time.
    eventually(what, || process.has_ended().then_some(()));
    let ran = process.end().ok();
    println!("{what}: {} MiB resident at most", ran.peak_kib >> 10);
    assert!(ran.peak_kib > 0, "its memory was seen");
    assert!(ran.peak_kib <= budget_kib, "{what}: {} KiB are more than the budget: {ran}", ran.peak_kib);
}
