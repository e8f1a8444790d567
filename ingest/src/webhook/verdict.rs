//! Results of processing a webhook.

use super::{
    publisher::{PublishError, Stored},
    signature::SignatureError,
};
use crate::directory::DirectoryUnavailableError;
use bytes::Bytes;
use shared::types::Kind;

/// Result of processing a webhook. The HTTP response follows from it.
#[derive(Debug)]
pub enum Verdict {
    /// Stored; no sync response expected.
    Stored(Kind, Stored),
    /// Stored, with the sync response of a worker.
    Relayed(Kind, Stored, Bytes),
    /// Stored; no sync response came in time.
    Unanswered(Kind, Stored),
    /// Verified `url_verification` with this challenge.
    Challenge(String),
    /// `ssl_check=1`; the rest of the body is ignored.
    SslCheck,
    /// Failed verification.
    Unverified(SignatureError),
    /// Unknown connection in the path.
    UnknownConnection,
    /// Verified webhook of a stopped or revoked connection.
    Stopped(Kind),
    /// Verified webhook of the shared route without a live connection.
    Unrouted(Kind),
    /// Request to the shared route of a deployment without shared signing secrets.
    SharedRouteClosed,
    /// Failed lookup of the connection.
    DirectoryUnavailable(DirectoryUnavailableError),
    /// Failed publish.
    NotStored(Kind, PublishError),
    /// Failed publish of a view submission, with the input block that can show an error.
    SubmissionNotStored(String, PublishError),
    /// Body over the size limit.
    TooLarge,
    /// Media type other than JSON and form.
    UnsupportedMediaType,
    /// `Transfer-Encoding` header. Slack sends a length instead.
    TransferEncoding,
    /// Body that was not complete in time.
    BodyTimeout,
    /// Body that ended early.
    BodyIncomplete,
    /// Webhook over the limit of those in flight.
    Overloaded,
}

impl Verdict {
    /// Returns the kind of the webhook, if known.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Verdict::Stored(kind, _)
            | Verdict::Relayed(kind, ..)
            | Verdict::Unanswered(kind, _)
            | Verdict::Stopped(kind)
            | Verdict::Unrouted(kind)
            | Verdict::NotStored(kind, _) => Some(*kind),
            Verdict::SubmissionNotStored(..) => Some(Kind::Interaction),
            _ => None,
        }
    }

    /// Returns the position of a stored webhook.
    pub fn stored(&self) -> Option<Stored> {
        match self {
            Verdict::Stored(_, stored)
            | Verdict::Relayed(_, stored, _)
            | Verdict::Unanswered(_, stored) => Some(*stored),
            _ => None,
        }
    }

    /// Returns the error of a failed publish.
    pub fn publish_error(&self) -> Option<&PublishError> {
        match self {
            Verdict::NotStored(_, error) | Verdict::SubmissionNotStored(_, error) => Some(error),
            _ => None,
        }
    }
}
