//! Clients and state that all attempts of a worker share, such as circuit breakers and cached
//! agents.

use super::{
    breaker::{CircuitBreakers, Transition},
    handler::{AnyHandler, HandlerSettings},
    metrics::DispatchMetrics,
    outcome_recorder::OutcomeRecorder,
    runs::{Budgets, Controls, RunSettings},
    sessions::Sessions,
};
use crate::{
    batcher::{Batcher, each_result},
    context::Context,
};
use shared::{
    domain::{AgentId, OrgId},
    runtime::telemetry::ErrorChain,
    store::{Agent, ClaimedDelivery, RunWrite, SealedPayload, Store, StoreError},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant as Clock},
};
use tokio::time::Instant;
use tracing::{info, warn};

/// Time for which an agent's row is cached.
const AGENT_TTL: Duration = Duration::from_secs(1);
/// Number of cached agents above which expired rows are evicted.
const AGENTS_MAX: usize = 4_096;

/// Decrypted payload, or the reason why decryption failed.
type LoadedPayload = Result<SealedPayload, String>;
/// Rows of agents, with the time at which they were read.
type AgentCache = HashMap<(OrgId, AgentId), (Instant, Arc<Agent>)>;

/// Clients and state shared by all attempts of a worker.
pub struct AttemptContext {
    pub clients: Arc<Context>,
    pub handler: Option<(AnyHandler, HandlerSettings)>,
    pub metrics: DispatchMetrics,
    /// Batcher that loads payloads, many per query.
    pub payloads: Batcher<ClaimedDelivery, Result<Option<LoadedPayload>, StoreError>>,
    pub recorder: OutcomeRecorder,
    /// Batcher that writes runs, many per statement.
    pub run_writes: Batcher<RunWrite, Result<bool, StoreError>>,
    pub run_settings: RunSettings,
    pub budgets: Budgets,
    pub controls: Controls,
    pub sessions: Arc<Sessions>,
    breakers: Mutex<CircuitBreakers>,
    agents: Mutex<AgentCache>,
}

impl AttemptContext {
    pub fn new(
        context: Arc<Context>,
        handler: Option<(AnyHandler, HandlerSettings)>,
        metrics: DispatchMetrics,
        run_settings: RunSettings,
    ) -> Self {
        let load = |store: Store, deliveries: Vec<ClaimedDelivery>| async move {
            let deliveries: Vec<&ClaimedDelivery> = deliveries.iter().collect();
            each_result(deliveries.len(), store.load_payloads(&deliveries).await)
        };
        let payloads = Batcher::new(&context.store, load);
        let save = |store: Store, writes: Vec<RunWrite>| async move {
            match store.save_runs(&writes).await {
                // A write that Postgres rejects must not fail the others of its batch.
                Err(error) if error.is_content_rejection() && writes.len() > 1 => {
                    let mut results = Vec::with_capacity(writes.len());
                    for write in writes {
                        results.extend(each_result(1, store.save_runs(&[write]).await));
                    }
                    results
                }
                result => each_result(writes.len(), result),
            }
        };
        let run_writes = Batcher::new(&context.store, save);
        Self {
            recorder: OutcomeRecorder::new(Arc::clone(&context)),
            clients: context,
            handler,
            metrics,
            payloads,
            run_writes,
            run_settings,
            budgets: Budgets::default(),
            controls: Controls::default(),
            sessions: Arc::default(),
            breakers: Mutex::default(),
            agents: Mutex::default(),
        }
    }

    /// Records a success of an agent at its circuit breaker.
    pub async fn record_success(&self, delivery: &ClaimedDelivery) {
        if delivery.agent().is_none() {
            return;
        }
        let agent = (delivery.org.as_str(), delivery.agent.as_str());
        let transition = self.breakers().on_success(agent, delivery.probe, Clock::now());
        self.record_transition(agent, transition, "").await;
    }

    /// Records a failure of an agent at its circuit breaker.
    pub async fn record_failure(&self, delivery: &ClaimedDelivery, error: &str) {
        if delivery.agent().is_none() {
            return;
        }
        let agent = (delivery.org.as_str(), delivery.agent.as_str());
        let (lane, now) = (delivery.key.lane, Clock::now());
        let transition = self.breakers().on_failure(agent, lane, delivery.probe, now);
        self.record_transition(agent, transition, error).await;
    }

    async fn record_transition(
        &self,
        (org, agent): (&str, &str),
        transition: Option<Transition>,
        error: &str,
    ) {
        let store = &self.clients.store;
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
            warn!(org, agent, error = %ErrorChain(&error), "failed to record circuit breaker");
        }
    }

    /// Returns whether the agent answered another delivery since the first attempt of this one.
    pub fn has_answered_others(&self, delivery: &ClaimedDelivery) -> bool {
        let agent = (delivery.org.as_str(), delivery.agent.as_str());
        self.breakers().has_answered_within(agent, delivery.age, Clock::now())
    }

    /// Returns an agent's row, at most [`AGENT_TTL`] old. `None` if the agent does not exist.
    pub async fn agent(&self, org: &OrgId, id: &AgentId) -> Result<Option<Arc<Agent>>, StoreError> {
        let key = (org.clone(), id.clone());
        if let Some((at, agent)) = self.agents().get(&key)
            && at.elapsed() < AGENT_TTL
        {
            return Ok(Some(Arc::clone(agent)));
        }
        let Some(agent) = self.clients.store.agent(org, id).await?.map(Arc::new) else {
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

    /// Returns the circuit breakers of the agents that this worker called.
    pub fn breakers(&self) -> MutexGuard<'_, CircuitBreakers> {
        self.breakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
