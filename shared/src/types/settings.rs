//! What an operator may decide about one connection.

use serde::{Deserialize, Serialize};

/// The settings of a connection, as the column holds them. What is absent is as [`Default`] has it; what is unknown was
/// written by a newer release, and is left to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Whether what other bots say reaches the agent. Two that answer each other are stopped by the hops they count.
    pub answer_bots: bool,
}
