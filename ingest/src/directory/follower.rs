//! Keeps the directory as the bucket is, and knows for how long it may be believed.
//!
//! In: the bucket, followed. Out: memory, and trust in it. An ingest tells the others how far it has read, under a key
//! that expires; whoever changes a connection waits for every key that is there. So memory may be believed while our
//! key stands, and not a moment longer: after a pause (NATS away, the process frozen) a change may have come into
//! force without us. Then the key is set anew first, the bucket's end is looked at after, and memory is believed again
//! once it was read up to that end.

use super::{Away, Directory};
use shared::{
    follow::{Follow, Followed},
    stream::{DIRECTORY_BUCKET, INGEST_TTL},
};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often an ingest says how far it is, at least.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Between two tries to say so.
const RETRY_EVERY: Duration = Duration::from_millis(100);
/// One try, or one look.
const TIMEOUT: Duration = Duration::from_secs(1);
/// We stop believing before the key expires: the server's clock may run a little faster.
const MARGIN: Duration = Duration::from_millis(500);
const _: () = assert!(REPORT_EVERY.as_millis() * 3 + MARGIN.as_millis() < INGEST_TTL.as_millis());

impl Directory {
    /// Follows the bucket until told to stop.
    pub async fn follow(self, stop: CancellationToken) {
        let prefix = format!("$KV.{DIRECTORY_BUCKET}.");
        let reader = format!("directory-{}", self.0.name);
        let stream = format!("KV_{DIRECTORY_BUCKET}");
        let mut follow = Follow::new(self.0.js.clone(), &stream, format!("{prefix}>"), reader, 1);
        let mut created_ns = None;
        loop {
            let followed = tokio::select! {
                _ = stop.cancelled() => return,
                followed = follow.next() => followed,
            };
            match followed {
                Followed::Opened(state) => {
                    // What is in memory stays: versions only rise, whoever writes the bucket again.
                    let before = created_ns.replace(state.created_ns);
                    let anew = before.is_some_and(|before| before != state.created_ns);
                    if anew || state.last_sequence + 1 < follow.next_sequence() {
                        warn!(
                            "the directory is not the one that was read; reading it from its beginning"
                        );
                        self.0.applied.send_replace(None);
                        follow.restart_at(1);
                    }
                }
                Followed::Message(_, message) => {
                    if let Some(key) = message.subject.strip_prefix(&prefix) {
                        self.0.memory.apply(key, &message.payload);
                    }
                }
                Followed::CaughtUp(revision, _) => {
                    if self.0.applied.send_replace(Some(revision)).is_none() {
                        info!(
                            connections = self.0.memory.connections(),
                            "the directory is complete"
                        );
                    }
                }
            }
        }
    }

    /// Says how far this ingest is, now and then and whenever it gets further, until told to stop; then takes its
    /// key away, so that nobody waits for it.
    pub async fn report(self, stop: CancellationToken) {
        let mut applied = self.0.applied.subscribe();
        loop {
            let asked = Instant::now();
            let reported = self.report_once(asked).await;
            tokio::select! {
                _ = stop.cancelled() => break,
                _ = applied.changed(), if reported.is_ok() => {}
                _ = sleep(if reported.is_ok() { REPORT_EVERY } else { RETRY_EVERY }) => {}
            }
        }
        let gone =
            async { self.0.buckets().await?.ingests.delete(&self.0.name).await.map_err(|_| Away) };
        let _ = timeout(TIMEOUT, gone).await; // else it expires
    }

    async fn report_once(&self, asked: Instant) -> Result<(), Away> {
        let revision = self.applied().ok_or(Away)?;
        let text = revision.to_string().into();
        let said = async {
            self.0.buckets().await?.ingests.put(&self.0.name, text).await.map_err(|_| Away)
        };
        timeout(TIMEOUT, said).await.map_err(|_| Away)??;
        if !self.is_trusted() {
            self.read_up_to_its_end().await?;
        }
        self.0.trusted_until.send_replace(Some(asked + INGEST_TTL - MARGIN));
        Ok(())
    }

    /// Waits until all was read that the bucket holds now.
    async fn read_up_to_its_end(&self) -> Result<(), Away> {
        let look = self.0.js.get_stream(format!("KV_{DIRECTORY_BUCKET}"));
        let stream = timeout(TIMEOUT, look).await.map_err(|_| Away)?.map_err(|_| Away)?;
        let end = stream.cached_info().state.last_sequence;
        let mut applied = self.0.applied.subscribe();
        let read = applied.wait_for(|applied| applied.is_some_and(|revision| revision >= end));
        timeout(TIMEOUT, read).await.map_err(|_| Away)?.map(drop).map_err(|_| Away)
    }
}
