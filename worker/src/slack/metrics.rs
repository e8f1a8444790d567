//! Counters of calls to Slack. Labels: method and outcome.

use super::{ApiResult, ResponseUrlResult};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    method: &'static str,
    outcome: &'static str,
}

/// Counters of calls. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct SlackMetrics {
    calls: Family<CallLabels, Counter>,
    reconciliations: Family<CallLabels, Counter>,
}

/// Result of reconciling an ambiguous message.
#[derive(Debug, Clone, Copy)]
pub enum Reconciliation {
    Found,
    Absent,
    /// The message was sent again without a look-up and may appear twice.
    Resent,
}

impl SlackMetrics {
    /// Registers the counters. Reconciliations start at zero, so that `increase` counts the first.
    pub fn register(&self, registry: &mut Registry) {
        for outcome in ["found", "absent", "resent"] {
            drop(
                self.reconciliations
                    .get_or_create(&CallLabels { method: "chat.postMessage", outcome }),
            );
        }
        registry.register(
            "slack_api_requests",
            "Calls to Slack, by method and outcome",
            self.calls.clone(),
        );
        registry.register(
            "outbox_ambiguous_sends",
            "Messages that may have been sent before, by method and result of the look-up",
            self.reconciliations.clone(),
        );
    }

    pub fn record_call(&self, method: &'static str, result: &ApiResult) {
        let outcome = match result {
            ApiResult::Succeeded(_) => "done",
            ApiResult::Refused(..) => "refused",
            ApiResult::RateLimited(_) => "limited",
            ApiResult::NotSent(_) => "not_sent",
            ApiResult::Ambiguous(_) => "unclear",
        };
        self.calls.get_or_create(&CallLabels { method, outcome }).inc();
    }

    pub fn record_response_url(&self, result: &ResponseUrlResult) {
        let outcome = match result {
            ResponseUrlResult::Succeeded => "done",
            ResponseUrlResult::UsedUp(_) => "used_up",
            ResponseUrlResult::Refused(_) => "refused",
            ResponseUrlResult::RateLimited(_) => "limited",
            ResponseUrlResult::NotSent(_) => "not_sent",
            ResponseUrlResult::Ambiguous(_) => "unclear",
        };
        self.calls.get_or_create(&CallLabels { method: "response_url", outcome }).inc();
    }

    pub fn record_reconciliation(&self, method: &'static str, result: Reconciliation) {
        let outcome = match result {
            Reconciliation::Found => "found",
            Reconciliation::Absent => "absent",
            Reconciliation::Resent => "resent",
        };
        self.reconciliations.get_or_create(&CallLabels { method, outcome }).inc();
    }
}
