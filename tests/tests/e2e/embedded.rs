//! Backup and restore in one process, into a directory.

use tests::e2e::{Archive, Machine, debugfs, ext4, fsck, holds_tree, make_tree, random_file, same_bytes};

#[test]
fn a_file_system_comes_back_after_changes() {
    let machine = Machine::new("m");
    let [tree, image, first] = ["tree", "disk.img", "first.img"].map(|name| machine.place(name));
    make_tree(&tree, 1);
    ext4(&image, 64, &tree);
    let repo = machine.place("repo");
    machine.run(&["init", "--repo", &repo]).ok();
    let backup = || machine.json(&["backup", "--repo", &repo, "--name", "vm/root", &image]);

    let one = backup();
    assert_eq!(one["generation"], 1);
    assert!(one["bytes_new"].as_u64() > Some(1 << 20), "{one}");
    std::fs::copy(&image, &first).expect("a copy");

    let unchanged = backup();
    assert_eq!((&unchanged["generation"], &unchanged["bytes_stored"]), (&2.into(), &0.into()), "{unchanged}");
    assert_eq!(unchanged["chunks_new"], 0);

    // The file system changes: one file goes, one comes.
    let added = machine.place("added");
    random_file(&added, 3 << 20, 2);
    debugfs(&image, &["rm /etc/file-1".to_owned(), format!("write {added} added")]);
    std::fs::remove_file(format!("{tree}/etc/file-1")).expect("a file of the tree");
    std::fs::copy(&added, format!("{tree}/added")).expect("a copy");
    let changed = backup();
    assert_eq!(changed["generation"], 3);
    let stored = changed["bytes_stored"].as_u64().expect("a count");
    assert!((3 << 20..6 << 20).contains(&stored), "about what was added is stored: {changed}");

    for (snapshot, original) in [(&one, &first), (&unchanged, &first), (&changed, &image)] {
        let id = snapshot["snapshot"].as_str().expect("an id");
        let target = machine.place("restored.img");
        machine.run(&["restore", "--repo", &repo, id, &target, "--force"]).ok();
        same_bytes(original, &target);
        fsck(&target);
    }
    let target = machine.place("latest.img");
    machine.run(&["restore", "--repo", &repo, "vm/root@latest", &target]).ok();
    same_bytes(&image, &target);
    holds_tree(&target, &tree);
}

#[test]
fn nothing_needs_to_be_configured() {
    let machine = Machine::bare("m");
    if std::path::Path::new("/etc/lvkeep/lvkeep.toml").exists() {
        println!(
            "THIS MACHINE HAS /etc/lvkeep/lvkeep.toml: an empty configuration file takes its place here"
        );
        machine.configure("");
    }
    let image = machine.place("x.img");
    random_file(&image, 5 << 20, 3);
    let first = machine.run(&["backup", "x.img"]).ok();
    for word in ["repository", "writer key", "identity", "Keep the identity safe"] {
        assert!(first.err.contains(word), "it says what it made: {first}");
    }
    let path_of = |label: &str| {
        let line = first.err.lines().find_map(|line| line.trim_start().strip_prefix(label));
        let path = line.and_then(|rest| rest.split_whitespace().next()).expect("a path").to_owned();
        assert!(std::path::Path::new(&path).starts_with(machine.home()), "{path}");
        path
    };
    let identity = path_of("identity");
    let mode = |path: &str| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).expect("a key file").permissions().mode() & 0o777
    };
    assert_eq!((mode(&identity), mode(&path_of("writer key"))), (0o600, 0o600));
    let repo = machine.home().join(".local/share/lvkeep/repository");
    assert!(first.err.contains(repo.to_str().expect("a path in UTF-8")), "it says where: {first}");
    assert_eq!(Archive::in_directory(&repo, &identity).open_sessions(), 0);

    let again = machine.run(&["backup", "x.img"]).ok();
    assert!(!again.err.contains("repository"), "a second backup makes nothing: {again}");
    let listed = machine.json(&["snapshots"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(2));
    let name = listed[0]["volume"].as_str().expect("a name");
    assert!(name.ends_with(image.as_str()), "{name}");
    machine.restores(&format!("{name}@latest"), &image);
}

#[test]
fn two_runs_at_once_share_a_repository() {
    let machine = Machine::new("m");
    let repo = machine.place("repo");
    machine.run(&["init", "--repo", &repo, "--pack-size", "1MiB"]).ok();
    let images = [machine.place("one.img"), machine.place("two.img")];
    for (image, seed) in images.iter().zip(10..) {
        random_file(image, 24 << 20, seed);
    }
    // Slow enough to run beside each other.
    let start = |image: &String| machine.start(&["backup", "--repo", &repo, "--limit-read", "16MiB", image]);
    let running: Vec<_> = images.iter().map(start).collect();
    for process in running {
        process.end().ok();
    }
    let snapshots = machine.json(&["--repo", &repo, "snapshots"]);
    assert_eq!(snapshots.as_array().map(Vec::len), Some(2));
    for (snapshot, image) in snapshots.as_array().into_iter().flatten().zip(&images) {
        let target = machine.place("restored.img");
        let id = snapshot["id"].as_str().expect("an id");
        machine.run(&["restore", "--repo", &repo, id, &target, "--force"]).ok();
        same_bytes(image, &target);
    }
    machine.run(&["check", "--repo", &repo, "--read-data"]).ok();
}

#[test]
fn volumes_of_odd_sizes_come_back() {
    let mut machine = Machine::new("m");
    let repo = machine.place("repo");
    machine.set("LVKEEP_REPO", &repo);
    machine.run(&["init", "--no-encryption"]).ok();
    for (number, size) in [0, 1, 4095, 4096, 4097, (1 << 20) + 1, (64 << 20) + 513].into_iter().enumerate() {
        let image = machine.place(&format!("{size}.img"));
        random_file(&image, size, number as u64);
        let done = machine.json(&["backup", "--name", &format!("odd/{size}"), &image]);
        assert_eq!(done["size"], size);
        machine.restores(&format!("odd/{size}@latest"), &image);
    }
    let hole = machine.place("hole.img");
    std::fs::File::create(&hole).and_then(|file| file.set_len(200 << 20)).expect("a hole");
    let done = machine.json(&["backup", "--name", "odd/hole", &hole]);
    assert_eq!((&done["bytes_stored"], &done["bytes_read"]), (&0.into(), &0.into()), "{done}");
    machine.restores("odd/hole@latest", &hole);
}

#[test]
fn several_sources_in_one_run() {
    let mut machine = Machine::new("m");
    machine.set("LVKEEP_REPO", &machine.place("repo"));
    machine.run(&["init"]).ok();
    let images: Vec<String> = (0..3).map(|n| machine.place(&format!("{n}.img"))).collect();
    images.iter().zip(0..).for_each(|(image, seed)| random_file(image, 3 << 20, seed));
    let missing = machine.place("missing.img");
    // One that cannot be read does not keep the others from being backed up.
    machine
        .run(&["backup", &images[0], &images[1], &missing, &images[2]])
        .fails(4, &["1 of 4 backups failed", "missing.img"]);
    let snapshots = machine.json(&["snapshots"]);
    assert_eq!(snapshots.as_array().map(Vec::len), Some(3));
    for (snapshot, image) in snapshots.as_array().into_iter().flatten().zip(&images) {
        machine.restores(snapshot["id"].as_str().expect("an id"), image);
    }
}
