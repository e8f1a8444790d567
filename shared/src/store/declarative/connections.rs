//! Declared connections: creation, changes, conflicts.
//!
//! App and installation identify a connection, which keeps its id. A token that rotates is not
//! changed.

use super::{Action, Clash, Declared, DeclaredConnection, Plan, PlanStep, plan::Diff};
use crate::{
    directory::SIGNING_SECRET_COLUMN,
    secrets::{Place, Sealed, Secret},
    store::{
        Store, StoreError, column,
        connections::{self, BOT_TOKEN_COLUMN, TABLE, settings},
        inconsistent, nullable,
    },
    types::{AgentId, AppId, ConnectionId, EnterpriseId, OrgId, Settings, Status, TeamId, UserId},
};
use sqlx::{PgConnection, Row, postgres::PgRow, types::Json};

/// Validity of a replaced signing secret in hours. The time of Slack's change is unknown.
const OVERLAP_HOURS: i32 = 24;

impl Store {
    pub(super) async fn connections(
        &self,
        tx: &mut PgConnection,
        declared: &Declared,
        prune: bool,
        plan: &mut Plan,
    ) -> Result<Vec<Clash>, StoreError> {
        let rows = sqlx::query(
            "-- declared.connections
             select c.id, c.org_id, c.agent_id, c.app_id, c.enterprise_id, c.team_id,
                    c.preview_mode, c.status, c.signing_secret, c.bot_token, c.bot_user_id,
                    c.settings, exists (select from token_rotations t
                                         where t.connection_id = c.id) as rotates
               from connections c order by c.id",
        )
        .fetch_all(&mut *tx)
        .await?;
        let mut existing: Vec<ExistingConnection> =
            rows.iter().map(|row| self.existing_connection(row)).collect::<Result<_, _>>()?;
        let mut clashes = Vec::new();
        for (n, new) in declared.connections.iter().enumerate() {
            let mut clash = |why: String| clashes.push(Clash { connection: n, why });
            if let Some(why) = self.missing_owner(tx, new).await? {
                clash(why);
                continue;
            }
            let label = label(&new.app, new.enterprise.as_ref(), new.team.as_ref());
            let at = existing.iter().position(|old| old.is_installation_of(new));
            let by_id = existing.iter().position(|old| Some(old.id) == new.id);
            match (at, by_id) {
                (None, Some(other)) => {
                    clash(format!(
                        "connection {} is of another installation ({}): leave its id out, or \
                         delete it first",
                        existing[other].id,
                        existing[other].label()
                    ));
                    continue;
                }
                (Some(at), _) if new.id.is_some_and(|id| id != existing[at].id) => {
                    clash(format!(
                        "{label} is there already, as {}: say that id, or none",
                        existing[at].id
                    ));
                    continue;
                }
                (Some(at), _) if existing[at].org != new.org => {
                    clash(format!(
                        "{label} belongs to organization {}: delete it first \
                         (tidegate connections delete {})",
                        existing[at].org, existing[at].id
                    ));
                    continue;
                }
                _ => {}
            }
            let old = at.map(|at| existing.swap_remove(at));
            self.apply_connection(tx, new, old, label, plan).await?;
        }
        for old in existing {
            if !prune {
                plan.kept.push(format!("{} ({})", old.label(), old.id));
                continue;
            }
            connections::delete_row(&mut *tx, old.id).await?;
            let what = format!("{} ({})", old.label(), old.id);
            plan.steps.push(PlanStep { action: Action::Delete, what, fields: Vec::new() });
            plan.deleted.push(old.id);
        }
        Ok(clashes)
    }

    async fn missing_owner(
        &self,
        tx: &mut PgConnection,
        new: &DeclaredConnection,
    ) -> Result<Option<String>, StoreError> {
        let row = sqlx::query(
            "-- declared.owner
             select exists (select from organizations where id = $1) as org,
                    $2::text is null or exists (select from agents where org_id = $1
                                                   and id = $2) as agent",
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

    async fn apply_connection(
        &self,
        tx: &mut PgConnection,
        new: &DeclaredConnection,
        old: Option<ExistingConnection>,
        label: String,
        plan: &mut Plan,
    ) -> Result<(), StoreError> {
        let (mut diff, before) = (Diff::against(old.is_some()), old.as_ref());
        let flag = |yes: bool| if yes { "true" } else { "false" };
        diff.text(
            "agent",
            before.and_then(|c| c.agent.as_ref()).map(AgentId::as_str),
            new.agent.as_ref().map(AgentId::as_str),
        );
        diff.text(
            "preview_mode",
            before.map(|c| flag(c.preview_mode)),
            Some(flag(new.preview_mode)),
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
        // A new token means a new installation, which clears an error.
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
        if !diff.add_to(plan, format!("{label} ({id})")) {
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
             insert into connections as c (id, org_id, agent_id, app_id, enterprise_id, team_id,
                                           preview_mode, status, signing_secret, bot_token,
                                           bot_user_id, settings, installed_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,
                     case when $10::text is not null then now() end)
             on conflict (id) do update
                set agent_id = excluded.agent_id, preview_mode = excluded.preview_mode,
                    status = excluded.status, status_reason = case when c.status = excluded.status
                        then c.status_reason else '' end,
                    bot_user_id = excluded.bot_user_id, settings = c.settings || excluded.settings,
                    bot_token = case when $13 then excluded.bot_token else c.bot_token end,
                    installed_at = case when $13 then excluded.installed_at else c.installed_at end,
                    signing_secret_previous = case when $14 then c.signing_secret
                        else c.signing_secret_previous end,
                    signing_secret_previous_until = case when $14
                        then now() + make_interval(hours => $15)
                                                         else c.signing_secret_previous_until end,
                    signing_secret = case when $14 then excluded.signing_secret
                        else c.signing_secret end
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

    fn existing_connection(&self, row: &PgRow) -> Result<ExistingConnection, StoreError> {
        let key: String = row.try_get("id")?;
        let open = |ring: &crate::secrets::KeyRing, column, name, text: String| {
            let place = Place { owner: &key, column };
            ring.open_secret(place, &Sealed::stored(text))
                .map_err(|why| inconsistent(TABLE, name, &key, why))
        };
        let token: Option<String> = row.try_get("bot_token")?;
        let token = token.map(|t| open(&self.rings.tokens, BOT_TOKEN_COLUMN, "bot_token", t));
        let signing = row.try_get("signing_secret")?;
        Ok(ExistingConnection {
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

/// Connection in the database.
struct ExistingConnection {
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

impl ExistingConnection {
    fn is_installation_of(&self, new: &DeclaredConnection) -> bool {
        self.app == new.app && self.enterprise == new.enterprise && self.team == new.team
    }

    fn label(&self) -> String {
        label(&self.app, self.enterprise.as_ref(), self.team.as_ref())
    }
}

/// Returns the label of a connection in messages.
fn label(app: &AppId, enterprise: Option<&EnterpriseId>, team: Option<&TeamId>) -> String {
    let installation = [enterprise.map(EnterpriseId::as_str), team.map(TeamId::as_str)];
    let installation: Vec<&str> = installation.into_iter().flatten().collect();
    let rest = if installation.is_empty() { "preview".into() } else { installation.join("/") };
    format!("connection {app}/{rest}")
}
