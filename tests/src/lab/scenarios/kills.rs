//! lvkeep killed at each step of a snapshot's life: the next run is clean, right, and leaves no orphan.
//!
//! The steps are the calls of the host's tools. A run is watched once to count them; then runs are killed before the
//! first, before the second and so on, by the tool itself.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::e2e::Ran;
use crate::lab::{Content, Keeper, Pool, Traces, Volume, VolumeGroup, rounds, seed, step};

const TOOLS: [&str; 8] =
    ["lvs", "vgs", "lvcreate", "lvremove", "lvchange", "dmsetup", "thin_delta", "thin_dump"];

/// `kill -9` at every other step of a backup of a thick volume with a baseline, from the first on.
pub fn killed_on_thick_at_odd_steps() {
    on_thick("KILL", (1, 2));
}

/// The steps between those.
pub fn killed_on_thick_at_even_steps() {
    on_thick("KILL", (2, 2));
}

/// `kill -9` at every other step of a backup of a thin volume with a baseline, from the first on.
pub fn killed_on_thin_at_odd_steps() {
    on_thin("KILL", (1, 2));
}

/// The steps between those.
pub fn killed_on_thin_at_even_steps() {
    on_thin("KILL", (2, 2));
}

/// A polite end at some steps of a backup of a thin volume: lvkeep cleans up before it goes.
pub fn ended_on_thin() {
    on_thin("TERM", (1, 3));
}

fn on_thick(signal: &str, steps: (usize, usize)) {
    let group = VolumeGroup::new("vg0");
    let volume = group.thick("web", 64);
    killed(&group, &[], &volume, signal, steps);
}

fn on_thin(signal: &str, steps: (usize, usize)) {
    let group = VolumeGroup::new("vg0");
    let pool = group.pool("pool", 256, 64);
    let volume = pool.thin("web", 64);
    killed(&group, &[&pool], &volume, signal, steps);
}

/// Ends runs before the first of the steps that are wanted, and then before each that is so many calls further.
fn killed(
    group: &VolumeGroup,
    pools: &[&Pool],
    volume: &Volume,
    signal: &str,
    (first, every): (usize, usize),
) {
    let mut keeper = Keeper::new("");
    let traces = Traces::of(group, pools);
    let mut content = Content::new(&volume.device(), seed());
    content.fill(50);
    keeper.backup(volume);
    let tools = Watched::new(&mut keeper);
    content.overwrite(4, 60_000);
    tools.count(&keeper, volume);
    let steps = tools.calls().len();
    println!("    calls of tools: {:?}", tools.calls());
    assert!(steps > 2, "the tools are called through the folder that is watched");

    let mut clean = 0;
    for number in (first..=steps).step_by(every).take(rounds(100) as usize) {
        step(&format!("{signal} before call {number} of {steps}"));
        content.overwrite(3, 60_000);
        let ran = tools.kill_before(number, signal, &keeper, volume);
        if ran.status.success() {
            // A run may need fewer calls than the first one.
            continue;
        }
        if signal == "TERM" {
            traces.pools_are_free();
        }
        content.overwrite(2, 60_000);
        let backup = keeper.backup(volume);
        traces.are_only(1);
        clean += 1;
        if clean % 3 == 0 {
            keeper.restores(backup.snapshot(), &volume.device());
        }
    }
    assert!(clean > 2, "runs were killed");
    step("after all of that");
    content.overwrite(3, 60_000);
    let last = keeper.backup(volume);
    assert!(!last.tracked().is_everything(), "{}", last.said);
    keeper.restores(last.snapshot(), &volume.device());
    keeper.run(&["check", "--read-data"]).ok();
    traces.are_only(1);
}

/// Tools that count their calls, and end lvkeep before one of them.
struct Watched {
    folder: PathBuf,
    path: String,
}

impl Watched {
    fn new(keeper: &mut Keeper) -> Self {
        let folder = PathBuf::from(keeper.machine.place("watched"));
        std::fs::create_dir(&folder).expect("a folder of tools");
        for tool in TOOLS {
            // The shell is started by lvkeep itself, which is its parent therefore.
            let script = format!(
                "#!/bin/sh\n\
                 calls=$(cat {at}/calls 2>/dev/null; echo '{tool}'\" $1 $2 $3\")\n\
                 echo \"$calls\" >{at}/calls\n\
                 if [ \"$(echo \"$calls\" | wc -l)\" = \"$KILL_BEFORE\" ]; then\n\
                     kill -$KILL_WITH $PPID\n\
                     [ $KILL_WITH = KILL ] && exit 1\n\
                 fi\n\
                 exec /usr/sbin/{tool} \"$@\"\n",
                at = folder.display()
            );
            let file = folder.join(tool);
            std::fs::write(&file, script).expect("a tool");
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))
                .expect("a tool that runs");
        }
        let path = std::env::var("PATH").expect("a PATH");
        Self { path: format!("{}:{path}", folder.display()), folder }
    }

    fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Counts the calls of a run that nobody kills.
    fn count(&self, keeper: &Keeper, volume: &Volume) {
        self.run("0", "KILL", keeper, volume).ok();
    }

    fn kill_before(&self, number: usize, signal: &str, keeper: &Keeper, volume: &Volume) -> Ran {
        self.run(&number.to_string(), signal, keeper, volume)
    }

    fn run(&self, before: &str, signal: &str, keeper: &Keeper, volume: &Volume) -> Ran {
        let _ = std::fs::remove_file(self.folder.join("calls"));
        let path = volume.path();
        let arguments = ["backup", path.as_str()];
        let mut command = keeper.machine.command(&arguments);
        command.env("PATH", &self.path).env("KILL_BEFORE", before).env("KILL_WITH", signal);
        keeper.machine.start_command(&arguments, command).end()
    }
}
