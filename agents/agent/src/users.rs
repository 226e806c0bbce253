//! Processes that have a file or device open for writing: what exclusive opening does not see, such as a guest that
//! runs from it.
//!
//! The kernel shows the open files of another process to whoever may trace it: of other users' processes, and of those
//! with more rights, only to root with CAP_SYS_PTRACE. What could not be looked at is told apart from nobody.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

/// After this, a process that had only just begun runs its own program.
const BEGINS: Duration = Duration::from_millis(50);

/// What is known of other processes that write to a file or device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Writer {
    /// None does.
    Nobody,
    /// This one does, by number and name.
    One(String),
    /// None of those that could be looked at; so many could not.
    Unknown(usize),
}

/// Looks below `proc` for another process that writes to what `metadata` describes. Blocks.
pub fn writer(proc: &Path, path: &Path, metadata: &Metadata) -> Writer {
    match look(proc, path, metadata) {
        Writer::One(_) => {}
        found => return found,
    }
    pause();
    look(proc, path, metadata)
}

/// What an operator should know where so many processes could not be looked at. Whoever is not root sees nothing of other
/// users' processes, as on every machine, which is worth a word only of a device. What is refused to whoever may trace has
/// another reason, such as the first process of a container.
pub fn unseen(proc: &Path, path: &Path, metadata: &Metadata, count: usize) -> Option<String> {
    let status = fs::read_to_string(proc.join("self/status")).unwrap_or_default();
    let is_root = rustix::process::geteuid().is_root();
    let path = path.display();
    if may_trace(&status) || !(is_root || metadata.file_type().is_block_device()) {
        tracing::info!(%path, count, "some processes could not be looked at");
        return None;
    }
    Some(format!(
        "{count} processes could not be looked at (that takes root, with CAP_SYS_PTRACE): nobody knows whether one of them \
         writes to {path}"
    ))
}

/// Whether a process has CAP_SYS_PTRACE, by the text of `/proc/PID/status`.
fn may_trace(status: &str) -> bool {
    const SYS_PTRACE: u64 = 1 << 19;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set & SYS_PTRACE != 0)
}

/// Whoever begins a process shares its files with it until that runs its program, and is no writer by that. It is the
/// kernel that is waited for, in real time.
#[allow(clippy::disallowed_methods, reason = "only where somebody was seen, on a thread that blocks anyway")]
fn pause() {
    std::thread::sleep(BEGINS);
}

fn look(proc: &Path, path: &Path, metadata: &Metadata) -> Writer {
    // By its number there, which may be another one than here.
    let own = fs::read_link(proc.join("self")).map(|own| own.to_string_lossy().into_owned());
    let own = own.unwrap_or_else(|_| rustix::process::getpid().as_raw_nonzero().to_string());
    let Ok(processes) = fs::read_dir(proc) else { return Writer::Unknown(1) };
    let mut unknown = 0;
    for process in processes.flatten() {
        let number = process.file_name().to_string_lossy().into_owned();
        if number == own || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        match has_open(&process.path(), path, metadata) {
            Ok(false) => {}
            Ok(true) => {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Writer::One(format!("process {number}, {}, writes to it", name.trim()));
            }
            Err(why) if why.kind() == io::ErrorKind::PermissionDenied => unknown += 1,
            // It has ended meanwhile.
            Err(_) => {}
        }
    }
    match unknown {
        0 => Writer::Nobody,
        unknown => Writer::Unknown(unknown),
    }
}

/// Whether a process has it open to write to it; an error where it may not be looked at.
fn has_open(process: &Path, path: &Path, metadata: &Metadata) -> io::Result<bool> {
    for file in fs::read_dir(process.join("fd"))?.flatten() {
        // Looking at the link alone is enough to leave out pipes, sockets and what may hang.
        let link = match fs::read_link(file.path()) {
            Ok(link) => link,
            // It was closed meanwhile.
            Err(why) if why.kind() == io::ErrorKind::NotFound => continue,
            Err(why) => return Err(why),
        };
        let may_be = link == path || (link.starts_with("/dev") && metadata.file_type().is_block_device());
        if !may_be || !fs::metadata(file.path()).is_ok_and(|found| is_same(&found, metadata)) {
            continue;
        }
        let info = process.join("fdinfo").join(file.file_name());
        if fs::read_to_string(info).is_ok_and(|info| may_write(&info)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether both are of one device, or of one file.
pub fn is_same(a: &Metadata, b: &Metadata) -> bool {
    let devices = a.file_type().is_block_device() && b.file_type().is_block_device();
    (devices && a.rdev() == b.rdev()) || (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// By the access mode in the octal flags of `/proc/PID/fdinfo/FD`.
fn may_write(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & 3 != 0)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_access_mode_decides() {
        for (info, expected) in [
            ("pos:\t0\nflags:\t0100000\nmnt_id:\t25\n", false),
            ("pos:\t0\nflags:\t0100002\nmnt_id:\t25\n", true),
            ("flags:\t02000001", true),
            ("pos:\t0\n", false),
        ] {
            assert_eq!(may_write(info), expected, "{info:?}");
        }
    }

    #[test]
    fn the_right_to_trace_is_one_bit() {
        for (status, expected) in [
            ("CapPrm:\t000001ffffffffff\nCapEff:\t000001fffeffffff\n", true),
            ("CapPrm:\t000001ffffffffff\nCapEff:\t0000000000000006\n", false),
            ("CapEff:\t0000000000080000", true),
            ("Name:\tlvkeep\n", false),
        ] {
            assert_eq!(may_trace(status), expected, "{status:?}");
        }
    }

    #[test]
    fn a_process_that_writes_is_found_and_one_that_reads_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().canonicalize().unwrap();
        let metadata = fs::metadata(&path).unwrap();
        let found = || writer(Path::new("/proc"), &path, &metadata);
        for (writes, expected) in [(false, false), (true, true)] {
            let open = fs::File::options().read(true).write(writes).open(&path).unwrap();
            let mut command = Command::new("cat");
            let mut child = command.stdin(Stdio::piped()).stdout(open).spawn().unwrap();
            let number = child.id().to_string();
            assert_eq!(matches!(found(), Writer::One(who) if who.contains(&number)), expected);
            drop(command);
            drop(child.stdin.take());
            child.wait().unwrap();
        }
        assert!(!matches!(found(), Writer::One(_)), "this process does not count");
    }
}
