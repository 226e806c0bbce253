//! `cancel`: gives a session up by occupying its commit slot, or takes a check of agents back.

use agent::repository::AtSlot;
use agent::{Failure, Repository, Topic, sessions};
use checker::jobs::{self, TakenBack};
use schema::messages::{About, Cancel, FailureKind, Message};
use schema::session::Session;
use schema::{JobId, SessionId, names};

use crate::app::App;
use crate::args::CancelArgs;
use crate::{bus, checks, open};

/// `lvkeep cancel`.
pub async fn cancel(app: &App, args: &CancelArgs) -> anyhow::Result<()> {
    let id: SessionId = args.session.parse().map_err(open::not_fitting)?;
    let repository = app.repository().await?;
    let sessions = sessions::list(&repository).await?;
    let Some(session) = sessions.iter().find(|session| session.id == id) else {
        let job = JobId::from_bytes(*id.as_bytes());
        let by = format!("lvkeep on {}", app.settings.host.value);
        return match jobs::take_back(&repository, job, &by).await? {
            Some(taken) => cancelled_check(app, job, taken),
            None => cancel_unreadable(app, &repository, id, args.force).await,
        };
    };
    let at_slot = sessions::revoke(&repository, session).await?;
    if app.settings.nats.value.is_some() {
        // Its driver would notice at its commit; this is sooner.
        let bus = bus::connect(app, "cancel").await?;
        let message = Message::new(&About::session(id, session.volume.clone()), &Cancel { session: id });
        bus.broadcast(&Topic::cancel(), message).await.map_err(Failure::from)?;
    }
    if let AtSlot::Snapshot(root) = at_slot {
        let why =
            format!("session {id} had committed snapshot {} of {} already", root.slot.session, root.volume);
        return Err(Failure::refused(why).into());
    }
    let value = serde_json::json!({ "session": id.to_string(), "volume": session.volume });
    app.print(&value, || match session.ended {
        None => format!("session {id} of {} is cancelled; nothing of it will be committed", session.volume),
        Some(_) => format!(
            "what said that the restore of {} (job {}) has ended is removed; if an agent is given that job again, it \
             restores again",
            session.volume, session.job
        ),
    })
}

fn cancelled_check(app: &App, job: JobId, taken: TakenBack) -> anyhow::Result<()> {
    let said = match taken {
        TakenBack::Ends => {
            format!(
                "the check {job} is cancelled; its agent, if there is one, ends within a minute. The next share of the \
                 content begins where this one came to"
            )
        }
        TakenBack::Removed(why) => format!("what stood of the check {job} is removed ({why})"),
        TakenBack::HadEnded(end) => {
            let how = checks::how(&end);
            let why =
                format!("the check {job} had ended already: {how} (`lvkeep check --job {job}` says more)");
            return Err(Failure::refused(why).into());
        }
    };
    app.print(&serde_json::json!({ "check": job.to_string() }), || said)
}

/// Removes a session object that says neither which volume nor which slot it is about. Where something stands at a slot
/// of its name, nothing else is ever committed there; otherwise only the operator knows that nobody drives it.
async fn cancel_unreadable(
    app: &App,
    repository: &Repository,
    id: SessionId,
    force: bool,
) -> anyhow::Result<()> {
    let key = names::session(id);
    if repository.store.head(&key).await.map_err(Failure::from)?.is_none() {
        let why = format!(
            "no session {id} is open, and agents were given no such check (`lvkeep status` lists both)"
        );
        return Err(Failure::refused(why).into());
    }
    let why = match repository.read::<Session>(&key).await {
        Err(failure) if failure.kind == FailureKind::Store => return Err(failure.into()),
        Err(failure) => failure.why,
        Ok(None) => return Err(Failure::refused(format!("session {id} has just ended")).into()),
        Ok(Some(_)) => {
            let why = format!("{key} could not be read a moment ago, and can be read now: run this again");
            return Err(Failure::refused(why).into());
        }
    };
    if !force && sessions::decided_slot(repository, id).await?.is_none() {
        let why = format!(
            "{why}; nothing says where session {id} would commit: make sure that nobody drives it any more (one that is \
             alive would lose its protection against `prune`), and give --force"
        );
        return Err(Failure::refused(why).into());
    }
    repository.store.delete(&key).await.map_err(Failure::from)?;
    let value = serde_json::json!({ "session": id.to_string(), "volume": null });
    app.print(&value, || format!("the object of session {id}, which could not be read, is removed"))
}
