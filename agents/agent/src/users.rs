//! Processes that have a file or device open for writing: what exclusive opening does not see, such as a guest that
//! runs from it.
//!
//! The kernel shows the open files of another process to whoever may trace it: of other users' processes, and of those
//! with more rights, only to root with CAP_SYS_PTRACE. What could not be looked at is told apart from nobody.

use std::cell::LazyCell;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use crate::disks::{self, Overlap};
use crate::mounts;

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

/// What is looked for.
struct Sought<'a> {
    path: &'a Path,
    metadata: &'a Metadata,
    overlap: Overlap,
}

/// Looks below `proc` for another process that writes to what `metadata` describes, by whatever name, or to the disk that
/// it is a part of, or to a part of it. Blocks.
pub fn writer(proc: &Path, path: &Path, metadata: &Metadata) -> Writer {
    let sought = Sought { path, metadata, overlap: Overlap::of(metadata) };
    match look(proc, &sought) {
        Writer::One(_) => {}
        found => return found,
    }
    pause();
    look(proc, &sought)
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

fn look(proc: &Path, sought: &Sought<'_>) -> Writer {
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
        match writes(&process.path(), sought) {
            Ok(None) => {}
            Ok(Some(how)) => {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Writer::One(format!("process {number}, {}, {how}", name.trim()));
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

/// How a process writes to it, if it does; an error where it may not be looked at.
fn writes(process: &Path, sought: &Sought<'_>) -> io::Result<Option<String>> {
    let mounts = LazyCell::new(|| fs::read_to_string(process.join("mountinfo")).unwrap_or_default());
    for file in fs::read_dir(process.join("fd"))?.flatten() {
        let link = match fs::read_link(file.path()) {
            Ok(link) => link,
            // It was closed meanwhile.
            Err(why) if why.kind() == io::ErrorKind::NotFound => continue,
            Err(why) => return Err(why),
        };
        // Pipes, sockets and the like have no path.
        if !link.is_absolute() {
            continue;
        }
        let info = fs::read_to_string(process.join("fdinfo").join(file.file_name())).unwrap_or_default();
        if !may_write(&info) || !(sought.may_be(&link, &info) || sought.may_be_a_node(&info, &mounts)) {
            continue;
        }
        if let Some(how) = fs::metadata(file.path()).ok().and_then(|found| sought.told(&link, &found)) {
            return Ok(Some(how));
        }
    }
    Ok(None)
}

impl Sought<'_> {
    /// Whether an open file is worth a look, which hangs on some file systems. The number of a file is the same by every
    /// name, in a container or not. Kernels before 5.14 do not tell it, and stacked file systems may have another one
    /// there than the look shows: so its name will do. A device has nodes of many numbers.
    fn may_be(&self, link: &Path, info: &str) -> bool {
        let number = field(info, "ino:").and_then(|number| number.parse().ok());
        let is_device = self.overlap.is_device() && link.starts_with("/dev");
        number == Some(self.metadata.ino()) || link == self.path || is_device
    }

    /// Whether an open file may be a node of a device that is sought, as a guest in a folder of its own has one.
    fn may_be_a_node(&self, info: &str, mounts: &str) -> bool {
        self.overlap.is_device()
            && field(info, "mnt_id:").is_some_and(|mount| mounts::is_local(mounts, mount))
    }

    /// How it is written to by whoever has `found` open by this name; none where that is something else.
    fn told(&self, link: &Path, found: &Metadata) -> Option<String> {
        let is_same = disks::is_same(found, self.metadata);
        match link == self.path {
            true if is_same => Some("writes to it".to_owned()),
            false if is_same => Some(format!("writes to it as {}", link.display())),
            _ => self.overlap.has(found).then(|| format!("writes to {}", link.display())),
        }
    }
}

/// By the access mode in the octal flags of `/proc/PID/fdinfo/FD`.
fn may_write(info: &str) -> bool {
    let flags = field(info, "flags:").and_then(|flags| u32::from_str_radix(flags, 8).ok());
    flags.is_some_and(|flags| flags & 3 != 0)
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
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

    /// Looking at anything else may hang.
    #[test]
    fn only_what_may_be_it_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        fs::write(&path, b"x").unwrap();
        let metadata = fs::metadata(&path).unwrap();
        let sought = Sought { path: &path, metadata: &metadata, overlap: Overlap::of(&metadata) };
        let number = |add: u64| format!("flags:\t0100002\nmnt_id:\t25\nino:\t{}\n", metadata.ino() + add);
        let old_kernel = "flags:\t0100002\nmnt_id:\t25\n";
        for (link, info, expected) in [
            ("/images/of/a/guest", &*number(0), true),
            ("/images/of/a/guest", &number(1), false),
            ("/images/of/a/guest", old_kernel, false),
            ("/dev/sdb", &number(1), false),
            (path.to_str().unwrap(), old_kernel, true),
            // On an overlay, say.
            (path.to_str().unwrap(), &number(1), true),
        ] {
            assert_eq!(sought.may_be(Path::new(link), info), expected, "{link} {info:?}");
        }
    }

    /// `cat` with a file open, until it is dropped.
    struct Guest(std::process::Child);

    impl Guest {
        fn with(path: &Path, writes: bool) -> Self {
            let open = fs::File::options().read(true).write(writes).open(path).unwrap();
            Self(Command::new("cat").stdin(Stdio::piped()).stdout(open).spawn().unwrap())
        }
    }

    impl Drop for Guest {
        fn drop(&mut self) {
            drop(self.0.stdin.take());
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn a_process_that_writes_is_found_and_one_that_reads_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().canonicalize().unwrap();
        let metadata = fs::metadata(&path).unwrap();
        let found = || writer(Path::new("/proc"), &path, &metadata);
        for (writes, expected) in [(false, false), (true, true)] {
            let guest = Guest::with(&path, writes);
            let told = format!("process {}, cat, writes to it", guest.0.id());
            assert_eq!(found() == Writer::One(told), expected);
        }
        let _own = fs::File::options().write(true).open(&path).unwrap();
        assert!(!matches!(found(), Writer::One(_)), "this process does not count");
    }

    /// A container has it below another folder, and a hard link is in another one.
    #[test]
    fn a_process_that_writes_by_another_name_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let (path, other) = (folder.join("disk.img"), folder.join("elsewhere.img"));
        fs::write(&path, b"x").unwrap();
        fs::hard_link(&path, &other).unwrap();
        let guest = Guest::with(&other, true);
        let told = format!("process {}, cat, writes to it as {}", guest.0.id(), other.display());
        let found = writer(Path::new("/proc"), &path, &fs::metadata(&path).unwrap());
        assert_eq!(found, Writer::One(told));
    }
}
