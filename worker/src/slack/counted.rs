//! What is counted of calls to Slack, for Prometheus. Labels come from closed sets: methods, and how they ended.

use super::{Called, Responded};
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

/// Counters. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Counted {
    calls: Family<CallLabels, Counter>,
    doubts: Family<CallLabels, Counter>,
}

/// How a doubt whether something was said was settled.
#[derive(Debug, Clone, Copy)]
pub enum DoubtSettled {
    /// Slack has it: it was said.
    Found,
    /// Slack does not have it.
    Absent,
    /// Slack can't be asked: said again, maybe twice.
    Resent,
}

impl Counted {
    /// Puts the figures on the page. Doubts are there from the start: their first time is to be a change.
    pub fn register(&self, registry: &mut Registry) {
        for outcome in ["found", "absent", "resent"] {
            drop(self.doubts.get_or_create(&CallLabels { method: "chat.postMessage", outcome }));
        }
        registry.register(
            "slack_api_requests",
            "Calls to Slack, by method and how they ended",
            self.calls.clone(),
        );
        registry.register(
            "outbox_in_doubt",
            "Messages that may have been said before, by method and what became of the doubt",
            self.doubts.clone(),
        );
    }

    /// A call ended.
    pub fn called(&self, method: &'static str, called: &Called) {
        let outcome = match called {
            Called::Done(_) => "done",
            Called::Refused(..) => "refused",
            Called::Limited(_) => "limited",
            Called::NotSent(_) => "not_sent",
            Called::Unclear(_) => "unclear",
        };
        self.calls.get_or_create(&CallLabels { method, outcome }).inc();
    }

    /// An answer through a `response_url` ended.
    pub fn responded(&self, responded: &Responded) {
        let outcome = match responded {
            Responded::Done => "done",
            Responded::UsedUp(_) => "used_up",
            Responded::Refused(_) => "refused",
            Responded::Limited(_) => "limited",
            Responded::NotSent(_) => "not_sent",
            Responded::Unclear(_) => "unclear",
        };
        self.calls.get_or_create(&CallLabels { method: "response_url", outcome }).inc();
    }

    /// A doubt was settled.
    pub fn doubt(&self, method: &'static str, settled: DoubtSettled) {
        let outcome = match settled {
            DoubtSettled::Found => "found",
            DoubtSettled::Absent => "absent",
            DoubtSettled::Resent => "resent",
        };
        self.doubts.get_or_create(&CallLabels { method, outcome }).inc();
    }
}
