//! `tidegate tail`: webhooks as they are stored; never their bodies.

use crate::{output, settings::NatsSettings, stream_reader};
use async_nats::jetstream;
use serde::Serialize;
use shared::{
    codec::envelope::Envelope,
    follow::{Follow, Followed, Place},
    stream::{self, STREAM},
    types::ConnectionId,
};
use time::format_description::well_known::Rfc3339;

/// Every webhook of every connection.
pub const EVERY: &str = "slack.in.*.*";

/// Settings of `tidegate tail`.
#[derive(Debug, clap::Args)]
pub struct Tail {
    #[command(flatten)]
    nats: NatsSettings,
    /// Only those of this connection.
    #[arg(long)]
    connection: Option<ConnectionId>,
    /// End after so many.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Print JSON, a line each.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line {
    time: String,
    sequence: u64,
    partition: Option<u16>,
    kind: Option<&'static str>,
    connection: Option<ConnectionId>,
    lane: Option<String>,
    dedupe: Option<String>,
}

impl Tail {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        tokio::select! {
            done = self.follow() => done,
            interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        }
    }

    async fn follow(&self) -> anyhow::Result<()> {
        let js = self.nats.jetstream().await?;
        let there = stream_reader::open(&js).await?;
        let next = there.cached_info().state.last_sequence + 1;
        let filter = self.connection.map_or_else(|| EVERY.into(), |id| format!("slack.in.*.{id}"));
        let mut follow =
            Follow::new(js, STREAM, filter, stream_reader::consumer_name("tail")?, next);
        let mut left = self.count.unwrap_or(u64::MAX);
        while left > 0 {
            match follow.next().await {
                Followed::Message(at, message) => {
                    self.print(&Line::of(at, &message)?)?;
                    left -= 1;
                }
                Followed::Opened(state) if state.last_sequence + 1 < follow.next_sequence() => {
                    // A stream made anew counts from one.
                    eprintln!("the stream was made anew; going on with it from its beginning");
                    follow.restart_at(1);
                }
                Followed::Opened(_) | Followed::CaughtUp(..) => {}
            }
        }
        Ok(())
    }

    fn print(&self, line: &Line) -> anyhow::Result<()> {
        if self.json {
            return output::json(line);
        }
        let Line { time, sequence, partition, kind, connection, lane, dedupe } = line;
        let partition = partition.map_or_else(|| "-".into(), |partition| partition.to_string());
        let connection = connection.map_or_else(|| "-".into(), |id| id.to_string());
        Ok(output::line(&format!(
            "{time}  {sequence:>10}  {partition:>2}  {:<11}  {connection:<32}  {:<16}  {}",
            kind.unwrap_or("-"),
            output::or_dash(lane.as_deref()),
            output::or_dash(dedupe.as_deref()),
        ))?)
    }
}

impl Line {
    fn of(at: Place, message: &jetstream::Message) -> anyhow::Result<Self> {
        let place = stream::parse_subject(&message.subject);
        let envelope = envelope(message);
        let dedupe = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id"));
        Ok(Self {
            time: at.stored_at.format(&Rfc3339)?,
            sequence: at.sequence,
            partition: place.map(|(partition, _)| partition.number()),
            kind: envelope.as_ref().map(|envelope| envelope.kind.as_str()),
            connection: place.map(|(_, connection)| connection),
            lane: envelope.as_ref().map(|envelope| envelope.lane.to_string()),
            dedupe: dedupe.map(|key| key.as_str().to_owned()),
        })
    }
}

/// A message of the stream as an envelope, if this release can read it.
pub fn envelope(message: &jetstream::Message) -> Option<Envelope> {
    let body = message.payload.clone();
    Envelope::decode(&message.subject, message.headers.as_ref(), body).ok()
}
