//! TOML schema of the file of `tidegate apply`. `deploy/tidegate.example.toml` is an example with
//! every key and its meaning.

use crate::domain::{
    AgentId, AgentMode, AppId, ConnectionId, ConnectionSettings, EditPolicy, EnterpriseId, LinkBy,
    NotificationEvent, OrgId, OverlapPolicy, Surface, TeamId, UserId,
};
use serde::Deserialize;
use std::collections::BTreeMap;
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    #[serde(default)]
    pub organization: Vec<Organization>,
    #[serde(default)]
    pub member: Vec<Member>,
    #[serde(default)]
    pub agent: Vec<Agent>,
    #[serde(default)]
    pub app: Vec<App>,
    #[serde(default)]
    pub connection: Vec<Connection>,
    pub notifications: Option<Notifications>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Notifications {
    pub url: Spanned<String>,
    pub secret: Spanned<String>,
    pub events: Option<Vec<NotificationEvent>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct App {
    pub id: Spanned<AppId>,
    #[serde(default)]
    pub name: String,
    pub organization: Option<OrgId>,
    pub client_id: Spanned<String>,
    pub client_secret: Spanned<String>,
    pub signing_secret: Spanned<String>,
    pub scopes: Vec<Spanned<String>>,
    #[serde(default)]
    pub optional_scopes: Vec<Spanned<String>>,
    pub redirect_url: Spanned<String>,
    #[serde(default)]
    pub return_urls: Vec<Spanned<String>>,
    pub agent: Option<AgentId>,
    #[serde(default)]
    pub contact: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Organization {
    pub id: Spanned<OrgId>,
    #[serde(default)]
    pub name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    pub organization: Spanned<OrgId>,
    pub user: Spanned<AgentId>,
    pub slack: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    pub organization: Spanned<OrgId>,
    pub id: Spanned<AgentId>,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub mode: AgentMode,
    pub url: Spanned<String>,
    pub secret: Spanned<String>,
    pub timeout: Option<Spanned<String>>,
    pub max_concurrent: Option<Spanned<u16>>,
    pub max_per_user: Option<Spanned<u32>>,
    pub retry_for: Option<Spanned<String>>,
    pub keep_for: Option<Spanned<String>>,
    #[serde(default)]
    pub edits: EditPolicy,
    #[serde(default)]
    pub overlap: OverlapPolicy,
    #[serde(default)]
    pub headers: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    pub signs_as_slack: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connection {
    pub id: Option<ConnectionId>,
    pub organization: OrgId,
    pub agent: Option<AgentId>,
    pub app: Spanned<AppId>,
    pub enterprise: Option<EnterpriseId>,
    pub team: Option<TeamId>,
    #[serde(default)]
    pub preview_mode: bool,
    pub signing_secret: Option<Spanned<String>>,
    pub bot_token: Option<Spanned<String>>,
    pub bot_user: Option<UserId>,
    #[serde(default)]
    pub settings: SettingsTable,
}

/// [`ConnectionSettings`] without unknown keys.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingsTable {
    pub surfaces: Option<Vec<Surface>>,
    pub welcome: Option<bool>,
    pub answer_bots: Option<bool>,
    pub broadcasts: Option<bool>,
    pub foreign_apps: Option<bool>,
    pub link_by: Option<LinkBy>,
}

impl From<SettingsTable> for ConnectionSettings {
    fn from(table: SettingsTable) -> Self {
        let default = ConnectionSettings::default();
        ConnectionSettings {
            surfaces: table.surfaces.unwrap_or(default.surfaces),
            welcome: table.welcome.unwrap_or(default.welcome),
            answer_bots: table.answer_bots.unwrap_or(default.answer_bots),
            broadcasts: table.broadcasts.unwrap_or(default.broadcasts),
            foreign_apps: table.foreign_apps.unwrap_or(default.foreign_apps),
            link_by: table.link_by.unwrap_or(default.link_by),
        }
    }
}
