//! Effect of a tenant with a slow agent on another tenant in the same partitions: the time from the
//! due time of a message to the record of its reply, alone and beside the slow tenant, in turns.
//!
//! The slow tenant sends to all partitions, each message in a new thread. Its backlog is deleted
//! after each turn.

use crate::{
    client::{Client, Pace},
    interleaved::Series,
    report::{Bound::*, Report},
    tenants::{Tenants, Way, number_of},
};
use anyhow::Context;
use hdrhistogram::Histogram;
use shared::{
    domain::WebhookKind,
    stream::{Conversation, Envelope},
};
use sqlx::Row;
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tests::{
    counter::CountingAgent,
    eventually::try_eventually,
    provision::new_agent,
    slack::webhook::Webhook,
    test_env::{App, Size, TIMEOUT, TestEnv, agent_id},
};

/// Messages per second of the measured tenant and of the slow tenant.
const RATE: f64 = 50.0;
const RATE_OF_SLOW: f64 = 50.0;
/// Waiting messages of the slow tenant when a turn begins.
const WAITING: usize = 600;
/// Answer time of the slow agent.
const AGENT_TAKES: Duration = Duration::from_secs(15);
const SLICE: Duration = Duration::from_secs(6);
const ROUNDS: usize = 5;
/// Connections of the measured tenant.
const APPS: usize = 10;

/// Measures a tenant alone, and beside a tenant with a slow agent.
pub async fn beside_slow_agent(report: &mut Report) -> anyhow::Result<()> {
    report.part("isolation");
    let size = Size { ingests: 0, workers: 0, own_postgres: true };
    let mut env = TestEnv::with_rare_sync(size).await?;
    env.start_ingest().await?;
    env.start_worker().await?;
    env.wait_until_balanced().await?;
    let mut apps = Vec::new();
    for _ in 0..APPS {
        apps.push(env.connect_as(|new| new.agent = Some(agent_id())).await?);
    }
    let tenants = Tenants::of(&apps);
    let tenants = Arc::new(tenants.with_messages());
    let address = env.ingests[0].path("").trim_start_matches("http://").parse()?;
    let mut client = Client::new(address, &tenants, Way::Connection, 64);
    let slow = Slow::start(&env).await?;

    let (mut quiet, mut beside): ([Series; 2], [Series; 2]) = Default::default();
    for round in 0..=ROUNDS {
        let alone = measure_answers(&env, &mut client).await?;
        env.publish((0..WAITING).map(|n| slow.message(&env, n))).await?;
        let (sent, together) =
            tokio::join!(slow.keep_sending(&env), measure_answers(&env, &mut client));
        sent?;
        let together = together?;
        slow.delete_backlog(&env).await?;
        if round > 0 {
            for (series, latency) in [(&mut quiet, &alone), (&mut beside, &together)] {
                series[0].push(latency.value_at_quantile(0.5) as f64 / 1e3);
                series[1].push(latency.value_at_quantile(0.99) as f64 / 1e3);
            }
        }
    }
    let bound = quiet[1].median() * 2.0 + 50.0;
    let name = "due to answered p99, beside a tenant with a slow agent";
    report.target(name, beside[1].median(), AtMost(bound), "ms");
    report.ratio("due to answered p99, beside a slow agent to quiet", beside[1].to(&quiet[1]));
    for (who, series) in [("quiet", &quiet), ("beside a slow agent", &beside)] {
        report.figure(format!("due to answered, {who}: p50"), series[0].median(), "ms");
        report.figure(format!("due to answered, {who}: p99"), series[1].median(), "ms");
    }
    Ok(())
}

/// Sends for a slice and returns the latencies of the replies.
async fn measure_answers(env: &TestEnv, client: &mut Client) -> anyhow::Result<Histogram<u64>> {
    let (wall, steady) = (SystemTime::now(), Instant::now());
    let (_, schedule) = client.open(RATE, Duration::ZERO, SLICE).await?;
    let rows = async || {
        let rows = sqlx::query(
            "select dedup_key, extract(epoch from at)::float8 as at from outbox_log
              where method = 'chat.postMessage' and created_at > to_timestamp($1)",
        )
        .bind(wall.duration_since(UNIX_EPOCH).ok()?.as_secs_f64() - 0.001)
        .fetch_all(&env.pool)
        .await
        .ok()?;
        let of_slice = |row: &sqlx::postgres::PgRow| {
            let due = schedule.due(number_of(row.try_get("dedup_key").ok()?)?)?;
            Some((due, row.try_get::<f64, _>("at").ok()?))
        };
        let rows: Vec<_> = rows.iter().filter_map(of_slice).collect();
        (rows.len() as u64 >= schedule.count).then_some(rows)
    };
    let mut latency = crate::client::histogram();
    for (due, at) in try_eventually("all messages of a slice are answered", TIMEOUT, rows).await? {
        let due = wall.duration_since(UNIX_EPOCH)? + (due - steady);
        latency.saturating_record(((at - due.as_secs_f64()).max(0.0) * 1e6) as u64);
    }
    Ok(latency)
}

/// The tenant with the slow agent.
struct Slow {
    places: Vec<(App, String)>,
}

impl Slow {
    async fn start(env: &TestEnv) -> anyhow::Result<Self> {
        let places = env.connect_all_partitions().await?;
        let agent = CountingAgent::start().await?;
        agent.set_answer_time(AGENT_TAKES);
        let agent = new_agent(&places[0].0.org, agent_id(), agent.url())?;
        env.store.put_agent(&agent).await?;
        Ok(Self { places })
    }

    fn message(&self, env: &TestEnv, n: usize) -> Envelope {
        let (app, channel) = &self.places[n % self.places.len()];
        let (ts, slack) = (env.slack.ts(), &env.slack);
        let webhook =
            Webhook::unrecorded_message_event(slack, app, "message", channel, "U1", "hello", &ts);
        webhook.envelope(app, channel, Conversation::Thread(channel, &ts), WebhookKind::Event)
    }

    async fn keep_sending(&self, env: &TestEnv) -> anyhow::Result<()> {
        let pace = Pace::start(RATE_OF_SLOW, SLICE);
        while let Some((_, number)) = pace.next().await {
            env.publish([self.message(env, number as usize)]).await?;
        }
        Ok(())
    }

    /// Deletes the waiting messages and waits for the running ones.
    async fn delete_backlog(&self, env: &TestEnv) -> anyhow::Result<()> {
        let connections: Vec<String> =
            self.places.iter().map(|(app, _)| app.connection.to_string()).collect();
        for sql in [
            "delete from deliveries where connection_id = any ($1)",
            "delete from delivery_lanes where connection_id = any ($1)",
        ] {
            sqlx::query(sql).bind(&connections).execute(&env.pool).await.context(sql)?;
        }
        let free = async || {
            let taken = "select count(*) from agent_slots where connection_id = any ($1)";
            let taken = sqlx::query_scalar::<_, i64>(taken).bind(&connections);
            (taken.fetch_one(&env.pool).await.ok()? == 0).then_some(())
        };
        try_eventually("the slow agent's slots are free", AGENT_TAKES + TIMEOUT, free).await
    }
}
