//! One measured run of a program: wall time, CPU time and memory of it and its children.
//!
//! GNU time does the accounting, because it sees what the program's own children used.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::run::shown;
use crate::tools::system_program;

/// What one run took.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cost {
    pub wall_seconds: f64,
    /// User and system.
    pub cpu_seconds: f64,
    /// The largest of the processes.
    pub peak_rss_bytes: u64,
}

impl Cost {
    /// Of two runs, one after the other.
    pub fn and(self, other: Self) -> Self {
        Self {
            wall_seconds: self.wall_seconds + other.wall_seconds,
            cpu_seconds: self.cpu_seconds + other.cpu_seconds,
            peak_rss_bytes: self.peak_rss_bytes.max(other.peak_rss_bytes),
        }
    }

    /// The best of each, as rounds disturb each figure apart.
    pub fn best(self, other: Self) -> Self {
        Self {
            wall_seconds: self.wall_seconds.min(other.wall_seconds),
            cpu_seconds: self.cpu_seconds.min(other.cpu_seconds),
            peak_rss_bytes: self.peak_rss_bytes.min(other.peak_rss_bytes),
        }
    }
}

/// Runs a program under measurement; its output is shown only when it fails.
pub fn measured(command: &Command, input: Option<&Path>) -> Result<Cost> {
    printed(command, input).map(|(cost, _)| cost)
}

/// The same, with what it wrote to standard output.
pub fn printed(command: &Command, input: Option<&Path>) -> Result<(Cost, String)> {
    let time = system_program("time", "time")?;
    let figures = tempfile::NamedTempFile::new()?;
    let mut timed = Command::new(time);
    timed.args(["-f", "%U %S %M", "-o"]).arg(figures.path()).arg("--");
    timed.arg(command.get_program()).args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        timed.current_dir(folder);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => timed.env(name, value),
            None => timed.env_remove(name),
        };
    }
    timed.stdin(match input {
        Some(path) => File::open(path).with_context(|| format!("cannot open {}", path.display()))?.into(),
        None => Stdio::null(),
    });
    rustix::fs::sync();
    let started = Instant::now();
    let output = timed.output().with_context(|| format!("cannot run `{}`", shown(command)))?;
    let wall_seconds = started.elapsed().as_secs_f64();
    ensure!(
        output.status.success(),
        "`{}` failed ({}): {}",
        shown(command),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let cost = parse(&fs::read_to_string(figures.path())?, wall_seconds)?;
    Ok((
        cost,
        String::from_utf8(output.stdout).with_context(|| format!("`{}` printed no UTF-8", shown(command)))?,
    ))
}

fn parse(figures: &str, wall_seconds: f64) -> Result<Cost> {
    let numbers: Vec<f64> = figures.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let &[user, system, kilobytes] = numbers.as_slice() else {
        anyhow::bail!("GNU time printed {figures:?}");
    };
    Ok(Cost { wall_seconds, cpu_seconds: user + system, peak_rss_bytes: kilobytes as u64 * 1024 })
}

/// Reads a file or device once, so that every tool finds it in the page cache.
pub fn warm(path: &Path) -> Result<()> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    std::io::copy(&mut file, &mut std::io::sink())?;
    Ok(())
}

/// What all files below a folder hold.
pub fn stored_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for path in crate::tidy::entries(folder)? {
        bytes += if path.is_dir() { stored_bytes(&path)? } else { path.metadata()?.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read() {
        let cost = parse("1.50 0.25 2048\n", 3.0).unwrap();
        assert_eq!((cost.cpu_seconds, cost.peak_rss_bytes), (1.75, 2 << 20));
        assert!(parse("Command exited with non-zero status 1\n1", 3.0).is_err());
    }

    #[test]
    fn a_failing_program_is_an_error() {
        assert!(measured(Command::new("sh").args(["-c", "exit 1"]), None).is_err());
    }
}
