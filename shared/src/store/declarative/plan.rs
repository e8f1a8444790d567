//! Differences between declarations and database.

use crate::{
    domain::{AppId, ConnectionId, OrgId},
    secrets::Secret,
    store::{AuditAction, AuditOrg, NewAuditEntry},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::HashSet;

/// Differences from the declarations, in the order of their application.
#[derive(Debug, Default)]
pub struct Plan {
    /// True after its commit.
    pub is_applied: bool,
    /// Creations, changes and deletions.
    pub steps: Vec<PlanStep>,
    /// Undeclared objects that are kept.
    pub kept: Vec<String>,
    /// Number of declared objects without a difference.
    pub unchanged: usize,
    /// Ids of all declared connections.
    pub connections: Vec<ConnectionId>,
    /// Random ids of new connections.
    pub(super) random: HashSet<ConnectionId>,
    /// Ids of deleted connections.
    pub deleted: Vec<ConnectionId>,
    /// Ids of all declared apps.
    pub apps: Vec<AppId>,
    /// Ids of deleted apps.
    pub deleted_apps: Vec<AppId>,
}

impl Plan {
    /// Removes random ids from a plan that is not applied: the next run chooses others.
    pub(super) fn remove_random_ids(&mut self) {
        for step in &mut self.steps {
            if let PlanObject::Connection { id, label, .. } = &step.object
                && self.random.contains(id)
            {
                step.what = format!("{label} (new id)");
            }
        }
        self.connections.retain(|id| !self.random.contains(id));
    }
}

/// A plan for people and programs.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct PlanSummary {
    /// False after a dry run, and if the plan deletes something without a confirmation.
    pub applied: bool,
    /// Creations, changes and deletions.
    pub steps: Vec<StepSummary>,
    /// Undeclared objects that are kept.
    pub undeclared: Vec<String>,
    /// Number of declared objects without a difference.
    pub unchanged: u64,
    /// Ids of all declared connections.
    pub connections: Vec<ConnectionId>,
}

/// A step for people and programs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StepSummary {
    /// Action.
    pub action: PlanAction,
    /// Object, as `agent acme/helper`.
    pub what: String,
    /// Changed fields, without secrets.
    pub fields: Vec<String>,
}

impl From<&Plan> for PlanSummary {
    fn from(plan: &Plan) -> Self {
        let step = |step: &PlanStep| StepSummary {
            action: step.action,
            what: step.what.clone(),
            fields: step.fields.clone(),
        };
        Self {
            applied: plan.is_applied,
            steps: plan.steps.iter().map(step).collect(),
            undeclared: plan.kept.clone(),
            unchanged: plan.unchanged as u64,
            connections: plan.connections.clone(),
        }
    }
}

/// Difference of one object.
#[derive(Debug)]
pub struct PlanStep {
    /// Action.
    pub action: PlanAction,
    /// Object, as `agent acme/helper`.
    pub what: String,
    /// Changed fields, without secrets.
    pub fields: Vec<String>,
    object: PlanObject,
    /// Values of the changed fields, without secrets.
    before: Map<String, Value>,
    after: Map<String, Value>,
}

impl PlanStep {
    /// Returns a step that deletes an object.
    pub(super) fn delete(object: PlanObject) -> Self {
        Self {
            action: PlanAction::Delete,
            what: object.label(),
            fields: Vec::new(),
            object,
            before: Map::new(),
            after: Map::new(),
        }
    }

    /// Returns the entry of the step in the audit log.
    pub(super) fn audit_entry(&self) -> NewAuditEntry {
        let (id, org) = self.object.id_and_org();
        let value = |fields: &Map<String, Value>| {
            Some(Value::Object(fields.clone())).filter(|_| !fields.is_empty())
        };
        let entry = NewAuditEntry::new(self.object.action(self.action), id, org);
        NewAuditEntry { before: value(&self.before), after: value(&self.after), ..entry }
    }
}

/// Object of a step.
#[derive(Debug, Clone)]
pub(super) enum PlanObject {
    Organization(String),
    /// Organization and id.
    Member(String, String),
    /// Organization and id.
    Agent(String, String),
    /// Id, and the organization that may install it.
    App(AppId, Option<OrgId>),
    Connection {
        id: ConnectionId,
        org: OrgId,
        /// App and installation, for people.
        label: String,
    },
    /// Endpoint of notifications.
    Notifications,
}

impl PlanObject {
    pub(super) fn label(&self) -> String {
        match self {
            PlanObject::Organization(id) => format!("organization {id}"),
            PlanObject::Member(org, id) => format!("member {org}/{id}"),
            PlanObject::Agent(org, id) => format!("agent {org}/{id}"),
            PlanObject::App(id, _) => format!("app {id}"),
            PlanObject::Connection { id, label, .. } => format!("{label} ({id})"),
            PlanObject::Notifications => "notifications".into(),
        }
    }

    fn id_and_org(&self) -> (String, AuditOrg) {
        let org = |org: &str| org.parse().map_or(AuditOrg::None, AuditOrg::Org);
        match self {
            PlanObject::Organization(id) => (id.clone(), org(id)),
            PlanObject::Member(of, id) | PlanObject::Agent(of, id) => {
                (format!("{of}/{id}"), org(of))
            }
            PlanObject::App(id, org) => {
                (id.to_string(), org.clone().map_or(AuditOrg::None, AuditOrg::Org))
            }
            PlanObject::Connection { id, org, .. } => (id.to_string(), AuditOrg::Org(org.clone())),
            PlanObject::Notifications => ("backend".into(), AuditOrg::None),
        }
    }

    fn action(&self, action: PlanAction) -> AuditAction {
        use PlanAction::{Change, Create, Delete};
        match (self, action) {
            (PlanObject::Organization(_), Create) => AuditAction::OrganizationCreate,
            (PlanObject::Organization(_), Change) => AuditAction::OrganizationChange,
            (PlanObject::Organization(_), Delete) => AuditAction::OrganizationDelete,
            (PlanObject::Member(..), Create) => AuditAction::MemberCreate,
            (PlanObject::Member(..), Change) => AuditAction::MemberChange,
            (PlanObject::Member(..), Delete) => AuditAction::MemberDelete,
            (PlanObject::Agent(..), Create) => AuditAction::AgentCreate,
            (PlanObject::Agent(..), Change) => AuditAction::AgentChange,
            (PlanObject::Agent(..), Delete) => AuditAction::AgentDelete,
            (PlanObject::App(..), Create) => AuditAction::AppCreate,
            (PlanObject::App(..), Change) => AuditAction::AppChange,
            (PlanObject::App(..), Delete) => AuditAction::AppDelete,
            (PlanObject::Connection { .. }, Create) => AuditAction::ConnectionCreate,
            (PlanObject::Connection { .. }, Change) => AuditAction::ConnectionChange,
            (PlanObject::Connection { .. }, Delete) => AuditAction::ConnectionDelete,
            (PlanObject::Notifications, Create) => AuditAction::NotificationsCreate,
            (PlanObject::Notifications, Change) => AuditAction::NotificationsChange,
            (PlanObject::Notifications, Delete) => AuditAction::NotificationsDelete,
        }
    }
}

/// Action of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // self-explanatory
pub enum PlanAction {
    Create,
    Change,
    Delete,
}

impl PlanAction {
    /// Returns the name.
    pub fn as_str(self) -> &'static str {
        match self {
            PlanAction::Create => "create",
            PlanAction::Change => "change",
            PlanAction::Delete => "delete",
        }
    }
}

/// Changed fields of an object.
pub(super) struct Diff {
    exists: bool,
    fields: Vec<String>,
    before: Map<String, Value>,
    after: Map<String, Value>,
}

impl Diff {
    pub(super) fn new(exists: bool) -> Self {
        Self { exists, fields: Vec::new(), before: Map::new(), after: Map::new() }
    }

    pub(super) fn compare_text(&mut self, name: &str, old: Option<&str>, new: Option<&str>) {
        let shown =
            |text: Option<&str>| text.filter(|t| !t.is_empty()).unwrap_or("none").to_owned();
        match (old, new) {
            (old, new) if self.exists && old != new => {
                self.fields.push(format!("{name}: {} → {}", shown(old), shown(new)));
                self.before.insert(name.to_owned(), old.into());
                self.after.insert(name.to_owned(), new.into());
            }
            (_, Some(new)) if !self.exists && !new.is_empty() => {
                self.fields.push(format!("{name}: {new}"));
                self.after.insert(name.to_owned(), new.into());
            }
            _ => {}
        }
    }

    /// Compares a secret. Returns whether it differs.
    pub(super) fn compare_secret(
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
            self.after.insert(name.to_owned(), state.into());
        }
        differs
    }

    /// Adds the object to the plan. Returns whether it differs.
    pub(super) fn add_to_plan(self, plan: &mut Plan, object: PlanObject) -> bool {
        if self.exists && self.fields.is_empty() {
            plan.unchanged += 1;
            return false;
        }
        let action = if self.exists { PlanAction::Change } else { PlanAction::Create };
        let Self { fields, before, after, .. } = self;
        let what = object.label();
        plan.steps.push(PlanStep { action, what, fields, object, before, after });
        true
    }
}
