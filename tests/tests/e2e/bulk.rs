//! Plans: many volumes, in one process and by agents, past failures and past agents that die.

use std::path::{Path, PathBuf};

use rustix::process::Signal;
use tests::e2e::{Agent, Machine, Site, eventually, random_file, same_bytes};

/// The attribute of a file that is being filled by an agent.
const MARK: &str = "user.lvkeep.restore";

/// A machine with a repository and volumes vm/0 to vm/3.
fn prepared() -> (Machine, Vec<String>) {
    let mut machine = Machine::new("m");
    machine.set("LVKEEP_REPO", &machine.place("repo"));
    machine.run(&["init"]).ok();
    let images: Vec<String> = (0..4).map(|number| machine.place(&format!("{number}.img"))).collect();
    for (number, image) in images.iter().enumerate() {
        random_file(image, (1 + number as u64) << 20, number as u64);
        machine.run(&["backup", "--name", &format!("vm/{number}"), image]).ok();
    }
    std::fs::create_dir(machine.place("out")).expect("a folder for targets");
    (machine, images)
}

fn write(machine: &Machine, plan: &str) -> String {
    let path = machine.place("plan.toml");
    std::fs::write(&path, plan).expect("the plan is written");
    path
}

fn volume(snapshot: &str, target: &str, more: &str) -> String {
    format!("[[volume]]\nsnapshot = \"{snapshot}\"\ntarget = \"{target}\"\n{more}\n")
}

#[test]
fn a_plan_goes_on_past_what_fails() {
    let (machine, images) = prepared();
    let out = machine.place("out");
    let target = |name: &str| format!("{out}/{name}");
    std::fs::write(target("1"), b"precious").expect("a file");
    let plan = [
        "volumes_at_once = 1\nfetches_at_once = 4\n".to_owned(),
        volume("vm/0@latest", &target("0"), "priority = -1"),
        volume("vm/1@latest", &target("1"), ""),
        volume("vm/2@latest", &target("absent/2"), "priority = 1"),
        volume("vm/3@latest", &target("3"), "priority = 9\nverify = true"),
    ];
    let plan = write(&machine, &plan.concat());
    let ran = machine.run(&["restore", "--plan", &plan]);
    let plan_says = "; `force = true` in the plan overwrites it";
    let ran = ran.fails(3, &["lvkeep: 2 of 4 restores failed\n", "absent/2", "has content", plan_says]);
    for once in ["create it first", "has content"] {
        assert_eq!(format!("{}{}", ran.out, ran.err).matches(once).count(), 1, "{once}: {ran}");
    }
    let at = |words: &str| ran.out.find(words).unwrap_or_else(|| panic!("{words}: {ran}"));
    assert!(at("vm/3 @") < at("vm/0 @"), "the most urgent first: {ran}");
    assert!(at("2 of 4 volumes restored, 5.0 MiB") < at("FAILED"), "{ran}");
    same_bytes(&images[0], target("0"));
    same_bytes(&images[3], target("3"));
    assert_eq!(std::fs::read(target("1")).expect("the file"), b"precious");

    let again = std::fs::read_to_string(&plan).expect("the plan").replace("absent/2", "2");
    write(&machine, &again.replace("target", "force = true\ntarget"));
    let done = machine.json(&["restore", "--plan", &plan]);
    let list = done.as_array().expect("a list");
    let found: Vec<&str> = list.iter().filter_map(|one| one["volume"].as_str()).collect();
    assert_eq!(found, ["vm/3", "vm/2", "vm/1", "vm/0"]);
    assert!(list.iter().all(|one| one["outcome"] == "restored"), "{done}");
    assert_eq!(list[0]["bytes_written"], 0, "it stood there already: {done}");
    (0..4).for_each(|number| same_bytes(&images[number], target(&number.to_string())));
}

#[test]
fn a_plan_with_errors_begins_nothing_and_names_all() {
    let (machine, _) = prepared();
    let out = machine.place("out");
    let target = |name: &str| format!("{out}/{name}");
    let plan = [
        volume("vm/0@latest", &target("0"), ""),
        volume("vm/none@latest", &target("1"), ""),
        volume("vm/2@latest", &format!("{out}/./0"), "like = true"),
        volume("vm/3@latest", &target("3"), "host = \"elsewhere\""),
    ];
    let plan = write(&machine, &plan.concat());
    let line = |line: usize| format!("plan.toml:{line}: ");
    let all = [&line(5), "vm/none", &line(9), "like:", "line 1, too", &line(13), "--nats"];
    machine.run(&["restore", "--plan", &plan]).fails(3, &all);
    assert_eq!(std::fs::read_dir(&out).expect("a folder").count(), 0, "nothing was begun");
    write(&machine, "volume_at_once = 1\n");
    machine.run(&["restore", "--plan", &plan]).fails(1, &["plan.toml", "line 1", "volume_at_once"]);
    machine.run(&["restore", "--plan", &plan, "--force"]).fails(2, &["--plan"]);
    machine.run(&["restore", "vm/0@latest", "x", "--like"]).fails(2, &["like:"]);
    machine.run(&["restore"]).fails(2, &["SNAPSHOT"]);
}

#[test]
fn a_plan_is_written_for_what_there_is() {
    let (machine, images) = prepared();
    let drafted = machine.run(&["plan", "--volume", "vm/*", "--to-host", "new"]).ok();
    assert_eq!(drafted.out.matches("[[volume]]").count(), 4, "{drafted}");
    assert_eq!(drafted.out.matches("host = \"new\"").count(), 4, "{drafted}");
    let to_vg = machine.run(&["plan", "--to-vg", "vg1", "--create", "--like"]).ok();
    for line in ["target = \"vg1/3\"", "create = true", "like = true", "priority = 0", "4.0 MiB"] {
        assert!(to_vg.out.contains(line), "{line}: {to_vg}");
    }
    machine.run(&["plan", "--volume", "none"]).fails(3, &["no snapshot"]);
    machine.run(&["plan", "--at", "2001-01-01"]).fails(3, &["no snapshot"]);
    machine.run(&["plan", "--like"]).fails(3, &["like:"]);
    let rows = machine.json(&["plan"]);
    assert_eq!((&rows[0]["volume"], &rows[0]["target"]), (&"vm/0".into(), &images[0].as_str().into()));

    // What is written is carried out as it stands, to other targets.
    let drafted = machine.run(&["plan"]).ok().out.replace(".img\"", ".new\"");
    let plan = write(&machine, &drafted);
    machine.run(&["restore", "--plan", &plan]).ok();
    images.iter().for_each(|image| same_bytes(image, image.replace(".img", ".new")));
}

/// What is one file on another host, only its agents know. Two of them do not know of each other.
#[test]
fn two_volumes_are_not_restored_to_one_file_of_another_host() {
    let site = Site::start("");
    let place = Machine::new("targets");
    let folder = place.place("new");
    std::fs::create_dir(&folder).expect("a folder for targets");
    let (one, two) = (format!("{folder}/one"), format!("{folder}/two"));
    std::fs::write(&one, b"").expect("a file");
    std::os::unix::fs::symlink(&one, &two).expect("a link");
    let images: Vec<String> = (0..2).map(|number| site.operator.place(&format!("{number}.img"))).collect();
    images.iter().enumerate().for_each(|(number, image)| random_file(image, 1 << 20, number as u64));
    let sources: Vec<&str> = images.iter().map(String::as_str).collect();
    site.operator.run(&[&["backup", "--host", "old"], sources.as_slice()].concat()).ok();
    let more = "host = \"new\"\nforce = true";
    let plan = ["volumes_at_once = 1\n".to_owned()].into_iter().chain(
        [&one, &two]
            .into_iter()
            .zip(&images)
            .map(|(target, image)| volume(&format!("old{image}@latest"), target, more)),
    );
    let plan = write(&site.operator, &plan.collect::<String>());
    let _worker = site.agent("worker", &["indexer"], &[]);
    let nats = site.nats.url();
    let restore = ["--json", "restore", "--nats", &nats, "--plan", &plan];
    let _first = site.agent("new", &["restorer"], &["--target", &folder]);
    let ran = site.operator.run(&restore).fails(3, &["1 of 2", &one, &two, "nothing was overwritten"]);
    assert_eq!(ran.json()[0]["outcome"], "restored", "{ran}");
    same_bytes(&images[0], &one);
    // Whichever of both takes the second volume, somebody says so.
    let _second = site.agent("new", &["restorer"], &["--target", &folder]);
    site.operator.run(&restore).fails(3, &["of 2 restores failed", &one, &two]);
}

/// A file below `folder` that this agent has open, and of which a restore is in progress.
fn being_filled(agent: &Agent, folder: &Path) -> Option<PathBuf> {
    let open = std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).ok()?;
    let paths = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let mut mark = [0; 64];
    paths
        .filter(|path| path.starts_with(folder))
        .find(|path| rustix::fs::getxattr(path, MARK, &mut mark).is_ok())
}

#[test]
fn an_agent_that_dies_is_replaced_by_another_of_its_host() {
    let site = Site::start("redeliver = \"2s\"");
    let place = Machine::new("targets");
    std::fs::create_dir(place.place("new")).expect("a folder for targets");
    let folder = Path::new(&place.place("new")).canonicalize().expect("the folder");
    let images: Vec<String> = (0..8).map(|number| site.operator.place(&format!("{number}.img"))).collect();
    // Fewer requests than volumes at once.
    let head = "volumes_at_once = 1\nfetches_at_once = 3\n[hosts.new]\nvolumes_at_once = 3\n";
    let mut plan = head.to_owned();
    for (number, image) in images.iter().enumerate() {
        random_file(image, 24 << 20, number as u64);
        let target = folder.join(number.to_string()).display().to_string();
        plan += &volume(&format!("old{image}@latest"), &target, "host = \"new\"");
    }
    let sources: Vec<&str> = images.iter().map(String::as_str).collect();
    site.operator.run(&[&["backup", "--host", "old"], sources.as_slice()].concat()).ok();
    // One volume beside them is restored by the command itself.
    let here = site.operator.place("here");
    plan += &volume(&format!("old{}@latest", images[0]), &here, "");
    let allowed = folder.to_str().expect("a path in UTF-8");
    let _worker = site.agent("worker", &["indexer"], &[]);
    let one = "[agent]\nrestores = 1";
    let mut dies = site.agent_with("new", &["restorer"], &["--target", allowed], one);
    let stays = site.agent("new", &["restorer"], &["--target", allowed]);

    let plan = write(&site.operator, &plan);
    let nats = site.nats.url();
    let running = site.operator.start(&["--json", "restore", "--nats", &nats, "--plan", &plan]);
    let caught = eventually("an agent is in the middle of a file", || {
        being_filled(&dies, &folder)?;
        dies.signal(Signal::STOP);
        let caught = being_filled(&dies, &folder);
        if caught.is_none() {
            dies.signal(Signal::CONT);
        }
        caught
    });
    // As long as it only looks dead, the file is its own.
    eventually("the other one waits", || stays.err().contains("waiting for another restore").then_some(()));
    assert!(stays.err().contains(caught.to_str().expect("a path")), "{}", stays.err());
    dies.kill();
    let done = running.end().ok().json();
    let list = done.as_array().expect("a list");
    assert_eq!(list.len(), 9, "{done}");
    assert!(list.iter().all(|one| one["outcome"] == "restored"), "{done}");
    for (number, image) in images.iter().enumerate() {
        same_bytes(image, folder.join(number.to_string()));
    }
    same_bytes(&images[0], &here);
    let mut mark = [0; 64];
    eventually("the job is over", || rustix::fs::getxattr(&caught, MARK, &mut mark).err());
    eventually("no session stays", || (site.archive.open_sessions() == 0).then_some(()));
}
