//! `apply`: a stream of changes, from a file or from whoever sends one, to a device or file.

use std::path::Path;

use agent::Failure;
use anyhow::Context;
use schema::messages::FailureKind;
use schema::stream::{Applied, Format, Reply};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncSeekExt};
use volume_lvm::changes::Tracker;
use volume_lvm::stream::apply::PATIENCE;
use volume_lvm::stream::{Apply, Host, Keep, Target};
use volume_lvm::tools::Tools;

use crate::app::App;
use crate::args::{ApplyArgs, InputFormat};
use crate::lvm::Hold;
use crate::progress::Display;
use crate::text;

/// What was applied, as it is printed.
#[derive(Debug, Serialize)]
struct Done {
    stream: String,
    target: String,
    bytes_written: u64,
    bytes_zeroed: u64,
    bytes_saved: u64,
    snapback: Option<String>,
    seconds: f64,
}

/// The logical volumes of this host, for streams.
pub fn host(app: &App) -> anyhow::Result<Host> {
    let tools = Tools::new();
    let state = app.settings.lvm.value.settings(&Hold::default())?.state;
    Ok(Host::new(tools.clone(), Tracker::new(tools, state)))
}

/// `lvkeep apply`.
pub async fn run(app: &App, args: &ApplyArgs) -> anyhow::Result<()> {
    app.stop_on_signals()?;
    let started = app.environment.elapsed();
    let target = match host(app)?.target(&args.target).await {
        Ok(target) => target,
        Err(failure) => {
            if args.answers {
                let Failure { kind, retry, why } = failure.clone();
                tell(&Reply::Failed { kind, again: retry, why });
            }
            return Err(failure.into());
        }
    };
    let how = how(app, args);
    let display = Display::new(app);
    let bar = display.bar(&args.target);
    let applied = if args.stream == "-" {
        let progress =
            |applied: &Applied| bar.set(applied.written + applied.zeroed, applied.written + applied.zeroed);
        how.run(tokio::io::stdin(), tokio::io::stdout(), target, progress).await
    } else {
        let (file, len) = open(&args.stream).await?;
        let mut file = checked(&how, file, &target).await.with_context(|| args.stream.clone())?;
        file.rewind().await?;
        let progress = |applied: &Applied| bar.set((applied.written + applied.zeroed).min(len), len);
        how.run(file, tokio::io::sink(), target, progress).await
    };
    bar.finish();
    let applied =
        applied.map_err(|failure| failure.context(format!("applying {} to {}", args.stream, args.target)))?;
    if args.answers {
        return Ok(());
    }
    print(app, args, &applied, app.environment.elapsed().saturating_sub(started).as_secs_f64())
}

/// A file is read to its end before the first byte of it is applied.
async fn checked(how: &Apply, mut file: tokio::fs::File, target: &Target) -> anyhow::Result<tokio::fs::File> {
    how.check(&mut file as &mut (dyn AsyncRead + Unpin + Send), target).await?;
    Ok(file)
}

fn how(app: &App, args: &ApplyArgs) -> Apply {
    let (only, kept) = match args.format {
        InputFormat::Auto => (None, Format::Native),
        InputFormat::Native => (Some(Format::Native), Format::Native),
        InputFormat::Lvmsync => (Some(Format::Lvmsync), Format::Lvmsync),
    };
    Apply {
        only,
        keep: args.snapback.clone().map(|path| Keep { path, format: kept }),
        unfinished: args.unfinished,
        answers: args.answers,
        reconnected: args.reconnected,
        patience: args.answers.then_some(PATIENCE),
        ..Apply::new(app.stop.clone(), app.environment.clone())
    }
}

async fn open(path: &str) -> anyhow::Result<(tokio::fs::File, u64)> {
    let opened = async {
        let file = tokio::fs::File::open(path).await?;
        let len = file.metadata().await?.len();
        Ok::<_, std::io::Error>((file, len))
    };
    let cannot =
        |why| Failure::new(FailureKind::Device, format!("cannot open {}: {why}", Path::new(path).display()));
    Ok(opened.await.map_err(cannot)?)
}

/// One answer to whoever sends; nobody may be there any more.
fn tell(reply: &Reply) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{reply}");
}

fn print(app: &App, args: &ApplyArgs, applied: &Applied, seconds: f64) -> anyhow::Result<()> {
    let done = Done {
        stream: args.stream.clone(),
        target: args.target.clone(),
        bytes_written: applied.written,
        bytes_zeroed: applied.zeroed,
        bytes_saved: applied.saved,
        snapback: args.snapback.as_ref().map(|path| path.display().to_string()),
        seconds,
    };
    app.print(&done, || {
        let mut words = format!(
            "{} applied to {}\n  written {}, zero {}  ({:.1} s)",
            done.stream,
            done.target,
            text::size(done.bytes_written),
            text::size(done.bytes_zeroed),
            done.seconds,
        );
        if let Some(snapback) = &done.snapback {
            words.push_str(&format!(
                "\n  {} of what was there kept in {snapback}",
                text::size(done.bytes_saved)
            ));
        }
        words
    })
}
