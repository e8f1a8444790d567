//! What must be true of a run, whatever was done to it: one pure function over what was sent, what Postgres says was done,
//! and what Slack was told.
//!
//! In: a [`History`]. Out: a [`Verdict`]. Nothing accepted may be lost or left unsaid, nothing may come from nowhere, and a
//! conversation keeps its order. What was said twice is counted: a process killed between a call and the note of it may say
//! it again, nothing else may. A run in which nothing was accepted proves nothing, and fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

/// A message in a conversation: which, and its place in it. Places are given in the order of sending, and in each
/// conversation one was accepted before the next was sent.
pub type Said = (u32, u32);

/// What happened.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// What was sent, and whether Slack was told 200.
    pub sent: BTreeMap<Said, bool>,
    /// What Postgres says was done, in the order in which it was, with the time since the one before.
    pub done: Vec<(Said, Duration)>,
    /// What Postgres says was given up.
    pub dead: Vec<Said>,
    /// What Slack was told, in the order in which it was.
    pub told: Vec<Said>,
}

/// What is to be said of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Sent.
    pub offered: usize,
    /// Answered 200.
    pub accepted: usize,
    /// Done.
    pub applied: usize,
    /// Accepted, and neither done nor dead.
    pub lost: Vec<Said>,
    /// Done, and Slack was never told.
    pub unsaid: Vec<Said>,
    /// Done or told, and never sent.
    pub phantom: Vec<Said>,
    /// Given up.
    pub dead: Vec<Said>,
    /// Done more than once.
    pub doubled: Vec<Said>,
    /// Told after something later of its conversation.
    pub out_of_order: Vec<Said>,
    /// Told more than once.
    pub repeated: usize,
    /// The longest time in which nothing was done.
    pub worst_gap: Duration,
}

impl Verdict {
    /// Whether the run kept every promise. `repeats` are allowed when something was killed or frozen.
    pub fn holds(&self, repeats: bool) -> bool {
        let broken = [
            &self.lost,
            &self.unsaid,
            &self.phantom,
            &self.dead,
            &self.doubled,
            &self.out_of_order,
        ];
        self.accepted > 0
            && broken.iter().all(|list| list.is_empty())
            && (repeats || self.repeated == 0)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "offered {} accepted {} applied {} lost {} unsaid {} out of order {} doubled {} said twice {} worst gap {:.1} s",
            self.offered,
            self.accepted,
            self.applied,
            self.lost.len(),
            self.unsaid.len(),
            self.out_of_order.len(),
            self.doubled.len(),
            self.repeated,
            self.worst_gap.as_secs_f64(),
        )
    }
}

/// Judges a run.
pub fn check(history: &History) -> Verdict {
    let done: BTreeSet<Said> = history.done.iter().map(|(said, _)| *said).collect();
    let dead: BTreeSet<Said> = history.dead.iter().copied().collect();
    let told: BTreeSet<Said> = history.told.iter().copied().collect();
    let accepted: Vec<Said> =
        history.sent.iter().filter(|(_, yes)| **yes).map(|(said, _)| *said).collect();

    let mut seen = BTreeSet::new();
    let doubled =
        history.done.iter().map(|(said, _)| *said).filter(|said| !seen.insert(*said)).collect();
    let (mut first_told, mut repeated) = (Vec::new(), 0);
    let mut seen = BTreeSet::new();
    for said in &history.told {
        match seen.insert(*said) {
            true => first_told.push(*said),
            false => repeated += 1,
        }
    }
    let mut furthest: BTreeMap<u32, u32> = BTreeMap::new();
    let mut out_of_order = Vec::new();
    for (conversation, place) in first_told {
        let before = furthest.entry(conversation).or_default();
        if place < *before {
            out_of_order.push((conversation, place));
        }
        *before = place.max(*before);
    }
    Verdict {
        offered: history.sent.len(),
        accepted: accepted.len(),
        applied: done.len(),
        lost: accepted
            .iter()
            .copied()
            .filter(|said| !done.contains(said) && !dead.contains(said))
            .collect(),
        unsaid: done.iter().copied().filter(|said| !told.contains(said)).collect(),
        phantom: done
            .union(&told)
            .copied()
            .filter(|said| !history.sent.contains_key(said))
            .collect(),
        dead: history.dead.clone(),
        doubled,
        out_of_order,
        repeated,
        worst_gap: history.done.iter().map(|(_, gap)| *gap).max().unwrap_or_default(),
    }
}
