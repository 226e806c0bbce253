//! What a new volume is built like: as the one that was backed up, as far as its recorded facts say and LVM makes it
//! by one command. Pure. Tags are not taken over: they may mean something to others, such as to be backed up.

use std::collections::BTreeMap;
use std::fmt;

/// How a volume is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    /// Extents, one after the other.
    Linear,
    /// Over several physical volumes.
    Striped {
        stripes: u32,
        /// Bytes; 0 leaves it to LVM.
        stripe_size: u64,
    },
    /// Twice, on two physical volumes.
    Mirrored,
    /// In a pool of the volume group.
    Thin { pool: String },
}

impl Shape {
    /// The shape by the facts of a snapshot, and what of them is not taken over.
    pub fn of(facts: &BTreeMap<String, String>) -> Result<(Self, Option<String>), String> {
        let fact = |name: &str| facts.get(name).map(String::as_str).filter(|text| !text.is_empty());
        let number = |name: &str| fact(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let Some(kind) = fact("lv_type") else {
            return Err("the snapshot does not say what its volume was like: leave --like out".to_owned());
        };
        Ok(match (kind, fact("pool")) {
            ("linear", _) => (Self::Linear, None),
            ("striped", _) => {
                let stripes = u32::try_from(number("stripes")).unwrap_or(1).clamp(1, 128);
                (Self::Striped { stripes, stripe_size: number("stripe_size") }, None)
            }
            ("raid1" | "mirror", _) => (Self::Mirrored, None),
            ("thin", Some(pool)) => (Self::Thin { pool: pool.to_owned() }, None),
            (other, _) => {
                (Self::Linear, Some(format!("its type was {other}, which is not made: it is linear")))
            }
        })
    }

    /// How often each byte is stored.
    pub fn copies(&self) -> u64 {
        match self {
            Self::Mirrored => 2,
            Self::Linear | Self::Striped { .. } | Self::Thin { .. } => 1,
        }
    }

    /// What tells `lvcreate`; nothing for a thin volume, which has a command of its own.
    pub fn arguments(&self) -> Vec<String> {
        match self {
            Self::Linear | Self::Thin { .. } => Vec::new(),
            Self::Striped { stripes, stripe_size: 0 } => vec!["--stripes".into(), stripes.to_string()],
            Self::Striped { stripes, stripe_size } => vec![
                "--stripes".into(),
                stripes.to_string(),
                "--stripesize".into(),
                format!("{stripe_size}b"),
            ],
            Self::Mirrored => ["--type", "raid1", "--mirrors", "1"].map(str::to_owned).into(),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linear => write!(f, "linear"),
            Self::Striped { stripes, .. } => write!(f, "{stripes} stripes"),
            Self::Mirrored => write!(f, "mirrored"),
            Self::Thin { pool } => write!(f, "in the pool {pool}"),
        }
    }
}
