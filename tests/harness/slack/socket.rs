//! Raw TCP connections to an ingest, for requests that HTTP clients do not send.

use super::{Answer, sign, unix_now, webhook::Webhook};
use anyhow::{Context, bail, ensure};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

/// An open connection.
pub struct Socket {
    stream: TcpStream,
    opened: Instant,
    unread: Vec<u8>,
}

impl Socket {
    /// Connects to the server of a URL.
    pub async fn open(url: &str) -> anyhow::Result<Self> {
        let opened = Instant::now();
        let stream = TcpStream::connect(split(url)?.0).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, opened, unread: Vec::new() })
    }

    /// Connects with a small receive buffer.
    pub async fn open_narrow(url: &str) -> anyhow::Result<Self> {
        let opened = Instant::now();
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(4 * 1024)?;
        let stream = socket.connect(split(url)?.0.parse()?).await?;
        Ok(Self { stream, opened, unread: Vec::new() })
    }

    /// Sends the same bytes repeatedly and reads nothing, until the peer closes the connection.
    /// Returns the age of the connection; fails after `age_max`.
    pub async fn flood(mut self, bytes: &[u8], age_max: Duration) -> anyhow::Result<Duration> {
        let left = age_max.saturating_sub(self.opened.elapsed());
        let send = async { while self.stream.write_all(bytes).await.is_ok() {} };
        timeout(left, send)
            .await
            .with_context(|| format!("the connection is still open after {age_max:?}"))?;
        Ok(self.opened.elapsed())
    }

    /// Sends bytes.
    pub async fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(self.stream.write_all(bytes).await?)
    }

    /// Reads the next answer. Its time is measured from this call.
    pub async fn answer(&mut self, within: Duration) -> anyhow::Result<Answer> {
        let started = Instant::now();
        let read = async {
            loop {
                if let Some((answer, length)) = parse(&self.unread, started)? {
                    self.unread.drain(..length);
                    return Ok(answer);
                }
                let count = self.stream.read_buf(&mut self.unread).await?;
                ensure!(
                    count > 0,
                    "the connection was closed after {:?}",
                    String::from_utf8_lossy(&self.unread)
                );
            }
        };
        timeout(within, read).await.context("no answer in time")?
    }

    /// Waits until the peer closes the connection. Returns the age of the connection; fails after
    /// `age_max`.
    pub async fn closed(&mut self, age_max: Duration) -> anyhow::Result<Duration> {
        let read = async {
            // A reset also closes the connection.
            while self.stream.read_buf(&mut self.unread).await.unwrap_or(0) > 0 {}
        };
        let left = age_max.saturating_sub(self.opened.elapsed());
        timeout(left, read)
            .await
            .with_context(|| format!("the connection is still open after {age_max:?}"))?;
        Ok(self.opened.elapsed())
    }

    /// Returns the unread answers.
    pub fn unread(&self) -> String {
        String::from_utf8_lossy(&self.unread).into_owned()
    }

    /// Sends the same bytes at an interval until the peer closes the connection, as
    /// [`Socket::closed`].
    pub async fn drip(
        mut self,
        bytes: &'static [u8],
        pace: Duration,
        age_max: Duration,
    ) -> anyhow::Result<Duration> {
        let mut pace = tokio::time::interval(pace);
        loop {
            tokio::select! {
                closed = self.closed(age_max) => return closed,
                _ = pace.tick() => {
                    let _already_closed = self.send(bytes).await;
                }
            }
        }
    }
}

/// Returns the head of a signed webhook, with the caller's headers for the length of the body.
pub fn head(
    url: &str,
    secret: &str,
    webhook: &Webhook,
    framing: &[&str],
) -> anyhow::Result<Vec<u8>> {
    let (authority, path) = split(url)?;
    let now = unix_now().to_string();
    let signature = sign(secret, &now, &webhook.body);
    let mut head = format!(
        "POST {path} HTTP/1.1\r\nhost: {authority}\r\ncontent-type: {}\r\n\
         x-slack-signature: {signature}\r\nx-slack-request-timestamp: {now}\r\n",
        webhook.content_type
    );
    for line in framing {
        head.push_str(line);
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    Ok(head.into_bytes())
}

/// Returns the request of a webhook, as Slack sends it.
pub fn request(url: &str, secret: &str, webhook: &Webhook) -> anyhow::Result<Vec<u8>> {
    let length = format!("content-length: {}", webhook.body.len());
    let mut request = head(url, secret, webhook, &[&length])?;
    request.extend_from_slice(&webhook.body);
    Ok(request)
}

fn split(url: &str) -> anyhow::Result<(&str, &str)> {
    let rest = url.strip_prefix("http://").context("the URL does not begin with http://")?;
    Ok(rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash)))
}

/// Parses the first answer. Returns the answer and its length, or `None` while it is incomplete.
fn parse(bytes: &[u8], started: Instant) -> anyhow::Result<Option<(Answer, usize)>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&bytes[..end])?;
    let mut lines = text.split("\r\n");
    let status =
        lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    let Some(status) = status else { bail!("not an HTTP/1.1 response: {text}") };
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').context("a header has no colon")?;
        headers.append(name.parse::<HeaderName>()?, HeaderValue::from_str(value.trim())?);
    }
    let length = match headers.get("content-length") {
        Some(length) => length.to_str()?.parse()?,
        None => 0,
    };
    let body = &bytes[end + 4..];
    if body.len() < length {
        return Ok(None);
    }
    let body = String::from_utf8(body[..length].to_vec())?;
    Ok(Some((Answer { status, headers, body, took: started.elapsed() }, end + 4 + length)))
}
