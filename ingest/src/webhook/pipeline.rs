//! Pipeline of a webhook: the stages in order, for each of the two routes.
//!
//! Each stage takes the result of the one before: only a verified body is parsed, and only a
//! stored webhook is acknowledged. [`RequestContext`] collects what the log and the metrics need,
//! also of webhooks that fail.

use super::{
    Publisher, SyncResponses, Verdict, WebhookRequest,
    classify::{self, Placement},
    publisher::PublishError,
    signature::{SignatureError, SigningKey, Verified, verify},
};
use crate::{
    app_health::AppHealth,
    directory::{Connection, Directory, FoundConnection},
    metrics::Metrics,
};
use shared::{
    codec::{
        envelope::Envelope,
        slack::{Inbound, Parts, first_input_block},
    },
    telemetry::{self, DESTINATION},
    types::{AppId, ConnectionId, Kind, Status},
};
use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// Shared state of all requests.
pub struct Pipeline {
    /// Directory of connections.
    pub directory: Directory,
    /// Publisher to the stream.
    pub publisher: Publisher,
    /// Sync responses of workers.
    pub sync_responses: SyncResponses,
    /// Counters and gauges.
    pub metrics: Metrics,
    /// Failure ratio of each app.
    pub app_health: AppHealth,
    /// Signing keys of the shared app. Without any, the shared route is closed.
    pub shared_keys: Vec<SigningKey>,
    /// Permits of the webhooks in flight.
    pub in_flight: Semaphore,
    /// Total of these permits.
    pub max_in_flight: usize,
    /// Token that is cancelled at shutdown. Responses then close their HTTP connection.
    pub stopping: CancellationToken,
}

/// Facts about a request, collected while it is processed.
pub struct RequestContext {
    /// Time at which the headers had arrived.
    pub arrived_at: Instant,
    /// Connection id in the path.
    pub path_connection: Option<ConnectionId>,
    /// Connection that was found.
    pub connection: Option<Arc<Connection>>,
    /// App that the body names, on the shared route.
    pub routed_app: Option<AppId>,
}

impl RequestContext {
    /// Creates the context of a request that has just arrived.
    pub fn new(path_connection: Option<ConnectionId>) -> Self {
        Self { arrived_at: Instant::now(), path_connection, connection: None, routed_app: None }
    }

    /// Returns the app of the webhook, if known.
    pub fn app(&self) -> Option<&AppId> {
        self.connection.as_ref().map(|connection| &connection.app).or(self.routed_app.as_ref())
    }
}

impl Pipeline {
    /// Processes a webhook on the route of a connection, with the connection's own secrets.
    pub async fn process(
        &self,
        context: &mut RequestContext,
        request: impl Future<Output = Result<WebhookRequest, Verdict>>,
    ) -> Result<Verdict, Verdict> {
        let id = context.path_connection.ok_or(Verdict::UnknownConnection)?;
        let found = self.directory.find(id).await.map_err(Verdict::DirectoryUnavailable)?;
        let mut found = found.ok_or(Verdict::UnknownConnection)?;
        context.connection = Some(Arc::clone(&found.connection));
        // After the lookup: the body of an unknown connection is not read.
        let request = request.await?;
        if is_ssl_check(&request) {
            return Ok(Verdict::SslCheck);
        }
        let now = SystemTime::now();
        let verified = match verify(request.unverified(), found.connection.keys(now), now) {
            Err(SignatureError::BadSignature) => {
                // The secret may have just changed.
                let newer = self.directory.refresh(&found.connection).await;
                found.connection =
                    newer.ok_or(Verdict::Unverified(SignatureError::BadSignature))?;
                verify(request.unverified(), found.connection.keys(now), now)
            }
            result => result,
        };
        let verified = self.record_verification(verified)?;
        self.store(context, &request, &verified, now, async |inbound| {
            if accepts_webhooks(&found.connection) {
                Ok(found)
            } else {
                Err(Verdict::Stopped(classify::kind(inbound)))
            }
        })
        .await
    }

    /// Processes a webhook on the shared route: verifies it with the shared app's secrets and
    /// routes it by the ids in its body.
    pub async fn process_shared(
        &self,
        context: &mut RequestContext,
        request: impl Future<Output = Result<WebhookRequest, Verdict>>,
    ) -> Result<Verdict, Verdict> {
        if self.shared_keys.is_empty() {
            return Err(Verdict::SharedRouteClosed);
        }
        let request = request.await?;
        if is_ssl_check(&request) {
            return Ok(Verdict::SslCheck);
        }
        let now = SystemTime::now();
        let verified =
            self.record_verification(verify(request.unverified(), &self.shared_keys, now))?;
        let mut app = None;
        let result = self
            .store(context, &request, &verified, now, async |inbound| {
                let unrouted = || Verdict::Unrouted(classify::kind(inbound));
                let routing = classify::routing(inbound).ok_or_else(unrouted)?;
                app = Some(routing.app.clone());
                let found = self.directory.route(&routing).await;
                found
                    .map_err(Verdict::DirectoryUnavailable)?
                    .filter(|found| accepts_webhooks(&found.connection))
                    .ok_or_else(unrouted)
            })
            .await;
        context.routed_app = app;
        result
    }

    /// Stores a verified webhook and waits for its sync response. `find_connection` returns the
    /// connection it belongs to.
    async fn store(
        &self,
        context: &mut RequestContext,
        request: &WebhookRequest,
        verified: &Verified,
        now: SystemTime,
        find_connection: impl AsyncFnOnce(&Inbound<'_>) -> Result<FoundConnection, Verdict>,
    ) -> Result<Verdict, Verdict> {
        let parts = classify::split(request.media, verified);
        let inbound = parts.read();
        if let Some(challenge) = classify::challenge(&inbound) {
            return Ok(Verdict::Challenge(challenge.to_owned()));
        }
        if classify::is_rate_limit_notice(&inbound) {
            self.metrics.record_events_withheld();
        }
        let FoundConnection { connection, is_current } = find_connection(&inbound).await?;
        let id = connection.id;
        context.connection = Some(connection);
        let Placement { kind, partition, lane, dedup_key } =
            classify::place(id, &inbound, verified, random_id);
        let (window, reply) = if classify::expects_sync_response(&inbound) {
            let (window, reply) = self.sync_responses.open(context.arrived_at);
            (Some(window), reply)
        } else {
            (None, None)
        };
        let span = tracing::info_span!(
            target: "tidegate::trace",
            "send",
            otel.name = format!("send {DESTINATION}"),
            otel.kind = "producer",
            messaging.system = "nats",
            messaging.operation.type = "send",
            messaging.destination.template = DESTINATION,
            messaging.message.id = %dedup_key,
        );
        let envelope = Envelope {
            connection: id,
            partition,
            kind,
            lane,
            dedupe: dedup_key,
            received_at_ms: now.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64),
            media: request.media,
            signature: verified.signature().clone(),
            timestamp: verified.timestamp().clone(),
            retry: request.retry(),
            traceparent: telemetry::traceparent(&span).or_else(|| request.traceparent()),
            reply,
            body: verified.body().clone(),
        };
        let started = Instant::now();
        let published = if is_current {
            self.publisher.publish(&envelope, context.arrived_at).instrument(span).await
        } else {
            Err(PublishError::DirectoryUnavailable)
        };
        self.metrics.record_publish(started.elapsed());
        match (published, window) {
            (Ok(stored), None) => Ok(Verdict::Stored(kind, stored)),
            (Ok(stored), Some(window)) => Ok(match window.wait().await {
                Some(body) => Verdict::Relayed(kind, stored, body),
                None => Verdict::Unanswered(kind, stored),
            }),
            (Err(error), _) => Err(match (kind, first_input_block(&parts)) {
                (Kind::Interaction, Some(block)) => Verdict::SubmissionNotStored(block, error),
                _ => Verdict::NotStored(kind, error),
            }),
        }
    }

    /// Counts the key that matched, or records the clock skew.
    fn record_verification(
        &self,
        result: Result<Verified, SignatureError>,
    ) -> Result<Verified, Verdict> {
        match &result {
            Ok(verified) => self.metrics.record_verified(verified.key_index()),
            Err(SignatureError::Stale { skew }) => self.metrics.record_skew(*skew),
            Err(_) => {}
        }
        result.map_err(Verdict::Unverified)
    }
}

/// Returns whether a body is Slack's check of the certificate, which is not signed.
fn is_ssl_check(request: &WebhookRequest) -> bool {
    matches!(Parts::split(request.media, &request.body), Parts::SslCheck)
}

/// Returns whether webhooks of a connection are stored. Those of a pending one wait in the stream.
fn accepts_webhooks(connection: &Connection) -> bool {
    match connection.status {
        Status::Pending | Status::Active | Status::Error => true,
        Status::Stopped | Status::Revoked => false,
    }
}

/// Returns an id that does not repeat. It can't fail, and it is no secret.
fn random_id() -> u128 {
    use std::hash::{BuildHasher, RandomState};
    let random = |n: u8| u128::from(RandomState::new().hash_one(n));
    random(0) << 64 | random(1)
}
