//! Changes from one file to another, as from one volume to another: sent, dumped, pulled, broken off and taken back,
//! by real processes. A shell stands for the remote shell.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use tests::e2e::{Binary, Machine, Ran, random_file, same_bytes};

const SIZE: u64 = 24 << 20;

/// A machine with `lvkeep` on its PATH, also as `lvmsync`, with a volume `old`, what it became, `new`, and two that
/// are as the old one.
fn prepared() -> Machine {
    let mut machine = Machine::new("streams");
    let bin = machine.place("bin");
    std::fs::create_dir(&bin).expect("a folder");
    for name in ["lvkeep", "lvmsync"] {
        std::os::unix::fs::symlink(Binary::path(), format!("{bin}/{name}")).expect("a link");
    }
    machine.set("PATH", &format!("{bin}:{}", std::env::var("PATH").expect("a PATH")));
    // What ssh does: it runs all words but the host's name by a shell.
    script(&machine, "rsh", "shift\nexec sh -c \"$*\"");
    let old = machine.place("old");
    random_file(&old, SIZE, 1);
    for copy in ["new", "target", "target-2"] {
        std::fs::copy(&old, machine.place(copy)).expect("a copy");
    }
    change(&machine.place("new"), 2);
    machine
}

fn script(machine: &Machine, name: &str, text: &str) {
    let path = machine.place(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a script");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("it may be run");
}

/// Overwrites a few stretches, one of them with zeroes.
fn change(path: &str, seed: u64) {
    let file = std::fs::File::options().write(true).open(path).expect("a volume");
    for (number, at) in [3 << 20, (9 << 20) + 4096, SIZE - 70_000].into_iter().enumerate() {
        let byte = if number == 1 { 0 } else { seed as u8 + number as u8 };
        file.write_all_at(&vec![byte; 70_000], at).expect("it changes");
    }
}

/// Runs a line of shell with the machine's environment.
fn shell(machine: &Machine, line: &str) -> Ran {
    let lvkeep = machine.command(&[]);
    let mut command = Command::new("sh");
    command.arg("-c").arg(line).env_clear();
    command.envs(lvkeep.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.current_dir(lvkeep.get_current_dir().expect("a folder"));
    machine.start_command(&["sh"], command).end()
}

fn same(machine: &Machine, a: &str, b: &str) {
    same_bytes(machine.place(a), machine.place(b));
}

#[test]
fn changes_are_sent_here_and_elsewhere_and_taken_back() {
    let machine = prepared();
    let sent = machine.json(&["send", "old", "--to", "new", "target", "--snapback", "back"]);
    assert_eq!(
        sent["bytes_changed"],
        sent["bytes_sent"].as_u64().unwrap() + sent["bytes_zero"].as_u64().unwrap()
    );
    assert!(sent["bytes_changed"].as_u64() < Some(2 << 20) && sent["connections"] == 1, "{sent}");
    same(&machine, "new", "target");
    let rsh = machine.place("rsh");
    let elsewhere = format!("vmsrv2:{}", machine.place("target-2"));
    let sent =
        machine.json(&["send", "old", "--to", "new", &elsewhere, "--rsh", &rsh, "--snapback", "back-2"]);
    assert!(sent["bytes_saved"].as_u64() > Some(100_000), "{sent}");
    same(&machine, "new", "target-2");
    for (back, target) in [("back", "target"), ("back-2", "target-2")] {
        let applied = machine.json(&["apply", back, target]);
        assert!(applied["bytes_written"].as_u64() > Some(100_000), "{applied}");
        same(&machine, "old", target);
    }
}

#[test]
fn changes_are_dumped_applied_and_pulled() {
    let machine = prepared();
    shell(&machine, "lvkeep send old --to new --stdout >changes").ok();
    machine.run(&["apply", "changes", "target"]).ok();
    same(&machine, "new", "target");
    shell(&machine, "./rsh src lvkeep send old --to new --stdout | lvkeep apply - target-2").ok();
    same(&machine, "new", "target-2");
}

#[test]
fn hourly_snapbacks_go_back_in_time() {
    let machine = prepared();
    std::fs::copy(machine.place("old"), machine.place("state-0")).expect("a copy");
    for hour in 1..=3_u64 {
        let (before, now) = (format!("state-{}", hour - 1), format!("state-{hour}"));
        std::fs::copy(machine.place(&before), machine.place(&now)).expect("a copy");
        change(&machine.place(&now), 10 * hour);
        let back = format!("back-{hour}");
        machine.run(&["send", &before, "--to", &now, "target", "--snapback", &back]).ok();
        same(&machine, &now, "target");
    }
    for hour in (1..=3).rev() {
        machine.run(&["apply", &format!("back-{hour}"), "target"]).ok();
        same(&machine, &format!("state-{}", hour - 1), "target");
    }
}

#[test]
fn a_connection_that_breaks_is_taken_up_again() {
    let machine = prepared();
    // The first one loses all after 100,000 bytes, the second is cut in the other direction.
    let once = "shift\nn=$(ls cut-* 2>/dev/null | wc -l)\n: >cut-$n\ncase $n in\n\
                0) head -c 100000 | sh -c \"$*\" ;;\n1) sh -c \"$*\" | head -c 21 ;;\n*) exec sh -c \"$*\" ;;\nesac";
    script(&machine, "rsh", once);
    let (rsh, target) = (machine.place("rsh"), format!("vmsrv2:{}", machine.place("target")));
    let sent = machine.json(&["send", "old", "--to", "new", &target, "--rsh", &rsh, "--snapback", "back"]);
    assert_eq!(sent["connections"], 3, "{sent}");
    same(&machine, "new", "target");
    machine.run(&["apply", "back", "target"]).ok();
    same(&machine, "old", "target");
}

#[test]
fn lvkeep_stands_where_lvmsync_is_expected() {
    let machine = prepared();
    let (rsh, target) = (machine.place("rsh"), machine.place("target"));
    let elsewhere = format!("vmsrv2:{target}");
    let send = ["send", "old", "--to", "new", &elsewhere, "--format", "lvmsync", "--snapback", "back"];
    machine.run(&[&send[..], &["--rsh", &rsh]].concat()).ok();
    same(&machine, "new", "target");
    let back = std::fs::read(machine.place("back")).expect("a snapback");
    assert!(back.starts_with(b"lvmsync PROTO[3]\n"));
    // Its own words, from a pipe and from a file.
    shell(&machine, "lvmsync --apply - target <back").ok();
    same(&machine, "old", "target");
    shell(&machine, "lvkeep send old --to new --format lvmsync --stdout >changes").ok();
    shell(&machine, "lvmsync -v --snapback again --apply changes target").ok();
    same(&machine, "new", "target");
    shell(&machine, "lvmsync --server target <again").ok();
    same(&machine, "old", "target");
    shell(&machine, "lvmsync snap").fails(2, &["no destination"]);
    shell(&machine, "lvmsync --apply changes --stdout x").fails(2, &["--stdout"]);
    // Bytes of lvmsync's own, by hand: "now" at 0x10000.
    let mut stream = b"lvmsync PROTO[3]\n\0\0\0\0\0\x01\0\0\0\0\0\x03now".to_vec();
    std::fs::write(machine.place("theirs"), &stream).expect("a stream");
    machine.run(&["apply", "theirs", "target"]).ok();
    assert_eq!(std::fs::read(&target).expect("the target")[0x10000..0x10003], *b"now");
    stream.pop();
    std::fs::write(machine.place("theirs"), &stream).expect("a stream");
    machine.run(&["apply", "theirs", "target"]).fails(6, &["theirs", "cut off", "nothing was applied"]);
}

#[test]
fn what_cannot_be_applied_is_refused_before_anything_is_changed() {
    let machine = prepared();
    shell(&machine, "lvkeep send old --to new --stdout >changes && head -c 90000 changes >part").ok();
    machine.run(&["apply", "part", "target"]).fails(6, &["part", "cut off", "--unfinished"]);
    machine.run(&["apply", "old", "target"]).fails(6, &["old", "neither those of lvkeep"]);
    machine.run(&["apply", "changes", "target", "--format", "lvmsync"]).fails(3, &["changes", "lvmsync"]);
    machine.run(&["apply", "changes", "none"]).fails(3, &["none", "no such file"]);
    machine.run(&["apply", "none", "target"]).fails(4, &["none"]);
    shell(&machine, "head -c 1000000 target >small").ok();
    machine.run(&["apply", "changes", "small"]).fails(3, &["small", "1000000 bytes", "25165824"]);
    machine.run(&["apply", "changes", "target", "--snapback", "old"]).fails(3, &["old", "not overwritten"]);
    let writer = std::fs::File::options().append(true).open(machine.place("target")).expect("the target");
    machine.run(&["apply", "changes", "target"]).fails(3, &["target", "in use", "writes to it"]);
    let elsewhere = format!("vmsrv2:{}", machine.place("target"));
    let rsh = machine.place("rsh");
    let refused = machine.run(&["send", "old", "--to", "new", &elsewhere, "--rsh", &rsh]);
    refused.fails(3, &["vmsrv2", "in use"]);
    drop(writer);
    same(&machine, "old", "target");
    machine.run(&["apply", "part", "target", "--unfinished", "--snapback", "back"]).ok();
    machine.run(&["apply", "back", "target"]).ok();
    same(&machine, "old", "target");
}

#[test]
fn what_cannot_be_sent_is_refused_by_name() {
    let machine = prepared();
    machine.run(&["send", "old", "target"]).fails(3, &["old", "--to"]);
    machine.run(&["send", "none", "--to", "new", "target"]).fails(4, &["none"]);
    machine.run(&["send", "old", "--to", "new", "new"]).fails(3, &["new", "is what is sent"]);
    machine.run(&["send", "old", "--to", "new"]).fails(2, &["TARGET"]);
    machine.run(&["send", "old", "--to", "new", "target", "--stdout"]).fails(2, &["--stdout"]);
    let elsewhere = format!("vmsrv2:{}", machine.place("target"));
    let send = ["send", "old", "--to", "new", &elsewhere, "--rsh"];
    machine.run(&[&send[..], &["/nowhere/rsh"]].concat()).fails(1, &["/nowhere/rsh"]);
    let rsh = machine.place("rsh");
    let missing = machine.run(&[&send[..], &[&rsh, "--remote-program", "/nowhere/lvkeep"]].concat());
    missing.fails(1, &["vmsrv2", "no `lvkeep apply` answered", "exit status: 127"]);
    same(&machine, "old", "target");
}

#[test]
fn an_interrupted_send_says_so_and_is_sent_again() {
    let machine = prepared();
    random_file(machine.place("new"), SIZE, 3);
    let mut sending = machine.start(&[
        "send",
        "old",
        "--to",
        "new",
        "target",
        "--snapback",
        "back",
        "--limit-read",
        "2MiB",
    ]);
    tests::e2e::eventually("something is overwritten", || {
        let back = std::fs::metadata(machine.place("back")).map_or(0, |found| found.len());
        (back > 1 << 20).then_some(())
    });
    sending.signal(Signal::TERM);
    sending.end().fails(7, &["interrupted"]);
    assert!(Path::new(&machine.place("back")).exists());
    machine.run(&["apply", "back", "target"]).fails(6, &["cut off", "--unfinished"]);
    machine.run(&["apply", "back", "target", "--unfinished"]).ok();
    same(&machine, "old", "target");
    machine.run(&["send", "old", "--to", "new", "target"]).ok();
    same(&machine, "new", "target");
}
