//! `send`: what changed since a snapshot was taken, to another device, here or elsewhere, or to standard output.

use std::io::IsTerminal;
use std::time::Duration;

use agent::Failure;
use anyhow::bail;
use schema::stream::{Applied, Format};
use serde::Serialize;
use volume_lvm::stream::{Apply, Changed, Here, Keep, Place, Remote, Sending, Sent, place};

use crate::app::App;
use crate::args::{SendArgs, StreamFormat};
use crate::progress::{Bar, Display};
use crate::{apply, embedded, text};

/// What was sent, as it is printed.
#[derive(Debug, Serialize)]
struct Done {
    snapshot: String,
    source: String,
    target: String,
    bytes_changed: u64,
    bytes_sent: u64,
    bytes_zero: u64,
    bytes_saved: u64,
    connections: u32,
    seconds: f64,
}

/// `lvkeep send`.
pub async fn run(app: &App, args: &SendArgs) -> anyhow::Result<()> {
    app.stop_on_signals()?;
    if args.stdout && std::io::stdout().is_terminal() {
        bail!("a stream of changes is not for a terminal: redirect standard output");
    }
    let started = app.environment.elapsed();
    let host = apply::host(app)?;
    let changed = host.changed(&args.snapshot, args.to.as_deref(), &app.stop).await?;
    changed.notes.iter().for_each(|note| app.say(note));
    let source = changed.source.clone();
    let sending = sending(app, changed);
    let display = Display::new(app);
    let bar = display.bar(&args.snapshot);
    let sent = match &args.target {
        None => to_stdout(&sending, args, &bar).await.map(|sent| (sent, Applied::default())),
        Some(target) => match target.parse::<Place>()? {
            Place::There { host, target } => to_host(&sending, args, host, target, &bar).await,
            Place::Here(target) => {
                let target = host.target(&target).await?;
                if source.is(target.metadata()) {
                    let why = format!("{} is what is sent: a target is another volume", target.name());
                    return Err(Failure::refused(why).into());
                }
                let keep = args.snapback.clone();
                let keep = keep.map(|path| Keep { path, format: format(args.format) });
                let apply = Apply { keep, ..Apply::new(app.stop.clone(), app.environment.clone()) };
                sending.send_to(&Here { apply, target }, |done| bar.set(done, sending.bytes())).await
            }
        },
    };
    bar.finish();
    let (sent, applied) = sent?;
    print(app, args, source.name(), &sent, &applied, app.environment.elapsed().saturating_sub(started))
}

fn sending(app: &App, changed: Changed) -> Sending {
    let limit = embedded::limit(app, app.settings.limit_read.value);
    let name = changed.source.name().to_owned();
    Sending::new(changed.source, changed.ranges, &name, limit, app.stop.clone(), app.environment.clone())
}

fn format(format: StreamFormat) -> Format {
    match format {
        StreamFormat::Native => Format::Native,
        StreamFormat::Lvmsync => Format::Lvmsync,
    }
}

async fn to_stdout(sending: &Sending, args: &SendArgs, bar: &Bar) -> Result<Sent, Failure> {
    let progress = |done| bar.set(done, sending.bytes());
    sending.write_to(format(args.format), tokio::io::stdout(), progress).await
}

async fn to_host(
    sending: &Sending,
    args: &SendArgs,
    host: String,
    target: String,
    bar: &Bar,
) -> Result<(Sent, Applied), Failure> {
    let (format, default) = match args.format {
        StreamFormat::Native => (Format::Native, "lvkeep"),
        StreamFormat::Lvmsync => (Format::Lvmsync, "lvmsync"),
    };
    let rsh = args.rsh.as_deref().unwrap_or(place::RSH);
    let remote = Remote {
        rsh: rsh.split_whitespace().map(str::to_owned).collect(),
        host,
        program: args.remote_program.clone().unwrap_or_else(|| default.to_owned()),
        format,
        target,
        snapback: args.snapback.clone(),
    };
    let progress = |done| bar.set(done, sending.bytes());
    match format {
        Format::Native => sending.send_to(&remote, progress).await,
        Format::Lvmsync => {
            sending.send_to_lvmsync(&remote, progress).await.map(|sent| (sent, Applied::default()))
        }
    }
}

fn print(
    app: &App,
    args: &SendArgs,
    source: &str,
    sent: &Sent,
    applied: &Applied,
    took: Duration,
) -> anyhow::Result<()> {
    let done = Done {
        snapshot: args.snapshot.clone(),
        source: source.to_owned(),
        target: args.target.clone().unwrap_or_else(|| "standard output".to_owned()),
        bytes_changed: sent.changed,
        bytes_sent: sent.data,
        bytes_zero: sent.zero,
        bytes_saved: applied.saved,
        connections: sent.connections,
        seconds: took.as_secs_f64(),
    };
    let words = || {
        format!(
            "{}: {} changed since {}, sent to {}\n  content {}, zero {}, kept in the snapback {}, connections {}  ({:.1} s)",
            done.source,
            text::size(done.bytes_changed),
            done.snapshot,
            done.target,
            text::size(done.bytes_sent),
            text::size(done.bytes_zero),
            text::size(done.bytes_saved),
            done.connections,
            done.seconds,
        )
    };
    match args.stdout {
        // Standard output is the stream's.
        true => app.say(words()),
        false => app.print(&done, words)?,
    }
    Ok(())
}
