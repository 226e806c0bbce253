//! What a collection moves while content is read: it is read all the same, and nobody goes on behind it before that.

use std::sync::Mutex;

use agent::forgetting;
use bytes::Bytes;
use checker::{Content, Progress, Share};
use futures::FutureExt;
use schema::damage::Holes;
use schema::pack::PackEntry;
use schema::root::Root;
use schema::{Domain, PackId, names};
use tests::e2e::random_file;
use tests::rot::{Objects, Rot};

use super::older::collect;
use super::withheld::faulty;
use super::{ALL, Victim, flipped, is_named, victim};

/// A collection that moves a frame of content which is none.
struct Moved {
    before: Objects,
    after: Objects,
    /// The snapshot that lacks it.
    root: Root,
    /// The first pack of content that goes.
    first: PackId,
    /// The pack in which the frame is then.
    now_in: String,
}

/// The entries of packs of content that one listing has and another one has not.
fn content_of(these: &Objects, others: &Objects) -> Vec<(PackId, Vec<PackEntry>)> {
    let of_content = |(key, bytes): (&String, &Bytes)| {
        let (header, footer) = schema::pack::parse_pack(bytes).ok()?;
        (header.kind == Domain::Data && !others.contains_key(key)).then_some((header.pack, footer.entries))
    };
    let packs = these.iter().filter(|(key, _)| key.starts_with("packs/"));
    packs.filter_map(of_content).collect()
}

async fn collected(victim: &Victim, before: &Objects) -> Objects {
    let rot = victim.rot.with(before).await.expect("a repository");
    collect(&rot).await.expect("a collection");
    rot.objects().await
}

async fn moved(victim: &Victim) -> Moved {
    let rot = victim.rot.with(&victim.objects).await.expect("a repository");
    random_file(&victim.path, 1 << 20, 5);
    let old = rot.backup("vm/more", &victim.path).await.expect("a snapshot");
    let mut content = std::fs::read(&victim.path).expect("the file");
    content.chunks_mut(192 << 10).for_each(|part| part[..2000].fill(7));
    std::fs::write(&victim.path, &content).expect("the file changes");
    let root = rot.backup("vm/more", &victim.path).await.expect("a snapshot");
    forgetting::forget(&rot.repository, &old, "a test").await.expect("it is forgotten");
    let mut before = rot.objects().await;
    let after = collected(victim, &before).await;
    let came: Vec<PackEntry> =
        content_of(&after, &before).into_iter().flat_map(|(_, entries)| entries).collect();
    let is_moved = |entry: &&PackEntry| came.iter().any(|there| there.id == entry.id);
    let went = content_of(&before, &after);
    let found = went.iter().find_map(|(pack, entries)| Some((*pack, *entries.iter().find(is_moved)?)));
    let (pack, frame) = found.expect("a pack that is rewritten");
    let key = names::pack(pack);
    before.insert(key.clone(), flipped(&before[&key], (frame.offset + frame.len / 2) as usize));
    let after = collected(victim, &before).await;
    let has_it = |(pack, entries): &(PackId, Vec<PackEntry>)| {
        entries.iter().any(|entry| entry.id == frame.id).then(|| names::pack(*pack))
    };
    let now_in = content_of(&after, &before).iter().find_map(has_it).expect("the frame");
    let first = content_of(&before, &after).iter().map(|(pack, _)| *pack).min().expect("a pack");
    Moved { before, after, root, first, now_in }
}

impl Moved {
    /// Does what the collection did.
    fn happen(&self, rot: &Rot) {
        let store = &rot.repository.store;
        for (key, bytes) in self.after.iter().filter(|(key, _)| !self.before.contains_key(*key)) {
            store.put(key, bytes.clone()).now_or_never().expect("at once").expect("an object");
        }
        for key in self.before.keys().filter(|key| !self.after.contains_key(*key)) {
            store.delete(key).now_or_never().expect("at once").expect("it goes");
        }
    }
}

#[tokio::test]
async fn what_a_collection_moves_while_content_is_read_is_read_all_the_same() {
    let victim = victim().await;
    let moved = moved(&victim).await;
    let slot = moved.root.slot;
    for content in
        [ALL, Content::Percent { percent: 100, after: None }, Content::Share(Share { number: 1, of: 1 })]
    {
        let rot = victim.rot.with(&moved.before).await.expect("a repository");
        let mark = Holes { version: 1, slot, found_ms: 0, ranges: vec![(0, 4096)], is_unrecorded: true };
        rot.put(&slot.holes(), &mark).await.expect("a mark");
        // How far others may go on, and what is recorded by then.
        let reached = Mutex::new(Vec::new());
        let beside = |progress: Progress<'_>| {
            let mut reached = reached.lock().expect("a lock");
            if reached.is_empty() {
                moved.happen(&rot);
            }
            reached.push((progress.after, progress.recorded, progress.done, progress.total));
        };
        let report = rot.check_with(content, beside).await.expect("a report");
        assert!(is_named(&report, &moved.now_in), "{content:?}: {report:?}");
        let damaged: Vec<_> = report.damaged.iter().map(|damaged| damaged.slot).collect();
        assert_eq!(damaged, [slot], "{content:?}: {report:?}");
        let reached = reached.into_inner().expect("a lock");
        for (after, recorded, ..) in &reached {
            assert!(
                after.is_none_or(|after| after < moved.first) || *recorded > 0,
                "{content:?}: {reached:?}"
            );
        }
        let (_, _, done, total) = reached.last().expect("an end");
        assert_eq!(done, total, "{content:?}: {reached:?}");
        assert!(report.packs_read <= report.packs, "{report:?}");
        // Who has read everything and did not find it would take the mark away.
        rot.mark(&report).await.expect("marks");
        assert!(rot.repository.read::<Holes>(&slot.holes()).await.expect("a read").is_some(), "{content:?}");
    }
}

/// Nobody has moved it: the store contradicts itself.
#[tokio::test]
async fn a_pack_that_is_listed_and_not_there_is_named() {
    let victim = victim().await;
    let (key, _) = victim.pack(Domain::Data);
    let (rot, store) = faulty(&victim, &victim.objects).await;
    let hide = |progress: Progress<'_>| {
        if progress.done == 0 {
            store.hide(Some(&key));
        }
    };
    let report = rot.check_with(ALL, hide).await.expect("a report");
    assert!(is_named(&report, &key), "{report:?}");
    assert!(report.damaged.iter().any(|damaged| damaged.is_withheld()), "{report:?}");
}
