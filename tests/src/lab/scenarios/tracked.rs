//! Tracked backups over many rounds: what is restored is what the LVM snapshot held, and no more is read than changed.

use crate::e2e::same_bytes;
use crate::lab::{Content, FileSystem, Keeper, Mounted, Pool, Traces, Tracked, Volume, VolumeGroup};
use crate::lab::{differing, rounds, run, seed, step, total};

/// The pool's block, and the chunk of an exception store unless it is set.
const BLOCK: u64 = 64 << 10;
/// The longest chunk: what a changed range may be widened by at either end, at most.
const LONGEST_CHUNK: u64 = 256 << 10;

/// Rounds of random writes and zeroes on a thick volume.
pub fn thick_rounds() {
    let group = VolumeGroup::new("vg0");
    let volume = group.thick("web", 128);
    in_rounds(&group, &[], &volume, |content| {
        content.overwrite(12, 150_000);
        content.zero(2, 300_000);
    });
}

/// Rounds of random writes, zeroes and discards on a thin volume.
pub fn thin_rounds() {
    let group = VolumeGroup::new("vg0");
    let pool = group.pool("pool", 512, BLOCK >> 10);
    let volume = pool.thin("web", 160);
    in_rounds(&group, &[&pool], &volume, |content| {
        content.overwrite(10, 150_000);
        content.zero(2, 300_000);
        content.discard(3, 1 << 20, BLOCK);
    });
}

/// Of which an ordinary run has time for some.
fn some_rounds() -> u64 {
    rounds(if crate::is_long() { 5 } else { 3 })
}

fn in_rounds(group: &VolumeGroup, pools: &[&Pool], volume: &Volume, change: impl Fn(&mut Content)) {
    let keeper = Keeper::new("");
    let traces = Traces::of(group, pools);
    let mut content = Content::new(&volume.device(), seed());
    content.fill(60);
    step("the first backup reads everything");
    let first = keeper.backup(volume);
    assert!(first.tracked().is_everything(), "{}", first.said);
    if !pools.is_empty() {
        let (read, size) = (first.count("bytes_read"), volume.size());
        assert!(read < size * 3 / 4, "only what is mapped is read: {read} of {size}");
    }
    keeper.restores(first.snapshot(), &keeper.baseline(group, volume).device());
    traces.are_only(1);

    let mut snapshots = vec![first.snapshot().to_owned()];
    for round in 1..=some_rounds() {
        step(&format!("round {round}"));
        change(&mut content);
        let backup = keeper.backup(volume);
        assert!(!backup.tracked().is_everything(), "{}", backup.said);
        let baseline = keeper.baseline(group, volume);
        assert!(differing(volume.device(), baseline.device(), 4096).is_empty(), "nobody wrote since");
        keeper.restores(backup.snapshot(), &baseline.device());
        traces.are_only(1);
        snapshots.push(backup.snapshot().to_owned());
    }
    step("all of them can still be read");
    keeper.run(&["check", "--read-data"]).ok();
    assert_eq!(keeper.snapshots(), snapshots.len());
}

/// ext4 at work on a thick volume, mounted while it is backed up.
pub fn ext4_on_thick() {
    let group = VolumeGroup::new("vg0");
    mounted(&group, &[], &group.thick("web", 96), FileSystem::Ext4);
}

/// xfs at work on a thick volume, mounted while it is backed up.
pub fn xfs_on_thick() {
    let group = VolumeGroup::new("vg0");
    mounted(&group, &[], &group.thick("web", 320), FileSystem::Xfs);
}

/// ext4 at work on a thin volume, mounted while it is backed up; what it frees is discarded.
pub fn ext4_on_thin() {
    let group = VolumeGroup::new("vg0");
    let pool = group.pool("pool", 768, BLOCK >> 10);
    mounted(&group, &[&pool], &pool.thin("web", 96), FileSystem::Ext4);
}

/// xfs at work on a thin volume, mounted while it is backed up; what it frees is discarded.
pub fn xfs_on_thin() {
    let group = VolumeGroup::new("vg0");
    let pool = group.pool("pool", 1024, BLOCK >> 10);
    mounted(&group, &[&pool], &pool.thin("web", 320), FileSystem::Xfs);
}

fn mounted(group: &VolumeGroup, pools: &[&Pool], volume: &Volume, kind: FileSystem) {
    let keeper = Keeper::new("");
    kind.make(&volume.device());
    let mut mounted = Mounted::new(&volume.device(), seed());
    mounted.create(30, 400_000);
    keeper.backup(volume);
    for round in 1..=some_rounds() {
        step(&format!("round {round}"));
        mounted.activity(25, !pools.is_empty());
        let backup = keeper.backup(volume);
        assert!(!backup.tracked().is_everything(), "{}", backup.said);
        keeper.restores(backup.snapshot(), &keeper.baseline(group, volume).device());
        if round == 1 {
            let target = keeper.machine.place("checked.img");
            keeper.run(&["restore", backup.snapshot(), &target]).ok();
            kind.check(&target);
            std::fs::remove_file(target).expect("the restored file is deleted");
        }
    }
    Traces::of(group, pools).are_only(1);
}

/// What is said to have changed covers what did and is not much more; what is read is that, widened to chunks.
pub fn accounting() {
    let group = VolumeGroup::new("vg0");
    let pool = group.pool("pool", 512, BLOCK >> 10);
    for volume in [group.thick("thick", 256), pool.thin("thin", 256)] {
        account(&group, &volume);
    }
    Traces::of(&group, &[&pool]).are_only(2);
}

fn account(group: &VolumeGroup, volume: &Volume) {
    // Without the audit, whose share is random.
    let keeper = Keeper::new("[lvm]\naudit = 0\n");
    // Where content repeats itself for megabytes, cuts that were moved may stay so until it ends.
    let mut content = Content::noise(&volume.device(), seed());
    content.fill(100);
    keeper.backup(volume);
    step(&format!("an unchanged {}", volume.name));
    let unchanged = keeper.backup(volume);
    assert_eq!(unchanged.tracked(), Tracked::Since { changed: 0, audited: 0 }, "{}", unchanged.said);
    assert_eq!(unchanged.count("bytes_read"), 0, "{}", unchanged.said);

    step(&format!("a changed {}", volume.name));
    let before = keeper.baseline(group, volume);
    let written = content.overwrite(20, 100_000);
    let differing = differing(volume.device(), before.device(), BLOCK);
    let backup = keeper.backup(volume);
    let Tracked::Since { changed, .. } = backup.tracked() else { panic!("{}", backup.said) };
    // What was written with the bytes that stood there already counts as changed, and whole units do.
    let most: u64 =
        written.iter().map(|range| range.end.div_ceil(BLOCK) * BLOCK - range.start / BLOCK * BLOCK).sum();
    assert!((total(&differing)..=most).contains(&changed), "{changed} of {} to {most}", total(&differing));
    let read = backup.count("bytes_read");
    let ends = written.len() as u64 * 2 * LONGEST_CHUNK;
    assert!((changed..=changed + ends).contains(&read), "{read} bytes read for {changed} changed ones");
    keeper.restores(backup.snapshot(), &volume.device());
}

/// A baseline that lies is found out by the audit: what it kept silent about is in the snapshot all the same.
pub fn lying_baseline() {
    let group = VolumeGroup::new("vg0");
    let volume = group.thick("web", 128);
    let keeper = Keeper::new("[lvm]\naudit = 100\n");
    let mut content = Content::new(&volume.device(), seed());
    content.fill(80);
    keeper.backup(&volume);
    step("bytes change below the device mapper, where no snapshot sees it: a restore finds it out");
    let copy = keeper.machine.place("copy");
    run("cp", &["--sparse=always", &volume.device(), &copy]);
    write_beneath(&volume, 30 << 20);
    let snapshot = keeper.latest(&volume);
    let said = keeper.run(&["restore", &snapshot, &volume.path(), "--force"]).ok().out;
    println!("    {said}");
    assert!(said.contains("AUDIT"), "{said}");
    std::fs::write("/proc/sys/vm/drop_caches", "3").expect("caches are dropped");
    same_bytes(volume.device(), &copy);
    step("and so does a backup");
    write_beneath(&volume, 40 << 20);
    let backup = keeper.backup(&volume);
    match backup.tracked() {
        Tracked::Everything { why: Some(why) } => println!("    it says: {why}"),
        _ => panic!("the audit let it pass: {}", backup.said),
    }
    keeper.restores(backup.snapshot(), &volume.device());
    Traces::of(&group, &[]).are_only(1);
}

/// Overwrites a block of a linear volume through the disk that it lies on.
fn write_beneath(volume: &Volume, offset: u64) {
    use std::os::unix::fs::FileExt;
    // An origin with snapshots lies on a hidden device: `0 LENGTH linear MAJOR:MINOR START`.
    let table = run("dmsetup", &["table", &volume.mapped_name("-real")]);
    let fields: Vec<&str> = table.split_whitespace().collect();
    let [_, _, "linear", disk, start] = fields.as_slice() else { panic!("{table}") };
    let start: u64 = start.parse().expect("a sector");
    let disk = std::fs::canonicalize(format!("/dev/block/{disk}")).expect("a disk");
    let file = std::fs::OpenOptions::new().write(true).open(&disk).expect("the disk opens");
    file.write_all_at(&[b'!'; 4096], start * 512 + offset).expect("the disk is written");
    file.sync_all().expect("the disk takes it");
    // What the caches hold of the volume is from before.
    std::fs::write("/proc/sys/vm/drop_caches", "3").expect("caches are dropped");
}
