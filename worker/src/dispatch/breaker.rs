//! Circuit breaker per agent: pure state, kept by each worker in memory.
//!
//! A circuit opens after [`FAILURES_TO_OPEN`] failures in a row on at least two lanes: an agent
//! that fails on one conversation may handle all others. While a circuit is open, Postgres allows
//! one probe at a time (see `deliveries.claim`). Any success closes it.

use shared::stream::Lane;
use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

/// Number of failures in a row that opens a circuit.
const FAILURES_TO_OPEN: u32 = 5;
/// Maximum number of agents in memory; those without a failure are evicted first.
const AGENTS_MAX: usize = 10_000;

/// Change of a circuit, to be recorded for all workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// The agent fails: only probes may run.
    Open,
    /// The agent answers again.
    Close,
}

/// Circuits of the agents that this worker called, by organization and agent id.
#[derive(Debug, Default)]
pub struct CircuitBreakers(HashMap<(String, String), Circuit>);

#[derive(Debug, Default)]
struct Circuit {
    failures: u32,
    first_failed: Option<Lane>,
    several_lanes: bool,
    succeeded_at: Option<Instant>,
    opened_at: Option<Instant>,
}

/// Maximum time until an opened circuit is recorded in Postgres. Until then, a circuit that is not
/// recorded counts as open.
const RECORDING_DELAY: Duration = Duration::from_secs(3);

impl CircuitBreakers {
    /// Records a success. `probe` is true if the circuit was open when the attempt began.
    pub fn on_success(
        &mut self,
        agent: (&str, &str),
        probe: bool,
        now: Instant,
    ) -> Option<Transition> {
        let circuit = self.circuit(agent);
        let was_open = circuit.is_open();
        *circuit = Circuit { succeeded_at: Some(now), ..Circuit::default() };
        (probe || was_open).then_some(Transition::Close)
    }

    /// Records a failure on a lane. `probe` is true if the circuit was open when the attempt began.
    pub fn on_failure(
        &mut self,
        agent: (&str, &str),
        lane: Lane,
        probe: bool,
        now: Instant,
    ) -> Option<Transition> {
        let circuit = self.circuit(agent);
        let was_open = circuit.is_open();
        circuit.failures = circuit.failures.saturating_add(1);
        let first = *circuit.first_failed.get_or_insert(lane);
        circuit.several_lanes |= first != lane;
        let opens = circuit.is_open() && !was_open;
        if opens {
            circuit.opened_at = Some(now);
        }
        // A probe fails while the circuit is open in Postgres.
        (opens && !probe).then_some(Transition::Open)
    }

    /// Returns the agents whose circuits are open in this worker.
    pub fn open_agents(&self) -> Vec<(String, String)> {
        let open = self.0.iter().filter(|(_, circuit)| circuit.opened_at.is_some());
        open.map(|(agent, _)| agent.clone()).collect()
    }

    /// Resets circuits that are open in this worker and not in `recorded`, the circuits open in
    /// Postgres: a probe of another worker succeeded.
    pub fn retain_open(&mut self, recorded: &HashSet<(String, String)>, now: Instant) {
        for (agent, circuit) in &mut self.0 {
            let is_recorded = |at| now.saturating_duration_since(at) > RECORDING_DELAY;
            if circuit.opened_at.is_some_and(is_recorded) && !recorded.contains(agent) {
                *circuit = Circuit { succeeded_at: Some(now), ..Circuit::default() };
            }
        }
    }

    /// Returns whether an agent answered a delivery within the last `period`.
    pub fn has_answered_within(&self, agent: (&str, &str), period: Duration, now: Instant) -> bool {
        let circuit = self.0.get(&(agent.0.to_owned(), agent.1.to_owned()));
        let at = circuit.and_then(|circuit| circuit.succeeded_at);
        at.is_some_and(|at| now.saturating_duration_since(at) < period)
    }

    fn circuit(&mut self, (org, agent): (&str, &str)) -> &mut Circuit {
        if self.0.len() >= AGENTS_MAX {
            self.0.retain(|_, circuit| circuit.failures > 0);
            if self.0.len() >= AGENTS_MAX {
                self.0.clear();
            }
        }
        self.0.entry((org.to_owned(), agent.to_owned())).or_default()
    }
}

impl Circuit {
    fn is_open(&self) -> bool {
        self.failures >= FAILURES_TO_OPEN && self.several_lanes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: (&str, &str) = ("o", "a");

    #[test]
    fn opens_after_failures_on_two_lanes() {
        let mut breakers = CircuitBreakers::default();
        let (lane, now) = (Lane::from_bits, Instant::now());
        for _ in 0..20 {
            assert_eq!(breakers.on_failure(AGENT, lane(1), false, now), None, "one lane");
        }
        let open = Some(Transition::Open);
        assert_eq!(breakers.on_failure(AGENT, lane(2), false, now), open);
        assert_eq!(breakers.on_failure(AGENT, lane(3), false, now), None, "open already");
        assert_eq!(breakers.on_failure(("o", "b"), lane(2), false, now), None, "another agent");
        assert_eq!(breakers.on_success(AGENT, true, now), Some(Transition::Close));
        assert_eq!(breakers.on_success(AGENT, false, now), None);
        assert!(breakers.has_answered_within(AGENT, Duration::from_secs(1), now));
        assert!(!breakers.has_answered_within(("o", "c"), Duration::from_secs(1), now));
    }

    #[test]
    fn reopens_after_other_worker_closed() {
        let (mut breakers, now) = (CircuitBreakers::default(), Instant::now());
        let fail = |breakers: &mut CircuitBreakers, now| {
            let mut failed = |n| breakers.on_failure(AGENT, Lane::from_bits(n), false, now);
            (0..5).filter_map(&mut failed).last()
        };
        assert_eq!(fail(&mut breakers, now), Some(Transition::Open));
        let later = now + RECORDING_DELAY * 2;
        breakers.retain_open(&HashSet::from([("o".to_owned(), "a".to_owned())]), later);
        assert_eq!(fail(&mut breakers, later), None, "it is open");
        breakers.retain_open(&HashSet::new(), now);
        assert_eq!(fail(&mut breakers, now), None, "it may not be recorded yet");
        breakers.retain_open(&HashSet::new(), later);
        assert_eq!(fail(&mut breakers, later), Some(Transition::Open));
    }

    /// A failed probe of a circuit that another worker opened may be the last failure before this
    /// worker would open it.
    #[test]
    fn reopens_after_failed_probe() {
        let (mut breakers, now) = (CircuitBreakers::default(), Instant::now());
        let lane = Lane::from_bits;
        for n in 0..4 {
            assert_eq!(breakers.on_failure(AGENT, lane(n), false, now), None);
        }
        assert_eq!(breakers.on_failure(AGENT, lane(4), true, now), None, "a probe");
        let later = now + RECORDING_DELAY * 2;
        breakers.retain_open(&HashSet::new(), later);
        let mut failed = |n| breakers.on_failure(AGENT, lane(n), false, later);
        assert_eq!((0..5).filter_map(&mut failed).last(), Some(Transition::Open));
    }

    #[test]
    fn opens_after_consecutive_failures() {
        bolero::check!().with_iterations(10_000).with_type::<Vec<(bool, u8)>>().for_each(|steps| {
            let (mut breakers, now) = (CircuitBreakers::default(), Instant::now());
            let (mut run, mut open) = (Vec::new(), false);
            for (fails, lane) in steps {
                let transition = if *fails {
                    run.push(*lane);
                    breakers.on_failure(AGENT, Lane::from_bits(i64::from(*lane)), false, now)
                } else {
                    run.clear();
                    breakers.on_success(AGENT, false, now)
                };
                let several = run.iter().any(|lane| *lane != run[0]);
                let should = run.len() >= 5 && several;
                let expected = match (open, should) {
                    (false, true) => Some(Transition::Open),
                    (true, false) => Some(Transition::Close),
                    _ => None,
                };
                assert_eq!(transition, expected);
                open = should;
            }
        });
    }
}
