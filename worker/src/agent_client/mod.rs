//! HTTP client of agents. `worker/docs/agents.md` describes the protocol.
//!
//! Called by dispatch. An agent gets a request (mode `reply`) or a webhook as Slack sent it (mode
//! `forward`). A call has the same id in every attempt, since a crash before the commit repeats it.
//! A failure is classified by its consequence for agent and delivery. Redirects are not followed,
//! and addresses are checked by [`ssrf_guard`].

mod approval_request;
mod client;
mod event_filter;
mod event_stream;
mod events;
mod forward;
#[cfg(test)]
mod fuzz;
mod metrics;
mod notification;
mod reply;
mod request;
mod ssrf_guard;

pub use approval_request::AgentAsk;
pub use client::{AgentClient, AgentError, Answer, FailureKind};
pub use event_stream::{AgentStream, StreamEvent};
#[cfg(test)]
pub use events::TaskStatus;
pub use events::{AgentEvent, AgentFailure, Prompt, TaskUpdate};
pub use forward::ForwardResult;
pub use reply::{AgentReply, SessionChange};
pub use request::{AgentRequest, ApprovalAnswer, MessageContent, MessagePart, Subject, Trigger};
pub use ssrf_guard::Networks;
