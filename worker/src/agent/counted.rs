//! What is counted of calls to agents, for Prometheus. Labels come from closed sets: the mode, and how it ended.

use super::AgentError;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use shared::types::AgentMode;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    mode: &'static str,
    outcome: &'static str,
}

/// Counters. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct AgentCalls(Family<CallLabels, Counter>);

impl AgentCalls {
    /// Puts the figures on the page.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "agent_calls",
            "Calls to agents, by mode and how they ended",
            self.0.clone(),
        );
    }

    /// A call ended; `word` says how, if it did well.
    pub(super) fn called<T>(
        &self,
        mode: AgentMode,
        result: &Result<T, AgentError>,
        word: impl FnOnce(&T) -> &'static str,
    ) {
        let outcome = match result {
            Ok(answer) => word(answer),
            Err(AgentError::Away(_)) => "away",
            Err(AgentError::Wrong(_)) => "wrong",
        };
        self.0.get_or_create(&CallLabels { mode: mode.as_str(), outcome }).inc();
    }
}
