//! A host whose LVM is a few shell scripts over a folder: one file per volume, a log of every command.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use agent::buffer::Buffer;
use agent::{Changes, Environment, Opening, Volume, VolumeError, VolumeInfo, Volumes};
use async_trait::async_trait;
use schema::{ReadingId, RepoId, SessionId};

use crate::report::LogicalVolume;
use crate::settings::Settings;
use crate::tools::Tools;
use crate::volumes::LvmVolumes;

const LIST: &str = r#"echo "{\"report\":[{\"$KIND\":["
first=1; for f in "$D/$KIND"/*; do [ -e "$f" ] || continue; [ $first = 1 ] || echo ,; first=0; cat "$f"; done
echo ']}]}'"#;

/// Gives the group this many bytes back.
const FREE: &str = r#"free() { n=$(sed -n 's/.*"vg_free":"\([0-9]*\)".*/\1/p' "$D/vg/vg0")
sed -i "s/\"vg_free\":\"$n\"/\"vg_free\":\"$((n + $1))\"/" "$D/vg/vg0"; }"#;

const CREATE: &str = r#"if [ -e "$D/full" ]; then echo 'no space left in the volume group' >&2; exit 5; fi
tags= size=
while [ $# -gt 1 ]; do case "$1" in
  --name) name=$2; shift;; --addtag) tags="$tags,$2"; shift;; --size) size=${2%b}; shift;;
  --chunksize|--permission|--setactivationskip) shift;; esac; shift; done
lv=${1#*/}
if [ -n "$size" ]; then attr=sri-a-s--- type=linear pool= lvsize=$size; free -$size; else attr=Vri---tz-k type=thin pool=pool lvsize=1073741824; fi
echo "{\"vg_uuid\":\"vg0-\",\"vg_name\":\"vg0\",\"lv_uuid\":\"new-$name\",\"lv_name\":\"$name\",\"lv_attr\":\"$attr\",\"lv_size\":\"$lvsize\",\"lv_tags\":\"${tags#,}\",\"origin\":\"$lv\",\"origin_uuid\":\"vg0-$lv\",\"pool_lv\":\"$pool\",\"segtype\":\"$type\",\"data_percent\":\"0.00\",\"thin_id\":\"9\"}" > "$D/lv/$name""#;

const REMOVE: &str = r#"for last; do :; done
f="$D/lv/${last#*/}"; field() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" "$f"; }
case "$*" in *"lv_uuid=\"$(field lv_uuid)\""*) case $(field lv_attr) in s*) free $(field lv_size);; esac; rm "$f";; *) echo "not selected" >&2;; esac"#;

const CHANGE: &str = r#"add= del= act=
while [ $# -gt 1 ]; do case "$1" in
  --addtag) add="$add $2"; shift;; --deltag) del="$del $2"; shift;; --activate) act=$2; shift;; esac; shift; done
f="$D/lv/${1#*/}"; tags=$(sed -n 's/.*"lv_tags":"\([^"]*\)".*/\1/p' "$f" | tr , ' '); out=
for t in $tags $add; do case " $del " in *" $t "*) ;; *) out="$out,$t";; esac; done
sed -i "s|\"lv_tags\":\"[^\"]*\"|\"lv_tags\":\"${out#,}\"|" "$f"
[ "$act" != y ] || sed -i 's/Vri---tz-k/Vri-a-tz-k/' "$f"
[ "$act" != n ] || sed -i 's/Vri-a-tz-k/Vri---tz-k/' "$f""#;

const BACKUP: &str = r##"while [ $# -gt 1 ]; do [ "$1" != --file ] || echo "# of $3" > "$2"; shift; done"##;

/// The host.
pub(super) struct Host {
    folder: tempfile::TempDir,
    pub tools: Tools,
    pub inner: Arc<Devices>,
}

impl Host {
    pub fn new(volumes: &[LogicalVolume]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        for part in ["bin", "lv", "vg"] {
            fs::create_dir(root.join(part)).unwrap();
        }
        let host = Self { tools: Tools::at(root.join("bin")), folder, inner: Arc::default() };
        host.tool("lvs", &format!("KIND=lv\n{LIST}"));
        host.tool("vgs", &format!("KIND=vg\n{LIST}"));
        for (tool, script) in [
            ("lvcreate", &*format!("{FREE}\n{CREATE}")),
            ("lvremove", &*format!("{FREE}\n{REMOVE}")),
            ("lvchange", CHANGE),
            ("vgcfgbackup", BACKUP),
            ("dmsetup", "echo 'no such device' >&2; exit 1"),
        ] {
            host.tool(tool, script);
        }
        let group = "{\"vg_uuid\":\"vg0-\",\"vg_name\":\"vg0\",\"vg_size\":\"107374182400\",\"vg_free\":\"53687091200\",\
                     \"vg_extent_size\":\"4194304\",\"vg_attr\":\"wz--n-\"}";
        fs::write(root.join("vg/vg0"), group).unwrap();
        for volume in volumes {
            host.put(volume);
        }
        host
    }

    /// A tool, in place of the one that there is.
    pub fn tool(&self, name: &str, script: &str) {
        let root = self.folder.path().display();
        let file = self.folder.path().join("bin").join(name);
        fs::write(&file, format!("#!/bin/sh\nD={root}\necho \"{name} $*\" >> $D/log\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Puts a volume there.
    pub fn put(&self, volume: &LogicalVolume) {
        let row = serde_json::json!({
            "vg_uuid": volume.vg_uuid.as_str(), "vg_name": volume.vg, "lv_uuid": volume.uuid.as_str(),
            "lv_name": volume.name, "lv_attr": volume.attributes.to_string(), "lv_size": volume.size.to_string(),
            "lv_tags": volume.tags.join(","), "origin": volume.origin.clone().unwrap_or_default(),
            "origin_uuid": volume.origin_uuid.as_ref().map_or("", |uuid| uuid.as_str()),
            "pool_lv": volume.pool.clone().unwrap_or_default(), "segtype": volume.segtype,
            "data_percent": volume.data_percent.map(|p| p.to_string()).unwrap_or_default(),
            "metadata_percent": volume.metadata_percent.map(|p| p.to_string()).unwrap_or_default(),
            "metadata_lv": volume.metadata_lv.clone().unwrap_or_default(),
        });
        fs::write(self.folder.path().join("lv").join(&volume.name), row.to_string()).unwrap();
    }

    /// Every creation fails from here on.
    pub fn fill(&self) {
        fs::write(self.folder.path().join("full"), "").unwrap();
    }

    /// The group has this many MiB free.
    pub fn has_free(&self, mib: u64) {
        let file = self.folder.path().join("vg/vg0");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(file, text.replace("53687091200", &(mib << 20).to_string())).unwrap();
    }

    /// What an operator or the kernel does to a volume.
    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let file = self.folder.path().join("lv").join(name);
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(file, text.replace(from, to)).unwrap();
    }

    /// Names of the volumes that there are.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path().join("lv")).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The tags of a volume.
    pub fn tags(&self, name: &str) -> String {
        let text = fs::read_to_string(self.folder.path().join("lv").join(name)).unwrap();
        let row: serde_json::Value = serde_json::from_str(&text).unwrap();
        row["lv_tags"].as_str().unwrap().to_owned()
    }

    /// The commands that were run, of those that begin so.
    pub fn ran(&self, start: &str) -> Vec<String> {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        log.lines().filter(|line| line.starts_with(start)).map(str::to_owned).collect()
    }

    pub fn settings(&self) -> Settings {
        Settings { state: self.folder.path().join("state"), ..Settings::default() }
    }

    /// lvkeep on this host.
    pub fn volumes(&self, settings: Settings) -> LvmVolumes {
        LvmVolumes::new(self.inner.clone(), self.tools.clone(), settings, Arc::new(Plain)).unwrap()
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().to_owned()
    }
}

/// What a session asks for.
pub(super) fn opening<'a>(
    source: &'a str,
    session: SessionId,
    repository: RepoId,
    parent: Option<SessionId>,
) -> Opening<'a> {
    Opening { source, volume: source, session, repository, reading: None, parent, group: None, plain: false }
}

/// Devices that read as zero, all of 1 GiB.
#[derive(Debug, Default)]
pub(super) struct Devices {
    pub opened: Mutex<Vec<String>>,
}

#[async_trait]
impl Volumes for Devices {
    async fn open(&self, opening: &Opening<'_>) -> Result<Arc<dyn Volume>, VolumeError> {
        self.opened.lock().unwrap().push(opening.source.to_owned());
        let info = VolumeInfo {
            name: opening.source.to_owned(),
            reading: ReadingId::from_bytes([1; 16]),
            size: 1 << 30,
            layout: Vec::new(),
        };
        Ok(Arc::new(Device { info }))
    }

    async fn close(&self, _session: SessionId, _committed: bool) {}
}

#[derive(Debug)]
struct Device {
    info: VolumeInfo,
}

#[async_trait]
impl Volume for Device {
    fn info(&self) -> &VolumeInfo {
        &self.info
    }

    fn changes(&self) -> &Changes {
        &Changes::UNTRACKED
    }

    async fn allocated(&self, range: Range<u64>) -> Result<Vec<Range<u64>>, VolumeError> {
        Ok(vec![range])
    }

    async fn read(&self, _: u64, buffer: Buffer, _: usize, _: usize) -> Result<Buffer, VolumeError> {
        Ok(buffer)
    }

    async fn check_unchanged(&self) -> Result<(), VolumeError> {
        Ok(())
    }
}

/// Time stands still, and random bytes count up.
#[derive(Debug)]
struct Plain;

#[async_trait]
impl Environment for Plain {
    fn now_ms(&self) -> u64 {
        1_700_000_000_000
    }

    fn elapsed(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }

    async fn sleep(&self, _: std::time::Duration) {}

    fn fill_random(&self, bytes: &mut [u8]) {
        static COUNT: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(1);
        bytes.fill(COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    }
}
