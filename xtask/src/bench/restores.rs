//! What restores of the first guest's second day cost lvkeep: to a new file, onto the first day, and to eight files.
//!
//! The repository is a folder, so that nothing of a network is in the figures; bytes are those that lvkeep counts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::images::Image;
use super::limit::{self, Limit};
use super::measure::{Cost, printed};
use crate::lvkeep::{Lvkeep, Restored, parse_restored};
use crate::run::run;

/// Targets of a fan-out.
const TARGETS: usize = 8;
/// The guest's volume.
const NAME: &str = "bench/guest";
/// What stands over [`Restore::row`].
const HEAD: &str = "    wall s    CPU s  RSS MB  fetched MB  compared MB  written MB  copied MB";

/// One kind of restore.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Restore {
    #[serde(flatten)]
    pub cost: Cost,
    /// Of all targets together.
    #[serde(flatten)]
    pub restored: Restored,
}

/// All of them.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Restores {
    pub full: Restore,
    pub onto_day_1: Restore,
    /// To eight new files, once.
    pub fan_out: Restore,
    pub limit: Limit,
}

struct Bench<'a> {
    lvkeep: Lvkeep,
    first: &'a Image,
    second: &'a Image,
    targets: PathBuf,
}

/// Measures them; of several rounds the best counts.
pub fn measure(images: &[Image], work: &Path, rounds: usize) -> Result<Restores> {
    println!("\n{:<18}{HEAD}", "lvkeep's restores");
    let home = work.join("restores");
    let bench = Bench::prepare(images, &home)?;
    let best = |name: &str, old: Option<&Image>| -> Result<Restore> {
        let mut best: Option<Restore> = None;
        for _ in 0..rounds {
            let one = bench.restore(1, old)?;
            one.say(name);
            best = Some(match best {
                Some(best) => Restore { cost: best.cost.best(one.cost), ..one },
                None => one,
            });
        }
        best.context("no rounds")
    };
    let full = best("to a new file", None)?;
    let onto_day_1 = best("onto day 1", Some(bench.first))?;
    let fan_out = bench.restore(TARGETS, None)?;
    fan_out.say("to eight files");
    let limit = limit::measure(bench.second, &home)?;
    fs::remove_dir_all(&home)?;
    Ok(Restores { full, onto_day_1, fan_out, limit })
}

impl<'a> Bench<'a> {
    fn prepare(images: &'a [Image], home: &Path) -> Result<Self> {
        let first = &images[0];
        let second = images.iter().find(|image| image.guest == first.guest && image.day == 2);
        let second = second.context("no second day")?;
        let targets = home.join("targets");
        fs::create_dir_all(&targets)?;
        let lvkeep = Lvkeep::release(home, Some(&home.join("repository")))?;
        run(lvkeep.init().stdout(Stdio::null()))?;
        for image in [first, second] {
            run(lvkeep.backup(&image.path, NAME).stdout(Stdio::null()))?;
        }
        Ok(Self { lvkeep, first, second, targets })
    }

    /// Restores the second day to so many files, of which the first one may hold another day.
    fn restore(&self, count: usize, old: Option<&Image>) -> Result<Restore> {
        let targets: Vec<PathBuf> =
            (0..count).map(|number| self.targets.join(format!("{number}.img"))).collect();
        if let Some(old) = old {
            run(Command::new("cp").arg("--sparse=always").args([&old.path, &targets[0]]))?;
        }
        let mut command = self.lvkeep.restore(&format!("{NAME}@latest"), &targets[0]);
        command.args(["--force", "--json"]);
        for target in &targets[1..] {
            command.arg("--also").arg(target);
        }
        let (cost, said) = printed(&command, None)?;
        let each = parse_restored(&said)?;
        ensure!(each.len() == count, "lvkeep told of {} restores out of {count}", each.len());
        for target in &targets {
            run(Command::new("cmp").args([&self.second.path, target]))
                .context("what was restored is not what was backed up")?;
            fs::remove_file(target)?;
        }
        Ok(Restore { cost, restored: each.into_iter().fold(Restored::default(), Restored::and) })
    }
}

impl Restore {
    fn say(&self, name: &str) {
        println!("{}", self.row(name));
    }

    /// One line of the table with [`HEAD`].
    fn row(&self, name: &str) -> String {
        let (Cost { wall_seconds, cpu_seconds, peak_rss_bytes }, restored) = (self.cost, self.restored);
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        format!(
            "{name:<18}{wall_seconds:>10.2}{cpu_seconds:>9.2}{:>8.0}{:>12.1}{:>13.1}{:>12.1}{:>11.1}",
            megabytes(peak_rss_bytes),
            megabytes(restored.bytes_fetched),
            megabytes(restored.bytes_compared),
            megabytes(restored.bytes_written),
            megabytes(restored.bytes_copied)
        )
    }
}

impl Restores {
    /// Prints the table.
    pub fn print(&self) {
        let Self { full, onto_day_1, fan_out, .. } = self;
        println!("\n{:<18}{HEAD}", "lvkeep's restores");
        println!("{}", full.row("to a new file"));
        println!("{}", onto_day_1.row("onto day 1"));
        println!("{}", fan_out.row("to eight files"));
        let ratio = |a: u64, b: u64| a as f64 / (b as f64).max(1.0);
        println!(
            "new file : onto day 1   wall {:.2}, fetched {:.1}, written {:.1}",
            full.cost.wall_seconds / onto_day_1.cost.wall_seconds,
            ratio(full.restored.bytes_fetched, onto_day_1.restored.bytes_fetched),
            ratio(full.restored.bytes_written, onto_day_1.restored.bytes_written)
        );
        println!(
            "eight files : one       wall {:.2}, fetched {:.2}",
            fan_out.cost.wall_seconds / full.cost.wall_seconds,
            ratio(fan_out.restored.bytes_fetched, full.restored.bytes_fetched)
        );
        self.print_limit();
    }

    fn print_limit(&self) {
        let Self { full, limit, .. } = self;
        println!(
            "\nthe machine's share of a restore: {:.0} MB in chunks of 64 KiB, of zstd -3, from the page cache on {} cores",
            limit.data_bytes as f64 / 1e6,
            limit.cores
        );
        println!(
            "{:<18}{:.2} s, and {:.2} s until it is durable; of the threads' time {:.2} s read, {:.2} s decompressed, {:.2} s verified \
             (BLAKE3), {:.2} s wrote",
            "",
            limit.wall_seconds,
            limit.sync_seconds,
            limit.read_seconds,
            limit.decompress_seconds,
            limit.verify_seconds,
            limit.write_seconds
        );
        let percent = |part: f64, whole: f64| 100.0 * part / whole;
        println!(
            "{:<18}of lvkeep's wall time to a new, durable file {:.0} % (without the sync {:.0} %)",
            "",
            percent(limit.total_seconds(), full.cost.wall_seconds),
            percent(limit.wall_seconds, full.cost.wall_seconds)
        );
    }
}
