//! From covered leaves to the map: structure chunks for leaves and nodes, and the last look at the source.

use agent::Failure;
use schema::ChunkId;
use schema::map::build_nodes;

use super::Driver;

impl Driver {
    /// Turns finished leaves into structure chunks, and all of them into the map.
    pub(super) async fn close_leaves(&mut self) -> Result<(), Failure> {
        let Some(reading) = &mut self.reading else { return Ok(()) };
        for (number, leaf) in reading.coverage.take_complete()? {
            let id = match leaf.is_zero() {
                true => None,
                false => {
                    let bytes = leaf.encode();
                    let id = self.structure.id(&bytes);
                    let in_parent = match &self.parent {
                        Some(parent) => parent.has_leaf(number, id).await,
                        None => false,
                    };
                    if !in_parent {
                        self.structure.store(&self.session, &self.about, number, bytes.into()).await?;
                    }
                    Some(id)
                }
            };
            reading.leaves.insert(number, id);
        }
        if reading.coverage.is_closed() && self.top.is_none() {
            self.count_inherited().await;
            self.close_map().await?;
        }
        self.check_source().await
    }

    pub(super) async fn close_map(&mut self) -> Result<(), Failure> {
        let Some(reading) = &self.reading else { return Ok(()) };
        let row: Vec<Option<ChunkId>> = reading.leaves.values().copied().collect();
        let mut nodes = Vec::new();
        let structure = &self.structure;
        let top = build_nodes(row, |node| {
            let bytes = node.encode();
            let id = structure.id(&bytes);
            nodes.push(bytes);
            Ok(id)
        })?;
        for (claim, bytes) in nodes.into_iter().enumerate() {
            self.structure.store(&self.session, &self.about, (1 << 40) + claim as u64, bytes.into()).await?;
        }
        self.top = Some(top);
        Ok(())
    }

    /// Once everything is mapped, asks whether the source is still what it was: after that, every byte was read before.
    pub(super) async fn check_source(&mut self) -> Result<(), Failure> {
        let covered = self.reading.as_ref().is_some_and(|reading| reading.coverage.is_covered());
        if covered && self.check.is_none() {
            self.request(Some(Vec::new()), false).await?;
            self.check = Some((self.requests, false));
            self.flush().await?;
        }
        Ok(())
    }
}
