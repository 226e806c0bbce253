//! `check`.

use std::str::FromStr;

use checker::Share;
use clap::Args;

/// `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Also read and verify content: all of it, or PERCENT of it, each time the next, or the N-th of T fixed shares. What
    /// was interrupted goes on where it was
    #[arg(
        long,
        value_name = "PERCENT|N/T",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "100"
    )]
    pub read_data: Option<ReadData>,
    /// Begin with the first pack, and not where the last check of as much content ended or was interrupted
    #[arg(long, requires = "read_data")]
    pub restart: bool,
    /// Do not record what is damaged; the next backups cannot mend it then
    #[arg(long)]
    pub no_record: bool,
    /// With --nats: let agents do it (role checker), while they have nothing else to do, and wait for them; they go on
    /// when this command is stopped
    #[arg(long, conflicts_with = "no_record")]
    pub by_agents: bool,
    /// Follow this check of agents, or print what it came to; `status` lists them
    #[arg(long, value_name = "JOB", conflicts_with_all = ["read_data", "restart", "no_record", "by_agents"])]
    pub job: Option<String>,
    /// Nothing: what --read-data takes stands behind a `=`.
    #[arg(hide = true, value_name = "NOTHING", value_parser = misplaced)]
    pub misplaced: Option<String>,
}

fn misplaced(text: &str) -> Result<String, String> {
    Err(format!("`check` takes no such argument; how much is read stands behind a `=`: --read-data={text}"))
}

/// How much content is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadData {
    /// This many per cent.
    Percent(u8),
    /// A fixed share.
    Share(Share),
}

impl FromStr for ReadData {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is neither per cent (1 to 100) nor a share such as 1/7");
        if let Some((number, of)) = text.split_once('/') {
            let (number, of) = (number.parse().map_err(|_| bad())?, of.parse().map_err(|_| bad())?);
            return match (1..=of).contains(&number) {
                true => Ok(Self::Share(Share { number, of })),
                false => Err(bad()),
            };
        }
        match text.strip_suffix('%').unwrap_or(text).parse() {
            Ok(percent @ 1..=100) => Ok(Self::Percent(percent)),
            _ => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_behind_a_blank_is_answered_with_the_way_to_write_it() {
        use clap::Parser;
        let parse = |words: &[&str]| crate::args::Cli::try_parse_from([&["lvkeep", "check"], words].concat());
        let why = parse(&["--read-data", "50"]).unwrap_err().to_string();
        assert!(why.contains("--read-data=50"), "{why}");
        assert!(parse(&["--read-data"]).is_ok() && parse(&["--read-data=50"]).is_ok());
    }

    #[test]
    fn shares_and_per_cents() {
        let share = |number, of| Ok(ReadData::Share(Share { number, of }));
        for (text, read) in [
            ("5", Ok(ReadData::Percent(5))),
            ("100%", Ok(ReadData::Percent(100))),
            ("1/7", share(1, 7)),
            ("7/7", share(7, 7)),
        ] {
            assert_eq!(text.parse(), read);
        }
        for text in ["", "0", "101", "0/7", "8/7", "1/0", "1/", "half", "-1"] {
            assert!(text.parse::<ReadData>().is_err(), "{text}");
        }
    }
}
