//! The size of batches: pure decisions, without I/O.

/// Webhooks of a batch, at most.
pub const BATCH_WEBHOOKS_MAX: usize = 256;
/// Bytes of bodies in a batch, at most; a batch has at least one webhook.
pub const BATCH_BYTES_MAX: usize = 4 << 20;
/// Claims without progress after which webhooks are decided one by one.
pub const CLAIMS_BEFORE_ALONE: i32 = 3;

/// Returns how many of the webhooks that wait, given by the sizes of their bodies, make a batch.
pub fn batch_length(sizes: impl IntoIterator<Item = usize>, limit: usize) -> usize {
    let mut bytes = 0;
    let fits = sizes.into_iter().take(limit.clamp(1, BATCH_WEBHOOKS_MAX)).take_while(|size| {
        let first = bytes == 0;
        bytes += size.max(&1);
        first || bytes <= BATCH_BYTES_MAX
    });
    fits.count()
}

/// Returns how many decided webhooks are committed together: those before the first that must be alone, or that one.
pub fn commit_length(may_share: impl IntoIterator<Item = bool>) -> usize {
    may_share.into_iter().take_while(|share| *share).count().max(1)
}

/// The batch size while Postgres refuses batches for their contents or duration.
#[derive(Debug, Clone, Copy)]
pub struct BatchHalving {
    limit: usize,
    prepared_anew: bool,
    /// Webhooks that are still to be decided one by one: the one that ended the process is among them.
    alone: usize,
}

/// What follows a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterRefusal {
    /// Prepare again, with at most as many webhooks as [`BatchHalving::limit`] says.
    Prepare,
    /// The one webhook of the batch becomes a dead letter.
    DeadLetter,
}

impl BatchHalving {
    /// Whole batches; `alone`, after a process ended, one by one as many webhooks as a batch may have.
    pub fn new(alone: bool) -> Self {
        let (limit, alone) = if alone { (1, BATCH_WEBHOOKS_MAX) } else { (BATCH_WEBHOOKS_MAX, 0) };
        Self { limit, prepared_anew: false, alone }
    }

    /// Whether webhooks are decided one by one because a process ended.
    pub fn is_alone(&self) -> bool {
        self.alone > 0
    }

    /// Webhooks of the next batch, at most.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// A batch was committed: batches grow again.
    pub fn on_committed(&mut self) {
        self.prepared_anew = false;
        self.alone = self.alone.saturating_sub(1);
        if self.alone == 0 {
            self.limit = (self.limit * 2).min(BATCH_WEBHOOKS_MAX);
        }
    }

    /// A batch of this length was refused.
    pub fn on_refused(&mut self, length: usize) -> AfterRefusal {
        if !std::mem::replace(&mut self.prepared_anew, true) {
            return AfterRefusal::Prepare;
        }
        if length <= 1 {
            return AfterRefusal::DeadLetter;
        }
        self.limit = length / 2;
        AfterRefusal::Prepare
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_is_bounded_and_not_empty() {
        bolero::check!().with_type::<(Vec<u32>, u8)>().for_each(|(sizes, limit)| {
            let sizes: Vec<usize> = sizes.iter().map(|size| *size as usize % (2 << 20)).collect();
            let length = batch_length(sizes.iter().copied(), usize::from(*limit));
            assert!(length <= BATCH_WEBHOOKS_MAX && length <= usize::from(*limit).max(1));
            assert_eq!(length == 0, sizes.is_empty());
            let bytes: usize = sizes[..length].iter().sum();
            assert!(length == 1 || bytes <= BATCH_BYTES_MAX);
        });
    }

    #[test]
    fn changes_are_committed_alone() {
        assert_eq!(commit_length([true, true, false, true]), 2);
        assert_eq!(commit_length([false, true]), 1);
        assert_eq!(commit_length([true]), 1);
    }

    #[test]
    fn refused_webhook_is_found_and_others_go_on() {
        bolero::check!().with_type::<(u8, u8)>().for_each(|(total, bad)| {
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
                if halving.on_refused(length) == AfterRefusal::DeadLetter {
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
    fn as_many_as_a_batch_are_decided_one_by_one() {
        assert_eq!(BatchHalving::new(false).limit(), BATCH_WEBHOOKS_MAX);
        let mut halving = BatchHalving::new(true);
        for _ in 0..BATCH_WEBHOOKS_MAX {
            assert_eq!((halving.limit(), halving.is_alone()), (1, true));
            halving.on_committed();
        }
        assert_eq!((halving.limit(), halving.is_alone()), (2, false));
    }
}
