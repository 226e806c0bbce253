//! Hosts without a message bus: a bucket is all that they share, and each has an index of its own.

use rustix::process::Signal;
use tests::e2e::{Machine, random_file};

use crate::prune::scatter;
use crate::reading::{caught, sessions};

const MIB: u64 = 1 << 20;

struct Host {
    volume: String,
    machine: Machine,
    image: String,
}

impl Host {
    fn new(name: &str, first: &Machine) -> Self {
        let mut machine = Machine::new(name);
        let image = machine.place("disk.img");
        for (variable, place) in
            [("LVKEEP_REPO", "repo"), ("LVKEEP_KEY", "writer-key"), ("LVKEEP_IDENTITY", "identity")]
        {
            machine.set(variable, &first.place(place));
        }
        machine.set("LVKEEP_HOST", name);
        Self { volume: format!("vm/{name}"), machine, image }
    }

    fn backup(&self) -> [String; 4] {
        ["backup", "--name", &self.volume, &self.image].map(str::to_owned)
    }

    /// Changes three quarters of every second MiB, so that packs are needed in part.
    fn change(&self, round: u64) {
        (round % 2..12).step_by(2).for_each(|mib| scatter(&self.image, mib, 100 * round + mib));
    }
}

#[test]
fn hosts_that_share_nothing_but_a_bucket_back_up_while_one_of_them_prunes() {
    let first = Machine::new("first");
    let [repo, key, identity] = ["repo", "writer-key", "identity"].map(|name| first.place(name));
    let init =
        ["init", "--repo", &repo, "--key-out", &key, "--identity-out", &identity, "--pack-size", "1MiB"];
    first.run(&init).ok();
    let hosts = ["a", "b"].map(|name| Host::new(name, &first));
    for host in &hosts {
        // Half of what both hold is the same.
        random_file(&host.image, 12 * MIB, 1);
    }
    let mut deleted = 0;
    for round in 0..4 {
        hosts.iter().for_each(|host| host.change(round));
        let [busy, other] = if round % 2 == 0 { [&hosts[0], &hosts[1]] } else { [&hosts[1], &hosts[0]] };
        let command = busy.backup();
        let is_open = || sessions(&first) > 0;
        let start = || busy.machine.start(&command.each_ref().map(String::as_str));
        let mut backup = caught(start, is_open, || !is_open());

        // Beside it, the other one backs up, forgets, and begins a collection, which has to wait.
        other.machine.run(&other.backup().each_ref().map(String::as_str)).ok();
        other.machine.run(&["forget", "--keep-last", "1"]).ok();
        let waiting = other.machine.json(&["prune", "--max-repack", "1GiB"]);
        match round {
            // Nothing was forgotten yet.
            0 => assert_eq!(waiting["packs_deleted"], 0, "{waiting}"),
            _ => {
                assert_eq!(waiting["finished"], false, "{waiting}");
                assert_eq!(waiting["waits_for"][0]["volume"], busy.volume, "{waiting}");
            }
        }
        backup.signal(Signal::CONT);
        backup.end().ok();

        // Whoever goes on with it knows of it by the bucket alone.
        let pruned = busy.machine.json(&["prune", "--max-repack", "1GiB"]);
        assert_eq!(pruned["finished"], true, "{pruned}");
        deleted += pruned["packs_deleted"].as_u64().expect("a count");
        for (reader, host) in [(&hosts[0], &hosts[1]), (&hosts[1], &hosts[0])] {
            reader.machine.restores(&format!("{}@latest", host.volume), &host.image);
        }
    }
    assert!(deleted > 0);
    for host in &hosts {
        host.machine.run(&["check", "--read-data"]).ok();
    }
    assert_eq!(sessions(&first), 0);
}
