//! Rules of retention as operators write them, on the command line and in the configuration file.

use std::time::Duration;

use agent::Failure;
use anyhow::{Context, bail};
use conductor::retention::{Policies, Rules};
use serde::{Deserialize, Serialize};

use crate::args::Keep;
use crate::settings::seconds_of;

/// One `[[retention]]` of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "toml::Table")]
pub struct Policy {
    /// The volumes that it is for; `*` stands for anything.
    volumes: String,
    /// What is kept of them.
    #[serde(flatten)]
    keep: Keep,
}

impl TryFrom<toml::Table> for Policy {
    type Error = String;

    fn try_from(mut table: toml::Table) -> Result<Self, String> {
        let Some(toml::Value::String(volumes)) = table.remove("volumes") else {
            return Err("a policy says for which volumes it is: volumes = \"PATTERN\"".to_owned());
        };
        let keep: Keep = table.try_into().map_err(|why| why.message().to_owned())?;
        Ok(Self { volumes, keep })
    }
}

/// The policies of a configuration, checked.
pub fn policies(written: &[Policy]) -> anyhow::Result<Policies> {
    let parse = |policy: &Policy| {
        let volumes = policy.volumes.clone();
        let rules = policy.keep.rules().with_context(|| format!("retention of {volumes:?}"))?;
        if rules.is_empty() {
            bail!("retention of {volumes:?}: it keeps nothing; give at least one keep_... rule");
        }
        Ok(conductor::retention::Policy { volumes, rules })
    };
    Ok(Policies::new(written.iter().map(parse).collect::<anyhow::Result<_>>()?))
}

impl Keep {
    /// The rules, checked.
    pub fn rules(&self) -> anyhow::Result<Rules> {
        let counts = [
            ("keep_last", self.keep_last),
            ("keep_hourly", self.keep_hourly),
            ("keep_daily", self.keep_daily),
            ("keep_weekly", self.keep_weekly),
            ("keep_monthly", self.keep_monthly),
            ("keep_yearly", self.keep_yearly),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == Some(0)) {
            bail!(Failure::refused(format!("{name}: 0 keeps nothing; leave the rule out")));
        }
        let [last, hourly, daily, weekly, monthly, yearly] = counts.map(|(_, count)| count.unwrap_or(0));
        let within = self.keep_within.as_deref().map(parse_within).transpose()?;
        Ok(Rules { last, hourly, daily, weekly, monthly, yearly, within, tags: self.keep_tags.clone() })
    }
}

/// Hours, days of 24 hours and weeks of 7 days: months have no length.
pub fn parse_within(text: &str) -> anyhow::Result<Duration> {
    match seconds_of(text) {
        Some(seconds) if seconds >= 1.0 => Ok(Duration::from_secs_f64(seconds)),
        _ => bail!(Failure::refused(format!(
            "{text:?} is not how long to keep something (write for example 36h, 14d or 8w)"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read() {
        let hours = |text| parse_within(text).ok().map(|within| within.as_secs() / 3600);
        assert_eq!(["36h", "14d", "8w", "1d 12h"].map(hours), [36, 336, 1344, 36].map(Some));
        assert_eq!(["", "0d", "-1d", "3", "2mo", "1y", "soon"].map(hours), [None; 7]);
    }

    #[test]
    fn policies_are_read_and_wrong_ones_are_named() {
        let read = |text: &str| -> Result<Policies, String> {
            let policy: Policy = toml::from_str(text).map_err(|why| why.to_string())?;
            policies(&[policy]).map_err(|why| crate::text::error(&why))
        };
        let rules = "volumes = \"db/*\"\nkeep_last = 3\nkeep_within = \"14d\"\nkeep_tag = [\"audit\"]";
        let read_well = read(rules).ok().and_then(|policies| policies.of("db/vg/a").cloned());
        let expected = Rules {
            last: 3,
            within: Some(Duration::from_secs(14 * 24 * 3600)),
            tags: vec!["audit".to_owned()],
            ..Rules::default()
        };
        assert_eq!(read_well, Some(expected));
        for (text, word) in [
            ("keep_last = 3", "volumes"),
            ("volumes = \"*\"", "keeps nothing"),
            ("volumes = \"*\"\nkeep_lsat = 3", "keep_lsat"),
            ("volumes = \"*\"\nkeep_daily = 0", "keep_daily: 0"),
            ("volumes = \"*\"\nkeep_within = \"2mo\"", "14d"),
        ] {
            let said = read(text).map(drop).unwrap_err();
            assert!(said.contains(word), "{text}: {said}");
        }
    }
}
