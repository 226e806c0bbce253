//! What goes on in a repository besides backups, over months: collections, snapshots that are forgotten, brought back,
//! held, copied and read, and time that goes by.

use std::time::Duration;

use collector::{Limits, Patience};
use rand::RngExt;
use rand::rngs::StdRng;

use super::super::sources::Tracking;
use super::{MIB, Plan, Round, Upset, VolumePlan, millis, outage};

const HOUR: Duration = Duration::from_secs(3600);

/// One of how many states of a source cannot be read at one place.
const BAD: u64 = 64;

/// Operations of the store within which a collector that dies does so: some more than a collection takes.
const OPERATIONS: u64 = 160;

/// What people and timers do besides backing up. A run of minutes has none of it.
#[derive(Debug, Clone, Default)]
pub struct Life {
    /// Pauses, and the time that leaps after each.
    pub leaps: Vec<(Duration, Duration)>,
    /// Collectors that work side by side.
    pub collectors: usize,
    /// How they work.
    pub collecting: Collecting,
    /// Snapshots of a volume that are kept.
    pub keep: usize,
    /// As many as this are kept by a policy of the conductors instead, and nobody else forgets anything.
    pub policy: Option<u32>,
    /// Pause between two looks at what may be forgotten, at most.
    pub forgetting: Duration,
    /// Pause between two copies to the second repository, at most.
    pub copying: Duration,
    /// Pause between two snapshots that are brought back, or held for a while, at most.
    pub remembering: Duration,
    /// Those who read snapshots side by side.
    pub restorers: usize,
    /// Pause between two of one, at most.
    pub restoring: Duration,
}

/// How collections go.
#[derive(Debug, Clone, Default)]
pub struct Collecting {
    /// Pause between two of one collector, at most.
    pub pause: Duration,
    /// One of how many dies at an operation of the store; 0: none.
    pub dies: u64,
    /// How much is rewritten.
    pub limits: Option<Limits>,
    /// How long sessions are waited for, and when they are declared dead.
    pub patience: Patience,
}

impl Collecting {
    /// Operations until a collector dies, if it does.
    pub fn fate(&self, random: &mut StdRng) -> Option<u64> {
        let dies = self.dies > 0 && random.random_range(0..self.dies) == 0;
        dies.then(|| random.random_range(0..OPERATIONS))
    }
}

impl Plan {
    /// The months of a seed: small volumes that are backed up about once a day, and everything else that happens.
    pub fn months(seed: u64) -> Self {
        use rand::SeedableRng;
        let mut plan = Self::of(seed);
        let random = &mut StdRng::seed_from_u64(seed ^ 0x0030_da75);
        let days = random.random_range(30..75);
        let pace = random.random_range(8000..24_000);
        plan.life = Life::of(random, days, pace);
        plan.life.policy = (seed % 3 == 2).then_some(1 + (plan.life.keep % 5) as u32);
        plan.storm = plan.life.leaps.iter().map(|(pause, _)| *pause).sum();
        plan.pack_size = random.random_range(64..512) << 10;
        plan.volumes = (0..random.random_range(3..9)).map(|_| small_volume(random, days, pace)).collect();
        plan.conducting.sessions = random.random_range(2..5);
        plan.bus.late_max = [Duration::from_secs(6), HOUR / 12][random.random_range(0..2)];
        plan.months_of_upsets(random, days);
        plan
    }

    /// One every other day, where the weather is bad.
    fn months_of_upsets(&mut self, random: &mut StdRng, days: usize) {
        if self.upsets.is_empty() {
            return;
        }
        let (outages, cancels) = (random.random_range(0..3) == 0, random.random_range(0..2) == 0);
        let pace = u64::try_from(self.storm.as_millis()).unwrap_or(u64::MAX) / days as u64;
        let upsets = (0..days / 2).map(|_| {
            let upset = match random.random_range(0..12) {
                0 if outages => outage(random),
                1 | 2 if cancels => {
                    Upset::Cancel { which: random.random_range(0..1000), revoke: random.random() }
                }
                _ => Self::upset(random),
            };
            (millis(random, 0, 4 * pace), upset)
        });
        let upsets: Vec<_> = upsets.collect();
        let fits = |(_, upset): &(Duration, Upset)| match upset {
            Upset::Outage(_) => outages,
            Upset::Cancel { .. } => cancels,
            _ => true,
        };
        self.upsets = upsets.into_iter().filter(fits).collect();
    }
}

impl Life {
    fn of(random: &mut StdRng, days: usize, pace: u64) -> Self {
        let leaps =
            (0..days).map(|_| (millis(random, pace / 2, 2 * pace), HOUR * random.random_range(8..40)));
        let leaps = leaps.collect();
        let wait = [0, 2000, 60_000][random.random_range(0..3)];
        let revoke_after = (random.random_range(0..3) == 0).then(|| HOUR * random.random_range(20..100));
        let collecting = Collecting {
            pause: Duration::from_millis(pace * random.random_range(1..8)),
            dies: random.random_range(0..5),
            limits: Some(Limits {
                max_repack: 1 << random.random_range(14..24),
                repack_below: random.random_range(0..101),
            }),
            patience: Patience { wait: Duration::from_millis(wait), revoke_after },
        };
        let pause =
            |random: &mut StdRng, most: u64| Duration::from_millis(pace * random.random_range(1..most));
        Self {
            leaps,
            collectors: random.random_range(1..3),
            collecting,
            keep: random.random_range(0..6),
            policy: None,
            forgetting: pause(random, 4),
            copying: pause(random, 12),
            remembering: pause(random, 8),
            restorers: random.random_range(1..3),
            restoring: pause(random, 6),
        }
    }
}

/// A few chunks; now and then some more than one leaf of the map.
fn small_volume(random: &mut StdRng, days: usize, pace: u64) -> VolumePlan {
    let size = match random.random_range(0..24) {
        0 => random.random_range(0..10_000),
        1 => random.random_range(64 * MIB..70 * MIB),
        _ => random.random_range(MIB / 16..3 * MIB),
    };
    let rounds = (0..days).map(|day| Round {
        after: millis(random, 0, 2 * pace),
        jobs: if random.random_range(0..20) == 0 { 2 } else { 1 },
        writes: if day == 0 { 0 } else { random.random_range(0..3) },
    });
    let rounds = rounds.collect();
    let tracking = [Tracking::None, Tracking::Lossy(super::BLOCK)][random.random_range(0..2)];
    VolumePlan {
        size,
        runs: random.random_range(0..4),
        clone: random.random_range(0..4) == 0,
        live: tracking == Tracking::None && random.random(),
        vague: random.random_range(0..4) == 0,
        tracking,
        bad: BAD,
        changes_after: (random.random_range(0..6) == 0).then(|| random.random_range(1..60)),
        allow_changes: random.random_range(0..3) == 0,
        rounds,
    }
}
