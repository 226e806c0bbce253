//! The command line of what moves changes: `send` and `apply`, and lvmsync's own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, ValueEnum};

use super::values;

/// A format of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StreamFormat {
    /// lvkeep's own: with checksums, sizes and an end.
    Native,
    /// That of lvmsync 3.
    Lvmsync,
}

/// A format of changes, or what their first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InputFormat {
    /// By the first bytes.
    Auto,
    /// lvkeep's own.
    Native,
    /// That of lvmsync 3; the snapback is written in it, too.
    Lvmsync,
}

/// `send`.
#[derive(Debug, Clone, Args)]
pub struct SendArgs {
    /// An LVM snapshot, VG/LV or its device: what changed since it was taken is sent. With --to also any file or device
    pub snapshot: String,
    /// Where the changes go: a device or file that is as the snapshot is; HOST:PATH by a remote shell
    #[arg(required_unless_present = "stdout", conflicts_with = "stdout", value_name = "[HOST:]TARGET")]
    pub target: Option<String>,
    /// Read the changed bytes from this newer snapshot instead of the origin, so that they are of one moment
    #[arg(long, value_name = "NEWER")]
    pub to: Option<String>,
    /// Write the stream to standard output
    #[arg(long, conflicts_with_all = ["snapback", "rsh", "remote_program"])]
    pub stdout: bool,
    /// Keep what is overwritten in this file, on the target's host
    #[arg(long, value_name = "FILE")]
    pub snapback: Option<PathBuf>,
    /// The stream's format; with lvmsync and a HOST, lvmsync runs there
    #[arg(long, value_enum, default_value = "native")]
    pub format: StreamFormat,
    /// The remote shell and its options, split at blanks; default ssh with keep-alives
    #[arg(long, env = "LVKEEP_RSH", value_name = "COMMAND")]
    pub rsh: Option<String>,
    /// The program at the other end; default lvkeep, or lvmsync with --format lvmsync
    #[arg(long, alias = "remote-lvkeep", value_name = "PATH")]
    pub remote_program: Option<String>,
    /// Read at most this much per second, e.g. 100MiB
    #[arg(long, alias = "limit", value_name = "SIZE", value_parser = values::size)]
    pub limit_read: Option<String>,
}

/// `apply`.
#[derive(Debug, Clone, Args)]
pub struct ApplyArgs {
    /// A file that `send --stdout` or --snapback wrote, or - for standard input
    pub stream: String,
    /// The device or file to change; VG/LV for a logical volume
    pub target: String,
    /// Keep what is overwritten in this file; applied, it takes the target back
    #[arg(long, value_name = "FILE")]
    pub snapback: Option<PathBuf>,
    /// The stream's format
    #[arg(long, value_enum, default_value = "auto")]
    pub format: InputFormat,
    /// Take what there is of a stream that was cut off, such as the snapback of an apply that was interrupted
    #[arg(long)]
    pub unfinished: bool,
    /// A sender waits for answers on standard output
    #[arg(long, hide = true)]
    pub answers: bool,
    /// That sender's connection broke before
    #[arg(long, hide = true, requires = "answers")]
    pub reconnected: bool,
}

/// Under the name lvmsync, lvkeep takes lvmsync's own command line, so that it can stand where lvmsync is expected.
#[derive(Debug, Parser)]
#[command(name = "lvmsync", version, about = "lvkeep, called as lvmsync", after_help = crate::exit::TABLE)]
struct Lvmsync {
    /// Apply the changes of this file (- for standard input)
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["stdout", "server"])]
    apply: Option<String>,
    /// As --apply -
    #[arg(long)]
    server: bool,
    /// Write the changes to standard output
    #[arg(short, long)]
    stdout: bool,
    /// Keep what is overwritten in this file
    #[arg(short = 'b', long, value_name = "FILE")]
    snapback: Option<PathBuf>,
    /// More log lines
    #[arg(short, long)]
    verbose: bool,
    /// The snapshot and DEVICE or HOST:DEVICE, or only the device to apply to
    #[arg(required = true, num_args = 1..=2, value_name = "DEVICE")]
    devices: Vec<String>,
}

impl Lvmsync {
    /// The same in lvkeep's words; an error says what is missing.
    fn words(&self) -> Result<Vec<String>, &'static str> {
        let mut words = vec!["lvkeep".to_owned()];
        words.extend(self.verbose.then(|| "-v".to_owned()));
        let applies = self.apply.clone().or_else(|| self.server.then(|| "-".to_owned()));
        words.extend(
            [if applies.is_some() { "apply" } else { "send" }, "--format", "lvmsync"].map(str::to_owned),
        );
        if let Some(file) = &self.snapback {
            words.extend(["--snapback".to_owned(), file.display().to_string()]);
        }
        words.extend(self.stdout.then(|| "--stdout".to_owned()));
        words.push("--".to_owned());
        match (applies, self.devices.len(), self.stdout) {
            (Some(stream), 1, _) => words.push(stream),
            (Some(_), _, _) => return Err("one device is applied to"),
            (None, 1, false) => return Err("no destination was given"),
            (None, 2, true) => return Err("--stdout takes no destination"),
            _ => {}
        }
        words.extend(self.devices.iter().cloned());
        Ok(words)
    }
}

/// The command line in lvkeep's words, whatever the name that it was called by.
pub fn words() -> Vec<OsString> {
    let words: Vec<OsString> = std::env::args_os().collect();
    let name = words.first().and_then(|word| Path::new(word).file_name());
    if name.is_none_or(|name| name != "lvmsync") {
        return words;
    }
    match Lvmsync::parse_from(words).words() {
        Ok(words) => words.into_iter().map(OsString::from).collect(),
        Err(why) => Lvmsync::command().error(ErrorKind::WrongNumberOfValues, why).exit(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lvmsyncs_words_become_ours() {
        for (line, expected) in [
            ("snap host:/dev/b", Ok("lvkeep send --format lvmsync -- snap host:/dev/b")),
            ("/dev/vg/s --stdout", Ok("lvkeep send --format lvmsync --stdout -- /dev/vg/s")),
            (
                "--apply - --snapback f -v /dev/b",
                Ok("lvkeep -v apply --format lvmsync --snapback f -- - /dev/b"),
            ),
            ("--server /dev/b", Ok("lvkeep apply --format lvmsync -- - /dev/b")),
            ("-a changes /dev/b", Ok("lvkeep apply --format lvmsync -- changes /dev/b")),
            ("snap", Err("no destination was given")),
            ("-s snap /dev/b", Err("--stdout takes no destination")),
            ("-a changes /dev/b /dev/c", Err("one device is applied to")),
        ] {
            let words = std::iter::once("lvmsync").chain(line.split(' '));
            let words = Lvmsync::try_parse_from(words).unwrap().words();
            assert_eq!(words.map(|words| words.join(" ")), expected.map(str::to_owned), "{line}");
        }
    }
}
