//! Pure functions that size the batches of intake.

/// Maximum number of webhooks in a batch.
pub const BATCH_WEBHOOKS_MAX: usize = 256;
/// Maximum bytes of bodies in a batch of several webhooks.
pub const BATCH_BYTES_MAX: usize = 4 << 20;
/// Number of refusals for duration after which a webhook becomes a dead letter: about a minute,
/// since Postgres may be slow for all statements.
const DURATION_REFUSALS_MAX: u32 = 12;
/// Number of claims without progress after which webhooks are decided one by one.
pub const CLAIMS_BEFORE_ALONE: i32 = 3;

/// Returns the length of the next batch. `sizes` are the body sizes of the pending webhooks.
pub fn batch_length(sizes: impl IntoIterator<Item = usize>, limit: usize) -> usize {
    let mut bytes = 0;
    let fits = sizes.into_iter().take(limit.clamp(1, BATCH_WEBHOOKS_MAX)).take_while(|size| {
        let first = bytes == 0;
        bytes += size.max(&1);
        first || bytes <= BATCH_BYTES_MAX
    });
    fits.count()
}

/// Returns the number of decided webhooks to commit together: those before the first that must be
/// committed alone, or that one.
pub fn commit_length(may_share: impl IntoIterator<Item = bool>) -> usize {
    may_share.into_iter().take_while(|share| *share).count().max(1)
}

/// Batch size while Postgres refuses batches for their contents or duration.
#[derive(Debug, Clone, Copy)]
pub struct BatchHalving {
    limit: usize,
    prepared_again: bool,
    alone_too_slow: u32,
    /// Number of webhooks to decide one by one: the one that crashed the process is among them.
    alone: usize,
}

/// Reaction to a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterRefusal {
    /// Prepare again, with at most [`BatchHalving::limit`] webhooks.
    Prepare,
    /// Move the one webhook of the batch to the dead letters.
    DeadLetter,
}

impl BatchHalving {
    /// Begins with full batches. If `alone`, after a crash, decides as many webhooks one by one as
    /// a batch may have.
    pub fn new(alone: bool) -> Self {
        let (limit, alone) = if alone { (1, BATCH_WEBHOOKS_MAX) } else { (BATCH_WEBHOOKS_MAX, 0) };
        Self { limit, prepared_again: false, alone_too_slow: 0, alone }
    }

    /// Returns whether webhooks are decided one by one after a crash.
    pub fn is_alone(&self) -> bool {
        self.alone > 0
    }

    /// Returns the maximum number of webhooks in the next batch.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Doubles the limit after a commit, once webhooks are no longer decided one by one.
    pub fn on_committed(&mut self) {
        let alone = self.alone.saturating_sub(1);
        let limit = if alone > 0 { 1 } else { (self.limit * 2).min(BATCH_WEBHOOKS_MAX) };
        *self = Self { limit, prepared_again: false, alone_too_slow: 0, alone };
    }

    /// Halves the limit after a refusal, and returns the reaction.
    pub fn on_refused(&mut self, length: usize, for_duration: bool) -> AfterRefusal {
        self.alone_too_slow += u32::from(for_duration && length <= 1);
        if !std::mem::replace(&mut self.prepared_again, true) {
            return AfterRefusal::Prepare;
        }
        if length <= 1 && (!for_duration || self.alone_too_slow >= DURATION_REFUSALS_MAX) {
            return AfterRefusal::DeadLetter;
        }
        self.limit = (length / 2).max(1);
        AfterRefusal::Prepare
    }
}

/// Maximum number of webhooks that are decided together. Webhooks behind one that is committed
/// alone are decided again, so the limit is small while most are committed alone.
#[derive(Debug, Clone, Copy)]
pub struct PrepareLimit(usize);

impl PrepareLimit {
    /// Creates the limit for full batches.
    pub fn new() -> Self {
        Self(BATCH_WEBHOOKS_MAX)
    }

    /// Returns the limit of the next batch.
    pub fn get(self) -> usize {
        self.0
    }

    /// Records how many of the webhooks that were decided together were committed.
    pub fn on_committed(&mut self, committed: usize, prepared: usize) {
        let fit = if committed < prepared { committed } else { self.0 };
        self.0 = (2 * fit).clamp(1, BATCH_WEBHOOKS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_batches() {
        bolero::check!().with_iterations(5_000).with_type::<(Vec<u32>, u8)>().for_each(
            |(sizes, limit)| {
                let sizes: Vec<usize> =
                    sizes.iter().map(|size| *size as usize % (2 << 20)).collect();
                let length = batch_length(sizes.iter().copied(), usize::from(*limit));
                assert!(length <= BATCH_WEBHOOKS_MAX && length <= usize::from(*limit).max(1));
                assert_eq!(length == 0, sizes.is_empty());
                let bytes: usize = sizes[..length].iter().sum();
                assert!(length == 1 || bytes <= BATCH_BYTES_MAX);
            },
        );
    }

    #[test]
    fn commits_changes_alone() {
        assert_eq!(commit_length([true, true, false, true]), 2);
        assert_eq!(commit_length([false, true]), 1);
        assert_eq!(commit_length([true]), 1);
    }

    /// Returns the sizes of committed batches and the number of decisions.
    fn commit_all(may_share: &[bool]) -> (Vec<usize>, usize) {
        let (mut limit, mut next, mut batches, mut decided) =
            (PrepareLimit::new(), 0, Vec::new(), 0);
        while next < may_share.len() {
            let prepared = limit.get().min(may_share.len() - next);
            let committed = commit_length(may_share[next..next + prepared].iter().copied());
            limit.on_committed(committed, prepared);
            batches.push(committed);
            (next, decided) = (next + committed, decided + prepared);
        }
        (batches, decided)
    }

    #[test]
    fn decides_single_commits_about_once() {
        let (batches, decided) = commit_all(&[false; 2_000]);
        assert_eq!(batches.len(), 2_000);
        assert!(decided < 2 * 2_000 + BATCH_WEBHOOKS_MAX, "{decided}");
        assert_eq!(commit_all(&[true; 2_000]).0.len(), 2_000_usize.div_ceil(BATCH_WEBHOOKS_MAX));
        bolero::check!().with_iterations(5_000).with_type::<Vec<bool>>().for_each(|may_share| {
            let (batches, decided) = commit_all(may_share);
            assert_eq!(batches.iter().sum::<usize>(), may_share.len());
            assert!(decided <= 4 * may_share.len() + BATCH_WEBHOOKS_MAX, "{decided}");
        });
    }

    #[test]
    fn isolates_refused_webhook() {
        bolero::check!().with_iterations(5_000).with_type::<(u8, u8)>().for_each(|(total, bad)| {
            let (total, bad) = (usize::from(*total) + 1, usize::from(*bad));
            let (mut halving, mut next, mut dead, mut refusals) =
                (BatchHalving::new(false), 0, Vec::new(), 0);
            while next < total {
                let length = batch_length((next..total).map(|_| 100), halving.limit());
                if !(next..next + length).contains(&bad) {
                    next += length;
                    halving.on_committed();
                    continue;
                }
                refusals += 1;
                assert!(refusals < 40, "halving ends");
                if halving.on_refused(length, false) == AfterRefusal::DeadLetter {
                    assert_eq!((next, length), (bad, 1));
                    dead.push(next);
                    next += 1;
                    halving.on_committed();
                }
            }
            assert_eq!(dead.len(), usize::from(bad < total));
        });
    }

    #[test]
    fn waits_for_slow_postgres() {
        let mut halving = BatchHalving::new(false);
        let mut refusals = 0;
        while halving.limit() > 1 {
            halving.on_refused(halving.limit(), true);
        }
        while halving.on_refused(1, true) == AfterRefusal::Prepare {
            refusals += 1;
        }
        assert!(refusals >= 11, "{refusals} refusals of 5 s each");
    }

    #[test]
    fn decides_one_by_one_after_crash() {
        assert_eq!(BatchHalving::new(false).limit(), BATCH_WEBHOOKS_MAX);
        let mut halving = BatchHalving::new(true);
        for _ in 0..BATCH_WEBHOOKS_MAX {
            assert_eq!((halving.limit(), halving.is_alone()), (1, true));
            halving.on_committed();
        }
        assert_eq!((halving.limit(), halving.is_alone()), (2, false));
    }
}
