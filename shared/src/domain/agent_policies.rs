//! Policies of an agent for edits and for messages that come while it answers.

use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Policies of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AgentPolicies {
    /// Edits of messages.
    pub edits: EditPolicy,
    /// Messages that come while an earlier one is answered.
    pub overlap: OverlapPolicy,
}

/// What the edit of a message does. Serialized as the words of the column `agents.edits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EditPolicy {
    /// Nothing.
    #[default]
    Ignore,
    /// The agent gets the new text, if the answer to the old one has not begun.
    Rerun,
}

/// What a message does while an earlier one of its conversation is answered. Serialized as the words
/// of the column `agents.overlap`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverlapPolicy {
    /// It waits for its turn.
    #[default]
    Queue,
    /// All messages that wait become one question.
    Merge,
    /// It cancels the answer. All messages that wait become one question.
    Interrupt,
}

/// Failure to parse a policy.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a policy")]
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
