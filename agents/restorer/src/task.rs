//! What is to be done with a snapshot, and what with a target that was opened for it.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use agent::Failure;
use schema::StreamId;
use schema::root::Root;

use crate::compare::Compare;
use crate::leaving::with_notes;
use crate::reading::Reading;
use crate::sink::{Opened, Sink};
use crate::snapback::{Purpose, Snapback};
use crate::spans::Spans;
use crate::target::Target;
use crate::tracked::Found;

/// What is to be done with a snapshot.
pub(crate) struct Task {
    pub sink: Sink,
    pub part: Range<u64>,
    pub compare: Compare,
    /// What need not be compared, and why more has to be than could be expected.
    pub tracked: Found,
    pub donor: Option<Reading>,
    pub snapback: Option<Snapback>,
    pub keep_going: bool,
    /// A restore that is stopped leaves what it has, for its job to go on with.
    pub goes_on: bool,
    /// Which spans of it are whose.
    pub spans: Arc<Spans>,
}

impl Task {
    /// A part of a volume, all of which is to be written.
    pub fn new(sink: Sink, part: Range<u64>) -> Self {
        let spans = Spans::whole(&part).into();
        Self {
            sink,
            part,
            compare: Compare::Nothing,
            tracked: Found::default(),
            donor: None,
            snapback: None,
            keep_going: false,
            goes_on: false,
            spans,
        }
    }
}

/// An order to restore.
pub(crate) struct Order {
    pub root: Root,
    pub part: Range<u64>,
    pub target: Target,
    /// For a snapback, if one is made.
    pub stream: StreamId,
    /// Folders that are never written to.
    pub forbidden: Vec<PathBuf>,
}

impl Order {
    /// What is to be done to the opened target. It is compared unless it holds nothing, or nothing of it may stay. Blocks.
    pub fn begun(&self, mut opened: Opened) -> Result<Task, Failure> {
        let Self { root, part, target, .. } = self;
        let donor = match target.donor() {
            Some(path) => {
                // The donor may be gone by now, and it is only a shorter way.
                let donor = Reading::open(path, root.volume.clone(), part.end);
                donor.inspect_err(|why| tracing::warn!(%why, "everything is fetched")).ok()
            }
            None => None,
        };
        if let Some(donor) = &donor {
            opened.share(donor, part, root.size);
        }
        let may_stay = opened.place.as_ref().is_none_or(|place| place.keeps_equal());
        if *part != (0..root.size) && !may_stay {
            return Err(Failure::refused(format!(
                "cannot restore only a range to {}: its thin pool does not zero new blocks, so that somebody else's \
                 data may come up beside the range; restore all of it",
                target.path().display()
            )));
        }
        let begun = self.compare(&opened, may_stay).and_then(|compare| {
            let snapback = self.snapback(&opened, may_stay)?;
            Ok((compare, snapback))
        });
        let sink = Sink::Target(opened);
        match begun {
            Ok((compare, snapback)) => {
                let (keep_going, goes_on) = (target.keeps_going(), target.claim().is_of_job());
                let task = Task::new(sink, part.clone());
                Ok(Task { compare, donor, snapback, keep_going, goes_on, ..task })
            }
            Err(failure) => {
                let left = sink.give_up(sink.ending(&failure, false), false);
                Err(with_notes(failure, left.as_slice()))
            }
        }
    }

    fn compare(&self, opened: &Opened, may_stay: bool) -> Result<Compare, Failure> {
        // A volume that was made just now holds nothing, unless it was made with what another one holds.
        let is_copy = opened.place.as_ref().is_some_and(|place| place.is_copy());
        let is_new = opened.place.as_ref().is_some_and(|place| place.is_new()) && !is_copy;
        match !self.target.is_full() && !is_new && !opened.is_zero() && may_stay {
            true => Reading::of(opened).map(Compare::ToSkip),
            false => Ok(Compare::Nothing),
        }
    }

    /// The last step before anything is written.
    fn snapback(&self, opened: &Opened, may_stay: bool) -> Result<Option<Snapback>, Failure> {
        let Some(path) = self.target.kept_in() else { return Ok(None) };
        let target = self.target.path().to_string_lossy();
        let purpose =
            Purpose { path, target: &target, id: self.stream, forbidden: &self.forbidden, whole: !may_stay };
        Snapback::begin(&purpose, opened).map(Some)
    }
}
