//! Deletes expired rows, the oldest rows of connections above a maximum, and the data of deleted
//! connections.

use crate::context::Context;
use async_nats::jetstream;
use shared::{
    operations,
    runtime::telemetry::ErrorChain,
    store::{CAPPED_TABLES, CONNECTION_ROWS_MAX, CountedRows, PruneStats, RowPosition, StoreError},
};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Interval between two rounds.
const INTERVAL: Duration = Duration::from_secs(10);
/// Interval of removing replaced signing secrets. A leaked one verifies forgeries until then.
const SECRETS_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of steps per round.
const STEPS_MAX: usize = 100;
/// Maximum number of uninstalled connections that are deleted per round.
const UNINSTALLED_MAX: i32 = 100;
/// Time after the deletion of a connection until every ingest has its tombstone.
const TOMBSTONE_TIME: Duration = Duration::from_secs(15);
/// Maximum number of pages of deleted connections per round.
const LATE_PAGES_MAX: usize = 10;

/// Interval between two counts of the rows of tables with a maximum per connection.
const CAP_INTERVAL: Duration = Duration::from_secs(600);
/// Maximum number of rows of a page of a count.
const PAGE_ROWS: i64 = 20_000;
/// Pause between two pages.
const PAGE_INTERVAL: Duration = Duration::from_millis(250);

/// Runs retention in rounds until cancelled.
pub async fn run(context: &Context, js: &jetstream::Context, until: CancellationToken) {
    let pruning = async {
        let mut late_after = None;
        loop {
            for _ in 0..STEPS_MAX {
                let failed = |table: &str, error| {
                    warn!(table, error = %ErrorChain(&error), "failed to prune table");
                };
                let stats = context.store.prune_expired(failed).await;
                if stats == PruneStats::default() {
                    break;
                }
                info!(rows = ?stats.rows, slots = ?stats.slots, "expired rows deleted");
            }
            for _ in 0..STEPS_MAX {
                match context.store.end_unreachable_deliveries().await {
                    Ok(0) => break,
                    Ok(ended) => info!(ended, "unreachable deliveries ended"),
                    Err(error) => {
                        warn!(error = %ErrorChain(&error), "failed to end unreachable deliveries");
                        break;
                    }
                }
            }
            for _ in 0..STEPS_MAX {
                match context.store.prune_audit_log(context.audit_log_retention).await {
                    Ok(0) => break,
                    Ok(rows) => info!(rows, "expired rows of the audit log deleted"),
                    Err(error) => {
                        warn!(error = %ErrorChain(&error), "failed to prune the audit log");
                        break;
                    }
                }
            }
            delete_uninstalled_connections(context).await;
            for _ in 0..LATE_PAGES_MAX {
                let failed = |connection: &str, error| {
                    let error = ErrorChain(&error);
                    warn!(connection, %error, "failed to delete rows of deleted connection");
                };
                match context.store.delete_late_traffic(late_after.as_ref(), failed).await {
                    Ok((rows, next)) => {
                        late_after = next;
                        if rows > 0 {
                            info!(rows, "rows of deleted connections deleted");
                        }
                    }
                    Err(error) => {
                        let error = ErrorChain(&error);
                        warn!(%error, "failed to delete rows of deleted connections");
                        break;
                    }
                }
                if late_after.is_none() {
                    break;
                }
            }
            purge_deleted_connections(context, js).await;
            tokio::time::sleep(INTERVAL).await;
        }
    };
    let all = async { tokio::join!(pruning, expire_signing_secrets(context), cap_rows(context)) };
    until.run_until_cancelled(all).await;
}

/// Deletes uninstalled connections. If they can't be deleted together, deletes them one by one, so
/// that one failure does not keep the others.
async fn delete_uninstalled_connections(context: &Context) {
    let kept = context.uninstalled_retention;
    let delete = async |limit, skip| match context
        .store
        .delete_uninstalled_connections(kept, limit, skip)
        .await
    {
        Ok(connections) => {
            if connections > 0 {
                info!(connections, "uninstalled connections deleted");
            }
            Some(connections)
        }
        Err(error) => {
            let error = ErrorChain(&error);
            warn!(%error, "failed to delete uninstalled connections");
            None
        }
    };
    if delete(UNINSTALLED_MAX, 0).await.is_some() {
        return;
    }
    let mut skip = 0;
    for _ in 0..UNINSTALLED_MAX {
        match delete(1, skip).await {
            Some(0) => return,
            Some(_) => {}
            None => skip += 1,
        }
    }
}

/// Removes replaced signing secrets soon after their overlap, independently of the other steps,
/// whose rounds may take long.
async fn expire_signing_secrets(context: &Context) {
    loop {
        match context.store.expire_signing_secrets().await {
            Ok(0) => {}
            Ok(secrets) => info!(secrets, "replaced signing secrets removed"),
            Err(error) => {
                warn!(error = %ErrorChain(&error), "failed to remove replaced signing secrets");
            }
        }
        tokio::time::sleep(SECRETS_INTERVAL).await;
    }
}

/// Deletes the oldest rows of connections above the maximum, independently of the other steps.
async fn cap_rows(context: &Context) {
    loop {
        for table in CAPPED_TABLES {
            if let Err(error) = cap_table(context, table).await {
                warn!(table, error = %ErrorChain(&error), "failed to limit rows of connections");
            }
        }
        tokio::time::sleep(CAP_INTERVAL).await;
    }
}

async fn cap_table(context: &Context, table: &'static str) -> Result<(), StoreError> {
    let (mut after, mut last) = (Some(RowPosition::default()), None::<CountedRows>);
    while let Some(position) = after {
        let page = context.store.count_capped_page(table, &position, PAGE_ROWS).await?;
        for counted in page.counts {
            match &mut last {
                Some(last) if last.connection == counted.connection => last.rows += counted.rows,
                _ => cap_connection(context, table, last.replace(counted)).await?,
            }
        }
        after = page.next;
        tokio::time::sleep(PAGE_INTERVAL).await;
    }
    cap_connection(context, table, last).await
}

async fn cap_connection(
    context: &Context,
    table: &'static str,
    counted: Option<CountedRows>,
) -> Result<(), StoreError> {
    let Some(counted) = counted.filter(|counted| counted.rows > CONNECTION_ROWS_MAX) else {
        return Ok(());
    };
    let (connection, over) = (counted.connection, counted.rows - CONNECTION_ROWS_MAX);
    let rows = context.store.delete_oldest_rows(table, &connection, over).await?;
    info!(connection, table, rows, "oldest rows of connection deleted");
    Ok(())
}

/// Purges the webhooks of deleted connections after every ingest has their tombstones. A failure
/// for one connection does not affect the others.
async fn purge_deleted_connections(context: &Context, js: &jetstream::Context) {
    let connections = match context.store.unpurged_connections(TOMBSTONE_TIME).await {
        Ok(connections) => connections,
        Err(error) => {
            warn!(error = %ErrorChain(&error), "failed to read deleted connections");
            return;
        }
    };
    for id in connections {
        let purge = async {
            let webhooks = operations::purge_webhooks(&context.store, js, id).await?;
            context.store.record_purged_connection(id).await?;
            Ok::<_, operations::OperationError>(webhooks)
        };
        match purge.await {
            Ok(0) => {}
            Ok(webhooks) => {
                info!(connection = %id, webhooks, "webhooks of deleted connection purged");
            }
            Err(error) => {
                let error = ErrorChain(&error);
                warn!(connection = %id, %error, "failed to purge webhooks of deleted connection");
            }
        }
    }
}
