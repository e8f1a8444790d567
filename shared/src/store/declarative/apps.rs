//! Declared apps. The id identifies an app.

use super::{
    ConflictError, Declarations, Declared, Plan, PlanStep,
    plan::{Diff, PlanObject},
};
use crate::{
    domain::{AgentId, AppId, OrgId},
    secrets::{KeyRing, SealContext, SealedValue, Secret},
    store::{
        MAX_APPS, NewApp, Store, StoreError,
        apps::{TABLE, client_context, signing_context},
        column, inconsistent, nullable,
    },
};
use sqlx::{PgConnection, Row, postgres::PgRow};
use std::collections::BTreeMap;

/// Validity of a replaced secret in hours. The time of Slack's change is unknown.
const OVERLAP_HOURS: i32 = 24;
/// Maximum connections of an undeclared app that a conflict lists.
const LISTED_CONNECTIONS: i64 = 20;

/// App in the database.
struct ExistingApp {
    name: String,
    org: Option<OrgId>,
    client_id: String,
    client_secret: Secret,
    signing_secret: Secret,
    scopes: Vec<String>,
    optional_scopes: Vec<String>,
    redirect_url: String,
    return_urls: Vec<String>,
    agent: Option<AgentId>,
    contact: String,
}

impl Store {
    /// Creates and changes apps.
    pub(super) async fn apply_apps(
        &self,
        tx: &mut PgConnection,
        declared: &Declarations,
        plan: &mut Plan,
    ) -> Result<Vec<ConflictError>, StoreError> {
        let rows = sqlx::query(
            "-- declared.apps
             select id, name, org_id, client_id, client_secret, signing_secret, scopes,
                    optional_scopes, redirect_url, return_urls, agent_id, contact
               from apps order by id",
        )
        .fetch_all(&mut *tx)
        .await?;
        let mut existing = BTreeMap::new();
        for row in &rows {
            let id: AppId = column(row, TABLE, row.try_get("id")?, "id")?;
            let app = self.existing_app(row, &id)?;
            existing.insert(id, app);
        }
        let mut conflicts = Vec::new();
        if declared.apps.len() > MAX_APPS {
            let why = format!("a deployment has at most {MAX_APPS} apps");
            conflicts.push(ConflictError { at: Declared::App(MAX_APPS), why });
        }
        for (n, new) in declared.apps.iter().enumerate() {
            if let Some(why) = missing_owner(tx, new).await? {
                conflicts.push(ConflictError { at: Declared::App(n), why });
                continue;
            }
            plan.apps.push(new.id.clone());
            self.apply_app(tx, new, existing.get(&new.id), plan).await?;
        }
        Ok(conflicts)
    }

    async fn apply_app(
        &self,
        tx: &mut PgConnection,
        new: &NewApp,
        before: Option<&ExistingApp>,
        plan: &mut Plan,
    ) -> Result<(), StoreError> {
        let mut diff = Diff::new(before.is_some());
        let text = |id: Option<&OrgId>| id.map(|id| id.as_str().to_owned());
        let list = |items: &[String]| items.join(",");
        for (name, old, new) in [
            ("name", before.map(|a| a.name.clone()), Some(new.name.clone())),
            ("organization", before.and_then(|a| text(a.org.as_ref())), text(new.org.as_ref())),
            ("client_id", before.map(|a| a.client_id.clone()), Some(new.client_id.clone())),
            ("scopes", before.map(|a| list(&a.scopes)), Some(list(&new.scopes))),
            (
                "optional_scopes",
                before.map(|a| list(&a.optional_scopes)),
                Some(list(&new.optional_scopes)),
            ),
            (
                "redirect_url",
                before.map(|a| a.redirect_url.clone()),
                Some(new.redirect_url.clone()),
            ),
            ("return_urls", before.map(|a| list(&a.return_urls)), Some(list(&new.return_urls))),
            (
                "agent",
                before.and_then(|a| a.agent.as_ref()).map(ToString::to_string),
                new.agent.as_ref().map(ToString::to_string),
            ),
            ("contact", before.map(|a| a.contact.clone()), Some(new.contact.clone())),
        ] {
            diff.compare_text(name, old.as_deref(), new.as_deref());
        }
        let secret = before.map(|a| &a.client_secret);
        let new_client = diff.compare_secret("client_secret", secret, Some(&new.client_secret));
        let secret = before.map(|a| &a.signing_secret);
        let new_signing = diff.compare_secret("signing_secret", secret, Some(&new.signing_secret));
        let object = PlanObject::App(new.id.clone(), new.org.clone());
        if !diff.add_to_plan(plan, object) {
            return Ok(());
        }
        let client = self.rings.tokens.seal_secret(client_context(&new.id), &new.client_secret)?;
        let signing =
            self.rings.signing.seal_secret(signing_context(&new.id), &new.signing_secret)?;
        sqlx::query(
            "-- declared.put_app
             insert into apps as a (id, name, org_id, client_id, client_secret, signing_secret,
                                    scopes, optional_scopes, redirect_url, return_urls, agent_id,
                                    contact)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
             on conflict (id) do update
                set name = excluded.name, org_id = excluded.org_id,
                    client_id = excluded.client_id, scopes = excluded.scopes,
                    optional_scopes = excluded.optional_scopes,
                    redirect_url = excluded.redirect_url, return_urls = excluded.return_urls,
                    agent_id = excluded.agent_id, contact = excluded.contact,
                    client_secret = case when $13 then excluded.client_secret
                        else a.client_secret end,
                    client_secret_previous = case when $13 then a.client_secret
                        else a.client_secret_previous end,
                    client_secret_previous_until = case when $13
                        then now() + make_interval(hours => $15)
                        else a.client_secret_previous_until end,
                    signing_secret = case when $14 then excluded.signing_secret
                        else a.signing_secret end,
                    signing_secret_previous = case when $14 then a.signing_secret
                        else a.signing_secret_previous end,
                    signing_secret_previous_until = case when $14
                        then now() + make_interval(hours => $15)
                        else a.signing_secret_previous_until end",
        )
        .bind(new.id.as_str())
        .bind(&new.name)
        .bind(new.org.as_ref().map(OrgId::as_str))
        .bind(&new.client_id)
        .bind(client.as_str())
        .bind(signing.as_str())
        .bind(&new.scopes)
        .bind(&new.optional_scopes)
        .bind(&new.redirect_url)
        .bind(&new.return_urls)
        .bind(new.agent.as_ref().map(AgentId::as_str))
        .bind(&new.contact)
        .bind(new_client)
        .bind(new_signing)
        .bind(OVERLAP_HOURS)
        .execute(tx)
        .await?;
        Ok(())
    }

    fn existing_app(&self, row: &PgRow, id: &AppId) -> Result<ExistingApp, StoreError> {
        let open = |ring: &KeyRing,
                    context: SealContext<'_>,
                    name: &'static str|
         -> Result<Secret, StoreError> {
            let sealed = SealedValue::from_stored(row.try_get(name)?);
            let opened = ring.open_secret(context, &sealed);
            opened.map_err(|error| inconsistent(TABLE, name, id.as_str(), error))
        };
        Ok(ExistingApp {
            name: row.try_get("name")?,
            org: nullable(row, TABLE, id.as_str(), "org_id")?,
            client_id: row.try_get("client_id")?,
            client_secret: open(&self.rings.tokens, client_context(id), "client_secret")?,
            signing_secret: open(&self.rings.signing, signing_context(id), "signing_secret")?,
            scopes: row.try_get("scopes")?,
            optional_scopes: row.try_get("optional_scopes")?,
            redirect_url: row.try_get("redirect_url")?,
            return_urls: row.try_get("return_urls")?,
            agent: nullable(row, TABLE, id.as_str(), "agent_id")?,
            contact: row.try_get("contact")?,
        })
    }
}

/// Returns the conflict of an app whose organization or agent does not exist.
async fn missing_owner(tx: &mut PgConnection, new: &NewApp) -> Result<Option<String>, StoreError> {
    let Some(org) = &new.org else { return Ok(None) };
    let row = sqlx::query(
        "-- declared.app_owner
         select exists (select from organizations where id = $1) as org,
                $2::text is null or exists (select from agents where org_id = $1 and id = $2)
                    as agent",
    )
    .bind(org.as_str())
    .bind(new.agent.as_ref().map(AgentId::as_str))
    .fetch_one(tx)
    .await?;
    if !row.try_get::<bool, _>("org")? {
        return Ok(Some(format!("there is no organization {org}: declare it as [[organization]]")));
    }
    Ok(match &new.agent {
        Some(agent) if !row.try_get::<bool, _>("agent")? => {
            Some(format!("organization {org} has no agent {agent}: declare it as [[agent]]"))
        }
        _ => None,
    })
}

/// Returns the ids of apps that are not declared, with their organizations, and one conflict for
/// each that has connections.
pub(super) async fn undeclared_apps(
    tx: &mut PgConnection,
    declared: &Declarations,
) -> Result<(Vec<PlanObject>, Vec<ConflictError>), StoreError> {
    let ids: Vec<&str> = declared.apps.iter().map(|app| app.id.as_str()).collect();
    let rows = sqlx::query(
        "-- declared.undeclared_apps
         select a.id, a.org_id, (select count(*) from connections c where c.app_id = a.id) as n,
                array (select c.id || ' (' || c.org_id || ', '
                              || coalesce(c.team_id, c.enterprise_id, 'preview') || ')'
                         from connections c where c.app_id = a.id
                        order by c.org_id, c.id limit $2) as connections
           from apps a where a.id <> all ($1) order by a.id",
    )
    .bind(ids)
    .bind(LISTED_CONNECTIONS)
    .fetch_all(tx)
    .await?;
    let (mut undeclared, mut conflicts) = (Vec::new(), Vec::new());
    for row in &rows {
        let id: AppId = column(row, TABLE, row.try_get("id")?, "id")?;
        let (n, listed): (i64, Vec<String>) = (row.try_get("n")?, row.try_get("connections")?);
        if n > 0 {
            let more = n - listed.len() as i64;
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let why = format!(
                "app {id} is not in the file and has connections, which would be deleted with \
                 their data: {}{more}; declare the app, or pass --yes",
                listed.join(", ")
            );
            conflicts.push(ConflictError { at: Declared::Nothing, why });
        }
        let org = nullable(row, TABLE, id.as_str(), "org_id")?;
        undeclared.push(PlanObject::App(id, org));
    }
    Ok((undeclared, conflicts))
}

/// Deletes apps, whose connections are deleted already.
pub(super) async fn delete_apps(
    tx: &mut PgConnection,
    undeclared: Vec<PlanObject>,
    plan: &mut Plan,
) -> Result<(), StoreError> {
    for object in undeclared {
        if let PlanObject::App(id, _) = &object {
            sqlx::query("-- declared.delete_app\n delete from apps where id = $1")
                .bind(id.as_str())
                .execute(&mut *tx)
                .await?;
            plan.deleted_apps.push(id.clone());
        }
        plan.steps.push(PlanStep::delete(object));
    }
    Ok(())
}
