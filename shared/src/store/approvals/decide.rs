//! Decision on an approval.

use super::{ApprovalDecision, ApprovalOption, ApprovalResult, ApprovalUse, open_content};
use crate::{
    domain::Actor,
    secrets::KeyRing,
    store::{
        AuditAction, AuditOrg, NewAuditEntry, NewDelivery, Priority, StoreError, add_audit_entries,
    },
};
use serde_json::json;
use sqlx::{PgConnection, Row};
use time::OffsetDateTime;

/// Decides an approval in the caller's transaction. Returns the result, and the delivery of the
/// decision to the agent that asked.
pub(in crate::store) async fn decide_approval(
    tx: &mut PgConnection,
    ring: &KeyRing,
    click: &ApprovalUse,
) -> Result<(ApprovalResult, Option<NewDelivery>), StoreError> {
    let found = sqlx::query(
        "-- approvals.check
         select state, expires_at > now() as fresh, $4 = any (allowed) as is_allowed, content,
                decision, decided_by, decided_at, org_id, agent_id, session, run_id
           from approvals
          where id = $1 and connection_id = $2 and channel_id = $3
            and coalesce(message_ts, $5) = $5
            for update",
    )
    .bind(&click.id)
    .bind(click.connection.to_string())
    .bind(click.channel.as_str())
    .bind(click.user.as_str())
    .bind(&click.message_ts)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(row) = found else { return Ok((ApprovalResult::Unknown, None)) };
    let Ok(content) = open_content(ring, &row, &click.id) else {
        return Ok((ApprovalResult::Unknown, None));
    };
    if let Some(id) = row.try_get::<Option<String>, _>("decision")? {
        let option = content.options.into_iter().find(|option| option.id == id);
        let unnamed = || ApprovalOption { label: id.clone(), id: id.clone(), style: String::new() };
        let at: OffsetDateTime = row.try_get("decided_at")?;
        let decision = ApprovalDecision {
            option: option.unwrap_or_else(unnamed),
            by: row.try_get("decided_by")?,
            at: at.unix_timestamp(),
        };
        return Ok((ApprovalResult::AlreadyDecided(decision), None));
    }
    if !row.try_get::<bool, _>("is_allowed")? {
        return Ok((ApprovalResult::NotAllowed, None));
    }
    if row.try_get::<&str, _>("state")? != "open" || !row.try_get::<bool, _>("fresh")? {
        return Ok((ApprovalResult::Expired, None));
    }
    let Some(option) = content.options.get(click.option).cloned() else {
        return Ok((ApprovalResult::Unknown, None));
    };
    let at: OffsetDateTime = sqlx::query_scalar(
        "-- approvals.decide
         update approvals set state = 'decided', decision = $2, decided_by = $3, decided_at = now(),
                message_ts = $4
          where id = $1 and state = 'open' returning decided_at",
    )
    .bind(&click.id)
    .bind(&option.id)
    .bind(click.user.as_str())
    .bind(&click.message_ts)
    .fetch_one(&mut *tx)
    .await?;
    let (org, agent): (String, String) = (row.try_get("org_id")?, row.try_get("agent_id")?);
    let by = Actor::SlackUser { team: click.team.clone(), user: click.user.clone() };
    let of_connection = AuditOrg::OfConnection(click.connection);
    let object = format!("{}/{}", click.connection, click.id);
    let entry = NewAuditEntry::new(AuditAction::ApprovalDecide, object, of_connection);
    let entry = entry.after(json!({
        "decision": option.id, "agent": format!("{org}/{agent}"),
        "run": row.try_get::<String, _>("run_id")?, "channel": click.channel,
    }));
    add_audit_entries(tx, &by, &[entry]).await?;
    let delivery = NewDelivery {
        org,
        agent,
        session: row.try_get("session")?,
        priority: Priority::Interactive,
        hops: 0,
        has_waiting_notice: false,
    };
    let (by, at) = (click.user.to_string(), at.unix_timestamp());
    let decision = ApprovalDecision { option, by, at };
    Ok((ApprovalResult::Decided { content, decision }, Some(delivery)))
}
