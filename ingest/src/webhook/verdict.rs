//! Results of processing a webhook.

use crate::{
    directory::Away,
    webhook::{
        publisher::{NotStored, Stored},
        signature::Rejected,
    },
};
use bytes::Bytes;
use shared::types::Kind;

/// How a webhook's way through ingest ended.
#[derive(Debug)]
pub enum Verdict {
    /// JetStream holds it.
    Stored(Kind, Stored),
    /// JetStream holds it, and a worker answered in time.
    Relayed(Kind, Stored, Bytes),
    /// JetStream holds it; Slack wants an answer, and none came in time.
    Unanswered(Kind, Stored),
    /// `url_verification`, verified: the challenge goes back.
    Challenge(String),
    /// `ssl_check=1`: nothing else was read.
    SslCheck,
    /// Not Slack's, or not of our day.
    Unverified(Rejected),
    /// The path names no connection.
    UnknownConnection,
    /// Verified, but the connection was switched off.
    Stopped(Kind),
    /// Verified, but the shared route knows no live connection for it.
    Unrouted(Kind),
    /// The shared route has no secrets here.
    SharedRouteClosed,
    /// Nobody could say whether there is such a connection.
    DirectoryAway(Away),
    /// JetStream did not confirm it in time.
    NotStored(Kind, NotStored),
    /// Neither did it a view's submission; an error can be shown at this input block of the view.
    SubmissionNotStored(String, NotStored),
    /// Larger than a webhook may be.
    TooLarge,
    /// Neither JSON nor a form.
    MediaType,
    /// Slack names the length; a body without one is not Slack's.
    TransferEncoding,
    /// The body did not come in time.
    Slow,
    /// The body broke off.
    Broken,
    /// As many webhooks as we can carry are in flight.
    Overloaded,
}

impl Verdict {
    /// What sort of webhook it was, if that was found out.
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

    /// Where it lies, if it was stored.
    pub fn stored(&self) -> Option<Stored> {
        match self {
            Verdict::Stored(_, stored)
            | Verdict::Relayed(_, stored, _)
            | Verdict::Unanswered(_, stored) => Some(*stored),
            _ => None,
        }
    }

    /// Why it was not, if it was to be.
    pub fn not_stored(&self) -> Option<&NotStored> {
        match self {
            Verdict::NotStored(_, error) | Verdict::SubmissionNotStored(_, error) => Some(error),
            _ => None,
        }
    }
}
