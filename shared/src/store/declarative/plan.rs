//! What differs from what is declared, in words.

use crate::{secrets::Secret, types::ConnectionId};
use serde::Serialize;

/// What differed from what is declared, in the order in which it is brought about.
#[derive(Debug, Default)]
pub struct Plan {
    /// What is made, changed or deleted.
    pub steps: Vec<PlanStep>,
    /// What is there without being declared, and stays.
    pub kept: Vec<String>,
    /// How many declared things were as declared.
    pub unchanged: usize,
    /// Every declared connection.
    pub connections: Vec<ConnectionId>,
    /// Connections that were deleted.
    pub deleted: Vec<ConnectionId>,
}

/// One difference.
#[derive(Debug, Serialize)]
pub struct PlanStep {
    /// What happens to it.
    pub action: Action,
    /// What it is: `agent acme/helper`.
    pub what: String,
    /// Field by field, in words that hold no secret.
    pub fields: Vec<String>,
}

/// What happens to something that is not as declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // plain words
pub enum Action {
    Create,
    Change,
    Delete,
}

/// The fields in which something differs from what is declared.
pub(super) struct Diff {
    there: bool,
    fields: Vec<String>,
}

impl Diff {
    pub(super) fn against(there: bool) -> Self {
        Self { there, fields: Vec::new() }
    }

    pub(super) fn text(&mut self, name: &str, old: Option<&str>, new: Option<&str>) {
        let shown =
            |text: Option<&str>| text.filter(|t| !t.is_empty()).unwrap_or("none").to_owned();
        match (old, new) {
            (old, new) if self.there && old != new => {
                self.fields.push(format!("{name}: {} → {}", shown(old), shown(new)));
            }
            (_, Some(new)) if !self.there && !new.is_empty() => {
                self.fields.push(format!("{name}: {new}"));
            }
            _ => {}
        }
    }

    /// Whether it differs.
    pub(super) fn secret(
        &mut self,
        name: &str,
        old: Option<&Secret>,
        new: Option<&Secret>,
    ) -> bool {
        let differs = old.map(Secret::expose) != new.map(Secret::expose);
        if differs {
            let word = match (old, new) {
                (_, None) => "removed",
                (None, _) => "set",
                _ => "changed",
            };
            self.fields.push(format!("{name}: {word}"));
        }
        differs
    }

    /// Takes it into the plan; whether there is anything to do.
    pub(super) fn note(self, plan: &mut Plan, what: String) -> bool {
        if self.there && self.fields.is_empty() {
            plan.unchanged += 1;
            return false;
        }
        let action = if self.there { Action::Change } else { Action::Create };
        plan.steps.push(PlanStep { action, what, fields: self.fields });
        true
    }
}
