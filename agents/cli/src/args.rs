//! The command line. Every setting here can also come from the environment or from the configuration file.

mod check;
mod copy;
mod keeping;
mod prune;
mod repair;
mod streams;
mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};

pub use check::{CheckArgs, ReadData};
pub use copy::CopyArgs;
pub use keeping::{ForgetArgs, HoldArgs, Keep, NoteArgs, ReleaseArgs, TagArgs, UnforgetArgs};
pub use prune::{MAX_REPACK, PruneArgs, REPACK_BELOW};
pub use repair::RepairArgs;
pub use streams::{ApplyArgs, InputFormat, SendArgs, StreamFormat, words};

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
#[command(next_help_heading = "Global options")]
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
    #[arg(long, global = true, env = "LVKEEP_MEMORY", value_name = "SIZE", value_parser = values::memory)]
    pub memory: Option<String>,
    /// Where the index's cache is, which backups and `index rebuild` make: 64 MiB, and 62 bytes for each chunk in the
    /// repository
    #[arg(long, global = true, env = "LVKEEP_CACHE", value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Where commands that read snapshots put what they need to know of them and have no memory for, where no cache of
    /// an index is: 64 MiB, and 62 bytes for each of their chunks, deleted in the end [default: in the cache's folder]
    #[arg(long, global = true, env = "LVKEEP_WORK_DIR", value_name = "DIR")]
    pub work_dir: Option<PathBuf>,
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
    /// Forget snapshots that rules do not keep, or that are named; nothing is deleted until it is collected
    Forget(ForgetArgs),
    /// Bring a forgotten snapshot back, until it is collected
    Unforget(UnforgetArgs),
    /// Hold a snapshot: nothing forgets it until it is released
    Hold(HoldArgs),
    /// Let a snapshot that is held be forgotten again
    Release(ReleaseArgs),
    /// Change the tags of a snapshot
    Tag(TagArgs),
    /// Set the note of a snapshot
    Note(NoteArgs),
    /// Show everything about one snapshot
    Show(ShowArgs),
    /// Show the ranges in which two snapshots differ, in whole chunks of 16 to 256 KiB: something in each has changed
    Diff(DiffArgs),
    /// Show which snapshots of a volume changed a range of it, as far as chunks tell, which are shown whole (16 to 256
    /// KiB): what changed may lie beside the range
    FindChange(FindChangeArgs),
    /// Restore a snapshot to a file or device, or many by a plan
    Restore(RestoreArgs),
    /// Put back what a restore with --undo has overwritten, also when it was interrupted
    Undo(UndoArgs),
    /// Print a plan that restores the latest snapshot of many volumes, to be edited
    Plan(PlanArgs),
    /// Write what a snapshot holds to standard output
    Cat(CatArgs),
    /// Compare a file or device with a snapshot, or read all of a snapshot
    Verify(VerifyArgs),
    /// Send what changed since an LVM snapshot was taken to another device, here or elsewhere
    Send(SendArgs),
    /// Apply a stream of changes, as `send` and --snapback write it
    Apply(ApplyArgs),
    /// Bring snapshots to a second repository, which may be elsewhere
    Copy(CopyArgs),
    /// Check that every snapshot can be restored
    Check(CheckArgs),
    /// Mend what the repository itself can mend, and mark snapshots with what of them is lost
    Repair(RepairArgs),
    /// Delete what no snapshot needs any more, beside backups and restores
    Prune(PruneArgs),
    /// Run roles as an agent over NATS, until SIGTERM
    Agent(AgentArgs),
    /// Show live sessions and agents, and volumes whose last snapshot is too old
    Status(StatusArgs),
    /// Cancel a session, of which nothing will be committed, or a check of agents
    Cancel(CancelArgs),
    /// What lvkeep keeps on this host: its LVM snapshots
    #[command(subcommand)]
    Host(HostCommand),
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
    /// Share the keys and recipients of this other repository, so that `copy` moves between both what is stored as it is;
    /// --key or --identity opens it, or its files in the user's folders
    #[arg(long, value_name = "REPO", conflicts_with_all = ["recipients", "identity_out", "no_encryption"])]
    pub like: Option<String>,
    /// Store everything readable by anyone who can read the bucket
    #[arg(long, conflicts_with = "recipients")]
    pub no_encryption: bool,
    /// Target size of packs, 1MiB to 512MiB
    #[arg(long, value_name = "SIZE", default_value = "32MiB", value_parser = values::pack_size)]
    pub pack_size: String,
}

/// `backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Files, block devices, or logical volumes as VG/LV or VG/PATTERN, where * stands for anything
    #[arg(value_name = "SOURCE", required_unless_present_any = ["tags", "domain"])]
    pub sources: Vec<String>,
    /// Name of the volume (one source only); default HOST/PATH or HOST/VG/LV
    #[arg(long, value_parser = values::name)]
    pub name: Option<String>,
    /// A tag for the snapshots; with a leading @, the logical volumes that carry this LVM tag are backed up. May be
    /// repeated
    #[arg(long = "tag")]
    pub tags: Vec<String>,
    /// Take the LVM snapshots of all sources at one moment, as a group of this name
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    /// A libvirt domain whose file systems are frozen by its guest agent meanwhile; without sources, its disks are
    /// backed up. They are a group of that name
    #[arg(long, value_name = "NAME", conflicts_with = "freeze")]
    pub domain: Option<String>,
    /// Freeze what is mounted from the sources while their snapshots are taken (none, fsfreeze or domain:NAME)
    #[arg(long, value_name = "HOW")]
    pub freeze: Option<String>,
    /// A shell command before the LVM snapshots are taken; when it fails, none is
    #[arg(long, value_name = "COMMAND")]
    pub pre: Option<String>,
    /// A shell command after the LVM snapshots were taken, or could not be
    #[arg(long, value_name = "COMMAND")]
    pub post: Option<String>,
    /// Seal a source that changes while it is read, and mark the snapshot
    #[arg(long)]
    pub allow_changes: bool,
    /// zstd level, 1 to 19 (embedded; agents have their own)
    #[arg(long, value_name = "N", value_parser = value_parser!(i32).range(1..=19))]
    pub level: Option<i32>,
    /// Read at most this much per second, e.g. 100MiB
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub limit_read: Option<String>,
    /// Upload at most this much per second
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
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

/// Snapshots of which all this is true.
#[derive(Debug, Args)]
pub struct Chosen {
    /// Only volumes whose names match; * stands for anything
    #[arg(long, value_name = "PATTERN")]
    pub volume: Option<String>,
    /// Only snapshots of groups whose names match, or of one run of a group (NAME/RUN)
    #[arg(long, value_name = "PATTERN")]
    pub group: Option<String>,
    /// Only snapshots of hosts whose names match
    #[arg(long, value_name = "PATTERN")]
    pub host: Option<String>,
    /// Only snapshots with this tag; repeat for several, of which all must be there
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
}

/// `snapshots`.
#[derive(Debug, Args)]
pub struct SnapshotsArgs {
    /// Of which volumes.
    #[command(flatten)]
    pub of: Chosen,
    /// Only snapshots of this moment and later: 2026-11-20, 2026-11-20T03:00 or RFC 3339
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    pub since: Option<String>,
    /// Only snapshots of this moment and earlier; a date means its end, and so does a minute or a second
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    pub until: Option<String>,
    /// The snapshots that are forgotten, and not collected yet
    #[arg(long)]
    pub forgotten: bool,
}

/// `find-change`.
#[derive(Debug, Args)]
pub struct FindChangeArgs {
    /// The volume, as `snapshots` lists it
    pub volume: String,
    /// Where the range begins, in bytes or with a unit: 1048576, 1MiB; or the range, as in 1MiB+64KiB
    #[arg(value_parser = values::offset, value_name = "OFFSET[+LENGTH]")]
    pub offset: String,
    /// How long it is [default: 4KiB]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub length: Option<String>,
}

/// `cat`.
#[derive(Debug, Args)]
pub struct CatArgs {
    /// An id, a unique prefix of one, NAME@latest or NAME@TIME
    pub snapshot: String,
    /// Only this range: where it begins and how long it is, as in 1GiB+4KiB
    #[arg(long, value_name = "OFFSET+LENGTH", value_parser = values::range)]
    pub range: Option<String>,
}

/// `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// An id, a unique prefix of one, NAME@latest or NAME@TIME
    pub snapshot: String,
    /// A file, a block device, or a logical volume as VG/LV, which is compared with the snapshot; without, every chunk of
    /// the snapshot is read from the repository and verified
    pub target: Option<String>,
    /// Compare only LENGTH bytes from OFFSET on, as after `restore --range`; chunks that are in it in part are fetched,
    /// which needs the identity
    #[arg(long, value_name = "OFFSET+LENGTH", requires = "target", value_parser = values::range)]
    pub range: Option<String>,
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
#[derive(Debug, Clone, Args)]
pub struct RestoreArgs {
    /// An id, a unique prefix of one, NAME@latest or NAME@TIME
    #[arg(required_unless_present = "plan")]
    pub snapshot: Option<String>,
    /// SNAPSHOT names a group instead (NAME@latest, NAME@TIME or NAME/RUN): each of its volumes is restored to
    /// TARGET/NAME, with the last part of its name; TARGET is a folder or a volume group
    #[arg(long)]
    pub group: bool,
    /// With --group: restore what there is of a run in which a volume is missing
    #[arg(long, requires = "group")]
    pub incomplete: bool,
    /// A file (made if it does not exist), a block device, or a logical volume as VG/LV
    #[arg(required_unless_present = "plan", value_parser = values::target)]
    pub target: Option<String>,
    /// Restore only LENGTH bytes from OFFSET on, to where they were; the rest of the target stays as it is, and so does
    /// its size
    #[arg(long, value_name = "OFFSET+LENGTH", conflicts_with = "create", value_parser = values::range)]
    pub range: Option<String>,
    /// Keep what is overwritten in this new local file; `apply FILE TARGET` puts it back, with --unfinished when the
    /// restore was killed
    #[arg(long, value_name = "FILE")]
    pub snapback: Option<PathBuf>,
    /// Restore to this target, too; repeat for more. What is read from the repository is read once, and files share it
    /// on disk where the file system can
    #[arg(long, value_name = "TARGET", conflicts_with = "group", value_parser = values::target)]
    pub also: Vec<String>,
    /// Overwrite TARGET, named as above, although somebody uses it: it is mounted, part of another device, or open in a
    /// process that writes to it; repeat for more. Whether what it holds may go, --force says
    #[arg(long, value_name = "TARGET")]
    pub force_in_use: Vec<String>,
    /// How.
    #[command(flatten)]
    pub options: RestoreOptions,
    /// Restore what this file says, many volumes to many hosts; `lvkeep plan` writes one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["snapshot", "group", "target", "range", "also", "force_in_use", "RestoreOptions"])]
    pub plan: Option<PathBuf>,
}

/// How a volume is restored. Which of it goes together is checked in `options.rs`, for plans, too.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct RestoreOptions {
    /// Overwrite a file that has content, a device that is larger than the snapshot, the snapshot's own source, or a
    /// volume that has more than an extent behind the snapshot's end (which is emptied), or whose other snapshots or
    /// thin pool would overflow. What is in use is refused all the same
    #[arg(long)]
    pub force: bool,
    /// Overwrite it although somebody uses it: named on the command line, and by each volume of a plan.
    #[arg(skip)]
    pub force_in_use: bool,
    /// Make the logical volume; one of that name must not exist, unless a restore of the same snapshot was cut off on it
    /// (tag lvkeep-incomplete)
    #[arg(long)]
    pub create: bool,
    /// With --create: in this thin pool of the volume group
    #[arg(long, value_name = "POOL")]
    pub thin: Option<String>,
    /// With --create: striped, mirrored or thin as the volume that was backed up, if the volume group allows it
    #[arg(long)]
    pub like: bool,
    /// Take an LVM snapshot of the target first, of at most SIZE where it is not thin; default what the target needs
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub safety_snapshot: Option<String>,
    /// Remove this repository's baseline of the target first, which would have to hold all that is overwritten; its
    /// next backup reads the whole volume
    #[arg(long)]
    pub drop_baseline: bool,
    /// Write all of the target, and do not look what stands there already
    #[arg(long)]
    pub full: bool,
    /// Compare all of the target, also where its baseline says that nothing has changed
    #[arg(long)]
    pub no_tracking: bool,
    /// Keep what stands on the target as a snapshot in the repository before anything is overwritten; `undo` puts it
    /// back. With --to-host, a reader agent of that host reads it
    #[arg(long)]
    pub undo: bool,
    /// Restore the rest when something cannot be read any more, and list the holes, which read as zero
    #[arg(long)]
    pub keep_going: bool,
    /// Read the target again when it is written, past the page cache, and compare it with the snapshot
    #[arg(long)]
    pub verify: bool,
    /// With --nats: the host whose restorer agent writes the target; without, this process restores
    #[arg(long, value_name = "HOST")]
    pub to_host: Option<String>,
}

/// `undo`.
#[derive(Debug, Args)]
pub struct UndoArgs {
    /// The id that `restore --undo` said (`lvkeep snapshots --volume 'undo/*'` lists all that are kept)
    pub snapshot: String,
    /// The target is a device by a name that may mean another one by now, such as /dev/sdb, and I have looked: it is the
    /// one that it was. One that is in use is refused all the same
    #[arg(long)]
    pub same_device: bool,
    /// Put back all that stood there, also where a restore of a range has overwritten nothing; what was written there
    /// since is lost. Without it, only the range is put back
    #[arg(long)]
    pub whole: bool,
    /// Overwrite a target whose name may mean another one by now. One that is in use is refused all the same
    #[arg(long)]
    pub force: bool,
    /// Overwrite TARGET, which is where it was kept, although somebody uses it
    #[arg(long, value_name = "TARGET")]
    pub force_in_use: Vec<String>,
    /// With --nats: the host on which it was kept, whose restorer agent puts it back
    #[arg(long, value_name = "HOST")]
    pub to_host: Option<String>,
}

/// `plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Of which volumes.
    #[command(flatten)]
    pub of: Chosen,
    /// The last snapshots of this moment or earlier, instead of the latest; a date means its end, and so does a minute or a
    /// second
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    pub at: Option<String>,
    /// Restore to VG/NAME, with the last part of a volume's name; without, to where the volume was
    #[arg(long, value_name = "VG")]
    pub to_vg: Option<String>,
    /// How each volume is to be restored.
    #[command(flatten)]
    pub options: RestoreOptions,
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
    /// Checks the repository while its process has nothing else to do.
    Checker,
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
            Self::Checker => "checker",
        }
    }
}

/// `agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// A role; may be repeated
    #[arg(long = "role", value_enum)]
    pub roles: Vec<Role>,
    /// Workers of the roles that use processors; default one more than there are cores
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    /// Address of the metrics endpoint, e.g. 127.0.0.1:9464
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<String>,
    /// Restorer: a folder or device below which targets may be written, or VG/PATTERN; may be repeated. Default: none
    #[arg(long = "target", value_name = "PATH")]
    pub targets: Vec<PathBuf>,
    /// Indexer: shards that this agent serves, e.g. 0,1; default all
    #[arg(long, value_delimiter = ',', value_name = "N,...")]
    pub shards: Vec<u16>,
}

/// `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Fail, and name the volumes, when a volume's last snapshot is older, e.g. 26h (code 8), or else when damage is recorded
    /// (code 6)
    #[arg(long, value_name = "TIME", value_parser = values::seconds)]
    pub max_age: Option<String>,
}

/// `cancel`.
#[derive(Debug, Args)]
pub struct CancelArgs {
    /// The id of a session, or of a check of agents, as `status` shows it
    pub session: String,
    /// Also when its object cannot be read and nothing says where it would commit; nobody may drive it any more
    #[arg(long)]
    pub force: bool,
}

/// `host ...`.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// List lvkeep's LVM snapshots on this host: baselines, those being read, and orphans
    List,
    /// Remove LVM snapshots that crashed runs left, and thaw what they left frozen
    Clean {
        /// Also what agents took and nobody here can judge: of another repository, or without the bucket.
        #[arg(long)]
        unknown: bool,
    },
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
        /// Where to write the new writer key; default over the old one, and never over anything else
        #[arg(long, value_name = "FILE")]
        key_out: Option<PathBuf>,
    },
    /// Prove that an identity opens every key, and restore a sample of every volume with it
    Check {
        /// The identity file
        identity: PathBuf,
    },
}
