//! A restorer agent writes where its own configuration allows, and nowhere else.

use tests::e2e::{Machine, Ran, Site, random_file, same_bytes};

#[test]
fn a_restorer_serves_allowed_targets_only() {
    let site = Site::start("");
    let image = site.operator.place("disk.img");
    random_file(&image, 10 << 20, 1);
    site.operator.run(&["backup", "--name", "vm/disk", &image]).ok();

    let place = Machine::new("target-host");
    let [allowed, outside] = ["allowed", "outside"].map(|name| {
        let folder = place.place(name);
        std::fs::create_dir(&folder).expect("a folder");
        folder
    });
    let _agents = [
        site.agent("h", &["restorer"], &["--target", &allowed]),
        site.agent("none", &["restorer"], &[]),
        site.agent("worker", &["indexer"], &[]),
    ];
    let nats = site.nats.url();
    let restore = |host: &str, target: &str, more: &[&str]| -> Ran {
        let mut arguments = vec!["restore", "--nats", &nats, "--to-host", host, "vm/disk@latest", target];
        arguments.extend(more);
        site.operator.run(&arguments)
    };
    let inside = format!("{allowed}/restored.img");
    restore("h", &inside, &[]).ok();
    same_bytes(&image, &inside);
    restore("h", &inside, &[]).fails(3, &[&inside, "has content"]);
    restore("h", &inside, &["--force"]).ok();
    same_bytes(&image, &inside);

    let elsewhere = format!("{outside}/restored.img");
    for more in [&[][..], &["--force"]] {
        restore("h", &elsewhere, more).fails(3, &[&elsewhere, "allows"]);
        restore("none", &inside, more).fails(3, &[&inside, "allows"]);
    }
    restore("h", &format!("{allowed}/../outside/restored.img"), &["--force"]).fails(3, &["`..`"]);
    let link = format!("{allowed}/link");
    std::os::unix::fs::symlink(&outside, &link).expect("a link that leads out");
    restore("h", &format!("{link}/restored.img"), &["--force"]).fails(3, &["allows"]);
    restore("h", &format!("{allowed}/absent/restored.img"), &[]).fails(3, &["absent", "create it first"]);
    assert!(!std::path::Path::new(&elsewhere).exists(), "nothing was written outside");
    assert_eq!(std::fs::read_dir(&outside).expect("a folder").count(), 0);
}

#[test]
fn a_restorer_without_an_identity_does_not_start() {
    let site = Site::start("");
    let mut machine = Machine::new("h");
    machine.set_all(&site.weed.environment());
    machine.set("LVKEEP_REPO", &site.weed.location("archive"));
    machine.set("LVKEEP_KEY", &site.operator.place("writer-key"));
    machine.set("LVKEEP_NATS", &site.nats.url());
    machine.run(&["agent", "--role", "restorer"]).fails(3, &["restorer", "--identity"]);
    machine.run(&["agent"]).fails(1, &["--role"]);
    let mut host = Machine::new("h");
    host.set("LVKEEP_NATS", &site.nats.url());
    host.run(&["agent", "--role", "reader"]).fails(1, &["--key"]);
}
