//! Runs the host's tools: LVM's, device-mapper's, and those that freeze.
//!
//! Every run is bounded in time and in what it may say, speaks plain English (`LC_ALL=C`), reads nothing, and fails
//! with an error that names the command and what it said. Tools that only look are killed when their time is over or
//! nobody waits for them any more. Tools that change something are never killed hard: an `lvcreate` that dies in the
//! middle leaves its origin suspended. They are asked to end, and go on by themselves when nobody waits any more.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

mod now;
#[cfg(test)]
mod tests;

/// Time that one tool has, unless set otherwise. LVM may wait for udev and for other commands' locks.
const LIMIT: Duration = Duration::from_secs(120);
/// Time that a tool that changes something has to end after it was asked to.
const GRACE: Duration = Duration::from_secs(10);
/// Bytes that a tool may print in all, where it is not streamed.
const OUTPUT_MAX: usize = 64 << 20;
/// Bytes of its complaints that are kept: the last ones.
const COMPLAINTS_MAX: usize = 8 << 10;
/// Characters of one argument that are shown in messages.
const ARGUMENT_SHOWN: usize = 100;
/// Where tools of the administrator are on hosts whose PATH lacks them, as under cron.
const USUAL: [&str; 6] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"];

/// Why a tool did not do what it was asked. Each names the command.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ToolError {
    /// It is not on this host.
    #[error("{program} is not on this host: install it ({package}), or put it on the PATH")]
    Missing {
        /// The program.
        program: String,
        /// What it belongs to.
        package: &'static str,
    },
    /// It could not be started, or its output not be read.
    #[error("cannot run `{command}`: {why}")]
    CannotRun {
        /// The command line.
        command: String,
        /// Why.
        why: String,
    },
    /// It ended with a complaint.
    #[error("`{command}` failed ({status}): {said}")]
    Failed {
        /// The command line.
        command: String,
        /// Its exit status.
        status: ExitStatus,
        /// The end of what it wrote to standard error.
        said: String,
    },
    /// It took too long.
    #[error("`{command}` did not end within {} s: {said}", limit.as_secs())]
    TimedOut {
        /// The command line.
        command: String,
        /// The limit.
        limit: Duration,
        /// What it had said until then, and what became of it.
        said: String,
    },
    /// What it printed is not what it should be.
    #[error("`{command}` printed what cannot be used: {why}")]
    Unusable {
        /// The command line.
        command: String,
        /// Why.
        why: String,
    },
}

/// What a tool printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// The end of its standard error: warnings, since it succeeded.
    pub stderr: String,
}

impl Output {
    /// Standard output as text; what is no UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// The tools of this host.
#[derive(Debug, Clone)]
pub struct Tools {
    first: Option<PathBuf>,
    limit: Duration,
}

impl Default for Tools {
    fn default() -> Self {
        Self::new()
    }
}

impl Tools {
    /// Those on the PATH, and those where distributions put an administrator's.
    pub fn new() -> Self {
        Self { first: None, limit: LIMIT }
    }

    /// Those of `directory` before all others.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { first: Some(directory.into()), limit: LIMIT }
    }

    /// The same tools, each with this much time.
    pub fn with_limit(&self, limit: Duration) -> Self {
        Self { first: self.first.clone(), limit }
    }

    /// Time that each tool has.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Whether there is such a tool.
    pub fn has(&self, program: &str) -> bool {
        self.find(program).is_some()
    }

    /// Where a tool is.
    pub fn path(&self, program: &str) -> Result<PathBuf, ToolError> {
        let missing = || ToolError::Missing { program: program.to_owned(), package: package_of(program) };
        self.find(program).ok_or_else(missing)
    }

    /// Runs a tool that only looks. It is killed when its time is over or the future is dropped.
    pub async fn run(&self, program: &str, arguments: &[&str]) -> Result<Output, ToolError> {
        let run = self.start(program, arguments, true)?;
        run.run_out(self.limit).await
    }

    /// Runs a tool that changes something. It is never killed hard, and goes on when the future is dropped.
    pub async fn change(&self, program: &str, arguments: &[&str]) -> Result<Output, ToolError> {
        self.run_apart(self.start(program, arguments, false)?).await
    }

    /// Runs a command of the operator, as [`Self::change`] does; when its time is over it ends with all that it started.
    pub async fn hook(&self, program: &str, arguments: &[&str]) -> Result<Output, ToolError> {
        let run = self.start(program, arguments, false)?;
        self.run_apart(Run { group: true, ..run }).await
    }

    async fn run_apart(&self, run: Run) -> Result<Output, ToolError> {
        let command = run.command.clone();
        // A task of its own: the tool's end is waited for and its pipes are drained, whoever gave up on it.
        let ended = tokio::spawn(run.run_out(self.limit)).await;
        ended.map_err(|why| ToolError::CannotRun { command, why: why.to_string() })?
    }

    /// One of LVM's reports (`lvs`, `vgs`, `pvs`) with these fields, as JSON; sizes are in bytes without a suffix.
    pub async fn report(
        &self,
        program: &str,
        fields: &[&str],
        arguments: &[&str],
    ) -> Result<Output, ToolError> {
        let fields = fields.join(",");
        let mut all = vec!["--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields.as_str()];
        all.extend_from_slice(arguments);
        self.run(program, &all).await
    }

    /// Runs a tool that only looks and prints much; see [`Streamed::read`].
    pub fn stream(&self, program: &str, arguments: &[&str]) -> Result<Streamed, ToolError> {
        let run = self.start(program, arguments, true)?;
        Ok(Streamed { run: Some(run), limit: self.limit })
    }

    fn find(&self, program: &str) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let directories = self.first.iter().cloned().chain(std::env::split_paths(&path));
        let mut directories = directories.chain(USUAL.iter().map(PathBuf::from));
        directories.find_map(|directory| Some(directory.join(program)).filter(|file| is_executable(file)))
    }

    fn start(&self, program: &str, arguments: &[&str], kill: bool) -> Result<Run, ToolError> {
        let command = shown(program, arguments);
        let file = self.path(program)?;
        tracing::debug!(command, "running");
        let mut tool = Command::new(file);
        tool.args(arguments)
            .env("LC_ALL", "C")
            .env("LVM_SUPPRESS_FD_WARNINGS", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is for lvkeep, which then decides what becomes of its tools.
            .process_group(0)
            .kill_on_drop(kill);
        let cannot = |why: String| ToolError::CannotRun { command: command.clone(), why };
        let mut child = tool.spawn().map_err(|why| cannot(why.to_string()))?;
        let pipes = child.stdout.take().zip(child.stderr.take());
        let (stdout, stderr) = pipes.ok_or_else(|| cannot("it has no pipes".to_owned()))?;
        let complaints = tokio::spawn(complaints(stderr));
        Ok(Run { child, stdout, complaints, command, kill, group: false })
    }
}

/// A started tool.
#[derive(Debug)]
struct Run {
    child: Child,
    stdout: ChildStdout,
    complaints: JoinHandle<String>,
    command: String,
    kill: bool,
    /// What it started ends with it.
    group: bool,
}

impl Run {
    async fn run_out(mut self, limit: Duration) -> Result<Output, ToolError> {
        match timeout(limit, self.finish()).await {
            Ok(ended) => ended,
            Err(_) => Err(self.too_late(limit).await),
        }
    }

    async fn finish(&mut self) -> Result<Output, ToolError> {
        let mut stdout = Vec::new();
        let mut bounded = (&mut self.stdout).take(OUTPUT_MAX as u64 + 1);
        let read = bounded.read_to_end(&mut stdout).await;
        read.map_err(|why| ToolError::CannotRun { command: self.command.clone(), why: why.to_string() })?;
        if stdout.len() > OUTPUT_MAX {
            let why = format!("more than {OUTPUT_MAX} bytes");
            return Err(ToolError::Unusable { command: self.command.clone(), why });
        }
        let stderr = self.succeeded().await?;
        Ok(Output { stdout, stderr })
    }

    /// Its complaints, if it ended well.
    async fn succeeded(&mut self) -> Result<String, ToolError> {
        let status = self.child.wait().await;
        let said = self.said().await;
        let command = self.command.clone();
        match status {
            Ok(status) if status.success() => Ok(said),
            Ok(status) => Err(ToolError::Failed { command, status, said }),
            Err(why) => Err(ToolError::CannotRun { command, why: why.to_string() }),
        }
    }

    /// A grandchild may hold the pipe open for ever (a hook that starts a daemon): its words are not waited for long.
    async fn said(&mut self) -> String {
        match timeout(Duration::from_secs(1), &mut self.complaints).await {
            Ok(Ok(said)) if !said.is_empty() => said,
            _ => "it said nothing more".to_owned(),
        }
    }

    async fn too_late(mut self, limit: Duration) -> ToolError {
        let fate = match self.kill {
            true => match self.child.kill().await {
                Ok(()) => "it was killed",
                Err(_) => "it could not be killed",
            },
            false => self.asked_to_end().await,
        };
        let said = format!("{fate}; {}", self.said().await);
        ToolError::TimedOut { command: self.command, limit, said }
    }

    async fn asked_to_end(&mut self) -> &'static str {
        let process = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let signal = |signal| {
            // Already gone is as good.
            let _ = match (process, self.group) {
                (Some(process), true) => kill_process_group(process, signal),
                (Some(process), false) => kill_process(process, signal),
                (None, _) => Ok(()),
            };
        };
        signal(Signal::TERM);
        match timeout(GRACE, self.child.wait()).await {
            Ok(_) => "it was asked to end, and did",
            Err(_) if self.group => {
                signal(Signal::KILL);
                "it was killed with all that it had started"
            }
            Err(_) => "it was asked to end, and still runs: look at it by hand",
        }
    }
}

/// The output of a tool while it runs.
#[derive(Debug)]
pub struct Streamed {
    run: Option<Run>,
    limit: Duration,
}

impl Streamed {
    /// Fills some of `buffer`. Nothing read means that the tool has ended *and succeeded*: output that was cut short
    /// never looks like a whole one. The tool's limit holds for each read.
    pub async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ToolError> {
        let Some(run) = &mut self.run else { return Ok(0) };
        if buffer.is_empty() {
            return Ok(0);
        }
        let step = async {
            match run.stdout.read(buffer).await {
                Ok(0) => run.succeeded().await.map(|_| 0),
                Ok(read) => Ok(read),
                Err(why) => Err(ToolError::CannotRun { command: run.command.clone(), why: why.to_string() }),
            }
        };
        match timeout(self.limit, step).await {
            Ok(Ok(0)) => {
                self.run = None;
                Ok(0)
            }
            Ok(outcome) => outcome,
            Err(_) => Err(match self.run.take() {
                Some(run) => run.too_late(self.limit).await,
                None => ToolError::CannotRun { command: String::new(), why: "it has ended".to_owned() },
            }),
        }
    }
}

/// The last part of what a tool complains of, as one line.
async fn complaints(mut stderr: impl AsyncRead + Unpin) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..read]);
        if kept.len() > COMPLAINTS_MAX {
            kept.drain(..kept.len() - COMPLAINTS_MAX);
        }
    }
    let text = String::from_utf8_lossy(&kept).into_owned();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ")
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// The command line, for people.
fn shown(program: &str, arguments: &[&str]) -> String {
    let mut text = program.to_owned();
    for argument in arguments {
        text.push(' ');
        // A list of fields is of no use to anybody.
        let cut = argument.char_indices().nth(ARGUMENT_SHOWN).map(|(at, _)| &argument[..at]);
        if let Some(cut) = cut {
            text.push_str(&format!("{cut}..."));
            continue;
        }
        match argument.is_empty() || argument.contains(|c: char| c.is_whitespace() || c == '\'') {
            true => text.push_str(&format!("{argument:?}")),
            false => text.push_str(argument),
        }
    }
    text
}

fn package_of(program: &str) -> &'static str {
    match program {
        "thin_delta" | "thin_dump" | "thin_check" => "Debian's package thin-provisioning-tools",
        "dmsetup" => "Debian's package dmsetup",
        "fsfreeze" => "Debian's package util-linux",
        "virsh" => "Debian's package libvirt-clients",
        "sh" => "a shell",
        _ => "Debian's package lvm2",
    }
}
