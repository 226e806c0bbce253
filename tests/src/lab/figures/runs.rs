//! Runs of lvkeep under measurement: how long each takes, and how much the kernel says was read meanwhile.

use std::time::Instant;

use crate::lab::{Backup, Keeper, Tracked, Volume, VolumeGroup, run};

/// One measured backup.
#[derive(Debug, Clone)]
pub struct Run {
    /// What it said of itself.
    pub backup: Backup,
    /// From its start to its end.
    pub seconds: f64,
    /// What each counter counted meanwhile, in bytes.
    pub counted: Vec<u64>,
}

/// A block device whose reads are counted by the kernel.
#[derive(Debug, Clone)]
pub struct Counter(String);

/// Runs of one volume's backup.
#[derive(Debug, Clone, Copy)]
pub struct Runs<'a> {
    /// lvkeep.
    pub keeper: &'a Keeper,
    /// Where the volume is.
    pub group: &'a VolumeGroup,
    /// The volume.
    pub volume: &'a Volume,
    /// Options of its backups.
    pub options: &'a [&'a str],
}

impl Counter {
    /// Of a device that is there as long as this is used.
    pub fn new(device: &str) -> Self {
        let found = std::fs::canonicalize(device).unwrap_or_else(|why| panic!("{device}: {why}"));
        let name = found.file_name().and_then(|name| name.to_str()).expect("a device's name");
        Self(format!("/sys/block/{name}/stat"))
    }

    /// Bytes read so far.
    pub fn bytes(&self) -> u64 {
        let text = std::fs::read_to_string(&self.0).unwrap_or_else(|why| panic!("{}: {why}", self.0));
        // Requests, merged ones, sectors of 512 bytes.
        let sectors = text.split_whitespace().nth(2).and_then(|field| field.parse::<u64>().ok());
        sectors.unwrap_or_else(|| panic!("{}: {text}", self.0)) * 512
    }
}

impl<'a> Runs<'a> {
    /// Runs as they are usual.
    pub fn usual(keeper: &'a Keeper, group: &'a VolumeGroup, volume: &'a Volume) -> Self {
        Self { keeper, group, volume, options: &[] }
    }

    /// A backup, after the caches of the guest were dropped.
    pub fn backup(&self, counters: &[Counter]) -> Run {
        drop_caches();
        let path = self.volume.path();
        let arguments = [&["--json", "backup", &path], self.options].concat();
        let mut command = self.keeper.machine.command(&arguments);
        let before: Vec<u64> = counters.iter().map(Counter::bytes).collect();
        let started = Instant::now();
        let output = command.output().expect("lvkeep starts");
        let seconds = started.elapsed().as_secs_f64();
        let counted = counters.iter().zip(before).map(|(counter, before)| counter.bytes() - before);
        let counted = counted.collect();
        let [out, err] =
            [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        assert!(output.status.success(), "{}: {out}{err}", output.status);
        let said = serde_json::from_str(&out).unwrap_or_else(|why| panic!("{why}: {out}"));
        println!("    {seconds:.1} s: {said}");
        Run { backup: Backup { said }, seconds, counted }
    }

    /// A backup that must be tracked.
    pub fn tracked(&self, counters: &[Counter]) -> Run {
        let run = self.backup(counters);
        assert!(!run.backup.tracked().is_everything(), "{}", run.backup.said);
        run
    }

    /// A backup that reads everything, because its baseline is gone; what it stores is new all the same.
    pub fn full(&self, counters: &[Counter]) -> Run {
        self.keeper.baseline(self.group, self.volume).remove();
        let run = self.backup(counters);
        assert!(run.backup.tracked().is_everything(), "{}", run.backup.said);
        run
    }

    /// Seconds in which the guest reads the volume and does nothing with it.
    pub fn reading_alone(&self) -> f64 {
        drop_caches();
        let started = Instant::now();
        run("dd", &[&format!("if={}", self.volume.device()), "of=/dev/null", "bs=4M", "iflag=direct"]);
        started.elapsed().as_secs_f64()
    }

    /// The snapshot of a run, restored, is what the volume is.
    pub fn restores(&self, run: &Run) {
        let target = self.keeper.machine.place("restored.img");
        let mut command = self.keeper.machine.command(&["restore", run.backup.snapshot(), &target]);
        let output = command.output().expect("lvkeep starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        crate::e2e::same_bytes(self.volume.device(), &target);
        std::fs::remove_file(target).expect("the restored file is deleted");
    }

    /// Milliseconds that writers were held at most, as the snapshot has it.
    pub fn frozen_ms(&self, run: &Run) -> u64 {
        let shown = self.keeper.machine.json(&["show", run.backup.snapshot()]);
        let fact = shown["layout"]["frozen_ms"].as_str().and_then(|text| text.parse().ok());
        fact.unwrap_or_else(|| panic!("it is not said how long writers were held: {shown}"))
    }
}

fn drop_caches() {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").expect("caches are dropped");
}

impl Run {
    /// Bytes that may have changed, and bytes read to see whether the rest is unchanged; the run was tracked.
    pub fn changed_and_audited(&self) -> (u64, u64) {
        match self.backup.tracked() {
            Tracked::Since { changed, audited } => (changed, audited),
            Tracked::Everything { .. } => panic!("everything was read: {}", self.backup.said),
        }
    }

    /// Bytes that lvkeep says it read.
    pub fn read(&self) -> u64 {
        self.backup.count("bytes_read")
    }
}
