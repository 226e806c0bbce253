//! One snapshot to eight targets on a file system that can share blocks: fetched once, and on disk once.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use tests::e2e::{Machine, Mounted, ext4, fsck, make_tree, program, same_bytes};

/// Bytes of a file's extents, and of those that it shares with other files.
fn extents(path: &Path) -> (u64, u64) {
    let listed = Command::new(program("filefrag")).args(["-s", "-v", "-b1"]).arg(path).output();
    let listed = String::from_utf8(listed.expect("filefrag runs").stdout).expect("UTF-8");
    let bytes = |line: &str| line.split(':').nth(3)?.trim().parse::<u64>().ok();
    let all = listed.lines().filter_map(bytes).sum();
    (all, listed.lines().filter(|line| line.contains("shared")).filter_map(bytes).sum())
}

fn used(folder: &Path) -> u64 {
    let found = rustix::fs::statvfs(folder).expect("a file system");
    (found.f_blocks - found.f_bfree) * found.f_frsize
}

/// A new file system in a file, mounted.
fn mounted(machine: &Machine, kind: &str) -> Option<Mounted> {
    if !rustix::process::geteuid().is_root() {
        println!("THIS MACHINE CANNOT MOUNT {}: it needs root", kind.to_uppercase());
        return None;
    }
    let (file, folder) = (machine.place(&format!("{kind}.disk")), machine.place(kind));
    // The smallest that mkfs.xfs makes is 300 MiB.
    std::fs::File::create(&file).expect("a file").set_len(400 << 20).expect("a file of that size");
    std::fs::create_dir(&folder).expect("a folder to mount on");
    let made = Command::new(program(&format!("mkfs.{kind}"))).arg("-q").arg(&file).output();
    let made = made.expect("mkfs runs");
    assert!(made.status.success(), "mkfs.{kind}: {}", String::from_utf8_lossy(&made.stderr));
    Mounted::new(&file, kind, "loop", &folder)
}

#[test]
fn eight_targets_of_a_template_stand_on_disk_once() {
    let mut machine = Machine::new("m");
    machine.set("LVKEEP_REPO", &machine.place("repo"));
    machine.run(&["init"]).ok();
    let (tree, image) = (machine.place("tree"), machine.place("template.img"));
    make_tree(&tree, 3);
    ext4(&image, 64, &tree);
    machine.run(&["backup", "--name", "vm/template", &image]).ok();
    let holds = Path::new(&image).metadata().expect("the image").blocks() * 512;

    for kind in ["xfs", "btrfs"] {
        let Some(disk) = mounted(&machine, kind) else {
            println!("NOT SHOWN HERE: that eight targets on {kind} share what they have in common");
            continue;
        };
        let targets: Vec<_> = (0..8).map(|number| disk.folder().join(format!("{number}.img"))).collect();
        let names: Vec<&str> = targets.iter().filter_map(|path| path.to_str()).collect();
        let mut arguments = vec!["--json", "restore", "vm/template@latest", names[0]];
        arguments.extend(names[1..].iter().flat_map(|name| ["--also", name]));
        let before = used(disk.folder());
        let ran = machine.run(&arguments).ok();
        let fetched = ran.out.lines().map(|line| {
            let done: serde_json::Value = serde_json::from_str(line).expect("JSON");
            done["bytes_fetched"].as_u64().expect("a number")
        });
        let fetched: Vec<u64> = fetched.collect();
        assert!(fetched.len() == 8 && fetched[0] > 0 && fetched[1..] == [0; 7], "{fetched:?}");
        for target in &targets {
            same_bytes(&image, target);
            fsck(target);
            let (all, shared) = extents(target);
            assert!(shared > 0 && shared == all, "{kind}: {shared} of {all} bytes are shared");
        }
        let took = used(disk.folder()) - before;
        println!(
            "{kind}: eight targets share all of their extents, and take {took} bytes; the image holds {holds}"
        );
        assert!(took < 2 * holds, "{kind}: eight targets take {took}, and the image holds {holds}");
    }
}
