//! What is known of volumes beside their bytes: the facts that travel with a snapshot, and what lvkeep keeps on a host.

use serde_json::Value;

use crate::lab::{Content, Keeper, Traces, Volume, VolumeGroup, run, seed, step};

/// `show` has what a disaster recovery needs, as LVM itself reports it.
pub fn facts_travel() {
    let group = VolumeGroup::new("vg0");
    run("vgchange", &["-q", "--addtag", "rack7", group.name()]);
    let striped = ["-i", "2", "-I", "128k", "-L", "32m", "--addtag", "backup", "--addtag", "shop"];
    run("lvcreate", &[&["-q", "-y", "-Wn", "-n", "web"], &striped[..], &[group.name()]].concat());
    let pool = group.pool("pool", 128, 64);
    let (thick, thin) = (group.volume("web"), pool.thin("data", 32));
    let keeper = Keeper::new("");
    for volume in [&thick, &thin] {
        Content::new(&volume.device(), seed()).fill(50);
        let backup = keeper.backup(volume);
        let shown = keeper.machine.json(&["show", backup.snapshot()]);
        let fact = |name: &str| match &shown["layout"][name] {
            Value::String(text) => text.clone(),
            other => panic!("{name} is {other}"),
        };
        for name in ["vg_name", "lv_name", "lv_uuid", "lv_size", "lv_tags", "vg_extent_size", "vg_tags"] {
            assert_eq!(fact(name), volume.field(name), "{name} of {}", volume.path());
        }
        assert_eq!(fact("lv_type"), volume.field("segtype"));
        let description = fact("vgcfgbackup");
        for part in [volume.uuid(), "extent_size".to_owned(), format!("{} {{", group.name())] {
            assert!(description.contains(&part), "{part} is in LVM's own description: {description}");
        }
        let read = keeper.run(&["show", backup.snapshot()]).ok().out;
        assert!(read.contains("vgcfgbackup:") && read.contains(&volume.uuid()), "{read}");
        match volume == &thick {
            true => {
                assert_eq!([fact("stripes"), fact("stripe_size")], ["2".to_owned(), (128 << 10).to_string()]);
                assert_eq!(fact("lv_tags"), "backup,shop");
            }
            false => assert_eq!([fact("pool"), fact("pool_chunk_size")], ["pool", "65536"]),
        }
    }
    Traces::of(&group, &[&pool]).are_only(2);
}

/// `host list` tells baselines from orphans, and `host clean` removes the latter alone.
pub fn orphans_are_listed_and_removed() {
    let group = VolumeGroup::new("vg0");
    let pool = group.pool("pool", 128, 64);
    let volumes = [group.thick("web", 32), pool.thin("data", 32)];
    let keeper = Keeper::new("");
    let states = |arguments: &[&str]| {
        let said = keeper.machine.json(arguments);
        println!("    {}: {said}", arguments.join(" "));
        said.as_array().expect("a list").clone()
    };
    let of = |rows: &[Value], volume: &Volume| match rows.iter().find(|row| row["origin"] == volume.path()) {
        Some(row) => row.clone(),
        None => panic!("{} in {rows:?}", volume.path()),
    };
    let backups = volumes.each_ref().map(|volume| {
        Content::new(&volume.device(), seed()).fill(50);
        keeper.backup(volume)
    });
    for command in ["list", "clean"] {
        let rows = states(&["host", command]);
        assert_eq!(rows.len(), 2, "{rows:?}");
        for (volume, backup) in volumes.iter().zip(&backups) {
            let row = of(&rows, volume);
            assert_eq!(row["session"], backup.snapshot(), "{row}");
            assert_eq!([&row["orphan"], &row["removed"]], [&Value::Null, &Value::Bool(false)], "{row}");
        }
    }
    for (volume, left) in volumes.iter().zip([1, 0]) {
        step(&format!("the archive has lost the snapshot that the baseline of {} belongs to", volume.path()));
        let lost = backups[usize::from(left == 0)].snapshot();
        keeper.collected(lost);
        let listed = of(&states(&["host", "list"]), volume);
        assert!(listed["orphan"].is_string() && listed["removed"] == false, "{listed}");
        assert_eq!(group.kept().len(), left + 1, "a list removes nothing");
        let cleaned = of(&states(&["host", "clean"]), volume);
        assert!(cleaned["orphan"].is_string() && cleaned["removed"] == true, "{cleaned}");
        Traces::of(&group, &[&pool]).are_only(left);
    }
    assert!(states(&["host", "list"]).is_empty(), "nothing of lvkeep's is left");
}
