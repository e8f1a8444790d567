//! Clients that keep connections open without completing a request.

use super::{
    socket::{Socket, head},
    webhook::Webhook,
};
use std::time::Duration;

/// Maximum time until ingest closes a connection: three seconds for a head or a body, and a margin.
pub const CLOSED_WITHIN: Duration = Duration::from_millis(4_500);
/// Minimum time until ingest closes a connection without a complete head or body.
pub const IDLE_MIN: Duration = Duration::from_secs(3);
/// Interval between bytes.
const PACE: Duration = Duration::from_millis(250);

/// Kind of slow client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlowClient {
    /// Sends nothing.
    Silent,
    /// Sends a head that never ends.
    Head,
    /// Sends a body that never ends.
    Body,
}

/// All kinds.
pub const SLOW_CLIENTS: [SlowClient; 3] = [SlowClient::Silent, SlowClient::Head, SlowClient::Body];

impl SlowClient {
    /// Connects and returns the time until the connection is closed.
    ///
    /// # Errors
    /// If it is not closed in time.
    pub async fn closed(
        self,
        url: &str,
        secret: &str,
        webhook: &Webhook,
    ) -> anyhow::Result<Duration> {
        let mut socket = Socket::open(url).await?;
        match self {
            SlowClient::Silent => return socket.closed(CLOSED_WITHIN).await,
            SlowClient::Head => socket.send(b"POST / HTTP/1.1\r\nx-slow: ").await?,
            SlowClient::Body => {
                socket.send(&head(url, secret, webhook, &["content-length: 1000"])?).await?;
            }
        }
        socket.drip(b"a", PACE, CLOSED_WITHIN).await
    }
}
