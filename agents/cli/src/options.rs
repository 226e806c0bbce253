//! What goes together when a volume is restored: the same rules for the command line and for plans.

use schema::messages::{NewVolume, Preparation, Safety};

use crate::args::RestoreOptions;
use crate::settings;

impl RestoreOptions {
    /// Which options do not go together, by name.
    pub fn clashes(&self) -> Vec<String> {
        let Self { create, like, verify, drop_baseline, undo, keep_going, .. } = *self;
        let (thin, safety) = (self.thin.is_some(), self.safety_snapshot.is_some());
        let rules = [
            (thin && !create, "thin: only a volume that is made goes into a pool (create)"),
            (
                like && !create,
                "like: only a volume that is made becomes like the one that was backed up (create)",
            ),
            (thin && like, "thin and like: a volume is made in one of these ways"),
            (create && safety, "create and safety_snapshot: a volume that is made holds nothing to be kept"),
            (create && drop_baseline, "create and drop_baseline: a volume that is made has no baseline"),
            (create && undo, "create and undo: a volume that is made holds nothing to be kept"),
            (verify && keep_going, "verify and keep_going: what has holes is not what the snapshot holds"),
        ];
        rules.into_iter().filter(|(broken, _)| *broken).map(|(_, why)| why.to_owned()).collect()
    }

    /// What is done to a logical volume first.
    pub fn preparation(&self) -> anyhow::Result<Preparation> {
        let create = match (self.create, &self.thin) {
            (false, _) => None,
            (true, Some(pool)) => Some(NewVolume::Thin { pool: pool.clone() }),
            (true, None) if self.like => Some(NewVolume::Alike),
            (true, None) => Some(NewVolume::Plain),
        };
        let size = |text: &String| match text.as_str() {
            "" => Ok(None),
            text => settings::parse_size("safety_snapshot", text).map(Some),
        };
        let safety = self.safety_snapshot.as_ref().map(size).transpose()?.map(|size| Safety { size });
        Ok(Preparation { create, safety, drop_baseline: self.drop_baseline })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_go_together_is_named() {
        let create = RestoreOptions { create: true, ..RestoreOptions::default() };
        let (pool, none) = (Some("pool".to_owned()), RestoreOptions::default());
        for (options, named) in [
            (none.clone(), &[][..]),
            (RestoreOptions { thin: pool.clone(), ..create.clone() }, &[]),
            (RestoreOptions { like: true, ..create.clone() }, &[]),
            (RestoreOptions { thin: pool.clone(), ..none.clone() }, &["thin:"]),
            (RestoreOptions { like: true, ..none.clone() }, &["like:"]),
            (RestoreOptions { thin: pool, like: true, ..create.clone() }, &["thin and like"]),
            (
                RestoreOptions { safety_snapshot: Some(String::new()), drop_baseline: true, ..create },
                &["create and safety_snapshot", "create and drop_baseline"],
            ),
            (RestoreOptions { undo: true, create: true, ..none.clone() }, &["create and undo"]),
            (RestoreOptions { verify: true, keep_going: true, ..none }, &["verify and keep_going"]),
        ] {
            let clashes = options.clashes();
            assert_eq!(clashes.len(), named.len(), "{clashes:?}");
            assert!(clashes.iter().zip(named).all(|(why, name)| why.starts_with(name)), "{clashes:?}");
        }
    }

    #[test]
    fn a_size_that_is_none_is_refused() {
        let options = RestoreOptions { safety_snapshot: Some("many".into()), ..RestoreOptions::default() };
        assert!(options.preparation().unwrap_err().to_string().contains("safety_snapshot"));
    }
}
