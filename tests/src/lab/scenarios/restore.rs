//! Restores to logical volumes of every kind: what comes back, what is refused, what is kept.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use crate::e2e::{eventually, same_bytes};
use crate::lab::figures::Counter;
use crate::lab::{Content, FileSystem, Keeper, Mounted, Pool, Volume, VolumeGroup, is_zero, run, seed, step};

const MIB: u64 = 1 << 20;
/// Bytes of the image that is backed up: it ends off an extent, and off a block.
const SIZE: u64 = 48 * MIB + 4096 + 777;

/// An image with data, emptiness, and edges that lie off the blocks of every pool; backed up as `image`.
fn backed_up(keeper: &Keeper) -> String {
    let image = keeper.machine.place("image");
    let file = File::create(&image).expect("an image");
    file.set_len(SIZE).expect("an image of its size");
    let mut content = Content::new(&image, seed());
    for place in 0..10 {
        let start = place * 5 * MIB - place * 4096;
        content.overwrite_at(start..start + MIB + 12_288 * place);
    }
    content.overwrite(40, 100_000);
    content.zero(20, 300_000);
    content.overwrite_at(SIZE - 2000..SIZE);
    keeper.backup_with(&["--name", "image", &image]);
    image
}

/// The volume holds the image, and nothing behind it.
#[track_caller]
fn holds(volume: &Volume, image: &str) {
    run("sync", &[]);
    run("blockdev", &["--flushbufs", &volume.device()]);
    let (device, size) = (volume.device(), volume.size());
    run("cmp", &["-n", &SIZE.to_string(), image, &device]);
    assert!(is_zero(&device, SIZE..size), "{device} is empty behind the snapshot");
}

/// Fills a volume with noise: what must not be seen afterwards.
fn stale(volume: &Volume) {
    Content::new(&volume.device(), seed() + 1).fill(100);
}

fn restored(keeper: &Keeper, volume: &Volume, more: &[&str]) -> String {
    let ran = keeper.run(&[&["restore", "image@latest", &volume.path()], more].concat()).ok();
    println!("    {}", ran.out);
    ran.out
}

/// What a restore has overwritten is put back.
fn undone(keeper: &Keeper, volume: &Volume, image: &str) {
    stale(volume);
    let copy = keeper.machine.place("undone");
    run("cp", &[&volume.device(), &copy]);
    let done = keeper.run(&["--json", "restore", "--undo", "image@latest", &volume.path()]).ok().json();
    holds(volume, image);
    let id = done["undo"].as_str().expect("an id");
    println!("    {}", keeper.run(&["undo", id]).ok().out);
    run("blockdev", &["--flushbufs", &volume.device()]);
    same_bytes(volume.device(), &copy);
}

/// A range changes nothing beside itself, also where the whole has no room.
fn ranged(keeper: &Keeper, small: &Volume, image: &str) {
    stale(small);
    let expected = keeper.machine.place("ranged");
    run("cp", &[&small.device(), &expected]);
    let (start, len) = (5 * MIB + 777, MIB + 3);
    let bytes = &std::fs::read(image).expect("the image")[start as usize..(start + len) as usize];
    File::options().write(true).open(&expected).expect("a copy").write_all_at(bytes, start).expect("a range");
    keeper.run(&["restore", "image@latest", &small.path()]).fails(3, &["a range that fits"]);
    let range = format!("{start}+{len}");
    println!("    {}", keeper.run(&["restore", "--range", &range, "image@latest", &small.path()]).ok().out);
    run("blockdev", &["--flushbufs", &small.device()]);
    same_bytes(small.device(), &expected);
}

/// Thick volumes: plain ones, larger ones, and the origins of snapshots.
pub fn restored_to_thick() {
    let group = VolumeGroup::new("vg0");
    let keeper = Keeper::new("");
    let image = backed_up(&keeper);

    step("a volume full of something else, by each of its names");
    let web = group.thick("web-1", 52);
    stale(&web);
    let said = restored(&keeper, &web, &[]);
    assert!(said.contains("behind its end"), "{said}");
    holds(&web, &image);
    for name in [web.device(), format!("/dev/mapper/{}", web.mapped_name(""))] {
        stale(&web);
        keeper.run(&["restore", "image@latest", &name]).ok();
        holds(&web, &image);
    }

    step("undone, and a range of it on a smaller one");
    undone(&keeper, &web, &image);
    let small = group.thick("too-small", 12);
    ranged(&keeper, &small, &image);
    small.remove();

    step("a striped one");
    run("lvcreate", &["-q", "-y", "-Wn", "-n", "striped", "-i", "2", "-I", "64k", "-L", "64m", group.name()]);
    let striped = group.volume("striped");
    stale(&striped);
    let larger = ["vg0/striped", "67108864", "made empty", "force"];
    keeper.run(&["restore", "image@latest", &striped.path()]).fails(3, &larger);
    restored(&keeper, &striped, &["--force"]);
    holds(&striped, &image);

    step("the origin of a snapshot that keeps what is overwritten");
    let origin = group.thick("origin", 52);
    stale(&origin);
    let before = origin.snapshot("before", 80, 4);
    let copy = keeper.machine.place("copy");
    run("cp", &[&before.device(), &copy]);
    restored(&keeper, &origin, &[]);
    holds(&origin, &image);
    same_bytes(before.device(), &copy);
    let used = before.field("data_percent");
    restored(&keeper, &origin, &[]);
    assert_eq!(before.field("data_percent"), used, "what stands there already is not written again");

    step("the origin of a snapshot that would overflow");
    before.remove();
    let small = origin.snapshot("small", 8, 4);
    keeper.run(&["restore", "image@latest", &origin.path()]).fails(3, &["vg0/small", "would be lost"]);
    assert_eq!(small.field("lv_snapshot_invalid"), "");
}

/// Thin volumes: pools that zero new blocks or do not, that honour discards or do not, blocks of odd sizes, snapshots,
/// and an external origin that shines through.
pub fn restored_to_thin() {
    let group = VolumeGroup::new("vg0");
    let keeper = Keeper::new("");
    let image = backed_up(&keeper);
    for (name, block, options) in [
        ("zeroing", 64, &["-Zy", "--discards", "passdown"][..]),
        ("stale", 64, &["-Zn", "--discards", "nopassdown"]),
        ("odd", 192, &["-Zn", "--discards", "passdown"]),
        ("ignoring", 64, &["-Zn", "--discards", "ignore"]),
        ("large", 1024, &["-Zn", "--discards", "nopassdown"]),
    ] {
        // They differ from others by their blocks, or by a word, alone.
        if ["stale", "ignoring"].contains(&name) && !crate::is_long() {
            continue;
        }
        step(&format!("a pool with blocks of {block} KiB and {}", options.join(" ")));
        let pool = used_pool(&group, name, block, options);
        let fresh = pool.thin("fresh", 52);
        restored(&keeper, &fresh, &[]);
        holds(&fresh, &image);
        let used = pool.thin("used", 52);
        Content::new(&used.device(), seed() + 2).fill(60);
        let before = used.thin_snapshot("before");
        let copy = keeper.machine.place("copy");
        run("cp", &[&before.device(), &copy]);
        restored(&keeper, &used, &[]);
        holds(&used, &image);
        same_bytes(before.device(), &copy);
        let range = ["restore", "--range", "5MiB+1MiB", "image@latest", &fresh.path()];
        match options.contains(&"-Zy") {
            true => {
                keeper.run(&range).ok();
                holds(&fresh, &image);
                undone(&keeper, &fresh, &image);
            }
            false => {
                keeper.run(&range).fails(3, &["does not zero new blocks"]);
            }
        }
        if !options.contains(&"ignore") {
            let mapped: f64 = used.field("data_percent").parse().expect("a percentage");
            let full = with_data(&image, block << 10) * (block << 10);
            let most = match u64::is_power_of_two(block) {
                // As LVM says it, with two decimals.
                true => full as f64 * 100.0 / used.size() as f64 + 0.01,
                // The kernel drops parts of discards there, and zeroes are written in their place.
                false => 80.0,
            };
            assert!(mapped <= most, "what is empty is not mapped: {mapped} % of at most {most} %");
        }
        keeper.run(&["restore", "image@latest", &before.path()]).ok();
        holds(&before, &image);
        run("lvremove", &["-q", "-f", "-y", &pool.volume.path()]);
    }
    over_an_external_origin(&group, &keeper, &image);
}

/// How many blocks of a file have something other than zeroes in them.
fn with_data(file: &str, block: u64) -> u64 {
    let bytes = std::fs::read(file).expect("the image is read");
    bytes.chunks(block as usize).filter(|block| block.iter().any(|byte| *byte != 0)).count() as u64
}

/// A pool whose blocks are full of what another volume held.
fn used_pool(group: &VolumeGroup, name: &str, block_kib: u64, options: &[&str]) -> Pool {
    let block = format!("{block_kib}k");
    let place = ["-n", name, "-L", "200m", "-c", &block, "--poolmetadatasize", "16m", group.name()];
    run("lvcreate", &[&["-q", "-y", "--type", "thin-pool"], options, &place[..]].concat());
    let pool = Pool { volume: group.volume(name) };
    let other = pool.thin(&format!("{name}-other"), 180);
    stale(&other);
    other.remove();
    pool
}

fn over_an_external_origin(group: &VolumeGroup, keeper: &Keeper, image: &str) {
    step("a volume with an external origin");
    for (name, zeroing) in [("a", "-Zy"), ("b", "-Zn")] {
        let origin = group.thick(&format!("origin-{name}"), 40);
        stale(&origin);
        run("lvchange", &["-q", "-an", &origin.path()]);
        run("lvchange", &["-q", "-pr", &origin.path()]);
        let pool = used_pool(group, &format!("pool-{name}"), 64, &[zeroing]);
        let clone = shining_through(group, &pool, &origin, &format!("clone-{name}"));
        restored(keeper, &clone, &[]);
        holds(&clone, image);
        // A snapshot of it shines through, too, though LVM does not report that.
        let clone = shining_through(group, &pool, &origin, &format!("first-{name}"));
        let second = clone.thin_snapshot(&format!("second-{name}"));
        restored(keeper, &second, &[]);
        holds(&second, image);
    }
}

/// A thin volume over a thick one, longer than that.
fn shining_through(group: &VolumeGroup, pool: &Pool, origin: &Volume, name: &str) -> Volume {
    let thinpool = pool.volume.path();
    run("lvcreate", &["-q", "-y", "-s", "-kn", "-n", name, "--thinpool", &thinpool, &origin.path()]);
    let clone = group.volume(name);
    clone.activate();
    run("lvextend", &["-q", "-L", "52m", &clone.path()]);
    clone
}

/// New volumes: plain, striped, thin, like the one that was backed up; and what becomes of them when that fails.
pub fn restored_to_new() {
    let group = VolumeGroup::new("vg0");
    let keeper = Keeper::new("");
    let image = backed_up(&keeper);

    step("extents and blocks that somebody used before");
    let other = group.thick("other", 200);
    stale(&other);
    run("mkfs.ext4", &["-q", "-F", &other.device()]);
    other.remove();
    let plain = group.volume("plain");
    keeper.run(&["restore", "image@latest", "vg0/plain"]).fails(3, &["vg0/plain", "--create"]);
    let said = restored(&keeper, &plain, &["--create"]);
    assert!(said.contains("was made (linear)"), "{said}");
    holds(&plain, &image);
    assert_eq!((plain.size(), plain.field("lv_tags").as_str()), (52 * MIB, ""));

    step("again, as one that was cut off has left it, and no whole one");
    let done = keeper.run(&["--json", "restore", "image@latest", &plain.path()]).ok().json();
    let tag =
        |id: &str| run("lvchange", &["-q", "--addtag", &format!("lvkeep-incomplete={id}"), &plain.path()]);
    stale(&plain);
    tag(done["snapshot"].as_str().expect("an id"));
    restored(&keeper, &plain, &["--create"]);
    holds(&plain, &image);
    assert_eq!(plain.field("lv_tags"), "");
    keeper.run(&["restore", "image@latest", "vg0/plain", "--create"]).fails(3, &["exists already"]);

    step("in a pool");
    let pool = group.pool("pool", 80, 64);
    let thin = group.volume("thin");
    keeper
        .run(&["restore", "image@latest", "vg0/thin", "--create", "--thin", "none"])
        .fails(3, &["no thin pool none"]);
    restored(&keeper, &thin, &["--create", "--thin", "pool"]);
    holds(&thin, &image);
    assert_eq!((thin.field("pool_lv"), thin.field("lv_tags")), ("pool".to_owned(), String::new()));

    step("where there is no room");
    keeper.run(&["restore", "image@latest", "vg1/x", "--create"]).fails(3, &["no volume group vg1"]);
    let rest = group.thick("rest", 64);
    run("lvextend", &["-q", "-l", "+100%FREE", &rest.path()]);
    keeper.run(&["restore", "image@latest", "vg0/x", "--create"]).fails(3, &["volume group vg0 has"]);
    let filler = pool.thin("filler", 60);
    stale(&filler);
    keeper
        .run(&["restore", "image@latest", "vg0/x", "--create", "--thin", "pool"])
        .fails(3, &["vg0/pool has"]);
    filler.remove();

    step("when the archive is damaged, nothing remains");
    rest.remove();
    let packs = format!("{}/packs", keeper.repository());
    run("find", &[&packs, "-type", "f", "-size", "+1M", "-delete"]);
    for target in [&["vg0/x", "--create"][..], &["vg0/x", "--create", "--thin", "pool"]] {
        keeper.run(&[&["restore", "image@latest"], target].concat()).fails(6, &["removed again"]);
        assert!(!group.volume("x").exists());
    }
}

/// What is in use, or not to be written to, stays as it is.
pub fn restored_to_nothing_in_use() {
    let group = VolumeGroup::new("vg0");
    let keeper = Keeper::new("");
    let _image = backed_up(&keeper);
    let refused = |target: &str, parts: &[&str]| {
        keeper.run(&["restore", "image@latest", target]).fails(3, parts);
    };

    step("mounted, swapped to, part of a mapping, open");
    let web = group.thick("web", 52);
    FileSystem::Ext4.make(&web.device());
    let mounted = Mounted::new(&web.device(), seed());
    refused("vg0/web", &["vg0/web", "mounted on"]);
    drop(mounted);
    run("mkswap", &[&web.device()]);
    run("swapon", &[&web.device()]);
    refused("vg0/web", &["vg0/web", "swaps to it"]);
    run("swapoff", &[&web.device()]);
    run("dmsetup", &["create", "upper", "--table", &format!("0 8 linear {} 0", web.device())]);
    refused("vg0/web", &["vg0/web", "upper is made of it"]);
    run("dmsetup", &["remove", "upper"]);
    let before = std::fs::read(web.device()).expect("the volume is read");
    let mut guest = Command::new("sleep")
        .arg("600")
        .stdin(File::open(web.device()).expect("the volume is opened"))
        .stdout(Stdio::null())
        .spawn()
        .expect("somebody holds the volume open");
    refused("vg0/web", &["vg0/web", "another process has it open"]);
    guest.kill().expect("it is ended");
    guest.wait().expect("it ends");
    assert!(std::fs::read(web.device()).expect("the volume is read") == before, "nothing was written");

    step("volumes that are none");
    let pool = group.pool("pool", 100, 64);
    let thin = pool.thin("thin", 52);
    let snapshot = web.snapshot("view", 70, 4);
    refused("vg0/pool", &["vg0/pool", "pool"]);
    refused(&pool.metadata_device(), &["pool"]);
    refused("vg0/view", &["vg0/view", "snapshot of web"]);
    refused(
        &format!("/dev/mapper/{}", web.mapped_name("-real")),
        &["vg0-web-real", "part of a logical volume"],
    );
    refused("vg0/none", &["vg0/none", "--create"]);
    refused("/dev/vg0/none", &["/dev/vg0/none"]);
    snapshot.remove();

    step("too small, read-only, not active");
    group.thick("small", 48);
    refused("vg0/small", &["vg0/small", "50331648"]);
    run("lvchange", &["-q", "-pr", &web.path()]);
    refused("vg0/web", &["read-only", "lvchange --permission rw vg0/web"]);
    run("lvchange", &["-q", "-prw", &web.path()]);
    run("lvchange", &["-q", "-an", &thin.path()]);
    refused("vg0/thin", &["not active", "lvchange --activate y vg0/thin"]);
    refused("/dev/vg0/thin", &["not active"]);
    assert!(group.kept().is_empty(), "nothing was taken");
    restored(&keeper, &web, &[]);
}

/// Over the source itself, with a way back.
pub fn restored_with_a_way_back() {
    let group = VolumeGroup::new("vg0");
    let keeper = Keeper::new("");
    let pool = group.pool("pool", 400, 64);
    for volume in [group.thick("thick", 32), pool.thin("thin", 32)] {
        let path = volume.path();
        step(&format!("{path}: back to the archive, and forth again"));
        let mut content = Content::new(&volume.device(), seed());
        content.fill(60);
        keeper.backup(&volume);
        let backed_up = keeper.machine.place("backed-up");
        run("cp", &["--sparse=always", &volume.device(), &backed_up]);
        content.overwrite(20, MIB);
        let later = keeper.machine.place("later");
        run("cp", &["--sparse=always", &volume.device(), &later]);
        let snapshot = keeper.latest(&volume);
        keeper.run(&["restore", &snapshot, &path]).fails(3, &[&path, "is the source"]);
        let said = keeper.run(&["restore", &snapshot, &path, "--safety-snapshot"]).ok().out;
        run("blockdev", &["--flushbufs", &volume.device()]);
        same_bytes(volume.device(), &backed_up);
        let safety = taken(&said);
        assert!(group.volume(&safety).exists(), "{said}");

        step(&format!("{path}: merged back, it is what it was"));
        run("lvconvert", &["-q", "--merge", &format!("vg0/{safety}")]);
        settled(&group, &volume, &safety);
        same_bytes(volume.device(), &later);

        step(&format!("{path}: a small one that overflows is said to be lost"));
        if volume.name == "thick" {
            let small = keeper.run(&["restore", &snapshot, &path, "--safety-snapshot=4MiB"]).ok().out;
            assert!(small.contains("has room for 4.0 MiB") && small.contains("has overflowed"), "{small}");
            group.volume(&taken(&small)).remove();
            same_bytes(volume.device(), &backed_up);
            keeper
                .run(&["restore", &snapshot, &path, "--safety-snapshot=9GiB"])
                .fails(3, &["volume group vg0 has"]);
        }
    }
}

/// The name of the safety snapshot in what a restore said.
#[track_caller]
fn taken(said: &str) -> String {
    let at = said.find("vg0/lvkeep-safety-").unwrap_or_else(|| panic!("no safety snapshot: {said}"));
    said[at + 4..].split_whitespace().next().expect("its name").to_owned()
}

/// Waits until a merge is over: a thick one goes on in the background, a thin one when the volume is activated.
fn settled(group: &VolumeGroup, volume: &Volume, safety: &str) {
    run("lvchange", &["-q", "-an", &volume.path()]);
    run("lvchange", &["-q", "-ay", &volume.path()]);
    let left = || {
        group
            .report("lv_name")
            .iter()
            .any(|lv| lv["lv_name"].as_str().is_some_and(|name| name.contains(safety)))
    };
    eventually("the merge is over", || (!left()).then_some(()));
}

/// The baseline of a thick target: says what need not be read, stays or is removed; the next backup is right in each case.
pub fn restored_over_a_thick_baseline() {
    let group = VolumeGroup::new("vg0");
    over_a_baseline(&group.thick("web", 40));
}

/// The same of a thin one.
pub fn restored_over_a_thin_baseline() {
    let group = VolumeGroup::new("vg0");
    over_a_baseline(&group.pool("pool", 200, 64).thin("web", 40));
}

fn over_a_baseline(volume: &Volume) {
    let keeper = Keeper::new("");
    let mut content = Content::new(&volume.device(), seed());
    content.fill(80);
    let first = keeper.backup(volume).snapshot().to_owned();
    let copy = keeper.machine.place("first");
    run("cp", &["--sparse=always", &volume.device(), &copy]);
    let goes_back = |more: &[&str]| {
        let counter = Counter::new(&volume.device());
        let before = counter.bytes();
        let path = volume.path();
        let arguments = [&["--json", "restore", &first, &path, "--force"], more].concat();
        let done = keeper.run(&arguments).ok().json();
        let read = counter.bytes() - before;
        println!("    {read} bytes read: {done}");
        // Past the page cache.
        let found = keeper.machine.place("found");
        run("dd", &[&format!("if={}", volume.device()), &format!("of={found}"), "bs=1M", "iflag=direct"]);
        same_bytes(&found, &copy);
        let tracked = done["bytes_tracked"].as_u64().expect("a count");
        let half = volume.size() / 2;
        match more.contains(&"--no-tracking") {
            true => assert!(tracked == 0 && read > half / 2, "{tracked} tracked, {read} read"),
            false => assert!(tracked > half && read < half, "{tracked} tracked, {read} read"),
        }
        done["notes"].to_string()
    };
    let backed_up = |from_scratch: bool| {
        let backup = keeper.backup(volume);
        assert_eq!(backup.tracked().is_everything(), from_scratch, "{}", backup.said);
        assert_eq!(backup.count("bytes_new"), 0, "it is what the archive has");
        keeper.restores(backup.snapshot(), &volume.device());
    };
    step("the baseline stays");
    content.overwrite(4, 60_000);
    let said = goes_back(&[]);
    assert!(said.contains("its baseline vg0/lvkeep-"), "{said}");
    backed_up(false);

    step("an older snapshot, by the baseline of a newer one");
    content.overwrite(4, 60_000);
    content.zero(2, 100_000);
    keeper.backup(volume);
    content.overwrite(3, 60_000);
    goes_back(&[]);
    backed_up(false);

    step("the baseline is not asked");
    content.overwrite(3, 60_000);
    goes_back(&["--no-tracking"]);

    step("the baseline is removed, when it was asked");
    content.overwrite(3, 60_000);
    let said = goes_back(&["--drop-baseline"]);
    assert!(said.contains("is removed"), "{said}");
    backed_up(true);
}
