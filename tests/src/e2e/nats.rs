//! A real nats-server with JetStream on a loopback port, with its files in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::process::Process;
use super::tools::{fetched, free_ports};
use super::wait::eventually;

/// A running server.
#[derive(Debug)]
pub struct NatsServer {
    process: Process,
    port: u16,
    folder: TempDir,
}

impl NatsServer {
    /// Starts a server and waits until it takes connections.
    pub fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("lvkeep-nats-").tempdir().expect("a folder");
        // Somebody else may take the port before the server does: then the next one.
        let (process, port) = eventually("nats-server starts", || {
            let [port] = free_ports();
            Some((launch(port, &folder)?, port))
        });
        Self { process, port, folder }
    }

    /// Starts a server with a configuration file, which brings its own storage, and variables that the file refers to.
    pub fn configured(configuration: &Path, variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::Builder::new().prefix("lvkeep-nats-").tempdir().expect("a folder");
        let (process, port) = eventually("nats-server starts", || {
            let [port] = free_ports();
            let mut command = Command::new(Self::program());
            command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-c"]).arg(configuration);
            command.envs(variables.iter().copied());
            Some((until_ready(command, &folder)?, port))
        });
        Self { process, port, folder }
    }

    /// The server's program.
    pub fn program() -> PathBuf {
        fetched("nats-server", "LVKEEP_TEST_NATS_SERVER")
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it has logged so far.
    pub fn err(&self) -> String {
        self.process.err()
    }

    /// Waits until it logs these words.
    pub fn says(&self, words: &str) {
        eventually(&format!("nats-server says {words:?}"), || self.err().contains(words).then_some(()));
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// `kill -9`; whether that ended it.
    pub fn kill(&mut self) -> bool {
        self.process.kill()
    }

    /// Starts it again on the same port with the same files; what it had in memory is gone.
    pub fn start_again(&mut self) {
        self.process = eventually("nats-server starts again", || launch(self.port, &self.folder));
    }
}

/// Starts a server; none when it ended before it was ready.
fn launch(port: u16, folder: &TempDir) -> Option<Process> {
    let mut command = Command::new(NatsServer::program());
    command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"]).arg(folder.path());
    until_ready(command, folder)
}

/// Starts a server; none when it ended before it was ready.
fn until_ready(command: Command, folder: &TempDir) -> Option<Process> {
    let mut process = Process::start("nats-server", command, folder.path());
    let ready = eventually("nats-server is ready", || match process.err().contains("Server is ready") {
        true => Some(true),
        false => process.has_ended().then_some(false),
    });
    ready.then_some(process)
}
