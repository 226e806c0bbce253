//! Disk images: real ext4 file systems made from generated trees, and files of random bytes.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;
use std::process::Command;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::loops::Mounted;
use super::tools::program;

/// Writes `bytes` random bytes, the same ones for the same seed.
pub fn random_file(path: impl AsRef<Path>, bytes: u64, seed: u64) {
    let mut file = File::create(path).expect("a file for random bytes");
    let mut generator = StdRng::seed_from_u64(seed);
    let mut buffer = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let take = left.min(buffer.len() as u64) as usize;
        generator.fill_bytes(&mut buffer[..take]);
        file.write_all(&buffer[..take]).expect("random bytes are written");
        left -= take as u64;
    }
    file.sync_all().expect("random bytes reach the disk");
}

/// Generates a folder of files of many sizes, some that compress and some that do not.
pub fn make_tree(folder: impl AsRef<Path>, seed: u64) {
    let mut generator = StdRng::seed_from_u64(seed);
    for directory in ["etc", "var/log", "srv/data"] {
        let directory = folder.as_ref().join(directory);
        std::fs::create_dir_all(&directory).expect("a folder");
        for number in 0..12 {
            let size = 1usize << generator.random_range(4..20);
            let content = match number % 2 {
                0 => lines(&mut generator, size),
                _ => (0..size).map(|_| generator.random()).collect(),
            };
            std::fs::write(directory.join(format!("file-{number}")), content).expect("a file");
        }
    }
}

fn lines(generator: &mut StdRng, size: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(size + 80);
    while text.len() < size {
        let number: u32 = generator.random();
        text.extend(format!("host sshd[{number}]: session {} opened for user root\n", number % 97).bytes());
    }
    text
}

/// Makes an ext4 image that holds a tree.
pub fn ext4(image: impl AsRef<Path>, mib: u32, tree: impl AsRef<Path>) {
    let mut command = Command::new(program("mke2fs"));
    command
        .args(["-q", "-t", "ext4", "-F", "-d"])
        .arg(tree.as_ref())
        .arg(image.as_ref())
        .arg(format!("{mib}M"));
    succeeds(command);
}

/// Changes an image through debugfs, one command per line.
pub fn debugfs(image: impl AsRef<Path>, commands: &[String]) {
    let script = tempfile::NamedTempFile::new().expect("a script");
    std::fs::write(script.path(), commands.join("\n") + "\n").expect("the script is written");
    let mut command = Command::new(program("debugfs"));
    command.arg("-w").arg("-f").arg(script.path()).arg(image.as_ref());
    succeeds(command);
}

/// The file system in an image must be whole.
pub fn fsck(image: impl AsRef<Path>) {
    let mut command = Command::new(program("e2fsck"));
    command.arg("-fn").arg(image.as_ref());
    succeeds(command);
}

/// The files in an image must be those of a tree: through a mount where this machine can mount, else through debugfs.
pub fn holds_tree(image: impl AsRef<Path>, tree: impl AsRef<Path>) {
    let folder = tempfile::tempdir().expect("a folder");
    if let Some(mounted) = Mounted::new(&image, "ext4", "loop,ro", folder.path()) {
        return same_trees(tree.as_ref(), mounted.folder());
    }
    println!("the files are read with debugfs instead");
    let mut dump = Command::new(program("debugfs"));
    dump.arg("-R").arg(format!("rdump / {}", folder.path().display())).arg(image.as_ref());
    succeeds(dump);
    same_trees(tree.as_ref(), folder.path());
}

fn same_trees(expected: &Path, found: &Path) {
    let mut files = 0;
    for entry in std::fs::read_dir(expected).expect("a folder").map(|entry| entry.expect("an entry")) {
        let there = found.join(entry.file_name());
        match entry.path().is_dir() {
            true => same_trees(&entry.path(), &there),
            false => same_bytes(entry.path(), &there),
        }
        files += 1;
    }
    assert!(files > 0, "{} is empty", expected.display());
}

/// Runs a program that must succeed.
pub(super) fn succeeds(mut command: Command) {
    let done = command.output().unwrap_or_else(|why| panic!("cannot start {command:?}: {why}"));
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{command:?} ended with {}\n{out}\n{err}", done.status);
}

/// Two files must hold the same bytes; otherwise says where they begin to differ.
#[track_caller]
pub fn same_bytes(expected: impl AsRef<Path>, found: impl AsRef<Path>) {
    let (expected, found) = (expected.as_ref(), found.as_ref());
    let open = |path: &Path| match File::open(path) {
        Ok(file) => BufReader::with_capacity(1 << 20, file),
        Err(why) => panic!("{}: {why}", path.display()),
    };
    let (mut one, mut two) = (open(expected), open(found));
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    loop {
        let (n, m) = (fill(&mut one, &mut a), fill(&mut two, &mut b));
        if a[..n] != b[..m] {
            let same = a[..n].iter().zip(&b[..m]).take_while(|(x, y)| x == y).count();
            let here = at + same as u64;
            panic!("{} and {} differ from offset {here} on", expected.display(), found.display());
        }
        if n == 0 {
            return;
        }
        at += n as u64;
    }
}

fn fill(file: &mut impl Read, buffer: &mut [u8]) -> usize {
    let mut done = 0;
    while done < buffer.len() {
        match file.read(&mut buffer[done..]).expect("a file that can be read") {
            0 => break,
            n => done += n,
        }
    }
    done
}
