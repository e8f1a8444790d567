//! The reader of a stream: detects a replaced stream, raises the generation, commits, purges.

use super::{Commit, DAY, Last, Message, Mutation, Rows, State, Stream, StreamReset};

impl StreamReset {
    /// Returns true if the stream is not the one that was read before.
    pub(super) fn is_other(&self, stream: &Stream, rows: &Rows) -> bool {
        let Some(created) = rows.created else { return false };
        if created != stream.created && !self.is(Mutation::CreationNotCompared) {
            return true;
        }
        if stream.last_sequence() < rows.cursor && !self.is(Mutation::LastSequenceNotCompared) {
            return true;
        }
        let Some(Last { sequence, webhook, time }) = rows.last else { return false };
        // Without a commit of this generation no message identifies the stream, so the cursor is
        // computed again.
        let Some(sequence) = sequence else {
            return self.cursor_since(stream, rows, 0) < rows.cursor
                && !self.is(Mutation::CursorKeptUntilFirstCommit);
        };
        match stream.at(sequence) {
            Some(_) if self.is(Mutation::MessageNotCompared) => false,
            // Another stream may have a copy of the same webhook at the same sequence.
            Some(found) => {
                let time_differs = found.time != time && !self.is(Mutation::TimeNotCompared);
                found.webhook != webhook || time_differs
            }
            None => self.is(Mutation::MissingMessageTakenForReset),
        }
    }

    /// Returns the sequence before the first message since the time of the last own message.
    fn cursor_since(&self, stream: &Stream, rows: &Rows, clock: u8) -> u8 {
        match self.mutation {
            Mutation::ResetKeepsCursor => return rows.cursor.min(stream.last_sequence()),
            Mutation::ResetReadsFromStart => return 0,
            _ => {}
        }
        let since = match rows.last {
            _ if self.is(Mutation::ReadsFromOwnClock) => clock,
            Some(last) => last.time,
            None => rows.read_through,
        };
        let is_since = |message: Message| {
            if self.is(Mutation::ReadsBehindTime) {
                message.time > since
            } else {
                message.time >= since
            }
        };
        let first = (1..=stream.last_sequence()).find(|n| stream.at(*n).is_some_and(is_since));
        first.map_or(stream.last_sequence(), |first| first - 1)
    }

    /// Opens the stream, or raises the generation if the stream was replaced.
    pub(super) fn open(&self, s: &mut State) {
        if !self.is_other(&s.stream, &s.rows) {
            s.rows.created.get_or_insert(s.stream.created);
            s.is_open = true;
            return;
        }
        s.false_reset |= s.resets == 0;
        let cursor = self.cursor_since(&s.stream, &s.rows, s.clock);
        if !self.is(Mutation::GenerationKept) {
            s.rows.generation += 1;
        }
        s.rows.created = Some(s.stream.created);
        s.rows.cursor = cursor;
        if self.is(Mutation::ResetForgetsKeys) {
            s.rows.keys = 0;
        }
        if let Some(last) = &mut s.rows.last {
            last.sequence = None;
        }
    }

    /// Commits the next message. With `is_late` a second copy of the statement is executed later.
    pub(super) fn commit_next(&self, s: &mut State, is_late: bool) {
        let Some((to, message)) = s.stream.next_after(s.rows.cursor) else { return };
        let commit = Commit { generation: s.rows.generation, from: s.rows.cursor, to, message };
        if is_late {
            s.late = Some(commit);
        }
        self.execute(s, commit);
    }

    /// Executes a commit. Skips the effects of webhooks whose key exists, and the remembered
    /// message.
    pub(super) fn execute(&self, s: &mut State, commit: Commit) {
        let Commit { generation, from, to, message: Message { webhook, time } } = commit;
        let rows = &mut s.rows;
        if (generation != rows.generation && !self.is(Mutation::CommitWithoutGeneration))
            || from != rows.cursor
        {
            return;
        }
        let remembered =
            rows.last.is_some_and(|last| last.sequence.is_none() && last.webhook == webhook);
        // Webhook 1 is ignored, so it has no key.
        let has_key = webhook != 1;
        let skipped = remembered && !self.is(Mutation::RememberedMessageNotSkipped);
        if remembered && !skipped {
            s.last_decided_again |= !has_key;
        }
        let is_copy = has_key && rows.keys & (1 << webhook) != 0;
        if !skipped && !is_copy {
            rows.effects[usize::from(webhook)] += u8::from(has_key);
            rows.keys |= u8::from(has_key) << webhook;
        }
        rows.cursor = to;
        rows.read_through = rows.read_through.max(time);
        rows.last = Some(Last { sequence: Some(to), webhook, time });
    }

    /// Returns the sequence of the first message that the owner of the partition may purge.
    pub(super) fn purgeable(&self, s: &State) -> Option<u8> {
        let spares_last = !self.is(Mutation::LastMessagePurged);
        (1..=s.stream.last_sequence()).find(|n| {
            let committed = *n <= s.rows.cursor || self.is(Mutation::PurgesPastCursor);
            let is_last = s.rows.last.is_some_and(|last| last.sequence == Some(*n));
            let old = |message: Message| message.time + DAY <= s.clock;
            committed
                && !(is_last && spares_last)
                && s.stream
                    .at(*n)
                    .is_some_and(|message| old(message) || self.is(Mutation::DayNotSpared))
        })
    }
}
