//! How a webhook ends, written down: its effects in one fenced transaction, or its grave.
//!
//! In: effects, or a reason to give up. Out: true when it is finished for good; false when the partition is somebody
//! else's, who will come to it again. A Postgres that is away is waited for: the decision is made, only the writing
//! is missing, and nothing outside is called again for it.

use crate::{Workshop, job::Job, part::Part};
use async_nats::{HeaderMap, HeaderName, HeaderValue};
use shared::{
    store::{Committed, Dying, Effects, Kept, Owner, Position, Spilled, StoreError},
    stream,
    telemetry::Chain,
};
use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};
use tracing::{error, info, warn};

/// Between two tries of a Postgres that is away.
const PAUSE: Duration = Duration::from_millis(250);

/// Puts a webhook's effects into force.
pub async fn apply(workshop: &Workshop, part: &Part, job: &Job, effects: Effects) -> bool {
    let (at, outcome) = (position(job), effects.outcome);
    // What a transaction decides says something, too. To look into the outbox for every webhook would be a query for each.
    let says = !effects.is_simple() || !effects.say.is_empty();
    let committed = if effects.is_simple() {
        let effects = Arc::new(effects);
        insist(part, || workshop.groups.commit(&part.owner, &at, &effects)).await
    } else {
        let began = Instant::now();
        let committed = insist(part, || workshop.store.commit(&part.owner, &at, &effects)).await;
        workshop.metrics.committed(1, began.elapsed());
        committed
    };
    let committed = match committed {
        Insisted::Written(committed) => committed,
        Insisted::Lost => return false,
        Insisted::Refused(why) => {
            return bury(workshop, part, job, "Postgres refuses its effects", &why, 1).await;
        }
    };
    match committed {
        Committed::Applied { claim } => {
            if says {
                part.outbox.notify_one();
            }
            let claim = claim.as_ref().map(|result| result.as_str());
            let (sequence, kind) = (job.sequence, job.envelope.kind);
            info!(sequence, connection = %at.connection, %kind, outcome, claim, "handled");
            true
        }
        Committed::AlreadyDone => true,
        Committed::Fenced => fenced(workshop, part),
        Committed::OrderSlip => {
            error!(sequence = job.sequence, lane = %at.lane, "its lane is past it, and it is not done: order slip");
            bury(workshop, part, job, "its lane was past it (order slip)", "", 1).await
        }
    }
}

/// Puts a redriven webhook's effects into force: it is dead no more. False when the partition is somebody else's.
pub async fn redriven(
    workshop: &Workshop,
    part: &Part,
    dead: i64,
    job: &Job,
    effects: &Effects,
) -> Result<bool, String> {
    let at = position(job);
    let commit = || workshop.store.commit_redriven(&part.owner, dead, &at, effects);
    match insist(part, commit).await {
        Insisted::Written(Committed::Fenced) => Ok(fenced(workshop, part)),
        Insisted::Written(_) => {
            part.outbox.notify_one();
            let (sequence, outcome) = (job.sequence, effects.outcome);
            info!(dead, sequence, connection = %at.connection, outcome, "redriven");
            Ok(true)
        }
        Insisted::Lost => Ok(false),
        Insisted::Refused(why) => Err(why),
    }
}

/// What is committed, of a webhook in hand.
pub fn position(job: &Job) -> Position {
    let envelope = &job.envelope;
    Position {
        sequence: job.sequence,
        lane: envelope.lane,
        connection: envelope.connection,
        dedupe: envelope.dedupe.clone(),
        traceparent: envelope.traceparent.clone(),
    }
}

/// Gives a webhook up.
pub async fn bury(
    workshop: &Workshop,
    part: &Part,
    job: &Job,
    reason: &str,
    last_error: &str,
    attempts: i32,
) -> bool {
    let envelope = &job.envelope;
    let dying = Dying {
        sequence: job.sequence,
        subject: &envelope.subject(),
        headers: listed(Some(&envelope.headers())),
        body: &envelope.body,
        connection: Some(envelope.connection.to_string()),
        dedupe: Some(envelope.dedupe.to_string()),
        for_good: true,
        reason,
        last_error,
        attempts,
    };
    write_grave(workshop, part, &part.owner, &dying).await
}

/// Gives up what is no envelope.
pub async fn bury_undecodable(
    workshop: &Workshop,
    part: &Part,
    sequence: u64,
    (subject, headers, body): (&str, Option<&HeaderMap>, &[u8]),
    reason: &str,
) -> bool {
    let dying = Dying {
        sequence,
        subject,
        headers: listed(headers),
        body,
        connection: stream::parse_subject(subject).map(|(_, connection)| connection.to_string()),
        dedupe: None,
        for_good: true,
        reason,
        last_error: "",
        attempts: 0,
    };
    write_grave(workshop, part, &part.owner, &dying).await
}

/// Gives up a parked webhook that the stream does not have any more; `kept`, if its bytes were.
pub async fn bury_gone(
    workshop: &Workshop,
    part: &Part,
    owner: &Owner,
    row: &Spilled,
    kept: Option<Kept>,
) -> bool {
    let for_good = kept.is_some();
    let kept = kept.unwrap_or(Kept { headers: Vec::new(), body: Vec::new() });
    let dying = Dying {
        sequence: row.sequence,
        subject: &stream::subject(part.owner.partition, row.connection),
        headers: kept.headers,
        body: &kept.body,
        connection: Some(row.connection.to_string()),
        dedupe: Some(row.dedupe.to_string()),
        for_good,
        reason: "the stream did not have it any more when its turn came",
        last_error: "",
        attempts: 0,
    };
    write_grave(workshop, part, owner, &dying).await
}

/// Sets webhooks aside; false when the partition is not ours any more.
pub async fn spill(workshop: &Workshop, part: &Part, rows: &[Spilled]) -> bool {
    match insist(part, || workshop.store.spill(&part.owner, rows)).await {
        Insisted::Written(true) => true,
        Insisted::Written(false) => fenced(workshop, part),
        Insisted::Lost => false,
        Insisted::Refused(why) => {
            error!(why, "Postgres refuses to set webhooks aside");
            part.lost.cancel();
            false
        }
    }
}

async fn write_grave(workshop: &Workshop, part: &Part, owner: &Owner, dying: &Dying<'_>) -> bool {
    match insist(part, || workshop.store.bury(owner, dying)).await {
        Insisted::Written(true) => {
            workshop.metrics.buried();
            let Dying { sequence, reason, last_error, .. } = dying;
            error!(sequence, reason, last_error, "dead");
            true
        }
        Insisted::Written(false) => fenced(workshop, part),
        Insisted::Lost => false,
        // Without its grave it must not count as finished; the partition stands, and says so.
        Insisted::Refused(why) => {
            error!(sequence = dying.sequence, why, "Postgres refuses to take it among the dead");
            part.lost.cancel();
            false
        }
    }
}

fn fenced(workshop: &Workshop, part: &Part) -> bool {
    workshop.metrics.fenced();
    warn!(partition = %part.owner.partition, epoch = part.owner.epoch, "somebody else owns the partition: fenced");
    part.lost.cancel();
    false
}

enum Insisted<T> {
    Written(T),
    /// The partition was lost meanwhile.
    Lost,
    /// The values themselves are refused, with this word.
    Refused(String),
}

/// Tries until Postgres takes it, or will never.
async fn insist<T, F>(part: &Part, write: impl Fn() -> F) -> Insisted<T>
where
    F: Future<Output = Result<T, StoreError>>,
{
    loop {
        match write().await {
            Ok(written) => return Insisted::Written(written),
            Err(error) if error.is_about_the_data() => {
                return Insisted::Refused(Chain(&error).to_string());
            }
            Err(error) => warn!(error = %Chain(&error), "could not be written; trying again"),
        }
        tokio::select! {
            _ = part.lost.cancelled() => return Insisted::Lost,
            _ = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// Headers as they are kept.
pub fn listed(headers: Option<&HeaderMap>) -> Vec<(String, String)> {
    let pairs = headers.into_iter().flat_map(|headers| headers.iter());
    pairs
        .flat_map(|(name, values)| values.iter().map(move |v| (name.to_string(), v.to_string())))
        .collect()
}

/// The inverse of [`listed`]; what is no header is left out, and decoding says what is missing.
pub fn unlisted(headers: &[(String, String)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            map.append(name, value);
        }
    }
    map
}
