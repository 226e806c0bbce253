//! A pack that is being filled, with the tickets of the messages inside.

use std::time::Duration;

use agent::bus::Ticket;
use agent::{Environment, Failure};
use bytes::Bytes;
use schema::chunk::FrameHeader;
use schema::keys::SealedKey;
use schema::pack::{PackBuilder, PackHeader};
use schema::{Domain, RepoId, SessionId};

pub(crate) struct OpenPack {
    pub(crate) builder: PackBuilder,
    pub(crate) tickets: Vec<Ticket>,
    pub(crate) opened: Duration,
}

impl OpenPack {
    pub(crate) fn new(repo: RepoId, kind: Domain, environment: &dyn Environment) -> Self {
        let header = PackHeader { repo, pack: environment.pack_id(), kind, class: 0 };
        Self { builder: PackBuilder::new(header), tickets: Vec::new(), opened: environment.elapsed() }
    }

    pub(crate) fn serves(&self, session: SessionId) -> bool {
        self.builder.sessions().contains(&session)
    }

    /// Adds frames; on an error the pack is as before.
    pub(crate) fn push(
        &mut self,
        frames: &[FrameHeader],
        body: &Bytes,
        session: SessionId,
        key: Option<&SealedKey>,
    ) -> Result<(), Failure> {
        if let Some(key) = key.filter(|key| self.builder.clashes_with(key)) {
            return Err(Failure::refused(format!("key {} has the index of another in its pack", key.id)));
        }
        self.builder.push(frames, body.clone(), session)?;
        if let Some(key) = key {
            self.builder.add_key(key);
        }
        Ok(())
    }
}
