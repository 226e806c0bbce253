//! How ranges become zero, and what is told of targets that fail.

use super::*;

/// Off a block at both ends, within one block, whole blocks, and longer than one write of zeroes.
const RANGES: [Range<u64>; 4] = [10..9000, 20_000..20_010, 40_960..49_152, 100_001..700_003];

#[test]
fn every_way_of_zeroing_clears_exactly_its_range() {
    for way in 0..=ZEROING.len() as u8 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("target");
        std::fs::write(&path, vec![0xee; 800_000]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let opened = Opened::new(file, path.clone(), "v".into(), Before::Content);
        opened.zeroing.store(way, Ordering::Relaxed);
        let sink = Sink::Target(opened);
        let mut expected = vec![0xee; 800_000];
        for range in RANGES {
            expected[range.start as usize..range.end as usize].fill(0);
            sink.zero(range, &Stop::default()).unwrap();
        }
        sink.finish().unwrap();
        assert!(std::fs::read(&path).unwrap() == expected, "way {way}");
    }
}

/// Nothing takes a byte here.
#[test]
fn what_a_device_answers_is_told_with_the_offset() {
    let file = File::options().write(true).open("/dev/full").unwrap();
    let sink = Sink::Target(Opened::new(file, "/dev/full".into(), "the volume".into(), Before::Content));
    let failures = [sink.write(12_288, &[1; 100]), sink.zero(12_288..12_300, &Stop::default())];
    for failure in failures.map(Result::unwrap_err) {
        assert_eq!(failure.kind, FailureKind::Device);
        for part in ["the volume", "/dev/full", "offset 12288", "No space left"] {
            assert!(failure.why.contains(part), "{part} is not in: {failure}");
        }
    }
}

/// More room may be made, and what was written is as good as ever.
#[test]
fn what_there_is_no_room_for_is_cut_off_and_does_not_fail() {
    let file = File::options().write(true).open("/dev/full").unwrap();
    for before in [Before::Absent, Before::Begun, Before::Content] {
        let file = file.try_clone().unwrap();
        let sink = Sink::Target(Opened::new(file, "/srv/new.img".into(), "the volume".into(), before));
        let failure = sink.write(0, &[1; 100]).unwrap_err();
        assert_eq!((failure.kind, sink.ending(&failure, false)), (FailureKind::Device, Ending::CutOff));
        let left = sink.give_up(Ending::CutOff, false).unwrap();
        assert!(left.contains("goes on from there\nthere is no room left for /srv/new.img"), "{left}");
    }
    // What a device does not take for another reason may be worth nothing.
    let folder = tempfile::tempdir().unwrap();
    let read_only = File::open(folder.path()).unwrap();
    let opened = Opened::new(read_only, "/srv/new.img".into(), "the volume".into(), Before::Begun);
    let sink = Sink::Target(opened);
    let failure = sink.write(0, &[1; 100]).unwrap_err();
    assert_eq!(sink.ending(&failure, false), Ending::Failed, "{failure}");
}

#[test]
fn a_file_that_is_taken_away_meanwhile_is_not_restored() {
    type Harm = fn(&std::path::Path);
    let harms: [(&str, Harm); 5] = [
        ("removed", |path| std::fs::remove_file(path).unwrap()),
        ("moved", |path| std::fs::rename(path, path.with_extension("away")).unwrap()),
        ("replaced", |path| {
            std::fs::rename(path, path.with_extension("away")).unwrap();
            std::fs::write(path, [0; 8192]).unwrap();
        }),
        ("4096 bytes", |path| File::options().write(true).open(path).unwrap().set_len(4096).unwrap()),
        ("9000 bytes", |path| File::options().write(true).open(path).unwrap().set_len(9000).unwrap()),
    ];
    for (what, harm) in harms {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("target");
        std::fs::write(&path, [0xee; 8192]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let opened = Opened::new(file, path.clone(), "the volume".into(), Before::Content);
        let sink = Sink::Target(Opened { len: Some(8192), ..opened });
        sink.write(0, &[1; 4096]).unwrap();
        harm(&path);
        // Nobody sees a move before the end.
        let written = sink.write(4096, &[1; 4096]);
        assert_eq!(written.is_ok(), matches!(what, "moved" | "replaced"), "{what}: {written:?}");
        let failure = sink.finish().unwrap_err();
        assert_eq!(failure.kind, FailureKind::Device);
        for part in ["the volume", path.to_str().unwrap(), what] {
            assert!(failure.why.contains(part), "{part} is not in: {failure}");
        }
    }
}

#[test]
fn a_longer_file_is_cut_off_at_the_end_unless_somebody_writes_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("target");
    std::fs::write(&path, [0xee; 8192]).unwrap();
    let sink = |len| {
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let opened = Opened::new(file, path.clone(), "the volume".into(), Before::Content);
        Sink::Target(Opened { len: Some(len), cut_to: Some(5000), ..opened })
    };
    let first = sink(8192);
    first.write(0, &[1; 5000]).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(9000).unwrap();
    assert!(first.finish().unwrap_err().why.contains("9000 bytes"));
    assert_eq!((std::fs::metadata(&path).unwrap().len(), first.cut_off()), (9000, None));
    // With nothing else to be done.
    let second = sink(9000);
    assert!(!second.is_overwritten());
    second.finish().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), [1; 5000]);
    assert!(second.is_overwritten() && second.cut_off().unwrap().contains("from 9000 to 5000 bytes"));
}
