//! Creation, change and deletion of connections, and their secrets.

use super::{
    Problem, Shared,
    caller::{Owner, require_org},
    connections::{Connection, find},
    extract::{Json, Path, nullable, optional_integer},
    link_codes::SurfaceInput,
    problem::Failures,
};
use axum::{extract::State, http::StatusCode};
use serde::Deserialize;
use shared::{
    domain::{
        AgentId, AppId, ConnectionId, ConnectionSettings, EnterpriseId, LinkBy, OrgId,
        SettingsChange, TeamId, UserId,
    },
    secrets::Secret,
    store::{ConnectionChange, DeclaredConnection, NewTokenRotation},
};
use std::time::Duration;
use utoipa::ToSchema;

/// Default time for which a replaced signing secret stays valid.
const DEFAULT_OVERLAP_SECONDS: u64 = 24 * 3600;
/// Default remaining validity of a token: that of Slack's new tokens.
const DEFAULT_TOKEN_SECONDS: u64 = 12 * 3600;

/// Connection to create: an installation of a Slack app.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConnectionInput {
    /// Organization that owns the connection.
    #[schema(value_type = String, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    organization: OrgId,
    /// Agent of conversations without a binding.
    #[schema(value_type = Option<String>, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    agent: Option<AgentId>,
    /// Slack's id of the app.
    #[schema(value_type = String, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    app: AppId,
    /// Slack's id of the Enterprise organization.
    #[schema(value_type = Option<String>, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    enterprise: Option<EnterpriseId>,
    /// Slack's id of the workspace. Required without an enterprise or `preview_mode`.
    #[schema(value_type = Option<String>, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    team: Option<TeamId>,
    /// Accept link codes of all organizations.
    #[serde(default)]
    preview_mode: bool,
    /// Signing secret of the app.
    #[schema(write_only, min_length = 1, pattern = r"^[^\x00]*$")]
    signing_secret: String,
    /// Bot token. Without one the connection is pending.
    #[schema(write_only, min_length = 1, pattern = r"^[^\x00]*$")]
    bot_token: Option<String>,
    /// Slack's id of the bot user.
    #[schema(value_type = Option<String>, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    bot_user: Option<UserId>,
    #[serde(default)]
    settings: SettingsInput,
}

/// Settings of a connection. Omitted settings keep their values, or get their defaults.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SettingsInput {
    /// Types of conversations in which the app answers. Default: both.
    surfaces: Option<Vec<SurfaceInput>>,
    /// Default: true.
    welcome: Option<bool>,
    /// Default: false.
    answer_bots: Option<bool>,
    /// Default: false.
    broadcasts: Option<bool>,
    /// Default: false.
    foreign_apps: Option<bool>,
    /// Default: `anyone`.
    link_by: Option<LinkByInput>,
}

/// People who may link conversations.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LinkByInput {
    /// Any member of the workspace.
    Anyone,
    /// The person who linked the conversation.
    Binder,
    /// Members of the organization.
    Admins,
}

impl From<SettingsInput> for SettingsChange {
    fn from(input: SettingsInput) -> Self {
        let surfaces = input.surfaces.map(|all| all.into_iter().map(Into::into).collect());
        let link_by = input.link_by.map(|who| match who {
            LinkByInput::Anyone => LinkBy::Anyone,
            LinkByInput::Binder => LinkBy::Binder,
            LinkByInput::Admins => LinkBy::Admins,
        });
        Self {
            surfaces,
            welcome: input.welcome,
            answer_bots: input.answer_bots,
            broadcasts: input.broadcasts,
            foreign_apps: input.foreign_apps,
            link_by,
        }
    }
}

/// Change of a connection. Omitted fields stay unchanged; null removes a value.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConnectionPatch {
    /// Agent of conversations without a binding.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    agent: Option<Option<AgentId>>,
    /// Bot token. A new token is a new installation: the connection becomes active.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>, write_only, min_length = 1, pattern = r"^[^\x00]*$")]
    bot_token: Option<Option<String>>,
    /// Slack's id of the bot user.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    bot_user: Option<Option<UserId>>,
    #[serde(default)]
    settings: Option<SettingsInput>,
}

/// Signing secret that replaces the previous one.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SigningSecretInput {
    /// New signing secret of the app.
    #[schema(write_only, min_length = 1, pattern = r"^[^\x00]*$")]
    secret: String,
    /// Time for which the previous secret stays valid. Default: 86400.
    #[serde(default, deserialize_with = "optional_integer")]
    #[schema(minimum = 0, maximum = 2592000)]
    overlap_seconds: Option<u64>,
}

/// Credentials that workers use to refresh a token before it expires.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRotationInput {
    /// Client id of the app.
    #[schema(min_length = 1, max_length = 256, pattern = r"^[^\x00]*$")]
    client_id: String,
    /// Client secret of the app.
    #[schema(write_only, min_length = 1, pattern = r"^[^\x00]*$")]
    client_secret: String,
    /// Refresh token that Slack returned with the token.
    #[schema(write_only, min_length = 1, pattern = r"^[^\x00]*$")]
    refresh_token: String,
    /// Remaining validity of the token. Default: 43200.
    #[serde(default, deserialize_with = "optional_integer")]
    #[schema(minimum = 0, maximum = 2592000)]
    expires_in_seconds: Option<u64>,
}

fn secret(text: String) -> Result<Secret, Problem> {
    Secret::new(text).map_err(|error| Problem::invalid(error.to_string()))
}

/// Returns a duration of at most 30 days, as the schema requires.
fn seconds(name: &str, value: Option<u64>, default: u64) -> Result<Duration, Problem> {
    /// Maximum of all durations.
    const MAX_SECONDS: u64 = 30 * 24 * 3600;
    match value.unwrap_or(default) {
        value @ 0..=MAX_SECONDS => Ok(Duration::from_secs(value)),
        _ => Err(Problem::invalid(format!("{name} must be 0 to {MAX_SECONDS}"))),
    }
}

/// Create a connection. Returns when every ingest has applied it.
#[utoipa::path(
    post, path = "/v1/connections", operation_id = "createConnection", tag = "connections",
    request_body = ConnectionInput,
    responses((status = 201, body = Connection), Failures)
)]
pub async fn create(
    State(api): Shared,
    Owner(caller): Owner,
    Json(input): Json<ConnectionInput>,
) -> Result<(StatusCode, Json<Connection>), Problem> {
    require_org(&caller, &input.organization)?;
    let new = DeclaredConnection {
        id: None,
        org: input.organization,
        agent: input.agent,
        app: input.app,
        enterprise: input.enterprise,
        team: input.team,
        preview_mode: input.preview_mode,
        signing_secret: Some(secret(input.signing_secret)?),
        bot_token: input.bot_token.map(secret).transpose()?,
        bot_user: input.bot_user,
        settings: SettingsChange::from(input.settings).apply(ConnectionSettings::default()),
    };
    let id = api.operations(&caller).create_connection(&api.js, &new).await?;
    Ok((StatusCode::CREATED, Json(find(&api, &caller, id).await?.into())))
}

/// Change a connection. Returns when every ingest has applied it.
#[utoipa::path(
    patch, path = "/v1/connections/{connection}", operation_id = "changeConnection",
    tag = "connections",
    params(("connection" = String, Path, description = "Id of the connection.")),
    request_body = ConnectionPatch,
    responses((status = 200, body = Connection), Failures)
)]
pub async fn change(
    State(api): Shared,
    Owner(caller): Owner,
    Path(id): Path<ConnectionId>,
    Json(patch): Json<ConnectionPatch>,
) -> Result<Json<Connection>, Problem> {
    find(&api, &caller, id).await?;
    let token = |token: Option<String>| token.map(secret).transpose();
    let change = ConnectionChange {
        agent: patch.agent,
        signing_secret: None,
        bot_token: patch.bot_token.map(token).transpose()?,
        bot_user: patch.bot_user,
        settings: patch.settings.map(Into::into).unwrap_or_default(),
    };
    api.operations(&caller).change_connection(&api.js, id, change).await?;
    Ok(Json(find(&api, &caller, id).await?.into()))
}

/// Delete a connection. Returns when every ingest has applied it. Workers delete its data later.
#[utoipa::path(
    delete, path = "/v1/connections/{connection}", operation_id = "deleteConnection",
    tag = "connections",
    params(("connection" = String, Path, description = "Id of the connection.")),
    responses((status = 204, description = "Deleted."), Failures)
)]
pub async fn delete(
    State(api): Shared,
    Owner(caller): Owner,
    Path(id): Path<ConnectionId>,
) -> Result<StatusCode, Problem> {
    api.operations(&caller).delete_connection(&api.js, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Replace the signing secret of a connection. The previous one stays valid for `overlap_seconds`.
#[utoipa::path(
    post, path = "/v1/connections/{connection}/rotate-signing-secret",
    operation_id = "rotateSigningSecret", tag = "connections",
    params(("connection" = String, Path, description = "Id of the connection.")),
    request_body = SigningSecretInput,
    responses((status = 204, description = "Replaced on every ingest."), Failures)
)]
pub async fn rotate_signing_secret(
    State(api): Shared,
    Owner(caller): Owner,
    Path(id): Path<ConnectionId>,
    Json(input): Json<SigningSecretInput>,
) -> Result<StatusCode, Problem> {
    let overlap = seconds("overlap_seconds", input.overlap_seconds, DEFAULT_OVERLAP_SECONDS)?;
    let new = secret(input.secret)?;
    api.operations(&caller).rotate_signing_secret(&api.js, id, &new, overlap).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Let workers refresh the bot token of a connection before it expires.
#[utoipa::path(
    post, path = "/v1/connections/{connection}/enable-token-rotation",
    operation_id = "enableTokenRotation", tag = "connections",
    params(("connection" = String, Path, description = "Id of the connection.")),
    request_body = TokenRotationInput,
    responses((status = 204, description = "Enabled."), Failures)
)]
pub async fn enable_token_rotation(
    State(api): Shared,
    Owner(caller): Owner,
    Path(id): Path<ConnectionId>,
    Json(input): Json<TokenRotationInput>,
) -> Result<StatusCode, Problem> {
    if !find(&api, &caller, id).await?.has_bot_token {
        return Err(Problem::conflict("the connection has no bot token"));
    }
    if input.client_id.is_empty() || input.client_id.chars().count() > 256 {
        return Err(Problem::invalid("client_id must have 1 to 256 characters"));
    }
    let expires_in =
        seconds("expires_in_seconds", input.expires_in_seconds, DEFAULT_TOKEN_SECONDS)?;
    let rotation = NewTokenRotation {
        connection: id,
        client_id: input.client_id,
        client_secret: secret(input.client_secret)?,
        refresh_token: secret(input.refresh_token)?,
        expires_in,
    };
    api.operations(&caller).enable_token_rotation(&rotation).await?;
    Ok(StatusCode::NO_CONTENT)
}
