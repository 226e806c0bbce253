//! The checker: finds what is damaged in a repository, says whom it concerns, and records it for the next backups.
//!
//! It reads all small objects, all footers and all structure, and as much of the content as it is asked to; then it
//! walks the map of every snapshot. What cannot be relied on is recorded in the bucket, where sessions look when they
//! begin, so that the next backup which still has the content stores it again. It deletes nothing but records of its
//! own that are of no use any more, and never changes a snapshot. Memory is bounded by the number of packs, by what can
//! be recorded, and by the ranges that a report lists; only what is to be marked is kept whole.

mod attempt;
mod collections;
mod findings;
mod forgotten;
mod frames;
mod given;
mod holes;
pub mod jobs;
mod maps;
mod mend;
mod objects;
mod pace;
mod packs;
mod record;
mod scope;
mod service;
mod told;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use agent::damage::Damages;
use agent::index::IndexClient;
use agent::keys::DataKeys;
use agent::rate::RateLimit;
use agent::{Failure, Protection, Repository, Stop};
use schema::PackId;
use schema::keys::Identity;
use schema::messages::FailureKind;
use schema::names::Slot;

pub use findings::{DamagedSnapshot, Finding, Progress, Report};
pub use holes::Marked;
pub use mend::{Mended, Mender};
pub use scope::{Content, Share, Stopped};
pub use service::{Service, Serving};

use maps::{Lost, Walk};
use pace::Pace;
use packs::Packs;
use record::Unrecorded;

/// How a checker works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The host, for records.
    pub host: String,
    /// What of the content is read.
    pub content: Content,
    /// Whether damage is recorded.
    pub record: bool,
}

/// What was found so far.
struct Found {
    report: Report,
    recorded: Damages,
    packs: Packs,
    /// Snapshots that were looked at.
    slots: Vec<Slot>,
    lost: Lost,
}

/// Checks one repository.
pub struct Checker {
    source: Source,
    index: IndexClient,
    settings: Settings,
    /// Where another attempt at this check has stopped.
    stopped: Option<Stopped>,
    /// What goes before the reading of content.
    pace: Option<Arc<Pace>>,
    limit: RateLimit,
    /// Why something that was found could not be recorded.
    unrecorded: Unrecorded,
    /// Whether snapshots are to be marked with what is found.
    marks: bool,
}

impl Checker {
    /// A checker. Without an identity it reads no content of an encrypted repository.
    pub fn new(
        repository: Repository,
        index: IndexClient,
        identity: Option<Arc<Identity>>,
        settings: Settings,
        stop: Stop,
    ) -> Self {
        let source = Source::new(repository, identity, stop);
        let (stopped, pace, limit) = (None, None, RateLimit::none());
        let unrecorded = Unrecorded::default();
        Self { source, index, settings, stopped, pace, limit, unrecorded, marks: false }
    }

    /// Goes on behind another attempt at the same check, which has recorded what it found.
    pub fn behind(mut self, stopped: Option<Stopped>) -> Self {
        self.stopped = stopped;
        self
    }

    /// What it finds is to be marked: its report has all ranges that are lost, however many there are.
    pub fn marking(mut self) -> Self {
        self.marks = true;
        self
    }

    /// Reads content as fast as this limit lets it, when the process has nothing else to do.
    fn yielding(mut self, pace: Arc<Pace>, limit: RateLimit) -> Self {
        (self.pace, self.limit) = (Some(pace), limit);
        self
    }

    /// Checks. Fails when it could not find out, or was stopped; what it finds is no failure.
    ///
    /// While the structure is looked at, `protection` keeps a collection from moving it; it began before the index was
    /// brought up to date. Content is read without it: that may take days, for which nothing should wait. When this fails
    /// before that, whoever began it ends it.
    pub async fn check(
        &self,
        protection: Option<Protection>,
        progress: &(impl Fn(Progress<'_>) + Sync),
    ) -> Result<Report, Failure> {
        self.keys_fit().await?;
        let mut found = self.structure().await?;
        if let Some(protection) = protection {
            protection.end(Ok(())).await?;
        }
        self.content_frames(&mut found, progress).await?;
        if found.packs.has_damage() {
            self.look_again(&mut found).await?;
        }
        self.settle(&mut found).await?;
        let once = std::mem::take(&mut found.report.once);
        found.report.objects.extend(once);
        found.report.unrecorded = self.unrecorded.why();
        found.report.is_behind = self.unrecorded.is_pending();
        let is_all = matches!(self.settings.content, Content::All { after: None }) && self.stopped.is_none();
        found.report.has_read_all = is_all && found.report.unopened == 0;
        Ok(found.report)
    }

    async fn keys_fit(&self) -> Result<(), Failure> {
        if self.settings.content != Content::None {
            self.source.keys.check().map_err(|why| why.context("content cannot be checked"))?;
        }
        self.source.keys.fits().await
    }

    async fn structure(&self) -> Result<Found, Failure> {
        let mut report = Report { keeps_all: self.marks, ..Report::default() };
        let mut recorded = Damages::load(&self.source.repository).await?;
        report.minds_all = !recorded.is_incomplete();
        // Snapshots before packs: what they stand on is listed.
        let mut slots = self.source.repository.visible_slots(None).await?;
        let cut_off = self.cut_off().await?;
        slots.extend(&cut_off);
        let mut packs = self.footers(&recorded, &mut report).await?;
        self.small_objects(&packs, &cut_off, &mut report).await?;
        self.structure_frames(&recorded, &mut packs, &mut report).await?;
        self.recorded_frames(&recorded, &mut packs).await?;
        let lost = Walk::new(self, &packs, &recorded).all(&slots, &mut report).await?;
        self.tell_recorded(&recorded, &packs, &lost, &mut report);
        let damage = packs.damage().chain(lost.iter().map(|(id, packs)| (*id, packs.clone())));
        report.recorded += self.record(&mut recorded, packs.unreadable(), damage).await?;
        packs.bad_is_known();
        report.looked_at.clone_from(&slots);
        Ok(Found { report, recorded, packs, slots, lost })
    }

    /// Whom it concerns what was found in content. Chunks may have moved meanwhile: only those count that were found.
    async fn look_again(&self, found: &mut Found) -> Result<(), Failure> {
        let Found { report, recorded, packs, slots, lost } = found;
        packs.list_again(self.source.list_packs().await?);
        let before = report.take();
        (report.snapshots, report.bytes) = (0, 0);
        let found = Walk::again(self, packs, recorded).all(slots, report).await?;
        report.merge(before);
        let damage = found.iter().map(|(id, packs)| (*id, packs.clone()));
        report.recorded += self.record(recorded, packs.unreadable(), damage).await?;
        lost.extend(found);
        Ok(())
    }
}

/// Where packs and keys are.
struct Source {
    repository: Repository,
    keys: DataKeys,
    stop: Stop,
    /// A pack whose footer is torn is read as a whole: one at a time.
    whole: futures::lock::Mutex<()>,
    /// Objects in a row that the store did not give.
    withheld: Mutex<BTreeSet<String>>,
}

impl Source {
    fn new(repository: Repository, identity: Option<Arc<Identity>>, stop: Stop) -> Self {
        let keys = DataKeys::new(repository.clone(), identity);
        Self { repository, keys, stop, whole: Default::default(), withheld: Default::default() }
    }

    fn go_on(&self) -> Result<(), Failure> {
        match self.stop.is_raised() {
            true => Err(Failure::new(FailureKind::Revoked, "interrupted")),
            false => Ok(()),
        }
    }

    /// All packs with their sizes, in order.
    async fn list_packs(&self) -> Result<Vec<(PackId, u64)>, Failure> {
        let mut packs = self.repository.list_packs().await?;
        packs.sort_unstable();
        Ok(packs)
    }
}
