//! What is counted of calls to agents, for Prometheus. Labels come from closed sets: the mode, and how it ended.

use super::{AgentError, FailureKind};
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
pub struct AgentMetrics(Family<CallLabels, Counter>);

impl AgentMetrics {
    /// Puts the figures on the page.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "agent_calls",
            "Calls to agents, by mode and how they ended",
            self.0.clone(),
        );
    }

    /// A call ended; `word` says how, if it did well.
    pub(super) fn record<T>(
        &self,
        mode: AgentMode,
        result: &Result<T, AgentError>,
        word: impl FnOnce(&T) -> &'static str,
    ) {
        let outcome = match result {
            Ok(answer) => word(answer),
            Err(AgentError { kind: FailureKind::Unavailable, .. }) => "away",
            Err(AgentError { kind: FailureKind::Failing, .. }) => "failing",
            Err(AgentError { kind: FailureKind::Unusable, .. }) => "unusable",
            Err(AgentError { kind: FailureKind::Refused, .. }) => "refused",
        };
        self.0.get_or_create(&CallLabels { mode: mode.as_str(), outcome }).inc();
    }
}
