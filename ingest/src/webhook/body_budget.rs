//! Budgets in bytes for bodies in memory.
//!
//! A body that is being received counts against the budget for unverified bodies by the size of its
//! buffer, which grows as bytes arrive: a `Content-Length` alone costs nothing. Small and large
//! bodies have half of the budget each, so that large bodies of unknown senders do not displace
//! Slack's small ones. A verified body counts against the limits of webhooks in flight instead.
//!
//! Chunks of a body are copied into one buffer and dropped at once: a chunk of one byte would keep
//! the read buffer of 8 KiB that it arrived in.

use super::Verdict;
use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Maximum length of a small body. Slack's events and commands are shorter.
const SMALL_BODY_BYTES: usize = 64 * 1024;
/// Minimum size of a buffer for a body that arrives in several chunks.
const BUFFER_BYTES_MIN: usize = 1024;

/// Limit on the number of bytes in use.
pub struct ByteBudget {
    free: Semaphore,
    total: usize,
}

impl ByteBudget {
    /// Creates a budget of `total` bytes.
    pub fn new(total: usize) -> Self {
        let total = total.min(Semaphore::MAX_PERMITS);
        Self { free: Semaphore::new(total), total }
    }

    /// Takes bytes until the permit is dropped, or returns `None` if fewer are left.
    pub fn try_take(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        self.free.try_acquire_many(u32::try_from(bytes).ok()?).ok()
    }

    /// Returns the number of bytes in use.
    pub fn in_use(&self) -> usize {
        self.total - self.free.available_permits()
    }
}

/// Budget for bodies that are not verified.
pub struct UnverifiedBudget {
    small: ByteBudget,
    large: ByteBudget,
}

impl UnverifiedBudget {
    /// Creates a budget of `total` bytes, half of it for small bodies.
    pub fn new(total: usize) -> Self {
        Self { small: ByteBudget::new(total / 2), large: ByteBudget::new(total - total / 2) }
    }

    /// Returns the number of bytes in use.
    pub fn in_use(&self) -> usize {
        self.small.in_use() + self.large.in_use()
    }

    /// Receives a body of exactly `length` bytes. Fails if the body is shorter or longer, or the
    /// budget is exhausted.
    pub async fn receive(
        &self,
        mut body: Body,
        length: usize,
    ) -> Result<(Bytes, SemaphorePermit<'_>), Verdict> {
        let budget = if length <= SMALL_BODY_BYTES { &self.small } else { &self.large };
        let take = |bytes| budget.try_take(bytes).ok_or(Verdict::BodyBudgetExhausted);
        let mut taken = take(0)?;
        let mut buffer = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Verdict::BodyIncomplete)?;
            let Ok(piece) = frame.into_data() else { continue };
            let received = buffer.len() + piece.len();
            if received > length {
                return Err(Verdict::TooLarge);
            }
            if piece.len() == length {
                taken.merge(take(length)?);
                return Ok((piece, taken)); // one chunk, as for nearly all bodies: no copy
            }
            if received > buffer.capacity() {
                let doubled = received.max(2 * buffer.capacity()).max(BUFFER_BYTES_MIN);
                let capacity = doubled.min(length);
                taken.merge(take(capacity - buffer.capacity())?);
                buffer.reserve_exact(capacity - buffer.len());
            }
            buffer.extend_from_slice(&piece);
        }
        if buffer.len() == length {
            Ok((buffer.into(), taken))
        } else {
            Err(Verdict::BodyIncomplete)
        }
    }
}

/// Limits of verified webhooks in flight: their number and their body bytes.
pub struct InFlightLimit {
    webhooks: Semaphore,
    webhooks_max: usize,
    bytes: ByteBudget,
}

/// Permit of a webhook in flight. Released when dropped.
pub struct InFlight<'l> {
    _webhook: SemaphorePermit<'l>,
    _bytes: SemaphorePermit<'l>,
}

impl InFlightLimit {
    /// Creates limits on the number of webhooks and on their body bytes.
    pub fn new(webhooks_max: usize, bytes_max: usize) -> Self {
        let webhooks = Semaphore::new(webhooks_max);
        Self { webhooks, webhooks_max, bytes: ByteBudget::new(bytes_max) }
    }

    /// Admits a webhook with a body of `bytes`, or returns `None` at a limit. Does not wait: a late
    /// response is worse than an immediate rejection.
    pub fn admit(&self, bytes: usize) -> Option<InFlight<'_>> {
        let webhook = self.webhooks.try_acquire().ok()?;
        Some(InFlight { _webhook: webhook, _bytes: self.bytes.try_take(bytes)? })
    }

    /// Returns the number of webhooks in flight.
    pub fn webhooks(&self) -> usize {
        self.webhooks_max - self.webhooks.available_permits()
    }

    /// Returns the bytes of the bodies in flight.
    pub fn bytes(&self) -> usize {
        self.bytes.in_use()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, StreamExt, stream};
    use std::{convert::Infallible, future::pending};

    /// Returns a body that arrives in chunks of these lengths.
    fn pieces(lengths: &[usize]) -> Body {
        let pieces: Vec<Result<Bytes, Infallible>> =
            lengths.iter().map(|&length| Ok(vec![b'x'; length].into())).collect();
        Body::from_stream(stream::iter(pieces))
    }

    /// Returns a body of which only the first `length` bytes arrive.
    fn stalled(length: usize) -> Body {
        let part = stream::iter([Ok::<_, Infallible>(Bytes::from(vec![b'x'; length]))]);
        Body::from_stream(part.chain(stream::once(pending())))
    }

    #[tokio::test]
    async fn receives_body_in_any_chunks() {
        let budget = UnverifiedBudget::new(1 << 20);
        for lengths in [&[][..], &[7], &[1; 3000], &[1, 4000, 90_000], &[200_000, 1]] {
            let length = lengths.iter().sum();
            let (body, taken) = budget.receive(pieces(lengths), length).await.expect("received");
            assert_eq!((body.len(), budget.in_use()), (length, length), "{lengths:?}");
            drop(taken);
            assert_eq!(budget.in_use(), 0);
        }
    }

    #[tokio::test]
    async fn rejects_body_of_another_length() {
        let budget = UnverifiedBudget::new(1 << 20);
        let short = budget.receive(pieces(&[1, 2]), 4).await;
        assert!(matches!(short, Err(Verdict::BodyIncomplete)));
        let long = budget.receive(pieces(&[1, 4]), 4).await;
        assert!(matches!(long, Err(Verdict::TooLarge)));
        assert_eq!(budget.in_use(), 0);
    }

    /// A `Content-Length` alone takes no bytes. Large bodies do not use the half for small ones.
    #[tokio::test]
    async fn counts_received_bytes() {
        const BODY: usize = 100 * 1024;
        let budget = UnverifiedBudget::new(10 * BODY);
        let mut claims: Vec<_> =
            (0..400).map(|_| Box::pin(budget.receive(stalled(10), BODY))).collect();
        claims.iter_mut().for_each(|claim| assert!(claim.now_or_never().is_none()));
        assert_eq!(budget.in_use(), 400 * BUFFER_BYTES_MIN);
        drop(claims);

        let mut large: Vec<_> =
            (0..5).map(|_| Box::pin(budget.receive(stalled(BODY - 1), BODY))).collect();
        large.iter_mut().for_each(|body| assert!(body.now_or_never().is_none()));
        let refused = budget.receive(pieces(&[BODY]), BODY).await;
        assert!(matches!(refused, Err(Verdict::BodyBudgetExhausted)));
        let small = budget.receive(pieces(&[2000]), 2000).await;
        assert_eq!(small.expect("small bodies have their own half").0.len(), 2000);
        drop(large);
        assert_eq!(budget.in_use(), 0, "an aborted request releases its bytes");
    }

    #[test]
    fn limits_webhooks_in_flight() {
        let limit = InFlightLimit::new(2, 100);
        let first = limit.admit(60);
        assert!(first.is_some() && limit.admit(41).is_none());
        assert_eq!((limit.webhooks(), limit.bytes()), (1, 60));
        let second = limit.admit(40);
        assert!(second.is_some() && limit.admit(0).is_none());
        drop((first, second));
        assert_eq!((limit.webhooks(), limit.bytes()), (0, 0));
    }
}
