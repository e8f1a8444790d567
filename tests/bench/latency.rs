//! Time from the due time of a message to its commit (delivery enqueued, cursor moved) at a
//! moderate rate, beside its necessary parts: a publish, a read and a commit in sequence in one
//! process. Agents are paused at first. Then the time to the call of the agent is measured.
//!
//! Postgres records the time of a commit (`track_commit_timestamp`).

use crate::{
    client::Pace,
    commits::Commits,
    interleaved::Series,
    report::{Bound::*, Report},
    tenants::{BODY_BYTES, Tenants, Way, number_of},
};
use anyhow::{Context, ensure};
use async_nats::{HeaderMap, jetstream};
use hdrhistogram::Histogram;
use shared::{
    runtime::config,
    stream::{ReaderEvent, StreamReader},
};
use sqlx::Row;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tests::{
    eventually::try_eventually,
    test_env::{Size, TIMEOUT, TestEnv, agent_id},
};
use tokio::task::JoinSet;

const RATE: f64 = 200.0;
const SLICE: Duration = Duration::from_secs(4);
const ROUNDS: usize = 4;
const STREAM: &str = "CHAIN";
const SUBJECT: &str = "chain.in";

/// Measures at 200 messages per second.
pub async fn accept_to_committed(report: &mut Report) -> anyhow::Result<()> {
    report.part("latency");
    let size = Size { ingests: 0, workers: 0, own_postgres: true };
    let mut env = TestEnv::with_rare_sync(size).await?;
    sqlx::query("alter system set track_commit_timestamp = on").execute(&env.pool).await?;
    env.postgres.restart().await?;
    let commits = Commits::start(&env.postgres).await?;
    env.start_ingest().await?;
    env.start_worker().await?;
    env.wait_until_balanced().await?;
    let mut apps = Vec::new();
    for _ in 0..10 {
        apps.push(env.connect_as(|new| new.agent = Some(agent_id())).await?);
    }
    let tenants = Tenants::of(&apps);
    let tenants = Arc::new(tenants.with_messages());
    sqlx::query("update agents set paused_at = now()").execute(&env.pool).await?;
    let address = env.ingests[0].path("").trim_start_matches("http://").parse()?;
    let mut client = crate::client::Client::new(address, &tenants, Way::Connection, 64);
    let js = config::jetstream(env.client().clone());
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
            (parts_alone(&js, &commits, round).await?, product(&env, &mut client).await?);
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
    let asked = measure_calls(&env, &mut client).await?;
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        let ms = asked.value_at_quantile(quantile) as f64 / 1e3;
        report.figure(format!("received to agent asked: {name}"), ms, "ms");
    }
    Ok(())
}

/// Measures the time from receipt to the call of the agent, as recorded for each delivery.
async fn measure_calls(
    env: &TestEnv,
    client: &mut crate::client::Client,
) -> anyhow::Result<Histogram<u64>> {
    for sql in [
        "delete from deliveries",
        "delete from delivery_lanes",
        "update agents set paused_at = null",
    ] {
        sqlx::query(sql).execute(&env.pool).await?;
    }
    client.open(RATE, Duration::ZERO, SLICE).await?;
    env.wait_until_processed(TIMEOUT).await?;
    let waits: Vec<f64> = sqlx::query_scalar(
        "select extract(epoch from first_attempt_at - received_at)::float8 from delivery_log",
    )
    .fetch_all(&env.pool)
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

/// Measures the product: the times to the commit and to the answer of ingest.
async fn product(
    env: &TestEnv,
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
        .fetch_all(&env.pool)
        .await
        .ok()?;
        (rows.len() as u64 >= schedule.count).then_some(rows)
    };
    let rows = try_eventually("all messages of a slice are committed", TIMEOUT, rows).await?;
    let mut latency = crate::client::histogram();
    for row in rows {
        let number =
            number_of(row.try_get("dedup_key")?).context("a dedup key of the benchmark")?;
        let Some(due) = schedule.due(number) else { continue };
        let due = wall.duration_since(UNIX_EPOCH)? + (due - steady);
        let took = row.try_get::<f64, _>("at")? - due.as_secs_f64();
        latency.saturating_record((took.max(0.0) * 1e6) as u64);
    }
    ensure!(
        latency.len() == schedule.count,
        "{} of {} messages were measured",
        latency.len(),
        schedule.count
    );
    Ok((latency, sent.latency))
}

/// Measures a publish, its read and a commit, without a wait for the confirmation of the publish.
async fn parts_alone(
    js: &jetstream::Context,
    commits: &Commits,
    round: usize,
) -> anyhow::Result<Histogram<u64>> {
    let stream = js.get_stream(STREAM).await?;
    let next = stream.cached_info().state.last_sequence + 1;
    let name = format!("chain-{round}");
    let mut reader = StreamReader::new(js.clone(), STREAM, SUBJECT.into(), name, next);
    ensure!(
        matches!(reader.next().await, ReaderEvent::Opened(_)),
        "the first event of the reader is not Opened"
    );
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
            if let ReaderEvent::Message(_, message) = reader.next().await {
                break message;
            }
        };
        let id = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id"));
        let number: u64 = id.context("the message has no dedup key")?.as_str().parse()?;
        let due = pace.schedule.due(number).context("a message of this slice")?;
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
