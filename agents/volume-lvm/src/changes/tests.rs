//! With a `dmsetup` and thin tools of shell that keep their state in files. What the real ones do is tested in a guest.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use rustix::fs::{CWD, FileType, mknodat};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::*;
use crate::delta::tests::{DUMP, PLAIN};
use crate::exceptions::tests::store;

const DMSETUP: &str = r#"#!/bin/sh
d=$(dirname "$0")
echo "$*" >> "$d/log"
case "$1 $4" in
table*) cat "$d/table-$2" ;;
status*)
    held=-
    [ -e "$d/held" ] && held=$(cat "$d/held")
    sed "s/HELD/$held/" "$d/status-$2" || exit 1
    [ -e "$d/status-$2.next" ] && mv "$d/status-$2.next" "$d/status-$2"
    exit 0 ;;
*reserve_metadata_snap)
    [ -p "$d/reserving" ] && { echo > "$d/reserving"; read go < "$d/go"; }
    [ -e "$d/held" ] && { echo "device-mapper: message ioctl failed: Device or resource busy" >&2; exit 1; }
    echo 21 > "$d/held" ;;
*release_metadata_snap)
    rm "$d/held" || exit 1
    [ -p "$d/released" ] && echo > "$d/released"
    exit 0 ;;
*) exit 2 ;;
esac
"#;

const THIN_DELTA: &str = r#"#!/bin/sh
d=$(dirname "$0")
echo "thin_delta $*" >> "$d/log"
[ -e "$d/held" ] || { echo "no current metadata snap" >&2; exit 1; }
[ -p "$d/listing" ] && { echo > "$d/listing"; exec sleep 600; }
cat "$d/delta.xml"
exit "$(cat "$d/delta.rc")"
"#;

const THIN_DUMP: &str = r#"#!/bin/sh
d=$(dirname "$0")
echo "thin_dump $*" >> "$d/log"
case "$*" in
*--skip-mappings*) cat "$d/counts.xml" ;;
*) cat "$d/dump.xml" ;;
esac
"#;

const COUNTS: &str = r#"<superblock data_block_size="128">
  <device dev_id="1" mapped_blocks="10"/><device dev_id="2" mapped_blocks="5"/><device dev_id="3" mapped_blocks="14"/>
</superblock>"#;

const BLOCK: u64 = 64 << 10;
const TPOOL: &str = "VG-my--pool-tpool";

/// A host with a thick snapshot `VG/snap` and a pool `VG/my-pool` with the devices 1 and 3, of which `VG/new` is 3.
struct Host {
    directory: tempfile::TempDir,
    tracker: Tracker,
}

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        for (tool, script) in [("dmsetup", DMSETUP), ("thin_delta", THIN_DELTA), ("thin_dump", THIN_DUMP)] {
            fs::write(at.join(tool), script).unwrap();
            fs::set_permissions(at.join(tool), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let tools = Tools::at(at).with_limit(Duration::from_secs(30));
        let tracker = Tracker::new(tools, at.join("state")).at(at, Duration::from_secs(30));
        let host = Self { directory, tracker };
        host.write("table-VG-snap", "0 1048576 snapshot 253:1 253:2 P 8");
        host.write("status-VG-snap", "0 1048576 snapshot 40/262144 16");
        fs::write(host.path("VG-snap-cow"), store(4096, &[7, 100, 8], 3)).unwrap();
        host.write("table-VG-new", "0 12800 thin 253:4 3");
        host.write(
            &format!("status-{TPOOL}"),
            "0 2097152 thin-pool 3 20/4096 115/16384 HELD rw no_discard_passdown queue_if_no_space - 1024",
        );
        host.write("delta.xml", PLAIN);
        host.write("delta.rc", "0");
        host.write("counts.xml", COUNTS);
        host.write("dump.xml", DUMP);
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn pipe(&self, name: &str) {
        mknodat(CWD, self.path(name), FileType::Fifo, 0o600.into(), 0).unwrap();
    }

    /// Waits until a tool has written to a pipe.
    async fn told(&self, name: &str) {
        let path = self.path(name);
        spawn_blocking(move || fs::read(path)).await.unwrap().unwrap();
    }

    fn note(&self, note: &str) {
        fs::create_dir_all(self.path("state")).unwrap();
        self.write(&format!("state/pool-{TPOOL}.lock"), note);
    }

    fn noted(&self) -> String {
        let note = fs::read_to_string(self.path(&format!("state/pool-{TPOOL}.lock"))).unwrap();
        note.trim().to_owned()
    }

    fn is_held(&self) -> bool {
        self.path("held").exists()
    }

    /// The messages that the pool got.
    fn messages(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        let messages = log.lines().filter_map(|line| line.strip_prefix(&format!("message {TPOOL} 0 ")));
        messages.map(|message| message.trim_end_matches("_metadata_snap").to_owned()).collect()
    }

    async fn thick(&self) -> Result<Ranges, ChangeError> {
        self.tracker.changed_ranges_thick(&DmName::of("VG", "snap"), 512 << 20).await
    }

    async fn thin(&self) -> Result<Delta, ChangeError> {
        self.tracker.changed_ranges_thin(&pool(), 1, &DmName::of("VG", "new"), 100 * BLOCK).await
    }

    async fn mapped(&self) -> Result<Mapped, ChangeError> {
        self.tracker.mapped_ranges_thin(&pool(), &DmName::of("VG", "new"), 100 * BLOCK).await
    }

    /// That the pool is as it was, and that the next run gets what it wants.
    async fn is_clean(&self) {
        assert!(!self.is_held());
        self.write("delta.xml", PLAIN);
        self.write("delta.rc", "0");
        self.write("counts.xml", COUNTS);
        self.thin().await.unwrap();
        assert!(!self.is_held());
        assert_eq!(self.noted(), "nothing");
    }
}

fn pool() -> Pool {
    Pool { group: "VG".into(), name: "my-pool".into() }
}

fn blocks(ranges: &[std::ops::Range<u64>]) -> Ranges {
    ranges.iter().map(|range| range.start * BLOCK..range.end * BLOCK).collect()
}

#[tokio::test]
async fn the_changes_of_a_thick_volume_are_found() {
    let found = Host::new().thick().await.unwrap();
    assert_eq!(found.into_vec(), [7 * 4096..9 * 4096, 100 * 4096..101 * 4096]);
}

#[tokio::test]
async fn an_overflow_is_noticed_wherever_it_shows() {
    let overflowed = async |host: &Host| {
        let said = host.thick().await.unwrap_err();
        assert!(matches!(said, ChangeError::Overflowed { .. }), "{said}");
    };
    // In the device's state before the list is read, and after.
    let host = Host::new();
    host.write("status-VG-snap", "0 1048576 snapshot Invalid");
    overflowed(&host).await;
    let host = Host::new();
    host.write("status-VG-snap.next", "0 1048576 snapshot Invalid");
    overflowed(&host).await;
    // In the store alone.
    let host = Host::new();
    let mut bytes = store(4096, &[7], 0);
    bytes[4] = 0;
    fs::write(host.path("VG-snap-cow"), bytes).unwrap();
    overflowed(&host).await;
}

/// A list that shows less than the kernel wrote, as a stale page cache would.
#[tokio::test]
async fn a_list_that_is_shorter_than_the_kernels_is_refused() {
    let host = Host::new();
    host.write("status-VG-snap", "0 1048576 snapshot 4000/262144 24");
    let said = host.thick().await.unwrap_err().to_string();
    assert!(said.contains("says 1 metadata areas and the kernel says at least 2"), "{said}");
}

#[tokio::test]
async fn what_is_no_such_snapshot_is_refused_by_name() {
    let refused = [
        ("table", "0 1048576 snapshot 253:1 253:2 N 8", "in memory only"),
        (
            "table",
            "0 1048576 snapshot 253:1 253:2 P 16",
            "chunks of 4096 bytes and the kernel says chunks of 8192",
        ),
        ("table", "0 1048576 snapshot-merge 253:1 253:2 P 8", "snapshot-merge"),
        ("table", "0 1048584 snapshot 253:1 253:2 P 8", "has 536875008 bytes instead of 536870912"),
        ("table", "0 1048576 linear 253:1 0", "VG-snap: it is not the device of a snapshot"),
        ("status", "0 1048576 snapshot Merge failed", "being merged"),
    ];
    for (question, answer, expected) in refused {
        let host = Host::new();
        host.write(&format!("{question}-VG-snap"), answer);
        let said = host.thick().await.unwrap_err().to_string();
        assert!(said.contains(expected), "{said} instead of {expected}");
    }
    let host = Host::new();
    fs::remove_file(host.path("VG-snap-cow")).unwrap();
    let said = host.thick().await.unwrap_err().to_string();
    assert!(said.contains("cannot open") && said.contains("VG-snap-cow"), "{said}");
    fs::remove_file(host.path("table-VG-snap")).unwrap();
    let said = host.thick().await.unwrap_err().to_string();
    assert!(said.contains("`dmsetup table VG-snap` failed"), "{said}");
}

#[tokio::test]
async fn the_changes_of_a_thin_volume_are_found_and_the_pool_is_left_as_it_was() {
    let host = Host::new();
    let found = host.thin().await.unwrap();
    assert_eq!(found.changed, blocks(&[2..5, 9..10, 20..27]));
    assert_eq!(host.messages(), ["reserve", "release"]);
    let log = fs::read_to_string(host.path("log")).unwrap();
    let device = host.path("VG-my--pool_tmeta");
    assert!(log.contains(&format!("thin_delta -m --thin1 1 --thin2 3 {}\n", device.display())), "{log}");
    host.is_clean().await;
}

#[tokio::test]
async fn lists_that_are_not_whole_are_refused_and_the_pool_is_left_as_it_was() {
    let refused: [(&str, String, &str); 8] = [
        ("delta.rc", "1".into(), "`thin_delta -m --thin1 1 --thin2 3"),
        ("delta.xml", PLAIN.replace("</superblock>", ""), "ends in the middle"),
        ("delta.xml", String::new(), "ends in the middle"),
        (
            "delta.xml",
            PLAIN.replace("length=\"7\"", "length=\"6\""),
            "accounts for 13 blocks of thin device 3",
        ),
        (
            "delta.xml",
            PLAIN.replace("<left_only begin=\"9\" length=\"1\"/>", ""),
            "accounts for 9 blocks of thin device 1",
        ),
        ("counts.xml", COUNTS.replace("mapped_blocks=\"14\"", "mapped_blocks=\"15\""), "which maps 15"),
        ("counts.xml", COUNTS.replace("dev_id=\"1\"", "dev_id=\"9\""), "has no device 1"),
        ("counts.xml", "<superblock".into(), "the list of `thin_dump`"),
    ];
    for (file, text, expected) in refused {
        let host = Host::new();
        host.write(file, &text);
        let said = host.thin().await.unwrap_err().to_string();
        assert!(said.contains(expected), "{said} instead of {expected}");
        assert_eq!(host.messages(), ["reserve", "release"], "{expected}");
        host.is_clean().await;
    }
}

#[tokio::test]
async fn what_a_volume_maps_is_found_and_what_shines_through_is_told() {
    let host = Host::new();
    let mapped = blocks(&[0..3, 5..9, 20..27]);
    assert_eq!(host.mapped().await.unwrap(), Mapped::Only(mapped.clone()));
    host.write("table-VG-new", "0 12800 thin 253:4 3 253:9");
    let shining = Mapped::ShinesThrough { origin: "253:9".into(), mapped };
    assert_eq!(host.mapped().await.unwrap(), shining);
    host.write("table-VG-new", "0 12801 thin 253:4 3");
    for said in [host.mapped().await.unwrap_err(), host.thin().await.unwrap_err()] {
        assert!(matches!(said, ChangeError::Resized { .. }), "{said}");
    }
    host.write("table-VG-new", "0 12800 thin 253:4 3");
    for (dump, expected) in [
        (DUMP.replace("length=\"7\"", "length=\"6\""), "accounts for 13 blocks of thin device 3"),
        (DUMP.replace("dev_id=\"3\"", "dev_id=\"4\""), "has no device 3"),
    ] {
        host.write("dump.xml", &dump);
        let said = host.mapped().await.unwrap_err().to_string();
        assert!(said.contains(expected), "{said} instead of {expected}");
    }
    host.is_clean().await;
}

/// As on Ctrl-C or a SIGTERM, on which the caller drops what it was doing.
#[tokio::test]
async fn whoever_gives_up_while_a_list_is_made_leaves_nothing_reserved() {
    let host = Host::new();
    host.pipe("listing");
    tokio::select! {
        outcome = host.thin() => unreachable!("the tool never ends: {outcome:?}"),
        () = async {
            host.told("listing").await;
            assert!(host.is_held());
        } => {}
    }
    assert!(!host.is_held());
    fs::remove_file(host.path("listing")).unwrap();
    host.is_clean().await;
}

#[tokio::test]
async fn whoever_gives_up_while_the_kernel_reserves_leaves_nothing_reserved() {
    let host = Host::new();
    ["reserving", "go", "released"].iter().for_each(|pipe| host.pipe(pipe));
    tokio::select! {
        outcome = host.thin() => unreachable!("the kernel was not told to go on: {outcome:?}"),
        () = host.told("reserving") => {}
    }
    let go = host.path("go");
    spawn_blocking(move || fs::write(go, "\n")).await.unwrap().unwrap();
    host.told("released").await;
    ["reserving", "go", "released"].iter().for_each(|pipe| fs::remove_file(host.path(pipe)).unwrap());
    host.is_clean().await;
}

#[test]
fn a_runtime_that_ends_leaves_nothing_reserved() {
    let host = Arc::new(Host::new());
    host.pipe("listing");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (listing, is_listing) = oneshot::channel();
    let (one, other) = (host.clone(), host.clone());
    runtime.spawn(async move { one.thin().await.map(drop) });
    runtime.spawn(async move {
        other.told("listing").await;
        listing.send(()).unwrap();
    });
    is_listing.blocking_recv().unwrap();
    assert!(host.is_held());
    drop(runtime);
    assert!(!host.is_held());
    assert_eq!(host.noted(), "nothing");
}

#[tokio::test]
async fn what_a_killed_run_left_reserved_is_released_by_the_next() {
    for note in ["reserving", "held 21\n", "held 21                        \n"] {
        let host = Host::new();
        host.write("held", "21");
        host.note(note);
        host.thin().await.unwrap();
        assert_eq!(host.messages(), ["release", "reserve", "release"], "{note}");
        host.is_clean().await;
    }
}

#[tokio::test]
async fn what_another_program_reserved_is_left_alone() {
    for note in ["", "nothing", "held 20", "held by somebody"] {
        let host = Host::new();
        host.write("held", "21");
        host.note(note);
        let said = host.thin().await.unwrap_err().to_string();
        assert!(said.contains(&format!("dmsetup message {TPOOL} 0 release_metadata_snap")), "{said}");
        assert!(host.is_held() && host.messages().is_empty(), "{note}");
    }
}

/// Between the look at the pool and the reservation, somebody else was faster.
#[tokio::test]
async fn a_reservation_that_is_refused_releases_nobody_elses() {
    let host = Host::new();
    ["reserving", "go"].iter().for_each(|pipe| host.pipe(pipe));
    let other = async {
        host.told("reserving").await;
        host.write("held", "99");
        let go = host.path("go");
        spawn_blocking(move || fs::write(go, "\n")).await.unwrap().unwrap();
    };
    let (outcome, ()) = tokio::join!(host.thin(), other);
    let said = outcome.unwrap_err().to_string();
    assert!(said.contains("Device or resource busy"), "{said}");
    assert!(host.is_held());
    assert_eq!((host.messages(), host.noted()), (vec!["reserve".to_owned()], "nothing".to_owned()));
}

#[tokio::test]
async fn volumes_of_one_pool_take_turns() {
    let host = Host::new();
    let (a, b, c) = tokio::join!(host.thin(), host.mapped(), host.thin());
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    assert_eq!(host.messages(), ["reserve", "release"].repeat(3));
}

#[tokio::test]
async fn a_pool_that_another_process_does_not_let_go_is_named() {
    let host = Host::new();
    let tools = Tools::at(host.directory.path());
    let state = host.path("state");
    let held = Reservation::take(&tools, &state, pool().device(), Duration::ZERO).await.unwrap();
    let said = Reservation::take(&tools, &state, pool().device(), Duration::ZERO).await.unwrap_err();
    assert!(matches!(said, ChangeError::Busy { .. }), "{said}");
    held.release().await;
    host.is_clean().await;
}

#[tokio::test]
async fn a_pool_that_is_broken_is_named_and_not_asked() {
    let broken = [
        (
            "0 2097152 thin-pool 3 20/4096 1/16384 HELD ro no_discard_passdown queue_if_no_space - 1024",
            "is read-only",
        ),
        (
            "0 2097152 thin-pool 3 20/4096 1/16384 HELD rw discard_passdown queue_if_no_space needs_check 9",
            "checked",
        ),
        ("0 2097152 thin-pool Fail", "dmsetup says `0 2097152 thin-pool Fail`"),
    ];
    for (status, expected) in broken {
        let host = Host::new();
        host.write(&format!("status-{TPOOL}"), status);
        let said = host.thin().await.unwrap_err().to_string();
        assert!(said.contains(expected), "{said} instead of {expected}");
        assert!(host.messages().is_empty());
    }
}
