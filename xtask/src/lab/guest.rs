//! One guest from start to end: a folder of its own, the script, its output as it comes, its exit code.
//!
//! A guest is bounded in time, and nothing of it outlives the process that started it: it is ended with its parent
//! (`setpriv --pdeathsig`), and its helpers with it (`preload.c`).

use std::env;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::StatVfsMountFlags;

use super::Kernel;

/// How often the host looks at what the guest wrote.
const PAUSE: Duration = Duration::from_millis(20);

/// Held for as long as the folder is used.
const LOCK: &str = "lock";

/// How much of the console is shown when a guest fails.
const CONSOLE_LINES: usize = 60;

/// Variables that reach the guest: all of the lab's own, and these.
const HANDED_ON: [&str; 3] = ["LVKEEP_TEST_LOG", "LVKEEP_TEST_LONG", "RUST_BACKTRACE"];

/// What to run in a guest.
pub struct Guest {
    /// A program for bash, run as root; `/lab/path` is first on PATH.
    pub script: String,
    /// Programs of this machine by the names that the script calls them.
    pub programs: Vec<(&'static str, PathBuf)>,
    /// After this the guest is ended.
    pub limit: Duration,
    pub memory_mib: u64,
    /// Of each of the two scratch disks.
    pub disk_mib: u64,
}

/// What a kernel is started with.
pub struct Boot<'a> {
    /// The built lab.
    pub lab: &'a Path,
    /// The guest's own folder on this machine.
    pub folder: &'a Path,
    /// The part of it that the guest sees as `/lab`.
    pub shared: PathBuf,
    pub disks: [PathBuf; 2],
    pub memory_mib: u64,
}

/// Arguments of every guest's kernel.
pub fn arguments(kernel: &str) -> [String; 4] {
    ["quiet".to_owned(), "loglevel=4".to_owned(), "panic=-1".to_owned(), format!("lab.kernel={kernel}")]
}

impl Boot<'_> {
    /// The kernel's messages.
    pub fn console(&self) -> PathBuf {
        self.folder.join("console")
    }

    /// What the script prints.
    pub fn output(&self) -> PathBuf {
        self.folder.join("output")
    }

    /// Where the guest's memory lies as a file: in the machine's memory where there is room for it.
    pub fn memory_folder(&self) -> &Path {
        let memory = Path::new("/dev/shm");
        let has_room = rustix::fs::statvfs(memory).is_ok_and(|found| {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            free > (2 * self.memory_mib) << 20 && !found.f_flag.contains(StatVfsMountFlags::NOEXEC)
        });
        if has_room { memory } else { self.folder }
    }
}

/// A script that came to its end.
pub struct Ended {
    pub code: i32,
    /// All that it printed.
    pub printed: String,
}

impl Guest {
    /// Boots, and waits for the end. The script's output goes to ours.
    pub fn run(&self, kernel: Kernel, lab: &Path, runs: &Path) -> Result<Ended> {
        fs::create_dir_all(runs).with_context(|| format!("cannot create {}", runs.display()))?;
        remove_abandoned(runs)?;
        let folder = tempfile::Builder::new().prefix("guest-").tempdir_in(runs)?;
        let lock = File::create(folder.path().join(LOCK))?;
        lock.lock().context("cannot lock the guest's folder")?;
        let folder = if env::var_os("LVKEEP_LAB_KEEP").is_some() {
            fs::remove_file(folder.path().join(LOCK))?;
            let kept = folder.keep();
            eprintln!("lab: the guest's folder is kept: {}", kept.display());
            Folder::Kept(kept)
        } else {
            Folder::Temporary(folder)
        };
        let path = folder.path();
        let boot = Boot {
            lab,
            folder: path,
            shared: path.join("shared"),
            disks: ["disk0", "disk1"].map(|name| path.join(name)),
            memory_mib: self.memory_mib,
        };
        self.prepare(&boot)?;
        let ended = self.boot(kernel, &boot);
        let code = fs::read_to_string(boot.shared.join("code")).ok();
        let code = code.and_then(|text| text.trim().parse::<i32>().ok());
        if ended.is_err() || code != Some(0) {
            show_console(&boot.console());
        }
        ended?;
        let code = code.context("the guest ended before its script did; the end of its console is above")?;
        let printed = String::from_utf8_lossy(&fs::read(boot.output())?).into_owned();
        Ok(Ended { code, printed })
    }

    fn prepare(&self, boot: &Boot<'_>) -> Result<()> {
        for folder in ["bin", "lib", "path"] {
            fs::create_dir_all(boot.shared.join(folder))?;
        }
        for disk in &boot.disks {
            File::create(disk)?.set_len(self.disk_mib << 20)?;
        }
        fs::write(boot.shared.join("script"), &self.script)?;
        for (name, program) in &self.programs {
            bring(&boot.shared, name, program)?;
        }
        let mut environment = String::from("PATH=/lab/path:$PATH\n");
        for (name, value) in env::vars() {
            if name.starts_with("LVKEEP_LAB_") || HANDED_ON.contains(&name.as_str()) {
                environment += &format!("{name}='{}'\n", value.replace('\'', r"'\''"));
            }
        }
        fs::write(boot.shared.join("environment"), environment)?;
        Ok(())
    }

    fn boot(&self, kernel: Kernel, boot: &Boot<'_>) -> Result<()> {
        let started = Instant::now();
        let (console, printed) = (File::create(boot.console())?, File::create(boot.output())?);
        let mut command = kernel.command(boot);
        command.stdin(Stdio::null());
        match kernel {
            Kernel::Uml => command.stdout(console).stderr(printed),
            Kernel::Tcg => command.stdout(Stdio::null()).stderr(Stdio::inherit()),
        };
        let mut child = command.spawn().context("cannot start the guest (setpriv, of util-linux)")?;
        let mut printed = Following(File::open(boot.output())?);
        loop {
            let ended = child.try_wait()?;
            printed.pass_on()?;
            if ended.is_some() {
                return Ok(());
            }
            if started.elapsed() > self.limit {
                child.kill()?;
                child.wait()?;
                bail!("the guest ran for {} s and was ended", self.limit.as_secs());
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// Removes what guests left whose process was killed: their locks went with it.
fn remove_abandoned(runs: &Path) -> Result<()> {
    for folder in crate::tidy::entries(runs)? {
        // One without a lock has only just been made, or is kept.
        let Ok(lock) = File::open(folder.join(LOCK)) else { continue };
        if lock.try_lock().is_ok() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
    }
    Ok(())
}

enum Folder {
    Temporary(tempfile::TempDir),
    Kept(PathBuf),
}

impl Folder {
    fn path(&self) -> &Path {
        match self {
            Folder::Temporary(folder) => folder.path(),
            Folder::Kept(path) => path,
        }
    }
}

/// A file that grows, passed on to standard output.
struct Following(File);

impl Following {
    fn pass_on(&mut self) -> Result<()> {
        let mut new = Vec::new();
        self.0.read_to_end(&mut new)?;
        let mut out = std::io::stdout().lock();
        out.write_all(&new)?;
        out.flush()?;
        Ok(())
    }
}

fn show_console(console: &Path) {
    let text = String::from_utf8_lossy(&fs::read(console).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    eprintln!("--- the end of the guest's console:");
    lines[lines.len().saturating_sub(CONSOLE_LINES)..].iter().for_each(|line| eprintln!("{line}"));
    eprintln!("---");
}

/// Takes a program along with its loader and libraries: the guest's may be older than those it was linked with.
fn bring(shared: &Path, name: &str, program: &Path) -> Result<()> {
    take(program, &shared.join("bin").join(name))?;
    let mut loader = None;
    for library in libraries(&linked(program)?) {
        let file = library.file_name().context("a library without a name")?;
        let target = shared.join("lib").join(file);
        if !target.exists() {
            take(&library, &target)?;
        }
        if file.to_string_lossy().starts_with("ld-") {
            let file = file.to_string_lossy();
            loader = Some(format!("/lab/lib/{file} --argv0 \"$0\" --library-path /lab/lib "));
        }
    }
    let wrapper = shared.join("path").join(name);
    fs::write(&wrapper, format!("#!/bin/sh\nexec {}/lab/bin/{name} \"$@\"\n", loader.unwrap_or_default()))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&wrapper, mode)?;
    Ok(())
}

/// What `ldd` says of a program.
fn linked(program: &Path) -> Result<String> {
    let said = Command::new("ldd").arg(program).env("LC_ALL", "C").output().context("cannot run ldd")?;
    let complaint = String::from_utf8_lossy(&said.stderr);
    if !said.status.success() && !complaint.contains("not a dynamic executable") {
        bail!("`ldd {}` failed: {}", program.display(), complaint.trim());
    }
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}

/// The files that `ldd` names; none for a program that is linked statically.
fn libraries(said: &str) -> Vec<PathBuf> {
    let paths = said.lines().filter_map(|line| {
        let line = line.trim();
        let path = line.split_once(" => ").map_or(line, |(_, path)| path);
        path.split(' ').next().filter(|path| path.starts_with('/'))
    });
    paths.map(PathBuf::from).collect()
}

/// Links a file where it can be linked, else copies it.
fn take(from: &Path, to: &Path) -> Result<()> {
    let real = fs::canonicalize(from).with_context(|| format!("no {}", from.display()))?;
    if fs::hard_link(&real, to).is_ok() {
        return Ok(());
    }
    fs::copy(&real, to).with_context(|| format!("cannot copy {} to {}", real.display(), to.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abandoned_folders_are_removed() {
        let runs = tempfile::tempdir().unwrap();
        let [used, left, new] = ["used", "left", "new"].map(|name| runs.path().join(name));
        [&used, &left, &new].into_iter().for_each(|folder| fs::create_dir(folder).unwrap());
        let lock = File::create(used.join(LOCK)).unwrap();
        lock.lock().unwrap();
        File::create(left.join(LOCK)).unwrap();
        remove_abandoned(runs.path()).unwrap();
        assert_eq!([used.exists(), left.exists(), new.exists()], [true, false, true]);
    }

    #[test]
    fn libraries_are_read_from_ldd() {
        let said = "\tlinux-vdso.so.1 (0x00007ffd0)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
            \tlibgone.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(libraries(said), found);
        assert_eq!(libraries("\tstatically linked\n"), Vec::<PathBuf>::new());
    }
}
