//! `prune`.

use clap::Args;

use super::values;

/// What is moved in one collection at most, when nobody says anything else.
pub const MAX_REPACK: &str = "4GiB";
/// Of how much a pack may still be needed, in per cent, to be rewritten.
pub const REPACK_BELOW: u64 = 50;

/// `prune`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Say what would be deleted and moved, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Move at most this much out of packs that are mostly no longer needed, so that they can go too; 0 moves nothing
    #[arg(long, value_name = "SIZE", default_value = MAX_REPACK, value_parser = values::size)]
    pub max_repack: String,
    /// Move what is needed out of packs of which at most this many per cent are
    #[arg(long, value_name = "PERCENT", default_value_t = REPACK_BELOW, value_parser = clap::value_parser!(u64).range(0..=100))]
    pub repack_below: u64,
    /// Wait this long for sessions that were open when the collection began, e.g. 2h; without it, say which they are and
    /// leave the rest to the next prune
    #[arg(long, value_name = "TIME", value_parser = values::seconds)]
    pub wait: Option<String>,
    /// Cancel sessions that are waited for and began longer ago than this, e.g. 7d: nothing of them will be committed
    #[arg(long, value_name = "TIME", value_parser = values::seconds)]
    pub revoke_after: Option<String>,
    /// Nothing else writes to the repository until this ends: your word, on a store that lets two writers of one name win
    #[arg(long)]
    pub exclusive: bool,
}
