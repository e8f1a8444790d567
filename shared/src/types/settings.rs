//! What an operator may decide about one connection.

use super::Surface;
use serde::{Deserialize, Serialize};

/// The settings of a connection, as the column holds them. What is absent is as [`Default`] has it; what is unknown was
/// written by a newer release, and is left to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Where it works; elsewhere it neither links nor asks an agent.
    pub surfaces: Vec<Surface>,
    /// Whether who joins the workspace is greeted.
    pub welcome: bool,
    /// Whether what other bots say reaches the agent. Two that answer each other are stopped by the hops they count.
    pub answer_bots: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { surfaces: vec![Surface::Dm, Surface::Channel], welcome: true, answer_bots: false }
    }
}
