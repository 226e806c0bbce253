//! Targets that know what has changed on them: what is left alone unread, and when nothing is.

use std::fs::{self, File};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use agent::{Audit, Base, Changes, Ending, Failure, Place, Stop, Targets, Wish};
use async_trait::async_trait;
use schema::messages::{SharedPlace, Zeroing};
use schema::root::Root;
use schema::{ReadingId, SessionId};

use super::fixture::{CHUNK, Fixture, noise};
use crate::{Report, Settings, Target};

const MIB: usize = 1 << 20;

/// A file that stands for the volume `vg/lv`, and says what changed on it.
#[derive(Debug, Clone)]
pub struct Volume {
    device: PathBuf,
    bases: Vec<Base>,
    pub changes: Changes,
    compares_zeroes: bool,
    log: Arc<Mutex<Vec<&'static str>>>,
}

impl Volume {
    /// One that holds `content`, has been `since`, and says that these ranges changed.
    pub fn of(fixture: &Fixture, content: &[u8], since: &Root, ranges: &[Range<u64>]) -> Self {
        let device = fixture.path("device");
        fs::write(&device, content).unwrap();
        Self {
            device,
            bases: vec![Base { session: since.slot.session, reading: since.reading }],
            changes: Changes::Since { parent: since.slot.session, ranges: ranges.to_vec() },
            compares_zeroes: true,
            log: Arc::default(),
        }
    }

    fn content(&self) -> Vec<u8> {
        fs::read(&self.device).unwrap()
    }

    async fn restored(&self, fixture: &Fixture, root: &Root, audit: Audit) -> Report {
        self.restored_to(fixture, root, audit, Target::new("vg/lv", false)).await
    }

    async fn restored_to(&self, fixture: &Fixture, root: &Root, audit: Audit, target: Target) -> Report {
        let restorer = fixture.restorer_with(Settings { audit, ..fixture.settings() });
        let restorer = restorer.with_targets(Arc::new(self.clone()));
        let report = restorer.restore(root.clone(), target, |_| ()).await.unwrap();
        assert_eq!(report.written + report.kept + report.zeroed, report.size, "{report:?}");
        assert!(report.tracked <= report.kept && report.audited <= report.compared, "{report:?}");
        report
    }
}

#[async_trait]
impl Targets for Volume {
    async fn find(&self, _: &Wish<'_>) -> Result<Option<Arc<dyn Place>>, Failure> {
        Ok(Some(Arc::new(self.clone())))
    }
}

#[async_trait]
impl Place for Volume {
    fn name(&self) -> &str {
        "vg/lv"
    }

    async fn make(&self) -> Result<PathBuf, Failure> {
        Ok(self.device.clone())
    }

    fn bases(&self) -> Vec<Base> {
        self.bases.clone()
    }

    async fn changes(&self, _: &File, since: &Base) -> Changes {
        assert!(self.bases.contains(since));
        self.log.lock().unwrap().push("changes");
        self.changes.clone()
    }

    async fn ready(&self, _: &File) -> Result<(), Failure> {
        self.log.lock().unwrap().push("ready");
        Ok(())
    }

    fn keeps_equal(&self) -> bool {
        true
    }

    fn compares_zeroes(&self) -> bool {
        self.compares_zeroes
    }

    fn shared(&self) -> Option<SharedPlace> {
        let zeroing = Zeroing::Thick { watched: false };
        Some(SharedPlace { name: "vg/lv".into(), size: 0, zeroing })
    }

    fn zero(&self, device: &File, range: Range<u64>, _: &Stop) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(
            device,
            &vec![0; (range.end - range.start) as usize],
            range.start,
        )
    }

    async fn end(&self, _: Ending) -> Vec<String> {
        vec!["the last note".to_owned()]
    }
}

/// Two leaves: noise at the beginning of each, and some zeroes in the first.
pub fn content() -> Vec<u8> {
    let mut content = vec![0; 66 * MIB];
    for from in [0, 64] {
        content[from * MIB..(from + 2) * MIB].copy_from_slice(&noise(from as u64 + 1, 2 * MIB));
    }
    content[MIB / 2..MIB].fill(0);
    content
}

/// Whole chunks by their numbers.
fn chunks(chunks: Range<usize>) -> Range<usize> {
    chunks.start * CHUNK..chunks.end * CHUNK
}

fn bytes(range: &Range<usize>) -> Range<u64> {
    range.start as u64..range.end as u64
}

/// What is not looked at is not changed either: bytes that the list is silent about stay as they are.
#[tokio::test(start_paused = true)]
async fn what_has_not_changed_is_neither_read_nor_written() {
    let fixture = Fixture::encrypted().await;
    let old = content();
    let base = fixture.volume(&old).await;
    let mut now = old.clone();
    // A part of one chunk, zeroes, and another chunk.
    let changed = [3 * CHUNK + 5000..3 * CHUNK + 9000, chunks(16..17), 10 * MIB..11 * MIB];
    changed.iter().for_each(|range| now[range.clone()].fill(0xcc));
    let silent = [chunks(20..21), chunks(12..13), 30 * MIB..31 * MIB, 65 * MIB..65 * MIB + 1];
    silent.iter().for_each(|range| now[range.clone()].fill(0xdd));
    let listed = [3 * CHUNK + 4096..3 * CHUNK + 12_288, chunks(16..17), 10 * MIB..11 * MIB];
    let ranges: Vec<Range<u64>> = listed.iter().map(bytes).collect();
    for compares_zeroes in [true, false] {
        let volume = Volume { compares_zeroes, ..Volume::of(&fixture, &now, &base, &ranges) };
        let report = volume.restored(&fixture, &base, Audit::OFF).await;
        let mut expected = old.clone();
        silent.iter().for_each(|range| expected[range.clone()].fill(0xdd));
        if !compares_zeroes {
            // Zeroes of which some have changed are zeroed as one.
            expected[30 * MIB..31 * MIB].fill(0);
        }
        assert!(volume.content() == expected, "{compares_zeroes}");
        assert_eq!(report.written, 2 * CHUNK as u64);
        assert!(report.compared <= (MIB + 2 * CHUNK) as u64, "{report:?}");
        assert!(report.tracked >= 3 * MIB as u64 && report.audited == 0, "{report:?}");
        assert_eq!(report.notes, ["the last note"]);
        assert_eq!(*volume.log.lock().unwrap(), ["changes", "ready"], "before it may be removed");
    }
}

#[tokio::test(start_paused = true)]
async fn another_snapshot_is_restored_over_what_is_known_of_the_newest() {
    let fixture = Fixture::plain().await;
    let mut older = content();
    older.truncate(65 * MIB + 777);
    let newer = content();
    let mut newer_but = newer.clone();
    newer_but[chunks(4..6)].fill(0x44);
    newer_but[50 * MIB..51 * MIB].fill(0x55);
    newer_but[2 * CHUNK..3 * CHUNK].fill(0);
    let (mut older, base) = (fixture.volume(&older).await, fixture.volume(&newer_but).await);
    // It was backed up under another name then.
    older.slot.volume = fixture.repository.key.volume_key("host/renamed");
    let mut now = newer_but.clone();
    now[chunks(30..31)].fill(0xcc);
    let volume = Volume::of(&fixture, &now, &base, &[bytes(&chunks(30..31))]);
    let report = volume.restored(&fixture, &older, Audit::default()).await;
    let (end, found) = (65 * MIB + 777, volume.content());
    assert!(found[..end] == newer[..end]);
    assert!(found[end..].iter().all(|byte| *byte == 0), "what is behind it is empty");
    assert!(report.tracked >= 60 * MIB as u64, "{report:?}");
    assert!(report.audited > 0 && report.compared <= report.audited + 3 * MIB as u64, "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_lies_is_found_out_and_everything_is_compared() {
    let fixture = Fixture::plain().await;
    let old = content();
    let base = fixture.volume(&old).await;
    for lie in [chunks(20..21), 40 * MIB..40 * MIB + 1, 66 * MIB - 1..66 * MIB] {
        let mut now = old.clone();
        now[lie].fill(0xdd);
        let volume = Volume::of(&fixture, &now, &base, &[bytes(&chunks(0..1))]);
        let report = volume.restored(&fixture, &base, Audit::ALL).await;
        assert!(volume.content() == old);
        assert_eq!(report.tracked, 0, "{report:?}");
        assert!(
            report.notes[0].contains("AUDIT") && report.notes[0].contains("--drop-baseline"),
            "{report:?}"
        );
        assert!(report.audited > 0, "{report:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_certain_is_read() {
    let fixture = Fixture::plain().await;
    let old = content();
    let base = fixture.volume(&old).await;
    let longer = fixture.volume(&[old.clone(), vec![1; CHUNK]].concat()).await;
    let mut now = old.clone();
    now[chunks(20..21)].fill(0xdd);
    let volume = Volume { compares_zeroes: false, ..Volume::of(&fixture, &now, &base, &[]) };
    let since = |ranges: &[Range<u64>]| Changes::Since { parent: base.slot.session, ranges: ranges.to_vec() };
    let known = |session, reading| vec![Base { session, reading }];
    let (own, reading) = (base.slot.session, base.reading);
    let (unknown, other) = (SessionId::from_parts(1, 1), ReadingId::from_bytes([9; 16]));
    let elsewhere = Changes::Since { parent: unknown, ranges: Vec::new() };
    for (bases, changes, why) in [
        (known(own, other), since(&[]), "another state"),
        (known(unknown, reading), since(&[]), "no such snapshot"),
        (known(longer.slot.session, reading), since(&[]), "the target has"),
        (known(own, reading), elsewhere, "another snapshot"),
        (known(own, reading), since(&[4096..8192, 0..4096]), "out of order"),
        (known(own, reading), since(std::slice::from_ref(&(0..1 << 40))), "out of order"),
        (known(own, reading), Changes::unknown("it has overflowed"), "it has overflowed"),
    ] {
        fs::write(&volume.device, &now).unwrap();
        let volume = Volume { bases, changes, ..volume.clone() };
        let report = volume.restored(&fixture, &base, Audit::OFF).await;
        assert!(volume.content() == old, "{why}");
        assert_eq!(report.tracked, 0, "{why}");
        assert!(report.notes[0].contains(why) && report.notes[0].contains("vg/lv"), "{why}: {report:?}");
    }
    // What is said of one is no reason not to use another.
    fs::write(&volume.device, &now).unwrap();
    let mut bases = known(SessionId::from_parts(u64::MAX >> 16, 1), reading);
    bases.extend(volume.bases.clone());
    let again = fixture.volume(&old).await;
    let report = Volume { bases, ..volume.clone() }.restored(&fixture, &again, Audit::OFF).await;
    assert!(report.tracked > 0 && report.notes.len() == 1, "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn tracking_is_switched_off() {
    let fixture = Fixture::plain().await;
    let old = content();
    let base = fixture.volume(&old).await;
    let mut now = old.clone();
    now[chunks(20..21)].fill(0xdd);
    for target in [Target::new("vg/lv", false).untracked(true), Target::new("vg/lv", false).full(true)] {
        let volume = Volume { compares_zeroes: false, ..Volume::of(&fixture, &now, &base, &[]) };
        let report = volume.restored_to(&fixture, &base, Audit::OFF, target).await;
        assert!(volume.content() == old);
        assert_eq!((report.tracked, report.notes), (0, vec!["the last note".to_owned()]));
        assert_eq!(*volume.log.lock().unwrap(), ["ready"]);
    }
}

/// A range that ends inside of chunks and zeroes.
#[tokio::test(start_paused = true)]
async fn only_a_range_is_tracked() {
    let fixture = Fixture::plain().await;
    let (old, zeroes) = (content(), vec![0; 66 * MIB]);
    let (older, base) = (fixture.volume(&old).await, fixture.volume(&zeroes).await);
    let part = 10_000..3 * MIB + 17;
    let volume = Volume::of(&fixture, &zeroes, &base, &[]);
    let target = Target::new("vg/lv", false).only(Some(bytes(&part)));
    let report = volume.restored_to(&fixture, &older, Audit::ALL, target).await;
    let mut expected = zeroes;
    expected[part.clone()].copy_from_slice(&old[part]);
    assert!(volume.content() == expected);
    assert_eq!(report.tracked, (MIB / 2 + MIB + 17) as u64, "{report:?}");
}
