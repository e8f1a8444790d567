//! Domain types shared by all processes.
//!
//! Constructors check each value, so that its users need no checks. These types import nothing.

mod actor;
mod agent_mode;
mod agent_policies;
mod api_key;
mod connection_settings;
mod connection_status;
mod console_session;
mod header_token;
mod ids;
mod install;
mod link_code;
mod media_type;
mod notification_event;
mod outgoing_message;
mod platform;
mod return_url;
mod webhook_kind;

pub use actor::{Actor, InvalidOperatorNameError, OperatorName};
pub use agent_mode::{AgentMode, UnknownModeError};
pub use agent_policies::{AgentPolicies, EditPolicy, OverlapPolicy, UnknownPolicyError};
pub use api_key::{ApiKey, ApiKeyHash, ApiKeyRole, ParseApiKeyError};
pub use connection_settings::{ConnectionSettings, LinkBy, SettingsChange};
pub use connection_status::{ConnectionStatus, UnknownStatusError};
pub use console_session::{ConsoleSession, ConsoleSessionHash, ParseConsoleSessionError};
pub use header_token::HeaderToken;
pub use ids::{
    AgentId, AppId, ChannelId, ConnectionId, EnterpriseId, InvalidIdError, OrgId, TeamId, UserId,
};
pub use install::{
    CodeVerifier, InstallBrowser, InstallHash, InstallLink, InstallState, ParseInstallSecretError,
};
pub use link_code::{LinkCode, LinkCodeHash, ParseLinkCodeError, Surface};
pub use media_type::MediaType;
pub use notification_event::NotificationEvent;
pub use outgoing_message::{APPROVAL_ACTION_PREFIX, Destination, Fallback, OutgoingMessage};
pub use platform::Platform;
pub use return_url::{OAUTH_CALLBACK_PATH, is_return_url_allowed, parse_web_address};
pub use webhook_kind::WebhookKind;
