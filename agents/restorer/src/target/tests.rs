//! Opening targets: spelling, kinds of files, names below `/dev`.

use std::collections::BTreeMap;

use schema::names::Slot;
use schema::root::{Statistics, Tracking};
use schema::{ReadingId, SessionId, VolumeKey};

use super::allowed::only_root_names;
use super::*;

fn root(size: u64) -> Root {
    let slot = Slot { volume: VolumeKey::from_bytes([1; 16]), session: SessionId::from_bytes([2; 16]) };
    Root {
        version: Root::VERSION,
        volume: "v".into(),
        host: "there".into(),
        source: "x".into(),
        slot,
        reading: ReadingId::from_bytes([7; 16]),
        job: schema::JobId::from_bytes([8; 16]),
        generation: 1,
        parent: None,
        size,
        top: None,
        time_ms: 0,
        sealed_ms: 0,
        group: None,
        changed_while_read: false,
        layout: BTreeMap::new(),
        tags: Vec::new(),
        statistics: Statistics::default(),
        tracking: Tracking::Everything { why: None },
    }
}

fn open(target: &Target) -> Result<Opened, Failure> {
    let root = root(5000);
    let opened = target.open(&Circumstances { root: &root, host: "here", forbidden: &[] })?;
    target.begin(opened, &root)
}

#[test]
fn only_files_and_block_devices_are_targets() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("folder")).unwrap();
    std::os::unix::fs::symlink(at("nothing"), at("dangling")).unwrap();
    std::fs::write(at("file"), b"").unwrap();
    for (path, why) in [
        (at("folder"), "neither a regular file nor a block device"),
        (PathBuf::from("/dev/null"), "neither a regular file nor a block device"),
        (PathBuf::from("/dev/no-such-device"), "devices are never made"),
        (at("dangling"), "symbolic link to nothing"),
        (at("absent/file"), "create it first"),
        (at("file/below"), "Not a directory"),
        (at("folder/.."), "neither a regular file nor a block device"),
    ] {
        let failure = open(&Target::new(&path, true)).map(|opened| opened.path).unwrap_err();
        assert!(failure.why.contains(why), "{}: {failure}", path.display());
        assert!(failure.why.contains(path.to_str().unwrap()), "{failure}");
    }
    for (name, before) in
        [("file", Before::Empty), ("fresh", Before::Absent), ("folder/../other", Before::Absent)]
    {
        let opened = open(&Target::new(at(name), false)).unwrap();
        assert_eq!(opened.before, before, "{name}");
        assert_eq!(std::fs::metadata(at(name)).unwrap().len(), 5000, "{name}");
    }
}

#[test]
fn a_link_is_followed_once_and_never_after_the_checks() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("file"), b"").unwrap();
    std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
    let opened = open(&Target::new(at("link"), false)).unwrap();
    assert_eq!(opened.path, at("file").canonicalize().unwrap());
    assert_eq!(open_exactly(&at("link"), OFlags::empty()).map(drop), Err(Errno::LOOP));
    std::os::unix::fs::symlink(folder.path(), at("up")).unwrap();
    assert_eq!(open_exactly(&at("up/file"), OFlags::empty()).map(drop), Err(Errno::LOOP), "nor on the way");
}

#[test]
fn what_a_failed_restore_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("empty"), b"").unwrap();
    std::fs::write(at("full"), b"content").unwrap();
    for (name, left) in [("fresh", None), ("empty", Some(0)), ("full", Some(7))] {
        let opened = open(&Target::new(at(name), true)).unwrap();
        assert_eq!(crate::sink::Sink::Target(opened).give_up(Ending::Failed, false), None);
        assert_eq!(std::fs::metadata(at(name)).ok().map(|m| m.len()), left, "{name}");
    }
    let opened = open(&Target::new(at("replaced"), true)).unwrap();
    std::fs::remove_file(at("replaced")).unwrap();
    std::fs::write(at("replaced"), b"another").unwrap();
    crate::sink::Sink::Target(opened).give_up(Ending::Failed, false);
    assert!(at("replaced").exists(), "a file that somebody put there meanwhile is not ours to remove");
}

#[test]
fn only_folders_of_root_name_devices() {
    assert!(only_root_names(Path::new("/dev/anything")));
    assert!(!only_root_names(Path::new("/dev/shm/anything")), "everybody writes there");
}
