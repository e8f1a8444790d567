//! Differences between declarations and database.

use crate::{secrets::Secret, types::ConnectionId};
use serde::Serialize;

/// Differences from the declarations, in the order of their application.
#[derive(Debug, Default)]
pub struct Plan {
    /// Creations, changes and deletions.
    pub steps: Vec<PlanStep>,
    /// Undeclared objects that are kept.
    pub kept: Vec<String>,
    /// Number of declared objects without a difference.
    pub unchanged: usize,
    /// Ids of all declared connections.
    pub connections: Vec<ConnectionId>,
    /// Ids of deleted connections.
    pub deleted: Vec<ConnectionId>,
}

/// Difference of one object.
#[derive(Debug, Serialize)]
pub struct PlanStep {
    /// Action.
    pub action: Action,
    /// Object, as `agent acme/helper`.
    pub what: String,
    /// Changed fields, without secrets.
    pub fields: Vec<String>,
}

/// Action of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // self-explanatory
pub enum Action {
    Create,
    Change,
    Delete,
}

/// Changed fields of an object.
pub(super) struct Diff {
    exists: bool,
    fields: Vec<String>,
}

impl Diff {
    pub(super) fn against(exists: bool) -> Self {
        Self { exists, fields: Vec::new() }
    }

    pub(super) fn text(&mut self, name: &str, old: Option<&str>, new: Option<&str>) {
        let shown =
            |text: Option<&str>| text.filter(|t| !t.is_empty()).unwrap_or("none").to_owned();
        match (old, new) {
            (old, new) if self.exists && old != new => {
                self.fields.push(format!("{name}: {} → {}", shown(old), shown(new)));
            }
            (_, Some(new)) if !self.exists && !new.is_empty() => {
                self.fields.push(format!("{name}: {new}"));
            }
            _ => {}
        }
    }

    /// Compares a secret. Returns whether it differs.
    pub(super) fn secret(
        &mut self,
        name: &str,
        old: Option<&Secret>,
        new: Option<&Secret>,
    ) -> bool {
        let differs = old.map(Secret::expose) != new.map(Secret::expose);
        if differs {
            let state = match (old, new) {
                (_, None) => "removed",
                (None, _) => "set",
                _ => "changed",
            };
            self.fields.push(format!("{name}: {state}"));
        }
        differs
    }

    /// Adds the object to the plan. Returns whether it differs.
    pub(super) fn add_to(self, plan: &mut Plan, what: String) -> bool {
        if self.exists && self.fields.is_empty() {
            plan.unchanged += 1;
            return false;
        }
        let action = if self.exists { Action::Change } else { Action::Create };
        plan.steps.push(PlanStep { action, what, fields: self.fields });
        true
    }
}
