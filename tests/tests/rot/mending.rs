//! What a repair moves is whole, whatever the store gives it meanwhile: the old copies go by it.

use agent::faults::store::WriteFault;
use schema::{Domain, PackId, names};
use tests::rot::Objects;

use super::withheld::faulty;
use super::{ALL, flipped, victim};

/// A bit turns in each body of the torn pack in turn, as a bad cable or memory would have it.
#[tokio::test]
async fn a_bit_that_turns_while_a_pack_is_salvaged_is_in_no_new_pack() {
    let victim = victim().await;
    let (key, frames) = victim.pack(Domain::Data);
    let footer = frames.last().map_or(0, |(start, len)| start + len);
    let mut objects: Objects = victim.objects.clone();
    objects.insert(key.clone(), flipped(&objects[&key], footer + 3));
    let mut turned = 0;
    for body in 1.. {
        let case = format!("body {body}");
        let (rot, store) = faulty(&victim, &objects).await;
        store.turn_bit(&key, body);
        let mended = rot.mend().await;
        let is_over = store.is_turning();
        store.quiet();
        tokio::time::resume();
        mended.unwrap_or_else(|why| panic!("{case}: {why}"));
        turned += u64::from(!is_over);
        rot.repair().await.unwrap_or_else(|why| panic!("{case}: {why}"));
        let report = rot.check(ALL).await.unwrap_or_else(|why| panic!("{case}: {why}"));
        assert!(report.damaged.is_empty(), "{case}: {report:?}");
        let (restored, _) = rot.restore(&victim.bad.0).await.unwrap_or_else(|why| panic!("{case}: {why}"));
        assert!(restored == victim.bad.1, "{case}");
        if is_over {
            break;
        }
    }
    assert!(turned > frames.len() as u64, "{turned} bodies of {} frames", frames.len());
}

/// Of several copies the oldest counts. Each write of a repair fails in turn.
#[tokio::test]
async fn what_is_moved_at_another_try_is_older_than_where_it_was_as_well() {
    let victim = victim().await;
    let (key, frames) = victim.pack(Domain::Data);
    let footer = frames.last().map_or(0, |(start, len)| start + len);
    let torn = names::parse_pack(&key).expect("a pack");
    let mut objects: Objects = victim.objects.clone();
    objects.insert(key.clone(), flipped(&objects[&key], footer + 3));
    for write in 1.. {
        let (rot, store) = faulty(&victim, &objects).await;
        store.fail_write(write, WriteFault::Before);
        let mended = rot.mend().await;
        let is_over = store.injected().failed_before == 0;
        store.quiet();
        tokio::time::resume();
        let mended = mended.unwrap_or_else(|why| panic!("write {write}: {why}"));
        assert_eq!(mended.packs.len(), 1, "write {write}: {mended:?}");
        let now = rot.objects().await;
        let new = now.keys().filter(|key| !objects.contains_key(*key));
        let new: Vec<PackId> = new.filter_map(|key| names::parse_pack(key).ok()).collect();
        assert!(!new.is_empty() && new.iter().all(|new| *new < torn), "write {write}: {new:?} of {torn}");
        if is_over {
            break;
        }
    }
}
