//! Local times, as operators read and write them.
//!
//! A time that is written to the day, the hour, the minute or the second means all of it: what was copied from a list,
//! which leaves out milliseconds, finds what was listed. Nothing is ever taken for UTC where `TZ` says something that
//! this system cannot resolve: another moment would be restored than was meant.

use agent::Failure;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::args::Command;

/// The zone of local times: what `TZ` says, and else the system's, which is UTC where it has none.
pub fn zone() -> Result<TimeZone, Failure> {
    TimeZone::try_system().or_else(|_| match std::env::var_os("TZ") {
        None => Ok(TimeZone::UTC),
        Some(zone) if is_utc(&zone.to_string_lossy()) => Ok(TimeZone::UTC),
        Some(zone) => Err(Failure::refused(format!(
            "TZ={}: no such time zone is known here, so that local times cannot be told (they need the system's zone \
             database, in /usr/share/zoneinfo or where TZDIR says): set TZ=UTC, and write times as UTC",
            zone.to_string_lossy()
        ))),
    })
}

/// Whether a zone needs no database to be known.
fn is_utc(zone: &str) -> bool {
    ["", "UTC", "Etc/UTC", "UCT", "GMT", "Z"].contains(&zone.strip_prefix(':').unwrap_or(zone))
}

/// Fails, before anything is done, where a command prints local times and they cannot be told.
pub fn check(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Snapshots(_) | Command::Show(_) | Command::Forget(_) | Command::Plan(_) => zone().map(drop),
        _ => Ok(()),
    }
}

/// The last millisecond, since 1970, that a text means: RFC 3339, or a local date with or without a time of day.
pub fn until(text: &str) -> Result<u64, Failure> {
    read(text)?.last().and_then(|stamp| ms(stamp, text))
}

/// The first millisecond that it means.
pub fn since(text: &str) -> Result<u64, Failure> {
    read(text)?.first().and_then(|stamp| ms(stamp, text))
}

/// A time as it is written.
pub struct Written<'a> {
    text: &'a str,
    begins: Begins,
    /// All that it means, from where it begins.
    length: SignedDuration,
}

enum Begins {
    At(Timestamp),
    Locally(DateTime),
}

/// Reads a text, without asking which zone is local.
pub fn read(text: &str) -> Result<Written<'_>, Failure> {
    let at = || text.parse().map(Begins::At);
    // The parser of local times would pass over a zone.
    let locally = || text.parse().map(Begins::Locally).ok().filter(|_| !text.contains('['));
    let begins = at().ok().or_else(locally).ok_or_else(|| no_time(text))?;
    Ok(Written { text, begins, length: length(text) })
}

impl Written<'_> {
    /// Of a local time that the clocks show twice, the first one.
    fn first(&self) -> Result<Timestamp, Failure> {
        match self.begins {
            Begins::At(stamp) => Ok(stamp),
            Begins::Locally(time) => {
                zone()?.to_ambiguous_timestamp(time).earlier().map_err(|_| no_time(self.text))
            }
        }
    }

    /// Of a local time that the clocks show twice, the second one.
    fn last(&self) -> Result<Timestamp, Failure> {
        let rest = self.length - SignedDuration::from_millis(1);
        let last = match self.begins {
            Begins::At(stamp) => stamp.checked_add(rest),
            Begins::Locally(time) => {
                let zone = zone()?;
                time.checked_add(rest).and_then(|last| zone.to_ambiguous_timestamp(last).later())
            }
        };
        last.map_err(|_| no_time(self.text))
    }
}

/// How long that is which a text means, by how exactly it is written: a day, or what its last digits count.
fn length(text: &str) -> SignedDuration {
    let Some((_, time)) = text.split_once(['T', 't', ' ']) else { return SignedDuration::from_hours(24) };
    let of_day =
        time.find(|c: char| !c.is_ascii_digit() && !".,:".contains(c)).map_or(time, |at| &time[..at]);
    if of_day.contains(['.', ',']) {
        return SignedDuration::from_millis(1);
    }
    match of_day.chars().filter(char::is_ascii_digit).count() {
        ..=2 => SignedDuration::from_hours(1),
        3..=4 => SignedDuration::from_mins(1),
        _ => SignedDuration::from_secs(1),
    }
}

fn ms(stamp: Timestamp, text: &str) -> Result<u64, Failure> {
    u64::try_from(stamp.as_millisecond()).map_err(|_| no_time(text))
}

fn no_time(text: &str) -> Failure {
    Failure::refused(format!(
        "{text:?} is no time: write latest (after an @), 2026-11-20, 2026-11-20T03:00 or RFC 3339"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Milliseconds since 2026-11-20 in UTC.
    fn meant(text: &str) -> Option<(i64, i64)> {
        let day = "2026-11-20T00:00:00Z".parse::<Timestamp>().unwrap().as_millisecond();
        let of = |ms: u64| i64::try_from(ms).unwrap() - day;
        Some((of(since(text).ok()?), of(until(text).ok()?)))
    }

    #[test]
    fn a_time_means_all_that_is_written_of_it() {
        let (second, minute, hour) = (1000, 60_000, 3_600_000);
        for (text, start, length) in [
            ("2026-11-20T03:00Z", 3 * hour, minute),
            ("2026-11-20T03:00:05Z", 3 * hour + 5 * second, second),
            ("2026-11-20T03:00:05.25Z", 3 * hour + 5250, 1),
            ("2026-11-20 03:00:05.250Z", 3 * hour + 5250, 1),
            ("2026-11-20T03:00:05+01:00", 2 * hour + 5 * second, second),
            ("2026-11-20t03:00:05-01", 4 * hour + 5 * second, second),
            ("20261120T030005Z", 3 * hour + 5 * second, second),
            ("20261120T0300Z", 3 * hour, minute),
        ] {
            assert_eq!(meant(text), Some((start, start + length - 1)), "{text}");
        }
        for text in [
            "",
            "yesterday",
            "latest",
            "1h",
            "2026-11-32",
            "1969-12-31T00:00Z",
            "2026-11-20T03:00[Asia/Tokyo]",
        ] {
            assert_eq!(meant(text), None, "{text}");
        }
    }

    /// A rescue system may have no database.
    #[test]
    fn utc_needs_no_database() {
        for (zone, expected) in [
            ("UTC", true),
            (":UTC", true),
            ("Etc/UTC", true),
            (":", true),
            ("Europe/Berlin", false),
            ("UTC0", false),
        ] {
            assert_eq!(is_utc(zone), expected, "{zone}");
        }
    }

    /// Whatever zone the test runs in, in which an hour may be missing or come twice.
    #[test]
    fn local_times_have_a_length_too() {
        let length = |text: &str| until(text).unwrap() + 1 - since(text).unwrap();
        assert_eq!(length("2026-11-20 03:00:05"), 1000);
        assert_eq!(length("2026-11-20T03:00"), 60_000);
        assert_eq!(length("2026-11-20 03:00:05.125"), 1);
        assert!(since("2026-11-20").unwrap() < since("2026-11-20T22:00").unwrap());
        assert!(until("2026-11-20T22:00").unwrap() < until("2026-11-20").unwrap(), "a day means its end");
        assert_eq!(until("2026-11-20").unwrap() + 1, since("2026-11-21").unwrap());
    }
}
