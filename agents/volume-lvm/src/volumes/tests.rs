mod fake;

use agent::{Changes, Opening, VolumeError, Volumes};
use schema::JobId;
use schema::messages::Group;

use fake::{Host, opening};

use crate::freeze::Hooks;
use crate::governor::Limits;
use crate::marks::Marks;
use crate::report::LogicalVolume;
use crate::settings::{Settings, Treatment};
use crate::snapshots::Fate;
use crate::testing::*;
use crate::volumes::LvmVolumes;

fn name(n: u128) -> String {
    Marks::name(session(n))
}

fn why(changes: &Changes) -> Option<String> {
    match changes {
        Changes::Unknown { why } => why.clone(),
        Changes::Since { .. } => panic!("nothing can be known here"),
    }
}

#[tokio::test]
async fn what_is_no_logical_volume_runs_no_tool() {
    let host = Host::new(&[]);
    let volumes = host.volumes(host.settings());
    for source in ["/srv/image", "/dev/null", "plain", "./a/b", "a/b/c"] {
        volumes.open(&opening(source, session(1), repository(1), None)).await.unwrap();
        volumes.close(session(1), true).await;
    }
    assert_eq!(host.inner.opened.lock().unwrap().len(), 5);
    assert_eq!(host.ran(""), Vec::<String>::new());
}

#[tokio::test]
async fn a_volume_that_is_held_is_read_as_the_device_that_it_is() {
    let host = Host::new(&[linear("vg0", "web")]);
    let volumes = host.volumes(host.settings());
    let plain = Opening { plain: true, ..opening("vg0/web", session(1), repository(1), None) };
    volumes.open(&plain).await.unwrap();
    volumes.close(session(1), true).await;
    assert_eq!(host.inner.opened.lock().unwrap().len(), 1);
    assert_eq!(host.ran(""), Vec::<String>::new());
}

#[tokio::test]
async fn a_run_takes_a_snapshot_and_keeps_it_for_the_next() {
    let host = Host::new(&[linear("vg0", "web")]);
    let (volumes, r) = (host.volumes(host.settings()), repository(1));
    let first = volumes.open(&opening("vg0/web", session(1), r, None)).await.unwrap();
    assert_eq!(why(first.changes()), None, "nothing was to be expected");
    let fact = |wanted: &str| {
        first.info().layout.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone())
    };
    assert_eq!(fact("vg_extent_size").as_deref(), Some("4194304"));
    assert_eq!(fact("vgcfgbackup").as_deref(), Some("# of vg0\n"));
    assert_eq!(fact("lv_type").as_deref(), Some("linear"));
    let created = host.ran("lvcreate");
    assert!(
        created[0].contains("--addtag lvkeep.session=") && created[0].contains("--permission r"),
        "{created:?}"
    );
    volumes.close(session(1), true).await;
    assert_eq!(host.names(), [name(1), "web".into()]);
    assert!(host.tags(&name(1)).contains("lvkeep.baseline") && !host.tags(&name(1)).contains("lvkeep.owner"));

    // The next run knows its parent's snapshot, and replaces it only after its own commit.
    let second = volumes.open(&opening("vg0/web", session(2), r, Some(session(1)))).await.unwrap();
    assert!(why(second.changes()).unwrap().contains("no such device"), "it asked the baseline's device");
    assert_ne!(first.info().reading, second.info().reading);
    assert_eq!(host.names(), [name(1), name(2), "web".into()]);
    volumes.close(session(2), true).await;
    assert_eq!(host.names(), [name(2), "web".into()]);
}

#[tokio::test]
async fn a_failed_session_takes_its_snapshot_along_and_leaves_the_old_one() {
    let host = Host::new(&[linear("vg0", "web")]);
    let (volumes, r) = (host.volumes(host.settings()), repository(1));
    volumes.open(&opening("vg0/web", session(1), r, None)).await.unwrap();
    volumes.close(session(1), true).await;
    volumes.open(&opening("vg0/web", session(2), r, Some(session(1)))).await.unwrap();
    volumes.close(session(2), false).await;
    assert_eq!(host.names(), [name(1), "web".into()]);
    // Sessions of other hosts are none of ours.
    volumes.close(session(1), false).await;
    volumes.close(session(99), true).await;
    assert_eq!(host.names(), [name(1), "web".into()]);
}

#[tokio::test]
async fn without_baselines_nothing_is_kept() {
    let host = Host::new(&[linear("vg0", "web")]);
    let usual = Treatment { keep_baseline: false, ..Treatment::default() };
    let volumes = host.volumes(Settings { usual, ..host.settings() });
    volumes.open(&opening("vg0/web", session(1), repository(1), None)).await.unwrap();
    volumes.close(session(1), true).await;
    assert_eq!(host.names(), ["web"]);
    let next = volumes.open(&opening("vg0/web", session(2), repository(1), Some(session(1)))).await.unwrap();
    assert_eq!(why(next.changes()), None, "as it was asked for");
}

#[tokio::test]
async fn a_session_goes_on_with_the_snapshot_that_a_dead_process_took_for_it() {
    let web = linear("vg0", "web");
    let left = Marks { owner: Some(owner(1)), ..marks(&web, repository(1), 5) };
    let host = Host::new(&[web.clone(), ours(&web, &left)]);
    let volumes = host.volumes(host.settings());
    let again = volumes.open(&opening("vg0/web", session(5), repository(1), None)).await.unwrap();
    assert_eq!(host.ran("lvcreate"), Vec::<String>::new(), "it never takes a second one");
    assert!(!host.tags(&name(5)).contains(&owner(1).to_string()), "it has another owner now");
    let reading = again.info().reading;
    let bound = Opening { reading: Some(reading), ..opening("vg0/web", session(5), repository(1), None) };
    assert_eq!(volumes.open(&bound).await.unwrap().info().reading, reading);

    let gone = Opening { session: session(6), ..bound };
    let error = volumes.open(&gone).await.unwrap_err();
    assert!(matches!(error, VolumeError::ReadingLost { .. }), "{error}");
    assert_eq!(host.ran("lvcreate"), Vec::<String>::new());
}

#[tokio::test]
async fn the_next_run_removes_what_dead_ones_left_and_nothing_else() {
    let web = linear("vg0", "web");
    let alive = Marks {
        owner: Some(crate::owner::Owner::new("b007", 1, 1).unwrap()),
        ..marks(&web, repository(1), 1)
    };
    let others = thick_snapshot("vg0", "before-upgrade", "web");
    let renamed = LogicalVolume { name: "rescued".into(), ..ours(&web, &marks(&web, repository(1), 3)) };
    let host = Host::new(&[
        web.clone(),
        ours(&web, &alive),
        ours(&web, &marks(&web, repository(1), 2)),
        ours(&web, &marks(&web, repository(2), 4)),
        others,
        renamed,
    ]);
    let volumes = host.volumes(host.settings());
    volumes.open(&opening("vg0/web", session(9), repository(1), Some(session(2)))).await.unwrap();
    let kept = ["before-upgrade".into(), name(2), name(4), name(9), "rescued".into(), "web".into()];
    assert_eq!(host.names(), kept, "the dead one's went");
    volumes.close(session(9), true).await;
    assert_eq!(host.names(), ["before-upgrade".into(), name(4), name(9), "rescued".into(), "web".into()]);
}

#[tokio::test]
async fn an_overflowed_baseline_is_said_and_goes() {
    let web = linear("vg0", "web");
    let host = Host::new(&[web.clone(), ours(&web, &marks(&web, repository(1), 1))]);
    host.edit(&name(1), "sri-a-s---", "sri-I-s---");
    let volumes = host.volumes(host.settings());
    let read = volumes.open(&opening("vg0/web", session(2), repository(1), Some(session(1)))).await.unwrap();
    let said = why(read.changes()).unwrap();
    assert!(said.contains("overflowed"), "{said}");
    assert_eq!(host.names(), [name(2), "web".into()]);
}

/// A host whose group has so many MiB free, with baselines of these sessions.
fn host_with(free: u64, baselines: &[Marks]) -> Host {
    let web = linear("vg0", "web");
    let snapshots = baselines.iter().map(|marks| ours(&web, &Marks { baseline: true, ..marks.clone() }));
    let host = Host::new(&[web.clone()].into_iter().chain(snapshots).collect::<Vec<_>>());
    host.has_free(free);
    host
}

#[tokio::test]
async fn where_there_is_no_room_for_a_second_store_a_stale_baseline_does_not_wait_for_the_commit() {
    let (web, r) = (linear("vg0", "web"), repository(1));
    let [first, second] = [1, 2].map(|n| marks(&web, r, n));
    for (parent, baselines, kept) in [
        (None, vec![first.clone()], vec![]),
        // No more than are needed.
        (Some(session(77)), vec![first.clone(), second.clone()], vec![name(2)]),
        (Some(session(1)), vec![first, second], vec![name(1)]),
    ] {
        let host = host_with(8, &baselines);
        let gone = baselines.len() - kept.len();
        let volumes = host.volumes(host.settings());
        let read = volumes.open(&opening("vg0/web", session(9), r, parent)).await.unwrap();
        assert_eq!(host.names(), [kept, vec![name(9), "web".into()]].concat());
        let facts = &read.info().layout;
        let said = facts.iter().find(|(name, _)| name == "baselines_removed").map(|(_, names)| names);
        assert_eq!(said.map(|names| names.split(' ').count()), Some(gone), "{facts:?}");
    }
}

#[tokio::test]
async fn without_a_stale_baseline_that_helps_too_little_room_is_refused_with_figures() {
    let (web, r) = (linear("vg0", "web"), repository(1));
    let refused = async |host: &Host, parent| {
        let before = host.names();
        let volumes = host.volumes(host.settings());
        let error = volumes.open(&opening("vg0/web", session(9), r, parent)).await.unwrap_err().to_string();
        assert!(error.contains("vg0 has 8.0 MiB free") && error.contains("vg0/web needs"), "{error}");
        assert_eq!(host.names(), before, "nothing is removed in vain");
    };
    refused(&host_with(8, &[]), None).await;
    refused(&host_with(8, &[marks(&web, r, 1)]), Some(session(1))).await;
    refused(&host_with(8, &[marks(&web, repository(2), 1)]), None).await;
    let host = host_with(8, &[marks(&web, r, 1)]);
    host.edit(&name(1), "sri-a-s---", "swi-a-s---");
    refused(&host, None).await;
    let host = host_with(8, &[marks(&web, r, 1)]);
    host.edit("web", "1073741824", "107374182400");
    refused(&host, None).await;
}

#[tokio::test]
async fn another_refusal_than_for_room_removes_no_baseline() {
    let host = host_with(8, &[marks(&linear("vg0", "web"), repository(1), 1)]);
    host.edit("web", "-wi-a-----", "-wi-------");
    let volumes = host.volumes(host.settings());
    let error = volumes.open(&opening("vg0/web", session(9), repository(1), None)).await.unwrap_err();
    assert!(error.to_string().contains("not active"), "{error}");
    assert_eq!(host.names(), [name(1), "web".into()]);
}

#[tokio::test]
async fn where_there_is_room_a_stale_baseline_waits_for_the_commit() {
    let r = repository(1);
    let host = host_with(100, &[marks(&linear("vg0", "web"), r, 1)]);
    let volumes = host.volumes(host.settings());
    let read = volumes.open(&opening("vg0/web", session(9), r, None)).await.unwrap();
    assert!(!read.info().layout.iter().any(|(name, _)| name == "baselines_removed"));
    assert_eq!(host.names(), [name(1), name(9), "web".into()]);
    volumes.close(session(9), true).await;
    assert_eq!(host.names(), [name(9), "web".into()]);
}

#[tokio::test]
async fn a_snapshot_that_overflows_fails_its_session_by_name() {
    let host = Host::new(&[linear("vg0", "web")]);
    let volumes = host.volumes(host.settings());
    let read = volumes.open(&opening("vg0/web", session(1), repository(1), None)).await.unwrap();
    read.check_unchanged().await.unwrap();
    host.edit(&name(1), "\"data_percent\":\"0.00\"", "\"data_percent\":\"96.00\"");
    host.edit("web", "1073741824", "107374182400");
    // The group has room, and LVM refuses all the same: the tool to extend is not there.
    volumes.shared.look().await;
    read.check_unchanged().await.unwrap();
    host.edit(&name(1), "sri-a-s---", "sri-I-s---");
    volumes.shared.look().await;
    let error = read.check_unchanged().await.unwrap_err();
    assert!(error.to_string().contains("overflowed"), "{error}");
    volumes.close(session(1), false).await;
    assert_eq!(host.names(), ["web"]);
}

#[tokio::test]
async fn a_thin_volume_is_activated_while_it_is_read() {
    let host = Host::new(&[pool("vg0", "pool"), thin("vg0", "db", "pool", 1)]);
    let volumes = host.volumes(host.settings());
    volumes.open(&opening("vg0/db", session(1), repository(1), None)).await.unwrap();
    assert!(host.ran("lvcreate")[0].contains("--setactivationskip y"));
    assert!(host.ran("lvchange")[0].contains("--activate y --ignoreactivationskip vg0/lvkeep-"));
    volumes.close(session(1), true).await;
    assert!(host.ran("lvchange").last().unwrap().contains("--activate n"));

    host.edit("pool", "\"metadata_percent\":\"5\"", "\"metadata_percent\":\"91\"");
    let error = volumes.open(&opening("vg0/db", session(2), repository(1), None)).await.unwrap_err();
    assert!(error.to_string().contains("metadata of thin pool vg0/pool is 91.0 % full"), "{error}");
}

#[tokio::test]
async fn a_pool_that_is_nearly_full_is_extended_before_it_is_refused() {
    let host = Host::new(&[pool("vg0", "pool"), thin("vg0", "db", "pool", 1)]);
    host.edit("pool", "\"data_percent\":\"20\"", "\"data_percent\":\"90\"");
    host.tool("lvextend", r#"sed -i 's/"data_percent":"90"/"data_percent":"75"/' "$D/lv/pool""#);
    let limits = Limits { extend: false, ..Limits::default() };
    let never = host.volumes(Settings { limits, ..host.settings() });
    let error = never.open(&opening("vg0/db", session(1), repository(1), None)).await.unwrap_err();
    assert!(error.to_string().contains("90.0 % full"), "{error}");
    let volumes = host.volumes(host.settings());
    volumes.open(&opening("vg0/db", session(1), repository(1), None)).await.unwrap();
    assert_eq!(host.ran("lvextend").len(), 1);
}

#[tokio::test]
async fn members_of_a_group_get_room_by_their_own_last_run() {
    let (root, data) = (linear("vg0", "root"), linear("vg0", "data"));
    let last = ours(&data, &Marks { baseline: true, ..marks(&data, repository(1), 7) });
    let host = Host::new(&[root, data, last]);
    let volumes = host.volumes(host.settings());
    let group = group(1, &["vg0/root", "vg0/data"]);
    let of = Opening { group: Some(&group), ..opening("vg0/root", session(1), repository(1), None) };
    let read = volumes.open(&of).await.unwrap();
    assert!(read.info().layout.contains(&("not_held".into(), "2".into())), "nothing holds its writers");
    let size = |of: &str| host.ran("lvcreate").iter().any(|line| line.ends_with(of));
    assert!(size("--size 33554432b vg0/data") && size("--size 109051904b vg0/root"), "{:?}", host.ran("lvc"));
}

#[tokio::test]
async fn what_is_left_out_is_a_fact() {
    let host = Host::new(&[linear("vg0", "web")]);
    host.tool(
        "vgcfgbackup",
        "while [ $# -gt 1 ]; do [ \"$1\" != --file ] || head -c 20000000 /dev/zero > \"$2\"; shift; done",
    );
    let hooks = Hooks { pre: None, post: Some("exit 7".into()) };
    let usual = Treatment { hooks, ..Treatment::default() };
    let volumes = host.volumes(Settings { usual, ..host.settings() });
    let read = volumes.open(&opening("vg0/web", session(1), repository(1), None)).await.unwrap();
    let fact =
        |wanted: &str| read.info().layout.iter().find(|(name, _)| name == wanted).map(|(_, value)| value);
    assert!(fact("vgcfgbackup").is_none());
    assert!(fact("vgcfgbackup_left_out").unwrap().contains("20000000"));
    assert!(fact("post_failed").unwrap().contains("exit 7"));
}

fn group(run: u128, members: &[&str]) -> Group {
    let members = members.iter().map(|member| (*member).to_owned()).collect();
    Group { run: JobId::from_parts(1, run), name: "web".into(), members }
}

#[tokio::test]
async fn a_group_is_frozen_once_and_each_member_finds_its_snapshot() {
    let host = Host::new(&[linear("vg0", "root"), linear("vg0", "data")]);
    let log = host.path().join("log").display().to_string();
    let hooks = Hooks { pre: Some(format!("echo pre >> {log}")), post: Some(format!("echo post >> {log}")) };
    let usual = Treatment { hooks, ..Treatment::default() };
    let volumes = host.volumes(Settings { usual, ..host.settings() });
    let group = group(1, &["vg0/root", "vg0/data"]);
    let of = |source, n| Opening { group: Some(&group), ..opening(source, session(n), repository(1), None) };
    let read = volumes.open(&of("vg0/root", 1)).await.unwrap();
    assert!(read.info().layout.iter().all(|(name, _)| name != "not_held"));
    let order: Vec<String> =
        host.ran("").iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    let held: Vec<&str> =
        order.iter().map(String::as_str).skip_while(|word| *word != "pre").take(4).collect();
    assert_eq!(held, ["pre", "lvcreate", "lvcreate", "post"]);
    volumes.open(&of("vg0/data", 2)).await.unwrap();
    assert_eq!((host.ran("lvcreate").len(), host.ran("pre").len()), (2, 1));

    // A session that fails leaves its member's snapshot to the next one of the same job.
    volumes.close(session(2), false).await;
    volumes.open(&of("vg0/data", 3)).await.unwrap();
    assert_eq!(host.ran("lvcreate").len(), 2);
    volumes.close(session(1), true).await;
    volumes.close(session(3), true).await;
    assert_eq!(host.names().len(), 4);
    let error = volumes.open(&of("vg0/data", 4)).await.unwrap_err();
    assert!(error.to_string().contains("start the group's backup again"), "{error}");
}

#[tokio::test]
async fn a_group_is_taken_whole_or_not_at_all() {
    let host = Host::new(&[linear("vg0", "root"), linear("vg0", "data")]);
    let volumes = host.volumes(host.settings());
    let missing = group(1, &["vg0/root", "vg0/gone"]);
    let of = |group| Opening { group: Some(group), ..opening("vg0/root", session(1), repository(1), None) };
    let error = volumes.open(&of(&missing)).await.unwrap_err();
    assert!(error.to_string().contains("vg0/gone"), "{error}");
    host.fill();
    let whole = group(2, &["vg0/root", "vg0/data"]);
    let error = volumes.open(&of(&whole)).await.unwrap_err();
    assert!(error.to_string().contains("no space left"), "{error}");
    assert_eq!(host.names(), ["data", "root"]);
}

#[tokio::test]
async fn members_that_nobody_comes_for_go_in_the_end() {
    let host = Host::new(&[linear("vg0", "root"), linear("vg0", "data")]);
    let volumes = host.volumes(host.settings());
    let group = group(1, &["vg0/root", "vg0/data"]);
    let of = Opening { group: Some(&group), ..opening("vg0/root", session(1), repository(1), None) };
    volumes.open(&of).await.unwrap();
    assert_eq!(host.names().len(), 4);
    let before = host.ran("lvs").len();
    volumes.shared.look().await;
    let looks = host.ran("lvs").split_off(before);
    assert!(looks.len() == 1 && looks[0].ends_with(" vg0"), "of no other volume group: {looks:?}");
    volumes.finish().await;
    assert_eq!(host.names().len(), 3);
    assert_eq!(volumes.open_sessions(), [session(1)]);
}

#[tokio::test]
async fn snapshots_at_once_are_bounded() {
    let host = Host::new(&[linear("vg0", "a"), linear("vg0", "b")]);
    let volumes = host.volumes(Settings { max_snapshots: 1, ..host.settings() });
    volumes.open(&opening("vg0/a", session(1), repository(1), None)).await.unwrap();
    let error = volumes.open(&opening("vg0/b", session(2), repository(1), None)).await.unwrap_err();
    assert!(matches!(error, VolumeError::Busy { .. }), "{error}");
    assert!(agent::Failure::from(error).retry);
    volumes.close(session(1), true).await;
    volumes.open(&opening("vg0/b", session(2), repository(1), None)).await.unwrap();
}

/// Whoever drove the session is gone, and nobody said how it ended.
#[tokio::test]
async fn what_is_released_makes_room_and_stays_for_its_session() {
    let host = Host::new(&[linear("vg0", "a"), linear("vg0", "b")]);
    let volumes = host.volumes(Settings { max_snapshots: 1, ..host.settings() });
    let first = volumes.open(&opening("vg0/a", session(1), repository(1), None)).await.unwrap();
    let reading = first.info().reading;
    volumes.release(session(1)).await;
    assert_eq!(volumes.open_sessions(), [session(1)], "it is being read");
    drop(first);
    volumes.release(session(1)).await;
    assert_eq!(volumes.open_sessions(), []);
    assert!(!host.tags(&name(1)).contains("lvkeep.owner"), "no other process takes it for being read");
    volumes.open(&opening("vg0/b", session(2), repository(1), None)).await.unwrap();
    volumes.close(session(2), true).await;
    let again = volumes.open(&opening("vg0/a", session(1), repository(1), None)).await.unwrap();
    assert_eq!(again.info().reading, reading);
}

#[tokio::test]
async fn what_cannot_be_snapshotted_is_refused_by_name() {
    let web = linear("vg0", "web");
    let baseline = ours(&web, &marks(&web, repository(1), 1));
    let host = Host::new(&[web, baseline.clone(), pool("vg0", "pool"), thick_snapshot("vg0", "mine", "web")]);
    let volumes = host.volumes(host.settings());
    for (source, said) in [
        ("vg0/nothing", "has no volume nothing"),
        ("vg0/pool", "takes no snapshot of a thin-pool"),
        (&*baseline.full_name(), "lvkeep's own"),
    ] {
        let error =
            volumes.open(&opening(source, session(2), repository(1), None)).await.unwrap_err().to_string();
        assert!(error.contains(said) && error.contains(source), "{error}");
    }
    volumes.open(&opening("vg0/mine", session(2), repository(1), None)).await.unwrap();
    assert_eq!(*host.inner.opened.lock().unwrap(), ["vg0/mine"], "somebody's snapshot is read as it is");
}

#[tokio::test]
async fn cleaning_removes_orphans_alone() {
    let web = linear("vg0", "web");
    let host = Host::new(&[
        web.clone(),
        ours(&web, &Marks { embedded: true, ..marks(&web, repository(1), 1) }),
        ours(&web, &marks(&web, repository(2), 4)),
        ours(&web, &Marks { baseline: true, ..marks(&web, repository(1), 2) }),
        ours(
            &web,
            &Marks { owner: Some(crate::owner::Owner::this().unwrap()), ..marks(&web, repository(1), 3) },
        ),
        thick_snapshot("vg0", "mine", "web"),
    ]);
    let unknown = |_, _| Fate::Unknown;
    let listed = LvmVolumes::survey(&host.tools, &host.settings(), unknown, false).await.unwrap();
    assert_eq!((listed.len(), host.names().len()), (4, 6));
    assert_eq!(listed.iter().filter(|one| one.orphan.is_some()).count(), 1);
    let cleaned = LvmVolumes::survey(&host.tools, &host.settings(), unknown, true).await.unwrap();
    assert_eq!(cleaned.iter().filter(|one| one.removed).count(), 1);
    let kept = [name(2), name(3), name(4), "mine".into(), "web".into()];
    assert_eq!(
        host.names(),
        kept,
        "an agent that starts again may go on with one that nobody here can judge"
    );
    let given_up = |_, _| Fate::GivenUp;
    LvmVolumes::survey(&host.tools, &host.settings(), given_up, true).await.unwrap();
    assert_eq!(host.names(), [name(2), name(3), "mine".into(), "web".into()]);
}
