//! What a connection needs to know, and the limits of each family's stream.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use agent::Queue;
use agent::bus::token;

/// Why a connection cannot be used. Nothing of it mends itself, except [`StartError::Unreachable`].
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is wrong.
    #[error("setting {setting} of the message bus: {why}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// No server answers.
    #[error(
        "cannot connect to the NATS server {server}: {why}; check that it runs and that the address, credentials and certificates fit"
    )]
    Unreachable {
        /// Its address, without any password.
        server: String,
        /// What happened.
        why: String,
    },
    /// The server has no JetStream.
    #[error(
        "the NATS server {server} offers no JetStream ({why}); start nats-server with -js, or allow it for this account"
    )]
    NoJetStream {
        /// Its address, without any password.
        server: String,
        /// What it answered.
        why: String,
    },
    /// The server takes smaller messages only.
    #[error(
        "the NATS server {server} takes messages of {found} bytes at most, {needed} are needed; raise its max_payload"
    )]
    Payload {
        /// Its address, without any password.
        server: String,
        /// What it takes, in bytes.
        found: usize,
        /// What is needed, in bytes.
        needed: usize,
    },
    /// A queue or a window is too small for packs of the configured size.
    #[error("{what} holds {found} bytes, but two packs are {needed}; raise it, or lower the pack size")]
    Window {
        /// What is too small.
        what: &'static str,
        /// What it holds, in bytes.
        found: u64,
        /// What is needed, in bytes.
        needed: u64,
    },
}

/// How to reach the bus, and its limits.
#[derive(Clone)]
pub struct Settings {
    /// One or more addresses with commas between: `nats://host:4222`, `tls://user:password@host`.
    pub url: String,
    /// One token that keeps repositories on one server apart: the first subject token and prefix of stream names.
    pub namespace: String,
    /// This process, for people who look at the server's connections.
    pub name: String,
    /// A credentials file (`.creds`) with a user's JWT and key.
    pub credentials_file: Option<PathBuf>,
    /// Certificates (PEM) that the server's certificate must descend from; without it, those of the system. Given,
    /// TLS is required.
    pub ca_file: Option<PathBuf>,
    /// Servers of a cluster that keep each queue; 1 to 5.
    pub replicas: usize,
    /// Bytes that a storer takes from the queue of new chunks before it acknowledges any.
    pub chunk_window: usize,
    /// A delivery that is neither settled nor extended comes again after this; the server is told at a third of it
    /// about what waits in this process. At least a second.
    pub ack_wait: Duration,
    /// Bytes of a family's stream, where it is not to be the default.
    pub family_bytes: BTreeMap<String, u64>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The address may hold a password.
        f.debug_struct("Settings")
            .field("namespace", &self.namespace)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Settings for one server without replicas, without TLS unless the address asks for it.
    pub fn new(url: impl Into<String>, namespace: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            namespace: namespace.into(),
            name: "lvkeep".into(),
            credentials_file: None,
            ca_file: None,
            replicas: 1,
            chunk_window: 128 << 20,
            ack_wait: Duration::from_secs(30),
            family_bytes: BTreeMap::new(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), StartError> {
        if self.namespace.is_empty() || token(&self.namespace) != self.namespace {
            let why = format!("{:?} is not one or more of A-Z, a-z, 0-9, _ and -", self.namespace);
            return Err(StartError::Setting { setting: "namespace", why });
        }
        if !(1..=5).contains(&self.replicas) {
            let why = format!("{} is not 1 to 5", self.replicas);
            return Err(StartError::Setting { setting: "replicas", why });
        }
        if self.ack_wait < Duration::from_secs(1) {
            let why = format!("{:?} is less than a second", self.ack_wait);
            return Err(StartError::Setting { setting: "ack_wait", why });
        }
        Ok(())
    }

    pub(crate) fn check_windows(&self, pack_size: u64) -> Result<(), StartError> {
        let needed = pack_size.saturating_mul(2);
        let stream = self.bytes_of(Queue::chunks().family());
        for (what, found) in [
            ("the NATS stream of new chunks", stream),
            ("the window of unacknowledged new chunks", self.chunk_window as u64),
        ] {
            if found < needed {
                return Err(StartError::Window { what, found, needed });
            }
        }
        Ok(())
    }

    /// Bytes of a family's stream.
    pub(crate) fn bytes_of(&self, family: &str) -> u64 {
        self.family_bytes.get(family).copied().unwrap_or_else(|| family_bytes(family))
    }
}

/// Bytes of a family's stream at most: all of its queues together. About 560 MiB of the server's memory, and 80 MiB
/// of its disk.
pub fn family_bytes(family: &str) -> u64 {
    match family {
        // On disk: some forty thousand jobs.
        "jobs" => 64 << 20,
        // On disk: one small message per job that nobody asked about yet.
        "done" => 16 << 20,
        // Small, one per session and re-drive.
        "reads" => 16 << 20,
        // Extents of all hosts: two seconds of a 10 Gbit/s network's worth are no use to anybody.
        "extents" => 192 << 20,
        // At least two packs per storer: four storers with packs of 32 MiB.
        "chunks" => 256 << 20,
        // 40 bytes per stored chunk.
        "stored" => 32 << 20,
        // 1 KiB per MiB of volume for each session.
        "session" => 64 << 20,
        _ => 16 << 20,
    }
}

/// Messages in one queue at most, so that one queue whose consumer is away does not fill its family's stream for
/// all others.
pub(crate) fn queue_messages(family: &str) -> i64 {
    match family {
        // Up to 1 MB each: one host's 64 MB.
        "extents" => 64,
        // The one queue of its family.
        "chunks" => -1,
        "session" => 4096,
        _ => 16_384,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_hold_two_packs_or_are_refused_by_name() {
        let mut settings = Settings::new("nats://localhost", "ns");
        let (stream, window) = (family_bytes("chunks"), settings.chunk_window as u64);
        assert!(settings.check_windows(32 << 20).is_ok());
        assert!(settings.check_windows(window / 2).is_ok());
        let too_much = settings.check_windows(window / 2 + 1).unwrap_err().to_string();
        assert!(
            too_much.starts_with("the window of unacknowledged new chunks holds 134217728 bytes"),
            "{too_much}"
        );
        settings.chunk_window = usize::MAX;
        assert!(settings.check_windows(stream / 2).is_ok());
        let too_much = settings.check_windows(stream / 2 + 1).unwrap_err().to_string();
        assert!(too_much.starts_with("the NATS stream of new chunks"), "{too_much}");
        settings.family_bytes.insert("chunks".into(), 1 << 20);
        assert!(settings.check_windows(1 << 20).is_err());
        assert!(settings.check_windows(u64::MAX).is_err());
    }

    #[test]
    fn settings_are_checked() {
        assert!(Settings::new("nats://localhost", "0a1b2c3d").check().is_ok());
        for namespace in ["", "a.b", "a b", "*", "a>"] {
            assert!(Settings::new("nats://localhost", namespace).check().is_err(), "{namespace:?}");
        }
        let settings = Settings { replicas: 0, ..Settings::new("nats://localhost", "ns") };
        assert!(settings.check().is_err());
        assert!(!format!("{:?}", Settings::new("nats://me:secret@localhost", "ns")).contains("secret"));
    }
}
