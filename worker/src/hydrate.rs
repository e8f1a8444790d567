//! The live connection of a webhook, or why there is none. The only way to one.
//!
//! In: a connection's id. Out: [`Hydrated`]. Any worker hydrates any connection, when it is needed: nothing is kept
//! warm anywhere, so no process can be cold. Reads the row at every webhook, so a stop holds for the next one;
//! never writes it.

use shared::{
    store::{Connection, Store, StoreError},
    types::{ConnectionId, Status},
};

/// What a connection's row says.
pub enum Hydrated {
    /// It works: here it is.
    Live(Box<Connection>),
    /// It is not to work any more; the webhook is dropped, and this is why.
    Gone(&'static str),
    /// Not yet; the webhook waits.
    Pending,
}

/// Reads a connection.
pub async fn hydrate(store: &Store, id: ConnectionId) -> Result<Hydrated, StoreError> {
    let Some(connection) = store.hydrate_connection(id).await? else {
        return Ok(Hydrated::Gone("the connection does not exist"));
    };
    Ok(match connection.status {
        // `error` hydrates: whatever was wrong may be over, and only trying tells.
        Status::Active | Status::Error => Hydrated::Live(Box::new(connection)),
        Status::Pending => Hydrated::Pending,
        Status::Stopped => Hydrated::Gone("the connection is stopped"),
        Status::Revoked => Hydrated::Gone("the connection is revoked"),
    })
}
