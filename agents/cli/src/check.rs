//! `check`: what is damaged, whom it concerns, and records of it for the next backups. The structure always; content as
//! far as it is asked for.

mod lacks;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent::{Failure, Repository};
use anyhow::Context as _;
use checker::{
    Checker, Content, DamagedSnapshot, Finding, Marked, Progress, Report, Settings, Share, Stopped,
};
use schema::PackId;
use schema::names::Slot;
use schema::tombstone::Tombstones;
use serde::Serialize;

use crate::app::App;
use crate::args::{CheckArgs, ReadData};
use crate::embedded::Embedded;
use crate::progress::Display;
use crate::show::Range;
use crate::{checks, holes, open, text};

/// Pause between two notes of how far the reading of content is.
const NOTE: Duration = Duration::from_secs(5);

/// What was found, as it is printed.
#[derive(Debug, Serialize)]
pub struct Checked {
    snapshots: u64,
    bytes: u64,
    packs: u64,
    packs_read: u64,
    bytes_read: u64,
    snapshots_damaged: u64,
    damaged: Vec<Damaged>,
    objects_damaged: u64,
    objects: Vec<Finding>,
    /// Those among them that only say that the identity does not open something.
    objects_unopened: u64,
    chunks_unopened: u64,
    chunks_rescued: u64,
    chunks_recorded: u64,
    chunks_healed: u64,
    records_removed: u64,
    unrecorded: Option<String>,
    /// Marks of holes that a repair takes away when it finds them healed, where this has found something healed.
    #[serde(skip_serializing_if = "Option::is_none")]
    marks: Option<u64>,
    /// Behind which pack it went on, where another check of the same had stopped; what that one read was not read again.
    went_on_behind: Option<String>,
}

#[derive(Debug, Serialize)]
struct Damaged {
    snapshot: String,
    volume: String,
    /// At least, where not all ranges are listed.
    bytes_lost: u64,
    lost: Vec<Range>,
    /// Whether not all ranges are listed, because so much is damaged.
    lost_is_cut: bool,
    problems: Vec<String>,
}

/// What is to be done.
pub struct Job {
    /// What of the content is read.
    pub content: Content,
    /// Where another command that read the same has stopped.
    pub stopped: Option<Stopped>,
    /// Whether damage is recorded.
    pub record: bool,
    /// Whether snapshots are marked with what of them is lost.
    pub mark: bool,
}

/// `lvkeep check`.
pub async fn run(app: &App, args: &CheckArgs) -> anyhow::Result<()> {
    debug_assert!(args.misplaced.is_none(), "it takes no value");
    if let Some(job) = &args.job {
        return checks::follow(app, job).await;
    }
    if args.by_agents {
        return checks::by_agents(app, args).await;
    }
    app.stop_on_signals()?;
    let repository = app.repository().await?;
    let cursor = Cursor::of(app, &repository, args.read_data);
    let (content, stopped) = content(args, &cursor);
    let job = Job { content, stopped, record: !args.no_record, mark: false };
    let (report, _) = check(app, &repository, &job, &|after| cursor.set(after)).await?;
    if matches!(content, Content::All { .. } | Content::Share(_)) && !report.is_behind {
        cursor.clear();
    }
    let behind = match content {
        Content::All { after } => after,
        Content::Share(_) => stopped.map(|stopped| stopped.behind),
        // Each goes on behind the last one.
        Content::None | Content::Percent { .. } => None,
    };
    let went_on_behind = behind.map(|pack| pack.to_string());
    let marks = marks_to_take_away(&repository, report.healed).await;
    if repository.tombstones == Tombstones::Empty {
        app.complain(
            "lvkeep: this archive was made before tombstones were sealed: a snapshot whose root a store has cut off to \
             nothing is not found in it (`lvkeep copy --to` a new archive ends that)",
        );
    }
    conclude(app, &Checked { went_on_behind, ..Checked::of(report).beside(marks) })
}

/// How many snapshots are marked with holes, where so much is healed that some may not have them any more.
/// No reason to lose a report.
pub async fn marks_to_take_away(repository: &Repository, healed: u64) -> Option<u64> {
    if healed == 0 {
        return None;
    }
    let marked = async {
        let visible: BTreeSet<Slot> = repository.visible_slots(None).await?.into_iter().collect();
        Ok::<_, Failure>(holes::slots(repository).await?.intersection(&visible).count() as u64)
    };
    marked
        .await
        .inspect_err(|why| tracing::warn!(%why, "cannot see which snapshots are marked with holes"))
        .ok()
}

/// Prints what was found; damage is a failure.
pub fn conclude(app: &App, checked: &Checked) -> anyhow::Result<()> {
    app.print(checked, || checked.text(app.is_verbose))?;
    match checked.failure() {
        None => Ok(()),
        Some(failure) => Err(failure.into()),
    }
}

/// Checks, and tells now and then behind which pack another check may go on. What was found, and what marking came to.
pub async fn check(
    app: &App,
    repository: &Repository,
    job: &Job,
    note: &(impl Fn(PackId) + Sync),
) -> anyhow::Result<(Report, Marked)> {
    let identity = open::identity(&app.settings, repository.key.repo())?.map(Arc::new);
    let work = Embedded::reading_all(app).await?;
    let Job { content, stopped, record, mark } = *job;
    let settings = Settings { host: app.settings.host.value.clone(), content, record };
    let (index, stop) = (work.index.clone(), work.context.stop.clone());
    let checker = Checker::new(work.repository.clone(), index, identity, settings, stop).behind(stopped);
    let checker = if mark { checker.marking() } else { checker };
    let bar = Display::new(app).bar("content");
    let (noted, way) = (AtomicU64::new(0), Mutex::new(Way::default()));
    let way = || way.lock().unwrap_or_else(PoisonError::into_inner);
    let progress = |progress: Progress<'_>| {
        bar.set(progress.done, progress.total);
        let now = app.environment.elapsed();
        let is_due = now >= Duration::from_millis(noted.load(Ordering::Relaxed)) + NOTE;
        let Some(after) = way().come(&progress) else { return };
        if is_due {
            noted.store(now.as_millis() as u64, Ordering::Relaxed);
            note(after);
        }
    };
    let checked = async {
        let report = checker.check(work.protection.clone(), &progress).await?;
        let marked = if mark { checker.mark(&report).await? } else { Marked::default() };
        Ok::<_, Failure>((report, marked))
    };
    let checked = checked.await;
    if let Some(after) = way().end(checked.is_ok()) {
        note(after);
    }
    bar.finish();
    work.finish().await;
    Ok(checked?)
}

/// How far the reading of content is.
#[derive(Default)]
struct Way {
    /// Everything up to this pack was read.
    read: Option<PackId>,
    /// Up to this one, whoever goes on behind it hears of all that was found.
    noted: Option<PackId>,
}

impl Way {
    /// Behind which pack another command may go on, if this one should not come to its end.
    fn come(&mut self, progress: &Progress<'_>) -> Option<PackId> {
        let after = progress.after?;
        self.read = Some(after);
        if progress.is_only_told {
            return None;
        }
        self.noted = Some(after);
        self.noted
    }

    /// The same at the end. Only what has come to its own end has told what it found.
    fn end(&self, is_told: bool) -> Option<PackId> {
        if is_told { self.read } else { self.noted }
    }
}

/// What is read, and where another command has stopped that read the same share.
fn content(args: &CheckArgs, cursor: &Cursor) -> (Content, Option<Stopped>) {
    let after = || if args.restart { None } else { cursor.get() };
    match args.read_data {
        None => (Content::None, None),
        Some(ReadData::Percent(100)) => (Content::All { after: after() }, None),
        Some(ReadData::Percent(percent)) => (Content::Percent { percent, after: after() }, None),
        Some(ReadData::Share(share)) => {
            (Content::Share(share), after().map(|behind| Stopped { behind, done: 0 }))
        }
    }
}

/// Where the last check of content ended, on this host. Only a shorter way: without it, checks begin at the start. Per
/// cents have one that goes round for ever; everything, and each fixed share, has one of its own until all of it was read.
struct Cursor(PathBuf);

impl Cursor {
    fn of(app: &App, repository: &Repository, read: Option<ReadData>) -> Self {
        let name = match read {
            Some(ReadData::Share(Share { number, of })) => format!("check-cursor-{number}-{of}"),
            Some(ReadData::Percent(100)) => "check-cursor-all".to_owned(),
            Some(ReadData::Percent(_)) | None => "check-cursor".to_owned(),
        };
        Self(app.settings.cache.value.join(repository.key.repo().to_string()).join(name))
    }

    fn get(&self) -> Option<PackId> {
        std::fs::read_to_string(&self.0).ok()?.trim().parse().ok()
    }

    fn set(&self, after: PackId) {
        if let Err(why) = self.write(after) {
            tracing::debug!(path = %self.0.display(), %why, "how far the check is was not noted");
        }
    }

    fn write(&self, after: PackId) -> anyhow::Result<()> {
        let folder = self.0.parent().context("it is below a folder")?;
        open::private_directory(folder)?;
        let file = tempfile::NamedTempFile::new_in(folder)?;
        std::fs::write(file.path(), format!("{after}\n"))?;
        file.persist(&self.0)?;
        Ok(())
    }

    fn clear(&self) {
        // The next check begins at the start in any case when there is none.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl From<DamagedSnapshot> for Damaged {
    fn from(damaged: DamagedSnapshot) -> Self {
        let range =
            |range: &std::ops::Range<u64>| Range { offset: range.start, len: range.end - range.start };
        Self {
            snapshot: damaged.slot.session.to_string(),
            bytes_lost: damaged.bytes(),
            lost: damaged.lost.iter().map(range).collect(),
            lost_is_cut: damaged.is_cut(),
            volume: damaged.volume.unwrap_or_else(|| "?".to_owned()),
            problems: damaged.problems,
        }
    }
}

impl From<schema::check::DamagedSnapshot> for Damaged {
    fn from(damaged: schema::check::DamagedSnapshot) -> Self {
        let range = |(start, end): &(u64, u64)| Range { offset: *start, len: end.saturating_sub(*start) };
        let lost: Vec<Range> = damaged.lost.iter().map(range).collect();
        Self {
            snapshot: damaged.slot.session.to_string(),
            bytes_lost: damaged.bytes,
            lost_is_cut: lost.iter().map(|range| range.len).sum::<u64>() < damaged.bytes,
            lost,
            volume: damaged.volume.unwrap_or_else(|| "?".to_owned()),
            problems: damaged.problems,
        }
    }
}

impl Checked {
    /// Of a report.
    pub fn of(report: Report) -> Self {
        Self {
            snapshots: report.snapshots,
            bytes: report.bytes,
            packs: report.packs,
            packs_read: report.packs_read,
            bytes_read: report.bytes_read,
            snapshots_damaged: report.damaged.len() as u64,
            damaged: report.damaged.into_iter().map(Damaged::from).collect(),
            objects_damaged: report.objects.len() as u64,
            objects: report.objects,
            objects_unopened: report.unopened_in,
            chunks_unopened: report.unopened,
            chunks_rescued: report.rescued,
            chunks_recorded: report.recorded,
            chunks_healed: report.healed,
            records_removed: report.settled,
            unrecorded: report.unrecorded,
            marks: None,
            went_on_behind: None,
        }
    }

    /// Of a report of agents.
    pub fn told(report: schema::check::Report) -> Self {
        Self {
            snapshots: report.snapshots,
            bytes: report.bytes,
            packs: report.packs,
            packs_read: report.packs_read,
            bytes_read: report.bytes_read,
            snapshots_damaged: report.damaged,
            damaged: report.snapshots_damaged.into_iter().map(Damaged::from).collect(),
            objects_damaged: report.objects,
            objects: report.found,
            objects_unopened: report.unopened_in,
            chunks_unopened: report.unopened,
            chunks_rescued: report.rescued,
            chunks_recorded: report.recorded,
            chunks_healed: report.healed,
            records_removed: report.settled,
            unrecorded: report.unrecorded,
            marks: None,
            went_on_behind: None,
        }
    }

    /// Beside so many marks.
    pub fn beside(self, marks: Option<u64>) -> Self {
        Self { marks, ..self }
    }

    /// A failure when anything is wrong; it says everything that is.
    pub fn failure(&self) -> Option<Failure> {
        let snapshots = text::count(self.snapshots, "snapshot");
        let are = text::of(self.snapshots, "is", "are");
        let failure = self.failure_of(format!("{} of {snapshots} {are} damaged", self.snapshots_damaged))?;
        let why = match self.snapshots_damaged + self.objects_damaged > self.objects_unopened {
            true => format!(
                "{}. Back up the volumes, which stores again what they still have, check again, and mend the rest by `lvkeep \
                 repair`",
                failure.why
            ),
            false => failure.why,
        };
        Some(Failure { why, ..failure })
    }

    /// The same, where this is said of the snapshots that are damaged.
    pub fn failure_of(&self, damaged: String) -> Option<Failure> {
        let mut wrong = Vec::new();
        if self.snapshots_damaged > 0 {
            wrong.push(damaged);
        }
        match (self.objects_damaged.saturating_sub(self.objects_unopened), self.snapshots_damaged) {
            (0, _) => {}
            (objects, snapshots) => {
                let (counted, are) = (text::count(objects, "object"), text::of(objects, "is", "are"));
                let lacks = match snapshots {
                    0 => "; no snapshot was seen to lack anything by it",
                    _ => "",
                };
                wrong.push(format!("{counted} {are} damaged or missing{lacks}"));
            }
        }
        if self.chunks_unopened > 0 {
            wrong.push(format!(
                "{} in {} cannot be opened with this identity, and nobody knows whether they are whole: what stands on them \
                 cannot be restored with it",
                text::count(self.chunks_unopened, "chunk"),
                text::count(self.objects_unopened, "pack")
            ));
        }
        if let Some(why) = &self.unrecorded {
            wrong.push(format!("what is damaged is not recorded: {why}"));
        }
        (!wrong.is_empty()).then(|| Failure::damaged(wrong.join(". ")))
    }

    /// For people: objects, then volumes and what their snapshots lack. Every chunk is named only where details are wanted.
    pub fn text(&self, is_verbose: bool) -> String {
        let why = |why: &str| if is_verbose { why.to_owned() } else { lacks::without_name(why) };
        let objects = self.objects.iter();
        let mut lines: Vec<String> =
            objects.map(|object| format!("DAMAGED {}: {}", object.key, why(&object.why))).collect();
        lines.extend(lacks::lines(&self.damaged, is_verbose));
        let listed = (self.damaged.len() + self.objects.len()) as u64;
        match (self.snapshots_damaged + self.objects_damaged).saturating_sub(listed) {
            0 => {}
            more => lines.push(format!("and {more} more that {} damaged", text::of(more, "is", "are"))),
        }
        lines.extend(self.of_chunks());
        if let Some(why) = &self.unrecorded {
            lines.push(format!("what is damaged could NOT be recorded, so that no backup mends it: {why}"));
        }
        let read = match self.packs_read {
            0 => String::new(),
            packs => {
                let all = text::count(self.packs, "pack");
                format!(", {packs} of {all} read ({})", text::size(self.bytes_read))
            }
        };
        let snapshots = text::count(self.snapshots, "snapshot");
        lines.push(format!("{snapshots}, {}: checked{read}", text::size(self.bytes)));
        if let Some(pack) = &self.went_on_behind {
            lines.push(format!(
                "content was read from behind pack {pack} on, where another check was interrupted; what a collection has moved \
                 to before it since is for the next check (--restart reads all of it)"
            ));
        }
        lines.join("\n")
    }

    /// What became of chunks.
    fn of_chunks(&self) -> Vec<String> {
        let (rescued, recorded, healed) = (self.chunks_rescued, self.chunks_recorded, self.chunks_healed);
        let mut lines = Vec::new();
        if rescued > 0 {
            let has = text::of(rescued, "has", "have");
            let chunks = text::count(rescued, "chunk");
            lines.push(format!("{chunks} {has} a damaged copy; another one is whole"));
        }
        if recorded > 0 {
            let (are, of, it) = text::of(recorded, ("is", "its", "it"), ("are", "their", "them"));
            let chunks = text::count(recorded, "damaged chunk");
            lines.push(format!(
                "{chunks} {are} recorded: the next backup that still has {of} content stores {it} again"
            ));
        }
        if healed > 0 {
            let (were, are) = text::of(healed, ("was", "is"), ("were", "are"));
            let chunks = text::count(healed, "chunk");
            let marks = self.marks.filter(|marks| *marks > 0).map_or(String::new(), |marks| {
                let are = text::of(marks, "is", "are");
                let snapshots = text::count(marks, "snapshot");
                format!(
                    "; {snapshots} {are} marked with what was lost: `lvkeep repair` takes the mark away of what is whole again"
                )
            });
            lines.push(format!("{chunks} that {were} recorded as damaged {are} healed{marks}"));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_goes_on_behind_another_check_says_what_it_has_not_read() {
        let whole = Checked::told(schema::check::Report::default());
        assert!(!whole.text(false).contains("behind"));
        let text = Checked { went_on_behind: Some("PACK".into()), ..whole }.text(false);
        for said in
            ["from behind pack PACK on", "moved to before it since is for the next check", "--restart"]
        {
            assert!(text.contains(said), "{text}");
        }
    }

    /// What nobody hears of who goes on behind it is read again, unless it was told.
    #[test]
    fn nobody_goes_on_behind_what_was_found_and_not_told() {
        let pack = |number: u8| PackId::from_bytes([number; 16]);
        let progress = |after: Option<u8>, is_only_told: bool| Progress {
            total: 100,
            done: 10,
            is_recorded: after.is_some(),
            after: after.map(pack),
            is_stuck: false,
            is_only_told,
            packs: 1,
            bytes: 1,
            unopened: 0,
            unopened_in: 0,
            recorded: 0,
            found: &[],
        };
        let mut way = Way::default();
        assert_eq!((way.end(false), way.end(true)), (None, None));
        assert_eq!(way.come(&progress(Some(1), false)), Some(pack(1)));
        assert_eq!(way.come(&progress(None, false)), None);
        assert_eq!(way.come(&progress(Some(2), true)), None);
        assert_eq!((way.end(false), way.end(true)), (Some(pack(1)), Some(pack(2))));
    }

    /// Nobody takes a part for all of it.
    #[test]
    fn ranges_that_are_not_listed_are_said_not_to_be() {
        let slot = schema::names::Slot {
            volume: schema::VolumeKey::from_bytes([1; 16]),
            session: schema::SessionId::from_bytes([2; 16]),
        };
        for (bytes, lost, said) in [
            (10, vec![(0, 10)], "cannot be read, by offset"),
            (20, vec![(0, 10)], "at least"),
            (20, vec![], "at least"),
        ] {
            let problems = Vec::new();
            let told = schema::check::DamagedSnapshot { slot, volume: None, bytes, lost, problems };
            let text = lacks::lines(&[Damaged::from(told)], false).join("\n");
            assert!(text.contains(said), "{text}");
        }
    }

    /// Nothing that was found hides anything else.
    #[test]
    fn everything_that_is_wrong_is_said() {
        let whole = |key: &str| Finding { key: key.into(), why: "it is cut off".into() };
        let report = |snapshots: u64, objects: &[&str], unopened: u64, unopened_in: u64| {
            let found = objects.iter().copied().map(whole).collect();
            let told =
                schema::check::Report { snapshots: 9, damaged: snapshots, found, ..Default::default() };
            Checked::told(schema::check::Report {
                objects: objects.len() as u64,
                unopened,
                unopened_in,
                ..told
            })
        };
        let [snapshots, objects, unopened, harmless] =
            ["2 of 9 snapshots", "1 object is damaged", "5 chunks in 1 pack cannot", "lack anything"];
        for (checked, said) in [
            (report(0, &[], 0, 0), vec![]),
            (report(0, &["a"], 0, 0), vec![objects, harmless]),
            (report(0, &["a"], 5, 1), vec![unopened]),
            (report(0, &["a", "b"], 5, 1), vec![objects, harmless, unopened]),
            (report(2, &["a", "b"], 5, 1), vec![snapshots, objects, unopened]),
            (report(2, &["a"], 0, 0), vec![snapshots, objects]),
            (report(2, &[], 0, 0), vec![snapshots]),
            (
                Checked { unrecorded: Some("no room".into()), ..report(0, &["a"], 0, 0) },
                vec![objects, "no room"],
            ),
        ] {
            let failure = checked.failure();
            let why = failure.as_ref().map(|failure| failure.why.clone()).unwrap_or_default();
            assert_eq!(failure.is_none(), said.is_empty(), "{why}");
            let is_damaged = said.iter().any(|part| [snapshots, objects].contains(part));
            assert_eq!(why.contains("`lvkeep repair`"), is_damaged, "{why}");
            for part in [snapshots, objects, unopened] {
                assert_eq!(why.contains(part), said.contains(&part), "{part}: {why}");
            }
            assert!(said.iter().all(|part| why.contains(part)), "{said:?}: {why}");
        }
    }
}
