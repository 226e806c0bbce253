//! Where changes go: a target on this host, or one on another that a remote shell leads to.

use std::convert::Infallible;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::str::FromStr;

use agent::Failure;
use async_trait::async_trait;
use schema::messages::FailureKind;
use schema::stream::Format;
use tokio::process::Command;

use super::link::{Connector, Link};

/// The remote shell, unless another is asked for. A connection that is dead is noticed within a minute.
pub const RSH: &str = "ssh -o ServerAliveInterval=15 -o ServerAliveCountMax=3 -o ConnectTimeout=30";

/// A target, as it is written: `TARGET` or `HOST:TARGET`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On this host.
    Here(String),
    /// On another.
    There {
        /// As the remote shell takes it.
        host: String,
        /// There.
        target: String,
    },
}

impl FromStr for Place {
    type Err = Infallible;

    /// As rsync and scp read it: a colon before the first slash ends a host's name, and brackets hold one that has
    /// colons of its own.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let split = match text.split_once("]:") {
            Some((host, target)) if !host.contains('/') => {
                host.split_once('[').map(|(user, address)| (format!("{user}{address}"), target.to_owned()))
            }
            _ => text.split_once(':').map(|(host, target)| (host.to_owned(), target.to_owned())),
        };
        Ok(match split {
            Some((host, target)) if !host.is_empty() && !host.contains('/') => Self::There { host, target },
            _ => Self::Here(text.to_owned()),
        })
    }
}

/// A program at the far end of a remote shell.
#[derive(Debug, Clone)]
pub struct Remote {
    /// The remote shell and its options.
    pub rsh: Vec<String>,
    /// The host.
    pub host: String,
    /// Path of `lvkeep` or `lvmsync` there.
    pub program: String,
    /// Which of the two it is.
    pub format: Format,
    /// The target there.
    pub target: String,
    /// A file there for what is overwritten.
    pub snapback: Option<PathBuf>,
}

impl Remote {
    /// The words that are run there.
    fn words(&self, reconnecting: bool) -> Vec<String> {
        let mut words = vec![self.program.clone()];
        let mut add = |more: &[&str]| words.extend(more.iter().map(|word| (*word).to_owned()));
        let snapback = self.snapback.as_ref().map(|path| path.display().to_string());
        match self.format {
            Format::Native => add(&["--quiet", "apply", "--format", "native", "--answers"]),
            Format::Lvmsync => add(&["--apply", "-"]),
        }
        if reconnecting && self.format == Format::Native {
            add(&["--reconnected"]);
        }
        if let Some(snapback) = &snapback {
            add(&["--snapback", snapback]);
        }
        match self.format {
            Format::Native => add(&["--", "-", &self.target]),
            Format::Lvmsync => add(&[&self.target]),
        }
        words
    }
}

#[async_trait]
impl Connector for Remote {
    fn name(&self) -> String {
        format!("{}:{}", self.host, self.target)
    }

    fn comes_back(&self) -> bool {
        self.format == Format::Native
    }

    async fn connect(&self, reconnecting: bool) -> Result<Link, Failure> {
        let Some((shell, options)) = self.rsh.split_first() else {
            return Err(Failure::refused("the remote shell (--rsh) has no name"));
        };
        let line = self.words(reconnecting).iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        tracing::debug!(shell, host = self.host, line, "connecting");
        let cannot =
            |why: std::io::Error| Failure::new(FailureKind::Other, format!("cannot run {shell}: {why}"));
        let mut command = Command::new(shell);
        command.args(options).arg(&self.host).arg(line).stdin(Stdio::piped()).kill_on_drop(true);
        match self.format {
            Format::Native => command.stdout(Stdio::piped()),
            // lvmsync talks to people only.
            Format::Lvmsync => {
                command.stdout(std::io::stderr().as_fd().try_clone_to_owned().map_err(cannot)?)
            }
        };
        let mut process = command.spawn().map_err(cannot)?;
        let no_pipe = || Failure::new(FailureKind::Other, format!("{shell} has no pipes"));
        let input = Box::pin(process.stdin.take().ok_or_else(no_pipe)?);
        Ok(match process.stdout.take() {
            Some(output) => Link { input, output: Box::pin(output), process: Some(process) },
            None => Link { input, output: Box::pin(tokio::io::empty()), process: Some(process) },
        })
    }
}

/// One word for a POSIX shell.
fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:@%+=,".contains(&byte);
    match !word.is_empty() && word.bytes().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        let there = |host: &str, target: &str| Place::There { host: host.into(), target: target.into() };
        for (text, expected) in [
            ("vmsrv2:/dev/vg/web", there("vmsrv2", "/dev/vg/web")),
            ("root@vmsrv2:vg/web", there("root@vmsrv2", "vg/web")),
            ("[fe80::1%eth0]:/dev/vg/web", there("fe80::1%eth0", "/dev/vg/web")),
            ("root@[::1]:/dev/vg/web", there("root@::1", "/dev/vg/web")),
            ("/dev/disk/by-id/scsi-0:1", Place::Here("/dev/disk/by-id/scsi-0:1".into())),
            ("./odd:name", Place::Here("./odd:name".into())),
            ("vg/web", Place::Here("vg/web".into())),
            (":/dev/vg/web", Place::Here(":/dev/vg/web".into())),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn words_survive_a_shell() {
        for word in ["plain", "", "two words", "it's", "$(reboot)", "a;b", "`x`", "\"", "ümlaut", "*"] {
            let line = format!("printf %s {}", quoted(word));
            let out = std::process::Command::new("sh").arg("-c").arg(line).output().unwrap();
            assert_eq!(String::from_utf8(out.stdout).unwrap(), word);
        }
    }

    #[test]
    fn either_program_is_asked_in_its_own_words() {
        let mut remote = Remote {
            rsh: vec!["ssh".into()],
            host: "h".into(),
            program: "lvkeep".into(),
            format: Format::Native,
            target: "/dev/vg/web".into(),
            snapback: Some("/var/s b".into()),
        };
        let native = "lvkeep --quiet apply --format native --answers --reconnected --snapback /var/s b -- - /dev/vg/web";
        assert_eq!(remote.words(true).join(" "), native);
        remote.format = Format::Lvmsync;
        remote.program = "lvmsync".into();
        assert_eq!(remote.words(true).join(" "), "lvmsync --apply - --snapback /var/s b /dev/vg/web");
    }
}
