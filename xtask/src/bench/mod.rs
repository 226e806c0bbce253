//! `cargo xtask bench`: lvkeep beside other tools, on the same images of real guests, on this machine.
//!
//! Every tool starts from a fresh repository in every round; images are read into the page cache before each
//! step; of several rounds the best counts, step by step. What a peer cannot do or fails at is printed, never
//! left out. The same images also go through the bare hardware (reading, hashing, compressing), to tell how
//! much of the time is the machine's share.

mod collections;
mod distributed;
mod guests;
mod hardware;
mod images;
mod limit;
mod measure;
mod peers;
mod report;
mod restores;
mod rounds;
mod servers;
mod sources;

use std::fs;

use anyhow::Result;

use crate::workspace::target_dir;
use peers::{Kind, Peer};

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only one guest and its second day
    #[arg(long)]
    quick: bool,
    /// Tools to compare with
    #[arg(long, value_delimiter = ',', default_value = "restic")]
    peers: Vec<Kind>,
    /// Rounds per tool, of which the best counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only build the images
    #[arg(long)]
    images_only: bool,
    /// Only the peers, without lvkeep
    #[arg(long)]
    without_lvkeep: bool,
}

/// Runs `cargo xtask bench`.
pub fn main(arguments: &Arguments) -> Result<()> {
    let folder = target_dir()?.join("bench");
    let images = images::build(&folder.join("images"), arguments.quick)?;
    for image in &images {
        println!("{:<50} {:.2} GB", image.path.display().to_string(), image.occupied_bytes()? as f64 / 1e9);
    }
    if arguments.images_only {
        return Ok(());
    }

    let hardware = hardware::measure(&images)?;
    let work = folder.join("work");
    let mut results = Vec::new();
    let ours = (!arguments.without_lvkeep).then_some(Kind::Lvkeep);
    for kind in ours.into_iter().chain(arguments.peers.iter().copied()) {
        let tried = Peer::prepare(kind, &work)
            .and_then(|peer| rounds::all(&peer, &images, &work, arguments.rounds, arguments.quick));
        results.push(tried.unwrap_or_else(|why| {
            println!("\n!!! {kind:?} FAILED: {why:#}\n");
            rounds::Outcome::failed(kind, &format!("{why:#}"))
        }));
    }
    let distributed = match arguments.without_lvkeep {
        true => None,
        false => Some(distributed::measure(&images[0], &work, arguments.rounds)?),
    };
    let restores = match arguments.without_lvkeep {
        true => None,
        false => Some(restores::measure(&images, &work, arguments.rounds)?),
    };
    let _ = fs::remove_dir_all(&work);

    let report = report::Report::new(hardware, &images, results, distributed, restores)?;
    report.print();
    let path = folder.join("result.json");
    fs::write(&path, serde_json::to_string_pretty(&report)?)?;
    println!("\nwritten to {}", path.display());
    report.verdict()
}
