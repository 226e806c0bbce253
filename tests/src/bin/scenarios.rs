//! Runs one scenario or figure, in a guest. `scenarios list [--names|--figures]` | `scenarios run NAME`

use std::process::ExitCode;

use tests::lab::{FIGURES, SCENARIOS, Scenario, seed};

fn all() -> impl Iterator<Item = &'static Scenario> {
    SCENARIOS.iter().chain(FIGURES)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["list"] => all().for_each(|one| println!("{:<36} {}", one.name, one.about)),
        ["list", "--names"] => SCENARIOS.iter().for_each(|one| println!("{}", one.name)),
        ["list", "--figures"] => FIGURES.iter().for_each(|one| println!("{}", one.name)),
        ["run", name] => {
            let Some(scenario) = all().find(|one| one.name == *name) else {
                eprintln!("no scenario {name}");
                return ExitCode::FAILURE;
            };
            println!("scenario {name}: {} (seed {})", scenario.about, seed());
            (scenario.run)();
        }
        _ => {
            eprintln!("scenarios list [--names|--figures] | scenarios run NAME");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
