use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::mounts::mount_point;
use super::*;
use crate::owner::Owner;

/// A host whose `fsfreeze` and `virsh` only write down what they were asked.
struct Host {
    folder: tempfile::TempDir,
    tools: Tools,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let host = Self { tools: Tools::at(folder.path()), folder };
        let log = host.log_file();
        for tool in ["fsfreeze", "virsh"] {
            host.fake(tool, &format!("echo \"{tool} $*\" >> {}", log.display()));
        }
        host
    }

    fn fake(&self, tool: &str, script: &str) {
        let file = self.folder.path().join(tool);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.log_file()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// What is still noted as frozen.
    fn notes(&self) -> usize {
        fs::read_dir(self.state()).map_or(0, Iterator::count)
    }

    fn plan(&self) -> Plan {
        let log = self.log_file().display().to_string();
        Plan {
            hooks: vec![Hooks {
                pre: Some(format!("echo pre >> {log}")),
                post: Some(format!("echo post >> {log}")),
            }],
            mount_points: vec!["/srv/a".into()],
            domains: vec!["web".into()],
        }
    }

    /// The word that a tool will write into a pipe, once somebody runs it.
    fn pipe(&self, tool: &str) -> PathBuf {
        let pipe = self.folder.path().join(format!("{tool}.pipe"));
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        self.fake(tool, &format!("case \"$1\" in *un*|*thaw*) echo \"$*\" > {};; esac", pipe.display()));
        pipe
    }
}

const ALL: [&str; 6] = [
    "pre",
    "virsh domfsfreeze --domain web",
    "fsfreeze --freeze /srv/a",
    "fsfreeze --unfreeze /srv/a",
    "virsh domfsthaw --domain web",
    "post",
];

#[tokio::test]
async fn what_is_frozen_is_thawed_in_reverse_order() {
    let host = Host::new();
    let (log, state) = (host.log_file(), host.state());
    let body = async move {
        assert_eq!(fs::read_dir(state).unwrap().count(), 1, "how to thaw is noted before");
        let text = fs::read_to_string(log).unwrap();
        text.lines().count()
    };
    let (seen, _) = around(&host.tools, &host.state(), host.plan(), Times::default(), body).await.unwrap();
    assert_eq!(seen, 3, "everything was frozen");
    assert_eq!(host.log(), ALL);
    assert_eq!(host.notes(), 0);
}

#[tokio::test]
async fn what_cannot_be_frozen_is_let_go_again() {
    let host = Host::new();
    let log = host.log_file();
    host.fake("fsfreeze", &format!("echo \"fsfreeze $*\" >> {}; [ $1 != --freeze ]", log.display()));
    let error =
        around(&host.tools, &host.state(), host.plan(), Times::default(), async {}).await.unwrap_err();
    assert!(error.to_string().contains("fsfreeze --freeze /srv/a"), "{error}");
    assert_eq!(host.log(), ALL);

    let plan = Plan {
        hooks: vec![Hooks { pre: Some("exit 3".into()), ..host.plan().hooks[0].clone() }],
        ..host.plan()
    };
    fs::remove_file(host.log_file()).unwrap();
    assert!(around(&host.tools, &host.state(), plan, Times::default(), async {}).await.is_err());
    assert_eq!(host.log(), ["post"], "nothing was frozen, and the post command ran all the same");
    assert_eq!(host.notes(), 0);
}

/// What undoes the plan of a host whose `tool` says this when it is to freeze, and fails.
async fn undone_after(tool: &str, said: &str, plan: impl FnOnce(&Host) -> Plan) -> Vec<String> {
    let host = Host::new();
    let (log, plan) = (host.log_file(), plan(&host));
    let script = format!(
        "echo \"{tool} $*\" >> {}; case $1 in *un*|*thaw*) exit;; esac; cat >&2 <<'.'; exit 1\n{said}\n.",
        log.display()
    );
    host.fake(tool, &script);
    let error = around(&host.tools, &host.state(), plan, Times::default(), async {}).await.unwrap_err();
    assert!(error.to_string().contains(said.lines().last().unwrap()), "{error}");
    assert_eq!(host.notes(), 0);
    let is_undone = |line: &&String| ["unfreeze", "thaw", "post"].iter().any(|word| line.contains(word));
    host.log().iter().filter(is_undone).cloned().collect()
}

#[tokio::test]
async fn what_somebody_else_froze_is_not_thawed() {
    let undone =
        undone_after("fsfreeze", "fsfreeze: /srv/a: freeze failed: Device or resource busy", Host::plan)
            .await;
    assert_eq!(undone, ALL[4..]);
    for why in [
        "Command guest-fsfreeze-freeze has been disabled: the agent is in frozen state",
        "The command guest-fsfreeze-freeze has been disabled for this instance",
    ] {
        let said = format!(
            "error: Unable to freeze filesystems\n\
             error: internal error: unable to execute QEMU agent command 'guest-fsfreeze-freeze': {why}"
        );
        assert_eq!(undone_after("virsh", &said, Host::plan).await, ALL[5..]);
    }
}

#[tokio::test]
async fn a_name_that_sounds_like_somebody_elses_freeze_is_thawed() {
    let point = "/srv/busy/in frozen state/has been disabled";
    let said = format!("fsfreeze: {point}: freeze failed: Input/output error");
    let at = |host: &Host| Plan { mount_points: vec![point.into()], ..host.plan() };
    let undone = undone_after("fsfreeze", &said, at).await;
    assert_eq!(undone[0], format!("fsfreeze --unfreeze {point}"));

    let domain = "frozen-disabled: device or resource busy";
    let said = format!("error: failed to get domain '{domain}'");
    let of = |host: &Host| Plan { domains: vec![domain.into()], ..host.plan() };
    assert_eq!(undone_after("virsh", &said, of).await[0], format!("virsh domfsthaw --domain {domain}"));
}

#[tokio::test]
async fn what_freezes_too_late_is_thawed_all_the_same() {
    let host = Host::new();
    let (log, hurry) = (host.log_file(), host.folder.path().join("hurry"));
    // Goes on to freeze only after somebody has tried to thaw it.
    let script = format!(
        "case $1 in --freeze) until [ -e {1} ]; do sleep 0.01; done;; *) : > {1};; esac; echo \"fsfreeze $*\" >> {0}",
        log.display(),
        hurry.display()
    );
    host.fake("fsfreeze", &script);
    let times = Times { frozen: Duration::from_millis(200), ..Times::default() };
    let error = around(&host.tools, &host.state(), host.plan(), times, async {}).await.unwrap_err();
    assert!(matches!(error, FreezeError::TooLong(_)), "{error}");
    let log = host.log();
    let last = |wanted: &str| log.iter().rposition(|line| line.contains(wanted));
    assert!(last("--freeze") < last("--unfreeze"), "{log:?}");
    assert!(last("domfsfreeze") < last("domfsthaw") && last("post") == Some(log.len() - 1), "{log:?}");
    assert_eq!(host.notes(), 0);
}

#[tokio::test]
async fn a_freeze_that_hangs_keeps_nothing_else_frozen() {
    let host = Host::new();
    let (log, folder) = (host.log_file().display().to_string(), host.folder.path().display().to_string());
    host.fake("virsh", &format!("echo \"virsh $*\" >> {log}; [ $1 != domfsthaw ] || : > {folder}/thawed"));
    // Neither freezes nor thaws before the domain is thawed.
    let script = format!(
        "echo \"fsfreeze $*\" >> {log}; until [ -e {folder}/thawed ]; do sleep 0.01; done; echo over >> {log}"
    );
    host.fake("fsfreeze", &script);
    let times = Times { hook: Duration::from_secs(10), frozen: Duration::from_millis(200) };
    let error = around(&host.tools, &host.state(), host.plan(), times, async {}).await.unwrap_err();
    assert!(matches!(error, FreezeError::TooLong(_)), "{error}");
    let log = host.log();
    let first = |wanted: &str| log.iter().position(|line| line.contains(wanted)).unwrap();
    assert!(first("domfsthaw") < first("--unfreeze"), "{log:?}");
    assert!(first("domfsthaw") < first("over"), "{log:?}");
    assert_eq!(log.last().map(String::as_str), Some("post"));
    assert_eq!(host.notes(), 0);
}

#[tokio::test]
async fn a_post_command_that_fails_is_reported_and_not_run_again() {
    let host = Host::new();
    let log = host.log_file().display().to_string();
    let hooks = vec![Hooks { pre: None, post: Some(format!("echo post >> {log}; exit 3")) }];
    let plan = Plan { hooks, ..host.plan() };
    let ((), still) = around(&host.tools, &host.state(), plan, Times::default(), async {}).await.unwrap();
    assert!(still.failed.len() == 1 && still.failed[0].contains("exit 3"), "{still:?}");
    assert_eq!(host.notes(), 0, "nothing is left for another run");
    assert!(thaw_what_was_left(&host.tools, &host.state()).await.is_empty());
    assert_eq!(host.log().iter().filter(|line| *line == "post").count(), 1);
}

#[tokio::test]
async fn a_panic_does_not_leave_anything_frozen() {
    let host = Host::new();
    let pipe = host.pipe("fsfreeze");
    let plan = Plan { mount_points: vec!["/srv/a".into()], ..Plan::default() };
    let body = async { panic!("in the middle") };
    let error = around::<(), _>(&host.tools, &host.state(), plan, Times::default(), body).await.unwrap_err();
    assert!(error.to_string().contains("ended early"), "{error}");
    let said = tokio::task::spawn_blocking(move || fs::read_to_string(pipe).unwrap()).await.unwrap();
    assert_eq!(said, "--unfreeze /srv/a\n", "its watchdog thawed");
}

#[tokio::test]
async fn nobody_waiting_any_more_changes_nothing() {
    let host = Host::new();
    let (let_go, gate) = tokio::sync::oneshot::channel::<()>();
    let (begun, has_begun) = tokio::sync::oneshot::channel::<()>();
    let (tools, state, plan) = (host.tools.clone(), host.state(), host.plan());
    let waiting = tokio::spawn(async move {
        let body = async move {
            begun.send(()).unwrap();
            gate.await.unwrap();
        };
        around(&tools, &state, plan, Times::default(), body).await.map(drop)
    });
    has_begun.await.unwrap();
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    // The end of the post command shows that everything before it was undone.
    let pipe = host.pipe("virsh");
    let_go.send(()).unwrap();
    let said = tokio::task::spawn_blocking(move || fs::read_to_string(pipe).unwrap()).await.unwrap();
    assert_eq!(said, "domfsthaw --domain web\n");
    assert!(host.log().contains(&ALL[3].to_owned()));
}

#[tokio::test]
async fn writers_are_not_held_for_longer_than_allowed() {
    let host = Host::new();
    let log = host.log_file();
    let times = Times { frozen: Duration::from_millis(200), ..Times::default() };
    let body = async move {
        // Goes on only when it sees that everything was thawed.
        loop {
            if fs::read_to_string(&log).is_ok_and(|text| text.contains("post")) {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    let error = around(&host.tools, &host.state(), host.plan(), times, body).await.unwrap_err();
    assert!(matches!(error, FreezeError::TooLong(_)), "{error}");
    assert_eq!(host.log(), ALL);
}

#[tokio::test]
async fn what_a_dead_process_left_is_thawed_and_what_a_living_one_holds_is_not() {
    let host = Host::new();
    let dead = Owner::new("another-boot", 1, 1).unwrap();
    fs::create_dir(host.state()).unwrap();
    fs::set_permissions(host.state(), fs::Permissions::from_mode(0o700)).unwrap();
    let note = |owner: &Owner, point: &str| {
        format!(
            "{{\"owner\":\"{owner}\",\"undo\":[{{\"program\":\"virsh\",\"arguments\":[\"domfsthaw\"]}},\
             {{\"program\":\"fsfreeze\",\"arguments\":[\"--unfreeze\",\"{point}\"]}}]}}"
        )
    };
    fs::write(host.state().join("a.frozen"), note(&dead, "/srv/dead")).unwrap();
    fs::write(host.state().join("b.frozen"), note(&Owner::this().unwrap(), "/srv/alive")).unwrap();
    fs::write(host.state().join("c.frozen"), "torn").unwrap();
    let thawed = thaw_what_was_left(&host.tools, &host.state()).await;
    assert_eq!(thawed, ["fsfreeze --unfreeze /srv/dead", "virsh domfsthaw"]);
    assert_eq!(host.log(), thawed);
    assert_eq!(host.notes(), 2, "the living one's, and the one that somebody must look at");

    fs::set_permissions(host.state(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(host.state().join("a.frozen"), note(&dead, "/srv/evil")).unwrap();
    assert!(thaw_what_was_left(&host.tools, &host.state()).await.is_empty(), "anybody could have written it");
}

#[test]
fn plans_name_everything_once_and_know_the_kernel() {
    let hooks = Hooks { pre: Some("a".into()), post: None };
    let none = Hooks::default();
    let at = |point: &str| Some(Mounted { point: point.into(), why_not: None });
    let domain = Freeze::Domain("web".into());
    let (fs, nothing) = (Freeze::FileSystem, Freeze::Nothing);
    let wanted = || {
        [
            (&domain, &hooks, None),
            (&domain, &hooks, at("/x")),
            (&fs, &none, at("/a")),
            (&fs, &none, None),
            (&nothing, &none, at("/b")),
        ]
    };
    let plan = Plan::new(wanted(), "6.12.0-1-amd64").unwrap();
    assert_eq!(
        plan,
        Plan { hooks: vec![hooks.clone()], mount_points: vec!["/a".into()], domains: vec!["web".into()] }
    );
    assert_eq!(Plan::new(wanted(), "6.1.0-9").unwrap().mount_points, Vec::<PathBuf>::new(), "LVM does it");
    let two = [(&fs, &none, at("/a")), (&fs, &none, at("/b"))];
    assert!(Plan::new(two.clone(), "6.8.4").is_ok());
    assert!(Plan::new(two, "6.1.0").unwrap_err().to_string().contains("2 file systems"));
    let needed = Some(Mounted { point: "/".into(), why_not: Some("/etc/lvm is on it".into()) });
    assert!(Plan::new([(&fs, &none, needed)], "6.8.4").unwrap_err().to_string().contains("/etc/lvm"));
    assert!(Plan::new([(&nothing, &none, None)], "?").unwrap().is_empty());
}

#[test]
fn mount_points_are_found_by_device() {
    let text = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n\
                 37 35 253:12 / /srv/my\\040disk\\134 rw - ext4 /dev/mapper/a rw\n";
    assert_eq!(mount_point(text, 253, 12), Some("/srv/my disk\\".into()));
    assert_eq!(mount_point(text, 98, 0), Some("/mnt2".into()));
    assert_eq!(mount_point(text, 53, 12), None);
    assert_eq!(mount_point(b"\n1 2\n", 0, 0), None);
}
