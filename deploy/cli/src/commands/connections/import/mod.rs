//! `tidegate connections import`: creates connections from the installations of a Bolt app.
//!
//! Looks up each token in Slack before storing its connection. Skips a connection that already has
//! the token, without a call, so that an interrupted import continues where it stopped.

mod file;

use crate::{
    output,
    settings::{self, Keyrings, NatsSettings, StoreSettings},
    slack_api::{self, SlackApi, TokenLookup},
};
use anyhow::{bail, ensure};
use async_nats::jetstream;
use file::{ReadRow, Row};
use reqwest::Url;
use serde::Serialize;
use shared::{
    domain::{AgentId, AppId, ConnectionId, ConnectionSettings, OrgId, UserId},
    operations::{OperationError, Operations},
    secrets::Secret,
    store::{ConnectionChange, DeclaredConnection, NewTokenRotation, Store},
};
use std::{path::PathBuf, time::Duration};
use time::OffsetDateTime;
use tokio::time::Instant;

/// Arguments of `tidegate connections import`.
#[derive(Debug, clap::Args)]
pub struct Import {
    /// File of installations (JSON of Bolt for JavaScript or Python, or CSV), or folder of a
    /// FileInstallationStore.
    path: PathBuf,
    /// Organization of the connections.
    #[arg(long, value_name = "ORGANIZATION")]
    org: OrgId,
    /// Agent of conversations without a binding.
    #[arg(long)]
    agent: Option<AgentId>,
    /// App id, if the file does not contain it.
    #[arg(long)]
    app: Option<AppId>,
    /// Signing secret of the app, as file:<path>, env:<name>, or - for standard input.
    #[arg(long, value_parser = settings::secret)]
    signing_secret: Secret,
    /// Client id of the app. Required if its tokens rotate.
    #[arg(long, requires = "client_secret")]
    client_id: Option<String>,
    /// Client secret of the app, in the same form as the signing secret.
    #[arg(long, value_parser = settings::secret, requires = "client_id")]
    client_secret: Option<Secret>,
    /// Check each token without storing anything.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON, one row per line.
    #[arg(long)]
    json: bool,
    /// Base URL of Slack's Web API.
    #[arg(
        long,
        env = "TIDEGATE_SLACK_API_URL",
        value_name = "URL",
        default_value = "https://slack.com/api/"
    )]
    slack_api_url: Url,
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    keyrings: Keyrings,
    #[command(flatten)]
    nats: NatsSettings,
}

/// Result of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    /// The connection was created, or would be in a real run.
    Created,
    /// The connection got a new token, or would in a real run.
    Changed,
    /// The connection already has the token.
    Unchanged,
    /// The row is unusable, or Slack rejects its token.
    Failed,
}

/// Reported result of a row.
#[derive(Debug, Serialize)]
struct Report {
    row: String,
    outcome: Outcome,
    installation: String,
    connection: Option<ConnectionId>,
    note: String,
}

/// App and bot user of a row's token.
struct CheckedRow {
    app: AppId,
    bot_user: Option<UserId>,
    /// True if the token has expired. Workers refresh it.
    expired: bool,
}

impl Import {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        let rows = file::read(&self.path)?;
        ensure!(!rows.is_empty(), "{} contains no installation", self.path.display());
        let store = self.store.open_with(self.keyrings.rings())?;
        let (js, operations) = (self.nats.jetstream().await?, self.store.operations(&store)?);
        let slack = SlackApi::new(&self.slack_api_url)?;
        let (mut failed, mut next) = (0, Instant::now());
        let total = rows.len();
        for row in rows {
            let report = self.import(row, (&store, &js, &operations), &slack, &mut next).await?;
            failed += usize::from(report.outcome == Outcome::Failed);
            self.print(&report)?;
        }
        if !self.json {
            output::print_line(&format!("rows: {total}, failed: {failed}"))?;
        }
        match failed {
            0 => Ok(()),
            _ => bail!("{failed} of {total} rows failed; correct them and run the import again"),
        }
    }

    fn print(&self, report: &Report) -> anyhow::Result<()> {
        if self.json {
            return output::print_json(report);
        }
        let outcome = match (report.outcome, self.dry_run) {
            (Outcome::Created, false) => "created",
            (Outcome::Created, true) => "to create",
            (Outcome::Changed, false) => "changed",
            (Outcome::Changed, true) => "to change",
            (Outcome::Unchanged, _) => "unchanged",
            (Outcome::Failed, _) => "FAILED",
        };
        let id = report.connection.map(|id| id.to_string()).unwrap_or_default();
        let note = output::sanitize(&report.note);
        let (row, place) = (output::sanitize(&report.row), &report.installation);
        Ok(output::print_line(format!("{row}: {outcome} {place} {id} {note}").trim_end())?)
    }

    /// Imports a row. Returns an error only if Postgres or NATS fails.
    async fn import(
        &self,
        read: ReadRow,
        (store, js, operations): (&Store, &jetstream::Context, &Operations),
        slack: &SlackApi,
        next: &mut Instant,
    ) -> anyhow::Result<Report> {
        let failed = |place: &str, installation: String, note: String| Report {
            row: place.to_owned(),
            outcome: Outcome::Failed,
            installation,
            connection: None,
            note,
        };
        let row = match read.row {
            Ok(row) => row,
            Err(why) => return Ok(failed(&read.place, String::new(), why)),
        };
        let ids = [
            row.enterprise.as_ref().map(|id| id.as_str()),
            row.team.as_ref().map(|id| id.as_str()),
        ];
        let place = ids.into_iter().flatten().collect::<Vec<_>>().join("/");
        let report = |outcome, connection, note: &str| Report {
            row: read.place.clone(),
            outcome,
            installation: place.clone(),
            connection,
            note: note.to_owned(),
        };
        if row.refresh_token.is_some() && self.client_id.is_none() {
            let why = "the token rotates; pass --client-id and --client-secret";
            return Ok(failed(&read.place, place, why.into()));
        }
        let known_app = row.app.clone().or_else(|| self.app.clone());
        if let Some(app) = &known_app
            && let Some(id) =
                store.installed_connection(app, row.enterprise.as_ref(), row.team.as_ref()).await?
            && store
                .load_bot_token(id)
                .await?
                .is_some_and(|token| token.expose() == row.bot_token.expose())
        {
            return Ok(report(Outcome::Unchanged, Some(id), ""));
        }
        let look_up = async || slack.look_up_token(&row.bot_token).await;
        let lookup = slack_api::look_up_paced(look_up, next).await;
        let checked = match check(&row, known_app, lookup) {
            Ok(checked) => checked,
            Err(why) => return Ok(failed(&read.place, place, why)),
        };
        let (enterprise, team) = (row.enterprise.as_ref(), row.team.as_ref());
        let existing = store.installed_connection(&checked.app, enterprise, team).await?;
        let outcome = if existing.is_some() { Outcome::Changed } else { Outcome::Created };
        let note = if checked.expired { "the token has expired; workers refresh it" } else { "" };
        if self.dry_run {
            return Ok(report(outcome, existing, note));
        }
        match self.save(&row, checked, existing, js, operations).await {
            Ok(id) => Ok(report(outcome, Some(id), note)),
            Err(OperationError::Conflict(why) | OperationError::Invalid(why)) => {
                Ok(failed(&read.place, place, why))
            }
            Err(OperationError::NotFound(what)) => {
                Ok(failed(&read.place, place, format!("{what} does not exist")))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn save(
        &self,
        row: &Row,
        checked: CheckedRow,
        existing: Option<ConnectionId>,
        js: &jetstream::Context,
        operations: &Operations,
    ) -> Result<ConnectionId, OperationError> {
        let id = match existing {
            Some(id) => {
                let change = ConnectionChange {
                    bot_token: Some(Some(row.bot_token.clone())),
                    bot_user: checked.bot_user.map(Some),
                    ..ConnectionChange::default()
                };
                operations.change_connection(js, id, change).await?;
                id
            }
            None => {
                let new = DeclaredConnection {
                    id: None,
                    org: self.org.clone(),
                    agent: self.agent.clone(),
                    app: checked.app,
                    enterprise: row.enterprise.clone(),
                    team: row.team.clone(),
                    preview_mode: false,
                    signing_secret: Some(self.signing_secret.clone()),
                    bot_token: Some(row.bot_token.clone()),
                    bot_user: checked.bot_user,
                    settings: ConnectionSettings::default(),
                };
                operations.create_connection(js, &new).await?
            }
        };
        if let (Some(refresh_token), Some(client_id), Some(client_secret)) =
            (&row.refresh_token, &self.client_id, &self.client_secret)
        {
            let rotation = NewTokenRotation {
                connection: id,
                client_id: client_id.clone(),
                client_secret: client_secret.clone(),
                refresh_token: refresh_token.clone(),
                expires_in: remaining(row.expires_at),
            };
            operations.enable_token_rotation(&rotation).await?;
        }
        Ok(id)
    }
}

/// Compares a row with its token in Slack. The error is the reason why the row fails.
fn check(row: &Row, known_app: Option<AppId>, lookup: TokenLookup) -> Result<CheckedRow, String> {
    match lookup {
        TokenLookup::Found(facts) => {
            let (own, named) = (&facts.installation, (&row.enterprise, &row.team));
            let is_same = match (&own.team, named.1) {
                (Some(team), Some(named)) => team == named,
                (None, None) => own.enterprise == *named.0,
                _ => false,
            };
            if !is_same {
                return Err("the token belongs to another workspace".into());
            }
            let app = facts.app.and_then(|app| app.parse().ok());
            match (app, known_app) {
                (Some(own), Some(named)) if own != named => {
                    Err(format!("the token belongs to app {own}"))
                }
                (Some(app), _) | (None, Some(app)) => Ok(CheckedRow {
                    app,
                    bot_user: facts.bot_user.and_then(|user| user.parse().ok()),
                    expired: false,
                }),
                (None, None) => Err("the app is unknown; pass --app".into()),
            }
        }
        TokenLookup::Rejected(code) if code == "token_expired" && row.refresh_token.is_some() => {
            let app = known_app.ok_or("the app is unknown; pass --app")?;
            Ok(CheckedRow { app, bot_user: None, expired: true })
        }
        TokenLookup::Rejected(code) => Err(format!("Slack rejects the token: {code}")),
        TokenLookup::RateLimited(_) => Err("Slack limits the rate of calls".into()),
        TokenLookup::Failed(why) => Err(why),
    }
}

/// Returns the remaining validity of a token. An unknown expiry gives zero, so that workers refresh
/// the token immediately.
#[expect(clippy::disallowed_methods, reason = "compares an expiry time with the clock")]
fn remaining(expires_at: Option<i64>) -> Duration {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let seconds = expires_at.map_or(0, |at| at.saturating_sub(now));
    Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}
