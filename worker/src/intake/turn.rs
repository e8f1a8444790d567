//! Turns of the lease manager, with a timeout.

use shared::store::StoreError;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Reason for which a turn has no result.
#[derive(Debug)]
pub enum TurnError {
    Store(StoreError),
    Timeout,
    /// An idle worker stops.
    Stopped,
}

/// Runs a turn until the timeout, or until `stop`, if there is one.
pub async fn run_turn(
    turn: impl Future<Output = Result<usize, StoreError>>,
    timeout: Duration,
    stop: Option<&CancellationToken>,
) -> Result<usize, TurnError> {
    let stopped = async {
        match stop {
            Some(stop) => stop.cancelled().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        turn = tokio::time::timeout(timeout, turn) => match turn {
            Ok(turn) => turn.map_err(TurnError::Store),
            Err(_) => Err(TurnError::Timeout),
        },
        () = stopped => Err(TurnError::Stopped),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn separates_stop_from_timeout() {
        let stop = CancellationToken::new();
        stop.cancel();
        let slow = || std::future::pending::<Result<usize, StoreError>>();
        let stopped = run_turn(slow(), Duration::from_secs(10), Some(&stop)).await;
        assert!(matches!(stopped, Err(TurnError::Stopped)), "{stopped:?}");
        for stop in [None, Some(&CancellationToken::new())] {
            let late = run_turn(slow(), Duration::from_millis(1), stop).await;
            assert!(matches!(late, Err(TurnError::Timeout)), "{late:?}");
        }
    }
}
