//! Which part of a restore is whose: its owner works from the front, whoever helps takes whole spans from the back.
//!
//! Pure bookkeeping. A span that nobody speaks of any more, or that could not be restored by who helped, is the
//! owner's, so that everything is restored or fails there by name. Twice is no harm: the bytes are the same.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use schema::limits::LEAF_SPAN;
use schema::messages::{AskSpan, SpanFigures, SpanNow};
use tokio::sync::Notify;

use crate::restorer::Report;

/// Leaves of 64 MiB that are planned together: 256 MiB of the volume, some ten thousand ids.
pub(crate) const WINDOW_LEAVES: u64 = 4;
/// Beats after which a span of which nobody speaks is the owner's.
const SILENT_MAX: u32 = 5;

/// The spans of one restore.
#[derive(Debug)]
pub(crate) struct Spans {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    spans: Vec<Span>,
    /// Leaves of the owner's latest span that it has not begun.
    own: Range<u64>,
    helped: Report,
    /// Others had some of them, and may have written to the target.
    was_lent: bool,
    closed: bool,
}

#[derive(Debug)]
struct Span {
    leaves: Range<u64>,
    bytes: Range<u64>,
    hands: Hands,
}

/// In whose hands a span is.
#[derive(Debug, PartialEq, Eq)]
enum Hands {
    Nobody,
    /// Nobody's yet, and nobody's but the owner's.
    ForOwner,
    Owner,
    Worker {
        worker: u64,
        done: u64,
        silent: u32,
    },
    /// On the target, by one who helped.
    Done,
}

impl Spans {
    /// One span, which is the owner's.
    pub fn whole(part: &Range<u64>) -> Self {
        Self::of(part, u64::MAX)
    }

    /// Spans of so many leaves each.
    pub fn of(part: &Range<u64>, leaves: u64) -> Self {
        let all = part.start / LEAF_SPAN..part.end.div_ceil(LEAF_SPAN);
        let mut spans = Vec::new();
        let mut at = all.start;
        while at < all.end {
            let leaves = at..at.saturating_add(leaves.max(1)).min(all.end);
            let bytes =
                part.start.max(leaves.start * LEAF_SPAN)..part.end.min(leaves.end.saturating_mul(LEAF_SPAN));
            at = leaves.end;
            spans.push(Span { leaves, bytes, hands: Hands::Nobody });
        }
        let state = State { spans, own: 0..0, helped: Report::default(), was_lent: false, closed: false };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.state().spans.len()
    }

    /// Others instead, before anything of them is begun.
    pub fn replace(&self, by: Self) {
        *self.state() = by.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    }

    /// Whether there is something for the owner to begin just now.
    pub fn has_next(&self) -> bool {
        self.state().has_next()
    }

    /// The owner's next leaves, a window of them at most; none when there are none just now.
    pub fn next(&self) -> Option<Range<u64>> {
        let mut state = self.state();
        if state.own.is_empty() {
            let mut spans = state.spans.iter_mut();
            let free = spans.find(|span| matches!(span.hands, Hands::Nobody | Hands::ForOwner))?;
            free.hands = Hands::Owner;
            state.own = free.leaves.clone();
        }
        let window = state.own.start..state.own.end.min(state.own.start + WINDOW_LEAVES);
        state.own.start = window.end;
        Some(window)
    }

    /// Waits until the owner may have something to do; false when everything is done or begun.
    pub async fn more(&self) -> bool {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let state = self.state();
                if state.has_next() {
                    return true;
                }
                if !state.spans.iter().any(|span| matches!(span.hands, Hands::Worker { .. })) {
                    return false;
                }
            }
            changed.await;
        }
    }

    /// Whether somebody could help.
    pub fn want_help(&self) -> bool {
        let state = self.state();
        !state.closed && state.spans.iter().any(|span| span.hands == Hands::Nobody)
    }

    /// Whether there is a span for one who helps.
    pub fn has_for(&self, worker: u64) -> bool {
        let state = self.state();
        let is_its = |span: &Span| matches!(&span.hands, Hands::Worker { worker: of, .. } if *of == worker);
        !state.closed && state.spans.iter().any(|span| span.hands == Hands::Nobody || is_its(span))
    }

    /// What one who helps is to do.
    pub fn answer(&self, ask: AskSpan) -> Option<Range<u64>> {
        let mut state = self.state();
        if state.closed {
            return None;
        }
        let AskSpan { worker, now } = ask;
        let answer = match now {
            SpanNow::Idle => state.take(worker),
            SpanNow::Working { offset, done } => state.hear(worker, offset, done),
            SpanNow::Done { offset, figures } => {
                state.end(worker, offset, &figures);
                None
            }
            SpanNow::Failed { offset, why } => {
                state.fail(worker, offset, &why);
                None
            }
        };
        drop(state);
        self.changed.notify_waiters();
        answer
    }

    /// Time has passed.
    pub fn age(&self) {
        for span in &mut self.state().spans {
            let Hands::Worker { silent, .. } = &mut span.hands else { continue };
            *silent += 1;
            if *silent > SILENT_MAX {
                let offset = span.bytes.start;
                tracing::warn!(offset, "nobody speaks of a span any more: it is restored here");
                span.hands = Hands::ForOwner;
            }
        }
        self.changed.notify_waiters();
    }

    /// Nobody is to help any more.
    pub fn close(&self) {
        self.state().closed = true;
    }

    /// What others have done.
    pub fn helped(&self) -> Report {
        self.state().helped.clone()
    }

    /// Whether others may have written to the target, however what they had ended.
    pub fn was_lent(&self) -> bool {
        self.state().was_lent
    }

    /// Bytes of the volume with which others are done so far.
    pub fn helped_bytes(&self) -> u64 {
        let state = self.state();
        let bytes = |span: &Span| match span.hands {
            Hands::Done => span.bytes.end - span.bytes.start,
            Hands::Worker { done, .. } => done.min(span.bytes.end - span.bytes.start),
            Hands::Nobody | Hands::ForOwner | Hands::Owner => 0,
        };
        state.spans.iter().map(bytes).sum()
    }
}

impl State {
    fn has_next(&self) -> bool {
        let free = |span: &Span| matches!(span.hands, Hands::Nobody | Hands::ForOwner);
        !self.own.is_empty() || self.spans.iter().any(free)
    }

    /// The last span that nobody has, or the one that this worker was given and has not heard of.
    fn take(&mut self, of: u64) -> Option<Range<u64>> {
        let its = |span: &&mut Span| matches!(span.hands, Hands::Worker { worker, .. } if worker == of);
        let span = match self.spans.iter_mut().find(its) {
            Some(span) => span,
            None => self.spans.iter_mut().rev().find(|span| span.hands == Hands::Nobody)?,
        };
        span.hands = Hands::Worker { worker: of, done: 0, silent: 0 };
        self.was_lent = true;
        Some(span.bytes.clone())
    }

    /// The span at `offset`, if this worker has it.
    fn held(&mut self, of: u64, offset: u64) -> Option<&mut Span> {
        let held = |span: &&mut Span| matches!(span.hands, Hands::Worker { worker, .. } if worker == of);
        self.spans.iter_mut().filter(held).find(|span| span.bytes.start == offset)
    }

    fn hear(&mut self, of: u64, offset: u64, done: u64) -> Option<Range<u64>> {
        let span = self.held(of, offset)?;
        span.hands = Hands::Worker { worker: of, done, silent: 0 };
        Some(span.bytes.clone())
    }

    fn end(&mut self, of: u64, offset: u64, figures: &SpanFigures) {
        let Some(span) = self.held(of, offset) else { return };
        let report = report(figures);
        let accounted = report.written.checked_add(report.kept).and_then(|n| n.checked_add(report.zeroed));
        if accounted != Some(span.bytes.end - span.bytes.start) {
            tracing::warn!(offset, ?figures, "a span's figures do not add up: it is restored here");
            span.hands = Hands::ForOwner;
            return;
        }
        span.hands = Hands::Done;
        self.helped += report;
    }

    fn fail(&mut self, of: u64, offset: u64, why: &str) {
        let Some(span) = self.held(of, offset) else { return };
        tracing::warn!(offset, why, "another agent could not restore a span: it is restored here");
        span.hands = Hands::ForOwner;
    }
}

fn report(figures: &SpanFigures) -> Report {
    let SpanFigures { written, kept, zeroed, compared, fetched, requests, chunks, rescued } = *figures;
    Report { written, kept, zeroed, compared, fetched, requests, chunks, rescued, ..Report::default() }
}

/// What is told of a span.
pub(crate) fn figures(report: &Report) -> SpanFigures {
    let Report { written, kept, zeroed, compared, fetched, requests, chunks, rescued, copied, .. } = *report;
    // Nobody asks where what was written came from.
    SpanFigures { written: written + copied, kept, zeroed, compared, fetched, requests, chunks, rescued }
}

#[cfg(test)]
mod tests;
