//! The guests that the benchmark backs up: what is installed in them, and what happens on their later days.
//!
//! About 1.2 GB of files each, in sparse images of 4.5 GiB; two kinds of file systems; no two with the same
//! packages.

/// Size of every image.
pub const IMAGE_BYTES: u64 = 4608 << 20;

/// One guest.
#[derive(Debug)]
pub struct Guest {
    pub name: &'static str,
    pub filesystem: &'static str,
    /// On top of [`BASE`].
    pub packages: &'static str,
    /// What happens after the first day, a day each.
    pub days: &'static [Day],
}

/// What changes in one day.
#[derive(Debug)]
pub struct Day {
    pub upgrade: &'static str,
    pub install: &'static str,
    pub remove: &'static str,
}

/// What every guest has.
pub const BASE: &str =
    "linux-image-amd64,systemd-sysv,openssh-server,rsyslog,cron,python3,perl,vim,git,curl,make,less,man-db";

/// All guests; the quick benchmark uses the first one's first two days.
pub const GUESTS: [Guest; 5] = [
    Guest {
        name: "g1",
        filesystem: "ext4",
        packages: "nginx,php-cli,sqlite3",
        days: &[
            Day {
                upgrade: "openssl curl git nginx openssh-server",
                install: "tmux htop strace",
                remove: "sqlite3",
            },
            Day { upgrade: "perl python3 vim", install: "gdb rsync", remove: "htop" },
        ],
    },
    Guest {
        name: "g2",
        filesystem: "xfs",
        packages: "postgresql,rsync,gdb",
        days: &[Day { upgrade: "openssl curl postgresql", install: "tmux sqlite3", remove: "rsync" }],
    },
    Guest { name: "g3", filesystem: "ext4", packages: "clang,cmake,rsync", days: &[] },
    Guest { name: "g4", filesystem: "xfs", packages: "nginx,nodejs,tmux,strace", days: &[] },
    Guest {
        name: "g5",
        filesystem: "ext4",
        packages: "openjdk-17-jre-headless,postfix,dovecot-imapd",
        days: &[],
    },
];
