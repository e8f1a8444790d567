//! Reads the stream, keeps conversations in order, handles each webhook once, replies to Slack. A webhook
//! passes the files in this order:
//!
//! ```text
//! lease      owns partitions, each under an epoch
//! read       a partition's log, from its cursor on; generation: when the stream is another
//! lane       one at a time per conversation; park: those that are set aside
//! work       one try of a webhook, and what follows; slots: who may run now
//! hydrate    the live connection, or why there is none
//! handle     what to do: an outcome with effects
//! reply      the few answers that go into Slack's own request
//! commit     effects → one fenced transaction; group: many together; seen: asked first, also together (see `together`)
//! deliver    outbox → Slack, in order; say: one thing, and what follows from Slack's answer; settle: written down
//! ```
//!
//! A partition in hand is a `part`, a webhook in hand a `job`. Beside the way: `tidy` makes room, `redrive` gives the dead
//! one more try, `replay` handles a stretch of the stream once more, `sweep` keeps ingest's directory true, `slack` and
//! `agent` are the two things outside that are called, `health` and `metrics` tell how it goes. `start` is the `main` of a
//! worker, for whoever has a [`handle::Handler`] of their own.

pub mod part;
pub mod job;
pub mod lease;
pub mod read;
pub mod generation;
pub mod lane;
pub mod park;
pub mod work;
pub mod slots;
pub mod breaker;
pub mod hydrate;
pub mod handle;
pub mod reply;
pub mod commit;
pub mod group;
pub mod seen;
pub mod together;
pub mod redrive;
pub mod replay;
pub mod deliver;
pub mod say;
pub mod settle;
pub mod refusals;
pub mod slack;
pub mod agent;
pub mod sweep;
pub mod tidy;
pub mod metrics;
pub mod health;
pub mod start;
pub mod config;

use shared::store::Store;
use std::sync::Arc;

/// What every stage of a worker uses. Made once in `main`; clones share it.
#[derive(Clone)]
pub struct Workshop {
    /// Postgres.
    pub store: Store,
    /// NATS, for answers that go into an HTTP response.
    pub nats: async_nats::Client,
    /// Slack's Web API and `response_url`s.
    pub slack: slack::Slack,
    /// A rotating token is over: it is refreshed at once.
    pub token_is_over: Arc<tokio::sync::Notify>,
    /// How often Slack refused whose token.
    pub refusals: refusals::Refusals,
    /// Agents' endpoints.
    pub agents: agent::Agents,
    /// What decides about all that is not our own business.
    pub handler: handle::AnyHandler,
    /// Longest it may take for one webhook.
    pub handler_deadline: std::time::Duration,
    /// The slash command we answer to, with its slash.
    pub command: String,
    /// Who may run now.
    pub slots: slots::Slots,
    /// Connections that were needed lately.
    pub hydrator: Arc<hydrate::Hydrator>,
    /// Whether it is the webhooks that are broken.
    pub breaker: breaker::Breaker,
    /// What is counted.
    pub metrics: Arc<metrics::Metrics>,
    /// Commits that decide nothing, made together.
    pub groups: group::Groups,
    /// Questions whether webhooks are done already, asked together.
    pub seen: seen::Seen,
    /// How calls to Slack ended, written down together.
    pub settling: settle::Settling,
}
