//! Commands that read, and collections at the same time: these wait, and what was moved all the same is found.

use std::path::Path;

use rustix::process::Signal;
use tests::e2e::{Machine, Process, Site, eventually, random_file, same_bytes};

use crate::prune::littered;

const MIB: u64 = 1 << 20;

/// Sessions whose objects are there; one that is being written is not yet.
pub fn sessions(machine: &Machine) -> usize {
    let Ok(entries) = std::fs::read_dir(machine.place("repo/sessions")) else { return 0 };
    entries.flatten().filter(|entry| !entry.file_name().to_string_lossy().contains('#')).count()
}

/// Stops a command at a moment that passes, after as many attempts as that takes.
pub fn caught(
    start: impl Fn() -> Process,
    has_come: impl Fn() -> bool,
    is_over: impl Fn() -> bool,
) -> Process {
    for _ in 0..100 {
        let mut process = start();
        eventually("a moment", || (has_come() || process.has_ended()).then_some(()));
        if !process.has_ended() {
            process.signal(Signal::STOP);
            if !is_over() {
                return process;
            }
            process.signal(Signal::CONT);
        }
        process.end().ok();
    }
    panic!("the moment was always over");
}

/// Starts a restore of both volumes, one after the other, and stops it in the middle of the first.
fn stopped_in_a_plan(machine: &Machine) -> Process {
    let out = machine.place("out");
    let volume = |name: &str, priority: i32| {
        let more = format!("priority = {priority}\nkeep_going = true");
        format!("[[volume]]\nsnapshot = \"vm/{name}@latest\"\ntarget = \"{out}/{name}\"\n{more}\n")
    };
    let plan = machine.place("plan.toml");
    let text = ["volumes_at_once = 1\nfetches_at_once = 1\n", &volume("b", 1), &volume("a", 0)].concat();
    std::fs::write(&plan, text).expect("a plan");
    let start = || {
        let _ = std::fs::remove_dir_all(&out);
        std::fs::create_dir(&out).expect("a folder");
        machine.start(&["--json", "restore", "--plan", &plan])
    };
    let is_begun = |name: &str| Path::new(&format!("{out}/{name}")).exists();
    caught(start, || is_begun("b"), || is_begun("a"))
}

/// Lets it go on, to a good end.
fn goes_on(machine: &Machine, mut restore: Process) {
    restore.signal(Signal::CONT);
    let ran = restore.end().ok();
    let done = ran.json();
    for volume in done.as_array().expect("a list") {
        assert_eq!((&volume["outcome"], &volume["bytes_lost"]), (&"restored".into(), &0.into()), "{done}");
    }
    same_bytes(machine.place("second.img"), machine.place("out/a"));
    same_bytes(machine.place("other.img"), machine.place("out/b"));
    assert_eq!(sessions(machine), 0);
}

#[test]
fn a_collection_waits_for_all_of_a_plan() {
    let machine = littered();
    let restore = stopped_in_a_plan(&machine);
    let waiting = machine.json(&["prune", "--max-repack", "1GiB"]);
    assert_eq!((&waiting["finished"], &waiting["packs_deleted"]), (&false.into(), &0.into()), "{waiting}");
    let all = waiting["waits_for"].as_array().expect("a list");
    assert_eq!((all.len(), &all[0]["volume"]), (1, &"vm/a and 1 more".into()), "{waiting}");
    goes_on(&machine, restore);
    assert_eq!(machine.json(&["prune"])["finished"], true);
    machine.run(&["check", "--read-data"]).ok();
}

/// A live snapshot is restored although nobody waits for that: chunks that were moved are found where they are.
#[test]
fn what_a_collection_moves_is_found_although_the_restore_was_declared_dead() {
    for has_cache in [true, false] {
        let machine = littered();
        if !has_cache {
            std::fs::remove_dir_all(machine.place("cache")).expect("the index");
        }
        let restore = stopped_in_a_plan(&machine);
        let status = machine.json(&["status"]);
        let session = status["sessions"][0]["session"].as_str().expect("a session");
        machine.run(&["cancel", session]).ok();
        let pruned = machine.json(&["prune", "--max-repack", "1GiB"]);
        assert_eq!(pruned["finished"], true, "{pruned}");
        assert!(pruned["packs_rewritten"].as_u64() > Some(0), "{pruned}");
        goes_on(&machine, restore);
    }
}

#[test]
fn a_check_beside_a_collection_finds_nothing_wrong() {
    let machine = littered();
    let is_protected = || sessions(&machine) > 0;
    let mut check = caught(|| machine.start(&["check", "--read-data"]), is_protected, || !is_protected());
    let waiting = machine.json(&["prune", "--max-repack", "1GiB"]);
    assert_eq!(waiting["waits_for"][0]["volume"], "all volumes", "{waiting}");
    check.signal(Signal::CONT);
    check.end().ok();
    assert_eq!((sessions(&machine), &machine.json(&["prune"])["finished"]), (0, &true.into()));
}

#[test]
fn whatever_a_command_comes_to_nothing_waits_for_it_afterwards() {
    let machine = littered();
    let [same, other, taken, identity] =
        ["second.img", "other.img", "taken", "identity"].map(|name| machine.place(name));
    std::fs::write(&taken, "precious").expect("a file");
    let ends: [(&[&str], i32); 10] = [
        (&["cat", "vm/a@latest", "--range", "1MiB+4KiB"], 0),
        (&["cat", "vm/a@latest", "--range", "1TiB+4KiB"], 3),
        (&["diff", "vm/a@latest", "vm/b@latest"], 0),
        (&["find-change", "vm/a", "1MiB"], 0),
        (&["verify", "vm/a@latest", &same], 0),
        (&["verify", "vm/b@latest", &other], 0),
        (&["verify", "vm/b@latest"], 0),
        (&["key", "check", &identity], 0),
        (&["restore", "vm/a@latest", &taken], 3),
        (&["check"], 0),
    ];
    for (command, code) in ends {
        let ran = machine.run(command);
        assert_eq!((ran.code(), sessions(&machine)), (code, 0), "{ran}");
    }
    let mut interrupted = stopped_in_a_plan(&machine);
    assert_eq!(sessions(&machine), 1);
    interrupted.signal(Signal::INT);
    interrupted.signal(Signal::CONT);
    interrupted.end();
    assert_eq!(sessions(&machine), 0);

    let mut killed = stopped_in_a_plan(&machine);
    killed.kill();
    let status = machine.json(&["status"]);
    let left = &status["sessions"][0];
    assert_eq!((&left["kind"], &left["volume"]), (&"restore".into(), &"vm/a and 1 more".into()), "{status}");
    machine.run(&["cancel", left["session"].as_str().expect("an id")]).ok();
    assert_eq!(sessions(&machine), 0);
}

/// The index has not heard of a collection when a restorer asks it where everything is.
#[test]
fn an_index_that_is_late_loses_nothing() {
    let site = Site::start("");
    let [first, second] = ["first.img", "second.img"].map(|name| site.operator.place(name));
    random_file(&first, 8 * MIB, 1);
    std::fs::copy(&first, &second).expect("a copy");
    (0..8).for_each(|mib| crate::prune::scatter(&second, mib, 100 + mib));
    let forgotten = site.operator.json(&["backup", "--name", "vm/a", &first]);
    site.operator.run(&["backup", "--name", "vm/a", &second]).ok();
    let out = Machine::new("h");
    let folder = out.place("out");
    std::fs::create_dir(&folder).expect("a folder");
    let _agents =
        [site.agent("worker", &["indexer"], &[]), site.agent("h", &["restorer"], &["--target", &folder])];
    site.archive.forget(forgotten["snapshot"].as_str().expect("an id"));
    let pruned = site.operator.json(&["prune", "--max-repack", "1GiB"]);
    assert_eq!(pruned["finished"], true, "{pruned}");
    assert!(pruned["packs_rewritten"].as_u64() > Some(0), "{pruned}");
    let target = format!("{folder}/a");
    let restore = ["restore", "--nats", &site.nats.url(), "--to-host", "h", "vm/a@latest", &target];
    let done = site.operator.json(&[&restore[..], &["--keep-going"]].concat());
    assert_eq!(done["bytes_lost"], 0, "{done}");
    assert!(done["chunks_rescued"].as_u64() > Some(0), "{done}");
    same_bytes(&second, &target);
}
