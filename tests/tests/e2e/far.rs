//! What `restore` does by itself, by the agents of another host: undo, several targets, and an end before its time.

use rustix::process::Signal;
use tests::e2e::{Machine, Site, eventually, random_file, same_bytes};

const SIZE: u64 = 16 << 20;

/// A site with a volume `vm/disk`, and a folder on host `h` for targets.
fn prepared() -> (Site, String, Machine) {
    let site = Site::start("");
    let image = site.operator.place("disk.img");
    random_file(&image, SIZE, 1);
    site.operator.run(&["backup", "--name", "vm/disk", &image]).ok();
    let place = Machine::new("targets");
    std::fs::create_dir(place.place("new")).expect("a folder for targets");
    (site, image, place)
}

#[test]
fn agents_keep_what_they_overwrite_and_put_it_back() {
    let (site, image, place) = prepared();
    let folder = place.place("new");
    let _agents = [
        site.agent("worker", &["indexer", "storer", "conductor"], &[]),
        site.agent("h", &["reader", "hasher"], &[]),
        site.agent("h", &["restorer"], &["--target", &folder]),
    ];
    let nats = site.nats.url();
    let to = |name: &str| format!("{folder}/{name}");
    let (target, old) = (to("disk"), site.operator.place("old.img"));
    random_file(&old, SIZE - 4096, 2);
    std::fs::copy(&old, &target).expect("a copy");
    let restore = ["restore", "--nats", &nats, "--to-host", "h", "--undo", "vm/disk@latest"];
    // Silence does not hide what nobody could guess.
    let ran = site.operator.run(&[&["--quiet"], &restore[..], &[&target]].concat()).ok();
    same_bytes(&image, &target);
    let listed = site.operator.json(&["snapshots", "--volume", "undo/h/*"]);
    let id = listed[0]["id"].as_str().expect("an id").to_owned();
    assert!(ran.out.contains(&format!("`lvkeep undo {id} --to-host h` puts it back")), "{ran}");
    site.operator.run(&["undo", &id]).fails(3, &["on host h", "--to-host"]);
    site.operator.run(&["undo", &id, "--nats", &nats, "--to-host", "h"]).ok();
    same_bytes(&old, &target);

    // An id that was not kept there, and one that is none.
    site.operator.run(&["undo", "vm/disk@latest", "--nats", &nats, "--to-host", "h"]).fails(3, &["--undo"]);

    // Two that hold something, and one that is made; what is fetched is fetched once.
    let (second, third) = (to("second"), to("third"));
    std::fs::copy(&old, &second).expect("a copy");
    let also = [target.as_str(), "--also", &second, "--also", &third];
    let ran = site.operator.run(&[&["--json"], &restore[..], &also].concat()).ok();
    let done: Vec<serde_json::Value> =
        ran.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let fetched: Vec<bool> = done.iter().map(|one| one["bytes_fetched"] != 0).collect();
    assert_eq!(fetched, [true, false, false], "{done:?}");
    let kept: Vec<bool> = done.iter().map(|one| one["undo"].is_string()).collect();
    assert_eq!(kept, [true, true, false], "{done:?}");
    [&target, &second, &third].iter().for_each(|path| same_bytes(&image, path));
    // The first one fails: the next is the first.
    std::fs::write(to("full"), b"precious").expect("a file");
    let (full, fresh, last) = (to("full"), to("fresh"), to("last"));
    let also = [full.as_str(), "--also", &fresh, "--also", &last];
    let several = ["--json", "restore", "--nats", &nats, "--to-host", "h", "vm/disk@latest"];
    let ran = site.operator.run(&[&several[..], &also].concat());
    let ran = ran.fails(3, &["1 of 3 restores failed", &full, "has content"]);
    let done: Vec<serde_json::Value> =
        ran.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let fetched: Vec<bool> = done.iter().map(|one| one["bytes_fetched"] != 0).collect();
    assert_eq!(fetched, [true, false], "{done:?}");
    [&fresh, &last].iter().for_each(|path| same_bytes(&image, path));
    eventually("no session stays", || (site.archive.open_sessions() == 0).then_some(()));
    plan_of_one_snapshot(&site, &folder, &image, &old);
}

/// Entries of one snapshot, on another host and here, of which some hold something.
fn plan_of_one_snapshot(site: &Site, folder: &str, image: &str, old: &str) {
    let here = site.operator.place("here");
    std::fs::create_dir(&here).expect("a folder for targets");
    let mut plan = "volumes_at_once = 2\n".to_owned();
    for (target, more) in [
        (format!("{folder}/full"), "host = \"h\"\npriority = 9"),
        (format!("{folder}/p1"), "host = \"h\""),
        (format!("{folder}/p2"), "host = \"h\"\nundo = true"),
        (format!("{folder}/p3"), "host = \"h\"\nkeep_going = true"),
        (format!("{here}/p1"), "undo = true"),
        (format!("{here}/p2"), ""),
    ] {
        plan += &format!("[[volume]]\nsnapshot = \"vm/disk@latest\"\ntarget = \"{target}\"\n{more}\n");
    }
    for held in [format!("{folder}/p2"), format!("{here}/p1")] {
        std::fs::copy(old, held).expect("a copy");
    }
    let path = site.operator.place("plan.toml");
    std::fs::write(&path, plan).expect("the plan is written");
    let ran = site.operator.run(&["--json", "restore", "--nats", &site.nats.url(), "--plan", &path]);
    let done = ran.fails(3, &["1 of 6 restores failed", "has content"]).json();
    let list = done.as_array().expect("a list");
    assert_eq!(list[0]["outcome"], "failed", "{done}");
    for (host, count) in [("h", 3), ("operator", 2)] {
        let of_host: Vec<_> = list[1..].iter().filter(|one| (one["host"] == "h") == (host == "h")).collect();
        assert_eq!(of_host.len(), count, "{done}");
        let fetched = of_host.iter().filter(|one| one["bytes_fetched"] != 0).count();
        assert_eq!(fetched, 1, "each chunk once per host: {done}");
    }
    for one in &list[1..] {
        assert_eq!(one["outcome"], "restored", "{done}");
        same_bytes(image, one["target"].as_str().expect("a path"));
    }
    let kept = list.iter().filter(|one| one["undo"].is_string()).count();
    assert_eq!(kept, 2, "{done}");
}

#[test]
fn a_command_that_is_stopped_has_its_jobs_stopped() {
    let (site, _, place) = prepared();
    let folder = place.place("new");
    let plan = site.operator.place("plan.toml");
    let volume = |name: &str| {
        format!("[[volume]]\nsnapshot = \"vm/disk@latest\"\ntarget = \"{folder}/{name}\"\nhost = \"h\"\n")
    };
    std::fs::write(&plan, ["a", "b", "c"].map(volume).concat()).expect("the plan is written");
    let nats = site.nats.url();
    let mut restoring = site.operator.start(&["restore", "--nats", &nats, "--plan", &plan]);
    restoring.wait_for("no restorer on h answers");
    restoring.signal(Signal::INT);
    // Nobody has taken the first by now: whoever takes it finds out that it is not wanted any more.
    eventually("a note for whoever takes the job", || (site.archive.open_sessions() == 1).then_some(()));
    let _worker = site.agent("worker", &["indexer"], &[]);
    let _restorer = site.agent("h", &["restorer"], &["--target", &folder]);
    let ran = restoring.end().fails(7, &["3 of 3 restores failed", "stopped, as asked"]);
    assert!(ran.out.contains("it was not begun") && !ran.err.contains("it was not begun"), "{ran}");
    assert_eq!(std::fs::read_dir(&folder).expect("a folder").count(), 0, "nothing was restored");
    eventually("no session stays", || (site.archive.open_sessions() == 0).then_some(()));
}
