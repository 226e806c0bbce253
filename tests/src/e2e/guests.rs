//! Disk images of whole guests: Debian's root file system, as the lab's guests have it, with names, packages, data and
//! days of their own.
//!
//! File systems are ext4, bare or in a partition; for root on a machine that mounts them, xfs and btrfs too.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tempfile::TempDir;

use super::image::{debugfs, random_file, succeeds};
use super::loops::Mounted;
use super::tools::{program, xtask};

const MIB: u64 = 1 << 20;
/// Where the partition of a partitioned disk begins.
const PARTITION: u64 = MIB;
/// Bytes of a file of a guest's own data.
const DATA: u64 = 3 * MIB;

/// Where a guest's root file system lies, and of what kind it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Ext4,
    PartitionedExt4,
    Xfs,
    Btrfs,
}

/// A guest's name, layout, size in MiB, and what is not installed in it.
type Recipe = (&'static str, Layout, u64, &'static [&'static str]);

const MODULES: &str = "usr/lib/modules";
const PYTHON: &str = "usr/lib/python3.11";
const ICU: &str = "usr/lib/x86_64-linux-gnu/libicudata.so.72.1";
const SSH: &str = "usr/lib/openssh";

const RECIPES: [Recipe; 8] = [
    ("dc1", Layout::PartitionedExt4, 224, &[PYTHON]),
    ("dc2", Layout::Ext4, 160, &[MODULES, PYTHON]),
    ("db1", Layout::Ext4, 160, &[MODULES, "usr/sbin"]),
    ("db2", Layout::Btrfs, 192, &[MODULES, ICU]),
    ("web1", Layout::Xfs, 320, &[MODULES, SSH]),
    ("web2", Layout::PartitionedExt4, 144, &[MODULES, ICU, SSH]),
    ("mail", Layout::Btrfs, 192, &[MODULES, PYTHON, ICU]),
    ("log", Layout::Ext4, 144, &[MODULES, PYTHON, ICU, "usr/bin/python3.11"]),
];

/// Eight guests.
#[derive(Debug)]
pub struct Guests {
    folder: TempDir,
    /// In no particular order.
    pub all: Vec<Guest>,
}

/// One of them.
#[derive(Debug)]
pub struct Guest {
    /// Its host name.
    pub name: &'static str,
    /// Its disk.
    pub image: PathBuf,
    layout: Layout,
}

impl Guests {
    /// Installs them, each with a first day behind it.
    pub fn install() -> Self {
        let folder = tempfile::Builder::new().prefix("lvkeep-guests-").tempdir().expect("a folder");
        let debian = Debian::unpack(folder.path().join("debian"));
        let installed = |(number, recipe)| Guest::install(recipe, number as u64, &debian, folder.path());
        let all = RECIPES.iter().enumerate().map(installed).collect();
        Self { folder, all }
    }

    /// The guest of this name.
    pub fn named(&self, name: &str) -> &Guest {
        self.all.iter().find(|guest| guest.name == name).unwrap_or_else(|| panic!("no guest {name}"))
    }

    /// The state that a guest's disk has now, as a file of its own.
    pub fn kept(&self, name: &str) -> PathBuf {
        let (guest, copy) = (self.named(name), self.folder.path().join(format!("{name}.kept")));
        let mut copying = Command::new(program("cp"));
        copying.arg("--sparse=always").args([&guest.image, &copy]);
        succeeds(copying);
        copy
    }
}

/// The root file system of the lab's guests, unpacked.
struct Debian {
    tree: PathBuf,
    /// Where lies what a guest shall not have.
    aside: PathBuf,
}

impl Debian {
    fn unpack(folder: PathBuf) -> Self {
        let built = Command::new(xtask()).args(["lab", "build"]).output().expect("the tool starts");
        assert!(built.status.success(), "no guest: {}", String::from_utf8_lossy(&built.stderr));
        let said = String::from_utf8_lossy(&built.stdout);
        let image = Path::new(said.lines().next().expect("the guest's folder")).join("root.ext4");
        let debian = Self { tree: folder.join("tree"), aside: folder.join("aside") };
        for folder in [&debian.tree, &debian.aside] {
            std::fs::create_dir_all(folder).expect("a folder");
        }
        let mut dump = Command::new(program("debugfs"));
        dump.arg("-R").arg(format!("rdump / {}", debian.tree.display())).arg(image);
        succeeds(dump);
        debian
    }

    /// Does something with the tree while it lacks these paths.
    fn without<T>(&self, paths: &[&str], work: impl FnOnce(&Path) -> T) -> T {
        let places = || {
            paths.iter().enumerate().map(|(n, path)| (self.tree.join(path), self.aside.join(n.to_string())))
        };
        for (place, aside) in places() {
            std::fs::rename(&place, aside).unwrap_or_else(|why| panic!("{}: {why}", place.display()));
        }
        let done = work(&self.tree);
        for (place, aside) in places() {
            std::fs::rename(aside, &place).unwrap_or_else(|why| panic!("{}: {why}", place.display()));
        }
        done
    }
}

impl Guest {
    fn install((name, layout, mib, without): &Recipe, seed: u64, debian: &Debian, folder: &Path) -> Self {
        let image = folder.join(format!("{name}.img"));
        let layout = debian.without(without, |tree| {
            std::fs::write(tree.join("etc/hostname"), format!("{name}\n")).expect("a host name");
            write_log(&tree.join("var/log/syslog"), name, seed, 20_000);
            random_file(tree.join("var/lib/data"), DATA, seed);
            layout.make(&image, *mib, tree)
        });
        Self { name, image, layout }
    }

    /// A day later: the log has grown, a package has gone, and its data were written to. Of bare ext4 only.
    pub fn live_for_a_day(&self) {
        assert_eq!(self.layout, Layout::Ext4, "{} cannot be changed without a mount", self.name);
        let folder = tempfile::tempdir().expect("a folder");
        let [log, data] = ["log", "data"].map(|file| folder.path().join(file));
        write_log(&log, self.name, 77, 25_000);
        random_file(&data, DATA, 77);
        let mut commands: Vec<String> =
            ["ssh", "scp", "sftp", "ssh-add"].map(|file| format!("rm usr/bin/{file}")).into();
        for (file, path) in [(log, "var/log/syslog"), (data, "var/lib/data")] {
            commands.push(format!("rm {path}"));
            commands.push(format!("write {} {path}", file.display()));
        }
        debugfs(&self.image, &commands);
    }

    /// What restored this guest is a whole file system, with the guest's name in it where this machine can mount it.
    pub fn is_whole_on(&self, target: &Path) {
        let target = target.to_str().expect("a path in UTF-8");
        let (check, kind, options) = match self.layout {
            Layout::Ext4 => {
                (["e2fsck", "-fn", target].map(str::to_owned), "ext4", "loop,ro,noload".to_owned())
            }
            Layout::PartitionedExt4 => (
                ["e2fsck".to_owned(), "-fn".to_owned(), format!("{target}?offset={PARTITION}")],
                "ext4",
                format!("loop,ro,noload,offset={PARTITION}"),
            ),
            Layout::Xfs => {
                (["xfs_repair", "-n", target].map(str::to_owned), "xfs", "loop,ro,norecovery".to_owned())
            }
            Layout::Btrfs => (["btrfs", "check", target].map(str::to_owned), "btrfs", "loop,ro".to_owned()),
        };
        let mut checking = Command::new(program(&check[0]));
        checking.args(&check[1..]);
        succeeds(checking);
        let folder = tempfile::tempdir().expect("a folder");
        let Some(mounted) = Mounted::new(target, kind, &options, folder.path()) else { return };
        let name = std::fs::read_to_string(mounted.folder().join("etc/hostname")).expect("a host name");
        assert_eq!(name.trim(), self.name);
    }
}

impl Layout {
    /// Makes the image; returns which layout it has, because not every machine makes all of them.
    fn make(self, image: &Path, mib: u64, tree: &Path) -> Self {
        let file = File::create(image).expect("an image");
        file.set_len(mib * MIB).expect("an image of that size");
        match self {
            Self::Ext4 => mke2fs(image, tree, 0, mib * MIB),
            Self::PartitionedExt4 => {
                partition(&file, mib * MIB - PARTITION);
                mke2fs(image, tree, PARTITION, mib * MIB - PARTITION);
            }
            Self::Xfs if xfs(image, tree) => {}
            Self::Btrfs if rustix::process::geteuid().is_root() => {
                let mut making = Command::new(program("mkfs.btrfs"));
                making.args(["-q", "-m", "single", "--rootdir"]).arg(tree).arg(image);
                succeeds(making);
            }
            Self::Xfs | Self::Btrfs => {
                println!("NOT SHOWN HERE: a guest with {self:?}; it has ext4 instead");
                mke2fs(image, tree, 0, mib * MIB);
                return Self::Ext4;
            }
        }
        self
    }
}

fn mke2fs(image: &Path, tree: &Path, offset: u64, bytes: u64) {
    let mut making = Command::new(program("mke2fs"));
    making.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-E", &format!("offset={offset}"), "-d"]);
    making.arg(tree).arg(image).arg(format!("{}", bytes / 4096));
    succeeds(making);
}

/// Writes a table with one partition of so many bytes.
fn partition(disk: &File, bytes: u64) {
    let (start, sectors) = ((PARTITION / 512) as u32, (bytes / 512) as u32);
    // Not bootable, of type Linux, and without cylinders.
    let mut entry = [0, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff].to_vec();
    entry.extend(start.to_le_bytes());
    entry.extend(sectors.to_le_bytes());
    disk.write_all_at(&entry, 446).expect("a partition table");
    disk.write_all_at(&[0x55, 0xaa], 510).expect("a partition table");
}

/// Makes an xfs that holds a tree; false where this machine does not mount it.
fn xfs(image: &Path, tree: &Path) -> bool {
    if !rustix::process::geteuid().is_root() {
        return false;
    }
    let mut making = Command::new(program("mkfs.xfs"));
    making.arg("-q").arg(image);
    succeeds(making);
    let folder = tempfile::tempdir().expect("a folder");
    let Some(mounted) = Mounted::new(image, "xfs", "loop", folder.path()) else { return false };
    let mut copying = Command::new(program("cp"));
    copying.arg("-a").arg(tree.join(".")).arg(mounted.folder());
    succeeds(copying);
    true
}

fn write_log(path: &Path, host: &str, seed: u64, lines: u64) {
    let mut generator = StdRng::seed_from_u64(seed);
    let mut text = Vec::new();
    for second in 0..lines {
        let (process, request) = (generator.random_range(300..9000), generator.next_u32());
        writeln!(text, "{} {host} app[{process}]: request {request:08x} done", 1_700_000_000 + second)
            .expect("memory takes a line");
    }
    std::fs::write(path, text).expect("a log");
}
