//! What a webhook leads to: an [`Outcome`] with effects. The handler decides, the lane carries it out.
//!
//! In: a webhook with its live connection. Out: an outcome. Names neither NATS nor SQL. Calls agents, and nothing
//! else outside; whatever is to change is an effect, and whatever is to be said is one, too. A handler that hangs
//! or panics has an outcome like any other.

mod command;
mod lifecycle;
mod link;
mod message;
mod place;
mod roster;
mod session;
mod spoken;
mod view;
mod whose;

use crate::{Workshop, job::Job, part::Part};
use bytes::Bytes;
use futures_util::FutureExt;
use shared::{
    codec::slack::{Inbound, Parts},
    store::{Connection, Effects},
    types::Outgoing,
};
use std::{panic::AssertUnwindSafe, time::Duration};

/// Longest a handler may take, agent included.
const DEADLINE: Duration = Duration::from_secs(30);

/// How handling ended. A closed set: there is no other end.
pub enum Outcome {
    /// Handled; what is to change, maybe nothing.
    Done(Box<Done>),
    /// The world failed (Postgres, Slack or an agent away): it may work later. Tried by age.
    Retry {
        /// What failed.
        cause: String,
    },
    /// Postgres is away: everything waits for it, and nothing counts meanwhile.
    Pause {
        /// What it said.
        cause: String,
    },
    /// Something has to happen first. Tried by age.
    Park {
        /// What it waits for.
        cause: String,
    },
    /// This webhook failed, and may fail again. Uses up one of its attempts.
    Fault {
        /// How.
        error: String,
    },
    /// It can never work. A person looks.
    Dead {
        /// Why, the same words for all of its sort.
        reason: String,
        /// What is particular about this one.
        error: String,
    },
    /// Not tried, because we stop: somebody else takes it.
    Return,
}

impl Outcome {
    /// Handled, and nothing changes but that it is known to be.
    pub fn done(outcome: &'static str) -> Self {
        Effects { outcome, ..Effects::default() }.into()
    }

    /// The word for logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Outcome::Done(_) => "done",
            Outcome::Retry { .. } => "retry",
            Outcome::Pause { .. } => "pause",
            Outcome::Park { .. } => "park",
            Outcome::Fault { .. } => "fault",
            Outcome::Dead { .. } => "dead",
            Outcome::Return => "return",
        }
    }
}

/// What a handled webhook leads to.
pub struct Done {
    /// What is to change.
    pub effects: Effects,
    /// What Slack waits for in the HTTP response, if it does.
    pub answer: Option<Answer>,
}

/// An answer with a deadline.
pub struct Answer {
    /// The body of the HTTP response.
    pub now: Bytes,
    /// What is said instead when nobody waits any more.
    pub late: Vec<Outgoing>,
}

impl From<Effects> for Outcome {
    fn from(effects: Effects) -> Self {
        Outcome::Done(Box::new(Done { effects, answer: None }))
    }
}

/// What a handler works with.
pub(crate) struct Desk<'a> {
    pub workshop: &'a Workshop,
    pub part: &'a Part,
    pub connection: &'a Connection,
    pub job: &'a Job,
}

/// Handles a webhook.
pub async fn handle(
    workshop: &Workshop,
    part: &Part,
    connection: &Connection,
    job: &Job,
) -> Outcome {
    let desk = Desk { workshop, part, connection, job };
    let handled = AssertUnwindSafe(dispatch(&desk)).catch_unwind();
    match tokio::time::timeout(DEADLINE, handled).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Outcome::Fault { error: "the handler panicked".into() },
        Err(_) => Outcome::Retry { cause: format!("the handler took longer than {DEADLINE:?}") },
    }
}

async fn dispatch(desk: &Desk<'_>) -> Outcome {
    let envelope = &desk.job.envelope;
    match Parts::split(envelope.media, &envelope.body).read() {
        Inbound::Command(command) => command::handle(desk, &command).await,
        Inbound::Event(body) => match (body.kind.get(), &body.event.0) {
            (Some("event_callback"), Some(event)) => match lifecycle::handle(desk, &body, event) {
                Some(outcome) => outcome,
                None => message::handle(desk, &body, event).await,
            },
            (Some("event_callback" | "app_rate_limited"), _) => Outcome::done("ignored"),
            (kind, _) => not_understood(kind.unwrap_or("no type")),
        },
        Inbound::Interaction(interaction) if interaction.kind.get().is_some() => {
            view::handle(desk, &interaction)
        }
        Inbound::Interaction(_) | Inbound::NotUnderstood => {
            not_understood("neither event, command nor interaction")
        }
    }
}

fn not_understood(what: &str) -> Outcome {
    Outcome::Dead {
        reason: "signed by Slack, but not understood".into(),
        error: what.chars().take(80).collect(),
    }
}
