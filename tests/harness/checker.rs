//! Checks a run against the guarantees, by a pure function over the sent webhooks, the records in
//! Postgres, the calls of the agent and the messages posted in Slack.
//!
//! The input is a [`History`], the result a [`Verdict`]. An accepted message was answered 200: it
//! must not be lost, and its reply must be posted. A refused message was answered 4xx: it must have
//! no effect. All other messages are unknown and may have effects. A message that was not sent must
//! have no effect. A conversation keeps its order, in calls of the agent and in Slack. Repeated
//! posts and calls are counted: only a process that is killed between a call and its record may
//! repeat the call. The user of a command that is not stored gets a notice, since Slack does not
//! resend commands. A run without accepted messages proves nothing and fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

/// Id of a message: its conversation and its position. Positions are assigned in the order of
/// sending. In each conversation one message was accepted before the next was sent.
pub type MessageId = (u32, u32);

/// Result of sending a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceptance {
    /// Answered 200.
    Accepted,
    /// Answered 4xx: refused for good.
    Refused,
    /// Answered with a request to resend, or not at all. The message may be stored.
    Unknown,
}

/// Result of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Answered 200.
    Accepted {
        /// True if its `response_url` was called.
        answered: bool,
    },
    /// Answered with a notice that the command was not stored.
    Notified,
    /// The connection ended without an answer.
    Unknown,
    /// Answered with anything else, as status and body.
    Failed(String),
}

/// Record of a run.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Messages with the result of sending.
    pub sent: BTreeMap<MessageId, Acceptance>,
    /// Number of requests, copies included.
    pub attempts: usize,
    /// Number of requests that were not answered 2xx.
    pub rejected: usize,
    /// Slowest answer.
    pub slowest: Duration,
    /// Completed messages according to Postgres, in order, with the time since the previous one of
    /// the conversation.
    pub done: Vec<(MessageId, Duration)>,
    /// Dead letters according to Postgres.
    pub dead: Vec<MessageId>,
    /// Calls of the agent, in order.
    pub agent_calls: Vec<MessageId>,
    /// Messages posted in Slack, in order.
    pub posted: Vec<MessageId>,
    /// Commands.
    pub commands: Vec<Command>,
}

/// Result of the check of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Messages sent.
    pub offered: usize,
    /// Requests, copies included.
    pub attempts: usize,
    /// Requests that were not answered 2xx.
    pub rejected: usize,
    /// Slowest answer of ingest.
    pub slowest: Duration,
    /// Messages answered 200.
    pub accepted: usize,
    /// Messages with an unknown result.
    pub unknown: usize,
    /// Completed messages.
    pub applied: usize,
    /// Accepted messages that are neither completed nor dead letters.
    pub lost: Vec<MessageId>,
    /// Completed messages whose reply was not posted.
    pub unsent: Vec<MessageId>,
    /// Messages with effects that were never sent or were refused for good.
    pub phantom: Vec<MessageId>,
    /// Dead letters.
    pub dead: Vec<MessageId>,
    /// Messages completed more than once.
    pub doubled: Vec<MessageId>,
    /// Messages posted after a later one of their conversation.
    pub out_of_order: Vec<MessageId>,
    /// Messages that the agent was first called with after a later one of their conversation.
    pub calls_out_of_order: Vec<MessageId>,
    /// Number of repeated posts.
    pub repeated: usize,
    /// Number of repeated calls of the agent.
    pub repeated_calls: usize,
    /// Accepted commands.
    pub commands: usize,
    /// Commands whose user got a notice.
    pub notified: usize,
    /// Accepted commands without an answer, and commands answered with neither a result nor a
    /// notice.
    pub failed_commands: Vec<Command>,
    /// Longest time in which a conversation made no progress.
    pub worst_gap: Duration,
}

impl Verdict {
    /// Returns true if the run kept every guarantee. `repeats` are allowed if a process was killed
    /// or frozen.
    pub fn holds(&self, repeats: bool) -> bool {
        let broken = [
            &self.lost,
            &self.unsent,
            &self.phantom,
            &self.dead,
            &self.doubled,
            &self.out_of_order,
            &self.calls_out_of_order,
        ];
        self.accepted > 0
            && self.failed_commands.is_empty()
            && broken.iter().all(|list| list.is_empty())
            && (repeats || self.repeated == 0)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = self.out_of_order.len() + self.calls_out_of_order.len();
        write!(
            f,
            "offered {} accepted {} applied {} lost {} unsent {} out of order {order} doubled {} sent twice {} called twice {} worst gap {:.1} s",
            self.offered,
            self.accepted,
            self.applied,
            self.lost.len(),
            self.unsent.len(),
            self.doubled.len(),
            self.repeated,
            self.repeated_calls,
            self.worst_gap.as_secs_f64(),
        )?;
        if self.commands + self.notified > 0 {
            write!(f, " commands {} notified {}", self.commands, self.notified)?;
        }
        Ok(())
    }
}

/// Checks a run.
pub fn check(history: &History) -> Verdict {
    let done: BTreeSet<MessageId> = history.done.iter().map(|(id, _)| *id).collect();
    let dead: BTreeSet<MessageId> = history.dead.iter().copied().collect();
    let posted: BTreeSet<MessageId> = history.posted.iter().copied().collect();
    let of = |wanted: Acceptance| {
        let sent = history.sent.iter().filter(move |(_, acceptance)| **acceptance == wanted);
        sent.map(|(id, _)| *id)
    };
    let accepted: Vec<MessageId> = of(Acceptance::Accepted).collect();

    let mut seen = BTreeSet::new();
    let doubled = history.done.iter().map(|(id, _)| *id).filter(|id| !seen.insert(*id)).collect();
    let (out_of_order, repeated) = order(&history.posted);
    let (calls_out_of_order, repeated_calls) = order(&history.agent_calls);
    let possible = |id: &MessageId| {
        matches!(history.sent.get(id), Some(Acceptance::Accepted | Acceptance::Unknown))
    };
    let commands = |wanted: &Command| history.commands.iter().filter(|c| *c == wanted).count();
    let failed = |command: &&Command| {
        matches!(command, Command::Failed(_) | Command::Accepted { answered: false })
    };
    Verdict {
        offered: history.sent.len(),
        attempts: history.attempts,
        rejected: history.rejected,
        slowest: history.slowest,
        accepted: accepted.len(),
        unknown: of(Acceptance::Unknown).count(),
        applied: done.len(),
        lost: accepted
            .iter()
            .copied()
            .filter(|id| !done.contains(id) && !dead.contains(id))
            .collect(),
        unsent: done.iter().copied().filter(|id| !posted.contains(id)).collect(),
        phantom: done.union(&posted).copied().filter(|id| !possible(id)).collect(),
        dead: history.dead.clone(),
        doubled,
        out_of_order,
        calls_out_of_order,
        repeated,
        repeated_calls,
        commands: commands(&Command::Accepted { answered: true }),
        notified: commands(&Command::Notified),
        failed_commands: history.commands.iter().filter(failed).cloned().collect(),
        worst_gap: history.done.iter().map(|(_, gap)| *gap).max().unwrap_or_default(),
    }
}

/// Returns the messages whose first occurrence is after a later one of their conversation, and the
/// number of repeats.
fn order(all: &[MessageId]) -> (Vec<MessageId>, usize) {
    let (mut seen, mut furthest) = (BTreeSet::new(), BTreeMap::<u32, u32>::new());
    let (mut out_of_order, mut repeated) = (Vec::new(), 0);
    for &(conversation, place) in all {
        if !seen.insert((conversation, place)) {
            repeated += 1;
            continue;
        }
        let before = furthest.entry(conversation).or_default();
        if place < *before {
            out_of_order.push((conversation, place));
        }
        *before = place.max(*before);
    }
    (out_of_order, repeated)
}
