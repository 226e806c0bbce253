//! The command line. Every setting here can also come from the environment or from the configuration file.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Backs up logical volumes, disk images and block devices into one deduplicated, compressed, encrypted archive,
/// in a directory or on S3-compatible object storage, and restores them.
#[derive(Debug, Parser)]
#[command(name = "lvkeep", version, max_term_width = 110, after_help = crate::exit::TABLE)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The repository: a directory, or s3://BUCKET/PREFIX (endpoint, region and credentials by the usual AWS_* variables)
    #[arg(long, global = true, env = "LVKEEP_REPO", value_name = "REPO")]
    pub repo: Option<String>,
    /// A NATS server, nats://HOST:PORT or tls://HOST:PORT: agents elsewhere do the work
    #[arg(long, global = true, env = "LVKEEP_NATS", value_name = "URL")]
    pub nats: Option<String>,
    /// Credentials file for the NATS server
    #[arg(long, global = true, env = "LVKEEP_NATS_CREDENTIALS", value_name = "FILE")]
    pub nats_credentials: Option<PathBuf>,
    /// Certificate authority of the NATS server
    #[arg(long, global = true, env = "LVKEEP_NATS_CA", value_name = "FILE")]
    pub nats_ca: Option<PathBuf>,
    /// The repository's writer key file; hosts need it to back up
    #[arg(long, global = true, env = "LVKEEP_KEY", value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// An age identity file; opens content
    #[arg(long, global = true, env = "LVKEEP_IDENTITY", value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// The configuration file
    #[arg(long, global = true, env = "LVKEEP_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// This host's name in volume names and for agents
    #[arg(long, global = true, env = "LVKEEP_HOST", value_name = "NAME")]
    pub host: Option<String>,
    /// Memory that the process may use for data in flight and caches, e.g. 256MiB
    #[arg(long, global = true, env = "LVKEEP_MEMORY", value_name = "SIZE")]
    pub memory: Option<String>,
    /// Where the index's cache is
    #[arg(long, global = true, env = "LVKEEP_CACHE", value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Results on standard output as JSON, for machines
    #[arg(long, global = true)]
    pub json: bool,
    /// Log lines as JSON
    #[arg(long, global = true, env = "LVKEEP_LOG_JSON", hide_env_values = true)]
    pub log_json: bool,
    /// More log lines (twice: debug)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// No progress display
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a repository, its writer key, and an identity unless recipients are given
    Init(InitArgs),
    /// Back up volumes, images or devices
    Backup(BackupArgs),
    /// List snapshots
    Snapshots(SnapshotsArgs),
    /// Show everything about one snapshot
    Show(ShowArgs),
    /// Show the ranges in which two snapshots differ
    Diff(DiffArgs),
    /// Restore a snapshot to a file or device
    Restore(RestoreArgs),
    /// Check that every snapshot can be restored
    Check(CheckArgs),
    /// Run roles as an agent over NATS, until SIGTERM
    Agent(AgentArgs),
    /// Show live sessions and agents, and volumes whose last snapshot is too old
    Status(StatusArgs),
    /// Cancel a session: nothing of it will be committed
    Cancel(CancelArgs),
    /// The configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// The index's cache
    #[command(subcommand)]
    Index(IndexCommand),
    /// Keys and who can open the repository
    #[command(subcommand)]
    Key(KeyCommand),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write manual pages into a directory
    Manual {
        /// The directory
        directory: PathBuf,
    },
}

/// `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Who can open content (age1...); may be repeated. Without any, an identity is made
    #[arg(long = "recipient", value_name = "AGE1")]
    pub recipients: Vec<String>,
    /// Where to write the new identity
    #[arg(long, value_name = "FILE", conflicts_with_all = ["recipients", "no_encryption"])]
    pub identity_out: Option<PathBuf>,
    /// Where to write the writer key
    #[arg(long, value_name = "FILE")]
    pub key_out: Option<PathBuf>,
    /// Store everything readable by anyone who can read the bucket
    #[arg(long, conflicts_with = "recipients")]
    pub no_encryption: bool,
    /// Target size of packs, 1MiB to 512MiB
    #[arg(long, value_name = "SIZE", default_value = "32MiB")]
    pub pack_size: String,
}

/// `backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Files or block devices
    #[arg(required = true, value_name = "SOURCE")]
    pub sources: Vec<String>,
    /// Name of the volume (one source only); default HOST/PATH
    #[arg(long)]
    pub name: Option<String>,
    /// Tags for the snapshots; may be repeated
    #[arg(long = "tag")]
    pub tags: Vec<String>,
    /// Seal a source that changes while it is read, and mark the snapshot
    #[arg(long)]
    pub allow_changes: bool,
    /// zstd level, 1 to 19 (embedded; agents have their own)
    #[arg(long, value_name = "N")]
    pub level: Option<i32>,
    /// Read at most this much per second, e.g. 100MiB
    #[arg(long, value_name = "SIZE")]
    pub limit_read: Option<String>,
    /// Upload at most this much per second
    #[arg(long, value_name = "SIZE")]
    pub limit_upload: Option<String>,
    /// I/O priority of the process
    #[arg(long, value_enum)]
    pub io_priority: Option<IoPriority>,
}

/// Classes of the kernel's I/O scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum IoPriority {
    /// As everybody else.
    Normal,
    /// The lowest of the best-effort class.
    Low,
    /// Only when nobody else wants the disk.
    Idle,
}

/// `snapshots`.
#[derive(Debug, Args)]
pub struct SnapshotsArgs {
    /// Only volumes whose names match; * stands for anything
    #[arg(long, value_name = "PATTERN")]
    pub volume: Option<String>,
}

/// `show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// An id, a unique prefix of one, NAME@latest or NAME@TIME
    pub snapshot: String,
}

/// `diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The older snapshot
    pub a: String,
    /// The newer snapshot
    pub b: String,
}

/// `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// An id, a unique prefix of one, NAME@latest or NAME@TIME
    pub snapshot: String,
    /// A file (made if it does not exist) or a block device
    pub target: String,
    /// Overwrite a file that has content, a device that is in use, or the snapshot's own source
    #[arg(long)]
    pub force: bool,
    /// With --nats: the host whose restorer agent writes the target; without, this process restores
    #[arg(long, value_name = "HOST")]
    pub to_host: Option<String>,
}

/// `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Read and verify every chunk, not only the structure
    #[arg(long)]
    pub read_data: bool,
}

/// The roles of agents.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads volumes of this host.
    Reader,
    /// Hashes, compresses and seals.
    Hasher,
    /// Serves shards of the index.
    Indexer,
    /// Uploads packs.
    Storer,
    /// Drives sessions.
    Conductor,
    /// Restores to targets of this host.
    Restorer,
}

impl Role {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Hasher => "hasher",
            Self::Indexer => "indexer",
            Self::Storer => "storer",
            Self::Conductor => "conductor",
            Self::Restorer => "restorer",
        }
    }
}

/// `agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// A role; may be repeated
    #[arg(long = "role", value_enum)]
    pub roles: Vec<Role>,
    /// Workers of the roles that use processors; default one per core
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    /// Address of the metrics endpoint, e.g. 127.0.0.1:9464
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<String>,
    /// Restorer: a folder or device below which targets may be written; may be repeated. Default: none
    #[arg(long = "target", value_name = "PATH")]
    pub targets: Vec<PathBuf>,
    /// Indexer: shards that this agent serves, e.g. 0,1; default all
    #[arg(long, value_delimiter = ',', value_name = "N,...")]
    pub shards: Vec<u16>,
}

/// `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Fail, and name the volumes, when a volume's last snapshot is older, e.g. 26h
    #[arg(long, value_name = "TIME")]
    pub max_age: Option<String>,
}

/// `cancel`.
#[derive(Debug, Args)]
pub struct CancelArgs {
    /// The session's id, as `status` shows it
    pub session: String,
}

/// `config ...`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print what is in force and where each value comes from
    Show,
}

/// `index ...`.
#[derive(Debug, Subcommand)]
pub enum IndexCommand {
    /// Delete the index's cache and read it anew from the packs
    Rebuild,
}

/// `key ...`.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Show the repository's keys and recipients
    Show,
    /// Let one more recipient open everything; needs an identity that can already
    Add {
        /// The new recipient (age1...)
        recipient: String,
        /// Where to write the new writer key; default over the old one
        #[arg(long, value_name = "FILE")]
        key_out: Option<PathBuf>,
    },
    /// Prove that an identity opens every key, and restore a sample of every volume with it
    Check {
        /// The identity file
        identity: PathBuf,
    },
}
