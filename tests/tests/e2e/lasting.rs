//! An archive in use: three hosts are backed up again and again, snapshots are forgotten and collected, and whatever runs
//! is killed at any moment. Whatever is still listed restores byte for byte.
//!
//! `LVKEEP_TEST_SEED` repeats the choices (not the moments at which they find the processes), `LVKEEP_TEST_ROUNDS` says
//! how many rounds; a long run makes about ten minutes of them.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tests::e2e::{Agent, Process, Site, eventually, random_file, same_bytes};
use tests::is_long;

/// Agents that notice soon that another is gone.
const SETTINGS: &str = "ask_again = \"2s\"\nredeliver = \"3s\"\npack_max_age = \"1s\"\n";
const HOSTS: [&str; 3] = ["a", "b", "c"];
const MIB: u64 = 1 << 20;
const SIZE: u64 = 6 * MIB;
/// Snapshots of a volume that are kept.
const KEPT: &str = "2";
const ROUNDS: u64 = 12;
const ROUNDS_LONG: u64 = 80;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// What was killed how often.
type Killed = BTreeMap<&'static str, u32>;

struct Use {
    site: Site,
    agents: Vec<Agent>,
    random: StdRng,
    /// What each volume held, by volume: copies of its images, the newest last.
    held: BTreeMap<String, Vec<String>>,
    /// What the snapshots hold whose backups were told to be done.
    told: BTreeMap<String, String>,
    killed: Killed,
}

impl Use {
    fn start() -> Self {
        let seed = number("LVKEEP_TEST_SEED").unwrap_or_else(rand::random);
        println!("choices by LVKEEP_TEST_SEED={seed}");
        let site = Site::start(SETTINGS);
        let mut agents: Vec<Agent> = HOSTS.map(|host| site.agent(host, &["reader", "hasher"], &[])).into();
        agents.extend([1, 2].map(|_| site.agent("worker", &["indexer", "storer", "conductor"], &[])));
        let random = StdRng::seed_from_u64(seed);
        Self { site, agents, random, held: BTreeMap::new(), told: BTreeMap::new(), killed: Killed::new() }
    }

    fn image(&self, host: &str) -> String {
        self.site.operator.place(&format!("{host}.img"))
    }

    /// Changes a host's image a little, and keeps a copy of it.
    fn change(&mut self, host: &str, round: u64) {
        let image = self.image(host);
        if round == 0 {
            // Half of it is what all hosts hold.
            random_file(&image, SIZE, 7);
        }
        let file = std::fs::OpenOptions::new().write(true).open(&image).expect("an image");
        for _ in 0..4 {
            let mut bytes = vec![0; self.random.random_range(1..400_000)];
            self.random.fill_bytes(&mut bytes);
            let at = self.random.random_range(0..SIZE - bytes.len() as u64);
            file.write_all_at(&bytes, at).expect("new bytes");
        }
        let copy = self.site.operator.place(&format!("{host}-{round}.img"));
        std::fs::copy(&image, &copy).expect("a copy");
        self.held.entry(format!("{host}{image}")).or_default().push(copy);
    }

    /// Everything at once: backups of all hosts, and collections that may meet each other.
    fn round(&mut self, round: u64) {
        HOSTS.iter().for_each(|host| self.change(host, round));
        let mut running: Vec<Running> = HOSTS.iter().map(|host| self.back_up(host)).collect();
        for _ in 0..self.random.random_range(1..3) {
            running.push(Running::prune(self.site.operator.start(&["--json", "prune"])));
        }
        for _ in 0..self.random.random_range(1..4) {
            let packs = self.random.random_range(0..4);
            self.wait_for_packs(packs, &mut running);
            self.strike(&mut running);
        }
        running.into_iter().for_each(|one| self.ended(one));
        let archive = &self.site.archive;
        // Whoever asked for a backup may be gone: the agents go on with it.
        eventually("all sessions end", || (archive.open_sessions() == 0).then_some(()));
    }

    fn back_up(&self, host: &str) -> Running {
        let image = self.image(host);
        let copies = &self.held[&format!("{host}{image}")];
        let copy = copies.last().expect("a copy of the image").clone();
        Running { what: What::Backup(copy), process: self.site.backup(host, &image), is_killed: false }
    }

    /// Until so many packs have come (or gone), or all is over.
    fn wait_for_packs(&self, packs: usize, running: &mut [Running]) {
        let before = self.site.archive.packs().map_or(0, |packs| packs.len());
        eventually("packs are stored", || {
            let now = self.site.archive.packs()?.len();
            let is_over = running.iter_mut().all(|one| one.process.has_ended());
            (now.abs_diff(before) >= packs || is_over).then_some(())
        });
    }

    /// `kill -9` of something, which is started again as its supervisor would.
    fn strike(&mut self, running: &mut [Running]) {
        let victim = match self.random.random_range(0..10) {
            0 => {
                self.site.nats.kill();
                self.site.nats.start_again();
                "NATS server"
            }
            1 => {
                self.site.weed.kill();
                self.site.weed.start_again();
                "object store"
            }
            2..4 => {
                let one = self.random.random_range(0..running.len());
                running[one].kill()
            }
            4..6 => running.last_mut().expect("a collection").kill(),
            _ => {
                let one = self.random.random_range(0..self.agents.len());
                self.agents[one].kill();
                self.agents[one].start_again();
                if one < HOSTS.len() { "reader and hasher" } else { "indexer, storer and conductor" }
            }
        };
        *self.killed.entry(victim).or_default() += 1;
    }

    fn ended(&mut self, running: Running) {
        let Running { what, process, is_killed } = running;
        let ended = process.end();
        let What::Backup(copy) = what else { return };
        if is_killed {
            return;
        }
        let done = ended.ok().json();
        self.told.insert(done["snapshot"].as_str().expect("an id").to_owned(), copy);
    }

    /// All but the newest of each volume.
    fn forget(&self) {
        self.site.operator.run(&["forget", "--keep-last", KEPT]).ok();
    }

    /// Every snapshot that is listed holds what its volume held.
    fn check(&self) {
        let restored = self.site.operator.place("restored.img");
        let snapshots = self.site.snapshots();
        assert!(snapshots.len() >= HOSTS.len(), "{snapshots:?}");
        for snapshot in &snapshots {
            let id = snapshot["id"].as_str().expect("an id");
            let volume = snapshot["volume"].as_str().expect("a volume");
            self.site.operator.run(&["restore", id, &restored, "--force", "--full"]).ok();
            if let Some(copy) = self.told.get(id) {
                same_bytes(copy, &restored);
                continue;
            }
            let bytes = std::fs::read(&restored).expect("what was restored");
            let is_it = |copy: &&String| std::fs::read(copy).expect("a copy") == bytes;
            assert!(self.held[volume].iter().any(|copy| is_it(&copy)), "{id} holds what {volume} never held");
        }
    }

    /// A collection that nobody disturbs comes to its end, and leaves nothing to collect.
    fn collect(&self) {
        let done = self.site.operator.json(&["prune"]);
        assert_eq!(done["finished"], true, "{done}");
        // The first may have gone on with one that had begun before all was forgotten.
        let done = self.site.operator.json(&["prune"]);
        assert_eq!(done["finished"], true, "{done}");
        let again = self.site.operator.run(&["prune"]).ok();
        assert!(again.out.contains("nothing to collect"), "{again}");
    }
}

enum What {
    /// The copy of the image that it backs up.
    Backup(String),
    Prune,
}

struct Running {
    what: What,
    process: Process,
    is_killed: bool,
}

impl Running {
    fn prune(process: Process) -> Self {
        Self { what: What::Prune, process, is_killed: false }
    }

    fn kill(&mut self) -> &'static str {
        self.process.kill();
        self.is_killed = true;
        match self.what {
            What::Backup(_) => "lvkeep backup",
            What::Prune => "lvkeep prune",
        }
    }
}

#[test]
fn an_archive_in_use_survives_whatever_is_killed() {
    let mut site = Use::start();
    let rounds = number("LVKEEP_TEST_ROUNDS").unwrap_or(if is_long() { ROUNDS_LONG } else { ROUNDS });
    for round in 0..rounds {
        site.round(round);
        site.forget();
        if round % 4 == 3 {
            site.check();
        }
    }
    site.collect();
    site.check();
    site.site.operator.run(&["check", "--read-data"]).ok();
    println!("{rounds} rounds; killed: {:?}", site.killed);
    assert!(site.killed.values().sum::<u32>() >= rounds as u32);
}
