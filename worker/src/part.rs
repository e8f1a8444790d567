//! A partition that this worker owns: the right to commit, how far it is, and whether it is still ours.
//!
//! In: a lease just claimed, what is read and what is finished. Out: the cursor, below which all is finished, and two
//! tokens: *stop* (read no further, finish what runs) and *lost* (drop everything, somebody else has it).

use shared::store::{Held, Leased, Owner};
use std::{
    collections::BTreeMap,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};
use time::OffsetDateTime;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// A partition this worker owns.
pub struct Part {
    /// The right to commit: worker, partition, epoch, generation.
    pub owner: Owner,
    /// Read no further; finish what runs.
    pub stop: CancellationToken,
    /// Not ours any more: drop everything.
    pub lost: CancellationToken,
    /// There may be something in the outbox.
    pub outbox: Notify,
    /// Somebody asked for one more try of what is dead.
    pub redrive: Notify,
    /// Which stream the cursor counts in, by when it was made; empty before the first reading.
    pub stream_created_ns: OnceLock<i64>,
    /// Once the cursor is here, what was parked in an older generation of the stream can be judged.
    pub settle_after: Option<u64>,
    draining_since: OnceLock<Instant>,
    progress: Mutex<Progress>,
    believed_until: Mutex<Instant>,
    /// Nothing of it runs any more.
    pub finished: CancellationToken,
}

struct Progress {
    /// Everything up to here was taken from the stream.
    read: u64,
    /// When the stream got the last of that, or was seen to hold no more.
    read_at: OffsetDateTime,
    /// What was taken and is not finished, and when the stream got it.
    unfinished: BTreeMap<u64, OffsetDateTime>,
    /// What the stream held beyond that when it was last asked.
    waiting: u64,
}

impl Part {
    /// A partition just leased, believed ours until then.
    pub fn new(worker: &str, leased: Leased, believed_until: Instant) -> Self {
        let Leased { partition, epoch, generation, cursor, cursor_at, .. } = leased;
        let owner = Owner::live(worker, partition, epoch, generation);
        Self {
            stream_created_ns: leased.stream_created_ns.map(OnceLock::from).unwrap_or_default(),
            settle_after: leased.settle_after,
            ..Self::at(owner, cursor, cursor_at, believed_until)
        }
    }

    /// What stands for a partition while a webhook of a replay is handled: an owner and a lease.
    pub fn of_replay(owner: Owner, cursor: u64, believed_until: Instant) -> Self {
        Self::at(owner, cursor, OffsetDateTime::UNIX_EPOCH, believed_until)
    }

    fn at(owner: Owner, read: u64, read_at: OffsetDateTime, believed_until: Instant) -> Self {
        let (unfinished, waiting) = (BTreeMap::new(), 0);
        Self {
            owner,
            stop: CancellationToken::new(),
            lost: CancellationToken::new(),
            outbox: Notify::new(),
            redrive: Notify::new(),
            stream_created_ns: OnceLock::new(),
            settle_after: None,
            draining_since: OnceLock::new(),
            progress: Mutex::new(Progress { read, read_at, unfinished, waiting }),
            believed_until: Mutex::new(believed_until),
            finished: CancellationToken::new(),
        }
    }

    /// Everything up to this sequence is finished.
    pub fn cursor(&self) -> u64 {
        let progress = self.progress();
        progress.unfinished.first_key_value().map_or(progress.read, |(first, _)| first - 1)
    }

    /// A webhook was taken from the stream, which got it at that time.
    pub fn begin(&self, sequence: u64, stored_at: OffsetDateTime) {
        let mut progress = self.progress();
        progress.read = progress.read.max(sequence);
        progress.read_at = stored_at;
        progress.unfinished.insert(sequence, stored_at);
    }

    /// Nothing of this partition lies between what was taken and here, as the stream was at that time.
    pub fn skip_to(&self, sequence: u64, seen_at: OffsetDateTime) {
        let mut progress = self.progress();
        progress.read = progress.read.max(sequence);
        progress.read_at = progress.read_at.max(seen_at);
        progress.waiting = 0;
    }

    /// The stream holds so many that were not taken yet.
    pub fn waiting(&self, count: u64) {
        self.progress().waiting = count;
    }

    /// Webhooks that are stored and neither finished nor set aside.
    pub fn lag(&self) -> u64 {
        let progress = self.progress();
        progress.waiting + progress.unfinished.len() as u64
    }

    /// Age of the oldest webhook that was taken and is not finished; zero when there is none.
    pub fn oldest_unfinished(&self) -> Duration {
        let oldest = self.progress().unfinished.first_key_value().map(|(_, stored_at)| *stored_at);
        let age = oldest.map(|oldest| OffsetDateTime::now_utc() - oldest);
        age.and_then(|age| age.try_into().ok()).unwrap_or_default()
    }

    /// Whether nothing runs for it any more, or should not.
    pub fn is_over(&self) -> bool {
        self.lost.is_cancelled() || self.finished.is_cancelled()
    }

    /// A webhook is done, dead, or otherwise written down in Postgres.
    pub fn finish(&self, sequence: u64) {
        self.progress().unfinished.remove(&sequence);
    }

    /// Reads no further and finishes what runs.
    pub fn drain(&self) {
        self.draining_since.get_or_init(Instant::now);
        self.stop.cancel();
    }

    /// How long it has been draining.
    pub fn draining_for(&self) -> Duration {
        self.draining_since.get().map(Instant::elapsed).unwrap_or_default()
    }

    /// Whether we may still believe that it is ours. To be asked before every call to the outside.
    pub fn is_ours(&self) -> bool {
        let believed_until = *self.believed_until.lock().unwrap_or_else(PoisonError::into_inner);
        !self.lost.is_cancelled() && Instant::now() < believed_until
    }

    /// The lease was renewed.
    pub fn believe_until(&self, until: Instant) {
        *self.believed_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to renew or give back.
    pub fn held(&self) -> Held {
        let Owner { partition, epoch, generation, .. } = self.owner;
        let progress = self.progress();
        let first = progress.unfinished.first_key_value();
        let (cursor, cursor_at) = first
            .map_or((progress.read, progress.read_at), |(first, stored_at)| {
                (first - 1, *stored_at)
            });
        Held { partition, epoch, generation, cursor, cursor_at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::partition::Partition;

    fn part(cursor: u64) -> Part {
        let partition = Partition::try_from(3).expect("below 64");
        Part::new(
            "w",
            Leased {
                partition,
                epoch: 1,
                generation: 1,
                cursor,
                cursor_at: OffsetDateTime::UNIX_EPOCH,
                settle_after: None,
                stream_created_ns: None,
            },
            Instant::now(),
        )
    }

    #[test]
    fn the_cursor_stays_below_what_is_unfinished() {
        let part = part(10);
        assert_eq!(part.cursor(), 10);
        for sequence in [12, 15, 19] {
            part.begin(sequence, OffsetDateTime::now_utc());
        }
        assert_eq!(part.cursor(), 11);
        part.finish(15);
        assert_eq!(part.cursor(), 11);
        part.finish(12);
        assert_eq!(part.cursor(), 18);
        part.finish(19);
        assert_eq!(part.cursor(), 19);
    }

    #[test]
    fn an_idle_partition_moves_on_but_not_past_what_is_unfinished() {
        let part = part(10);
        part.skip_to(100, OffsetDateTime::now_utc());
        assert_eq!(part.cursor(), 100);
        part.begin(101, OffsetDateTime::now_utc());
        part.skip_to(200, OffsetDateTime::now_utc());
        assert_eq!(part.cursor(), 100);
    }
}
