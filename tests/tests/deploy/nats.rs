//! `nats-server.conf` on a real nats-server: agents with passwords and TLS work under its limits and rights, and nobody
//! else gets in.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;
use tests::e2e::{Machine, NatsServer, Process, same_bytes};

const WORKER: &str = "worker-secret";
const OPERATOR: &str = "operator-secret";
const HOST: &str = "host-secret";
/// bcrypt of [`HOST`], in the quotes that nats-server needs.
const HOST_HASH: &str = "\"$2b$04$abcdefghijklmnopqrstuusKr8.T5K0nudoNlqXd1HI9HqsKHl10G\"";
const PASSWORDS: [(&str, &str); 3] = [
    ("LVKEEP_HOST_PASSWORD", HOST_HASH),
    ("LVKEEP_WORKER_PASSWORD", WORKER),
    ("LVKEEP_OPERATOR_PASSWORD", OPERATOR),
];

fn certificate(name: &str) -> String {
    let path = super::deploy().join("../agents/bus-nats/tests/fixtures").join(name);
    path.canonicalize().expect("a certificate for tests").to_str().expect("a path in UTF-8").to_owned()
}

/// The configuration with nothing changed but where its files are.
fn configuration(folder: &TempDir) -> PathBuf {
    let mut text = super::text("nats-server.conf");
    let store = folder.path().join("jetstream");
    for (here, there) in [
        ("/etc/nats/lvkeep/server.pem", certificate("server.pem")),
        ("/etc/nats/lvkeep/server.key", certificate("server.key")),
        ("/var/lib/nats", store.display().to_string()),
    ] {
        assert!(text.contains(here), "deploy/nats-server.conf does not mention {here}");
        text = text.replace(here, &there);
    }
    let path = folder.path().join("nats-server.conf");
    std::fs::write(&path, text).expect("the configuration is written");
    path
}

struct Site {
    nats: NatsServer,
    operator: Machine,
    _folder: TempDir,
}

impl Site {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let nats = NatsServer::configured(&configuration(&folder), &PASSWORDS);
        let mut operator = Machine::new("operator");
        operator.set("LVKEEP_REPO", &operator.place("archive"));
        let (key, identity) = (operator.place("writer-key"), operator.place("identity"));
        operator.run(&["init", "--pack-size", "1MiB", "--key-out", &key, "--identity-out", &identity]).ok();
        operator.set("LVKEEP_KEY", &key);
        let mut site = Self { nats, operator, _folder: folder };
        let url = site.url("operator", OPERATOR);
        site.operator.set("LVKEEP_NATS", &url);
        site.operator.set("LVKEEP_NATS_CA", &certificate("ca.pem"));
        site
    }

    fn url(&self, user: &str, password: &str) -> String {
        format!("tls://{user}:{password}@localhost:{}", self.nats.port())
    }

    fn machine(&self, host: &str, user: &str, password: &str) -> Machine {
        let mut machine = Machine::new(host);
        machine.set("LVKEEP_HOST", host);
        machine.set("LVKEEP_KEY", &self.operator.place("writer-key"));
        machine.set("LVKEEP_NATS", &self.url(user, password));
        machine.set("LVKEEP_NATS_CA", &certificate("ca.pem"));
        machine
    }

    /// A machine that has the bucket, too.
    fn worker(&self, host: &str) -> Machine {
        let mut machine = self.machine(host, "worker", WORKER);
        machine.set("LVKEEP_REPO", &self.operator.place("archive"));
        machine
    }
}

fn agent(machine: &Machine, arguments: &[&str]) -> Process {
    let mut process = machine.start(&[&["agent"], arguments].concat());
    process.wait_for("is ready");
    process
}

fn content(megabytes: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let word = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..megabytes << 17).flat_map(word).collect()
}

/// Backs up by host agents and worker agents of one role each, and restores: every queue that there is gets made under
/// the limits of the configuration, and every user does what it is for.
#[test]
fn agents_work_under_its_limits_and_rights() {
    let site = Site::start();
    let (worker, mut target) = (site.worker("worker1"), site.worker("web2"));
    target.set("LVKEEP_IDENTITY", &site.operator.place("identity"));
    let host = site.machine("web1", "host", HOST);
    let caches: Vec<String> = ["indexer", "storer", "conductor"].map(|role| worker.place(role)).into();
    let mut agents: Vec<Process> = ["indexer", "storer", "conductor"]
        .iter()
        .zip(&caches)
        .map(|(role, cache)| agent(&worker, &["--role", role, "--cache", cache]))
        .collect();
    agents.push(agent(&host, &["--role", "reader"]));
    agents.push(agent(&host, &["--role", "hasher"]));
    let restored = target.place("restored");
    std::fs::create_dir(&restored).expect("a folder for restores");
    agents.push(agent(&target, &["--role", "restorer", "--target", &restored]));

    let image = host.place("disk.img");
    std::fs::write(&image, content(8)).expect("an image");
    host.run(&["backup", "--name", "web1/disk", &image]).ok();
    let copy = format!("{restored}/disk.img");
    site.operator.run(&["restore", "web1/disk@latest", &copy, "--to-host", "web2"]).ok();
    same_bytes(&image, &copy);

    let status = site.operator.json(&["status"]);
    assert_eq!(status["agents"].as_array().map(Vec::len), Some(6), "{status}");
}

#[test]
fn nobody_gets_in_without_password_and_certificate() {
    let site = Site::start();
    site.operator.run(&["status"]).ok();
    let refused = |what: &str, change: &dyn Fn(&mut Machine), word: &str| {
        let mut machine = site.worker(what);
        change(&mut machine);
        machine.run(&["status"]).fails(1, &["cannot connect to the NATS server", word]);
        assert!(machine.run(&["agent", "--role", "reader"]).code() == 1, "an agent with {what} got in");
    };
    let wrong = site.url("worker", "wrong");
    let nobody = format!("tls://localhost:{}", site.nats.port());
    let stranger = site.url("worker", WORKER);
    refused("wrong-password", &|machine| machine.set("LVKEEP_NATS", &wrong), "authorization violation");
    refused("no-password", &|machine| machine.set("LVKEEP_NATS", &nobody), "authorization violation");
    refused(
        "no-authority",
        &|machine| {
            machine.set("LVKEEP_NATS", &stranger);
            machine.unset("LVKEEP_NATS_CA");
        },
        "certificate",
    );
}

#[test]
fn nobody_gets_in_without_tls() {
    let site = Site::start();
    let mut stream = TcpStream::connect(("127.0.0.1", site.nats.port())).expect("a connection");
    let mut lines = BufReader::new(stream.try_clone().expect("the same connection")).lines();
    let greeting = lines.next().expect("a greeting").expect("a line");
    assert!(greeting.starts_with("INFO ") && greeting.contains("\"tls_required\":true"), "{greeting}");
    let words =
        format!("CONNECT {{\"verbose\":false,\"user\":\"worker\",\"pass\":\"{WORKER}\"}}\r\nPING\r\n");
    stream.write_all(words.as_bytes()).expect("the words are sent");
    let answers: Vec<String> = lines.map_while(Result::ok).collect();
    assert!(!answers.iter().any(|line| line == "PONG"), "{answers:?}");
}

#[test]
fn hosts_may_not_order_restores() {
    let site = Site::start();
    let mut host = site.machine("web1", "host", HOST);
    host.set("LVKEEP_REPO", &site.operator.place("archive"));
    let image = host.place("disk.img");
    std::fs::write(&image, content(1)).expect("an image");
    let mut alone = Machine::new("alone");
    alone.set("LVKEEP_REPO", &site.operator.place("archive"));
    alone.set("LVKEEP_KEY", &site.operator.place("writer-key"));
    alone.run(&["backup", "--name", "web1/disk", &image]).ok();
    let mut order =
        host.start(&["restore", "web1/disk@latest", "/srv/restored/disk.img", "--to-host", "web2"]);
    site.nats.says("Publish Violation");
    assert!(site.nats.err().contains("jobs.restore-web2"), "{}", site.nats.err());
    order.kill();
}

#[test]
fn the_server_checks_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = configuration(&folder);
    let mut command = Command::new(NatsServer::program());
    command.args(["-t", "-c"]).arg(path).envs(PASSWORDS);
    Process::start("nats-server", command, folder.path()).end().ok();
}
