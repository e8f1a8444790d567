//! Counters of calls to agents. Labels: mode and outcome.

use super::{AgentError, FailureKind};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use shared::domain::AgentMode;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    mode: &'static str,
    outcome: &'static str,
}

/// Counters of calls. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct AgentMetrics(Family<CallLabels, Counter>);

impl AgentMetrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register("agent_calls", "Calls to agents, by mode and outcome", self.0.clone());
    }

    /// Counts a call. `label` returns the outcome of a success.
    pub(super) fn record<T>(
        &self,
        mode: AgentMode,
        result: &Result<T, AgentError>,
        label: impl FnOnce(&T) -> &'static str,
    ) {
        let outcome = match result {
            Ok(answer) => label(answer),
            Err(AgentError { kind: FailureKind::Unavailable, .. }) => "away",
            Err(AgentError { kind: FailureKind::Failing, .. }) => "failing",
            Err(AgentError { kind: FailureKind::Unusable, .. }) => "unusable",
            Err(AgentError { kind: FailureKind::Refused, .. }) => "refused",
        };
        self.0.get_or_create(&CallLabels { mode: mode.as_str(), outcome }).inc();
    }
}
