//! The way to whatever applies a stream: a process elsewhere, or a task of this one.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use agent::Failure;
use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite, duplex};
use tokio::process::Child;

use super::apply::Apply;
use super::target::Target;

/// How long a process has to end after it was left.
const GRACE: Duration = Duration::from_secs(30);
/// Bytes between two tasks of this process.
const PIPE: usize = 1 << 20;

/// Makes connections.
#[async_trait]
pub trait Connector: fmt::Debug + Send + Sync {
    /// Where it leads, for messages.
    fn name(&self) -> String;

    /// Whether a connection that broke is made again.
    fn comes_back(&self) -> bool;

    /// Makes one; `reconnecting` when an earlier one of the same sender worked and broke.
    async fn connect(&self, reconnecting: bool) -> Result<Link, Failure>;
}

/// One connection.
pub struct Link {
    /// Takes the stream.
    pub input: Pin<Box<dyn AsyncWrite + Send>>,
    /// Gives the answers.
    pub output: Pin<Box<dyn AsyncRead + Send>>,
    /// The process behind it; killed when the connection is dropped.
    pub process: Option<Child>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("process", &self.process).finish_non_exhaustive()
    }
}

/// How the process behind a connection ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Well, or there was none.
    Well,
    /// In another way; in words.
    Badly(String),
}

/// Waits for the end of a connection's process.
pub(crate) async fn ended(process: Option<Child>) -> Ended {
    let Some(mut process) = process else { return Ended::Well };
    match tokio::time::timeout(GRACE, process.wait()).await {
        Ok(Ok(status)) if status.success() => Ended::Well,
        Ok(Ok(status)) => Ended::Badly(format!("it ended with {status}")),
        Ok(Err(why)) => Ended::Badly(format!("its end cannot be waited for: {why}")),
        Err(_) => Ended::Badly(format!("it did not end within {} s", GRACE.as_secs())),
    }
}

/// Applies in this process.
#[derive(Debug)]
pub struct Here {
    /// How.
    pub apply: Apply,
    /// To what.
    pub target: Arc<Target>,
}

#[async_trait]
impl Connector for Here {
    fn name(&self) -> String {
        self.target.name().to_owned()
    }

    fn comes_back(&self) -> bool {
        false
    }

    async fn connect(&self, reconnecting: bool) -> Result<Link, Failure> {
        let ((input, stream), (answers, output)) = (duplex(PIPE), duplex(PIPE));
        let apply = Apply { answers: true, reconnected: reconnecting, ..self.apply.clone() };
        let target = self.target.clone();
        tokio::spawn(async move {
            // What went wrong is told by the answers.
            let _ = apply.run(stream, answers, target, |_| {}).await;
        });
        Ok(Link { input: Box::pin(input), output: Box::pin(output), process: None })
    }
}
