//! Data keys that do not open where they are stored: they count as far as anything needs them.

use bytes::Bytes;
use checker::Report;
use schema::{Domain, KeyId, names};
use tests::rot::{Objects, Rot};

use super::{ALL, Victim, flipped, victim};

/// The key that seals the content which the suffering volume brought last.
fn last_key(victim: &Victim) -> KeyId {
    let (pack, _) = victim.pack(Domain::Data);
    schema::pack::parse_pack(&victim.objects[&pack]).expect("a pack").1.keys[0].id
}

/// The packs that name a key.
fn naming(objects: &Objects, id: KeyId) -> Vec<String> {
    let names_it = |(key, bytes): (&String, &Bytes)| {
        let (_, footer) = schema::pack::parse_pack(bytes).ok()?;
        footer.keys.iter().any(|key| key.id == id).then(|| key.clone())
    };
    objects.iter().filter(|(key, _)| key.starts_with("packs/")).filter_map(names_it).collect()
}

/// What is said of a key.
fn said(report: &Report, key: &str) -> Option<String> {
    report.objects.iter().find(|found| found.key == key).map(|found| found.why.clone())
}

async fn check(victim: &Victim, objects: &Objects) -> (Rot, Report) {
    let rot = victim.rot.with(objects).await.expect("a repository");
    let report = rot.check(ALL).await.expect("a report");
    (rot, report)
}

#[tokio::test]
async fn a_key_that_no_pack_names_is_no_damage_whatever_it_holds() {
    let victim = victim().await;
    let key = names::key(KeyId::from_bytes([0x55; 16]));
    let other = victim.objects[&names::key(last_key(&victim))].clone();
    for (what, bytes) in [
        ("empty", Bytes::new()),
        ("damaged", flipped(&other, 200)),
        ("another", other),
        ("cut", Bytes::from("age")),
    ] {
        let mut objects = victim.objects.clone();
        objects.insert(key.clone(), bytes.clone());
        let (rot, report) = check(&victim, &objects).await;
        assert!(report.is_clean(), "{what}: {report:?}");
        // Somebody may be about to use it.
        let (mended, report) = rot.repair().await.expect("a repair");
        assert!(mended.keys.is_empty() && report.is_clean(), "{what}: {report:?}");
        assert_eq!(rot.objects().await[&key], bytes, "{what}");
    }
}

/// What it sealed was stored again, and its packs are gone.
#[tokio::test]
async fn a_key_whose_packs_are_gone_is_no_damage() {
    let victim = victim().await;
    let id = last_key(&victim);
    let mut objects = victim.objects.clone();
    objects.insert(names::key(id), Bytes::from("damaged"));
    let (_, report) = check(&victim, &objects).await;
    assert!(said(&report, &names::key(id)).is_some(), "{report:?}");
    for pack in naming(&objects, id) {
        objects.remove(&pack);
    }
    let (rot, report) = check(&victim, &objects).await;
    assert_eq!(said(&report, &names::key(id)), None, "{report:?}");
    assert!(!report.damaged.is_empty(), "what it sealed is lost");
    rot.backup("vm/bad", &victim.path).await.expect("a backup");
    let report = rot.check(ALL).await.expect("a report");
    assert!(report.is_clean(), "{report:?}");
}

#[tokio::test]
async fn what_a_key_that_does_not_open_is_needed_for_is_said() {
    let victim = victim().await;
    let id = last_key(&victim);
    let (name, packs) = (names::key(id), naming(&victim.objects, id));
    let with = |bytes: Bytes| {
        let mut objects = victim.objects.clone();
        objects.insert(name.clone(), bytes);
        objects
    };
    let (_, report) = check(&victim, &with(flipped(&victim.objects[&name], 200))).await;
    let why = said(&report, &name).expect("it is said");
    for part in [&packs[0], "nothing is lost", "`lvkeep repair` stores it again"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    assert!(report.damaged.is_empty(), "{report:?}");

    let (rot, report) = check(&victim, &with(Bytes::new())).await;
    let why = said(&report, &name).expect("it is said");
    for part in [&packs[0], "nothing is lost", "made empty", "deleted by hand"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    // As it says.
    rot.repository.store.delete(&name).await.expect("it is deleted");
    let (mended, report) = rot.repair().await.expect("a repair");
    assert!(mended.keys == [id] && report.is_clean(), "{report:?}");

    // The footers of all its packs are lost, and with them what names it.
    let mut objects = with(Bytes::from("damaged"));
    for pack in &packs {
        let (_, footer) = schema::pack::parse_pack(&objects[pack]).expect("a pack");
        let end = footer.entries.last().map_or(0, |entry| (entry.offset + entry.len) as usize);
        objects.insert(pack.clone(), objects[pack].slice(..end));
    }
    let (_, report) = check(&victim, &objects).await;
    let why = said(&report, &name).expect("it is said");
    assert!(why.contains(&packs[0]) && why.contains("cannot be read, which may name it"), "{why}");
    assert!(report.unopened > 0, "{report:?}");
}
