//! Maintenance beside the flow of webhooks: retention, statistics, replays, searches and operators'
//! operations.

mod agents;
mod backlog;
mod capped_rows;
mod counts;
mod deliveries;
mod delivery_operations;
mod erasure;
mod erasure_requests;
mod export;
mod failure_filter;
mod key_rotation;
mod ledger;
mod lookup;
mod new_replay;
mod obstacles;
mod outbox_failures;
mod pauses;
mod person_statements;
mod recent_webhooks;
mod replays;
mod retention;
mod reveal;
mod sealed_columns;
mod troubles;
mod usage;

pub use agents::AgentState;
pub use backlog::{
    BacklogLimits, BacklogStats, ChannelPosition, ConnectionBacklog, CountedPage, CountedRows,
    DeliveryPosition, EXACT_MAX, OutboxBacklog, RowPosition,
};
pub use capped_rows::{CAPPED_TABLES, CONNECTION_ROWS_MAX};
pub use counts::BoundedCount;
pub use deliveries::{DeliveryCount, DeliveryFilter, LaneState, OpenDelivery};
pub use delivery_operations::EndedDeliveries;
pub use erasure::{ERASED, ErasedRows, holds_word};
pub use erasure_requests::{ErasureRecord, ErasureTarget, OpenErasure};
pub use export::ExportPosition;
pub use failure_filter::FailureFilter;
pub use key_rotation::RewrapStats;
pub use ledger::LedgerEntry;
pub use lookup::{WebhookQuery, WebhookRecord};
pub use new_replay::{CreatedReplay, MAX_OPEN_REPLAYS, NewReplay};
pub use obstacles::Obstacle;
pub use outbox_failures::OutboxFailure;
pub use recent_webhooks::{RecentFilter, RecentWebhook};
pub use replays::{Replay, ReplayResult, ReplayState};
pub use retention::PruneStats;
pub use reveal::RevealedWebhook;
pub use sealed_columns::{SEALED_COLUMNS, SealedColumn};
pub use troubles::{UnhealthyAgent, UnhealthyConnection};
pub use usage::{HourlyUsage, UsageFilter, UsageRow};

use super::StoreError;
use serde::de::DeserializeOwned;
use sqlx::{Row, postgres::PgRow, types::Json};

/// Parses a row that its statement converted to JSON.
pub(in crate::store) fn json<T: DeserializeOwned>(row: &PgRow) -> Result<T, StoreError> {
    let Json(value) = row.try_get::<Json<T>, _>("row")?;
    Ok(value)
}
