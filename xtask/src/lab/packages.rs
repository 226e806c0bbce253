//! Debian packages for the guest: fetched by apt-get with lists, cache and status of its own, never installed.
//!
//! What is fetched is of Debian 12 (bookworm) with its security archive and backports. apt checks the archive's signature with
//! Debian's own keyring and every package with the signed hashes; nothing here turns any of that off.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::run::{find, output, run};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const SOURCES: [&str; 3] = [
    "http://deb.debian.org/debian bookworm",
    "http://deb.debian.org/debian-security bookworm-security",
    // apt takes from here only what the others lack.
    "http://deb.debian.org/debian bookworm-backports",
];

/// Debian's archive as one folder sees it.
pub struct Archive {
    folder: PathBuf,
}

impl Archive {
    /// Fetches the lists of packages into `folder`.
    pub fn open(folder: &Path) -> Result<Self> {
        for (program, package) in
            [("apt-get", "apt"), ("dpkg-deb", "dpkg"), ("mke2fs", "e2fsprogs"), ("setpriv", "util-linux")]
        {
            ensure!(
                find(program).is_some(),
                "the lab needs `{program}`: install Debian's package `{package}`"
            );
        }
        ensure!(
            Path::new(KEYRING).is_file(),
            "the lab checks Debian's signatures with {KEYRING}: install the package `debian-archive-keyring`"
        );
        let archive = Self { folder: folder.to_owned() };
        archive.configure()?;
        run(archive.apt_get().arg("update")).context(
            "cannot fetch Debian's lists of packages; the lab needs a way to deb.debian.org (apt's proxy settings are taken over)",
        )?;
        Ok(archive)
    }

    /// Fetches packages and all that they depend on; returns the files.
    pub fn with_dependencies(&self, set: &str, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let folder = self.folder.join(set);
        fs::create_dir_all(folder.join("partial"))?;
        let install = |archives: &Path, how: &str| {
            let mut command = self.apt_get();
            command.args([
                "-o",
                &format!("Dir::Cache::archives={}", archives.display()),
                "install",
                "--yes",
                how,
            ]);
            command.args(packages);
            command
        };
        // Asked with an empty cache, apt names all files; those that an earlier fetch left beside them are not meant.
        let uris = output(&mut install(&self.folder.join("archives"), "--print-uris"))?;
        run(install(&folder, "--download-only").stdout(Stdio::null()))?;
        let names =
            uris.lines().filter(|line| line.starts_with('\'')).filter_map(|line| line.split(' ').nth(1));
        let files: Vec<PathBuf> = names.map(|name| folder.join(name)).collect();
        ensure!(!files.is_empty(), "apt knows no files for {packages:?}");
        for file in &files {
            ensure!(file.is_file(), "apt did not fetch {}", file.display());
        }
        Ok(files)
    }

    /// Fetches one package by itself.
    pub fn alone(&self, package: &str) -> Result<PathBuf> {
        let folder = self.folder.join("alone").join(package);
        // A folder per package, emptied first, so that the one file in it is what apt has just checked.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        run(self.apt_get().current_dir(&folder).args(["download", package]))?;
        let [file] = <[PathBuf; 1]>::try_from(debs(&folder)?)
            .map_err(|files| anyhow::anyhow!("apt fetched {} files for {package}", files.len()))?;
        Ok(file)
    }

    /// The first package that a package depends on: what a name such as `linux-image-amd64` stands for.
    pub fn first_dependency(&self, package: &str) -> Result<String> {
        let mut command = Command::new("apt-cache");
        let said = output(command.env("APT_CONFIG", self.configuration()).args(["depends", package]))?;
        let found = said.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
        found.map(str::to_owned).with_context(|| format!("{package} depends on nothing"))
    }

    fn configuration(&self) -> PathBuf {
        self.folder.join("apt.conf")
    }

    fn apt_get(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.env("APT_CONFIG", self.configuration()).env("DEBIAN_FRONTEND", "noninteractive").arg("-qq");
        command
    }

    fn configure(&self) -> Result<()> {
        for folder in ["etc", "lists/partial", "archives/partial"] {
            let folder = self.folder.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let sources = SOURCES.map(|source| format!("deb [arch=amd64 signed-by={KEYRING}] {source} main\n"));
        fs::write(self.folder.join("sources.list"), sources.concat())?;
        fs::write(self.folder.join("status"), "")?;
        // The machine's own proxies, and nothing else of its settings.
        let mut configuration = output(Command::new("apt-config").args(["dump", "Acquire::http"]))?;
        configuration += &output(Command::new("apt-config").args(["dump", "Acquire::https"]))?;
        let at = self.folder.display();
        configuration += &format!(
            "Dir::Etc \"{at}/etc\"; Dir::Etc::sourcelist \"{at}/sources.list\"; Dir::Etc::sourceparts \"/dev/null\";\n\
             Dir::Etc::parts \"{at}/etc\"; Dir::Etc::preferencesparts \"/dev/null\"; Dir::Etc::preferences \"/dev/null\";\n\
             Dir::State \"{at}\"; Dir::State::lists \"{at}/lists\"; Dir::State::status \"{at}/status\";\n\
             Dir::Cache \"{at}\"; Dir::Cache::archives \"{at}/archives\";\n\
             APT::Architecture \"amd64\"; APT::Architectures {{ \"amd64\"; }};\n\
             APT::Install-Recommends \"false\"; APT::Sandbox::User \"\"; Acquire::Languages \"none\";\n"
        );
        fs::write(self.configuration(), configuration)?;
        Ok(())
    }
}

fn debs(folder: &Path) -> Result<Vec<PathBuf>> {
    let paths = crate::tidy::entries(folder)?;
    Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|name| name == "deb")).collect())
}

/// The names, versions and architectures of package files, one a line: what a guest is made of.
pub fn listed(files: &[PathBuf]) -> String {
    let names = files.iter().filter_map(|file| Some(file.file_stem()?.to_str()?.replace("%3a", ":")));
    names.map(|name| name.replacen('_', " ", 2) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_listed_with_their_versions() {
        let files = ["/x/lvm2_2.03.16-2_amd64.deb", "/x/dmsetup_2%3a1.02.185-2_amd64.deb"].map(PathBuf::from);
        assert_eq!(listed(&files), "lvm2 2.03.16-2 amd64\ndmsetup 2:1.02.185-2 amd64\n");
    }
}
