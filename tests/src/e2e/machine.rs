//! A machine as `lvkeep` sees one: a home folder, an environment and a name of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::image::random_file;
use super::process::{Process, Ran};
use super::tools::Binary;

/// A home folder with an environment. Nothing of the surrounding environment gets through but PATH, and
/// `LVKEEP_TEST_LOG` as the processes' `LVKEEP_LOG`.
#[derive(Debug)]
pub struct Machine {
    name: String,
    folder: TempDir,
    environment: BTreeMap<String, String>,
}

impl Machine {
    /// A machine whose configuration is empty.
    pub fn new(name: &str) -> Self {
        let machine = Self::bare(name);
        machine.configure("");
        machine
    }

    /// One with a repository that holds `disk.img`, of so many random bytes, as `vm/disk`.
    pub fn with_disk(size: u64) -> Self {
        let mut machine = Self::new("m");
        machine.set("LVKEEP_REPO", &machine.place("repo"));
        machine.run(&["init"]).ok();
        let image = machine.place("disk.img");
        random_file(&image, size, 1);
        machine.run(&["backup", "--name", "vm/disk", &image]).ok();
        machine
    }

    /// A machine where nothing is configured.
    pub fn bare(name: &str) -> Self {
        let folder = tempfile::Builder::new().prefix(&format!("lvkeep-{name}-")).tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("home")).expect("a home folder");
        std::fs::create_dir(folder.path().join("output")).expect("a folder for output");
        Self { name: name.to_owned(), folder, environment: BTreeMap::new() }
    }

    /// Writes the user's configuration file.
    pub fn configure(&self, text: &str) {
        let path = self.home().join(".config/lvkeep/lvkeep.toml");
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a configuration folder");
        std::fs::write(path, text).expect("the configuration is written");
    }

    /// Sets a variable for all that runs here from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    /// Takes a variable away again.
    pub fn unset(&mut self, name: &str) {
        self.environment.remove(name);
    }

    /// Sets several.
    pub fn set_all(&mut self, variables: &[(&str, String)]) {
        variables.iter().for_each(|(name, value)| self.set(name, value));
    }

    /// The home folder.
    pub fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// A path beside the home folder, for images and repositories.
    pub fn place(&self, name: &str) -> String {
        let path = self.folder.path().join(name);
        path.to_str().expect("temporary folders have names in UTF-8").to_owned()
    }

    /// `lvkeep` with arguments, ready to start.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(Binary::path());
        command.args(arguments).current_dir(self.folder.path()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.home()).envs(&self.environment);
        if let Some(directives) = std::env::var_os("LVKEEP_TEST_LOG") {
            command.env("LVKEEP_LOG", directives);
        }
        command
    }

    /// Starts `lvkeep`.
    pub fn start(&self, arguments: &[&str]) -> Process {
        self.start_command(arguments, self.command(arguments))
    }

    /// Starts a command that was changed; `arguments` only name it.
    pub fn start_command(&self, arguments: &[&str], command: Command) -> Process {
        Process::start(&self.name_of(arguments), command, &self.output())
    }

    /// Starts `lvkeep` with a standard output of its own.
    pub fn start_into(&self, arguments: &[&str], stdout: impl Into<Stdio>) -> Process {
        let (name, command) = (self.name_of(arguments), self.command(arguments));
        Process::start_into(&name, command, &self.output(), Some(stdout.into()))
    }

    fn name_of(&self, arguments: &[&str]) -> String {
        let word = arguments.iter().find(|word| !word.starts_with('-')).unwrap_or(&"lvkeep");
        format!("{}-{word}", self.name)
    }

    fn output(&self) -> PathBuf {
        self.folder.path().join("output")
    }

    /// Runs `lvkeep` to its end.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.start(arguments).end()
    }

    /// Runs `lvkeep --json` to its end, which must be good.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let mut all = vec!["--json"];
        all.extend(arguments);
        self.run(&all).ok().json()
    }

    /// Restores a snapshot to a fresh file here, compares it with `original`, and deletes it.
    #[track_caller]
    pub fn restores(&self, snapshot: &str, original: impl AsRef<Path>) {
        let target = self.place("restored.img");
        self.run(&["restore", snapshot, &target]).ok();
        super::image::same_bytes(original, &target);
        std::fs::remove_file(target).expect("the restored file is deleted");
    }
}
