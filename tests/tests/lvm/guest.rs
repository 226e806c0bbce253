//! One guest per scenario, through the project's own tool.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use tests::e2e::{Binary, eventually, xtask};

/// Runs a scenario in a guest; panics when it fails there.
pub fn runs(scenario: &str) {
    let mut command = Command::new(xtask());
    command.args(["lab", "run", "--scenarios", env!("CARGO_BIN_EXE_scenarios"), "--lvkeep"]);
    // As long as the test itself may take, but for what the guest's end takes.
    command.arg(Binary::path()).arg(scenario).args(["--limit", "560"]);
    let status = command.status().unwrap_or_else(|why| panic!("cannot run {command:?}: {why}"));
    assert!(
        status.success(),
        "{scenario} failed; the guest's output is above. Again: cargo xtask lab run {scenario}"
    );
}

/// A guest whose processors are busy is killed from outside: none of its processes goes on.
#[test]
fn a_guest_ends_with_whoever_started_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("script");
    std::fs::write(&script, "sleep 1000 &\n(while :; do :; done) &\necho ready\nwait\n").expect("a script");
    let mark = format!("LVKEEP_LAB_MARK={}", folder.path().display());
    let (name, value) = mark.split_once('=').expect("a name and a value");
    let mut command = Command::new(xtask());
    command.args(["lab", "shell"]).arg(script).env(name, value).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the tool starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    assert!(lines.any(|line| line.is_ok_and(|line| line == "ready")), "the guest gets to its script");
    assert!(marked(&mark) > 2, "the guest's processes are seen");
    child.kill().expect("the tool is killed");
    child.wait().expect("a child can be waited for");
    eventually("the guest's processes end", || (marked(&mark) == 0).then_some(()));
}

/// Processes with this variable in their environment.
fn marked(variable: &str) -> usize {
    let folders = std::fs::read_dir("/proc").expect("/proc").flatten();
    let has = |bytes: Vec<u8>| bytes.split(|byte| *byte == 0).any(|one| one == variable.as_bytes());
    let found = folders.filter(|folder| {
        // This process itself only knows the words; one that ended has none.
        std::fs::read(folder.path().join("environ")).is_ok_and(has)
    });
    found.count()
}
