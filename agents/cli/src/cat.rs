//! `cat`: what a snapshot holds, on standard output.

use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use agent::{Failure, Stop};
use anyhow::Context;
use indexer::Wish;
use schema::messages::FailureKind;
use schema::root::Root;
use tokio::sync::{mpsc, oneshot};

use crate::app::App;
use crate::args::CatArgs;
use crate::embedded::{Embedded, interrupted};
use crate::{open, restore, select, settings};

/// `lvkeep cat`.
pub async fn run(app: &App, args: &CatArgs) -> anyhow::Result<()> {
    app.stop_on_signals()?;
    let repository = app.repository().await?;
    let root = select::snapshot(&repository, &args.snapshot).await?;
    let part = match &args.range {
        Some(range) => parse(range)?,
        None => 0..root.size,
    };
    let wish = Wish { root, part, content: true };
    let work = Embedded::reading(app, repository, std::slice::from_ref(&wish)).await?;
    let written = cat(app, wish.root, wish.part, &work).await;
    work.finish().await;
    written
}

async fn cat(app: &App, root: Root, range: Range<u64>, work: &Embedded) -> anyhow::Result<()> {
    let identity = open::identity(&app.settings, work.repository.key.repo())?.map(Arc::new);
    let restorer = restore::make(app, work, identity);
    let volume = root.volume.clone();
    let (out, parts) = mpsc::channel(1);
    let (read, written) = tokio::join!(restorer.read(root, range, out, |_| {}), write_all(parts, &app.stop));
    read.with_context(|| format!("reading {volume}"))?;
    written.with_context(|| format!("writing {volume}"))
}

/// Writes what comes, until there is no more, nobody reads it, or the process is to stop. A write may wait for ever for
/// whoever reads: it has a thread of its own, which ends with the process.
async fn write_all(mut parts: mpsc::Receiver<Vec<u8>>, stop: &Stop) -> anyhow::Result<()> {
    let (out, waiting) = mpsc::channel(1);
    let (end, ended) = oneshot::channel();
    let writing = move || drop(end.send(write(waiting)));
    std::thread::Builder::new().name("output".to_owned()).spawn(writing).context("starting a thread")?;
    let handed_on = async {
        hand_on(&mut parts, out).await;
        ended.await
    };
    tokio::select! {
        written = handed_on => written.context("the thread that writes ended")?,
        () = stop.raised() => {
            // The restorer ends by itself, once it is rid of what it has read.
            while parts.recv().await.is_some() {}
            Err(interrupted().into())
        }
    }
}

/// Hands parts on, until there are no more or nobody takes them.
async fn hand_on(parts: &mut mpsc::Receiver<Vec<u8>>, out: mpsc::Sender<Vec<u8>>) {
    while let Ok(room) = out.reserve().await
        && let Some(part) = parts.recv().await
    {
        room.send(part);
    }
    parts.close();
}

/// Writes parts to standard output. Blocks.
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

/// A range as OFFSET+LENGTH.
pub fn parse(text: &str) -> Result<Range<u64>, Failure> {
    range_of(text).map_err(|why| Failure::refused(format!("--range {text:?}: {why}")))
}

/// The same of an option that is named already.
pub fn range_of(text: &str) -> Result<Range<u64>, String> {
    let (offset, length) = text.split_once('+').ok_or("write OFFSET+LENGTH, as in 1GiB+4KiB")?;
    let start = settings::size_of(offset)?;
    Ok(start..start.saturating_add(settings::size_of(length)?))
}
