//! What lvmsync does, with lvkeep's commands as the operator's guide has them: a volume moved with little downtime,
//! hourly snapbacks, changes dumped and applied, and pulled from their destination; over a shell that stands for ssh,
//! and over ssh itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::e2e::{Binary, Ran, eventually, same_bytes};
use crate::lab::{
    Content, FileSystem, Keeper, Mounted, Traces, Volume, VolumeGroup, disks, rounds, run, seed, step,
};

/// The two hosts of a move are two volume groups.
struct Site {
    keeper: Keeper,
    here: VolumeGroup,
    there: VolumeGroup,
}

impl Site {
    fn new() -> Self {
        let [one, other] = disks();
        let site = Self {
            keeper: Keeper::new(""),
            here: VolumeGroup::on("vg0", &[&one]),
            there: VolumeGroup::on("vg1", &[&other]),
        };
        let bin = site.place("bin");
        fs::create_dir(&bin).expect("a folder");
        for name in ["lvkeep", "lvmsync"] {
            std::os::unix::fs::symlink(Binary::path(), format!("{bin}/{name}")).expect("a link");
        }
        let rsh = site.place("rsh");
        fs::write(&rsh, format!("#!/bin/sh\nPATH={bin}:$PATH\nshift\nexec sh -c \"$*\"\n"))
            .expect("a script");
        fs::set_permissions(&rsh, PermissionsExt::from_mode(0o755)).expect("it may be run");
        site
    }

    fn place(&self, name: &str) -> String {
        self.keeper.machine.place(name)
    }

    /// `lvkeep`, with the stand-in for ssh.
    #[track_caller]
    fn lvkeep(&self, arguments: &[&str]) -> Ran {
        let mut command = self.keeper.machine.command(arguments);
        command.env("LVKEEP_RSH", self.place("rsh"));
        self.keeper.machine.start_command(arguments, command).end()
    }

    /// A line of shell with lvkeep, and lvmsync, on the PATH.
    #[track_caller]
    fn shell(&self, line: &str) {
        let path = format!("{}:{}", self.place("bin"), std::env::var("PATH").unwrap_or_default());
        let lvkeep = self.keeper.machine.command(&[]);
        let mut command = Command::new("bash");
        command.args(["-o", "pipefail", "-c", line]);
        command.envs(lvkeep.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("PATH", path);
        let ran = command.output().expect("bash runs");
        println!("    {line}\n    {}", String::from_utf8_lossy(&ran.stderr).trim());
        assert!(ran.status.success(), "`{line}` ends with {}", ran.status);
    }
}

/// What `dd` does while the volume is in use.
fn copied(from: &Volume, to: &Volume) {
    run(
        "dd",
        &[
            &format!("if={}", from.device()),
            &format!("of={}", to.device()),
            "bs=1M",
            "conv=fsync",
            "status=none",
        ],
    );
}

#[track_caller]
fn same(a: &Volume, b: &Volume) {
    run("sync", &[]);
    for volume in [a, b] {
        run("blockdev", &["--flushbufs", &volume.device()]);
    }
    same_bytes(a.device(), b.device());
}

/// A volume with a file system, moved while a guest writes to it: what changed during the copy is sent at the end.
pub fn a_volume_moves() {
    let site = Site::new();
    let pool = site.here.pool("pool", 300, 64);
    for thin in [false, true] {
        step(if thin { "a thin volume" } else { "a thick volume" });
        let web = if thin { pool.thin("web-t", 96) } else { site.here.thick("web-1", 96) };
        let target = site.there.thick(if thin { "web-t" } else { "web-1" }, 96);
        Content::new(&target.device(), seed() + 5).fill(100);
        FileSystem::Ext4.make(&web.device());
        let mut guest = Mounted::new(&web.device(), seed());
        guest.create(20, 1 << 20);
        let snapshot = match thin {
            true => web.thin_snapshot("web-move"),
            false => web.snapshot("web-lvkeep", 96, 4),
        };
        // What dd copies is mixed of before and after; what was written meanwhile is in the snapshot's list.
        guest.activity(10, thin);
        copied(&web, &target);
        guest.activity(30, thin);
        guest.sync();
        step("the guest stops, and what changed is sent");
        drop(guest);
        let elsewhere = format!("vmsrv2:{}", target.device());
        let ran = site.lvkeep(&["--json", "send", &snapshot.path(), &elsewhere]).ok();
        let sent = ran.json();
        let changed = sent["bytes_changed"].as_u64().expect("a count");
        assert!(changed > 0 && changed < 80 << 20, "what changed is less than all: {sent}");
        println!("    {sent}");
        same(&web, &target);
        FileSystem::Ext4.check(&target.device());
        // A pool has a device when a volume of it is in use.
        let pools = [&pool];
        Traces::of(&site.here, if thin { &pools } else { &[] }).are_only(0);
    }
}

/// Every hour a newer snapshot takes the older one's place, what changed is sent, and what it overwrites is kept;
/// afterwards the target goes back hour by hour.
pub fn hourly_snapbacks() {
    let site = Site::new();
    let pool = site.here.pool("pool", 300, 64);
    for thin in [false, true] {
        let (name, tool) = if thin { ("thin", "-kn") } else { ("thick", "-L64m") };
        step(name);
        let web = if thin { pool.thin(name, 64) } else { site.here.thick(name, 64) };
        let target = site.there.thick(name, 64);
        let mut content = Content::new(&web.device(), seed());
        content.fill(60);
        let take = |snapshot: &str| {
            run("lvcreate", &["-q", "-y", "-s", tool, "-n", snapshot, &web.path()]);
        };
        take("old");
        let old = || site.here.volume("old");
        copied(&old(), &target);
        same(&old(), &target);
        let mut states = Vec::new();
        let hours = rounds(2);
        for hour in 0..hours {
            let state = site.place(&format!("{name}-{hour}"));
            run("cp", &["--sparse=always", &target.device(), &state]);
            states.push(state);
            content.overwrite(30, 300_000);
            content.zero(4, 200_000);
            if thin {
                content.discard(4, 4 << 20, 64 << 10);
            }
            take("new");
            // The guest goes on writing while the snapshot's moment is sent.
            content.overwrite(10, 100_000);
            let elsewhere = format!("vmsrv2:{}", target.device());
            let back = site.place(&format!("{name}-back-{hour}"));
            site.lvkeep(&["send", "vg0/old", "--to", "vg0/new", &elsewhere, "--snapback", &back]).ok();
            same(&site.here.volume("new"), &target);
            old().remove();
            run("lvrename", &["-q", "vg0", "new", "old"]);
        }
        for hour in (0..hours).rev() {
            let back = site.place(&format!("{name}-back-{hour}"));
            site.lvkeep(&["apply", &back, &target.path()]).ok();
            run("blockdev", &["--flushbufs", &target.device()]);
            same_bytes(target.device(), &states[hour as usize]);
        }
        old().remove();
        run("lvremove", &["-q", "-y", &target.path()]);
    }
    Traces::of(&site.here, &[&pool]).are_only(0);
}

/// Changes in a file, by either program's format and under either name, and pulled through a shell; to thin targets,
/// whose empty ranges give their blocks back.
pub fn changes_are_dumped_and_pulled() {
    let site = Site::new();
    let pool = site.there.pool("pool", 300, 64);
    let web = site.here.thick("web", 64);
    let target = pool.thin("web", 64);
    let mut content = Content::new(&web.device(), seed());
    content.fill(70);
    let snapshot = web.snapshot("before", 64, 4);
    copied(&snapshot, &target);
    let full = target.field("data_percent");
    content.overwrite(20, 200_000);
    run("blkdiscard", &["--zeroout", "-o", "16777216", "-l", "16777216", &web.device()]);
    let place = |name: &str| site.place(name);
    let (changes, theirs, back) = (place("changes"), place("changes.lvmsync"), place("back"));
    let (from, to) = (snapshot.device(), target.device());

    step("dumped, applied, and taken back");
    site.shell(&format!("lvkeep send {from} --stdout >{changes}"));
    site.shell(&format!("lvkeep apply {changes} {to} --snapback {back}"));
    same(&web, &target);
    let percent = |text: &str| text.parse::<f64>().expect("a percentage");
    assert!(percent(&target.field("data_percent")) < percent(&full), "empty blocks are given back");
    site.shell(&format!("lvkeep apply {back} vg1/web"));
    same(&snapshot, &target);

    step("as lvmsync, in its own words");
    site.shell(&format!("lvmsync --stdout {from} >{theirs}"));
    let head = fs::read(&theirs).expect("a stream");
    assert!(head.starts_with(b"lvmsync PROTO[3]\n"));
    site.shell(&format!("lvmsync --snapback {back}.lvmsync --apply {theirs} {to}"));
    same(&web, &target);
    site.shell(&format!("lvmsync --apply - {to} <{back}.lvmsync"));
    same(&snapshot, &target);

    step("pulled from the destination");
    let rsh = site.place("rsh");
    site.shell(&format!("{rsh} src lvkeep send {from} --stdout | lvkeep apply - {to}"));
    same(&web, &target);

    step("to a pool that shows somebody's old data where a new block is not written whole");
    let stale = site.there.pool("stale", 200, 64);
    let other = stale.thin("other", 180);
    Content::new(&other.device(), seed() + 9).fill(100);
    other.remove();
    run("lvchange", &["-q", "-an", &stale.volume.path()]);
    run("lvchange", &["-q", "-Zn", &stale.volume.path()]);
    run("lvchange", &["-q", "-ay", &stale.volume.path()]);
    let (empty, fresh) = (site.here.thick("empty", 32), stale.thin("fresh", 32));
    run("blkdiscard", &["--zeroout", &empty.device()]);
    let was_empty = empty.snapshot("was-empty", 32, 4);
    Content::new(&empty.device(), seed()).overwrite(40, 20_000);
    site.lvkeep(&["send", &was_empty.path(), &fresh.path()]).ok();
    same(&empty, &fresh);

    step("targets that are in use");
    FileSystem::Ext4.make(&target.device());
    let mounted = Mounted::new(&target.device(), seed());
    let refused = site.lvkeep(&["apply", &changes, &to]);
    refused.fails(
        3,
        &["vg1/web", "mounted on", "unmount"].map(|word| if word == "vg1/web" { &to } else { word }),
    );
    drop(mounted);
    let mut guest = Command::new("bash");
    let guest = guest.arg("-c").arg(format!("exec 7<>{to}; echo ready; exec cat")).stdin(Stdio::piped());
    let mut guest = guest.stdout(Stdio::null()).spawn().expect("a process that has it open");
    eventually("the guest has its disk open", || {
        let fds = Path::new("/proc").join(guest.id().to_string()).join("fd/7");
        fds.exists().then_some(())
    });
    let elsewhere = format!("vmsrv2:{to}");
    site.lvkeep(&["send", &from, &elsewhere]).fails(3, &["in use", "writes to it"]);
    drop(guest.stdin.take());
    guest.wait().expect("the guest ends");

    step("what is no snapshot, and a snapshot that overflowed");
    site.lvkeep(&["send", "vg0/web", &to]).fails(3, &["vg0/web", "no snapshot"]);
    site.lvkeep(&["send", "vg0/none", &to]).fails(3, &["vg0/none"]);
    let small = web.snapshot("small", 4, 4);
    Content::new(&web.device(), seed() + 3).fill(60);
    site.lvkeep(&["send", &small.path(), &to]).fails(4, &["small", "overflowed"]);
    site.lvkeep(&["send", &snapshot.path(), &web.path()]).fails(3, &["is what is sent"]);
}

/// A real sshd for each connection, and the words that lead to it. The guest has no network, and ssh needs none: it
/// talks to a daemon that it starts itself.
struct Sshd {
    rsh: String,
    started: String,
}

impl Sshd {
    fn new(site: &Site) -> Self {
        let folder = site.place("ssh");
        fs::create_dir(&folder).expect("a folder");
        fs::create_dir_all("/run/sshd").expect("sshd's folder");
        for key in ["host", "user"] {
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &format!("{folder}/{key}")]);
        }
        let bin = site.place("bin");
        let configuration = format!(
            "HostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nStrictModes no\nPermitRootLogin yes\n\
             UsePAM no\nSetEnv PATH={bin}:/usr/sbin:/usr/bin:/sbin:/bin\n"
        );
        fs::write(format!("{folder}/sshd_config"), configuration).expect("a configuration");
        let (daemon, started) = (format!("{folder}/daemon"), format!("{folder}/started"));
        let lines =
            format!("#!/bin/sh\necho $$ >>{started}\nexec /usr/sbin/sshd -i -f {folder}/sshd_config\n");
        fs::write(&daemon, lines).expect("a script");
        fs::set_permissions(&daemon, PermissionsExt::from_mode(0o755)).expect("it may be run");
        let rsh = format!(
            "ssh -i {folder}/user -o ProxyCommand={daemon} -o BatchMode=yes -o StrictHostKeyChecking=no \
             -o UserKnownHostsFile=/dev/null"
        );
        Self { rsh, started }
    }

    /// Ends the daemon of the connection that was made last.
    fn kill(&self) {
        let started = fs::read_to_string(&self.started).expect("a daemon was started");
        run("kill", &["-KILL", started.lines().last().expect("its number")]);
    }
}

/// A real ssh whose connection is cut in the middle: what was durable is not sent again.
pub fn a_broken_ssh_is_taken_up_again() {
    let site = Site::new();
    let web = site.here.thick("web", 128);
    let target = site.there.thick("web", 128);
    let mut content = Content::new(&web.device(), seed());
    content.fill(80);
    let snapshot = web.snapshot("before", 160, 64);
    copied(&snapshot, &target);
    content.fill(90);
    let sshd = Sshd::new(&site);
    let back = site.place("back");
    let elsewhere = format!("vmsrv2:{}", target.device());
    let arguments = [
        "--json",
        "send",
        &snapshot.path(),
        &elsewhere,
        "--rsh",
        &sshd.rsh,
        "--snapback",
        &back,
        "--limit-read",
        "8MiB",
    ];
    let sending = site.keeper.machine.start(&arguments);
    eventually("much is overwritten", || {
        let kept = fs::metadata(&back).map_or(0, |found| found.len());
        (kept > 80 << 20).then_some(())
    });
    step("the connection is cut");
    sshd.kill();
    let ran = sending.end().ok();
    println!("    {}", ran.out.trim());
    let sent = ran.json();
    assert!(sent["connections"].as_u64() > Some(1), "{sent}");
    let count = |name: &str| sent[name].as_u64().expect("a count");
    let again = count("bytes_sent") + count("bytes_zero") - count("bytes_changed");
    assert!(again < 72 << 20, "what was durable is not sent again: {sent}");
    same(&web, &target);
    site.lvkeep(&["apply", &back, &target.device()]).ok();
    same(&snapshot, &target);
}
