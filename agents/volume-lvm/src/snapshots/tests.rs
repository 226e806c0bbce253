use proptest::prelude::*;

use super::*;
use crate::report::Attributes;
use crate::testing::*;

fn web() -> LogicalVolume {
    linear("vg0", "web")
}

fn names(list: &[Ours<'_>]) -> Vec<String> {
    let mut names: Vec<String> = list.iter().map(|ours| ours.volume.name.clone()).collect();
    names.sort();
    names
}

fn name(n: u128) -> String {
    Marks::name(session(n))
}

fn nobody(_: &Marks) -> bool {
    false
}

#[test]
fn only_the_parents_snapshot_is_kept_and_used() {
    let (web, r) = (web(), repository(1));
    let held = Marks { owner: Some(owner(9)), ..marks(&web, r, 4) };
    let snapshots =
        [marks(&web, r, 1), marks(&web, r, 2), marks(&web, r, 3), held].map(|marks| ours(&web, &marks));
    let inventory = inventory([vec![web.clone()], snapshots.to_vec()].concat());
    let lives = |marks: &Marks| marks.owner.is_some();

    let found = tidy(&inventory, &web.uuid, r, Some(session(2)), lives);
    assert_eq!(found.baseline.unwrap().volume.name, name(2));
    assert_eq!((names(&found.remove), found.why), (vec![name(1), name(3)], None));

    let forgotten = tidy(&inventory, &web.uuid, r, Some(session(77)), lives);
    assert!(forgotten.baseline.is_none() && forgotten.why.unwrap().contains(&session(77).to_string()));
    assert_eq!(names(&forgotten.remove), [name(1), name(2), name(3)]);

    let first = tidy(&inventory, &web.uuid, r, None, lives);
    assert_eq!((first.baseline, first.why), (None, None), "nothing was to be expected");
    assert_eq!(names(&first.remove), [name(1), name(2), name(3)]);

    let all_dead = tidy(&inventory, &web.uuid, r, Some(session(4)), nobody);
    assert_eq!(all_dead.baseline.unwrap().volume.name, name(4), "committed by a process that is gone");
}

#[test]
fn other_baselines_wait_for_a_commit() {
    let (web, r) = (web(), repository(1));
    let kept = |n| Marks { baseline: true, ..marks(&web, r, n) };
    let overflowed = LogicalVolume { attributes: Attributes::new("sri-I-s---"), ..ours(&web, &kept(3)) };
    let inventory =
        inventory([web.clone(), ours(&web, &kept(1)), ours(&web, &marks(&web, r, 2)), overflowed]);
    for parent in [None, Some(session(77))] {
        let found = tidy(&inventory, &web.uuid, r, parent, nobody);
        assert_eq!(
            names(&found.remove),
            [name(2), name(3)],
            "another volume's name may go on with the first"
        );
        assert_eq!(names(&found.waiting), [name(1)]);
    }
    assert_eq!(names(&rotate(&inventory, &web.uuid, r, session(2), true, nobody)), [name(1), name(3)]);
}

#[test]
fn waiting_baselines_give_way_only_where_that_makes_room() {
    let (web, db, r) = (web(), thin("vg0", "db", "pool", 1), repository(1));
    let mib = |n: u64| n << 20;
    let refused = |vg: &str, free, needed| NoRoom::Group {
        vg: vg.into(),
        volume: "vg0/web".into(),
        free: mib(free),
        needed: mib(needed),
        why: "",
    };
    let full = NoRoom::Unwell { pool: "vg0/pool".into(), why: "" };
    let waits = |origin| Marks { baseline: true, ..marks(origin, r, 1) };
    for (origin, refused, goes) in [
        (&web, refused("vg0", 20, 120), true),
        (&web, refused("vg0", 20, 121), false),
        (&web, refused("vg1", 20, 120), false),
        (&web, full, false),
        (&db, refused("vg0", 20, 120), false),
    ] {
        let inventory = inventory([origin.clone(), ours(origin, &waits(origin))]);
        let found = tidy(&inventory, &origin.uuid, r, None, nobody);
        assert_eq!(found.waiting.len(), 1);
        let way = giving_way(&found.waiting, &refused);
        assert_eq!(way.map_or(0, |way| way.len()), usize::from(goes), "{refused:?}");
    }
}

#[test]
fn what_shines_through_in_another_pool_stays() {
    let (db, r) = (thin("vg0", "db", "pool", 1), repository(1));
    let baseline = ours(&db, &marks(&db, r, 1));
    let clone = |pool: &str| LogicalVolume {
        origin_uuid: Some(baseline.uuid.clone()),
        ..thin("vg0", "clone", pool, 2)
    };
    for (pool, stays) in [("pool", false), ("second", true)] {
        let inventory = inventory([db.clone(), baseline.clone(), clone(pool)]);
        let all: Vec<_> = all(&inventory).collect();
        assert_eq!(spared(&inventory, &all[0]).is_some(), stays, "{pool}");
    }
}

#[test]
fn an_unfit_baseline_is_not_used_and_said_to_be() {
    let (web, r) = (web(), repository(1));
    let full = |mut volume: LogicalVolume| {
        volume.data_percent = Some(100.0);
        volume
    };
    let with = |letters: &str, volume: LogicalVolume| LogicalVolume {
        attributes: Attributes::new(letters),
        ..volume
    };
    let good = ours(&web, &marks(&web, r, 1));
    for (snapshot, said, goes) in [
        (with("sri-I-s---", good.clone()), "overflowed", true),
        (with("swi-I-s---", good.clone()), "overflowed", true),
        (full(good.clone()), "overflowed", true),
        (with("Sri-a-s---", good.clone()), "merged", false),
        (with("swi-a-s---", good.clone()), "writable", false),
        (with("sri-a-s-p-", good.clone()), "not well", true),
    ] {
        let inventory = inventory([web.clone(), snapshot]);
        let found = tidy(&inventory, &web.uuid, r, Some(session(1)), nobody);
        assert!(found.baseline.is_none());
        let why = found.why.unwrap();
        assert!(why.contains(said) && why.contains(&name(1)), "{why}");
        assert_eq!(found.remove.len(), usize::from(goes), "{said}");
    }
}

#[test]
fn two_that_claim_to_be_the_parents_are_both_disbelieved() {
    let (web, r) = (web(), repository(1));
    let second = Marks { session: Some(session(1)), ..marks(&web, r, 2) };
    let inventory = inventory([web.clone(), ours(&web, &marks(&web, r, 1)), ours(&web, &second)]);
    let found = tidy(&inventory, &web.uuid, r, Some(session(1)), nobody);
    assert!(found.baseline.is_none() && found.why.is_some());
}

#[test]
fn a_recreated_volume_has_no_baseline_and_its_namesakes_is_left_alone() {
    let (web, r) = (web(), repository(1));
    let old = LogicalVolume { uuid: uuid("vg0", "elsewhere"), ..web.clone() };
    let orphan = LogicalVolume { origin_uuid: Some(old.uuid.clone()), ..ours(&web, &marks(&old, r, 1)) };
    let inventory = inventory([web.clone(), orphan]);
    let found = tidy(&inventory, &web.uuid, r, Some(session(1)), nobody);
    assert!(found.baseline.is_none() && found.why.is_some() && found.remove.is_empty());
}

#[test]
fn another_repositorys_snapshots_are_never_looked_at() {
    let web = web();
    let inventory = inventory([web.clone(), ours(&web, &marks(&web, repository(2), 1))]);
    let found = tidy(&inventory, &web.uuid, repository(1), Some(session(1)), nobody);
    assert!(found.baseline.is_none() && found.remove.is_empty());
    assert!(rotate(&inventory, &web.uuid, repository(1), session(5), true, nobody).is_empty());
}

#[test]
fn after_a_commit_the_older_ones_go() {
    let (web, r) = (web(), repository(1));
    let running = Marks { owner: Some(owner(9)), ..marks(&web, r, 3) };
    let snapshots = [marks(&web, r, 1), marks(&web, r, 2), running].map(|marks| ours(&web, &marks));
    let inventory = inventory([vec![web.clone()], snapshots.to_vec()].concat());
    let lives = |marks: &Marks| marks.owner.is_some();
    assert_eq!(names(&rotate(&inventory, &web.uuid, r, session(2), true, lives)), [name(1)]);
    assert_eq!(names(&rotate(&inventory, &web.uuid, r, session(2), false, lives)), [name(1), name(2)]);
}

#[test]
fn a_thin_snapshot_that_others_depend_on_stays() {
    let (thin, r) = (thin("vg0", "db", "pool", 1), repository(1));
    let snapshot = ours(&thin, &marks(&thin, r, 1));
    let dependent = thick_snapshot("vg0", "mine", &snapshot.name);
    let inventory = inventory([thin.clone(), snapshot, dependent]);
    assert!(rotate(&inventory, &thin.uuid, r, session(2), true, nobody).is_empty());
}

#[test]
fn orphans_are_told_by_their_sessions_fate() {
    let (web, r) = (web(), repository(1));
    let plain = marks(&web, r, 1);
    let table = [
        (plain.clone(), Fate::Newest, false),
        (plain.clone(), Fate::Open, false),
        (plain.clone(), Fate::Over, true),
        (Marks { embedded: true, ..plain.clone() }, Fate::Open, true),
        (Marks { embedded: true, ..plain.clone() }, Fate::Newest, false),
        (plain.clone(), Fate::Unknown, false),
        (plain.clone(), Fate::GivenUp, true),
        (Marks { embedded: true, ..plain.clone() }, Fate::Unknown, true),
        (Marks { baseline: true, ..plain.clone() }, Fate::Unknown, false),
        (Marks { baseline: true, ..plain.clone() }, Fate::GivenUp, false),
        (Marks { baseline: true, ..plain.clone() }, Fate::Over, true),
        (Marks { session: None, ..plain.clone() }, Fate::Unknown, false),
        (Marks { session: None, ..plain.clone() }, Fate::GivenUp, true),
        (Marks { session: None, embedded: true, ..plain.clone() }, Fate::Unknown, true),
        (Marks { owner: Some(owner(1)), ..plain.clone() }, Fate::Over, false),
    ];
    for (marks, fate, goes) in table {
        let inventory = inventory([web.clone(), ours(&web, &marks)]);
        let found: Vec<_> = all(&inventory).collect();
        let orphaned = orphaned(&inventory, &found[0], fate, |marks| marks.owner.is_some());
        assert_eq!(orphaned.is_some(), goes, "{marks:?} {fate:?}");
    }
    let thin = thin("vg0", "gone", "pool", 1);
    let lonely = LogicalVolume { origin: None, origin_uuid: None, ..ours(&thin, &marks(&thin, r, 1)) };
    let inventory = inventory([lonely]);
    let found: Vec<_> = all(&inventory).collect();
    assert!(orphaned(&inventory, &found[0], Fate::Newest, nobody).is_some_and(|why| why.contains("origin")));
}

/// Volumes of every sort: ours, half ours, others'; of few origins and repositories, so that they meet.
fn anything() -> impl Strategy<Value = LogicalVolume> {
    let tags = (0u128..4, 1u8..3, 0usize..3, any::<bool>(), any::<bool>(), 0usize..5);
    let letters = prop_oneof![
        Just("sri-a-s---"),
        Just("swi-a-s---"),
        Just("Sri-a-s---"),
        Just("sri-I-s---"),
        Just("Vri---tz-k"),
        Just("-wi-ao----")
    ];
    (tags, letters, 0usize..3, 0u128..4, 0usize..4).prop_map(
        |((n, r, of, live, kept, drop), letters, lvm_says, named, shape)| {
            let origins = [linear("vg0", "web"), linear("vg0", "db"), linear("vg1", "web")];
            let marks = Marks {
                owner: live.then(|| owner(1)),
                baseline: kept,
                ..marks(&origins[of], repository(r), n)
            };
            let mut tags = marks.tags();
            if drop < tags.len() && drop < 3 {
                tags.remove(drop);
            }
            let base = match shape {
                0 => linear("vg0", "plain"),
                _ => thick_snapshot("vg0", "plain", &origins[lvm_says].name),
            };
            LogicalVolume {
                name: if shape == 3 { "web-before-upgrade".into() } else { Marks::name(session(named)) },
                uuid: uuid("vg0", &format!("{n}{r}{of}{named}{shape}{drop}")),
                attributes: Attributes::new(letters),
                origin_uuid: Some(origins[lvm_says].uuid.clone()).filter(|_| shape != 0),
                tags,
                ..base
            }
        },
    )
}

proptest! {
    /// What a strict reader of the rules would let go.
    #[test]
    fn nothing_but_our_own_for_this_volume_and_repository_is_ever_in_a_list(
        volumes in proptest::collection::vec(anything(), 0..24), keep in any::<bool>(), parent in 0u128..5,
    ) {
        let (web, r) = (linear("vg0", "web"), repository(1));
        let inventory = inventory([vec![web.clone()], volumes].concat());
        let lives = |marks: &Marks| marks.owner.is_some();
        let tidied = tidy(&inventory, &web.uuid, r, Some(session(parent)), lives);
        let rotated = rotate(&inventory, &web.uuid, r, session(parent), keep, |marks| {
            lives(marks) && marks.session != Some(session(parent))
        });
        for gone in tidied.remove.iter().chain(&tidied.waiting).chain(&rotated) {
            let tags = &gone.volume.tags;
            let has = |tag: String| tags.contains(&tag);
            prop_assert!(has(format!("lvkeep.repo={r}")), "another repository's");
            prop_assert!(has(format!("lvkeep.origin={}", web.uuid)), "another volume's");
            let id = gone.volume.name.strip_prefix("lvkeep-");
            prop_assert!(id.is_some_and(|id| has(format!("lvkeep.id={id}"))), "renamed");
            prop_assert_eq!(gone.volume.origin_uuid.as_ref(), Some(&web.uuid), "LVM says otherwise");
            let attributes = &gone.volume.attributes;
            prop_assert!(attributes.is_invalid() || !attributes.is_writable());
            prop_assert!(!attributes.is_merging());
            prop_assert_ne!(&gone.volume.uuid, &web.uuid);
        }
        for gone in tidied.remove.iter().chain(&tidied.waiting) {
            prop_assert!(gone.marks.owner.is_none(), "in use");
        }
        for waiting in &tidied.waiting {
            prop_assert!(waiting.marks.baseline && waiting.marks.session != Some(session(parent)));
        }
        if let Some(baseline) = &tidied.baseline {
            prop_assert_eq!(baseline.marks.session, Some(session(parent)));
            prop_assert!(!tidied.remove.iter().any(|gone| gone.volume.uuid == baseline.volume.uuid));
        }
        if keep {
            prop_assert!(rotated.iter().all(|gone| gone.marks.session != Some(session(parent))));
        }
    }
}
