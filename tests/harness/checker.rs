//! What must be true of a run, whatever was done to it: one pure function over what was sent, what Postgres says was done,
//! what the agent was asked and what Slack was told.
//!
//! In: a [`History`]. Out: a [`Verdict`]. What was attempted, accepted, refused and what nobody knows are kept apart: accepted is
//! what Slack was told 200 for, and none of it may be lost or left unsaid; refused is what was turned away for good, and must
//! have had no effect; unknown is the rest, and may have. Nothing may come from nowhere, and a conversation keeps its order,
//! where it is told and where it is asked. What was said or asked twice is counted: a process killed between a call and the
//! note of it may repeat it, nothing else may. A command that can't be stored is told so: nobody sends it again. A run in
//! which nothing was accepted proves nothing, and fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

/// A message in a conversation: which, and its place in it. Places are given in the order of sending, and in each
/// conversation one was accepted before the next was sent.
pub type Said = (u32, u32);

/// What became of a message at the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Slack was told 200.
    Accepted,
    /// Slack was told that it will never be taken: 4xx.
    Refused,
    /// Slack was told to send it again, or nothing: it may be stored all the same.
    Unknown,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Accepted; whether its user heard the answer.
    Accepted {
        /// By its `response_url`.
        answered: bool,
    },
    /// Its user was told at once that it was not taken.
    ToldSo,
    /// The connection ended without an answer.
    Unknown,
    /// Something that a user does not understand.
    Failed(String),
}

/// What happened.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// What was sent, and what Slack was told.
    pub sent: BTreeMap<Said, Fate>,
    /// How often something was sent, copies included.
    pub attempts: usize,
    /// How many of these were answered with anything but 2xx, or not at all.
    pub turned_away: usize,
    /// The slowest answer.
    pub slowest: Duration,
    /// What Postgres says was done, in the order in which it was, with the time since the one before in its conversation.
    pub done: Vec<(Said, Duration)>,
    /// What Postgres says was given up.
    pub dead: Vec<Said>,
    /// What the agent was asked, in the order in which it was.
    pub asked: Vec<Said>,
    /// What Slack was told, in the order in which it was.
    pub told: Vec<Said>,
    /// Commands.
    pub commands: Vec<Command>,
}

/// What is to be said of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Sent.
    pub offered: usize,
    /// How often, copies included.
    pub attempts: usize,
    /// How many of these were answered with anything but 2xx, or not at all.
    pub turned_away: usize,
    /// The slowest answer at the door.
    pub slowest: Duration,
    /// Answered 200.
    pub accepted: usize,
    /// Neither answered 200 nor turned away for good.
    pub unknown: usize,
    /// Done.
    pub applied: usize,
    /// Accepted, and neither done nor dead.
    pub lost: Vec<Said>,
    /// Done, and Slack was never told.
    pub unsaid: Vec<Said>,
    /// Done or told, and never sent, or turned away for good.
    pub phantom: Vec<Said>,
    /// Given up.
    pub dead: Vec<Said>,
    /// Done more than once.
    pub doubled: Vec<Said>,
    /// Told after something later of its conversation.
    pub out_of_order: Vec<Said>,
    /// Asked for the first time after something later of its conversation.
    pub asked_out_of_order: Vec<Said>,
    /// Told more than once.
    pub repeated: usize,
    /// Asked more than once.
    pub asked_again: usize,
    /// Commands that were accepted.
    pub commands: usize,
    /// Commands whose users were told that they were not taken.
    pub told_so: usize,
    /// Commands accepted and never answered, or answered with what no user understands.
    pub failed_commands: Vec<Command>,
    /// The longest time in which nothing was done in some conversation.
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
            &self.asked_out_of_order,
        ];
        self.accepted > 0
            && self.failed_commands.is_empty()
            && broken.iter().all(|list| list.is_empty())
            && (repeats || self.repeated == 0)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = self.out_of_order.len() + self.asked_out_of_order.len();
        write!(
            f,
            "offered {} accepted {} applied {} lost {} unsaid {} out of order {order} doubled {} said twice {} asked twice {} worst gap {:.1} s",
            self.offered,
            self.accepted,
            self.applied,
            self.lost.len(),
            self.unsaid.len(),
            self.doubled.len(),
            self.repeated,
            self.asked_again,
            self.worst_gap.as_secs_f64(),
        )?;
        if self.commands + self.told_so > 0 {
            write!(f, " commands {} told so {}", self.commands, self.told_so)?;
        }
        Ok(())
    }
}

/// Judges a run.
pub fn check(history: &History) -> Verdict {
    let done: BTreeSet<Said> = history.done.iter().map(|(said, _)| *said).collect();
    let dead: BTreeSet<Said> = history.dead.iter().copied().collect();
    let told: BTreeSet<Said> = history.told.iter().copied().collect();
    let of = |wanted: Fate| {
        let sent = history.sent.iter().filter(move |(_, fate)| **fate == wanted);
        sent.map(|(said, _)| *said)
    };
    let accepted: Vec<Said> = of(Fate::Accepted).collect();

    let mut seen = BTreeSet::new();
    let doubled =
        history.done.iter().map(|(said, _)| *said).filter(|said| !seen.insert(*said)).collect();
    let (out_of_order, repeated) = order(&history.told);
    let (asked_out_of_order, asked_again) = order(&history.asked);
    let possible =
        |said: &Said| matches!(history.sent.get(said), Some(Fate::Accepted | Fate::Unknown));
    let commands = |wanted: &Command| history.commands.iter().filter(|c| *c == wanted).count();
    let failed = |command: &&Command| {
        matches!(command, Command::Failed(_) | Command::Accepted { answered: false })
    };
    Verdict {
        offered: history.sent.len(),
        attempts: history.attempts,
        turned_away: history.turned_away,
        slowest: history.slowest,
        accepted: accepted.len(),
        unknown: of(Fate::Unknown).count(),
        applied: done.len(),
        lost: accepted
            .iter()
            .copied()
            .filter(|said| !done.contains(said) && !dead.contains(said))
            .collect(),
        unsaid: done.iter().copied().filter(|said| !told.contains(said)).collect(),
        phantom: done.union(&told).copied().filter(|said| !possible(said)).collect(),
        dead: history.dead.clone(),
        doubled,
        out_of_order,
        asked_out_of_order,
        repeated,
        asked_again,
        commands: commands(&Command::Accepted { answered: true }),
        told_so: commands(&Command::ToldSo),
        failed_commands: history.commands.iter().filter(failed).cloned().collect(),
        worst_gap: history.done.iter().map(|(_, gap)| *gap).max().unwrap_or_default(),
    }
}

/// Whose first time came after something later of its conversation, and how many times were not the first.
fn order(all: &[Said]) -> (Vec<Said>, usize) {
    let (mut seen, mut furthest) = (BTreeSet::new(), BTreeMap::<u32, u32>::new());
    let (mut out_of_order, mut repeated) = (Vec::new(), 0);
    for &(conversation, place) in all {
        if !seen.insert((conversation, place)) {
            repeated += 1;
            continue;
        }
        let before = furthest.entry(conversation).or_default();
        if place < *before {
            out_of_order.push((conversation, place));
        }
        *before = place.max(*before);
    }
    (out_of_order, repeated)
}
