//! Which leaves are read, of those listed and those still wanted.

use schema::limits::LEAF_SPAN;

use super::*;

fn runs(listed: Option<&[u64]>, force: bool, answer: Option<&Wanted>) -> Vec<(u64, u64, bool)> {
    let geometry = Geometry::new(10 * LEAF_SPAN - 5).unwrap();
    let runs = wanted(listed, force, answer, geometry).unwrap();
    runs.into_iter().map(|run| (run.leaves.start, run.leaves.end, run.force)).collect()
}

fn answer(leaves: &[(u64, u64)], forced: &[(u64, u64)]) -> Wanted {
    Wanted { over: false, leaves: leaves.to_vec(), forced: forced.to_vec(), whole: Vec::new() }
}

#[test]
fn without_an_answer_the_request_is_served_as_it_stands() {
    assert_eq!(runs(None, false, None), [(0, 10, false)]);
    assert_eq!(runs(Some(&[]), true, None), []);
    assert_eq!(runs(Some(&[4, 2, 3, 9, 2]), true, None), [(2, 5, true), (9, 10, true)]);
    let geometry = Geometry::new(10 * LEAF_SPAN).unwrap();
    let refused = wanted(Some(&[3, 10]), false, None, geometry).unwrap_err();
    assert!(refused.why.contains("leaf 10"), "{refused}");
}

#[test]
fn what_is_not_wanted_any_more_is_not_read() {
    assert_eq!(runs(None, true, Some(&answer(&[], &[]))), []);
    assert_eq!(
        runs(None, false, Some(&answer(&[(3, 2), (8, u64::MAX)], &[]))),
        [(3, 5, false), (8, 10, false)]
    );
    let some = answer(&[(0, 3), (5, 2)], &[(4, 1), (8, 1)]);
    assert_eq!(runs(Some(&[2, 4, 6, 7]), true, Some(&some)), [(2, 3, false), (4, 5, true), (6, 7, false)]);
    assert_eq!(runs(Some(&[9]), true, Some(&answer(&[(u64::MAX, u64::MAX)], &[(2, 7)]))), []);
}
