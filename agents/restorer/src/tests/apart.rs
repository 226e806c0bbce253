//! Targets of one command that are one.

use std::path::Path;

use schema::JobId;
use schema::messages::{FailureKind, JobOutcome, RestoreJob};
use schema::root::Root;

use super::asked::{done, job, send};
use super::fixture::{Fixture, noise, serving};

const LEN: usize = 1 << 20;

#[tokio::test(start_paused = true)]
async fn what_one_command_restores_is_not_overwritten_under_another_name() {
    let fixture = Fixture::plain().await;
    let (one, two) = (noise(1, LEN), noise(2, LEN));
    let (first, second) = (fixture.volume(&one).await, fixture.volume(&two).await);
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![fixture.folder.path().to_path_buf()])));
    let (path, link, hard) = (fixture.path("x"), fixture.path("link"), fixture.path("hard"));
    let [command, other] = [(); 2].map(|()| fixture.context.environment.job_id());
    let restore = async |root: &Root, target: &Path, command: JobId| {
        let order = RestoreJob { force: true, command: Some(command), ..job(&fixture, root, target) };
        send(&fixture, &order).await;
        done(&fixture, &order).await
    };
    assert!(matches!(restore(&first, &path, command).await, JobOutcome::Restored { .. }));
    std::os::unix::fs::symlink(&path, &link).unwrap();
    std::fs::hard_link(&path, &hard).unwrap();
    for name in [&link, &hard, &path] {
        let JobOutcome::Failed { kind, why } = restore(&second, name, command).await else {
            panic!("{} was overwritten", name.display())
        };
        assert_eq!(kind, FailureKind::Refused);
        for part in [name.to_str().unwrap(), path.to_str().unwrap(), "nothing was overwritten"] {
            assert!(why.contains(part), "{part} is not in: {why}");
        }
        assert!(std::fs::read(&path).unwrap() == one);
    }
    // Another command may, and a file in the place of one that is gone is another one.
    assert!(matches!(restore(&second, &link, other).await, JobOutcome::Restored { .. }));
    assert!(std::fs::read(&path).unwrap() == two);
    std::fs::remove_file(&path).unwrap();
    std::fs::remove_file(&link).unwrap();
    assert!(matches!(restore(&second, &link, command).await, JobOutcome::Restored { .. }));
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}
