//! `cargo xtask test`: every gate of the project in one command, in the order in which they fail fastest.
//!
//! Stops at the first failure. No step is ever left out silently: the one that may be (the advisory database
//! needs a host that not every machine reaches) says so aloud.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::run::run;
use crate::tools::{self, Tool};
use crate::workspace::{self, cargo};

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Also run the long tiers: more seeds, larger volumes
    #[arg(long)]
    long: bool,
    /// Passed on to `cargo nextest run`
    #[arg(last = true)]
    nextest: Vec<String>,
}

/// Runs `cargo xtask test`.
pub fn main(arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let mut gates = Gates::default();

    let tools = gates.step("tools", Tools::bring)?;
    gates.step("formatting", || run(cargo().args(["fmt", "--all", "--check"])))?;
    gates.step("lints", || {
        run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    })?;
    gates.step("the program by itself", || run(cargo().args(["check", "--package", "lvkeep"])))?;
    gates.step("the guest with real LVM", || crate::lab::bring().map(drop))?;
    let binary = gates.step("the binary that the end-to-end tests run", build_binary)?;
    let counted = gates.step("tests", || nextest(arguments, &tools, &binary))?;
    if arguments.long {
        let given_away = gates.step("the static binary", crate::dist::make)?;
        gates.step("the runbook with the static binary", || runbook(&tools, &given_away))?;
    }
    gates.step("documentation tests", || run(cargo().args(["test", "--doc", "--workspace"])))?;
    gates.step("documentation", || {
        run(cargo()
            .args(["doc", "--workspace", "--no-deps", "--document-private-items"])
            .env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    gates.step("licences, bans and sources of dependencies", || {
        run(deny(&tools).args(["bans", "licenses", "sources"]))
    })?;
    let advisories = gates.step("advisories", || advisories(&tools))?;

    println!("\nall {} gates passed in {}{advisories}", gates.passed, seconds(started.elapsed()));
    println!("{counted} passed, 0 failed");
    Ok(())
}

#[derive(Default)]
struct Gates {
    passed: usize,
}

impl Gates {
    fn step<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("\n==> {name}");
        let started = Instant::now();
        let result = work().with_context(|| format!("gate failed: {name}"))?;
        println!("    {name}: passed in {}", seconds(started.elapsed()));
        self.passed += 1;
        Ok(result)
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

struct Tools {
    nats_server: PathBuf,
    weed: PathBuf,
    nextest: PathBuf,
    deny: PathBuf,
}

impl Tools {
    fn bring() -> Result<Self> {
        Tool::E2fsprogs.bring()?;
        // What they make is mounted, which only root does.
        if rustix::process::geteuid().is_root() {
            Tool::Xfsprogs.bring()?;
            Tool::BtrfsProgs.bring()?;
        }
        Ok(Self {
            nats_server: tools::nats_server()?,
            weed: tools::weed()?,
            nextest: tools::cargo_nextest()?,
            deny: tools::cargo_deny()?,
        })
    }
}

/// Builds it with the features of the whole workspace, as the tests are built, so that nothing is built twice.
fn build_binary() -> Result<PathBuf> {
    run(cargo().args(["build", "--workspace", "--bin", "lvkeep"]))?;
    let binary = workspace::target_dir()?.join("debug/lvkeep");
    if !binary.is_file() {
        bail!("cargo built no {}", binary.display());
    }
    Ok(binary)
}

/// Follows `deploy/rescue.md` with the binary that is given away: no other test runs that one.
fn runbook(tools: &Tools, binary: &PathBuf) -> Result<()> {
    // Another profile than that of the tests, whose report is counted.
    let arguments = ["--package", "tests", "--test", "e2e", "--profile", "default", "rescue::"];
    run(nextest_with(tools, binary)?.args(arguments))
}

/// `cargo nextest run`, of which the end-to-end tests run this binary.
fn nextest_with(tools: &Tools, binary: &PathBuf) -> Result<Command> {
    let mut command = Command::new(&tools.nextest);
    workspace::scrub(&mut command);
    command.current_dir(workspace::root()).args(["nextest", "run"]);
    command
        .env("LVKEEP_TEST_NATS_SERVER", &tools.nats_server)
        .env("LVKEEP_TEST_WEED", &tools.weed)
        .env("LVKEEP_TEST_BIN", binary)
        .env("LVKEEP_TEST_XTASK", std::env::current_exe().context("cannot tell our own path")?);
    Ok(command)
}

/// Runs the tests and returns how many passed.
fn nextest(arguments: &Arguments, tools: &Tools, binary: &PathBuf) -> Result<usize> {
    let profile = if arguments.long { "long" } else { "default" };
    // Its store is there wherever cargo builds.
    let report = workspace::root().join("target/nextest").join(profile).join("junit.xml");
    // A report left by an earlier run must not be counted as this one's.
    let _ = std::fs::remove_file(&report);

    let mut command = nextest_with(tools, binary)?;
    command.args(["--workspace", "--profile", profile]).args(&arguments.nextest);
    if arguments.long {
        command.env("LVKEEP_TEST_LONG", "1");
    }
    run(&mut command)?;

    let text = std::fs::read_to_string(&report)
        .with_context(|| format!("nextest left no report in {}", report.display()))?;
    count(&text).with_context(|| format!("no count of tests in {}", report.display()))
}

/// The number of tests in a JUnit report: the attribute `tests` of its outermost element.
fn count(junit: &str) -> Option<usize> {
    let (_, rest) = junit.split_once("<testsuites ")?;
    let (element, _) = rest.split_once('>')?;
    let (_, value) = element.split_once("tests=\"")?;
    value.split_once('"')?.0.parse().ok()
}

fn deny(tools: &Tools) -> Command {
    let mut command = Command::new(&tools.deny);
    workspace::scrub(&mut command);
    command.current_dir(workspace::root()).args(["--workspace", "check", "--hide-inclusion-graph"]);
    command
}

/// Checks the advisories where their database can be fetched; returns what the summary must say otherwise.
fn advisories(tools: &Tools) -> Result<&'static str> {
    let mut fetch = Command::new("timeout");
    workspace::scrub(&mut fetch);
    fetch.current_dir(workspace::root()).arg("60").arg(&tools.deny).args(["fetch", "db"]);
    let fetched = fetch.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !fetched.is_ok_and(|status| status.success()) {
        println!("    ADVISORIES WERE NOT CHECKED: their database cannot be fetched from here");
        return Ok(" (advisories NOT checked: no access to their database)");
    }
    run(deny(tools).args(["--disable-fetch", "advisories"]))?;
    Ok("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_counted_from_the_report() {
        let report = r#"<?xml version="1.0"?><testsuites name="nextest-run" tests="41" failures="0" errors="0">
            <testsuite name="a" tests="7"></testsuite></testsuites>"#;
        assert_eq!(count(report), Some(41));
        assert_eq!(count("<nothing/>"), None);
    }

    #[test]
    fn a_failed_gate_stops_and_is_named() {
        let mut gates = Gates::default();
        let error = gates.step("lints", || -> Result<()> { bail!("no") }).unwrap_err();
        assert_eq!(format!("{error:#}"), "gate failed: lints: no");
        assert_eq!(gates.passed, 0);
    }
}
