//! `tidegate audit-log`: lists audited changes by people and programs.
//!
//! The database role of operators can add and read entries, but neither change nor delete them.

use crate::{
    output::{self, not_found},
    settings::{StoreSettings, TimeArgument},
};
use serde_json::Value;
use shared::{
    domain::OrgId,
    store::{AuditEntry, AuditLogFilter},
};

const COLUMNS: [output::Column; 6] = [
    ("id", true),
    ("at", false),
    ("actor", false),
    ("action", false),
    ("object", false),
    ("change", false),
];

/// Arguments of `tidegate audit-log`.
#[derive(Debug, clap::Args)]
pub struct AuditLog {
    /// Only list changes by this actor, for example operator:alice or api-key:<id>.
    #[arg(long)]
    actor: Option<String>,
    /// Only list changes with this action, for example connection.disable.
    #[arg(long)]
    action: Option<String>,
    /// Only list changes of objects of this kind, for example connection.
    #[arg(long)]
    kind: Option<String>,
    /// Only list changes of the object with this id, for example acme/helper.
    #[arg(long)]
    object: Option<String>,
    /// Only list changes of objects of this organization.
    #[arg(long)]
    org: Option<OrgId>,
    /// Earliest time: a duration before now, for example 1h, or a time, for example
    /// 2026-01-31T12:00:00Z.
    #[arg(long)]
    from: Option<TimeArgument>,
    /// End of the time range, in the same form.
    #[arg(long)]
    to: Option<TimeArgument>,
    /// Only list changes with lower ids than this: the last id of the previous page.
    #[arg(long, value_name = "ID")]
    after: Option<i64>,
    /// Maximum number of changes.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Print JSON, one change per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

impl AuditLog {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        let store = self.store.open()?;
        let mut range = [None, None];
        for (time, argument) in range.iter_mut().zip([self.from, self.to]) {
            if let Some(argument) = argument {
                *time = Some(argument.resolve(&store).await?);
            }
        }
        let [from, to] = range;
        let filter = AuditLogFilter {
            actor: self.actor,
            action: self.action,
            object_kind: self.kind,
            object_id: self.object,
            org: self.org,
            from,
            to,
            after: self.after,
        };
        let entries = store.audit_log(&filter, i64::from(self.limit)).await?;
        if entries.is_empty() {
            return not_found("no changes found");
        }
        output::print_list(&entries, self.json, &COLUMNS, row)
    }
}

fn row(entry: &AuditEntry) -> Vec<String> {
    vec![
        entry.id.to_string(),
        output::sanitize(&entry.at),
        output::sanitize(&entry.actor),
        entry.action.clone(),
        output::sanitize(&entry.object_id),
        output::sanitize(&render_change(entry.before.as_ref(), entry.after.as_ref())),
    ]
}

/// Returns the values before and after a change, without nulls.
fn render_change(before: Option<&Value>, after: Option<&Value>) -> String {
    let side = |value: Option<&Value>| {
        let fields = value.and_then(Value::as_object)?;
        let fields = fields.iter().filter(|(_, value)| !value.is_null());
        let fields: Vec<_> = fields.map(|(name, value)| format!("{name}={value}")).collect();
        (!fields.is_empty()).then(|| fields.join(" "))
    };
    match (side(before), side(after)) {
        (Some(before), Some(after)) => format!("{before} → {after}"),
        (Some(before), None) => format!("was {before}"),
        (None, after) => after.unwrap_or_else(|| "-".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn renders_changes() {
        let entry = |id: i64, action: &str, before: Value, after: Value| AuditEntry {
            id,
            at: "2026-01-31T12:00:00Z".into(),
            actor: "operator:alice".into(),
            action: action.into(),
            object_kind: "agent".into(),
            object_id: "acme/helper".into(),
            organization: Some("acme".into()),
            before: Some(before).filter(|value| !value.is_null()),
            after: Some(after).filter(|value| !value.is_null()),
        };
        let entries = [
            entry(3, "agent.delete", json!({ "mode": "reply" }), Value::Null),
            entry(2, "agent.pause", json!({ "paused": false }), json!({ "paused": true })),
            entry(1, "agent.create", Value::Null, json!({ "mode": "reply", "name": null })),
        ];
        insta::assert_snapshot!(output::render_table(&COLUMNS, &entries, row), @r#"
        id  at                    actor           action        object       change
         3  2026-01-31T12:00:00Z  operator:alice  agent.delete  acme/helper  was mode="reply"
         2  2026-01-31T12:00:00Z  operator:alice  agent.pause   acme/helper  paused=false → paused=true
         1  2026-01-31T12:00:00Z  operator:alice  agent.create  acme/helper  mode="reply"
        "#);
    }
}
