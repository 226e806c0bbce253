//! All scenarios, by theme. A new one is a function here and a name in `tests/tests/lvm/main.rs`.

mod agents;
mod bulk;
mod changes;
mod facts;
mod held;
mod kills;
mod lost;
mod real;
mod restore;
mod stream;
mod together;
mod tracked;

use super::Scenario;

/// Every scenario.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "lvm_is_real",
        about: "thick and thin snapshots of the guest's LVM, and what their metadata say of changes",
        run: real::lvm_is_real,
    },
    Scenario {
        name: "thick_changes",
        about: "the exception list against what was written and what differs",
        run: changes::thick_changes,
    },
    Scenario {
        name: "thin_changes",
        about: "thin_delta and thin_dump against what was written and what differs",
        run: changes::thin_changes,
    },
    Scenario {
        name: "thin_refusals",
        about: "lists of a thin pool that cannot be had, and what others reserved",
        run: changes::thin_refusals,
    },
    Scenario {
        name: "thick_rounds",
        about: "rounds of random writes on a thick volume, each restored and compared",
        run: tracked::thick_rounds,
    },
    Scenario {
        name: "thin_rounds",
        about: "rounds of random writes and discards on a thin volume, each restored and compared",
        run: tracked::thin_rounds,
    },
    Scenario {
        name: "ext4_on_thick",
        about: "ext4 at work on a thick volume, backed up while mounted",
        run: tracked::ext4_on_thick,
    },
    Scenario {
        name: "xfs_on_thick",
        about: "xfs at work on a thick volume, backed up while mounted",
        run: tracked::xfs_on_thick,
    },
    Scenario {
        name: "ext4_on_thin",
        about: "ext4 at work on a thin volume, backed up while mounted",
        run: tracked::ext4_on_thin,
    },
    Scenario {
        name: "xfs_on_thin",
        about: "xfs at work on a thin volume, backed up while mounted",
        run: tracked::xfs_on_thin,
    },
    Scenario {
        name: "accounting",
        about: "what is said to have changed, and what is read, against the truth",
        run: tracked::accounting,
    },
    Scenario {
        name: "lying_baseline",
        about: "a baseline that lies is found out by the audit",
        run: tracked::lying_baseline,
    },
    Scenario {
        name: "overflowed_baseline",
        about: "a baseline that overflowed is said to have, and everything is read",
        run: lost::overflowed_baseline,
    },
    Scenario {
        name: "resized_volume",
        about: "a volume of another size than its baseline is read anew",
        run: lost::resized_volume,
    },
    Scenario {
        name: "merged_volume",
        about: "a thick volume rolled back to an LVM snapshot",
        run: lost::merged_volume,
    },
    Scenario {
        name: "merged_thin_volume",
        about: "a thin volume rolled back to a thin snapshot",
        run: lost::merged_thin_volume,
    },
    Scenario {
        name: "recreated_volume",
        about: "another volume under the same name has nothing of the old one's baseline",
        run: lost::recreated_volume,
    },
    Scenario { name: "renamed_volume", about: "a volume under another name", run: lost::renamed_volume },
    Scenario {
        name: "lost_parent",
        about: "the baseline's own snapshot is gone from the repository",
        run: lost::lost_parent,
    },
    Scenario {
        name: "two_volumes_of_one_pool",
        about: "two volumes of one thin pool at once",
        run: together::two_volumes_of_one_pool,
    },
    Scenario {
        name: "two_repositories",
        about: "one volume in two repositories, each with its baseline",
        run: together::two_repositories,
    },
    Scenario {
        name: "two_runs_at_once",
        about: "two runs of one volume at once",
        run: together::two_runs_at_once,
    },
    Scenario {
        name: "a_group_and_another_run",
        about: "another run commits a volume between its group's moment and its turn in the group",
        run: together::a_group_and_another_run,
    },
    Scenario {
        name: "the_rest_of_the_host",
        about: "nothing of anyone else's is touched",
        run: together::the_rest_of_the_host,
    },
    Scenario {
        name: "no_baseline",
        about: "without baselines nothing remains between runs, and each stores what is new",
        run: together::no_baseline,
    },
    Scenario {
        name: "facts_travel",
        about: "what a disaster recovery needs of a volume, as show prints it, against what LVM reports",
        run: facts::facts_travel,
    },
    Scenario {
        name: "orphans_are_listed_and_removed",
        about: "host list tells baselines from orphans, and host clean removes the latter alone",
        run: facts::orphans_are_listed_and_removed,
    },
    Scenario {
        name: "groups",
        about: "volumes of a group are taken at one moment, listed and restored together",
        run: held::groups,
    },
    Scenario {
        name: "a_domain",
        about: "the disks of a libvirt domain are found, frozen once and always thawed",
        run: held::a_domain,
    },
    Scenario {
        name: "frozen_together",
        about: "mounted file systems of a group are frozen at once, or refused where the kernel cannot",
        run: held::frozen_together,
    },
    Scenario {
        name: "hooks_let_go",
        about: "the second command always runs, and nothing stays frozen",
        run: held::hooks_let_go,
    },
    Scenario {
        name: "space",
        about: "too little room is refused, what fills up is extended or given up",
        run: held::space,
    },
    Scenario {
        name: "pools_that_fill_up",
        about: "thin pools at their watermarks: refused, extended, given up, data and metadata",
        run: held::pools_that_fill_up,
    },
    Scenario {
        name: "killed_on_thick",
        about: "kill -9 at steps of a thick volume's backup, then a clean run",
        run: kills::killed_on_thick,
    },
    Scenario {
        name: "killed_on_thin",
        about: "kill -9 at steps of a thin volume's backup, then a clean run",
        run: kills::killed_on_thin,
    },
    Scenario {
        name: "ended_on_thin",
        about: "a polite end at steps of a thin volume's backup",
        run: kills::ended_on_thin,
    },
    Scenario {
        name: "killed_in_a_group",
        about: "kill -9 at steps of a group's backup, then a clean run",
        run: kills::killed_in_a_group,
    },
    Scenario {
        name: "reader_agent_killed_on_thick",
        about: "kill -9 of a reader over NATS at steps of a thick volume's backup, which goes on",
        run: agents::reader_agent_killed_on_thick,
    },
    Scenario {
        name: "reader_agent_killed_on_thin",
        about: "the same of a thin volume",
        run: agents::reader_agent_killed_on_thin,
    },
    Scenario {
        name: "restored_to_thick",
        about: "thick volumes full of something else, striped, larger, origins of snapshots",
        run: restore::restored_to_thick,
    },
    Scenario {
        name: "restored_to_thin",
        about: "pools that zero or not and discard or not, odd blocks, snapshots, external origins",
        run: restore::restored_to_thin,
    },
    Scenario {
        name: "restored_to_new",
        about: "volumes that a restore makes, and removes when it fails",
        run: restore::restored_to_new,
    },
    Scenario {
        name: "restored_to_nothing_in_use",
        about: "what is in use or no target stays as it is",
        run: restore::restored_to_nothing_in_use,
    },
    Scenario {
        name: "restored_with_a_way_back",
        about: "safety snapshots of what is overwritten, merged back",
        run: restore::restored_with_a_way_back,
    },
    Scenario {
        name: "restored_over_a_thick_baseline",
        about: "the baseline of a thick target, kept or dropped, and the next backup is right",
        run: restore::restored_over_a_thick_baseline,
    },
    Scenario {
        name: "restored_over_a_thin_baseline",
        about: "the baseline of a thin target, kept or dropped, and the next backup is right",
        run: restore::restored_over_a_thin_baseline,
    },
    Scenario {
        name: "restored_in_bulk",
        about: "a plan of thick and thin volumes, by two agents of which one is killed; large ones by two agents each",
        run: bulk::restored_in_bulk,
    },
    Scenario {
        name: "restored_and_shared_or_put_back",
        about: "one template shared by thin volumes; and volumes put back after kill -9",
        run: bulk::restored_and_shared_or_put_back,
    },
    Scenario {
        name: "a_volume_moves",
        about: "a volume moved with little downtime: copied while in use, then what changed is sent",
        run: stream::a_volume_moves,
    },
    Scenario {
        name: "hourly_snapbacks",
        about: "a copy that follows by snapshots, and goes back by snapbacks",
        run: stream::hourly_snapbacks,
    },
    Scenario {
        name: "changes_are_dumped_and_pulled",
        about: "changes in files and pipes, in lvkeep's format and lvmsync's",
        run: stream::changes_are_dumped_and_pulled,
    },
    Scenario {
        name: "a_broken_ssh_is_taken_up_again",
        about: "changes sent by a real ssh whose session is killed",
        run: stream::a_broken_ssh_is_taken_up_again,
    },
];
