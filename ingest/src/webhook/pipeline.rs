//! The way of a webhook through the stages, for each of the two routes.
//!
//! In: a body, unverified. Out: a [`Verdict`]. Each stage takes what the one before proved: nothing is parsed that was
//! not verified, nothing is stored without a place, nobody is told yes without a `Stored`. What becomes known on the
//! way (the connection, the app) is left on the [`Trail`], for the log and the counts.

use crate::{
    app_health::Standings,
    directory::{Connection, Directory, Found},
    metrics::Metrics,
    webhook::Verdict,
    webhook::classify,
    webhook::publisher::{NotStored, Publisher},
    webhook::request::Incoming,
    webhook::signature::{Rejected, SigningKey, Verified, verify},
    webhook::sync_response::Replies,
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

/// What the stages need.
pub struct Gate {
    /// Which connection.
    pub directory: Directory,
    /// Into the stream.
    pub publisher: Publisher,
    /// Answers that come back.
    pub replies: Replies,
    /// What is counted.
    pub metrics: Metrics,
    /// How each app stands with Slack.
    pub standings: Standings,
    /// The shared app's secrets; none closes the shared route.
    pub shared_keys: Vec<SigningKey>,
    /// A permit per webhook in flight.
    pub in_flight: Semaphore,
    /// How many permits there are.
    pub in_flight_max: usize,
    /// Cancelled when we are to stop: whoever keeps a connection is told to leave it.
    pub stopping: CancellationToken,
}

/// What became known of a webhook on its way, whatever became of it.
pub struct Trail {
    /// When its head had been read.
    pub arrived: Instant,
    /// The connection that its path names.
    pub named: Option<ConnectionId>,
    /// The connection it is for.
    pub connection: Option<Arc<Connection>>,
    /// The app that the body names, on the shared route.
    pub routed_app: Option<AppId>,
}

impl Trail {
    /// The app it is for, as far as that is known.
    pub fn app(&self) -> Option<&AppId> {
        self.connection.as_ref().map(|connection| &connection.app).or(self.routed_app.as_ref())
    }
}

impl Gate {
    /// The route of one connection: its own secrets.
    pub async fn for_connection(
        &self,
        trail: &mut Trail,
        incoming: impl Future<Output = Result<Incoming, Verdict>>,
    ) -> Result<Verdict, Verdict> {
        let id = trail.named.ok_or(Verdict::UnknownConnection)?;
        let found = self.directory.find(id).await.map_err(Verdict::DirectoryAway)?;
        let Found { mut connection, current } = found.ok_or(Verdict::UnknownConnection)?;
        trail.connection = Some(Arc::clone(&connection));
        // Only now: what nobody is there for is not read.
        let incoming = incoming.await?;
        if matches!(Parts::split(incoming.media, &incoming.body), Parts::SslCheck) {
            return Ok(Verdict::SslCheck);
        }
        let now = SystemTime::now();
        let verified = match verify(incoming.raw(), connection.keys(now), now) {
            Err(Rejected::BadSignature) => {
                // The secret may just have been changed.
                let newer = self.directory.reread(&connection).await;
                connection = newer.ok_or(Verdict::Unverified(Rejected::BadSignature))?;
                verify(incoming.raw(), connection.keys(now), now)
            }
            other => other,
        };
        let verified = self.counted(verified)?;
        self.verified(trail, &incoming, &verified, now, async |inbound| {
            if takes(&connection) {
                Ok(Found { connection, current })
            } else {
                Err(Verdict::Stopped(classify::kind(inbound)))
            }
        })
        .await
    }

    /// The route of the shared app: its secrets, and the connection that the body names.
    pub async fn for_shared_app(
        &self,
        trail: &mut Trail,
        incoming: impl Future<Output = Result<Incoming, Verdict>>,
    ) -> Result<Verdict, Verdict> {
        if self.shared_keys.is_empty() {
            return Err(Verdict::SharedRouteClosed);
        }
        let incoming = incoming.await?;
        if matches!(Parts::split(incoming.media, &incoming.body), Parts::SslCheck) {
            return Ok(Verdict::SslCheck);
        }
        let now = SystemTime::now();
        let verified = self.counted(verify(incoming.raw(), &self.shared_keys, now))?;
        let mut app = None;
        let passed = self
            .verified(trail, &incoming, &verified, now, async |inbound| {
                let routing = classify::routing(inbound);
                app = routing.as_ref().map(|routing| routing.app.clone());
                let found = match routing {
                    Some(routing) => {
                        self.directory.route(&routing).await.map_err(Verdict::DirectoryAway)?
                    }
                    None => None,
                };
                found
                    .filter(|found| takes(&found.connection))
                    .ok_or(Verdict::Unrouted(classify::kind(inbound)))
            })
            .await;
        trail.routed_app = app;
        passed
    }

    /// From verified to stored; `connection` finds whose it is.
    async fn verified(
        &self,
        trail: &mut Trail,
        incoming: &Incoming,
        verified: &Verified,
        now: SystemTime,
        connection: impl AsyncFnOnce(&Inbound<'_>) -> Result<Found, Verdict>,
    ) -> Result<Verdict, Verdict> {
        let parts = classify::split(incoming.media, verified);
        let inbound = parts.read();
        if let Some(challenge) = classify::challenge(&inbound) {
            return Ok(Verdict::Challenge(challenge.to_owned()));
        }
        if classify::tells_of_withheld_events(&inbound) {
            self.metrics.events_withheld();
        }
        let Found { connection, current } = connection(&inbound).await?;
        let id = connection.id;
        trail.connection = Some(connection);
        let placed = classify::place(id, &inbound, verified, fresh_id);
        let (window, reply) = match classify::wants_answer(&inbound) {
            true => {
                let (window, reply) = self.replies.open(trail.arrived);
                (Some(window), reply)
            }
            false => (None, None),
        };
        let span = tracing::info_span!(
            target: "tidegate::trace",
            "send",
            otel.name = format!("send {DESTINATION}"),
            otel.kind = "producer",
            messaging.system = "nats",
            messaging.operation.type = "send",
            messaging.destination.template = DESTINATION,
            messaging.message.id = %placed.dedupe,
        );
        let envelope = Envelope {
            connection: id,
            partition: placed.partition,
            kind: placed.kind,
            lane: placed.lane,
            dedupe: placed.dedupe,
            received_at_ms: now.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64),
            media: incoming.media,
            signature: verified.signature().clone(),
            timestamp: verified.timestamp().clone(),
            retry: incoming.retry(),
            traceparent: telemetry::traceparent(&span).or_else(|| incoming.traceparent()),
            reply,
            body: verified.body().clone(),
        };
        let began = Instant::now();
        let published = match current {
            true => self.publisher.publish(&envelope, trail.arrived).instrument(span).await,
            false => Err(NotStored::NotCurrent),
        };
        self.metrics.published(began.elapsed());
        match (published, window) {
            (Ok(stored), None) => Ok(Verdict::Stored(placed.kind, stored)),
            (Ok(stored), Some(window)) => Ok(match window.answer().await {
                Some(answer) => Verdict::Relayed(placed.kind, stored, answer),
                None => Verdict::Unanswered(placed.kind, stored),
            }),
            (Err(error), _) => Err(match (placed.kind, first_input_block(&parts)) {
                (Kind::Interaction, Some(block)) => Verdict::SubmissionNotStored(block, error),
                (kind, _) => Verdict::NotStored(kind, error),
            }),
        }
    }

    /// Counts which secret matched, or how far the clocks are apart.
    fn counted(&self, verified: Result<Verified, Rejected>) -> Result<Verified, Verdict> {
        match &verified {
            Ok(verified) => self.metrics.matched(verified.key()),
            Err(Rejected::Stale { skew }) => self.metrics.skewed(*skew),
            Err(_) => {}
        }
        verified.map_err(Verdict::Unverified)
    }
}

/// `pending` takes webhooks, too: they wait for it.
fn takes(connection: &Connection) -> bool {
    match connection.status {
        Status::Pending | Status::Active | Status::Error => true,
        Status::Stopped | Status::Revoked => false,
    }
}

fn fresh_id() -> u128 {
    use std::hash::{BuildHasher, RandomState};
    // Random enough not to repeat, and it can't fail: nobody gains by guessing it.
    let random = |n: u8| u128::from(RandomState::new().hash_one(n));
    random(0) << 64 | random(1)
}
