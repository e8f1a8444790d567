//! Declared connections: creation, changes, conflicts.
//!
//! App and installation identify a connection, which keeps its id. A token that rotates is not
//! changed.

use super::{
    ConflictError, Declarations, Declared, DeclaredConnection, Plan, PlanStep,
    plan::{Diff, PlanObject},
};
use crate::{
    directory::{SIGNING_SECRET_COLUMN, team_key},
    domain::{
        AgentId, AppId, ConnectionId, ConnectionSettings, ConnectionStatus, EnterpriseId, OrgId,
        TeamId, UserId,
    },
    secrets::{SealContext, SealedValue, Secret},
    store::{
        NewApp, Store, StoreError, column,
        connections::{self, BOT_TOKEN_COLUMN, TABLE, settings},
        inconsistent, nullable,
    },
};
use sqlx::{PgConnection, Row, postgres::PgRow, types::Json};

/// Function that returns the text of a setting.
type Shown = fn(&ConnectionSettings) -> String;

/// Validity of a replaced signing secret in hours. The time of Slack's change is unknown.
const OVERLAP_HOURS: i32 = 24;

impl Store {
    pub(super) async fn apply_connections(
        &self,
        tx: &mut PgConnection,
        declared: &Declarations,
        prune: bool,
        plan: &mut Plan,
    ) -> Result<Vec<ConflictError>, StoreError> {
        let mut existing = self.existing_connections(tx, None, &declared.apps).await?;
        let mut conflicts = Vec::new();
        for (n, new) in declared.connections.iter().enumerate() {
            let mut conflict = |why: String| {
                conflicts.push(ConflictError { at: Declared::Connection(n), why });
            };
            if let Some(why) = self.missing_owner(tx, new).await? {
                conflict(why);
                continue;
            }
            let old = match position_of(new, &existing) {
                Ok(at) => at.map(|at| existing.swap_remove(at)),
                Err(why) => {
                    conflict(why);
                    continue;
                }
            };
            self.apply_connection(tx, new, old, plan).await?;
        }
        for old in existing.into_iter().filter(|old| !old.is_installed) {
            if !prune {
                plan.kept.push(format!("{} ({})", old.label(), old.id));
                continue;
            }
            connections::delete_row(&mut *tx, old.id).await?;
            plan.deleted.push(old.id);
            let label = old.label();
            let object = PlanObject::Connection { id: old.id, org: old.org, label };
            plan.steps.push(PlanStep::delete(object));
        }
        Ok(conflicts)
    }

    /// Returns all connections, or those that [`Only`] selects. `apps` are the declared ones.
    pub(super) async fn existing_connections(
        &self,
        tx: &mut PgConnection,
        only: Option<Only<'_>>,
        apps: &[NewApp],
    ) -> Result<Vec<ExistingConnection>, StoreError> {
        let (id, installation) = match only {
            None => (None, None),
            Some(Only::Id(id)) => (Some(id.to_string()), None),
            Some(Only::Installation(new)) => {
                let enterprise = new.enterprise.as_ref().map(EnterpriseId::as_str);
                let place = new.team.as_ref().map(TeamId::as_str).or(enterprise);
                (None, Some((new.app.as_str(), place.unwrap_or_default())))
            }
        };
        let rows = sqlx::query(
            "-- declared.connections
             select c.id, c.org_id, c.agent_id, c.app_id, c.enterprise_id, c.team_id,
                    c.preview_mode, c.status, c.signing_secret, c.bot_token, c.bot_user_id,
                    c.settings, exists (select from token_rotations t
                                         where t.connection_id = c.id) as rotates,
                    c.installed_by is not null and c.app_id = any ($4) as is_installed
               from connections c
              where ($1::text is null or c.id = $1)
                and ($2::text is null
                     or (c.app_id = $2 and coalesce(c.team_id, c.enterprise_id, '') = $3))
              order by c.id",
        )
        .bind(id)
        .bind(installation.map(|(app, _)| app))
        .bind(installation.map(|(_, place)| place))
        .bind(apps.iter().map(|app| app.id.as_str()).collect::<Vec<_>>())
        .fetch_all(tx)
        .await?;
        rows.iter().map(|row| self.existing_connection(row)).collect()
    }

    pub(super) async fn missing_owner(
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

    pub(super) async fn apply_connection(
        &self,
        tx: &mut PgConnection,
        new: &DeclaredConnection,
        old: Option<ExistingConnection>,
        plan: &mut Plan,
    ) -> Result<(), StoreError> {
        let label = label(&new.app, new.enterprise.as_ref(), new.team.as_ref());
        let (mut diff, before) = (Diff::new(old.is_some()), old.as_ref());
        let flag = |yes: bool| if yes { "true" } else { "false" };
        diff.compare_text(
            "enterprise",
            before.and_then(|c| c.enterprise.as_ref()).map(EnterpriseId::as_str),
            new.enterprise.as_ref().map(EnterpriseId::as_str),
        );
        diff.compare_text(
            "agent",
            before.and_then(|c| c.agent.as_ref()).map(AgentId::as_str),
            new.agent.as_ref().map(AgentId::as_str),
        );
        diff.compare_text(
            "preview_mode",
            before.map(|c| flag(c.preview_mode)),
            Some(flag(new.preview_mode)),
        );
        diff.compare_secret(
            "signing_secret",
            before.and_then(|c| c.signing_secret.as_ref()),
            new.signing_secret.as_ref(),
        );
        let rotates = before.is_some_and(|c| c.rotates);
        let new_token = !rotates
            && diff.compare_secret(
                "bot_token",
                before.and_then(|c| c.bot_token.as_ref()),
                new.bot_token.as_ref(),
            );
        diff.compare_text(
            "bot_user",
            before.and_then(|c| c.bot_user.as_deref()),
            new.bot_user.as_ref().map(UserId::as_str),
        );
        let settings: [(&str, Shown); 6] = [
            ("surfaces", |s| s.surfaces.iter().map(|s| s.as_str()).collect::<Vec<_>>().join(",")),
            ("welcome", |s| s.welcome.to_string()),
            ("answer_bots", |s| s.answer_bots.to_string()),
            ("broadcasts", |s| s.broadcasts.to_string()),
            ("foreign_apps", |s| s.foreign_apps.to_string()),
            ("link_by", |s| s.link_by.to_string()),
        ];
        for (name, of) in settings {
            let old = before.map(|c| of(&c.settings));
            diff.compare_text(name, old.as_deref(), Some(of(&new.settings).as_str()));
        }
        // A new token means a new installation, which clears an error.
        let status = match before.map(|c| c.status) {
            Some(ConnectionStatus::Stopped) => ConnectionStatus::Stopped,
            Some(status) if !(new_token && new.bot_token.is_some()) => status,
            _ if new.bot_token.is_some() => ConnectionStatus::Active,
            _ => ConnectionStatus::Pending,
        };
        diff.compare_text("status", before.map(|c| c.status.as_str()), Some(status.as_str()));
        let id = match before.map(|c| c.id).or(new.id) {
            Some(id) => id,
            None => {
                let id = ConnectionId::random()?;
                plan.random.insert(id);
                id
            }
        };
        plan.connections.push(id);
        if !diff.add_to_plan(plan, PlanObject::Connection { id, org: new.org.clone(), label }) {
            return Ok(());
        }
        let owner = id.to_string();
        let context = SealContext { owner: &owner, column: SIGNING_SECRET_COLUMN };
        let signing_secret = new
            .signing_secret
            .as_ref()
            .map(|secret| self.rings.signing.seal_secret(context, secret))
            .transpose()?;
        let context = SealContext { owner: &owner, column: BOT_TOKEN_COLUMN };
        let token = new
            .bot_token
            .as_ref()
            .map(|t| self.rings.tokens.seal_secret(context, t))
            .transpose()?;
        let exposed = |secret: &Option<Secret>| secret.as_ref().map(|s| s.expose().to_owned());
        let new_secret =
            before.is_some_and(|c| exposed(&c.signing_secret) != exposed(&new.signing_secret));
        sqlx::query(
            "-- declared.put_connection
             insert into connections as c (id, org_id, agent_id, app_id, enterprise_id, team_id,
                                           preview_mode, status, signing_secret, bot_token,
                                           bot_user_id, settings, installed_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,
                     case when $10::text is not null then now() end)
             on conflict (id) do update
                set agent_id = excluded.agent_id, enterprise_id = excluded.enterprise_id,
                    preview_mode = excluded.preview_mode,
                    status = excluded.status, status_reason = case when c.status = excluded.status
                        then c.status_reason else '' end,
                    bot_user_id = excluded.bot_user_id, settings = c.settings || excluded.settings,
                    bot_token = case when $13 then excluded.bot_token else c.bot_token end,
                    installed_at = case when $13 then excluded.installed_at else c.installed_at end,
                    signing_secret_previous = case when $14 then c.signing_secret
                        else c.signing_secret_previous end,
                    signing_secret_previous_until = case when $14 and c.signing_secret is not null
                        then now() + make_interval(hours => $15) when $14 then null
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
        .bind(signing_secret.as_ref().map(SealedValue::as_str))
        .bind(token.as_ref().map(SealedValue::as_str))
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
            let context = SealContext { owner: &key, column };
            ring.open_secret(context, &SealedValue::from_stored(text))
                .map_err(|why| inconsistent(TABLE, name, &key, why))
        };
        let token: Option<String> = row.try_get("bot_token")?;
        let token = token.map(|t| open(&self.rings.tokens, BOT_TOKEN_COLUMN, "bot_token", t));
        let signing: Option<String> = row.try_get("signing_secret")?;
        let signing = signing
            .map(|text| open(&self.rings.signing, SIGNING_SECRET_COLUMN, "signing_secret", text));
        Ok(ExistingConnection {
            id: column(row, TABLE, &key, "id")?,
            org: column(row, TABLE, &key, "org_id")?,
            agent: nullable(row, TABLE, &key, "agent_id")?,
            app: column(row, TABLE, &key, "app_id")?,
            enterprise: nullable(row, TABLE, &key, "enterprise_id")?,
            team: nullable(row, TABLE, &key, "team_id")?,
            preview_mode: row.try_get("preview_mode")?,
            status: column(row, TABLE, &key, "status")?,
            signing_secret: signing.transpose()?,
            bot_token: token.transpose()?,
            bot_user: row.try_get("bot_user_id")?,
            settings: settings(row, &key)?,
            rotates: row.try_get("rotates")?,
            is_installed: row.try_get("is_installed")?,
        })
    }
}

/// Selection of connections.
#[derive(Clone, Copy)]
pub(super) enum Only<'a> {
    /// With this id.
    Id(ConnectionId),
    /// Of this app and installation.
    Installation(&'a DeclaredConnection),
}

/// Returns the position of the installation of a declared connection, or the conflict.
fn position_of(
    new: &DeclaredConnection,
    existing: &[ExistingConnection],
) -> Result<Option<usize>, String> {
    let label = label(&new.app, new.enterprise.as_ref(), new.team.as_ref());
    let at = existing.iter().position(|old| old.is_installation_of(new));
    let by_id = existing.iter().position(|old| Some(old.id) == new.id);
    match (at, by_id) {
        (None, Some(other)) => Err(format!(
            "connection {} belongs to another installation ({}): omit its id, or delete it first",
            existing[other].id,
            existing[other].label()
        )),
        (Some(at), _) if new.id.is_some_and(|id| id != existing[at].id) => {
            Err(format!("{label} already exists as {}: write that id, or none", existing[at].id))
        }
        (Some(at), _) if existing[at].org != new.org => Err(format!(
            "{label} belongs to organization {}: delete it first \
             (tidegate connections delete {})",
            existing[at].org, existing[at].id
        )),
        (at, _) => Ok(at),
    }
}

/// Connection in the database.
pub(super) struct ExistingConnection {
    pub(super) id: ConnectionId,
    pub(super) org: OrgId,
    pub(super) agent: Option<AgentId>,
    pub(super) app: AppId,
    pub(super) enterprise: Option<EnterpriseId>,
    pub(super) team: Option<TeamId>,
    pub(super) preview_mode: bool,
    pub(super) status: ConnectionStatus,
    pub(super) signing_secret: Option<Secret>,
    pub(super) bot_token: Option<Secret>,
    pub(super) bot_user: Option<String>,
    pub(super) settings: ConnectionSettings,
    pub(super) rotates: bool,
    /// True if a person installed the connection and its app is declared.
    pub(super) is_installed: bool,
}

impl ExistingConnection {
    fn is_installation_of(&self, new: &DeclaredConnection) -> bool {
        team_key(&self.app, self.enterprise.as_ref(), self.team.as_ref())
            == team_key(&new.app, new.enterprise.as_ref(), new.team.as_ref())
    }

    fn label(&self) -> String {
        label(&self.app, self.enterprise.as_ref(), self.team.as_ref())
    }
}

/// Returns the label of a connection in messages.
pub(super) fn label(
    app: &AppId,
    enterprise: Option<&EnterpriseId>,
    team: Option<&TeamId>,
) -> String {
    let installation = [enterprise.map(EnterpriseId::as_str), team.map(TeamId::as_str)];
    let installation: Vec<&str> = installation.into_iter().flatten().collect();
    let rest = if installation.is_empty() { "preview".into() } else { installation.join("/") };
    format!("connection {app}/{rest}")
}
