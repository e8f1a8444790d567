//! From a message's being due to its effects being in force (its delivery enqueued, its cursor moved), at a rate that nothing is
//! troubled by, against the three things that cannot be spared: a publish, a reading, a commit, one after the other in one
//! process. Agents are paused, so that nothing else is under way; then they are asked, and how long that takes is told, too.
//!
//! When a transaction was committed is what Postgres itself noted (`track_commit_timestamp`).

use crate::{
    client::Pace,
    commits::Commits,
    report::{Bound::*, Report},
    tenants::{BODY_BYTES, Tenants, Way, number_of},
    turns::Series,
};
use anyhow::{Context, ensure};
use async_nats::{HeaderMap, jetstream};
use hdrhistogram::Histogram;
use shared::{
    config,
    follow::{Follow, Followed},
};
use sqlx::Row;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tests::{
    until::try_until,
    world::{SOON, Size, World, agent_id},
};
use tokio::task::JoinSet;

const RATE: f64 = 200.0;
const SLICE: Duration = Duration::from_secs(4);
const ROUNDS: usize = 4;
const STREAM: &str = "CHAIN";
const SUBJECT: &str = "chain.in";

/// At 200 a second.
pub async fn accept_to_committed(report: &mut Report) -> anyhow::Result<()> {
    report.part("latency");
    let size = Size { ingests: 0, workers: 0, own_postgres: true };
    let mut world = World::synced_seldom(size).await?;
    sqlx::query("alter system set track_commit_timestamp = on").execute(&world.pool).await?;
    world.postgres.restart().await?;
    let commits = Commits::start(&world.postgres).await?;
    world.start_ingest().await?;
    world.start_worker().await?;
    world.settled().await?;
    let mut apps = Vec::new();
    for _ in 0..10 {
        apps.push(world.connect_as(|new| new.agent = Some(agent_id())).await?);
    }
    let tenants = Tenants::of(apps.iter().map(|app| (app.connection, app.secret.clone())));
    let tenants = Arc::new(tenants.with_messages());
    sqlx::query("update agents set paused_at = now()").execute(&world.pool).await?;
    let address = world.ingests[0].path("").trim_start_matches("http://").parse()?;
    let mut client = crate::client::Client::new(address, &tenants, Way::Connection, 64);
    let js = config::jetstream(world.client().clone());
    let chain = jetstream::stream::Config {
        name: STREAM.into(),
        subjects: vec![SUBJECT.into()],
        ..jetstream::stream::Config::default()
    };
    js.create_stream(chain).await?;

    let (mut whole, mut least) = (Quantiles::default(), Quantiles::default());
    let mut acked = Quantiles::default();
    for round in 0..=ROUNDS {
        let (alone, (ours, answered)) =
            (parts_alone(&js, &commits, round).await?, product(&world, &mut client).await?);
        if round > 0 {
            least.push(&alone);
            whole.push(&ours);
            acked.push(&answered);
        }
    }
    report.ratio_target(
        "accept to committed p50, to the parts",
        whole.p50.to(&least.p50),
        AtMost(1.5),
    );
    report.ratio_target(
        "accept to committed p99, to the parts",
        whole.p99.to(&least.p99),
        AtMost(1.5),
    );
    for (who, quantiles) in [
        ("publish, read and commit alone", &least),
        ("accept to committed", &whole),
        ("accept to answered", &acked),
    ] {
        report.figure(format!("{who}: p50"), quantiles.p50.median(), "ms");
        report.figure(format!("{who}: p99"), quantiles.p99.median(), "ms");
    }
    let asked = asked(&world, &mut client).await?;
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        let ms = asked.value_at_quantile(quantile) as f64 / 1e3;
        report.figure(format!("received to agent asked: {name}"), ms, "ms");
    }
    Ok(())
}

/// From receipt to the call of the agent, by what is logged of each delivery.
async fn asked(
    world: &World,
    client: &mut crate::client::Client,
) -> anyhow::Result<Histogram<u64>> {
    for sql in [
        "delete from deliveries",
        "delete from delivery_lanes",
        "update agents set paused_at = null",
    ] {
        sqlx::query(sql).execute(&world.pool).await?;
    }
    client.open(RATE, Duration::ZERO, SLICE).await?;
    world.worked_off(SOON).await?;
    let waits: Vec<f64> = sqlx::query_scalar(
        "select extract(epoch from first_attempt_at - received_at)::float8 from delivery_log",
    )
    .fetch_all(&world.pool)
    .await?;
    let mut latency = crate::client::histogram();
    waits.iter().for_each(|wait| latency.saturating_record((wait.max(0.0) * 1e6) as u64));
    Ok(latency)
}

#[derive(Default)]
struct Quantiles {
    p50: Series,
    p99: Series,
}

impl Quantiles {
    fn push(&mut self, latency: &Histogram<u64>) {
        self.p50.push(latency.value_at_quantile(0.5) as f64 / 1e3);
        self.p99.push(latency.value_at_quantile(0.99) as f64 / 1e3);
    }
}

/// The product: until committed, and until answered.
async fn product(
    world: &World,
    client: &mut crate::client::Client,
) -> anyhow::Result<(Histogram<u64>, Histogram<u64>)> {
    let (wall, steady) = (SystemTime::now(), Instant::now());
    let (sent, schedule) = client.open(RATE, Duration::ZERO, SLICE).await?;
    let rows = async || {
        let rows = sqlx::query(
            "select dedup_key, extract(epoch from pg_xact_commit_timestamp(xmin))::float8 as at
               from deliveries where inserted_at > to_timestamp($1)",
        )
        .bind(wall.duration_since(UNIX_EPOCH).ok()?.as_secs_f64() - 0.001)
        .fetch_all(&world.pool)
        .await
        .ok()?;
        (rows.len() as u64 >= schedule.count).then_some(rows)
    };
    let rows = try_until("all of a slice is done", SOON, rows).await?;
    let mut latency = crate::client::histogram();
    for row in rows {
        let number = number_of(row.try_get("dedup_key")?).context("one of ours")?;
        let Some(due) = schedule.due(number) else { continue };
        let due = wall.duration_since(UNIX_EPOCH)? + (due - steady);
        let took = row.try_get::<f64, _>("at")? - due.as_secs_f64();
        latency.saturating_record((took.max(0.0) * 1e6) as u64);
    }
    ensure!(latency.len() == schedule.count, "{} of {}", latency.len(), schedule.count);
    Ok((latency, sent.latency))
}

/// A publish, the reading of it, a commit; nothing waits for the publish's confirmation.
async fn parts_alone(
    js: &jetstream::Context,
    commits: &Commits,
    round: usize,
) -> anyhow::Result<Histogram<u64>> {
    let stream = js.get_stream(STREAM).await?;
    let next = stream.cached_info().state.last_sequence + 1;
    let name = format!("chain-{round}");
    let mut follow = Follow::new(js.clone(), STREAM, SUBJECT.into(), name, next);
    ensure!(matches!(follow.next().await, Followed::Opened(_)), "a reader is opened first");
    let pace = Pace::start(RATE, SLICE);
    let body = Tenants::random(1)?.envelope(0, BODY_BYTES).body;
    let mut publishing = JoinSet::new();
    for _ in 0..64 {
        let (js, pace, body) = (js.clone(), Arc::clone(&pace), body.clone());
        publishing.spawn(async move {
            while let Some((_, number)) = pace.next().await {
                let mut with = HeaderMap::new();
                with.insert("Nats-Msg-Id", number.to_string());
                js.publish_with_headers(SUBJECT, with, body.clone()).await?.await?;
            }
            anyhow::Ok(())
        });
    }
    let latency = Arc::new(Mutex::new(crate::client::histogram()));
    let mut committing = JoinSet::new();
    for _ in 0..pace.schedule.count {
        let message = loop {
            if let Followed::Message(_, message) = follow.next().await {
                break message;
            }
        };
        let id = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id"));
        let number: u64 = id.context("a message of ours")?.as_str().parse()?;
        let due = pace.schedule.due(number).context("one of this slice")?;
        let (commits, latency) = (commits.clone(), Arc::clone(&latency));
        committing.spawn(async move {
            commits.commit_one(number).await?;
            let mut latency = latency.lock().unwrap_or_else(PoisonError::into_inner);
            latency.saturating_record(due.elapsed().as_micros() as u64);
            anyhow::Ok(())
        });
    }
    while let Some(ended) = committing.join_next().await {
        ended??;
    }
    while let Some(ended) = publishing.join_next().await {
        ended??;
    }
    let latency = latency.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(latency)
}
