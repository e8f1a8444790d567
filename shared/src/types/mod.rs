//! Domain types shared by all processes.
//!
//! Constructors check each value, so that its users need no checks. These types import only
//! secrets.

mod agent;
mod claim;
mod connection;
mod ids;
mod kind;
mod outgoing;
mod platform;
mod settings;

pub use agent::{AgentMode, UnknownMode};
pub use claim::{ClaimCode, ClaimHash, Surface};
pub use connection::{Status, UnknownStatus};
pub use ids::{
    AgentId, AppId, ChannelId, ConnectionId, EnterpriseId, InvalidId, OrgId, TeamId, UserId,
};
pub use kind::Kind;
pub use outgoing::{Destination, Fallback, Outgoing};
pub use platform::Platform;
pub use settings::Settings;
