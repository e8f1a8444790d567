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
//! retry_for = "1h"                        # from the first attempt; default: 1h, forward: 24h
//! keep_for = "72h"                        # maximum wait for the first attempt
//!
//! [[connection]]
//! organization = "acme"
//! agent = "helper"                        # agent of conversations without a binding; optional
//! app = "A0123456"
//! team = "T0123456"                       # or enterprise = "E…", or neither with preview_mode
//! preview_mode = false
//! signing_secret = "file:acme.signing"    # relative to the folder of this file
//! bot_token = "env:ACME_BOT_TOKEN"        # without a token the connection is pending
//! bot_user = "U0123456"
//! settings = { surfaces = ["dm", "channel"], welcome = true, answer_bots = false }
//!
//! [[member]]                              # user who may link the organization's agents by name
//! organization = "acme"
//! user = "steve"
//! slack = ["T0123456/U0654321"]
//! ```

use serde::Deserialize;
use shared::types::{
    AgentId, AgentMode, AppId, ConnectionId, EnterpriseId, OrgId, Settings, Surface, TeamId, UserId,
};
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
    pub connection: Vec<Connection>,
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
    pub retry_for: Option<Spanned<String>>,
    pub keep_for: Option<Spanned<String>>,
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
    pub signing_secret: Spanned<String>,
    pub bot_token: Option<Spanned<String>>,
    pub bot_user: Option<UserId>,
    #[serde(default)]
    pub settings: SettingsTable,
}

/// [`Settings`] without unknown keys.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingsTable {
    pub surfaces: Option<Vec<Surface>>,
    pub welcome: Option<bool>,
    pub answer_bots: Option<bool>,
}

impl From<SettingsTable> for Settings {
    fn from(table: SettingsTable) -> Self {
        let default = Settings::default();
        Settings {
            surfaces: table.surfaces.unwrap_or(default.surfaces),
            welcome: table.welcome.unwrap_or(default.welcome),
            answer_bots: table.answer_bots.unwrap_or(default.answer_bots),
        }
    }
}
