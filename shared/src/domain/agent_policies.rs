//! Policies of an agent for edits and for messages that arrive while it answers.

use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Policies of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AgentPolicies {
    /// Edits of messages.
    pub edits: EditPolicy,
    /// Messages that arrive while an earlier one is answered.
    pub overlap: OverlapPolicy,
}

/// Handling of edits of messages. Serialized as the values of the column `agents.edits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EditPolicy {
    /// Edits have no effect.
    #[default]
    Ignore,
    /// The agent receives the new text, unless the answer to the old text has begun.
    Rerun,
}

/// Handling of messages that arrive while an earlier one of their conversation is answered.
/// Serialized as the values of the column `agents.overlap`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverlapPolicy {
    /// Messages are answered one after another.
    #[default]
    Queue,
    /// Waiting messages are answered together.
    Merge,
    /// A new message cancels the answer. Waiting messages are answered together.
    Interrupt,
}

/// Failure to parse a policy.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a policy for edits (ignore, rerun) or overlap (queue, merge, interrupt)")]
pub struct UnknownPolicyError(String);

impl EditPolicy {
    /// Returns the policy as stored.
    pub fn as_str(self) -> &'static str {
        match self {
            EditPolicy::Ignore => "ignore",
            EditPolicy::Rerun => "rerun",
        }
    }
}

impl OverlapPolicy {
    /// Returns the policy as stored.
    pub fn as_str(self) -> &'static str {
        match self {
            OverlapPolicy::Queue => "queue",
            OverlapPolicy::Merge => "merge",
            OverlapPolicy::Interrupt => "interrupt",
        }
    }
}

impl FromStr for EditPolicy {
    type Err = UnknownPolicyError;
    fn from_str(text: &str) -> Result<Self, UnknownPolicyError> {
        let policies = [EditPolicy::Ignore, EditPolicy::Rerun];
        let found = policies.into_iter().find(|policy| policy.as_str() == text);
        found.ok_or_else(|| UnknownPolicyError(text.to_owned()))
    }
}

impl FromStr for OverlapPolicy {
    type Err = UnknownPolicyError;
    fn from_str(text: &str) -> Result<Self, UnknownPolicyError> {
        let policies = [OverlapPolicy::Queue, OverlapPolicy::Merge, OverlapPolicy::Interrupt];
        let found = policies.into_iter().find(|policy| policy.as_str() == text);
        found.ok_or_else(|| UnknownPolicyError(text.to_owned()))
    }
}
