//! Devices that somebody uses behind the back of exclusive opening: through a loop device, as another part of the same
//! disk, or since what stood there was kept. The kernel makes the partitions by what it is told; nothing reads a table.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use agent::Failure;
use schema::messages::FailureKind;
use schema::root::Root;

use super::asked::Keeper;
use super::fixture::{Fixture, noise};
use super::targets::Loop;
use crate::Target;

const MIB: usize = 1 << 20;
const STALE: u8 = 0xee;

/// `cat` with a device or file open to write to it, until it is dropped.
struct Guest(Child);

impl Guest {
    fn on(path: &Path) -> Self {
        let open = std::fs::File::options().read(true).write(true).open(path).unwrap();
        Self(Command::new("cat").stdin(Stdio::piped()).stdout(open).spawn().unwrap())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// The second MiB and the third of a disk, as its first partition.
fn partition(disk: &Loop) -> Option<PathBuf> {
    let made = Command::new("addpart").arg(&disk.device).args(["1", "2048", "4096"]).output().unwrap();
    assert!(made.status.success(), "no partition: {}", String::from_utf8_lossy(&made.stderr));
    let path = PathBuf::from(format!("{}p1", disk.device.display()));
    if !path.exists() {
        println!("NOT SHOWN: what needs a partition, for which nobody has made {}", path.display());
        return None;
    }
    Some(path)
}

async fn restored(fixture: &Fixture, root: &Root, target: Target) -> Result<(), Failure> {
    fixture.restorer().restore(root.clone(), target, |_| ()).await.map(drop)
}

/// Force says that what stands there may go, and nothing about who uses it.
async fn refused(fixture: &Fixture, root: &Root, path: &Path, parts: &[&str]) {
    for force in [false, true] {
        let failure = restored(fixture, root, Target::new(path, force)).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused);
        let way = format!("--force-in-use {}", path.display());
        for part in parts.iter().chain([&way.as_str()]) {
            assert!(failure.why.contains(part), "{part} is not in: {failure}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_behind_a_loop_device_is_refused() {
    let fixture = Fixture::plain().await;
    let Some(disk) = Loop::over(&fixture.path("backing"), 4 * MIB as u64) else { return };
    let root = fixture.volume(&noise(1, 4 * MIB)).await;
    let small = fixture.volume(&noise(2, 2 * MIB)).await;
    let whole = Loop::attach(&disk.device).unwrap();
    refused(&fixture, &root, &disk.device, &["in use by", whole.device.to_str().unwrap()]).await;
    drop(whole);
    let Some(part) = partition(&disk) else { return };
    // Over the disk around it, and over a part of it.
    let whole = Loop::attach(&disk.device).unwrap();
    refused(&fixture, &small, &part, &["in use by", whole.device.to_str().unwrap()]).await;
    drop(whole);
    let of_part = Loop::attach(&part).unwrap();
    for (path, root) in [(&disk.device, &root), (&part, &small)] {
        refused(&fixture, root, path, &["in use by", of_part.device.to_str().unwrap()]).await;
    }
    assert!(std::fs::read(&disk.device).unwrap() == vec![STALE; 4 * MIB], "nothing was written");
    restored(&fixture, &small, Target::new(&part, false).in_use(true)).await.unwrap();
    drop(of_part);
    restored(&fixture, &root, Target::new(&disk.device, false)).await.unwrap();
}

/// The mount is of the loop device, and names no other.
#[tokio::test(start_paused = true)]
async fn a_device_behind_a_mounted_loop_device_is_refused() {
    let fixture = Fixture::plain().await;
    let Some(disk) = Loop::over(&fixture.path("backing"), 16 * MIB as u64) else { return };
    let above = Loop::attach(&disk.device).unwrap();
    let mount = fixture.path("mnt");
    std::fs::create_dir(&mount).unwrap();
    let made = Command::new("mkfs.ext4").arg("-q").arg(&above.device).status();
    let mounted = || Command::new("mount").arg(&above.device).arg(&mount).status();
    assert!(made.unwrap().success() && mounted().unwrap().success(), "root mounts what mkfs.ext4 made");
    let root = fixture.volume(&noise(1, 16 * MIB)).await;
    let restoring = restored(&fixture, &root, Target::new(&disk.device, true)).await;
    // A process that another test begins just now may hold an open file of ours for a moment.
    assert!(Command::new("umount").arg("--lazy").arg(&mount).status().unwrap().success());
    let failure = restoring.unwrap_err();
    for part in ["in use by", above.device.to_str().unwrap(), "detach it first"] {
        assert!(failure.why.contains(part), "{part} is not in: {failure}");
    }
}

/// Each is a device of its own for whoever opens it, and has bytes of the other.
#[tokio::test(start_paused = true)]
async fn who_writes_to_a_disk_writes_to_its_partitions_and_the_other_way_round() {
    let fixture = Fixture::plain().await;
    let Some(disk) = Loop::over(&fixture.path("backing"), 4 * MIB as u64) else { return };
    let Some(part) = partition(&disk) else { return };
    let root = fixture.volume(&noise(1, 4 * MIB)).await;
    let small = fixture.volume(&noise(2, 2 * MIB)).await;
    for (target, root, used) in [(&part, &small, &disk.device), (&disk.device, &root, &part)] {
        let guest = Guest::on(used);
        let who = format!("process {}, cat, writes to {})", guest.0.id(), used.display());
        refused(&fixture, root, target, &["in use", &who]).await;
        drop(guest);
    }
    assert!(std::fs::read(&disk.device).unwrap() == vec![STALE; 4 * MIB], "nothing was written");
    restored(&fixture, &small, Target::new(&part, false)).await.unwrap();
    restored(&fixture, &root, Target::new(&disk.device, false)).await.unwrap();
}

/// As a guest has it that is kept in a folder of its own.
#[tokio::test(start_paused = true)]
async fn who_writes_to_a_device_by_a_node_of_his_own_is_seen() {
    let fixture = Fixture::plain().await;
    let Some(disk) = Loop::over(&fixture.path("backing"), 4 * MIB as u64) else { return };
    let root = fixture.volume(&noise(1, 4 * MIB)).await;
    let number = std::fs::metadata(&disk.device).unwrap().rdev();
    let node = fixture.path("drive");
    let number = [rustix::fs::major(number).to_string(), rustix::fs::minor(number).to_string()];
    let made = Command::new("mknod").arg(&node).arg("b").args(number).status().unwrap();
    if !made.success() || std::fs::File::open(&node).is_err() {
        println!(
            "NOT SHOWN: who writes by a node of his own, for which nodes must count in {}",
            node.display()
        );
        return;
    }
    let guest = Guest::on(&node);
    let who = format!("process {}, cat, writes to it as {}", guest.0.id(), node.display());
    refused(&fixture, &root, &disk.device, &["in use", &who]).await;
    drop(guest);
    restored(&fixture, &root, Target::new(&disk.device, false)).await.unwrap();
}

/// A guest is started while its disk is read for the undo, which keeps nobody away.
#[tokio::test(start_paused = true)]
async fn who_began_to_write_while_a_device_was_kept_is_seen_before_it_is_overwritten() {
    let fixture = Arc::new(Fixture::plain().await);
    let Some(disk) = Loop::over(&fixture.path("backing"), 4 * MIB as u64) else { return };
    let content = noise(1, 4 * MIB);
    let root = fixture.volume(&content).await;
    let _keeper = Keeper::start(&fixture, |_| ());
    let target = Target::new(&disk.device, false).with_content();
    let undo = fixture.context.environment.job_id();
    fixture.restorer().keep(&root, &target, undo, |_, _| ()).await.unwrap().expect("something to keep");
    let guest = Guest::on(&disk.device);
    let failure = restored(&fixture, &root, target.clone()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    for part in [&*format!("process {}, cat, writes to it", guest.0.id()), "--force-in-use"] {
        assert!(failure.why.contains(part), "{part} is not in: {failure}");
    }
    assert!(std::fs::read(&disk.device).unwrap() == vec![STALE; 4 * MIB], "nothing was written");
    drop(guest);
    restored(&fixture, &root, target).await.unwrap();
    assert!(std::fs::read(&disk.device).unwrap() == content);
}
