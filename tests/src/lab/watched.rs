//! The host's tools, which count their calls, and end the lvkeep that calls them before one of them.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use super::keeper::Keeper;

const TOOLS: [&str; 9] =
    ["lvs", "vgs", "lvcreate", "lvremove", "lvchange", "dmsetup", "thin_delta", "thin_dump", "vgcfgbackup"];

/// A folder of tools.
#[derive(Debug)]
pub struct Watched {
    folder: PathBuf,
}

impl Watched {
    /// Tools that strike nobody yet.
    pub fn new(keeper: &Keeper) -> Self {
        let folder = PathBuf::from(keeper.machine.place("watched"));
        std::fs::create_dir(&folder).expect("a folder of tools");
        for tool in TOOLS {
            // The shell is started by lvkeep itself, which is its parent therefore.
            let script = format!(
                "#!/bin/sh\n\
                 calls=$(cat {at}/calls 2>/dev/null; echo '{tool}'\" $1 $2 $3\")\n\
                 echo \"$calls\" >{at}/calls\n\
                 read before with <{at}/strike\n\
                 if [ \"$(echo \"$calls\" | wc -l)\" = \"$before\" ] && rm {at}/armed 2>/dev/null; then\n\
                     kill -$with $PPID\n\
                     [ $with = KILL ] && exit 1\n\
                 fi\n\
                 exec /usr/sbin/{tool} \"$@\"\n",
                at = folder.display()
            );
            let file = folder.join(tool);
            std::fs::write(&file, script).expect("a tool");
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))
                .expect("a tool that runs");
        }
        let watched = Self { folder };
        watched.never();
        watched
    }

    /// Strikes nobody any more, and counts from zero on. Whether somebody was struck since [`Self::strike_before`]: a tool
    /// that has begun to strike goes on.
    pub fn never(&self) -> bool {
        let has_struck = std::fs::remove_file(self.folder.join("armed")).is_err();
        self.count_to(0, "KILL");
        has_struck
    }

    /// Sends a signal before the call of this number, the first of all that come being 1.
    pub fn strike_before(&self, number: usize, signal: &str) {
        self.count_to(number, signal);
        std::fs::write(self.folder.join("armed"), "").expect("a file");
    }

    fn count_to(&self, number: usize, signal: &str) {
        let _ = std::fs::remove_file(self.folder.join("calls"));
        std::fs::write(self.folder.join("strike"), format!("{number} {signal}\n")).expect("a file");
    }

    /// Has a command call these tools.
    pub fn watch(&self, command: &mut Command) {
        let path = std::env::var("PATH").expect("a PATH");
        command.env("PATH", format!("{}:{path}", self.folder.display()));
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}
