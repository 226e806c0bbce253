//! What changed since a baseline, as LVM reports that: what must be so before its metadata are asked at all.

use super::{Pool, Tracker};
use crate::dm::DmName;
use crate::ranges::Ranges;
use crate::report::LogicalVolume;

impl Tracker {
    /// The parts in which the thin volume `newer`, whose own device is `device`, differs from the thin snapshot `baseline`;
    /// or why they cannot be told.
    pub async fn thin_since(
        &self,
        baseline: &LogicalVolume,
        newer: &LogicalVolume,
        device: &DmName,
    ) -> Result<Ranges, String> {
        if baseline.size != newer.size {
            return Err(format!(
                "the volume had {} bytes when {} was taken, and has {}",
                baseline.size,
                baseline.full_name(),
                newer.size
            ));
        }
        let pool = Pool::of(newer).filter(|_| baseline.pool_uuid == newer.pool_uuid);
        let (Some(pool), Some(older)) = (pool, baseline.thin_id) else {
            return Err(format!("{} is in another pool", baseline.full_name()));
        };
        let delta = self.changed_ranges_thin(&pool, older, device, newer.size).await;
        delta.map(|delta| delta.changed).map_err(|why| why.to_string())
    }
}
