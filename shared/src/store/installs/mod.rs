//! Installations by OAuth: links, states, and the connections that they create.

mod links;
mod record;
mod states;

pub use links::{InstallLinkRecord, NewInstallLink, OpenInstallLink};
pub use record::{InstallRotation, NewInstallation, RecordedInstallation};
pub use states::{StateRefusal, TakenState};
