//! What the kernel does with a volume's blocks, by device-mapper's own tables.
//!
//! LVM's reports say what is configured; the tables say what is in force. Their form is the kernel's
//! (Documentation/admin-guide/device-mapper/{snapshot,thin-provisioning}.rst). Pure.

use super::zeroing::Kind;
use crate::dm::ThinTable;

/// What a pool's table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pool {
    /// Bytes of a block.
    pub block: u64,
    /// New blocks are zeroed.
    pub zeroes: bool,
    /// Discards are honoured.
    pub discards: bool,
}

/// Whether all that is written to the device is copied for snapshots of it first.
pub(crate) fn is_snapshot_origin(table: &str) -> bool {
    table.lines().any(|line| line.split_whitespace().nth(2) == Some("snapshot-origin"))
}

/// The table of a thin pool; none when it is no such table.
pub(crate) fn pool(table: &str) -> Option<Pool> {
    let mut lines = table.lines().filter(|line| !line.trim().is_empty());
    let fields: Vec<&str> = lines.next()?.split_whitespace().collect();
    let ["0", _, "thin-pool", _, _, sectors, _, features @ ..] = fields.as_slice() else { return None };
    // The kernel's own bounds: 64 KiB to 1 GiB.
    let sectors: u64 = sectors.parse().ok().filter(|sectors| (128..=2 << 20).contains(sectors))?;
    let has = |feature: &str| features.iter().skip(1).any(|has| *has == feature);
    let (zeroes, discards) = (!has("skip_block_zeroing"), !has("ignore_discard"));
    lines.next().is_none().then_some(Pool { block: sectors * 512, zeroes, discards })
}

/// The kind of a thin volume. One that is also the origin of a snapshot with an exception store passes no discards on.
pub(crate) fn thin_kind(thin: &ThinTable, pool: Pool, watched: bool) -> Kind {
    Kind::Thin {
        block: pool.block,
        zeroes: pool.zeroes,
        discards: pool.discards && !watched,
        external_origin: thin.external_origin.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_the_kernel() {
        let of = |block, zeroes, discards| Some(Pool { block, zeroes, discards });
        for (table, expected) in [
            ("0 204800 thin-pool 253:2 253:3 128 0 0", of(64 << 10, true, true)),
            ("0 204800 thin-pool 253:2 253:3 128 0", of(64 << 10, true, true)),
            ("0 204800 thin-pool 253:2 253:3 384 96 1 skip_block_zeroing ", of(192 << 10, false, true)),
            (
                "0 204800 thin-pool 253:2 253:3 128 0 2 skip_block_zeroing ignore_discard\n",
                of(64 << 10, false, false),
            ),
            ("0 204800 thin-pool 253:2 253:3 128 0 1 no_discard_passdown", of(64 << 10, true, true)),
            ("0 204800 thin-pool 253:2 253:3 0 0 0", None),
            ("0 204800 linear 8:16 2048", None),
            ("", None),
        ] {
            assert_eq!(pool(table), expected, "{table}");
        }
        assert!(is_snapshot_origin("0 8 snapshot-origin 253:5\n"));
        assert!(!is_snapshot_origin("0 8 linear 8:16 0\n8 8 linear 8:17 0\n"));
    }

    #[test]
    fn a_thin_volume_below_a_snapshot_is_not_discarded() {
        let pool = Pool { block: 64 << 10, zeroes: true, discards: true };
        for (watched, origin, discards) in
            [(false, None, true), (true, None, false), (false, Some("253:9"), true)]
        {
            let thin = ThinTable { size: 1 << 30, id: 1, external_origin: origin.map(str::to_owned) };
            let external_origin = origin.is_some();
            let expected = Kind::Thin { block: 64 << 10, zeroes: true, discards, external_origin };
            assert_eq!(thin_kind(&thin, pool, watched), expected);
        }
    }
}
