//! A real object store: backups into it, and the promises that the project relies on.

use std::os::unix::fs::MetadataExt;

use tests::e2e::{
    Archive, Machine, Seaweed, Tap, eventually, ext4, fsck, make_tree, random_file, same_bytes,
};

#[test]
fn a_file_system_comes_back_from_an_object_store() {
    let weed = Seaweed::start();
    let mut machine = Machine::new("m");
    machine.set_all(&weed.environment());
    machine.set("LVKEEP_REPO", &weed.location("some/prefix"));
    let identity = machine.place("identity");
    let made = machine.json(&["init", "--identity-out", &identity, "--pack-size", "4MiB"]);
    assert_eq!(made["conditional_create"], true, "this store keeps its word on conditional writes");
    machine.set("LVKEEP_IDENTITY", &identity);

    let (tree, image) = (machine.place("tree"), machine.place("disk.img"));
    make_tree(&tree, 1);
    ext4(&image, 64, &tree);
    machine.run(&["backup", "--name", "vm/root", &image]).ok();
    let unchanged = machine.json(&["backup", "--name", "vm/root", &image]);
    assert_eq!(unchanged["bytes_stored"], 0);
    let random = machine.place("random.img");
    random_file(&random, 40 << 20, 2);
    let data = machine.json(&["backup", "--name", "vm/data", &random]);

    let target = machine.place("restored.img");
    machine.run(&["restore", "vm/root@latest", &target]).ok();
    same_bytes(&image, &target);
    fsck(&target);
    std::fs::remove_file(&target).expect("the restored file is deleted");
    machine.restores("vm/data@latest", &random);
    let found = machine.json(&["check", "--read-data"]);
    assert_eq!((&found["snapshots"], &found["damaged"]), (&3.into(), &serde_json::json!([])));
    assert_eq!(Archive::open(weed.store("some/prefix"), &identity).open_sessions(), 0);

    // Bucket and identity are all that a restore needs.
    let mut stranger = Machine::new("stranger");
    stranger.set_all(&weed.environment());
    stranger.set("LVKEEP_REPO", &weed.location("some/prefix"));
    stranger.set("LVKEEP_IDENTITY", &identity);
    stranger.restores("vm/data@latest", &random);
    // Another prefix of the same bucket is another repository.
    stranger.run(&["--repo", &weed.location("some"), "snapshots"]).fails(3, &["holds no repository"]);

    // What is forgotten goes, in batches that this store takes.
    let archive = Archive::open(weed.store("some/prefix"), &identity);
    let before = archive.size();
    archive.forget(data["snapshot"].as_str().expect("an id"));
    let tap = Tap::on(&weed.endpoint());
    machine.set("AWS_ENDPOINT_URL", &tap.endpoint());
    let pruned = machine.json(&["prune"]);
    machine.set_all(&weed.environment());
    assert_eq!((&pruned["finished"], &pruned["snapshots_removed"]), (&true.into(), &1.into()), "{pruned}");
    let in_batches = tap.heard("<Key>some/prefix/packs/") as u64;
    assert!(pruned["packs_deleted"] == in_batches && in_batches > 8, "{in_batches}: {pruned}");
    let (batches, one_by_one) =
        (tap.heard("POST /backups?delete"), tap.heard("DELETE /backups/some/prefix/packs/"));
    assert!(
        (1..3).contains(&batches) && one_by_one == 0,
        "{batches} batches, and {one_by_one} by themselves"
    );
    assert!(archive.size() + (40 << 20) <= before, "{before} bytes became {}", archive.size());
    machine.run(&["check", "--read-data"]).ok();
    machine.restores("vm/root@latest", &image);

    // A copy on a disk, and one of that in another bucket, which only its own variables lead to.
    let (disk, second) = (machine.place("second"), weed.location("second"));
    machine.run(&["init", "--repo", &disk, "--like", &weed.location("some/prefix")]).ok();
    assert_eq!(machine.json(&["copy", "--to", &disk])["copied"].as_array().map(Vec::len), Some(2));
    machine.run(&["init", "--repo", &second, "--like", &disk]).ok();
    let mut courier = Machine::new("courier");
    courier.set("LVKEEP_REPO", &disk);
    courier.set("LVKEEP_IDENTITY", &identity);
    for (name, value) in weed.environment() {
        courier.set(&format!("LVKEEP_OTHER_{name}"), &value);
    }
    let report = courier.json(&["copy", "--to", &second]);
    assert_eq!((report["copied"].as_array().map(Vec::len), &report["verified"]), (Some(2), &true.into()));
    machine.set("LVKEEP_REPO", &second);
    machine.restores("vm/root@latest", &image);
}

/// In the middle of a restore: it says so, and leaves no session for which collections would wait; begun again, it goes on
/// with what it has.
#[test]
fn a_restore_survives_a_store_that_goes_away() {
    const SIZE: u64 = 192 << 20;
    let mut weed = Seaweed::start();
    let mut machine = Machine::new("m");
    machine.set_all(&weed.environment());
    machine.set("LVKEEP_REPO", &weed.location("archive"));
    let identity = machine.place("identity");
    machine.run(&["init", "--identity-out", &identity, "--pack-size", "4MiB"]).ok();
    machine.set("LVKEEP_IDENTITY", &identity);
    let (image, target) = (machine.place("disk.img"), machine.place("target.img"));
    random_file(&image, SIZE, 3);
    machine.run(&["backup", "--name", "vm/disk", &image]).ok();

    // A hole: what it occupies was written.
    std::fs::File::create(&target).expect("a file").set_len(SIZE).expect("a file of this size");
    let occupied = || std::fs::metadata(&target).expect("the target").blocks() * 512;
    let mut restoring =
        machine.start(&["--memory", "64MiB", "restore", "--force", "vm/disk@latest", &target]);
    eventually("something is written", || (occupied() > 0 || restoring.has_ended()).then_some(()));
    weed.kill();
    restoring.wait_for("lvkeep: ");
    weed.start_again();
    restoring.end().fails(5, &["vm/disk", &target, "packs/"]);
    let written = occupied();
    assert!(written > 0 && written < SIZE, "{written} bytes are there");
    assert_eq!(machine.json(&["status"])["sessions"], serde_json::json!([]));

    let done = machine.json(&["restore", "--force", "vm/disk@latest", &target]);
    let (again, kept) = (done["bytes_written"].as_u64(), done["bytes_kept"].as_u64());
    assert!(again < Some(SIZE) && kept > Some(0), "what was there is not fetched again: {done}");
    same_bytes(&image, &target);
}

#[test]
fn this_object_store_keeps_its_promises() {
    let weed = Seaweed::start();
    let store = weed.store("contract");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(agent::contract::store::all(&store));
}
