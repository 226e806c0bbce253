use proptest::prelude::*;

use super::*;

fn ulid(n: u128) -> SessionId {
    SessionId::from_parts(1_700_000_000_000, n)
}

fn marks() -> Marks {
    Marks {
        id: ulid(7),
        repository: RepoId::from_bytes([0xab; 16]),
        origin: crate::testing::uuid("vg0", "web"),
        session: Some(ulid(7)),
        group: None,
        owner: Owner::new("a0b1", 42, 99),
        embedded: false,
        baseline: false,
    }
}

fn volume(name: &str, tags: Vec<String>) -> LogicalVolume {
    LogicalVolume { tags, ..crate::testing::thick_snapshot("vg0", name, "web") }
}

#[test]
fn marks_come_back_from_name_and_tags() {
    let kept = Marks { owner: None, baseline: true, group: Some(JobId::from_parts(5, 5)), ..marks() };
    let unclaimed = Marks { session: None, embedded: true, ..kept.clone() };
    for marks in [marks(), kept, unclaimed] {
        let mut tags = marks.tags();
        tags.insert(0, "backup".into());
        assert_eq!(Marks::of(&volume(&Marks::name(marks.id), tags)), Some(marks));
    }
}

#[test]
fn whatever_is_not_whole_is_somebody_elses() {
    let name = Marks::name(marks().id);
    let whole = marks().tags();
    assert!(Marks::of(&volume(&name, whole.clone())).is_some());
    assert!(Marks::of(&volume("web", whole.clone())).is_none(), "renamed");
    assert!(Marks::of(&volume(&Marks::name(ulid(8)), whole.clone())).is_none(), "another's name");
    assert!(Marks::of(&volume(&name.to_lowercase(), whole.clone())).is_none());
    assert!(Marks::of(&volume(&name, Vec::new())).is_none(), "the name alone");
    for without in 0..3 {
        let mut tags = whole.clone();
        tags.remove(without);
        assert!(Marks::of(&volume(&name, tags)).is_none(), "without {}", whole[without]);
    }
    for strange in ["lvkeep.session=x", "lvkeep.later=1", "lvkeep", "lvkeep.repo=00", "lvkeep.owner=me"] {
        let mut tags = whole.clone();
        tags.push(strange.into());
        assert!(Marks::of(&volume(&name, tags)).is_none(), "{strange}");
    }
}

#[test]
fn names_and_tags_are_ones_that_lvm_takes() {
    let tags =
        Marks { group: Some(JobId::from_parts(5, 5)), embedded: true, baseline: true, ..marks() }.tags();
    assert_eq!(tags.len(), 8);
    for tag in tags {
        let fits = |c: char| c.is_ascii_alphanumeric() || "_+.-/=!:&#".contains(c);
        assert!(tag.len() <= 1024 && !tag.starts_with('-') && tag.chars().all(fits), "{tag}");
    }
    let name = Marks::name(ulid(1));
    assert!(crate::report::is_name(&name));
    for reserved in
        ["_cdata", "_cmeta", "_mlog", "_mimage", "_rimage", "_rmeta", "_tdata", "_tmeta", "_vorigin"]
    {
        assert!(!name.contains(reserved));
    }
}

proptest! {
    #[test]
    fn strangers_tags_are_never_ours(tags in proptest::collection::vec("[a-z.=0-9]{1,20}", 0..8)) {
        prop_assert!(Marks::of(&volume(&Marks::name(ulid(7)), tags)).is_none());
    }
}
