//! A whole site: a NATS server, an object store, a repository, an operator, and agents on hosts.

use rustix::process::Signal;

use super::archive::Archive;
use super::machine::Machine;
use super::nats::NatsServer;
use super::process::{Process, Ran};
use super::seaweed::Seaweed;

/// Where the repository is in the bucket.
const PREFIX: &str = "archive";

/// Servers, a repository and its keys.
#[derive(Debug)]
pub struct Site {
    /// The message bus.
    pub nats: NatsServer,
    /// The object store.
    pub weed: Seaweed,
    /// Who has everything: credentials, writer key, identity.
    pub operator: Machine,
    /// The repository, for looking into it.
    pub archive: Archive,
    settings: String,
}

/// An agent process on a host.
#[derive(Debug)]
pub struct Agent {
    machine: Machine,
    arguments: Vec<String>,
    process: Process,
}

impl Site {
    /// Starts the servers and makes a repository with packs of 1 MiB. `settings` goes into every agent's
    /// configuration file.
    pub fn start(settings: &str) -> Self {
        let nats = NatsServer::start();
        let weed = Seaweed::start();
        let mut operator = Machine::new("operator");
        operator.set_all(&weed.environment());
        operator.set("LVKEEP_REPO", &weed.location(PREFIX));
        let (key, identity) = (operator.place("writer-key"), operator.place("identity"));
        operator.run(&["init", "--pack-size", "1MiB", "--key-out", &key, "--identity-out", &identity]).ok();
        operator.set("LVKEEP_IDENTITY", &identity);
        operator.set("LVKEEP_KEY", &key);
        let archive = Archive::open(weed.store(PREFIX), &identity);
        Self { nats, weed, operator, archive, settings: settings.to_owned() }
    }

    /// Starts an agent and waits until it is ready. It gets what its roles need and nothing else: hosts have no
    /// credentials for the store, and only restorers and checkers have the identity.
    pub fn agent(&self, host: &str, roles: &[&str], more: &[&str]) -> Agent {
        self.agent_with(host, roles, more, "")
    }

    /// The same with more lines at the top of its configuration file.
    pub fn agent_with(&self, host: &str, roles: &[&str], more: &[&str], settings: &str) -> Agent {
        let mut machine = Machine::bare(&format!("{host}-{}", roles.join("+")));
        machine.configure(&format!("{}\n{settings}\n", self.settings));
        machine.set("LVKEEP_NATS", &self.nats.url());
        machine.set("LVKEEP_HOST", host);
        machine.set("LVKEEP_KEY", &self.operator.place("writer-key"));
        let needs_bucket = |role: &&str| !["reader", "hasher"].contains(role);
        if roles.iter().any(needs_bucket) {
            machine.set_all(&self.weed.environment());
            machine.set("LVKEEP_REPO", &self.weed.location(PREFIX));
        }
        if roles.iter().any(|role| ["restorer", "checker"].contains(role)) {
            machine.set("LVKEEP_IDENTITY", &self.operator.place("identity"));
        }
        let mut arguments = vec!["agent".to_owned()];
        roles.iter().for_each(|role| arguments.extend(["--role".to_owned(), (*role).to_owned()]));
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        let process = launch(&machine, &arguments);
        Agent { machine, arguments, process }
    }

    /// Starts a backup of a file of `host` by the agents.
    pub fn backup(&self, host: &str, path: &str) -> Process {
        self.operator.start(&["--json", "backup", "--nats", &self.nats.url(), "--host", host, path])
    }

    /// Everything that `snapshots` lists.
    pub fn snapshots(&self) -> Vec<serde_json::Value> {
        self.operator.json(&["snapshots"]).as_array().cloned().unwrap_or_default()
    }
}

fn launch(machine: &Machine, arguments: &[String]) -> Process {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut process = machine.start(&arguments);
    process.wait_for("is ready");
    process
}

impl Agent {
    /// `kill -9`; whether that ended it.
    pub fn kill(&mut self) -> bool {
        self.process.kill()
    }

    /// Starts it again as it was, with what its machine has on disk.
    pub fn start_again(&mut self) {
        self.process = launch(&self.machine, &self.arguments);
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// SIGTERM, and waits for its end.
    pub fn terminate(&mut self) -> Ran {
        self.process.signal(Signal::TERM);
        self.process.wait()
    }

    /// Its machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// What it has said so far.
    pub fn err(&self) -> String {
        self.process.err()
    }
}
