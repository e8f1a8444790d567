//! HTTP in, HTTP out: the two routes, and the way of a webhook through the stages.
//!
//! In: a POST. Out: what [`crate::answer`] says of the [`Verdict`]. Knows paths, headers, limits and deadlines;
//! knows nothing of Slack's JSON. Every way out is a verdict, and every verdict is one log line.

use crate::{
    answer::{Verdict, answer},
    classify,
    directory::{Connection, Directory},
    publish::Publisher,
    verify::{Raw, Rejected, SigningKey, Verified, verify},
};
use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, Request, Response, header},
    routing::post,
};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use shared::{
    codec::{
        envelope::{Envelope, Retry, Word},
        slack::{Inbound, Media, Parts},
    },
    stream::BODY_BYTES_MAX,
    telemetry::Chain,
    types::{ConnectionId, Status},
};
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::Semaphore;
use tracing::Level;

/// A body has this long to come. Slack itself gives up on us after 3 s.
const BODY_DEADLINE: Duration = Duration::from_secs(3);

const SIGNATURE: HeaderName = HeaderName::from_static("x-slack-signature");
const TIMESTAMP: HeaderName = HeaderName::from_static("x-slack-request-timestamp");
const RETRY_NUM: HeaderName = HeaderName::from_static("x-slack-retry-num");
const RETRY_REASON: HeaderName = HeaderName::from_static("x-slack-retry-reason");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What the routes need.
pub struct Gate {
    /// Which connection.
    pub directory: Directory,
    /// Into the stream.
    pub publisher: Publisher,
    /// The shared app's secrets; none closes the shared route.
    pub shared_keys: Vec<SigningKey>,
    /// A permit per webhook in flight.
    pub in_flight: Semaphore,
}

/// The two routes. Both take every kind.
pub fn router(gate: Arc<Gate>) -> Router {
    Router::new()
        .route("/api/v1/webhooks/{connection}", post(per_connection))
        .route("/slack/events", post(shared_app))
        .with_state(gate)
}

async fn per_connection(
    State(gate): State<Arc<Gate>>,
    Path(connection): Path<String>,
    request: Request<Body>,
) -> Response<Body> {
    let id = connection.parse().ok();
    gate.answer(id, async |raw| gate.for_connection(id, raw).await, request).await
}

async fn shared_app(State(gate): State<Arc<Gate>>, request: Request<Body>) -> Response<Body> {
    gate.answer(None, async |raw| gate.for_shared_app(raw).await, request).await
}

/// A webhook whose body has been read; nothing is verified.
struct Incoming {
    headers: HeaderMap,
    media: Media,
    body: Bytes,
}

impl Gate {
    async fn answer(
        &self,
        connection: Option<ConnectionId>,
        pass: impl AsyncFnOnce(Incoming) -> Result<Verdict, Verdict>,
        request: Request<Body>,
    ) -> Response<Body> {
        let started = Instant::now();
        let verdict = match self.in_flight.try_acquire() {
            Err(_) => Verdict::Overloaded,
            Ok(_permit) => {
                let passed = async { pass(read(request).await?).await };
                passed.await.unwrap_or_else(|refusal| refusal)
            }
        };
        let answer = answer(&verdict);
        log(
            connection,
            &verdict,
            answer.level,
            answer.label,
            answer.status.as_u16(),
            started.elapsed(),
        );
        answer.into_response()
    }

    /// The route of one connection: its own secrets.
    async fn for_connection(
        &self,
        id: Option<ConnectionId>,
        incoming: Incoming,
    ) -> Result<Verdict, Verdict> {
        let found = self.directory.find(id.ok_or(Verdict::UnknownConnection)?).await;
        let mut connection =
            found.map_err(Verdict::DirectoryAway)?.ok_or(Verdict::UnknownConnection)?;
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
        let verified = verified.map_err(Verdict::Unverified)?;
        let parts = classify::split(incoming.media, &verified);
        let inbound = parts.read();
        if let Some(challenge) = classify::challenge(&inbound) {
            return Ok(Verdict::Challenge(challenge.to_owned()));
        }
        if !takes(&connection) {
            return Err(Verdict::Stopped);
        }
        self.store(&connection, &incoming, &inbound, &verified, now).await
    }

    /// The route of the shared app: its secrets, and the connection that the body names.
    async fn for_shared_app(&self, incoming: Incoming) -> Result<Verdict, Verdict> {
        if self.shared_keys.is_empty() {
            return Err(Verdict::SharedRouteClosed);
        }
        if matches!(Parts::split(incoming.media, &incoming.body), Parts::SslCheck) {
            return Ok(Verdict::SslCheck);
        }
        let now = SystemTime::now();
        let verified =
            verify(incoming.raw(), &self.shared_keys, now).map_err(Verdict::Unverified)?;
        let parts = classify::split(incoming.media, &verified);
        let inbound = parts.read();
        if let Some(challenge) = classify::challenge(&inbound) {
            return Ok(Verdict::Challenge(challenge.to_owned()));
        }
        let connection = match classify::routing(&inbound) {
            Some(routing) => {
                self.directory.route(&routing).await.map_err(Verdict::DirectoryAway)?
            }
            None => None,
        };
        match connection.filter(|connection| takes(connection)) {
            Some(connection) => self.store(&connection, &incoming, &inbound, &verified, now).await,
            None => Err(Verdict::Unrouted(classify::kind(&inbound))),
        }
    }

    async fn store(
        &self,
        connection: &Connection,
        incoming: &Incoming,
        inbound: &Inbound<'_>,
        verified: &Verified,
        now: SystemTime,
    ) -> Result<Verdict, Verdict> {
        let placed = classify::place(connection.id, inbound, verified, fresh_id);
        let envelope = Envelope {
            connection: connection.id,
            partition: placed.partition,
            kind: placed.kind,
            lane: placed.lane,
            dedupe: placed.dedupe,
            received_at_ms: now.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64),
            media: incoming.media,
            signature: verified.signature().clone(),
            timestamp: verified.timestamp().clone(),
            retry: incoming.retry(),
            traceparent: only(&incoming.headers, &TRACEPARENT).and_then(Word::new),
            reply: None,
            body: verified.body().clone(),
        };
        match self.publisher.publish(&envelope).await {
            Ok(stored) => Ok(Verdict::Stored(placed.kind, stored)),
            Err(error) => Err(Verdict::NotStored(placed.kind, error)),
        }
    }
}

impl Incoming {
    fn raw(&self) -> Raw<'_> {
        let (signature, timestamp) =
            (only(&self.headers, &SIGNATURE), only(&self.headers, &TIMESTAMP));
        Raw { signature, timestamp, body: self.body.clone() }
    }

    fn retry(&self) -> Option<Retry> {
        let number = only(&self.headers, &RETRY_NUM)?.parse().ok()?;
        Some(Retry { number, reason: only(&self.headers, &RETRY_REASON).and_then(Word::new) })
    }
}

/// `pending` takes webhooks, too: they wait for it.
fn takes(connection: &Connection) -> bool {
    match connection.status {
        Status::Pending | Status::Active | Status::Error => true,
        Status::Stopped | Status::Revoked => false,
    }
}

/// Reads the body, within the limits of size and time.
async fn read(request: Request<Body>) -> Result<Incoming, Verdict> {
    let (parts, body) = request.into_parts();
    if parts.headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(Verdict::TransferEncoding);
    }
    let media = only(&parts.headers, &header::CONTENT_TYPE).and_then(Media::from_content_type);
    let media = media.ok_or(Verdict::MediaType)?;
    let length =
        only(&parts.headers, &header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
    if length.is_some_and(|length: usize| length > BODY_BYTES_MAX) {
        return Err(Verdict::TooLarge);
    }
    let whole = Limited::new(body, BODY_BYTES_MAX).collect();
    let body = match tokio::time::timeout(BODY_DEADLINE, whole).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(Verdict::TooLarge),
        Ok(Err(_)) => return Err(Verdict::Broken),
        Err(_) => return Err(Verdict::Slow),
    };
    Ok(Incoming { headers: parts.headers, media, body })
}

/// A header's value when there is exactly one of it: of two, nobody could say which was signed.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

fn fresh_id() -> u128 {
    use std::hash::{BuildHasher, RandomState};
    // Random enough not to repeat, and it can't fail: nobody gains by guessing it.
    let random = |n: u8| u128::from(RandomState::new().hash_one(n));
    random(0) << 64 | random(1)
}

fn log(
    connection: Option<ConnectionId>,
    verdict: &Verdict,
    level: Level,
    outcome: &'static str,
    status: u16,
    took: Duration,
) {
    let connection = connection.map(tracing::field::display);
    let (kind, sequence, error) = match verdict {
        Verdict::Stored(kind, stored) => (Some(*kind), Some(stored.sequence()), None),
        Verdict::NotStored(kind, error) => (Some(*kind), None, Some(Chain(error).to_string())),
        Verdict::Unrouted(kind) => (Some(*kind), None, None),
        _ => (None, None, None),
    };
    let (kind, dur_ms) = (kind.map(|kind| kind.as_str()), took.as_secs_f64() * 1e3);
    // The level of an event is fixed when it is compiled, hence the macro.
    macro_rules! line {
        ($level:expr) => {
            tracing::event!(
                $level, connection, kind, outcome, status, sequence, error, dur_ms, "webhook"
            )
        };
    }
    match level {
        Level::ERROR => line!(Level::ERROR),
        Level::WARN => line!(Level::WARN),
        _ => line!(Level::INFO),
    }
}
