//! The worst day: everything but the bucket and the identity is gone. The commands of deploy/rescue.md are run as they
//! stand there, and must print what stands there.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tests::e2e::{Binary, Machine, Process, Ran, Seaweed, program, random_file, same_bytes};

const RUNBOOK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/rescue.md");
/// Commands without which a runbook would not be one.
const NEEDED: [&str; 9] =
    ["key check", "snapshots", "restore", "verify", "cat", "diff", "find-change", "plan", "undo"];
/// Options of `restore` that it shows.
const SHOWN: [&str; 5] = ["--also", "--plan", "--range", "--undo", "--force"];
/// What stands for the runbook's volume group.
const GROUP: &str = "vg0-of-files";
/// Where the runbook's volume differs between its two snapshots.
const CHANGED: u64 = 4 << 20;

/// A command of the runbook, and the lines that it prints.
#[derive(Debug)]
struct Step {
    command: String,
    printed: Vec<String>,
}

/// The commands of all blocks of the kind `console`, in their order.
fn steps() -> Vec<Step> {
    let text = std::fs::read_to_string(RUNBOOK).expect("the runbook");
    let blocks = text.split("```console\n").skip(1).filter_map(|rest| rest.split("```").next());
    let mut steps: Vec<Step> = Vec::new();
    for line in blocks.flat_map(str::lines) {
        match (line.strip_prefix("# "), steps.last_mut()) {
            (Some(command), _) => steps.push(Step { command: command.to_owned(), printed: Vec::new() }),
            (None, Some(step)) => step.printed.push(line.to_owned()),
            (None, None) => panic!("the runbook's first block begins with {line:?}, and not with a command"),
        }
    }
    steps
}

/// Lines without what differs from run to run: figures, ids, times.
fn masked<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let is_figure = |word: &str| {
        let unit = word.trim_matches([',', ':', '(', ')']);
        word.contains(|c: char| c.is_ascii_digit()) || ["B", "KiB", "MiB", "GiB"].contains(&unit)
    };
    let mask = |line: &str| {
        let words = line.split_whitespace().map(|word| if is_figure(word) { "#" } else { word });
        let mut words: Vec<&str> = words.collect();
        words.dedup_by(|a, b| a == b && *a == "#");
        words.join(" ")
    };
    lines.map(mask).collect()
}

/// What the test has in place of the runbook's examples.
type Examples = Vec<(String, String)>;

/// A machine with nothing but the program, a shell, the identity, and what was exported.
struct Rescue {
    folder: TempDir,
    examples: Examples,
    exports: String,
}

impl Rescue {
    fn new(identity: &str, examples: Examples) -> Self {
        let folder = tempfile::Builder::new().prefix("lvkeep-rescue-").tempdir().expect("a folder");
        for name in ["bin", "home", "work", "output"] {
            std::fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        let lvkeep = folder.path().join("bin/lvkeep");
        std::os::unix::fs::symlink(Binary::path(), lvkeep).expect("the program is put in place");
        std::fs::copy(identity, folder.path().join("work/identity")).expect("the identity is put in place");
        if Path::new("/etc/lvkeep/lvkeep.toml").exists() {
            println!(
                "THIS MACHINE HAS /etc/lvkeep/lvkeep.toml: an empty configuration file takes its place here"
            );
            std::fs::create_dir_all(folder.path().join("home/.config/lvkeep")).expect("a folder");
            std::fs::write(folder.path().join("home/.config/lvkeep/lvkeep.toml"), "").expect("a file");
        }
        Self { folder, examples, exports: String::new() }
    }

    fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join("work").join(name)
    }

    /// What is in the caches of repositories.
    fn kept(&self) -> Vec<PathBuf> {
        let below = |folder: PathBuf| {
            let entries = std::fs::read_dir(folder).expect("a folder");
            entries.map(|entry| entry.expect("an entry").path())
        };
        below(self.folder.path().join("home/.cache/lvkeep")).flat_map(below).collect()
    }

    /// Runs a line in a shell; nothing of the test's environment gets through.
    fn shell(&self, line: &str) -> Ran {
        let mut command = Command::new(program("sh"));
        command.arg("-c").arg(format!("{}{line}", self.exports)).current_dir(self.place(""));
        command.env_clear().env("PATH", self.folder.path().join("bin"));
        command.env("HOME", self.folder.path().join("home"));
        // No certificate either.
        command.env("SSL_CERT_FILE", self.folder.path().join("none"));
        Process::start("rescue", command, &self.folder.path().join("output")).end()
    }

    fn follow(&mut self, step: &Step) {
        let example = |line: String, (theirs, ours): &(String, String)| line.replace(theirs, ours);
        let command = self.examples.iter().fold(step.command.clone(), example);
        if command.starts_with("export ") {
            self.exports.push_str(&format!("{command}\n"));
            return;
        }
        let ran = self.shell(&format!("{{ {command}\n}} 2>&1")).ok();
        let (mut found, mut expected) =
            (masked(ran.out.lines()), masked(step.printed.iter().map(String::as_str)));
        // Volumes of a plan end as they please.
        if command.contains("--plan") {
            found.sort();
            expected.sort();
        }
        let same =
            found.len() == expected.len() && found.iter().zip(&expected).all(|(a, b)| is_as_said(a, b));
        assert!(same, "{} printed {found:#?}, the runbook says {expected:#?}: {ran}", step.command);
        // Later commands name it.
        if let (Some(theirs), Some(ours)) = (kept(&step.printed.join("\n")), kept(&ran.out)) {
            self.examples.push((theirs, ours));
        }
    }
}

/// The id under which an undo was kept, where it is told.
fn kept(printed: &str) -> Option<String> {
    Some(printed.split("`lvkeep undo ").nth(1)?.split('`').next()?.to_owned())
}

/// Three dots at the end of a line of the runbook stand for anything.
fn is_as_said(found: &str, said: &str) -> bool {
    match said.strip_suffix("...") {
        Some(start) => found.starts_with(start),
        None => found == said,
    }
}

/// Two snapshots of web1/root and one of web1/data in a bucket, by a machine that is gone; and the originals.
struct Lost {
    weed: Seaweed,
    originals: TempDir,
    first: String,
    compared: std::cell::Cell<usize>,
}

impl Lost {
    fn new() -> Self {
        let weed = Seaweed::start();
        let originals = tempfile::tempdir().expect("a folder");
        let mut machine = Machine::new("web1");
        machine.set_all(&weed.environment());
        machine.set("LVKEEP_REPO", &weed.location("archive"));
        let identity = machine.place("identity");
        machine.run(&["init", "--identity-out", &identity]).ok();
        let keep = |from: &str, name: &str| {
            std::fs::copy(from, originals.path().join(name)).expect("the original is kept");
        };
        keep(&identity, "identity");
        let (root, data) = (machine.place("root"), machine.place("data"));
        random_file(&root, 24 << 20, 1);
        random_file(&data, 2 << 20, 2);
        let image = File::options().write(true).open(&root).expect("the image");
        image.set_len(64 << 20).expect("a hole at its end");
        machine.run(&["backup", "--name", "web1/data", &data]).ok();
        machine.run(&["backup", "--name", "web1/root", &root]).ok();
        keep(&data, "data");
        keep(&root, "before");
        image.write_all_at(&[7; 1 << 20], CHANGED).expect("the image changes");
        machine.run(&["backup", "--name", "web1/root", &root]).ok();
        keep(&root, "latest");
        let snapshots = machine.json(&["snapshots", "--volume", "web1/root"]);
        let first = snapshots[0]["time"].as_str().expect("a time").to_owned();
        Self { weed, originals, first, compared: std::cell::Cell::default() }
    }

    /// What the runbook's examples are here.
    fn examples(&self) -> Examples {
        let value = |of: Vec<(&'static str, String)>, name: &str| {
            of.into_iter().find(|(found, _)| *found == name).expect("a credential").1
        };
        let (all, reading) = (|| self.weed.environment(), || self.weed.reading_environment());
        let examples = [
            ("s3://backup/archive", self.weed.location("archive")),
            ("https://s3.example.com", self.weed.endpoint()),
            ("RESCUE-KEY", value(all(), "AWS_ACCESS_KEY_ID")),
            ("RESCUE-SECRET", value(all(), "AWS_SECRET_ACCESS_KEY")),
            ("READING-KEY", value(reading(), "AWS_ACCESS_KEY_ID")),
            ("READING-SECRET", value(reading(), "AWS_SECRET_ACCESS_KEY")),
            ("2026-11-20T03:00", self.first.clone()),
            // There is no LVM here: a folder of files stands for a volume group.
            ("--to-vg vg0 --create", format!("--to-vg ./{GROUP}")),
        ];
        examples.map(|(theirs, ours)| (theirs.to_owned(), ours)).into()
    }

    fn rescue(&self) -> Rescue {
        Rescue::new(&self.original("identity"), self.examples())
    }

    fn original(&self, name: &str) -> String {
        self.originals.path().join(name).to_str().expect("temporary folders have names in UTF-8").to_owned()
    }

    /// What a command that restores should have left.
    fn check_restored(&self, step: &Step, rescue: &Rescue) {
        let compare =
            |original: &str, target: &str| same_bytes(self.original(original), rescue.place(target));
        match step.command.split(' ').collect::<Vec<_>>()[..] {
            ["lvkeep", "restore", "--plan", ..] => {
                compare("data", &format!("{GROUP}/data"));
                compare("latest", &format!("{GROUP}/root"));
            }
            ["lvkeep", "restore", snapshot, target, ref more @ ..] => {
                let original = match snapshot {
                    "web1/data@latest" => "data",
                    "web1/root@latest" => "latest",
                    _ => "before",
                };
                compare(original, target);
                let also = more.iter().zip(more.iter().skip(1)).filter(|(option, _)| **option == "--also");
                also.for_each(|(_, target)| compare(original, target));
            }
            ["lvkeep", "undo", ..] => return compare("latest", "web1-root.img"),
            _ => return,
        }
        self.compared.set(self.compared.get() + 1);
    }
}

#[test]
fn the_runbook_works_with_nothing_but_the_bucket_and_the_identity() {
    let lost = Lost::new();
    let mut rescue = lost.rescue();
    std::fs::create_dir(rescue.place(GROUP)).expect("a folder");
    for step in steps() {
        if step.command.contains("--undo") {
            assert_eq!(rescue.kept(), Vec::<PathBuf>::new(), "nobody made an index of the archive");
        }
        rescue.follow(&step);
        lost.check_restored(&step, &rescue);
    }
    let restores = steps().iter().filter(|step| step.command.contains("lvkeep restore ")).count();
    assert!(restores > 0 && lost.compared.get() == restores, "every restore of the runbook is compared");
    let mut part = vec![0; 1 << 20];
    let latest = File::open(lost.original("latest")).expect("the original");
    latest.read_exact_at(&mut part, CHANGED).expect("a part of it");
    assert!(std::fs::read(rescue.place("part")).expect("what cat wrote") == part, "cat wrote something else");
}

#[test]
fn the_runbook_has_every_command() {
    let steps = steps();
    for command in NEEDED {
        let is_it = |step: &Step| format!("{} ", step.command).starts_with(&format!("lvkeep {command} "));
        assert!(steps.iter().any(is_it), "the runbook has no `lvkeep {command}`");
    }
    for option in SHOWN {
        let is_it = |step: &Step| {
            step.command.starts_with("lvkeep restore ") && step.command.split(' ').any(|word| word == option)
        };
        assert!(steps.iter().any(is_it), "the runbook has no `lvkeep restore {option}`");
    }
}

#[test]
fn an_endpoint_with_tls_needs_certificates_and_says_so() {
    let lost = Lost::new();
    let mut rescue = lost.rescue();
    for step in steps().iter().filter(|step| step.command.starts_with("export ")) {
        rescue.follow(step);
    }
    let endpoint = lost.weed.endpoint().replace("http://", "https://");
    rescue
        .shell(&format!("AWS_ENDPOINT_URL={endpoint} lvkeep snapshots"))
        .fails(5, &["certificate", "SSL_CERT_FILE"]);
}

/// More than 64 MiB of memory have room for.
const CHUNKS: u64 = 160_000;

/// An image of so many blocks, each of which is a chunk of its own: there are zeroes between them.
fn scattered(path: &str, blocks: u64) {
    let file = File::create(path).expect("an image");
    file.set_len(blocks * 8192).expect("a size");
    for block in 0..blocks {
        let content = (block + 1).to_le_bytes().repeat(512);
        file.write_all_at(&content, block * 8192).expect("the image is written");
    }
}

/// A rescue system keeps its home in memory, or has none that can be written to: a file in its place keeps root out, too.
#[test]
fn what_has_no_room_in_memory_goes_to_the_work_dir() {
    let mut machine = Machine::new("m");
    machine.set("LVKEEP_REPO", &machine.place("repo"));
    let (identity, image) = (machine.place("identity"), machine.place("disk.img"));
    machine.run(&["init", "--identity-out", &identity]).ok();
    scattered(&image, CHUNKS);
    machine.run(&["backup", "--name", "vm/disk", &image]).ok();

    let mut rescue = Machine::new("rescue");
    rescue.set_all(&[("LVKEEP_REPO", machine.place("repo")), ("LVKEEP_IDENTITY", identity)]);
    std::fs::write(rescue.home().join(".cache"), "").expect("a file");
    let (work, target) = (rescue.place("work"), rescue.place("restored.img"));
    let restore = ["-v", "--memory", "64MiB", "restore", "vm/disk@latest", &target];
    let without = rescue.run(&restore);
    assert!(without.code() != 0 && without.err.contains("--work-dir"), "{without}");
    assert!(!Path::new(&target).exists(), "nothing was begun");

    std::fs::create_dir(&work).expect("a folder");
    rescue.set("LVKEEP_WORK_DIR", &work);
    let restored = rescue.run(&restore).ok();
    let spilled = restored.err.lines().find(|line| line.contains("too many for the memory"));
    assert!(spilled.is_some_and(|line| line.contains(&work)), "{restored}");
    same_bytes(&image, &target);
    assert_eq!(std::fs::read_dir(&work).expect("the folder").count(), 0, "nothing stays there");
    assert_eq!(std::fs::read(rescue.home().join(".cache")).expect("the file"), b"");
}
