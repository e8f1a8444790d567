//! Installations by OAuth: links, states, and the connections that they create.

mod links;
mod record;
mod states;

pub use links::{FoundInstallLink, InstallLinkRecord, NewInstallLink};
pub use record::{InstallRotation, NewInstallation, RecordedInstallation};
pub use states::{ConsumedState, StateRejection};
