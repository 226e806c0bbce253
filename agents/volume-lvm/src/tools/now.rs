//! Running a tool where nothing can be awaited: in a destructor, or on a thread that has to come to its end.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{COMPLAINTS_MAX, Output, ToolError, Tools, package_of, shown};

/// How often the end of a tool is looked for.
const PAUSE: Duration = Duration::from_millis(2);

impl Tools {
    /// Runs a tool and blocks until it ends. It is never killed: when its time is over, it is left to itself. Only for
    /// tools that start no others and print less than a pipe holds.
    pub fn run_now(&self, program: &str, arguments: &[&str]) -> Result<Output, ToolError> {
        let command = shown(program, arguments);
        let Some(file) = self.find(program) else {
            return Err(ToolError::Missing { program: program.to_owned(), package: package_of(program) });
        };
        tracing::debug!(command, "running");
        let cannot =
            |why: std::io::Error| ToolError::CannotRun { command: command.clone(), why: why.to_string() };
        let mut tool = Command::new(file);
        tool.args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = tool.spawn().map_err(cannot)?;
        let began = Instant::now();
        let status = loop {
            match child.try_wait().map_err(cannot)? {
                Some(status) => break status,
                None if began.elapsed() < self.limit => std::thread::sleep(PAUSE),
                None => {
                    // Somebody has to take note of its end.
                    std::thread::spawn(move || child.wait());
                    let said = "it still runs: look at it by hand".to_owned();
                    return Err(ToolError::TimedOut { command, limit: self.limit, said });
                }
            }
        };
        let (stdout, stderr) = printed(&mut child).map_err(cannot)?;
        match status.success() {
            true => Ok(Output { stdout, stderr }),
            false => Err(ToolError::Failed { command, status, said: stderr }),
        }
    }
}

fn printed(child: &mut Child) -> std::io::Result<(Vec<u8>, String)> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    if let Some(pipe) = child.stdout.take() {
        pipe.take(64 << 10).read_to_end(&mut stdout)?;
    }
    if let Some(pipe) = child.stderr.take() {
        pipe.take(COMPLAINTS_MAX as u64).read_to_end(&mut stderr)?;
    }
    let text = String::from_utf8_lossy(&stderr).into_owned();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Ok((stdout, lines.join("; ")))
}
