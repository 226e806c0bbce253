//! How lvkeep treats a host's volumes, as values: what holds for all, and rules that change it for some.

use std::path::PathBuf;

use crate::freeze::{Freeze, Hooks, Times};
use crate::governor::{Limits, StoreSize};

/// Settings of a host.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// What holds where no rule says otherwise.
    pub usual: Treatment,
    /// Rules, in order; of several that match, the last one decides.
    pub rules: Vec<Rule>,
    /// Snapshots that are being read at once in one volume group.
    pub max_snapshots: usize,
    /// Space.
    pub limits: Limits,
    /// Whoever drives the sessions is in this process: they end with it.
    pub embedded: bool,
    /// Time limits of freezing.
    pub times: Times,
    /// What outlives a process: what is frozen, and who works with a pool. On a file system that a reboot empties.
    pub state: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            usual: Treatment::default(),
            rules: Vec::new(),
            max_snapshots: 8,
            embedded: false,
            limits: Limits::default(),
            times: Times::default(),
            state: "/run/lvkeep".into(),
        }
    }
}

/// How one volume is treated.
#[derive(Debug, Clone, PartialEq)]
pub struct Treatment {
    /// The snapshot is kept until the next run, which then knows what changed. One with an exception store costs the
    /// volume's writers time all day.
    pub keep_baseline: bool,
    /// Bytes of a chunk of an exception store.
    pub chunk: u64,
    /// How large an exception store is.
    pub store: StoreSize,
    /// Who is held still.
    pub freeze: Freeze,
    /// Commands around it.
    pub hooks: Hooks,
}

impl Default for Treatment {
    fn default() -> Self {
        Self {
            keep_baseline: true,
            chunk: 64 << 10,
            store: StoreSize::Auto,
            freeze: Freeze::Nothing,
            hooks: Hooks::default(),
        }
    }
}

/// What is different for volumes whose `vg/lv` matches.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rule {
    /// `vg/lv`, where `*` stands for anything.
    pub pattern: String,
    /// See [`Treatment::keep_baseline`].
    pub keep_baseline: Option<bool>,
    /// See [`Treatment::chunk`].
    pub chunk: Option<u64>,
    /// See [`Treatment::store`].
    pub store: Option<StoreSize>,
    /// See [`Treatment::freeze`].
    pub freeze: Option<Freeze>,
    /// See [`Hooks::pre`].
    pub pre: Option<String>,
    /// See [`Hooks::post`].
    pub post: Option<String>,
}

impl Settings {
    /// How `vg/lv` is treated.
    pub fn of(&self, name: &str) -> Treatment {
        let mut treatment = self.usual.clone();
        for rule in self.rules.iter().filter(|rule| matches(&rule.pattern, name)) {
            let Treatment { keep_baseline, chunk, store, freeze, hooks } = &mut treatment;
            *keep_baseline = rule.keep_baseline.unwrap_or(*keep_baseline);
            *chunk = rule.chunk.unwrap_or(*chunk);
            *store = rule.store.unwrap_or(*store);
            if let Some(changed) = &rule.freeze {
                *freeze = changed.clone();
            }
            hooks.pre = rule.pre.clone().or(hooks.pre.take());
            hooks.post = rule.post.clone().or(hooks.post.take());
        }
        treatment
    }
}

/// Whether a name matches a pattern, in which `*` stands for anything, also for nothing.
pub fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match name.find(part) {
            Some(at) => name = &name[at + part.len()..],
            None => return false,
        }
    }
    name.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rule_that_matches_decides() {
        let settings = Settings {
            rules: vec![
                Rule {
                    pattern: "vg0/*".into(),
                    keep_baseline: Some(false),
                    chunk: Some(4096),
                    ..Rule::default()
                },
                Rule {
                    pattern: "vg0/db".into(),
                    keep_baseline: Some(true),
                    pre: Some("x".into()),
                    ..Rule::default()
                },
            ],
            ..Settings::default()
        };
        let (db, web, other) = (settings.of("vg0/db"), settings.of("vg0/web"), settings.of("vg1/db"));
        assert_eq!((db.keep_baseline, db.chunk, db.hooks.pre.as_deref()), (true, 4096, Some("x")));
        assert_eq!((web.keep_baseline, web.chunk, web.hooks.pre), (false, 4096, None));
        assert_eq!(other, Treatment::default());
    }

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("vg0/web", "vg0/web", true),
            ("vg0/web", "vg0/web2", false),
            ("*", "vg0/web", true),
            ("vg0/*", "vg0/", true),
            ("vg0/*", "vg01/web", false),
            ("*/web*", "vg0/web-data", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c", false),
            ("*b", "ab", true),
            ("ab*b", "ab", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
