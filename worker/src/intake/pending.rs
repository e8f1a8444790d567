//! Messages of a partition that are read and not committed, bounded by the byte budget.

use super::batch::BATCH_WEBHOOKS_MAX;
use crate::{context::ByteBudget, decider::ReadWebhook};
use async_nats::jetstream;
use shared::{
    store::{DeadLetter, LastMessage},
    stream::{
        self, DEDUP_KEY_HEADER, DecodeError, Envelope, ReaderEvent, StreamPosition, StreamReader,
        StreamState,
    },
};
use std::collections::VecDeque;
use time::OffsetDateTime;
use tokio::sync::OwnedSemaphorePermit;

/// Number of copies of a body in memory: as read, split, encrypted and sent.
const BODY_COPIES: usize = 4;

/// Queue of pending messages, in stream order.
pub struct PendingMessages {
    queue: VecDeque<Pending>,
    /// Message that was read but did not fit into the byte budget.
    unread: Option<(StreamPosition, Box<jetstream::Message>)>,
    /// Number of stored messages past the last one that was read.
    waiting: u64,
    budget: ByteBudget,
}

struct Pending {
    message: PendingMessage,
    _permit: OwnedSemaphorePermit,
}

/// Decoded pending message.
pub enum PendingMessage {
    Webhook(Box<ReadWebhook>),
    /// Message that is not an envelope.
    Undecodable {
        last: LastMessage,
        dead: Box<DeadLetter>,
    },
    /// Webhook written by a newer release.
    Newer {
        sequence: u64,
        schema: u16,
    },
}

pub enum ReadResult {
    /// Messages were added.
    Messages,
    /// The stream was opened.
    Opened(StreamState),
    /// All messages stored before this time are read.
    CaughtUp(OffsetDateTime),
}

impl PendingMessages {
    pub fn new(budget: ByteBudget) -> Self {
        Self { queue: VecDeque::new(), unread: None, waiting: 0, budget }
    }

    /// Returns whether no message is pending.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Returns the first pending message.
    pub fn first(&self) -> Option<&PendingMessage> {
        self.queue.front().map(|pending| &pending.message)
    }

    /// Returns the webhooks before the first message that is not a webhook.
    pub fn webhooks(&self) -> impl Iterator<Item = &ReadWebhook> + Clone {
        self.queue.iter().map_while(|pending| match &pending.message {
            PendingMessage::Webhook(read) => Some(&**read),
            _ => None,
        })
    }

    /// Removes the first `count` messages, which are committed.
    pub fn remove(&mut self, count: usize) {
        self.queue.drain(..count);
    }

    /// Returns the number of stored messages past the cursor, and when the oldest was stored.
    pub fn lag(&self) -> (u64, Option<OffsetDateTime>) {
        let oldest = self.webhooks().next().map(|read| read.stored_at);
        (self.waiting + self.queue.len() as u64, oldest)
    }

    /// Waits for a message, then reads without waiting until a batch is full. Cancel-safe.
    pub async fn read(&mut self, reader: &mut StreamReader) -> ReadResult {
        match self.unread.take() {
            Some((at, message)) => self.add(at, message).await,
            None => match reader.next().await {
                ReaderEvent::Opened(state) => return ReadResult::Opened(state),
                ReaderEvent::CaughtUp(_, at) => {
                    self.waiting = 0;
                    return ReadResult::CaughtUp(at);
                }
                ReaderEvent::Message(at, message) => self.add(at, message).await,
            },
        }
        while self.queue.len() < BATCH_WEBHOOKS_MAX {
            // Other events are handled after the commit of these messages.
            let Some(ReaderEvent::Message(at, message)) = reader.next_if_ready().await else {
                break;
            };
            if !self.add_if_room(at, message) {
                break;
            }
        }
        ReadResult::Messages
    }

    /// Adds a message if the budget has room, and keeps it for the next read otherwise.
    fn add_if_room(&mut self, at: StreamPosition, message: Box<jetstream::Message>) -> bool {
        match self.budget.try_acquire(message.payload.len() * BODY_COPIES) {
            Some(permit) => {
                self.push(at, &message, permit);
                true
            }
            None => {
                self.unread = Some((at, message));
                false
            }
        }
    }

    async fn add(&mut self, at: StreamPosition, message: Box<jetstream::Message>) {
        let bytes = message.payload.len() * BODY_COPIES;
        // The message stays in `self` while it waits: dropping this future loses nothing.
        self.unread = Some((at, message));
        let permit = self.budget.acquire(bytes).await;
        if let (Some(permit), Some((at, message))) = (permit, self.unread.take()) {
            self.push(at, &message, permit);
        }
    }

    fn push(
        &mut self,
        at: StreamPosition,
        message: &jetstream::Message,
        permit: OwnedSemaphorePermit,
    ) {
        self.waiting = at.waiting;
        self.queue.push_back(Pending { message: decode(at, message), _permit: permit });
    }
}

fn decode(at: StreamPosition, message: &jetstream::Message) -> PendingMessage {
    let StreamPosition { sequence, stored_at, .. } = at;
    let headers = message.headers.as_ref();
    match Envelope::decode(&message.subject, headers, message.payload.clone()) {
        Ok(envelope) => {
            PendingMessage::Webhook(Box::new(ReadWebhook { sequence, stored_at, envelope }))
        }
        Err(DecodeError::Newer(schema)) => PendingMessage::Newer { sequence, schema },
        Err(undecodable) => {
            let id = headers.and_then(|headers| headers.get(DEDUP_KEY_HEADER));
            let key = id.map(|id| id.as_str().to_owned()).unwrap_or_default();
            let connection = stream::parse_subject(&message.subject);
            let dead = DeadLetter {
                sequence: sequence as i64,
                subject: message.subject.to_string(),
                connection: connection.map(|(_, connection)| connection.to_string()),
                reason: undecodable.to_string(),
                headers: stream::headers_to_pairs(headers),
                body: message.payload.to_vec(),
                ..DeadLetter::default()
            };
            let last = LastMessage { sequence, key, stored_at };
            PendingMessage::Undecodable { last, dead: Box::new(dead) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_nats::ConnectOptions;
    use futures_util::FutureExt;

    /// Bytes of each message.
    const BYTES: usize = 1024;

    #[tokio::test]
    async fn reads_within_byte_budget() {
        let client = ConnectOptions::new().retry_on_initial_connect().connect("127.0.0.1:1").await;
        let context = jetstream::new(client.expect("a client without a connection"));
        let message = |sequence| {
            let message = async_nats::Message {
                subject: "slack.in.1.none".into(),
                reply: None,
                payload: vec![b' '; BYTES].into(),
                headers: None,
                status: None,
                description: None,
                length: BYTES,
            };
            let stored_at = OffsetDateTime::UNIX_EPOCH;
            let at = StreamPosition { sequence, stored_at, waiting: 0 };
            (at, Box::new(jetstream::Message { message, context: context.clone() }))
        };
        let add_if_room = |pending: &mut PendingMessages, sequence| {
            let (at, message) = message(sequence);
            pending.add_if_room(at, message)
        };
        let budget = ByteBudget::new(2 * BODY_COPIES * BYTES);
        let mut pending = PendingMessages::new(budget.clone());
        let mut other = PendingMessages::new(budget.clone());
        assert!(add_if_room(&mut pending, 1) && add_if_room(&mut other, 1));
        assert!(!add_if_room(&mut pending, 2), "the budget is used");
        assert_eq!((pending.queue.len(), budget.in_use()), (1, 2 * BODY_COPIES * BYTES));
        let (at, message) = pending.unread.take().expect("the message is kept");
        assert!(pending.add(at, message).now_or_never().is_none(), "it waits for room");
        other.remove(1);
        let (at, message) = pending.unread.take().expect("the message is kept");
        assert!(pending.add(at, message).now_or_never().is_some());
        assert_eq!(pending.queue.len(), 2);
    }
}
