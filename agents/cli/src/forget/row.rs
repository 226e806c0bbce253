//! A snapshot that may go, and what is printed of it.

use agent::forgetting::{self, Forgot};
use agent::{DamagedRoot, Failure, Repository};
use schema::names::Slot;
use schema::root::Root;
use serde::Serialize;

use crate::app::App;
use crate::text;

/// A snapshot and what becomes of it, as it is printed.
#[derive(Debug, Serialize)]
pub struct Row {
    id: String,
    /// Its volume; of one whose root is damaged, nothing.
    pub volume: String,
    generation: u64,
    time: String,
    group: Option<String>,
    /// Whether its root is damaged.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    damaged: bool,
    /// Whether it stays.
    pub keep: bool,
    /// Why it stays.
    reasons: Vec<String>,
    /// Where it stands now, when it came to be protected while it was forgotten.
    #[serde(skip_serializing_if = "Option::is_none")]
    brought_back: Option<String>,
    /// Why it may still be there, though it should go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// Why it goes, if it does.
    #[serde(skip)]
    goes: &'static str,
    #[serde(skip)]
    time_ms: u64,
    #[serde(skip)]
    slot: Slot,
    /// None where it is damaged.
    #[serde(skip)]
    root: Option<Root>,
}

/// What was done, as it is printed.
#[derive(Debug, Serialize)]
pub struct Done {
    /// Nothing was.
    pub dry_run: bool,
    /// The snapshots were named, and no rule has decided.
    #[serde(skip)]
    pub is_by_name: bool,
    /// Snapshots that stay.
    pub kept: usize,
    /// Snapshots that go.
    pub forgotten: usize,
    /// Snapshots that should have gone.
    pub failed: usize,
    /// All of them.
    pub snapshots: Vec<Row>,
}

impl Row {
    /// One that stays for these reasons, or goes for that one.
    pub fn new(root: Root, reasons: Vec<String>, goes: &'static str) -> Self {
        Self {
            id: root.slot.session.to_string(),
            volume: root.volume.clone(),
            generation: root.generation,
            time: text::rfc3339(root.time_ms),
            group: root.group.clone(),
            damaged: false,
            keep: !reasons.is_empty(),
            reasons,
            brought_back: None,
            failed: None,
            goes,
            time_ms: root.time_ms,
            slot: root.slot,
            root: Some(root),
        }
    }

    /// One that goes, and of which only the slot is known, which has the time.
    pub fn damaged(damaged: DamagedRoot) -> Self {
        let id = damaged.slot.session;
        Self {
            id: id.to_string(),
            volume: String::new(),
            generation: 0,
            time: text::rfc3339(id.time_ms()),
            group: None,
            damaged: true,
            keep: false,
            reasons: Vec::new(),
            brought_back: None,
            failed: None,
            goes: "named; its root is damaged, so that it CANNOT BE BROUGHT BACK",
            time_ms: id.time_ms(),
            slot: damaged.slot,
            root: None,
        }
    }

    /// It stays after all.
    pub fn stays(&mut self, why: String) {
        self.keep = true;
        self.reasons.push(why);
    }

    /// Why nothing may forget it.
    pub async fn protected(&self, repository: &Repository) -> Result<Option<String>, Failure> {
        match &self.root {
            Some(root) => forgetting::protected(repository, root).await,
            None => forgetting::damaged_protected(repository, self.slot).await,
        }
    }

    /// Forgets it.
    pub async fn forget(&mut self, app: &App, repository: &Repository, by: &str) -> Result<(), Failure> {
        let forgot = match &self.root {
            Some(root) => forgetting::forget(repository, root, by).await?,
            None => forgetting::forget_damaged(repository, self.slot, by).await?,
        };
        match forgot {
            Forgot::Done => {}
            Forgot::Protected(why) => self.stays(why),
            Forgot::BroughtBack(slot, why) => {
                let (id, volume) = (&self.id, &self.volume);
                app.say(format!(
                    "lvkeep: snapshot {id} of {volume} came to be protected while it was forgotten ({why}): it is back as {}",
                    slot.session
                ));
                self.brought_back = Some(slot.session.to_string());
                self.stays(why);
            }
        }
        Ok(())
    }

    fn cells(&self) -> [String; 6] {
        let (what, why) = match &self.failed {
            Some(why) => ("FAILED", why.clone()),
            None if self.keep => ("keep", self.reasons.join(", ")),
            None => ("forget", self.goes.to_owned()),
        };
        let known = |text: String| if self.damaged { "-".to_owned() } else { text };
        [
            what.to_owned(),
            self.id.clone(),
            known(self.volume.clone()),
            known(self.generation.to_string()),
            text::time(self.time_ms),
            why,
        ]
    }
}

impl Done {
    /// The same for people.
    pub fn text(&self) -> String {
        let mut table = text::Table::new(&["", "id", "volume", "gen", "time", "why"]);
        self.snapshots.iter().for_each(|row| table.row(row.cells()));
        let (kept, forgotten) = (self.kept as u64, self.forgotten as u64);
        let snapshots = |number| text::count(number, "snapshot");
        let (stay, are) = (text::of(kept, "stays", "stay"), text::of(forgotten, "is", "are"));
        // By name nobody has asked for the others, which all stay.
        let last = match (self.dry_run, self.is_by_name && kept == 0) {
            (true, true) => format!("{} would be forgotten", snapshots(forgotten)),
            (true, false) => format!("{} would stay, {forgotten} would be forgotten", snapshots(kept)),
            (false, true) => format!("{} {are} forgotten{}", snapshots(forgotten), self.way_back()),
            (false, false) if forgotten == 0 => format!("{} {stay}, nothing is forgotten", snapshots(kept)),
            (false, false) => {
                format!("{} {stay}, {forgotten} {are} forgotten{}", snapshots(kept), self.way_back())
            }
        };
        let failed = match self.failed {
            0 => String::new(),
            count => format!(", {count} FAILED"),
        };
        format!("{}\n{last}{failed}", table.text())
    }

    /// How one comes back, where one can.
    fn way_back(&self) -> &'static str {
        let can = |row: &Row| !row.keep && !row.damaged;
        match (self.snapshots.iter().any(|row| can(row) && row.failed.is_none()), self.forgotten) {
            (false, _) => "",
            (true, 1) => " (`lvkeep unforget` brings it back until it is collected)",
            (true, _) => " (`lvkeep unforget` brings one back until it is collected)",
        }
    }
}
