//! An archive in use: three hosts are backed up again and again, each at its own pace, snapshots are forgotten, brought
//! back, restored and collected beside that, and whatever runs is killed at any moment. Whatever is still listed restores
//! byte for byte, and nothing fails but for a reason that there was. It goes on until all [`DEEDS`] were done and all
//! [`VICTIMS`] were killed, or fails when that takes too long.
//!
//! Nothing waits for anything else: each command begins when the one before it in its lane has ended, and what is killed
//! comes back meanwhile. `LVKEEP_TEST_SEED` repeats the choices of each lane (not the moments at which they find the
//! others), `LVKEEP_TEST_BACKUPS` says how many backups there are at least; a long run makes about ten minutes of them.

mod commands;
mod strikes;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tests::e2e::{Archive, Machine, Ran, Site, eventually, random_file, same_bytes};
use tests::is_long;

use commands::{Ended, IS_SWEPT, Lane, PRUNE, Running, STAYS, What};
use strikes::{Server, Servers};
use told::{Forgets, Snapshots};

/// Conductors that collect as often as they can.
const COLLECTS: &str = "[agent]\nprune_every = \"1s\"";
/// Agents that notice soon that another is gone.
const SETTINGS: &str = "ask_again = \"2s\"\nredeliver = \"3s\"\npack_max_age = \"1s\"\n";
const HOSTS: [&str; 3] = ["a", "b", "c"];
/// What agents are called where they are counted.
const HOST_AGENT: &str = "reader and hasher";
const WORKER: &str = "indexer, storer and conductor";
const MIB: u64 = 1 << 20;
const SIZE: u64 = 6 * MIB;
/// Snapshots of a volume that rules keep.
const KEPT: &str = "2";
const BACKUPS: u64 = 60;
const BACKUPS_LONG: u64 = 480;
/// Backups, at most, for each of those who are killed.
const BACKUPS_PER_STRIKE: u64 = 2;
/// How many times more backups there are, at most, until all [`DEEDS`] were done and all [`VICTIMS`] were killed.
const PATIENCE: u64 = 5;
/// What must have happened, as it is counted: where it did not, nothing was shown about it.
const DEEDS: [&str; 6] =
    ["backups", COLLECTIONS, "packs deleted", "restores", "snapshots forgotten", "snapshots brought back"];
const COLLECTIONS: &str = "collections ended";
/// Who must have been killed.
const VICTIMS: [Victim; 5] = [
    Victim::Server(Server::Bus),
    Victim::Server(Server::Store),
    Victim::Agent(Some(HOST_AGENT)),
    Victim::Agent(Some(WORKER)),
    Victim::Command(Some(PRUNE)),
];
/// Looks at what has ended for each look at the packs.
const LOOKS: u64 = 8;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// What happened how often.
type Counts = BTreeMap<&'static str, u64>;

/// Who may be killed.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Server(Server),
    /// One that is called this, or any.
    Agent(Option<&'static str>),
    /// The same of commands.
    Command(Option<&'static str>),
}

impl Victim {
    /// Its name where it is counted, if it has one.
    fn name(self) -> Option<&'static str> {
        match self {
            Self::Server(server) => Some(server.name()),
            Self::Agent(name) | Self::Command(name) => name,
        }
    }
}

struct Use {
    operator: Machine,
    archive: Archive,
    nats: String,
    servers: Servers,
    hosts: [StdRng; HOSTS.len()],
    prunes: StdRng,
    keeper: StdRng,
    restorer: StdRng,
    fate: StdRng,
    running: Vec<Running>,
    /// What each volume held, by volume: copies of its images.
    held: BTreeMap<String, Vec<String>>,
    told: Snapshots,
    /// Commands that collect at once; while there is none, conductors do it alone.
    collections: usize,
    /// Lanes in which sessions may have been left behind, and those that were found.
    untidy: Vec<(Lane, Vec<String>)>,
    done: Counts,
    killed: Counts,
    backups: u64,
    /// Commands that ended and packs that came or went, and how many it takes until somebody is killed.
    progress: u64,
    next_strike: u64,
    packs: usize,
    looks: u64,
    is_ending: bool,
}

impl Use {
    fn start() -> Self {
        let seed = number("LVKEEP_TEST_SEED").unwrap_or_else(rand::random);
        println!("choices by LVKEEP_TEST_SEED={seed}");
        let site = Site::start(SETTINGS);
        let mut agents: Vec<_> =
            HOSTS.map(|host| (HOST_AGENT, site.agent(host, &["reader", "hasher"], &[]))).into();
        let worker = |_| site.agent_with("worker", &["indexer", "storer", "conductor"], &[], COLLECTS);
        agents.extend([1, 2].map(|n| (WORKER, worker(n))));
        let Site { nats, weed, operator, archive, .. } = site;
        let lane = |number: u64| StdRng::seed_from_u64(seed.wrapping_add(number));
        Self {
            operator,
            archive,
            nats: nats.url(),
            servers: Servers::new(nats, weed, agents),
            hosts: [0, 1, 2].map(lane),
            prunes: lane(3),
            keeper: lane(4),
            restorer: lane(5),
            fate: lane(6),
            running: Vec::new(),
            held: BTreeMap::new(),
            told: Snapshots::default(),
            collections: 1,
            untidy: Vec::new(),
            done: Counts::new(),
            killed: Counts::new(),
            backups: 0,
            progress: 0,
            next_strike: 0,
            packs: 0,
            looks: 0,
            is_ending: false,
        }
    }

    fn image(&self, host: usize) -> String {
        self.operator.place(&format!("{}.img", HOSTS[host]))
    }

    /// Changes a host's image a little, and keeps a copy of it.
    fn change(&mut self, host: usize) -> String {
        let image = self.image(host);
        let volume = format!("{}{image}", HOSTS[host]);
        if !self.held.contains_key(&volume) {
            // Half of it is what all hosts hold.
            random_file(&image, SIZE, 7);
        }
        let file = std::fs::OpenOptions::new().write(true).open(&image).expect("an image");
        let random = &mut self.hosts[host];
        for _ in 0..4 {
            let mut bytes = vec![0; random.random_range(1..400_000)];
            random.fill_bytes(&mut bytes);
            let at = random.random_range(0..SIZE - bytes.len() as u64);
            file.write_all_at(&bytes, at).expect("new bytes");
        }
        // Agents may be at the backup of a command that was killed: what they opened before this is another state, also
        // where the kernel's clock has not moved since.
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + self.backups);
        file.set_modified(time).expect("a time of its own");
        let copy = self.operator.place(&format!("{}-{}.img", HOSTS[host], self.backups));
        std::fs::copy(&image, &copy).expect("a copy");
        self.held.entry(volume).or_default().push(copy.clone());
        copy
    }

    fn count(&mut self, what: &'static str, how_often: u64) {
        *self.done.entry(what).or_default() += how_often;
    }

    fn begin(&mut self, what: What, arguments: &[&str]) {
        let all: Vec<&str> = [&["--json"], arguments].concat();
        self.running.push(Running::new(what, self.operator.start(&all), self.servers.away()));
    }

    /// Commands of a lane that run.
    fn at(&self, lane: Lane) -> usize {
        self.running.iter().filter(|one| one.what.lane() == lane).count()
    }

    /// Whether something ended, began, came or went.
    fn look(&mut self) -> Option<()> {
        let before = self.progress;
        while let Some(ended) = self.running.iter_mut().position(|one| one.process.has_ended()) {
            let one = self.running.swap_remove(ended);
            self.ended(one);
            self.progress += 1;
        }
        if let Some(name) = self.servers.came_back() {
            *self.killed.entry(name).or_default() += 1;
            self.progress += 1;
        }
        self.looks += 1;
        if self.looks.is_multiple_of(LOOKS)
            && let Some(packs) = self.archive.packs()
        {
            self.progress += packs.len().abs_diff(self.packs) as u64;
            self.packs = packs.len();
        }
        self.begin_next();
        if self.progress >= self.next_strike && !self.servers.is_struck() && !self.is_ending {
            self.next_strike = self.progress + self.fate.random_range(1..12);
            self.strike();
        }
        (self.progress > before).then_some(())
    }

    /// Each lane goes on by itself.
    fn begin_next(&mut self) {
        self.tidy(Lane::Keeper);
        self.tidy(Lane::Restorer);
        if self.is_ending {
            return;
        }
        for host in 0..HOSTS.len() {
            if self.at(Lane::Host(host)) == 0 {
                self.back_up(host);
            }
        }
        while self.at(Lane::Prunes) < self.collections {
            let by_bus = self.prunes.random();
            let nats = self.nats.clone();
            let arguments = if by_bus { vec!["prune", "--nats", &nats] } else { vec!["prune"] };
            self.begin(What::Prune { by_bus }, &arguments);
        }
        if self.at(Lane::Keeper) == 0 {
            self.keep();
        }
        if self.at(Lane::Restorer) == 0 {
            self.restore();
        }
    }

    fn back_up(&mut self, host: usize) {
        let copy = self.change(host);
        self.backups += 1;
        let (image, nats) = (self.image(host), self.nats.clone());
        let arguments = ["backup", "--nats", &nats, "--host", HOSTS[host], &image];
        self.begin(What::Backup { host, copy }, &arguments);
    }

    /// Forgets by rules, or one that is named, or brings one back where there is one.
    fn keep(&mut self) {
        if self.told.len() == 0 {
            return;
        }
        let (choice, draw) = (self.keeper.random_range(0..3), self.keeper.random::<u32>() as usize);
        let [named, forgotten] = [self.told.standing(draw), self.told.forgotten(draw)];
        match (choice, named, forgotten) {
            (0, Some(id), _) => {
                let in_doubt = self.told.get(&id).is_some_and(|told| told.may_be_forgotten);
                let forgets = Forgets::Named { id: id.clone(), in_doubt };
                self.told.forgetting(&forgets);
                self.begin(What::Forget(forgets), &["forget", &id]);
            }
            (1, _, Some(id)) => self.begin(What::Unforget { id: id.clone() }, &["unforget", &id]),
            _ => {
                let forgets = Forgets::ByRules(self.told.len());
                self.told.forgetting(&forgets);
                self.begin(What::Forget(forgets), &["forget", "--keep-last", KEPT]);
            }
        }
    }

    /// Onto what the one before it left, whole or not.
    fn restore(&mut self) {
        if self.told.len() == 0 {
            return;
        }
        let (is_full, draw) = (self.restorer.random::<bool>(), self.restorer.random::<u32>() as usize);
        let Some(id) = self.told.standing(draw) else { return };
        let copy = self.told.get(&id).expect("a snapshot").copy.clone();
        let target = self.restored();
        let mut arguments = vec!["restore", &id, &target, "--force"];
        arguments.extend(is_full.then_some("--full"));
        self.begin(What::Restore { id: id.clone(), copy }, &arguments);
    }

    fn restored(&self) -> String {
        self.operator.place("restored.img")
    }

    /// Ends what killed commands of a lane left, once none of it runs: collections would wait for that.
    fn tidy(&mut self, lane: Lane) {
        if self.at(lane) > 0 {
            return;
        }
        let Some((_, found)) = self.untidy.iter_mut().find(|(other, _)| *other == lane) else { return };
        match found.pop() {
            Some(session) => self.begin(What::Cancel(lane), &["cancel", &session]),
            None => self.begin(What::Look(lane), &["status"]),
        }
    }

    /// `kill -9` of something, which is started again as its supervisor would. What has ended cannot be killed. Whoever was
    /// not struck yet comes first.
    fn strike(&mut self) {
        let (choice, draw) = (self.fate.random_range(0..12), self.fate.random::<u32>() as usize);
        let spared: Vec<Victim> = self.spared().collect();
        let victim = match (spared.get(choice % spared.len().max(1)), choice) {
            (Some(victim), _) => *victim,
            (None, 0) => Victim::Server(Server::Bus),
            (None, 1) => Victim::Server(Server::Store),
            (None, 2..4) => Victim::Command(Some(PRUNE)),
            (None, 4..7) => Victim::Command(None),
            (None, _) => Victim::Agent(None),
        };
        match victim {
            Victim::Server(server) => {
                self.servers.strike_server(server);
                for one in &mut self.running {
                    one.away.insert(server);
                }
            }
            Victim::Agent(name) => self.servers.strike_agent(name, draw),
            Victim::Command(name) => self.strike_command(name, draw),
        }
    }

    fn strike_command(&mut self, name: Option<&str>, draw: usize) {
        let is_meant = |one: &&mut Running| name.is_none_or(|name| one.what.name() == name);
        let mut meant: Vec<&mut Running> = self.running.iter_mut().filter(is_meant).collect();
        let among = meant.len();
        let Some(victim) = meant.get_mut(draw % among.max(1)) else { return };
        if victim.kill() {
            *self.killed.entry(victim.what.name()).or_default() += 1;
        }
    }

    /// Who was not killed yet, and must be.
    fn spared(&self) -> impl Iterator<Item = Victim> {
        VICTIMS.into_iter().filter(|one| one.name().is_some_and(|name| !self.killed.contains_key(name)))
    }

    /// What this has not shown yet, after so many backups at least.
    fn lacks(&self, backups: u64) -> Vec<String> {
        let strikes = self.killed.values().sum::<u64>();
        let too_few = (strikes * BACKUPS_PER_STRIKE < backups).then(|| format!("only {strikes} were killed"));
        let spared = self.spared().filter_map(Victim::name).map(|name| format!("{name}: never killed"));
        let never = DEEDS.into_iter().filter(|deed| self.done.get(deed).is_none_or(|often| *often == 0));
        too_few.into_iter().chain(spared).chain(never.map(|deed| format!("{deed}: none"))).collect()
    }

    fn ended(&mut self, running: Running) {
        let Running { what, process, is_killed, away } = running;
        let ran = process.end();
        let lane = what.lane();
        let is_untidy = self.untidy.iter().any(|(other, _)| *other == lane);
        if what.leaves_sessions() && (is_killed || !away.is_empty()) && !is_untidy {
            self.untidy.push((lane, Vec::new()));
        }
        let is_due = matches!(lane, Lane::Host(_)) && self.collections == 0;
        if is_due || lane == Lane::Prunes {
            self.collections = self.prunes.random_range(0..3);
        }
        if is_killed {
            return;
        }
        let may_be_forgotten = match &what {
            What::Restore { id, .. } => self.told.get(id).is_some_and(|told| told.may_be_forgotten),
            _ => false,
        };
        match Running::judge(&what, ran, &away, may_be_forgotten) {
            Ended::Well(ran) => self.ended_well(what, &ran),
            Ended::Failed(reason) => {
                self.count(reason, 1);
                match (&what, reason) {
                    (What::Unforget { id }, IS_SWEPT) => self.told.gone(id),
                    (What::Forget(forgets), STAYS) => self.told.stays(forgets),
                    _ => {}
                }
            }
        }
    }

    fn ended_well(&mut self, what: What, ran: &Ran) {
        let said = ran.json();
        let is_forgetting =
            self.running.iter().any(|one| matches!(one.what, What::Forget(Forgets::ByRules(_))));
        match what {
            What::Backup { copy, .. } => {
                let id = said["snapshot"].as_str().expect("an id");
                self.told.add(id, &copy, is_forgetting);
                self.count("backups", 1);
            }
            What::Prune { .. } => {
                let is_waiting = said["finished"] == false;
                self.count(if is_waiting { "prunes that waited" } else { "prunes to the end" }, 1);
                // One begins when all before it have ended, whoever ended them.
                let number = said["collection"].as_u64().unwrap_or(0);
                let ended = self.done.entry(COLLECTIONS).or_default();
                *ended = (*ended).max(number.saturating_sub(is_waiting.into()));
                self.count("packs deleted", said["packs_deleted"].as_u64().expect("a count"));
            }
            What::Forget(forgets) => {
                let went = self.told.forgot(&forgets, &said["snapshots"]);
                self.count("snapshots forgotten", went as u64);
            }
            What::Unforget { id } => {
                let back = said["snapshot"].as_str().expect("an id");
                self.told.brought_back(&id, back, is_forgetting);
                self.count("snapshots brought back", 1);
            }
            What::Restore { copy, .. } => {
                same_bytes(copy, self.restored());
                self.count("restores", 1);
            }
            What::Look(lane) => self.found(lane, &said),
            What::Cancel(_) => self.count("sessions cancelled", 1),
        }
    }

    /// What stands there of the sessions of a lane that has nothing to do.
    fn found(&mut self, lane: Lane, status: &serde_json::Value) {
        let kind = if lane == Lane::Restorer { "restore" } else { "unforget" };
        let sessions = status["sessions"].as_array().expect("a list of sessions");
        let of_lane = sessions.iter().filter(|session| session["kind"] == kind);
        let found: Vec<_> = of_lane.filter_map(|one| Some(one["session"].as_str()?.to_owned())).collect();
        self.untidy.retain(|(other, _)| *other != lane);
        if !found.is_empty() {
            self.untidy.push((lane, found));
        }
    }

    /// Nobody restores or brings back any more: what a killed one left is cancelled, also where its session's write came
    /// only after somebody had looked.
    fn tidy_late(&self) {
        let status = self.operator.json(&["status"]);
        for session in status["sessions"].as_array().expect("a list of sessions") {
            println!("open at the end: {session}");
            if session["kind"] == "restore" || session["kind"] == "unforget" {
                let id = session["session"].as_str().expect("an id");
                self.operator.run(&["cancel", id]).ok();
            }
        }
    }

    /// Every snapshot that is listed holds what its volume held, and what should be listed is.
    fn check(&self) {
        let restored = self.restored();
        let snapshots = self.operator.json(&["snapshots"]);
        let snapshots = snapshots.as_array().expect("a list of snapshots");
        assert!(snapshots.len() >= HOSTS.len(), "{snapshots:?}");
        let ids: BTreeSet<&str> = snapshots.iter().filter_map(|one| one["id"].as_str()).collect();
        self.told.are_listed(&ids);
        for snapshot in snapshots {
            let id = snapshot["id"].as_str().expect("an id");
            let volume = snapshot["volume"].as_str().expect("a volume");
            self.operator.run(&["restore", id, &restored, "--force", "--full"]).ok();
            if let Some(told) = self.told.get(id) {
                same_bytes(&told.copy, &restored);
                continue;
            }
            let bytes = std::fs::read(&restored).expect("what was restored");
            let is_it = |copy: &&String| std::fs::read(copy).expect("a copy") == bytes;
            assert!(self.held[volume].iter().any(|copy| is_it(&copy)), "{id} holds what {volume} never held");
        }
        self.operator.run(&["check", "--read-data"]).ok();
    }

    /// A collection that nobody disturbs comes to its end, and leaves nothing to collect.
    fn collect(&self) {
        let done = self.operator.json(&["prune"]);
        assert_eq!(done["finished"], true, "{done}");
        // The first may have gone on with one that had begun before all was forgotten.
        let done = self.operator.json(&["prune"]);
        assert_eq!(done["finished"], true, "{done}");
        let again = self.operator.run(&["prune"]).ok();
        assert!(again.out.contains("nothing to collect"), "{again}");
    }
}

#[test]
fn an_archive_in_use_survives_whatever_is_killed() {
    let mut site = Use::start();
    let backups = number("LVKEEP_TEST_BACKUPS").unwrap_or(if is_long() { BACKUPS_LONG } else { BACKUPS });
    let at_most = backups.max(BACKUPS) * PATIENCE;
    let is_due = |site: &Use| !site.lacks(backups).is_empty() && site.backups < at_most;
    while site.backups < backups || is_due(&site) {
        eventually("something ends or begins", || site.look());
    }
    site.is_ending = true;
    while !site.running.is_empty() || !site.untidy.is_empty() || site.servers.is_struck() {
        eventually("what is going on ends", || site.look());
    }
    // Whoever asked for a backup may be gone: the agents go on with it.
    let mut looks = 0u32;
    eventually("all sessions end", || {
        if looks.is_multiple_of(200) {
            site.tidy_late();
        }
        looks += 1;
        (site.archive.open_sessions() == 0).then_some(())
    });
    let Use { backups: begun, done, killed, .. } = &site;
    println!("{begun} backups begun; done: {done:?}; killed: {killed:?}");
    let lacks = site.lacks(backups);
    assert!(lacks.is_empty(), "{lacks:?} in {begun} backups; done: {done:?}; killed: {killed:?}");
    site.check();
    site.servers.end();
    site.collect();
    site.check();
}
