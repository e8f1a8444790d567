//! The words of Tidegate as types. A value of one of these was checked when it was made, so nobody
//! below checks it again. They import nothing else of ours but the secrets they hold.

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
