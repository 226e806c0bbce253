//! Targets of a whole restore: devices, the source, the repository's own folder. Devices are loop devices. Root on a
//! machine that has them must get them; elsewhere these tests end early and say what they did not show (the checks
//! themselves have unit tests).

use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use agent::Stop;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use schema::messages::FailureKind;

use super::asked::Keeper;
use super::fixture::{Fixture, noise};
use crate::batch::Batch;
use crate::claim::Claim;
use crate::reading::Aligned;
use crate::sink::{Before, Opened, Sink};
use crate::{Settings, Target, hold};

const MIB: u64 = 1 << 20;

/// A loop device over a file full of stale bytes, detached when dropped.
pub(super) struct Loop {
    pub device: PathBuf,
}

impl Loop {
    pub fn over(file: &Path, size: u64) -> Option<Self> {
        std::fs::write(file, vec![0xee; size as usize]).unwrap();
        Self::attach(file)
    }

    pub fn attach(file: &Path) -> Option<Self> {
        let control = std::fs::File::options().read(true).write(true).open("/dev/loop-control");
        if !rustix::process::geteuid().is_root() || control.is_err() {
            println!("NOT SHOWN: what needs a device, for which this test needs root and /dev/loop-control");
            return None;
        }
        // Of two that find the same one, the other has it open while it waits: one looks at a time, in all tests.
        let alone = ["/dev/loop-control", "losetup", "--partscan", "--find", "--show"];
        let made = Command::new("flock").args(alone).arg(file).output().unwrap();
        assert!(made.status.success(), "no loop device: {}", String::from_utf8_lossy(&made.stderr));
        Some(Self { device: PathBuf::from(String::from_utf8(made.stdout).unwrap().trim()) })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_keeps_nothing_stale() {
    let fixture = Fixture::encrypted().await;
    let backing = fixture.path("backing");
    let Some(disk) = Loop::over(&backing, 8 * MIB) else { return };
    let mut content = vec![0; 8 * MIB as usize];
    content[MIB as usize..2 * MIB as usize].copy_from_slice(&noise(1, MIB as usize));
    let root = fixture.volume(&content).await;
    let report = fixture.restore(&root, &disk.device).await.unwrap();
    assert_eq!((report.written, report.zeroed), (MIB, 7 * MIB));
    assert!(std::fs::read(&disk.device).unwrap() == content);
}

/// The cache may show what never reached the device: after a write that failed, or one behind its back.
#[tokio::test(start_paused = true)]
async fn a_device_is_compared_past_the_page_cache() {
    let fixture = Fixture::encrypted().await;
    let backing = fixture.path("backing");
    let Some(disk) = Loop::over(&backing, 8 * MIB) else { return };
    let mut content = noise(1, 8 * MIB as usize);
    content[3 * MIB as usize..4 * MIB as usize].fill(0);
    let root = fixture.volume(&content).await;
    fixture.restorer().restore(root.clone(), Target::new(&disk.device, true), |_| ()).await.unwrap();
    // Whoever has a device open keeps its cache.
    let held = std::fs::File::open(&disk.device).unwrap();
    assert!(std::fs::read(&disk.device).unwrap() == content);
    let file = std::fs::File::options().write(true).open(&backing).unwrap();
    for at in [MIB + 5, 3 * MIB + 5] {
        file.write_all_at(&[0xee], at).unwrap();
    }
    file.sync_all().unwrap();
    assert!(std::fs::read(&disk.device).unwrap() == content, "the cache does not know");
    let report = fixture.restorer().restore(root, Target::new(&disk.device, true), |_| ()).await.unwrap();
    assert_eq!(report.written, 64 << 10);
    assert!(std::fs::read(&backing).unwrap() == content);
    drop(held);
}

/// What a device has got is there at once, and what is off a page, too, once it is durable.
#[test]
fn a_device_is_written_past_the_page_cache() {
    let folder = tempfile::tempdir().unwrap();
    let backing = folder.path().join("backing");
    let Some(disk) = Loop::over(&backing, 4 * MIB) else { return };
    let file = std::fs::File::options().read(true).write(true).open(&disk.device).unwrap();
    let opened = Opened::new(file, disk.device.clone(), "v".into(), Before::Content);
    let (sink, content) = (Sink::Target(opened), noise(3, 3 * MIB as usize + 700));
    let (mut buffer, offset) = (Aligned::new(), 8192 - 100);
    let mut batch = Batch::new(&sink, &mut buffer);
    for (number, chunk) in content.chunks(50_000).enumerate() {
        batch.write(offset + 50_000 * number as u64, chunk).unwrap();
    }
    batch.flush().unwrap();
    let pages = 8192..((offset as usize + content.len()) / 4096 * 4096);
    let there = |content: &[u8]| content[pages.start - offset as usize..pages.end - offset as usize].to_vec();
    assert!(std::fs::read(&backing).unwrap()[pages.clone()] == there(&content));
    sink.finish().unwrap();
    let now = std::fs::read(&backing).unwrap();
    let end = offset as usize + content.len();
    assert!(now[offset as usize..end] == content && now[..offset as usize].iter().all(|byte| *byte == 0xee));
    assert!(now[end..].iter().all(|byte| *byte == 0xee));
}

#[tokio::test(start_paused = true)]
async fn a_device_of_another_size_is_refused_with_both_sizes() {
    let fixture = Fixture::plain().await;
    let Some(disk) = Loop::over(&fixture.path("backing"), 4 * MIB) else { return };
    let stale = std::fs::read(&disk.device).unwrap();
    let large = fixture.volume(&noise(1, 5 * MIB as usize)).await;
    let mut odd = noise(2, 3 * MIB as usize + 777);
    odd[MIB as usize..].fill(0);
    let small = fixture.volume(&odd).await;
    for (root, forced) in [(&large, true), (&large, false), (&small, false)] {
        let target = Target::new(&disk.device, forced);
        let failure = fixture.restorer().restore(root.clone(), target, |_| ()).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused);
        for size in [4 * MIB, root.size] {
            assert!(failure.why.contains(&size.to_string()), "{size} is not in: {failure}");
        }
    }
    assert!(std::fs::read(&disk.device).unwrap() == stale, "nothing was written");
    fixture.restorer().restore(small, Target::new(&disk.device, true), |_| ()).await.unwrap();
    let now = std::fs::read(&disk.device).unwrap();
    assert!(now[..odd.len()] == odd, "also where the snapshot ends off a block");
    assert!(now[odd.len()..] == stale[odd.len()..], "the tail stays, as force accepted");
}

#[tokio::test(start_paused = true)]
async fn what_another_restore_has_is_not_overwritten_by_force_either() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, 4 * MIB as usize)).await;
    let file = fixture.path("file");
    std::fs::write(&file, b"before").unwrap();
    let disk = Loop::over(&fixture.path("backing"), 4 * MIB);
    for path in std::iter::once(&file).chain(disk.as_ref().map(|disk| &disk.device)) {
        let flags = if path == &file { OFlags::empty() } else { OFlags::EXCL };
        let mut options = std::fs::File::options();
        let held = options.write(true).custom_flags(flags.bits() as i32).open(path).unwrap();
        Claim::default().lock(&held, path).unwrap();
        let failure =
            fixture.restorer().restore(root.clone(), Target::new(path, true), |_| ()).await.unwrap_err();
        assert!(failure.retry && failure.why.contains("another restore"), "{failure}");
        drop(held);
        fixture.restorer().restore(root.clone(), Target::new(path, true), |_| ()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_or_file_in_use_is_refused() {
    let fixture = Fixture::plain().await;
    let backing = fixture.path("backing");
    let Some(disk) = Loop::over(&backing, 4 * MIB) else { return };
    let content = noise(1, 4 * MIB as usize);
    let root = fixture.volume(&content).await;
    let held = rustix::fs::open(
        &disk.device,
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::EXCL,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    let refused = async |path: &Path, what: &str| {
        // Force says that what stands there may go, and nothing about who uses it.
        for force in [false, true] {
            let target = Target::new(path, force);
            let failure = fixture.restorer().restore(root.clone(), target, |_| ()).await.unwrap_err();
            for part in [what, &format!("--force-in-use {}", path.display())] {
                assert!(failure.why.contains(part), "{part} is not in: {failure}");
            }
        }
    };
    refused(&disk.device, "in use").await;
    assert!(std::fs::read(&disk.device).unwrap() == vec![0xee; 4 * MIB as usize], "nothing was written");
    let target = Target::new(&disk.device, false).in_use(true);
    fixture.restorer().restore(root.clone(), target, |_| ()).await.unwrap();
    assert!(std::fs::read(&disk.device).unwrap() == content, "its own word overrides");
    drop(held);
    // An empty file behind a loop device is refused for that reason alone.
    let empty = fixture.path("empty");
    let Some(_other) = Loop::over(&empty, 0) else { return };
    refused(&empty, "in use by /dev/loop").await;
    assert_eq!(std::fs::metadata(&empty).unwrap().len(), 0);
}

/// A guest or a database that merely opened it is no mount, and holds no lock.
#[tokio::test(start_paused = true)]
async fn what_a_process_writes_to_is_refused_with_its_name_and_number() {
    let fixture = Arc::new(Fixture::plain().await);
    let content = noise(1, 4 * MIB as usize);
    let root = fixture.volume(&content).await;
    let (empty, full) = (fixture.path("empty"), fixture.path("full"));
    std::fs::write(&empty, b"").unwrap();
    std::fs::write(&full, vec![0xee; 4 * MIB as usize]).unwrap();
    let keeper = Keeper::start(&fixture, |_| ());
    let disk = Loop::over(&fixture.path("backing"), 4 * MIB);
    for path in [&empty, &full].into_iter().chain(disk.as_ref().map(|disk| &disk.device)) {
        let before = std::fs::read(path).unwrap();
        let open = std::fs::File::options().read(true).write(true).open(path).unwrap();
        let mut command = Command::new("cat");
        let mut guest = command.stdin(Stdio::piped()).stdout(open).spawn().unwrap();
        // The command holds a handle of its own.
        drop(command);
        let refused = async |target: Target, is_kept: bool| {
            let restorer = fixture.restorer();
            let undo = fixture.context.environment.job_id();
            let failure = match is_kept {
                true => restorer.keep(&root, &target, undo, |_, _| ()).await.map(drop).unwrap_err(),
                false => restorer.restore(root.clone(), target, |_| ()).await.map(drop).unwrap_err(),
            };
            let (pid, path) = (guest.id().to_string(), path.to_str().unwrap());
            assert_eq!(failure.kind, FailureKind::Refused);
            for part in ["in use", &pid, "cat", path, &format!("--force-in-use {path}")] {
                assert!(failure.why.contains(part), "{part} is not in: {failure}");
            }
        };
        refused(Target::new(path, false).with_content(), false).await;
        refused(Target::new(path, true), false).await;
        if path != &empty {
            refused(Target::new(path, false).with_content(), true).await;
        }
        assert!(std::fs::read(path).unwrap() == before, "nothing was written");
        assert!(keeper.jobs().is_empty(), "nor kept for an undo");
        let target = Target::new(path, false).with_content().in_use(true);
        fixture.restorer().restore(root.clone(), target, |_| ()).await.unwrap();
        assert!(std::fs::read(path).unwrap() == content, "its own word overrides");
        drop(guest.stdin.take());
        guest.wait().unwrap();
        fixture
            .restorer()
            .restore(root.clone(), Target::new(path, false).with_content(), |_| ())
            .await
            .unwrap();
    }
}

/// Whoever only reads is not harmed, and a backup may be at it.
#[tokio::test(start_paused = true)]
async fn what_a_process_reads_is_restored_to() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, MIB as usize)).await;
    let path = fixture.path("read");
    std::fs::write(&path, b"").unwrap();
    let mut command = Command::new("sleep");
    let mut reader = command.arg("600").stdin(std::fs::File::open(&path).unwrap()).spawn().unwrap();
    fixture.restore(&root, &path).await.unwrap();
    reader.kill().unwrap();
    reader.wait().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_device_is_locked_by_whatever_node_it_is_named() {
    let fixture = Fixture::plain().await;
    let backing = fixture.path("backing");
    let Some(disk) = Loop::over(&backing, 4 * MIB) else { return };
    let root = fixture.volume(&noise(1, 4 * MIB as usize)).await;
    let number = std::fs::metadata(&disk.device).unwrap().rdev();
    let node = fixture.path("node");
    mknodat(CWD, &node, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, number).unwrap();
    // One that helped a restore which is dead by now.
    let helping = std::fs::File::options().read(true).write(true).open(&disk.device).unwrap();
    hold::join(&helping, &disk.device).unwrap();
    let claim = Claim::of(fixture.context.environment.job_id());
    let target = || Target::new(&node, false).claimed(claim.clone());
    let failure = fixture.restorer().restore(root.clone(), target(), |_| ()).await.unwrap_err();
    assert!(failure.retry && claim.is_busy(), "{failure}");
    assert!(hold::is_locked(&node));
    drop(helping);
    fixture.restorer().restore(root, target(), |_| ()).await.unwrap();
}

/// Whoever says that a device is the one that it was says nothing about who uses it.
#[tokio::test(start_paused = true)]
async fn what_is_put_back_on_a_device_needs_no_force_and_asks_who_uses_it() {
    let fixture = Fixture::plain().await;
    let Some(disk) = Loop::over(&fixture.path("backing"), 4 * MIB) else { return };
    let content = noise(1, 4 * MIB as usize);
    let root = fixture.volume(&content).await;
    let put_back = async |is_same| {
        let target = Target::new(&disk.device, false).put_back().same_device(is_same);
        fixture.restorer().restore(root.clone(), target, |_| ()).await.map(drop)
    };
    let failure = put_back(false).await.unwrap_err();
    assert!(failure.why.contains("another name") && failure.why.contains("--same-device"), "{failure}");
    let flags = OFlags::RDONLY | OFlags::EXCL;
    let held = rustix::fs::open(&disk.device, flags, Mode::empty()).unwrap();
    let failure = put_back(true).await.unwrap_err();
    assert!(failure.kind == FailureKind::Refused && failure.why.contains("in use"), "{failure}");
    drop(held);
    assert!(std::fs::read(&disk.device).unwrap() == vec![0xee; 4 * MIB as usize], "nothing was written");
    put_back(true).await.unwrap();
    assert!(std::fs::read(&disk.device).unwrap() == content);
    // A link may lead to anything.
    let link = fixture.path("link");
    std::os::unix::fs::symlink(&disk.device, &link).unwrap();
    let target = Target::new(&link, false).put_back().same_device(true);
    let failure = fixture.restorer().restore(root.clone(), target, |_| ()).await.unwrap_err();
    assert!(failure.why.contains("it is a link by now"), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn a_mounted_device_is_refused_with_its_mount_point() {
    let fixture = Fixture::plain().await;
    let backing = fixture.path("backing");
    let Some(disk) = Loop::over(&backing, 16 * MIB) else { return };
    let mount = fixture.path("mnt here");
    std::fs::create_dir(&mount).unwrap();
    let made = Command::new("mkfs.ext4").arg("-q").arg(&disk.device).status();
    let mounted = || Command::new("mount").arg(&disk.device).arg(&mount).status();
    assert!(made.unwrap().success() && mounted().unwrap().success(), "root mounts what mkfs.ext4 made");
    let root = fixture.volume(&noise(1, 16 * MIB as usize)).await;
    let target = |force| Target::new(&disk.device, force);
    let unforced = fixture.restorer().restore(root.clone(), target(false), |_| ()).await;
    let forced = fixture.restorer().restore(root, target(true), |_| ()).await;
    assert!(Command::new("umount").arg(&mount).status().unwrap().success());
    for failure in [unforced, forced].map(Result::unwrap_err) {
        for part in [&format!("mounted on {}", mount.display()), "--force-in-use"] {
            assert!(failure.why.contains(part), "{part} is not in: {failure}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_source_needs_force() {
    let fixture = Fixture::plain().await;
    let content = noise(1, MIB as usize);
    let mut root = fixture.volume(&content).await;
    let source = fixture.path("source");
    std::fs::write(&source, b"").unwrap();
    root.source = source.to_str().unwrap().to_owned();
    let link = fixture.path("link");
    std::os::unix::fs::symlink(&source, &link).unwrap();
    let hard = fixture.path("hard");
    std::fs::hard_link(&source, &hard).unwrap();
    for path in [&source, &link, &hard] {
        let failure = fixture.restore(&root, path).await.unwrap_err();
        assert!(failure.why.contains("is the source"), "{failure}");
    }
    root.host = "another".into();
    fixture.restore(&root, &source).await.unwrap();
    root.host = "host".into();
    fixture.restorer().restore(root, Target::new(&link, true), |_| ()).await.unwrap();
    assert!(std::fs::read(&source).unwrap() == content);
}

#[tokio::test(start_paused = true)]
async fn the_repositorys_own_folder_is_never_written_to() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, MIB as usize)).await;
    let repository = fixture.path("repository");
    std::fs::create_dir_all(repository.join("packs")).unwrap();
    let link = fixture.path("innocent");
    std::os::unix::fs::symlink(repository.join("packs"), &link).unwrap();
    let settings = Settings { forbidden: vec![repository.clone()], ..fixture.settings() };
    let restorer = fixture.restorer_with(settings);
    for path in [repository.join("x"), repository.join("packs/x"), link.join("x"), link.join("../x")] {
        let target = Target::new(&path, true);
        let failure = restorer.restore(root.clone(), target, |_| ()).await.unwrap_err();
        assert!(failure.why.contains("inside the repository"), "{}: {failure}", path.display());
    }
    assert_eq!(std::fs::read_dir(repository.join("packs")).unwrap().count(), 0);
    restorer.restore(root, Target::new(fixture.path("repository-other"), false), |_| ()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_full_target_names_volume_offset_and_path() {
    let fixture = Fixture::plain().await;
    let backing = fixture.path("backing");
    let Some(disk) = Loop::over(&backing, 16 * MIB) else { return };
    let mount = fixture.path("small");
    std::fs::create_dir(&mount).unwrap();
    let made = Command::new("mkfs.ext4").arg("-q").arg(&disk.device).status();
    let mounted = || Command::new("mount").arg(&disk.device).arg(&mount).status();
    assert!(made.unwrap().success() && mounted().unwrap().success(), "root mounts what mkfs.ext4 made");
    let root = fixture.volume(&noise(1, 32 * MIB as usize)).await;
    let path = mount.join("too-large");
    let result = fixture.restore(&root, &path).await;
    let left = path.exists();
    // A process that another test begins just now may hold an open file of ours for a moment.
    assert!(Command::new("umount").arg("--lazy").arg(&mount).status().unwrap().success());
    let failure = result.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Device);
    for part in
        [super::fixture::VOLUME, "at offset", "too-large", "No space left", "there is no room left for"]
    {
        assert!(failure.why.contains(part), "{part} is not in: {failure}");
    }
    assert!(left && failure.why.contains("with --force goes on"), "what was written stays: {failure}");
}

/// A mounted file system, unmounted when dropped.
struct Mounted {
    folder: PathBuf,
    _disk: Loop,
}

impl Mounted {
    fn with(mkfs: &str, fixture: &Fixture) -> Option<Self> {
        let backing = fixture.path(&format!("{mkfs}.img"));
        // The smallest that mkfs.xfs makes, and sparse.
        std::fs::File::create(&backing).unwrap().set_len(400 * MIB).unwrap();
        let disk = Loop::attach(&backing)?;
        let made = Command::new(mkfs).arg("-q").arg(&disk.device).output();
        let made = made.unwrap_or_else(|why| panic!("{mkfs}: {why}: `cargo xtask tools` brings it"));
        assert!(made.status.success(), "{mkfs}: {}", String::from_utf8_lossy(&made.stderr));
        let folder = fixture.path(mkfs);
        std::fs::create_dir(&folder).unwrap();
        let mounted = Command::new("mount").arg(&disk.device).arg(&folder).output().unwrap();
        if !mounted.status.success() {
            let why = String::from_utf8_lossy(&mounted.stderr);
            assert!(!is_known(mkfs.trim_start_matches("mkfs.")), "cannot mount what {mkfs} made: {why}");
            println!("NOT SHOWN: this kernel mounts nothing that {mkfs} makes ({})", why.trim());
            return None;
        }
        Some(Self { folder, _disk: disk })
    }

    fn used(&self) -> u64 {
        let found = rustix::fs::statvfs(&self.folder).unwrap();
        (found.f_blocks - found.f_bfree) * found.f_frsize
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.folder).status();
    }
}

/// Whether this kernel has such a file system, after it was asked to mount one.
fn is_known(kind: &str) -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap();
    known.lines().any(|line| line.split_whitespace().last() == Some(kind))
}

/// Bytes of a file that it shares with others, by its extents.
fn shared_bytes(path: &Path) -> u64 {
    let listed = Command::new("filefrag").args(["-v", "-b1"]).arg(path).output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    let shared = text.lines().filter(|line| line.contains("shared"));
    shared.map(|line| line.split(':').nth(3).unwrap().trim().parse::<u64>().unwrap()).sum()
}

#[tokio::test(start_paused = true)]
async fn many_targets_of_one_snapshot_share_it_on_disk() {
    for mkfs in ["mkfs.xfs", "mkfs.btrfs"] {
        let fixture = Fixture::encrypted().await;
        let Some(disk) = Mounted::with(mkfs, &fixture) else {
            println!("NOT SHOWN: that targets made on {mkfs}'s file systems share what they have in common");
            continue;
        };
        let mut content = noise(1, 12 * MIB as usize);
        content[4 * MIB as usize..6 * MIB as usize].fill(0);
        let root = fixture.volume(&content).await;
        let first = disk.folder.join("first");
        fixture.restore(&root, &first).await.unwrap();
        let before = disk.used();
        for n in 0..8 {
            let path = disk.folder.join(n.to_string());
            let target = Target::new(&path, false).after(&first);
            let report = fixture.restorer().restore(root.clone(), target, |_| ()).await.unwrap();
            assert_eq!((report.fetched, report.written, report.copied), (0, 0, 0), "{mkfs}: {report:?}");
            assert!(std::fs::read(&path).unwrap() == content);
            assert_eq!(shared_bytes(&path), 10 * MIB, "{mkfs}");
        }
        let took = disk.used() - before;
        assert!(took < 4 * MIB, "{mkfs}: eight copies took {took}");
        println!("{mkfs}: eight more targets of 12 MiB share 10 MiB each, and took {took} bytes");
    }
}

/// Nothing may block in the kernel meanwhile, where no stop would be heard.
#[tokio::test(start_paused = true)]
async fn a_command_that_waits_for_a_lock_can_be_stopped() {
    let fixture = Fixture::plain().await;
    // A file is opened and locked just like a device here.
    let path = fixture.path("device");
    let other = std::fs::File::create(&path).unwrap();
    rustix::fs::flock(&other, rustix::fs::FlockOperation::LockShared).unwrap();
    let (restorer, stop) = (fixture.restorer(), Stop::default());
    let target = Target::new(&path, true).until(stop.clone());
    let open = {
        let (target, path) = (target.clone(), path.clone());
        move || target.open_device(&path, &std::fs::metadata(&path).unwrap())
    };
    let opening = restorer.opened(&target, open.clone());
    assert!(fixture.context.environment.timeout(Duration::from_secs(3600), opening).await.is_none());
    stop.raise();
    let failure = restorer.opened(&target, open.clone()).await.unwrap_err();
    assert!(failure.kind == FailureKind::Revoked && failure.why.contains("locked"), "{failure}");
    drop(other);
    assert!(restorer.opened(&target, open).await.is_ok());
}
