//! Real files in a temporary folder, and a loop device where this machine lets us have one.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use agent::buffer::Pool;
use tempfile::TempDir;

use super::*;
use crate::source::Source;
use crate::testing::{Still, noise, opening};

const M: u64 = 1 << 20;

type Change = Box<dyn Fn(&Path)>;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }
}

/// Long after anything here was written.
fn files() -> Files {
    Files::new(Still::at_ms(1 << 50))
}

async fn read_all(volume: &Arc<dyn Volume>) -> Vec<u8> {
    let pool = Pool::new(1, 8 << 20);
    let mut bytes = vec![0; volume.info().size as usize];
    for range in volume.allocated(0..volume.info().size).await.unwrap() {
        let len = (range.end - range.start) as usize;
        let buffer = volume.read(range.start, pool.acquire().await, 4096, len).await.unwrap();
        bytes[range.start as usize..range.end as usize].copy_from_slice(&buffer.as_ref()[4096..4096 + len]);
    }
    bytes
}

fn assert_lost(result: Result<impl Sized, VolumeError>, word: &str) {
    match result.map(|_| ()) {
        Err(why @ VolumeError::ReadingLost { .. }) => assert!(why.to_string().contains(word), "{why}"),
        other => panic!("{other:?} instead of a lost reading"),
    }
}

#[tokio::test]
async fn a_file_is_read_to_its_last_byte() {
    let folder = Folder::new();
    for len in [0, 1, 4095, 4096, 4097, 1_000_001] {
        let bytes = noise(1, len);
        let name = folder.file("a", &bytes);
        let volume = files().open(&opening(&name, None)).await.unwrap();
        assert_eq!(volume.info().size, len as u64);
        assert!(read_all(&volume).await == bytes);
        volume.check_unchanged().await.unwrap();
        let facts: Vec<_> = volume.info().layout.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(facts, ["kind", "path", "size"]);
    }
}

#[tokio::test]
async fn holes_are_found() {
    let folder = Folder::new();
    let path = folder.path("sparse");
    let file = File::create(&path).unwrap();
    let mut expected = vec![0; (40 * M + 777) as usize];
    file.set_len(expected.len() as u64).unwrap();
    for at in [3 * M + 100, 17 * M + 4000, 29 * M] {
        let bytes = noise(at, 10_000);
        file.write_all_at(&bytes, at).unwrap();
        expected[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
    }
    let volume = files().open(&opening(path.to_str().unwrap(), None)).await.unwrap();
    let found = volume.allocated(0..volume.info().size).await.unwrap();
    let allocated: u64 = found.iter().map(|range| range.end - range.start).sum();
    assert!((30_000..M).contains(&allocated), "{found:?}");
    assert!(found.iter().all(|range| range.start % 4096 == 0 && range.end % 4096 == 0));
    assert!(read_all(&volume).await == expected);
    let part = volume.allocated(3 * M + 4096..3 * M + 8192).await.unwrap();
    assert_eq!((part.len(), &part[0]), (1, &(3 * M + 4096..3 * M + 8192)));
    assert_eq!(volume.allocated(35 * M..volume.info().size).await.unwrap(), []);
}

#[tokio::test]
async fn an_unchanged_file_can_be_taken_up_again_and_a_changed_one_cannot() {
    let folder = Folder::new();
    let name = folder.file("a", &noise(1, 10_000));
    let files = files();
    let first = files.open(&opening(&name, None)).await.unwrap().info().reading;
    assert_eq!(files.open(&opening(&name, Some(first))).await.unwrap().info().reading, first);
    // Another process opens the same reading.
    assert_eq!(super::tests::files().open(&opening(&name, Some(first))).await.unwrap().info().reading, first);

    OpenOptions::new().write(true).open(&name).unwrap().write_all_at(&[1; 100], 5000).unwrap();
    assert_lost(files.open(&opening(&name, Some(first))).await, "written");
    assert_lost(super::tests::files().open(&opening(&name, Some(first))).await, "10000 bytes");
    let second = files.open(&opening(&name, None)).await.unwrap().info().reading;
    assert_ne!(first, second);

    folder.file("a", &noise(1, 9_999));
    assert_lost(files.open(&opening(&name, Some(second))).await, "10000 bytes and is 9999");
}

#[tokio::test]
async fn changes_are_noticed_while_it_is_open() {
    let folder = Folder::new();
    let write =
        |path: &Path| OpenOptions::new().write(true).open(path).unwrap().write_all_at(&[1; 10], 0).unwrap();
    let append = |path: &Path| OpenOptions::new().write(true).open(path).unwrap().set_len(20_000).unwrap();
    let replace = |path: &Path| {
        fs::write(path.with_extension("new"), noise(1, 10_000)).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
    };
    let remove = |path: &Path| fs::remove_file(path).unwrap();
    let touch = move |path: &Path| {
        let modified = fs::metadata(path).unwrap().modified().unwrap();
        write(path);
        File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
    };
    let changes: [(_, Change, _); 5] = [
        ("write", Box::new(write), "written"),
        ("append", Box::new(append), "20000"),
        ("replace", Box::new(replace), "another file"),
        ("remove", Box::new(remove), "looked up"),
        ("touch", Box::new(touch), "touched"),
    ];
    for (what, change, word) in changes {
        let name = folder.file(what, &noise(1, 10_000));
        let settled = Still::at_ms(modified_ms(&name));
        let volume = Files::new(settled).open(&opening(&name, None)).await.unwrap();
        wait_for_the_clock(&folder, &name);
        change(Path::new(&name));
        assert_lost(volume.check_unchanged().await, word);
    }
}

fn modified_ms(name: &str) -> u64 {
    let meta = fs::metadata(name).unwrap();
    (meta.mtime() * 1000 + meta.mtime_nsec() / 1_000_000) as u64
}

/// Writes another file until its time differs from that of `name`: the file system's clock ticked.
fn wait_for_the_clock(folder: &Folder, name: &str) {
    let time = |name: &str| fs::metadata(name).map(|meta| (meta.ctime(), meta.ctime_nsec())).unwrap();
    while time(&folder.file("clock", b"tick")) == time(name) {}
}

#[tokio::test]
async fn a_file_that_was_just_written_is_waited_for() {
    let folder = Folder::new();
    let name = folder.file("a", b"fresh");
    let clock = Still::at_ms(modified_ms(&name));
    Files::new(clock.clone()).open(&opening(&name, None)).await.unwrap();
    assert!((1..=2).contains(&clock.sleeps()), "{}", clock.sleeps());
    let later = Still::at_ms(modified_ms(&name) + 1000);
    Files::new(later.clone()).open(&opening(&name, None)).await.unwrap();
    assert_eq!(later.sleeps(), 0);
    let stuck = Still::stuck_at_ms(modified_ms(&name));
    Files::new(stuck.clone()).open(&opening(&name, None)).await.unwrap();
    assert_eq!(stuck.sleeps(), u64::from(SETTLE_TRIES));
}

#[tokio::test]
async fn a_file_that_shrank_is_an_error_and_no_hole() {
    let folder = Folder::new();
    let name = folder.file("a", &noise(1, 10 << 20));
    let volume = files().open(&opening(&name, None)).await.unwrap();
    OpenOptions::new().write(true).open(&name).unwrap().set_len(5_000_000).unwrap();
    let failed = [
        volume.allocated(0..10 * M).await.map(|_| ()).unwrap_err(),
        volume.allocated(8 * M..10 * M).await.map(|_| ()).unwrap_err(),
        volume.read(4 * M, Pool::new(1, 4 << 20).acquire().await, 0, 4 << 20).await.map(|_| ()).unwrap_err(),
    ];
    for failed in failed {
        let text = failed.to_string();
        assert!(
            text.contains("offset 5000000") && text.contains("shorter") && text.contains(&name),
            "{text}"
        );
    }
}

#[tokio::test]
async fn what_is_no_file_is_refused_by_name() {
    let folder = Folder::new();
    let missing = folder.path("missing").to_str().unwrap().to_owned();
    for name in [missing.as_str(), folder.0.path().to_str().unwrap(), "/dev/null"] {
        let refused = files().open(&opening(name, None)).await.unwrap_err();
        assert!(
            matches!(&refused, VolumeError::CannotOpen { source_name, .. } if source_name == name),
            "{refused}"
        );
    }
}

#[tokio::test]
async fn a_read_that_does_not_fit_is_refused() {
    let folder = Folder::new();
    let name = folder.file("a", &noise(1, 10_000));
    let volume = files().open(&opening(&name, None)).await.unwrap();
    for (at, len) in [(0, 8192), (4096, 1), (usize::MAX, 1)] {
        let refused = volume.read(0, Pool::new(1, 4096).acquire().await, at, len).await.unwrap_err();
        assert!(matches!(refused, VolumeError::CannotRead { .. }), "{refused}");
    }
}

/// A loop device over a file; gone when dropped.
struct Loop(String);

impl Loop {
    /// None where this machine has none to give.
    fn over(path: &str) -> Option<Self> {
        let out = Command::new("flock")
            .args(["/dev/loop-control", "losetup", "--find", "--show", path])
            .output()
            .ok()?;
        let device = String::from_utf8(out.stdout).ok()?.trim().to_owned();
        (out.status.success() && File::open(&device).is_ok()).then_some(Self(device))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").args(["--detach", &self.0]).status();
        assert!(std::thread::panicking() || detached.is_ok_and(|status| status.success()));
    }
}

#[tokio::test]
async fn a_device_is_read_past_the_page_cache_to_its_last_sector() {
    let folder = Folder::new();
    // Whole sectors, but not whole blocks.
    let bytes = noise(1, (3 << 20) + 1536);
    let name = folder.file("disk", &bytes);
    let files = files();
    match Loop::over(&name) {
        Some(device) => {
            let volume = files.open(&opening(&device.0, None)).await.unwrap();
            assert_eq!(volume.info().size, bytes.len() as u64);
            assert_eq!(volume.info().layout[0].1, "device");
            assert!(read_all(&volume).await == bytes);
            volume.check_unchanged().await.unwrap();
            let reading = volume.info().reading;
            assert_ne!(files.open(&opening(&device.0, None)).await.unwrap().info().reading, reading);
            assert_lost(files.open(&opening(&device.0, Some(reading))).await, "restarts");
        }
        None => {
            let source = Source::open_as(&name, Kind::File, true).unwrap();
            assert!(read_all(&files.open_source(source, None).await.unwrap()).await == bytes);
        }
    }
}

#[tokio::test]
async fn direct_reads_of_a_file_end_where_it_ends() {
    let folder = Folder::new();
    for len in [1, 4096, 10_000, 1 << 20] {
        let bytes = noise(2, len);
        let source = Source::open_as(&folder.file("a", &bytes), Kind::File, true).unwrap();
        let volume = files().open_source(source, None).await.unwrap();
        assert!(read_all(&volume).await == bytes);
    }
}
