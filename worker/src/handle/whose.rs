//! Whose a conversation is.

use super::Desk;
use shared::store::{Agent, Chat, StoreError};

/// The conversation's agent, and its session: its binding's, else the connection's own. On a preview connection, which
/// anybody may try, only a binding counts.
pub(super) async fn agent_of(
    desk: &Desk<'_>,
    chat: &Chat,
) -> Result<(Option<Agent>, i64), StoreError> {
    let (store, connection) = (&desk.workshop.store, desk.connection);
    let state = store.chat(chat).await?;
    let agent = match (&state.bound, &connection.agent) {
        (Some(bound), _) => store.agent(&bound.org, &bound.agent).await?,
        (None, Some(own)) if !connection.preview_mode => store.agent(&connection.org, own).await?,
        (None, _) => None,
    };
    Ok((agent, state.session))
}

/// The connection's own agent, for what happens in no conversation.
pub(super) async fn own_agent(desk: &Desk<'_>) -> Result<Option<Agent>, StoreError> {
    match &desk.connection.agent {
        Some(own) => desk.workshop.store.agent(&desk.connection.org, own).await,
        None => Ok(None),
    }
}
