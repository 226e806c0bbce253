//! `cargo xtask`: the one entry to everything that is done to this workspace besides compiling it.
//!
//! Parses the command line and hands over; each command lives in a module of the library.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tools, tests, demonstration and benchmark of this workspace")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Bring the external tools into target/tools; without names, those that the tests need
    Tools(xtask::tools::Arguments),
    /// Run every gate: formatting, lints, tests, documentation, dependencies
    Test(xtask::test::Arguments),
    /// Build the static binary for rescue systems and other machines, into target/dist
    Dist,
    /// Back up, change, back up again and restore a real ext4 image
    Demo(xtask::demo::Arguments),
    /// Run scenarios in throw-away guests with real LVM
    Lab(xtask::lab::Arguments),
    /// Compare with other backup tools on real guest images
    Bench(xtask::bench::Arguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Task::Tools(arguments) => xtask::tools::main(&arguments),
        Task::Test(arguments) => xtask::test::main(&arguments),
        Task::Dist => xtask::dist::main(),
        Task::Demo(arguments) => xtask::demo::main(&arguments),
        Task::Lab(arguments) => xtask::lab::main(&arguments),
        Task::Bench(arguments) => xtask::bench::main(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // Not by returning it: that would add a backtrace of ours wherever one is asked of the tests.
            eprintln!("\nFAILED: {why:#}");
            ExitCode::FAILURE
        }
    }
}
