//! Follows the directory bucket, and limits for how long the cache is trusted.
//!
//! Each ingest reports the revision it has applied under a key that expires. A change of a
//! connection waits until every reported revision includes it. So the cache is trusted only while
//! this ingest's report is live. After a gap (NATS down, process frozen) a change may have taken
//! effect without this ingest: it first reports again, then applies the bucket up to its current
//! end, and only then trusts the cache.

use super::{Directory, DirectoryUnavailableError, unavailable};
use shared::directory::read_from_leader;
use shared::stream::{DIRECTORY_BUCKET, INGEST_TTL, ReaderEvent, StreamReader};
use std::{sync::atomic::Ordering, time::Duration};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Maximum time between two reports.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Time between attempts after a failed report.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Maximum time of one request to NATS.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// Time between the end of trust and the expiry of the report: the server's clock may run faster.
const TRUST_MARGIN: Duration = Duration::from_millis(500);
const _: () =
    assert!(REPORT_INTERVAL.as_millis() * 3 + TRUST_MARGIN.as_millis() < INGEST_TTL.as_millis());

impl Directory {
    /// Applies the bucket and its changes to the cache until `stop` is cancelled. Forgets old
    /// tombstones after each event of the reader, which reports every few seconds.
    pub async fn follow(self, stop: CancellationToken) {
        let prefix = format!("$KV.{DIRECTORY_BUCKET}.");
        let reader = format!("directory-{}", self.0.ingest_name);
        let stream = format!("KV_{DIRECTORY_BUCKET}");
        let mut follow =
            StreamReader::new(self.0.js.clone(), &stream, format!("{prefix}>"), reader, 1);
        let mut created_ns = None;
        while let Some(followed) = stop.run_until_cancelled(follow.next()).await {
            match followed {
                ReaderEvent::Opened(state) => {
                    // The cache is kept: versions only rise, also in a recreated bucket.
                    let previous = created_ns.replace(state.created_ns);
                    let recreated = previous.is_some_and(|previous| previous != state.created_ns);
                    if recreated || state.last_sequence + 1 < follow.next_sequence() {
                        warn!("directory stream reset; reading from the beginning");
                        self.0.revision.send_replace(None);
                        follow.restart_at(1);
                    }
                }
                ReaderEvent::Message(_, message) => {
                    if let Some(key) = message.subject.strip_prefix(&prefix) {
                        self.0.cache.apply(key, &message.payload);
                    }
                }
                ReaderEvent::CaughtUp(revision, _) => {
                    if self.0.revision.send_replace(Some(revision)).is_none() {
                        info!(connections = self.0.cache.connection_count(), "directory loaded");
                    }
                }
            }
            self.0.cache.forget_tombstones();
        }
    }

    /// Reports the applied revision at intervals and after each change until `stop` is cancelled.
    /// Then deletes the report, so that changes do not wait for this ingest.
    pub async fn report_revision(self, stop: CancellationToken) {
        let mut revision = self.0.revision.subscribe();
        loop {
            let reported = self.report_once(Instant::now()).await;
            tokio::select! {
                () = stop.cancelled() => break,
                _ = revision.changed(), if reported.is_ok() => {}
                () = sleep(if reported.is_ok() { REPORT_INTERVAL } else { RETRY_INTERVAL }) => {}
            }
        }
        let delete = async {
            let ingests = &self.0.buckets().await?.ingests;
            ingests.delete(&self.0.ingest_name).await.map_err(unavailable)
        };
        let _ = timeout(REQUEST_TIMEOUT, delete).await; // on failure the report expires
    }

    /// Counts the live ingests at intervals until `stop` is cancelled. Each has one key, which
    /// expires, in the bucket of reports. While NATS is unreachable, the last count is kept.
    pub async fn count_ingests(self, stop: CancellationToken) {
        let count = async || {
            let info = self.0.buckets().await?.ingests.stream.get_info();
            let info = timeout(REQUEST_TIMEOUT, info).await.map_err(unavailable)?;
            Ok::<_, DirectoryUnavailableError>(info.map_err(unavailable)?.state.messages)
        };
        while stop.run_until_cancelled(sleep(REPORT_INTERVAL)).await.is_some() {
            if let Ok(live) = count().await {
                let live = u32::try_from(live.max(1)).unwrap_or(u32::MAX);
                self.0.live_ingests.store(live, Ordering::Relaxed);
            }
        }
    }

    async fn report_once(&self, started: Instant) -> Result<(), DirectoryUnavailableError> {
        let revision = self.revision().ok_or(DirectoryUnavailableError)?.to_string();
        let put = async {
            let ingests = &self.0.buckets().await?.ingests;
            ingests.put(&self.0.ingest_name, revision.into()).await.map_err(unavailable)
        };
        timeout(REQUEST_TIMEOUT, put).await.map_err(unavailable)??;
        if !self.is_trusted() {
            self.wait_for_end_of_bucket().await?;
        }
        self.0.trusted_until.send_replace(Some(started + INGEST_TTL - TRUST_MARGIN));
        Ok(())
    }

    /// Waits until every entry that the bucket holds now is applied.
    async fn wait_for_end_of_bucket(&self) -> Result<(), DirectoryUnavailableError> {
        // Not the stream's last sequence: NATS may have removed that entry, a tombstone.
        let last = read_from_leader(&self.0.buckets().await?.connections, ">");
        let last = timeout(REQUEST_TIMEOUT, last).await.map_err(unavailable)?;
        let end = last.map_err(unavailable)?.map_or(0, |(_, revision)| revision);
        let mut revision = self.0.revision.subscribe();
        let applied =
            revision.wait_for(|revision| revision.is_some_and(|revision| revision >= end));
        timeout(REQUEST_TIMEOUT, applied).await.map_err(unavailable)?.map(drop).map_err(unavailable)
    }
}
