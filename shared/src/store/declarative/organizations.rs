//! Declared organizations, members and agents.
//!
//! Undeclared ones are deleted last, because connections may belong to them.

use super::{
    Declarations, DeclaredMember, Plan, PlanStep,
    plan::{Diff, PlanObject},
};
use crate::domain::OrgId;
use crate::store::{NewAgent, Store, StoreError};
use sqlx::{PgConnection, Row};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

impl Store {
    pub(super) async fn apply_organizations(
        &self,
        tx: &mut PgConnection,
        declared: &Declarations,
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
            let before = existing.get(id.as_str()).map(String::as_str);
            apply_organization(tx, id, name, before, plan).await?;
        }
        Ok(())
    }

    pub(super) async fn apply_members(
        &self,
        tx: &mut PgConnection,
        declared: &Declarations,
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
            apply_member(tx, member, before.as_ref(), plan).await?;
        }
        for (org, user) in existing.into_keys() {
            if !prune {
                plan.kept.push(format!("member {org}/{user}"));
                continue;
            }
            delete_member(tx, org, user, plan).await?;
        }
        Ok(())
    }

    pub(super) async fn apply_agents(
        &self,
        tx: &mut PgConnection,
        declared: &Declarations,
        plan: &mut Plan,
    ) -> Result<(), StoreError> {
        for new in &declared.agents {
            self.apply_agent(tx, new, plan).await?;
        }
        Ok(())
    }

    /// Creates or changes an agent.
    pub(super) async fn apply_agent(
        &self,
        tx: &mut PgConnection,
        new: &NewAgent,
        plan: &mut Plan,
    ) -> Result<(), StoreError> {
        let before = self.agent_in(&mut *tx, &new.org, &new.id).await?;
        let mut diff = Diff::new(before.is_some());
        let before = before.as_ref();
        diff.compare_text("name", before.map(|a| a.name.as_str()), Some(new.name.as_str()));
        diff.compare_text("mode", before.map(|a| a.mode.as_str()), Some(new.mode.as_str()));
        diff.compare_text("url", before.map(|a| a.url.as_str()), Some(new.url.as_str()));
        diff.compare_secret("secret", before.map(|a| &a.secret), Some(&new.secret));
        let headers = before.and_then(|a| a.headers.current.joined());
        let changes_headers =
            diff.compare_secret("headers", headers.as_ref(), new.headers.joined().as_ref());
        let by_mode = |time: Option<Duration>| time.map_or("by mode".into(), |t| format!("{t:?}"));
        for (name, old, new) in [
            ("timeout", before.map(|a| format!("{:?}", a.timeout)), format!("{:?}", new.timeout)),
            (
                "max_concurrent",
                before.map(|a| a.max_concurrent.to_string()),
                new.max_concurrent.to_string(),
            ),
            (
                "max_per_user",
                before.map(|a| a.max_per_user.to_string()),
                new.max_per_user.to_string(),
            ),
            ("retry_for", before.map(|a| by_mode(a.retry_for)), by_mode(new.retry_for)),
            (
                "keep_for",
                before.map(|a| format!("{:?}", a.keep_for)),
                format!("{:?}", new.keep_for),
            ),
            (
                "edits",
                before.map(|a| a.policies.edits.as_str().to_owned()),
                new.policies.edits.as_str().to_owned(),
            ),
            (
                "overlap",
                before.map(|a| a.policies.overlap.as_str().to_owned()),
                new.policies.overlap.as_str().to_owned(),
            ),
            (
                "signs_as_slack",
                before.map(|a| a.signs_as_slack.to_string()),
                new.signs_as_slack.to_string(),
            ),
        ] {
            diff.compare_text(name, old.as_deref(), Some(new.as_str()));
        }
        let object = PlanObject::Agent(new.org.to_string(), new.id.to_string());
        if diff.add_to_plan(plan, object) {
            self.put_agent_in(&mut *tx, new, changes_headers).await?;
        }
        Ok(())
    }

    /// Deletes or reports undeclared agents and organizations. Runs after the connections, which
    /// may belong to them.
    pub(super) async fn prune_owners(
        &self,
        tx: &mut PgConnection,
        declared: &Declarations,
        prune: bool,
        plan: &mut Plan,
    ) -> Result<(), StoreError> {
        let agents: Vec<String> =
            declared.agents.iter().map(|a| format!("{}/{}", a.org, a.id)).collect();
        let rows = sqlx::query(
            "-- declared.undeclared_agents
             select org_id, id from agents where org_id || '/' || id <> all ($1)
              order by org_id || '/' || id",
        )
        .bind(&agents)
        .fetch_all(&mut *tx)
        .await?;
        let orgs: Vec<String> =
            declared.organizations.iter().map(|(id, _)| id.to_string()).collect();
        let org_rows = sqlx::query(
            "-- declared.undeclared_organizations
             select id from organizations where id <> all ($1) order by 1",
        )
        .bind(&orgs)
        .fetch_all(&mut *tx)
        .await?;
        let mut undeclared = Vec::new();
        for row in &rows {
            undeclared.push(PlanObject::Agent(row.try_get("org_id")?, row.try_get("id")?));
        }
        for row in &org_rows {
            undeclared.push(PlanObject::Organization(row.try_get("id")?));
        }
        if !prune {
            plan.kept.extend(undeclared.iter().map(PlanObject::label));
            return Ok(());
        }
        plan.steps.extend(undeclared.into_iter().map(PlanStep::delete));
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

/// Creates an organization or changes its name.
pub(super) async fn apply_organization(
    tx: &mut PgConnection,
    id: &OrgId,
    name: &str,
    before: Option<&str>,
    plan: &mut Plan,
) -> Result<(), StoreError> {
    let mut diff = Diff::new(before.is_some());
    diff.compare_text("name", before, Some(name));
    if diff.add_to_plan(plan, PlanObject::Organization(id.to_string())) {
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
    Ok(())
}

/// Creates a member or changes the identities.
pub(super) async fn apply_member(
    tx: &mut PgConnection,
    member: &DeclaredMember,
    before: Option<&BTreeSet<String>>,
    plan: &mut Plan,
) -> Result<(), StoreError> {
    let after: BTreeSet<String> =
        member.identities.iter().map(|(team, user)| format!("{team}/{user}")).collect();
    let mut diff = Diff::new(before.is_some());
    let text = |ids: &BTreeSet<String>| ids.iter().cloned().collect::<Vec<_>>().join(" ");
    diff.compare_text("slack", before.map(text).as_deref(), Some(text(&after).as_str()));
    let object = PlanObject::Member(member.org.to_string(), member.user.clone());
    if diff.add_to_plan(plan, object) {
        put_member(tx, member).await?;
    }
    Ok(())
}

/// Deletes a member, and the identities if no other organization has the user.
pub(super) async fn delete_member(
    tx: &mut PgConnection,
    org: String,
    user: String,
    plan: &mut Plan,
) -> Result<(), StoreError> {
    plan.steps.push(PlanStep::delete(PlanObject::Member(org.clone(), user.clone())));
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
    Ok(())
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
         select distinct 'slack', team, platform_user, $2
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
