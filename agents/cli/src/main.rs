//! `lvkeep`, the one binary: every role, embedded or as agents, and what operators ask for.
//!
//! This file is the table of contents; each command has a module.

mod agents;
mod apart;
mod app;
mod apply;
mod args;
mod backup;
mod bulk;
mod bus;
mod cat;
mod check;
mod checking;
mod checks;
mod collecting;
mod copy;
mod damage;
mod draft;
mod embedded;
mod environment;
mod exit;
mod fan;
mod far;
mod forget;
mod hold;
mod holes;
mod host;
mod init;
mod keys;
mod logging;
mod lvm;
mod memory;
mod metrics;
mod open;
mod options;
mod plan;
mod progress;
mod protect;
mod prune;
mod repair;
mod restore;
mod retention;
mod select;
mod send;
mod sessions;
mod settings;
mod show;
mod snapback;
mod snapshots;
mod sources;
mod status;
mod text;
mod times;
mod undo;
mod verify;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use app::App;
use args::{Cli, Command, ConfigCommand, HostCommand, IndexCommand, KeyCommand};

fn main() -> ExitCode {
    memory::keep_together();
    let matches = Cli::command().get_matches_from(args::words());
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    run(cli, &matches).unwrap_or_else(|error| tell(&error))
}

/// Says why a command failed.
fn tell(error: &anyhow::Error) -> ExitCode {
    // A broken standard error changes nothing about the outcome.
    let said = text::error(error);
    let _ = writeln!(std::io::stderr(), "lvkeep: {said}{}", open::advice(&said));
    exit::code(error)
}

fn run(cli: Cli, matches: &clap::ArgMatches) -> anyhow::Result<ExitCode> {
    logging::start(&cli.global, matches!(cli.command, Command::Agent(_)));
    match &cli.command {
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "lvkeep", &mut text);
            return match std::io::stdout().write_all(&text) {
                // Whoever reads has seen enough.
                Err(why) if why.kind() != std::io::ErrorKind::BrokenPipe => Err(why.into()),
                _ => Ok(ExitCode::SUCCESS),
            };
        }
        Command::Manual { directory } => {
            std::fs::create_dir_all(directory)?;
            clap_mangen::generate_to(Cli::command(), directory)?;
            return Ok(ExitCode::SUCCESS);
        }
        _ => {}
    }
    if !cli.global.json {
        times::check(&cli.command)?;
    }
    let app = App::new(&cli, matches)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(app.settings.workers.value.max(1) + 2)
        .enable_all()
        .build()?;
    let code = runtime.block_on(async {
        let code = dispatch(&app, &cli.command).await.unwrap_or_else(|error| tell(&error));
        // A store that is away may be waited for: what there is to say was said.
        app.protected.end().await;
        code
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    Ok(code)
}

async fn dispatch(app: &App, command: &Command) -> anyhow::Result<ExitCode> {
    let done = |result: anyhow::Result<()>| result.map(|()| ExitCode::SUCCESS);
    match command {
        Command::Init(args) => done(init::run(app, args).await),
        Command::Backup(args) => done(backup::run(app, args).await),
        Command::Snapshots(args) => done(snapshots::run(app, args).await),
        Command::Forget(args) => done(forget::run(app, args).await),
        Command::Unforget(args) => done(forget::unforget(app, args).await),
        Command::Hold(args) => done(hold::hold(app, args).await),
        Command::Release(args) => done(hold::release(app, args).await),
        Command::Tag(args) => done(hold::tag(app, args).await),
        Command::Note(args) => done(hold::note(app, args).await),
        Command::Show(args) => done(show::show(app, args).await),
        Command::Diff(args) => done(show::diff(app, args).await),
        Command::FindChange(args) => done(show::find_change(app, args).await),
        Command::Restore(args) => done(restore::run(app, args).await),
        Command::Undo(args) => done(undo::run(app, args).await),
        Command::Plan(args) => done(draft::run(app, args).await),
        Command::Cat(args) => done(cat::run(app, args).await),
        Command::Verify(args) => done(verify::run(app, args).await),
        Command::Send(args) => done(send::run(app, args).await),
        Command::Apply(args) => done(apply::run(app, args).await),
        Command::Copy(args) => done(copy::run(app, args).await),
        Command::Check(args) => done(check::run(app, args).await),
        Command::Repair(args) => done(repair::run(app, args).await),
        Command::Prune(args) => done(prune::run(app, args).await),
        Command::Agent(_) => done(agents::run(app).await),
        Command::Status(args) => status::run(app, args).await,
        Command::Cancel(args) => done(sessions::cancel(app, args).await),
        Command::Host(HostCommand::List) => done(host::list(app).await),
        Command::Host(HostCommand::Clean { unknown }) => done(host::clean(app, *unknown).await),
        Command::Config(ConfigCommand::Show) => done(app.show_settings()),
        Command::Index(IndexCommand::Rebuild) => done(embedded::rebuild_index(app).await),
        Command::Key(KeyCommand::Show) => done(keys::show(app).await),
        Command::Key(KeyCommand::Add { recipient, key_out }) => {
            done(keys::add(app, recipient, key_out.as_deref()).await)
        }
        Command::Key(KeyCommand::Check { identity }) => done(keys::check(app, identity).await),
        // Both are done before a runtime is needed.
        Command::Completions { .. } | Command::Manual { .. } => Ok(ExitCode::SUCCESS),
    }
}
