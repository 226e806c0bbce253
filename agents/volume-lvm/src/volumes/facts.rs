//! The facts of a volume that a disaster recovery needs, as they travel with the snapshot.

use std::path::Path;

use schema::facts::{GROUP_BACKUP, GROUP_BACKUP_LEFT_OUT, fact};

use crate::report::{Inventory, LogicalVolume};
use crate::tools::Tools;

/// Facts of a volume and its group, by name. Names and values as `lvs` and `vgs` have them, sizes in bytes.
pub(super) fn of(inventory: &Inventory, volume: &LogicalVolume) -> Vec<(String, String)> {
    let mut facts = vec![
        ("kind", "logical volume".to_owned()),
        ("path", format!("/dev/{}/{}", volume.vg, volume.name)),
        ("size", volume.size.to_string()),
        ("vg_name", volume.vg.clone()),
        ("vg_uuid", volume.vg_uuid.to_string()),
        ("lv_name", volume.name.clone()),
        ("lv_uuid", volume.uuid.to_string()),
        ("lv_size", volume.size.to_string()),
        ("lv_type", volume.segtype.clone()),
        ("lv_layout", volume.layout.clone()),
        ("lv_tags", volume.tags.join(",")),
        ("stripes", volume.stripes.to_string()),
        ("stripe_size", volume.stripe_size.to_string()),
    ];
    if let Some(group) = inventory.group(&volume.vg) {
        facts.push(("vg_extent_size", group.extent_size.to_string()));
        facts.push(("vg_size", group.size.to_string()));
        facts.push(("vg_tags", group.tags.join(",")));
    }
    if let Some(pool) = inventory.pool_of(volume) {
        facts.push(("pool", pool.name.clone()));
        facts.push(("pool_size", pool.size.to_string()));
        facts.push(("pool_chunk_size", pool.chunk_size.to_string()));
        facts.push(("pool_discards", pool.discards.clone().unwrap_or_default()));
        facts.push(("pool_zeroes", pool.attributes.zeroes().to_string()));
    }
    facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// LVM's own description of a group, as `vgcfgrestore` takes it; without it a backup is still one, and says so.
pub(super) async fn backup_of_group(tools: &Tools, vg: &str, state: &Path) -> (String, String) {
    let folder = state.join("vgcfg");
    let file = folder.join(format!("{vg}-{}", std::process::id()));
    let written = async {
        std::fs::create_dir_all(&folder).map_err(|why| why.to_string())?;
        let path = file.to_str().ok_or("its path is no text")?;
        let arguments = ["--quiet", "--file", path, vg];
        tools.change("vgcfgbackup", &arguments).await.map_err(|why| why.to_string())?;
        std::fs::read_to_string(&file).map_err(|why| why.to_string())
    };
    let text: Result<String, String> = written.await;
    // Only what was just written; absent is as good.
    let _ = std::fs::remove_file(&file);
    let why = match text.and_then(|text| fact(GROUP_BACKUP, text).map_err(|why| why.to_string())) {
        Ok(fact) => return fact,
        Err(why) => why,
    };
    tracing::warn!(vg, why, "LVM's description of the group is not taken along");
    (GROUP_BACKUP_LEFT_OUT.to_owned(), why)
}
