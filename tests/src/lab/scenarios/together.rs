//! Several at once: volumes of one pool, repositories of one volume, runs of one volume; and who else is on the host.

use crate::e2e::eventually;
use crate::lab::{Content, Keeper, Traces, Volume, VolumeGroup, differing, run, seed, step, total};

const BLOCK_KIB: u64 = 64;
/// The longest chunk.
const LONGEST_CHUNK: u64 = 256 << 10;
/// What the map of a small volume takes, at most.
const MAP: u64 = 256 << 10;

/// Two volumes of one pool in one run and in two: the pool's metadata are reserved by one at a time, and released.
pub fn two_volumes_of_one_pool() {
    let group = VolumeGroup::new("vg0");
    let pool = group.pool("pool", 512, BLOCK_KIB);
    let volumes = ["one", "two"].map(|name| pool.thin(name, 96));
    let mut contents: Vec<Content> =
        volumes.iter().zip(seed()..).map(|(volume, seed)| Content::new(&volume.device(), seed)).collect();
    contents.iter_mut().for_each(|content| content.fill(50));
    let keeper = Keeper::new("");
    let paths = volumes.each_ref().map(|volume| volume.path());
    step("both in one run");
    keeper.run(&["backup", &paths[0], &paths[1]]).ok();
    Traces::of(&group, &[&pool]).are_only(2);
    step("both changed, in two runs at once");
    contents.iter_mut().for_each(|content| drop(content.overwrite(10, 100_000)));
    let running = paths.each_ref().map(|path| keeper.start_backup(&[path]));
    running.into_iter().for_each(|process| drop(process.end().ok()));
    Traces::of(&group, &[&pool]).are_only(2);
    for volume in &volumes {
        let name = keeper.latest(volume);
        keeper.restores(&name, &volume.device());
        let again = keeper.backup(volume);
        assert!(!again.tracked().is_everything(), "{}", again.said);
    }
}

/// Each repository has a baseline of its own, and neither uses or removes the other's.
pub fn two_repositories() {
    let group = VolumeGroup::new("vg0");
    let volume = group.thick("web", 96);
    let mut content = Content::new(&volume.device(), seed());
    content.fill(50);
    let keeper = Keeper::new("");
    let other = keeper.another_repository("other");
    let path = volume.path();
    keeper.backup(&volume);
    keeper.backup_with(&["--repo", &other, &path]);
    let traces = Traces::of(&group, &[]);
    traces.are_only(2);
    for round in 0..3 {
        step(&format!("round {round}"));
        content.overwrite(5, 60_000);
        let ours = keeper.backup(&volume);
        assert!(!ours.tracked().is_everything(), "{}", ours.said);
        content.overwrite(5, 60_000);
        let theirs = keeper.backup_with(&["--repo", &other, &path]);
        assert!(!theirs.tracked().is_everything(), "{}", theirs.said);
        traces.are_only(2);
        let target = keeper.machine.place("other.img");
        let identity = keeper.machine.place("other.id");
        keeper.run(&["restore", "--repo", &other, "--identity", &identity, theirs.snapshot(), &target]).ok();
        crate::e2e::same_bytes(volume.device(), &target);
        std::fs::remove_file(target).expect("the restored file is deleted");
    }
    content.overwrite(5, 60_000);
    let ours = keeper.backup(&volume);
    keeper.restores(ours.snapshot(), &volume.device());
}

/// Two runs of one volume into one repository at once: both end well or one is refused, and one baseline remains.
pub fn two_runs_at_once() {
    let group = VolumeGroup::new("vg0");
    let volume = group.thick("web", 96);
    let mut content = Content::new(&volume.device(), seed());
    content.fill(60);
    let keeper = Keeper::new("");
    let path = volume.path();
    keeper.backup(&volume);
    for round in 0..3 {
        step(&format!("round {round}"));
        content.overwrite(10, 100_000);
        let running = [(); 2].map(|()| keeper.start_backup(&[&path]));
        let ended = running.map(crate::e2e::Process::end);
        assert!(
            ended.iter().any(|ran| ran.status.success()),
            "one of them succeeds: {} {}",
            ended[0],
            ended[1]
        );
        keeper.restores(&keeper.latest(&volume), &volume.device());
    }
    step("what they left is tidied up by the next run");
    content.overwrite(5, 60_000);
    let backup = keeper.backup(&volume);
    keeper.restores(backup.snapshot(), &volume.device());
    Traces::of(&group, &[]).are_only(1);
    keeper.run(&["check", "--read-data"]).ok();
}

/// Another run commits one of a group's volumes between the group's moment and that volume's turn in the group: what
/// the group's run seals is the group's moment all the same, although its parent shows a later one.
pub fn a_group_and_another_run() {
    let group = VolumeGroup::new("vg0");
    let pool = group.pool("pool", 128, BLOCK_KIB);
    let first = group.thick("a-first", 96);
    let others = [group.thick("b-thick", 32), pool.thin("c-thin", 32)];
    let keeper = Keeper::new("reads = 1\n");
    Content::noise(&first.device(), seed()).fill(70);
    let mut contents = others.each_ref().map(|volume| Content::new(&volume.device(), seed()));
    for (volume, content) in others.iter().zip(&mut contents) {
        content.fill(90);
        keeper.backup(volume);
        content.overwrite_at(1 << 20..2 << 20);
    }
    step("the group's moment");
    let paths = [&first, &others[0], &others[1]].map(Volume::path);
    let [a, b, c] = paths.each_ref().map(String::as_str);
    let mut running = keeper.start_backup(&["--group", "all", "--limit-read", "2MiB", a, b, c]);
    eventually("all snapshots are there", || (group.kept().len() == 5).then_some(()));
    step("another run commits what was written since");
    let mut later = Vec::new();
    for (volume, content) in others.iter().zip(&mut contents) {
        content.overwrite_at(4 << 20..7 << 20);
        content.overwrite_at(1 << 20..(1 << 20) + 4096);
        later.push(keeper.backup(volume));
        content.overwrite_at(12 << 20..13 << 20);
    }
    assert!(!running.has_ended(), "the group's first volume is still being read");
    running.wait().ok();
    Traces::of(&group, &[&pool]).are_only(3);
    let listed = keeper.machine.json(&["snapshots"]);
    for ((volume, content), later) in others.iter().zip(&mut contents).zip(&later) {
        let latest = keeper.latest(volume);
        let moment = keeper.baseline(&group, volume);
        assert!(
            !differing(volume.device(), moment.device(), 4096).is_empty(),
            "the group's moment is earlier"
        );
        keeper.restores(&latest, &moment.device());
        let row = |id: &str| {
            let rows = listed.as_array().expect("a list of snapshots");
            rows.iter().find(|row| row["id"] == id).unwrap_or_else(|| panic!("{id}: {listed}"))
        };
        let shown = keeper.machine.json(&["show", &latest]);
        let (shown, later) = (&shown["time"], &row(later.snapshot())["time"]);
        assert!(shown.as_str() < later.as_str(), "{shown} is the group's moment, before {later}");
        content.overwrite(3, 60_000);
        let next = keeper.backup(volume);
        assert!(!next.tracked().is_everything(), "{}", next.said);
        keeper.restores(next.snapshot(), &volume.device());
    }
}

/// Nothing of anyone else's is touched: not their snapshots, not those whose tags or names only look like ours.
pub fn the_rest_of_the_host() {
    let group = VolumeGroup::new("vg0");
    let volume = group.thick("web", 64);
    let mut content = Content::new(&volume.device(), seed());
    content.fill(50);
    let keeper = Keeper::new("");
    keeper.backup(&volume);
    let own = volume.snapshot("nightly", 16, 4);
    let tagged = volume.snapshot("tagged", 16, 4);
    let marks = keeper.baseline(&group, &volume).field("lv_tags");
    for tag in marks.split(',') {
        run("lvchange", &["-q", "--addtag", tag, &tagged.path()]);
    }
    let named = volume.snapshot("lvkeep-of-somebody", 16, 4);
    let other = group.thick("lvkeep", 16);
    for _ in 0..2 {
        content.overwrite(5, 50_000);
        let backup = keeper.backup(&volume);
        keeper.restores(backup.snapshot(), &volume.device());
    }
    keeper.run(&["host", "clean"]).ok();
    for volume in [&own, &tagged, &named, &other] {
        assert!(volume.exists(), "{} is somebody's", volume.path());
    }
    named.remove();
    Traces::of(&group, &[]).are_only(1);
    step("somebody's volume of another pool shines a baseline through");
    let [pool, second] = ["pool", "second"].map(|name| group.pool(name, 64, BLOCK_KIB));
    let thin = pool.thin("thin", 32);
    let mut content = Content::new(&thin.device(), seed());
    content.fill(50);
    keeper.backup(&thin);
    let origin = keeper.baseline(&group, &thin);
    run("lvchange", &["-q", "-an", &origin.path()]);
    let pool_path = second.volume.path();
    run("lvcreate", &["-q", "-y", "-s", "-kn", "-n", "clone", "--thinpool", &pool_path, &origin.path()]);
    content.overwrite(5, 50_000);
    let backup = keeper.backup(&thin);
    keeper.restores(backup.snapshot(), &thin.device());
    keeper.run(&["host", "clean"]).ok();
    assert!(group.volume("clone").exists() && origin.exists(), "both are somebody's");
}

/// Without baselines nothing remains between runs, each reads everything and stores what is new; that is what
/// `snapshots` shows as added.
pub fn no_baseline() {
    let group = VolumeGroup::new("vg0");
    let pool = group.pool("pool", 256, BLOCK_KIB);
    let volumes = [group.thick("thick", 64), pool.thin("thin", 64)];
    let keeper = Keeper::new("[lvm]\nbaseline = \"none\"\n");
    for (volume, seed) in volumes.iter().zip(seed()..) {
        // Noise does not compress and is nowhere twice: bytes stored and bytes written can be compared.
        let mut content = Content::noise(&volume.device(), seed);
        content.fill(50);
        let mut added = Vec::new();
        for _ in 0..2 {
            let written = total(&content.overwrite(5, 50_000));
            let backup = keeper.backup(volume);
            assert!(backup.tracked().is_everything(), "{}", backup.said);
            keeper.restores(backup.snapshot(), &volume.device());
            Traces::of(&group, &[&pool]).are_only(0);
            added.push((backup, written));
        }
        let [(first, _), (second, written)] = added.as_slice() else { unreachable!("two rounds") };
        let [all, new] = [first, second].map(|backup| backup.count("bytes_stored"));
        assert!(all > volume.size() / 4, "half of the volume is noise: {all}");
        // Either end of what was written lies in a chunk of which the rest is stored anew; and a map.
        let most = written + 5 * 2 * LONGEST_CHUNK + MAP;
        assert!((written / 2..=most).contains(&new), "{new} bytes stored for {written} that were written");
        let listed = keeper.machine.json(&["snapshots"]);
        for (backup, _) in &added {
            let row =
                listed.as_array().and_then(|rows| rows.iter().find(|row| row["id"] == backup.snapshot()));
            let row = row.unwrap_or_else(|| panic!("{}: {listed}", backup.snapshot()));
            assert_eq!(row["bytes_stored"], backup.said["bytes_stored"], "{row}");
            assert_eq!(row["size"], volume.size(), "{row}");
        }
    }
}
