//! Opens stores and repositories: from a location and key files to something that can be worked with.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::store::Store;
use agent::{Environment, Repository};
use anyhow::{Context, bail};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::{ClientConfigKey, ObjectStore};
use schema::RepoId;
use schema::keys::{Identity, WriterKey};
use schema::messages::FailureKind;

use crate::app::App;
use crate::settings::{Settings, folders};

/// The directory of a repository that is one.
pub fn directory(repo: &str) -> Option<PathBuf> {
    (!repo.contains("://")).then(|| PathBuf::from(repo))
}

/// Opens the store at a location. A directory is made only when `create` says so.
pub fn store(repo: &str, create: bool, environment: Arc<dyn Environment>) -> anyhow::Result<Store> {
    store_by(&Access::Usual, repo, create, environment)
}

fn store_by(
    access: &Access,
    repo: &str,
    create: bool,
    environment: Arc<dyn Environment>,
) -> anyhow::Result<Store> {
    if let Some(bucket) = repo.strip_prefix("s3://") {
        let (bucket, prefix) = bucket.split_once('/').unwrap_or((bucket, ""));
        let inner = s3(access, bucket, false).with_context(|| format!("opening {repo}"))?;
        return Ok(Store::new(inner, prefix.trim_matches('/'), repo.trim_end_matches('/'), environment));
    }
    let Some(path) = directory(repo) else {
        bail!("{repo}: a repository is a directory or s3://BUCKET/PREFIX")
    };
    if create {
        std::fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
    }
    if !path.is_dir() {
        return Err(agent::Failure::refused(format!(
            "{} holds no repository, and is no folder: see that this is the right place, and mounted (`lvkeep init` makes a \
             new one)",
            path.display()
        ))
        .into());
    }
    let inner = LocalFileSystem::new_with_prefix(&path)
        .with_context(|| format!("opening {}", path.display()))?
        .with_fsync(true);
    Ok(Store::new(Arc::new(inner), "", &path.display().to_string(), environment))
}

/// A client that deletes in batches, for those who delete much; a directory needs none.
pub fn batches(repo: &str) -> anyhow::Result<Option<Arc<dyn ObjectStore>>> {
    let Some(bucket) = repo.strip_prefix("s3://") else { return Ok(None) };
    let (bucket, _) = bucket.split_once('/').unwrap_or((bucket, ""));
    s3(&Access::Usual, bucket, true).map(Some).with_context(|| format!("opening {repo}"))
}

/// Whose variables say how object storage is reached.
enum Access {
    /// The usual ones.
    Usual,
    /// Those of the second repository of a command, by their usual names.
    Other(Vec<(String, String)>),
}

/// What begins the names of the second repository's variables, where it has others than the first.
const OTHER: &str = "LVKEEP_OTHER_";

impl Access {
    /// Of the second repository: all of its own variables, or all of the first one's, and never a mixture.
    fn other() -> Self {
        let own = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            let name = name.to_str()?.strip_prefix(OTHER)?.to_owned();
            name.starts_with("AWS_").then_some((name, value.into_string().ok()?))
        };
        let own: Vec<_> = std::env::vars_os().filter_map(own).collect();
        if own.is_empty() { Self::Usual } else { Self::Other(own) }
    }

    fn value(&self, name: &str) -> Option<String> {
        match self {
            Self::Usual => std::env::var(name).ok(),
            Self::Other(own) => own.iter().find(|(own, _)| own == name).map(|(_, value)| value.clone()),
        }
    }

    fn builder(&self) -> AmazonS3Builder {
        let Self::Other(own) = self else { return AmazonS3Builder::from_env() };
        own.iter().fold(AmazonS3Builder::new(), |builder, (name, value)| {
            match name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
                Ok(key) => builder.with_config(key, value),
                Err(_) => builder,
            }
        })
    }
}

fn s3(access: &Access, bucket: &str, batches: bool) -> anyhow::Result<Arc<dyn ObjectStore>> {
    let plain = ["AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3"]
        .iter()
        .any(|name| access.value(name).is_some_and(|url| url.starts_with("http://")));
    let mut builder = access
        .builder()
        .with_bucket_name(bucket)
        // Whoever repeats a request must know what it is: packs take a fresh name, conditional writes read first.
        .with_retry(object_store::RetryConfig { max_retries: 0, ..Default::default() })
        // Objects are deleted one at a time unless somebody is ready for errors: not every S3 store has batches.
        .with_disable_bulk_delete(!batches)
        .with_allow_http(plain);
    if plain {
        // A rescue system may have none, and nothing here asks for any.
        let certificates = AmazonS3ConfigKey::Client(ClientConfigKey::NoSystemCertificates);
        builder = builder.with_config(certificates, "true");
    }
    match builder.build() {
        Err(error) if lacks_certificates(&error) => {
            let why = "this machine has no root certificates, without which https trusts nobody: name a file that holds \
                       them in SSL_CERT_FILE";
            Err(agent::Failure::new(FailureKind::Store, why).into())
        }
        built => Ok(Arc::new(built?)),
    }
}

/// What is to be done where a store's error does not say it: without credentials, a cloud's machines are asked for them.
pub fn advice(error: &str) -> &'static str {
    let asked = ["/latest/api/token", "/latest/meta-data/"].iter().any(|path| error.contains(path));
    match asked {
        true => {
            "; there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or for the second repository of a \
             command that has two LVKEEP_OTHER_AWS_ACCESS_KEY_ID and so on (on a cloud's machine that has a role, its \
             metadata service did not answer)"
        }
        false => "",
    }
}

fn lacks_certificates(error: &object_store::Error) -> bool {
    anyhow::Chain::new(error).any(|cause| cause.to_string().contains("No CA certificates"))
}

/// Where the key files of a repository are unless somebody says otherwise.
pub struct KeyFiles {
    /// The writer key.
    pub writer: PathBuf,
    /// The identity.
    pub identity: PathBuf,
}

impl KeyFiles {
    /// The files of a repository in the user's configuration folder.
    pub fn of(repo: RepoId) -> anyhow::Result<Self> {
        let folder = folders()?.config_dir().join("keys");
        Ok(Self {
            writer: folder.join(format!("{repo}.writer-key")),
            identity: folder.join(format!("{repo}.identity")),
        })
    }
}

/// Writes a file that only its owner can read, and never over an existing one unless `replace` says so.
pub fn write_secret(path: &Path, text: &str, replace: bool) -> anyhow::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !replace && path.exists() {
        bail!("{} exists already; it is not overwritten", path.display());
    }
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .tempfile_in(folder)
        .with_context(|| format!("writing {}", path.display()))?;
    file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all())?;
    match replace {
        true => file.persist(path).map(drop).map_err(|e| e.error),
        false => file.persist_noclobber(path).map(drop).map_err(|e| e.error),
    }
    // What is made with it may outlive a power cut, and so must its name.
    .and_then(|()| std::fs::File::open(folder)?.sync_all())
    .with_context(|| format!("writing {}", path.display()))
}

/// A directory that only its owner can enter.
pub fn private_directory(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("making {}", path.display()))
}

/// Whether a writer key of this repository stands there, which a new one may replace, or nothing at all. Whatever else it
/// is, and be it an identity, it is refused.
pub fn is_writer_key_of(path: &Path, repo: RepoId) -> anyhow::Result<bool> {
    if std::fs::symlink_metadata(path).is_err_and(|why| why.kind() == std::io::ErrorKind::NotFound) {
        return Ok(false);
    }
    match read_writer_key(path) {
        Ok(key) if key.repo() == repo => Ok(true),
        // Whose it is, nobody can tell who may not read it.
        Err(why) if why.downcast_ref::<std::io::Error>().is_some() && path.is_file() => Err(why),
        Ok(_) | Err(_) => {
            let path = path.display();
            bail!(agent::Failure::refused(format!(
                "{path} exists, and is no writer key of this repository: it is not overwritten, and nothing was changed; \
                 name a file that does not exist yet (--key-out)"
            )))
        }
    }
}

fn read_writer_key(path: &Path) -> anyhow::Result<WriterKey> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("reading the writer key {}", path.display()))?;
    WriterKey::from_file(&text).map_err(not_fitting).with_context(|| path.display().to_string())
}

/// What somebody handed in is not what it should be; nothing that is stored is damaged.
pub fn not_fitting(error: schema::FormatError) -> agent::Failure {
    agent::Failure::refused(error.to_string())
}

/// Reads an identity file.
pub fn read_identity(path: &Path) -> anyhow::Result<Identity> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading the identity {}", path.display()))?;
    Identity::from_file(&text).map_err(not_fitting).with_context(|| path.display().to_string())
}

/// The identity that is named, or the one in the user's folders if it is there.
pub fn identity(settings: &Settings, repo: RepoId) -> anyhow::Result<Option<Identity>> {
    if let Some(path) = &settings.identity.value {
        return read_identity(path).map(Some);
    }
    let usual = KeyFiles::of(repo)?.identity;
    match usual.is_file() {
        true => read_identity(&usual).map(Some),
        false => Ok(None),
    }
}

/// The writer key of an agent that has no access to the bucket: from a file only.
pub fn writer_key_from_file(settings: &Settings) -> anyhow::Result<WriterKey> {
    match &settings.key.value {
        Some(path) => read_writer_key(path),
        None => bail!("this role needs the repository's writer key: give its file with --key"),
    }
}

/// Opens the repository that the settings name, with whatever key there is.
pub async fn repository(
    settings: &Settings,
    environment: Arc<dyn Environment>,
) -> anyhow::Result<Repository> {
    let store = store(&settings.repo.value, false, environment)?;
    opened(settings, store, settings.key.value.as_deref(), None).await
}

/// Opens the second repository of a command, with this writer key, its own key files, or an identity: the one that is
/// named, or that of the repository `like`.
pub async fn other(
    app: &App,
    repo: &str,
    key: Option<&Path>,
    like: Option<RepoId>,
) -> anyhow::Result<Repository> {
    let store = store_by(&Access::other(), repo, false, app.environment.clone())?;
    opened(&app.settings, store, key, like).await
}

async fn opened(
    settings: &Settings,
    store: Store,
    key: Option<&Path>,
    like: Option<RepoId>,
) -> anyhow::Result<Repository> {
    let head = Repository::head(&store).await?;
    let usual = KeyFiles::of(head.repo)?.writer;
    let key = match key {
        Some(path) => Some(read_writer_key(path)?),
        None if head.encrypted && usual.is_file() => Some(read_writer_key(&usual)?),
        None => None,
    };
    let mut opens = None;
    if key.is_none() && head.encrypted {
        for repo in [Some(head.repo), like].into_iter().flatten() {
            opens = opens.or(identity(settings, repo)?);
        }
    }
    let identity = opens;
    Ok(Repository::open(store, key, identity.as_ref()).await?)
}

/// Refuses to write to a repository that asks for features that this build lacks.
pub async fn check_writable(repository: &Repository) -> anyhow::Result<()> {
    let head = Repository::head(&repository.store).await?;
    Ok(head.check_writable().map_err(agent::Failure::from)?)
}

/// Races creators in the store, and says aloud when it does not keep its word. What `init` found of it counts no more
/// than what is found now: the bucket may have moved.
pub async fn probe(repository: &mut Repository) -> anyhow::Result<()> {
    let promise = repository.store.probe().await.map_err(agent::Failure::from)?;
    repository.config.store.conditional_create &= promise.conditional_create;
    if !promise.conditional_create {
        tracing::warn!(
            store = repository.store.location(),
            "this store does not keep its word on conditional writes: backups and restores work, collecting garbage \
             will need exclusive access"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use agent::faults::store::{FaultyStore, StoreFaults};
    use agent::repository::NewRepository;
    use collector::{Announce, Collector, Limits, Patience};
    use object_store::memory::InMemory;

    use super::*;
    use crate::environment::SystemEnvironment;

    /// A bucket that was moved to a store that keeps less than the one that it was made in.
    #[tokio::test]
    async fn what_a_probe_finds_decides_about_collections_whatever_init_found() {
        let environment: Arc<dyn Environment> = Arc::new(SystemEnvironment::new());
        let bucket = FaultyStore::new(Arc::new(InMemory::new()), environment.clone(), StoreFaults::default());
        let store = Store::new(Arc::new(bucket.clone()), "", "bucket", environment);
        let new = NewRepository { recipients: Vec::new(), pack_size: 1 << 20 };
        let mut repository = Repository::init(store, &new).await.expect("a repository");
        let settings = || collector::Settings {
            limits: Limits { max_repack: 1 << 20, repack_below: 50 },
            memory: 1 << 20,
            patience: Patience::default(),
            exclusive: false,
            announce: Announce::default(),
        };
        probe(&mut repository).await.expect("a promise");
        let collector =
            |repository: &Repository| Collector::new(repository.clone(), settings(), Default::default());
        collector(&repository).prune().await.expect("nothing to collect");
        bucket.ignore_create(true);
        probe(&mut repository).await.expect("a weaker promise");
        let refused = collector(&repository).prune().await.expect_err("it may not collect");
        assert!(refused.why.contains("--exclusive"), "{refused}");
    }

    /// What a store with locks asks of every write is said by a variable, as all of the client's settings are.
    #[test]
    fn variables_of_the_client_reach_it() {
        let variable = ("AWS_CHECKSUM_ALGORITHM".to_owned(), "sha256".to_owned());
        let builder = Access::Other(vec![variable]).builder();
        let algorithm = builder.get_config_value(&AmazonS3ConfigKey::Checksum);
        assert_eq!(algorithm.expect("an algorithm").to_ascii_lowercase(), "sha256");
    }
}
