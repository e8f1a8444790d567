//! Requests to erase a person or an organization.
//!
//! A request is a row, so that it survives the process that carries it out. Workers carry out
//! requests of the control API, and continue those that the command line began. An erasure is
//! repeated until it is complete; then a trigger removes the person's ids from the row.

use crate::domain::{Actor, OrgId, TeamId, UserId};
use crate::store::{
    AuditAction, AuditOrg, NewAuditEntry, Store, StoreError, add_audit_entries, column, nullable,
    timestamp,
};
use serde::Serialize;
use sqlx::{Row, postgres::PgRow};
use std::time::Duration;

const TABLE: &str = "erasures";

/// Person or organization to erase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ErasureTarget {
    /// Person of a workspace.
    Person(TeamId, UserId),
    /// Organization with its connections.
    Organization(OrgId),
}

impl ErasureTarget {
    /// Returns the columns: organization, workspace and person.
    fn columns(&self) -> (Option<&str>, Option<&str>, Option<&str>) {
        match self {
            Self::Person(team, user) => (None, Some(team.as_str()), Some(user.as_str())),
            Self::Organization(org) => (Some(org.as_str()), None, None),
        }
    }
}

/// Erasure that is due.
#[derive(Debug, Clone)]
pub struct OpenErasure {
    /// Id.
    pub id: String,
    /// Person or organization.
    pub target: ErasureTarget,
    /// Author of the request.
    pub requested_by: Actor,
}

/// State of an erasure.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct ErasureRecord {
    pub id: String,
    pub organization: Option<String>,
    pub team: Option<String>,
    pub user: Option<String>,
    pub state: String,
    pub note: String,
    pub rows: i64,
    pub webhooks: i64,
    pub created_at: String,
    pub ended_at: Option<String>,
}

impl Store {
    /// Returns the id of an open erasure of a target, and makes it due for workers after a time.
    pub async fn reopen_erasure(
        &self,
        target: &ErasureTarget,
        due_after: Duration,
    ) -> Result<Option<String>, StoreError> {
        let (org, team, user) = target.columns();
        let open = sqlx::query_scalar(
            "-- erasures.reopen
             update erasures set next_at = now() + make_interval(secs => $4)
              where state = 'open' and org_id is not distinct from $1
                and team_id is not distinct from $2 and user_id is not distinct from $3
             returning id",
        );
        let open = open.bind(org).bind(team).bind(user).bind(due_after.as_secs_f64());
        Ok(open.fetch_optional(&self.pool).await?)
    }

    /// Returns whether an erasure has not ended.
    pub async fn is_erasure_open(&self, id: &str) -> Result<bool, StoreError> {
        let open = sqlx::query_scalar(
            "-- erasures.is_open
             select exists (select from erasures where id = $1 and state = 'open')",
        );
        Ok(open.bind(id).fetch_one(&self.pool).await?)
    }

    /// Requests an erasure, which is due for workers after a time. Returns false if the target has
    /// an open erasure.
    pub async fn request_erasure(
        &self,
        by: &Actor,
        id: &str,
        target: &ErasureTarget,
        due_after: Duration,
    ) -> Result<bool, StoreError> {
        let (org, team, user) = target.columns();
        let mut tx = self.pool.begin().await?;
        let inserted = sqlx::query(
            "-- erasures.request
             insert into erasures (id, org_id, team_id, user_id, requested_by, next_at)
             values ($1, $2, $3, $4, $5, now() + make_interval(secs => $6)) on conflict do nothing",
        )
        .bind(id)
        .bind(org)
        .bind(team)
        .bind(user)
        .bind(by.to_string())
        .bind(due_after.as_secs_f64())
        .execute(&mut *tx)
        .await?;
        if inserted.rows_affected() == 0 {
            return Ok(false);
        }
        // The audit log must not name the person.
        let of = match target {
            ErasureTarget::Organization(org) => AuditOrg::Org(org.clone()),
            ErasureTarget::Person(..) => AuditOrg::None,
        };
        let entry = NewAuditEntry::new(AuditAction::ErasureRequest, id, of);
        add_audit_entries(&mut tx, by, &[entry]).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Returns an open erasure that is due.
    pub async fn due_erasure(&self) -> Result<Option<OpenErasure>, StoreError> {
        let row = sqlx::query(
            "-- erasures.due
             select id, org_id, team_id, user_id, requested_by from erasures
              where state = 'open' and next_at <= now() order by next_at limit 1",
        )
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let id: String = row.try_get("id")?;
        let target = match nullable(&row, TABLE, &id, "org_id")? {
            Some(org) => ErasureTarget::Organization(org),
            None => ErasureTarget::Person(
                column(&row, TABLE, &id, "team_id")?,
                column(&row, TABLE, &id, "user_id")?,
            ),
        };
        let requested_by = author(row.try_get("requested_by")?);
        Ok(Some(OpenErasure { id, target, requested_by }))
    }

    /// Adds to the numbers of an erasure. With a note it stays open, and is due again after a time.
    pub async fn record_erasure(
        &self,
        id: &str,
        rows: u64,
        webhooks: u64,
        open: Option<(&str, Duration)>,
    ) -> Result<(), StoreError> {
        let (note, after) = open.unwrap_or_default();
        sqlx::query(
            "-- erasures.record
             update erasures
                set rows = rows + $2, webhooks = webhooks + $3, note = $4,
                    state = case when $5 then 'open' else 'done' end,
                    next_at = now() + make_interval(secs => $6)
              where id = $1 and state = 'open'",
        )
        .bind(id)
        .bind(rows.cast_signed())
        .bind(webhooks.cast_signed())
        .bind(note)
        .bind(open.is_some())
        .bind(after.as_secs_f64())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Returns one erasure, or a page of all, newest first, of all organizations or one.
    pub async fn erasures(
        &self,
        org: Option<&OrgId>,
        id: Option<&str>,
        after: Option<(&str, &str)>,
        limit: i64,
    ) -> Result<Vec<ErasureRecord>, StoreError> {
        let rows = sqlx::query(
            "-- erasures.list
             select id, org_id, team_id, user_id, state, note, rows, webhooks, created_at, ended_at
               from erasures
              where ($1::text is null or id = $1)
                and ($2::text is null or (created_at, id) < ($2::timestamptz, $3))
                and ($5::text is null or org_id = $5)
              order by created_at desc, id desc limit $4",
        )
        .bind(id)
        .bind(after.map(|(at, _)| at))
        .bind(after.map(|(_, id)| id))
        .bind(limit)
        .bind(org.map(OrgId::as_str))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(record).collect()
    }
}

/// Parses an author who can request an erasure.
fn author(text: &str) -> Actor {
    match text.split_once(':') {
        Some(("api-key", id)) => Actor::ApiKey(id.to_owned()),
        Some(("operator", name)) => name.parse().map_or(Actor::Backend, Actor::Operator),
        _ => Actor::Backend,
    }
}

fn record(row: &PgRow) -> Result<ErasureRecord, StoreError> {
    let id: String = row.try_get("id")?;
    Ok(ErasureRecord {
        created_at: timestamp(row, TABLE, &id, "created_at")?.unwrap_or_default(),
        ended_at: timestamp(row, TABLE, &id, "ended_at")?,
        id,
        organization: row.try_get("org_id")?,
        team: row.try_get("team_id")?,
        user: row.try_get("user_id")?,
        state: row.try_get("state")?,
        note: row.try_get("note")?,
        rows: row.try_get("rows")?,
        webhooks: row.try_get("webhooks")?,
    })
}
