//! Processes that have a file or device open for writing: what exclusive opening does not see, such as a guest that
//! runs from it.
//!
//! Sees the processes that `/proc` shows to this one; for those of other users it needs to be root.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

/// After this, a process that had only just begun runs its own program.
const BEGINS: Duration = Duration::from_millis(50);

/// Another process that writes to what `metadata` describes, found below `proc`, by number and name. Blocks.
pub fn writer(proc: &Path, path: &Path, metadata: &Metadata) -> Option<String> {
    look(proc, path, metadata)?;
    pause();
    look(proc, path, metadata)
}

/// Whoever begins a process shares its files with it until that runs its program, and is no writer by that. It is the
/// kernel that is waited for, in real time.
#[allow(clippy::disallowed_methods, reason = "only where somebody was seen, on a thread that blocks anyway")]
fn pause() {
    std::thread::sleep(BEGINS);
}

fn look(proc: &Path, path: &Path, metadata: &Metadata) -> Option<String> {
    // By its number there, which may be another one than here.
    let own = fs::read_link(proc.join("self")).map(|own| own.to_string_lossy().into_owned());
    let own = own.unwrap_or_else(|_| rustix::process::getpid().as_raw_nonzero().to_string());
    for process in fs::read_dir(proc).ok()?.flatten() {
        let number = process.file_name().to_string_lossy().into_owned();
        if number == own || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        for file in files.flatten() {
            // Looking at the link alone is enough to leave out pipes, sockets and what may hang.
            let Ok(link) = fs::read_link(file.path()) else { continue };
            let may_be = link == path || (link.starts_with("/dev") && metadata.file_type().is_block_device());
            if !may_be || !fs::metadata(file.path()).is_ok_and(|found| is_same(&found, metadata)) {
                continue;
            }
            let info = process.path().join("fdinfo").join(file.file_name());
            if fs::read_to_string(info).is_ok_and(|info| may_write(&info)) {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some(format!("process {number}, {}, writes to it", name.trim()));
            }
        }
    }
    None
}

fn is_same(a: &Metadata, b: &Metadata) -> bool {
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
    fn a_process_that_writes_is_found_and_one_that_reads_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().canonicalize().unwrap();
        let metadata = fs::metadata(&path).unwrap();
        let found = || writer(Path::new("/proc"), &path, &metadata);
        for (writes, expected) in [(false, false), (true, true)] {
            let open = fs::File::options().read(true).write(writes).open(&path).unwrap();
            let mut command = Command::new("cat");
            let mut child = command.stdin(Stdio::piped()).stdout(open).spawn().unwrap();
            assert_eq!(found().is_some_and(|who| who.contains(&child.id().to_string())), expected);
            drop(command);
            drop(child.stdin.take());
            child.wait().unwrap();
        }
        assert_eq!(found(), None, "this process does not count");
    }
}
