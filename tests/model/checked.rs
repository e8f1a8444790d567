//! Common parts of all models: steps, faults, and the two searches.
//!
//! A protocol lists the steps that are possible in a state, each with the next state. Faults are
//! steps that need not happen; each kind has a budget, so that every path is finite. Two checks
//! together prove that all work is eventually done: no path is infinite ([`find_cycle`]), and in a
//! state in which only faults are possible all work is done ([`QUIESCENT`]). Stateright's own
//! `eventually` would miss paths that join.

use stateright::{Checker, HasDiscoveries, Model, Property};
use std::{
    collections::HashMap,
    fmt::{self, Debug},
    hash::{DefaultHasher, Hash, Hasher},
};

/// Property of every model: no work is forgotten.
pub const QUIESCENT: &str = "if no step is possible, all work is done";
/// Property of every model that [`find_cycle`] checks.
pub const ENDS: &str = "every path ends";

/// A step: the actor, and the state afterwards.
#[derive(Clone, PartialEq)]
pub struct Step<S> {
    name: &'static str,
    actor: usize,
    is_fault: bool,
    next: S,
}

impl<S> Debug for Step<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name, self.actor)
    }
}

/// Collects the steps that are possible in a state.
pub struct Steps<'a, S> {
    state: &'a S,
    list: Vec<Step<S>>,
}

impl<S: Clone> Steps<'_, S> {
    /// Adds a step of the protocol.
    pub fn step(&mut self, name: &'static str, actor: usize, change: impl FnOnce(&mut S)) {
        self.add(name, actor, false, change);
    }

    /// Adds a fault.
    pub fn fault(&mut self, name: &'static str, actor: usize, change: impl FnOnce(&mut S)) {
        self.add(name, actor, true, change);
    }

    fn add(
        &mut self,
        name: &'static str,
        actor: usize,
        is_fault: bool,
        change: impl FnOnce(&mut S),
    ) {
        let mut next = self.state.clone();
        change(&mut next);
        self.list.push(Step { name, actor, is_fault, next });
    }
}

/// A protocol with its faults and promises.
pub trait Protocol: Send + Sync + Sized + 'static {
    /// Rows, messages in flight, memory of processes, and the evidence for the promises.
    type State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static;

    /// Returns the state before the first step.
    fn initial(&self) -> Self::State;

    /// Lists the steps that are possible.
    fn steps(&self, state: &Self::State, steps: &mut Steps<'_, Self::State>);

    /// Returns true when all work is done.
    fn is_done(&self, state: &Self::State) -> bool;

    /// Returns the promises, which must hold in every state, and examples, which must be reachable.
    fn promises() -> Vec<Property<Checked<Self>>>;
}

/// Adapter of a protocol to stateright's `Model`.
pub struct Checked<P>(pub P);

impl<P: Protocol> Checked<P> {
    fn list(&self, state: &P::State) -> Vec<Step<P::State>> {
        let mut steps = Steps { state, list: Vec::new() };
        self.0.steps(state, &mut steps);
        steps.list
    }
}

impl<P: Protocol> Model for Checked<P> {
    type State = P::State;
    type Action = Step<P::State>;

    fn init_states(&self) -> Vec<P::State> {
        vec![self.0.initial()]
    }

    fn actions(&self, state: &P::State, actions: &mut Vec<Self::Action>) {
        *actions = self.list(state);
    }

    fn next_state(&self, _: &P::State, action: Self::Action) -> Option<P::State> {
        Some(action.next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = P::promises();
        properties.push(Property::always(QUIESCENT, |model, state| {
            model.0.is_done(state) || model.list(state).iter().any(|step| !step.is_fault)
        }));
        properties
    }
}

/// Checks that the protocol keeps all promises in every state, and that every path ends.
pub fn assert_holds<P: Protocol>(protocol: impl Fn() -> P) {
    let checker = Checked(protocol()).checker().threads(2).spawn_bfs().join();
    assert!(checker.is_done());
    for (name, path) in checker.discoveries() {
        let always = checker.model().property(name).expectation.discovery_is_failure();
        assert!(
            !always,
            "broken: {name}\n{:#?}\n{:#?}",
            path.clone().into_actions(),
            path.last_state()
        );
    }
    checker.assert_properties();
    println!("{} states, depth {}", checker.unique_state_count(), checker.max_depth());
    assert_eq!(find_cycle(&Checked(protocol())), None, "endless path");
}

/// Checks that the search finds a state or an endless path that breaks a promise.
pub fn assert_broken<P: Protocol>(protocol: P, property: &'static str) {
    let model = Checked(protocol);
    if property == ENDS {
        assert!(find_cycle(&model).is_some(), "no endless path");
        return;
    }
    let found = HasDiscoveries::AnyOf([property].into());
    let checker = model.checker().threads(2).finish_when(found).spawn_bfs().join();
    println!(
        "{} states: {:#?}",
        checker.unique_state_count(),
        checker.assert_any_discovery(property).into_actions()
    );
}

/// Returns the steps of a path that reaches one of its states again, if there is one.
fn find_cycle<P: Protocol>(model: &Checked<P>) -> Option<Vec<String>> {
    let fingerprint = |state: &P::State| {
        let mut hasher = DefaultHasher::new();
        state.hash(&mut hasher);
        hasher.finish()
    };
    let start = model.0.initial();
    // True for a visited state that is on the current path, false for other visited states.
    let mut on_path = HashMap::from([(fingerprint(&start), true)]);
    let mut path = vec![(String::new(), fingerprint(&start), model.list(&start))];
    while let Some((_, current, steps)) = path.last_mut() {
        let Some(step) = steps.pop() else {
            on_path.insert(*current, false);
            path.pop();
            continue;
        };
        let next = fingerprint(&step.next);
        match on_path.get(&next) {
            Some(true) => {
                let names = path.into_iter().map(|(name, ..)| name);
                return Some(names.chain([format!("{step:?}")]).collect());
            }
            Some(false) => {}
            None => {
                on_path.insert(next, true);
                let steps = model.list(&step.next);
                path.push((format!("{step:?}"), next, steps));
            }
        }
    }
    None
}

/// Declares the mutations of a protocol. Each has the sentence of the design that it violates, a
/// test, and the promise that the test must find broken.
macro_rules! mutations {
    ($protocol:expr; $($(#[$sentence:meta])* $mutation:ident, $test:ident => $property:expr;)*) => {
        /// Deliberate flaws of the protocol.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Mutation {
            /// The protocol as designed.
            None,
            $($(#[$sentence])* $mutation,)*
        }

        /// All mutations with the promise that each breaks.
        pub const MUTATIONS: &[(&str, &str)] = &[$((stringify!($mutation), $property),)*];

        mod finds {
            use super::*;
            $(#[test] fn $test() {
                crate::checked::assert_broken($protocol(Mutation::$mutation), $property);
            })*
        }
    };
}
pub(crate) use mutations;
