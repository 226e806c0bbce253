//! `restore --snapback`: what it goes together with, and why not with the rest.

use crate::args::RestoreArgs;

/// Why a plan has no snapbacks.
pub const IN_PLANS: &str = "snapback: a plan is run again when it was cut off, and no file is overwritten; restore \
                            this volume by itself, or with safety_snapshot";

/// What does not go together, by name.
pub fn clashes(args: &RestoreArgs) -> Vec<String> {
    if args.snapback.is_none() {
        return Vec::new();
    }
    let rules = [
        (args.plan.is_some(), IN_PLANS),
        (args.options.undo, "snapback and undo: what is overwritten is kept in one of these ways"),
        (args.group, "snapback and group: each volume needs a file of its own; restore them one by one"),
        (
            !args.also.is_empty(),
            "snapback and also: each target needs a file of its own; restore them one by one",
        ),
        (args.options.create, "snapback and create: a volume that is made holds nothing to be kept"),
        (
            args.options.to_host.is_some(),
            "snapback and to_host: an agent keeps no file for others; run this on that host, or take --safety-snapshot",
        ),
    ];
    rules.into_iter().filter(|(broken, _)| *broken).map(|(_, why)| why.to_owned()).collect()
}
