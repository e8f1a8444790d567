//! Pipeline of a webhook: the stages in order, for each of the two routes.
//!
//! Each stage takes the result of the previous one: only a verified body is stored, and only a
//! stored webhook is acknowledged. [`RequestContext`] collects facts for logs and metrics, also
//! those of failed webhooks.

use super::{
    InFlightLimit, NoticePlace, Publisher, Quotas, SyncResponses, UnverifiedBudget, Verdict,
    WebhookRequest,
    body_budget::InFlight,
    classify::{self, Placement},
    publisher::PublishError,
    quota::QuotaKey,
    signature::{SignatureError, SigningKey, Verified, verify},
};
use crate::{
    app_health::AppHealth,
    directory::{App, Connection, Directory, FoundConnection},
    metrics::Metrics,
};
use shared::{
    domain::{AppId, ConnectionId, ConnectionStatus},
    runtime::telemetry::{self, DESTINATION_TEMPLATE},
    slack::{BodyParts, InboundPayload},
    stream::Envelope,
};
use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// Maximum length times number of declared apps, for a webhook that names no app: the keys of all
/// apps are tried. Such webhooks are small: shortcuts, legacy interactions, challenges.
const MAX_TRIAL_BYTES: usize = 16 << 20;

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
    /// Signing keys of shared apps from the settings. Without any, and without declared apps, the
    /// shared route is closed.
    pub shared_keys: Vec<(AppId, SigningKey)>,
    /// Budget for bodies that are not verified.
    pub unverified: UnverifiedBudget,
    /// Limits of verified webhooks in flight.
    pub in_flight: InFlightLimit,
    /// Quotas per connection and workspace.
    pub quotas: Quotas,
    /// Token that is cancelled at shutdown. Later responses close their HTTP connection.
    pub stopping: CancellationToken,
    /// Addresses of NATS, for messages.
    pub nats_servers: String,
}

/// Facts about a request, collected while it is processed.
pub struct RequestContext {
    /// Time at which the headers arrived.
    pub arrived_at: Instant,
    /// Connection id in the path.
    pub path_connection: Option<ConnectionId>,
    /// Connection that was found.
    pub connection: Option<Arc<Connection>>,
    /// App whose key verified the webhook, on the shared route.
    pub shared_app: Option<AppId>,
    /// True once the signature is verified.
    pub verified: bool,
}

impl RequestContext {
    /// Creates the context of a request that has just arrived.
    pub fn new(path_connection: Option<ConnectionId>) -> Self {
        Self {
            arrived_at: Instant::now(),
            path_connection,
            connection: None,
            shared_app: None,
            verified: false,
        }
    }

    /// Returns the app of a verified webhook.
    pub fn verified_app(&self) -> Option<&AppId> {
        let of_connection = || self.connection.as_ref().map(|connection| &connection.app);
        self.shared_app.as_ref().or_else(of_connection).filter(|_| self.verified)
    }
}

impl Pipeline {
    /// Processes a webhook on the route of a connection, with the connection's own secrets.
    pub async fn process<'r>(
        &self,
        context: &mut RequestContext,
        request: impl Future<Output = Result<WebhookRequest<'r>, Verdict>>,
    ) -> Result<Verdict, Verdict> {
        let id = context.path_connection.ok_or(Verdict::UnknownConnection)?;
        let found = self.directory.find(id).await.map_err(Verdict::DirectoryUnavailable)?;
        let mut found = found.ok_or(Verdict::UnknownConnection)?;
        context.connection = Some(Arc::clone(&found.connection));
        // After the lookup, so that the body is not read if the connection is unknown.
        let request = request.await?;
        if request.is_ssl_check() {
            return Ok(Verdict::SslCheck);
        }
        #[expect(clippy::disallowed_methods, reason = "a webhook arrives")]
        let now = SystemTime::now();
        if found.connection.uses_app_keys() {
            let app = self.directory.app(&found.connection.app).await;
            let app = app.map_err(Verdict::DirectoryUnavailable)?;
            let keys = app.iter().flat_map(|app| app.keys());
            let verified = verify(request.unverified(), keys, now).map_err(Verdict::Unverified)?;
            return self.process_verified(context, request, found, &verified, now).await;
        }
        let verified = match verify(request.unverified(), found.connection.keys(), now) {
            Err(SignatureError::BadSignature) => {
                // The secret may have just changed.
                let newer = self.directory.refresh(&found.connection).await;
                found.connection =
                    newer.ok_or(Verdict::Unverified(SignatureError::BadSignature))?;
                verify(request.unverified(), found.connection.keys(), now)
            }
            result => result,
        };
        let verified = verified.map_err(Verdict::Unverified)?;
        self.process_verified(context, request, found, &verified, now).await
    }

    /// Processes a verified webhook on the route of a connection.
    async fn process_verified(
        &self,
        context: &mut RequestContext,
        mut request: WebhookRequest<'_>,
        found: FoundConnection,
        verified: &Verified,
        now: SystemTime,
    ) -> Result<Verdict, Verdict> {
        context.verified = true;
        self.metrics.record_verified(verified.key_index());
        let _in_flight = self.admit(&mut request)?;
        self.store(context, &request, verified, now, async |inbound| {
            if !found.connection.may_receive(inbound) {
                Err(Verdict::OtherInstallation(classify::kind(inbound)))
            } else if accepts_webhooks(&found.connection) {
                Ok(found)
            } else {
                Err(Verdict::Stopped(classify::kind(inbound)))
            }
        })
        .await
    }

    /// Processes a webhook on the shared route: verifies it with the secrets of the shared apps and
    /// routes it by the app of that secret and the installations in its body.
    pub async fn process_shared<'r>(
        &self,
        context: &mut RequestContext,
        request: impl Future<Output = Result<WebhookRequest<'r>, Verdict>>,
    ) -> Result<Verdict, Verdict> {
        let declared = self.directory.apps();
        if self.shared_keys.is_empty() && declared.is_empty() {
            return Err(Verdict::SharedRouteClosed);
        }
        let mut request = request.await?;
        if request.is_ssl_check() {
            return Ok(Verdict::SslCheck);
        }
        #[expect(clippy::disallowed_methods, reason = "a webhook arrives")]
        let now = SystemTime::now();
        let candidates = self.candidates(&request, declared).await?;
        let of_settings = self.shared_keys.iter().map(|(app, key)| (app, key));
        let of_apps = candidates.iter().flat_map(|app| app.keys().map(|key| (&app.id, key)));
        let keys: Vec<(&AppId, &SigningKey)> = of_settings.chain(of_apps).collect();
        let verified = verify(request.unverified(), keys.iter().map(|(_, key)| *key), now);
        let verified = verified.map_err(Verdict::Unverified)?;
        context.verified = true;
        let is_declared = verified.key_index() >= self.shared_keys.len();
        let (newer_keys, rest) = keys.split_at(verified.key_index());
        let app = rest[0].0; // app of the key that matched
        let of_app = newer_keys.iter().filter(|(other, _)| *other == app);
        self.metrics.record_verified(of_app.count());
        context.shared_app = Some(app.clone());
        let _in_flight = self.admit(&mut request)?;
        self.store(context, &request, &verified, now, async |inbound| {
            let unrouted = || Verdict::Unrouted(classify::kind(inbound));
            if inbound.app().is_some_and(|named| named != app.as_str()) {
                return Err(unrouted());
            }
            let found = self.directory.route(app, &inbound.installations()).await;
            // The secret of a declared app does not verify a connection that has another secret of
            // its own.
            let is_verified = |connection: &Connection| {
                !is_declared
                    || connection.uses_app_keys()
                    || verify(request.unverified(), connection.keys(), now).is_ok()
            };
            let may_receive = |connection: &Connection| {
                let is_foreign =
                    classify::is_installation_event(inbound) && !connection.has_installation();
                accepts_webhooks(connection) && !is_foreign && is_verified(connection)
            };
            found
                .map_err(Verdict::DirectoryUnavailable)?
                .filter(|found| may_receive(&found.connection))
                .ok_or_else(unrouted)
        })
        .await
    }

    /// Returns the declared apps whose keys may verify a webhook of the shared route: the app that
    /// the body names, or all apps if it names none (shortcuts). The body is not verified yet, and
    /// only selects the keys to try.
    async fn candidates(
        &self,
        request: &WebhookRequest<'_>,
        declared: Vec<Arc<App>>,
    ) -> Result<Vec<Arc<App>>, Verdict> {
        if declared.is_empty() {
            return Ok(declared);
        }
        let parts = BodyParts::split(request.media, &request.body);
        let inbound = parts.read();
        if let Some(named) = inbound.app() {
            let Ok(named) = named.parse() else { return Ok(Vec::new()) };
            let app = self.directory.app(&named).await.map_err(Verdict::DirectoryUnavailable)?;
            return Ok(app.into_iter().collect());
        }
        if declared.len().saturating_mul(request.body.len()) > MAX_TRIAL_BYTES {
            return Ok(Vec::new());
        }
        Ok(declared)
    }

    /// Admits a verified webhook, whose body then counts as one in flight.
    fn admit(&self, request: &mut WebhookRequest<'_>) -> Result<InFlight<'_>, Verdict> {
        let in_flight = self.in_flight.admit(request.body.len()).ok_or(Verdict::Overloaded)?;
        request.leave_budget();
        Ok(in_flight)
    }

    /// Stores a verified webhook and waits for its sync response. `find_connection` returns the
    /// connection that it belongs to.
    async fn store(
        &self,
        context: &mut RequestContext,
        request: &WebhookRequest<'_>,
        verified: &Verified,
        now: SystemTime,
        find_connection: impl AsyncFnOnce(&InboundPayload<'_>) -> Result<FoundConnection, Verdict>,
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
        let connection = context.connection.insert(connection);
        let (key, bytes) = (QuotaKey::of(connection, &inbound), request.body.len());
        if let Err(wait) = self.quotas.take(key, bytes, self.directory.live_ingests()) {
            self.quotas.record_refusal(connection, bytes);
            self.metrics.record_refusal(&connection.app);
            let kind = classify::kind(&inbound);
            return Err(Verdict::OverQuota(kind, NoticePlace::of(kind, &inbound, &parts), wait));
        }
        let Placement { kind, partition, lane, dedup_key } =
            classify::place_webhook(id, &inbound, verified, random_id);
        let (window, reply) = match classify::sync_response_kind(&inbound) {
            Some(expected) => {
                let (window, reply) = self.sync_responses.open(context.arrived_at);
                (Some((expected, window)), reply)
            }
            None => (None, None),
        };
        let span = tracing::info_span!(
            target: "tidegate::trace",
            "send",
            otel.name = format!("send {DESTINATION_TEMPLATE}"),
            otel.kind = "producer",
            messaging.system = "nats",
            messaging.operation.type = "send",
            messaging.destination.template = DESTINATION_TEMPLATE,
            messaging.message.id = %dedup_key,
        );
        let envelope = Envelope {
            connection: id,
            partition,
            kind,
            lane,
            dedup_key,
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
            (Ok(stored), Some((expected, window))) => Ok(match window.wait().await {
                Some(body) => Verdict::Relayed(kind, stored, body),
                None => Verdict::Unanswered(expected, kind, stored),
            }),
            (Err(error), _) => {
                let place = NoticePlace::of(kind, &inbound, &parts);
                Err(Verdict::NotStored(kind, place, error))
            }
        }
    }
}

/// Returns whether webhooks of a connection are stored. While it is pending, replies wait.
fn accepts_webhooks(connection: &Connection) -> bool {
    match connection.status {
        ConnectionStatus::Pending | ConnectionStatus::Active | ConnectionStatus::Error => true,
        ConnectionStatus::Stopped | ConnectionStatus::Revoked => false,
    }
}

/// Returns a random id. Not for secrets: `RandomState` is random enough, and never fails.
fn random_id() -> u128 {
    use std::hash::{BuildHasher, RandomState};
    let random = |n: u8| u128::from(RandomState::new().hash_one(n));
    random(0) << 64 | random(1)
}
