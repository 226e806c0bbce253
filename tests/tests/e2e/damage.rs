//! Stored data that is damaged or missing: named by `check` and by the restore, and nothing else suffers.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use schema::config::ConfigHead;
use schema::keys::Identity;
use schema::{Domain, names};
use tests::e2e::{Archive, Machine, random_file};

struct Damaged {
    machine: Machine,
    repo: String,
    archive: Archive,
}

/// A repository with one snapshot each of `vm/good` and `vm/bad`.
fn prepared() -> Damaged {
    let mut machine = Machine::new("m");
    let (repo, identity) = (machine.place("repo"), machine.place("identity"));
    machine.set("LVKEEP_REPO", &repo);
    machine.run(&["init", "--pack-size", "1MiB", "--identity-out", &identity]).ok();
    machine.set("LVKEEP_IDENTITY", &identity);
    for (name, seed) in [("good", 1), ("bad", 2)] {
        let image = machine.place(&format!("{name}.img"));
        random_file(&image, 6 << 20, seed);
        machine.run(&["backup", "--name", &format!("vm/{name}"), &image]).ok();
    }
    let archive = Archive::in_directory(&repo, &identity);
    Damaged { machine, repo, archive }
}

impl Damaged {
    /// The newest pack of a kind with its entries; packs of `vm/bad` are newer than those of `vm/good`.
    fn pack(&self, kind: Domain) -> (String, Vec<schema::pack::PackEntry>) {
        let mut packs = self.archive.packs().expect("a listing");
        packs.sort();
        for pack in packs.into_iter().rev() {
            let (header, footer) =
                self.archive.block_on(self.archive.repository().read_footer(pack)).expect("a footer");
            if header.kind == kind {
                return (format!("{}/{}", self.repo, names::pack(pack)), footer.entries);
            }
        }
        panic!("no pack of that kind");
    }

    fn flip(&self, path: &str, at: u64) {
        let file = OpenOptions::new().read(true).write(true).open(path).expect("a pack");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("a byte");
        file.write_all_at(&[byte[0] ^ 0x10], at).expect("a flipped bit");
    }

    /// Restoring `vm/bad` fails by name, and what it leaves is said not to be all; `vm/good` restores.
    fn only_bad_suffers(&self, words: &[&str]) {
        let target = self.machine.place("restored.img");
        let mut all = vec!["vm/bad"];
        all.extend(words);
        let failed = self.machine.run(&["restore", "vm/bad@latest", &target]).fails(6, &all);
        let is_left = failed.err.contains("stays, and is not all of vm/bad: do not use it");
        assert_eq!(std::path::Path::new(&target).exists(), is_left, "{failed}");
        if is_left {
            std::fs::remove_file(&target).expect("what is left");
        }
        self.machine.restores("vm/good@latest", self.machine.place("good.img"));
        assert_eq!(self.archive.open_sessions(), 0);
    }

    fn check_finds(&self, arguments: &[&str], words: &[&str]) {
        let found = self.machine.run(arguments).fails(6, &["1 of 2 snapshots are damaged"]);
        assert!(found.out.contains("DAMAGED vm/bad"), "{found}");
        assert!(!found.out.contains("vm/good"), "{found}");
        for word in words {
            assert!(found.out.contains(word), "{word}: {found}");
        }
        let mut json = vec!["--json"];
        json.extend(arguments);
        let found = self.machine.run(&json).fails(6, &[]).json();
        assert_eq!(found["damaged"][0]["volume"], "vm/bad", "{found}");
    }
}

#[test]
fn a_flipped_bit_in_content_is_named() {
    let damaged = prepared();
    let (path, entries) = damaged.pack(Domain::Data);
    let entry = entries[entries.len() / 2];
    damaged.flip(&path, u64::from(entry.offset) + u64::from(entry.len) / 2);
    damaged.only_bad_suffers(&["offset"]);
    // The structure is whole, until it is recorded what is damaged.
    damaged.machine.run(&["check"]).ok();
    damaged.check_finds(&["check", "--read-data"], &["offset"]);
    damaged.check_finds(&["check"], &["offset"]);
    // What the volume still has is stored again.
    let image = damaged.machine.place("bad.img");
    damaged.machine.run(&["backup", "--name", "vm/bad", &image]).ok();
    let found = damaged.machine.run(&["check"]).ok();
    assert!(found.out.contains("1 chunk that was recorded as damaged is healed"), "{found}");
    damaged.machine.restores("vm/bad@latest", &image);
    damaged.machine.run(&["repair"]).ok();
}

/// The guide's steps, in their order; the mark that a repair set in between keeps nobody from what was healed.
#[test]
fn monitoring_hears_of_damage_until_it_is_healed_and_unmarked() {
    let damaged = prepared();
    let machine = &damaged.machine;
    let (image, target) = (machine.place("bad.img"), machine.place("marked.img"));
    let monitor = ["status", "--max-age", "26h"];
    let id = machine.json(&["show", "vm/bad@latest"])["id"].as_str().expect("an id").to_owned();
    let whole = machine.run(&monitor).ok();
    assert!(!whole.to_string().contains("damaged"), "{whole}");
    let (path, entries) = damaged.pack(Domain::Data);
    let entry = entries[entries.len() / 2];
    damaged.flip(&path, u64::from(entry.offset) + u64::from(entry.len) / 2);
    let found = machine.run(&["check", "--read-data"]);
    let found = found.fails(6, &["1 of 2 snapshots are damaged", "Back up the volumes", "`lvkeep repair`"]);
    let chunk = entry.id.to_string();
    assert!(
        !found.out.contains(&chunk) && found.out.contains(&format!("vm/bad: 1 snapshot: {id}")),
        "{found}"
    );
    let details = machine.run(&["check", "-v"]).fails(6, &[]);
    assert!(details.out.contains(&chunk), "{details}");

    let words = "1 damaged chunk is recorded (`lvkeep check` names the snapshots it concerns)";
    let told = machine.run(&monitor).fails(6, &[words]);
    assert!(told.out.contains(&format!("DAMAGED: {words}")), "{told}");
    let recorded = &machine.json(&["status"])["damage"];
    for (name, value) in [("chunks", 1), ("frames", 1), ("chunks_healed", 0), ("snapshots_marked", 0)] {
        assert_eq!(recorded[name], value, "{name}: {recorded}");
    }
    machine.run(&["status", "--max-age", "1ms"]).fails(8, &[words, "too old"]);
    machine.run(&["repair"]).fails(6, &["1 is marked with what of it is lost"]);
    machine.run(&monitor).fails(6, &[words, "1 snapshot is marked"]);
    let refused = ["marked by a repair", "Nothing was changed", "`lvkeep repair`", "--keep-going"];
    machine.run(&["restore", &id, &target]).fails(6, &refused);

    machine.run(&["backup", "--name", "vm/bad", &image]).ok();
    let healed = machine.run(&["check"]).ok();
    let words =
        ["1 chunk that was recorded as damaged is healed", "1 snapshot is marked", "`lvkeep repair` takes"];
    assert!(words.iter().all(|words| healed.out.contains(words)), "{healed}");
    machine.restores(&id, &image);
    machine.run(&monitor).fails(6, &["1 snapshot is marked"]);
    machine.run(&["repair"]).ok();
    let calm = machine.run(&monitor).ok();
    assert!(calm.out.contains("1 damaged chunk is recorded, and whole elsewhere by now"), "{calm}");
    // What is whole elsewhere goes with its pack, and then its record does.
    machine.run(&["prune", "--repack-below", "100"]).ok();
    machine.run(&["check"]).ok();
    assert_eq!(machine.json(&["status"])["damage"]["records"], 0);
}

#[test]
fn a_check_of_content_goes_on_where_it_ended() {
    let damaged = prepared();
    let read = |arguments: &[&str]| {
        let found = damaged.machine.json(&[&["check"][..], arguments].concat());
        found["packs_read"].as_u64().expect("a number")
    };
    let (structure, all) = (read(&[]), read(&["--read-data"]));
    let data = all - structure;
    let shares: u64 = (1..=3).map(|n| read(&[&format!("--read-data={n}/3")]) - structure).sum();
    assert_eq!(shares, data);
    // Each goes on behind the last one, and begins anew after the last pack.
    let parts: Vec<u64> = (0..4).map(|_| read(&["--read-data=40%"]) - structure).collect();
    assert!(parts.iter().all(|part| (1..data).contains(part)), "{parts:?} of {data}");
    // Whoever reads everything does so, wherever those are.
    let whole = damaged.machine.json(&["check", "--read-data"]);
    assert_eq!((&whole["packs_read"], &whole["went_on_behind"]), (&all.into(), &serde_json::Value::Null));
    assert_eq!(read(&["--read-data=100"]), all);
    let part = read(&["--read-data=40%"]) - structure;
    assert!((1..data).contains(&part), "{part} of {data}");
    assert_eq!(read(&["--read-data", "--restart"]), all);
    damaged.machine.run(&["check", "--read-data=0"]).fails(2, &["0"]);
}

/// What a later version wrote ends a check in the middle, so that it is known where.
#[test]
fn a_check_that_was_cut_off_goes_on_where_it_was_whatever_it_reads() {
    let damaged = prepared();
    let data = |pack: &schema::PackId| {
        let (header, footer) =
            damaged.archive.block_on(damaged.archive.repository().read_footer(*pack)).expect("a footer");
        (header.kind == Domain::Data).then(|| (*pack, footer.entries[0].offset as usize))
    };
    let mut packs: Vec<_> = damaged.archive.packs().expect("a listing").iter().filter_map(data).collect();
    packs.sort_unstable();
    let middle = packs.len() / 2;
    assert!(middle > 2, "{packs:?}");
    let (pack, start) = packs[middle];
    let path = format!("{}/{}", damaged.repo, names::pack(pack));
    let whole = std::fs::read(&path).expect("a pack");
    let mut later = whole.clone();
    later[start + 2] += 1;
    let check = blake3::hash(&later[start..start + 45]);
    later[start + 45..start + 48].copy_from_slice(&check.as_bytes()[..3]);
    let read = |arguments: &[&str]| {
        let found = damaged.machine.json(&[&["check"][..], arguments].concat());
        found["packs_read"].as_u64().expect("a number")
    };
    let structure = read(&[]);
    let all = packs.len() as u64;
    for asked in ["--read-data=1/1", "--read-data", "--read-data=100%"] {
        std::fs::write(&path, &later).expect("a later version writes");
        damaged.machine.run(&["check", asked]).fails(3, &["later version"]);
        // It comes to the same place again, having read nothing else.
        damaged.machine.run(&["check", asked]).fails(3, &["later version"]);
        std::fs::write(&path, &whole).expect("the pack is back");
        if asked == "--read-data=1/1" {
            let other: u64 =
                (1..=2).map(|number| read(&[&format!("--read-data={number}/2")]) - structure).sum();
            assert_eq!(other, all, "another share begins at its own beginning");
        }
        if asked == "--read-data" {
            assert!((1..all).contains(&(read(&["--read-data=40%"]) - structure)));
        }
        let rest = damaged.machine.json(&["check", asked]);
        assert_eq!(rest["packs_read"].as_u64(), Some(all - middle as u64 + structure), "{asked}: {rest}");
        assert_eq!(rest["went_on_behind"], packs[middle - 1].0.to_string(), "{asked}: {rest}");
        assert_eq!(read(&[asked]) - structure, all, "{asked}: it was read to its end");
    }
    std::fs::write(&path, &later).expect("a later version writes");
    damaged.machine.run(&["check", "--read-data=1/1"]).fails(3, &["later version"]);
    std::fs::write(&path, &whole).expect("the pack is back");
    assert_eq!(read(&["--read-data=1/1", "--restart"]) - structure, all);
    // Who was cut off has told nobody what it found: where no record says that, either, it is read again.
    let (first, start) = packs[1];
    damaged.flip(&format!("{}/{}", damaged.repo, names::pack(first)), start as u64 + 99);
    for asked in ["--read-data", "--read-data=1/1"] {
        let check = ["check", asked, "--no-record"];
        std::fs::write(&path, &later).expect("a later version writes");
        damaged.machine.run(&check).fails(3, &["later version"]);
        std::fs::write(&path, &whole).expect("the pack is back");
        let found = damaged.machine.run(&check).fails(6, &["1 of 2 snapshots are damaged"]);
        assert!(found.out.contains("offset"), "{found}");
    }
}

#[test]
fn a_flipped_bit_in_the_map_is_named() {
    let damaged = prepared();
    let (path, entries) = damaged.pack(Domain::Structure);
    let entry = entries[0];
    damaged.flip(&path, u64::from(entry.offset) + u64::from(entry.len) - 3);
    damaged.only_bad_suffers(&["map"]);
    damaged.check_finds(&["check"], &["map"]);
    damaged.check_finds(&["check", "--read-data"], &["map"]);
}

#[test]
fn a_truncated_pack_is_named() {
    let damaged = prepared();
    let (path, entries) = damaged.pack(Domain::Data);
    let file = OpenOptions::new().write(true).open(&path).expect("a pack");
    file.set_len(u64::from(entries[entries.len() / 2].offset) + 7).expect("a shorter pack");
    damaged.only_bad_suffers(&["offset"]);
    damaged.check_finds(&["check", "--read-data"], &["offset"]);
    // Whoever reads the bucket anew sees it without reading content.
    damaged.machine.run(&["index", "rebuild"]).ok();
    damaged.check_finds(&["check"], &["is in no pack"]);
    damaged.only_bad_suffers(&["offset"]);
}

#[test]
fn a_deleted_pack_is_named() {
    let damaged = prepared();
    let (path, _) = damaged.pack(Domain::Data);
    std::fs::remove_file(path).expect("a pack goes");
    damaged.only_bad_suffers(&["offset"]);
    damaged.check_finds(&["check"], &["is in no pack"]);
}

#[test]
fn a_damaged_root_is_named() {
    let damaged = prepared();
    let shown = damaged.machine.json(&["show", "vm/bad@latest"]);
    let key = shown["key"].as_str().expect("a key");
    let path = format!("{}/{key}", damaged.repo);
    damaged.flip(&path, std::fs::metadata(&path).expect("a root").len() / 2);
    let target = damaged.machine.place("restored.img");
    damaged.machine.run(&["restore", "vm/bad@latest", &target]).fails(6, &[key]);
    damaged.machine.restores("vm/good@latest", damaged.machine.place("good.img"));
    let found = damaged.machine.run(&["check"]).fails(6, &["1 of 2"]);
    assert!(found.out.contains(key), "{found}");
}

#[test]
fn a_root_that_was_moved_is_refused() {
    let damaged = prepared();
    let key = |name: &str| {
        let shown = damaged.machine.json(&["show", &format!("{name}@latest")]);
        format!("{}/{}", damaged.repo, shown["key"].as_str().expect("a key"))
    };
    std::fs::copy(key("vm/good"), key("vm/bad")).expect("a root in another's place");
    let target = damaged.machine.place("restored.img");
    damaged.machine.run(&["restore", "vm/bad@latest", &target]).fails(6, &["snapshots/"]);
    damaged.machine.restores("vm/good@latest", damaged.machine.place("good.img"));
}

#[test]
fn a_damaged_configuration_and_a_newer_one_are_named() {
    let damaged = prepared();
    let path = format!("{}/config", damaged.repo);
    let good = std::fs::read(&path).expect("the configuration");
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        std::fs::write(&path, bytes).expect("the configuration is written");
        damaged.machine.run(&["snapshots"])
    };
    let last = good.len() - 1;
    with(&|bytes| bytes[last] ^= 1).fails(6, &["config"]);
    with(&|bytes| bytes.truncate(40)).fails(6, &["config", "bring `config` back"]);
    // What is damaged is no wrong identity.
    let mac = good.windows(5).position(|window| window == b"\n--- ").expect("what the key is sealed in") + 5;
    with(&|bytes| bytes[mac] ^= 1).fails(6, &["config"]);
    let identity = damaged.machine.place("identity");
    let checked = damaged.machine.run(&["key", "check", &identity]);
    checked.fails(6, &["config", "writer key", "damaged", "bring `config` back"]);
    with(&|bytes| bytes[4] = 9).fails(3, &["config", "version 9"]);
    let feature = good.windows(6).position(|window| window == b"base-1").expect("a feature");
    with(&|bytes| bytes[feature + 5] = b'9').fails(3, &["config", "base-9"]);
    for command in [&["backup", "/etc/hostname"][..], &["restore", "vm/good@latest", "out"], &["check"]] {
        damaged.machine.run(command).fails(3, &["base-9"]);
    }
    std::fs::write(&path, &good).expect("the configuration is written");
    damaged.machine.restores("vm/bad@latest", damaged.machine.place("bad.img"));
}

#[test]
fn a_configuration_that_is_lost_is_brought_back_and_never_made_anew() {
    let damaged = prepared();
    let (path, machine) = (format!("{}/config", damaged.repo), &damaged.machine);
    let good = std::fs::read(&path).expect("the configuration");
    std::fs::remove_file(&path).expect("it goes");
    let identity = machine.place("identity");
    for command in
        [&["snapshots"][..], &["backup", "/etc/hostname"], &["key", "check", &identity], &["check"]]
    {
        let words = ["`config` is missing", "packs/", "snapshots/", "bring `config` back", "do not `init`"];
        machine.run(command).fails(6, &words);
    }
    machine.run(&["init"]).fails(3, &["packs/, snapshots/", "nothing was made", "bring `config` back"]);
    assert!(!std::path::Path::new(&path).exists(), "nothing was made");
    std::fs::write(&path, &good).expect("it is brought back");
    machine.restores("vm/bad@latest", machine.place("bad.img"));
    // What is not mounted is an empty folder, or none.
    let empty = machine.place("empty");
    std::fs::create_dir(&empty).expect("a folder");
    for place in [&empty, &machine.place("none")] {
        machine.run(&["--repo", place, "snapshots"]).fails(3, &[place, "holds no repository", "mounted"]);
    }
}

#[test]
fn a_repository_that_requires_more_to_be_written_can_still_be_read() {
    let damaged = prepared();
    let path = format!("{}/config", damaged.repo);
    let good = std::fs::read(&path).expect("the configuration");
    let identity = std::fs::read_to_string(damaged.machine.place("identity")).expect("the identity");
    let identity = Identity::from_file(&identity).expect("an identity");
    let head = ConfigHead::parse(&good).expect("the configuration's head");
    let key = head.writer_key(Some(&identity)).expect("the writer key");
    let config = head.open(&key).expect("the configuration");
    let later: Vec<String> = head.write_features.iter().cloned().chain(["later-7".to_owned()]).collect();
    let changed = config.encode_requiring(&head.read_features, &later, &key, [7; 12]).expect("its bytes");
    std::fs::write(&path, &changed).expect("the configuration is written");
    for command in [
        &["backup", "/etc/hostname"][..],
        &["agent", "--role", "conductor", "--nats", "nats://127.0.0.1:1"],
        &["key", "add", "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"],
    ] {
        damaged.machine.run(command).fails(3, &["later-7", "write"]);
    }
    assert_eq!(std::fs::read(&path).expect("the configuration"), changed);
    damaged.machine.restores("vm/bad@latest", damaged.machine.place("bad.img"));
}
