//! Whose a conversation is.

use super::Desk;
use shared::store::{Agent, Chat, ChatState, StoreError};

/// What is known of a conversation. Its agent is its binding's, else the connection's own. On a preview connection, which
/// anybody may try, only a binding counts.
pub(super) async fn state_of(desk: &Desk<'_>, chat: &Chat) -> Result<ChatState, StoreError> {
    let connection = desk.connection;
    let own = connection.agent.as_ref().filter(|_| !connection.preview_mode);
    desk.workshop.store.chat(chat, own.map(|own| (&connection.org, own))).await
}

/// The connection's own agent, for what happens in no conversation.
pub(super) async fn own_agent(desk: &Desk<'_>) -> Result<Option<Agent>, StoreError> {
    match &desk.connection.agent {
        Some(own) => desk.workshop.store.agent(&desk.connection.org, own).await,
        None => Ok(None),
    }
}
