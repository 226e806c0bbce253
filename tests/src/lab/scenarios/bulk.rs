//! Many volumes at once onto thick and thin ones, one template to several thin ones, and what puts a volume back that a
//! killed restore has overwritten.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::process::Signal;

use crate::e2e::{NatsServer, Process, eventually, same_bytes};
use crate::lab::{Content, Keeper, Pool, Volume, VolumeGroup, is_zero, run, seed, step, succeeds};

const MIB: u64 = 1 << 20;
/// MiB that a leaf of a map covers.
const LEAF: u64 = 64;
/// Bytes of a pool's blocks.
const BLOCK: u64 = 64 << 10;

/// An image with data and holes, backed up as `name`.
fn backed_up(keeper: &Keeper, name: &str, mib: u64, seed: u64) -> String {
    with_content(keeper, name, mib, seed, |_| true)
}

/// The same, with data only where `has_data` says so of an offset in MiB.
fn with_content(keeper: &Keeper, name: &str, mib: u64, seed: u64, has_data: impl Fn(&u64) -> bool) -> String {
    let image = keeper.machine.place(name);
    let file = std::fs::File::create(&image).expect("an image");
    file.set_len(mib * MIB).expect("an image of its size");
    let mut content = Content::noise(&image, seed);
    for start in (0..mib).step_by(4).filter(has_data) {
        content.overwrite_at(start * MIB..(start + 2) * MIB - 4096);
    }
    keeper.backup_with(&["--name", name, &image]);
    image
}

/// Read past the page cache, the volume holds the image, and nothing behind it.
#[track_caller]
fn holds(keeper: &Keeper, volume: &Volume, image: &str) {
    let (copy, device) = (keeper.machine.place("direct"), volume.device());
    run("dd", &[&format!("if={device}"), &format!("of={copy}"), "bs=1M", "iflag=direct", "status=none"]);
    let (len, size) = (std::fs::metadata(image).expect("the image").len(), volume.size());
    run("cmp", &["-n", &len.to_string(), image, &copy]);
    assert!(is_zero(&copy, len..size), "{device} is empty behind the snapshot");
}

/// Blocks of a file that have something other than zeroes in them.
fn with_data(image: &str) -> u64 {
    let bytes = std::fs::read(image).expect("the image is read");
    bytes.chunks(BLOCK as usize).filter(|block| block.iter().any(|byte| *byte != 0)).count() as u64
}

/// Blocks of a pool that are in use; one without volumes has no such device.
fn in_use(pool: &Pool) -> u64 {
    if !succeeds("dmsetup", &["status", &pool.mapped()]) {
        return 0;
    }
    let said = run("dmsetup", &["status", &pool.mapped()]);
    let used = said.split_whitespace().nth(5).and_then(|usage| usage.split_once('/')).map(|(used, _)| used);
    used.and_then(|used| used.parse().ok()).unwrap_or_else(|| panic!("the state of a pool: {said}"))
}

/// Blocks of a thin volume that are mapped.
fn mapped(volume: &Volume) -> u64 {
    let said = run("dmsetup", &["status", &volume.mapped_name("")]);
    let sectors = said.split_whitespace().nth(3).and_then(|sectors| sectors.parse::<u64>().ok());
    sectors.unwrap_or_else(|| panic!("the state of a thin volume: {said}")) * 512 / BLOCK
}

fn stale(volume: &Volume) {
    Content::new(&volume.device(), seed() + 1).fill(100);
}

/// A restorer agent of host-a.
fn restorer(keeper: &Keeper, url: &str) -> Process {
    let mut agent =
        keeper.machine.start(&["-v", "agent", "--nats", url, "--role", "restorer", "--target", "vg0/*"]);
    agent.wait_for("is ready");
    agent
}

/// Whether a process has one of these volumes open, by whatever node of its device.
fn is_open(process: &Process, volumes: &[&Volume]) -> bool {
    let number = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        found.file_type().is_block_device().then(|| found.rdev())
    };
    let devices: Vec<u64> = volumes.iter().filter_map(|volume| number(Path::new(&volume.device()))).collect();
    let open = std::fs::read_dir(format!("/proc/{}/fd", process.pid())).into_iter().flatten().flatten();
    open.filter_map(|entry| number(&entry.path())).any(|device| devices.contains(&device))
}

/// `kill -9`, while it has one of the volumes open.
fn kill_in_the_middle(process: &mut Process, volumes: &[&Volume]) {
    eventually("it is in the middle", || {
        if is_open(process, volumes) {
            process.signal(Signal::STOP);
            // Stopped, it goes no further.
            if is_open(process, volumes) {
                return Some(());
            }
            process.signal(Signal::CONT);
        }
        None
    });
    process.kill();
}

/// A plan of thick and thin volumes, there and made, by two agents of which one is killed; and large ones, each by two
/// agents.
pub fn restored_in_bulk() {
    let group = VolumeGroup::new("vg0");
    let mut keeper = Keeper::new("redeliver = \"2s\"\n[agent]\nspan = \"64MiB\"\n");
    let images: Vec<String> =
        (0..6).map(|number| backed_up(&keeper, &format!("vm{number}"), 24, seed() + number)).collect();
    let large = with_content(&keeper, "large", 3 * LEAF, seed() + 9, |mib| mib % LEAF < 8);
    let (configuration, folder) = (keeper.machine.place("nats.conf"), keeper.machine.place("jetstream"));
    let room =
        format!("jetstream {{ store_dir: \"{folder}\", max_memory_store: 2GB, max_file_store: 1GB }}\n");
    std::fs::write(&configuration, room).expect("a configuration");
    let nats = NatsServer::configured(configuration.as_ref(), &[]);
    keeper.machine.set("LVKEEP_HOST", "host-a");
    let mut indexer = keeper.machine.start(&["agent", "--nats", &nats.url(), "--role", "indexer"]);
    indexer.wait_for("is ready");
    let pool = group.pool("pool", 160, BLOCK / 1024);
    let volumes = [
        group.thick("thick-0", 24),
        group.thick("thick-1", 28),
        pool.thin("thin-0", 24),
        pool.thin("thin-1", 32),
        group.volume("new-thick"),
        group.volume("new-thin"),
    ];
    volumes[..4].iter().for_each(stale);
    let mut plan = "volumes_at_once = 4\n".to_owned();
    for (number, volume) in volumes.iter().enumerate() {
        // One has more behind the snapshot's end than an extent.
        let more = ["", "", "", "force = true", "create = true", "create = true\nthin = \"pool\""][number];
        let path = volume.path();
        plan += &format!(
            "[[volume]]\nsnapshot = \"vm{number}@latest\"\ntarget = \"{path}\"\nhost = \"host-a\"\n{more}\n"
        );
    }
    let file = keeper.machine.place("plan.toml");
    std::fs::write(&file, plan).expect("the plan is written");

    step("two agents, one of which is killed");
    let mut dies = restorer(&keeper, &nats.url());
    let stays = restorer(&keeper, &nats.url());
    let bulk = keeper.machine.start(&["--json", "restore", "--plan", &file, "--nats", &nats.url()]);
    kill_in_the_middle(&mut dies, &volumes.each_ref());
    let done = bulk.end().ok().json();
    let done = done.as_array().expect("a list").clone();
    assert!(done.iter().all(|one| one["outcome"] == "restored"), "{done:?}");
    for (volume, image) in volumes.iter().zip(&images) {
        holds(&keeper, volume, image);
        // Told first: nobody has to be given the job again.
        let is_over = || volume.field("lv_tags").is_empty();
        eventually(&format!("the job of {} is over", volume.path()), || is_over().then_some(()));
    }
    drop(stays);
    for (volume, image) in [&volumes[2], &volumes[3], &volumes[5]].into_iter().zip([2, 3, 5]) {
        let (mapped, data) = (mapped(volume), with_data(&images[image]));
        assert!(mapped <= data, "{} has {mapped} blocks, {data} have data", volume.path());
    }
    let data: u64 = [2, 3, 5].iter().map(|number| with_data(&images[*number])).sum();
    assert!(in_use(&pool) <= data, "what was there before is given back");

    let pool = group.pool("large-pool", 256, BLOCK / 1024);
    restored_together(&keeper, &nats.url(), &mut indexer, &group.thick("large-thick", 196), &large, false);
    let thin = pool.thin("large-thin", 196);
    restored_together(&keeper, &nats.url(), &mut indexer, &thin, &large, true);
    assert!(mapped(&thin) <= with_data(&large), "what helps gives room back, too");

    step("what fits alone does not fit together");
    let small = group.pool("small", 20, BLOCK / 1024);
    // Of two snapshots: those of one would share it.
    let entry = |number: usize| {
        format!(
            "[[volume]]\nsnapshot = \"vm{number}@latest\"\ntarget = \"vg0/small{number}\"\ncreate = true\nthin = \"small\"\n"
        )
    };
    std::fs::write(&file, entry(0) + &entry(1)).expect("the plan is written");
    let ran = keeper.run(&["restore", "--plan", &file]);
    ran.fails(3, &["1 of 2 restores failed", "its pool vg0/small has"]);
    let made: Vec<usize> = (0..2).filter(|number| group.volume(&format!("small{number}")).exists()).collect();
    assert_eq!(made.len(), 1, "one of them");
    holds(&keeper, &group.volume(&format!("small{}", made[0])), &images[made[0]]);
    assert!(in_use(&small) * BLOCK < 20 * MIB);
}

/// Whether a restorer says that it has begun a span of another one's volume.
fn helps(agent: &Process, volume: &Volume) -> bool {
    let device = std::fs::metadata(volume.device()).expect("the device").rdev();
    let names_it = |word: &str| std::fs::metadata(word).is_ok_and(|found| found.rdev() == device);
    let said = agent.err();
    let mut begun = said.lines().filter(|line| line.contains("taking part"));
    begun.any(|line| line.split('"').any(names_it))
}

/// One volume by two restorers. The owner of a thin one may be killed while the other one sleeps.
fn restored_together(
    keeper: &Keeper,
    url: &str,
    indexer: &mut Process,
    volume: &Volume,
    image: &str,
    owner_dies: bool,
) {
    let path = volume.path();
    step(&format!("{path}: by two agents; its owner dies: {owner_dies}"));
    stale(volume);
    let mut agents = [restorer(keeper, url), restorer(keeper, url)];
    // Without an answer of the index, restores wait.
    indexer.signal(Signal::STOP);
    let order = ["--json", "restore", "--nats", url, "--to-host", "host-a", "large@latest", &path];
    let running = keeper.machine.start(&order);
    let helper = eventually("somebody helps", || (0..2).find(|number| helps(&agents[*number], volume)));
    if owner_dies {
        agents[helper].signal(Signal::STOP);
        let before = mapped(volume);
        indexer.signal(Signal::CONT);
        eventually("the owner is in the middle", || (mapped(volume) != before).then_some(()));
        agents[1 - helper].kill();
        agents[1 - helper] = restorer(keeper, url);
        agents[1 - helper].wait_for("waiting for another restore");
        agents[helper].signal(Signal::CONT);
    }
    indexer.signal(Signal::CONT);
    let done = running.end().ok().json();
    holds(keeper, volume, image);
    println!("    {done}");
    let part = "other agents of this host restored a part";
    assert!(owner_dies || agents[1 - helper].err().contains(part), "{}", agents[1 - helper].err());
}

/// One template to several new thin volumes, which share it; and volumes that are put back after `kill -9`.
pub fn restored_and_shared_or_put_back() {
    let group = VolumeGroup::new("vg0");
    let keeper = Keeper::new("");
    // It ends off a block and off an extent.
    let image = backed_up(&keeper, "template", 41, seed());
    let file = std::fs::File::options().write(true).open(&image).expect("the template");
    file.set_len(41 * MIB - 777).expect("the template is cut");
    keeper.backup_with(&["--name", "template", &image]);

    step("a template to thin volumes of one pool");
    let pool = group.pool("pool", 100, BLOCK / 1024);
    let copies = ["a", "b", "c"].map(|name| group.volume(name));
    let before = in_use(&pool);
    let ran = keeper.run(&[
        "--json",
        "restore",
        "template@latest",
        "vg0/a",
        "--create",
        "--thin",
        "pool",
        "--also",
        "vg0/b",
        "--also",
        "vg0/c",
        "--verify",
    ]);
    let ran = ran.ok();
    let said: Vec<serde_json::Value> =
        ran.out.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    println!("    {}", ran.out);
    let (data, grown) = (with_data(&image), in_use(&pool) - before);
    println!("    {data} blocks have data, the pool grew by {grown}");
    assert!(grown <= data + 2, "they share it: {grown} blocks for {data}");
    for done in said.iter().filter(|done| done["target"] != "vg0/a" && done["bytes_fetched"].is_u64()) {
        assert_eq!(
            (done["bytes_fetched"].as_u64(), done["bytes_written"].as_u64()),
            (Some(0), Some(0)),
            "{done}"
        );
        assert!(done["notes"].to_string().contains("shared with vg0/a"), "{done}");
    }
    for copy in &copies {
        holds(&keeper, copy, &image);
        let state =
            ["lv_tags", "lv_skip_activation", "lv_active", "lv_permissions"].map(|name| copy.field(name));
        assert_eq!(state, ["", "", "active", "writeable"], "{}", copy.path());
        assert!(mapped(copy) <= data, "{}", copy.path());
    }
    Content::new(&copies[1].device(), seed() + 2).fill(30);
    holds(&keeper, &copies[2], &image);
    copies[0].remove();
    run("lvchange", &["-q", "-an", "vg0/c"]);
    run("lvchange", &["-q", "-ay", "vg0/c"]);
    holds(&keeper, &copies[2], &image);

    step("where they cannot share, each is made as it is");
    let dirty = Pool { volume: group.volume("dirty") };
    let place = ["-n", "dirty", "-L", "100m", "-Zn", "--poolmetadatasize", "16m", group.name()];
    run("lvcreate", &[&["-q", "-y", "--type", "thin-pool"], &place[..]].concat());
    keeper
        .run(&["restore", "template@latest", "vg0/d", "--create", "--thin", "dirty", "--also", "vg0/e"])
        .ok();
    for name in ["d", "e"] {
        holds(&keeper, &group.volume(name), &image);
    }
    assert_eq!(group.volume("e").field("origin"), "");
    run("lvremove", &["-q", "-f", "-y", &dirty.volume.path()]);

    for volume in [group.thick("thick", 44), pool.thin("thin", 44)] {
        put_back(&keeper, &volume, &image);
    }
}

/// `kill -9` in the middle of restores, and what they have kept.
fn put_back(keeper: &Keeper, volume: &Volume, image: &str) {
    let path = volume.path();
    Content::new(&volume.device(), seed() + 3).fill(60);
    let before = keeper.machine.place("before");
    run("cp", &[&volume.device(), &before]);
    let is_as_before = || {
        run("blockdev", &["--flushbufs", &volume.device()]);
        same_bytes(volume.device(), &before);
    };
    step(&format!("{path}: undone after kill -9"));
    let mut restoring = keeper.machine.start(&["restore", "--undo", "template@latest", &path]);
    restoring.wait_for("puts it back");
    kill_or_end(&mut restoring, volume);
    let listed = keeper.machine.json(&["snapshots", "--volume", "undo/*"]);
    let newest =
        listed.as_array().expect("a list").iter().max_by_key(|one| one["id"].as_str().map(str::to_owned));
    let id = newest.and_then(|one| one["id"].as_str()).expect("an id");
    keeper.run(&["undo", id]).ok();
    is_as_before();

    step(&format!("{path}: put back by snapbacks, the newest first"));
    let kept = ["first", "second"].map(|name| keeper.machine.place(&format!("{}-{name}", volume.name)));
    for file in &kept {
        let mut restoring = keeper.machine.start(&["restore", "template@latest", &path, "--snapback", file]);
        eventually("it keeps, or is over", || {
            let len = std::fs::metadata(file).map_or(0, |found| found.len());
            (len > MIB || restoring.has_ended()).then_some(())
        });
        restoring.kill();
    }
    let again = ["restore", "template@latest", &path, "--snapback", &kept[0]];
    keeper.run(&again).fails(3, &["exists already", "--unfinished"]);
    for file in kept.iter().rev().filter(|file| Path::new(file).exists()) {
        keeper.run(&["apply", "--unfinished", file, &path]).ok();
    }
    is_as_before();
    let whole = keeper.machine.place(&format!("{}-whole", volume.name));
    let said = keeper.run(&["restore", "template@latest", &path, "--snapback", &whole]).ok().out;
    println!("    {said}");
    holds(keeper, volume, image);
    keeper.run(&["apply", &whole, &path]).ok();
    is_as_before();
}

/// `kill -9` while it has the volume open, or after it has ended.
fn kill_or_end(process: &mut Process, volume: &Volume) {
    eventually("it writes, or is over", || {
        (is_open(process, &[volume]) || process.has_ended()).then_some(())
    });
    process.kill();
}
