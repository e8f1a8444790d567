//! Lenient parser of Slack's webhooks.
//!
//! Ingest classifies webhooks with it, and workers route them. An unexpected shape of a field is
//! never an error: the field then has no value.

mod installation_events;
mod json_repair;
mod lenient;
mod payload;

pub use installation_events::{parse_joined_user, parse_renamed_channel, parse_revoked_bots};
pub use json_repair::{JSON_DEPTH_MAX, repair};
pub use payload::{
    Action, AssistantThread, Authorization, BodyParts, BotProfile, Command, Container, Event,
    EventBody, InboundPayload, Installation, Interaction, Item, Metadata, SyncResponseKind, Team,
    TidegateMetadata, User, View, first_dialog_element, first_input_block,
};
