//! What a command reads is protected by one session, from before it looks where anything is until the command ends, in
//! whatever way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use agent::{Failure, Protection, ReadBy, Repository};
use futures::stream::{self, StreamExt};
use schema::root::Root;
use schema::session::SessionKind;

use crate::app::App;
use crate::embedded::interrupted;

/// Snapshots that are asked for at once.
const AT_ONCE: usize = 16;

/// The sessions of a command that reads: one as a rule.
#[derive(Debug, Default)]
pub struct Protected(Mutex<Vec<Protection>>);

impl Protected {
    /// Begins one for these snapshots, or for all that there are. Nothing was looked for before. Refused when one of them
    /// was forgotten meanwhile.
    pub async fn begin(
        &self,
        app: &App,
        repository: &Repository,
        roots: Option<&[&Root]>,
    ) -> anyhow::Result<Protection> {
        if app.stop.is_raised() {
            return Err(interrupted().into());
        }
        let by = ReadBy {
            kind: SessionKind::Restore,
            session: app.environment.session_id(),
            job: app.environment.job_id(),
            volume: &roots.map_or("all volumes".to_owned(), named),
            host: &app.settings.host.value,
            undo: &[],
        };
        let protection = self.begin_as(app, repository, by).await?;
        check(&protection, roots.unwrap_or_default()).await?;
        Ok(protection)
    }

    /// Begins one that says this of itself.
    pub async fn begin_as(
        &self,
        app: &App,
        repository: &Repository,
        by: ReadBy<'_>,
    ) -> Result<Protection, Failure> {
        let protection = Protection::begin(repository, by, &app.interrupted).await?;
        if let Ok(mut all) = self.0.lock() {
            all.push(protection.clone());
        }
        Ok(protection)
    }

    /// Ends all. Nothing reads any more.
    pub async fn end(&self) {
        let all = self.0.lock().map(|mut all| std::mem::take(&mut *all)).unwrap_or_default();
        for protection in all {
            // What the command came to was said; of this the log tells.
            let _ = protection.end(Ok(())).await;
        }
    }
}

/// What is read, as others are told.
fn named(roots: &[&Root]) -> String {
    let volumes: BTreeSet<&str> = roots.iter().map(|root| root.volume.as_str()).collect();
    let others = volumes.len().saturating_sub(1);
    match volumes.first() {
        Some(first) if others > 0 => format!("{first} and {others} more"),
        Some(first) => (*first).to_owned(),
        None => "no volume".to_owned(),
    }
}

/// All that must not be read are named.
async fn check(protection: &Protection, roots: &[&Root]) -> Result<(), Failure> {
    let each: BTreeMap<_, _> = roots.iter().map(|root| (root.slot, *root)).collect();
    let checked = stream::iter(each.into_values()).map(|root| protection.check(root)).buffered(AT_ONCE);
    let checked: Vec<Result<(), Failure>> = checked.collect().await;
    let failed: Vec<Failure> = checked.into_iter().filter_map(Result::err).collect();
    let whys: Vec<&str> = failed.iter().map(|failure| failure.why.as_str()).collect();
    match failed.first() {
        Some(first) => Err(Failure { why: whys.join("\n"), ..first.clone() }),
        None => Ok(()),
    }
}
