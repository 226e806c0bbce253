//! What snapshots lack, for people: a volume, why, which of its snapshots, and at which offsets. Those that lack the same are
//! told together. Chunks are many, and of no use to whoever reads: they are named only where details are wanted.

use std::collections::{BTreeMap, BTreeSet};

use super::Damaged;
use crate::text;

/// Ranges that are printed of a snapshot; `--json` has all.
const SHOWN: usize = 10;
/// Reasons that are printed of a volume.
const REASONS: usize = 10;
/// What is said of a copy that an earlier check has found, whatever it has found.
const RECORDED: &str = "it is recorded as damaged";

/// The lines of all snapshots that are damaged.
pub(super) fn lines(damaged: &[Damaged], is_verbose: bool) -> Vec<String> {
    let mut volumes: BTreeMap<&str, Vec<&Damaged>> = BTreeMap::new();
    damaged.iter().for_each(|one| volumes.entry(&one.volume).or_default().push(one));
    volumes.into_iter().flat_map(|(volume, snapshots)| of_volume(volume, &snapshots, is_verbose)).collect()
}

fn of_volume(volume: &str, snapshots: &[&Damaged], is_verbose: bool) -> Vec<String> {
    let counted = text::count(snapshots.len() as u64, "snapshot");
    let mut lines = vec![format!("DAMAGED {volume}: {counted}: {}", ids(snapshots))];
    match is_verbose {
        true => {
            let all: BTreeSet<&String> = snapshots.iter().flat_map(|one| &one.problems).collect();
            lines.extend(all.into_iter().map(|problem| format!("  {problem}")));
        }
        false => lines.extend(reasons(snapshots)),
    }
    let mut alike: Vec<(&Damaged, Vec<&Damaged>)> = Vec::new();
    let is_same = |a: &Damaged, b: &Damaged| {
        (a.bytes_lost, a.lost_is_cut, &a.lost) == (b.bytes_lost, b.lost_is_cut, &b.lost)
    };
    for one in snapshots.iter().filter(|one| one.lost_is_cut || !one.lost.is_empty()) {
        match alike.iter_mut().find(|(first, _)| is_same(first, one)) {
            Some((_, same)) => same.push(one),
            None => alike.push((one, vec![one])),
        }
    }
    for (first, same) in alike {
        let whose = match (same.len() == snapshots.len(), same.len()) {
            (true, 1) => "it".to_owned(),
            (true, _) => "each".to_owned(),
            (false, _) => ids(&same),
        };
        let size = text::size(first.bytes_lost);
        lines.push(match first.lost_is_cut {
            true => format!(
                "  {size} at least of {whose} cannot be read; so much is damaged that not all ranges are listed"
            ),
            false => format!("  {size} of {whose} cannot be read, by offset:"),
        });
        let shown = first.lost.iter().take(SHOWN);
        lines.extend(shown.map(|range| format!("{:>18}  {}", range.offset, text::size(range.len))));
        let more = first.lost.len().saturating_sub(SHOWN) as u64;
        if more > 0 {
            lines.push(format!("  and {} more (--json has all)", text::count(more, "range")));
        }
    }
    lines
}

fn ids(snapshots: &[&Damaged]) -> String {
    let ids: Vec<&str> = snapshots.iter().map(|one| one.snapshot.as_str()).collect();
    ids.join(", ")
}

/// Why, each reason once. Where a copy was looked at now, that it was recorded before says nothing.
fn reasons(snapshots: &[&Damaged]) -> Vec<String> {
    let (mut copies, mut others) = (BTreeMap::<String, String>::new(), BTreeSet::new());
    for problem in snapshots.iter().flat_map(|one| &one.problems) {
        let Some(why) = of_chunk(problem) else {
            // How many more there are is in the ranges.
            if !problem.starts_with("and ") {
                others.insert(without_chunk(problem));
            }
            continue;
        };
        let Some(copies_of) = why.strip_prefix("has no readable copy: ") else {
            others.insert(format!("what is lost {why}: nothing of it is left, or its pack is gone"));
            continue;
        };
        for (pack, why) in copies_of.split("; ").filter_map(|copy| copy.split_once(": ")) {
            let said = copies.entry(pack.to_owned()).or_insert_with(|| why.to_owned());
            if said == RECORDED {
                why.clone_into(said);
            }
        }
    }
    let all: Vec<String> =
        others.into_iter().chain(copies.into_iter().map(|(pack, why)| format!("{pack}: {why}"))).collect();
    let more = all.len().saturating_sub(REASONS) as u64;
    let more = (more > 0).then(|| format!("  and {} more (-v names all)", text::count(more, "reason")));
    all.into_iter().take(REASONS).map(|why| format!("  {why}")).chain(more).collect()
}

/// What is said of a chunk of content.
fn of_chunk(problem: &str) -> Option<&str> {
    let (at, chunk) = problem.strip_prefix("offset ")?.split_once(": chunk ")?;
    at.parse::<u64>().ok()?;
    chunk.split_once(' ').map(|(_, why)| why)
}

/// What is wrong with an object, in which a chunk is one of many.
pub(super) fn without_name(why: &str) -> String {
    let named = why.strip_prefix("chunk ").and_then(|rest| rest.split_once(": "));
    match named.filter(|(id, _)| id.chars().all(|one| one.is_ascii_hexdigit())) {
        Some((_, why)) => format!("a chunk in it: {why}"),
        None => why.to_owned(),
    }
}

/// A part of a map is told by its offsets.
fn without_chunk(problem: &str) -> String {
    match problem.split_once(": chunk ") {
        Some((of, chunk)) => format!("{of} {}", chunk.split_once(' ').map_or(chunk, |(_, why)| why)),
        None => problem.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::Range;

    fn damaged(snapshot: &str, volume: &str, lost: &[(u64, u64)], problems: &[&str]) -> Damaged {
        Damaged {
            snapshot: snapshot.into(),
            volume: volume.into(),
            bytes_lost: lost.iter().map(|(_, len)| len).sum(),
            lost: lost.iter().map(|&(offset, len)| Range { offset, len }).collect(),
            lost_is_cut: false,
            problems: problems.iter().map(|&problem| problem.to_owned()).collect(),
        }
    }

    #[test]
    fn of_an_object_a_chunk_needs_no_name() {
        assert_eq!(without_name("chunk d0ab: it is torn"), "a chunk in it: it is torn");
        for why in ["chunk of a pack: no", "its footer is torn; 4 chunks in it", "chunk d0ab"] {
            assert_eq!(without_name(why), why);
        }
    }

    #[test]
    fn where_ranges_are_left_out_that_is_said() {
        let cut = Damaged { bytes_lost: 5 << 20, lost_is_cut: true, ..damaged("S", "vm/a", &[], &[]) };
        let told = lines(&[cut], false);
        assert_eq!(
            told[1],
            "  5.0 MiB at least of it cannot be read; so much is damaged that not all ranges are listed"
        );
    }

    /// One damaged chunk in many snapshots is told once, and a chunk's name to nobody who does not ask.
    #[test]
    fn what_many_snapshots_lack_alike_is_told_once() {
        let recorded = "offset 4096: chunk d0ab has no readable copy: packs/1/A: it is recorded as damaged";
        let unread = "offset 4096: chunk d0ab has no readable copy: packs/1/A: its frame cannot be read";
        let mut all: Vec<Damaged> = (0..7)
            .map(|n| damaged(&format!("S{n}"), "vm/a", &[(4096, 1 << 20)], &[recorded, unread]))
            .collect();
        let expected = [
            "DAMAGED vm/a: 7 snapshots: S0, S1, S2, S3, S4, S5, S6",
            "  packs/1/A: its frame cannot be read",
            "  1.0 MiB of each cannot be read, by offset:",
            "              4096  1.0 MiB",
        ];
        assert_eq!(lines(&all, false), expected);
        let told = lines(&all, true);
        assert_eq!(told.iter().filter(|line| line.contains("chunk d0ab")).count(), 2, "{told:?}");

        let map =
            "the map of offsets 0 to 67108864: chunk e1 has no readable copy: packs/2/B: the pack is missing";
        let gone = ["offset 0: chunk d1 is in no pack", "offset 9: chunk d2 is in no pack", "and 30 more"];
        all.truncate(1);
        all.push(damaged("T0", "vm/b", &[(0, 4096)], &gone));
        all.push(damaged("T1", "vm/b", &[(0, 67_108_864)], &[map]));
        all.push(damaged("T2", "vm/b", &[], &["snapshots/x: it is cut off"]));
        let told = lines(&all, false).join("\n");
        for said in [
            "DAMAGED vm/a: 1 snapshot: S0",
            "1.0 MiB of it cannot be read",
            "DAMAGED vm/b: 3 snapshots: T0, T1, T2",
            "  the map of offsets 0 to 67108864 has no readable copy: packs/2/B: the pack is missing",
            "  snapshots/x: it is cut off",
            "  what is lost is in no pack",
            "  4.0 KiB of T0 cannot be read",
            "  64.0 MiB of T1 cannot be read",
        ] {
            assert!(told.contains(said), "{said}: {told}");
        }
        assert_eq!(told.matches("is in no pack").count(), 1, "{told}");
        assert!(!told.contains("chunk ") && !told.contains("30 more"), "{told}");
    }
}
