//! Processes as owners: which process took a snapshot or froze something, and whether it still runs.
//!
//! A process is its boot, its number and the moment it started in ticks since that boot: numbers are used again,
//! triples are not. Where `/proc` says nothing of a process it is dead, so that in a container with its own process
//! numbers only that container's agents are seen; give all of one host's agents the host's numbers.

use std::fmt;
use std::str::FromStr;

/// Identifies one process of one boot of one host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    boot: String,
    pid: u32,
    started: u64,
}

impl Owner {
    /// From its parts; none when the boot's id cannot stand in a tag.
    pub fn new(boot: &str, pid: u32, started: u64) -> Option<Self> {
        let fits = (1..=64).contains(&boot.len())
            && boot.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        fits.then(|| Self { boot: boot.to_owned(), pid, started })
    }

    /// This process.
    pub fn this() -> Result<Self, String> {
        let boot = boot()?;
        let pid = std::process::id();
        let started = started(pid).ok_or_else(|| format!("/proc/{pid}/stat cannot be read"))?;
        Self::new(&boot, pid, started).ok_or_else(|| format!("the boot's id is {boot:?}"))
    }

    /// Whether it still runs. When this cannot be told, it does.
    pub fn is_alive(&self) -> bool {
        match boot() {
            Ok(boot) => boot == self.boot && started(self.pid) == Some(self.started),
            Err(_) => true,
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.boot, self.pid, self.started)
    }
}

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = || {
            let mut parts = text.split('/');
            let (boot, pid, started) = (parts.next()?, parts.next()?, parts.next()?);
            let owner = Self::new(boot, pid.parse().ok()?, started.parse().ok()?)?;
            (parts.next().is_none() && owner.to_string() == text).then_some(owner)
        };
        parsed().ok_or_else(|| format!("{text:?} is not BOOT/PID/START"))
    }
}

fn boot() -> Result<String, String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).map_err(|why| format!("{path}: {why}"))?;
    Ok(text.trim().to_owned())
}

/// When a process started, in ticks since the boot: the twenty-second field, counted after the name in parentheses,
/// which may hold anything.
fn started(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    let state = rest.split_whitespace().next()?;
    // A zombie does nothing any more.
    (state != "Z").then_some(())?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_others_do_not() {
        let this = Owner::this().unwrap();
        assert!(this.is_alive());
        assert_eq!(this.to_string().parse(), Ok(this.clone()));
        let reused = Owner { started: this.started + 1, ..this.clone() };
        assert!(!reused.is_alive(), "its number was used again");
        let rebooted = Owner { boot: "other".into(), ..this };
        assert!(!rebooted.is_alive());
    }

    #[test]
    fn what_is_no_owner_is_refused() {
        for text in ["", "a/b/c", "boot/1", "boot/1/2/3", "boot/01/2", "bo ot/1/2", "/1/2"] {
            assert!(text.parse::<Owner>().is_err(), "{text}");
        }
    }
}
