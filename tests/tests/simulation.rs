//! Whole sessions and whole months under faults, each run from one seed. What must hold is in `tests::sim::ledger` and
//! `tests::sim::oracle`.
//!
//! `LVKEEP_SIM_SEED=n` runs one seed and prints all that happens; `LVKEEP_TEST_LONG=1` runs many more seeds;
//! `LVKEEP_SIM_FROM=n` begins with another seed than 0.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use agent::buffer::Pool;
use agent::faults::bus::BusFaults;
use agent::faults::store::WriteFault;
use agent::{Environment, Queue};
use schema::messages::{About, Cancel, Message};
use tests::is_long;
use tests::sim::counts::Counts;
use tests::sim::environment::SimEnvironment;
use tests::sim::plan::Upset;
use tests::sim::server::Server;
use tests::sim::sources::Tracking;
use tests::sim::trace::Trace;
use tests::sim::wires::Wires;
use tests::sim::{Accident, Plan, Report, run};

#[path = "simulation/sabotage.rs"]
mod sabotage;

/// Seeds of an ordinary run, of minutes and of months, and how many times more of a long one.
const SEEDS: u64 = 300;
const MONTHS: u64 = 17;
const LONG: u64 = 20;

/// Faults that months meet more often than this; a run of [`MONTHS`] meets each at least twice as often.
const MET: [(&str, u64); 21] = [
    ("messages lost", 1000),
    ("messages doubled", 1000),
    ("messages late", 2000),
    ("acknowledgements lost", 1500),
    ("requests lost", 250),
    ("answers lost", 150),
    ("broadcasts lost", 2000),
    ("broadcasts doubled", 1500),
    ("operations failed without effect", 5000),
    ("operations done and unanswered", 500),
    ("operations in an outage", 5000),
    ("operations slow", 100_000),
    ("false answers that it exists", 50),
    ("writes landed late", 100),
    ("bodies cut off", 2500),
    ("crashes of roles", 100),
    ("stops of roles", 25),
    ("restarts of the message server", 10),
    ("deaths of collectors", 300),
    ("deaths of those who copy and restore", 100),
    ("copies killed", 20),
];

fn number(variable: &str) -> Option<u64> {
    let number = std::env::var(variable).ok()?;
    Some(number.parse().unwrap_or_else(|why| panic!("{variable} is not a number: {why}")))
}

/// Runs a plan that must not break an invariant.
fn must(plan: Plan) -> Report {
    run(plan, false).unwrap_or_else(|broken| panic!("{broken}"))
}

/// What many runs did.
#[derive(Debug, Default)]
struct Total {
    runs: u64,
    sealed: usize,
    tracked: usize,
    failed: usize,
    restored: usize,
    done: Counts,
    faults: Counts,
    peaks: BTreeMap<&'static str, u64>,
    virtual_time: Duration,
    awake: Duration,
}

impl Total {
    fn add(&mut self, report: &Report) {
        self.runs += 1;
        self.sealed += report.sealed;
        self.tracked += report.tracked;
        self.failed += report.failed.len();
        self.restored += report.restored;
        self.done.merge(&report.done);
        self.faults.merge(&report.faults);
        for (family, peak) in &report.peaks {
            let most = self.peaks.entry(family).or_insert(0);
            *most = (*most).max(*peak);
        }
        self.virtual_time += report.took;
        self.awake += report.awake;
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, sealed, tracked, failed, restored, done, faults, peaks, virtual_time, awake } = self;
        let (sessions, days) = (done.of("sessions"), virtual_time.as_secs() / 86400);
        let (total, minutes) = (faults.total(), awake.as_secs_f64() / 60.0);
        writeln!(f, "{sessions} sessions in {runs} runs of {days} days in all, {total} faults")?;
        writeln!(f, "{minutes:>9.0} minutes awake, with {:.1} faults in each", total as f64 / minutes)?;
        writeln!(f, "{sealed:>9} backups sealed, {tracked} of them tracked; {failed} failed")?;
        writeln!(f, "{restored:>9} snapshots restored in the end")?;
        writeln!(f, "queues at most, in per cent of their limits: {peaks:?}")?;
        write!(f, "{done}\nfaults:\n{faults}")
    }
}

/// Runs the plans of many seeds, or one loudly that was asked for; none must break an invariant.
fn many(seeds: u64, plan: fn(u64) -> Plan) -> Option<Total> {
    if let Some(seed) = number("LVKEEP_SIM_SEED") {
        tracing_subscriber::fmt().with_writer(std::io::stderr).without_time().init();
        let report = run(plan(seed), true).unwrap_or_else(|broken| panic!("{broken}"));
        eprintln!("{report:#?}");
        return None;
    }
    let mut total = Total::default();
    let mut broken = Vec::new();
    let from = number("LVKEEP_SIM_FROM").unwrap_or(0);
    for seed in from..from + seeds {
        match run(plan(seed), false) {
            Ok(report) => total.add(&report),
            Err(wrong) => broken.push(wrong.to_string()),
        }
    }
    println!("{total}");
    let (count, broken_ones) = (broken.len(), broken.join("\n"));
    assert!(broken.is_empty(), "{count} of {seeds} seeds broke an invariant:\n{broken_ones}");
    Some(total)
}

#[test]
fn months_pass_under_faults() {
    let Some(total) = many(if is_long() { MONTHS * LONG } else { MONTHS }, Plan::months) else { return };
    // A run in which little happens proves little.
    let Total { sealed, tracked, failed, restored, done, faults, .. } = &total;
    assert!(*sealed > 4500 && *tracked > sealed / 4 && *restored > 400, "{total}");
    let unreadable = faults.of("sessions that could not read something");
    assert!(unreadable > 20 && *failed > 0 && (*failed as u64) < *sealed as u64 / 50 + unreadable, "{total}");
    assert!(done.of("sessions") >= 10_000 && done.of("packs deleted") > 5000, "{total}");
    assert!(done.of("snapshots walked through") > 200, "{total}");
    assert!(done.of("snapshots forgotten by policies") > 200, "{total}");
    assert!(done.of("snapshots restored") > 1000 && done.of("snapshots copied") > 1000, "{total}");
    assert!(done.of("copies forgotten") > 1000 && done.of("copies brought back") > 200, "{total}");
    assert!(done.of("verdicts on copies") > 200 && done.of("packs of copies deleted") > 1000, "{total}");
    assert!(done.of("snapshots brought back") > 100 && done.of("snapshots held") > 100, "{total}");
    assert!(done.of("restores with an undo") > 50, "{total}");
    assert!(done.of("samples of content") > 10_000, "{total}");
    assert!(done.of("messages and objects searched for content") > 10_000, "{total}");
    assert!(done.of("verdicts") > 200 && faults.total() > 30_000, "{total}");
    // None of them may be left out unnoticed.
    let rare = MET.into_iter().filter(|(what, at_least)| faults.of(what) <= *at_least);
    assert_eq!(rare.collect::<Vec<_>>(), [], "{total}");
    assert!(faults.of("outages of minutes") > 0 && faults.of("outages of the bucket") > 0, "{total}");
}

#[test]
fn sessions_end_well_under_faults() {
    let Some(total) = many(if is_long() { SEEDS * LONG } else { SEEDS }, Plan::of) else { return };
    // A run in which little happens proves little.
    assert!(total.sealed > total.runs as usize && total.failed > 0, "{total}");
    // Nobody forgets anything here.
    assert!(total.restored >= total.sealed && total.failed < total.sealed / 15, "{total}");
    assert!(total.tracked > total.runs as usize / 3, "{total}");
    assert!(total.faults.of("crashes of roles") > 400 && total.faults.total() > 4000, "{total}");
    assert!(total.faults.of("outages of minutes") > 5, "{total}");
}

#[test]
fn a_seed_repeats_itself() {
    let runs = if is_long() { 400 } else { 40 };
    // The age library has randomness of its own.
    let plain = |plan: fn(u64) -> Plan, runs| (0..).map(plan).filter(|plan| !plan.encrypted).take(runs);
    for plan in plain(Plan::of, runs).chain(plain(Plan::months, runs / 20)) {
        let seed = plan.seed;
        let (first, second) = (must(plan.clone()), must(plan));
        let course = |report: &Report| (report.lines, report.trace);
        assert_eq!(course(&first), course(&second), "seed {seed} took another course");
        assert_eq!(
            (first.done, first.faults),
            (second.done, second.faults),
            "seed {seed} did something else"
        );
    }
}

/// Runs the small scenario with one accident after the other until there are no more messages that it could hit.
fn every_accident(what: &str, accident: impl Fn(u64) -> Accident) {
    let mut total = Total::default();
    for number in 0.. {
        let plan = Plan { accident: accident(number), ..Plan::calm(7) };
        let report = run(plan, false).unwrap_or_else(|broken| panic!("{what} {number}: {broken}"));
        assert_eq!(report.failed, [], "progress: {what} {number}");
        if !report.accident {
            break;
        }
        total.add(&report);
    }
    eprintln!("{what}: {} runs, {:?} of virtual time", total.runs, total.virtual_time);
    assert!(total.tracked > total.runs as usize / 2, "{what}: {total}");
    assert!(total.runs > 40, "{what}: only {} messages", total.runs);
}

#[test]
fn any_one_message_may_get_lost() {
    every_accident("lost message", Accident::Lost);
}

#[test]
fn any_one_message_may_be_late() {
    every_accident("late message", |n| Accident::Late(n, Duration::from_secs(20)));
}

#[test]
fn any_one_answer_or_acknowledgement_may_get_lost() {
    every_accident("lost answer", Accident::Unanswered);
}

#[test]
fn any_one_message_may_come_twice() {
    every_accident("doubled message", Accident::Doubled);
}

/// `no-silent-skip`: a source that changes while it is read fails its backup or is marked, whatever gets lost.
#[test]
fn a_change_is_noticed_whatever_gets_lost() {
    for allow_changes in [false, true] {
        let mut noticed = 0;
        for (reads, lost) in [1, 3, 6].into_iter().flat_map(|reads| (0..70).map(move |lost| (reads, lost))) {
            let mut plan = Plan { accident: Accident::Lost(lost), ..Plan::calm(9) };
            plan.volumes.truncate(1);
            let volume = &mut plan.volumes[0];
            (volume.live, volume.vague, volume.runs) = (true, true, 6);
            (volume.changes_after, volume.allow_changes) = (Some(reads), allow_changes);
            let report = run(plan, false).unwrap_or_else(|broken| panic!("{reads} {lost}: {broken}"));
            noticed += report.failed.len() + report.marked;
        }
        assert!(noticed > 50, "only {noticed} changes happened while they mattered");
    }
}

#[test]
fn the_conductor_may_crash_at_every_step() {
    every_accident("crash of the conductor at", |n| Accident::Crash(n, vec!["conductor"]));
}

#[test]
fn the_storer_may_crash_at_every_step() {
    every_accident("crash of the storer at", |n| Accident::Crash(n, vec!["storer"]));
}

#[test]
fn reader_and_hashers_may_crash_at_every_step() {
    every_accident("crash of reader and hashers at", |n| Accident::Crash(n, vec!["reader", "hasher"]));
}

#[test]
fn the_indexer_may_crash_at_every_step() {
    every_accident("crash of the indexer at", |n| Accident::Crash(n, vec!["indexer"]));
}

#[test]
fn everything_may_crash_at_every_step() {
    let all = vec!["conductor", "storer", "reader", "hasher", "indexer"];
    every_accident("crash of everything at", |n| Accident::Crash(n, all.clone()));
}

#[test]
fn any_one_write_may_fail() {
    for fault in [WriteFault::Before, WriteFault::After, WriteFault::Exists, WriteFault::Late] {
        let mut number = 1;
        loop {
            let plan = Plan { write_fault: Some((number, fault)), ..Plan::calm(7) };
            let report =
                run(plan, false).unwrap_or_else(|broken| panic!("write {number} {fault:?}: {broken}"));
            assert_eq!(report.failed, [], "progress: write {number} {fault:?}");
            if report.faults.total() == 0 {
                break;
            }
            number += 1;
        }
        eprintln!("{fault:?}: {number} runs");
        assert!(number > 6, "only {number} writes");
    }
}

/// Runs the small scenario with one upset after the other, each later than the one before, until all is over by then.
fn at_any_moment(what: &str, upset: &Upset) {
    let over = must(Plan::calm(7)).took;
    let mut runs = 0;
    let mut after = Duration::ZERO;
    while after < over {
        let plan = Plan { upsets: vec![(after, upset.clone())], ..Plan::calm(7) };
        let report = run(plan, false).unwrap_or_else(|broken| panic!("{what} after {after:?}: {broken}"));
        assert_eq!(report.failed, [], "progress: {what} after {after:?}");
        after += if after < Duration::from_secs(3) { Duration::from_millis(47) } else { over / 4 };
        runs += 1;
    }
    assert!(runs > 60, "{what}: only {runs} runs in {over:?}");
}

#[test]
fn the_message_server_may_restart_at_any_moment() {
    at_any_moment("restart of the message server", &Upset::Server);
}

#[test]
fn the_bucket_may_be_away_at_any_moment() {
    at_any_moment("absence of the bucket", &Upset::Outage(Duration::from_secs(15)));
}

/// Longer than anybody tries by themselves: jobs wait, and no session is left.
#[test]
fn the_bucket_may_be_away_for_minutes_at_any_moment() {
    at_any_moment("a long absence of the bucket", &Upset::Outage(Duration::from_secs(300)));
}

#[test]
fn every_role_may_be_told_to_stop_at_any_moment() {
    for which in 0..6 {
        at_any_moment("stop of a role", &Upset::Restart { which });
    }
}

/// One tracked volume that is backed up again and again, whose list of changes leaves some out.
fn lying(seed: u64, audit: reader::Audit) -> Plan {
    let mut plan = Plan { audit, ..Plan::calm(seed) };
    plan.volumes.truncate(1);
    plan.volumes[0].tracking = Tracking::Lies;
    plan
}

/// `restored-equals-read`: a list of changes that is wrong never makes a snapshot that is.
#[test]
fn an_audit_of_everything_finds_every_list_that_lies() {
    let mut found = 0;
    for seed in 0..40 {
        found += must(lying(seed, reader::Audit::ALL)).found_out;
        // The same under faults.
        let mut plan = Plan { audit: reader::Audit::ALL, ..Plan::of(seed) };
        for volume in plan.volumes.iter_mut().filter(|volume| volume.tracking != Tracking::None) {
            volume.tracking = Tracking::Lies;
        }
        found += must(plan).found_out;
    }
    assert!(found > 40, "only {found} lists were found out");
}

/// That the oracle would see it: without an audit, such a list makes a snapshot that is not what was read.
#[test]
fn without_an_audit_a_list_that_lies_makes_a_wrong_snapshot() {
    let wrong = (0..20).filter_map(|seed| run(lying(seed, reader::Audit::OFF), false).err());
    let wrong: Vec<String> = wrong.map(|broken| broken.to_string()).collect();
    assert!(
        wrong.len() > 10 && wrong.iter().all(|wrong| wrong.contains("restored-equals-read")),
        "{wrong:#?}"
    );
}

/// A reader whose extents are late reads on, as one does whose server has them.
#[tokio::test(start_paused = true)]
async fn what_was_sent_is_not_in_its_senders_memory_any_more() {
    let environment: Arc<dyn Environment> = Arc::new(SimEnvironment::new(1));
    let trace = Arc::new(Trace::new(environment.clone(), false, &[]));
    let server = Server::new(environment.clone(), 1 << 20, 1 << 20);
    let late = Accident::Late(0, Duration::from_secs(3600));
    let faults = BusFaults::default();
    let wires = Wires::new(environment.clone(), trace, server, faults, late, Arc::default());
    let pool = Pool::new(1, 4096);
    let cancel = Cancel { session: environment.session_id() };
    let message = Message::with_body(&About::nothing(), &cancel, pool.acquire().await.freeze());
    wires.bus("reader").publish(&Queue::extents("host"), message).await.expect("it is sent");
    let again = environment.timeout(Duration::from_secs(1), pool.acquire()).await;
    assert!(again.is_some(), "its buffer is on its way for an hour");
}

/// Seeds that found something, by what broke.
#[test]
fn sim_seed_1_a_job_that_was_done_was_not_recognised() {
    must(Plan::of(1));
}

#[test]
fn sim_seed_39_a_job_taken_up_twice_made_two_snapshots() {
    must(Plan::of(39));
}

#[test]
fn sim_seed_8196_an_index_that_was_away_failed_a_backup() {
    must(Plan::of(8196));
}

#[test]
fn sim_seed_10457_a_session_took_itself_for_its_successor() {
    must(Plan::of(10457));
}

#[test]
fn sim_seed_40947_a_conductor_that_was_to_stop_failed_a_job_that_another_drove() {
    must(Plan::of(40947));
}

#[test]
fn sim_seed_483_a_parents_leaf_that_could_not_be_read_made_more_zeroes_than_bytes() {
    must(Plan::of(483));
}
