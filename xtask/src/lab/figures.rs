//! `cargo xtask lab figures`: what tracked backups cost on real LVM, measured in guests that are larger and live longer
//! than those of tests, by a lvkeep that is built for use.
//!
//! A figure prints lines that begin with a mark; this collects them, prints a table of each case and writes
//! `target/lab/figures.json`. The disk of a guest is a sparse file of this machine and mostly in its page cache:
//! ratios and bytes say more than seconds do.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{Guest, Kernel, Profile, build_lvkeep, build_scenarios, runs};
use crate::run::output;
use crate::workspace::target_dir;

/// What a line of a figure begins with.
const MARK: &str = "FIGURE ";

/// Of a guest that measures. Its second disk is where lvkeep keeps its repository.
const MEMORY_MIB: u64 = 2048;
const DISK_MIB: u64 = 12 << 10;
const LIMIT: Duration = Duration::from_secs(1800);

/// What was measured in one case.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Case {
    figure: String,
    case: String,
    /// By their names, which say the unit, in order.
    facts: Vec<(String, f64)>,
}

/// Runs `cargo xtask lab figures`.
pub fn main(names: &[String]) -> Result<()> {
    let (lab, scenarios, lvkeep) =
        (Kernel::Uml.build()?, build_scenarios()?, build_lvkeep(Profile::Release)?);
    let known = output(std::process::Command::new(&scenarios).args(["list", "--figures"]))?;
    let known: Vec<&str> = known.lines().collect();
    if let Some(name) = names.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("no figure `{name}`; there are {}", known.join(", "));
    }
    let wanted = known.into_iter().filter(|name| names.is_empty() || names.iter().any(|one| one == name));
    let (mut cases, mut failed) = (Vec::new(), Vec::new());
    for name in wanted {
        let started = Instant::now();
        let programs = vec![("scenarios", scenarios.clone()), ("lvkeep", lvkeep.clone())];
        let guest = Guest {
            script: script(name),
            programs,
            limit: LIMIT,
            memory_mib: MEMORY_MIB,
            disk_mib: DISK_MIB,
        };
        // The others are measured all the same.
        match guest.run(Kernel::Uml, &lab, &runs()?) {
            Ok(ended) => {
                cases.extend(collected(&ended.printed)?);
                if ended.code != 0 {
                    failed.push(format!("{name} ended with {}", ended.code));
                }
            }
            Err(why) => failed.push(format!("{name}: {why:#}")),
        }
        println!("figure {name}: {:.0} s", started.elapsed().as_secs_f64());
    }
    print!("{}", table(&cases));
    let path = target_dir()?.join("lab/figures.json");
    fs::write(&path, serde_json::to_string_pretty(&cases)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("\nwritten to {}", path.display());
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

fn script(name: &str) -> String {
    format!(
        "set -e\nmkfs.ext4 -q -F $DISK1\nmount $DISK1 /mnt\n\
         export TMPDIR=/mnt LVKEEP_TEST_BIN=/lab/path/lvkeep\nexec scenarios run {name}\n"
    )
}

/// The cases in what a figure printed.
fn collected(printed: &str) -> Result<Vec<Case>> {
    let lines = printed.lines().filter_map(|line| line.strip_prefix(MARK));
    lines.map(|line| serde_json::from_str(line).with_context(|| format!("a figure: {line}"))).collect()
}

/// A table for each case, a fact per line.
fn table(cases: &[Case]) -> String {
    let mut out = String::new();
    for Case { figure, case, facts } in cases {
        out += &format!("\n{figure}: {case}\n");
        facts.iter().for_each(|(name, value)| out += &format!("  {name:<52}{:>12}\n", number(*value)));
    }
    out
}

/// Counts as they are, ratios and small measures with three places, others with one.
fn number(value: f64) -> String {
    match value {
        value if value.fract() == 0.0 => format!("{value:.0}"),
        value if value < 10.0 => format!("{value:.3}"),
        value => format!("{value:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_collected_and_shown() {
        let printed =
            "step\nFIGURE {\"case\":\"c\",\"facts\":[[\"n\",3],[\"s\",1.234]],\"figure\":\"f\"}\nend\n";
        let cases = collected(printed).unwrap();
        assert_eq!(cases[0].facts, [("n".to_owned(), 3.0), ("s".to_owned(), 1.234)]);
        let shown = table(&cases);
        assert!(
            shown.starts_with("\nf: c\n") && shown.contains(" 3\n") && shown.contains(" 1.234\n"),
            "{shown}"
        );
        assert!(collected("FIGURE nonsense").is_err());
    }
}
