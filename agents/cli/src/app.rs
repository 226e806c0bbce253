//! What every command has at hand: settings, clock, the flag that stops.

use std::io::{IsTerminal, Write};
use std::sync::Arc;

use agent::counters::Counters;
use agent::{Bus, Context, Environment, Repository, Stop};
use serde::Serialize;

use crate::args::{Cli, Command};
use crate::environment::SystemEnvironment;
use crate::protect::Protected;
use crate::settings::{Extra, Settings, resolve};
use crate::{embedded, open, text};

/// One run of the program.
pub struct App {
    /// What is in force.
    pub settings: Settings,
    /// The real clock.
    pub environment: Arc<dyn Environment>,
    /// Raised by SIGINT and SIGTERM, and when the roles of this process are to end.
    pub stop: Stop,
    /// Raised by SIGINT and SIGTERM alone.
    pub interrupted: Stop,
    /// Counters of this process.
    pub counters: Arc<Counters>,
    /// What protects what is read, until the end.
    pub protected: Protected,
    /// Results as JSON.
    pub json: bool,
    /// Details are printed, too.
    pub is_verbose: bool,
    quiet: bool,
}

impl App {
    /// Resolves the settings of a command line.
    pub fn new(cli: &Cli, matches: &clap::ArgMatches) -> anyhow::Result<Self> {
        let extra = match &cli.command {
            Command::Backup(args) => Extra {
                level: args.level,
                limit_read: args.limit_read.clone(),
                limit_upload: args.limit_upload.clone(),
                io_priority: args.io_priority,
                ..Extra::default()
            },
            Command::Copy(args) => {
                Extra { level: args.level, limit_upload: args.limit_upload.clone(), ..Extra::default() }
            }
            Command::Send(args) => Extra { limit_read: args.limit_read.clone(), ..Extra::default() },
            Command::Agent(args) => Extra {
                roles: args.roles.clone(),
                workers: args.workers,
                metrics: args.metrics.clone(),
                targets: args.targets.clone(),
                shards: args.shards.clone(),
                ..Extra::default()
            },
            _ => Extra::default(),
        };
        Ok(Self {
            settings: resolve(&cli.global, extra, matches)?,
            environment: Arc::new(SystemEnvironment::new()),
            stop: Stop::default(),
            interrupted: Stop::default(),
            counters: Arc::default(),
            protected: Protected::default(),
            json: cli.global.json,
            is_verbose: cli.global.verbose > 0,
            quiet: cli.global.quiet || cli.global.json,
        })
    }

    /// What roles get.
    pub fn context(&self, bus: Arc<dyn Bus>) -> Context {
        Context {
            bus,
            environment: self.environment.clone(),
            counters: self.counters.clone(),
            stop: self.stop.clone(),
            host: self.settings.host.value.as_str().into(),
        }
    }

    /// Opens the repository.
    pub async fn repository(&self) -> anyhow::Result<Repository> {
        open::repository(&self.settings, self.environment.clone()).await
    }

    /// Whether the host whose volumes are backed up is this one.
    pub fn is_local(&self) -> bool {
        let host = &self.settings.host;
        let named_here = host.origin != crate::settings::Origin::Flag;
        self.settings.nats.value.is_none() || named_here || host.value == crate::settings::hostname()
    }

    /// Whether progress is shown: on a terminal, unless somebody does not want it.
    pub fn shows_progress(&self) -> bool {
        !self.quiet && std::io::stderr().is_terminal()
    }

    /// Whether [`Self::say`] says anything.
    pub fn says(&self) -> bool {
        !self.quiet
    }

    /// A line for people, on standard error; not with `--quiet` or `--json`.
    pub fn say(&self, line: impl AsRef<str>) {
        if !self.quiet {
            let _ = writeln!(std::io::stderr(), "{}", line.as_ref());
        }
    }

    /// One failure of several, on standard error whatever else is not to be said: the command's own end names the first.
    pub fn complain(&self, line: impl AsRef<str>) {
        let _ = writeln!(std::io::stderr(), "{}", line.as_ref());
    }

    /// A line for people that nothing silences: on standard error, or with `--quiet` on standard output.
    pub fn say_always(&self, line: impl AsRef<str>) {
        let line = line.as_ref();
        let _ = match self.quiet && !self.json {
            true => writeln!(std::io::stdout(), "{line}"),
            false => writeln!(std::io::stderr(), "{line}"),
        };
    }

    /// A result on standard output: one JSON value, or text.
    pub fn print<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        let written = match self.json {
            true => writeln!(out, "{}", serde_json::to_string(value)?),
            false => writeln!(out, "{}", text()),
        };
        match written {
            // Whoever reads has seen enough.
            Err(why) if why.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            written => Ok(written?),
        }
    }

    /// Raises the stop flag on SIGINT or SIGTERM; a second one ends the process at once.
    pub fn stop_on_signals(&self) -> anyhow::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let (stop, interrupted) = (self.stop.clone(), self.interrupted.clone());
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if interrupted.is_raised() {
                    std::process::exit(130);
                }
                tracing::info!("stopping; once more ends at once");
                interrupted.raise();
                stop.raise();
            }
        });
        Ok(())
    }

    /// Does something that does not look at the stop flag, until that is raised.
    pub async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T, agent::Failure>>,
    ) -> Result<T, agent::Failure> {
        tokio::select! {
            biased;
            () = self.stop.raised() => Err(embedded::interrupted()),
            done = work => done,
        }
    }

    /// `config show`.
    pub fn show_settings(&self) -> anyhow::Result<()> {
        let rows = self.settings.rows()?;
        self.print(&self.settings, || {
            let mut table = text::Table::new(&["setting", "value", "from"]);
            for (name, value, origin) in rows {
                table.row([name, value, format!("{origin:?}").to_lowercase()]);
            }
            let file =
                self.settings.config.as_ref().map_or("none".to_owned(), |path| path.display().to_string());
            format!("{}\nconfiguration file: {file}", table.text())
        })
    }
}
