//! A real SeaweedFS with its S3 gateway on loopback ports, with its files in a folder of its own.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use agent::store::Store;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use tempfile::TempDir;

use super::clock::RealTime;
use super::process::Process;
use super::tools::{fetched, free_ports};
use super::wait::eventually;

/// The bucket that every server has.
const BUCKET: &str = "backups";
const ACCESS_KEY: &str = "lvkeep-test";
const SECRET_KEY: &str = "a secret that is none";
/// Who may only read and list.
const READING_KEY: &str = "lvkeep-reading";

/// A running object store with one bucket.
#[derive(Debug)]
pub struct Seaweed {
    process: Process,
    ports: Ports,
    folder: TempDir,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    master: [u16; 2],
    volume: [u16; 2],
    filer: [u16; 2],
    s3: [u16; 2],
}

impl Seaweed {
    /// Starts a server and waits until its bucket can be written to.
    pub fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("lvkeep-weed-").tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("data")).expect("a data folder");
        let user = |key: &str, actions: &str| {
            format!(
                r#"{{"name":"{key}","credentials":[{{"accessKey":"{key}","secretKey":"{SECRET_KEY}"}}],"actions":[{actions}]}}"#
            )
        };
        let (writing, reading) =
            (user(ACCESS_KEY, r#""Admin","Read","Write","List""#), user(READING_KEY, r#""Read","List""#));
        let identities = format!(r#"{{"identities":[{writing},{reading}]}}"#);
        std::fs::write(folder.path().join("s3.json"), identities).expect("the S3 configuration is written");
        // Somebody else may take a port before the server does: then others.
        let (process, ports) = eventually("SeaweedFS starts", || {
            let [a, b, c, d, e, f, g, h] = free_ports();
            let ports = Ports { master: [a, b], volume: [c, d], filer: [e, f], s3: [g, h] };
            Some((launch(ports, folder.path())?, ports))
        });
        Self { process, ports, folder }
    }

    /// Its address.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.s3[0])
    }

    /// A repository's location in its bucket.
    pub fn location(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// What a process needs to work with it.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
        ]
    }

    /// The same for a process that may write nothing.
    pub fn reading_environment(&self) -> Vec<(&'static str, String)> {
        let reading = |(name, value)| match name {
            "AWS_ACCESS_KEY_ID" => (name, READING_KEY.to_owned()),
            _ => (name, value),
        };
        self.environment().into_iter().map(reading).collect()
    }

    /// A part of its bucket, for looking into it.
    pub fn store(&self, prefix: &str) -> Store {
        let location = self.location(prefix);
        Store::new(Arc::new(client(self.ports)), prefix, &location, Arc::new(RealTime::new()))
    }

    /// Makes another bucket; any name will do.
    pub fn make_bucket(&self, name: &str) {
        let made = make_folder(self.ports.filer[0], &format!("/buckets/{name}/"));
        assert!(made.is_ok_and(|made| made), "bucket {name} is made");
    }

    /// `kill -9`; whether that ended it.
    pub fn kill(&mut self) -> bool {
        self.process.kill()
    }

    /// Starts it again on the same ports with the same files.
    pub fn start_again(&mut self) {
        let (ports, folder) = (self.ports, self.folder.path());
        self.process = eventually("SeaweedFS starts again", || launch(ports, folder));
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        self.process.kill();
        // It leaves its local sockets behind, whose places for gRPC cannot be chosen.
        let Ports { master, volume, filer, s3 } = self.ports;
        for (kind, port) in [("master", master), ("volume", volume), ("filer", filer), ("s3", s3)] {
            // Those that it did not make are no matter.
            let _ = std::fs::remove_file(format!("/tmp/seaweedfs-{kind}-grpc-{}.sock", port[1]));
        }
    }
}

fn client(ports: Ports) -> AmazonS3 {
    AmazonS3Builder::new()
        .with_endpoint(format!("http://127.0.0.1:{}", ports.s3[0]))
        .with_allow_http(true)
        .with_region("us-east-1")
        .with_access_key_id(ACCESS_KEY)
        .with_secret_access_key(SECRET_KEY)
        .with_bucket_name(BUCKET)
        .with_disable_bulk_delete(true)
        .with_retry(object_store::RetryConfig { max_retries: 0, ..Default::default() })
        .build()
        .expect("settings of an S3 client")
}

/// Starts a server and makes its bucket; none when it ended before it was ready.
fn launch(ports: Ports, folder: &Path) -> Option<Process> {
    let mut process = Process::start("weed", command(ports, folder), folder);
    let alive = eventually("SeaweedFS takes objects", || match is_ready(ports) {
        true => Some(true),
        false => process.has_ended().then_some(false),
    });
    alive.then_some(process)
}

fn command(ports: Ports, folder: &Path) -> Command {
    let mut command = Command::new(fetched("weed", "LVKEEP_TEST_WEED"));
    let path = |name: &str| -> PathBuf { folder.join(name) };
    command.current_dir(folder).arg("server").arg(format!("-dir={}", path("data").display()));
    command.args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-filer", "-s3"]);
    // Its only master finds out sooner that it is alone.
    command.arg("-master.electionTimeout=1s");
    command.args([
        "-volume.max=32",
        "-master.volumeSizeLimitMB=256",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]);
    command.arg(format!("-s3.config={}", path("s3.json").display()));
    command.arg(format!("-filer.localSocket={}", path("filer.sock").display()));
    command.arg(format!("-s3.localSocket={}", path("s3.sock").display()));
    let Ports { master, volume, filer, s3 } = ports;
    for (part, [http, grpc]) in [("master", master), ("volume", volume), ("filer", filer), ("s3", s3)] {
        command.arg(format!("-{part}.port={http}")).arg(format!("-{part}.port.grpc={grpc}"));
    }
    command
}

/// Makes the bucket, which is a folder of the filer, and writes to it as a client would.
fn is_ready(ports: Ports) -> bool {
    make_folder(ports.filer[0], &format!("/buckets/{BUCKET}/")).is_ok_and(|made| made) && can_write(ports)
}

fn make_folder(port: u16, path: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    // 409: it is there already.
    Ok(["HTTP/1.1 2", "HTTP/1.1 409"].iter().any(|status| answer.starts_with(status)))
}

fn can_write(ports: Ports) -> bool {
    use object_store::ObjectStoreExt;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let path = object_store::path::Path::from("ready");
    runtime.block_on(async { client(ports).put(&path, vec![1].into()).await.is_ok() })
}
