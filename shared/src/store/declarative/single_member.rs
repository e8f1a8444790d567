//! Single members, with the differences that a declaration would have.

use super::{
    DeclaredMember, Plan, PlanAction,
    organizations::{apply_member, delete_member},
    single::{lock_organization, record},
};
use crate::domain::{Actor, AgentId, OrgId};
use crate::store::{Store, StoreError};
use sqlx::{PgConnection, Row};
use std::collections::BTreeSet;

/// Member with identities in Slack, as `<team>/<user>`.
#[derive(Debug, Clone)]
pub struct MemberRecord {
    /// User.
    pub id: String,
    /// Identities.
    pub slack: Vec<String>,
}

/// Result of saving a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SavedMember {
    /// The member is saved: the action, `None` without a difference.
    Saved(Option<PlanAction>),
    /// Another user has one of the identities, or the user has other identities in another
    /// organization.
    OtherUser,
}

impl Store {
    /// Returns the members of an organization, or one of them, ordered by id.
    pub async fn members(
        &self,
        org: &OrgId,
        id: Option<&AgentId>,
        after: Option<&str>,
        limit: i64,
    ) -> Result<Vec<MemberRecord>, StoreError> {
        let rows = sqlx::query(
            "-- members.list
             select m.user_id,
                    array (select i.team_id || '/' || i.platform_user_id from user_identities i
                            where i.user_id = m.user_id order by 1) as identities
               from organization_members m
              where m.org_id = $1 and ($2::text is null or m.user_id = $2)
                and ($3::text is null or m.user_id > $3)
              order by m.user_id limit $4",
        )
        .bind(org.as_str())
        .bind(id.map(AgentId::as_str))
        .bind(after)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        let record = |row: &sqlx::postgres::PgRow| {
            Ok(MemberRecord { id: row.try_get("user_id")?, slack: row.try_get("identities")? })
        };
        rows.iter().map(record).collect()
    }

    /// Creates a member or changes the identities. [`StoreError::Missing`] for an unknown
    /// organization.
    pub async fn save_member(
        &self,
        by: &Actor,
        member: &DeclaredMember,
    ) -> Result<SavedMember, StoreError> {
        let (mut tx, mut plan) = (self.pool.begin().await?, Plan::default());
        lock_members(&mut tx).await?;
        if lock_organization(&mut tx, &member.org).await?.is_none() {
            return Err(StoreError::Missing(format!("organization {}", member.org)));
        }
        let identities: Vec<String> =
            member.identities.iter().map(|(team, user)| format!("{team}/{user}")).collect();
        let row = sqlx::query(
            "-- members.of_user
             select exists (select from organization_members where org_id = $1 and user_id = $2)
                        as is_member,
                    exists (select from organization_members where org_id <> $1 and user_id = $2)
                        as is_of_others,
                    array (select team_id || '/' || platform_user_id from user_identities
                            where user_id = $2) as identities,
                    exists (select from user_identities
                             where user_id <> $2 and team_id || '/' || platform_user_id = any ($3))
                        as is_taken",
        )
        .bind(member.org.as_str())
        .bind(&member.user)
        .bind(&identities)
        .fetch_one(&mut *tx)
        .await?;
        let before: Vec<String> = row.try_get("identities")?;
        let before: BTreeSet<String> = before.into_iter().collect();
        let differs = before != identities.into_iter().collect();
        if row.try_get("is_taken")? || (row.try_get("is_of_others")? && differs) {
            return Ok(SavedMember::OtherUser);
        }
        let before = row.try_get::<bool, _>("is_member")?.then_some(&before);
        apply_member(&mut tx, member, before, &mut plan).await?;
        let action = record(&mut tx, by, &plan).await?;
        tx.commit().await?;
        Ok(SavedMember::Saved(action))
    }

    /// Deletes a member. [`StoreError::Missing`] for an unknown one.
    pub async fn delete_member(
        &self,
        by: &Actor,
        org: &OrgId,
        user: &AgentId,
    ) -> Result<(), StoreError> {
        if self.members(org, Some(user), None, 1).await?.is_empty() {
            return Err(StoreError::Missing(format!("member {org}/{user}")));
        }
        let (mut tx, mut plan) = (self.pool.begin().await?, Plan::default());
        lock_members(&mut tx).await?;
        delete_member(&mut tx, org.to_string(), user.to_string(), &mut plan).await?;
        record(&mut tx, by, &plan).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// Serializes changes of members, because organizations share the identities of a user.
async fn lock_members(tx: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("-- members.lock\n select pg_advisory_xact_lock(hashtext('members'))")
        .execute(tx)
        .await?;
    Ok(())
}
