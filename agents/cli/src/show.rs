//! `show` and `diff`: one snapshot, and what changed between two.

use agent::Failure;
use agent::maps::MapReader;
use schema::map::{Content, Leaf};
use schema::root::Root;
use serde::Serialize;

use crate::app::App;
use crate::args::{DiffArgs, FindChangeArgs, ShowArgs};
use crate::embedded::Embedded;
use crate::{select, settings, text};

/// Everything about a snapshot, as it is printed.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    id: String,
    key: String,
    parent: Option<String>,
    top: Option<String>,
    time: String,
    sealed: String,
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
    let root = select::snapshot(&repository, &args.snapshot).await?;
    let layout = schema::facts::unfolded(&root.layout);
    let shown = Shown {
        id: root.slot.session.to_string(),
        key: root.slot.snapshot(),
        parent: root.parent.map(|slot| slot.session.to_string()),
        top: root.top.map(|top| top.to_string()),
        time: text::rfc3339(root.time_ms),
        sealed: text::rfc3339(root.sealed_ms),
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
        format!("new         {} in {} of {} chunks", text::size(s.bytes_new), s.chunks_new, s.chunks),
        format!("stored      {}", text::size(s.bytes_stored)),
    ];
    lines.extend(text::tracking(&root.tracking).map(|tracking| format!("tracking    {tracking}")));
    lines.extend(root.group.as_ref().map(|group| format!("group       {group}")));
    if !root.tags.is_empty() {
        lines.push(format!("tags        {}", root.tags.join(", ")));
    }
    if root.changed_while_read {
        lines.push("the source CHANGED WHILE IT WAS READ: this snapshot is not of one moment".to_owned());
    }
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
    let work = Embedded::reading(app).await?;
    let a = select::snapshot(&work.repository, &args.a).await?;
    let b = select::snapshot(&work.repository, &args.b).await?;
    let map = |root| MapReader::new(work.repository.clone(), work.index.clone(), root);
    let (a, b) = (map(a)?, map(b)?);
    let ranges = changed(&a, &b).await?;
    work.finish().await;
    let bytes: u64 = ranges.iter().map(|range| range.len).sum();
    let value = serde_json::json!({ "ranges": ranges, "bytes": bytes });
    app.print(&value, || {
        let mut lines: Vec<String> =
            ranges.iter().map(|range| format!("{:>16}  {}", range.offset, text::size(range.len))).collect();
        lines.push(format!("{} changed in {} ranges", text::size(bytes), ranges.len()));
        lines.join("\n")
    })
}

/// The ranges in which two snapshots differ, as far as their maps tell; equal subtrees are not read.
async fn changed(a: &MapReader, b: &MapReader) -> Result<Vec<Range>, Failure> {
    let mut ranges: Vec<Range> = Vec::new();
    let mut add = |offset: u64, len: u64| match ranges.last_mut() {
        Some(last) if last.offset + last.len == offset => last.len += len,
        _ => ranges.push(Range { offset, len }),
    };
    let common = a.geometry().leaves().min(b.geometry().leaves());
    for leaf in 0..common {
        let (range_a, range_b) = (a.geometry().leaf_range(leaf), b.geometry().leaf_range(leaf));
        if range_a == range_b && a.leaf_id(leaf).await? == b.leaf_id(leaf).await? {
            continue;
        }
        for (offset, len) in compare(range_a.start, &a.leaf(leaf).await?, &b.leaf(leaf).await?) {
            add(offset, len);
        }
    }
    // What lies beyond the leaves of the shorter one is in the longer one alone.
    let (rest, end) = (common * schema::limits::LEAF_SPAN, a.geometry().size().max(b.geometry().size()));
    if rest < end && a.geometry().leaves() != b.geometry().leaves() {
        add(rest, end - rest);
    }
    Ok(ranges)
}

/// The runs of one leaf that differ: where no piece of both has the same place, length and content.
fn compare(start: u64, a: &Leaf, b: &Leaf) -> Vec<(u64, u64)> {
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
    bounds.windows(2).filter(|w| !same(w[0])).map(|w| (w[0], w[1] - w[0])).collect()
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
    let work = Embedded::reading(app).await?;
    let found = changes(&work, args).await;
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
        lines.push(format!("{} snapshots changed the range", found.len()));
        lines.join("\n")
    })
}

async fn changes(work: &Embedded, args: &FindChangeArgs) -> anyhow::Result<Vec<Changed>> {
    let offset = settings::parse_size("OFFSET", &args.offset)?;
    let length = settings::parse_size("--length", &args.length)?;
    let end = offset.saturating_add(length.max(1));
    let key = work.repository.key.volume_key(&args.volume);
    let roots = select::roots(&work.repository, Some(key)).await?;
    if roots.is_empty() {
        let why = format!("volume {:?} has no snapshot (`lvkeep snapshots` lists volumes)", args.volume);
        return Err(Failure::refused(why).into());
    }
    let mut found = Vec::new();
    let mut before: Option<Vec<Part>> = None;
    for root in roots {
        let map = MapReader::new(work.repository.clone(), work.index.clone(), root.clone())?;
        let now = parts(&map, offset, end).await?;
        let ranges = match &before {
            // In the first one all of it is new, as far as it has any.
            None => now.iter().map(|part| Range { offset: part.0, len: part.1 - part.0 }).collect(),
            Some(before) => differing(before, &now),
        };
        if !ranges.is_empty() {
            found.push(Changed {
                id: root.slot.session.to_string(),
                generation: root.generation,
                time: text::rfc3339(root.time_ms),
                ranges: joined(ranges),
            });
        }
        before = Some(now);
    }
    Ok(found)
}

/// What a snapshot holds between two offsets: from, to, and content with the place of its first byte.
type Part = (u64, u64, Content, u64);

/// The chunks that stand between two offsets, cut to them.
async fn parts(map: &MapReader, offset: u64, end: u64) -> Result<Vec<Part>, Failure> {
    let end = end.min(map.geometry().size());
    let mut parts = Vec::new();
    if offset >= end {
        return Ok(parts);
    }
    let (first, last) = (offset / schema::limits::LEAF_SPAN, (end - 1) / schema::limits::LEAF_SPAN);
    for leaf in first..=last {
        let start = map.geometry().leaf_range(leaf).start;
        for (at, piece) in map.leaf(leaf).await?.located(start) {
            let to = at + u64::from(piece.len);
            if at < end && to > offset {
                parts.push((at.max(offset), to.min(end), piece.content, at));
            }
        }
    }
    Ok(parts)
}

/// Where two lists of parts are not the same content at the same place. A chunk that was cut otherwise counts as changed:
/// the maps do not say more.
fn differing(before: &[Part], now: &[Part]) -> Vec<Range> {
    let mut bounds: Vec<u64> = before.iter().chain(now).flat_map(|part| [part.0, part.1]).collect();
    bounds.sort_unstable();
    bounds.dedup();
    let at = |parts: &[Part], offset: u64| {
        let part = parts.iter().find(|part| part.0 <= offset && offset < part.1)?;
        Some((part.2, if part.2 == Content::Zero { 0 } else { part.3 }))
    };
    let differ = |bound: &&[u64]| at(before, bound[0]) != at(now, bound[0]);
    bounds
        .windows(2)
        .filter(differ)
        .map(|bound| Range { offset: bound[0], len: bound[1] - bound[0] })
        .collect()
}

fn joined(ranges: Vec<Range>) -> Vec<Range> {
    let mut joined: Vec<Range> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.offset + last.len == range.offset => last.len += range.len,
            _ => joined.push(range),
        }
    }
    joined
}
