//! `kill -9` of every kind of process at several moments of a running backup, and of an agent in the middle of a check.
//!
//! What is killed is started again as an operator's supervisor would. Afterwards the backup must be sealed and
//! restorable, and every snapshot in the list must restore, byte for byte.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use schema::{Domain, PackId, names};
use tests::e2e::{Agent, Machine, Site, eventually, random_file};

const SETTINGS: &str =
    "ask_again = \"2s\"\nredeliver = \"3s\"\npack_max_age = \"1s\"\nlimit_read = \"12MiB\"";
const MIB: u64 = 24;

struct Crew {
    site: Site,
    agents: BTreeMap<&'static str, Agent>,
    random: StdRng,
    images: BTreeMap<String, String>,
}

impl Crew {
    fn start() -> Self {
        let site = Site::start(SETTINGS);
        let mut agents = BTreeMap::new();
        for role in ["reader", "hasher"] {
            agents.insert(role, site.agent("a", &[role], &[]));
        }
        for role in ["indexer", "storer", "conductor"] {
            agents.insert(role, site.agent("worker", &[role], &[]));
        }
        let seed = match std::env::var("LVKEEP_TEST_SEED") {
            Ok(text) => text.parse().expect("LVKEEP_TEST_SEED is a number"),
            Err(_) => rand::random(),
        };
        println!("moments by LVKEEP_TEST_SEED={seed}");
        Self { site, agents, random: StdRng::seed_from_u64(seed), images: BTreeMap::new() }
    }

    /// Numbers of packs of a backup after which to strike: at its start, in the middle, near the end. A pack holds up
    /// to 2 MiB.
    fn moments(&mut self) -> Vec<usize> {
        let end = MIB as usize / 2;
        vec![0, self.random.random_range(1..end - 1), end]
    }

    /// Backs up a fresh image and strikes when it has stored so many packs.
    fn strike(&mut self, packs: usize, strike: &mut impl FnMut(&mut Self)) {
        let number = self.images.len();
        let image = self.site.operator.place(&format!("{number}.img"));
        random_file(&image, MIB << 20, self.random.random());
        let volume = format!("a{image}");
        self.images.insert(volume.clone(), image.clone());
        let before = self.site.archive.packs().expect("a listing").len();
        let mut backup = self.site.backup("a", &image);
        eventually("packs are stored", || {
            let stored = self.site.archive.packs()?.len() - before;
            let has_begun = self.site.archive.open_sessions() > 0;
            (has_begun && stored >= packs || backup.has_ended()).then_some(())
        });
        let early = !backup.has_ended();
        strike(self);
        let ended = backup.end();
        assert!(early || packs > 1, "the backup was over too soon to say anything");
        println!("struck after {packs} packs, before its end: {early}; it {}", ended.status);
        let done = ended.ok().json();
        let id = done["snapshot"].as_str().expect("an id");
        self.site.operator.restores(id, &image);
    }

    /// Every snapshot in the list restores, and every session came to an end.
    fn check(&self) {
        let snapshots = self.site.snapshots();
        assert!(snapshots.len() >= self.images.len());
        for snapshot in snapshots {
            let image = &self.images[snapshot["volume"].as_str().expect("a volume")];
            self.site.operator.restores(snapshot["id"].as_str().expect("an id"), image);
        }
        self.site.operator.run(&["check"]).ok();
        assert_eq!(self.site.archive.open_sessions(), 0, "every session came to an end");
    }

    fn survive(mut self, mut strike: impl FnMut(&mut Self)) {
        for packs in self.moments() {
            self.strike(packs, &mut strike);
        }
        self.check();
    }
}

fn survive_killed(role: &'static str) {
    Crew::start().survive(|crew| {
        let agent = crew.agents.get_mut(role).expect("an agent of that role");
        agent.kill();
        agent.start_again();
    });
}

#[test]
fn the_reader_is_killed() {
    survive_killed("reader");
}

#[test]
fn the_hasher_is_killed() {
    survive_killed("hasher");
}

#[test]
fn the_indexer_is_killed() {
    survive_killed("indexer");
}

#[test]
fn the_storer_is_killed() {
    survive_killed("storer");
}

#[test]
fn the_conductor_is_killed() {
    survive_killed("conductor");
}

#[test]
fn the_message_bus_is_killed() {
    Crew::start().survive(|crew| {
        crew.site.nats.kill();
        crew.site.nats.start_again();
    });
}

#[test]
fn the_object_store_is_killed() {
    Crew::start().survive(|crew| {
        crew.site.weed.kill();
        crew.site.weed.start_again();
    });
}

#[test]
fn everything_is_killed_at_once() {
    Crew::start().survive(|crew| {
        crew.agents.values_mut().for_each(|agent| assert!(agent.kill(), "an agent had ended by itself"));
        crew.site.nats.kill();
        crew.site.weed.kill();
        crew.site.weed.start_again();
        crew.site.nats.start_again();
        crew.agents.values_mut().for_each(Agent::start_again);
    });
}

#[test]
fn a_backup_in_one_process_is_killed() {
    let mut machine = Machine::new("m");
    machine.configure("pack_max_age = \"1s\"");
    let repo = machine.place("repo");
    machine.set("LVKEEP_REPO", &repo);
    machine.run(&["init", "--pack-size", "1MiB"]).ok();
    let image = machine.place("disk.img");
    random_file(&image, 32 << 20, 1);
    machine.run(&["backup", "--name", "vm/first", &image]).ok();
    let folders = || std::fs::read_dir(format!("{repo}/packs")).expect("packs").count();
    for seed in 2..6 {
        random_file(&image, 32 << 20, seed);
        let before = folders();
        let mut backup = machine.start(&["backup", "--name", "vm/disk", "--limit-read", "24MiB", &image]);
        eventually("packs are stored", || {
            (folders() > before + seed as usize || backup.has_ended()).then_some(())
        });
        backup.kill();
        // Nothing of it is in sight, and the next one is not in its way.
        assert_eq!(
            machine.json(&["snapshots", "--volume", "vm/disk"]).as_array().map(Vec::len),
            Some(seed as usize - 2)
        );
        machine.run(&["backup", "--name", "vm/disk", &image]).ok();
        machine.restores("vm/disk@latest", &image);
    }
    random_file(&image, 32 << 20, 1);
    machine.restores("vm/first@latest", &image);
    machine.run(&["check", "--read-data"]).ok();
}

/// Turns a bit in the middle of a pack's first frame.
fn rot(site: &Site, pack: PackId) {
    let (key, store) = (names::pack(pack), &site.archive.repository().store);
    site.archive.block_on(async {
        let mut bytes = store.get(&key).await.expect("a read").expect("the pack").to_vec();
        let (_, footer) = schema::pack::parse_pack(&bytes).expect("a pack");
        let first = footer.entries[0];
        bytes[(first.offset + first.len / 2) as usize] ^= 0x10;
        store.put(&key, bytes.into()).await.expect("it is stored");
    });
}

/// The packs of content, in order.
fn content(site: &Site) -> Vec<PackId> {
    let is_content = |pack: &PackId| {
        let read = site.archive.block_on(site.archive.repository().read_footer(*pack));
        read.expect("a footer").0.kind == Domain::Data
    };
    let mut packs = site.archive.packs().expect("a listing");
    packs.retain(is_content);
    packs.sort_unstable();
    packs
}

#[test]
fn an_agent_that_dies_in_a_check_is_gone_on_after() {
    let site = Site::start("redeliver = \"2s\"");
    let (image, nats) = (site.operator.place("disk.img"), site.nats.url());
    random_file(&image, 16 << 20, 1);
    site.operator.run(&["backup", "--name", "vm/disk", &image]).ok();
    let packs = content(&site);
    let damaged = [packs[0], packs[packs.len() - 1]];
    damaged.iter().for_each(|pack| rot(&site, *pack));
    let _indexer = site.agent("worker", &["indexer"], &[]);
    let mut dies = site.agent_with("a", &["checker"], &[], "limit_read = \"2MiB\"");

    let check = ["--json", "check", "--read-data", "--by-agents", "--nats", &nats];
    let running = site.operator.start(&check);
    let checks = || site.operator.json(&["status"])["checks"].clone();
    let caught = eventually("content is read", || {
        let check = checks()[0].clone();
        (check["bytes_done"].as_u64()? > 0).then_some(check)
    });
    assert_eq!((&caught["state"], &caught["host"]), (&"running".into(), &"a".into()), "{caught}");
    dies.kill();
    let _other = site.agent("b", &["checker"], &[]);
    let ended = running.end().fails(6, &["1 of 1 snapshot is damaged"]);
    let found = ended.json();
    assert_eq!(found["damaged"][0]["volume"], "vm/disk", "{found}");
    let lost = found["damaged"][0]["lost"].as_array().map_or(0, Vec::len);
    assert_eq!(lost, 2, "{found}");
    damaged.iter().for_each(|pack| assert!(ended.out.contains(&names::pack(*pack)), "{pack}: {found}"));
    // No pack of content was read twice.
    assert_eq!(found["packs_read"], found["packs"], "{found}");
    let records = site.archive.block_on(site.archive.repository().store.list(names::DAMAGE));
    assert!(!records.expect("a listing").is_empty());
    assert_eq!(site.archive.open_sessions(), 0);
    let job = caught["job"].as_str().expect("a job");
    site.operator.run(&["check", "--job", job]).fails(6, &["1 of 1 snapshot is damaged"]);

    // Conductors ask for the next ones; what the volume still has heals.
    site.operator.run(&["backup", "--name", "vm/disk", &image]).ok();
    let every = "[agent]\ncheck_every = \"3s\"\ncheck_share = \"100%\"";
    let _conductor = site.agent_with("c", &["conductor"], &[], every);
    eventually("a check was asked for and done", || {
        let last = checks().as_array()?.iter().find(|check| check["state"] == "checked").cloned()?;
        (last["by"] == "conductor on c" && last["snapshots_damaged"] == 0).then_some(())
    });
}

#[test]
fn a_check_that_is_cancelled_says_so() {
    let site = Site::start("");
    let (image, nats) = (site.operator.place("disk.img"), site.nats.url());
    random_file(&image, 1 << 20, 1);
    site.operator.run(&["backup", "--name", "vm/disk", &image]).ok();
    // Nobody is there to do it.
    let running = site.operator.start(&["check", "--read-data=10", "--by-agents", "--nats", &nats]);
    let checks = || site.operator.json(&["status"])["checks"].clone();
    let job = eventually("a check is asked for", || Some(checks()[0]["job"].as_str()?.to_owned()));
    site.operator.run(&["cancel", &job]).ok();
    running.end().fails(7, &[&job, "cancelled by lvkeep on"]);
    site.operator.run(&["check", "--job", &job]).fails(7, &[&job, "cancelled by lvkeep on"]);
    let check = checks()[0].clone();
    assert_eq!((&check["state"], check["ended"].is_string()), (&"cancelled".into(), true), "{check}");
    site.operator.run(&["cancel", &job]).fails(3, &[&job, "had ended already: cancelled by"]);
    // Whoever comes is still told of it, and leaves it alone.
    let _indexer = site.agent("worker", &["indexer"], &[]);
    let _checker = site.agent("a", &["checker"], &[]);
    let checked = site.operator.run(&["check", "--by-agents", "--nats", &nats]);
    assert!(checked.ok().out.contains("1 snapshot, "), "a check of the structure");
    let states =
        checks().as_array().map(|all| all.iter().map(|one| one["state"].clone()).collect::<Vec<_>>());
    assert_eq!(states, Some(vec!["checked".into()]));
    site.operator.run(&["check", "--job", &job]).fails(7, &[&job]);
}
