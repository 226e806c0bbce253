//! A locator that serves: it answers from what it has found, and looks for packs that came later when asked to.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use agent::repository::can_be_pack;
use agent::{Answerer, Context, Failure, Repository, Service};
use async_trait::async_trait;
use futures::{StreamExt, future, stream};
use schema::messages::{Locate, Located, Message, Payload, Seek, Sought};
use schema::pack::PackEntry;
use schema::{Domain, PackId};

use super::{AT_ONCE, Locator, sorted, unless_stopped};
use crate::sync::{Footer, footer_of};

impl Locator {
    /// Answers where chunks are, as the one shard of an index, until the context's flag is raised.
    pub async fn run(self) -> Result<(), Failure> {
        let context = self.context.clone();
        let number = u64::from_le_bytes(context.environment.random());
        let serving = Serving { locator: Arc::new(RwLock::new(self)), number };
        let (questions, seeks) = (Service::index(0), Service::seek(0));
        // Nobody else waits while one looks at the bucket.
        let questions = agent::serve(&context, &questions, serving.clone());
        future::try_join(questions, agent::serve(&context, &seeks, serving)).await.map(drop)
    }
}

#[derive(Clone)]
struct Serving {
    locator: Arc<RwLock<Locator>>,
    /// By which others know that it has looked.
    number: u64,
}

#[async_trait]
impl Answerer for Serving {
    async fn answer(&mut self, message: &Message) -> Result<Message, Failure> {
        let about = message.about()?;
        match message.kind()?.as_str() {
            Locate::NAME => Ok(Message::new(&about, &self.read().locate(&message.read()?)?)),
            Seek::NAME => Ok(Message::new(&about, &self.seek(message.read()?).await?)),
            kind => {
                Err(Failure::refused(format!("only where chunks are is known here, and {kind:?} was asked")))
            }
        }
    }
}

impl Serving {
    fn read(&self) -> RwLockReadGuard<'_, Locator> {
        self.locator.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Locator> {
        self.locator.write().unwrap_or_else(PoisonError::into_inner)
    }

    async fn seek(&self, Seek { shards, ids, looked }: Seek) -> Result<Sought, Failure> {
        if !looked.contains(&self.number) {
            self.look_again().await?;
        }
        let Located { copies } = self.read().locate(&Locate { shards, ids })?;
        Ok(Sought { copies, by: self.number })
    }

    /// Looks at the packs that nobody has looked at yet, for what is wanted.
    async fn look_again(&self) -> Result<(), Failure> {
        let (context, repository) = {
            let locator = self.read();
            (locator.context.clone(), locator.repository.clone())
        };
        let listed = repository.list_packs().await?;
        let listed = listed.into_iter().filter(|(_, size)| can_be_pack(*size)).map(|(pack, _)| pack);
        let new: Vec<PackId> = {
            let locator = self.read();
            listed.filter(|pack| locator.known.binary_search(pack).is_err()).collect()
        };
        tracing::info!(
            packs = new.len(),
            "a chunk is not where it was found: looking at packs that came later"
        );
        let packs = sorted(&context, &repository, new).await?;
        let mut found = Vec::new();
        for (kind, packs) in [(Domain::Structure, &packs.structure), (Domain::Data, &packs.data)] {
            found.extend(self.wanted(&context, &repository, packs, kind).await?);
        }
        let mut locator = self.write();
        for (pack, entries) in &found {
            locator.table.add(*pack, entries)?;
        }
        locator.table.sort();
        locator.knows(packs);
        Ok(())
    }

    /// What these packs have of what is wanted.
    async fn wanted(
        &self,
        context: &Context,
        repository: &Repository,
        packs: &[PackId],
        kind: Domain,
    ) -> Result<Vec<(PackId, Vec<PackEntry>)>, Failure> {
        let footer = |pack: PackId| async move { (pack, footer_of(repository, pack, kind).await) };
        let mut footers = stream::iter(packs.iter().copied()).map(footer).buffer_unordered(AT_ONCE);
        let mut found = Vec::new();
        while let Some((pack, footer)) = footers.next().await {
            unless_stopped(context)?;
            let Footer::Read(footer) = footer? else { continue };
            let locator = self.read();
            let entries = footer.entries.into_iter().filter(|entry| locator.wanted.has(&entry.id));
            found.push((pack, entries.collect()));
        }
        Ok(found)
    }
}
