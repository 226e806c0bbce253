//! What says which snapshots stay: rules, holds, tags and notes.

use clap::{Args, value_parser};
use serde::{Deserialize, Serialize};

use super::{Chosen, values};

/// Rules of retention: as options, and as a policy of the configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Rules")]
pub struct Keep {
    /// Keep the newest N snapshots of each volume
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_last: Option<u32>,
    /// Keep the newest of each of the newest N hours that have a snapshot
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_hourly: Option<u32>,
    /// The same of days, which are those of UTC
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_daily: Option<u32>,
    /// The same of weeks, which begin on Monday
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_weekly: Option<u32>,
    /// The same of months
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_monthly: Option<u32>,
    /// The same of years
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_yearly: Option<u32>,
    /// Keep what is at most so much older than its volume's newest snapshot, e.g. 36h, 14d or 8w
    #[arg(long, value_name = "DURATION", value_parser = values::within)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_within: Option<String>,
    /// Keep what has this tag; repeat for more
    #[arg(long = "keep-tag", value_name = "TAG")]
    #[serde(rename = "keep_tag", skip_serializing_if = "Vec::is_empty")]
    pub keep_tags: Vec<String>,
}

/// `forget`.
#[derive(Debug, Args)]
pub struct ForgetArgs {
    /// Snapshots to forget: ids, unique prefixes of ids, NAME@latest or NAME@TIME
    #[arg(value_name = "SNAPSHOT", conflicts_with_all = ["Chosen", "Keep", "split_groups"])]
    pub snapshots: Vec<String>,
    /// Which snapshots the rules are applied to, each volume by itself; default those of all volumes.
    #[command(flatten)]
    pub of: Chosen,
    /// What is kept.
    #[command(flatten)]
    pub keep: Keep,
    /// Decide about each volume by itself: without, a group's run stays as a whole while anything keeps one of its
    /// snapshots
    #[arg(long)]
    pub split_groups: bool,
    /// Of the SNAPSHOTs that are named, also forget one that is the newest of its volume
    #[arg(long, requires = "snapshots")]
    pub allow_last: bool,
    /// Only print what would stay, what would go, and why
    #[arg(long)]
    pub dry_run: bool,
}

/// `unforget`.
#[derive(Debug, Args)]
pub struct UnforgetArgs {
    /// An id, or a unique prefix of one, as `snapshots --forgotten` lists it
    pub snapshot: String,
}

/// `hold`.
#[derive(Debug, Args)]
pub struct HoldArgs {
    /// An id, a unique prefix of one, NAME@latest or NAME@TIME
    pub snapshot: String,
    /// Why, for whoever wants to forget it
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
}

/// `release`.
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// An id, a unique prefix of one, NAME@latest or NAME@TIME
    pub snapshot: String,
}

/// `tag`.
#[derive(Debug, Args)]
pub struct TagArgs {
    /// An id, a unique prefix of one, NAME@latest or NAME@TIME
    pub snapshot: String,
    /// Its tags are these and no others; an empty one means none. May be repeated
    #[arg(long, value_name = "TAG", conflicts_with_all = ["add", "remove"], required_unless_present_any = ["add", "remove"])]
    pub set: Vec<String>,
    /// Add this tag; may be repeated
    #[arg(long, value_name = "TAG")]
    pub add: Vec<String>,
    /// Remove this tag; may be repeated
    #[arg(long, value_name = "TAG")]
    pub remove: Vec<String>,
}

/// `note`.
#[derive(Debug, Args)]
pub struct NoteArgs {
    /// An id, a unique prefix of one, NAME@latest or NAME@TIME
    pub snapshot: String,
    /// The note, which replaces an earlier one; an empty one removes it
    pub text: String,
}
