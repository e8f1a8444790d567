//! `tidegate audit`: every webhook that the stream holds is somewhere, or is named.
//!
//! In: a time. Out: how many webhooks stored since are done, parked, dead or in flight, and each that is none of these:
//! its partition's cursor passed it, and Postgres knows nothing of it. That one was lost.

use crate::{
    StoreSettings, jetstream, print,
    tail::{EVERY, envelope, reader},
};
use anyhow::{Context, ensure};
use async_nats::jetstream;
use serde::Serialize;
use shared::{
    config::Nats,
    follow::{Follow, Followed, first_since},
    store::{DONE_KEPT, Fate, Store, Stored},
    stream::{self, STREAM},
    types::ConnectionId,
};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Webhooks that Postgres is asked about at once.
const BATCH: usize = 500;

/// Settings of `tidegate audit`.
#[derive(Debug, clap::Args)]
pub struct Audit {
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    nats: Nats,
    /// From when on: so long ago, as in 1h, or a time, as in 2026-01-31T12:00:00Z. At most 48h ago.
    #[arg(long, value_parser = since)]
    since: OffsetDateTime,
    /// Print JSON, a line each: the lost ones, then the counts.
    #[arg(long)]
    json: bool,
}

/// A webhook that is nowhere.
#[derive(Serialize)]
struct Lost {
    connection: Option<ConnectionId>,
    sequence: u64,
    dedupe: Option<String>,
}

#[derive(Default)]
struct Found {
    counts: BTreeMap<Fate, u64>,
    lost: Vec<Lost>,
}

impl Audit {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        let back = OffsetDateTime::now_utc() - self.since;
        ensure!(!back.is_negative(), "--since lies in the future: say a time that is over");
        ensure!(
            back < DONE_KEPT,
            "--since lies too far back: what is done is remembered for 48h, and what is older can't be told from what was lost"
        );
        let (js, store) = (jetstream(&self.nats).await?, self.store.open()?);
        let stream = js.get_stream(STREAM).await.context(
            "NATS has no stream of webhooks for us: is it up, and did tidegate migrate run?",
        )?;
        let last = stream.cached_info().state.last_sequence;
        let first = first_since(&stream, EVERY.into(), self.since, reader("since")?).await;
        let unclear = "NATS did not say where the stream begins at that time: try again";
        let found = match first.map_err(|error| anyhow::anyhow!(error)).context(unclear)? {
            Some(first) => reconcile(js, &store, first, last).await?,
            None => Found::default(),
        };
        let lost = found.lost.len();
        self.print(&found)?;
        ensure!(
            lost == 0,
            "webhooks that are nowhere: {lost}. The stream still holds them; tell whoever runs Tidegate before it expires"
        );
        Ok(())
    }

    fn print(&self, found: &Found) -> anyhow::Result<()> {
        let count = |fate| found.counts.get(&fate).copied().unwrap_or_default();
        if self.json {
            found.lost.iter().try_for_each(print::json)?;
            let counts: BTreeMap<_, _> =
                Fate::ALL.into_iter().map(|fate| (fate.as_str(), count(fate))).collect();
            return print::json(&counts);
        }
        let rows: Vec<_> = Fate::ALL
            .into_iter()
            .map(|fate| vec![fate.as_str().replace('_', " "), count(fate).to_string()])
            .collect();
        print::table(&[("webhooks", false), ("count", true)], &rows)?;
        if found.lost.is_empty() {
            return Ok(());
        }
        print::line("")?;
        let rows: Vec<_> = found
            .lost
            .iter()
            .map(|lost| {
                let connection = lost.connection.map(|id| id.to_string());
                vec![
                    print::or_dash(connection.as_deref()),
                    lost.sequence.to_string(),
                    print::or_dash(lost.dedupe.as_deref()),
                ]
            })
            .collect();
        let columns = [("missing of connection", false), ("sequence", true), ("dedupe key", false)];
        Ok(print::table(&columns, &rows)?)
    }
}

/// Reads the stream from `first` up to `last`, and asks Postgres about each.
async fn reconcile(
    js: jetstream::Context,
    store: &Store,
    first: u64,
    last: u64,
) -> anyhow::Result<Found> {
    let mut found = Found::default();
    let mut follow = Follow::new(js, STREAM, EVERY.into(), reader("audit")?, first);
    let (mut batch, mut said) = (Vec::with_capacity(BATCH), Instant::now());
    while follow.next_sequence() <= last {
        match follow.next().await {
            Followed::Message(at, _) if at.sequence > last => break,
            Followed::Message(at, message) => batch.push(stored(at.sequence, &message)),
            Followed::CaughtUp(through, _) if through >= last => break,
            Followed::Opened(state) if state.last_sequence < last => {
                anyhow::bail!("the stream was made anew while it was read: run the audit again")
            }
            Followed::CaughtUp(..) | Followed::Opened(_) => {}
        }
        if batch.len() == BATCH {
            found.look(store, &mut batch).await?;
        }
        if said.elapsed() > Duration::from_secs(1) {
            said = Instant::now();
            print::progress(&format!("sequence {} of {last}", follow.next_sequence() - 1));
        }
    }
    found.look(store, &mut batch).await?;
    print::progress_over();
    Ok(found)
}

impl Found {
    async fn look(
        &mut self,
        store: &Store,
        batch: &mut Vec<(Stored, Option<ConnectionId>)>,
    ) -> anyhow::Result<()> {
        let asked: Vec<Stored> = batch.iter().map(|(stored, _)| stored.clone()).collect();
        let fates = store.fates(&asked).await?;
        for ((stored, connection), fate) in batch.drain(..).zip(fates) {
            *self.counts.entry(fate).or_default() += 1;
            if fate == Fate::Missing {
                let Stored { sequence, dedupe, .. } = stored;
                self.lost.push(Lost { connection, sequence, dedupe });
            }
        }
        Ok(())
    }
}

fn stored(sequence: u64, message: &jetstream::Message) -> (Stored, Option<ConnectionId>) {
    let place = stream::parse_subject(&message.subject);
    let dedupe = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id"));
    let stored = Stored {
        sequence,
        partition: place.map(|(partition, _)| partition),
        lane: envelope(message).map(|envelope| envelope.lane),
        dedupe: dedupe.map(|key| key.as_str().to_owned()),
    };
    (stored, place.map(|(_, connection)| connection))
}

/// A duration back, or a time.
pub fn since(text: &str) -> Result<OffsetDateTime, String> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(time);
    }
    let back = humantime::parse_duration(text).ok();
    let back = back.and_then(|back| time::Duration::try_from(back).ok());
    back.and_then(|back| OffsetDateTime::now_utc().checked_sub(back))
        .ok_or_else(|| "say how long ago, as in 1h, or a time, as in 2026-01-31T12:00:00Z".into())
}
