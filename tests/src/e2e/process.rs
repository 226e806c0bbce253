//! One child process: what it prints goes to files, it is waited for, and it ends with this value.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};

use super::wait::eventually;

/// Lines of a process that are printed when a test fails.
const TAIL: usize = 25;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A running process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    out: PathBuf,
    err: PathBuf,
    peak_kib: u64,
}

/// A process that ended.
#[derive(Debug)]
pub struct Ran {
    /// What it was.
    pub name: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
    /// The most memory that it was seen to have resident, in KiB.
    pub peak_kib: u64,
}

impl Process {
    /// Starts `command`; its output goes to files in `folder`.
    pub fn start(name: &str, command: Command, folder: &Path) -> Self {
        Self::start_into(name, command, folder, None)
    }

    /// The same, with its standard output somewhere else.
    pub fn start_into(name: &str, mut command: Command, folder: &Path, elsewhere: Option<Stdio>) -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let file = |kind: &str| folder.join(format!("{number:03}-{}.{kind}", name.replace('/', "-")));
        let (out, err) = (file("out"), file("err"));
        let open = |path: &Path| std::fs::File::create(path).expect("a file for a process's output");
        let stdout = elsewhere.unwrap_or_else(|| open(&out).into());
        command.stdin(Stdio::null()).stdout(stdout).stderr(open(&err));
        let child = command.spawn().unwrap_or_else(|why| panic!("cannot start {name} ({command:?}): {why}"));
        Self { name: name.to_owned(), child, out, err, peak_kib: 0 }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard output so far.
    pub fn out(&self) -> String {
        read(&self.out)
    }

    /// What it has written to standard error so far.
    pub fn err(&self) -> String {
        read(&self.err)
    }

    /// Waits until standard error holds `words`; panics when it ends before.
    pub fn wait_for(&mut self, words: &str) {
        let what = format!("{} says {words:?}", self.name);
        let said = eventually(&what, || match self.err().contains(words) {
            true => Some(true),
            false => self.has_ended().then_some(false),
        });
        assert!(
            said || self.err().contains(words),
            "{} ended before it said {words:?}\n{}",
            self.name,
            self.tail()
        );
    }

    /// Whether it ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.look_at_memory();
        self.child.try_wait().expect("a child can be waited for").is_some()
    }

    fn look_at_memory(&mut self) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok());
        self.peak_kib = self.peak_kib.max(kib.unwrap_or(0));
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) {
        if self.has_ended() {
            return;
        }
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("our own child takes a signal");
    }

    /// `kill -9`, and waits until it is gone. Whether that ended it: it may have come to its end before.
    pub fn kill(&mut self) -> bool {
        if self.has_ended() {
            return false;
        }
        self.signal(Signal::KILL);
        let status = self.child.wait().expect("a child can be waited for");
        status.signal() == Some(Signal::KILL.as_raw())
    }

    /// Waits for its end.
    pub fn end(mut self) -> Ran {
        self.wait()
    }

    /// [`Self::end`] of a process that is to be replaced.
    pub fn wait(&mut self) -> Ran {
        let what = format!("{} ends", self.name);
        eventually(&what, || self.has_ended().then_some(()));
        let status = self.child.wait().expect("a child can be waited for");
        Ran {
            name: self.name.clone(),
            status,
            out: read(&self.out),
            err: read(&self.err),
            peak_kib: self.peak_kib,
        }
    }

    fn tail(&self) -> String {
        tail(&self.err())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {} said at last:\n{}\n---", self.name, self.tail());
        }
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

impl Ran {
    /// The exit code; panics when a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("{} was ended by a signal: {self}", self.name))
    }

    /// It must have succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.status.success(), "{self}");
        self
    }

    /// It must have failed with this exit code, and standard error must hold all of these words.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code(), code, "{self}");
        for word in words {
            assert!(self.err.contains(word), "standard error lacks {word:?}: {self}");
        }
        self
    }

    /// Standard output is one JSON value.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        match serde_json::from_str(&self.out) {
            Ok(value) => value,
            Err(why) => panic!("standard output is not JSON ({why}): {self}"),
        }
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, status, .. } = self;
        write!(
            f,
            "{name} ended with {status}\n--- out:\n{}\n--- err:\n{}\n---",
            tail(&self.out),
            tail(&self.err)
        )
    }
}
