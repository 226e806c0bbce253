//! Settings: flag, environment, file, default, in this order. The file is TOML; keys it does not know are errors.
//!
//! Parsed in two steps: text into [`File`], then into [`Settings`], where every value knows where it came from.

mod notation;

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::ArgMatches;
use clap::parser::ValueSource;
use directories::ProjectDirs;
use jiff::{Span, SpanRelativeTo, Unit};
use schema::limits::LEAF_SPAN;
use serde::{Deserialize, Serialize};

use crate::args::{Global, IoPriority, MAX_REPACK, ReadData, Role};
use crate::lvm::Lvm;
use crate::retention::{self, Policy};

/// Volumes at once, of one host, at most.
pub const AT_ONCE_MAX: usize = 64;

/// Per cent of the content that a check by agents reads, when nobody says anything else.
const CHECK_SHARE: u8 = 5;

/// The configuration file, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    repo: Option<String>,
    nats: Option<String>,
    nats_credentials: Option<PathBuf>,
    nats_ca: Option<PathBuf>,
    key: Option<PathBuf>,
    identity: Option<PathBuf>,
    host: Option<String>,
    memory: Option<String>,
    cache: Option<PathBuf>,
    work_dir: Option<PathBuf>,
    level: Option<i32>,
    limit_read: Option<String>,
    limit_upload: Option<String>,
    io_priority: Option<IoPriority>,
    index_shards: Option<u16>,
    pack_max_age: Option<String>,
    ask_again: Option<String>,
    redeliver: Option<String>,
    reads: Option<usize>,
    lvm: Option<Lvm>,
    #[serde(default)]
    retention: Vec<Policy>,
    #[serde(default)]
    agent: AgentFile,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct AgentFile {
    #[serde(default)]
    roles: Vec<Role>,
    workers: Option<usize>,
    metrics: Option<String>,
    #[serde(default)]
    targets: Vec<PathBuf>,
    restores: Option<usize>,
    span: Option<String>,
    prune_every: Option<String>,
    prune_revoke_after: Option<String>,
    max_repack: Option<String>,
    check_every: Option<String>,
    check_share: Option<String>,
    #[serde(default)]
    shards: Vec<u16>,
}

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A flag.
    Flag,
    /// An environment variable.
    Environment,
    /// The configuration file.
    File,
    /// Nobody said anything.
    Default,
}

/// A value and where it came from.
#[derive(Debug, Clone, Serialize)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Its origin.
    pub origin: Origin,
}

/// What is in force.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    /// The configuration file that was read.
    pub config: Option<PathBuf>,
    /// The repository.
    pub repo: Setting<String>,
    /// The NATS server.
    pub nats: Setting<Option<String>>,
    /// Its credentials file.
    pub nats_credentials: Setting<Option<PathBuf>>,
    /// Its certificate authority.
    pub nats_ca: Setting<Option<PathBuf>>,
    /// The writer key file; none: by the repository's id in the user's folders.
    pub key: Setting<Option<PathBuf>>,
    /// The identity file; none: by the repository's id in the user's folders.
    pub identity: Setting<Option<PathBuf>>,
    /// This host's name.
    pub host: Setting<String>,
    /// Bytes of memory for data in flight and caches.
    pub memory: Setting<u64>,
    /// Where caches are.
    pub cache: Setting<PathBuf>,
    /// Where commands that read put what has no room in memory; none: in the cache's folder.
    pub work_dir: Setting<Option<PathBuf>>,
    /// zstd level.
    pub level: Setting<i32>,
    /// Bytes per second.
    pub limit_read: Setting<Option<u64>>,
    /// Bytes per second.
    pub limit_upload: Setting<Option<u64>>,
    /// I/O priority.
    pub io_priority: Setting<Option<IoPriority>>,
    /// Shards of the index, the same for all agents of a repository.
    pub index_shards: Setting<u16>,
    /// Seconds after which a pack is closed.
    pub pack_max_age: Setting<f64>,
    /// Seconds without progress after which a session asks again.
    pub ask_again: Setting<f64>,
    /// Seconds after which the NATS server hands what a dead agent had taken to another, the same for all agents of a
    /// repository.
    pub redeliver: Setting<f64>,
    /// Volumes of this host that are read at once.
    pub reads: Setting<usize>,
    /// How logical volumes are treated.
    pub lvm: Setting<Lvm>,
    /// What is kept of which volumes; a conductor forgets the rest after each backup. Empty: everything.
    pub retention: Setting<Vec<Policy>>,
    /// Agent: roles.
    pub roles: Setting<Vec<Role>>,
    /// Agent: workers.
    pub workers: Setting<usize>,
    /// Agent: address of the metrics endpoint.
    pub metrics: Setting<Option<String>>,
    /// Restorer: where targets may be.
    pub targets: Setting<Vec<PathBuf>>,
    /// Restorer: restores at once, which share its memory.
    pub restores: Setting<usize>,
    /// Restorer: bytes of a volume that another agent of its host restores at once.
    pub span: Setting<u64>,
    /// Conductor: how often it collects what nobody needs, in seconds; none: never.
    pub prune_every: Setting<Option<f64>>,
    /// Conductor: sessions that such a collection waits for and that began longer ago than this, in seconds, are cancelled;
    /// none: it waits for ever.
    pub prune_revoke_after: Setting<Option<f64>>,
    /// Conductor: bytes that such a collection moves at most.
    pub max_repack: Setting<u64>,
    /// Conductor: how often it asks agents to check content, in seconds; none: never.
    pub check_every: Setting<Option<f64>>,
    /// Conductor: per cent of the content that such a check reads.
    pub check_share: Setting<u8>,
    /// Indexer: its shards; empty is all.
    pub shards: Setting<Vec<u16>>,
}

/// The user's folders.
pub fn folders() -> anyhow::Result<ProjectDirs> {
    ProjectDirs::from("", "", "lvkeep").context("this user has no home directory (set HOME)")
}

/// A size in bytes, such as 256MiB or 10GB.
pub fn parse_size(what: &str, text: &str) -> anyhow::Result<u64> {
    size_of(text).map_err(|why| anyhow!("{what}: {why}"))
}

/// The same of an option that is named already.
pub fn size_of(text: &str) -> Result<u64, String> {
    let size = text.parse::<bytesize::ByteSize>().map(|size| size.as_u64());
    size.map_err(|_| format!("{text:?} is not a size (write for example 256MiB)"))
}

/// A length of time in seconds, such as 7d, 26h or 90s.
pub fn parse_seconds(what: &str, text: &str) -> anyhow::Result<f64> {
    length_of(text).map_err(|why| anyhow!("{what}: {why}"))
}

/// The same of an option that is named already.
pub fn length_of(text: &str) -> Result<f64, String> {
    let why = || format!("{text:?} is not a length of time (write for example 7d, 26h or 90s)");
    seconds_of(text).ok_or_else(why)
}

/// Whether a process gets along with so much memory.
pub fn check_memory(bytes: u64) -> Result<(), String> {
    match bytes < 64 << 20 {
        true => Err(format!("{bytes} bytes are too few; at least 64MiB are needed")),
        false => Ok(()),
    }
}

/// The seconds of a length of time. Days have 24 hours and weeks 7 days; months have no length.
pub fn seconds_of(text: &str) -> Option<f64> {
    let span = text.parse::<Span>().ok()?;
    let has_length = span.get_years() == 0 && span.get_months() == 0 && span.is_positive();
    let relative = SpanRelativeTo::days_are_24_hours();
    has_length.then(|| span.total((Unit::Second, relative)).ok()).flatten()
}

/// Per cent of the content, such as 5%.
fn share(text: Option<&str>) -> anyhow::Result<Option<u8>> {
    match text.map(str::parse) {
        None => Ok(None),
        Some(Ok(ReadData::Percent(percent))) => Ok(Some(percent)),
        Some(_) => bail!("check_share: {:?} is not 1% to 100%", text.unwrap_or_default()),
    }
}

struct Resolver<'a> {
    matches: &'a ArgMatches,
}

impl Resolver<'_> {
    fn origin(&self, name: &str) -> Origin {
        let source = |matches: &ArgMatches| match matches.try_contains_id(name) {
            Ok(true) => matches.value_source(name),
            _ => None,
        };
        let inner = self.matches.subcommand().and_then(|(_, inner)| source(inner));
        match source(self.matches).or(inner) {
            Some(ValueSource::EnvVariable) => Origin::Environment,
            _ => Origin::Flag,
        }
    }

    fn pick<T>(&self, name: &str, given: Option<T>, file: Option<T>, default: T) -> Setting<T> {
        match (given, file) {
            (Some(value), _) => Setting { value, origin: self.origin(name) },
            (None, Some(value)) => Setting { value, origin: Origin::File },
            (None, None) => Setting { value: default, origin: Origin::Default },
        }
    }

    fn optional<T>(&self, name: &str, given: Option<T>, file: Option<T>) -> Setting<Option<T>> {
        self.pick(name, given.map(Some), file.map(Some), None)
    }

    fn size(
        &self,
        name: &str,
        given: Option<&str>,
        file: Option<&str>,
    ) -> anyhow::Result<Setting<Option<u64>>> {
        let parse = |text: &str| parse_size(name, text);
        Ok(self.optional(name, given.map(parse).transpose()?, file.map(parse).transpose()?))
    }

    fn list<T>(&self, name: &str, given: Vec<T>, file: Vec<T>) -> Setting<Vec<T>> {
        let some = |list: Vec<T>| (!list.is_empty()).then_some(list);
        self.pick(name, some(given), some(file), Vec::new())
    }
}

/// What single commands add.
#[derive(Debug, Default)]
pub struct Extra {
    /// `--level`.
    pub level: Option<i32>,
    /// `--limit-read`.
    pub limit_read: Option<String>,
    /// `--limit-upload`.
    pub limit_upload: Option<String>,
    /// `--io-priority`.
    pub io_priority: Option<IoPriority>,
    /// `--role`.
    pub roles: Vec<Role>,
    /// `--workers`.
    pub workers: Option<usize>,
    /// `--metrics`.
    pub metrics: Option<String>,
    /// `--target`.
    pub targets: Vec<PathBuf>,
    /// `--shards`.
    pub shards: Vec<u16>,
}

/// Puts together what is in force.
pub fn resolve(global: &Global, extra: Extra, matches: &ArgMatches) -> anyhow::Result<Settings> {
    let (config, file) = read_file(global.config.as_deref())?;
    let r = Resolver { matches };
    let dirs = folders()?;
    let default_repo = dirs.data_dir().join("repository").display().to_string();
    // One more than cores: while one waits for an answer, another keeps its core busy.
    let workers = std::thread::available_parallelism().map_or(1, usize::from) + 1;
    let memory = r.size("memory", global.memory.as_deref(), file.memory.as_deref())?;
    let span = r.size("span", None, file.agent.span.as_deref())?;
    let max_repack = r.size("max_repack", None, file.agent.max_repack.as_deref())?;
    let seconds =
        |name: &str, text: &Option<String>| text.as_deref().map(|t| parse_seconds(name, t)).transpose();
    let settings = Settings {
        config,
        repo: r.pick("repo", global.repo.clone(), file.repo, default_repo),
        nats: r.optional("nats", global.nats.clone(), file.nats),
        nats_credentials: r.optional(
            "nats_credentials",
            global.nats_credentials.clone(),
            file.nats_credentials,
        ),
        nats_ca: r.optional("nats_ca", global.nats_ca.clone(), file.nats_ca),
        key: r.optional("key", global.key.clone(), file.key),
        identity: r.optional("identity", global.identity.clone(), file.identity),
        host: r.pick("host", global.host.clone(), file.host, hostname()),
        memory: Setting { value: memory.value.unwrap_or(256 << 20), origin: memory.origin },
        cache: r.pick("cache", global.cache.clone(), file.cache, dirs.cache_dir().to_owned()),
        work_dir: r.optional("work_dir", global.work_dir.clone(), file.work_dir),
        level: r.pick("level", extra.level, file.level, 3),
        limit_read: r.size("limit_read", extra.limit_read.as_deref(), file.limit_read.as_deref())?,
        limit_upload: r.size("limit_upload", extra.limit_upload.as_deref(), file.limit_upload.as_deref())?,
        io_priority: r.optional("io_priority", extra.io_priority, file.io_priority),
        index_shards: r.pick("index_shards", None, file.index_shards, 4),
        pack_max_age: r.pick("pack_max_age", None, seconds("pack_max_age", &file.pack_max_age)?, 5.0),
        ask_again: r.pick("ask_again", None, seconds("ask_again", &file.ask_again)?, 20.0),
        redeliver: r.pick("redeliver", None, seconds("redeliver", &file.redeliver)?, 30.0),
        reads: r.pick("reads", None, file.reads, 2),
        lvm: r.pick("lvm", None, file.lvm.filter(|lvm| *lvm != Lvm::default()), Lvm::default()),
        retention: r.list("retention", Vec::new(), file.retention),
        roles: r.list("roles", extra.roles, file.agent.roles),
        workers: r.pick("workers", extra.workers, file.agent.workers, workers),
        metrics: r.optional("metrics", extra.metrics, file.agent.metrics),
        targets: r.list("targets", extra.targets, file.agent.targets),
        restores: r.pick("restores", None, file.agent.restores, 2),
        span: Setting { value: span.value.unwrap_or(1 << 30), origin: span.origin },
        prune_every: r.optional("prune_every", None, seconds("prune_every", &file.agent.prune_every)?),
        prune_revoke_after: r.optional(
            "prune_revoke_after",
            None,
            seconds("prune_revoke_after", &file.agent.prune_revoke_after)?,
        ),
        max_repack: match max_repack.value {
            Some(value) => Setting { value, origin: max_repack.origin },
            None => Setting { value: parse_size("max_repack", MAX_REPACK)?, origin: Origin::Default },
        },
        check_every: r.optional("check_every", None, seconds("check_every", &file.agent.check_every)?),
        check_share: r.pick("check_share", None, share(file.agent.check_share.as_deref())?, CHECK_SHARE),
        shards: r.list("shards", extra.shards, file.agent.shards),
    };
    check(&settings)?;
    Ok(settings)
}

fn check(settings: &Settings) -> anyhow::Result<()> {
    if !(1..=19).contains(&settings.level.value) {
        bail!("level: {} is not between 1 and 19", settings.level.value);
    }
    check_memory(settings.memory.value).map_err(|why| anyhow!("memory: {why}"))?;
    if !(1..=1024).contains(&settings.index_shards.value) {
        bail!("index_shards: {} is not between 1 and 1024", settings.index_shards.value);
    }
    if !(1..=64).contains(&settings.reads.value) {
        bail!("reads: {} is not between 1 and 64", settings.reads.value);
    }
    if !(1..=AT_ONCE_MAX).contains(&settings.restores.value) {
        bail!("restores: {} is not between 1 and {AT_ONCE_MAX}", settings.restores.value);
    }
    if settings.prune_every.value.is_some_and(|seconds| seconds < 1.0) {
        bail!("prune_every: less than a second is no pause between collections");
    }
    if settings.check_every.value.is_some_and(|seconds| seconds < 1.0) {
        bail!("check_every: less than a second is no pause between checks");
    }
    if settings.span.value == 0 || !settings.span.value.is_multiple_of(LEAF_SPAN) {
        bail!("span: {} bytes are no multiple of 64MiB", settings.span.value);
    }
    settings.lvm.value.settings(&Default::default())?;
    settings.lvm.value.audit()?;
    retention::policies(&settings.retention.value)?;
    if settings.host.value.is_empty() {
        bail!("host: this host has no name; set one");
    }
    Ok(())
}

/// The file that was named, or the first of the usual ones that exists.
fn read_file(named: Option<&Path>) -> anyhow::Result<(Option<PathBuf>, File)> {
    let path = match named {
        Some(path) => Some(path.to_owned()),
        None => [folders()?.config_dir().join("lvkeep.toml"), PathBuf::from("/etc/lvkeep/lvkeep.toml")]
            .into_iter()
            .find(|path| path.is_file()),
    };
    let Some(path) = path else { return Ok((None, File::default())) };
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let file = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
    Ok((Some(path), file))
}

/// What this host calls itself.
pub fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

impl Settings {
    /// Name, value as the file has it, and origin of everything, for `config show`.
    pub fn rows(&self) -> anyhow::Result<Vec<(String, String, Origin)>> {
        let serde_json::Value::Object(fields) = serde_json::to_value(self)? else {
            bail!("settings are a table")
        };
        let row = |(name, field): (String, serde_json::Value)| {
            let value = field.get("value")?.clone();
            let origin = serde_json::from_value::<String>(field.get("origin")?.clone()).ok()?;
            let origin = match origin.as_str() {
                "flag" => Origin::Flag,
                "environment" => Origin::Environment,
                "file" => Origin::File,
                _ => Origin::Default,
            };
            let text = notation::of(&name, &value);
            Some((name, text, origin))
        };
        Ok(fields.into_iter().filter_map(row).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_in_every_unit_that_has_one() {
        let seconds = |text| parse_seconds("a setting", text).ok();
        let read = ["90s", "1.5s", "250ms", "26h", "1h 30m", "7d", "2w"].map(seconds);
        assert_eq!(read, [90.0, 1.5, 0.25, 93_600.0, 5400.0, 604_800.0, 1_209_600.0].map(Some));
        assert_eq!(["", "0s", "-1h", "3", "1mo", "1y", "soon"].map(seconds), [None; 7]);
    }
}
