//! Holds still whoever writes to volumes while their snapshots are taken, and lets go again whatever happens.
//!
//! What was frozen is thawed when the snapshots are there, when taking them fails or takes too long, when the future
//! that waits for them is dropped or panics, and when this process is killed: a small shell that ignores the usual
//! signals waits at the other end of a pipe, and thaws when the pipe closes without the word that all is well. Before
//! anything is frozen, how to thaw it is written to a file, so that the next run does it where even that shell was
//! killed ([`thaw_what_was_left`]).
//!
//! LVM itself freezes the file system of a volume while it takes that volume's snapshot. Kernels before 6.8 refuse
//! this when somebody froze it already; there a single mounted volume is left to LVM, and several of them, which would
//! have to be frozen at once, are refused.

mod left;
mod mounts;
mod watchdog;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::tools::{ToolError, Tools};

pub use left::thaw_what_was_left;
pub use mounts::{Mounted, mounted};

use left::Left;
use watchdog::Watchdog;

#[cfg(test)]
mod tests;

/// What holds a volume's writers still.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Freeze {
    /// Nothing but LVM itself.
    #[default]
    Nothing,
    /// The file system that is mounted from it on this host.
    FileSystem,
    /// The file systems of a libvirt domain, by its guest agent.
    Domain(String),
}

/// Commands of the operator.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hooks {
    /// Runs before; when it fails, no snapshot is taken.
    pub pre: Option<String>,
    /// Runs after, always when `pre` was begun.
    pub post: Option<String>,
}

/// Everything that is held still for one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Commands around it, each once.
    pub hooks: Vec<Hooks>,
    /// File systems, by mount point.
    pub mount_points: Vec<PathBuf>,
    /// Domains.
    pub domains: Vec<String>,
}

/// Time limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Of each command.
    pub hook: Duration,
    /// Of the whole time for which anything is frozen.
    pub frozen: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self { hook: Duration::from_secs(60), frozen: Duration::from_secs(30) }
    }
}

/// Why nothing could be frozen, or not for long enough.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// A command failed, one of the operator's too.
    #[error("before the snapshot: {0}")]
    Command(#[from] ToolError),
    /// It cannot be done on this host.
    #[error("{0}")]
    Refused(String),
    /// The snapshot was not there in time.
    #[error(
        "taking the snapshots took longer than {} s, for which writers may be frozen (freeze_limit): they were thawed, \
         and the snapshots are not used",
        .0.as_secs()
    )]
    TooLong(Duration),
    /// How to thaw could not be written down.
    #[error("cannot note in {} how to thaw: {why}", path.display())]
    CannotNote {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

impl Plan {
    /// The plan for some volumes: what each wants, and what is mounted from each.
    pub fn new<'a>(
        wanted: impl IntoIterator<Item = (&'a Freeze, &'a Hooks, Option<Mounted>)>,
        kernel: &str,
    ) -> Result<Self, FreezeError> {
        let mut plan = Self::default();
        for (freeze, hooks, mounted) in wanted {
            if *hooks != Hooks::default() && !plan.hooks.contains(hooks) {
                plan.hooks.push(hooks.clone());
            }
            match (freeze, mounted) {
                (Freeze::Domain(domain), _) if !plan.domains.contains(domain) => {
                    plan.domains.push(domain.clone())
                }
                (Freeze::FileSystem, Some(mounted)) => {
                    if let Some(why) = mounted.why_not {
                        let path = mounted.point.display();
                        return Err(FreezeError::Refused(format!("{path} cannot be frozen: {why}")));
                    }
                    if !plan.mount_points.contains(&mounted.point) {
                        plan.mount_points.push(mounted.point);
                    }
                }
                _ => {}
            }
        }
        if !freezes_nest(kernel) {
            match plan.mount_points.len() {
                0 => {}
                1 => {
                    tracing::debug!(
                        "LVM freezes the only file system itself; on this kernel nobody else may"
                    );
                    plan.mount_points.clear();
                }
                several => {
                    return Err(FreezeError::Refused(format!(
                        "{several} file systems of this group are mounted here, and kernel {kernel} cannot take \
                         snapshots of what is frozen already (6.8 and later can): stop their writers by pre and post \
                         commands instead, and set freeze = \"none\""
                    )));
                }
            }
        }
        Ok(plan)
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The commands that freeze, each with the one that thaws.
    fn freezes(&self) -> Vec<(Command, Command)> {
        let domains = self.domains.iter().map(|domain| {
            (
                Command::new("virsh", &["domfsfreeze", "--domain", domain]),
                Command::new("virsh", &["domfsthaw", "--domain", domain]),
            )
        });
        let mounts = self.mount_points.iter().map(|point| {
            let point = point.to_string_lossy();
            (
                Command::new("fsfreeze", &["--freeze", &point]),
                Command::new("fsfreeze", &["--unfreeze", &point]),
            )
        });
        // Guests may have file systems of the host; what is frozen last is thawed first.
        domains.chain(mounts).collect()
    }
}

/// Whether the kernel takes a snapshot of a file system that is frozen already.
fn freezes_nest(kernel: &str) -> bool {
    let mut numbers = kernel.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(8))
}

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Command {
    pub(crate) program: String,
    pub(crate) arguments: Vec<String>,
}

impl Command {
    fn new(program: &str, arguments: &[&str]) -> Self {
        Self {
            program: program.to_owned(),
            arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    fn shell(text: &str) -> Self {
        Self::new("sh", &["-c", text])
    }

    /// A command of the operator, which thaws nothing that is known of.
    fn is_hook(&self) -> bool {
        self.program == "sh"
    }

    pub(crate) async fn run(&self, tools: &Tools) -> Result<(), ToolError> {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        match self.is_hook() {
            true => tools.hook(&self.program, &arguments).await.map(drop),
            false => tools.change(&self.program, &arguments).await.map(drop),
        }
    }
}

/// How writers were held still.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stillness {
    /// For how long at most: from the first freeze to the last thaw, or while LVM took the snapshots.
    pub frozen: Duration,
    /// Which of the operator's commands failed afterwards, and why. None of them is run twice.
    pub failed: Vec<String>,
}

/// Freezes, does `body`, and thaws. Says what came of `body`, and how writers were held still.
///
/// Runs in a task of its own: whoever waits for it may give up, and the thawing comes all the same.
pub async fn around<T, F>(
    tools: &Tools,
    state: &Path,
    plan: Plan,
    times: Times,
    body: F,
) -> Result<(T, Stillness), FreezeError>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    if plan.is_empty() {
        let since = Instant::now();
        let done = body.await;
        return Ok((done, Stillness { frozen: since.elapsed(), failed: Vec::new() }));
    }
    let (tools, state) = (tools.clone(), state.to_owned());
    let task = tokio::spawn(async move {
        let mut still = Still {
            tools: tools.with_limit(times.hook),
            undo: Vec::new(),
            frozen: Vec::new(),
            left: Left::new(&state)?,
            failed: Vec::new(),
        };
        let done = held(&mut still, &plan, times, body).await;
        still.let_go().await;
        done.map(|(done, frozen)| (done, Stillness { frozen, failed: still.failed }))
    });
    task.await
        .unwrap_or_else(|why| Err(FreezeError::Refused(format!("taking the snapshot ended early: {why}"))))
}

async fn held<T>(
    still: &mut Still,
    plan: &Plan,
    times: Times,
    body: impl Future<Output = T>,
) -> Result<(T, Duration), FreezeError> {
    for hooks in &plan.hooks {
        if let Some(post) = &hooks.post {
            still.will_undo(Command::shell(post))?;
        }
        if let Some(pre) = &hooks.pre {
            Command::shell(pre).run(&still.tools).await?;
        }
    }
    let since = Instant::now();
    let end = tokio::time::Instant::now() + times.frozen;
    let tools = still.tools.clone();
    for (freeze, thaw) in plan.freezes() {
        still.will_undo(thaw)?;
        let freezing = freeze.run(&tools);
        tokio::pin!(freezing);
        match tokio::time::timeout_at(end, &mut freezing).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => {
                if is_anothers(&why) {
                    still.leave_last().await?;
                }
                return Err(why.into());
            }
            Err(_) => {
                // It may come to freeze after all: thawed now, in case it has, and again when it is over.
                still.thaw_before_last().await;
                let _ = freezing.await;
                return Err(FreezeError::TooLong(times.frozen));
            }
        }
    }
    tokio::pin!(body);
    match tokio::time::timeout_at(end, &mut body).await {
        Ok(done) => {
            let thawed = still.let_go().await;
            Ok((done, thawed.saturating_duration_since(since)))
        }
        Err(_) => {
            still.let_go().await;
            // What changes LVM is not left half done; its outcome does not count any more.
            body.await;
            Err(FreezeError::TooLong(times.frozen))
        }
    }
}

/// Whether something cannot be frozen because somebody else froze it, or because nobody may. It is not for us to thaw.
/// Judged by the tools' own words, because a path or a domain may have any name.
fn is_anothers(why: &ToolError) -> bool {
    let ToolError::Failed { said, .. } = why else { return false };
    let said = said.to_ascii_lowercase();
    // The kernel's EBUSY comes last; qemu's guest agent says the other while it holds a guest, or was forbidden to.
    said.ends_with(": device or resource busy") || said.contains("guest-fsfreeze-freeze has been disabled")
}

/// What is held still, and how to let go of it.
#[derive(Debug)]
struct Still {
    tools: Tools,
    /// The operator's commands first.
    undo: Vec<(Command, Watchdog)>,
    /// What could not be thawed.
    frozen: Vec<Command>,
    left: Left,
    /// The operator's commands that failed after the snapshots.
    failed: Vec<String>,
}

impl Still {
    /// Before something is done: sees to it that it is undone.
    fn will_undo(&mut self, command: Command) -> Result<(), FreezeError> {
        let commands: Vec<Command> =
            self.undo.iter().map(|(known, _)| known).chain([&command]).cloned().collect();
        self.left.note(&commands)?;
        let watchdog = Watchdog::start(&self.tools, &command)?;
        self.undo.push((command, watchdog));
        Ok(())
    }

    /// Undoes everything, the last first. What cannot be thawed is left to the watchdog and
    /// the next run; a command of the operator that fails has been run, and is not run again. Says when the last file
    /// system was let go of.
    async fn let_go(&mut self) -> Instant {
        let mut thawed = Instant::now();
        while let Some((command, watchdog)) = self.undo.pop() {
            let is_hook = command.is_hook();
            self.undo_one(command, watchdog).await;
            if !is_hook {
                thawed = Instant::now();
            }
        }
        match self.frozen.is_empty() {
            true => self.left.forget(),
            false => {
                if let Err(why) = self.left.note(&self.frozen) {
                    tracing::warn!(%why, "the note of what is frozen names more than that");
                }
            }
        }
        thawed
    }

    async fn undo_one(&mut self, command: Command, watchdog: Watchdog) {
        match command.run(&self.tools).await {
            Ok(()) => watchdog.dismiss().await,
            Err(why) if command.is_hook() => {
                tracing::error!(%why, "a command after the snapshot failed; the snapshot is there");
                self.failed.push(why.to_string());
                watchdog.dismiss().await;
            }
            Err(why) => {
                tracing::error!(%why, "cannot thaw; trying once more in another way");
                self.frozen.insert(0, command);
                drop(watchdog);
            }
        }
    }

    /// What was frozen last is not ours to thaw.
    async fn leave_last(&mut self) -> Result<(), FreezeError> {
        let Some((_, watchdog)) = self.undo.pop() else { return Ok(()) };
        watchdog.dismiss().await;
        let commands: Vec<Command> = self.undo.iter().map(|(known, _)| known).cloned().collect();
        self.left.note(&commands)
    }

    /// While the last freeze is still under way: thaws all before it, and then it too, should it have come that far.
    /// It stays to be undone when it is over. The others go first: thawing what hangs may hang as well.
    async fn thaw_before_last(&mut self) {
        let Some((last, watchdog)) = self.undo.pop() else { return };
        while let Some((command, watchdog)) = self.undo.pop_if(|(command, _)| !command.is_hook()) {
            self.undo_one(command, watchdog).await;
        }
        if let Err(why) = last.run(&self.tools).await {
            tracing::debug!(%why, "not frozen yet, it seems");
        }
        self.undo.push((last, watchdog));
    }
}
