//! One large volume that the restorers of one host bring back together: one of them dies, and another one sleeps.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::process::Signal;
use tests::e2e::{Agent, Machine, Site, eventually, random_file, same_bytes};

const LEAF: u64 = 64 << 20;
const LEAVES: u64 = 4;
/// Content in each leaf.
const CONTENT: u64 = 4 << 20;

/// An image of some leaves, most of which is empty.
fn image(machine: &Machine) -> String {
    let (path, part) = (machine.place("disk.img"), machine.place("part"));
    let image = File::create(&path).expect("an image");
    image.set_len(LEAVES * LEAF).expect("its size");
    for leaf in 0..LEAVES {
        random_file(&part, CONTENT, leaf);
        let content = std::fs::read(&part).expect("content");
        image.write_all_at(&content, leaf * LEAF).expect("content is written");
    }
    path
}

/// Whether this agent writes to a file: what was opened to be compared is only read.
fn writes(agent: &Agent, target: &Path) -> bool {
    let is_open = |number: std::ffi::OsString| {
        let number = number.to_str()?;
        let pid = agent.pid();
        let path = std::fs::read_link(format!("/proc/{pid}/fd/{number}")).ok()?;
        let information = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
        let flags = information.lines().find_map(|line| line.strip_prefix("flags:"))?;
        let flags = u32::from_str_radix(flags.trim(), 8).ok()?;
        Some(path == target && flags & 0o3 != 0)
    };
    let Ok(open) = std::fs::read_dir(format!("/proc/{}/fd", agent.pid())) else { return false };
    open.filter_map(|entry| is_open(entry.ok()?.file_name())).any(|is| is)
}

/// Whether this agent says that it has begun a span of a target.
fn helps(agent: &Agent, target: &Path) -> bool {
    let path = target.to_str().expect("a path in UTF-8");
    agent.err().lines().any(|line| line.contains("taking part") && line.contains(path))
}

#[test]
fn agents_of_a_host_share_a_volume_and_outlive_each_other() {
    let site = Site::start("redeliver = \"2s\"");
    let image = image(&site.operator);
    site.operator.run(&["backup", "--name", "vm/disk", &image]).ok();
    let place = Machine::new("targets");
    let folder = Path::new(&place.place(".")).canonicalize().expect("the folder");
    let allowed = folder.to_str().expect("a path in UTF-8");
    let mut worker = site.agent("worker", &["indexer"], &[]);
    let start =
        || site.agent_with("new", &["restorer"], &["--target", allowed, "-v"], "[agent]\nspan = \"64MiB\"");
    let mut agents = [start(), start()];
    let nats = site.nats.url();
    for owner_dies in [false, true] {
        let target = folder.join(format!("owner-dies-{owner_dies}"));
        let name = target.to_str().expect("a path in UTF-8");
        // Without an answer of the index, restores wait.
        worker.signal(Signal::STOP);
        let order = ["--json", "restore", "--nats", &nats, "--to-host", "new", "vm/disk@latest", name];
        let running = site.operator.start(&order);
        let helper = eventually("somebody helps", || (0..2).find(|number| helps(&agents[*number], &target)));
        let [dies, sleeps] = if owner_dies { [1 - helper, helper] } else { [helper, 1 - helper] };
        // Whatever the one does that dies, it is in the middle: the end needs both.
        agents[sleeps].signal(Signal::STOP);
        worker.signal(Signal::CONT);
        let written = || std::fs::metadata(&target).is_ok_and(|found| found.blocks() > 0);
        eventually("something is written", || written().then_some(()));
        assert!(agents.iter().all(|agent| writes(agent, &target)));
        agents[dies].kill();
        agents[dies].start_again();
        if owner_dies {
            let waits = || agents[dies].err().contains("waiting for another restore");
            eventually("who takes the job waits for who helped", || waits().then_some(()));
        }
        agents[sleeps].signal(Signal::CONT);
        running.end().ok();
        same_bytes(&image, &target);
        // A guest begins; nobody of the restore comes late.
        let guest = vec![0xab; (LEAVES * LEAF) as usize];
        std::fs::write(&target, &guest).expect("a guest writes");
        let is_left = || !agents.iter().any(|agent| writes(agent, &target));
        eventually("everybody lets go", || is_left().then_some(()));
        assert!(std::fs::read(&target).expect("the target") == guest, "owner dies: {owner_dies}");
        eventually("no session stays", || (site.archive.open_sessions() == 0).then_some(()));
    }
}
