//! A real nats-server for a test: on a free loopback port, in a directory of its own, killed when dropped.

#![allow(dead_code, reason = "each of the test programs uses a part of it")]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use agent::Environment;
use agent::contract::bus::{FULL_QUEUE, Fixture};
use bus_nats::{NatsBus, Settings};

/// Where the server's binary comes from when the tools were fetched.
fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("LVKEEP_TEST_NATS_SERVER") {
        return path.into();
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target directory");
    let tools = target.join("tools");
    let found = std::fs::read_dir(&tools).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut servers = found.filter(|path| {
        path.is_file()
            && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nats-server"))
    });
    match servers.next() {
        Some(path) => path,
        None => panic!(
            "no nats-server in {}: run cargo xtask tools, or set LVKEEP_TEST_NATS_SERVER to its path",
            tools.display()
        ),
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    port: u16,
    arguments: Vec<String>,
    directory: tempfile::TempDir,
}

impl Server {
    /// A server with JetStream.
    pub fn start() -> Self {
        Self::start_with(&["-js"])
    }

    /// A server with arguments of its own; `{dir}` stands for its directory.
    pub fn start_with(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        // Another process may take the port before the server does: then the next one.
        for _ in 0..20 {
            let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let port = free.local_addr().expect("its address").port();
            drop(free);
            let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
            if let Some(child) = launch(port, &arguments, directory.path()) {
                return Self { child, port, arguments, directory };
            }
        }
        panic!("nats-server did not start");
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Kills it without any warning.
    pub fn kill(&mut self) {
        self.child.kill().expect("the server can be killed");
        self.child.wait().expect("the server ended");
    }

    /// A copy of its files.
    pub fn copied(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().expect("a directory");
        let from = self.directory.path().join(".");
        let done = Command::new("cp").arg("-a").arg(from).arg(copy.path()).status();
        assert!(done.is_ok_and(|status| status.success()), "the server's files are copied");
        copy
    }

    /// Has these files from the next start on.
    pub fn put_back(&mut self, files: tempfile::TempDir) {
        self.directory = files;
    }

    /// Starts it again on the same port with the same files; what it had in memory is gone.
    pub fn start_again(&mut self) {
        self.child =
            launch(self.port, &self.arguments, self.directory.path()).expect("the server starts again");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a server and waits until it says that it is ready; none if it ended instead.
fn launch(port: u16, arguments: &[String], directory: &Path) -> Option<Child> {
    let here = directory.to_string_lossy();
    let mut child = Command::new(binary())
        .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-sd", &here])
        .args(arguments.iter().map(|text| text.replace("{dir}", &here)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nats-server can be run");
    let mut lines = BufReader::new(child.stderr.take().expect("its log")).lines();
    while let Some(Ok(line)) = lines.next() {
        if line.contains("Server is ready") {
            // Read on, so that the server never waits for its log.
            std::thread::spawn(move || lines.for_each(drop));
            return Some(child);
        }
    }
    let _ = child.wait();
    None
}

/// Time and randomness as they are.
#[derive(Debug)]
pub struct RealTime {
    start: std::time::Instant,
}

#[async_trait::async_trait]
impl Environment for RealTime {
    fn now_ms(&self) -> u64 {
        1_700_000_000_000 + self.start.elapsed().as_millis() as u64
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        use std::hash::{BuildHasher, Hasher};
        for chunk in bytes.chunks_mut(8) {
            let random = std::hash::RandomState::new().build_hasher().finish().to_le_bytes();
            chunk.copy_from_slice(&random[..chunk.len()]);
        }
    }
}

pub fn environment() -> Arc<dyn Environment> {
    Arc::new(RealTime { start: std::time::Instant::now() })
}

/// Settings for a server, with a queue of new chunks as small as the contract suite wants it.
pub fn settings(server: &Server) -> Settings {
    let mut settings = Settings::new(server.url(), "0123abcd");
    settings.family_bytes.insert("chunks".into(), FULL_QUEUE as u64);
    settings
}

pub async fn connect(server: &Server) -> Arc<NatsBus> {
    Arc::new(NatsBus::connect(settings(server)).await.expect("a connection"))
}

/// Two connections to one server.
pub async fn fixture(server: &Server) -> Fixture {
    let (near, far) = (connect(server).await, connect(server).await);
    let (patience, pause) = (Duration::from_secs(60), Duration::from_millis(300));
    Fixture { near, far, environment: environment(), patience, pause }
}
