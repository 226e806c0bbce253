//! What a test was told of snapshots: which there are, what they hold, and which of them may be gone.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// A snapshot that somebody was told of.
#[derive(Debug)]
pub struct Told {
    /// A copy of what it holds.
    pub copy: String,
    /// Somebody was told to forget it, and did not say that it stays.
    pub may_be_forgotten: bool,
    /// Somebody said that it is forgotten.
    is_forgotten: bool,
    /// Somebody said that it is back under another name.
    is_back: bool,
    number: usize,
}

/// All that was told, by the ids of snapshots.
#[derive(Debug, Default)]
pub struct Snapshots(BTreeMap<String, Told>);

/// What a command was told to forget.
#[derive(Debug)]
pub enum Forgets {
    /// What rules do not keep, and how many snapshots had been told of when it began.
    ByRules(usize),
    /// This one, which somebody may have forgotten before.
    Named { id: String, in_doubt: bool },
}

impl Snapshots {
    /// Somebody said that there is such a snapshot.
    pub fn add(&mut self, id: &str, copy: &str, may_be_forgotten: bool) {
        let number = self.0.len();
        let told =
            Told { copy: copy.to_owned(), may_be_forgotten, is_forgotten: false, is_back: false, number };
        // What is brought back twice is told twice.
        self.0.entry(id.to_owned()).or_insert(told);
    }

    /// What was told of one.
    pub fn get(&self, id: &str) -> Option<&Told> {
        self.0.get(id)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// One that is not said to be forgotten.
    pub fn standing(&self, draw: usize) -> Option<String> {
        self.draw(draw, |told| !told.is_forgotten)
    }

    /// One that is said to be forgotten, and not to be back.
    pub fn forgotten(&self, draw: usize) -> Option<String> {
        self.draw(draw, |told| told.is_forgotten && !told.is_back)
    }

    /// Old ones are drawn as often as the newest, of which there are few: half of all draws are among those.
    fn draw(&self, draw: usize, is_meant: impl Fn(&Told) -> bool) -> Option<String> {
        let mut meant: Vec<_> = self.0.iter().filter(|(_, told)| is_meant(told)).collect();
        meant.sort_by_key(|(_, told)| std::cmp::Reverse(told.number));
        let among = if draw.is_multiple_of(2) { meant.len() } else { meant.len().min(6) };
        (among > 0).then(|| meant[draw / 2 % among].0.clone())
    }

    /// Somebody is told to forget by rules, or this one.
    pub fn forgetting(&mut self, forgets: &Forgets) {
        for (id, told) in &mut self.0 {
            told.may_be_forgotten |= match forgets {
                Forgets::ByRules(_) => true,
                Forgets::Named { id: named, .. } => id == named,
            };
        }
    }

    /// Whoever was told to forget did not.
    pub fn stays(&mut self, forgets: &Forgets) {
        let Forgets::Named { id, in_doubt } = forgets else { return };
        if let Some(told) = self.0.get_mut(id) {
            told.may_be_forgotten = *in_doubt;
        }
    }

    /// What somebody said who forgot, and had no reason to say anything else; how many went.
    pub fn forgot(&mut self, forgets: &Forgets, rows: &Value) -> usize {
        let rows = rows.as_array().expect("a list of snapshots");
        let mut went = 0;
        for row in rows {
            let (id, stays) = (row["id"].as_str().expect("an id"), row["keep"] == true);
            if let Some(told) = self.0.get_mut(id) {
                (told.may_be_forgotten, told.is_forgotten) = (!stays, !stays);
            }
            went += usize::from(!stays);
        }
        if let Forgets::ByRules(before) = forgets {
            // What came after it began, and is not in its list, it knew nothing of.
            let listed: BTreeSet<&str> = rows.iter().filter_map(|row| row["id"].as_str()).collect();
            let unknown = self.0.iter_mut().filter(|(id, told)| {
                told.number >= *before && !told.is_forgotten && !listed.contains(id.as_str())
            });
            unknown.for_each(|(_, told)| told.may_be_forgotten = false);
        }
        went
    }

    /// Somebody said that one is back as another.
    pub fn brought_back(&mut self, id: &str, as_another: &str, may_be_forgotten: bool) {
        let Some(told) = self.0.get_mut(id) else { return };
        told.is_back = true;
        let copy = told.copy.clone();
        self.add(as_another, &copy, may_be_forgotten);
    }

    /// Nobody can bring one back any more.
    pub fn gone(&mut self, id: &str) {
        if let Some(told) = self.0.get_mut(id) {
            told.is_back = true;
        }
    }

    /// What is listed must be all that nobody was told to forget, and nothing that is said to be forgotten.
    pub fn are_listed(&self, listed: &BTreeSet<&str>) {
        for (id, told) in &self.0 {
            let is_listed = listed.contains(id.as_str());
            assert!(is_listed || told.may_be_forgotten, "{id} is not listed, and nobody forgot it: {told:?}");
            assert!(!is_listed || !told.is_forgotten, "{id} is listed, and was forgotten: {told:?}");
        }
    }
}
