//! The guest's root file system: unpacked packages, a kernel's modules and our first process, in an ext4 image.
//!
//! No maintainer script runs and nothing is asked of root: what the scripts would have set up and the guest needs
//! is written here. The image is read-only to guests; each writes to a layer of its own.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::run::{run, shown};

/// What is installed in the guest, with dependencies.
pub const PACKAGES: [&str; 24] = [
    "bash",
    "bsdextrautils",
    "busybox-static",
    "coreutils",
    "diffutils",
    "dmsetup",
    "e2fsprogs",
    "findutils",
    "gawk",
    "grep",
    "gzip",
    "kmod",
    "lvm2",
    "mount",
    "openssh-client",
    "openssh-server",
    "procps",
    "psmisc",
    "sed",
    "thin-provisioning-tools",
    "udev",
    "usr-is-merged",
    "util-linux",
    "xfsprogs",
];

const INIT: &str = include_str!("init.sh");

/// Free space for what scenarios write outside of their scratch disks, such as repositories.
const FREE_MIB: u64 = 6 << 10;

/// Folders of modules that block storage and file systems need; a kernel for hardware has many more.
const MODULES: [&str; 15] = [
    "arch",
    "block",
    "crypto",
    "drivers/ata",
    "drivers/block",
    "drivers/char",
    "drivers/dax",
    "drivers/md",
    "drivers/nvdimm",
    "drivers/nvme",
    "drivers/target",
    "drivers/virtio",
    "fs",
    "lib",
    "net/9p",
];

/// A root file system in the making.
pub struct Root {
    folder: PathBuf,
}

impl Root {
    /// Unpacks packages into a new folder.
    pub fn unpack(folder: PathBuf, packages: &[PathBuf]) -> Result<Self> {
        merged_folders(&folder)?;
        for package in packages {
            unpack(package, &folder)?;
        }
        let root = Self { folder };
        root.furnish()?;
        Ok(root)
    }

    fn furnish(&self) -> Result<()> {
        for folder in
            ["proc", "sys", "dev", "run", "tmp", "root", "mnt", "lab", "var/lib", "var/lock", "usr/local/bin"]
        {
            fs::create_dir_all(self.folder.join(folder))?;
        }
        fs::set_permissions(self.folder.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        self.write(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/bash\nsshd:x:105:65534::/run/sshd:/usr/sbin/nologin\n",
        )?;
        // The groups that udev's rules name: it complains about each that is missing.
        let groups =
            "root disk tty kvm dialout kmem input render video audio cdrom tape lp sgx users nogroup";
        let lines = groups.split(' ').zip(0..).map(|(name, id)| format!("{name}:x:{id}:\n"));
        self.write("etc/group", &lines.collect::<String>())?;
        self.write("etc/hostname", "lab\n")?;
        self.write("etc/hosts", "127.0.0.1 localhost lab\n")?;
        self.write("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n")?;
        self.write("etc/fstab", "")?;
        for (link, target) in
            [("etc/mtab", "/proc/self/mounts"), ("usr/bin/sh", "bash"), ("usr/bin/awk", "gawk")]
        {
            let link = self.folder.join(link);
            let _ = fs::remove_file(&link);
            symlink(target, &link).with_context(|| format!("cannot link {}", link.display()))?;
        }
        self.write("labinit", INIT)?;
        fs::set_permissions(self.folder.join("labinit"), fs::Permissions::from_mode(0o755))?;
        self.quieten_lvm()
    }

    /// The guest runs none of the daemons that LVM would talk to.
    fn quieten_lvm(&self) -> Result<()> {
        let path = self.folder.join("etc/lvm/lvm.conf");
        let text = fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
        let settings = ["use_lvmpolld", "monitoring", "notify_dbus"];
        let changed = text.lines().map(|line| {
            let plain = line.trim_start().trim_start_matches('#').trim_start();
            match settings.iter().find(|name| plain.starts_with(&format!("{name} = "))) {
                Some(name) => format!("\t{name} = 0\n"),
                None => format!("{line}\n"),
            }
        });
        fs::write(&path, changed.collect::<String>())?;
        Ok(())
    }

    /// Takes over the modules of a kernel from its unpacked package.
    pub fn modules(&self, version: &str, from: &Path) -> Result<()> {
        let to = self.folder.join("usr/lib/modules").join(version);
        for name in MODULES {
            let (from, to) = (from.join("kernel").join(name), to.join("kernel").join(name));
            if from.is_dir() {
                fs::create_dir_all(&to)?;
                run(Command::new("cp").arg("-a").arg(from.join(".")).arg(&to))?;
            }
        }
        for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
            if from.join(name).is_file() {
                fs::copy(from.join(name), to.join(name))?;
            }
        }
        run(self.program("kmod", "depmod").arg("-b").arg(&self.folder).arg(version))
    }

    /// A program of the guest that runs here, with the guest's own loader and libraries.
    pub fn program(&self, file: &str, name: &str) -> Command {
        let mut command = Command::new(self.folder.join("usr/lib64/ld-linux-x86-64.so.2"));
        command.args(["--argv0", name, "--library-path"]);
        command.arg(self.folder.join("usr/lib/x86_64-linux-gnu")).arg(self.folder.join("usr/bin").join(file));
        command
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes the image; the folder is removed.
    pub fn into_image(self, image: &Path) -> Result<()> {
        let said = crate::run::output(Command::new("du").args(["-sm"]).arg(&self.folder))?;
        let used: u64 = said.split_whitespace().next().and_then(|word| word.parse().ok()).context("du")?;
        let file = fs::File::create(image).with_context(|| format!("cannot create {}", image.display()))?;
        file.set_len((used + FREE_MIB) << 20)?;
        // A crashed guest's layer is thrown away, so that the journal would only cost.
        let features = ["-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-E"];
        let extended = "root_owner=0:0,lazy_itable_init=1,nodiscard";
        let mke2fs = crate::run::find("mke2fs").context("no mke2fs")?;
        run(Command::new(mke2fs).args(features).arg(extended).arg("-d").arg(&self.folder).arg(image))?;
        fs::remove_dir_all(&self.folder).with_context(|| format!("cannot remove {}", self.folder.display()))
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.folder.join(path);
        let _ = fs::remove_file(&path);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Makes a folder whose `bin`, `sbin`, `lib` and `lib64` are those of its `usr`, as Debian has it.
pub fn merged_folders(folder: &Path) -> Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(folder.join("usr").join(name))?;
        symlink(format!("usr/{name}"), folder.join(name))
            .with_context(|| format!("cannot link {name} in {}", folder.display()))?;
    }
    Ok(())
}

/// Unpacks a package without what nobody in a guest reads.
pub fn unpack(package: &Path, into: &Path) -> Result<()> {
    const LEFT_OUT: [&str; 9] = [
        "./usr/share/doc",
        "./usr/share/man",
        "./usr/share/info",
        "./usr/share/locale",
        "./usr/share/lintian",
        "./usr/share/i18n",
        "./usr/share/zoneinfo",
        "./usr/share/perl",
        "./usr/lib/x86_64-linux-gnu/gconv",
    ];
    let mut archive = Command::new("dpkg-deb");
    archive.arg("--fsys-tarfile").arg(package).stdout(Stdio::piped());
    let mut reading = archive.spawn().with_context(|| format!("cannot run `{}`", shown(&archive)))?;
    let piped = reading.stdout.take().context("dpkg-deb has no output")?;
    let mut tar = Command::new("tar");
    tar.args(["-x", "--keep-directory-symlink", "-C"]).arg(into);
    tar.args(LEFT_OUT.map(|path| format!("--exclude={path}"))).stdin(piped);
    run(&mut tar)?;
    let status = reading.wait()?;
    ensure!(status.success(), "`{}` failed: {status}", shown(&archive));
    Ok(())
}
