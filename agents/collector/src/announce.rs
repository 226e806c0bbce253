//! Tells the index and whoever listens which packs are new. Without a bus the index finds them by a listing.

use std::sync::Arc;

use agent::{Bus, Failure, Queue, Stop, Topic};
use futures::future::{Either, select};
use schema::PackId;
use schema::messages::{About, Message, PackStored};
use schema::pack::PackEntry;

use crate::interrupted;

/// Entries in one announcement: below a message's limit.
const ANNOUNCED: usize = 4096;

/// Where packs are announced.
#[derive(Debug, Clone, Default)]
pub struct Announce(Option<(Arc<dyn Bus>, u16)>);

impl Announce {
    /// To an index of `shards` shards.
    pub fn to(bus: Arc<dyn Bus>, shards: u16) -> Self {
        Self(Some((bus, shards)))
    }

    /// A pack is durable. Waits while a shard's queue is full, unless somebody asks this process to stop.
    pub(crate) async fn stored(
        &self,
        pack: PackId,
        entries: &[PackEntry],
        stop: &Stop,
    ) -> Result<(), Failure> {
        let stored = std::pin::pin!(self.announce(pack, entries));
        let stopped = std::pin::pin!(stop.raised());
        match select(stored, stopped).await {
            Either::Left((stored, _)) => stored,
            Either::Right(_) => Err(interrupted()),
        }
    }

    async fn announce(&self, pack: PackId, entries: &[PackEntry]) -> Result<(), Failure> {
        let Some((bus, shards)) = &self.0 else { return Ok(()) };
        for entries in entries.chunks(ANNOUNCED) {
            let message = Message::new(&About::nothing(), &PackStored { pack, entries: entries.to_vec() });
            for shard in 0..*shards {
                bus.publish(&Queue::stored(shard), message.clone()).await?;
            }
            bus.broadcast(&Topic::packs_stored(), message).await?;
        }
        Ok(())
    }
}
