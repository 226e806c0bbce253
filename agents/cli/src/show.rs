//! `show`, `diff` and `find-change`: one snapshot, what changed between two, and when a range changed.
//!
//! Maps say that a chunk is another one, and not where in it something changed: so chunks are told whole, also where a
//! range was asked for that is a part of one.

use std::ops;

use agent::maps::MapReader;
use agent::{Failure, Roots, marks};
use indexer::Wish;
use schema::limits::LEAF_SPAN;
use schema::map::{Content, Geometry, Leaf};
use schema::root::Root;
use serde::Serialize;

use crate::app::App;
use crate::args::{DiffArgs, FindChangeArgs, ShowArgs};
use crate::embedded::Embedded;
use crate::{cat, holes, select, settings, text};

/// Everything about a snapshot, as it is printed.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    id: String,
    key: String,
    parent: Option<String>,
    top: Option<String>,
    /// What is marked as lost.
    holes: Vec<Range>,
    time: String,
    sealed: String,
    note: Option<String>,
    /// Why nothing forgets it.
    held: Option<String>,
    #[serde(flatten)]
    root: Fields<'a>,
}

#[derive(Debug, Serialize)]
struct Fields<'a> {
    volume: &'a str,
    host: &'a str,
    source: &'a str,
    generation: u64,
    size: u64,
    reading: String,
    group: Option<&'a str>,
    tags: &'a [String],
    changed_while_read: bool,
    layout: &'a std::collections::BTreeMap<String, String>,
    statistics: schema::root::Statistics,
    tracking: text::Tracked,
}

/// `lvkeep show`.
pub async fn show(app: &App, args: &ShowArgs) -> anyhow::Result<()> {
    let repository = app.repository().await?;
    let mut root = select::snapshot(&repository, &args.snapshot).await?;
    let marks = marks::of(&repository, root.slot).await?;
    let labels = marks.labels(&root);
    root.tags = labels.tags;
    let layout = schema::facts::unfolded(&root.layout);
    let shown = Shown {
        id: root.slot.session.to_string(),
        key: root.slot.snapshot(),
        parent: root.parent.map(|slot| slot.session.to_string()),
        top: root.top.map(|top| top.to_string()),
        holes: holes::of(&repository, root.slot).await?,
        time: text::rfc3339(root.time_ms),
        sealed: text::rfc3339(root.sealed_ms),
        note: labels.note,
        held: marks.why_held(),
        root: Fields {
            volume: &root.volume,
            host: &root.host,
            source: &root.source,
            generation: root.generation,
            size: root.size,
            reading: root.reading.to_string(),
            group: root.group.as_deref(),
            tags: &root.tags,
            changed_while_read: root.changed_while_read,
            layout: &layout,
            statistics: root.statistics,
            tracking: text::Tracked::from(&root.tracking),
        },
    };
    app.print(&shown, || describe(&root, &shown))
}

fn describe(root: &Root, shown: &Shown<'_>) -> String {
    let s = &root.statistics;
    let mut lines = vec![
        format!("snapshot    {}", shown.id),
        format!("volume      {}", root.volume),
        format!("source      {} on {}", root.source, root.host),
        format!("time        {} (sealed {})", text::time(root.time_ms), text::time(root.sealed_ms)),
        format!("size        {} ({} bytes)", text::size(root.size), root.size),
        format!("generation  {}, parent {}", root.generation, shown.parent.as_deref().unwrap_or("none")),
        format!("object      {}", shown.key),
        format!("map         {}", shown.top.as_deref().unwrap_or("all zeroes")),
        format!("read        {}", text::size(s.bytes_read)),
        format!("zero        {}", text::size(s.bytes_zero)),
        format!("known       {}", text::size(s.bytes_known)),
        format!(
            "new         {} in {} of {}",
            text::size(s.bytes_new),
            s.chunks_new,
            text::count(s.chunks, "chunk")
        ),
        format!("stored      {}", text::size(s.bytes_stored)),
    ];
    lines.extend(text::tracking(&root.tracking).map(|tracking| format!("tracking    {tracking}")));
    lines.extend(root.group.as_ref().map(|group| format!("group       {group}")));
    if !root.tags.is_empty() {
        lines.push(format!("tags        {}", root.tags.join(", ")));
    }
    lines.extend(shown.note.as_ref().map(|note| format!("note        {note}")));
    lines.extend(shown.held.as_ref().map(|why| format!("held        {why}")));
    if root.changed_while_read {
        lines.push("the source CHANGED WHILE IT WAS READ: this snapshot is not of one moment".to_owned());
    }
    let lost = |hole: &Range| format!("LOST        {} from offset {}", text::size(hole.len), hole.offset);
    lines.extend(shown.holes.iter().map(lost));
    let (long, short): (Vec<_>, Vec<_>) =
        shown.root.layout.iter().partition(|(_, value)| value.contains('\n'));
    lines.extend(short.iter().map(|(name, value)| format!("layout      {name} = {value}")));
    for (name, value) in long {
        lines.push(format!("layout      {name}:"));
        lines.extend(value.lines().map(|line| format!("            {line}")));
    }
    lines.join("\n")
}

/// A range that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Range {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// `lvkeep diff`.
pub async fn diff(app: &App, args: &DiffArgs) -> anyhow::Result<()> {
    app.stop_on_signals()?;
    let repository = app.repository().await?;
    let a = select::snapshot(&repository, &args.a).await?;
    let b = select::snapshot(&repository, &args.b).await?;
    let work = Embedded::reading(app, repository, &[Wish::map(a.clone()), Wish::map(b.clone())]).await?;
    let (a, b) = (map(&work, a)?, map(&work, b)?);
    let ranges = app.unless_stopped(changed(&a, &b, 0..u64::MAX)).await;
    work.finish().await;
    let ranges = ranges?;
    let bytes: u64 = ranges.iter().map(|range| range.len).sum();
    let value = serde_json::json!({ "ranges": ranges, "bytes": bytes });
    app.print(&value, || {
        let mut lines: Vec<String> =
            ranges.iter().map(|range| format!("{:>16}  {}", range.offset, text::size(range.len))).collect();
        let counted = text::count(ranges.len() as u64, "range");
        lines.push(format!("{} changed in {counted}", text::size(bytes)));
        lines.join("\n")
    })
}

fn map(work: &Embedded, root: Root) -> Result<MapReader, Failure> {
    Ok(MapReader::new(work.repository.clone(), work.index.clone(), root)?.thorough())
}

/// A run that differs.
#[derive(Debug, Clone, Copy)]
struct Run {
    offset: u64,
    len: u64,
    /// All of it does, and not only something in a chunk.
    is_exact: bool,
}

impl Run {
    fn exactly(offset: u64, len: u64) -> Self {
        Self { offset, len, is_exact: true }
    }
}

/// Ranges that differ, of what is looked at, neighbours joined.
#[derive(Debug)]
struct Differing {
    within: ops::Range<u64>,
    ranges: Vec<Range>,
}

impl Differing {
    /// Adds one that begins where the last one ends, or behind it: as a whole where only that is known of it, and else
    /// what of it is looked at.
    fn add(&mut self, run: Run) {
        let Run { offset, len, is_exact } = run;
        let (start, end) = (offset.max(self.within.start), (offset + len).min(self.within.end));
        if start >= end {
            return;
        }
        let (from, to) = if is_exact { (start, end) } else { (offset, offset + len) };
        match self.ranges.last_mut() {
            Some(last) if last.offset + last.len == from => last.len += to - from,
            _ => self.ranges.push(Range { offset: from, len: to - from }),
        }
    }
}

/// The ranges `within` which two snapshots differ, as far as their maps tell: a chunk that was cut otherwise counts as
/// changed. Equal subtrees, and leaves outside of the range, are not read.
async fn changed(a: &MapReader, b: &MapReader, within: ops::Range<u64>) -> Result<Vec<Range>, Failure> {
    let common = a.geometry().leaves().min(b.geometry().leaves());
    let leaves = Geometry::leaf_of(within.start)..within.end.div_ceil(LEAF_SPAN).min(common);
    let mut differing = Differing { within, ranges: Vec::new() };
    for leaf in leaves {
        let (range_a, range_b) = (a.geometry().leaf_range(leaf), b.geometry().leaf_range(leaf));
        if range_a == range_b && a.leaf_id(leaf).await? == b.leaf_id(leaf).await? {
            continue;
        }
        let runs = compare(range_a.start, &a.leaf(leaf).await?, &b.leaf(leaf).await?);
        runs.into_iter().for_each(|run| differing.add(run));
    }
    // What lies beyond the leaves of the shorter one is in the longer one alone.
    let (rest, end) = (common * LEAF_SPAN, a.geometry().size().max(b.geometry().size()));
    if rest < end && a.geometry().leaves() != b.geometry().leaves() {
        differing.add(Run::exactly(rest, end - rest));
    }
    Ok(differing.ranges)
}

/// The runs of one leaf that differ: where no piece of both has the same place, length and content.
fn compare(start: u64, a: &Leaf, b: &Leaf) -> Vec<Run> {
    let ends = |leaf: &Leaf| -> Vec<(u64, u64, Content)> {
        leaf.located(start)
            .map(|(offset, piece)| (offset, offset + u64::from(piece.len), piece.content))
            .collect()
    };
    let (a, b) = (ends(a), ends(b));
    let mut bounds: Vec<u64> = a.iter().chain(&b).flat_map(|(from, to, _)| [*from, *to]).collect();
    bounds.sort_unstable();
    bounds.dedup();
    let at = |pieces: &[(u64, u64, Content)], offset: u64| {
        let next = pieces.partition_point(|(_, to, _)| *to <= offset);
        pieces.get(next).filter(|(from, ..)| *from <= offset).copied()
    };
    let same = |offset: u64| match (at(&a, offset), at(&b, offset)) {
        (Some((_, _, Content::Zero)), Some((_, _, Content::Zero))) => true,
        (x, y) => x == y,
    };
    let is_chunk = |pieces: &[(u64, u64, Content)], offset: u64| {
        at(pieces, offset).is_some_and(|(.., content)| content != Content::Zero)
    };
    let run = |w: &[u64]| Run {
        offset: w[0],
        len: w[1] - w[0],
        is_exact: !is_chunk(&a, w[0]) && !is_chunk(&b, w[0]),
    };
    bounds.windows(2).filter(|w| !same(w[0])).map(run).collect()
}

/// A snapshot in which a range is other than in the one before.
#[derive(Debug, Serialize)]
struct Changed {
    id: String,
    generation: u64,
    time: String,
    ranges: Vec<Range>,
}

/// `lvkeep find-change`.
pub async fn find_change(app: &App, args: &FindChangeArgs) -> anyhow::Result<()> {
    app.stop_on_signals()?;
    let repository = app.repository().await?;
    let within = within(args)?;
    let offset = within.start;
    let found = select::roots(&repository, Some(repository.key.volume_key(&args.volume))).await?;
    let Roots { readable: roots, damaged } = found;
    if roots.is_empty() {
        let why = format!("volume {:?} has no snapshot (`lvkeep snapshots` lists volumes)", args.volume);
        return Err(Failure::refused(why).into());
    }
    check_within(&args.volume, offset, roots.iter().map(|root| root.size))?;
    let wish = |root: &Root| Wish { part: within.clone(), ..Wish::map(root.clone()) };
    let maps: Vec<Wish> = roots.iter().map(wish).collect();
    let work = Embedded::reading(app, repository, &maps).await?;
    let found = app.unless_stopped(changes(&work, roots, within)).await;
    work.finish().await;
    let found = found?;
    app.print(&found, || {
        let lines = found.iter().map(|one| {
            let ranges = one.ranges.iter().map(|range| format!("{}+{}", range.offset, range.len));
            format!(
                "{}  {:>5}  {}  {}",
                one.id,
                one.generation,
                one.time,
                ranges.collect::<Vec<_>>().join(" ")
            )
        });
        let mut lines: Vec<String> = lines.collect();
        lines.push(format!("{} changed a chunk of the range", text::count(found.len() as u64, "snapshot")));
        lines.join("\n")
    })?;
    select::conclude(app, &damaged)
}

/// The range that is asked about.
fn within(args: &FindChangeArgs) -> anyhow::Result<ops::Range<u64>> {
    let ops::Range { start, end } = match (args.offset.contains('+'), &args.length) {
        (true, None) => cat::parse(&args.offset)?,
        (true, Some(_)) => {
            let why = format!("{} says how long the range is: leave --length out", args.offset);
            return Err(Failure::refused(why).into());
        }
        (false, length) => {
            let start = settings::parse_size("OFFSET", &args.offset)?;
            let length = length.as_deref().unwrap_or("4KiB");
            start..start.saturating_add(settings::parse_size("--length", length)?)
        }
    };
    Ok(start..end.max(start.saturating_add(1)))
}

/// What lies behind the end of all snapshots never changed, which is no answer to a question that is mistyped.
fn check_within(volume: &str, offset: u64, sizes: impl Iterator<Item = u64>) -> Result<(), Failure> {
    match sizes.max() {
        Some(most) if offset >= most => Err(Failure::refused(format!(
            "{volume} has nothing at offset {offset}: its largest snapshot has {most} bytes"
        ))),
        _ => Ok(()),
    }
}

async fn changes(
    work: &Embedded,
    roots: Vec<Root>,
    within: ops::Range<u64>,
) -> Result<Vec<Changed>, Failure> {
    let mut found = Vec::new();
    let mut before: Option<MapReader> = None;
    for root in roots {
        let now = map(work, root)?;
        let ranges = match &before {
            // In the first one all of it is new, as far as it has any.
            None => {
                let mut all = Differing { within: within.clone(), ranges: Vec::new() };
                all.add(Run::exactly(0, now.geometry().size()));
                all.ranges
            }
            Some(before) => changed(before, &now, within.clone()).await?,
        };
        if !ranges.is_empty() {
            let root = now.root();
            found.push(Changed {
                id: root.slot.session.to_string(),
                generation: root.generation,
                time: text::rfc3339(root.time_ms),
                ranges,
            });
        }
        before = Some(now);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use schema::ChunkId;
    use schema::map::Piece;

    use super::*;

    const KIB: u64 = 1 << 10;

    /// A leaf of chunks of 4 KiB with these first bytes of their ids; 0 is zeroes.
    fn leaf(chunks: &[u8]) -> Leaf {
        let pieces = chunks.iter().map(|chunk| {
            let content = match chunk {
                0 => Content::Zero,
                chunk => {
                    let mut id = [*chunk; 33];
                    id[0] = schema::Domain::Data as u8;
                    Content::Chunk(ChunkId::parse(&id).unwrap())
                }
            };
            Piece { len: 4096, content }
        });
        Leaf::new(4096 * chunks.len() as u64, pieces).unwrap()
    }

    fn found(within: ops::Range<u64>, a: &Leaf, b: &Leaf) -> Vec<(u64, u64)> {
        let mut differing = Differing { within, ranges: Vec::new() };
        compare(LEAF_SPAN, a, b).into_iter().for_each(|run| differing.add(run));
        differing.ranges.iter().map(|range| (range.offset - LEAF_SPAN, range.len)).collect()
    }

    #[test]
    fn what_lies_behind_every_snapshot_is_refused() {
        let check = |offset, sizes: &[u64]| check_within("vm", offset, sizes.iter().copied());
        assert!(check(9, &[10, 5]).is_ok());
        let why = check(10, &[5, 10]).unwrap_err().why;
        assert!(why.contains("vm has nothing at offset 10") && why.contains("10 bytes"), "{why}");
    }

    #[test]
    fn what_differs_is_joined_and_chunks_are_told_whole() {
        let (a, b) = (leaf(&[1, 2, 3, 0, 0, 4, 5]), leaf(&[1, 9, 8, 0, 7, 4]));
        let at = |offset: u64| LEAF_SPAN + offset;
        for (within, expected) in [
            (0..u64::MAX, vec![(4 * KIB, 8 * KIB), (16 * KIB, 4 * KIB), (24 * KIB, 4 * KIB)]),
            (at(0)..at(4 * KIB), vec![]),
            (at(5 * KIB)..at(5 * KIB + 1), vec![(4 * KIB, 4 * KIB)]),
            (at(7 * KIB)..at(17 * KIB), vec![(4 * KIB, 8 * KIB), (16 * KIB, 4 * KIB)]),
            (at(27 * KIB)..at(99 * KIB), vec![(24 * KIB, 4 * KIB)]),
            (at(28 * KIB)..at(99 * KIB), vec![]),
        ] {
            assert_eq!(found(within.clone(), &a, &b), expected, "{within:?}");
            assert_eq!(found(within.clone(), &b, &a), expected, "{within:?}");
            assert_eq!(found(within, &a, &a), vec![]);
        }
        let (longer, shorter) = (leaf(&[1, 0, 0]), leaf(&[1, 0]));
        assert_eq!(found(at(9 * KIB)..at(10 * KIB), &longer, &shorter), [(9 * KIB, KIB)], "zeroes are exact");
    }
}
