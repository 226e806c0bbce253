//! `cat`: what a snapshot holds, on standard output.

use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use agent::Failure;
use anyhow::Context;
use schema::messages::FailureKind;
use tokio::sync::mpsc;

use crate::app::App;
use crate::args::CatArgs;
use crate::embedded::Embedded;
use crate::{open, restore, select, settings};

/// `lvkeep cat`.
pub async fn run(app: &App, args: &CatArgs) -> anyhow::Result<()> {
    app.stop_on_signals()?;
    let work = Embedded::reading(app).await?;
    let written = cat(app, args, &work).await;
    work.finish().await;
    written
}

async fn cat(app: &App, args: &CatArgs, work: &Embedded) -> anyhow::Result<()> {
    let root = select::snapshot(&work.repository, &args.snapshot).await?;
    let range = match &args.range {
        Some(range) => parse(range)?,
        None => 0..root.size,
    };
    let identity = open::identity(&app.settings, work.repository.key.repo())?.map(Arc::new);
    let restorer = restore::make(app, work, identity);
    let volume = root.volume.clone();
    let (out, parts) = mpsc::channel(1);
    let writing = tokio::task::spawn_blocking(move || write(parts));
    let read = restorer.read(root, range, out, |_| {}).await;
    let written = writing.await.context("writing to standard output")?;
    read.with_context(|| format!("reading {volume}"))?;
    written
}

/// Writes what comes, until there is no more or nobody reads it.
fn write(mut parts: mpsc::Receiver<Vec<u8>>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    while let Some(part) = parts.blocking_recv() {
        match out.write_all(&part).and_then(|()| out.flush()) {
            Err(why) if why.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(|why| {
                Failure::new(FailureKind::Device, format!("cannot write to standard output: {why}"))
            })?,
        }
    }
    Ok(())
}

fn parse(text: &str) -> anyhow::Result<Range<u64>> {
    let Some((offset, length)) = text.split_once('+') else {
        let why = format!("--range {text:?}: write OFFSET+LENGTH, as in 1GiB+4KiB");
        return Err(Failure::refused(why).into());
    };
    let start = settings::parse_size("--range", offset)?;
    Ok(start..start.saturating_add(settings::parse_size("--range", length)?))
}
