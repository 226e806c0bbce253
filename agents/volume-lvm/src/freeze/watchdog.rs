//! A shell that undoes something when this process dies.
//!
//! It reads one word from a pipe whose other end only this process has. When the pipe closes without the word, for
//! whatever reason, it runs the command that undoes.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin};

use super::{Command, FreezeError};
use crate::tools::Tools;

/// Ignores what a terminal or a service manager sends first; only SIGKILL ends it early.
const SCRIPT: &str = r#"trap '' HUP INT TERM; read -r word; [ "$word" = thawed ] || exec "$@""#;

/// The shell, and the pipe to it. Dropped, it lets the shell undo.
#[derive(Debug)]
pub(super) struct Watchdog {
    shell: Child,
    pipe: ChildStdin,
}

impl Watchdog {
    /// Starts one; it runs when this returns.
    pub(super) fn start(tools: &Tools, command: &Command) -> Result<Self, FreezeError> {
        let cannot = |why: String| FreezeError::Refused(format!("cannot start a shell that thaws: {why}"));
        let program = tools.path(&command.program)?;
        let mut shell = tokio::process::Command::new(tools.path("sh")?)
            .args(["-c", SCRIPT, "lvkeep-thaw"])
            .arg(program)
            .args(&command.arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(false)
            .spawn()
            .map_err(|why| cannot(why.to_string()))?;
        let pipe = shell.stdin.take().ok_or_else(|| cannot("it has no pipe".to_owned()))?;
        Ok(Self { shell, pipe })
    }

    /// All is well: it ends without doing anything.
    pub(super) async fn dismiss(mut self) {
        let told = self.pipe.write_all(b"thawed\n").await;
        drop(self.pipe);
        if told.is_ok() {
            let _ = self.shell.wait().await;
        }
    }
}
