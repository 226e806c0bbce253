//! The guest itself: what everything else relies on is there and works as documented.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::lab::{
    Content, FileSystem, Mounted, Traces, Volume, VolumeGroup, differing, held_metadata_root, run, seed,
    step, words,
};

const CHUNK_KIB: u64 = 16;
const POOL_BLOCK: u64 = 64 << 10;

/// Snapshots of both kinds hold still; the exception store, read past the page cache, and `thin_delta` name all that
/// changed.
pub fn lvm_is_real() {
    let group = VolumeGroup::new("vg0");
    thick(&group);
    thin(&group);
    for (kind, name) in [(FileSystem::Ext4, "ext4"), (FileSystem::Xfs, "xfs")] {
        file_system(&group, kind, name);
    }
}

fn thick(group: &VolumeGroup) {
    step("a thick volume and a snapshot of it");
    let origin = group.thick("origin", 128);
    let mut content = Content::new(&origin.device(), seed());
    content.fill(60);
    let snapshot = origin.snapshot("snap", 64, CHUNK_KIB);
    let before = run("sha256sum", &[&snapshot.device()]);
    content.overwrite(40, 200_000);
    assert_eq!(before, run("sha256sum", &[&snapshot.device()]), "a snapshot holds still");

    step("the exception store names every chunk that differs");
    let listed = exceptions(&snapshot);
    let chunk = CHUNK_KIB << 10;
    let differing = differing(origin.device(), snapshot.device(), chunk);
    let chunks: BTreeSet<u64> =
        differing.iter().flat_map(|range| range.start / chunk..range.end.div_ceil(chunk)).collect();
    assert!(chunks.len() > 40, "{} chunks differ", chunks.len());
    assert!(chunks.is_subset(&listed), "not listed: {:?}", chunks.difference(&listed));
    snapshot.remove();
    Traces::of(group, &[]).are_only(0);
}

/// The chunks of the origin in a snapshot's exception store.
fn exceptions(snapshot: &Volume) -> BTreeSet<u64> {
    // The kernel writes below the page cache: read around it.
    let device = format!("/dev/mapper/{}", snapshot.mapped_name("-cow"));
    let direct = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).expect("a flag");
    let file =
        OpenOptions::new().read(true).custom_flags(direct).open(&device).expect("the -cow device opens");
    let chunk = CHUNK_KIB << 10;
    let read = |at: u64| {
        let mut space = vec![0; 2 * chunk as usize];
        let start = space.as_ptr().align_offset(chunk as usize);
        let page = &mut space[start..start + chunk as usize];
        file.read_exact_at(page, at * chunk).expect("the -cow device is read");
        page.to_vec()
    };
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let header = read(0);
    assert_eq!(&header[..4], b"SnAp");
    assert_eq!(header[12..16], (CHUNK_KIB as u32 * 2).to_le_bytes(), "the chunk's size in sectors");
    let per_area = chunk / 16;
    let mut listed = BTreeSet::new();
    for area in 0.. {
        for entry in read(1 + area * (per_area + 1)).chunks(16) {
            if number(&entry[8..]) == 0 {
                return listed;
            }
            listed.insert(number(&entry[..8]));
        }
    }
    listed
}

fn thin(group: &VolumeGroup) {
    step("a thin volume and a snapshot of it");
    let pool = group.pool("pool", 192, POOL_BLOCK >> 10);
    let origin = pool.thin("thin", 256);
    let mut content = Content::new(&origin.device(), seed() + 1);
    content.overwrite(60, 400_000);
    let snapshot = origin.thin_snapshot("thinsnap");
    let before = run("sha256sum", &[&snapshot.device()]);
    content.overwrite(20, 300_000);
    content.discard(5, 1 << 20, POOL_BLOCK);
    assert_eq!(before, run("sha256sum", &[&snapshot.device()]), "a snapshot holds still");

    step("thin_delta names every block that differs");
    let mapped = pool.mapped();
    run("dmsetup", &["message", &mapped, "0", "reserve_metadata_snap"]);
    assert!(held_metadata_root(&pool).is_some());
    let [one, two] = [&snapshot, &origin].map(|volume| volume.field("thin_id"));
    let arguments = ["-m", "--snap1", &one, "--snap2", &two, &pool.metadata_device()];
    let said = run("thin_delta", &arguments);
    run("dmsetup", &["message", &mapped, "0", "release_metadata_snap"]);
    let mut listed = BTreeSet::new();
    for line in said.lines().map(str::trim) {
        let is_change = ["<different", "<left_only", "<right_only"].iter().any(|tag| line.starts_with(tag));
        if is_change {
            let [begin, length] = ["begin", "length"].map(|name| attribute(line, name));
            listed.extend(begin..begin + length);
        }
    }
    let differing = differing(origin.device(), snapshot.device(), POOL_BLOCK);
    let blocks: BTreeSet<u64> =
        differing.iter().flat_map(|range| range.start / POOL_BLOCK..range.end.div_ceil(POOL_BLOCK)).collect();
    assert!(blocks.len() > 20, "{} blocks differ", blocks.len());
    let shown = words("thin_delta", &arguments);
    assert!(blocks.is_subset(&listed), "{shown} lacks {:?}: {said}", blocks.difference(&listed));
    Traces::of(group, &[&pool]).are_only(0);
    snapshot.remove();
    origin.remove();
}

fn attribute(line: &str, name: &str) -> u64 {
    let value = line.split_once(&format!("{name}=\"")).and_then(|(_, rest)| rest.split_once('"'));
    value.and_then(|(number, _)| number.parse().ok()).unwrap_or_else(|| panic!("no {name} in {line}"))
}

fn file_system(group: &VolumeGroup, kind: FileSystem, name: &str) {
    step(&format!("a snapshot of a mounted {name} is a whole file system"));
    let volume = group.thick(name, 320);
    kind.make(&volume.device());
    let mut mounted = Mounted::new(&volume.device(), seed());
    mounted.create(20, 100_000);
    mounted.activity(50, false);
    let snapshot = volume.snapshot(&format!("{name}-snap"), 64, CHUNK_KIB);
    mounted.activity(50, false);
    kind.check(&snapshot.device());
    drop(mounted);
    snapshot.remove();
}
