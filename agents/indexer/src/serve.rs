//! The indexer on the bus: answers questions to its shards, takes announcements of packs, and looks at the bucket
//! now and then. It must never acknowledge an announcement that is not in the cache.

use std::future::Future;

use agent::{Answerer, Failure, Handler, Outcome, Queue, Service};
use async_trait::async_trait;
use schema::messages::{Ask, FailureKind, Locate, Message, PackStored, Payload};
use tokio::task::JoinSet;

use crate::Indexer;

/// Bytes of announcements that are taken at once.
const WINDOW: usize = 4 << 20;

impl Indexer {
    /// Serves questions and takes announcements for every owned shard, until the context's flag is raised. Fails
    /// when the cache turns out to be damaged: the next start builds it anew.
    pub async fn run(self) -> Result<(), Failure> {
        let context = &self.inner.context;
        let mut tasks = JoinSet::new();
        for shard in self.inner.cache.shards().owned().iter().copied() {
            let (questions, announcements, indexer) = (context.clone(), context.clone(), self.clone());
            let (answerer, seeker, looks) = (Questions(self.clone()), Seeker(self.clone()), context.clone());
            tasks.spawn(async move { agent::serve(&questions, &Service::index(shard), answerer).await });
            tasks.spawn(async move { agent::serve(&looks, &Service::seek(shard), seeker).await });
            tasks.spawn(async move {
                agent::consume(&announcements, &Queue::stored(shard), WINDOW, Announcements(indexer)).await
            });
        }
        let indexer = self.clone();
        tasks.spawn(async move { indexer.look_now_and_then().await });
        let ended = async {
            while let Some(ended) = tasks.join_next().await {
                ended.map_err(|why| {
                    Failure::new(FailureKind::Other, format!("a task of the indexer failed: {why}"))
                })??;
            }
            Ok(())
        };
        tokio::select! {
            biased;
            () = self.inner.cache.broken().raised() => Err(self.inner.cache.broken_failure()),
            ended = ended => ended,
        }
    }

    async fn look_now_and_then(&self) -> Result<(), Failure> {
        let stop = &self.inner.context.stop;
        loop {
            // What an earlier process has left behind, or the comparison below.
            self.sweep().await?;
            if !unless_stopped(self, self.inner.context.environment.sleep(self.inner.sync_interval)).await {
                return Ok(());
            }
            match self.sync().await {
                Ok(report) => tracing::debug!(?report, "the index was compared with the bucket"),
                Err(failure) if stop.is_raised() => tracing::debug!(%failure, "the indexer ends"),
                Err(failure) => tracing::warn!(%failure, "the index could not be compared with the bucket"),
            }
        }
    }
}

/// Waits for `future`; says no when the context's flag was raised first.
async fn unless_stopped(indexer: &Indexer, future: impl Future<Output = ()>) -> bool {
    tokio::select! {
        biased;
        () = indexer.inner.context.stop.raised() => false,
        () = future => true,
    }
}

struct Questions(Indexer);

#[async_trait]
impl Answerer for Questions {
    async fn answer(&mut self, message: &Message) -> Result<Message, Failure> {
        let about = message.about()?;
        let kind = message.kind()?;
        match kind.as_str() {
            Ask::NAME => Ok(Message::new(&about, &self.0.ask(&message.read()?)?)),
            Locate::NAME => Ok(Message::new(&about, &self.0.locate(&message.read()?)?)),
            _ => Err(Failure::refused(format!("the index does not answer {kind:?}"))),
        }
    }
}

/// Beside the other questions, which do not wait for a look at the bucket.
struct Seeker(Indexer);

#[async_trait]
impl Answerer for Seeker {
    async fn answer(&mut self, message: &Message) -> Result<Message, Failure> {
        Ok(Message::new(&message.about()?, &self.0.seek(message.read()?).await?))
    }
}

struct Announcements(Indexer);

#[async_trait]
impl Handler for Announcements {
    fn role(&self) -> &'static str {
        "indexer"
    }

    async fn handle(
        &mut self,
        message: &Message,
        _ticket: &mut Option<agent::bus::Ticket>,
    ) -> Result<Outcome, Failure> {
        self.0.stored(&message.read::<PackStored>()?)?;
        Ok(Outcome::Done)
    }
}
