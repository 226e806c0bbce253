//! `init`: makes a repository, its writer key, and an identity unless recipients are given.

use std::path::{Path, PathBuf};

use agent::repository::NewRepository;
use agent::{Failure, Repository};
use anyhow::{Context, anyhow, bail};
use schema::keys::Identity;
use schema::messages::FailureKind;
use serde::Serialize;

use crate::app::App;
use crate::args::InitArgs;
use crate::open::{self, KeyFiles};
use crate::settings;

const PACK_MIN: u64 = 1 << 20;
const PACK_MAX: u64 = 512 << 20;

/// What was made.
#[derive(Debug, Serialize)]
pub struct Made {
    repo: String,
    id: String,
    encrypted: bool,
    recipients: Vec<String>,
    writer_key: Option<PathBuf>,
    identity: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    like: Option<String>,
    conditional_create: bool,
}

/// `lvkeep init`.
pub async fn run(app: &App, args: &InitArgs) -> anyhow::Result<()> {
    let (made, _) = make(app, args).await?;
    app.print(&made, || describe(&made))
}

/// Makes a repository with all defaults, for a first backup with nothing configured.
pub async fn make_default(app: &App) -> anyhow::Result<Repository> {
    let args = InitArgs {
        recipients: Vec::new(),
        identity_out: None,
        key_out: None,
        like: None,
        no_encryption: false,
        pack_size: "32MiB".to_owned(),
    };
    let (made, repository) = make(app, &args).await?;
    app.say(describe(&made));
    Ok(repository)
}

/// The target size of packs.
pub fn pack_size(text: &str) -> Result<u64, String> {
    match settings::size_of(text)? {
        size @ PACK_MIN..=PACK_MAX => Ok(size),
        _ => Err(format!("{text} is not between 1MiB and 512MiB")),
    }
}

async fn make(app: &App, args: &InitArgs) -> anyhow::Result<(Made, Repository)> {
    let pack_size = pack_size(&args.pack_size).map_err(|why| anyhow!("pack-size: {why}"))?;
    let makes_identity = args.recipients.is_empty() && !args.no_encryption && args.like.is_none();
    let identity = makes_identity.then(Identity::generate);
    for path in [&args.identity_out, &args.key_out].into_iter().flatten() {
        if path.exists() {
            return Err(Failure::refused(format!(
                "{} exists already; it is not overwritten",
                path.display()
            ))
            .into());
        }
    }
    let like = match &args.like {
        Some(like) => Some(open::other(app, like, app.settings.key.value.as_deref(), None).await?),
        None => None,
    };
    if let Some(like) = like.as_ref().filter(|like| like.key.generation() < like.config.key_generation) {
        bail!(Failure::refused(format!(
            "the writer key file of {} is outdated, and lacks recipients that were added: take the one that the last \
             `lvkeep key add` wrote",
            like.store.location()
        )));
    }
    let store = open::store(&app.settings.repo.value, true, app.environment.clone())?;
    let prepared = match &like {
        Some(like) => Repository::prepare_like(store, &like.key, pack_size).await?,
        None => {
            let recipients = identity.as_ref().map_or(args.recipients.clone(), Identity::recipients);
            Repository::prepare(store, &NewRepository { recipients, pack_size }).await?
        }
    };
    let usual = KeyFiles::of(prepared.key().repo())?;
    // The keys first: a repository that nothing opens keeps every other one out of its place.
    let mut written = Written::default();
    let identity_at = match identity {
        Some(identity) => {
            let path = args.identity_out.clone().unwrap_or_else(|| usual.identity.clone());
            Some(written.write(path, &identity.to_file())?)
        }
        None => None,
    };
    let writer_key = args.key_out.clone().unwrap_or(usual.writer);
    let writer_key = written.write(writer_key, &prepared.key().to_file())?;
    let repository = written.keep_if(prepared.make().await)?;
    if let Some(like) = &like {
        link_identity(like, &usual.identity)?;
    }
    let made = Made {
        repo: repository.store.location().to_owned(),
        id: repository.key.repo().to_string(),
        encrypted: repository.key.encrypted(),
        recipients: repository.key.recipients().to_vec(),
        writer_key: Some(writer_key),
        identity: identity_at,
        like: like.as_ref().map(|like| like.store.location().to_owned()),
        conditional_create: repository.config.store.conditional_create,
    };
    Ok((made, repository))
}

/// Key files of a repository that is not made yet; they go again when it is dropped.
#[derive(Default)]
struct Written(Vec<PathBuf>);

impl Written {
    fn write(&mut self, path: PathBuf, text: &str) -> anyhow::Result<PathBuf> {
        open::write_secret(&path, text, false)?;
        self.0.push(path.clone());
        Ok(path)
    }

    /// They stay where the repository was made; also where nobody knows, which is said.
    fn keep_if(mut self, made: Result<Repository, Failure>) -> Result<Repository, Failure> {
        match made {
            Err(failure) if failure.kind == FailureKind::Refused => Err(failure),
            Err(failure) => {
                let files: Vec<String> =
                    std::mem::take(&mut self.0).iter().map(|p| p.display().to_string()).collect();
                let why = format!(
                    "{}; the repository may have been made, and its keys stay in {} (only where `lvkeep snapshots` \
                     says that no repository is there, remove them and begin again)",
                    failure.why,
                    files.join(" and ")
                );
                Err(Failure { why, ..failure })
            }
            Ok(repository) => {
                self.0.clear();
                Ok(repository)
            }
        }
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(why) = std::fs::remove_file(path) {
                tracing::warn!(path = %path.display(), %why, "a key file of no repository stays: remove it");
            }
        }
    }
}

/// Where the identity of the repository whose keys are shared is in the user's folders, it is found for the new one, too.
fn link_identity(like: &Repository, link: &Path) -> anyhow::Result<()> {
    let identity = KeyFiles::of(like.key.repo())?.identity;
    if identity.is_file() && !link.exists() {
        let linked = std::os::unix::fs::symlink(&identity, link);
        linked.with_context(|| format!("making {} a link to {}", link.display(), identity.display()))?;
    }
    Ok(())
}

fn describe(made: &Made) -> String {
    let mut lines = vec![format!("repository {} made in {}", made.id, made.repo)];
    if let Some(path) = &made.writer_key {
        lines.push(format!(
            "  writer key  {}  (hosts that back up need it; it opens no content)",
            path.display()
        ));
    }
    if let Some(like) = &made.like {
        lines.push(format!(
            "  like        {like}, whose keys it shares: `lvkeep copy` moves between both what is stored"
        ));
    }
    match (&made.identity, made.encrypted) {
        (Some(path), _) => lines.push(format!(
            "  identity    {}  (opens everything)\n\
             Keep the identity safe, and a copy of it away from this machine: without it nothing can be restored,\n\
             by nobody. The bucket and the identity are all that a restore needs.",
            path.display()
        )),
        (None, true) => lines.push(format!(
            "  recipients  {}\n\
             Only the identities of these recipients open the content. Keep them safe: without any of them nothing can\n\
             be restored, by nobody. `lvkeep key check IDENTITY` proves that one does.",
            made.recipients.join(", ")
        )),
        (None, false) => lines.push("  NOT ENCRYPTED: whoever can read the repository can read all volumes".to_owned()),
    }
    if !made.conditional_create {
        lines.push(
            "  This store does not keep its word on conditional writes: two sessions could believe to own one name.\n  \
             Backups and restores work; collecting garbage will need exclusive access."
                .to_owned(),
        );
    }
    lines.join("\n")
}
