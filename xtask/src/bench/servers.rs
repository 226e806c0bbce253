//! A NATS server and SeaweedFS on loopback ports, for as long as a measurement takes, and what processes use.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::tools::Tool;

const BUCKET: &str = "bench";
const ACCESS_KEY: &str = "lvkeep-bench";
const SECRET_KEY: &str = "a secret that is none";
/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// A child process that ends with this value; what it says goes to a file.
pub struct Process {
    name: String,
    child: Child,
    said: PathBuf,
}

/// What a process has used so far.
pub struct Usage {
    /// User and system.
    pub cpu_seconds: f64,
    pub peak_rss_bytes: u64,
}

impl Process {
    /// Starts a program.
    pub fn start(name: &str, mut command: Command, folder: &Path) -> Result<Self> {
        let said = folder.join(format!("{name}.log"));
        let file = fs::File::create(&said)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, said })
    }

    /// Waits until it says these words.
    pub fn wait_for(&mut self, words: &str) -> Result<()> {
        let said = self.said.clone();
        self.wait_until(&format!("says {words:?}"), || {
            fs::read_to_string(&said).is_ok_and(|said| said.contains(words))
        })
    }

    fn wait_until(&mut self, what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
        let started = Instant::now();
        while !is_so() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || started.elapsed() > PATIENCE {
                let said = fs::read_to_string(&self.said).unwrap_or_default();
                bail!("waited in vain until {} {what}; it said:\n{said}", self.name);
            }
            sleep(PAUSE);
        }
        Ok(())
    }

    /// What it has used so far, by the kernel's account.
    pub fn usage(&self) -> Result<Usage> {
        let of = |file: &str| {
            fs::read_to_string(format!("/proc/{}/{file}", self.child.id()))
                .with_context(|| format!("{} has ended", self.name))
        };
        let ticks = ticks(&of("stat")?).with_context(|| format!("no times of {}", self.name))?;
        let status = of("status")?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = peak.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        Ok(Usage {
            cpu_seconds: ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
            peak_rss_bytes: kilobytes.unwrap_or(0) * 1024,
        })
    }
}

/// User and system time in `/proc/PID/stat`, whose second field may hold anything in parentheses.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A NATS server with JetStream.
pub struct Nats {
    /// The server.
    pub process: Process,
    port: u16,
}

impl Nats {
    /// Starts it with its files in a folder.
    pub fn start(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let [port] = free_ports()?;
        let mut command = Command::new(Tool::NatsServer.bring()?);
        command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"]).arg(folder);
        let mut process = Process::start("nats-server", command, folder)?;
        process.wait_for("Server is ready")?;
        Ok(Self { process, port })
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

/// SeaweedFS with its S3 gateway and one bucket.
pub struct Seaweed {
    _process: Process,
    s3: u16,
    sockets: Vec<PathBuf>,
}

impl Seaweed {
    /// Starts it with its files in a folder.
    pub fn start(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder.join("data"))?;
        let identity = serde_json::json!({"identities": [{
            "name": "lvkeep",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List"],
        }]});
        fs::write(folder.join("s3.json"), identity.to_string())?;
        let ports = free_ports::<8>()?;
        let mut command = Command::new(Tool::Weed.bring()?);
        command.current_dir(folder).args(["server", "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]);
        command.args(["-master.telemetry=false", "-master.electionTimeout=1s", "-filer", "-s3"]);
        command.args(["-volume.max=32", "-master.volumeSizeLimitMB=1024"]);
        command.args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.config=s3.json"]);
        command.args(["-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock"]);
        let mut sockets = Vec::new();
        for (part, ports) in ["master", "volume", "filer", "s3"].iter().zip(ports.chunks_exact(2)) {
            command.arg(format!("-{part}.port={}", ports[0])).arg(format!("-{part}.port.grpc={}", ports[1]));
            sockets.push(PathBuf::from(format!("/tmp/seaweedfs-{part}-grpc-{}.sock", ports[1])));
        }
        let [_, _, _, _, filer, _, s3, _] = ports;
        let mut process = Process::start("weed", command, folder)?;
        process.wait_until("has its bucket", || {
            post(filer, &format!("/buckets/{BUCKET}/")).is_ok()
                && TcpStream::connect(("127.0.0.1", s3)).is_ok()
        })?;
        Ok(Self { _process: process, s3, sockets })
    }

    /// The repository in its bucket.
    pub fn location(&self) -> String {
        format!("s3://{BUCKET}/archive")
    }

    /// What a client needs.
    pub fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.s3)),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
        ]
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        // It leaves its local sockets behind, whose places for gRPC cannot be chosen.
        for socket in &self.sockets {
            let _ = fs::remove_file(socket);
        }
    }
}

/// Makes a folder of the filer.
fn post(port: u16, path: &str) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(
        answer.starts_with("HTTP/1.1 2") || answer.starts_with("HTTP/1.1 409"),
        "the filer said {answer:?}"
    );
    Ok(())
}

/// Ports that nobody listens on just now, each another one.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut held = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a) b 1 2) S 1 7 7 0 -1 4194560 100 0 0 0 250 31 0 0 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(281));
        assert_eq!(ticks("7 (a"), None);
    }
}
