//! Results of processing a webhook.

use super::{
    NoticePlace,
    publisher::{PublishError, Stored},
    signature::SignatureError,
};
use crate::directory::DirectoryUnavailableError;
use bytes::Bytes;
use shared::{domain::WebhookKind, slack::SyncResponseKind};
use std::time::Duration;

/// Result of processing a webhook. The HTTP response follows from it.
#[derive(Debug)]
pub enum Verdict {
    /// Stored; no sync response expected.
    Stored(WebhookKind, Stored),
    /// Stored, with the sync response of a worker.
    Relayed(WebhookKind, Stored, Bytes),
    /// Stored; no sync response of this kind came in time.
    Unanswered(SyncResponseKind, WebhookKind, Stored),
    /// Verified `url_verification` with this challenge.
    Challenge(String),
    /// `ssl_check=1`; the rest of the body is ignored.
    SslCheck,
    /// Failed verification.
    Unverified(SignatureError),
    /// Unknown connection in the path.
    UnknownConnection,
    /// Verified webhook of a stopped or revoked connection.
    Stopped(WebhookKind),
    /// Verified webhook of the shared route without a connection that accepts it.
    Unrouted(WebhookKind),
    /// Verified webhook whose body names another app or installation than the connection's.
    OtherInstallation(WebhookKind),
    /// Request that Tidegate forwarded to itself as an agent.
    Forwarded,
    /// Request to the shared route of a deployment without shared apps.
    SharedRouteClosed,
    /// Failed lookup of the connection.
    DirectoryUnavailable(DirectoryUnavailableError),
    /// Failed publish, with the place where the person who acted sees a notice.
    NotStored(WebhookKind, NoticePlace, PublishError),
    /// Webhook over the quota of its connection and workspace, with the place of the notice and the
    /// time until the quota has room.
    OverQuota(WebhookKind, NoticePlace, Duration),
    /// Body over the size limit, or longer than its `Content-Length`.
    TooLarge,
    /// Media type other than JSON and form.
    UnsupportedMediaType,
    /// `Transfer-Encoding` header. Slack sends a length instead.
    TransferEncoding,
    /// Body that was not complete in time.
    BodyTimeout,
    /// Body that ended early.
    BodyIncomplete,
    /// Body for which the budget of unverified bodies had no room.
    BodyBudgetExhausted,
    /// Verified webhook over the limits of those in flight.
    Overloaded,
}

impl Verdict {
    /// Returns the kind of the webhook, if known.
    pub fn kind(&self) -> Option<WebhookKind> {
        match self {
            Verdict::Stored(kind, _)
            | Verdict::Relayed(kind, ..)
            | Verdict::Unanswered(_, kind, _)
            | Verdict::Stopped(kind)
            | Verdict::OtherInstallation(kind)
            | Verdict::Unrouted(kind)
            | Verdict::NotStored(kind, ..)
            | Verdict::OverQuota(kind, ..) => Some(*kind),
            _ => None,
        }
    }

    /// Returns the confirmation of a stored webhook.
    pub fn stored(&self) -> Option<Stored> {
        match self {
            Verdict::Stored(_, stored)
            | Verdict::Relayed(_, stored, _)
            | Verdict::Unanswered(.., stored) => Some(*stored),
            _ => None,
        }
    }

    /// Returns the error of a failed publish.
    pub fn publish_error(&self) -> Option<&PublishError> {
        match self {
            Verdict::NotStored(.., error) => Some(error),
            _ => None,
        }
    }
}
