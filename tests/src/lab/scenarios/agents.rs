//! Agents over NATS on a host with real LVM: a reader is killed at steps of its work, and what it began goes on.

use crate::e2e::{NatsServer, Process, eventually};
use crate::lab::{
    Content, Keeper, Pool, Traces, Volume, VolumeGroup, Watched, every, first, rounds, seed, step,
};

/// Agents that notice soon that another is gone.
const SETTINGS: &str = "ask_again = \"2s\"\nredeliver = \"3s\"\npack_max_age = \"1s\"\n";
/// Between two steps at which a reader is killed in a long run.
const EVERY: usize = 3;

/// `kill -9` of the reader agent of a thick volume's host, at steps of its work.
pub fn reader_agent_killed_on_thick() {
    let group = VolumeGroup::new("vg0");
    let volume = group.thick("web", 48);
    killed(&group, &[], &volume);
}

/// The same of a thin volume.
pub fn reader_agent_killed_on_thin() {
    let group = VolumeGroup::new("vg0");
    let pool = group.pool("pool", 256, 64);
    let volume = pool.thin("web", 48);
    killed(&group, &[&pool], &volume);
}

/// A host whose reader is an agent of its own, as its supervisor would have it.
struct Host {
    // First, so that what they said can still be read when a scenario fails.
    reader: Process,
    _worker: Process,
    keeper: Keeper,
    tools: Watched,
    url: String,
}

impl Host {
    /// Starts the reader again, as it was.
    fn start_again(&mut self) {
        self.reader = reader(&self.keeper, &self.tools, &self.url);
    }

    fn backup(&self, volume: &Volume) -> Process {
        self.keeper.machine.start(&["--json", "backup", "--nats", &self.url, &volume.path()])
    }
}

fn reader(keeper: &Keeper, tools: &Watched, url: &str) -> Process {
    let key = keeper.machine.place("writer-key");
    let arguments = ["agent", "--nats", url, "--key", &key, "--role", "reader"];
    let mut command = keeper.machine.command(&arguments);
    tools.watch(&mut command);
    let mut reader = keeper.machine.start_command(&arguments, command);
    reader.wait_for("is ready");
    reader
}

fn killed(group: &VolumeGroup, pools: &[&Pool], volume: &Volume) {
    let mut keeper = Keeper::new(SETTINGS);
    // By itself it would allow its queues no more than a share of the guest's small memory.
    let (configuration, folder) = (keeper.machine.place("nats.conf"), keeper.machine.place("jetstream"));
    let room =
        format!("jetstream {{ store_dir: \"{folder}\", max_memory_store: 2GB, max_file_store: 1GB }}\n");
    std::fs::write(&configuration, room).expect("a configuration");
    let nats = NatsServer::configured(configuration.as_ref(), &[]);
    keeper.machine.set("LVKEEP_HOST", "host-a");
    let others = ["hasher", "indexer", "storer", "conductor"].map(|role| ["--role", role]).concat();
    let mut worker = keeper.machine.start(&[&["agent", "--nats", &nats.url()], &others[..]].concat());
    worker.wait_for("is ready");
    let tools = Watched::new(&keeper);
    let reader = reader(&keeper, &tools, &nats.url());
    let mut host = Host { reader, _worker: worker, url: nats.url(), keeper, tools };
    let traces = Traces::of(group, pools);
    let mut content = Content::new(&volume.device(), seed());
    content.fill(50);
    host.backup(volume).end().ok();
    content.overwrite(4, 60_000);
    host.tools.never();
    host.backup(volume).end().ok();
    // The snapshot is rotated after the commit.
    eventually("the old baseline is gone", || (group.kept().len() == 1).then_some(()));
    let calls = host.tools.calls();
    println!("    calls of tools: {calls:?}");
    let every = every(EVERY);
    assert!(calls.len() > every, "the reader calls the tools that are watched");

    let mut killed = 0;
    for number in (first(every)..=calls.len()).step_by(every).take(rounds(100) as usize) {
        step(&format!("kill -9 before call {number} of {}", calls.len()));
        content.overwrite(3, 60_000);
        host.tools.strike_before(number, "KILL");
        let mut backup = host.backup(volume);
        eventually("the reader is killed, or the backup is over", || {
            (host.reader.has_ended() || backup.has_ended()).then_some(())
        });
        // What is tidied up after the commit may be what it is killed at.
        if !host.reader.has_ended() {
            eventually("the snapshots are rotated", || {
                (host.reader.has_ended() || group.kept().len() == 1).then_some(())
            });
        }
        // It may be struck after the last that can be seen of its work.
        let is_struck = host.tools.never();
        if is_struck {
            eventually("the reader is killed", || host.reader.has_ended().then_some(()));
            killed += 1;
            host.start_again();
        }
        let done = backup.end().ok().json();
        let snapshot = done["snapshot"].as_str().expect("a snapshot");
        host.keeper.restores(snapshot, &volume.device());
        if is_struck {
            // What it was killed at after the commit is made up for by the next run.
            host.backup(volume).end().ok();
        }
        eventually("only the baseline is left", || (group.kept().len() == 1).then_some(()));
        traces.are_only(1);
    }
    assert!(killed > 1, "readers were killed");
    step("after all of that");
    content.overwrite(3, 60_000);
    let last = host.backup(volume).end().ok().json();
    assert!(last["tracking"]["bytes_changed"].is_u64(), "{last}");
    host.keeper.restores(last["snapshot"].as_str().expect("a snapshot"), &volume.device());
    host.keeper.run(&["check", "--read-data"]).ok();
    eventually("only the baseline is left", || (group.kept().len() == 1).then_some(()));
    traces.are_only(1);
}
