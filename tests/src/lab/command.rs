//! Programs of the guest, run to their end; what they said is in the panic when they fail.

use std::io::Write;
use std::process::{Command, Output, Stdio};

fn start(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null());
    // LVM complains of every descriptor that it inherits and does not know.
    command.env("LVM_SUPPRESS_FD_WARNINGS", "1");
    command
}

fn finish(mut command: Command) -> Output {
    command.output().unwrap_or_else(|why| panic!("cannot run {command:?}: {why}"))
}

fn said(output: &Output) -> String {
    let [out, err] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    format!("{}\n{out}{err}", output.status)
}

/// Runs a program, which must succeed, and returns what it printed.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = finish(start(program, arguments));
    assert!(output.status.success(), "{}: {}", words(program, arguments), said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether a program succeeds.
pub fn succeeds(program: &str, arguments: &[&str]) -> bool {
    finish(start(program, arguments)).status.success()
}

/// Runs a program, which must fail, and returns all that it said.
#[track_caller]
pub fn fails(program: &str, arguments: &[&str]) -> String {
    let output = finish(start(program, arguments));
    assert!(!output.status.success(), "{} succeeded: {}", words(program, arguments), said(&output));
    said(&output)
}

/// Runs a program with `input`, which must succeed, and returns the bytes that it printed.
#[track_caller]
pub fn run_with_input(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = start(program, arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|why| panic!("cannot run {command:?}: {why}"));
    let mut pipe = child.stdin.take().expect("a pipe");
    let input = input.to_owned();
    let writing = std::thread::spawn(move || pipe.write_all(&input));
    let output = child.wait_with_output().expect("a child can be waited for");
    assert!(output.status.success(), "{}: {}", words(program, arguments), said(&output));
    writing.join().expect("the writer ends").expect("all of the input is taken");
    output.stdout
}

/// A command as a person would type it.
pub fn words(program: &str, arguments: &[&str]) -> String {
    std::iter::once(&program).chain(arguments).copied().collect::<Vec<_>>().join(" ")
}
