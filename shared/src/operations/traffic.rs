//! Operations on deliveries, dead letters, failed messages and replays.

use super::{OperationError, Operations, Result};
use crate::{
    domain::ConnectionId,
    store::{
        CreatedReplay, DeliveryFilter, EndedDeliveries, FailureFilter, MAX_OPEN_REPLAYS, NewReplay,
        RevealedWebhook,
    },
};
use time::OffsetDateTime;

/// Replay to create.
#[derive(Debug, Clone)]
pub struct ReplayRequest {
    /// Id, or `None` for a random one.
    pub id: Option<String>,
    /// Connection of the webhooks.
    pub connection: ConnectionId,
    /// Earliest time of the webhooks in the stream.
    pub from: OffsetDateTime,
    /// End of the range, exclusive.
    pub to: OffsetDateTime,
    /// True if deliveries are enqueued, instead of only recorded.
    pub apply: bool,
}

impl Operations {
    /// Makes waiting heads of conversations due. Returns the number of conversations.
    pub async fn retry_deliveries(&self, filter: &DeliveryFilter) -> Result<u64> {
        Ok(self.store.retry_deliveries(&self.actor, &self.own_deliveries(filter)).await?)
    }

    /// Skips waiting heads of conversations.
    pub async fn skip_deliveries(&self, filter: &DeliveryFilter) -> Result<EndedDeliveries> {
        Ok(self.store.skip_deliveries(&self.actor, &self.own_deliveries(filter)).await?)
    }

    /// Cancels the heads of conversations, or all of their deliveries.
    pub async fn cancel_deliveries(
        &self,
        filter: &DeliveryFilter,
        whole_lanes: bool,
    ) -> Result<EndedDeliveries> {
        let filter = self.own_deliveries(filter);
        Ok(self.store.cancel_deliveries(&self.actor, &filter, whole_lanes).await?)
    }

    /// Redrives dead letters. Returns their ids.
    pub async fn redrive_dead_letters(&self, filter: &FailureFilter) -> Result<Vec<i64>> {
        Ok(self.store.redrive_dead_letters(&self.actor, &self.own_failures(filter)).await?)
    }

    /// Deletes dead letters. Returns their ids.
    pub async fn delete_dead_letters(&self, filter: &FailureFilter) -> Result<Vec<i64>> {
        Ok(self.store.delete_dead_letters(&self.actor, &self.own_failures(filter)).await?)
    }

    /// Enqueues failed messages again. Returns the ids of their failures.
    pub async fn retry_outbox_failures(&self, filter: &FailureFilter) -> Result<Vec<i64>> {
        Ok(self.store.retry_outbox_failures(&self.actor, &self.own_failures(filter)).await?)
    }

    /// Deletes failed messages. Returns the ids of their failures.
    pub async fn delete_outbox_failures(&self, filter: &FailureFilter) -> Result<Vec<i64>> {
        Ok(self.store.delete_outbox_failures(&self.actor, &self.own_failures(filter)).await?)
    }

    /// Creates a replay. Returns its id, and false if it existed.
    pub async fn create_replay(&self, request: &ReplayRequest) -> Result<(String, bool)> {
        self.require_connection(request.connection).await?;
        if request.from >= request.to {
            return Err(OperationError::Conflict(
                "the start of the range must be before its end".into(),
            ));
        }
        let id = match &request.id {
            Some(id) => id.clone(),
            None => ConnectionId::random().map_err(crate::store::StoreError::from)?.to_string(),
        };
        let ReplayRequest { connection, from, to, apply, .. } = *request;
        let new = NewReplay { id: id.clone(), connection, from, to, apply };
        match self.store.create_replay(&self.actor, &new).await? {
            CreatedReplay::Created => Ok((id, true)),
            CreatedReplay::Exists => Ok((id, false)),
            CreatedReplay::TooMany => Err(OperationError::Conflict(format!(
                "the connection has {MAX_OPEN_REPLAYS} open replays; wait for one or cancel one"
            ))),
        }
    }

    /// Cancels an open replay. Its enqueued deliveries stay.
    pub async fn cancel_replay(&self, id: &str) -> Result<()> {
        let missing = || OperationError::NotFound(format!("open replay {id}"));
        if self.org.is_some() {
            let found = self.store.replays(Some(id), 1).await?.pop().ok_or_else(missing)?;
            self.require_connection(found.connection).await.map_err(|_| missing())?;
        }
        match self.store.cancel_replay(&self.actor, id).await? {
            true => Ok(()),
            false => Err(missing()),
        }
    }

    /// Returns the bytes of a webhook, after an entry in the audit log. `None` if Postgres has
    /// none.
    pub async fn reveal_webhook(
        &self,
        connection: ConnectionId,
        dedup_key: &str,
    ) -> Result<Option<RevealedWebhook>> {
        self.require_connection(connection).await?;
        Ok(self.store.reveal_webhook(&self.actor, connection, dedup_key).await?)
    }

    fn own_deliveries(&self, filter: &DeliveryFilter) -> DeliveryFilter {
        let filter = filter.clone();
        DeliveryFilter { owner: self.org.clone().or(filter.owner), ..filter }
    }

    fn own_failures(&self, filter: &FailureFilter) -> FailureFilter {
        let filter = filter.clone();
        FailureFilter { org: self.org.clone().or(filter.org), ..filter }
    }
}
