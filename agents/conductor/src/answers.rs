//! What a session's conductor is asked by readers and hashers: leaves of the parent's map, and what is still wanted.

use std::sync::Arc;

use agent::{Answerer, Failure};
use async_trait::async_trait;
use schema::messages::{AskParentLeaf, AskWanted, Message, ParentLeaf, Wanted};
use tokio::sync::{mpsc, oneshot};

use crate::parent::Parent;

/// Questions for the driver that wait: readers of one host ask one after the other.
const QUESTIONS: usize = 16;

/// A question that only the session's driver can answer.
#[derive(Debug)]
pub(crate) struct Question {
    /// What is still wanted of this request?
    pub(crate) request: u32,
    pub(crate) reply: oneshot::Sender<Wanted>,
}

/// Answers for one session as long as its driver lives. A session without a parent answers that there is no leaf.
pub(crate) struct Answers {
    parent: Option<Arc<Parent>>,
    driver: mpsc::Sender<Question>,
}

impl Answers {
    /// The answers, and the questions that the driver is to answer.
    pub(crate) fn new(parent: Option<Arc<Parent>>) -> (Self, mpsc::Receiver<Question>) {
        let (driver, questions) = mpsc::channel(QUESTIONS);
        (Self { parent, driver }, questions)
    }

    /// A driver that takes no more questions wants nothing any more.
    async fn wanted(&self, request: u32) -> Wanted {
        let (reply, answer) = oneshot::channel();
        let asked = self.driver.send(Question { request, reply }).await;
        let over = || Wanted { over: true, leaves: Vec::new(), forced: Vec::new(), whole: Vec::new() };
        match asked {
            Ok(()) => answer.await.unwrap_or_else(|_| over()),
            Err(_) => over(),
        }
    }
}

#[async_trait]
impl Answerer for Answers {
    async fn answer(&mut self, message: &Message) -> Result<Message, Failure> {
        let about = message.about()?;
        if let Ok(asked) = message.read::<AskWanted>() {
            return Ok(Message::new(&about, &self.wanted(asked.request).await));
        }
        let asked: AskParentLeaf = message.read()?;
        let leaf = match &self.parent {
            Some(parent) => parent.leaf(asked.leaf).await?,
            None => None,
        };
        Ok(match leaf {
            Some(leaf) => {
                let answer = ParentLeaf { span: Some(leaf.span), lost: leaf.lost.clone() };
                Message::with_body(&about, &answer, leaf.bytes.clone())
            }
            None => Message::new(&about, &ParentLeaf { span: None, lost: Vec::new() }),
        })
    }
}
