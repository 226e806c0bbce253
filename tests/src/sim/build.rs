//! The world of a plan: volumes, an empty repository in a bucket with faults, and the bus.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use agent::faults::store::{FaultyStore, StoreFaults};
use agent::repository::NewRepository;
use agent::store::Store;
use agent::{Environment, Failure, Repository, Stop};
use rand::SeedableRng;
use rand::rngs::StdRng;
use schema::config::FEATURE_BASE;
use schema::keys::Identity;
use schema::names;

use super::bucket::History;
use super::cluster::World;
use super::content::{Content, Templates};
use super::environment::SimEnvironment;
use super::leaks::Leaks;
use super::ledger::Ledger;
use super::plan::Plan;
use super::saboteur::Sabotage;
use super::second::Second;
use super::server::Server;
use super::sources::{Source, Sources, Tracking};
use super::trace::Trace;
use super::wires::Wires;

/// Bytes of the target of a restore.
const TARGET: u64 = 256 << 10;

/// A folder for caches: in memory, where there is such a place.
pub fn scratch() -> std::io::Result<tempfile::TempDir> {
    let memory = std::path::Path::new("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    }
}

/// A folder to restore to. Not beside the caches: those may be below /dev, where no file is restored to.
pub fn targets() -> Result<tempfile::TempDir, Failure> {
    tempfile::tempdir().map_err(|why| Failure::refused(format!("no folder to restore to: {why}")))
}

/// What the targets of restores are read as, before they are overwritten.
pub fn target_name(restorer: usize) -> String {
    format!("/dev/vg/target{restorer}")
}

/// Builds everything but the roles. The bucket is on its good behaviour until the repository is made.
pub async fn build(
    plan: Plan,
    loud: bool,
    folder: &std::path::Path,
) -> Result<(Arc<World>, Arc<History>), Failure> {
    let clock = Arc::new(SimEnvironment::new(plan.seed));
    let environment: Arc<dyn Environment> = clock.clone();
    let targets = targets()?;
    let trace = Arc::new(Trace::new(environment.clone(), loud, &[folder, targets.path()]));
    let history = History::new(trace.clone());
    let store = FaultyStore::new(
        history.clone(),
        environment.clone(),
        StoreFaults { seed: plan.seed, ..StoreFaults::default() },
    );
    let identity = plan.encrypted.then(|| Arc::new(Identity::generate()));
    let recipients = identity.as_ref().map(|identity| identity.recipients()).unwrap_or_default();
    let new = NewRepository { recipients, pack_size: plan.pack_size };
    let plain = Store::new(history.clone(), "", "bucket", environment.clone());
    let mut repository = Repository::init(plain, &new).await?;
    if plan.empty_tombstones {
        repository = with_empty_tombstones(repository).await?;
    }
    store.set(plan.store.clone());
    if let Some((number, fault)) = plan.write_fault {
        store.fail_write(number, fault);
    }
    history.count_writes();
    let second = match plan.life.leaps.is_empty() {
        true => None,
        false => Some(Second::build(&plan, &trace, &environment, &repository.key).await?),
    };
    let holds = match plan.sabotage {
        Some(Sabotage::IgnoresLimits) => usize::MAX,
        _ => plan.chunk_queue,
    };
    let server = Server::new(environment.clone(), plan.chunk_queue, holds);
    let (bus, accident) = (plan.bus.clone(), plan.accident.clone());
    let leaks = Arc::new(Leaks::new(repository.key.family(), identity.clone(), trace.clone()));
    let wires = Wires::new(environment.clone(), trace.clone(), server, bus, accident, leaks.clone());
    let sources = sources(&plan, &environment, &leaks);
    let begin = |ledger: &Ledger, repository: &Repository| {
        ledger.begin(repository, identity.clone(), sources.clone(), leaks.clone());
    };
    begin(history.ledger(), &repository);
    if let Some(second) = &second {
        begin(&second.ledger, &second.repository);
    }
    let folder = folder.to_owned();
    let world = World {
        plan,
        environment,
        clock,
        trace,
        wires,
        leaks,
        store,
        ledger: history.ledger().clone(),
        repository,
        identity,
        second,
        sources,
        folder,
        targets,
        crashed: Mutex::default(),
        over: Stop::default(),
        kept: Mutex::default(),
        outages: Mutex::default(),
        cancelled: Mutex::default(),
        unfinished: Mutex::default(),
        done: Mutex::default(),
        faults: Mutex::default(),
    };
    Ok((Arc::new(world), history))
}

/// The same repository as one that was made before tombstones were sealed.
async fn with_empty_tombstones(repository: Repository) -> Result<Repository, Failure> {
    let Repository { store, key, config, .. } = repository;
    let base = [FEATURE_BASE.to_owned()];
    let bytes = config.encode_requiring(&base, &base, &key, store.environment().random())?;
    store.put(names::CONFIG, bytes.into()).await?;
    Repository::open(store, Some(key), None).await
}

/// What readers call a volume's source.
pub fn source_name(volume: usize) -> String {
    format!("/dev/vg/lv{volume}")
}

/// A volume's name.
pub fn volume_name(volume: usize) -> String {
    format!("host/vg/lv{volume}")
}

/// The templates that volumes share.
pub fn templates(plan: &Plan) -> Templates {
    Templates::new(&mut StdRng::seed_from_u64(plan.seed ^ 0x7e3a), plan.templates)
}

fn sources(plan: &Plan, environment: &Arc<dyn Environment>, leaks: &Arc<Leaks>) -> Vec<Arc<Sources>> {
    let templates = templates(plan);
    let mut by_host: BTreeMap<usize, Vec<Arc<Source>>> = BTreeMap::new();
    let mut first: Option<Content> = None;
    for (number, volume) in plan.volumes.iter().enumerate() {
        // Where content is looked for, it is not what the environment draws.
        let apart = if plan.encrypted { 0x1ea4 } else { 0 };
        let random = &mut StdRng::seed_from_u64(plan.seed ^ apart ^ (number as u64) << 32);
        let content = match &first {
            Some(first) if volume.clone => {
                let mut content = first.clone();
                content.scribble(random, &templates);
                content
            }
            _ => Content::new(random, &templates, volume.size, volume.runs),
        };
        first.get_or_insert_with(|| content.clone());
        let source = Source::new(
            &source_name(number),
            volume.live,
            volume.vague,
            volume.tracking,
            volume.bad,
            content.clone(),
        );
        if let Some(reads) = volume.changes_after {
            let mut next = content;
            next.scribble(random, &templates);
            next.scribble(random, &templates);
            source.change_after(reads, next);
        }
        by_host.entry(number % plan.hosts).or_default().push(source);
    }
    for number in 0..plan.life.restorers {
        let random = &mut StdRng::seed_from_u64(plan.seed ^ 0x7a26 ^ (number as u64) << 32);
        let content = Content::new(random, &templates, TARGET, 2);
        let target = Source::new(&target_name(number), false, false, Tracking::None, 0, content);
        by_host.entry(number % plan.hosts).or_default().push(target);
    }
    (0..plan.hosts)
        .map(|host| {
            let stale = plan.sabotage == Some(Sabotage::ReadsWhatWas);
            let skips = plan.sabotage == Some(Sabotage::SkipsWhatCannotBeRead);
            let of_host = by_host.remove(&host).unwrap_or_default();
            Sources::new(environment.clone(), of_host, stale, skips, leaks.clone())
        })
        .collect()
}
