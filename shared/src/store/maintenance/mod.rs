//! Maintenance beside the flow of webhooks: retention, statistics, replays, searches and operators'
//! operations.

mod agents;
mod deliveries;
mod delivery_operations;
mod key_rotation;
mod ledger;
mod lookup;
mod outbox_failures;
mod pauses;
mod replays;
mod retention;
mod usage;

pub use agents::AgentState;
pub use deliveries::{DeliveryCount, DeliveryFilter, LaneState, OpenDelivery};
pub use delivery_operations::EndedDeliveries;
pub use key_rotation::{Rewrapped, SEALED_COLUMNS, SealedColumn};
pub use ledger::LedgerEntry;
pub use lookup::{WebhookQuery, WebhookRecord};
pub use outbox_failures::{OutboxFailure, OutboxFailureFilter};
pub use replays::{NewReplay, Replay, ReplayResult, ReplayState};
pub use retention::{BacklogStats, PruneStats};
pub use usage::UsageRow;

use super::StoreError;
use serde::de::DeserializeOwned;
use sqlx::{Row, postgres::PgRow, types::Json};

/// Parses a row that its statement converted to JSON.
fn json<T: DeserializeOwned>(row: &PgRow) -> Result<T, StoreError> {
    let Json(value) = row.try_get::<Json<T>, _>("row")?;
    Ok(value)
}
