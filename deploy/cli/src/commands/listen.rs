//! `tidegate listen`: mirrors the webhooks of a connection to an app on this machine, in order.
//!
//! Reads new webhooks from the stream as `tidegate tail` does, and sends each to one URL with
//! Slack's original headers. The deployment is not affected: no cursor moves, no effect is
//! committed, and the app's responses are printed, not sent to Slack. A failed webhook is not
//! resent.

use crate::{output, settings::NatsSettings, stream_reader};
use anyhow::ensure;
use reqwest::{Client, Url};
use shared::{
    domain::{ConnectionId, MediaType},
    stream::{Envelope, ReaderEvent, STREAM, StreamReader},
};
use std::time::Duration;

/// Maximum time for a response. Slack waits 3 s, but the app may be paused in a debugger.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum bytes of a response that are printed.
const SHOWN_BYTES_MAX: usize = 4 << 10;

/// Arguments of `tidegate listen`.
#[derive(Debug, clap::Args)]
pub struct Listen {
    /// Connection whose webhooks to mirror.
    #[arg(long)]
    connection: ConnectionId,
    /// URL of the app, for example http://localhost:3000.
    #[arg(long, value_name = "URL")]
    forward: Url,
    /// Exit after this number of webhooks.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    nats: NatsSettings,
}

impl Listen {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        ensure!(
            matches!(self.forward.scheme(), "http" | "https"),
            "--forward is not an HTTP URL; pass for example http://localhost:3000"
        );
        tokio::select! {
            done = self.mirror() => done,
            interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        }
    }

    async fn mirror(&self) -> anyhow::Result<()> {
        let _ = rustls::crypto::ring::default_provider().install_default(); // once in a process
        let redirects = reqwest::redirect::Policy::none();
        let http = Client::builder().no_proxy().redirect(redirects).timeout(TIMEOUT).build()?;
        let js = self.nats.jetstream().await?;
        let stream = stream_reader::open(&js).await?;
        let next = stream.cached_info().state.last_sequence + 1;
        let filter = format!("slack.in.*.{}", self.connection);
        let name = stream_reader::consumer_name("listen")?;
        let mut reader = StreamReader::new(js, STREAM, filter, name, next);
        let mut left = self.count.unwrap_or(u64::MAX);
        while left > 0 {
            match reader.next().await {
                ReaderEvent::Message(position, message) => {
                    let (subject, headers) = (&message.subject, message.headers.as_ref());
                    match Envelope::decode(subject, headers, message.payload.clone()) {
                        Ok(envelope) => self.forward(&http, position.sequence, envelope).await?,
                        Err(error) => output::print_note(&format!(
                            "{}  failed to decode: {error}",
                            position.sequence
                        )),
                    }
                    left -= 1;
                }
                ReaderEvent::Opened(state) if state.last_sequence + 1 < reader.next_sequence() => {
                    // The sequences of a recreated stream begin at 1.
                    output::print_note(&format!(
                        "stream {STREAM} was recreated; reading it from the beginning"
                    ));
                    reader.restart_at(1);
                }
                ReaderEvent::Opened(_) => output::print_line(&format!(
                    "mirroring connection {} to {}; responses are printed, not sent to Slack",
                    self.connection, self.forward
                ))?,
                ReaderEvent::CaughtUp(..) => {}
            }
        }
        Ok(())
    }

    /// Sends a webhook to the app, and prints the response.
    async fn forward(
        &self,
        http: &Client,
        sequence: u64,
        envelope: Envelope,
    ) -> anyhow::Result<()> {
        let content_type = match envelope.media {
            MediaType::Json => "application/json",
            MediaType::Form => "application/x-www-form-urlencoded",
        };
        let mut request = http
            .post(self.forward.clone())
            .header("content-type", content_type)
            .header("x-slack-signature", envelope.signature.as_str())
            .header("x-slack-request-timestamp", envelope.timestamp.as_str())
            .body(envelope.body);
        if let Some(retry) = &envelope.retry {
            request = request.header("x-slack-retry-num", retry.number);
            if let Some(reason) = &retry.reason {
                request = request.header("x-slack-retry-reason", reason.as_str());
            }
        }
        let kind = envelope.kind.as_str();
        let sent = request.send().await.map_err(reqwest::Error::without_url);
        let result = match sent {
            Ok(mut response) => {
                let (status, mut body) = (response.status(), Vec::new());
                while body.len() < SHOWN_BYTES_MAX
                    && let Ok(Some(chunk)) = response.chunk().await
                {
                    body.extend_from_slice(&chunk);
                }
                body.truncate(SHOWN_BYTES_MAX);
                format!("answered {status}  {}", String::from_utf8_lossy(&body))
            }
            Err(error) => format!("failed to send: {error}"),
        };
        let line = format!("{sequence:>10}  {kind:<11}  {}", output::sanitize(result.trim_end()));
        Ok(output::print_line(&line)?)
    }
}
