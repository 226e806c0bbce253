//! What can be wrong with stored or received bytes.
//!
//! Every variant says what was being read, so that an operator can find the object; callers add its name.

/// Why bytes could not be read as what they claim to be, or a value could not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The bytes end before the value does.
    #[error("{what} is cut off: needs {needed} more bytes, {left} are left")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Bytes that the next field needs.
        needed: usize,
        /// Bytes that are there.
        left: usize,
    },
    /// The bytes do not start as this kind of thing does.
    #[error("this is not a {what} of lvkeep (its first bytes are wrong)")]
    NotOurs {
        /// What was expected.
        what: &'static str,
    },
    /// A later version wrote this.
    #[error("{what} has version {found}; this lvkeep reads version {known} and below: use a newer lvkeep")]
    UnknownVersion {
        /// What was being read.
        what: &'static str,
        /// The version that it carries.
        found: u16,
        /// The highest version that this build reads.
        known: u16,
    },
    /// The repository asks for something that this build cannot do.
    #[error(
        "the repository requires the feature {feature:?} to {action}, which this lvkeep lacks: use a newer lvkeep"
    )]
    UnknownFeature {
        /// Its name in the repository's configuration.
        feature: String,
        /// `read` or `write`.
        action: &'static str,
    },
    /// A length or count is beyond the format's limits.
    #[error("{what} claims {found}, more than the limit of {limit}")]
    TooLarge {
        /// Which field.
        what: &'static str,
        /// What it claims.
        found: u64,
        /// The bound from [`crate::limits`].
        limit: u64,
    },
    /// A checksum, tag or id does not match the bytes.
    #[error("{what} is damaged: {check} does not match")]
    Damaged {
        /// What was being read.
        what: &'static str,
        /// Which check failed.
        check: &'static str,
    },
    /// A field has a value that the format does not allow.
    #[error("{what} is invalid: {why}")]
    Invalid {
        /// What was being read.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The key at hand does not open this.
    #[error("{what} cannot be opened: {why}")]
    CannotOpen {
        /// What was to be opened.
        what: &'static str,
        /// Which key is missing or wrong.
        why: String,
    },
}

impl FormatError {
    /// The error of a version that is not read here. Nothing has version 0.
    pub(crate) fn version(what: &'static str, found: u16, known: u16) -> Self {
        match found {
            0 => Self::invalid(what, "its version is 0, which nothing has"),
            _ => Self::UnknownVersion { what, found, known },
        }
    }

    pub(crate) fn invalid(what: &'static str, why: impl Into<String>) -> Self {
        Self::Invalid { what, why: why.into() }
    }
}
