//! What a webhook leads to: an [`Outcome`] with effects. The handler decides, the lane carries it out.
//!
//! In: a webhook with its live connection. Out: an outcome. Names neither NATS nor SQL. Tidegate's own business (its command,
//! the life of an installation) is done here; all else goes to the [`Handler`]: agents, or what a Rust team puts in
//! their place. Whatever is to change is an effect, and whatever is to be said is one, too. A handler that hangs or panics
//! has an outcome like any other.

mod agents;
mod command;
mod forward;
mod late;
mod lifecycle;
mod link;
mod message;
mod place;
mod roster;
mod session;
mod spoken;
mod view;
mod whose;

pub use agents::AskAgents;

use crate::{Workshop, job::Job, part::Part};
use bytes::Bytes;
use futures_util::FutureExt;
use shared::{
    codec::{
        envelope::Envelope,
        slack::{EventBody, Inbound, Parts},
    },
    store::{Connection, Effects, StoreError},
    telemetry::Chain,
    types::Outgoing,
};
use std::{panic::AssertUnwindSafe, pin::Pin, sync::Arc};

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

    /// Handled, and this is said.
    pub fn say(say: Vec<Outgoing>) -> Self {
        Effects { say, outcome: "done", ..Effects::default() }.into()
    }

    /// Handled, and this goes into Slack's own request: what a view shows, what a menu offers. When nobody waits any more,
    /// `late` is said instead.
    pub fn answer(now: Bytes, late: Vec<Outgoing>) -> Self {
        let effects = Effects { outcome: "done", ..Effects::default() };
        Outcome::Done(Box::new(Done { effects, answer: Some(Answer { now, late }) }))
    }

    /// The store did not give what handling needs. Away, it is waited for; a row that makes no sense stays so until a person
    /// mends it, and must not hold up more than its own conversation meanwhile.
    pub fn of_store(error: &StoreError) -> Self {
        let cause = Chain(error).to_string();
        match error {
            StoreError::Inconsistent { .. } => Outcome::Retry { cause },
            _ => Outcome::Pause { cause },
        }
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

/// Decides what a webhook leads to.
///
/// Called for every webhook that is none of Tidegate's own business, one at a time per conversation, in the order in which
/// they were accepted, on whichever worker owns the conversation. It may be called again for the same webhook: after a
/// crash before its effects were committed, or when it asked for that. So whatever it does outside has to go by
/// [`Desk::id`]; what it returns as effects happens once.
pub trait Handler: Send + Sync + 'static {
    /// Handles a webhook. `inbound` is what stands in it, as far as Tidegate reads it; all of it is [`Desk::envelope`]'s body.
    fn handle(
        &self,
        desk: &Desk<'_>,
        inbound: &Inbound<'_>,
    ) -> impl Future<Output = Outcome> + Send;

    /// True of a handler that asks [`Desk::is_done`] itself, before it calls anything outside: it is then not asked for the
    /// many webhooks that lead to no call. Of any other handler it is asked before each.
    fn asks_itself(&self) -> bool {
        false
    }
}

/// A handler of whatever type. Cheap to clone.
#[derive(Clone)]
pub struct AnyHandler(Arc<dyn Erased>);

impl AnyHandler {
    /// This one.
    pub fn new(handler: impl Handler) -> Self {
        Self(Arc::new(handler))
    }
}

type Handling<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// [`Handler`], callable without its type.
trait Erased: Send + Sync {
    fn handle<'a>(&'a self, desk: &'a Desk<'a>, inbound: &'a Inbound<'a>) -> Handling<'a>;
    fn asks_itself(&self) -> bool;
}

impl<H: Handler> Erased for H {
    fn handle<'a>(&'a self, desk: &'a Desk<'a>, inbound: &'a Inbound<'a>) -> Handling<'a> {
        Box::pin(Handler::handle(self, desk, inbound))
    }

    fn asks_itself(&self) -> bool {
        Handler::asks_itself(self)
    }
}

/// A webhook with all that a handler works with.
pub struct Desk<'a> {
    pub(crate) workshop: &'a Workshop,
    pub(crate) part: &'a Part,
    pub(crate) connection: &'a Connection,
    pub(crate) job: &'a Job,
}

impl Desk<'_> {
    /// The same however often this webhook comes to a handler, and no other's: what to recognise a repeat by.
    pub fn id(&self) -> &str {
        self.job.envelope.dedupe.as_str()
    }

    /// Whether this webhook's effects are in force already: after a crash it comes again. To be asked before anything outside
    /// is called; effects are safe without, the commit leaves them out.
    pub async fn is_done(&self) -> Result<bool, StoreError> {
        if self.job.once_more {
            return Ok(false);
        }
        self.workshop.seen.is_seen(&self.part.owner.scope, &self.job.envelope.dedupe).await
    }

    /// The outcome of what need not be handled, or can't be told: whether it is done.
    pub(crate) async fn settled(&self) -> Option<Outcome> {
        match self.is_done().await {
            Ok(false) => None,
            Ok(true) => Some(Outcome::done("done")),
            Err(error) => Some(Outcome::of_store(&error)),
        }
    }

    /// Whether this is a dry run of a replay: then nothing outside may be called, and nothing of the outcome comes true.
    pub fn is_dry_run(&self) -> bool {
        self.workshop.agents.is_recording()
    }

    /// Whose it is, its tokens and settings.
    pub fn connection(&self) -> &Connection {
        self.connection
    }

    /// The webhook as it was stored: what sort it is, when it came, the bytes Slack signed.
    pub fn envelope(&self) -> &Envelope {
        &self.job.envelope
    }
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
    let deadline = workshop.handler_deadline;
    match tokio::time::timeout(deadline, handled).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Outcome::Fault { error: "the handler panicked".into() },
        Err(_) => Outcome::Retry { cause: format!("the handler took longer than {deadline:?}") },
    }
}

async fn dispatch(desk: &Desk<'_>) -> Outcome {
    let envelope = &desk.job.envelope;
    let parts = Parts::split(envelope.media, &envelope.body);
    let inbound = parts.read();
    match &inbound {
        Inbound::Command(command) if command.command == desk.workshop.command => {
            command::handle(desk, command).await
        }
        Inbound::Event(body) => match of_the_installation(desk, body) {
            Some(outcome) => handed_on_too(desk, &inbound, outcome).await,
            None => to_handler(desk, &inbound).await,
        },
        Inbound::Command(_) | Inbound::Interaction(_) | Inbound::NotUnderstood => {
            to_handler(desk, &inbound).await
        }
    }
}

async fn to_handler(desk: &Desk<'_>, inbound: &Inbound<'_>) -> Outcome {
    let handler = &desk.workshop.handler.0;
    if !handler.asks_itself()
        && let Some(outcome) = desk.settled().await
    {
        return outcome;
    }
    handler.handle(desk, inbound).await
}

fn of_the_installation(desk: &Desk<'_>, body: &EventBody<'_>) -> Option<Outcome> {
    let event = body.event.0.as_ref().filter(|_| body.kind.get() == Some("event_callback"))?;
    lifecycle::handle(desk, body, event)
}

/// An app behind us hears of what happens to the installation, too; not of its end, which must not wait for an app.
async fn handed_on_too(desk: &Desk<'_>, inbound: &Inbound<'_>, outcome: Outcome) -> Outcome {
    let Inbound::Event(body) = inbound else { return outcome };
    let event = body.event.0.as_ref().and_then(|event| event.kind.get());
    if matches!(event, Some("app_uninstalled" | "tokens_revoked")) {
        return outcome;
    }
    match agents::app(desk, inbound).await {
        Ok(None) => outcome,
        Ok(Some(app)) => match forward::handle(desk, &app, inbound).await {
            Outcome::Done(_) => outcome,
            not_handed_on => not_handed_on,
        },
        Err(error) => Outcome::of_store(&error),
    }
}

fn not_understood(what: &str) -> Outcome {
    Outcome::Dead {
        reason: "signed by Slack, but not understood".into(),
        error: what.chars().take(80).collect(),
    }
}
