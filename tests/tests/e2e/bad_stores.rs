//! Stores that are full, away, closed to us, or read-only.

use std::path::Path;
use std::process::Command;

use tests::e2e::{Binary, Machine, Process, Seaweed, program, random_file};

/// A folder with a file system of its own; gone with this value.
struct Mount(String);

impl Mount {
    /// Mounts; none where this machine cannot, which is said.
    fn new(folder: String, arguments: &[&str]) -> Option<Self> {
        std::fs::create_dir_all(&folder).expect("a folder to mount on");
        let done = Command::new(program("mount")).args(arguments).arg(&folder).output().expect("mount runs");
        if done.status.success() {
            return Some(Self(folder));
        }
        println!("THIS MACHINE CANNOT MOUNT: {}", String::from_utf8_lossy(&done.stderr).trim());
        None
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let done = Command::new(program("umount")).arg(&self.0).status();
        assert!(done.is_ok_and(|status| status.success()), "{} stays mounted", self.0);
    }
}

/// A repository with a small snapshot of `vm/good`, at `repo`.
fn repository(machine: &mut Machine, repo: &str) {
    machine.set("LVKEEP_REPO", repo);
    machine.run(&["init", "--pack-size", "1MiB"]).ok();
    let image = machine.place("good.img");
    random_file(&image, 2 << 20, 1);
    machine.run(&["backup", "--name", "vm/good", &image]).ok();
}

fn good_is_whole(machine: &Machine) {
    machine.restores("vm/good@latest", machine.place("good.img"));
    machine.run(&["check", "--read-data"]).ok();
    assert_eq!(machine.json(&["snapshots"]).as_array().map(Vec::len), Some(1));
}

#[test]
fn a_limit_on_file_sizes_fails_the_backup_by_name() {
    let mut machine = Machine::new("m");
    let repo = machine.place("repo");
    repository(&mut machine, &repo);
    let image = machine.place("large.img");
    random_file(&image, 8 << 20, 2);
    // 512 KiB: a pack does not fit, small objects do.
    let mut command = Command::new(program("sh"));
    command.arg("-c").arg("trap '' XFSZ; ulimit -f 1024; exec \"$0\" backup --name vm/large \"$1\"");
    command.arg(Binary::path()).arg(&image).env("HOME", machine.home()).env("LVKEEP_REPO", &repo);
    Process::start("limited", command, Path::new(&machine.place("output")))
        .end()
        .fails(5, &[&repo, "packs/"]);
    assert_eq!(machine.json(&["status"])["sessions"], serde_json::json!([]));
    good_is_whole(&machine);
    machine.run(&["backup", "--name", "vm/large", &image]).ok();
    machine.restores("vm/large@latest", &image);
}

#[test]
fn a_full_disk_fails_the_backup_by_name() {
    let mut machine = Machine::new("m");
    let Some(disk) = Mount::new(machine.place("disk"), &["-t", "tmpfs", "-o", "size=8m", "tmpfs"]) else {
        println!("a limit on file sizes, in a test of its own, takes the full disk's place");
        return;
    };
    let repo = format!("{}/repo", disk.0);
    repository(&mut machine, &repo);
    let image = machine.place("large.img");
    random_file(&image, 20 << 20, 2);
    machine.run(&["backup", "--name", "vm/large", &image]).fails(5, &[&repo]);
    let filler = format!("{}/filler", disk.0);
    // To the last byte.
    let mut file = std::fs::File::create(&filler).expect("a file");
    while std::io::Write::write(&mut file, &[1; 4096]).is_ok_and(|n| n > 0) {}
    machine.run(&["backup", "--name", "vm/large", &image]).fails(5, &[&repo]);
    machine.restores("vm/good@latest", machine.place("good.img"));
    std::fs::remove_file(&filler).expect("room again");
    good_is_whole(&machine);
    let small = machine.place("small.img");
    random_file(&small, 1 << 20, 3);
    machine.run(&["backup", "--name", "vm/small", &small]).fails(5, &[&repo]);
}

#[test]
fn a_read_only_repository_can_be_restored_from() {
    let mut machine = Machine::new("m");
    let repo = machine.place("repo");
    repository(&mut machine, &repo);
    let Some(readonly) = Mount::new(machine.place("readonly"), &["--bind", &repo]) else {
        println!("a repository on a full disk, in a test of its own, takes the read-only one's place");
        return;
    };
    let remounted = Command::new(program("mount")).args(["-o", "remount,bind,ro", &readonly.0]).status();
    assert!(remounted.is_ok_and(|status| status.success()), "a bind mount becomes read-only");
    machine.set("LVKEEP_REPO", &readonly.0);
    let image = machine.place("good.img");
    machine.restores("vm/good@latest", &image);
    machine.run(&["check", "--read-data"]).ok();
    machine.run(&["snapshots"]).ok();
    machine.run(&["backup", "--name", "vm/good", &image]).fails(5, &[&readonly.0]);
}

#[test]
fn an_object_store_that_refuses_is_named() {
    let weed = Seaweed::start();
    let mut machine = Machine::new("m");
    machine.set_all(&weed.environment());
    repository(&mut machine, &weed.location("repo"));
    let image = machine.place("good.img");

    machine.set("AWS_SECRET_ACCESS_KEY", "wrong");
    for command in
        [&["snapshots"][..], &["backup", &image], &["restore", "vm/good@latest", "out"], &["check"]]
    {
        machine.run(command).fails(5, &["s3://backups/repo/config"]);
    }
    machine.set_all(&weed.environment());
    machine.run(&["--repo", "s3://no-such-bucket/repo", "snapshots"]).fails(3, &["s3://no-such-bucket/repo"]);
    good_is_whole(&machine);
}

#[test]
fn an_object_store_that_is_away_is_named() {
    let mut machine = Machine::new("m");
    let repo = machine.place("repo");
    repository(&mut machine, &repo);
    let [port] = tests::e2e::free_ports();
    let endpoint = format!("http://127.0.0.1:{port}");
    for (name, value) in [
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
    ] {
        machine.set(name, value);
    }
    machine
        .run(&["--repo", "s3://backups/repo", "snapshots"])
        .fails(5, &["s3://backups/repo/config", &endpoint]);
    good_is_whole(&machine);
}

#[test]
fn who_has_no_credentials_is_told_which_to_set() {
    let mut machine = Machine::new("m");
    let [port, metadata] = tests::e2e::free_ports();
    // In place of the address at which a cloud's machines find theirs.
    machine.set("AWS_METADATA_ENDPOINT", &format!("http://127.0.0.1:{metadata}"));
    machine.set("AWS_ENDPOINT_URL", &format!("http://127.0.0.1:{port}"));
    machine.set("AWS_REGION", "us-east-1");
    machine
        .run(&["--repo", "s3://backups/repo", "snapshots"])
        .fails(5, &["s3://backups/repo/config", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]);
}

#[test]
fn a_message_bus_that_is_away_is_named() {
    let mut machine = Machine::new("m");
    let repo = machine.place("repo");
    repository(&mut machine, &repo);
    let [port] = tests::e2e::free_ports();
    let url = format!("nats://127.0.0.1:{port}");
    let image = machine.place("good.img");
    machine.run(&["--nats", &url, "backup", &image]).fails(1, &[&url[7..], "check that it runs"]);
    machine.run(&["--nats", &url, "agent", "--role", "conductor"]).fails(1, &[&url[7..]]);
    good_is_whole(&machine);
}

#[test]
fn an_object_store_that_lists_nothing_is_refused() {
    let weed = Seaweed::start();
    // SeaweedFS takes objects into a bucket of such a name, and lists none of them.
    weed.make_bucket("b");
    let mut machine = Machine::new("m");
    machine.set_all(&weed.environment());
    machine
        .run(&["--repo", "s3://b/repo", "init"])
        .fails(5, &["listing s3://b/repo", "list every completed write"]);
    machine.run(&["--repo", "s3://b/repo", "snapshots"]).fails(3, &["holds no repository"]);
}
