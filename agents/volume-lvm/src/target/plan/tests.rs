//! What is planned and what is refused, by tables of volumes.

use schema::messages::{NewVolume, Preparation, Safety};

use super::*;
use crate::marks::Marks;
use crate::report::Attributes;
use crate::testing::{
    group, inventory, linear, marks, ours, owner, pool, repository, session, thick_snapshot, thin,
    thin_snapshot,
};

const GIB: u64 = 1 << 30;

fn job() -> JobId {
    JobId::from_parts(1_700_000_000_000, 7)
}

struct Asked {
    lv: &'static str,
    size: u64,
    data: u64,
    only: Option<u64>,
    layout: BTreeMap<String, String>,
    preparation: Preparation,
    force: bool,
}

impl Asked {
    fn of(lv: &'static str) -> Self {
        let (layout, preparation) = (BTreeMap::new(), Preparation::default());
        Self { lv, size: GIB, data: GIB, only: None, layout, preparation, force: false }
    }

    fn forced(self) -> Self {
        Self { force: true, ..self }
    }

    fn safe(self, size: Option<u64>) -> Self {
        let preparation = Preparation { safety: Some(Safety { size }), ..self.preparation };
        Self { preparation, ..self }
    }

    fn dropping(self) -> Self {
        let preparation = Preparation { drop_baseline: true, ..self.preparation };
        Self { preparation, ..self }
    }

    fn created(self, new: NewVolume) -> Self {
        let preparation = Preparation { create: Some(new), ..self.preparation };
        Self { preparation, ..self }
    }

    fn plan(&self, inventory: &Inventory) -> Result<Plan, String> {
        let request = Request {
            vg: "vg0",
            lv: self.lv,
            size: self.size,
            data: self.data,
            only: self.only,
            layout: &self.layout,
            repository: repository(1),
            snapshot: session(1),
            job: job(),
            preparation: &self.preparation,
            force: self.force,
            donor: None,
            promised: &Promised::default(),
        };
        plan(inventory, &request, |one| *one == owner(1))
    }
}

fn with(volume: LogicalVolume, letters: &str) -> LogicalVolume {
    LogicalVolume { attributes: Attributes::new(letters), ..volume }
}

fn named<'a>(plan: &'a Plan, part: &str) -> Option<&'a String> {
    plan.notes.iter().find(|note| note.contains(part))
}

#[test]
fn an_ordinary_volume_is_taken_as_it_is() {
    let web = linear("vg0", "web");
    let plan = Asked::of("web").plan(&inventory([web.clone()])).unwrap();
    assert_eq!(plan, Plan::new(Volume::There(Box::new(web)), vec![]));
}

#[test]
fn what_cannot_be_restored_to_is_refused_by_force_too() {
    let web = || linear("vg0", "web");
    let marked = ours(&web(), &marks(&web(), repository(1), 3));
    let part = LogicalVolume { hidden: true, ..linear("vg0", "web") };
    let small = LogicalVolume { size: GIB - 4096, ..web() };
    for (lv, volumes, part) in [
        ("web", vec![], "--create"),
        ("web", vec![part], "a part of another"),
        ("web", vec![pool("vg0", "web")], "a pool"),
        ("web", vec![linear("vg0", "real"), thick_snapshot("vg0", "web", "real")], "snapshot of real"),
        ("web", vec![with(web(), "Owi-a-s---")], "merged"),
        ("web", vec![with(web(), "-ri-a-----")], "--permission rw vg0/web"),
        ("web", vec![with(web(), "-wi-------")], "--activate y vg0/web"),
        ("web", vec![with(web(), "-wi-a---p-")], "physical volume"),
        ("web", vec![small], "1073737728 bytes"),
        ("lvkeep-01ARZ3NDEKTSV4RRFFQ69G5FAV", vec![web(), marked], "lvkeep's own"),
    ] {
        for asked in [Asked::of(lv), Asked::of(lv).forced()] {
            let why = asked.plan(&inventory(volumes.clone())).unwrap_err();
            assert!(why.contains(part), "{part} is not in: {why}");
        }
    }
    let why = Asked::of("web").plan(&Inventory::default()).unwrap_err();
    assert!(why.contains("no volume group vg0"), "{why}");
}

#[test]
fn a_larger_volume_is_taken_and_said_to_be_emptied_behind() {
    let asked = Asked { size: GIB - 4096, data: 0, ..Asked::of("web") };
    let plan = asked.plan(&inventory([linear("vg0", "web")])).unwrap();
    assert!(named(&plan, "4.0 KiB behind its end").is_some(), "{:?}", plan.notes);
}

#[test]
fn what_is_behind_more_than_an_extent_is_emptied_by_force_alone() {
    let extent = group("vg0", 0).extent_size;
    let volume = |more| LogicalVolume { size: GIB + more, ..linear("vg0", "web") };
    let plan = Asked::of("web").plan(&inventory([volume(extent)])).unwrap();
    assert!(named(&plan, "behind its end").is_some(), "{:?}", plan.notes);

    let larger = volume(extent + 4096);
    let why = Asked::of("web").plan(&inventory([larger.clone()])).unwrap_err();
    for part in ["1073741824", &larger.size.to_string(), "made empty", "force", "0+1073741824"] {
        assert!(why.contains(part), "{part} is not in: {why}");
    }
    let plan = Asked::of("web").forced().plan(&inventory([larger.clone()])).unwrap();
    assert!(named(&plan, "behind its end").is_some(), "{:?}", plan.notes);
    let range = Asked { only: Some(GIB), ..Asked::of("web") };
    assert_eq!(range.plan(&inventory([larger.clone()])).unwrap().notes, [""; 0]);

    // Such as one of many stripes, which an earlier attempt has made.
    let tags = vec![unfinished(job())];
    let made = inventory([LogicalVolume { tags, ..larger }]);
    Asked::of("web").created(NewVolume::Plain).plan(&made).unwrap();
}

#[test]
fn a_baseline_goes_only_when_asked_and_only_this_repositorys() {
    let web = linear("vg0", "web");
    let baseline = ours(&web, &marks(&web, repository(1), 3));
    let other = ours(&web, &marks(&web, repository(2), 4));
    let of_another = ours(&linear("vg0", "db"), &marks(&linear("vg0", "db"), repository(1), 5));
    let all = inventory([web, linear("vg0", "db"), baseline.clone(), other.clone(), of_another]);
    let kept = Asked::of("web").plan(&all).unwrap();
    assert_eq!(kept.drop, []);
    let note = named(&kept, &baseline.name).expect("it is said");
    assert!(note.contains("is lost when more than 90.0 MiB") && note.contains("--drop-baseline"), "{note}");
    let dropped = Asked::of("web").dropping().plan(&all).unwrap();
    assert_eq!(dropped.drop, std::slice::from_ref(&baseline));
    assert!(named(&dropped, &baseline.name).unwrap().contains("reads all of it"));
    assert!(named(&dropped, &other.name).unwrap().contains("belongs to the repository"));
    let none = Asked::of("web").dropping().plan(&inventory([linear("vg0", "web")])).unwrap();
    assert!(named(&none, "no baseline").is_some());
}

#[test]
fn a_running_backup_is_not_disturbed() {
    let web = linear("vg0", "web");
    let read = |by| ours(&web, &Marks { owner: Some(owner(by)), ..marks(&web, repository(1), 3) });
    let running = inventory([web.clone(), read(1)]);
    let why = Asked::of("web").dropping().plan(&running).unwrap_err();
    assert!(why.contains("a backup reads its snapshot"), "{why}");
    let forced = Asked::of("web").dropping().forced().plan(&running).unwrap();
    assert_eq!(forced.drop, [], "what a backup reads is not removed by force either");
    let crashed = inventory([web.clone(), read(2)]);
    assert_eq!(Asked::of("web").dropping().plan(&crashed).unwrap().drop.len(), 1);
}

#[test]
fn a_snapshot_of_somebody_else_is_not_overflowed_unasked() {
    let web = linear("vg0", "web");
    let small = thick_snapshot("vg0", "before-upgrade", "web");
    let why = Asked::of("web").plan(&inventory([web.clone(), small.clone()])).unwrap_err();
    assert!(why.contains("before-upgrade") && why.contains("90.0 MiB of up to 1.0 GiB"), "{why}");
    let forced = Asked::of("web").forced().plan(&inventory([web.clone(), small.clone()])).unwrap();
    assert!(named(&forced, "would be lost").is_some());
    let large = LogicalVolume { size: 2 * GIB, ..small.clone() };
    assert!(Asked::of("web").plan(&inventory([web.clone(), large])).is_ok());
    let lost = with(small, "swi-I-s---");
    assert_eq!(Asked::of("web").plan(&inventory([web, lost])).unwrap().notes, [""; 0]);
}

#[test]
fn a_safety_snapshot_holds_the_volume_or_says_that_it_does_not() {
    let (web, extent) = (linear("vg0", "web"), 4 << 20);
    let whole = extents(store_of(web.size), &group("vg0", 0));
    let with_free = |free| {
        let mut all = inventory([linear("vg0", "web")]);
        all.groups = vec![group("vg0", free)];
        all
    };
    for (asked, free, expected) in [
        (None, 50 * GIB, Some((whole, true))),
        (None, whole, Some((whole, true))),
        (None, GIB / 2, Some((GIB / 2, false))),
        (None, GIB / 10, None),
        (Some(GIB / 10), GIB / 2, Some((26 * extent, false))),
        (Some(100 * GIB), 200 * GIB, Some((whole, true))),
        (Some(GIB), GIB / 2, None),
    ] {
        let planned = Asked::of("web").safe(asked).plan(&with_free(free));
        match (planned, expected) {
            (Ok(plan), Some((size, holds_all))) => {
                let safety = plan.safety.clone().unwrap();
                assert_eq!((safety.size, safety.holds_all), (Some(size), holds_all), "{asked:?} of {free}");
                assert_eq!(named(&plan, "has room for").is_none(), holds_all);
                let arguments = safety.arguments(&web).join(" ");
                assert!(arguments.contains(&format!("--size {size}b vg0/web")), "{arguments}");
                assert!(arguments.contains("--addtag lvkeep-safety"), "{arguments}");
            }
            (Err(why), None) => assert!(why.contains("volume group vg0 has"), "{why}"),
            (planned, _) => panic!("{asked:?} of {free}: {planned:?}"),
        }
    }
}

#[test]
fn a_safety_snapshot_is_never_taken_for_one_that_may_be_removed() {
    let web = linear("vg0", "web");
    let plan = Asked::of("web").safe(None).plan(&inventory([web.clone()])).unwrap();
    let name = plan.safety.unwrap().name;
    let taken = LogicalVolume { tags: vec![SAFETY.into()], ..thick_snapshot("vg0", &name, "web") };
    let all = inventory([web, LogicalVolume { size: 2 * GIB, ..taken }]);
    assert_eq!(snapshots::all(&all).count(), 0);
    // The same job again keeps it: it holds what was there before the first attempt.
    let again = Asked::of("web").safe(None).plan(&all).unwrap().safety.unwrap();
    assert!(again.taken && again.name == name);
}

#[test]
fn the_extents_of_a_dropped_baseline_are_there_for_the_safety_snapshot() {
    let web = linear("vg0", "web");
    let baseline = LogicalVolume { size: 2 * GIB, ..ours(&web, &marks(&web, repository(1), 3)) };
    let mut all = inventory([web, baseline]);
    all.groups = vec![group("vg0", 0)];
    assert!(Asked::of("web").safe(None).plan(&all).is_err());
    assert!(Asked::of("web").safe(None).dropping().plan(&all).unwrap().safety.unwrap().holds_all);
}

#[test]
fn a_thin_pool_is_not_filled_unasked() {
    let pool = || LogicalVolume { size: 4 * GIB, data_percent: Some(75.0), ..pool("vg0", "pool") };
    let db = || LogicalVolume { size: 8 * GIB, data_percent: Some(25.0), ..thin("vg0", "db", "pool", 1) };
    let asked = |data| Asked { size: 8 * GIB, data, ..Asked::of("db") };
    let alone = inventory([pool(), db()]);
    // 1 GiB is left, and 2 GiB are the volume's own already.
    assert!(asked(3 * GIB).plan(&alone).is_ok());
    let why = asked(4 * GIB).plan(&alone).unwrap_err();
    assert!(why.contains("vg0/pool has 1.0 GiB left and up to 2.0 GiB"), "{why}");
    assert!(asked(4 * GIB).forced().plan(&alone).is_ok());
    // Blocks that a snapshot shares stay taken.
    let shared = inventory([pool(), db(), thin_snapshot("vg0", "old", &db(), 2)]);
    assert!(asked(3 * GIB).plan(&shared).is_err());
    assert!(asked(3 * GIB).safe(None).plan(&alone).is_err());
    let safe = asked(GIB).safe(None).plan(&alone).unwrap().safety.unwrap();
    assert_eq!((safe.size, safe.holds_all), (None, true));
    assert!(!safe.arguments(&db()).contains(&"--size".to_owned()));
}

#[test]
fn a_new_volume_is_as_large_as_the_snapshot_in_extents() {
    let empty = inventory([]);
    let asked = |new| Asked { size: GIB + 1, data: GIB, ..Asked::of("new") }.created(new);
    let made = |asked: &Asked, inventory: &Inventory| match asked.plan(inventory).unwrap().volume {
        Volume::New(arguments) => arguments.join(" "),
        other => panic!("{other:?}"),
    };
    let tag = format!("--addtag lvkeep-unfinished={} --addtag lvkeep-incomplete={}", job(), session(1));
    let plain = made(&asked(NewVolume::Plain), &empty);
    assert_eq!(
        plain,
        format!("--yes --quiet --name new {tag} --wipesignatures y --zero y --size {}b vg0", GIB + (4 << 20))
    );
    let in_pool = NewVolume::Thin { pool: "pool".into() };
    let thin = made(&asked(in_pool.clone()), &inventory([pool("vg0", "pool")]));
    let size = GIB + (4 << 20);
    assert_eq!(thin, format!("--yes --quiet --name new {tag} --virtualsize {size}b --thinpool vg0/pool"));
    let why = asked(in_pool).plan(&empty).unwrap_err();
    assert!(why.contains("no thin pool pool"), "{why}");
    let mut full = inventory([]);
    full.groups = vec![group("vg0", GIB)];
    let why = asked(NewVolume::Plain).plan(&full).unwrap_err();
    assert!(why.contains("1.0 GiB left"), "{why}");
    let why =
        Asked::of("web").created(NewVolume::Plain).plan(&inventory([linear("vg0", "web")])).unwrap_err();
    assert!(why.contains("exists already"), "{why}");
}

#[test]
fn a_new_volume_is_like_the_old_one_where_that_is_known() {
    let facts = |facts: &[(&str, &str)]| -> BTreeMap<String, String> {
        facts.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    for (layout, expected) in [
        (facts(&[("lv_type", "linear")]), "--wipesignatures"),
        (
            facts(&[("lv_type", "striped"), ("stripes", "2"), ("stripe_size", "65536")]),
            "--stripes 2 --stripesize 65536b",
        ),
        (facts(&[("lv_type", "raid1")]), "--type raid1 --mirrors 1"),
        (facts(&[("lv_type", "thin"), ("pool", "pool")]), "--thinpool vg0/pool"),
        (facts(&[("lv_type", "cache")]), "--wipesignatures"),
    ] {
        let asked = Asked { layout, ..Asked::of("new") }.created(NewVolume::Alike);
        let plan = asked.plan(&inventory([pool("vg0", "pool")])).unwrap();
        assert_eq!(named(&plan, "not made").is_some(), asked.layout["lv_type"] == "cache");
        let Volume::New(arguments) = plan.volume else { panic!("it is made") };
        assert!(arguments.join(" ").contains(expected), "{arguments:?}");
    }
    let why = Asked::of("new").created(NewVolume::Alike).plan(&inventory([])).unwrap_err();
    assert!(why.contains("--like"), "{why}");
}

#[test]
fn only_the_same_job_goes_on_with_what_was_begun() {
    let begun = |tag: String| LogicalVolume { tags: vec![tag], ..linear("vg0", "web") };
    let same = begun(format!("lvkeep-unfinished={}", job()));
    let plan = Asked::of("web").created(NewVolume::Plain).plan(&inventory([same.clone()])).unwrap();
    assert_eq!(plan.volume, Volume::Begun(Box::new(same.clone())));
    let done = without_tags(&same, UNFINISHED).unwrap().join(" ");
    assert_eq!(done, format!("--quiet --deltag lvkeep-unfinished={} vg0/web", job()));
    assert_eq!(without_tags(&linear("vg0", "web"), UNFINISHED), None);
    let other = begun(format!("lvkeep-unfinished={}", JobId::from_parts(1_700_000_000_000, 8)));
    let why = Asked::of("web").created(NewVolume::Plain).plan(&inventory([other.clone()])).unwrap_err();
    assert!(why.contains("left unfinished"), "{why}");
    let plan = Asked::of("web").plan(&inventory([other.clone()])).unwrap();
    assert_eq!(plan.volume, Volume::There(Box::new(other)));
}

#[test]
fn what_was_cut_off_is_made_by_going_on_with_it_and_nothing_else_is() {
    let tagged = |tags: &[String]| LogicalVolume { tags: tags.into(), ..linear("vg0", "web") };
    let asked = || Asked::of("web").created(NewVolume::Plain);
    let cut_off = tagged(&[incomplete(session(1))]);
    let plan = asked().plan(&inventory([cut_off.clone()])).unwrap();
    assert_eq!(plan.volume, Volume::Incomplete(Box::new(cut_off.clone())));
    assert!(named(&plan, "goes on with vg0/web").is_some(), "{:?}", plan.notes);
    // One that was killed has left the tag of its job as well.
    let killed = tagged(&[unfinished(JobId::from_parts(1_700_000_000_000, 8)), incomplete(session(1))]);
    assert!(matches!(asked().plan(&inventory([killed])).unwrap().volume, Volume::Incomplete(_)));
    // Whatever LVM made of its size.
    let larger = LogicalVolume { size: GIB + (1 << 30), ..cut_off.clone() };
    assert!(asked().plan(&inventory([larger.clone()])).is_ok());
    let plan = Asked::of("web").plan(&inventory([larger.clone()])).unwrap();
    assert_eq!(plan.volume, Volume::There(Box::new(larger)));

    let other = tagged(&[incomplete(session(2))]);
    let why = asked().plan(&inventory([other.clone()])).unwrap_err();
    for part in [session(1).to_string(), session(2).to_string(), "lvremove vg0/web".to_owned()] {
        assert!(why.contains(&part), "{part} is not in: {why}");
    }
    assert!(asked().forced().plan(&inventory([other.clone()])).is_err());
    assert!(Asked::of("web").plan(&inventory([other])).is_ok());
    let why = asked().plan(&inventory([linear("vg0", "web")])).unwrap_err();
    assert!(why.contains("exists already") && why.contains("leave it out"), "{why}");
}
