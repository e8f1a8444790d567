//! What an operator declares, brought about: organizations, members, agents and connections, in one transaction.
//!
//! In: everything declared. Out: a [`Plan`] of what differed, applied unless only asked for; or what clashes, and then
//! nothing is applied. Secrets are compared in clear, so that declaring the same again changes nothing although sealing
//! never gives the same text twice. What is not declared is named, and deleted only when told to.

use super::{
    NewAgent, Store, StoreError, column,
    connections::{BOT_TOKEN_COLUMN, TABLE, settings},
    inconsistent, lifecycle, nullable,
};
use crate::{
    directory::SIGNING_SECRET_COLUMN,
    secrets::{Place, Sealed, Secret},
    types::{AgentId, AppId, ConnectionId, EnterpriseId, OrgId, Settings, Status, TeamId, UserId},
};
use serde::Serialize;
use sqlx::{PgConnection, Row, postgres::PgRow, types::Json};
use std::collections::{BTreeMap, BTreeSet};

/// A signing secret that was replaced stays good for this long: nobody knows when Slack changes over.
const OVERLAP_HOURS: i32 = 24;

/// Everything declared.
#[derive(Debug, Default)]
#[allow(missing_docs)] // the tables' names
pub struct Declared {
    pub organizations: Vec<(OrgId, String)>,
    pub members: Vec<DeclaredMember>,
    pub agents: Vec<NewAgent>,
    pub connections: Vec<DeclaredConnection>,
}

/// Somebody who may link an organization's agents by name, and who they are in Slack.
#[derive(Debug)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct DeclaredMember {
    pub org: OrgId,
    pub user: String,
    pub identities: Vec<(TeamId, UserId)>,
}

/// A connection, called by its app and installation; its id is made up when it is new and none is given.
#[derive(Debug)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct DeclaredConnection {
    pub id: Option<ConnectionId>,
    pub org: OrgId,
    pub agent: Option<AgentId>,
    pub app: AppId,
    pub enterprise: Option<EnterpriseId>,
    pub team: Option<TeamId>,
    pub preview_mode: bool,
    pub signing_secret: Secret,
    pub bot_token: Option<Secret>,
    pub bot_user: Option<UserId>,
    pub settings: Settings,
}

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

/// What can't be brought about. Nothing was.
#[derive(Debug)]
pub struct Clash {
    /// Which of the declared connections, by its place in the list.
    pub connection: usize,
    /// What is wrong, and what to do.
    pub why: String,
}

type Outcome = Result<Plan, Vec<Clash>>;

/// Connections are called by this wherever people read.
fn called(app: &AppId, enterprise: Option<&EnterpriseId>, team: Option<&TeamId>) -> String {
    let installation = [enterprise.map(EnterpriseId::as_str), team.map(TeamId::as_str)];
    let installation: Vec<&str> = installation.into_iter().flatten().collect();
    let rest = if installation.is_empty() { "preview".into() } else { installation.join("/") };
    format!("connection {app}/{rest}")
}

impl Store {
    /// Brings about what is declared, or, as a dry run, only says what that would change.
    pub async fn apply_declared(
        &self,
        declared: &Declared,
        prune: bool,
        dry_run: bool,
    ) -> Result<Outcome, StoreError> {
        let mut tx = self.pool.begin().await?;
        // Two of these take turns; whoever handles webhooks waits for this one a moment.
        sqlx::query("-- declared.lock\n lock table organizations, agents, connections in share row exclusive mode")
            .execute(&mut *tx)
            .await?;
        let mut plan = Plan::default();
        self.organizations(&mut tx, declared, &mut plan).await?;
        self.members(&mut tx, declared, prune, &mut plan).await?;
        self.agents(&mut tx, declared, &mut plan).await?;
        let clashes = self.connections(&mut tx, declared, prune, &mut plan).await?;
        if !clashes.is_empty() {
            return Ok(Err(clashes)); // dropping the transaction undoes it
        }
        self.undeclared_owners(&mut tx, declared, prune, &mut plan).await?;
        if dry_run {
            tx.rollback().await?;
        } else {
            tx.commit().await?;
        }
        Ok(Ok(plan))
    }

    async fn organizations(
        &self,
        tx: &mut PgConnection,
        declared: &Declared,
        plan: &mut Plan,
    ) -> Result<(), StoreError> {
        let rows = sqlx::query("-- declared.organizations\n select id, name from organizations")
            .fetch_all(&mut *tx)
            .await?;
        let mut there = BTreeMap::new();
        for row in &rows {
            there.insert(row.try_get::<String, _>("id")?, row.try_get::<String, _>("name")?);
        }
        for (id, name) in &declared.organizations {
            let mut diff = Diff::against(there.contains_key(id.as_str()));
            diff.text("name", there.get(id.as_str()).map(String::as_str), Some(name.as_str()));
            if diff.note(plan, format!("organization {id}")) {
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

    async fn members(
        &self,
        tx: &mut PgConnection,
        declared: &Declared,
        prune: bool,
        plan: &mut Plan,
    ) -> Result<(), StoreError> {
        let rows = sqlx::query(
            "-- declared.members
             select m.org_id, m.user_id, coalesce(array_agg(i.team_id || '/' || i.platform_user_id order by 1)
                        filter (where i.user_id is not null), '{}') as identities
               from organization_members m left join chat_identities i using (user_id)
              group by m.org_id, m.user_id",
        )
        .fetch_all(&mut *tx)
        .await?;
        let mut there: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
        for row in &rows {
            let identities: Vec<String> = row.try_get("identities")?;
            let key = (row.try_get("org_id")?, row.try_get("user_id")?);
            there.insert(key, identities.into_iter().collect());
        }
        for member in &declared.members {
            let before = there.remove(&(member.org.to_string(), member.user.clone()));
            let after: BTreeSet<String> =
                member.identities.iter().map(|(team, user)| format!("{team}/{user}")).collect();
            let mut diff = Diff::against(before.is_some());
            let text = |ids: &BTreeSet<String>| ids.iter().cloned().collect::<Vec<_>>().join(" ");
            diff.text("slack", before.as_ref().map(text).as_deref(), Some(text(&after).as_str()));
            if diff.note(plan, format!("member {}/{}", member.org, member.user)) {
                put_member(tx, member).await?;
            }
        }
        for (org, user) in there.into_keys() {
            let what = format!("member {org}/{user}");
            if !prune {
                plan.kept.push(what);
                continue;
            }
            plan.steps.push(PlanStep { action: Action::Delete, what, fields: Vec::new() });
            sqlx::query(
                "-- declared.delete_member
                 with gone as (delete from organization_members where org_id = $1 and user_id = $2)
                 delete from chat_identities
                  where user_id = $2
                    and not exists (select from organization_members where user_id = $2 and org_id <> $1)",
            )
            .bind(org)
            .bind(user)
            .execute(&mut *tx)
            .await?;
        }
        Ok(())
    }

    async fn agents(
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
            if diff.note(plan, format!("agent {}/{}", new.org, new.id)) {
                self.put_agent_in(&mut *tx, new).await?;
            }
        }
        Ok(())
    }

    async fn connections(
        &self,
        tx: &mut PgConnection,
        declared: &Declared,
        prune: bool,
        plan: &mut Plan,
    ) -> Result<Vec<Clash>, StoreError> {
        let rows = sqlx::query(
            "-- declared.connections
             select c.id, c.org_id, c.agent_id, c.app_id, c.enterprise_id, c.team_id, c.preview_mode, c.status,
                    c.signing_secret, c.bot_token, c.bot_user_id, c.settings,
                    exists (select from token_rotations t where t.connection_id = c.id) as rotates
               from connections c order by c.id",
        )
        .fetch_all(&mut *tx)
        .await?;
        let mut there: Vec<There> =
            rows.iter().map(|row| self.there(row)).collect::<Result<_, _>>()?;
        let mut clashes = Vec::new();
        for (n, new) in declared.connections.iter().enumerate() {
            let mut clash = |why: String| clashes.push(Clash { connection: n, why });
            if let Some(why) = self.lacks_owner(tx, new).await? {
                clash(why);
                continue;
            }
            let called = called(&new.app, new.enterprise.as_ref(), new.team.as_ref());
            let at = there.iter().position(|old| old.is_installation_of(new));
            let by_id = there.iter().position(|old| Some(old.id) == new.id);
            match (at, by_id) {
                (None, Some(other)) => {
                    clash(format!(
                        "connection {} is of another installation ({}): leave its id out, or delete it first",
                        there[other].id,
                        there[other].called()
                    ));
                    continue;
                }
                (Some(at), _) if new.id.is_some_and(|id| id != there[at].id) => {
                    clash(format!(
                        "{called} is there already, as {}: say that id, or none",
                        there[at].id
                    ));
                    continue;
                }
                (Some(at), _) if there[at].org != new.org => {
                    clash(format!(
                        "{called} belongs to organization {}: delete it first (tidegate connections delete {})",
                        there[at].org, there[at].id
                    ));
                    continue;
                }
                _ => {}
            }
            let old = at.map(|at| there.swap_remove(at));
            self.connection_step(tx, new, old, called, plan).await?;
        }
        for old in there {
            if !prune {
                plan.kept.push(format!("{} ({})", old.called(), old.id));
                continue;
            }
            lifecycle::delete(&mut *tx, old.id).await?;
            let what = format!("{} ({})", old.called(), old.id);
            plan.steps.push(PlanStep { action: Action::Delete, what, fields: Vec::new() });
            plan.deleted.push(old.id);
        }
        Ok(clashes)
    }

    async fn lacks_owner(
        &self,
        tx: &mut PgConnection,
        new: &DeclaredConnection,
    ) -> Result<Option<String>, StoreError> {
        let row = sqlx::query(
            "-- declared.owner
             select exists (select from organizations where id = $1) as org,
                    $2::text is null or exists (select from agents where org_id = $1 and id = $2) as agent",
        )
        .bind(new.org.as_str())
        .bind(new.agent.as_ref().map(AgentId::as_str))
        .fetch_one(tx)
        .await?;
        if !row.try_get::<bool, _>("org")? {
            return Ok(Some(format!(
                "there is no organization {}: declare it as [[organization]]",
                new.org
            )));
        }
        Ok(match &new.agent {
            Some(agent) if !row.try_get::<bool, _>("agent")? => Some(format!(
                "organization {} has no agent {agent}: declare it as [[agent]]",
                new.org
            )),
            _ => None,
        })
    }

    async fn connection_step(
        &self,
        tx: &mut PgConnection,
        new: &DeclaredConnection,
        old: Option<There>,
        called: String,
        plan: &mut Plan,
    ) -> Result<(), StoreError> {
        let (mut diff, before) = (Diff::against(old.is_some()), old.as_ref());
        let words = |yes: bool| if yes { "true" } else { "false" };
        diff.text(
            "agent",
            before.and_then(|c| c.agent.as_ref()).map(AgentId::as_str),
            new.agent.as_ref().map(AgentId::as_str),
        );
        diff.text(
            "preview_mode",
            before.map(|c| words(c.preview_mode)),
            Some(words(new.preview_mode)),
        );
        diff.secret("signing_secret", before.map(|c| &c.signing_secret), Some(&new.signing_secret));
        let rotates = before.is_some_and(|c| c.rotates);
        let new_token = !rotates
            && diff.secret(
                "bot_token",
                before.and_then(|c| c.bot_token.as_ref()),
                new.bot_token.as_ref(),
            );
        diff.text(
            "bot_user",
            before.and_then(|c| c.bot_user.as_deref()),
            new.bot_user.as_ref().map(UserId::as_str),
        );
        let [surfaces, welcome, answer_bots]: [fn(&Settings) -> String; 3] = [
            |s| s.surfaces.iter().map(|s| s.as_str()).collect::<Vec<_>>().join(","),
            |s| s.welcome.to_string(),
            |s| s.answer_bots.to_string(),
        ];
        for (name, of) in
            [("surfaces", surfaces), ("welcome", welcome), ("answer_bots", answer_bots)]
        {
            let old = before.map(|c| of(&c.settings));
            diff.text(name, old.as_deref(), Some(of(&new.settings).as_str()));
        }
        // A new token is a new installation: whatever was wrong with the one before is over.
        let status = match before.map(|c| c.status) {
            Some(Status::Stopped) => Status::Stopped,
            Some(status) if !(new_token && new.bot_token.is_some()) => status,
            _ if new.bot_token.is_some() => Status::Active,
            _ => Status::Pending,
        };
        diff.text("status", before.map(|c| c.status.as_str()), Some(status.as_str()));
        let id = match before.map(|c| c.id).or(new.id) {
            Some(id) => id,
            None => ConnectionId::random()?,
        };
        plan.connections.push(id);
        if !diff.note(plan, format!("{called} ({id})")) {
            return Ok(());
        }
        let owner = id.to_string();
        let place = Place { owner: &owner, column: SIGNING_SECRET_COLUMN };
        let signing_secret = self.rings.signing.seal_secret(place, &new.signing_secret)?;
        let place = Place { owner: &owner, column: BOT_TOKEN_COLUMN };
        let token =
            new.bot_token.as_ref().map(|t| self.rings.tokens.seal_secret(place, t)).transpose()?;
        let new_secret =
            before.is_some_and(|c| c.signing_secret.expose() != new.signing_secret.expose());
        sqlx::query(
            "-- declared.put_connection
             insert into connections as c (id, org_id, agent_id, app_id, enterprise_id, team_id, preview_mode, status,
                                           signing_secret, bot_token, bot_user_id, settings, installed_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, case when $10::text is not null then now() end)
             on conflict (id) do update
                set agent_id = excluded.agent_id, preview_mode = excluded.preview_mode, status = excluded.status,
                    status_reason = case when c.status = excluded.status then c.status_reason else '' end,
                    bot_user_id = excluded.bot_user_id, settings = c.settings || excluded.settings,
                    bot_token = case when $13 then excluded.bot_token else c.bot_token end,
                    installed_at = case when $13 then excluded.installed_at else c.installed_at end,
                    signing_secret_previous = case when $14 then c.signing_secret else c.signing_secret_previous end,
                    signing_secret_previous_until = case when $14 then now() + make_interval(hours => $15)
                                                         else c.signing_secret_previous_until end,
                    signing_secret = case when $14 then excluded.signing_secret else c.signing_secret end
              where c.org_id = excluded.org_id",
        )
        .bind(&owner)
        .bind(new.org.as_str())
        .bind(new.agent.as_ref().map(AgentId::as_str))
        .bind(new.app.as_str())
        .bind(new.enterprise.as_ref().map(EnterpriseId::as_str))
        .bind(new.team.as_ref().map(TeamId::as_str))
        .bind(new.preview_mode)
        .bind(status.as_str())
        .bind(signing_secret.as_str())
        .bind(token.as_ref().map(Sealed::as_str))
        .bind(new.bot_user.as_ref().map(UserId::as_str))
        .bind(Json(&new.settings))
        .bind(new_token)
        .bind(new_secret)
        .bind(OVERLAP_HOURS)
        .execute(tx)
        .await?;
        Ok(())
    }

    /// Agents and organizations that are not declared; after the connections, which may belong to them.
    async fn undeclared_owners(
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
             select org_id || '/' || id as name from agents where org_id || '/' || id <> all ($1) order by 1",
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
        let names = |rows: &[PgRow], sort: &str| -> Result<Vec<String>, StoreError> {
            rows.iter()
                .map(|row| Ok(format!("{sort} {}", row.try_get::<String, _>("name")?)))
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
                "-- declared.delete_agents\n delete from agents where org_id || '/' || id <> all ($1)",
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

    fn there(&self, row: &PgRow) -> Result<There, StoreError> {
        let key: String = row.try_get("id")?;
        let open = |ring: &crate::secrets::KeyRing, column, name, text: String| {
            let place = Place { owner: &key, column };
            ring.open_secret(place, &Sealed::stored(text))
                .map_err(|why| inconsistent(TABLE, name, &key, why))
        };
        let token: Option<String> = row.try_get("bot_token")?;
        let token = token.map(|t| open(&self.rings.tokens, BOT_TOKEN_COLUMN, "bot_token", t));
        let signing = row.try_get("signing_secret")?;
        Ok(There {
            id: column(row, TABLE, &key, "id")?,
            org: column(row, TABLE, &key, "org_id")?,
            agent: nullable(row, TABLE, &key, "agent_id")?,
            app: column(row, TABLE, &key, "app_id")?,
            enterprise: nullable(row, TABLE, &key, "enterprise_id")?,
            team: nullable(row, TABLE, &key, "team_id")?,
            preview_mode: row.try_get("preview_mode")?,
            status: column(row, TABLE, &key, "status")?,
            signing_secret: open(
                &self.rings.signing,
                SIGNING_SECRET_COLUMN,
                "signing_secret",
                signing,
            )?,
            bot_token: token.transpose()?,
            bot_user: row.try_get("bot_user_id")?,
            settings: settings(row, &key)?,
            rotates: row.try_get("rotates")?,
        })
    }
}

async fn put_member(tx: &mut PgConnection, member: &DeclaredMember) -> Result<(), StoreError> {
    let teams: Vec<&str> = member.identities.iter().map(|(team, _)| team.as_str()).collect();
    let users: Vec<&str> = member.identities.iter().map(|(_, user)| user.as_str()).collect();
    sqlx::query(
        "-- declared.put_member
         with member as (
             insert into organization_members (org_id, user_id) values ($1, $2) on conflict do nothing),
         gone as (
             delete from chat_identities
              where user_id = $2 and (team_id, platform_user_id) not in (select * from unnest($3::text[], $4::text[])))
         insert into chat_identities (platform, team_id, platform_user_id, user_id)
         select 'slack', team, platform_user, $2 from unnest($3::text[], $4::text[]) as u (team, platform_user)
         on conflict (platform, team_id, platform_user_id) do update set user_id = excluded.user_id",
    )
    .bind(member.org.as_str())
    .bind(&member.user)
    .bind(teams)
    .bind(users)
    .execute(tx)
    .await?;
    Ok(())
}

/// A connection that is there.
struct There {
    id: ConnectionId,
    org: OrgId,
    agent: Option<AgentId>,
    app: AppId,
    enterprise: Option<EnterpriseId>,
    team: Option<TeamId>,
    preview_mode: bool,
    status: Status,
    signing_secret: Secret,
    bot_token: Option<Secret>,
    bot_user: Option<String>,
    settings: Settings,
    rotates: bool,
}

impl There {
    fn is_installation_of(&self, new: &DeclaredConnection) -> bool {
        self.app == new.app && self.enterprise == new.enterprise && self.team == new.team
    }

    fn called(&self) -> String {
        called(&self.app, self.enterprise.as_ref(), self.team.as_ref())
    }
}

/// The fields in which something differs from what is declared.
struct Diff {
    there: bool,
    fields: Vec<String>,
}

impl Diff {
    fn against(there: bool) -> Self {
        Self { there, fields: Vec::new() }
    }

    fn text(&mut self, name: &str, old: Option<&str>, new: Option<&str>) {
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
    fn secret(&mut self, name: &str, old: Option<&Secret>, new: Option<&Secret>) -> bool {
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
    fn note(self, plan: &mut Plan, what: String) -> bool {
        if self.there && self.fields.is_empty() {
            plan.unchanged += 1;
            return false;
        }
        let action = if self.there { Action::Change } else { Action::Create };
        plan.steps.push(PlanStep { action, what, fields: self.fields });
        true
    }
}
