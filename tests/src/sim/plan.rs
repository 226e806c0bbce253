//! What one run is made of, drawn from its seed: volumes, roles, faults, and when who crashes.
//!
//! Everything random about a run is decided here or drawn from the run's environment, so that the seed says it all.

mod life;

use std::time::Duration;

use agent::faults::bus::BusFaults;
use agent::faults::store::StoreFaults;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::saboteur::Sabotage;
use super::sources::Tracking;
use super::wires::Accident;

pub use life::{Collecting, Life};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = schema::limits::BLOCK;

/// One volume and the backups of it.
#[derive(Debug, Clone)]
pub struct VolumePlan {
    /// Bytes.
    pub size: u64,
    /// Runs of data.
    pub runs: usize,
    /// Starts as a copy of the first volume.
    pub clone: bool,
    /// Read live, as a file is.
    pub live: bool,
    /// Says that more may hold data than does.
    pub vague: bool,
    /// What it knows of its changes.
    pub tracking: Tracking,
    /// One of how many of its states has a place that cannot be read; 0: none.
    pub bad: u64,
    /// Changes after so many reads.
    pub changes_after: Option<u64>,
    /// Whether such a change is allowed.
    pub allow_changes: bool,
    /// When its backups begin, each after the end of the one before; those at the same time run side by side.
    pub rounds: Vec<Round>,
}

/// Backups of one volume that run side by side.
#[derive(Debug, Clone)]
pub struct Round {
    /// Pause before them.
    pub after: Duration,
    /// How many.
    pub jobs: usize,
    /// Runs written to the volume before.
    pub writes: usize,
}

/// Something that happens to roles.
#[derive(Debug, Clone)]
pub enum Upset {
    /// A role dies at once; `which` picks it.
    Crash {
        /// Taken modulo the number of roles.
        which: usize,
        /// An indexer loses its cache, too.
        forgetful: bool,
    },
    /// A role is told to stop and comes back.
    Restart {
        /// Taken modulo the number of roles.
        which: usize,
    },
    /// The message server restarts and loses what was in memory.
    Server,
    /// The bucket answers nothing for so long.
    Outage(Duration),
    /// Somebody ends a session: by asking for it, or as a collector does, by occupying its slot.
    Cancel {
        /// Taken modulo the number of sessions.
        which: usize,
        /// Occupy the slot.
        revoke: bool,
    },
}

/// A run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where it comes from.
    pub seed: u64,
    /// Encrypt the repository.
    pub encrypted: bool,
    /// The repository is one that was made before tombstones were sealed.
    pub empty_tombstones: bool,
    /// Target size of packs in bytes.
    pub pack_size: u64,
    /// Bytes of the queue of new chunks.
    pub chunk_queue: usize,
    /// The volumes; they take turns on the hosts.
    pub volumes: Vec<VolumePlan>,
    /// Templates that they share.
    pub templates: usize,
    /// Hosts, each with a reader.
    pub hosts: usize,
    /// Hashers per host.
    pub hashers: usize,
    /// Storers.
    pub storers: usize,
    /// Conductors.
    pub conductors: usize,
    /// Processes that share the index's shards, and shards of each.
    pub indexers: usize,
    /// Shards of each indexer.
    pub shards_each: u16,
    /// Bytes of one read.
    pub segment: usize,
    /// How much of what is said to be unchanged is read again.
    pub audit: reader::Audit,
    /// How conductors work.
    pub conducting: conductor::Settings,
    /// After how long a storer closes a pack.
    pub pack_age: Duration,
    /// Age at which claims are void.
    pub give_up: Duration,
    /// Time between comparisons of the index with the bucket.
    pub sync_interval: Duration,
    /// Faults of the bus.
    pub bus: BusFaults,
    /// Faults of the bucket.
    pub store: StoreFaults,
    /// How long faults last.
    pub storm: Duration,
    /// What happens to roles during the storm, each after a pause.
    pub upsets: Vec<(Duration, Upset)>,
    /// How long a role that died stays away at most.
    pub absence: Duration,
    /// At most one accident.
    pub accident: Accident,
    /// What goes on besides backups.
    pub life: Life,
    /// The n-th write to the bucket after its creation fails in this way.
    pub write_fault: Option<(u64, agent::faults::store::WriteFault)>,
    /// What is done that must never happen.
    pub sabotage: Option<Sabotage>,
}

fn millis(random: &mut StdRng, from: u64, to: u64) -> Duration {
    Duration::from_millis(random.random_range(from..=to))
}

/// How long the bucket is away: as a rule not much longer than a role tries, and now and then for minutes.
fn outage(random: &mut StdRng) -> Upset {
    let lasts = millis(random, 100, 50_000);
    Upset::Outage(if lasts.as_millis().is_multiple_of(4) { lasts * 24 } else { lasts })
}

impl Plan {
    /// A run without any fault: two small volumes with shared content.
    pub fn calm(seed: u64) -> Self {
        let volume = VolumePlan {
            size: 96 * MIB + 8192,
            runs: 3,
            clone: false,
            live: false,
            vague: false,
            tracking: Tracking::True(BLOCK),
            bad: 0,
            changes_after: None,
            allow_changes: false,
            rounds: vec![
                Round { after: Duration::ZERO, jobs: 1, writes: 0 },
                Round { after: Duration::from_millis(100), jobs: 1, writes: 2 },
            ],
        };
        let second = VolumePlan { size: 3 * MIB + 100, runs: 2, live: true, ..volume.clone() };
        Self {
            seed,
            encrypted: false,
            empty_tombstones: false,
            pack_size: 512 << 10,
            chunk_queue: 4 << 20,
            volumes: vec![volume, second],
            templates: 1,
            hosts: 1,
            hashers: 2,
            storers: 1,
            conductors: 1,
            indexers: 1,
            shards_each: 1,
            segment: 1 << 20,
            audit: reader::Audit::default(),
            conducting: conductor::Settings {
                sessions: 2,
                ask_again: Duration::from_secs(5),
                checkpoint: Duration::from_secs(4),
                ..conductor::Settings::default()
            },
            pack_age: Duration::from_secs(3),
            give_up: Duration::from_secs(30),
            sync_interval: Duration::from_secs(60),
            bus: BusFaults::default(),
            store: StoreFaults {
                seed,
                slow: 500,
                slow_max: Duration::from_millis(200),
                ..StoreFaults::default()
            },
            storm: Duration::ZERO,
            upsets: Vec::new(),
            absence: Duration::from_secs(2),
            accident: Accident::None,
            life: Life::default(),
            write_fault: None,
            sabotage: None,
        }
    }

    /// The run of a seed.
    pub fn of(seed: u64) -> Self {
        let random = &mut StdRng::seed_from_u64(seed);
        let mut plan = Self::calm(seed);
        plan.encrypted = random.random_range(0..8) == 0;
        plan.pack_size = random.random_range(128..2048) << 10;
        let two_packs = 2 * plan.pack_size as usize + (1 << 20);
        plan.chunk_queue = two_packs + (random.random_range(0..8) << 20);
        plan.templates = random.random_range(1..4);
        plan.hosts = random.random_range(1..3);
        plan.hashers = random.random_range(1..4);
        plan.storers = random.random_range(1..3);
        plan.conductors = random.random_range(1..3);
        plan.indexers = random.random_range(1..3);
        plan.shards_each = random.random_range(1..3);
        plan.segment = 256 << random.random_range(10..15);
        plan.volumes = (0..random.random_range(1..5)).map(|n| Self::volume(random, n)).collect();
        plan.conducting = conductor::Settings {
            sessions: random.random_range(1..4),
            ask_again: millis(random, 1000, 15_000),
            patience: 30,
            checkpoint: millis(random, 500, 20_000),
            hand_back: true,
        };
        plan.pack_age = millis(random, 500, 10_000);
        plan.give_up = millis(random, 2000, 60_000);
        plan.sync_interval = millis(random, 5000, 120_000);
        plan.storm = millis(random, 2000, 60_000);
        let longest = [50, 1000, 15_000][random.random_range(0..3)];
        plan.absence = millis(random, 1, longest);
        plan.faults(random);
        plan.tracking();
        plan.empty_tombstones = seed % 4 == 3;
        plan
    }

    /// Drawn by itself, so that the rest of a seed's plan stays what it is.
    fn tracking(&mut self) {
        let random = &mut StdRng::seed_from_u64(self.seed ^ 0x7ac4_ed00);
        self.audit = match random.random_range(0..4) {
            0 => reader::Audit::ALL,
            1 => reader::Audit::OFF,
            _ => reader::Audit::default(),
        };
        for volume in &mut self.volumes {
            volume.tracking = match random.random_range(0..4) {
                0 | 1 => Tracking::None,
                2 => Tracking::Lossy(64 << 10),
                _ => Tracking::Lossy(BLOCK),
            };
            if volume.tracking != Tracking::None {
                // There is little to be tracked in most volumes that change under their readers.
                volume.live &= volume.changes_after.is_some();
            }
        }
    }

    fn volume(random: &mut StdRng, number: usize) -> VolumePlan {
        let size = match random.random_range(0..12) {
            0 => 0,
            1 => random.random_range(1..10_000),
            2..6 => random.random_range(MIB..24 * MIB),
            _ => random.random_range(60 * MIB..280 * MIB),
        };
        let together = random.random();
        let count = random.random_range(1..4);
        let rounds = (0..count).map(|round| Round {
            after: if round == 0 && together { Duration::ZERO } else { millis(random, 0, 8000) },
            jobs: if random.random_range(0..5) == 0 { 2 } else { 1 },
            writes: if round == 0 { 0 } else { random.random_range(0..4) },
        });
        let rounds = rounds.collect();
        let live = random.random();
        VolumePlan {
            size,
            runs: random.random_range(0..7),
            clone: number > 0 && random.random_range(0..4) == 0,
            live,
            vague: random.random_range(0..4) == 0,
            tracking: Tracking::None,
            bad: 0,
            changes_after: (random.random_range(0..6) == 0).then(|| random.random_range(1..20)),
            allow_changes: random.random_range(0..3) == 0,
            rounds,
        }
    }

    fn faults(&mut self, random: &mut StdRng) {
        let seed = random.random();
        let weather = random.random_range(0..10);
        let (bus, store, crashes) = match weather {
            0 => (false, false, false),
            1 | 2 => (true, false, false),
            3 => (false, true, false),
            4 | 5 => (false, false, true),
            _ => (true, true, true),
        };
        let mut chance = |on: bool, most: u16| match on && random.random_range(0..3) > 0 {
            true => random.random_range(1..=most),
            false => 0,
        };
        self.bus = BusFaults {
            seed,
            publish_lost: chance(bus, 120),
            publish_doubled: chance(bus, 120),
            publish_late: chance(bus, 300),
            late_max: Duration::from_secs(6),
            done_lost: chance(bus, 120),
            request_lost: chance(bus, 80),
            reply_lost: chance(bus, 80),
            broadcast_lost: chance(bus, 300),
            broadcast_doubled: chance(bus, 200),
        };
        self.store = StoreFaults {
            seed,
            fails_before: chance(store, 80),
            fails_after: chance(store, 80),
            false_exists: chance(store, 80),
            late_write: chance(store, 50),
            cut_body: chance(store, 60),
            flipped_bit: 0,
            slow: chance(true, 900),
            slow_max: millis(random, 10, 1500),
        };
        if crashes {
            let count = random.random_range(1..30);
            let pace = random.random_range(200..6000);
            self.upsets = (0..count).map(|_| (millis(random, 0, pace), Self::upset(random))).collect();
        }
    }

    fn upset(random: &mut StdRng) -> Upset {
        let which = random.random_range(0..1000);
        if random.random_range(0..40) == 0 {
            return outage(random);
        }
        if random.random_range(0..40) == 0 {
            return Upset::Cancel { which, revoke: random.random() };
        }
        match random.random_range(0..10) {
            0 => Upset::Server,
            1 | 2 => Upset::Restart { which },
            _ => Upset::Crash { which, forgetful: random.random() },
        }
    }
}
