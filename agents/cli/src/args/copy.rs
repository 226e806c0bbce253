//! `copy`.

use std::path::PathBuf;

use clap::{Args, value_parser};

use super::{Chosen, values};

/// `copy`.
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// The repository that snapshots are brought to: a directory, or s3://BUCKET/PREFIX (endpoint, region and credentials
    /// by LVKEEP_OTHER_AWS_* variables where it has others)
    #[arg(long, value_name = "REPO")]
    pub to: String,
    /// The writer key file of that repository
    #[arg(long, value_name = "FILE", env = "LVKEEP_TO_KEY")]
    pub to_key: Option<PathBuf>,
    /// Of which volumes.
    #[command(flatten)]
    pub of: Chosen,
    /// Only snapshots of this moment and later: 2026-11-20, 2026-11-20T03:00 or RFC 3339
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    pub since: Option<String>,
    /// Only snapshots of this moment and earlier; a date means its end, and so does a minute or a second
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    pub until: Option<String>,
    /// Without an identity, move frames as they are between repositories that share their keys: damaged ones, too
    #[arg(long)]
    pub unverified: bool,
    /// Copy from an encrypted repository to one that is not: whoever can read that can read all that is copied
    #[arg(long)]
    pub no_encryption: bool,
    /// Say which snapshots would be copied, and copy none
    #[arg(long)]
    pub dry_run: bool,
    /// zstd level, 1 to 19, where chunks are sealed anew
    #[arg(long, value_name = "N", value_parser = value_parser!(i32).range(1..=19))]
    pub level: Option<i32>,
    /// Upload at most this much per second
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub limit_upload: Option<String>,
}
