//! What must hold at the end of a run, by the names of the invariants.
//!
//! The bucket alone is asked, with an index built anew: whatever roles believed is of no interest here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use agent::index::IndexClient;
use agent::local::LocalBus;
use agent::repository::AtSlot;
use agent::{Context, Failure, Repository, Stop, forgetting};
use collector::{Announce, Collector, Limits, Patience, Settings};
use indexer::Indexer;
use restorer::{Restorer, Target};
use rustix::fs::{SeekFrom, seek};
use schema::JobId;
use schema::messages::{FailureKind, JobOutcome};
use schema::names::{self, Slot};
use schema::root::Root;
use schema::session::{Session, SessionKind};

use super::bucket::History;
use super::build::targets;
use super::client::{Job, What};
use super::cluster::World;
use super::content::{BLOCK, Content};
use super::ledger::Ledger;
use super::second::Second;

/// What the least patient role waits for another one that the bucket makes wait.
const PATIENCE: Duration = Duration::from_secs(120);
/// Collections after which nothing is left to collect.
const COLLECTIONS: u32 = 8;

/// Checks everything; what is broken is noted in the trace. Says how many snapshots were restored.
pub async fn check(world: &World, history: &History, jobs: &[Job]) -> usize {
    let kept = world.kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let jobs = [jobs, &kept].concat();
    outcomes(world, &jobs);
    sessions(world, history, &jobs).await;
    what_policies_keep(world, &world.ledger);
    let mut restored = ended_well(world, &world.repository, &world.ledger).await;
    if let Some(second) = &world.second {
        second_sessions(world, second).await;
        if let Err(failure) = come_back(world, second).await {
            world.trace.wrong(format!("progress: copies cannot be brought back: {failure}"));
        }
        restored += ended_well(world, &second.repository, &second.ledger).await;
    }
    restored
}

/// `never-collect-live`: whatever was committed and that nobody forgot was restored, by its name.
fn nothing_is_missing(world: &World, ledger: &Ledger, restored: &BTreeSet<Slot>) {
    let commits = ledger.commits();
    for root in commits.iter().filter(|root| !ledger.is_forgotten(root.slot)) {
        if !restored.contains(&root.slot) {
            let (slot, volume) = (root.slot, &root.volume);
            world
                .trace
                .wrong(format!("never-collect-live: {slot} of {volume} is lost, and nobody forgot it"));
        }
    }
    let committed: BTreeSet<Slot> = commits.iter().map(|root| root.slot).collect();
    for slot in restored.difference(&committed) {
        world.trace.wrong(format!("one-winner: {slot} is there, and nobody committed it"));
    }
}

/// What must hold in a bucket when nobody is at work any more.
async fn ended_well(world: &World, repository: &Repository, ledger: &Ledger) -> usize {
    let bucket = repository.store.location();
    if world.plan.life.collectors > 0
        && let Err(failure) = collected(world, repository, ledger).await
    {
        world.trace.wrong(format!("progress: what is left in {bucket} cannot be collected: {failure}"));
    }
    let roots = match slots(world, repository, ledger).await {
        Ok(roots) => roots,
        Err(failure) => {
            world.trace.wrong(format!("one-winner: {bucket}: {failure}"));
            return 0;
        }
    };
    let restored = match readable(world, repository, &roots).await {
        Ok(restored) => restored,
        Err(failure) => {
            world.trace.wrong(format!("sealed-is-readable: {bucket} could not be checked: {failure}"));
            BTreeSet::new()
        }
    };
    nothing_is_missing(world, ledger, &restored);
    restored.len()
}

/// Copies end their sessions unless they are killed, or a write landed after the end; what a killed one left can be ended.
async fn second_sessions(world: &World, second: &Second) {
    let ended = async {
        for session in agent::sessions::list(&second.repository).await? {
            let key = names::session(session.id);
            let is_abandoned = match session.kind {
                SessionKind::Copy => second.is_of_the_killed(&session),
                _ => world.is_abandoned(&session),
            };
            if !(is_abandoned || second.history.came_back(&key)) {
                world
                    .trace
                    .wrong(format!("progress: {key} of {} is left in the second bucket", session.host));
            }
            // As an operator ends it.
            agent::sessions::revoke(&second.repository, &session).await?;
        }
        agent::sessions::list(&second.repository).await
    };
    match ended.await {
        Ok(left) if left.is_empty() => {}
        Ok(left) => world.trace.wrong(format!("progress: sessions of copies that cannot be ended: {left:?}")),
        Err(why) => world.trace.wrong(format!("progress: sessions of copies cannot be ended: {why}")),
    }
}

/// What was forgotten in the second bucket comes back, unless a collection has begun to sweep it.
async fn come_back(world: &World, second: &Second) -> Result<(), Failure> {
    let mut slots = second.repository.forgotten_slots(None).await?;
    slots.retain(|slot| !second.ledger.is_proposed(*slot));
    for root in second.repository.roots_at(slots).await?.all()? {
        let back = forgetting::unforget(&second.repository, &root, "an oracle").await?;
        if !forgetting::is_again(&second.repository, &root, &back.root) {
            world.trace.wrong(format!("restored-equals-read: {} came back as {:?}", root.slot, back.root));
        }
    }
    Ok(())
}

/// `one-winner`: every slot holds a commit that belongs there, or a tombstone.
async fn slots(world: &World, repository: &Repository, ledger: &Ledger) -> Result<Vec<Root>, Failure> {
    let mut roots = Vec::new();
    let has_collected = world.plan.life.collectors > 0;
    for listed in repository.store.list(names::SNAPSHOTS).await? {
        let slot = Slot::parse_key(&listed.key).map_err(Failure::from)?;
        match repository.at_slot(slot).await? {
            AtSlot::Snapshot(_) if has_collected && ledger.is_forgotten(slot) => {
                world.trace.wrong(format!("progress: {} is forgotten, and is not collected", listed.key));
            }
            AtSlot::Snapshot(root) => roots.push(*root),
            AtSlot::Tombstone => {}
            AtSlot::Nothing => world.trace.wrong(format!("one-winner: {} vanished", listed.key)),
        }
    }
    Ok(roots)
}

/// `progress`: what clients were told is what was committed.
fn outcomes(world: &World, jobs: &[Job]) {
    let ledger = &world.ledger;
    let mut by_job: BTreeMap<JobId, Vec<Root>> = BTreeMap::new();
    let commits = ledger.commits().into_iter();
    for root in commits.filter(|root| ledger.kind(root.slot.session) == Some(SessionKind::Backup)) {
        by_job.entry(root.job).or_default().push(root);
    }
    for job in jobs {
        let sealed = by_job.remove(&job.job).unwrap_or_default();
        sealed.iter().for_each(|root| is_of(world, job, root));
        match &job.outcome {
            Some(JobOutcome::Sealed { slot, .. }) if sealed.iter().any(|root| root.slot == *slot) => {
                // One that was forgotten shows nobody any more that its job is done.
                let kept = sealed.iter().filter(|root| !ledger.is_forgotten(root.slot)).count();
                if kept > 1 {
                    world.trace.wrong(format!("progress: job {} made {kept} snapshots", job.job));
                }
            }
            // Nobody remembers a job that failed: when it is delivered again, its source may hold still.
            Some(JobOutcome::Failed { kind, why })
                if sealed.is_empty()
                    || [
                        FailureKind::Device,
                        FailureKind::Revoked,
                        FailureKind::Store,
                        FailureKind::Other,
                    ]
                    .contains(kind) =>
            {
                failed(world, job, *kind, why);
            }
            None => {}
            told => world.trace.wrong(format!(
                "progress: job {} was told {told:?}, and the bucket holds {:?}",
                job.job,
                sealed.iter().map(|root| root.slot).collect::<Vec<_>>()
            )),
        }
    }
    if !by_job.is_empty() {
        world.trace.wrong(format!("one-winner: snapshots of jobs that nobody asked for: {by_job:?}"));
    }
}

/// `no-silent-skip`: what was sealed for a job is its source, as it was when the job was submitted or later, and all of
/// it could be read.
fn is_of(world: &World, job: &Job, root: &Root) {
    let (source, slot) = (job.what.source(), root.slot);
    if let Some(at) = world.source(&source).and_then(|source| source.broken(slot.session)) {
        let wrong =
            format!("no-silent-skip: {slot} was sealed, and {source} could not be read at offset {at}");
        world.trace.wrong(wrong);
    }
    if root.source != source {
        return world
            .trace
            .wrong(format!("no-silent-skip: {slot} is of {}, and not of {source}", root.source));
    }
    let read = world.source(&source).and_then(|source| source.version_of(root.reading));
    if read.is_none_or(|read| read < job.version) {
        let wanted = job.version;
        world
            .trace
            .wrong(format!("no-silent-skip: {slot} holds state {read:?} of {source}, older than {wanted}"));
    }
}

/// A job may fail only by its source, by a bucket that was away meanwhile, or because somebody ended its session.
fn failed(world: &World, job: &Job, kind: FailureKind, why: &str) {
    let source = job.what.source();
    let declared_dead = || {
        let age = world.plan.life.collecting.patience.revoke_after;
        age.is_some_and(|age| world.ledger.was_old(job.job, age))
    };
    let expected = match (kind, job.what) {
        (FailureKind::Device, What::Volume(number)) => {
            let changes = world.plan.volumes[number].changes_after.is_some();
            (changes || cannot_be_read(world, &source, why)) && why.contains(&source)
        }
        (FailureKind::Store, _) => world.was_away(&job.time),
        (FailureKind::Other, _) => {
            let waited = ["nothing more came", "no answer on"].iter().any(|words| why.contains(words));
            waited && world.was_away_for(PATIENCE, &job.time)
        }
        (FailureKind::Revoked, _) => world.was_cancelled(job.job) || declared_dead(),
        _ => false,
    };
    if !expected {
        world.trace.wrong(format!("progress: job {} of {source} failed: {kind:?} {why}", job.job));
    }
}

/// Whether this says where a source could not be read.
fn cannot_be_read(world: &World, source: &str, why: &str) -> bool {
    let places = world.source(source).map(|source| source.all_broken()).unwrap_or_default();
    places.iter().any(|at| why.contains(&format!("cannot read {source} at offset {at}: ")))
}

/// `never-collect-live`: of what is as new as a policy keeps nothing was ever forgotten.
fn what_policies_keep(world: &World, ledger: &Ledger) {
    let Some(last) = world.plan.life.policy else { return };
    let mut of_volumes: BTreeMap<String, Vec<Root>> = BTreeMap::new();
    for root in ledger.commits() {
        of_volumes.entry(root.volume.clone()).or_default().push(root);
    }
    for (volume, mut roots) in of_volumes {
        roots.sort_by_key(|root| (root.generation, root.slot));
        let kept = roots.iter().rev().take(last as usize);
        for root in kept.filter(|root| ledger.is_forgotten(root.slot)) {
            let slot = root.slot;
            world.trace.wrong(format!(
                "never-collect-live: {slot} of {volume} is kept by policy, and was forgotten"
            ));
        }
    }
}

/// Sessions end with their objects, unless whoever drove one crashed, a write landed after the end, or the bucket was
/// away while it was open (until its job's end was heard of, if it has a job) and nobody comes by who would end it.
async fn sessions(world: &World, history: &History, jobs: &[Job]) {
    let left = match agent::sessions::list(&world.repository).await {
        Ok(left) => left,
        Err(why) => return world.trace.wrong(format!("progress: sessions cannot be listed: {why}")),
    };
    for session in left {
        let key = names::session(session.id);
        let end = jobs.iter().find(|job| job.job == session.job).map_or(u64::MAX, |job| job.time.end);
        let was_away = world.was_away(&(session.started_ms..end));
        let may_stay = was_away && nobody_comes_by(world, &session).await;
        if !(world.is_abandoned(&session) || history.came_back(&key) || may_stay) {
            world.trace.wrong(format!("progress: {key} is left though every job has ended"));
        }
    }
}

/// Whether nobody takes up what a session was for, so that it stays where the bucket was away at its end: who only reads
/// says nothing to anybody, and what somebody has cancelled is not begun again. A slot that is decided keeps nobody waiting.
async fn nobody_comes_by(world: &World, session: &Session) -> bool {
    let is_decided = match session.slot {
        Some(slot) => world.repository.store.head(&slot.snapshot()).await.is_ok_and(|found| found.is_some()),
        None => false,
    };
    session.kind != SessionKind::Backup || world.was_cancelled(session.job) || is_decided
}

/// `progress`: when everybody has ended, all that no snapshot needs is collected.
async fn collected(world: &World, repository: &Repository, ledger: &Ledger) -> Result<(), Failure> {
    let patience = Patience { wait: Duration::ZERO, revoke_after: Some(Duration::ZERO) };
    let limits = Limits { max_repack: u64::MAX, repack_below: 50 };
    let (memory, announce) = (1 << 20, Announce::default());
    let settings = Settings { limits, memory, patience, exclusive: false, announce };
    let collector = Collector::new(repository.clone(), settings, Stop::default());
    for _ in 0..COLLECTIONS {
        if collector.prune().await?.epoch.is_some() {
            continue;
        }
        let garbage = ledger.garbage();
        if !garbage.is_empty() {
            world.trace.wrong(format!("progress: nobody needs {garbage:?}, and they are not collected"));
        }
        return Ok(());
    }
    world.trace.wrong("progress: collections go on and on".into());
    Ok(())
}

/// `sealed-is-readable` and `restored-equals-read`, from a bucket alone. Says what could be restored.
async fn readable(world: &World, repository: &Repository, roots: &[Root]) -> Result<BTreeSet<Slot>, Failure> {
    let mut restored = BTreeSet::new();
    let bus = Arc::new(LocalBus::new(world.environment.clone(), 1 << 20));
    let (environment, stop) = (world.environment.clone(), Stop::default());
    let context =
        Context { bus, environment, counters: Arc::default(), stop: stop.clone(), host: "oracle".into() };
    let settings = indexer::Settings {
        path: world.folder.join(format!("oracle-{}", repository.key.repo())),
        cache_bytes: 1 << 20,
        shards: 1,
        owned: vec![0],
        give_up: Duration::from_secs(60),
        sync_interval: Duration::from_secs(3600),
    };
    let indexer =
        Indexer::open(context.clone(), repository.clone(), settings).await.map_err(Failure::from)?;
    let serving = tokio::spawn(indexer.run());
    let index = IndexClient::new(context.bus.clone(), context.environment.clone(), 1);
    let settings = restorer::Settings { threads: 1, ..restorer::Settings::default() };
    let restorer = Restorer::new(context, repository.clone(), index, world.identity.clone(), settings);
    let folder = targets()?;
    for root in roots {
        let path = folder.path().join(root.slot.session.to_string());
        match restorer.restore(root.clone(), Target::new(&path, false), |_| ()).await {
            Ok(_) => {
                restored.insert(root.slot);
                if let Err(why) = compare(world, root, &path) {
                    world
                        .trace
                        .wrong(format!("restored-equals-read: {} of {}: {why}", root.slot, root.volume));
                }
                let _ = std::fs::remove_file(&path);
            }
            Err(why) => {
                world.trace.wrong(format!("sealed-is-readable: {} of {}: {why}", root.slot, root.volume));
            }
        }
    }
    stop.raise();
    let _ = serving.await;
    Ok(restored)
}

/// What was restored against what was read.
pub fn compare(world: &World, root: &Root, path: &std::path::Path) -> Result<(), String> {
    let held = world.source(&root.source).and_then(|source| source.held(root.reading));
    let held = held.ok_or_else(|| format!("nobody read {} as {}", root.source, root.reading))?;
    let allowed = match root.changed_while_read {
        true => &held[..],
        false => &held[..1],
    };
    let file = File::open(path).map_err(|why| why.to_string())?;
    let size = file.metadata().map_err(|why| why.to_string())?.len();
    if size != held[0].size() || size != root.size {
        return Err(format!("{size} bytes instead of {}", held[0].size()));
    }
    for number in interesting(&file, size, allowed)? {
        let expected: Vec<Vec<u8>> = allowed.iter().map(|content| content.block(number)).collect();
        let mut found = vec![0; expected[0].len()];
        file.read_exact_at(&mut found, number * BLOCK).map_err(|why| why.to_string())?;
        if !expected.contains(&found) {
            return Err(format!("block {number} differs"));
        }
    }
    Ok(())
}

/// Blocks that hold data in the file, or should.
fn interesting(file: &File, size: u64, contents: &[Arc<Content>]) -> Result<Vec<u64>, String> {
    let mut ranges: Vec<_> = contents.iter().flat_map(|content| content.allocated(0..size)).collect();
    let mut at = 0;
    while at < size
        && let Ok(start) = seek(file, SeekFrom::Data(at))
    {
        let end = seek(file, SeekFrom::Hole(start)).map_err(|why| why.to_string())?;
        ranges.push(start..end.min(size));
        at = end;
    }
    let mut blocks: Vec<u64> =
        ranges.into_iter().flat_map(|range| range.start / BLOCK..range.end.div_ceil(BLOCK)).collect();
    blocks.sort_unstable();
    blocks.dedup();
    Ok(blocks)
}
