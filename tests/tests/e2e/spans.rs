//! One large volume that the restorers of one host bring back together, one of which dies.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::process::Signal;
use tests::e2e::{Agent, Machine, Site, eventually, random_file, same_bytes};

const LEAF: u64 = 64 << 20;
const LEAVES: u64 = 6;
/// Content in each leaf.
const CONTENT: u64 = 12 << 20;

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

/// Which of the two has taken the job: it locks the target exclusively before another one joins.
fn owner(agents: &[Agent; 2], target: &Path) -> usize {
    eventually("an agent has begun", || (0..2).find(|number| writes(&agents[*number], target)))
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
    let start = || site.agent_with("new", &["restorer"], &["--target", allowed], "[agent]\nspan = \"64MiB\"");
    let mut agents = [start(), start()];
    let nats = site.nats.url();
    for owner_dies in [false, true] {
        let target = folder.join(format!("owner-dies-{owner_dies}"));
        let name = target.to_str().expect("a path in UTF-8");
        // Without an answer of the index, restores wait.
        worker.signal(Signal::STOP);
        let order = ["--json", "restore", "--nats", &nats, "--to-host", "new", "vm/disk@latest", name];
        let running = site.operator.start(&order);
        let owner = owner(&agents, &target);
        let dies = if owner_dies { owner } else { 1 - owner };
        eventually("both write", || (0..2).all(|number| writes(&agents[number], &target)).then_some(()));
        worker.signal(Signal::CONT);
        let written = || std::fs::metadata(&target).is_ok_and(|found| found.blocks() > 0);
        eventually("something is written", || written().then_some(()));
        agents[dies].kill();
        running.end().ok();
        same_bytes(&image, &target);
        let is_left = || !agents.iter().any(|agent| writes(agent, &target));
        eventually("everybody lets go", || is_left().then_some(()));
        eventually("no session stays", || (site.archive.open_sessions() == 0).then_some(()));
        agents[dies].start_again();
    }
}
