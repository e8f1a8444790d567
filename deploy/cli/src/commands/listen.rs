//! `tidegate listen`: mirrors the webhooks of a connection to an app on this machine, in order.
//!
//! Reads the stream as `tidegate tail` does, from now on, and sends each webhook to one URL with
//! Slack's own headers. Nothing of it reaches the deployment: no cursor moves, no effect is
//! committed, and the app's answers are shown, not sent to Slack. A webhook that the app does not
//! take is not repeated.

use crate::{output, settings::NatsSettings, stream_reader};
use anyhow::ensure;
use reqwest::{Client, Url};
use shared::{
    domain::{ConnectionId, MediaType},
    stream::{Envelope, ReaderEvent, STREAM, StreamReader},
};
use std::time::Duration;

/// Maximum time of an answer. Slack waits 3 s; a debugger takes longer.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum bytes of an answer that are shown.
const SHOWN_BYTES_MAX: usize = 4 << 10;

/// Arguments of `tidegate listen`.
#[derive(Debug, clap::Args)]
pub struct Listen {
    /// Connection whose webhooks to mirror.
    #[arg(long)]
    connection: ConnectionId,
    /// URL of the app, as http://localhost:3000.
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
            "--forward is malformed; write http://localhost:3000"
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
                        Err(error) => eprintln!("{}  not decodable: {error}", position.sequence),
                    }
                    left -= 1;
                }
                ReaderEvent::Opened(state) if state.last_sequence + 1 < reader.next_sequence() => {
                    // The sequences of a recreated stream begin at 1.
                    eprintln!("stream {STREAM} was recreated; reading it from the beginning");
                    reader.restart_at(1);
                }
                ReaderEvent::Opened(_) => output::print_line(&format!(
                    "mirroring connection {} to {}; answers are shown, not sent",
                    self.connection, self.forward
                ))?,
                ReaderEvent::CaughtUp(..) => {}
            }
        }
        Ok(())
    }

    /// Sends a webhook to the app, and prints its answer.
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
        let said = match sent {
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
            Err(error) => format!("not delivered: {error}"),
        };
        let line = format!("{sequence:>10}  {kind:<11}  {}", output::sanitize(said.trim_end()));
        Ok(output::print_line(&line)?)
    }
}
