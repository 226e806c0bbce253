//! The units of systemd: read strictly, held against what each role may have, and run as far as their arguments.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tests::e2e::{Binary, Machine, Process, program};

const ROLES: [&str; 7] = ["reader", "hasher", "indexer", "storer", "conductor", "restorer", "checker"];
const INSTALLED: &str = "/usr/local/bin/lvkeep";
const BUCKET: &str = "/etc/lvkeep/bucket.env";

/// Every key that our units use, by section: a word that is misspelt is in none.
const KNOWN: [(&str, &[&str]); 4] = [
    ("Unit", &["Description", "Wants", "After", "OnFailure", "StartLimitIntervalSec"]),
    ("Install", &["WantedBy"]),
    ("Timer", &["OnCalendar", "RandomizedDelaySec", "FixedRandomDelay", "Persistent"]),
    (
        "Service",
        &[
            "CacheDirectory",
            "CacheDirectoryMode",
            "CapabilityBoundingSet",
            "DeviceAllow",
            "DevicePolicy",
            "DynamicUser",
            "Environment",
            "EnvironmentFile",
            "ExecStart",
            "IOSchedulingClass",
            "IOSchedulingPriority",
            "KillSignal",
            "LimitCORE",
            "LoadCredential",
            "LockPersonality",
            "MemoryDenyWriteExecute",
            "Nice",
            "NoNewPrivileges",
            "PrivateDevices",
            "PrivateTmp",
            "ProtectClock",
            "ProtectControlGroups",
            "ProtectHome",
            "ProtectHostname",
            "ProtectKernelLogs",
            "ProtectKernelModules",
            "ProtectKernelTunables",
            "ProtectSystem",
            "ReadWritePaths",
            "Restart",
            "RestartSec",
            "RestrictAddressFamilies",
            "RestrictNamespaces",
            "RestrictRealtime",
            "RestrictSUIDSGID",
            "RuntimeDirectory",
            "RuntimeDirectoryMode",
            "RuntimeDirectoryPreserve",
            "SystemCallArchitectures",
            "SystemCallFilter",
            "TimeoutStopSec",
            "Type",
            "UMask",
            "User",
        ],
    ),
];

/// Values by `Section.Key`, in order; an empty value forgets those before it.
type Unit = BTreeMap<String, Vec<String>>;

fn folder() -> PathBuf {
    super::deploy().join("systemd")
}

fn read_into(unit: &mut Unit, path: &Path) {
    let text = std::fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    let mut section = String::new();
    for (number, line) in text.lines().enumerate() {
        let place = format!("{}:{}: {line:?}", path.display(), number + 1);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            assert!(KNOWN.iter().any(|(known, _)| *known == name), "{place} is no section");
            section = name.to_owned();
            continue;
        }
        let (key, value) =
            line.split_once('=').unwrap_or_else(|| panic!("{place} is neither a section nor KEY=VALUE"));
        let keys = KNOWN.iter().find(|(known, _)| *known == section).map_or(&[][..], |(_, keys)| keys);
        assert!(keys.contains(&key), "{place}: [{section}] has no such key");
        let values = unit.entry(format!("{section}.{key}")).or_default();
        match value.is_empty() {
            true => values.clear(),
            false => values.push(value.to_owned()),
        }
    }
}

/// A unit with its drop-in.
fn unit(name: &str, drop_in: Option<&str>) -> Unit {
    let mut unit = Unit::new();
    read_into(&mut unit, &folder().join(name));
    if let Some(drop_in) = drop_in {
        read_into(&mut unit, &folder().join(drop_in));
    }
    unit
}

fn agent(role: &str) -> Unit {
    unit("lvkeep-agent@.service", Some(&format!("lvkeep-agent@{role}.service.d/{role}.conf")))
}

fn last<'a>(unit: &'a Unit, key: &str) -> &'a str {
    unit.get(key).and_then(|values| values.last()).map_or("", String::as_str)
}

fn has(unit: &Unit, key: &str, value: &str) -> bool {
    unit.get(key).is_some_and(|values| values.iter().any(|found| found == value))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn every_line_is_known() {
    let files = files(&folder());
    assert!(files.len() >= 11, "{files:?}");
    files.iter().for_each(|file| read_into(&mut Unit::new(), file));
}

#[test]
fn only_readers_and_restorers_see_devices_and_run_as_root() {
    for role in ROLES {
        let unit = agent(role);
        let sees = ["reader", "restorer"].contains(&role);
        let expected = if sees { ("no", "no", "root") } else { ("yes", "yes", "") };
        let found = (
            last(&unit, "Service.PrivateDevices"),
            last(&unit, "Service.DynamicUser"),
            last(&unit, "Service.User"),
        );
        assert_eq!(found, expected, "{role}");
        assert_eq!(unit.contains_key("Service.DeviceAllow"), sees, "{role}");
        assert_eq!(last(&unit, "Service.NoNewPrivileges"), "yes", "{role}");
        assert_eq!(last(&unit, "Service.ProtectSystem"), "strict", "{role}");
    }
    assert_eq!(last(&agent("reader"), "Service.DeviceAllow"), "block-* r");
}

#[test]
fn hosts_get_neither_the_bucket_nor_an_identity() {
    for role in ROLES {
        let unit = agent(role);
        let on_host = ["reader", "hasher"].contains(&role);
        assert_eq!(has(&unit, "Service.EnvironmentFile", BUCKET), !on_host, "{role}");
        let identity = has(&unit, "Service.LoadCredential", "identity:/etc/lvkeep/identity");
        assert_eq!(identity, ["restorer", "checker"].contains(&role), "{role}");
        assert!(has(&unit, "Service.LoadCredential", "writer-key:/etc/lvkeep/writer-key"), "{role}");
    }
    assert_eq!(last(&agent("checker"), "Service.IOSchedulingClass"), "idle");
    assert!(!has(&unit("lvkeep-backup.service", None), "Service.EnvironmentFile", BUCKET));
}

#[test]
fn a_host_hashes_in_the_process_that_reads() {
    let unit = agent("reader");
    assert_eq!(unit["Service.ExecStart"], [format!("{INSTALLED} agent --role reader --role hasher")]);
}

#[test]
fn agents_start_again_and_have_time_to_stop() {
    let unit = agent("storer");
    assert_eq!(last(&unit, "Service.Restart"), "on-failure");
    assert_eq!(last(&unit, "Service.KillSignal"), "SIGTERM");
    let seconds: u32 = last(&unit, "Service.TimeoutStopSec").parse().expect("seconds");
    // The attempts to upload a pack span a minute.
    assert!(seconds > 64, "{seconds}");
}

#[test]
fn backups_are_spread_made_up_for_and_missed_aloud() {
    let timer = unit("lvkeep-backup.timer", None);
    assert_eq!(last(&timer, "Timer.Persistent"), "true");
    assert_ne!(last(&timer, "Timer.RandomizedDelaySec"), "");
    let hook = last(&unit("lvkeep-backup.service", None), "Unit.OnFailure").to_owned();
    let (template, _) = hook.split_once("%n").expect("an instance of a template");
    assert!(folder().join(format!("{template}.service")).is_file(), "{hook}");
}

/// Runs what a unit starts, on a machine with nothing on it. The command line is right when something else is missing.
fn runs(unit: &Unit, role: &str, codes: &[i32]) {
    let machine = Machine::new(role);
    let source = machine.place("source.img");
    std::fs::write(&source, vec![7; 100_000]).expect("a source");
    let line = last(unit, "Service.ExecStart").replace("%i", role).replace("$LVKEEP_SOURCES", &source);
    let words: Vec<&str> = line.split_whitespace().collect();
    let (program, arguments) = words.split_first().expect("a program");
    assert_eq!(*program, INSTALLED);
    let ran = machine.run(arguments);
    assert!(codes.contains(&ran.code()), "{ran}");
}

#[test]
fn the_binary_takes_every_command_line() {
    for role in ROLES {
        // Without a key or a repository: not 2, which is wrong usage.
        let codes: &[i32] = if ["reader", "hasher"].contains(&role) { &[1] } else { &[3] };
        runs(&agent(role), role, codes);
    }
    // All of it, in one process: that is a backup.
    runs(&unit("lvkeep-backup.service", None), "backup", &[0]);
    runs(
        &unit("lvkeep-backup.service", Some("lvkeep-backup.service.d/embedded.conf.example")),
        "backup",
        &[0],
    );
}

/// With what the unit leaves root, a restorer sees who has its target open.
#[test]
fn a_restorer_may_see_who_uses_its_target() {
    let name = "lvkeep-agent@restorer.service";
    let mut unit = agent("restorer");
    let words = |unit: &Unit| -> Vec<String> {
        let lines = unit["Service.CapabilityBoundingSet"].iter();
        lines.flat_map(|line| line.split_whitespace()).map(str::to_lowercase).collect()
    };
    let alone = words(&unit);
    read_into(&mut unit, &folder().join(format!("{name}.d/lvm.conf.example")));
    for words in [&alone, &words(&unit)] {
        assert!(words.iter().any(|word| word == "cap_sys_ptrace"), "{words:?}");
    }
    if !rustix::process::geteuid().is_root() {
        println!("NOT SHOWN: what root is left with, for which this test needs root");
        return;
    }
    let machine = Machine::with_disk(4 << 20);
    let target = machine.place("target.img");
    let open = std::fs::File::create(&target).expect("a file");
    let mut command = Command::new(program("cat"));
    let mut guest = command.stdin(Stdio::piped()).stdout(open).spawn().expect("cat runs");
    // It holds a handle of its own.
    drop(command);
    let restore = |capabilities: &[String]| {
        let kept: String = capabilities.iter().map(|word| word.replace("cap_", ",+")).collect();
        let mut command = Command::new(program("setpriv"));
        command.arg(format!("--bounding-set=-all{kept}")).arg(Binary::path());
        command.args(["restore", "vm/disk@latest", &target]);
        command.env("HOME", machine.home()).env("LVKEEP_REPO", machine.place("repo"));
        machine.start_command(&["restore"], command).end()
    };
    restore(&alone).fails(3, &[&target, "in use", &guest.id().to_string(), "cat"]);
    assert_eq!(std::fs::metadata(&target).expect("the target").len(), 0);
    // Without it nobody is seen, which is said once.
    let blind: Vec<String> = alone.into_iter().filter(|word| word != "cap_sys_ptrace").collect();
    let ran = restore(&blind).ok();
    assert_eq!(ran.out.matches("could not be looked at").count(), 1, "{ran}");
    drop(guest.stdin.take());
    guest.wait().expect("cat ends");
}

/// Where there is systemd, it has the last word.
#[test]
fn systemd_accepts_them() {
    let Some(systemd_analyze) = systemd_analyze() else {
        println!("systemd-analyze is not on this machine; the other tests have read the units");
        return;
    };
    let there = tempfile::tempdir().expect("a folder");
    let binary = Binary::path().display().to_string();
    for file in files(&folder()) {
        let target = there.path().join("units").join(file.strip_prefix(folder()).expect("a file below"));
        std::fs::create_dir_all(target.parent().expect("a parent")).expect("a folder");
        let text = std::fs::read_to_string(&file).expect("a unit").replace(INSTALLED, &binary);
        std::fs::write(target, text).expect("the unit is written");
    }
    let units = there.path().join("units");
    let mut command = Command::new(systemd_analyze);
    command.args(["verify", "--man=no"]).env("SYSTEMD_UNIT_PATH", format!("{}:", units.display()));
    command.args(ROLES.map(|role| units.join(format!("lvkeep-agent@{role}.service"))));
    for name in ["lvkeep-backup.service", "lvkeep-backup.timer", "lvkeep-failed@test.service"] {
        command.arg(units.join(name));
    }
    let ran = Process::start("systemd-analyze", command, there.path()).end().ok();
    let ours: Vec<&str> = ran.err.lines().filter(|line| line.contains("lvkeep")).collect();
    assert!(ours.is_empty(), "{ours:#?}");
}

fn systemd_analyze() -> Option<PathBuf> {
    ["/usr/bin/systemd-analyze", "/bin/systemd-analyze"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.is_file())
}
