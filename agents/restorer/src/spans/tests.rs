use std::ops::Range;

use schema::limits::LEAF_SPAN;
use schema::messages::{AskSpan, SpanFigures, SpanNow};

use super::{SILENT_MAX, Spans, figures};
use crate::report::Report;

fn ask(spans: &Spans, worker: u64, now: SpanNow) -> Option<Range<u64>> {
    spans.answer(AskSpan { worker, now })
}

/// Asks for a span, in leaves.
fn take(spans: &Spans, worker: u64) -> Option<Range<u64>> {
    let bytes = ask(spans, worker, SpanNow::Idle)?;
    Some(bytes.start / LEAF_SPAN..bytes.end.div_ceil(LEAF_SPAN))
}

fn done(spans: &Spans, worker: u64, leaf: u64, written: u64) {
    let figures = SpanFigures { written, ..SpanFigures::default() };
    ask(spans, worker, SpanNow::Done { offset: leaf * LEAF_SPAN, figures });
}

/// Everything that the owner can have now.
fn rest(spans: &Spans) -> Vec<Range<u64>> {
    std::iter::from_fn(|| spans.next()).collect()
}

#[test]
fn alone_the_owner_has_everything_in_order() {
    let part = 100..9 * LEAF_SPAN + 1;
    assert_eq!(rest(&Spans::whole(&part)), [0..4, 4..8, 8..10]);
    assert_eq!(rest(&Spans::of(&part, 3)), [0..3, 3..6, 6..9, 9..10]);
    assert!(rest(&Spans::whole(&(5..5))).len() <= 1);
    assert!(rest(&Spans::whole(&(0..0))).is_empty());
}

#[tokio::test]
async fn the_owner_works_from_the_front_and_others_from_the_back() {
    let spans = Spans::of(&(100..5 * LEAF_SPAN + 7), 2);
    assert_eq!((spans.len(), spans.next()), (3, Some(0..2)));
    assert_eq!(ask(&spans, 7, SpanNow::Idle), Some(4 * LEAF_SPAN..5 * LEAF_SPAN + 7));
    assert_eq!(take(&spans, 7), Some(4..6), "an answer may get lost");
    assert_eq!(take(&spans, 8), Some(2..4));
    assert_eq!((take(&spans, 9), spans.next()), (None, None));
    assert!(!spans.want_help());
    let working = SpanNow::Working { offset: 4 * LEAF_SPAN, done: 5 };
    assert!(ask(&spans, 7, working.clone()).is_some() && ask(&spans, 8, working).is_none());
    assert_eq!(spans.helped_bytes(), 5);
    done(&spans, 7, 4, LEAF_SPAN + 7);
    done(&spans, 7, 4, LEAF_SPAN + 7);
    assert_eq!(spans.helped().written, LEAF_SPAN + 7, "it is counted once");
    done(&spans, 8, 2, 2 * LEAF_SPAN);
    assert!(!spans.more().await);
    assert_eq!(spans.helped_bytes(), 3 * LEAF_SPAN + 7);
}

#[tokio::test]
async fn what_others_leave_is_the_owners() {
    let spans = Spans::of(&(0..4 * LEAF_SPAN), 1);
    assert!(!spans.was_lent());
    assert_eq!((take(&spans, 1), take(&spans, 2), take(&spans, 3)), (Some(3..4), Some(2..3), Some(1..2)));
    ask(&spans, 1, SpanNow::Failed { offset: 3 * LEAF_SPAN, why: "no".into() });
    done(&spans, 2, 2, LEAF_SPAN - 1);
    assert_eq!(take(&spans, 2), Some(0..1), "and nobody else's");
    for _ in 0..SILENT_MAX {
        spans.age();
        ask(&spans, 2, SpanNow::Working { offset: 0, done: 0 });
    }
    assert_eq!(rest(&spans), [2..3, 3..4]);
    spans.age();
    assert!(spans.more().await);
    assert_eq!((spans.next(), spans.next()), (Some(1..2), None), "nobody spoke of it");
    done(&spans, 3, 1, LEAF_SPAN);
    assert_eq!(spans.helped().written, 0, "too late to count");
    assert!(spans.was_lent(), "they may have written, however little counts");
    spans.close();
    assert_eq!((take(&spans, 4), ask(&spans, 2, SpanNow::Working { offset: 0, done: 0 })), (None, None));
}

/// Or the owner would do the whole span again.
#[tokio::test]
async fn what_a_helper_took_from_the_target_itself_counts_as_written() {
    let spans = Spans::of(&(0..2 * LEAF_SPAN), 1);
    assert_eq!(take(&spans, 1), Some(1..2));
    let report = Report { written: LEAF_SPAN - 10, copied: 7, zeroed: 3, ..Report::default() };
    ask(&spans, 1, SpanNow::Done { offset: LEAF_SPAN, figures: figures(&report) });
    assert_eq!(rest(&spans), std::slice::from_ref(&(0..1)));
    assert_eq!((spans.helped().written, spans.helped().zeroed), (LEAF_SPAN - 3, 3));
}
