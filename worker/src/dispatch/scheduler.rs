//! The loop of dispatch: claims due deliveries for all owned partitions, runs their attempts, records their ends.
//!
//! Woken by intake's commits, by ends of attempts, by retries that become due, and each second. Attempts are tasks of their own,
//! under the term of the worker's row: when the row expires they are cancelled, and whoever notices frees their lanes.

use super::{
    attempt::{self, End, RELEASE_WAIT},
    breaker::{CircuitBreakers, Transition},
    handler::AnyHandler,
    metrics::DispatchMetrics,
    places::Places,
};
use crate::{
    batcher::Batcher,
    context::{ByteBudget, Context, WorkerTerm},
};
use shared::{
    partition::{Lane, Partition},
    store::{
        Agent, ClaimRequest, ClaimedDelivery, FinishedDelivery, PostponedDelivery, Priority,
        QueueKey, SealedPayload, Store, StoreError,
    },
    telemetry::Chain,
    types::{AgentId, ConnectionId, OrgId},
};
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::OwnedSemaphorePermit, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Without being woken, due deliveries are looked for this often; so are lanes that nobody runs.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of payloads in use, at most.
const PAYLOAD_BYTES_MAX: usize = 64 << 20;
/// A payload is held as bytes and as what is made of them.
const PAYLOAD_COUNTS: usize = 2;
/// Claims in a row that visit queues and find nothing to run.
const EMPTY_CLAIMS_MAX: u32 = 32;
/// Time for which an agent's row is used.
const AGENT_TTL: Duration = Duration::from_secs(1);
/// Agents remembered at most.
const AGENTS_MAX: usize = 4_096;
/// Wait before an end is recorded again.
const RECORD_INTERVAL: Duration = Duration::from_millis(250);
/// Lanes freed by one statement, at most.
const RELEASE_MAX: i64 = 1_000;

type LaneKey = (ConnectionId, Lane);
/// Agents' rows, and when they were read.
type AgentCache = HashMap<(OrgId, AgentId), (Instant, Arc<Agent>)>;

/// A team's own handler: its limits.
#[derive(Debug, Clone, Copy)]
pub struct HandlerSettings {
    /// Deliveries that it takes at once, on all workers together.
    pub max_concurrent: usize,
    /// Time for one of them.
    pub timeout: Duration,
}

/// What attempts share.
pub struct Shared {
    /// Clients.
    pub context: Arc<Context>,
    /// The team's own handler.
    pub handler: Option<(AnyHandler, HandlerSettings)>,
    /// Counters.
    pub metrics: DispatchMetrics,
    /// Reads payloads, many together.
    pub payloads: Batcher<ClaimedDelivery, Result<Result<SealedPayload, String>, StoreError>>,
    finishing: Batcher<Arc<FinishedDelivery>, Result<bool, StoreError>>,
    postponing: Batcher<PostponedDelivery, Result<bool, StoreError>>,
    breakers: Mutex<CircuitBreakers>,
    agents: Mutex<AgentCache>,
}

/// Dispatches until told to stop; then waits for what runs, at most `grace`, and releases the rest.
pub async fn run(
    context: Arc<Context>,
    handler: Option<(AnyHandler, HandlerSettings)>,
    metrics: DispatchMetrics,
    stop: CancellationToken,
    grace: Duration,
) {
    let slots = handler.as_ref().map_or(super::places::PLACES, |(_, of)| of.max_concurrent);
    let slots = i32::try_from(slots).unwrap_or(i32::MAX);
    while let Err(error) = context.store.ensure_gateway_slots(slots).await {
        warn!(error = %Chain(&error), "failed to make slots");
        if stop.run_until_cancelled(tokio::time::sleep(RECORD_INTERVAL)).await.is_none() {
            return;
        }
    }
    let shared = Arc::new(Shared::new(context, handler, metrics));
    let mut scheduler = Scheduler {
        shared,
        attempts: JoinSet::new(),
        running: HashMap::new(),
        places: Places::default(),
        budget: ByteBudget::new(PAYLOAD_BYTES_MAX),
        due: BTreeSet::new(),
        next: HashMap::new(),
    };
    scheduler.work(&stop).await;
    scheduler.drain(grace).await;
}

struct Scheduler {
    shared: Arc<Shared>,
    attempts: JoinSet<Option<Duration>>,
    running: HashMap<tokio::task::Id, Running>,
    places: Places,
    budget: ByteBudget,
    /// When retries of this worker become due.
    due: BTreeSet<Instant>,
    /// Where the next claim of each priority begins.
    next: HashMap<Priority, (Partition, Option<QueueKey>)>,
}

/// An attempt that runs.
struct Running {
    lane: LaneKey,
    organization: String,
    stop: Stop,
}

/// Two ways of ending an attempt before its time.
#[derive(Clone, Default)]
struct Stop {
    /// The worker stops: the delivery waits, and the attempt does not count.
    release: CancellationToken,
    /// An operator cancelled the delivery: it is over.
    cancel: CancellationToken,
}

impl Scheduler {
    async fn work(&mut self, stop: &CancellationToken) {
        let mut polled = Instant::now();
        let (mut claims, mut poll) = (true, true);
        while !stop.is_cancelled() {
            if poll {
                polled = Instant::now();
                self.release_forgotten().await;
            }
            if claims {
                self.claim_due(stop).await;
            }
            self.shared.metrics.running(self.running.len(), self.budget.in_use());
            let now = Instant::now();
            while self.due.first().is_some_and(|due| *due <= now) {
                self.due.pop_first();
            }
            let next_poll = polled + POLL_INTERVAL;
            let wake = self.due.first().map_or(next_poll, |due| (*due).min(next_poll));
            (claims, poll) = (true, false);
            tokio::select! {
                _ = stop.cancelled() => {}
                Some(ended) = self.attempts.join_next_with_id(), if !self.attempts.is_empty() => {
                    self.ended(ended);
                    self.join_ended();
                }
                _ = self.shared.context.wake_dispatch.notified() => {}
                _ = tokio::time::sleep_until(wake) => poll = Instant::now() >= next_poll,
            }
        }
    }

    /// Lets what runs end; what does not end in time is released, and its attempt does not count.
    async fn drain(&mut self, grace: Duration) {
        let deadline = Instant::now() + grace;
        info!(attempts = self.attempts.len(), "waiting for running attempts");
        loop {
            let next = tokio::time::timeout_at(deadline, self.attempts.join_next_with_id()).await;
            match next {
                Ok(Some(ended)) => self.ended(ended),
                Ok(None) => return,
                Err(_) => break,
            }
        }
        warn!(attempts = self.running.len(), "the grace period is over; releasing what runs");
        for running in self.running.values() {
            running.stop.release.cancel();
        }
        let rest = async { while self.attempts.join_next().await.is_some() {} };
        if tokio::time::timeout(RELEASE_WAIT, rest).await.is_err() {
            warn!(
                "failed to release all attempts; their lanes are freed when the worker's row expires"
            );
        }
    }

    fn join_ended(&mut self) {
        while let Some(ended) = self.attempts.try_join_next_with_id() {
            self.ended(ended);
        }
    }

    fn ended(
        &mut self,
        ended: Result<(tokio::task::Id, Option<Duration>), tokio::task::JoinError>,
    ) {
        let id = match &ended {
            Ok((id, _)) => *id,
            // The lane is freed with the next look for lanes that are not in memory.
            Err(panic) => {
                error!(%panic, "recording an attempt panicked");
                panic.id()
            }
        };
        if let Some(running) = self.running.remove(&id) {
            self.places.free(&running.organization);
        }
        let again_after = ended.ok().and_then(|(_, after)| after);
        self.due.extend(again_after.map(|after| Instant::now() + after));
    }

    /// Claims and starts deliveries until nothing more is due or fits.
    async fn claim_due(&mut self, stop: &CancellationToken) {
        for priority in [Priority::Interactive, Priority::Background] {
            let mut empty = 0;
            while empty < EMPTY_CLAIMS_MAX && !stop.is_cancelled() {
                self.join_ended();
                let free = match priority {
                    Priority::Interactive => self.places.for_interactive(),
                    Priority::Background => self.places.for_background(),
                };
                let Some(term) = self.shared.context.worker.term() else { return };
                if free == 0 {
                    break;
                }
                match self.claim(&term, priority, free).await {
                    Some((0, false)) | None => break,
                    Some((0, true)) => empty += 1,
                    Some(_) => empty = 0,
                }
            }
        }
    }

    /// Claims once. Returns how many deliveries were claimed, and whether queues are left to visit.
    async fn claim(
        &mut self,
        term: &Arc<WorkerTerm>,
        priority: Priority,
        free: usize,
    ) -> Option<(usize, bool)> {
        let mut partitions = self.shared.context.partitions.all();
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
            limit: free as i64,
        };
        let claimed = match self.shared.context.store.claim_deliveries(&request).await {
            Ok(claimed) => claimed,
            Err(error) => {
                // What an unknown result has claimed is freed with the next look for lanes that are not in memory.
                warn!(error = %Chain(&error), "failed to claim deliveries");
                return None;
            }
        };
        let more = claimed.last_visited.is_some() || !wrapped;
        match claimed.last_visited {
            Some((partition, queue)) => {
                self.next.insert(priority, (partition, Some(queue)));
            }
            None => {
                self.next.remove(&priority);
            }
        }
        let count = claimed.deliveries.len();
        for delivery in claimed.deliveries {
            self.start(term, delivery);
        }
        Some((count, more))
    }

    fn start(&mut self, term: &Arc<WorkerTerm>, delivery: ClaimedDelivery) {
        let lane = (delivery.key.connection, delivery.key.lane);
        let (shared, term) = (Arc::clone(&self.shared), Arc::clone(term));
        let stop = Stop::default();
        let permit = self.budget.try_acquire(delivery.size * PAYLOAD_COUNTS);
        let organization = delivery.org.clone();
        let placed = permit.is_some() && self.places.take(&organization);
        let permit = permit.filter(|_| placed);
        let stopped = stop.clone();
        let task = self.attempts.spawn(async move {
            attempt_and_record(&shared, &term, delivery, permit, &stopped).await
        });
        if placed {
            self.running.insert(task.id(), Running { lane, organization, stop });
        }
    }

    /// Frees lanes and slots that name this worker and are not in its memory, and cancels what an operator cancelled.
    async fn release_forgotten(&mut self) {
        let store = &self.shared.context.store;
        let Some(term) = self.shared.context.worker.term() else { return };
        // Attempts that are released at once hold no place, and end in a moment.
        if self.attempts.len() == self.running.len() {
            let keep: Vec<LaneKey> = self.running.values().map(|running| running.lane).collect();
            match store.release_delivery_lanes(&term.id, Some(&keep), RELEASE_MAX).await {
                Ok(0) => {}
                Ok(lanes) => {
                    warn!(lanes, "lanes freed that this worker claimed without hearing of it")
                }
                Err(error) => warn!(error = %Chain(&error), "failed to look for forgotten lanes"),
            }
        }
        match store.cancelled_lanes(&term.id).await {
            Ok(cancelled) => {
                for lane in cancelled {
                    let of_lane = self.running.values().filter(|running| running.lane == lane);
                    of_lane.for_each(|running| running.stop.cancel.cancel());
                }
            }
            Err(error) => warn!(error = %Chain(&error), "failed to look for cancelled deliveries"),
        }
        if let Ok(open) = store.open_circuits().await {
            self.shared.metrics.open_circuits(open.len());
            self.shared.breakers().retain_open(&open, std::time::Instant::now());
        }
    }
}

/// Runs an attempt and records its end. Returns when the lane is due again, if it is.
async fn attempt_and_record(
    shared: &Shared,
    term: &WorkerTerm,
    delivery: ClaimedDelivery,
    permit: Option<OwnedSemaphorePermit>,
    stop: &Stop,
) -> Option<Duration> {
    let released =
        |delivery, error: &str| attempt::released(delivery, RELEASE_WAIT, error.to_owned(), false);
    let end = match &permit {
        None => released(delivery, "there was no room for it"),
        Some(_) => {
            let running = attempt::run(shared, term, delivery.clone());
            tokio::select! {
                end = running => end,
                _ = term.ended.cancelled() => return None, // another worker frees its lane
                _ = stop.release.cancelled() => released(delivery, "the worker stops"),
                _ = stop.cancel.cancelled() => attempt::cancelled(delivery),
            }
        }
    };
    drop(permit);
    shared.record(term, end).await
}

impl Shared {
    fn new(
        context: Arc<Context>,
        handler: Option<(AnyHandler, HandlerSettings)>,
        metrics: DispatchMetrics,
    ) -> Self {
        let store = &context.store;
        let payloads = batched(store, |store, deliveries: Vec<ClaimedDelivery>| async move {
            let deliveries: Vec<&ClaimedDelivery> = deliveries.iter().collect();
            each(deliveries.len(), store.load_payloads(&deliveries).await)
        });
        let finishing = batched(store, |store, finished: Vec<Arc<FinishedDelivery>>| async move {
            let finished: Vec<&FinishedDelivery> = finished.iter().map(|one| &**one).collect();
            match store.finish_deliveries(&finished).await {
                // One that Postgres refuses must not hold up the others.
                Err(error) if error.refuses_contents() && finished.len() > 1 => {
                    let mut all = Vec::new();
                    for one in finished {
                        let result = store.finish_deliveries(&[one]).await;
                        all.push(result.map(|in_force| in_force == [true]));
                    }
                    all
                }
                result => each(finished.len(), result),
            }
        });
        let postponing = batched(store, |store, postponed: Vec<PostponedDelivery>| async move {
            each(postponed.len(), store.postpone_deliveries(&postponed).await)
        });
        Self {
            context,
            handler,
            metrics,
            payloads,
            finishing,
            postponing,
            breakers: Mutex::default(),
            agents: Mutex::default(),
        }
    }

    /// Records an end, for as long as the worker's row holds: after that the lane is another worker's.
    async fn record(&self, term: &WorkerTerm, end: End) -> Option<Duration> {
        let mut end = match end {
            End::Finished(finished, None) => Recorded::Finished(Arc::new(*finished)),
            End::Finished(finished, Some(change)) => {
                let delivery = finished.delivery.clone();
                match self.context.store.finish_with_change(*finished, &change).await {
                    Ok(_) => {
                        self.context.wake_outbox.notify_one();
                        return Some(Duration::ZERO);
                    }
                    Err(error) => Recorded::Postponed(Box::new(PostponedDelivery {
                        delivery,
                        after: RELEASE_WAIT,
                        error: Chain(&error).to_string(),
                        counts: true,
                        fault: false,
                        crashed: false,
                    })),
                }
            }
            End::Postponed(postponed) => Recorded::Postponed(Box::new(postponed)),
        };
        loop {
            let (delivery, result, after) = match &end {
                Recorded::Finished(finished) => {
                    let result = self.finishing.run(Arc::clone(finished)).await;
                    (&finished.delivery, result, Duration::ZERO)
                }
                Recorded::Postponed(postponed) => {
                    let result = self.postponing.run((**postponed).clone()).await;
                    (&postponed.delivery, result, postponed.after)
                }
            };
            let key = &delivery.dedup_key;
            match result {
                Some(Ok(in_force)) => {
                    if !in_force {
                        info!(%key, "end of an attempt fenced: the lane was freed meanwhile");
                    } else if let Recorded::Finished(finished) = &end {
                        if !finished.messages.is_empty() {
                            self.context.wake_outbox.notify_one();
                        }
                        if matches!(
                            finished.outcome,
                            shared::store::FinishedOutcome::DeadLetter { .. }
                        ) {
                            self.context.metrics.dead_lettered(1);
                        }
                    }
                    return Some(after);
                }
                Some(Err(error)) if error.refuses_contents() => {
                    let error = Chain(&error).to_string();
                    warn!(%key, error, "Postgres refuses the end of an attempt");
                    end = match end {
                        Recorded::Finished(finished) if !finished.messages.is_empty() => {
                            // What it is refused for can only be its messages.
                            Recorded::Finished(Arc::new(FinishedDelivery {
                                delivery: finished.delivery.clone(),
                                outcome: shared::store::FinishedOutcome::DeadLetter {
                                    reason: "Postgres refuses its messages".into(),
                                    error,
                                },
                                messages: Vec::new(),
                                traceparent: None,
                            }))
                        }
                        _ => return None,
                    };
                }
                Some(Err(error)) => {
                    warn!(%key, error = %Chain(&error), "failed to record the end of an attempt");
                    if !term.holds() {
                        return None;
                    }
                    tokio::time::sleep(RECORD_INTERVAL).await;
                }
                None => return None,
            }
        }
    }

    /// Records that an agent answered.
    pub async fn succeeded(&self, delivery: &ClaimedDelivery) {
        if delivery.agent().is_none() {
            return;
        }
        let agent = (delivery.org.as_str(), delivery.agent.as_str());
        let now = std::time::Instant::now();
        let transition = self.breakers().on_success(agent, delivery.probe, now);
        self.record_transition(agent, transition, "").await;
    }

    /// Records that an agent was away.
    pub async fn failed(&self, delivery: &ClaimedDelivery, error: &str) {
        if delivery.agent().is_none() {
            return;
        }
        let agent = (delivery.org.as_str(), delivery.agent.as_str());
        let transition = {
            let now = std::time::Instant::now();
            self.breakers().on_failure(agent, delivery.key.lane, delivery.probe, now)
        };
        self.record_transition(agent, transition, error).await;
    }

    async fn record_transition(
        &self,
        (org, agent): (&str, &str),
        transition: Option<Transition>,
        error: &str,
    ) {
        let store = &self.context.store;
        let recorded = match transition {
            Some(Transition::Open) => {
                warn!(org, agent, error, "circuit breaker opened");
                store.open_circuit(org, agent, error).await
            }
            Some(Transition::Close) => {
                info!(org, agent, "circuit breaker closed");
                store.close_circuit(org, agent).await
            }
            None => return,
        };
        if let Err(error) = recorded {
            warn!(org, agent, error = %Chain(&error), "failed to record circuit breaker");
        }
    }

    /// Whether the agent answered another delivery since this one's first attempt.
    pub fn answers_others(&self, delivery: &ClaimedDelivery) -> bool {
        let agent = (delivery.org.as_str(), delivery.agent.as_str());
        self.breakers().has_answered_within(agent, delivery.age, std::time::Instant::now())
    }

    /// A number in 0.0..1.0.
    pub fn jitter(&self) -> f64 {
        let mut byte = [0_u8];
        let _ = getrandom::fill(&mut byte); // without randomness there is no jitter
        f64::from(byte[0]) / 256.0
    }

    /// An agent's row, a second old at most.
    pub async fn agent(&self, org: &OrgId, id: &AgentId) -> Result<Option<Arc<Agent>>, StoreError> {
        let key = (org.clone(), id.clone());
        if let Some((at, agent)) = self.agents().get(&key)
            && at.elapsed() < AGENT_TTL
        {
            return Ok(Some(Arc::clone(agent)));
        }
        let Some(agent) = self.context.store.agent(org, id).await?.map(Arc::new) else {
            return Ok(None);
        };
        let mut agents = self.agents();
        if agents.len() >= AGENTS_MAX {
            agents.retain(|_, (at, _)| at.elapsed() < AGENT_TTL);
        }
        agents.insert(key, (Instant::now(), Arc::clone(&agent)));
        Ok(Some(agent))
    }

    fn agents(&self) -> MutexGuard<'_, AgentCache> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn breakers(&self) -> MutexGuard<'_, CircuitBreakers> {
        self.breakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Recorded {
    Finished(Arc<FinishedDelivery>),
    Postponed(Box<PostponedDelivery>),
}

/// A batcher whose batches use the store.
fn batched<Req, Res, F>(
    store: &Store,
    run: impl Fn(Store, Vec<Req>) -> F + Send + Sync + 'static,
) -> Batcher<Req, Res>
where
    Req: Send + 'static,
    Res: Send + 'static,
    F: Future<Output = Vec<Res>> + Send,
{
    let store = store.clone();
    Batcher::new(move |requests| run(store.clone(), requests))
}

/// The result of a batch, for each of its requests.
fn each<T>(count: usize, result: Result<Vec<T>, StoreError>) -> Vec<Result<T, StoreError>> {
    match result {
        Ok(all) => all.into_iter().map(Ok).collect(),
        Err(error) => {
            let error = Arc::new(error);
            (0..count).map(|_| Err(StoreError::Batch(Arc::clone(&error)))).collect()
        }
    }
}
