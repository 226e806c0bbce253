//! A first backup by agents over a NATS server and an S3 store, and the processor time of each process.
//!
//! The same work as the embedded first backup, so that their ratio is the price of the way over the network. The
//! object store's own time is not counted: it stands for somebody else's machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use super::images::Image;
use super::measure::warm;
use super::servers::{Nats, Process, Seaweed};
use crate::lvkeep::Lvkeep;
use crate::run::run;

/// Host that the agents say they are.
const HOST: &str = "bench";

/// What one run took, in seconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Distributed {
    pub wall_seconds: f64,
    /// Reader and hasher.
    pub host_cpu_seconds: f64,
    /// Indexer, storer and conductor.
    pub worker_cpu_seconds: f64,
    pub nats_cpu_seconds: f64,
    /// The largest of lvkeep's processes.
    pub peak_rss_bytes: u64,
}

impl Distributed {
    /// Processor time without the object store's.
    pub fn cpu_seconds(&self) -> f64 {
        self.host_cpu_seconds + self.worker_cpu_seconds + self.nats_cpu_seconds
    }
}

/// Backs up the image in every round into an empty bucket; the round that took the least processor time counts.
pub fn measure(image: &Image, work: &Path, rounds: usize) -> Result<Distributed> {
    println!("\nlvkeep over NATS and S3");
    let mut best: Option<Distributed> = None;
    for _ in 0..rounds {
        let home = work.join("distributed");
        let one = one_round(image, &home)?;
        fs::remove_dir_all(&home)?;
        println!(
            "    first             {:>8.2} s {:>8.2} CPU s (host {:.2}, worker {:.2}, nats-server {:.2})",
            one.wall_seconds,
            one.cpu_seconds(),
            one.host_cpu_seconds,
            one.worker_cpu_seconds,
            one.nats_cpu_seconds
        );
        if best.is_none_or(|best| one.cpu_seconds() < best.cpu_seconds()) {
            best = Some(one);
        }
    }
    best.context("no rounds")
}

fn one_round(image: &Image, home: &Path) -> Result<Distributed> {
    fs::create_dir_all(home)?;
    let nats = Nats::start(&home.join("nats"))?;
    let weed = Seaweed::start(&home.join("weed"))?;
    let site = Site { lvkeep: Lvkeep::release(home, None)?, home, nats, weed };
    let mut init = site.with_bucket(site.lvkeep.init());
    run(init.arg("--key-out").arg(site.writer_key()).stdout(std::process::Stdio::null()))?;
    let host = site.agent("host", &["reader", "hasher"])?;
    let worker = site.agent("worker", &["indexer", "storer", "conductor"])?;
    warm(&image.path)?;
    let before = [host.usage()?, worker.usage()?, site.nats.process.usage()?].map(|usage| usage.cpu_seconds);
    let started = Instant::now();
    let mut backup = site.lvkeep.backup(&image.path, &format!("{HOST}/{}", image.guest));
    backup.arg("--nats").arg(site.nats.url()).args(["--host", HOST]);
    run(site.with_bucket(backup).env("LVKEEP_KEY", site.writer_key()).stdout(std::process::Stdio::null()))?;
    let wall_seconds = started.elapsed().as_secs_f64();
    let [host, worker, nats] = [host.usage()?, worker.usage()?, site.nats.process.usage()?];
    Ok(Distributed {
        wall_seconds,
        host_cpu_seconds: host.cpu_seconds - before[0],
        worker_cpu_seconds: worker.cpu_seconds - before[1],
        nats_cpu_seconds: nats.cpu_seconds - before[2],
        peak_rss_bytes: host.peak_rss_bytes.max(worker.peak_rss_bytes),
    })
}

struct Site<'a> {
    lvkeep: Lvkeep,
    home: &'a Path,
    nats: Nats,
    weed: Seaweed,
}

impl Site<'_> {
    fn with_bucket(&self, mut command: Command) -> Command {
        command.envs(self.weed.environment()).env("LVKEEP_REPO", self.weed.location());
        command
    }

    fn writer_key(&self) -> PathBuf {
        self.home.join("writer-key")
    }

    fn agent(&self, name: &str, roles: &[&str]) -> Result<Process> {
        let mut command = self.with_bucket(self.lvkeep.command());
        command.env("LVKEEP_KEY", self.writer_key());
        command.arg("agent").arg("--nats").arg(self.nats.url()).args(["--host", HOST]);
        for role in roles {
            command.args(["--role", role]);
        }
        let mut process = Process::start(name, command, self.home)?;
        process.wait_for("is ready")?;
        Ok(process)
    }
}
