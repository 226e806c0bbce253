//! `verify`: a target against a snapshot, or a snapshot against the repository.

use std::io::{Seek, SeekFrom};
use std::ops;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use indexer::Wish;
use restorer::Differences;
use schema::root::Root;
use serde::Serialize;

use crate::app::App;
use crate::args::VerifyArgs;
use crate::embedded::Embedded;
use crate::exit::{Differs, Shorter};
use crate::progress::Display;
use crate::show::Range;
use crate::{cat, open, restore, select, text};

/// Ranges that are printed for people; `--json` has all that were found.
const SHOWN: usize = 10;

/// What was found, as it is printed.
#[derive(Debug, Serialize)]
pub struct Compared {
    snapshot: String,
    volume: String,
    target: String,
    size: u64,
    bytes_differing: u64,
    first_differences: Vec<Range>,
    /// Bytes that the target has behind the snapshot's end.
    bytes_beyond: u64,
}

#[derive(Debug, Serialize)]
struct Readable {
    snapshot: String,
    volume: String,
    size: u64,
    chunks: u64,
    chunks_rescued: u64,
}

/// `lvkeep verify`.
pub async fn run(app: &App, args: &VerifyArgs) -> anyhow::Result<()> {
    app.stop_on_signals()?;
    let repository = app.repository().await?;
    let root = select::snapshot(&repository, &args.snapshot).await?;
    let range = args.range.as_deref().map(cat::parse).transpose()?;
    // Comparing whole chunks needs no content of the repository's, and thus no identity.
    let (content, all) = (args.target.is_none() || range.is_some(), 0..root.size);
    let part = range.clone().unwrap_or(all);
    let wish = Wish { content, part, ..Wish::all(root.clone()) };
    let work = Embedded::reading(app, repository, &[wish]).await?;
    let verified = match &args.target {
        Some(target) => compare(app, &work, &root, target, range).await,
        None => read(app, &work, &root).await,
    };
    work.finish().await;
    verified
}

/// Compares a target with a snapshot, prints what was found, and fails when something differs.
async fn compare(
    app: &App,
    work: &Embedded,
    root: &Root,
    target: &str,
    range: Option<ops::Range<u64>>,
) -> anyhow::Result<()> {
    let path = restore::path(target)?;
    let (has, size) = (length(&path), range.as_ref().map_or(root.size, |range| range.end));
    if let Some(has) = has.filter(|has| *has < size && size <= root.size) {
        return shorter(app, root, target, has, range.unwrap_or(0..size));
    }
    let identity = match range {
        Some(_) => restore::identity(app, work)?,
        None => None,
    };
    let restorer = restore::make(app, work, identity);
    let beyond = range.is_none().then_some(has).flatten().map_or(0, |has| has - size);
    let part = range.unwrap_or(0..root.size);
    let display = Display::new(app);
    let bar = display.bar(&root.volume);
    let comparing = restorer.compare_range(root.clone(), &path, part.clone(), |p| bar.set(p.done, p.total));
    let compared = comparing.await;
    bar.finish();
    let differences = compared.with_context(|| format!("comparing {target} with {}", root.volume))?;
    let compared = Compared { bytes_beyond: beyond, ..Compared::new(root, &part, target, &differences) };
    app.print(&compared, || compared.text())?;
    match differences.first.into_iter().next() {
        None => Ok(()),
        Some(first) => Err(Differs { target: target.to_owned(), volume: root.volume.clone(), first }.into()),
    }
}

/// The bytes of a file or device, as far as they can be told: what cannot be opened is said by whoever compares.
fn length(path: &Path) -> Option<u64> {
    let kind = std::fs::metadata(path).ok()?.file_type();
    // Opening anything else may do something already.
    let opened = (kind.is_file() || kind.is_block_device()).then(|| std::fs::File::open(path).ok()).flatten();
    opened?.seek(SeekFrom::End(0)).ok()
}

/// What of a target is missing differs, and nothing has to be read for that.
fn shorter(app: &App, root: &Root, target: &str, has: u64, part: ops::Range<u64>) -> anyhow::Result<()> {
    let offset = has.max(part.start);
    let missing = Range { offset, len: part.end - offset };
    let compared = Compared {
        bytes_differing: missing.len,
        first_differences: vec![missing],
        ..Compared::new(root, &part, target, &Differences::default())
    };
    app.print(&compared, || {
        format!(
            "{} @ {}: {target} ends at {has}: {} bytes from {offset} on are MISSING; the rest was not compared",
            root.volume, root.slot.session, missing.len
        )
    })?;
    let (target, volume) = (target.to_owned(), root.volume.clone());
    Err(Shorter { target, volume, has, size: part.end }.into())
}

impl Compared {
    /// This part of a target was compared with a snapshot.
    pub fn new(root: &Root, part: &ops::Range<u64>, target: &str, differences: &Differences) -> Self {
        let range = |range: &ops::Range<u64>| Range { offset: range.start, len: range.end - range.start };
        Self {
            snapshot: root.slot.session.to_string(),
            volume: root.volume.clone(),
            target: target.to_owned(),
            size: part.end - part.start,
            bytes_differing: differences.bytes,
            first_differences: differences.first.iter().map(range).collect(),
            bytes_beyond: 0,
        }
    }

    /// The same for people.
    pub fn text(&self) -> String {
        let head = format!("{} @ {}: {}", self.volume, self.snapshot, self.target);
        let beyond = match self.bytes_beyond {
            0 => String::new(),
            bytes => format!("\n  {bytes} bytes behind its end were not compared"),
        };
        if self.bytes_differing == 0 {
            return format!("{head} is the same ({}){beyond}", text::size(self.size));
        }
        let shown = self.first_differences.iter().take(SHOWN);
        let mut lines = vec![head];
        lines.extend(shown.map(|range| format!("{:>16}  {}", range.offset, text::size(range.len))));
        if self.first_differences.len() > SHOWN {
            lines.push("             ...".to_owned());
        }
        lines.push(format!("{} in chunks that DIFFER{beyond}", text::size(self.bytes_differing)));
        lines.join("\n")
    }
}

async fn read(app: &App, work: &Embedded, root: &Root) -> anyhow::Result<()> {
    let identity = open::identity(&app.settings, work.repository.key.repo())?.map(Arc::new);
    let restorer = restore::make(app, work, identity);
    let display = Display::new(app);
    let bar = display.bar(&root.volume);
    let read = restorer.verify_readable(root.clone(), |p| bar.set(p.done, p.total)).await;
    bar.finish();
    let report = read.with_context(|| format!("reading {}", root.volume))?;
    let readable = Readable {
        snapshot: root.slot.session.to_string(),
        volume: root.volume.clone(),
        size: root.size,
        chunks: report.chunks,
        chunks_rescued: report.rescued,
    };
    app.print(&readable, || {
        let mut text = format!(
            "{} @ {}: all {} can be read ({} chunks)",
            readable.volume,
            readable.snapshot,
            text::size(readable.size),
            readable.chunks
        );
        if readable.chunks_rescued > 0 {
            text.push_str(&format!(
                "\n  {} chunks had a damaged or missing copy and were read from another: run `lvkeep check`",
                readable.chunks_rescued
            ));
        }
        text
    })
}
