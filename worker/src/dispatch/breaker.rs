//! Circuit breaker per agent: pure state, judged by each worker in memory.
//!
//! It opens after several failures in a row on at least two lanes: one conversation whose messages the agent cannot take is
//! no sign that the agent is away. While it is open Postgres lets one probe through at a time (see `deliveries.claim`); the
//! success of any attempt closes it.

use shared::partition::Lane;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Failures in a row that open the circuit.
const FAILURES_TO_OPEN: u32 = 5;
/// Agents remembered at most; those without a failure are forgotten first.
const AGENTS_MAX: usize = 10_000;

/// A change that has to be recorded for all workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// The agent fails: no attempts but probes.
    Open,
    /// The agent answers again.
    Close,
}

/// The circuits of all agents that this worker called. Agents are named by organization and id.
#[derive(Debug, Default)]
pub struct CircuitBreakers(HashMap<(String, String), Circuit>);

#[derive(Debug, Default)]
struct Circuit {
    failures: u32,
    first_failed: Option<Lane>,
    several_lanes: bool,
    succeeded_at: Option<Instant>,
}

impl CircuitBreakers {
    /// Records that an agent answered. `probe`: the circuit was open when the attempt began.
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

    /// Records that an agent was away.
    pub fn on_failure(
        &mut self,
        agent: (&str, &str),
        lane: Lane,
        probe: bool,
    ) -> Option<Transition> {
        let circuit = self.circuit(agent);
        let was_open = circuit.is_open();
        circuit.failures = circuit.failures.saturating_add(1);
        let first = *circuit.first_failed.get_or_insert(lane);
        circuit.several_lanes |= first != lane;
        (circuit.is_open() && !was_open && !probe).then_some(Transition::Open)
    }

    /// Returns whether an agent answered some delivery within the last `period`.
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
        let lane = Lane::from_bits;
        for _ in 0..20 {
            assert_eq!(breakers.on_failure(AGENT, lane(1), false), None, "one lane");
        }
        assert_eq!(breakers.on_failure(AGENT, lane(2), false), Some(Transition::Open));
        assert_eq!(breakers.on_failure(AGENT, lane(3), false), None, "open already");
        assert_eq!(breakers.on_failure(("o", "b"), lane(2), false), None, "another agent");
        let now = Instant::now();
        assert_eq!(breakers.on_success(AGENT, true, now), Some(Transition::Close));
        assert_eq!(breakers.on_success(AGENT, false, now), None);
        assert!(breakers.has_answered_within(AGENT, Duration::from_secs(1), now));
        assert!(!breakers.has_answered_within(("o", "c"), Duration::from_secs(1), now));
    }

    #[test]
    fn opens_only_after_enough_failures_in_a_row() {
        bolero::check!().with_type::<Vec<(bool, u8)>>().for_each(|steps| {
            let (mut breakers, now) = (CircuitBreakers::default(), Instant::now());
            let (mut run, mut open) = (Vec::new(), false);
            for (fails, lane) in steps {
                let transition = if *fails {
                    run.push(*lane);
                    breakers.on_failure(AGENT, Lane::from_bits(i64::from(*lane)), false)
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
