//! What a session is told, by readers, hashers and storers, and what it makes of it.
//!
//! Hints count only by the session's rule; a run of another reading is left out; a run that was mapped differently
//! before means that the source changed.

use std::collections::BTreeMap;
use std::time::Duration;

use agent::bus::{Broadcasts, Deliveries, Delivery};
use agent::{Failure, Queue, Topic, maps, sessions};
use schema::map::Geometry;
use schema::messages::*;
use schema::session::Checkpoint;
use schema::{ChunkId, ReadingId};

use super::{Driver, Reading, WINDOW};
use crate::coverage::{Count, Coverage, Fate, Refused};

/// Pause before a subscription that broke is taken up again.
const RESUBSCRIBE_PAUSE: Duration = Duration::from_millis(500);

impl Driver {
    pub(super) async fn on_cancel(
        &mut self,
        message: Result<Message, agent::BusError>,
        cancels: &mut Box<dyn Broadcasts>,
    ) -> Result<(), Failure> {
        let heard = self.heard(message, &Topic::cancel(), cancels).await;
        let asked = heard.and_then(|message| message.read::<Cancel>().ok());
        if asked.is_some_and(|cancel| cancel.session == self.session.session().id) {
            self.cancelled = true;
            return Err(sessions::revoked(self.session.session()));
        }
        Ok(())
    }

    /// What a subscription brought; one that broke is taken up again.
    async fn heard(
        &self,
        message: Result<Message, agent::BusError>,
        topic: &Topic,
        subscription: &mut Box<dyn Broadcasts>,
    ) -> Option<Message> {
        match message {
            Ok(message) => Some(message),
            Err(why) => {
                tracing::debug!(topic = topic.name(), %why, "subscribing again");
                self.context.environment.sleep(RESUBSCRIBE_PAUSE).await;
                if let Ok(again) = self.context.bus.subscribe(topic).await {
                    *subscription = again;
                }
                None
            }
        }
    }

    pub(super) async fn on_delivery(
        &mut self,
        event: Result<Delivery, agent::BusError>,
        events: &mut Box<dyn Deliveries>,
        adopt: &mut Option<Checkpoint>,
    ) -> Result<(), Failure> {
        let delivery = match event {
            Ok(delivery) => delivery,
            Err(why) => {
                tracing::warn!(%why, "lost the session's queue; taking it up again");
                self.context.environment.sleep(Duration::from_millis(500)).await;
                if let Ok(again) =
                    self.context.bus.consume(&Queue::session(self.session.session().id), WINDOW).await
                {
                    *events = again;
                }
                return Ok(());
            }
        };
        match delivery.message.read::<SessionEvent>() {
            Ok(event) => self.on_event(event, adopt).await?,
            Err(error) => tracing::warn!(%error, "an event of this session cannot be read"),
        }
        // An event that comes again is harmless.
        let _ = delivery.ticket.done().await;
        Ok(())
    }

    pub(super) async fn on_event(
        &mut self,
        event: SessionEvent,
        adopt: &mut Option<Checkpoint>,
    ) -> Result<(), Failure> {
        match event {
            SessionEvent::Opened { reading, size, layout } => {
                self.on_opened(reading, size, layout, adopt.take()).await
            }
            SessionEvent::Mapped { reading, offset, pieces, stored, new, chunks_new }
                if self.is_ours(reading) =>
            {
                let added = self.on_mapped(offset, &pieces).await?;
                if added.covered > 0 {
                    self.statistics.bytes_stored += stored;
                    self.statistics.bytes_new += new.min(added.covered - added.zero);
                    self.statistics.chunks_new += chunks_new;
                    self.made_progress();
                }
                Ok(())
            }
            SessionEvent::Read { reading, request, bytes_read, changed } if self.is_ours(reading) => {
                if self.answered.insert(request) {
                    self.statistics.bytes_read += bytes_read;
                }
                self.on_read(request, changed)
            }
            SessionEvent::Tracked { reading, tracking, distrusted } if self.is_ours(reading) => {
                self.on_tracked(tracking, distrusted);
                Ok(())
            }
            SessionEvent::Unchanged { reading, parent, ranges } if self.is_ours(reading) => {
                self.on_unchanged(parent, &ranges).await
            }
            SessionEvent::Mapped { .. }
            | SessionEvent::Read { .. }
            | SessionEvent::Tracked { .. }
            | SessionEvent::Unchanged { .. } => {
                tracing::warn!("an event of another reading is left out");
                Ok(())
            }
            SessionEvent::Failed { kind, why } => Err(Failure::new(kind, why)),
        }
    }

    pub(super) fn is_ours(&self, reading: ReadingId) -> bool {
        self.reading.as_ref().is_some_and(|ours| ours.id == reading)
    }

    pub(super) fn made_progress(&mut self) {
        self.progress_at = self.context.environment.elapsed();
        self.asked_again = 0;
    }

    /// The first reading binds the session.
    pub(super) async fn on_opened(
        &mut self,
        id: ReadingId,
        size: u64,
        layout: Vec<(String, String)>,
        adopt: Option<Checkpoint>,
    ) -> Result<(), Failure> {
        if let Some(ours) = &self.reading {
            return match ours.id == id && ours.geometry.size() == size {
                true => Ok(()),
                false => Err(Failure::new(
                    FailureKind::Device,
                    format!("{} became another reading while it was backed up", self.job.source),
                )),
            };
        }
        let geometry = Geometry::new(size)?;
        let (coverage, leaves) = (Coverage::new(geometry), BTreeMap::new());
        self.reading = Some(Reading { id, geometry, layout, coverage, leaves });
        self.made_progress();
        if let Some(checkpoint) = adopt {
            if checkpoint.reading == id && checkpoint.size == size {
                self.adopt(checkpoint).await;
            }
            self.request(None, false).await?;
        }
        Ok(())
    }

    /// Takes finished leaves from an earlier session of the job, if every chunk in them counts for this one.
    pub(super) async fn adopt(&mut self, checkpoint: Checkpoint) {
        for (leaf, id) in checkpoint.leaves {
            let Some(reading) = &self.reading else { return };
            if leaf >= reading.geometry.leaves() {
                continue;
            }
            if self.inherits(leaf, id).await {
                continue;
            }
            match self.leaf_counts(leaf, id).await {
                Ok(Some(count)) => {
                    if let Some(reading) = &mut self.reading {
                        reading.coverage.adopt(leaf, count);
                        reading.leaves.insert(leaf, id);
                    }
                }
                Ok(None) => {}
                Err(failure) => tracing::debug!(leaf, %failure, "a checkpointed leaf cannot be adopted"),
            }
        }
    }

    /// What a leaf's pieces add up to, when it and every chunk in it have copies that count for this session.
    pub(super) async fn leaf_counts(&self, leaf: u64, id: Option<ChunkId>) -> Result<Option<Count>, Failure> {
        let Some(reading) = &self.reading else { return Ok(None) };
        let range = reading.geometry.leaf_range(leaf);
        let span = range.end - range.start;
        let Some(id) = id else { return Ok(Some(Count { covered: span, zero: span, chunks: 0 })) };
        let copies = self.counting_copies(&[id]).await?.pop().unwrap_or_default();
        if copies.is_empty() {
            return Ok(None);
        }
        let bytes = maps::read_structure(&self.repository, id, &copies).await?;
        let parsed = schema::map::Leaf::parse(&bytes, span)?;
        let ids: Vec<ChunkId> = parsed
            .pieces()
            .iter()
            .filter_map(|piece| match piece.content {
                schema::map::Content::Chunk(id) => Some(id),
                schema::map::Content::Zero => None,
            })
            .collect();
        let counts = self.counting_copies(&ids).await?.iter().all(|copies| !copies.is_empty());
        Ok(counts.then(|| Count::of(parsed.pieces())))
    }

    /// The copies of chunks that count for this session.
    pub(super) async fn counting_copies(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Copy>>, Failure> {
        let mut found = self.index.locate(&self.about, ids).await?;
        for (id, copies) in ids.iter().zip(&mut found) {
            let mut counting = Vec::new();
            for copy in copies.drain(..) {
                if self.session.counts_for(id, copy.pack).await? {
                    counting.push(copy);
                }
            }
            *copies = counting;
        }
        Ok(found)
    }

    /// Accounts for a mapped run. Says what of it was not mapped before.
    pub(super) async fn on_mapped(
        &mut self,
        offset: u64,
        pieces: &[(u32, Mapped)],
    ) -> Result<Count, Failure> {
        let mut at = offset;
        let mut total = Count::default();
        for (len, mapped) in pieces {
            let fate = self.fate(at, *mapped).await?;
            let new = self.account(at, *len, fate)?;
            if new > 0 {
                total.add(new, fate == Fate::Zero);
            }
            at = at.saturating_add(u64::from(*len));
        }
        Ok(total)
    }

    /// Accounts for one piece. Returns how many bytes of it were not mapped before.
    pub(super) fn account(&mut self, at: u64, len: u32, fate: Fate) -> Result<u64, Failure> {
        let Some(reading) = &mut self.reading else { return Ok(0) };
        let mut added = reading.coverage.add(at, len, fate);
        if let Err(Refused::Conflict(_)) = added
            && self.job.allow_changes
        {
            self.changed = true;
            added = reading.coverage.replace(at, len, fate);
        }
        added.map_err(|refused| match refused {
            Refused::Conflict(conflict) => {
                let why =
                    format!("{} changed while it was read, at offset {}", self.job.source, conflict.offset);
                Failure::new(FailureKind::Device, why)
            }
            Refused::Impossible(wrong) => {
                let why =
                    format!("a reader sent an impossible piece of {len} bytes at offset {}", wrong.offset);
                Failure::new(FailureKind::Other, why)
            }
        })
    }

    /// What a mapping is worth: hints count only by the session's rule.
    pub(super) async fn fate(&self, offset: u64, mapped: Mapped) -> Result<Fate, Failure> {
        Ok(match mapped {
            Mapped::Zero => Fate::Zero,
            Mapped::Parent(id) => match &self.parent {
                Some(parent) if parent.has(offset, id).await => Fate::Durable(id),
                _ => Fate::Waiting(id),
            },
            Mapped::Known(id, pack) => match self.session.counts_for(&id, pack).await? {
                true => Fate::Durable(id),
                false => Fate::Waiting(id),
            },
            Mapped::Pending(id) => match self.recent.pack_of(id) {
                Some(pack) if self.session.counts_for(&id, pack).await? => Fate::Durable(id),
                _ => Fate::Waiting(id),
            },
        })
    }

    pub(super) fn on_read(&mut self, request: u32, changed: bool) -> Result<(), Failure> {
        if changed && !self.job.allow_changes {
            let why = format!(
                "{} changed while it was read; back up a snapshot of it, or allow changes",
                self.job.source
            );
            return Err(Failure::new(FailureKind::Device, why));
        }
        self.changed |= changed;
        if let Some((number, done)) = &mut self.check
            && *number == request
        {
            *done = true;
        }
        Ok(())
    }

    pub(super) async fn on_broadcast(
        &mut self,
        message: Result<Message, agent::BusError>,
        stored: &mut Box<dyn Broadcasts>,
    ) -> Result<(), Failure> {
        let heard = self.heard(message, &Topic::packs_stored(), stored).await;
        let Some(pack) = heard.and_then(|message| message.read::<PackStored>().ok()) else { return Ok(()) };
        self.session.forget_missing(pack.pack).await;
        let waited = |id: ChunkId| {
            self.structure.waits_for(id) || self.reading.as_ref().is_some_and(|r| r.coverage.waits_for(id))
        };
        let ours: Vec<ChunkId> = pack.entries.iter().map(|entry| entry.id).filter(|id| waited(*id)).collect();
        for entry in &pack.entries {
            self.recent.note(entry.id, pack.pack);
        }
        if !ours.is_empty() && self.session.counts(pack.pack).await? {
            self.mark_durable(&ours);
        }
        Ok(())
    }

    pub(super) fn mark_durable(&mut self, ids: &[ChunkId]) {
        let mut any = false;
        for id in ids {
            any |= self.structure.durable(*id);
            if let Some(reading) = &mut self.reading {
                any |= reading.coverage.durable(*id);
            }
        }
        if any {
            self.made_progress();
        }
    }
}
