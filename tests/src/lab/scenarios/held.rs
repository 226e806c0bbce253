//! Groups that are frozen once, commands that are always undone, and room that runs out.

use std::path::{Path, PathBuf};

use crate::e2e::{Ran, eventually};
use crate::lab::{
    Content, FileSystem, Keeper, Mounted, Pool, Traces, Volume, VolumeGroup, disks, run, seed, step,
};

fn filled(volume: &Volume, percent: u64) -> Content {
    let mut content = Content::new(&volume.device(), seed());
    content.fill(percent);
    content
}

/// A file that commands write to.
fn log(name: &str) -> (PathBuf, String) {
    let path = Path::new("/tmp").join(name);
    let text = path.display().to_string();
    (path, text)
}

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn rows(ran: &Ran) -> Vec<serde_json::Value> {
    ran.json().as_array().expect("a list").clone()
}

/// Disks of both kinds, taken at one moment, by pattern, by tag and by name; listed and restored as a group.
pub fn groups() {
    let group = VolumeGroup::on("vg0", &[&disks()[0]]);
    let pool = group.pool("pool", 256, 64);
    let volumes = [group.thick("shop-root", 48), pool.thin("shop-data", 64)];
    let mut contents = volumes.each_ref().map(|volume| filled(volume, 50));
    let other = group.thick("other", 16);
    run("lvchange", &["-q", "--addtag", "shop", &volumes[0].path()]);
    run("lvchange", &["-q", "--addtag", "shop", &volumes[1].path()]);
    let keeper = Keeper::new("");
    let (path, text) = log("moments");
    let (pre, post) = (format!("echo pre >> {text}"), format!("echo post >> {text}"));
    for sources in [&["vg0/shop-*"][..], &["--tag", "@shop"], &["vg0/shop-root", "/dev/vg0/shop-data"]] {
        step(&format!("a group of {sources:?}"));
        contents.iter_mut().for_each(|content| {
            content.overwrite(5, 60_000);
        });
        let options = ["backup", "--group", "shop", "--pre", &pre, "--post", &post];
        keeper.run(&[&options[..], sources].concat()).ok();
        Traces::of(&group, &[&pool]).are_only(2);
    }
    assert_eq!(lines(&path), ["pre", "post", "pre", "post", "pre", "post"], "once for all of a group");
    let listed = rows(&keeper.run(&["--json", "snapshots", "--group", "shop"]).ok());
    assert_eq!(listed.len(), 6, "{listed:?}");
    let oldest = listed[0]["id"].as_str().expect("an id").to_owned();
    let runs: std::collections::BTreeSet<&str> =
        listed.iter().filter_map(|row| row["group"].as_str()).collect();
    assert_eq!(runs.len(), 3, "{runs:?}");
    for volume in &volumes {
        keeper.restores(&keeper.latest(volume), &volume.device());
    }
    step("the whole group is restored");
    let folder = "/tmp/restored";
    std::fs::create_dir(folder).expect("a folder");
    keeper.run(&["restore", "--group", "shop@latest", folder]).ok();
    for (volume, name) in volumes.iter().zip(["shop-root", "shop-data"]) {
        crate::e2e::same_bytes(volume.device(), format!("{folder}/{name}"));
    }
    step("to another volume group, where its volumes are made");
    let elsewhere = VolumeGroup::on("vg1", &[&disks()[1]]);
    keeper.run(&["restore", "--group", "shop@latest", "vg1", "--create"]).ok();
    for volume in &volumes {
        crate::e2e::same_bytes(volume.device(), elsewhere.volume(&volume.name).device());
    }
    keeper.run(&["restore", "--group", "shop@latest", "vg0"]).fails(3, &["vg0/shop-"]);
    step("a run that lacks a volume is not taken for whole");
    let newest = keeper.latest(&volumes[1]);
    let lost = keeper.machine.json(&["show", &newest])["id"].as_str().expect("an id").to_owned();
    keeper.collected(&lost);
    keeper.run(&["restore", "--group", "shop@latest", folder, "--force", "--incomplete"]).ok();
    keeper
        .run(&["restore", "--group", "shop@latest", folder, "--force"])
        .fails(3, &["shop@latest", "not whole", "vg0/shop-data", "--incomplete"]);
    let listed = keeper.run(&["snapshots", "--group", "shop"]).ok();
    assert!(listed.out.contains("WITHOUT"), "{listed}");
    let refused = keeper.run(&["backup", "--group", "shop", &other.path(), "/etc/hostname"]);
    refused.fails(3, &["/etc/hostname", "only logical volumes"]);
    let forgotten = keeper.run(&["forget", &oldest]).ok();
    assert!(forgotten.err.contains("not whole"), "{forgotten}");
}

/// Two mounted file systems are frozen at once, where the kernel takes snapshots of what is frozen: a counter that is
/// always written to the first before the second is at most one ahead there. Elsewhere that is refused.
pub fn frozen_together() {
    let group = VolumeGroup::new("vg0");
    let pool = group.pool("pool", 256, 64);
    let volumes = [group.thick("first", 64), pool.thin("second", 64)];
    let mounted = volumes.each_ref().map(|volume| {
        FileSystem::Ext4.make(&volume.device());
        Mounted::new(&volume.device(), seed())
    });
    let keeper = Keeper::new("");
    let paths = volumes.each_ref().map(Volume::path);
    let backup = ["backup", "--group", "both", "--freeze", "fsfreeze", &paths[0], &paths[1]];
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
    let mut numbers = release.split('.').map_while(|part| part.parse::<u32>().ok());
    if (numbers.next(), numbers.next()) < (Some(6), Some(8)) {
        keeper.run(&backup).fails(4, &["2 file systems", "6.8 and later"]);
        Traces::of(&group, &[&pool]).are_only(0);
        return;
    }
    let (told, stop) = std::sync::mpsc::sync_channel::<()>(1);
    let counters = mounted.each_ref().map(|mounted| mounted.folder().join("counter"));
    let writer = std::thread::spawn(move || {
        for count in 0u64.. {
            for counter in &counters {
                let mut file = std::fs::OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(counter)
                    .expect("a file");
                std::io::Write::write_all(&mut file, format!("{count:020}").as_bytes())
                    .expect("it is written");
                file.sync_all().expect("it is durable");
            }
            if stop.try_recv() != Err(std::sync::mpsc::TryRecvError::Empty) {
                break;
            }
        }
    });
    for round in 0..3 {
        step(&format!("round {round}"));
        keeper.run(&backup).ok();
        Traces::of(&group, &[&pool]).are_only(2);
        let counts = volumes.each_ref().map(|volume| counted(&keeper, volume));
        println!("    counters: {counts:?}");
        assert!(counts[0] == counts[1] || counts[0] == counts[1] + 1, "{counts:?} are of one moment");
    }
    drop(told);
    writer.join().expect("the writer");
    drop(mounted);
}

/// The counter on a volume's newest snapshot.
fn counted(keeper: &Keeper, volume: &Volume) -> u64 {
    let image = keeper.machine.place("restored.img");
    keeper.run(&["restore", &keeper.latest(volume), &image]).ok();
    FileSystem::Ext4.check(&image);
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path().to_str().expect("a path in UTF-8");
    run("mount", &["-o", "ro", &image, at]);
    let text = std::fs::read_to_string(folder.path().join("counter")).expect("a counter");
    run("umount", &[at]);
    std::fs::remove_file(image).expect("the restored file is deleted");
    text.parse().expect("a number")
}

/// Whatever becomes of a run, its second command runs, and nothing stays frozen.
pub fn hooks_let_go() {
    let group = VolumeGroup::new("vg0");
    let volume = group.thick("web", 32);
    let keeper = Keeper::new("[lvm]\nhook_limit = \"5s\"\n");
    FileSystem::Ext4.make(&volume.device());
    let mut mounted = Mounted::new(&volume.device(), seed());
    mounted.create(3, 100_000);
    let (path, text) = log("hooks");
    let post = format!("echo post >> {text}");
    let source = volume.path();
    let with = |pre: &str| {
        let _ = std::fs::remove_file(&path);
        keeper.run(&["backup", &source, "--freeze", "fsfreeze", "--pre", pre, "--post", &post])
    };
    with("true").ok();
    assert_eq!(lines(&path), ["post"]);
    step("a command after it that fails");
    let before = keeper.snapshots();
    let failed = keeper.run(&["--json", "backup", &source, "--post", "echo cannot start >&2; exit 7"]);
    let failed = failed.fails(9, &["vg0/web is backed up", "--post", "exit status: 7", "cannot start"]);
    assert!(
        failed.json()["post_failed"].as_str().is_some_and(|why| why.contains("cannot start")),
        "{failed}"
    );
    assert_eq!(keeper.snapshots(), before + 1, "the snapshot is there");
    with("echo sorry >&2; exit 7").fails(4, &["exit status: 7", "sorry"]);
    assert_eq!(lines(&path), ["post"]);
    step("a command that hangs");
    with("sleep 600").fails(4, &["within 5 s"]);
    assert_eq!(lines(&path), ["post"]);
    Traces::of(&group, &[]).are_only(1);

    step("killed in the middle");
    let _ = std::fs::remove_file(&path);
    let (begun, begun_text) = log("begun");
    let pre = format!("touch {begun_text}; sleep 600");
    let patient = Keeper::new("[lvm]\nhook_limit = \"600s\"\n");
    let mut backup = patient.start_backup(&[&source, "--pre", &pre, "--post", &post]);
    eventually("the first command runs", || begun.exists().then_some(()));
    backup.kill();
    eventually("the second one runs", || (lines(&path) == ["post"]).then_some(()));
    // The note of it stays for the next run, which does it once more.
    patient.run(&["host", "clean"]).ok();
    assert_eq!(lines(&path), ["post", "post"]);
    assert!(std::fs::read_dir("/run/lvkeep").is_ok_and(|entries| {
        !entries.flatten().any(|entry| entry.path().extension().is_some_and(|end| end == "frozen"))
    }));

    step("what a dead process left frozen");
    let point = mounted.folder().display().to_string();
    let note = format!(
        "{{\"owner\":\"another-boot/1/1\",\"undo\":[{{\"program\":\"fsfreeze\",\"arguments\":[\"--unfreeze\",\"{point}\"]}}]}}"
    );
    std::fs::write("/run/lvkeep/left.frozen", note).expect("a note");
    run("fsfreeze", &["--freeze", &point]);
    let seen = std::panic::catch_unwind(crate::lab::nothing_is_frozen);
    assert!(seen.is_err(), "what is frozen is noticed");
    // Noticing it thawed it.
    run("fsfreeze", &["--freeze", &point]);
    patient.run(&["backup", &source]).ok();
    mounted.create(1, 1000);
    drop(mounted);
    FileSystem::Ext4.check(&volume.device());
}

/// A group without room is refused with figures; what fills up is extended, or given up before it overflows.
pub fn space() {
    let group = VolumeGroup::on("vg0", &[&disks()[0]]);
    let volume = group.thick("web", 128);
    let mut content = filled(&volume, 90);
    let small = "[lvm]\nsnapshot_size = \"8MiB\"\nsnapshot_chunk = \"4KiB\"\n";
    let path = volume.path();
    let slow = [path.as_str(), "--limit-read", "6MiB"];

    step("a store that fills up is extended");
    let keeper = Keeper::new(small);
    let mut backup = keeper.start_backup(&slow);
    let taken = || group.kept().into_iter().next();
    let snapshot = eventually("the snapshot is there", taken);
    content.overwrite_at(0..7 << 20);
    eventually("it is larger", || (snapshot.size() > 8 << 20).then_some(()));
    content.overwrite_at(8 << 20..10 << 20);
    backup.wait().ok();
    assert!(!snapshot.field("lv_attr").contains('I'));
    Traces::of(&group, &[]).are_only(1);
    snapshot.remove();

    step("without leave, the backup is given up, and the baseline stays");
    let strict = Keeper::new(&format!("{small}extend = false\ngive_up = 80\n"));
    strict.backup_with(&[&path, "--limit-read", "60MiB"]);
    let before: Vec<String> = group.kept().iter().map(Volume::uuid).collect();
    let mut backup = strict.start_backup(&[&path, "--limit-read", "1MiB"]);
    eventually("the new snapshot is there", || (group.kept().len() > before.len()).then_some(()));
    content.overwrite_at(20 << 20..27 << 20);
    backup.wait().fails(4, &["vg0/web", "% full and cannot be extended"]);
    let after: Vec<String> = group.kept().iter().map(Volume::uuid).collect();
    assert_eq!(after, before, "the failed one's is gone, and the others are there");

    step("no room at all");
    let stale = group.kept()[0].path();
    run("lvcreate", &["-q", "-y", "-n", "rest", "-l", "100%FREE", "vg0"]);
    let refused = strict.run(&["backup", &path]);
    refused.fails(4, &["volume group vg0 has", "free", "vg0/web needs 8.0 MiB"]);
    Traces::of(&group, &[]).are_only(1);

    step("where its baseline is in the way of another name, it goes before the commit, and that is said");
    let done = strict.run(&["backup", &path, "--name", "other"]).ok();
    assert!(done.out.contains(&format!("no room for one more LVM snapshot: {stale}")), "{done}");
    Traces::of(&group, &[]).are_only(1);
}

/// Thin pools at their watermarks, data and metadata: nothing is taken of one that is full, one that fills up is
/// extended, and what must not be extended is given up before the pool overflows.
pub fn pools_that_fill_up() {
    let group = VolumeGroup::on("vg0", &[&disks()[0]]);
    let pool = group.pool("pool", 128, 64);
    let writers = pool.thin("writers", 1024);
    let mut content = Content::noise(&writers.device(), seed());
    let mut written = 0..60 << 20;
    content.overwrite_at(written.clone());
    let mut fill_to = |percent: f64| {
        while full(&pool, "data_percent") < percent {
            written = written.end..written.end + (2 << 20);
            content.overwrite_at(written.clone());
        }
    };
    let keeper = Keeper::new("");
    let strict = |more: &str| keeper.machine.configure(&format!("[lvm]\nextend = false\n{more}"));
    let traces = Traces::of(&group, &[&pool]);
    let path = writers.path();
    keeper.backup(&writers);

    step("a full pool takes no snapshot");
    fill_to(85.0);
    strict("");
    let refused = keeper.run(&["backup", &path]);
    refused.fails(4, &["the data of thin pool vg0/pool is 8", "% full", "data_watermark"]);
    traces.are_only(1);

    step("unless it may be extended");
    keeper.machine.configure("");
    let size = pool.volume.size();
    keeper.backup(&writers);
    assert!(pool.volume.size() > size, "it was extended");

    step("a pool that fills up is extended while it is read");
    let slow = |name: &str, mib: u64| {
        let volume = pool.thin(name, 64);
        Content::noise(&volume.device(), seed()).overwrite_at(0..mib << 20);
        let before = group.kept().len();
        let backup = keeper.start_backup(&[&volume.path(), "--limit-read", "2MiB"]);
        eventually("the snapshot is there", || (group.kept().len() > before).then_some(()));
        (backup, volume)
    };
    let (backup, volume) = slow("slow", 40);
    let size = pool.volume.size();
    fill_to(82.0);
    eventually("it is larger", || (pool.volume.size() > size).then_some(()));
    backup.end().ok();
    keeper.restores(&keeper.latest(&volume), &volume.device());
    traces.are_only(2);

    step("or the backup is given up");
    strict("data_watermark = 88\ngive_up = 91\n");
    let (backup, volume) = slow("given-up", 24);
    fill_to(92.0);
    let ended = backup.end();
    ended.fails(
        4,
        &[&volume.path(), "the data of thin pool vg0/pool is 9", "given up before the pool overflows"],
    );
    traces.are_only(2);

    step("the same of metadata");
    let found = full(&pool, "metadata_percent");
    // The kernel counts a tenth of them as used from the start: more room lowers the share by little.
    let watermark = found - 0.05;
    let lower = format!("data_watermark = 99\ngive_up = 99\nmetadata_watermark = {watermark:.2}\n");
    strict(&lower);
    let refused = keeper.run(&["backup", &path]);
    refused.fails(4, &["the metadata of thin pool vg0/pool is", "metadata_watermark"]);
    keeper.machine.configure(&format!("[lvm]\n{lower}"));
    keeper.backup(&writers);
    assert!(full(&pool, "metadata_percent") < watermark, "it was extended");
    keeper.restores(&keeper.latest(&writers), &writers.device());
    traces.are_only(2);
}

/// How full a pool is, in percent.
fn full(pool: &Pool, field: &str) -> f64 {
    pool.volume.field(field).parse().expect("a percentage")
}

/// The disks of a libvirt domain: found by its definition, frozen once by its guest agent, thawed also when no snapshot
/// can be had. libvirt itself is a script that says what it was asked.
pub fn a_domain() {
    let group = VolumeGroup::new("vg0");
    let pool = group.pool("pool", 128, 64);
    let volumes = [group.thick("web", 32), pool.thin("data", 32)];
    let mut contents = volumes.each_ref().map(|volume| filled(volume, 50));
    let keeper = Keeper::new("");
    let (path, text) = log("asked");
    let folder = PathBuf::from(keeper.machine.place("libvirt"));
    std::fs::create_dir(&folder).expect("a folder of programs");
    let disk = |volume: &Volume| {
        format!("<disk type=\"block\" device=\"disk\"><source dev=\"{}\"/></disk>", volume.device())
    };
    let definition =
        format!("<domain><devices>{}{}</devices></domain>", disk(&volumes[0]), disk(&volumes[1]));
    let virsh = format!("echo \"$@\" >> {text}\n[ \"$1\" != dumpxml ] || echo '{definition}'\n");
    let lvcreate =
        format!("echo lvcreate >> {text}\n[ ! -e /tmp/broken ] || exit 5\nexec /usr/sbin/lvcreate \"$@\"\n");
    for (name, script) in [("virsh", virsh), ("lvcreate", lvcreate)] {
        let file = folder.join(name);
        std::fs::write(&file, format!("#!/bin/sh\n{script}")).expect("a program");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&file, mode).expect("a program that runs");
    }
    let search = format!("{}:{}", folder.display(), std::env::var("PATH").expect("a PATH"));
    let backup = || {
        let _ = std::fs::remove_file(&path);
        let arguments = ["backup", "--domain", "shop"];
        let mut command = keeper.machine.command(&arguments);
        command.env("PATH", &search);
        keeper.machine.start_command(&arguments, command).end()
    };
    let held = || {
        let mut asked = lines(&path);
        asked.retain(|line| !line.starts_with("dumpxml"));
        asked
    };
    let [freeze, thaw] = ["domfsfreeze --domain shop", "domfsthaw --domain shop"];
    for _ in 0..2 {
        contents.iter_mut().for_each(|content| drop(content.overwrite(3, 60_000)));
        backup().ok();
        assert_eq!(held(), [freeze, "lvcreate", "lvcreate", thaw]);
        volumes.iter().for_each(|volume| keeper.restores(&keeper.latest(volume), &volume.device()));
    }
    assert_eq!(rows(&keeper.run(&["--json", "snapshots", "--group", "shop"]).ok()).len(), 4);
    step("no snapshot can be had");
    std::fs::write("/tmp/broken", "").expect("a file");
    let failed = backup();
    assert!(!failed.status.success(), "{failed}");
    let asked = held();
    assert!(asked.first().is_some_and(|line| line == freeze), "{asked:?}");
    assert!(asked.last().is_some_and(|line| line == thaw), "{asked:?}");
    Traces::of(&group, &[&pool]).are_only(2);
}
