//! `repair`.

use clap::Args;

/// `repair`.
#[derive(Debug, Args)]
pub struct RepairArgs {
    /// Read and verify all content as well, so that what is damaged in it is recorded and marked, too
    #[arg(long)]
    pub read_data: bool,
}
