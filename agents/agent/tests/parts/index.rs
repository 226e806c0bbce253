//! Questions to a sharded index whose shards are played by hand.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use agent::bus::{Bus, Service};
use agent::index::IndexClient;
use agent::local::LocalBus;
use bytes::Bytes;
use schema::messages::{About, Answer, Answers, Ask, Copy, Locate, Located, Message, Refusal};
use schema::{ChunkId, Domain};

use crate::support::{World, environment, pack_id, session_id};

/// How a shard answers.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Well,
    /// Answers nothing the first time.
    LateRiser,
    /// Answers for one chunk too few.
    Short,
    Refusing,
    Silent,
}

struct Shards {
    client: IndexClient,
    /// How many ids each question had, by shard.
    questions: Arc<Mutex<BTreeMap<u16, Vec<usize>>>>,
}

/// The pack that a chunk is said to be in says which it is.
fn place(id: &ChunkId) -> Copy {
    Copy { pack: pack_id(id.hash()[5]), offset: 48, len: 100 }
}

fn answer(message: &Message) -> (usize, Message, Message) {
    let about = About::nothing();
    if let Ok(ask) = message.read::<Ask>() {
        let mut answers: Vec<Answer> = ask.ids.iter().map(|id| Answer::Known(place(id).pack)).collect();
        let whole = Message::new(&about, &Answers { answers: answers.clone() });
        answers.pop();
        return (ask.ids.len(), whole, Message::new(&about, &Answers { answers }));
    }
    let locate: Locate = message.read().unwrap();
    let mut copies: Vec<Vec<Copy>> = locate.ids.iter().map(|id| vec![place(id)]).collect();
    let whole = Message::new(&about, &Located { copies: copies.clone() });
    copies.pop();
    (locate.ids.len(), whole, Message::new(&about, &Located { copies }))
}

async fn shards(moods: &[Mood]) -> Shards {
    let environment = environment();
    let bus = LocalBus::new(environment.clone(), 1 << 20);
    let questions: Arc<Mutex<BTreeMap<u16, Vec<usize>>>> = Arc::default();
    for (shard, mood) in (0..).zip(moods.iter().copied()) {
        let mut requests = bus.serve(&Service::index(shard)).await.unwrap();
        let questions = questions.clone();
        tokio::spawn(async move {
            let mut asleep = mood == Mood::LateRiser;
            let mut kept = Vec::new();
            while let Ok(request) = requests.next().await {
                let (count, whole, short) = answer(&request.message);
                questions.lock().unwrap().entry(shard).or_default().push(count);
                if mood == Mood::Silent || std::mem::take(&mut asleep) {
                    kept.push(request);
                    continue;
                }
                let refusal = Message::new(&About::nothing(), &Refusal { why: "not my shard".into() });
                let said = match mood {
                    Mood::Short => short,
                    Mood::Refusing => refusal,
                    Mood::Well | Mood::LateRiser | Mood::Silent => whole,
                };
                request.reply.send(said).await.unwrap();
            }
        });
    }
    let client = IndexClient::new(Arc::new(bus), environment, moods.len() as u16);
    Shards { client, questions }
}

async fn ids(count: u32) -> Vec<ChunkId> {
    let world = World::new().await;
    let ids = world.repository.key.chunk_ids();
    (0..count).map(|number| ids.id(Domain::Data, &number.to_le_bytes())).collect()
}

#[tokio::test(start_paused = true)]
async fn answers_come_in_the_order_of_the_question_whatever_the_shards() {
    let ids = ids(100).await;
    for shards_count in 1..=4 {
        let shards = shards(&vec![Mood::Well; shards_count]).await;
        let asked = shards.client.ask(&About::nothing(), session_id(1), 0, false, &ids).await.unwrap();
        let expected: Vec<Answer> = ids.iter().map(|id| Answer::Known(place(id).pack)).collect();
        assert_eq!(asked, expected);
        let located = shards.client.locate(&About::nothing(), &ids).await.unwrap();
        assert_eq!(located, ids.iter().map(|id| vec![place(id)]).collect::<Vec<_>>());
        let questions = shards.questions.lock().unwrap();
        assert_eq!(questions.len(), shards_count, "every shard is asked");
        assert_eq!(questions.values().flatten().sum::<usize>(), 2 * ids.len(), "and for its own chunks only");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_about_nothing() {
    let shards = shards(&[Mood::Well]).await;
    assert_eq!(shards.client.ask(&About::nothing(), session_id(1), 0, false, &[]).await.unwrap(), []);
    assert_eq!(shards.client.locate(&About::nothing(), &[]).await.unwrap(), Vec::<Vec<Copy>>::new());
    assert!(shards.questions.lock().unwrap().is_empty());
}

/// An answer with several copies of each chunk must fit a message.
#[tokio::test(start_paused = true)]
async fn many_places_are_asked_for_in_parts() {
    let ids = ids(5000).await;
    let shards = shards(&[Mood::Well]).await;
    let located = shards.client.locate(&About::nothing(), &ids).await.unwrap();
    assert_eq!(located.len(), ids.len());
    let parts = shards.questions.lock().unwrap()[&0].clone();
    assert_eq!(parts.iter().sum::<usize>(), ids.len());
    let largest = *parts.iter().max().unwrap();
    let copies = vec![vec![place(&ids[0]); 8]; largest];
    Message::new(&About::nothing(), &Located { copies }).to_bytes().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_is_late_is_asked_again() {
    let ids = ids(20).await;
    let shards = shards(&[Mood::Well, Mood::LateRiser]).await;
    let answers = shards.client.ask(&About::nothing(), session_id(1), 0, false, &ids).await.unwrap();
    assert_eq!(answers.len(), 20);
    assert_eq!(shards.questions.lock().unwrap()[&1].len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_stays_silent_is_named_and_may_be_tried_later() {
    let ids = ids(20).await;
    let shards = shards(&[Mood::Well, Mood::Silent]).await;
    let failure = shards.client.ask(&About::nothing(), session_id(1), 0, false, &ids).await.unwrap_err();
    assert!(failure.retry && failure.why.contains("index.1"), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_not_asked_again() {
    let ids = ids(20).await;
    let shards = shards(&[Mood::Refusing]).await;
    let failure = shards.client.locate(&About::nothing(), &ids).await.unwrap_err();
    assert!(!failure.retry && failure.why.contains("not my shard"), "{failure}");
    assert_eq!(shards.questions.lock().unwrap()[&0].len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_for_too_few_chunks_is_no_answer() {
    let ids = ids(20).await;
    let shards = shards(&[Mood::Well, Mood::Short]).await;
    let failure = shards.client.ask(&About::nothing(), session_id(1), 0, false, &ids).await.unwrap_err();
    assert!(failure.why.contains("fewer chunks"), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_another_kind_is_refused() {
    let environment = environment();
    let bus = LocalBus::new(environment.clone(), 1 << 20);
    let mut requests = bus.serve(&Service::index(0)).await.unwrap();
    tokio::spawn(async move {
        let request = requests.next().await.unwrap();
        let body = Bytes::from_static(b"x");
        let echo = Message { body, ..request.message };
        request.reply.send(echo).await.unwrap();
    });
    let client = IndexClient::new(Arc::new(bus), environment, 1);
    let failure = client.locate(&About::nothing(), &ids(1).await).await.unwrap_err();
    assert!(failure.why.contains("expected Located"), "{failure}");
}
