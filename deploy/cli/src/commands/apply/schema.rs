//! TOML schema of the file of `tidegate apply`.
//!
//! ```toml
//! [[organization]]
//! id = "acme"
//! name = "Acme"
//!
//! [[agent]]
//! organization = "acme"
//! id = "helper"
//! name = "Helper"
//! mode = "reply"                          # or "forward"
//! url = "https://helper.acme.example/"
//! secret = "env:HELPER_SECRET"            # env:<name> or file:<path>, never the secret itself
//! timeout = "60s"                         # maximum time of an attempt: 1s to 10m
//! max_concurrent = 16                     # running attempts of all workers together: 1 to 1000
//! max_per_user = 30                       # questions of one person in a minute
//! retry_for = "1h"                        # from the first attempt; default: 1h, forward: 24h
//! keep_for = "72h"                        # maximum wait for the first attempt
//! edits = "ignore"                        # or "rerun": a new text, if no answer has begun
//! overlap = "queue"                       # or "merge", "interrupt": messages while one is answered
//! headers = { x-key = "env:HELPER_KEY" }  # of calls; replaced ones stay usable for 24 hours
//! signs_as_slack = false                  # forward: sign with the connection's signing secret
//!
//! [[app]]                                 # Slack app that workspaces install by OAuth
//! id = "A0123456"
//! name = "Helper"
//! organization = "acme"                   # who may install it; default: each organization
//! client_id = "123.456"
//! client_secret = "file:helper.client"    # a replaced secret stays valid for 24 hours
//! signing_secret = "file:helper.signing"
//! scopes = ["app_mentions:read", "chat:write"]
//! optional_scopes = ["files:read"]
//! redirect_url = "https://control.acme.example/slack/oauth/callback"
//! return_urls = ["https://app.acme.example/slack/"]   # where a browser may go afterwards
//! agent = "helper"                        # agent of new connections, in their organization
//! contact = "support@acme.example"        # for people who can't install it
//!
//! [[connection]]
//! organization = "acme"
//! agent = "helper"                        # agent of conversations without a binding; optional
//! app = "A0123456"
//! team = "T0123456"                       # or enterprise = "E…", or neither with preview_mode
//! preview_mode = false
//! signing_secret = "file:acme.signing"    # relative to the folder of this file; default: the app's
//! bot_token = "env:ACME_BOT_TOKEN"        # without a token the connection is pending
//! bot_user = "U0123456"
//!
//! [connection.settings]                   # all optional; these are the defaults
//! surfaces = ["dm", "channel"]
//! welcome = true                          # greets people who join the workspace
//! answer_bots = false                     # passes messages of other bots to the agent
//! broadcasts = false                      # lets own agents notify channels and user groups
//! foreign_apps = false                    # allows links to other organizations' apps
//! link_by = "anyone"                      # who may link and unlink: anyone, binder, admins
//!
//! [[member]]                              # user who may link the organization's agents by name
//! organization = "acme"
//! user = "steve"
//! slack = ["T0123456/U0654321"]
//!
//! [notifications]                         # backend that is told about events
//! url = "https://backend.acme.example/tidegate"
//! secret = "env:NOTIFICATION_SECRET"      # signs by Standard Webhooks
//! events = ["connection.installed"]       # default: all
//! ```

use serde::Deserialize;
use shared::domain::{
    AgentId, AgentMode, AppId, ConnectionId, ConnectionSettings, EditPolicy, EnterpriseId, LinkBy,
    NotificationEvent, OrgId, OverlapPolicy, Surface, TeamId, UserId,
};
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
