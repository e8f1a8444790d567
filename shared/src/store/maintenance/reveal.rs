//! Bodies of single webhooks for operators. The entry in the audit log is committed before the body
//! is opened.

use crate::domain::{Actor, ConnectionId};
use crate::store::{
    AuditAction, AuditOrg, NewAuditEntry, SealedPayload, Store, StoreError, add_audit_entries,
    inconsistent,
};
use sqlx::Row;

/// Webhook with its bytes.
#[derive(Debug)]
pub struct RevealedWebhook {
    /// Subject of the stream.
    pub subject: String,
    /// Headers and body.
    pub payload: SealedPayload,
}

impl Store {
    /// Adds an entry to the audit log, then returns the bytes of a webhook of a connection. `None`,
    /// without an entry, if Postgres has no bytes of it, because its delivery has ended.
    pub async fn reveal_webhook(
        &self,
        by: &Actor,
        connection: ConnectionId,
        dedup_key: &str,
    ) -> Result<Option<RevealedWebhook>, StoreError> {
        let mut tx = self.pool.begin().await?;
        let row = sqlx::query(
            "-- webhook.reveal
             (select 'slack.in.' || partition || '.' || connection_id as subject, payload
                from deliveries where dedup_key = $1 and connection_id = $2 and part = 0 limit 1)
             union all
             (select subject, payload from dead_letters
               where dedup_key = $1 and connection_id = $2 and payload is not null
               order by id desc limit 1)
             limit 1",
        )
        .bind(dedup_key)
        .bind(connection.to_string())
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let org = AuditOrg::OfConnection(connection);
        let entry = NewAuditEntry::new(AuditAction::WebhookReveal, dedup_key, org);
        add_audit_entries(&mut tx, by, &[entry]).await?;
        tx.commit().await?;
        let sealed: Vec<u8> = row.try_get("payload")?;
        let payload = SealedPayload::open(&self.rings.tokens, dedup_key, &sealed)
            .map_err(|why| inconsistent("deliveries", "payload", dedup_key, why))?;
        Ok(Some(RevealedWebhook { subject: row.try_get("subject")?, payload }))
    }
}
