//! Hands on a range of a snapshot in order, part by part, to whoever listens.

use std::ops::Range;

use agent::{Failure, Stop};
use futures::stream::StreamExt;
use tokio::sync::mpsc;

use crate::pipeline;
use crate::report::{Progress, Report};
use crate::restorer::Restorer;
use crate::sink::{Memory, Sink};
use crate::task::Task;
use crate::unit::Source;

/// Bytes of one part at most.
const PART_MAX: u64 = 16 << 20;
/// And of a small one, where there is little memory.
const PART_MIN: u64 = 2 << 20;
/// Parts that are read at once; as many again are handed on, or wait for that.
const PARTS_AT_ONCE: usize = 3;

impl Restorer {
    /// Bytes of one part, so that all of them have about as much memory as what is fetched for them.
    fn part(&self) -> u64 {
        (self.turns.bytes / 8).clamp(PART_MIN, PART_MAX)
    }

    /// Hands on a range of the volume, part by part; while one is handed on, the next are read.
    pub(crate) async fn to_channel(
        &self,
        source: Source,
        range: Range<u64>,
        out: mpsc::Sender<Vec<u8>>,
        progress: &impl Fn(Progress),
    ) -> Result<Report, Failure> {
        let size = self.part();
        let read = |start: u64| {
            let part = start..range.end.min(start + size);
            let sink = Sink::Memory(Memory::new(part.clone()));
            let work = self.work(source.clone(), Task::new(sink, part));
            async move {
                let report = pipeline::run(&work, &self.context.stop, &|_| {}).await?;
                Ok::<_, Failure>((report, work.sink.taken()))
            }
        };
        let enough = Stop::default();
        let starts = range.clone().step_by(size as usize).take_while(|_| !enough.is_raised());
        let mut parts = futures::stream::iter(starts).map(read).buffered(PARTS_AT_ONCE);
        let (total, mut done) = (range.end - range.start, 0);
        let mut sum = Report { size: total, ..Report::default() };
        let mut failed = None;
        // What was begun is waited for in every outcome, so that nobody reads the snapshot when this is over.
        while let Some(read) = parts.next().await {
            if enough.is_raised() {
                continue;
            }
            let sent = match read {
                Ok((report, bytes)) => {
                    done += bytes.len() as u64;
                    sum += Report { size: 0, ..report };
                    tokio::select! {
                        biased;
                        sent = out.send(bytes) => Ok(sent.is_ok()),
                        () = self.context.stop.raised() => Err(pipeline::reading_stopped(&source.map.root().volume)),
                    }
                }
                Err(failure) => Err(failure),
            };
            match sent {
                Ok(true) => progress(Progress { total, done, fetched: sum.fetched }),
                // Whoever reads has seen enough.
                Ok(false) => enough.raise(),
                Err(failure) => {
                    enough.raise();
                    failed = Some(failure);
                }
            }
        }
        match failed {
            Some(failure) => Err(failure),
            None => Ok(sum),
        }
    }
}
