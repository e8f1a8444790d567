//! Declared organizations, members and agents.
//!
//! Undeclared ones are deleted last, because connections may belong to them.

use super::{Action, Declared, DeclaredMember, Plan, PlanStep, plan::Diff};
use crate::store::{Store, StoreError};
use sqlx::{PgConnection, Row, postgres::PgRow};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

impl Store {
    pub(super) async fn organizations(
        &self,
        tx: &mut PgConnection,
        declared: &Declared,
        plan: &mut Plan,
    ) -> Result<(), StoreError> {
        let rows = sqlx::query("-- declared.organizations\n select id, name from organizations")
            .fetch_all(&mut *tx)
            .await?;
        let mut existing = BTreeMap::new();
        for row in &rows {
            existing.insert(row.try_get::<String, _>("id")?, row.try_get::<String, _>("name")?);
        }
        for (id, name) in &declared.organizations {
            let mut diff = Diff::against(existing.contains_key(id.as_str()));
            diff.text("name", existing.get(id.as_str()).map(String::as_str), Some(name.as_str()));
            if diff.add_to(plan, format!("organization {id}")) {
                sqlx::query(
                    "-- declared.put_organization
                     insert into organizations (id, name) values ($1, $2)
                     on conflict (id) do update set name = excluded.name",
                )
                .bind(id.as_str())
                .bind(name)
                .execute(&mut *tx)
                .await?;
            }
        }
        Ok(())
    }

    pub(super) async fn members(
        &self,
        tx: &mut PgConnection,
        declared: &Declared,
        prune: bool,
        plan: &mut Plan,
    ) -> Result<(), StoreError> {
        let rows = sqlx::query(
            "-- declared.members
             select m.org_id, m.user_id,
                    coalesce(array_agg(i.team_id || '/' || i.platform_user_id order by 1)
                        filter (where i.user_id is not null), '{}') as identities
               from organization_members m left join user_identities i using (user_id)
              group by m.org_id, m.user_id",
        )
        .fetch_all(&mut *tx)
        .await?;
        let mut existing: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
        for row in &rows {
            let identities: Vec<String> = row.try_get("identities")?;
            let key = (row.try_get("org_id")?, row.try_get("user_id")?);
            existing.insert(key, identities.into_iter().collect());
        }
        for member in &declared.members {
            let before = existing.remove(&(member.org.to_string(), member.user.clone()));
            let after: BTreeSet<String> =
                member.identities.iter().map(|(team, user)| format!("{team}/{user}")).collect();
            let mut diff = Diff::against(before.is_some());
            let text = |ids: &BTreeSet<String>| ids.iter().cloned().collect::<Vec<_>>().join(" ");
            diff.text("slack", before.as_ref().map(text).as_deref(), Some(text(&after).as_str()));
            if diff.add_to(plan, format!("member {}/{}", member.org, member.user)) {
                put_member(tx, member).await?;
            }
        }
        for (org, user) in existing.into_keys() {
            let what = format!("member {org}/{user}");
            if !prune {
                plan.kept.push(what);
                continue;
            }
            plan.steps.push(PlanStep { action: Action::Delete, what, fields: Vec::new() });
            sqlx::query(
                "-- declared.delete_member
                 with gone as (delete from organization_members where org_id = $1 and user_id = $2)
                 delete from user_identities
                  where user_id = $2
                    and not exists (select from organization_members where user_id = $2
                                       and org_id <> $1)",
            )
            .bind(org)
            .bind(user)
            .execute(&mut *tx)
            .await?;
        }
        Ok(())
    }

    pub(super) async fn agents(
        &self,
        tx: &mut PgConnection,
        declared: &Declared,
        plan: &mut Plan,
    ) -> Result<(), StoreError> {
        for new in &declared.agents {
            let before = self.agent_in(&mut *tx, &new.org, &new.id).await?;
            let mut diff = Diff::against(before.is_some());
            let before = before.as_ref();
            diff.text("name", before.map(|a| a.name.as_str()), Some(new.name.as_str()));
            diff.text("mode", before.map(|a| a.mode.as_str()), Some(new.mode.as_str()));
            diff.text("url", before.map(|a| a.url.as_str()), Some(new.url.as_str()));
            diff.secret("secret", before.map(|a| &a.secret), Some(&new.secret));
            let by_mode =
                |time: Option<Duration>| time.map_or("by mode".into(), |t| format!("{t:?}"));
            for (name, old, new) in [
                (
                    "timeout",
                    before.map(|a| format!("{:?}", a.timeout)),
                    format!("{:?}", new.timeout),
                ),
                (
                    "max_concurrent",
                    before.map(|a| a.max_concurrent.to_string()),
                    new.max_concurrent.to_string(),
                ),
                ("retry_for", before.map(|a| by_mode(a.retry_for)), by_mode(new.retry_for)),
                (
                    "keep_for",
                    before.map(|a| format!("{:?}", a.keep_for)),
                    format!("{:?}", new.keep_for),
                ),
            ] {
                diff.text(name, old.as_deref(), Some(new.as_str()));
            }
            if diff.add_to(plan, format!("agent {}/{}", new.org, new.id)) {
                self.put_agent_in(&mut *tx, new).await?;
            }
        }
        Ok(())
    }

    /// Deletes or reports undeclared agents and organizations. Runs after the connections, which
    /// may belong to them.
    pub(super) async fn undeclared_owners(
        &self,
        tx: &mut PgConnection,
        declared: &Declared,
        prune: bool,
        plan: &mut Plan,
    ) -> Result<(), StoreError> {
        let agents: Vec<String> =
            declared.agents.iter().map(|a| format!("{}/{}", a.org, a.id)).collect();
        let rows = sqlx::query(
            "-- declared.undeclared_agents
             select org_id || '/' || id as name from agents where org_id || '/' || id <> all ($1)
              order by 1",
        )
        .bind(&agents)
        .fetch_all(&mut *tx)
        .await?;
        let orgs: Vec<String> =
            declared.organizations.iter().map(|(id, _)| id.to_string()).collect();
        let org_rows = sqlx::query(
            "-- declared.undeclared_organizations
             select id as name from organizations where id <> all ($1) order by 1",
        )
        .bind(&orgs)
        .fetch_all(&mut *tx)
        .await?;
        let names = |rows: &[PgRow], kind: &str| -> Result<Vec<String>, StoreError> {
            rows.iter()
                .map(|row| Ok(format!("{kind} {}", row.try_get::<String, _>("name")?)))
                .collect()
        };
        let undeclared = [names(&rows, "agent")?, names(&org_rows, "organization")?].concat();
        if !prune {
            plan.kept.extend(undeclared);
            return Ok(());
        }
        for what in undeclared {
            plan.steps.push(PlanStep { action: Action::Delete, what, fields: Vec::new() });
        }
        for (sql, kept) in [
            (
                "-- declared.delete_agents
                 delete from agents where org_id || '/' || id <> all ($1)",
                agents,
            ),
            (
                "-- declared.delete_organizations\n delete from organizations where id <> all ($1)",
                orgs,
            ),
        ] {
            sqlx::query(sql).bind(kept).execute(&mut *tx).await?;
        }
        Ok(())
    }
}

async fn put_member(tx: &mut PgConnection, member: &DeclaredMember) -> Result<(), StoreError> {
    let teams: Vec<&str> = member.identities.iter().map(|(team, _)| team.as_str()).collect();
    let users: Vec<&str> = member.identities.iter().map(|(_, user)| user.as_str()).collect();
    sqlx::query(
        "-- declared.put_member
         with member as (
             insert into organization_members (org_id, user_id) values ($1, $2)
                 on conflict do nothing),
         gone as (
             delete from user_identities
              where user_id = $2 and (team_id, platform_user_id) not in (
                        select * from unnest($3::text[], $4::text[])))
         insert into user_identities (platform, team_id, platform_user_id, user_id)
         select 'slack', team, platform_user, $2
           from unnest($3::text[], $4::text[]) as u (team, platform_user)
         on conflict (platform, team_id, platform_user_id) do update
            set user_id = excluded.user_id",
    )
    .bind(member.org.as_str())
    .bind(&member.user)
    .bind(teams)
    .bind(users)
    .execute(tx)
    .await?;
    Ok(())
}
