//! `status`: sessions in the bucket, agents on the bus, volumes whose last snapshot is too old, and recorded damage.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use agent::{Bus, Failure, Roots, Topic, sessions};
use schema::SessionId;
use schema::messages::{About, AgentIsThere, Message, WhoIsThere};
use schema::names::Slot;
use serde::Serialize;

use crate::app::App;
use crate::args::{Role, StatusArgs};
use crate::damage::Recorded;
use crate::prune::{LOCKED, Waits};
use crate::settings::parse_seconds;
use crate::{bus, checks, exit, select, text, undo};

/// How long agents have to answer.
const ROLL_CALL: Duration = Duration::from_millis(1500);

#[derive(Debug, Serialize)]
struct Status {
    repository: String,
    encrypted: bool,
    conditional_create: bool,
    packs: usize,
    bytes: u64,
    volumes: Vec<Volume>,
    sessions: Vec<Session>,
    last_collection: Option<u64>,
    collection: Option<Collection>,
    /// Why the latest collection cannot be read.
    collection_unreadable: Option<String>,
    damage: Recorded,
    checks: Vec<checks::Row>,
    agents: Vec<Agent>,
}

#[derive(Debug, Serialize)]
struct Volume {
    volume: String,
    last: String,
    age_seconds: u64,
    too_old: bool,
}

#[derive(Debug, Serialize)]
struct Session {
    session: String,
    kind: String,
    volume: String,
    host: String,
    started: String,
}

impl From<(SessionId, Option<schema::session::Session>)> for Session {
    fn from((id, session): (SessionId, Option<schema::session::Session>)) -> Self {
        let Some(session) = session else {
            let (session, kind) = (id.to_string(), "unreadable".to_owned());
            return Self {
                session,
                kind,
                volume: String::new(),
                host: String::new(),
                started: String::new(),
            };
        };
        Self {
            session: id.to_string(),
            kind: match session.ended {
                Some(_) => format!("ended {:?}", session.kind).to_lowercase(),
                None => format!("{:?}", session.kind).to_lowercase(),
            },
            volume: session.volume,
            host: session.host,
            started: text::rfc3339(session.started_ms),
        }
    }
}

/// A collection that is not finished.
#[derive(Debug, Serialize)]
struct Collection {
    number: u64,
    decided: bool,
    snapshots: u64,
    packs: u64,
    packs_left: u64,
    bytes_left: u64,
    snapshots_left: u64,
    waits_for: Vec<Waits>,
}

#[derive(Debug, Serialize)]
struct Agent {
    host: String,
    pid: u32,
    roles: Vec<String>,
    version: String,
    counters: BTreeMap<String, u64>,
}

/// `lvkeep status`.
pub async fn run(app: &App, args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let limit = args.max_age.as_deref().map(|text| parse_seconds("max-age", text)).transpose()?;
    let repository = app.repository().await?;
    let packs = repository.list_packs().await?;
    let mut newest: BTreeMap<String, u64> = BTreeMap::new();
    // What was kept for an undo is not backed up again.
    let Roots { readable, damaged } = select::roots(&repository, None).await?;
    let visible: BTreeSet<Slot> = readable.iter().map(|root| root.slot).collect();
    for root in readable.into_iter().filter(|root| !root.volume.starts_with(undo::NAMES)) {
        let time = newest.entry(root.volume).or_default();
        *time = (*time).max(root.time_ms);
    }
    let now = app.environment.now_ms();
    let volume = |(volume, time): (String, u64)| {
        let age_ms = now.saturating_sub(time);
        let age_seconds = age_ms / 1000;
        let too_old = limit.is_some_and(|limit| age_ms as f64 > limit * 1000.0);
        Volume { volume, last: text::rfc3339(time), age_seconds, too_old }
    };
    let collections = collector::standing(&repository).await?;
    let agents = match app.settings.nats.value.is_some() {
        true => agents(app).await?,
        false => Vec::new(),
    };
    let status = Status {
        repository: repository.store.location().to_owned(),
        encrypted: repository.key.encrypted(),
        conditional_create: repository.config.store.conditional_create,
        packs: packs.len(),
        bytes: packs.iter().map(|(_, size)| size).sum(),
        volumes: newest.into_iter().map(volume).collect(),
        sessions: sessions::list_all(&repository).await?.into_iter().map(Session::from).collect(),
        last_collection: collections.finished,
        collection: collections.unfinished.map(collection),
        collection_unreadable: collections.unreadable.map(|why| why.why),
        checks: checks::rows(checker::jobs::list_all(&repository).await?),
        agents,
        // The last: it ends what of this process asks the index.
        damage: Recorded::load(app, &repository, &visible, &packs).await?,
    };
    app.print(&status, || describe(app, &status))?;
    let named = select::conclude(app, &damaged);
    let alarm = limit.and_then(|_| status.damage.alarm());
    let too_old: Vec<&str> = status.volumes.iter().filter(|v| v.too_old).map(|v| v.volume.as_str()).collect();
    if limit.is_some() && status.volumes.is_empty() {
        named?;
        app.say("lvkeep: no volume has a snapshot");
        return Ok(ExitCode::from(exit::TOO_OLD));
    }
    if too_old.is_empty() {
        return match (named, alarm) {
            (Ok(()), None) => Ok(ExitCode::SUCCESS),
            (Ok(()), Some(alarm)) => Err(alarm.into()),
            (Err(damaged), alarm) => {
                alarm.inspect(|alarm| app.complain(format!("lvkeep: {alarm}")));
                Err(damaged)
            }
        };
    }
    if let Err(damaged) = named {
        app.complain(format!("lvkeep: {}", text::error(&damaged)));
    }
    alarm.inspect(|alarm| app.complain(format!("lvkeep: {alarm}")));
    app.say(format!("lvkeep: too old: {}", too_old.join(", ")));
    Ok(ExitCode::from(exit::TOO_OLD))
}

fn collection(unfinished: collector::Unfinished) -> Collection {
    Collection {
        number: unfinished.number,
        decided: unfinished.decided,
        snapshots: unfinished.forgotten,
        packs: unfinished.condemned,
        packs_left: unfinished.left.packs,
        bytes_left: unfinished.left.bytes,
        snapshots_left: unfinished.left.snapshots,
        waits_for: unfinished.waits.iter().map(Waits::from).collect(),
    }
}

impl Collection {
    fn lines(&self) -> String {
        let Self { number, .. } = self;
        let packs = text::count(self.packs, "pack");
        let snapshots = text::count(self.snapshots, "forgotten snapshot");
        let size = text::size(self.bytes_left);
        if self.decided {
            return format!(
                "collection {number} is not finished: {} of {packs} ({size}) and {} of {snapshots} \
                 are still there (`lvkeep prune` goes on; what it leaves, the store does not let go yet: {LOCKED})",
                self.packs_left, self.snapshots_left
            );
        }
        let mut lines = vec![format!(
            "collection {number} is not finished: it may remove {packs} ({size}) and {snapshots} (`lvkeep prune` goes on)"
        )];
        lines.extend(self.waits_for.iter().map(|waits| format!("  it waits for {}", waits.line())));
        lines.join("\n")
    }
}

/// Calls the roll, and takes the answers that come in time.
async fn agents(app: &App) -> anyhow::Result<Vec<Agent>> {
    let bus = bus::connect(app, "status").await?;
    called(app, &*bus).await
}

/// The hosts of which an agent of this role answers.
pub async fn hosts_of(app: &App, bus: &dyn Bus, role: Role) -> anyhow::Result<BTreeSet<String>> {
    let agents = called(app, bus).await?.into_iter();
    let has_role = |agent: &Agent| agent.roles.iter().any(|name| name == role.name());
    Ok(agents.filter(has_role).map(|agent| agent.host).collect())
}

async fn called(app: &App, bus: &dyn Bus) -> anyhow::Result<Vec<Agent>> {
    let nonce = app.environment.session_id().to_string();
    let topic = Topic::roll_call_reply(&nonce);
    let mut replies = bus.subscribe(&topic).await.map_err(Failure::from)?;
    let question = Message::new(&About::nothing(), &WhoIsThere { reply: nonce });
    bus.broadcast(&Topic::roll_call(), question).await.map_err(Failure::from)?;
    let mut found = Vec::new();
    let collect = async {
        while let Ok(message) = replies.next().await {
            if let Ok(agent) = message.read::<AgentIsThere>() {
                found.push(Agent {
                    host: agent.host,
                    pid: agent.pid,
                    roles: agent.roles,
                    version: agent.version,
                    counters: agent.counters.into_iter().collect(),
                });
            }
        }
    };
    app.environment.timeout(ROLL_CALL, collect).await;
    found.sort_by(|a, b| (&a.host, a.pid).cmp(&(&b.host, b.pid)));
    Ok(found)
}

fn describe(app: &App, status: &Status) -> String {
    let mut lines = vec![format!(
        "repository  {}: {} in {}{}{}",
        status.repository,
        text::size(status.bytes),
        text::count(status.packs as u64, "pack"),
        if status.encrypted { "" } else { ", NOT ENCRYPTED" },
        if status.conditional_create { "" } else { ", store without conditional writes" },
    )];
    let mut table = text::Table::new(&["volume", "last snapshot", "age"]);
    for volume in &status.volumes {
        let mark = if volume.too_old { "  TOO OLD" } else { "" };
        table.row([volume.volume.clone(), volume.last.clone(), format!("{}{mark}", age(volume.age_seconds))]);
    }
    lines.push(table.text());
    lines.extend(status.damage.text());
    let mut table = text::Table::new(&["session", "kind", "volume", "host", "started"]);
    for s in &status.sessions {
        table.row([s.session.clone(), s.kind.clone(), s.volume.clone(), s.host.clone(), s.started.clone()]);
    }
    lines.push(match status.sessions.is_empty() {
        true => "no session is open".to_owned(),
        false => table.text(),
    });
    lines.extend(status.collection_unreadable.iter().map(|why| format!("UNREADABLE: {why}")));
    match &status.collection {
        Some(collection) => lines.push(collection.lines()),
        None => lines.extend(
            status.last_collection.map(|number| format!("the last collection was {number}, and is finished")),
        ),
    }
    if !status.checks.is_empty() {
        lines.push(checks::table(&status.checks));
    }
    if app.settings.nats.value.is_some() {
        let mut table = text::Table::new(&["agent", "pid", "roles", "version"]);
        for agent in &status.agents {
            table.row([
                agent.host.clone(),
                agent.pid.to_string(),
                agent.roles.join(","),
                agent.version.clone(),
            ]);
        }
        lines.push(match status.agents.is_empty() {
            true => "NO AGENT answers".to_owned(),
            false => table.text(),
        });
    }
    lines.join("\n\n")
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much it is, and for what or whom it waits.
    #[test]
    fn a_collection_that_is_not_finished_says_what_it_will_free_and_why_it_has_not() {
        let started = "2026-11-21T03:56:45.731Z";
        let waits = Waits {
            session: "01M8".into(),
            kind: Some("backup".into()),
            volume: Some("vm/a".into()),
            host: Some("web1".into()),
            started: Some(started.into()),
        };
        let waiting = Collection {
            number: 7,
            decided: false,
            snapshots: 2,
            packs: 9,
            packs_left: 9,
            bytes_left: 3 << 20,
            snapshots_left: 2,
            waits_for: vec![waits],
        };
        let text = waiting.lines();
        for part in ["9 packs (3.0 MiB)", "backup of vm/a on web1", started, "lvkeep cancel 01M8"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let text = Collection { decided: true, packs_left: 5, ..waiting }.lines();
        for part in ["5 of 9 packs (3.0 MiB)", LOCKED] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
