//! The benchmark's tables, for people, and the same as JSON.
//!
//! A ratio is the peer's figure by ours: above 1 is in our favour.

use std::fs;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::distributed::Distributed;
use super::hardware::{Hardware, Share};
use super::images::Image;
use super::peers::Kind;
use super::restores::Restores;
use super::rounds::{Outcome, STEPS, Step};

/// Everything measured.
#[derive(Serialize)]
pub struct Report {
    processor: String,
    hardware: Hardware,
    images: Vec<ImageSize>,
    tools: Vec<Outcome>,
    distributed: Option<Distributed>,
    restores: Option<Restores>,
}

#[derive(Serialize)]
struct ImageSize {
    guest: &'static str,
    day: usize,
    bytes: u64,
    occupied_bytes: u64,
}

impl Report {
    /// Puts together what was measured.
    pub fn new(
        hardware: Hardware,
        images: &[Image],
        tools: Vec<Outcome>,
        distributed: Option<Distributed>,
        restores: Option<Restores>,
    ) -> Result<Self> {
        let size = |image: &Image| -> Result<ImageSize> {
            let bytes = image.path.metadata()?.len();
            Ok(ImageSize {
                guest: image.guest,
                day: image.day,
                bytes,
                occupied_bytes: image.occupied_bytes()?,
            })
        };
        let images = images.iter().map(size).collect::<Result<_>>()?;
        let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let processor = model.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned());
        Ok(Self { processor, hardware, images, tools, distributed, restores })
    }

    /// Prints the tables.
    pub fn print(&self) {
        println!("\n{} cores, {}", self.hardware.cores, self.processor);
        self.print_figures();
        self.print_ratios();
        self.print_hardware();
        self.print_distributed();
        self.print_collections();
        if let Some(restores) = &self.restores {
            restores.print();
        }
        for tool in &self.tools {
            for (step, why) in &tool.missing {
                println!("not measured: {:?}, {step}: {why}", tool.tool);
            }
        }
    }

    /// Fails when a tool that was asked for could not be measured.
    pub fn verdict(&self) -> Result<()> {
        let failed: Vec<_> = self
            .tools
            .iter()
            .filter(|tool| tool.steps.is_empty())
            .map(|tool| format!("{:?}", tool.tool))
            .collect();
        ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
        Ok(())
    }

    fn print_figures(&self) {
        println!("\n{:<18}{:<9}{:>9}{:>9}{:>10}{:>12}", "", "", "wall s", "CPU s", "RSS MB", "stored MB");
        for (name, tool, step) in self.steps() {
            println!(
                "{name:<18}{:<9}{:>9.2}{:>9.2}{:>10.0}{:>12.1}",
                format!("{:?}", tool.tool),
                step.cost.wall_seconds,
                step.cost.cpu_seconds,
                step.cost.peak_rss_bytes as f64 / 1e6,
                step.stored_bytes as f64 / 1e6
            );
        }
    }

    fn print_ratios(&self) {
        let Some(ours) = self.tools.iter().find(|tool| tool.tool == Kind::Lvkeep && !tool.steps.is_empty())
        else {
            println!("\nno ratios: lvkeep was not measured");
            return;
        };
        println!("\npeer : lvkeep     {:<9}{:>9}{:>9}{:>10}{:>12}", "", "wall", "CPU", "RSS", "stored");
        for (name, tool, theirs) in self.steps().filter(|(_, tool, _)| tool.tool != Kind::Lvkeep) {
            let Some(our) = ours.steps.get(name) else { continue };
            println!(
                "{name:<18}{:<9}{:>9}{:>9}{:>10}{:>12}",
                format!("{:?}", tool.tool),
                ratio(theirs.cost.wall_seconds, our.cost.wall_seconds),
                ratio(theirs.cost.cpu_seconds, our.cost.cpu_seconds),
                ratio(theirs.cost.peak_rss_bytes as f64, our.cost.peak_rss_bytes as f64),
                ratio(theirs.stored_bytes as f64, our.stored_bytes as f64)
            );
        }
    }

    fn print_hardware(&self) {
        println!("\nthe machine's share: read + zero test + BLAKE3 on one core; zstd -3 of 64 KiB on all");
        let ours = self.tools.iter().find(|tool| tool.tool == Kind::Lvkeep);
        for (name, share) in [("first", self.hardware.first), ("day 2", self.hardware.day_2)] {
            let Share { data_bytes, new_bytes, compressed_bytes, hash_seconds, compress_wall_seconds } =
                share;
            println!(
                "{name:<18}{:.2} s for {:.0} MB; {:.2} s for {:.0} MB new -> {:.0} MB",
                hash_seconds,
                data_bytes as f64 / 1e6,
                compress_wall_seconds,
                new_bytes as f64 / 1e6,
                compressed_bytes as f64 / 1e6
            );
            let Some(step) = ours.and_then(|tool| tool.steps.get(name)) else { continue };
            let cores = self.hardware.cores as f64;
            // The hashing spreads over the cores as well as the compressing does.
            let least = hash_seconds / cores + compress_wall_seconds;
            println!(
                "{:<18}of lvkeep's wall time {:.0} %, of its CPU time {:.0} %",
                "",
                100.0 * least / step.cost.wall_seconds,
                100.0 * (hash_seconds + compress_wall_seconds * cores) / step.cost.cpu_seconds
            );
        }
    }

    fn print_distributed(&self) {
        let Some(over) = &self.distributed else { return };
        println!(
            "\nfirst over NATS + S3: {:.2} s, {:.2} CPU s (host {:.2}, worker {:.2}, nats-server {:.2}), {:.0} MB RSS",
            over.wall_seconds,
            over.cpu_seconds(),
            over.host_cpu_seconds,
            over.worker_cpu_seconds,
            over.nats_cpu_seconds,
            over.peak_rss_bytes as f64 / 1e6
        );
        let ours = self.tools.iter().find(|tool| tool.tool == Kind::Lvkeep);
        if let Some(first) = ours.and_then(|tool| tool.steps.get("first")) {
            println!(
                "over NATS + S3 : embedded  CPU {}, wall {}",
                ratio(over.cpu_seconds(), first.cost.cpu_seconds),
                ratio(over.wall_seconds, first.cost.wall_seconds)
            );
        }
    }

    fn print_collections(&self) {
        println!("\n{:<18}{:<9}{:>9}{:>9}{:>10}", "", "", "wall s", "CPU s", "RSS MB");
        let collections = || self.tools.iter().filter_map(|tool| tool.collection);
        collections().for_each(|collection| collection.print());
        let Some(ours) = collections().find(|one| one.tool == Kind::Lvkeep) else { return };
        for theirs in collections().filter(|one| one.tool != Kind::Lvkeep) {
            println!(
                "{:<18}{:<9}{:>9}{:>9}{:>10}   left {}, written {}",
                "peer : lvkeep",
                format!("{:?}", theirs.tool),
                ratio(theirs.cost.wall_seconds, ours.cost.wall_seconds),
                ratio(theirs.cost.cpu_seconds, ours.cost.cpu_seconds),
                ratio(theirs.cost.peak_rss_bytes as f64, ours.cost.peak_rss_bytes as f64),
                ratio(theirs.stored_bytes_after as f64, ours.stored_bytes_after as f64),
                ratio(theirs.written_bytes as f64, ours.written_bytes as f64)
            );
        }
    }

    fn steps(&self) -> impl Iterator<Item = (&'static str, &Outcome, &Step)> {
        STEPS.iter().flat_map(|name| {
            self.tools.iter().filter_map(|tool| tool.steps.get(name).map(|step| (*name, tool, step)))
        })
    }
}

fn ratio(theirs: f64, ours: f64) -> String {
    if ours > 0.0 && theirs > 0.0 { format!("{:.2}", theirs / ours) } else { "-".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_the_peers_by_ours() {
        assert_eq!(ratio(3.0, 2.0), "1.50");
        assert_eq!(ratio(3.0, 0.0), "-");
    }
}
