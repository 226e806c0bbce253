//! A plan for whole guests on files and devices, by two agents of a host of which one is killed in the middle.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use schema::{Domain, PackId, names};
use tests::e2e::{
    Agent, Guest, Guests, LoopDevice, Machine, Process, Site, eventually, random_file, same_bytes,
};

/// Volumes at once of the host.
const AT_ONCE: usize = 3;
/// The volumes, the most urgent first, and whether each goes to a device.
const ORDER: [(&str, bool); 10] = [
    ("dc1", false),
    ("dc2", true),
    (LOST, false),
    ("db1", true),
    ("db2", false),
    (LARGE, true),
    ("web1", true),
    ("web2", false),
    ("mail", true),
    ("log", false),
];
/// A volume whose data are lost.
const LOST: &str = "lost";
/// A volume that is larger than its target.
const LARGE: &str = "large";
/// The guest whose target holds its day before.
const DELTA: &str = "db1";

/// A volume of the plan.
struct Volume {
    name: &'static str,
    /// What its target holds in the end; none when its restore fails.
    expected: Option<PathBuf>,
    target: PathBuf,
    /// The file that what is written ends in.
    storage: PathBuf,
    /// What that file occupied before.
    before: u64,
    priority: i32,
    is_forced: bool,
    _device: Option<LoopDevice>,
}

impl Volume {
    /// A file that is made, or a device of so many bytes where there are devices.
    fn new(name: &'static str, folder: &Path, priority: i32, device: Option<u64>) -> Self {
        let storage = folder.join(name);
        let attached = device.and_then(|size| {
            std::fs::File::create(&storage).expect("a file").set_len(size).expect("a file of that size");
            LoopDevice::over(&storage)
        });
        if device.is_some() && attached.is_none() {
            println!("NOT SHOWN HERE: {name} on a device; it is restored to a file");
            std::fs::remove_file(&storage).expect("the file");
        }
        let target = attached.as_ref().map_or_else(|| storage.clone(), |device| device.path().into());
        let (expected, is_forced) = (None, false);
        Self { name, expected, target, storage, before: 0, priority, is_forced, _device: attached }
    }

    /// A target that holds something else already.
    fn holding(mut self, content: &Path) -> Self {
        let mut from = std::fs::File::open(content).expect("the content");
        let mut to = std::fs::File::options().write(true).create(true).truncate(false).open(&self.target);
        std::io::copy(&mut from, to.as_mut().expect("the target")).expect("the target is filled");
        to.expect("the target").sync_all().expect("the target is filled");
        self.before = occupied(&self.storage);
        self
    }

    fn is_file(&self) -> bool {
        self.target == self.storage
    }

    fn in_plan(&self) -> String {
        let (name, target) = (self.name, self.target.display());
        format!(
            "[[volume]]\nsnapshot = \"{name}/root@latest\"\ntarget = \"{target}\"\nhost = \"new\"\n\
             priority = {}\nforce = {}\n",
            self.priority, self.is_forced
        )
    }

    /// Whether this agent has it open, and something has been written to it.
    fn is_being_written_by(&self, agent: &Agent) -> bool {
        let open = std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).into_iter().flatten().flatten();
        let is_open =
            open.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|path| path == self.target);
        is_open && occupied(&self.storage) != self.before
    }
}

fn occupied(file: &Path) -> u64 {
    std::fs::metadata(file).map_or(0, |found| found.blocks())
}

/// A plan that is carried out, seen from outside.
struct Running<'a> {
    process: Process,
    volumes: &'a [Volume],
}

impl<'a> Running<'a> {
    /// Volumes of which the command has said how they ended.
    fn ended(&self) -> BTreeSet<&'a str> {
        let (out, err) = (self.process.out(), self.process.err());
        let says = |name: &str| {
            out.contains(&format!("{name}/root @ ")) || err.contains(&format!("lvkeep: {name}/root: "))
        };
        self.volumes.iter().map(|volume| volume.name).filter(|name| says(name)).collect()
    }

    /// What the agents write to that has not ended; checks what must be so at every moment.
    fn written(&self, agents: &[&Agent]) -> Vec<&'a str> {
        let by = |volume: &&Volume| agents.iter().any(|agent| volume.is_being_written_by(agent));
        let written: Vec<&str> = self.volumes.iter().filter(by).map(|volume| volume.name).collect();
        let is_last_begun = self.volumes.last().is_some_and(|last| last.target.exists());
        // What ends meanwhile only makes more room.
        let ended = self.ended();
        let written: Vec<&str> = written.into_iter().filter(|name| !ended.contains(name)).collect();
        assert!(written.len() <= AT_ONCE, "{written:?} at once");
        assert!(
            !is_last_begun || ended.len() + AT_ONCE >= self.volumes.len(),
            "the least urgent after {ended:?} only"
        );
        written
    }
}

/// Backs up all guests, one of them on two days, and two volumes that cannot be restored. Returns the first day.
fn back_up(site: &Site, guests: &Guests) -> PathBuf {
    let backup = |name: &str, image: &Path| {
        let image = image.to_str().expect("a path in UTF-8");
        site.operator.run(&["backup", "--name", &format!("{name}/root"), image]).ok();
    };
    guests.all.iter().for_each(|guest| backup(guest.name, &guest.image));
    let first_day = guests.kept(DELTA);
    guests.named(DELTA).live_for_a_day();
    let read = |path: &Path| std::fs::read(path).expect("an image");
    assert!(read(&first_day) != read(&guests.named(DELTA).image), "a day leaves traces");
    backup(DELTA, &guests.named(DELTA).image);

    let other = site.operator.place("other.img");
    random_file(&other, 4 << 20, 98);
    backup(LARGE, other.as_ref());
    let packs = || -> BTreeSet<PackId> { site.archive.packs().expect("packs").into_iter().collect() };
    let before = packs();
    random_file(&other, 4 << 20, 99);
    backup(LOST, other.as_ref());
    let repository = site.archive.repository();
    for pack in packs().difference(&before) {
        let (header, _) = site.archive.block_on(repository.read_footer(*pack)).expect("a footer");
        if header.kind == Domain::Data {
            site.archive.block_on(repository.store.delete(&names::pack(*pack))).expect("the pack is deleted");
        }
    }
    first_day
}

/// Every volume of the plan.
fn volumes(guests: &Guests, first_day: &Path, folder: &Path) -> Vec<Volume> {
    let volume = |((name, is_device), priority): ((&'static str, bool), i32)| {
        let guest = guests.all.iter().find(|guest| guest.name == name);
        let size = guest.map_or(1 << 20, |guest| guest.image.metadata().expect("an image").len());
        let mut volume = Volume::new(name, folder, priority, is_device.then_some(size));
        volume.expected = guest.map(|guest| guest.image.clone());
        match name {
            DELTA => Volume { is_forced: true, ..volume.holding(first_day) },
            // A file would grow: this one is refused because it holds something.
            LARGE if volume.is_file() => volume.holding(first_day),
            _ => volume,
        }
    };
    ORDER.into_iter().zip((0..10).rev()).map(volume).collect()
}

/// Back from one day to the next takes what differs, and little more: whole chunks.
fn costs_a_day(site: &Site, guest: &Guest, first_day: &Path, folder: &Path) {
    const BLOCK: usize = 64 << 10;
    let target = folder.join("a-day");
    let [old, new] = [first_day, &guest.image].map(|path| std::fs::read(path).expect("an image"));
    std::fs::write(&target, &old).expect("the day before");
    let path = target.to_str().expect("a path in UTF-8");
    let order = ["--json", "restore", "--nats", &site.nats.url(), "--to-host", "new", "--force"];
    let snapshot = format!("{DELTA}/root@latest");
    let done = site.operator.run(&[&order[..], &[&snapshot, path]].concat()).ok().json();
    same_bytes(&guest.image, &target);
    let bytes = |name: &str| done[name].as_u64().expect("a number");
    let size = new.len() as u64;
    let changed = old.chunks(BLOCK).zip(new.chunks(BLOCK)).filter(|(old, new)| old != new).count() * BLOCK;
    let data = new.chunks(BLOCK).filter(|block| block.iter().any(|byte| *byte != 0)).count() * BLOCK;
    let (written, fetched, kept) = (bytes("bytes_written"), bytes("bytes_fetched"), bytes("bytes_kept"));
    println!("a day of {DELTA}: {changed} of {data} bytes of data differ; {done}");
    assert!(changed > 0 && data > 8 * changed, "a day changes little: {changed} of {data}");
    // Chunks are some 64 KiB, so that two of them may have what differs in one block.
    let most = 2 * changed as u64;
    assert!(written > 0 && written <= most, "{written} were written, {changed} differ");
    assert!(fetched > 0 && fetched <= most, "{fetched} were fetched, {changed} differ");
    assert!(kept + most >= data as u64, "{kept} of {data} stood there already");
    assert_eq!(written + kept + bytes("bytes_zeroed") + bytes("bytes_copied"), size);
    std::fs::remove_file(target).expect("it goes again");
}

#[test]
fn guests_come_back_past_what_fails_and_past_an_agent_that_dies() {
    let site = Site::start("redeliver = \"2s\"");
    let guests = Guests::install();
    let first_day = back_up(&site, &guests);
    let place = Machine::new("targets");
    std::fs::create_dir(place.place("new")).expect("a folder for targets");
    let folder = Path::new(&place.place("new")).canonicalize().expect("the folder");
    let volumes = volumes(&guests, &first_day, &folder);

    let mut allowed = vec!["--target", folder.to_str().expect("a path in UTF-8")];
    let devices = volumes.iter().filter(|volume| !volume.is_file());
    allowed.extend(devices.flat_map(|volume| ["--target", volume.target.to_str().expect("a path in UTF-8")]));
    let _worker = site.agent("worker", &["indexer"], &[]);
    let mut dies = site.agent("new", &["restorer"], &allowed);
    let stays = site.agent("new", &["restorer"], &allowed);

    let listed: String = volumes.iter().rev().map(Volume::in_plan).collect();
    let plan = site.operator.place("plan.toml");
    std::fs::write(&plan, format!("[hosts.new]\nvolumes_at_once = {AT_ONCE}\n{listed}"))
        .expect("the plan is written");
    let nats = site.nats.url();
    let process = site.operator.start(&["restore", "--nats", &nats, "--plan", &plan]);
    let mut running = Running { process, volumes: &volumes };

    let caught = eventually("a volume is done, and the agent is in the middle of another", || {
        running.written(&[&dies, &stays]);
        let is_done = running.process.out().contains(" restored to ");
        if !is_done || running.written(&[&dies]).is_empty() {
            return None;
        }
        dies.signal(Signal::STOP);
        let caught = running.written(&[&dies]);
        if caught.is_empty() {
            dies.signal(Signal::CONT);
        }
        Some(caught).filter(|caught| !caught.is_empty())
    });
    dies.kill();
    eventually("the plan ends", || {
        running.written(&[&stays]);
        running.process.has_ended().then_some(())
    });
    let ended = running.process.end().fails(6, &["2 of 10 restores failed", "lost/root"]);
    for words in ["8 of 10 volumes restored", "lost/root", "large/root"] {
        assert!(ended.out.contains(words), "{words}: {ended}");
    }
    println!("killed in the middle of {caught:?}");
    assert!(caught.iter().all(|name| ended.out.contains(&format!("{name}/root @ "))), "{caught:?}: {ended}");
    for volume in &volumes {
        let Some(expected) = &volume.expected else { continue };
        same_bytes(expected, &volume.target);
        guests.named(volume.name).is_whole_on(&volume.target);
    }
    assert!(!folder.join(LOST).exists(), "a restore that failed leaves no file");
    costs_a_day(&site, guests.named(DELTA), &first_day, &folder);
    // What an agent that is killed in its last step leaves of a job only says that it ended: nothing waits for it.
    eventually("no session that reads stays", || {
        let open = site.archive.block_on(agent::sessions::list(site.archive.repository())).ok()?;
        open.iter().all(|session| session.ended.is_some()).then_some(())
    });
}
