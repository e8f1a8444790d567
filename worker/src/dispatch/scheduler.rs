//! Scheduler of dispatch: claims due deliveries of the owned partitions and spawns their attempts.
//!
//! Woken by commits of intake, ends of attempts and due retries, and every second. Attempts are
//! bound to the term of the worker's row: when the row expires they are cancelled, and another
//! worker frees their lanes.

use super::{
    attempt::RELEASE_WAIT,
    attempt_context::AttemptContext,
    capacity::{ATTEMPTS_MAX, AttemptCapacity, ClaimLimits},
    handler::{AnyHandler, HandlerSettings},
    metrics::DispatchMetrics,
    outcome_recorder::RECORD_INTERVAL,
    runs::{self, RunSettings, StreamingRun},
    sessions,
    tasks::{StopTokens, TaskEnd, attempt_and_record, run_and_record},
};
use crate::{
    claim_pacer::ClaimPacer,
    context::{Context, WorkerTerm},
};
use shared::{
    domain::ConnectionId,
    runtime::telemetry::ErrorChain,
    store::{ClaimRequest, ClaimedDelivery, Priority, QueueKey},
    stream::{Lane, Partition},
};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Interval of queries for due deliveries and orphaned lanes without a wake-up.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Copies of a payload in memory: the bytes and their parsed form.
const PAYLOAD_COPIES: usize = 2;
/// Maximum number of consecutive claims that visit queues but return no delivery.
const EMPTY_CLAIMS_MAX: u32 = 32;
/// Wait after [`EMPTY_CLAIMS_MAX`] such claims, if queues are left to visit.
const VISIT_INTERVAL: Duration = Duration::from_millis(50);
/// Wait before the next claim when an agent's slots are taken, in part by other workers. It doubles
/// while claims return no delivery, up to [`POLL_INTERVAL`].
const CONTENDED_INTERVAL: Duration = Duration::from_millis(20);
/// Maximum number of lanes freed by one statement.
const RELEASE_MAX: i64 = 1_000;

type LaneKey = (ConnectionId, Lane);

/// Runs dispatch until `stop`, then waits up to `grace` for running attempts and releases the rest.
pub async fn run(
    context: Arc<Context>,
    handler: Option<(AnyHandler, HandlerSettings)>,
    metrics: DispatchMetrics,
    run_settings: RunSettings,
    stop: CancellationToken,
    grace: Duration,
) {
    let slots = handler.as_ref().map_or(ATTEMPTS_MAX, |(_, of)| of.max_concurrent);
    let slots = i32::try_from(slots).unwrap_or(i32::MAX);
    while let Err(error) = context.store.ensure_gateway_slots(slots).await {
        warn!(error = %ErrorChain(&error), "failed to create agent slots of handler");
        if stop.run_until_cancelled(tokio::time::sleep(RECORD_INTERVAL)).await.is_none() {
            return;
        }
    }
    let context = Arc::new(AttemptContext::new(context, handler, metrics, run_settings));
    let mut scheduler = Scheduler {
        context,
        attempts: JoinSet::new(),
        running: HashMap::new(),
        runs: HashMap::new(),
        capacity: AttemptCapacity::default(),
        due: BTreeSet::new(),
        next: HashMap::new(),
    };
    let controls = Arc::clone(&scheduler.context);
    let working = async {
        scheduler.work(&stop).await;
        scheduler.drain(grace).await;
    };
    let mut watching = JoinSet::new(); // aborts its tasks when it is dropped
    watching.spawn(runs::watch_controls(Arc::clone(&controls)));
    watching.spawn(sessions::run_calls(Arc::clone(&controls)));
    working.await;
    watching.abort_all();
    sessions::flush(&controls).await;
}

struct Scheduler {
    context: Arc<AttemptContext>,
    attempts: JoinSet<TaskEnd>,
    running: HashMap<tokio::task::Id, RunningAttempt>,
    /// Tasks of `attempts` that execute runs.
    runs: HashMap<tokio::task::Id, RunningRun>,
    capacity: AttemptCapacity,
    /// Times at which lanes postponed by this worker become due.
    due: BTreeSet<Instant>,
    /// Position at which the next claim of each priority begins.
    next: HashMap<Priority, (Partition, Option<QueueKey>)>,
}

/// Attempt in progress.
struct RunningAttempt {
    lane: LaneKey,
    organization: String,
    /// Bytes of all copies of its payload.
    bytes: usize,
    stop: StopTokens,
}

/// Run in progress. Uses no capacity for attempts.
struct RunningRun {
    lane: LaneKey,
    organization: String,
    stop: StopTokens,
}

/// Result of one or more claims.
#[derive(Debug, Default)]
struct ClaimPass {
    /// Number of claimed deliveries.
    claimed: usize,
    /// True if queues are left to visit.
    has_more: bool,
    /// True if due deliveries may wait for slots that other workers hold.
    contended: bool,
}

impl Scheduler {
    async fn work(&mut self, stop: &CancellationToken) {
        let mut polled = Instant::now();
        let (mut claims, mut poll) = (true, true);
        let (mut pacer, mut contended_wait) = (ClaimPacer::default(), CONTENDED_INTERVAL);
        while !stop.is_cancelled() {
            pacer.wait().await;
            let begun = Instant::now();
            if poll {
                polled = Instant::now();
                self.release_forgotten().await;
            }
            let pass = if claims { self.claim_due(stop).await } else { ClaimPass::default() };
            pacer.end(begun);
            self.context.metrics.set_running(self.running.len(), self.capacity.bytes());
            self.context.metrics.set_runs(self.runs.len());
            let now = Instant::now();
            while self.due.first().is_some_and(|due| *due <= now) {
                self.due.pop_first();
            }
            let next_poll = polled + POLL_INTERVAL;
            let mut wake = self.due.first().map_or(next_poll, |due| (*due).min(next_poll));
            if pass.has_more {
                wake = wake.min(now + VISIT_INTERVAL);
            }
            // Another worker does not tell that it freed a slot.
            if pass.claimed > 0 || !pass.contended {
                contended_wait = CONTENDED_INTERVAL;
            }
            if pass.contended {
                wake = wake.min(now + contended_wait);
                contended_wait = (contended_wait * 2).min(POLL_INTERVAL);
            }
            (claims, poll) = (true, false);
            tokio::select! {
                _ = stop.cancelled() => {}
                Some(ended) = self.attempts.join_next_with_id(), if !self.attempts.is_empty() => {
                    self.remove_ended(ended);
                    self.join_ended();
                }
                _ = self.context.clients.wake_dispatch.notified() => {}
                _ = tokio::time::sleep_until(wake) => poll = Instant::now() >= next_poll,
            }
        }
    }

    /// Waits for running attempts. Releases those that do not end in time.
    async fn drain(&mut self, grace: Duration) {
        let deadline = Instant::now() + grace;
        info!(attempts = self.attempts.len(), "dispatch draining");
        loop {
            let next = tokio::time::timeout_at(deadline, self.attempts.join_next_with_id()).await;
            match next {
                Ok(Some(ended)) => self.remove_ended(ended),
                Ok(None) => return,
                Err(_) => break,
            }
        }
        let (attempts, runs) = (self.running.len(), self.runs.len());
        warn!(attempts, runs, "running attempts released after grace period");
        let stops = self.running.values().map(|running| &running.stop);
        for stop in stops.chain(self.runs.values().map(|run| &run.stop)) {
            stop.release.cancel();
        }
        let rest = async { while self.attempts.join_next().await.is_some() {} };
        if tokio::time::timeout(RELEASE_WAIT, rest).await.is_err() {
            warn!("failed to release attempts in time");
        }
    }

    fn join_ended(&mut self) {
        while let Some(ended) = self.attempts.try_join_next_with_id() {
            self.remove_ended(ended);
        }
    }

    fn remove_ended(&mut self, ended: Result<(tokio::task::Id, TaskEnd), tokio::task::JoinError>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            // The next poll frees the lane, which no longer is in memory.
            Err(panic) => {
                error!(%panic, "attempt task panicked");
                panic.id()
            }
        };
        self.runs.remove(&id);
        if let Some(running) = self.running.remove(&id) {
            self.capacity.release(&running.organization, running.bytes);
        }
        match ended {
            Ok((_, TaskEnd::Recorded(after))) => {
                self.due.extend(after.map(|after| Instant::now() + after));
            }
            Ok((_, TaskEnd::Streaming(run, term))) => self.start_run(run, term),
            Err(_) => {}
        }
    }

    /// Continues an attempt as a run, or releases it if the worker has too many runs.
    fn start_run(&mut self, run: Box<StreamingRun>, term: Arc<WorkerTerm>) {
        let lane = (run.delivery.key.connection, run.delivery.key.lane);
        let (context, stop) = (Arc::clone(&self.context), StopTokens::default());
        let organization = run.delivery.org.clone();
        let of_organization = self.runs.values().filter(|run| run.organization == organization);
        let has_capacity = runs::has_capacity(self.runs.len(), of_organization.count());
        let stopped = stop.clone();
        let task = self.attempts.spawn(async move {
            TaskEnd::Recorded(run_and_record(&context, &term, *run, has_capacity, &stopped).await)
        });
        self.runs.insert(task.id(), RunningRun { lane, organization, stop });
    }

    /// Claims and starts deliveries until none is due or the capacity is used.
    async fn claim_due(&mut self, stop: &CancellationToken) -> ClaimPass {
        let mut pass = ClaimPass::default();
        for priority in [Priority::Interactive, Priority::Background] {
            let mut empty = 0;
            while empty < EMPTY_CLAIMS_MAX && !stop.is_cancelled() {
                self.join_ended();
                let limits = self.capacity.claim_limits(priority);
                let Some(term) = self.context.clients.worker.term() else { return pass };
                if limits.total == 0 {
                    break;
                }
                let Some(claim) = self.claim(&term, priority, limits).await else { break };
                pass.claimed += claim.claimed;
                pass.contended |= claim.contended;
                match claim.claimed {
                    0 if claim.has_more => empty += 1,
                    0 => break,
                    _ => empty = 0,
                }
            }
            pass.has_more |= empty == EMPTY_CLAIMS_MAX;
        }
        pass
    }

    /// Claims once.
    async fn claim(
        &mut self,
        term: &Arc<WorkerTerm>,
        priority: Priority,
        limits: ClaimLimits,
    ) -> Option<ClaimPass> {
        let mut partitions = self.context.clients.partitions.all();
        if partitions.is_empty() {
            return None;
        }
        let (first, after) = match self.next.get(&priority) {
            Some((first, after)) => (Some(*first), after.clone()),
            None => (None, None),
        };
        let start = first.and_then(|first| partitions.iter().position(|p| *p >= first));
        let start = start.unwrap_or_default();
        let after = after.filter(|_| Some(partitions[start]) == first);
        let wrapped = start == 0 && after.is_none();
        partitions.rotate_left(start);
        let request = ClaimRequest {
            worker: &term.id,
            partitions: &partitions,
            after,
            priority,
            limit: limits.total as i64,
            organizations: &limits.by_organization,
            other_organizations: limits.idle_organization,
        };
        let claimed = match self.context.clients.store.claim_deliveries(&request).await {
            Ok(claimed) => claimed,
            Err(error) => {
                // If Postgres committed the claim, the next poll frees its lanes.
                warn!(error = %ErrorChain(&error), "failed to claim deliveries");
                return None;
            }
        };
        let pass = ClaimPass {
            claimed: claimed.deliveries.len(),
            has_more: claimed.last_visited.is_some() || !wrapped,
            contended: claimed.is_contended,
        };
        match claimed.last_visited {
            Some((partition, queue)) => {
                self.next.insert(priority, (partition, Some(queue)));
            }
            None => {
                self.next.remove(&priority);
            }
        }
        for delivery in claimed.deliveries {
            self.start(term, delivery);
        }
        Some(pass)
    }

    fn start(&mut self, term: &Arc<WorkerTerm>, delivery: ClaimedDelivery) {
        let lane = (delivery.key.connection, delivery.key.lane);
        let (context, term) = (Arc::clone(&self.context), Arc::clone(term));
        let stop = StopTokens::default();
        let (organization, bytes) = (delivery.org.clone(), delivery.size * PAYLOAD_COPIES);
        let has_capacity = self.capacity.try_acquire(&organization, bytes);
        let stopped = stop.clone();
        let task = self.attempts.spawn(async move {
            attempt_and_record(&context, term, delivery, has_capacity, &stopped).await
        });
        if has_capacity {
            self.running.insert(task.id(), RunningAttempt { lane, organization, bytes, stop });
        }
    }

    /// Frees lanes and slots that Postgres assigns to this worker, but that no task of it holds.
    /// Cancels attempts of deliveries that an operator cancelled, and updates the circuit breakers.
    async fn release_forgotten(&mut self) {
        let store = &self.context.clients.store;
        let Some(term) = self.context.clients.worker.term() else { return };
        // An attempt without capacity is in neither map until its task ends, which is soon.
        if self.attempts.len() == self.running.len() + self.runs.len() {
            let attempts = self.running.values().map(|running| running.lane);
            let keep: Vec<LaneKey> =
                attempts.chain(self.runs.values().map(|run| run.lane)).collect();
            match store.release_delivery_lanes(&term.id, Some(&keep), RELEASE_MAX).await {
                Ok(0) => {}
                Ok(lanes) => {
                    warn!(lanes, "delivery lanes freed after ambiguous claims")
                }
                Err(error) => warn!(error = %ErrorChain(&error), "failed to free orphaned lanes"),
            }
        }
        match store.cancelled_lanes(&term.id).await {
            Ok(cancelled) => {
                for lane in cancelled {
                    let of_lane = self.running.values().filter(|running| running.lane == lane);
                    of_lane.for_each(|running| running.stop.cancel.cancel());
                    let of_lane = self.runs.values().filter(|run| run.lane == lane);
                    of_lane.for_each(|run| run.stop.cancel.cancel());
                }
            }
            Err(error) => {
                warn!(error = %ErrorChain(&error), "failed to query cancelled deliveries")
            }
        }
        if let Ok(count) = store.count_open_circuits().await {
            self.context.metrics.set_open_circuits(count);
        }
        let opened_here = self.context.breakers().open_agents();
        if let Ok(open) = store.open_circuits(&opened_here).await {
            self.context.breakers().retain_open(&open, std::time::Instant::now());
        }
    }
}
