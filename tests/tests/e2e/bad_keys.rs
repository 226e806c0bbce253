//! Keys that are missing, wrong, or of another repository.

use tests::e2e::{Machine, random_file};

/// A repository with one snapshot, its keys in named files and none in the home folder.
fn repository(name: &str) -> Machine {
    let mut machine = Machine::new(name);
    machine.set("LVKEEP_REPO", &machine.place("repo"));
    let (key, identity, image) = (machine.place("key"), machine.place("identity"), machine.place("disk.img"));
    machine.run(&["init", "--key-out", &key, "--identity-out", &identity]).ok();
    random_file(&image, 3 << 20, 1);
    machine.run(&["--key", &key, "backup", "--name", "vm/disk", &image]).ok();
    machine
}

/// One object that is no key keeps nobody from opening the others, nor from letting somebody else open them.
#[test]
fn a_key_that_does_not_open_stops_no_other() {
    let (one, other) = (repository("one"), repository("other"));
    let (key, identity, new) = (one.place("key"), one.place("identity"), one.place("new-key"));
    let empty = "keys/00000000000000000000000000000000";
    std::fs::write(format!("{}/{empty}", one.place("repo")), b"").expect("an empty object");
    let made = other.json(&["--key", &other.place("key"), "--repo", &other.place("repo"), "key", "show"]);
    let recipient = made["recipients"][0].as_str().expect("a recipient");
    one.run(&["--key", &key, "key", "check", &identity]).fails(6, &[empty]);
    let add = ["--identity", &identity, "key", "add", recipient, "--key-out", &new];
    let added = one.run(&add).fails(6, &[empty, "new recipient"]);
    assert!(added.out.contains("1 data keys resealed"), "{added}");
    assert!(std::fs::metadata(&new).expect("the new writer key").len() > 0);
    std::fs::remove_file(format!("{}/{empty}", one.place("repo"))).expect("it goes");
    one.run(&["--key", &new, "key", "check", &other.place("identity")]).ok();
}

/// A file of a wrong name may be the only identity.
#[test]
fn a_new_writer_key_replaces_an_old_one_and_nothing_else() {
    let (one, other) = (repository("one"), repository("other"));
    let (key, identity) = (one.place("key"), one.place("identity"));
    let made = other.json(&["--key", &other.place("key"), "key", "show"]);
    let recipient = made["recipients"][0].as_str().expect("a recipient");
    let add = |out: &str| one.run(&["--identity", &identity, "key", "add", recipient, "--key-out", out]);
    let (garbage, dangling) = (one.place("garbage"), one.place("dangling"));
    std::fs::write(&garbage, "").expect("a file");
    std::os::unix::fs::symlink("nowhere", &dangling).expect("a link");
    for out in [&identity, &other.place("key"), &garbage, &dangling, &one.place("repo")] {
        let before = std::fs::read(out).ok();
        add(out).fails(3, &[out, "is not overwritten"]);
        assert_eq!(std::fs::read(out).ok(), before, "{out} is as it was");
    }
    let recipients = |key: &str| one.json(&["--key", key, "key", "show"])["recipients"].clone();
    assert_eq!(recipients(&key).as_array().map(Vec::len), Some(1), "nothing was changed");
    let new = one.place("new");
    add(&new).ok();
    add(&key).ok();
    for path in [&new, &key] {
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(path).expect("a writer key"));
        assert_eq!((mode & 0o777, recipients(path).as_array().map(Vec::len)), (0o600, Some(2)), "{path}");
    }
}

#[test]
fn keys_that_do_not_fit_are_refused_by_name() {
    let (one, other) = (repository("one"), repository("other"));
    let (key, identity, image) = (one.place("key"), one.place("identity"), one.place("disk.img"));
    let (wrong_key, wrong_identity) = (other.place("key"), other.place("identity"));
    let target = one.place("restored.img");
    let refused = |arguments: &[&str], words: &[&str]| one.run(arguments).fails(3, words);

    refused(&["backup", &image], &["encrypted", "writer key"]);
    refused(&["snapshots"], &["writer key"]);
    refused(&["--key", &wrong_key, "backup", &image], &["writer key is of repository"]);
    refused(&["--key", &wrong_key, "snapshots"], &["writer key is of repository"]);
    refused(&["--identity", &wrong_identity, "restore", "vm/disk@latest", &target], &["config"]);
    refused(&["--key", &key, "restore", "vm/disk@latest", &target], &["vm/disk", "identity"]);
    refused(
        &["--key", &key, "--identity", &wrong_identity, "restore", "vm/disk@latest", &target],
        &["identity"],
    );
    refused(&["--key", &key, "check", "--read-data"], &["identity"]);
    refused(&["key", "check", &wrong_identity], &["config"]);
    refused(&["--key", &key, "key", "add", "age1abc"], &["identity"]);
    one.run(&["--key", "/nowhere/key", "snapshots"]).fails(1, &["/nowhere/key"]);
    one.run(&["--identity", "/nowhere/identity", "restore", "vm/disk@latest", &target])
        .fails(1, &["/nowhere/identity"]);
    let garbage = one.place("garbage");
    std::fs::write(&garbage, "no key at all\n").expect("a file");
    one.run(&["--key", &garbage, "snapshots"]).fails(3, &[&garbage]);
    one.run(&["--identity", &garbage, "snapshots"]).fails(3, &[&garbage]);
    assert!(!std::path::Path::new(&target).exists(), "nothing was restored");

    // With the writer key alone everything but content can be seen.
    one.run(&["--key", &key, "check"]).ok();
    one.run(&["--key", &key, "show", "vm/disk@latest"]).ok();
    one.run(&["--identity", &identity, "restore", "vm/disk@latest", &target]).ok();
    tests::e2e::same_bytes(&image, &target);
}

#[test]
fn a_repository_is_not_made_twice() {
    let machine = repository("m");
    machine.run(&["init"]).fails(3, &["holds a repository already"]);
    // Where a key cannot be kept, nothing is made that only it would open.
    let (unkept, kept) = (machine.place("unkept"), machine.place("unkept-identity"));
    let init = ["init", "--repo", &unkept, "--identity-out", &kept];
    machine.run(&[&init[..], &["--key-out", "/proc/none/key"]].concat()).fails(1, &["/proc/none"]);
    assert!(!std::path::Path::new(&kept).exists(), "the identity of nothing");
    machine.run(&[&init[..], &["--key-out", &machine.place("unkept-key")]].concat()).ok();
    let repo = machine.place("other");
    let identity = machine.place("identity");
    machine.run(&["init", "--repo", &repo, "--identity-out", &identity]).fails(3, &["exists already"]);
    assert!(!std::path::Path::new(&repo).join("config").exists(), "nothing was made");
    machine.run(&["init", "--repo", &repo, "--recipient", "age1nonsense"]).fails(3, &["age1nonsense"]);
    machine.run(&["init", "--repo", &repo, "--pack-size", "1KiB"]).fails(2, &["pack-size"]);
    machine.run(&["init", "--repo", "ftp://somewhere/x"]).fails(1, &["ftp://somewhere/x", "s3://"]);
    machine.run(&["snapshots", "--repo", &machine.place("absent")]).fails(3, &["absent", "lvkeep init"]);
}
