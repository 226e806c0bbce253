//! Reads the frames of packs: all of them, or those that are recorded as damaged.

use std::collections::{BTreeMap, BTreeSet};

use agent::Failure;
use agent::damage::Damages;
use schema::messages::FailureKind;
use schema::pack::PackFooter;
use schema::{ChunkId, PackId, names};

use super::Packs;
use crate::Checker;
use crate::findings::Report;
use crate::frames::Checked;
use crate::given::{Footer, is_withheld};

impl Packs {
    /// Takes what was read now of frames that are recorded as damaged; the last reading counts.
    fn take_recorded(&mut self, pack: PackId, footer: &PackFooter, recorded: &Damages, checked: &Checked) {
        let Checked { bad, keyless, withheld, .. } = checked;
        let not_given: BTreeSet<&ChunkId> = withheld
            .iter()
            .chain(keyless.iter().filter(|(_, why)| is_withheld(why)))
            .map(|(id, _)| id)
            .collect();
        let unknown = bad.iter().map(|(id, _)| id).chain(keyless.iter().map(|(id, _)| id));
        let unknown: BTreeSet<&ChunkId> = unknown.chain(not_given.iter().copied()).collect();
        for id in footer.entries.iter().map(|entry| entry.id).filter(|id| recorded.has(id, &pack)) {
            let copy = (id, pack);
            self.proven.remove(&copy);
            self.not_given.remove(&copy);
            if not_given.contains(&id) {
                self.not_given.insert(copy);
            } else if !unknown.contains(&id) {
                self.proven.insert(copy);
            }
        }
    }

    /// Whether frames of a pack are yet to be read, and may be.
    fn is_unread(&self, pack: &PackId) -> bool {
        let is_structure = || self.structure.binary_search_by_key(pack, |(pack, _)| *pack).is_ok();
        self.lists(pack)
            && !self.unreadable.contains(pack)
            && !self.withheld.contains(pack)
            && !is_structure()
    }
}

impl Checker {
    /// Reads the frames again that are recorded as damaged, where there is what opens them: they may be whole, and only
    /// have been withheld when they were recorded. What of snapshots is lost for good must not be said by that.
    pub(crate) async fn recorded_frames(&self, recorded: &Damages, packs: &mut Packs) -> Result<(), Failure> {
        if self.source.keys.check().is_err() {
            return Ok(());
        }
        let mut by_pack: BTreeMap<PackId, BTreeSet<ChunkId>> = BTreeMap::new();
        for (id, packs) in recorded.chunks() {
            for pack in packs {
                by_pack.entry(*pack).or_default().insert(*id);
            }
        }
        for (pack, ids) in by_pack.into_iter().filter(|(pack, _)| packs.is_unread(pack)).collect::<Vec<_>>() {
            self.source.go_on()?;
            let (header, mut footer) = match self.source.read_footer(pack).await? {
                Footer::Whole(header, footer) | Footer::Torn(header, footer, _) => (header, footer),
                Footer::Withheld(_) => {
                    packs.not_given.extend(ids.into_iter().map(|id| (id, pack)));
                    continue;
                }
                Footer::Unreadable(_) | Footer::Gone => continue,
            };
            footer.entries.retain(|entry| ids.contains(&entry.id));
            let checked = self.source.check_frames(pack, &header, &footer).await?;
            if !checked.is_gone {
                packs.take_recorded(pack, &footer, recorded, &checked);
            }
        }
        Ok(())
    }

    /// Reads the frames of one pack; how many are no copies, or one for a pack of which nothing can be read any more. None
    /// when the pack is gone, and nothing of it was read.
    pub(super) async fn frames_of(
        &self,
        pack: PackId,
        size: u64,
        recorded: &Damages,
        packs: &mut Packs,
        report: &mut Report,
    ) -> Result<Option<usize>, Failure> {
        if packs.unreadable.contains(&pack) {
            return Ok(Some(0));
        }
        // Whoever goes on behind it may be given it, and does not read it.
        if packs.withheld.contains(&pack) {
            report.only_once(&names::pack(pack));
            return Ok(Some(0));
        }
        // Structure is read in every attempt.
        let is_once = packs.structure.binary_search(&(pack, size)).is_err();
        let tell = |report: &mut Report, why: String| match is_once {
            true => report.object_once(names::pack(pack), why),
            false => report.object(names::pack(pack), why),
        };
        let (header, footer) = match self.source.read_footer(pack).await? {
            Footer::Whole(header, footer) => (header, footer),
            Footer::Torn(header, footer, why) => {
                if !packs.torn.contains_key(&pack) {
                    packs.is_torn(pack, &footer, why, report);
                }
                (header, footer)
            }
            Footer::Unreadable(why) => {
                packs.is_unreadable(pack, why, report);
                return Ok(Some(1));
            }
            Footer::Withheld(why) => {
                packs.is_withheld(pack, &why, report);
                if is_once {
                    report.only_once(&names::pack(pack));
                }
                return Ok(Some(0));
            }
            Footer::Gone => return Ok(None),
        };
        let checked = self.source.check_frames(pack, &header, &footer).await?;
        if checked.is_gone {
            return Ok(None);
        }
        packs.take_recorded(pack, &footer, recorded, &checked);
        let Checked { mut bad, keyless, withheld, .. } = checked;
        if withheld.is_empty() {
            report.packs_read += 1;
            report.bytes_read += size;
        }
        // Nobody has a key that is gone; another identity may open one that this does not.
        let (lost, sealed): (Vec<_>, Vec<_>) =
            keyless.into_iter().partition(|(_, why)| why.kind == FailureKind::Damaged);
        bad.extend(lost.into_iter().map(|(id, why)| (id, format!("no key opens it: {why}"))));
        if let Some((id, why)) = sealed.first() {
            report.unopened += sealed.len() as u64;
            report.unopened_in += 1;
            let why = format!(
                "chunk {id} cannot be opened with this identity ({why}){}: what stands on it cannot be restored with it",
                and_more(sealed.len())
            );
            tell(report, why);
        }
        let not_given: BTreeSet<ChunkId> = withheld.iter().map(|(id, _)| *id).collect();
        bad.extend(withheld.into_iter().map(|(id, why)| (id, why.to_string())));
        let old: Vec<ChunkId> = bad.iter().map(|(id, _)| *id).filter(|id| recorded.has(id, &pack)).collect();
        let healed = self.healed(&old, packs, recorded).await?;
        bad.retain(|(id, _)| !healed.contains(id));
        let count = bad.len();
        if let Some((id, why)) = bad.first() {
            tell(report, format!("chunk {id}: {why}{}", and_more(count)));
        }
        bad.iter().for_each(|(id, _)| packs.is_bad(*id, pack));
        let kept = bad.iter().filter(|(id, _)| not_given.contains(id) && packs.is_named(id));
        packs.not_given.extend(kept.map(|(id, _)| (*id, pack)).collect::<Vec<_>>());
        if packs.is_full {
            self.too_much();
        }
        Ok(Some(count))
    }
}

fn and_more(count: usize) -> String {
    if count > 1 { format!(", and {} more", count - 1) } else { String::new() }
}
