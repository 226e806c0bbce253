//! `verify`: a target against a snapshot, or a snapshot against the repository.

use std::ops;
use std::sync::Arc;

use anyhow::Context;
use indexer::Wish;
use restorer::Differences;
use schema::root::Root;
use serde::Serialize;

use crate::app::App;
use crate::args::VerifyArgs;
use crate::embedded::Embedded;
use crate::exit::Differs;
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
    let identity = match range {
        Some(_) => restore::identity(app, work)?,
        None => None,
    };
    let restorer = restore::make(app, work, identity);
    let part = range.unwrap_or(0..root.size);
    let display = Display::new(app);
    let bar = display.bar(&root.volume);
    let comparing = restorer.compare_range(root.clone(), &path, part.clone(), |p| bar.set(p.done, p.total));
    let compared = comparing.await;
    bar.finish();
    let differences = compared.with_context(|| format!("comparing {target} with {}", root.volume))?;
    let compared = Compared::new(root, &part, target, &differences);
    app.print(&compared, || compared.text())?;
    match differences.first.into_iter().next() {
        None => Ok(()),
        Some(first) => Err(Differs { target: target.to_owned(), volume: root.volume.clone(), first }.into()),
    }
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
        }
    }

    /// The same for people.
    pub fn text(&self) -> String {
        let head = format!("{} @ {}: {}", self.volume, self.snapshot, self.target);
        if self.bytes_differing == 0 {
            return format!("{head} is the same ({})", text::size(self.size));
        }
        let shown = self.first_differences.iter().take(SHOWN);
        let mut lines = vec![head];
        lines.extend(shown.map(|range| format!("{:>16}  {}", range.offset, text::size(range.len))));
        if self.first_differences.len() > SHOWN {
            lines.push("             ...".to_owned());
        }
        lines.push(format!("{} in chunks that DIFFER", text::size(self.bytes_differing)));
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
