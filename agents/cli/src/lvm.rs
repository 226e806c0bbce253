//! Logical volumes as they are configured: the table `[lvm]` of the configuration file, and what a command adds.

use std::sync::Arc;
use std::time::Duration;

use agent::{Environment, Volumes};
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use volume_lvm::freeze::{Freeze, Hooks, Times};
use volume_lvm::governor::{Limits, StoreSize};
use volume_lvm::settings::{Rule, Treatment};
use volume_lvm::{LvmVolumes, Tools};

use crate::settings::{parse_seconds, parse_size};

/// Snapshots that are read at once in one volume group, unless set otherwise.
const MAX_SNAPSHOTS: usize = 8;

/// The table `[lvm]`, as it is written. What is left out has the usual value.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Lvm {
    /// How volumes are treated, unless a rule says otherwise.
    #[serde(flatten)]
    usual: Ways,
    #[serde(skip_serializing_if = "Option::is_none")]
    extend: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_snapshots: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_watermark: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata_watermark: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    give_up: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hook_limit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    freeze_limit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audit: Option<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    volumes: Vec<VolumeRule>,
}

/// What can be said of all volumes and of some.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
struct Ways {
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<Baseline>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot_size: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot_chunk: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    freeze: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pre: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    post: Option<String>,
}

/// One `[[lvm.volumes]]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct VolumeRule {
    /// `vg/lv`, where `*` stands for anything.
    #[serde(rename = "match")]
    pattern: String,
    #[serde(flatten)]
    ways: Ways,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Baseline {
    Keep,
    None,
}

/// What a command says about holding writers still; it comes after all rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hold {
    /// `none`, `fsfreeze` or `domain:NAME`.
    pub freeze: Option<String>,
    /// A command before.
    pub pre: Option<String>,
    /// A command after.
    pub post: Option<String>,
}

impl Hold {
    /// Whether the command says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Lvm {
    /// What the reader's half works with.
    pub fn settings(&self, hold: &Hold) -> anyhow::Result<volume_lvm::Settings> {
        let usual = self.usual.rule("lvm", "*")?;
        let mut rules = vec![usual];
        for rule in &self.volumes {
            rules.push(rule.ways.rule(&format!("lvm.volumes {:?}", rule.pattern), &rule.pattern)?);
        }
        let said = Ways {
            freeze: hold.freeze.clone(),
            pre: hold.pre.clone(),
            post: hold.post.clone(),
            ..Ways::default()
        };
        rules.push(said.rule("the command line", "*")?);
        let limits = Limits::default();
        let percent = |name: &str, given: Option<f64>, default: f64| match given.unwrap_or(default) {
            value if value > 0.0 && value <= 100.0 => Ok(value),
            value => bail!("lvm.{name}: {value} is no percentage above 0"),
        };
        let times = Times::default();
        let settings = volume_lvm::Settings {
            usual: Treatment { hooks: Hooks::default(), ..Treatment::default() },
            rules,
            max_snapshots: self.max_snapshots.unwrap_or(MAX_SNAPSHOTS),
            limits: Limits {
                store: limits.store,
                extend: self.extend.unwrap_or(limits.extend),
                data_watermark: percent("data_watermark", self.data_watermark, limits.data_watermark)?,
                metadata_watermark: percent(
                    "metadata_watermark",
                    self.metadata_watermark,
                    limits.metadata_watermark,
                )?,
                give_up: percent("give_up", self.give_up, limits.give_up)?,
            },
            times: Times {
                hook: length("hook_limit", self.hook_limit.as_deref(), times.hook)?,
                frozen: length("freeze_limit", self.freeze_limit.as_deref(), times.frozen)?,
            },
            ..volume_lvm::Settings::default()
        };
        if settings.max_snapshots == 0 {
            bail!("lvm.max_snapshots: no volume could be backed up with 0");
        }
        Ok(settings)
    }

    /// Snapshots that are read at once in one volume group.
    pub fn max_snapshots(&self) -> usize {
        self.max_snapshots.unwrap_or(MAX_SNAPSHOTS).max(1)
    }

    /// How much of what is said to be unchanged is read again: a percentage of it, one thousandth unless set.
    pub fn audit(&self) -> anyhow::Result<reader::Audit> {
        let Some(percent) = self.audit else { return Ok(reader::Audit::default()) };
        if !(0.0..=100.0).contains(&percent) {
            bail!("lvm.audit: {percent} is no percentage");
        }
        let share = (percent * 10_000.0).round() as u32;
        Ok(match share {
            0 => reader::Audit::OFF,
            1_000_000 => reader::Audit::ALL,
            share => reader::Audit { share, ..reader::Audit::default() },
        })
    }
}

impl Ways {
    fn rule(&self, whose: &str, pattern: &str) -> anyhow::Result<Rule> {
        let chunk = self.snapshot_chunk.as_deref().map(|text| parse_size("snapshot_chunk", text)).transpose();
        let chunk = chunk.with_context(|| whose.to_owned())?;
        if let Some(chunk) =
            chunk.filter(|chunk| !chunk.is_power_of_two() || !(4096..=524_288).contains(chunk))
        {
            bail!("{whose}: snapshot_chunk: {chunk} bytes are no power of two from 4KiB to 512KiB");
        }
        Ok(Rule {
            pattern: pattern.to_owned(),
            keep_baseline: self.baseline.map(|baseline| baseline == Baseline::Keep),
            chunk,
            store: self
                .snapshot_size
                .as_deref()
                .map(store_size)
                .transpose()
                .with_context(|| whose.to_owned())?,
            freeze: self.freeze.as_deref().map(freeze).transpose().with_context(|| whose.to_owned())?,
            pre: self.pre.clone(),
            post: self.post.clone(),
        })
    }
}

fn length(name: &str, given: Option<&str>, default: Duration) -> anyhow::Result<Duration> {
    Ok(match given {
        Some(text) => Duration::from_secs_f64(parse_seconds(&format!("lvm.{name}"), text)?),
        None => default,
    })
}

fn store_size(text: &str) -> anyhow::Result<StoreSize> {
    if text == "auto" {
        return Ok(StoreSize::Auto);
    }
    match text.strip_suffix('%').map(|number| number.trim().parse::<f64>()) {
        Some(Ok(percent)) if percent > 0.0 && percent <= 200.0 => Ok(StoreSize::Percent(percent)),
        Some(_) => bail!("snapshot_size: {text:?} is no percentage above 0"),
        None => Ok(StoreSize::Bytes(parse_size("snapshot_size", text)?)),
    }
}

/// Who is held still.
fn freeze(text: &str) -> anyhow::Result<Freeze> {
    match (text, text.strip_prefix("domain:")) {
        ("none", _) => Ok(Freeze::Nothing),
        ("fsfreeze", _) => Ok(Freeze::FileSystem),
        (_, Some(domain)) if !domain.is_empty() && !domain.starts_with('-') => {
            Ok(Freeze::Domain(domain.to_owned()))
        }
        _ => bail!("freeze: {text:?} is none of \"none\", \"fsfreeze\" and \"domain:NAME\""),
    }
}

/// The host's volumes: logical ones, and files and devices. `embedded` says that sessions end with this process.
pub fn volumes(
    lvm: &Lvm,
    hold: &Hold,
    embedded: bool,
    files: Arc<dyn Volumes>,
    environment: Arc<dyn Environment>,
) -> anyhow::Result<Arc<LvmVolumes>> {
    let settings = volume_lvm::Settings { embedded, ..lvm.settings(hold)? };
    let volumes = LvmVolumes::new(files, Tools::new(), settings, environment);
    Ok(Arc::new(volumes.map_err(anyhow::Error::msg)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> anyhow::Result<volume_lvm::Settings> {
        toml::from_str::<Lvm>(text)?.settings(&Hold::default())
    }

    #[test]
    fn the_table_becomes_rules() {
        let settings = parsed(
            "baseline = \"none\"\nsnapshot_size = \"20%\"\ngive_up = 90\nfreeze_limit = \"5s\"\n\
             [[volumes]]\nmatch = \"vg0/db*\"\nbaseline = \"keep\"\nfreeze = \"domain:db\"\nsnapshot_chunk = \"4KiB\"\n",
        )
        .unwrap();
        let (db, web) = (settings.of("vg0/db1"), settings.of("vg0/web"));
        assert!(db.keep_baseline && !web.keep_baseline);
        assert_eq!((db.chunk, web.chunk), (4096, 65536));
        assert_eq!((db.freeze, web.freeze), (Freeze::Domain("db".into()), Freeze::Nothing));
        assert_eq!(web.store, StoreSize::Percent(20.0));
        assert_eq!((settings.limits.give_up, settings.times.frozen), (90.0, Duration::from_secs(5)));
        assert!(parsed("").unwrap().of("vg0/web").keep_baseline);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (text, said) in [
            ("snapshot_chunk = \"5000B\"", "snapshot_chunk"),
            ("snapshot_size = \"-3%\"", "snapshot_size"),
            ("freeze = \"domain:\"", "freeze"),
            ("give_up = 0", "give_up"),
            ("max_snapshots = 0", "max_snapshots"),
            ("freeze_limit = \"soon\"", "freeze_limit"),
            ("volumes = [{ match = \"a\", freeze = \"hard\" }]", "\"hard\""),
            ("baselines = \"keep\"", "baselines"),
            ("volumes = [{ match = \"a\", frieze = \"none\" }]", "frieze"),
        ] {
            let error = format!("{:#}", parsed(text).unwrap_err());
            assert!(error.contains(said), "{text}: {error}");
        }
        let audit = |text: &str| toml::from_str::<Lvm>(text).unwrap().audit();
        assert_eq!(audit("audit = 100").unwrap(), reader::Audit::ALL);
        assert_eq!(audit("audit = 0").unwrap(), reader::Audit::OFF);
        assert_eq!(audit("audit = 0.5").unwrap().share, 5000);
        assert!(audit("audit = 101").is_err());
    }
}
