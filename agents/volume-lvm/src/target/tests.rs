//! From finding a target to its end, with tools of shell that write down what they were asked. What the real ones do
//! is tested in a guest.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use schema::messages::{NewVolume, Preparation, Safety};
use schema::names::Slot;
use schema::root::{Root, Statistics, Tracking};
use schema::{JobId, ReadingId, VolumeKey};

use super::*;
use crate::exceptions::tests::store;
use crate::report::Attributes;
use crate::snapshots;
use crate::testing::{inventory, linear, marks, ours, pool, repository, session, thin};

const SIZE: u64 = 8 << 20;

/// Prints what is in a file of its name, and writes down how it was called; `lvcreate` makes `made.json` the report.
const TOOL: &str = r#"#!/bin/sh
d=$(dirname "$0")
p=$(basename "$0")
case "$p" in
lvs) cat "$d/lvs.json"; exit ;;
vgs) cat "$d/vgs.json"; exit ;;
esac
echo "$p $*" >> "$d/log"
case "$p $1 $2" in
"dmsetup info"*) cat "$d/opened" ;;
"dmsetup table"*) cat "$d/table-$2" ;;
"dmsetup status"*) cat "$d/status-$2" ;;
lvcreate*) [ -e "$d/made.json" ] && mv "$d/made.json" "$d/lvs.json" ;;
esac
exit 0
"#;

struct Host {
    folder: tempfile::TempDir,
    targets: LvmTargets,
}

impl Host {
    fn with(volumes: &[LogicalVolume]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for tool in ["lvs", "vgs", "lvcreate", "lvremove", "lvchange", "dmsetup"] {
            let file = folder.path().join(tool);
            fs::write(&file, TOOL).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let places = Places { dev: folder.path().join("dev"), sys: folder.path().join("sys") };
        let tools = Tools::at(folder.path());
        let tracker = Tracker::new(tools.clone(), folder.path().join("state"));
        let tracker = tracker.at(folder.path(), Duration::ZERO);
        let targets = LvmTargets { tracker, places, between_looks: Duration::ZERO, ..LvmTargets::new(tools) };
        let host = Self { targets, folder };
        host.write("lvs.json", &report(volumes));
        let group = &inventory([]).groups[0];
        host.write(
            "vgs.json",
            &format!(
                r#"{{"report":[{{"vg":[{{"vg_uuid":"{}","vg_name":"vg0","vg_size":"{}","vg_free":"{}",
                "vg_extent_size":"{}","vg_attr":"wz--n-","vg_tags":""}}]}}]}}"#,
                group.uuid, group.size, group.free, group.extent_size
            ),
        );
        host.write("opened", "1\n");
        host.write("table-vg0-web", "0 16384 linear 8:16 2048\n");
        host
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    /// What the tools that change something were asked.
    fn changes(&self) -> Vec<String> {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        log.lines().filter(|line| !line.starts_with("dmsetup")).map(str::to_owned).collect()
    }

    async fn find(
        &self,
        target: &str,
        preparation: &Preparation,
        force: bool,
    ) -> Result<Option<Arc<dyn Place>>, Failure> {
        self.find_after(target, preparation, force, None).await
    }

    async fn find_after(
        &self,
        target: &str,
        preparation: &Preparation,
        force: bool,
        donor: Option<&Path>,
    ) -> Result<Option<Arc<dyn Place>>, Failure> {
        self.find_by(target, preparation, (force, false), donor).await
    }

    /// `force` is for what others lose, and for who has it open.
    async fn find_by(
        &self,
        target: &str,
        preparation: &Preparation,
        (force, in_use): (bool, bool),
        donor: Option<&Path>,
    ) -> Result<Option<Arc<dyn Place>>, Failure> {
        let root = root();
        let job = JobId::from_parts(1_700_000_000_000, 7);
        let (root, part) = (&root, 0..root.size);
        let repository = repository(1);
        let wish = Wish { target, root, part, repository, job, preparation, force, in_use, donor };
        self.targets.find(&wish).await
    }

    /// A device of the volume's size, full of what was there.
    fn device(&self) -> File {
        let path = self.folder.path().join("device");
        fs::write(&path, vec![0xee; SIZE as usize]).unwrap();
        File::options().read(true).write(true).open(path).unwrap()
    }
}

fn root() -> Root {
    Root {
        version: Root::VERSION,
        volume: "web/vg0/web".into(),
        host: "web".into(),
        source: "vg0/web".into(),
        slot: Slot { volume: VolumeKey::from_bytes([1; 16]), session: session(1) },
        reading: ReadingId::from_bytes([7; 16]),
        job: JobId::from_bytes([8; 16]),
        generation: 1,
        parent: None,
        size: SIZE,
        top: None,
        time_ms: 0,
        sealed_ms: 0,
        group: None,
        changed_while_read: false,
        layout: BTreeMap::new(),
        tags: Vec::new(),
        statistics: Statistics::default(),
        tracking: Tracking::Everything { why: None },
    }
}

/// A report of `lvs` with these volumes.
fn report(volumes: &[LogicalVolume]) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let row = |one: &LogicalVolume| {
        serde_json::json!({
            "vg_uuid": one.vg_uuid.as_str(), "vg_name": one.vg, "lv_uuid": one.uuid.as_str(), "lv_name": one.name,
            "lv_attr": one.attributes.to_string(), "lv_size": one.size.to_string(), "lv_tags": one.tags.join(","),
            "lv_layout": one.layout, "lv_role": one.role, "origin": text(&one.origin),
            "origin_uuid": one.origin_uuid.as_ref().map(|uuid| uuid.as_str()).unwrap_or_default(),
            "pool_lv": text(&one.pool),
            "pool_lv_uuid": one.pool_uuid.as_ref().map(|uuid| uuid.as_str()).unwrap_or_default(),
            "metadata_lv": text(&one.metadata_lv), "data_percent": one.data_percent.unwrap_or(0.0).to_string(),
            "metadata_percent": "", "segtype": one.segtype, "stripes": one.stripes.to_string(),
            "stripe_size": "0", "chunk_size": one.chunk_size.to_string(), "thin_id": "", "discards": "",
        })
    };
    let rows: Vec<_> = volumes.iter().map(row).collect();
    serde_json::json!({ "report": [{ "lv": rows }] }).to_string()
}

fn web() -> LogicalVolume {
    LogicalVolume { size: SIZE, ..linear("vg0", "web") }
}

#[tokio::test]
async fn files_and_devices_are_left_to_others_and_no_tool_is_asked() {
    let host = Host::with(&[web()]);
    for tool in ["lvs", "vgs"] {
        host.write(tool, "#!/bin/sh\nexit 1\n");
    }
    let file = host.folder.path().join("image");
    for target in ["image", "./vg0/web", "/srv/images/web", file.to_str().unwrap(), "/dev/null"] {
        let found = host.find(target, &Preparation::default(), false).await.unwrap();
        assert!(found.is_none(), "{target}");
    }
    let failure = host.find("vg0/web", &Preparation::default(), false).await.unwrap_err();
    assert!(failure.why.contains("vg0/web") && failure.why.contains("lvs"), "{failure}");
}

/// An agent's configuration allows it by that, whichever name a job has for it.
#[test]
fn a_volume_is_known_by_its_own_name() {
    let host = Host::with(&[web()]);
    let dev = host.folder.path().join("dev");
    let name = |target: &Path| host.targets.name_of(target.to_str().unwrap()).unwrap();
    for target in ["vg0/web".into(), dev.join("vg0/web"), dev.join("mapper/vg0-web")] {
        assert_eq!(name(&target).as_deref(), Some("vg0/web"), "{target:?}");
    }
    assert_eq!((name(Path::new("/srv/images/web")), name(Path::new("/dev/null"))), (None, None));
}

#[tokio::test]
async fn a_volume_is_filled_and_what_is_empty_reads_as_zero() {
    let host = Host::with(&[web()]);
    let dev = host.folder.path().join("dev/vg0/web");
    for target in ["vg0/web", dev.to_str().unwrap()] {
        let place = host.find(target, &Preparation::default(), false).await.unwrap().unwrap();
        assert_eq!(place.name(), "vg0/web");
        assert_eq!(place.make().await.unwrap(), PathBuf::from("/dev/mapper/vg0-web"));
        let device = host.device();
        place.ready(&device).await.unwrap();
        assert!(place.keeps_equal());
        place.zero(&device, 5000..SIZE, &Stop::default()).unwrap();
        let mut expected = vec![0; SIZE as usize];
        expected[..5000].fill(0xee);
        assert!(fs::read(host.folder.path().join("device")).unwrap() == expected);
        assert_eq!(place.end(Ending::Restored).await, [""; 0]);
    }
    assert_eq!(host.changes(), [""; 0]);
    assert!(host.find("vg0/other", &Preparation::default(), false).await.is_err());
    let other = host.folder.path().join("dev/vg0/other");
    assert!(host.find(other.to_str().unwrap(), &Preparation::default(), false).await.unwrap().is_none());
}

#[tokio::test]
async fn what_was_made_stays_unless_its_restore_failed_before_anything_was_on_it() {
    let create = Preparation { create: Some(NewVolume::Plain), ..Preparation::default() };
    for ending in [Ending::Restored, Ending::WithHoles, Ending::CutOff, Ending::Failed] {
        let host = Host::with(&[]);
        let tag = format!("lvkeep-unfinished={}", JobId::from_parts(1_700_000_000_000, 7));
        host.write("made.json", &report(&[LogicalVolume { tags: vec![tag.clone()], ..web() }]));
        let place = host.find("vg0/web", &create, false).await.unwrap().unwrap();
        assert_eq!(host.changes(), [""; 0], "finding changes nothing");
        place.make().await.unwrap();
        place.ready(&host.device()).await.unwrap();
        let notes = place.end(ending).await.join("\n");
        if ending != Ending::Failed {
            assert_eq!(host.changes().len(), 1, "its job still finds it as its own");
            assert_eq!(place.over().await, None);
        }
        let stays = format!("lvchange --quiet --deltag {tag} vg0/web");
        let (last, said) = match ending {
            Ending::Restored => (stays, "was made (linear)"),
            Ending::WithHoles => (stays, "has holes"),
            Ending::CutOff => (stays, "the same restore goes on"),
            Ending::Failed => {
                let only = format!("lv_uuid=\"{}\"", web().uuid);
                (format!("lvremove --yes --quiet --select {only} vg0/web"), "removed again")
            }
        };
        assert_eq!(host.changes()[1..], [last]);
        assert!(notes.contains(said), "{notes}");
    }
}

/// The mark of one that was cut off stays until all of a snapshot is on it; nobody removes what is on it.
#[tokio::test]
async fn what_was_cut_off_says_so_until_it_is_restored() {
    let create = Preparation { create: Some(NewVolume::Plain), ..Preparation::default() };
    let job = JobId::from_parts(1_700_000_000_000, 8);
    let tags = vec![format!("lvkeep-unfinished={job}"), format!("lvkeep-incomplete={}", session(1))];
    let untagged = |tag: &str| format!("lvchange --quiet --deltag {tag} vg0/web");
    let (unfinished, incomplete) = (untagged(&tags[0]), untagged(&tags[1]));
    for preparation in [create, Preparation::default()] {
        for (ending, expected) in [
            (Ending::Restored, vec![incomplete.clone(), unfinished.clone()]),
            (Ending::WithHoles, vec![unfinished.clone()]),
            (Ending::CutOff, vec![unfinished.clone()]),
            (Ending::Failed, vec![unfinished.clone()]),
        ] {
            let host = Host::with(&[LogicalVolume { tags: tags.clone(), ..web() }]);
            let place = host.find("vg0/web", &preparation, false).await.unwrap().unwrap();
            assert_eq!((place.is_new(), place.is_begun()), (false, preparation.create.is_some()));
            place.make().await.unwrap();
            place.ready(&host.device()).await.unwrap();
            let notes = place.end(ending).await.join("\n");
            assert_eq!(place.over().await, None);
            assert_eq!(host.changes(), expected, "{ending:?}");
            let is_said = notes.contains("vg0/web was made for this restore and stays, incomplete");
            let is_left = matches!(ending, Ending::CutOff | Ending::Failed);
            assert_eq!(is_said, preparation.create.is_some() && is_left, "{notes}");
        }
    }
}

/// Another attempt of the same job removes it, too, and no other job does.
#[tokio::test]
async fn what_an_earlier_attempt_had_made_is_known_by_its_job() {
    let create = Preparation { create: Some(NewVolume::Plain), ..Preparation::default() };
    let job = JobId::from_parts(1_700_000_000_000, 7);
    let made = |job| LogicalVolume { tags: vec![format!("lvkeep-unfinished={job}")], ..web() };
    let host = Host::with(&[]);
    host.write("made.json", &report(&[made(job)]));
    let place = host.find("vg0/web", &create, false).await.unwrap().unwrap();
    assert!(!place.is_new() && !place.is_begun(), "it is not made yet");
    place.make().await.unwrap();
    assert!(place.is_new() && !place.is_begun());

    let host = Host::with(&[made(job)]);
    let place = host.find("vg0/web", &create, false).await.unwrap().unwrap();
    assert!(place.is_begun());
    place.make().await.unwrap();
    assert!(!place.is_new(), "somebody else may know of it");
    assert!(place.end(Ending::Failed).await.join("\n").contains("removed again"));
    assert!(host.changes()[0].starts_with("lvremove"), "{:?}", host.changes());

    let host = Host::with(&[made(JobId::from_parts(1_700_000_000_000, 8))]);
    let why = host.find("vg0/web", &create, true).await.unwrap_err();
    assert!(why.why.contains("exists already"), "{why}");
}

#[tokio::test]
async fn a_copy_begins_as_a_snapshot_and_says_what_it_shares() {
    let first = LogicalVolume { size: SIZE, ..thin("vg0", "a", "pool", 1) };
    let of = |name: &str| LogicalVolume {
        uuid: crate::testing::uuid("vg0", name),
        name: name.into(),
        ..first.clone()
    };
    let host = Host::with(&[pool("vg0", "pool"), of("a")]);
    host.write("made.json", &report(&[pool("vg0", "pool"), of("a"), of("web")]));
    host.write("table-vg0-web", "0 16384 thin 253:3 2\n");
    host.write("table-vg0-pool-tpool", "0 2048 thin-pool 253:1 253:2 128 0 0\n");
    host.write(
        "status-vg0-pool-tpool",
        "0 2048 thin-pool 1 9/1024 48/160 - rw discard_passdown queue_if_no_space - 1024\n",
    );
    let create =
        Preparation { create: Some(NewVolume::Thin { pool: "pool".into() }), ..Preparation::default() };
    let donor = host.folder.path().join("dev/mapper/vg0-a");
    let alone = host.find("vg0/web", &create, false).await.unwrap().unwrap();
    assert!(!alone.is_copy());
    let place = host.find_after("vg0/web", &create, false, Some(&donor)).await.unwrap().unwrap();
    assert!(place.is_copy());
    place.make().await.unwrap();
    let made = host.changes();
    assert!(
        made[0].starts_with("lvcreate") && made[0].contains("--snapshot") && made[0].ends_with("vg0/a"),
        "{made:?}"
    );
    let device = host.device();
    place.ready(&device).await.unwrap();
    assert!(place.keeps_equal() && !place.compares_zeroes());
    place.zero(&device, 5000..6000, &Stop::default()).unwrap();
    let notes = place.end(Ending::Restored).await.join("\n");
    assert!(notes.contains("snapshot of vg0/a") && notes.contains("grew by 0 bytes"), "{notes}");
}

#[tokio::test]
async fn restores_into_one_pool_or_group_fit_together_or_are_refused() {
    let small = LogicalVolume { size: 3 * SIZE / 2, data_percent: Some(0.0), ..pool("vg0", "pool") };
    let host = Host::with(&[small]);
    let create =
        Preparation { create: Some(NewVolume::Thin { pool: "pool".into() }), ..Preparation::default() };
    let first = host.find("vg0/a", &create, false).await.unwrap().unwrap();
    let failure = host.find("vg0/b", &create, false).await.unwrap_err();
    for words in
        ["vg0/pool has 12.0 MiB left", "other restores take up to 8.0 MiB", "up to 8.0 MiB are needed"]
    {
        assert!(failure.why.contains(words), "{failure}");
    }
    host.find("vg0/b", &create, true).await.unwrap();
    first.end(Ending::Restored).await;
    let second = host.find("vg0/b", &create, false).await.unwrap().unwrap();
    assert!(host.find("vg0/c", &create, false).await.is_err());
    drop(second);
    host.find("vg0/c", &create, false).await.unwrap();

    let group = fs::read_to_string(host.folder.path().join("vgs.json")).unwrap();
    let free = inventory([]).groups[0].free;
    host.write("vgs.json", &group.replace(&free.to_string(), &(3 * SIZE / 2).to_string()));
    let create = Preparation { create: Some(NewVolume::Plain), ..Preparation::default() };
    let first = host.find("vg0/a", &create, false).await.unwrap().unwrap();
    let failure = host.find("vg0/b", &create, false).await.unwrap_err();
    assert!(failure.why.contains("has 4.0 MiB left besides what other restores take"), "{failure}");
    drop(first);
    host.find("vg0/b", &create, false).await.unwrap();
}

#[tokio::test]
async fn nothing_is_changed_while_somebody_else_has_the_volume_open() {
    let web = web();
    let baseline = ours(&web, &marks(&web, repository(1), 3));
    let host = Host::with(&[web, baseline]);
    host.write("opened", "2\n");
    let all = Preparation { safety: Some(Safety { size: None }), drop_baseline: true, create: None };
    // Force says nothing about who has it open.
    for force in [false, true] {
        let place = host.find("vg0/web", &all, force).await.unwrap().unwrap();
        place.make().await.unwrap();
        let failure = place.ready(&host.device()).await.unwrap_err();
        for part in ["vg0/web", "open", "--force-in-use"] {
            assert!(failure.why.contains(part), "{part} is not in: {failure}");
        }
        place.end(Ending::Failed).await;
        assert_eq!(host.changes(), [""; 0]);
    }
    let place = host.find_by("vg0/web", &all, (false, true), None).await.unwrap().unwrap();
    place.ready(&host.device()).await.unwrap();
    assert!(place.end(Ending::Restored).await.iter().any(|note| note.contains("as asked")));
}

#[tokio::test]
async fn the_baseline_goes_and_the_safety_snapshot_comes_before_the_first_byte() {
    let web = web();
    let baseline = ours(&web, &marks(&web, repository(1), 3));
    let host = Host::with(&[web, baseline.clone()]);
    host.write("table-vg0-web", "0 16384 snapshot-origin 253:7\n");
    let all = Preparation { safety: Some(Safety { size: None }), drop_baseline: true, create: None };
    let place = host.find("vg0/web", &all, false).await.unwrap().unwrap();
    place.make().await.unwrap();
    place.ready(&host.device()).await.unwrap();
    let changes = host.changes();
    assert!(changes[0].starts_with("lvremove") && changes[0].contains(baseline.uuid.as_str()), "{changes:?}");
    assert!(changes[1].starts_with("lvcreate") && changes[1].contains("--snapshot"), "{changes:?}");
    let notes = place.end(Ending::Failed).await.join("\n");
    assert!(notes.contains("lvconvert --merge vg0/lvkeep-safety-"), "{notes}");
    assert_eq!(host.changes().len(), 2, "it stays when the restore failed");
}

/// The host of a volume with this snapshot, whose exceptions are the chunks 7, 8 and 100 of 4 KiB.
fn tracking(baseline: &LogicalVolume) -> Host {
    let host = Host::with(&[web(), baseline.clone()]);
    let name = DmName::of(&baseline.vg, &baseline.name);
    host.write(&format!("table-{name}"), "0 16384 snapshot 253:1 253:2 P 8");
    host.write(&format!("status-{name}"), "0 16384 snapshot 40/262144 16");
    fs::write(host.folder.path().join(name.layer("cow").as_str()), store(4096, &[7, 100, 8], 3)).unwrap();
    host
}

#[tokio::test]
async fn what_changed_is_known_by_a_baseline_before_it_goes() {
    let baseline = ours(&web(), &marks(&web(), repository(1), 3));
    let host = tracking(&baseline);
    let dropping = Preparation { drop_baseline: true, ..Preparation::default() };
    let place = host.find("vg0/web", &dropping, false).await.unwrap().unwrap();
    place.make().await.unwrap();
    let bases = place.bases();
    let [base] = bases.as_slice() else { panic!("{bases:?}") };
    assert_eq!((base.session, base.reading), (session(3), snapshots::reading_of(&baseline.uuid)));
    let device = host.device();
    let changes = place.changes(&device, base).await;
    let ranges = vec![7 * 4096..9 * 4096, 100 * 4096..101 * 4096];
    assert_eq!(changes, Changes::Since { parent: session(3), ranges });
    assert_eq!(host.changes(), [""; 0], "nothing was changed");
    place.ready(&device).await.unwrap();
    assert!(host.changes()[0].starts_with("lvremove"));
    let gone = report(&[web()]);
    host.write("lvs.json", &gone);
    let Changes::Unknown { why: Some(why) } = place.changes(&device, base).await else {
        panic!("it is gone")
    };
    assert!(why.contains("is gone"), "{why}");
}

#[tokio::test]
async fn a_baseline_that_is_not_fit_says_nothing() {
    let ours = |repository| ours(&web(), &marks(&web(), repository, 3));
    let full = LogicalVolume { data_percent: Some(100.0), ..ours(repository(1)) };
    let written = LogicalVolume { attributes: Attributes::new("swi-a-s---"), ..ours(repository(1)) };
    for (baseline, opened, expected) in [
        (full, "1", "has overflowed"),
        (written, "1", "made writable"),
        (ours(repository(1)), "2", "another process"),
        (ours(repository(2)), "1", ""),
    ] {
        let host = tracking(&baseline);
        host.write("opened", opened);
        let place = host.find("vg0/web", &Preparation::default(), true).await.unwrap().unwrap();
        let Some(base) = place.bases().pop() else {
            assert_eq!(expected, "", "the other repository's is none");
            continue;
        };
        let changes = place.changes(&host.device(), &base).await;
        let Changes::Unknown { why: Some(why) } = changes else { panic!("{expected}: {changes:?}") };
        assert!(why.contains(expected) && !expected.is_empty(), "{why}");
    }
    // It was smaller then.
    let baseline = ours(repository(1));
    let host = tracking(&baseline);
    let name = DmName::of(&baseline.vg, &baseline.name);
    host.write(&format!("table-{name}"), "0 8192 snapshot 253:1 253:2 P 8");
    let place = host.find("vg0/web", &Preparation::default(), false).await.unwrap().unwrap();
    let changes = place.changes(&host.device(), &place.bases()[0]).await;
    assert!(
        matches!(&changes, Changes::Unknown { why: Some(why) } if why.contains("resized")),
        "{changes:?}"
    );
}

#[tokio::test]
async fn another_volume_under_the_same_name_is_not_overwritten() {
    let host = Host::with(&[web()]);
    let place = host.find("vg0/web", &Preparation::default(), false).await.unwrap().unwrap();
    let recreated = LogicalVolume { uuid: crate::testing::uuid("vg0", "recreated"), ..web() };
    host.write("lvs.json", &report(&[recreated]));
    let failure = place.ready(&host.device()).await.unwrap_err();
    assert!(failure.why.contains("another volume"), "{failure}");
    let larger = LogicalVolume { size: 2 * SIZE, ..web() };
    host.write("lvs.json", &report(&[larger]));
    let failure = place.ready(&host.device()).await.unwrap_err();
    assert!(failure.why.contains("8388608 bytes"), "{failure}");
}

#[tokio::test]
async fn the_kernels_tables_say_how_a_thin_volume_is_emptied() {
    let db = LogicalVolume { size: SIZE, ..thin("vg0", "web", "my-pool", 1) };
    let host = Host::with(&[pool("vg0", "my-pool"), db]);
    let pool_of = |features: &str| format!("0 2048 thin-pool 253:1 253:2 128 0 {features}\n");
    for (table, real, features, expected, keeps) in [
        ("thin 253:3 1", None, "0", (true, true, false), true),
        ("thin 253:3 1 253:9", None, "0", (true, true, true), true),
        ("thin 253:3 1", None, "2 skip_block_zeroing ignore_discard", (false, false, false), false),
        ("snapshot-origin 253:8", Some("thin 253:3 1"), "0", (true, false, false), true),
    ] {
        host.write("table-vg0-web", &format!("0 16384 {table}\n"));
        if let Some(real) = real {
            host.write("table-vg0-web-real", &format!("0 16384 {real}\n"));
        }
        host.write("table-vg0-my--pool-tpool", &pool_of(features));
        let plan = Plan::new(Volume::New(vec![]), vec![]);
        let place = LvmPlace::new("vg0/web".into(), &host.targets, repository(1), plan);
        let volume = place.found().await.unwrap();
        let (zeroes, discards, external_origin) = expected;
        let kind = place.kind_of(&volume).await.unwrap();
        assert_eq!(
            kind,
            Kind::Thin { block: 64 << 10, zeroes, discards, external_origin },
            "{table} {features}"
        );
        assert_eq!(kind.keeps_equal(), keeps);
    }
    host.write("table-vg0-my--pool-tpool", "0 2048 error\n");
    let place = host.find("vg0/web", &Preparation::default(), false).await.unwrap().unwrap();
    let failure = place.ready(&host.device()).await.unwrap_err();
    assert!(failure.why.contains("0 2048 error"), "{failure}");
}
