//! Steps, faults and promises of stream resets.

use super::{DAY, Message, Mutation, Rows, State, Stream, StreamReset, TIMES, table::*};
use crate::checked::{Checked, Protocol, Steps};
use stateright::Property;

impl Protocol for StreamReset {
    type State = State;

    fn initial(&self) -> State {
        let rows = Rows {
            generation: 1,
            created: None,
            cursor: 0,
            last: None,
            read_through: 0,
            keys: 0,
            effects: [0; 4],
            recorded: 0,
        };
        State {
            stream: Stream { created: 1, messages: Vec::new() },
            rows,
            backup: None,
            is_open: false,
            published: 0,
            clock: 0,
            late: None,
            left: self.faults.clone(),
            resets: 0,
            purged: 0,
            needed_purged: false,
            last_decided_again: false,
            false_reset: false,
        }
    }

    fn steps(&self, s: &State, steps: &mut Steps<'_, State>) {
        if let Some(time) = TIMES.get(usize::from(s.published)) {
            steps.step("publish", usize::from(s.published), |s| {
                s.clock = s.clock.max(*time);
                publish(s, s.published);
                s.published += 1;
            });
        }
        if !s.is_open {
            steps.step("open", 0, |s| self.open(s));
        } else if s.stream.next_after(s.rows.cursor).is_some() {
            steps.step("commit", 0, |s| self.commit_next(s, false));
            if s.left.late_commits > 0 {
                steps.fault("commit twice", 0, |s| {
                    s.left.late_commits -= 1;
                    self.commit_next(s, true);
                });
            }
        }
        let behind = s.stream.next_after(s.rows.cursor).is_some();
        let caught_up = s.is_open && (!behind || self.is(Mutation::ReadThroughAdvancedWhileBehind));
        if caught_up && s.rows.read_through < s.clock {
            steps.step("advance read_through", 0, |s| s.rows.read_through = s.clock);
        }
        if let Some(commit) = s.late {
            steps.step("late commit", 0, |s| {
                s.late = None;
                self.execute(s, commit);
            });
        }
        self.truncate(s, steps);
        self.purge(s, steps);
        self.faults(s, steps);
    }

    fn is_done(&self, s: &State) -> bool {
        let decided = |message: &Message| {
            message.webhook == 1 || s.rows.effects[usize::from(message.webhook)] > 0
        };
        usize::from(s.published) == TIMES.len()
            && s.stream.messages.iter().flatten().all(decided)
            && s.stream.next_after(s.rows.cursor).is_none()
    }

    fn promises() -> Vec<Property<Checked<Self>>> {
        vec![
            Property::always(EFFECTS_ONCE, |_, s: &State| s.rows.effects.iter().all(|n| *n <= 1)),
            Property::always(NOTHING_SKIPPED, |_, s: &State| {
                // Only an open stream is the current one.
                let cursor = if s.is_open { s.rows.cursor } else { 0 };
                let skipped = (1..=cursor).filter_map(|n| s.stream.at(n));
                skipped
                    .into_iter()
                    .all(|m| m.webhook == 1 || s.rows.effects[usize::from(m.webhook)] > 0)
            }),
            Property::always(NOT_AGAIN, |_, s: &State| !s.last_decided_again),
            Property::always(NO_FALSE_RESET, |_, s: &State| !s.false_reset),
            Property::always(NOT_NEEDED, |_, s: &State| !s.needed_purged),
            Property::always(RECORDED, |_, s: &State| {
                s.purged <= s.rows.recorded || s.backup.is_some()
            }),
            Property::sometimes("the generation is raised", |_, s: &State| s.rows.generation > 1),
        ]
    }
}

fn publish(s: &mut State, webhook: u8) {
    let time = s.clock;
    s.stream.messages.push(Some(Message { webhook, time }));
}

impl StreamReset {
    /// Deletes keys that have expired.
    fn truncate(&self, s: &State, steps: &mut Steps<'_, State>) {
        let now =
            if self.is(Mutation::KeysTruncatedByClock) { s.clock } else { s.rows.read_through };
        let over = |webhook: &u8| {
            s.rows.keys & (1 << webhook) != 0 && TIMES[usize::from(*webhook)] + DAY < now
        };
        if let Some(webhook) = (0..4).find(over) {
            steps.step("truncate key", webhook.into(), |s| s.rows.keys &= !(1 << webhook));
        }
    }

    /// Purges committed messages. Each purge is recorded first.
    fn purge(&self, s: &State, steps: &mut Steps<'_, State>) {
        if s.left.purges == 0 || !s.is_open {
            return;
        }
        let Some(sequence) = self.purgeable(s) else { return };
        let first_acts = self.is(Mutation::PurgeRecordedAfterwards);
        if s.rows.recorded == s.purged && !first_acts {
            return steps.fault("record purge", 0, |s| s.rows.recorded += 1);
        }
        steps.fault("purge", 0, |s| {
            s.left.purges -= 1;
            s.purged += 1;
            let restorable = s.backup.as_ref().filter(|backup| backup.read_through + DAY > s.clock);
            let unread = |rows: &Rows| rows.cursor < sequence;
            s.needed_purged |= unread(&s.rows) || restorable.is_some_and(unread);
            let is_last = s.rows.last.is_some_and(|last| last.sequence == Some(sequence));
            s.needed_purged |= is_last;
            s.stream.messages[usize::from(sequence) - 1] = None;
        });
    }

    fn faults(&self, s: &State, steps: &mut Steps<'_, State>) {
        if s.left.recreations > 0 {
            let whole = s.stream.messages.clone();
            for (name, messages) in [("stream recreated", Vec::new()), ("stream restored", whole)] {
                steps.fault(name, 0, |s| {
                    s.left.recreations -= 1;
                    replace(self, s, Stream { created: s.stream.created + 1, messages });
                });
            }
        }
        let length = s.stream.messages.len();
        if s.left.cuts > 0 {
            for (name, kept) in [("stream truncated by one", 1), ("stream truncated by two", 2)] {
                let Some(kept) = length.checked_sub(kept) else { continue };
                steps.fault(name, 0, |s| {
                    s.left.cuts -= 1;
                    let messages = s.stream.messages[..kept].to_vec();
                    replace(self, s, Stream { created: s.stream.created, messages });
                });
            }
        }
        for webhook in 0..s.published {
            // Slack resends a webhook for a limited time.
            if s.left.copies > 0 && s.clock <= TIMES[usize::from(webhook)] + DAY {
                steps.fault("copy", webhook.into(), |s| {
                    s.left.copies -= 1;
                    publish(s, webhook);
                });
            }
        }
        if s.left.restores > 0 {
            match &s.backup {
                None => steps.fault("back up Postgres", 0, |s| s.backup = Some(s.rows.clone())),
                Some(backup) if backup.read_through + DAY > s.clock => {
                    steps.fault("restore Postgres", 0, |s| {
                        s.left.restores -= 1;
                        (s.rows, s.is_open, s.late) = (backup.clone(), false, None);
                    });
                }
                Some(_) => {}
            }
        }
        let last = s.rows.last.and_then(|last| last.sequence).filter(|n| s.stream.at(*n).is_some());
        // A deletion after a truncation and before the next opening would hide the truncation. The
        // design accepts that.
        let can = s.left.deletions > 0 && s.left.cuts == self.faults.cuts;
        if let (true, Some(sequence)) = (can, last) {
            steps.fault("message deleted", 0, |s| {
                s.left.deletions -= 1;
                s.stream.messages[usize::from(sequence) - 1] = None;
            });
        }
        if s.left.reopenings > 0 && s.is_open {
            steps.fault("open again", 0, |s| {
                s.left.reopenings -= 1;
                s.is_open = false;
            });
        }
    }
}

/// Replaces the stream, which takes time. Its readers lose their connection.
fn replace(model: &StreamReset, s: &mut State, stream: Stream) {
    s.stream = stream;
    (s.resets, s.clock) = (s.resets + 1, s.clock + 1);
    if !model.is(Mutation::CheckedAtFirstOpeningOnly) {
        s.is_open = false;
    }
}
