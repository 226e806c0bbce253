//! Opens what is restored to, after all that can be said against it, and before anything is changed.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use agent::maps::MapReader;
use agent::{Context, Ending, Failure, Place, Repository, Wish};
use schema::messages::FailureKind;
use schema::root::Root;
use schema::{JobId, StreamId};

use crate::holes;
use crate::leaving::{Left, leave, with_notes};
use crate::restorer::Restorer;
use crate::sink::Opened;
use crate::target::{Circumstances, Target};
use crate::task::{Order, Task};
use crate::tracked::Found;

/// Pause before a device that is locked is tried again.
const LOCK_PAUSE: Duration = Duration::from_millis(200);

impl Restorer {
    /// Opens a target, and says what is to be done to it.
    pub(crate) async fn open(
        &self,
        reads: &Repository,
        job: JobId,
        root: Root,
        target: Target,
    ) -> Result<Task, Failure> {
        let part = target.part(&root)?;
        if !target.keeps_going() {
            let map = MapReader::new(reads.clone(), self.index.clone(), root.clone())?.keeping_leaves();
            holes::refuse(&self.repository, &map, &part).await?;
        }
        self.check_standing(&target).await?;
        let place = self.find(job, &root, part.clone(), &target).await?;
        let (stream, forbidden) =
            (StreamId::from_bytes(self.context.environment.random()), self.settings.forbidden.clone());
        let order = Arc::new(Order { root, part, target, stream, forbidden });
        let host = self.context.host.clone();
        let ordered = order.clone();
        let Some(place) = place else {
            let open = move || {
                let Order { root, target, forbidden, .. } = &*ordered;
                target.open(&Circumstances { root, host: &host, forbidden })
            };
            let opened = self.opened(&order.target, open).await?;
            let (standing, apart) = (self.check_standing(&order.target).await, self.apart.clone());
            return self
                .blocking(move || {
                    match standing.and_then(|()| apart.add(order.root.slot, &order.target, &opened)) {
                        Ok(()) => order.begun(order.target.begin(opened, &order.root)?),
                        Err(failure) => {
                            opened.unmake();
                            Err(failure)
                        }
                    }
                })
                .await;
        };
        let claim = order.target.claim().clone();
        let opening = async {
            let device = place.make().await?;
            let open = move || {
                let Order { root, target, forbidden, .. } = &*ordered;
                target.open_place(&device, &Circumstances { root, host: &host, forbidden })
            };
            let opened = self.opened(&order.target, open).await?;
            self.check_standing(&order.target).await?;
            let (apart, of) = (self.apart.clone(), order.clone());
            let opened =
                self.blocking(move || apart.add(of.root.slot, &of.target, &opened).map(|()| opened)).await?;
            // Before what knows it may be removed.
            let tracked = match order.target.is_tracked() {
                true => self.find_changes(reads, &order.root, &*place, &opened.file).await,
                false => Found::default(),
            };
            place.ready(&opened.file).await?;
            let opened = Opened { place: Some(place.clone()), ..opened };
            let task = self.blocking(move || order.begun(opened)).await?;
            Ok(Task { tracked, ..task })
        };
        match opening.await {
            Ok(opened) => Ok(opened),
            // Another restore has it, or had it, which ends it. What was made here just now nobody else knows of.
            Err(failure) if claim.is_busy() || (claim.doubt().is_some() && !place.is_new()) => Err(failure),
            Err(failure) => {
                let left = match place.is_begun() {
                    true if self.context.stop.is_raised() => Left::ForItsJob,
                    true => Left::As(Ending::CutOff),
                    false => Left::As(Ending::Failed),
                };
                let notes = leave(Some(place), Some(&claim), left).await;
                Err(with_notes(failure, &notes))
            }
        }
    }

    /// Opens a target. Udev may have a device locked for a moment, and whoever helped a restore that died for longer: a
    /// command waits for both.
    pub(crate) async fn opened<T: Send + 'static>(
        &self,
        target: &Target,
        open: impl Fn() -> Result<T, Failure> + Clone + Send + 'static,
    ) -> Result<T, Failure> {
        let Context { environment, stop, .. } = &self.context;
        let (stop, mut is_said) = (target.stop().unwrap_or(stop), false);
        loop {
            let opened = self.blocking(open.clone()).await;
            if !target.claim().has_to_wait() {
                return opened;
            }
            let target = target.path().display();
            if !std::mem::replace(&mut is_said, true) {
                tracing::warn!(%target, "waiting for whoever has it locked");
            }
            tokio::select! {
                biased;
                () = stop.raised() => {
                    let why = format!("stopped while somebody else had {target} locked; nothing was changed");
                    return Err(Failure { retry: true, ..Failure::new(FailureKind::Revoked, why) });
                }
                () = environment.sleep(LOCK_PAUSE) => {}
            }
        }
    }

    pub(crate) async fn find(
        &self,
        job: JobId,
        root: &Root,
        part: Range<u64>,
        target: &Target,
    ) -> Result<Option<Arc<dyn Place>>, Failure> {
        let (Some(targets), Some(name)) = (&self.targets, target.path().to_str()) else { return Ok(None) };
        let wish = Wish {
            target: name,
            root,
            part,
            repository: self.repository.key.repo(),
            job,
            preparation: target.preparation(),
            force: target.is_forced(),
            in_use: target.may_be_in_use(),
            // One that is written as a whole shares nothing.
            donor: target.donor().filter(|_| !target.is_full()),
        };
        let Some(place) = targets.find(&wish).await? else { return Ok(None) };
        target.check_place(place.name())?;
        Ok(Some(place))
    }
}
