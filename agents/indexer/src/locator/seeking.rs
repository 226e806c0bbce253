//! A locator that serves: it answers from what it has found, and looks for packs that came later when asked to. What it
//! finds then takes its share of the memory, as everything does.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use agent::repository::can_be_pack;
use agent::{Answerer, Failure, Service};
use async_trait::async_trait;
use futures::{StreamExt, future, stream};
use schema::messages::{Locate, Located, Message, Payload, Seek, Sought};
use schema::pack::PackEntry;
use schema::{ChunkId, Domain, PackId};

use super::{AT_ONCE, Locator, sorted, unless_stopped};
use crate::sync::{Footer, footer_of};

/// Chunks that are remembered until they are looked for, and as many that were looked for late; some 40 bytes each.
const LATE_MAX: usize = 1 << 16;

impl Locator {
    /// Answers where chunks are, as the one shard of an index, until the context's flag is raised.
    pub async fn run(self) -> Result<(), Failure> {
        let context = self.context.clone();
        let number = u64::from_le_bytes(context.environment.random());
        let (locator, late) = (Arc::new(RwLock::new(self)), Arc::default());
        let (sought, looking) = (Arc::default(), Arc::default());
        let serving = Serving { locator, number, late, sought, looking };
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
    /// What parts of a map name that could not be read at first, and somebody asked for since. Looking for it takes longer
    /// than a question for places may: it is done when one of them is sought, for all together.
    late: Arc<Mutex<BTreeSet<ChunkId>>>,
    /// What was late and has been looked for in all packs; the filter says so of others, too.
    sought: Arc<Mutex<BTreeSet<ChunkId>>>,
    /// Held by whoever looks for chunks. What one wants while another looks at new packs would be missed in those.
    looking: Arc<tokio::sync::Mutex<()>>,
}

#[async_trait]
impl Answerer for Serving {
    async fn answer(&mut self, message: &Message) -> Result<Message, Failure> {
        let about = message.about()?;
        match message.kind()?.as_str() {
            Locate::NAME => Ok(Message::new(&about, &self.locate(&message.read()?)?)),
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

    fn late(&self) -> MutexGuard<'_, BTreeSet<ChunkId>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sought(&self) -> MutexGuard<'_, BTreeSet<ChunkId>> {
        self.sought.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody may have looked for some of these yet. The filter takes some for wanted that are not: of those no
    /// copies are known, and all that are asked for are remembered together.
    fn are_late(&self, ids: &[ChunkId]) -> Result<bool, Failure> {
        let locator = self.read();
        if !locator.is_partial.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let sought = self.sought();
        for id in ids.iter().filter(|id| !sought.contains(*id)) {
            if !locator.wanted.has(id) || locator.table.copies(id)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What is known now: nothing of what is late.
    fn locate(&self, asked: &Locate) -> Result<Located, Failure> {
        if !self.are_late(&asked.ids)? {
            return self.read().locate(asked);
        }
        let mut late = self.late();
        let room = LATE_MAX.saturating_sub(late.len());
        late.extend(asked.ids.iter().take(room));
        self.read().copies(&asked.ids)
    }

    async fn seek(&self, Seek { shards, ids, looked }: Seek) -> Result<Sought, Failure> {
        {
            let _turn = self.looking.lock().await;
            if self.are_late(&ids)? {
                self.late().extend(&ids);
            }
            let late = self.late().clone();
            match late.is_empty() {
                true if looked.contains(&self.number) => {}
                true => self.look_again().await?,
                false => self.want(&late).await?,
            }
        }
        let locator = self.read();
        let Located { mut copies } = locator.locate(&Locate { shards, ids })?;
        for copies in &mut copies {
            copies.retain(|copy| !locator.gone.contains(&copy.pack));
        }
        Ok(Sought { copies, by: self.number })
    }

    /// Looks at the packs that nobody has looked at yet, for what is wanted.
    async fn look_again(&self) -> Result<(), Failure> {
        let (context, repository) = {
            let locator = self.read();
            (locator.context.clone(), locator.repository.clone())
        };
        let listed = repository.list_packs().await?;
        let there: BTreeSet<PackId> = listed.iter().map(|(pack, _)| *pack).collect();
        let listed = listed.into_iter().filter(|(_, size)| can_be_pack(*size)).map(|(pack, _)| pack);
        let (new, gone): (Vec<PackId>, BTreeSet<PackId>) = {
            let locator = self.read();
            let known = &locator.known;
            let known_of = |kind| known.of(kind).iter().filter(|pack| !there.contains(pack)).copied();
            let gone = known_of(Domain::Structure).chain(known_of(Domain::Data));
            (listed.filter(|pack| !known.has(pack)).collect(), gone.collect())
        };
        tracing::info!(packs = new.len(), "looking for chunks in packs that came later");
        let packs = sorted(&context, &repository, new).await?;
        for kind in [Domain::Structure, Domain::Data] {
            let is_wanted = |locator: &Locator, id: &ChunkId| locator.wanted.has(id);
            self.keep_of(packs.of(kind), kind, is_wanted).await?;
        }
        let mut locator = self.write();
        locator.known.extend(packs);
        locator.gone = gone;
        Ok(())
    }

    /// Looks for what is late. A collection may have moved some of it to packs that nobody has looked at yet.
    async fn want(&self, late: &BTreeSet<ChunkId>) -> Result<(), Failure> {
        tracing::info!(chunks = late.len(), "looking for what a part of a map names that was found late");
        let known = self.read().known.clone();
        for kind in [Domain::Structure, Domain::Data] {
            if late.iter().any(|id| id.domain().is_ok_and(|domain| domain == kind)) {
                self.keep_of(known.of(kind), kind, |_, id| late.contains(id)).await?;
            }
        }
        {
            let mut locator = self.write();
            late.iter().for_each(|id| locator.wanted.add(id));
        }
        self.look_again().await?;
        self.late().retain(|id| !late.contains(id));
        let mut sought = self.sought();
        // Looked for once more, at the worst.
        if sought.len() + late.len() > LATE_MAX {
            sought.clear();
        }
        sought.extend(late.iter().take(LATE_MAX));
        Ok(())
    }

    /// Keeps what these packs have of what is wanted, some of it at a time.
    async fn keep_of(
        &self,
        packs: &[PackId],
        kind: Domain,
        is_wanted: impl Fn(&Locator, &ChunkId) -> bool,
    ) -> Result<(), Failure> {
        let (context, repository, batch) = {
            let locator = self.read();
            (locator.context.clone(), locator.repository.clone(), locator.table.batch())
        };
        let repository = &repository;
        let footer = |pack: PackId| async move { (pack, footer_of(repository, pack, kind).await) };
        let mut footers = stream::iter(packs.iter().copied()).map(footer).buffer_unordered(AT_ONCE);
        let (mut found, mut copies) = (Vec::new(), 0);
        while let Some((pack, footer)) = footers.next().await {
            unless_stopped(&context)?;
            let Footer::Read(footer) = footer? else { continue };
            let entries: Vec<PackEntry> = {
                let locator = self.read();
                footer.entries.into_iter().filter(|entry| is_wanted(&locator, &entry.id)).collect()
            };
            copies += entries.len();
            found.push((pack, entries));
            if copies + found.len() >= batch {
                self.keep(std::mem::take(&mut found))?;
                copies = 0;
            }
        }
        self.keep(found)
    }

    /// Whoever asks meanwhile finds what there was before, or all of this.
    fn keep(&self, found: Vec<(PackId, Vec<PackEntry>)>) -> Result<(), Failure> {
        let mut locator = self.write();
        for (pack, entries) in found.iter().filter(|(_, entries)| !entries.is_empty()) {
            locator.table.add(*pack, entries)?;
        }
        locator.table.sort();
        Ok(())
    }
}
