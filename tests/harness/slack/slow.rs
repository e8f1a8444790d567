//! Those who hold a connection and give nothing for it.
//!
//! In: in which way, and an address. Out: after how long the other side closed.

use super::{
    socket::{Socket, head},
    webhook::Webhook,
};
use std::time::Duration;

/// Three seconds for a head or a body, and some to notice.
pub const CLOSED_WITHIN: Duration = Duration::from_millis(4_500);
/// No head and no body is closed before.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// A byte, now and then.
const PACE: Duration = Duration::from_millis(250);

/// In which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slow {
    /// Says nothing at all.
    Silent,
    /// Never ends its head.
    Head,
    /// Never ends its body.
    Body,
}

/// All of them.
pub const SLOW: [Slow; 3] = [Slow::Silent, Slow::Head, Slow::Body];

impl Slow {
    /// Connects, and gives after how long it was closed.
    ///
    /// # Errors
    /// When it is not closed in time.
    pub async fn closed(
        self,
        url: &str,
        secret: &str,
        webhook: &Webhook,
    ) -> anyhow::Result<Duration> {
        let mut socket = Socket::open(url).await?;
        match self {
            Slow::Silent => return socket.closed(CLOSED_WITHIN).await,
            Slow::Head => socket.send(b"POST / HTTP/1.1\r\nx-slow: ").await?,
            Slow::Body => {
                socket.send(&head(url, secret, webhook, &["content-length: 1000"])?).await?;
            }
        }
        socket.drip(b"a", PACE, CLOSED_WITHIN).await
    }
}
