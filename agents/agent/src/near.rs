//! A bus that serves near roles near: what a role in this process can do is handed over in-process, without encoding
//! or copying; everything else goes over the wire.
//!
//! Consumers of near queues and servers of near services take from both sides, since others may send from afar.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schema::messages::Message;

use crate::bus::*;
use crate::local::LocalBus;

/// Which queues and services are served in this process.
#[derive(Debug, Clone, Default)]
pub struct Near {
    /// Queues with a consumer in this process.
    pub queues: Vec<Queue>,
    /// Services with a server in this process.
    pub services: Vec<Service>,
}

/// A local bus in front of one over the wire.
#[derive(Debug)]
pub struct NearBus {
    near: Near,
    local: LocalBus,
    far: Arc<dyn Bus>,
}

impl NearBus {
    /// Puts `local` in front of `far`.
    pub fn new(near: Near, local: LocalBus, far: Arc<dyn Bus>) -> Self {
        Self { near, local, far }
    }

    fn has_queue(&self, queue: &Queue) -> bool {
        self.near.queues.contains(queue)
    }

    fn has_service(&self, service: &Service) -> bool {
        self.near.services.contains(service)
    }
}

/// Takes from both sides in turn, so that a busy one cannot starve the other.
struct BothDeliveries {
    local: Box<dyn Deliveries>,
    far: Box<dyn Deliveries>,
    far_first: bool,
}

#[async_trait]
impl Deliveries for BothDeliveries {
    async fn next(&mut self) -> Result<Delivery, BusError> {
        let (local, far) = (self.local.next(), self.far.next());
        let (first, second) = match self.far_first {
            true => (far, local),
            false => (local, far),
        };
        let next = tokio::select! {
            biased;
            delivery = first => delivery,
            delivery = second => delivery,
        };
        self.far_first = !self.far_first;
        next
    }
}

/// As [`BothDeliveries`].
struct BothRequests {
    local: Box<dyn Requests>,
    far: Box<dyn Requests>,
    far_first: bool,
}

#[async_trait]
impl Requests for BothRequests {
    async fn next(&mut self) -> Result<Request, BusError> {
        let (local, far) = (self.local.next(), self.far.next());
        let (first, second) = match self.far_first {
            true => (far, local),
            false => (local, far),
        };
        let next = tokio::select! {
            biased;
            request = first => request,
            request = second => request,
        };
        self.far_first = !self.far_first;
        next
    }
}

#[async_trait]
impl Bus for NearBus {
    async fn publish(&self, queue: &Queue, message: Message) -> Result<(), BusError> {
        match self.has_queue(queue) {
            true => self.local.publish(queue, message).await,
            false => self.far.publish(queue, message).await,
        }
    }

    async fn consume(&self, queue: &Queue, window: usize) -> Result<Box<dyn Deliveries>, BusError> {
        let far = self.far.consume(queue, window).await?;
        match self.has_queue(queue) {
            true => {
                let local = self.local.consume(queue, window).await?;
                Ok(Box::new(BothDeliveries { local, far, far_first: false }))
            }
            false => Ok(far),
        }
    }

    async fn retire(&self, queue: &Queue) -> Result<(), BusError> {
        self.local.retire(queue).await?;
        self.far.retire(queue).await
    }

    async fn request(
        &self,
        service: &Service,
        message: Message,
        limit: Duration,
    ) -> Result<Message, BusError> {
        match self.has_service(service) {
            true => self.local.request(service, message, limit).await,
            false => self.far.request(service, message, limit).await,
        }
    }

    async fn serve(&self, service: &Service) -> Result<Box<dyn Requests>, BusError> {
        let far = self.far.serve(service).await?;
        match self.has_service(service) {
            true => {
                Ok(Box::new(BothRequests { local: self.local.serve(service).await?, far, far_first: false }))
            }
            false => Ok(far),
        }
    }

    async fn broadcast(&self, topic: &Topic, message: Message) -> Result<(), BusError> {
        self.far.broadcast(topic, message).await
    }

    async fn subscribe(&self, topic: &Topic) -> Result<Box<dyn Broadcasts>, BusError> {
        self.far.subscribe(topic).await
    }
}
