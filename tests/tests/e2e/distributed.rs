//! Agents as separate processes on several hosts, over a real NATS server and a real object store.

use tests::e2e::{Process, Site, eventually, ext4, make_tree, random_file};

/// Chunks that two backups of the same content at once may store twice, in percent.
const EXCESS_MAX: f64 = 2.0;

fn sealed(backup: Process) -> serde_json::Value {
    backup.end().ok().json()
}

fn snapshot(done: &serde_json::Value) -> String {
    done["snapshot"].as_str().expect("an id").to_owned()
}

#[test]
fn hosts_without_credentials_back_up_through_workers() {
    let site = Site::start("");
    let agents = [
        site.agent("a", &["reader", "hasher"], &[]),
        site.agent("b", &["reader", "hasher"], &[]),
        site.agent("worker", &["indexer"], &[]),
        site.agent("worker", &["storer"], &[]),
        site.agent("worker", &["conductor"], &[]),
    ];
    let (tree, on_a, on_b) =
        (site.operator.place("tree"), site.operator.place("a.img"), site.operator.place("b.img"));
    make_tree(&tree, 1);
    ext4(&on_a, 64, &tree);
    random_file(&on_b, 20 << 20, 2);
    let (a, b) = (site.backup("a", &on_a), site.backup("b", &on_b));
    let (a, b) = (sealed(a), sealed(b));
    assert_eq!(a["volume"], format!("a{on_a}"));
    assert_eq!(b["volume"], format!("b{on_b}"));
    let again = sealed(site.backup("a", &on_a));
    assert_eq!((&again["generation"], &again["bytes_stored"]), (&2.into(), &0.into()), "{again}");

    site.operator.restores(&snapshot(&a), &on_a);
    site.operator.restores(&snapshot(&again), &on_a);
    site.operator.restores(&format!("b{on_b}@latest"), &on_b);
    site.operator.run(&["check", "--read-data"]).ok();
    assert_eq!(site.archive.open_sessions(), 0);

    let missing = site.operator.place("missing.img");
    site.backup("b", &missing).end().fails(4, &["missing.img"]);

    let status = site.operator.json(&["status", "--nats", &site.nats.url()]);
    let roles = |agent: &serde_json::Value| format!("{} {}", agent["host"], agent["roles"]);
    let found: Vec<String> = status["agents"].as_array().into_iter().flatten().map(roles).collect();
    assert_eq!(found.len(), agents.len(), "{status}");
    for expected in [r#""a" ["reader","hasher"]"#, r#""worker" ["storer"]"#, r#""worker" ["conductor"]"#] {
        assert!(found.iter().any(|agent| agent == expected), "{expected}: {status}");
    }

    // A conductor that is told to collects by itself.
    site.operator.run(&["forget", &snapshot(&a)]).ok();
    let every = "[agent]\nprune_every = \"1s\"";
    let _collecting = site.agent_with("worker", &["conductor"], &[], every);
    eventually("what was forgotten is collected", || {
        let forgotten = site.operator.json(&["snapshots", "--forgotten"]);
        (forgotten == serde_json::json!([])).then_some(())
    });
    eventually("the collection is finished", || {
        let status = site.operator.json(&["status"]);
        (status["last_collection"] == 1 && status["collection"].is_null()).then_some(())
    });
    site.operator.restores(&snapshot(&again), &on_a);
}

#[test]
fn every_role_in_a_process_of_its_own_some_twice() {
    let site = Site::start("");
    let target = site.operator.place("target");
    std::fs::create_dir(&target).expect("a folder for targets");
    let agents = [
        site.agent("a", &["reader"], &[]),
        site.agent("a", &["hasher"], &[]),
        site.agent("a", &["hasher"], &[]),
        site.agent("worker", &["indexer"], &["--shards", "0,1"]),
        site.agent("worker", &["indexer"], &["--shards", "2,3"]),
        site.agent("worker", &["storer"], &[]),
        site.agent("worker", &["storer"], &[]),
        site.agent("worker", &["conductor"], &[]),
        site.agent("worker", &["conductor"], &[]),
        site.agent("target-host", &["restorer"], &["--target", &target]),
    ];
    let images: Vec<String> = (0..4).map(|n| site.operator.place(&format!("{n}.img"))).collect();
    images.iter().zip(20..).for_each(|(image, seed)| random_file(image, 12 << 20, seed));
    let running: Vec<Process> = images.iter().map(|image| site.backup("a", image)).collect();
    for (backup, image) in running.into_iter().zip(&images) {
        let id = snapshot(&sealed(backup));
        let restored = format!("{target}/restored.img");
        let nats = site.nats.url();
        site.operator
            .run(&["restore", "--nats", &nats, "--to-host", "target-host", "--force", &id, &restored])
            .ok();
        tests::e2e::same_bytes(image, &restored);
    }
    let status = site.operator.json(&["status", "--nats", &site.nats.url()]);
    assert_eq!(status["agents"].as_array().map(Vec::len), Some(agents.len()), "{status}");
    assert_eq!(site.archive.open_sessions(), 0);
    for mut agent in agents {
        agent.terminate().ok();
    }
}

#[test]
fn content_of_two_hosts_at_once_is_stored_once() {
    let site = Site::start("");
    let _agents = [
        site.agent("a", &["reader", "hasher"], &[]),
        site.agent("b", &["reader", "hasher"], &[]),
        site.agent("worker", &["indexer"], &[]),
        site.agent("worker", &["storer"], &[]),
        site.agent("worker", &["conductor"], &[]),
    ];
    let (on_a, on_b) = (site.operator.place("a.img"), site.operator.place("b.img"));
    random_file(&on_a, 96 << 20, 7);
    std::fs::copy(&on_a, &on_b).expect("a copy");
    let (a, b) = (site.backup("a", &on_a), site.backup("b", &on_b));
    let (a, b) = (sealed(a), sealed(b));
    let copies = site.archive.copies();
    let excess = copies.excess_percent();
    println!(
        "{} of {} chunks were stored twice: {excess:.2} %",
        copies.stored - copies.distinct,
        copies.distinct
    );
    assert!(copies.distinct > 500, "{copies:?}");
    assert!(
        excess <= EXCESS_MAX,
        "{excess:.2} % of the chunks were stored twice; {EXCESS_MAX} % are allowed"
    );
    site.operator.restores(&snapshot(&a), &on_a);
    site.operator.restores(&snapshot(&b), &on_b);
}

#[test]
fn agents_are_replaced_while_a_backup_runs() {
    let site = Site::start("ask_again = \"2s\"\nlimit_read = \"8MiB\"\npack_max_age = \"1s\"");
    let mut agents = [
        site.agent("worker", &["conductor"], &[]),
        site.agent("worker", &["conductor"], &[]),
        site.agent("worker", &["storer"], &[]),
        site.agent("worker", &["storer"], &[]),
        site.agent("worker", &["indexer"], &[]),
        site.agent("a", &["hasher"], &[]),
        site.agent("a", &["reader"], &[]),
    ];
    let image = site.operator.place("a.img");
    random_file(&image, 48 << 20, 9);
    let mut backup = site.backup("a", &image);
    let mut during = 0;
    for (agent, number) in agents.iter_mut().zip(1..) {
        eventually("a pack is stored", || (site.archive.packs()?.len() >= number).then_some(()));
        during += usize::from(!backup.has_ended());
        agent.terminate().ok();
        agent.start_again();
    }
    println!("{during} of {} agents were replaced while the backup ran", agents.len());
    assert!(during >= 5, "the backup was over too soon to say anything");
    let done = sealed(backup);
    site.operator.restores(&snapshot(&done), &image);
    assert_eq!(site.archive.open_sessions(), 0);
}
