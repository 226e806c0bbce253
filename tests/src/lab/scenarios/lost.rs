//! Baselines that cannot be used: everything is read, the reason is said, and what is restored is right.

use crate::e2e::same_bytes;
use crate::lab::{Backup, Content, Keeper, Traces, Tracked, Volume, VolumeGroup};
use crate::lab::{differing, run, seed, step, total};

/// What the summary gives as the reason why everything was read.
#[track_caller]
fn reason(backup: &Backup) -> String {
    match backup.tracked() {
        Tracked::Everything { why: Some(why) } => {
            println!("    it says: {why}");
            why
        }
        _ => panic!("everything is to be read, and the reason to be said: {}", backup.said),
    }
}

/// Everything is read by the next backup, which restores to what the volume holds, and the one after is tracked again.
#[track_caller]
fn starts_over(keeper: &Keeper, group: &VolumeGroup, volume: &Volume) -> String {
    let backup = keeper.backup(volume);
    let why = reason(&backup);
    keeper.restores(backup.snapshot(), &volume.device());
    Traces::of(group, &[]).are_only(1);
    goes_on(keeper, volume);
    why
}

/// The next backup is a tracked one.
#[track_caller]
fn goes_on(keeper: &Keeper, volume: &Volume) {
    Content::new(&volume.device(), 99).overwrite(3, 50_000);
    let next = keeper.backup(volume);
    assert!(!next.tracked().is_everything(), "{}", next.said);
    keeper.restores(next.snapshot(), &volume.device());
}

fn thick(group: &VolumeGroup, name: &str) -> (Volume, Content) {
    let volume = group.thick(name, 64);
    let mut content = Content::new(&volume.device(), seed());
    content.fill(70);
    (volume, content)
}

/// More is written than the baseline can hold: the kernel gives it up.
pub fn overflowed_baseline() {
    let group = VolumeGroup::new("vg0");
    let (volume, mut content) = thick(&group, "web");
    let keeper = Keeper::new("");
    keeper.backup(&volume);
    step("the baseline overflows");
    let baseline = keeper.baseline(&group, &volume);
    // As small as it can be, whatever was made of it.
    run("lvreduce", &["-q", "-f", "-y", "-L", "4m", &baseline.path()]);
    content.overwrite_at(0..16 << 20);
    let state = baseline.field("lv_attr");
    assert_eq!(state.chars().nth(4), Some('I'), "the kernel gave it up: {state}");
    step("a restore says so, and reads");
    let copy = keeper.machine.place("copy");
    run("cp", &[&volume.device(), &copy]);
    let newest = keeper.latest(&volume);
    let done = keeper.run(&["--json", "restore", &newest, &volume.path(), "--force", "--undo"]).ok().json();
    assert_eq!(done["bytes_tracked"], 0, "{done}");
    assert!(done["notes"].to_string().contains("has overflowed"), "{done}");
    keeper.run(&["undo", done["undo"].as_str().expect("an id")]).ok();
    same_bytes(volume.device(), &copy);
    let why = starts_over(&keeper, &group, &volume);
    assert!(why.contains("overflow"), "{why}");
    assert!(!baseline.exists(), "what cannot be used is removed");
}

/// A volume that grew or shrank is read anew, and tracked from then on.
pub fn resized_volume() {
    let group = VolumeGroup::new("vg0");
    let (volume, _) = thick(&group, "web");
    let pool = group.pool("pool", 256, 64);
    let thin = pool.thin("thin", 64);
    Content::new(&thin.device(), seed()).fill(60);
    let keeper = Keeper::new("");
    keeper.backup(&volume);
    keeper.backup(&thin);
    step("a thin volume grows, with its baseline in place");
    run("lvextend", &["-q", "-L", "+20m", &thin.path()]);
    let backup = keeper.backup(&thin);
    reason(&backup);
    keeper.restores(backup.snapshot(), &thin.device());
    goes_on(&keeper, &thin);
    step("a thin volume shrinks");
    run("lvreduce", &["-q", "-f", "-y", "-L", "-40m", &thin.path()]);
    let backup = keeper.backup(&thin);
    reason(&backup);
    keeper.restores(backup.snapshot(), &thin.device());
    step("a thick volume grows; LVM wants it without snapshots or inactive for that");
    run("lvchange", &["-q", "-an", &volume.path()]);
    run("lvextend", &["-q", "-L", "+20m", &volume.path()]);
    run("lvchange", &["-q", "-ay", &volume.path()]);
    let backup = keeper.backup(&volume);
    reason(&backup);
    keeper.restores(backup.snapshot(), &volume.device());
    goes_on(&keeper, &volume);
    Traces::of(&group, &[&pool]).are_only(2);
}

/// A thick volume that was rolled back to an LVM snapshot. The baseline sees what a merge of another one writes, and
/// goes on; one that was merged itself is gone.
pub fn merged_volume() {
    let group = VolumeGroup::new("vg0");
    let (volume, mut content) = thick(&group, "web");
    let keeper = Keeper::new("");
    step("the state to go back to is older than the baseline");
    let own = volume.snapshot("before-upgrade", 32, 4);
    content.overwrite(10, 100_000);
    keeper.backup(&volume);
    let before = keeper.baseline(&group, &volume);
    run("lvconvert", &["-q", "-y", "--merge", &own.path()]);
    assert!(own.goes(), "the merge is over");
    content.overwrite(4, 50_000);
    let rolled_back = differing(volume.device(), before.device(), 4096);
    assert!(rolled_back.len() > 4, "the merge changed the volume");
    let backup = keeper.backup(&volume);
    covers(&backup, &rolled_back);
    keeper.restores(backup.snapshot(), &volume.device());
    step("the state to go back to is newer than the baseline");
    let own = volume.snapshot("before-upgrade", 32, 4);
    content.overwrite(10, 100_000);
    run("lvconvert", &["-q", "-y", "--merge", &own.path()]);
    content.overwrite(4, 50_000);
    let backup = keeper.backup(&volume);
    assert!(!backup.tracked().is_everything(), "{}", backup.said);
    keeper.restores(backup.snapshot(), &volume.device());
    step("rolled back to the baseline itself: it is gone");
    let baseline = keeper.baseline(&group, &volume);
    content.overwrite(10, 100_000);
    run("lvconvert", &["-q", "-y", "--merge", &baseline.path()]);
    assert!(baseline.goes(), "the merge is over");
    let why = starts_over(&keeper, &group, &volume);
    assert!(why.contains("no LVM snapshot of the parent"), "{why}");
}

/// What is said to have changed is no less than what did.
#[track_caller]
fn covers(backup: &Backup, differing: &[std::ops::Range<u64>]) {
    let Tracked::Since { changed, .. } = backup.tracked() else { panic!("it is tracked: {}", backup.said) };
    assert!(changed >= total(differing), "{changed} of {} bytes: {}", total(differing), backup.said);
}

/// A thin volume that was rolled back. LVM puts another thin device under the volume's name and UUID, and the baseline
/// has no origin any more; mappings are compared all the same, whoever descends from whom.
pub fn merged_thin_volume() {
    let group = VolumeGroup::new("vg0");
    let pool = group.pool("pool", 512, 64);
    let volume = pool.thin("web", 64);
    let mut content = Content::new(&volume.device(), seed());
    content.fill(70);
    let keeper = Keeper::new("");
    for is_older in [true, false] {
        step(&format!("the state to go back to is older than the baseline: {is_older}"));
        if !is_older {
            keeper.backup(&volume);
        }
        let own = volume.thin_snapshot("before-upgrade");
        content.overwrite(10, 100_000);
        if is_older {
            keeper.backup(&volume);
        }
        let before = keeper.baseline(&group, &volume);
        let identity = [volume.uuid(), volume.field("thin_id")];
        merge_thin(&volume, &own);
        let [uuid, device] = [volume.uuid(), volume.field("thin_id")];
        assert!(uuid == identity[0] && device != identity[1], "another device under the same UUID");
        assert_eq!(before.field("origin"), "", "LVM has forgotten what it was taken of");
        content.overwrite(4, 50_000);
        let rolled_back = differing(volume.device(), before.device(), 4096);
        assert!(!rolled_back.is_empty(), "the volume changed");
        let backup = keeper.backup(&volume);
        covers(&backup, &rolled_back);
        keeper.restores(backup.snapshot(), &volume.device());
        assert!(!before.exists(), "the older baseline is removed");
    }
    step("rolled back to the baseline itself: it is gone");
    let baseline = keeper.baseline(&group, &volume);
    content.overwrite(10, 100_000);
    merge_thin(&volume, &baseline);
    let why = starts_over(&keeper, &group, &volume);
    assert!(why.contains("no LVM snapshot of the parent"), "{why}");
    Traces::of(&group, &[&pool]).are_only(1);
}

/// LVM merges a thin snapshot when neither it nor its origin is active.
fn merge_thin(volume: &Volume, snapshot: &Volume) {
    run("lvchange", &["-q", "-an", &volume.path()]);
    run("lvchange", &["-q", "-an", &snapshot.path()]);
    run("lvconvert", &["-q", "-y", "--merge", &snapshot.path()]);
    run("lvchange", &["-q", "-ay", &volume.path()]);
    assert!(!snapshot.exists(), "the merge is over");
}

/// A volume that was removed, and another one made under its name.
pub fn recreated_volume() {
    let group = VolumeGroup::new("vg0");
    let (volume, _) = thick(&group, "web");
    let keeper = Keeper::new("");
    keeper.backup(&volume);
    let pool = group.pool("pool", 256, 64);
    let thin = pool.thin("thin", 64);
    Content::new(&thin.device(), seed()).fill(50);
    keeper.backup(&thin);
    step("a thick volume goes with its snapshots, and comes again under its name");
    let old = volume.uuid();
    volume.remove();
    let (volume, _) = thick(&group, "web");
    assert_ne!(old, volume.uuid());
    Content::new(&volume.device(), seed() + 1).overwrite(20, 200_000);
    let backup = keeper.backup(&volume);
    reason(&backup);
    keeper.restores(backup.snapshot(), &volume.device());
    goes_on(&keeper, &volume);
    step("a thin volume goes and leaves the baseline behind, which is nobody's then");
    thin.remove();
    let thin = pool.thin("thin", 64);
    Content::new(&thin.device(), seed() + 2).fill(50);
    let backup = keeper.backup(&thin);
    reason(&backup);
    keeper.restores(backup.snapshot(), &thin.device());
    goes_on(&keeper, &thin);
    step("the old states are still in the archive");
    keeper.run(&["check", "--read-data"]).ok();
    Traces::of(&group, &[&pool]).pools_are_free();
}

/// The operator gives the volume another name in LVM: the archive has another volume then, which begins anew.
pub fn renamed_volume() {
    let group = VolumeGroup::new("vg0");
    let (volume, _) = thick(&group, "web");
    let keeper = Keeper::new("");
    let first = keeper.backup(&volume);
    run("lvrename", &["-q", &volume.path(), &format!("{}/www", group.name())]);
    let renamed = group.volume("www");
    let mut content = Content::new(&renamed.device(), seed() + 1);
    content.overwrite(5, 50_000);
    step("under the new name everything is read");
    let backup = keeper.backup(&renamed);
    assert!(backup.tracked().is_everything(), "another volume has no parent: {}", backup.said);
    keeper.restores(backup.snapshot(), &renamed.device());
    step("under the old name in the archive it goes on, from the parent that it has there");
    content.overwrite(5, 50_000);
    let backup = keeper.backup_with(&["--name", first.volume(), &renamed.path()]);
    keeper.restores(backup.snapshot(), &renamed.device());
    Traces::of(&group, &[]).are_only(1);
}

/// The snapshot that the baseline belongs to is no longer in the repository.
pub fn lost_parent() {
    let group = VolumeGroup::new("vg0");
    let (volume, mut content) = thick(&group, "web");
    let keeper = Keeper::new("");
    let first = keeper.backup(&volume);
    content.overwrite(5, 50_000);
    let second = keeper.backup(&volume);
    step("the newest snapshot is gone: the one before it is the parent, and the baseline is not its");
    keeper.collected(second.snapshot());
    content.overwrite(5, 50_000);
    let third = keeper.backup(&volume);
    reason(&third);
    keeper.restores(third.snapshot(), &volume.device());
    assert_ne!(first.snapshot(), third.snapshot());
    goes_on(&keeper, &volume);
    Traces::of(&group, &[]).are_only(1);
}
