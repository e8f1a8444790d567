//! `tidegate tail`: prints new webhooks as they are stored, without their bodies.

use crate::{output, settings::NatsSettings, stream_reader};
use async_nats::jetstream;
use serde::Serialize;
use shared::{
    domain::ConnectionId,
    stream::{self, Envelope, ReaderEvent, STREAM, StreamPosition, StreamReader},
};
use time::format_description::well_known::Rfc3339;

/// Arguments of `tidegate tail`.
#[derive(Debug, clap::Args)]
pub struct Tail {
    /// Only print webhooks of this connection.
    #[arg(long)]
    connection: Option<ConnectionId>,
    /// Exit after this number of webhooks.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Print JSON, one webhook per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    nats: NatsSettings,
}

/// Printed line about a webhook. Fields that cannot be decoded are `None`.
#[derive(Serialize)]
struct Line {
    time: String,
    sequence: u64,
    partition: Option<u16>,
    kind: Option<&'static str>,
    connection: Option<ConnectionId>,
    lane: Option<String>,
    dedup_key: Option<String>,
}

impl Tail {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        tokio::select! {
            done = self.follow() => done,
            interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        }
    }

    async fn follow(&self) -> anyhow::Result<()> {
        let js = self.nats.jetstream().await?;
        let stream = stream_reader::open(&js).await?;
        let next = stream.cached_info().state.last_sequence + 1;
        let connection = self.connection.map_or_else(|| "*".into(), |id| id.to_string());
        let filter = format!("slack.in.*.{connection}");
        let name = stream_reader::consumer_name("tail")?;
        let mut reader = StreamReader::new(js, STREAM, filter, name, next);
        let mut left = self.count.unwrap_or(u64::MAX);
        while left > 0 {
            match reader.next().await {
                ReaderEvent::Message(position, message) => {
                    self.print(&Line::new(position, &message)?)?;
                    left -= 1;
                }
                ReaderEvent::Opened(state) if state.last_sequence + 1 < reader.next_sequence() => {
                    // The sequences of a recreated stream begin at 1.
                    output::print_note(&format!(
                        "stream {STREAM} was recreated; reading it from the beginning"
                    ));
                    reader.restart_at(1);
                }
                ReaderEvent::Opened(_) | ReaderEvent::CaughtUp(..) => {}
            }
        }
        Ok(())
    }

    fn print(&self, line: &Line) -> anyhow::Result<()> {
        if self.json {
            return output::print_json(line);
        }
        Ok(output::print_line(&line.render())?)
    }
}

impl Line {
    fn new(position: StreamPosition, message: &jetstream::Message) -> anyhow::Result<Self> {
        let subject = stream::parse_subject(&message.subject);
        let headers = message.headers.as_ref();
        let envelope = Envelope::decode(&message.subject, headers, message.payload.clone()).ok();
        let dedup_key = headers.and_then(|headers| headers.get("Nats-Msg-Id"));
        Ok(Self {
            time: position.stored_at.format(&Rfc3339)?,
            sequence: position.sequence,
            partition: subject.map(|(partition, _)| partition.number()),
            kind: envelope.as_ref().map(|envelope| envelope.kind.as_str()),
            connection: subject.map(|(_, connection)| connection),
            lane: envelope.as_ref().map(|envelope| envelope.lane.to_string()),
            dedup_key: dedup_key.map(|key| key.as_str().to_owned()),
        })
    }

    fn render(&self) -> String {
        let Line { time, sequence, partition, kind, connection, lane, dedup_key } = self;
        let partition = partition.map_or_else(|| "-".into(), |partition| partition.to_string());
        let connection = connection.map_or_else(|| "-".into(), |id| id.to_string());
        format!(
            "{time}  {sequence:>10}  {partition:>2}  {:<11}  {connection:<32}  {:<16}  {}",
            kind.unwrap_or("-"),
            output::or_dash(lane.as_deref()),
            output::or_dash(dedup_key.as_deref()),
        )
    }
}
