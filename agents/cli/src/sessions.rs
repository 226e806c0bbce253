//! `cancel`: gives a session up by occupying its commit slot.

use agent::repository::AtSlot;
use agent::{Failure, Topic, sessions};
use schema::SessionId;
use schema::messages::{About, Cancel, Message};

use crate::app::App;
use crate::args::CancelArgs;
use crate::{bus, open};

/// `lvkeep cancel`.
pub async fn cancel(app: &App, args: &CancelArgs) -> anyhow::Result<()> {
    let id: SessionId = args.session.parse().map_err(open::not_fitting)?;
    let repository = app.repository().await?;
    let sessions = sessions::list(&repository).await?;
    let Some(session) = sessions.iter().find(|session| session.id == id) else {
        return Err(Failure::refused(format!("no session {id} is open (`lvkeep status` lists them)")).into());
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
