//! Settings of a connection.

use super::Surface;
use serde::{Deserialize, Serialize};

/// Settings of a connection, as stored in the column. Absent fields have the values of [`Default`].
/// Unknown fields come from a newer release and are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Surfaces on which the app links conversations and calls agents.
    pub surfaces: Vec<Surface>,
    /// Greets people who join the workspace.
    pub welcome: bool,
    /// Passes messages of other bots to the agent. A hop counter stops bots that answer each other.
    pub answer_bots: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { surfaces: vec![Surface::Dm, Surface::Channel], welcome: true, answer_bots: false }
    }
}
