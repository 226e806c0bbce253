//! Questions to the shared index, by whoever needs answers: split by shard, asked side by side, put together again.
//!
//! Answers are hints. `Known` counts only by the session's rule, and a location only when the chunk read there has
//! its id.

use std::sync::Arc;
use std::time::Duration;

use schema::ChunkId;
use schema::SessionId;
use schema::messages::{About, Answer, Answers, Ask, Copy, Locate, Located, Message, Payload, Seek, Sought};

use crate::bus::{Bus, BusError, Service};
use crate::{Environment, Failure};

/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How long looking at the bucket may take: a listing of all packs, and the footers of new ones.
const LOOK_LIMIT: Duration = Duration::from_secs(600);
/// Chunks in one question for places: the answer still fits a message when each has ten copies.
const LOCATED: usize = 2048;
/// Tries of one question.
const TRIES: u32 = 6;

/// Asks the shards of the index.
#[derive(Debug, Clone)]
pub struct IndexClient {
    bus: Arc<dyn Bus>,
    environment: Arc<dyn Environment>,
    shards: u16,
}

impl IndexClient {
    /// A client of an index of `shards` shards.
    pub fn new(bus: Arc<dyn Bus>, environment: Arc<dyn Environment>, shards: u16) -> Self {
        Self { bus, environment, shards: shards.max(1) }
    }

    /// What to do about the chunks of one extent.
    pub async fn ask(
        &self,
        about: &About,
        session: SessionId,
        extent: u64,
        force: bool,
        ids: &[ChunkId],
    ) -> Result<Vec<Answer>, Failure> {
        let shards = self.shards;
        let question = |ids| Ask { session, extent, force, shards, ids };
        self.scatter(about, ids, question, |answers: Answers| answers.answers).await
    }

    /// All known copies of chunks.
    pub async fn locate(&self, about: &About, ids: &[ChunkId]) -> Result<Vec<Vec<Copy>>, Failure> {
        let shards = self.shards;
        let mut located = Vec::with_capacity(ids.len());
        for part in ids.chunks(LOCATED) {
            let question = |ids| Locate { shards, ids };
            located.extend(self.scatter(about, part, question, |found: Located| found.copies).await?);
        }
        Ok(located)
    }

    /// All copies of a chunk that there are, by an answerer that has looked at the bucket: before this was asked, if it is
    /// one of those in `looked`, and otherwise since. Who answered is told, too.
    pub async fn seek(
        &self,
        about: &About,
        id: &ChunkId,
        looked: &[u64],
    ) -> Result<(Vec<Copy>, u64), Failure> {
        let asked = Seek { shards: self.shards, ids: vec![*id], looked: looked.to_vec() };
        let service = Service::seek(id.shard(self.shards));
        let Sought { mut copies, by } =
            self.one(&service, Message::new(about, &asked), LOOK_LIMIT).await?.read()?;
        match copies.pop() {
            Some(copies) => Ok((copies, by)),
            None => Err(Failure::refused("the index was asked where a chunk is, and answered nothing")),
        }
    }

    async fn scatter<Q: Payload, A: Payload, T: Clone>(
        &self,
        about: &About,
        ids: &[ChunkId],
        question: impl Fn(Vec<ChunkId>) -> Q,
        items: impl Fn(A) -> Vec<T>,
    ) -> Result<Vec<T>, Failure> {
        let mut places: Vec<Vec<usize>> = vec![Vec::new(); usize::from(self.shards)];
        for (place, id) in ids.iter().enumerate() {
            places[usize::from(id.shard(self.shards))].push(place);
        }
        let asked =
            places.iter().enumerate().filter(|(_, places)| !places.is_empty()).map(|(shard, places)| {
                let message = Message::new(about, &question(places.iter().map(|p| ids[*p]).collect()));
                let service = Service::index(shard as u16);
                async move { Ok::<_, Failure>((places, self.one(&service, message, LIMIT).await?)) }
            });
        let mut out: Vec<Option<T>> = vec![None; ids.len()];
        for (places, answer) in futures::future::try_join_all(asked).await? {
            for (place, item) in places.iter().zip(items(answer.read()?)) {
                out[*place] = Some(item);
            }
        }
        let whole: Option<Vec<T>> = out.into_iter().collect();
        whole.ok_or_else(|| Failure::refused("the index answered for fewer chunks than it was asked"))
    }

    async fn one(&self, service: &Service, message: Message, limit: Duration) -> Result<Message, Failure> {
        let mut last = None;
        for _ in 0..TRIES {
            match self.bus.request(service, message.clone(), limit).await {
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_transient() => last = Some(error),
                Err(error) => return Err(error.into()),
            }
            self.environment.sleep(Duration::from_millis(200)).await;
        }
        let why =
            || BusError::NoAnswer { service: service.name().to_owned(), why: "it was asked often".into() };
        Err(last.unwrap_or_else(why).into())
    }
}
