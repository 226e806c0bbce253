//! A 6.12 kernel in qemu, which translates its code (TCG): several times slower than user-mode Linux, but with two
//! processors and with what that lacks, such as VDO. For use by hand.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::guest::{Boot, arguments};
use super::image::{Root, merged_folders, unpack};
use super::packages::Archive;
use crate::run::{output, run};

/// What must be loaded before the root file system can be mounted, in the order of need.
const EARLY: [&str; 6] = ["virtio_pci", "virtio_blk", "ext4", "crc32c_generic", "9p", "virtio_console"];

/// What this kernel has a use for beyond what every guest has.
pub const PACKAGES: [&str; 1] = ["vdo"];

const EARLY_INIT: &str = include_str!("tcg-init.sh");

/// Adds kernel and qemu to `folder` and modules to the guest's root; returns what packages that took.
pub fn build(archive: &Archive, root: &Root, folder: &Path) -> Result<Vec<PathBuf>> {
    let qemu = archive.with_dependencies("qemu", &["qemu-system-x86"])?;
    let emulator = folder.join("qemu");
    merged_folders(&emulator)?;
    for package in &qemu {
        unpack(package, &emulator)?;
    }

    let package = archive.alone(&archive.first_dependency("linux-image-6.12-amd64")?)?;
    let unpacked = folder.join("unpacked");
    fs::create_dir_all(&unpacked)?;
    unpack(&package, &unpacked)?;
    let boot = crate::tidy::entries(&unpacked.join("boot"))?;
    let kernel = boot.iter().find_map(|path| {
        let version = path.file_name()?.to_str()?.strip_prefix("vmlinuz-")?;
        Some((path.clone(), version.to_owned()))
    });
    let (image, version) = kernel.context("the kernel's package has no kernel")?;
    let places = ["usr/lib/modules", "lib/modules"].map(|place| unpacked.join(place).join(&version));
    let Some(modules) = places.iter().find(|place| place.is_dir()) else {
        bail!("the kernel's package has no modules");
    };
    root.modules(&version, modules)?;
    fs::rename(image, folder.join("vmlinuz"))?;
    fs::remove_dir_all(&unpacked)?;
    early(root, &version, folder)?;
    Ok(qemu.into_iter().chain([package]).collect())
}

/// Writes the archive that the kernel starts from: it loads modules, mounts the disk and hands over.
fn early(root: &Root, version: &str, folder: &Path) -> Result<()> {
    let early = folder.join("early");
    for name in ["bin", "dev", "proc", "sys", "mnt", "modules"] {
        fs::create_dir_all(early.join(name))?;
    }
    let busybox = root.folder().join("usr/bin/busybox");
    fs::copy(&busybox, early.join("bin/busybox"))?;
    fs::write(early.join("init"), EARLY_INIT)?;
    run(Command::new("chmod").arg("755").arg(early.join("init")))?;

    let mut order = Vec::new();
    for module in EARLY {
        let mut modprobe = root.program("kmod", "modprobe");
        modprobe.arg("-d").arg(root.folder()).args(["-S", version, "--show-depends", module]);
        let said = output(&mut modprobe)?;
        for path in said.lines().filter_map(|line| line.strip_prefix("insmod ")) {
            let path = PathBuf::from(path.trim());
            let name = path.file_name().and_then(|name| name.to_str()).context("a module without a name")?;
            if !order.contains(&name.to_owned()) {
                fs::copy(&path, early.join("modules").join(name))
                    .with_context(|| format!("no module {}", path.display()))?;
                order.push(name.to_owned());
            }
        }
    }
    ensure!(!order.is_empty(), "no modules for the start of the kernel");
    fs::write(early.join("modules/order"), order.join("\n") + "\n")?;

    let mut find = Command::new("find");
    let names = output(find.arg(".").current_dir(&early))?;
    let mut cpio = Command::new(&busybox);
    cpio.args(["cpio", "-o", "-H", "newc"]).current_dir(&early).stdin(Stdio::piped());
    let mut writing = cpio.stdout(fs::File::create(folder.join("initrd"))?).stderr(Stdio::null()).spawn()?;
    writing.stdin.take().context("cpio has no input")?.write_all(names.as_bytes())?;
    let status = writing.wait()?;
    ensure!(status.success(), "cpio failed: {status}");
    fs::remove_dir_all(&early)?;
    Ok(())
}

/// The emulator, ready to start; the kernel's console and the script's output go to files.
pub fn command(boot: &Boot<'_>) -> Command {
    let qemu = boot.lab.join("qemu/usr");
    let libraries = qemu.join("lib/x86_64-linux-gnu");
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(qemu.join("lib64/ld-linux-x86-64.so.2"));
    command.arg("--library-path").arg(format!("{}:{}", libraries.display(), qemu.join("lib").display()));
    command.arg(qemu.join("bin/qemu-system-x86_64"));
    for data in ["share/qemu", "share/seabios"] {
        command.arg("-L").arg(qemu.join(data));
    }
    command.env("QEMU_MODULE_DIR", libraries.join("qemu")).env("TMPDIR", boot.folder);
    let drive = |path: &Path, more: &str| format!("file={},format=raw,if=virtio,{more}", path.display());
    command
        .args(["-M", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Nehalem,+rdrand", "-smp", "2"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot"])
        .args(["-m", &boot.memory_mib.to_string()])
        .arg("-kernel")
        .arg(boot.lab.join("vmlinuz"))
        .arg("-initrd")
        .arg(boot.lab.join("initrd"))
        .args(["-append", &format!("console=ttyS0 mitigations=off {}", arguments("tcg").join(" "))])
        .args(["-serial", &format!("file:{}", boot.console().display())])
        .args(["-drive", &drive(&boot.lab.join("root.ext4"), "snapshot=on")]);
    for disk in &boot.disks {
        command.args(["-drive", &drive(disk, "cache=unsafe,discard=unmap")]);
    }
    let shared = format!("local,id=lab,path={},security_model=passthrough", boot.shared.display());
    command
        .args(["-fsdev", &shared, "-device", "virtio-9p-pci,fsdev=lab,mount_tag=lab"])
        .args(["-chardev", &format!("file,id=out,path={}", boot.output().display())])
        .args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=out,name=out"]);
    command
}
