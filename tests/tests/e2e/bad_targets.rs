//! Targets that must not be written to, or cannot be.

use std::path::Path;
use std::process::{Command, Stdio};

use tests::e2e::{LoopDevice, Machine, ext4, holds_tree, make_tree, program, random_file, same_bytes};

const SIZE: u64 = 12 << 20;

/// A device full of stale bytes.
fn device(machine: &Machine, name: &str, size: u64) -> Option<LoopDevice> {
    let file = machine.place(name);
    random_file(&file, size, 99);
    LoopDevice::over(file)
}

#[test]
fn files_that_must_not_be_overwritten_are_refused() {
    let machine = Machine::with_disk(SIZE);
    let image = machine.place("disk.img");
    let restore = |target: &str, more: &[&str]| {
        let mut arguments = vec!["restore", "vm/disk@latest", target];
        arguments.extend(more);
        machine.run(&arguments)
    };
    restore(&image, &[]).fails(3, &[&image, "source"]);
    let full = machine.place("full.img");
    std::fs::write(&full, "precious").expect("a file");
    restore(&full, &[]).fails(3, &[&full, "has content"]);
    assert_eq!(std::fs::read(&full).expect("the file"), b"precious");
    for inside in ["repo/new.img", "repo/packs/new.img", "repo/config"] {
        let inside = machine.place(inside);
        restore(&inside, &["--force"]).fails(3, &[&inside, "inside the repository"]);
    }
    let folder = machine.place("folder");
    std::fs::create_dir(&folder).expect("a folder");
    restore(&folder, &["--force"]).fails(3, &[&folder, "neither"]);
    restore("/dev/null", &["--force"]).fails(3, &["/dev/null", "neither"]);
    restore("/dev/no-such-device", &[]).fails(3, &["/dev/no-such-device"]);
    restore(&machine.place("absent/x.img"), &[]).fails(3, &["absent", "create it first"]);
    let link = machine.place("link");
    std::os::unix::fs::symlink(machine.place("nothing"), &link).expect("a link");
    restore(&link, &[]).fails(3, &[&link, "symbolic link"]);

    restore(&full, &["--force"]).ok();
    same_bytes(&image, &full);
    // Over its own source, by force: it writes what it held.
    let before = std::fs::read(&image).expect("the image");
    std::fs::write(&image, "lost").expect("the image is lost");
    restore(&image, &["--force"]).ok();
    assert!(std::fs::read(&image).expect("the image") == before, "the source is what it was");
    machine.run(&["check", "--read-data"]).ok();
}

#[test]
fn devices_that_do_not_fit_or_are_in_use_are_refused() {
    let machine = Machine::with_disk(SIZE);
    let image = machine.place("disk.img");
    let (Some(small), Some(exact), Some(large)) = (
        device(&machine, "small", SIZE - 4096),
        device(&machine, "exact", SIZE),
        device(&machine, "large", SIZE + 4096),
    ) else {
        println!("without devices, files stand for them");
        return machine.restores("vm/disk@latest", &image);
    };
    let restore = |target: &str, more: &[&str]| {
        let mut arguments = vec!["restore", "vm/disk@latest", target];
        arguments.extend(more);
        machine.run(&arguments)
    };
    for more in [&[][..], &["--force"]] {
        restore(small.path(), more).fails(3, &[small.path(), "has 12578816 bytes"]);
    }
    restore(large.path(), &[]).fails(3, &[large.path(), "force"]);
    restore(&machine.place("exact"), &[]).fails(3, &["exact", "has content"]);
    restore(exact.path(), &[]).ok();
    same_bytes(&image, exact.path());
    restore(large.path(), &["--force"]).ok();

    // A device is a source, too; and it is not restored to itself unasked.
    machine.run(&["backup", "--name", "vm/device", exact.path()]).ok();
    machine.run(&["restore", "vm/device@latest", exact.path()]).fails(3, &[exact.path(), "source"]);
    machine.restores("vm/device@latest", &image);
}

#[test]
fn a_mounted_target_is_refused() {
    let machine = Machine::with_disk(SIZE);
    let (tree, file, folder) = (machine.place("tree"), machine.place("mounted"), machine.place("folder"));
    make_tree(&tree, 5);
    ext4(&file, 32, &tree);
    std::fs::create_dir(&folder).expect("a folder to mount on");
    let Some(device) = LoopDevice::over(&file) else {
        println!("without devices, a file with content stands for one that is mounted");
        machine.run(&["restore", "vm/disk@latest", &file]).fails(3, &[&file]);
        return;
    };
    let mounted = Command::new(program("mount")).args(["-o", "ro", device.path(), &folder]).status();
    assert!(mounted.is_ok_and(|status| status.success()), "{} is mounted", device.path());
    let refused = machine.run(&["restore", "vm/disk@latest", device.path()]);
    let unmounted = Command::new(program("umount")).arg(&folder).status();
    assert!(unmounted.is_ok_and(|status| status.success()), "{folder} stays mounted");
    refused.fails(3, &[device.path(), "mounted on", &folder]);
    drop(device);
    holds_tree(&file, &tree);
}

/// Forty images are restored, half of them are cut off, and guests run from the others when the plan is run again.
#[test]
fn what_is_in_use_is_overwritten_only_where_it_is_named() {
    let machine = Machine::with_disk(SIZE);
    let (image, used, free) =
        (machine.place("disk.img"), machine.place("used.img"), machine.place("free.img"));
    for target in [&used, &free] {
        random_file(target, SIZE, 9);
    }
    let before = std::fs::read(&used).expect("the target");
    let mut guest = Command::new(program("cat"));
    let open = std::fs::File::options().read(true).write(true).open(&used).expect("the target");
    let mut running = guest.stdin(Stdio::piped()).stdout(open).spawn().expect("cat runs");
    drop(guest);
    let pid = running.id().to_string();
    let named = format!("--force-in-use {used}");
    let refused = |more: &[&str]| {
        let arguments = [&["restore", "vm/disk@latest", used.as_str()], more].concat();
        machine.run(&arguments).fails(3, &[&used, "in use", &pid, &named]);
        assert!(std::fs::read(&used).expect("the target") == before, "{more:?} wrote to it");
    };
    refused(&["--force"]);
    refused(&["--force", "--undo"]);
    // A slip of the hand names nothing.
    machine
        .run(&["restore", "vm/disk@latest", &used, "--force", "--force-in-use", &free])
        .fails(3, &[&free, "nothing of that name", &used]);
    assert!(std::fs::read(&used).expect("the target") == before);
    machine.run(&["restore", "--plan", "x", "--force-in-use", &used]).fails(2, &["--plan"]);
    // In a plan each volume has its own.
    let volume = |target: &str, more: &str| {
        format!("[[volume]]\nsnapshot = \"vm/disk@latest\"\ntarget = {target:?}\nforce = true\n{more}\n")
    };
    let plan = machine.place("plan.toml");
    std::fs::write(&plan, volume(&used, "") + &volume(&free, "")).expect("a plan");
    machine.run(&["restore", "--plan", &plan]).fails(3, &["1 of 2", &used, "in use", &pid]);
    assert!(std::fs::read(&used).expect("the target") == before);
    same_bytes(&image, &free);
    std::fs::write(&plan, volume(&used, "force_in_use = true")).expect("a plan");
    machine.run(&["restore", "--plan", &plan]).ok();
    same_bytes(&image, &used);

    // That it may be in use says nothing of what it holds.
    machine
        .run(&["restore", "vm/disk@latest", &used, "--force-in-use", &used])
        .fails(3, &[&used, "has content"]);
    machine.run(&["restore", "vm/disk@latest", &used, "--force", "--force-in-use", &used]).ok();
    drop(running.stdin.take());
    running.wait().expect("cat ends");
}

/// The system's own answer to a write in the middle of a file that is there.
#[test]
fn a_write_that_fails_is_told_with_its_offset() {
    let machine = Machine::with_disk(SIZE);
    let target = machine.place("old.img");
    random_file(&target, SIZE, 5);
    let mut command = Command::new(program("sh"));
    command.arg("-c").arg("trap '' XFSZ; ulimit -f 8192; exec \"$0\" restore --force vm/disk@latest \"$1\"");
    command.arg(tests::e2e::Binary::path()).arg(&target);
    command.env("HOME", machine.home()).env("LVKEEP_REPO", machine.place("repo"));
    let ran = machine.start_command(&["restore"], command).end();
    let ran = ran.fails(4, &["vm/disk", "cannot write", "at offset", &target]);
    let offset = ran.err.split("at offset ").nth(1).and_then(|rest| rest.split(' ').next());
    let offset: u64 = offset.and_then(|text| text.parse().ok()).expect("a number");
    // The limit is in units of the shell, 512 bytes or 1024; what is across it fails from its own start.
    assert!(offset + (1 << 20) > 8192 * 512 && offset < SIZE, "{offset}");
    machine.run(&["restore", "--force", "vm/disk@latest", &target]).ok();
    same_bytes(machine.place("disk.img"), &target);
}

/// Somebody moves it away, and what is written ends where nobody looks for it.
#[test]
fn a_target_that_is_taken_away_meanwhile_is_not_told_to_be_restored() {
    let machine = Machine::with_disk(128 << 20);
    let (target, away) = (machine.place("new.img"), machine.place("away.img"));
    let mut restoring = machine.start(&["--memory", "64MiB", "restore", "vm/disk@latest", &target]);
    // At once: it does not take long.
    while std::fs::rename(&target, &away).is_err() && !restoring.has_ended() {
        std::thread::yield_now();
    }
    restoring.end().fails(4, &["vm/disk", &target, "moved away"]);
    assert!(!Path::new(&target).exists());
}

#[test]
fn a_target_without_room_fails_by_name_and_is_gone_on_with_once_there_is_some() {
    let machine = Machine::with_disk(SIZE);
    let folder = machine.place("small");
    std::fs::create_dir(&folder).expect("a folder");
    let mount =
        Command::new(program("mount")).args(["-t", "tmpfs", "-o", "size=2m", "tmpfs", &folder]).output();
    let mounted = mount.expect("mount runs");
    let target = format!("{folder}/restored.img");
    if !mounted.status.success() {
        let why = String::from_utf8_lossy(&mounted.stderr);
        println!("THIS MACHINE CANNOT MOUNT ({}): a limit on file sizes stands for a full disk", why.trim());
        let mut command = Command::new(program("sh"));
        command.arg("-c").arg("trap '' XFSZ; ulimit -f 2048; exec \"$0\" restore vm/disk@latest \"$1\"");
        command.arg(tests::e2e::Binary::path()).arg(&target);
        command.env("HOME", machine.home()).env("LVKEEP_REPO", machine.place("repo"));
        machine.start_command(&["restore"], command).end().fails(4, &[&target]);
        assert!(!Path::new(&target).exists(), "a restore that has written nothing leaves no file");
        return;
    }
    let full = machine.run(&["restore", "vm/disk@latest", &target]);
    let left = Path::new(&target).exists();
    let larger = Command::new(program("mount")).args(["-o", "remount,size=64m", &folder]).status();
    let again = machine.run(&["--json", "restore", "--force", "vm/disk@latest", &target]);
    let restored = machine.place("restored.img");
    let copied = std::fs::copy(&target, &restored);
    let unmounted = Command::new(program("umount")).arg(&folder).status();
    assert!(unmounted.is_ok_and(|status| status.success()), "{folder} stays mounted");
    full.fails(4, &["vm/disk", "at offset", &target, "do not use it", "--force goes on", "no room left"]);
    assert!(left && larger.is_ok_and(|status| status.success()) && copied.is_ok());
    let kept = again.ok().json()["bytes_kept"].as_u64();
    assert!(kept.is_some_and(|bytes| bytes > 0), "it goes on where it was: {kept:?}");
    same_bytes(machine.place("disk.img"), &restored);
}
