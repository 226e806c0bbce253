//! Local times: what is listed finds what was listed, in the zone that `TZ` says, and nothing is taken for UTC in silence.

use std::path::Path;

use tests::e2e::{Machine, random_file};

/// A machine with one snapshot of `vm/disk`.
fn prepared() -> Machine {
    let mut machine = Machine::new("m");
    machine.set("LVKEEP_REPO", &machine.place("repo"));
    machine.run(&["init"]).ok();
    let image = machine.place("disk.img");
    random_file(&image, 1 << 20, 1);
    machine.run(&["backup", "--name", "vm/disk", &image]).ok();
    machine
}

/// The time of the only snapshot, as the list prints it.
fn listed(machine: &Machine) -> String {
    let list = machine.run(&["snapshots"]).ok();
    let row = list.out.lines().nth(1).expect("a row");
    row.split("  ").map(str::trim).find(|cell| cell.contains(':')).expect("a time").to_owned()
}

/// A zone without summer, so many hours ahead of UTC, as the system's zone database has them.
fn zone(database: &str, name: &str, hours: u8) {
    let counts = |part: &mut Vec<u8>| {
        part.extend(b"TZif2");
        part.extend([0; 15]);
        // Of what a zone is made of there is one kind of local time, with a name of four bytes.
        [0_u32, 0, 0, 0, 1, 4].iter().for_each(|count| part.extend(count.to_be_bytes()));
    };
    let seconds = i32::from(hours) * 3600;
    let mut file = Vec::new();
    for _ in 0..2 {
        counts(&mut file);
        file.extend(seconds.to_be_bytes());
        file.extend([0, 0]);
        file.extend(b"LVK\0");
    }
    file.extend(format!("\nLVK-{hours}\n").bytes());
    let path = Path::new(database).join(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("the zone's folder");
    std::fs::write(path, file).expect("the zone");
}

#[test]
fn what_is_copied_from_the_list_means_what_was_listed() {
    let machine = prepared();
    let id = machine.json(&["snapshots"])[0]["id"].clone();
    let time = listed(&machine);
    let minute = &time[..time.len() - 3];
    let day = &time[..10];
    for written in [time.as_str(), &time.replace(' ', "T"), minute, day] {
        assert_eq!(machine.json(&["show", &format!("vm/disk@{written}")])["id"], id, "{written}");
        let found = machine.json(&["snapshots", "--since", written, "--until", written]);
        assert_eq!(found[0]["id"], id, "{written}");
        assert_eq!(machine.json(&["plan", "--at", written])[0]["snapshot"], id, "{written}");
    }
}

#[test]
fn times_are_of_the_zone_that_is_asked_for() {
    let mut machine = prepared();
    let (database, id) = (machine.place("zoneinfo"), machine.json(&["snapshots"])[0]["id"].clone());
    zone(&database, "Test/Ahead", 14);
    machine.set("TZ", "UTC");
    let utc = listed(&machine);
    machine.set("TZDIR", &database);
    machine.set("TZ", "Test/Ahead");
    let ahead = listed(&machine);
    assert!(ahead > utc, "{ahead} is fourteen hours after {utc}");
    assert_eq!(machine.json(&["show", &format!("vm/disk@{ahead}")])["id"], id);
    machine.run(&["show", &format!("vm/disk@{utc}")]).fails(3, &["no snapshot as old"]);
    machine.run(&["show", &format!("vm/disk@{utc}Z")]).ok();

    // Nothing says in which zone times are to be read or printed.
    machine.set("TZ", "Nonsense/Zone");
    for command in [
        &["snapshots"][..],
        &["show", "vm/disk@latest"],
        &["plan"],
        &["forget", "--keep-last", "1", "--dry-run"],
        &["verify", "vm/disk@2026-11-20"],
        &["--json", "snapshots", "--since", "2026-11-20"],
    ] {
        machine.run(command).fails(3, &["TZ=Nonsense/Zone", "TZ=UTC"]);
    }
    // Whoever asks for no local time needs none.
    machine.run(&["verify", "vm/disk@latest"]).ok();
    machine.run(&["verify", &format!("vm/disk@{utc}Z")]).ok();
    machine.json(&["snapshots"]);
    machine.run(&["backup", "--name", "vm/disk", &machine.place("disk.img")]).ok();
}
