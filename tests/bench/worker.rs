//! Measurements of workers: events without effects, messages and link commands, beside the commit
//! statement.

use crate::{
    client::number,
    interleaved::Series,
    machine::cpu,
    report::{Bound::*, Report},
    tenants::BODY_BYTES,
    worker_fixture::{Progress, WorkerFixture},
};
use anyhow::ensure;
use futures_util::{StreamExt, TryStreamExt, stream};
use shared::{
    domain::{Surface, WebhookKind},
    stream::{Conversation, ReaderEvent, STREAM, StreamReader},
};
use std::time::{Duration, Instant};
use tests::slack::webhook::Webhook;

/// Duration of a slice of the baselines.
const SLICE: Duration = Duration::from_millis(700);
/// Intended duration of a slice of the worker, in seconds.
const SLICE_OF_WORKER: f64 = 1.5;
/// Minimum number of messages of a slice of the worker. A shorter slice would measure how workers
/// resume after their pause.
const MIN_SLICE: usize = 1_000;
const ROUNDS: usize = 3;

/// Measures one, two and four workers.
pub async fn throughput(report: &mut Report) -> anyhow::Result<()> {
    report.part("worker");
    let mut fixture = WorkerFixture::start().await?;
    // Longer than the time to fill the stream, in which workers are frozen.
    fixture.env.set("TIDEGATE_LEASE_TTL", "20s");
    let mut shares = Vec::new();
    for workers in [1, 2, 4] {
        fixture.workers(workers).await?;
        shares.push(measure_workers(report, &fixture, workers).await?);
    }
    report.ratio("no-op events, 2 workers to 1", shares[1] / shares[0]);
    report.ratio("no-op events, 4 workers to 1", shares[2] / shares[0]);
    let (bare, product) = reading(&fixture).await?;
    report.figure("(d) ack-less reading", bare, "/s");
    report.figure("the product's own reader", product, "/s");
    report.ratio("the product's reader, to (d)", product / bare);
    Ok(())
}

/// Returns the ratio of events without effects to single commits of (e).
async fn measure_workers(
    report: &mut Report,
    fixture: &WorkerFixture,
    workers: usize,
) -> anyhow::Result<f64> {
    let (mut singly, mut together) = (Series::default(), Series::default());
    let (mut events, mut messages, mut links) =
        (Series::default(), Series::default(), Series::default());
    let mut spent = Series::default();
    let warm = events_of(fixture, 2_000).await?.rate();
    let mut sizes = [warm * SLICE_OF_WORKER, MIN_SLICE as f64, MIN_SLICE as f64];
    for _ in 0..ROUNDS {
        singly.push(fixture.commits.singly(SLICE).await?);
        let before = all_cpu(fixture);
        let count = (sizes[0] as u64).clamp(1_000, 15_000);
        let rate = events_of(fixture, count).await?.rate();
        spent.push((all_cpu(fixture) - before).as_secs_f64() * 1e6 / count as f64);
        events.push(rate);
        together.push(fixture.commits.together(SLICE).await?);
        let rate = messages_of(fixture, (sizes[1] as usize).clamp(MIN_SLICE, 4_000)).await?.rate();
        messages.push(rate);
        let claims = links_of(fixture, (sizes[2] as usize).clamp(MIN_SLICE, 4_000)).await?.rate();
        links.push(claims);
        sizes = [events.median(), rate, claims].map(|rate| rate * SLICE_OF_WORKER);
    }
    let plural = if workers == 1 { "worker" } else { "workers" };
    let name = |what: &str| format!("{workers} {plural}: {what}");
    let to_singly = events.to(&singly);
    report.ratio_target(&name("no-op events, to (e) one by one"), to_singly, AtLeast(3.0));
    report.ratio(name("no-op events, to (e) in batches"), events.to(&together));
    report.ratio(name("messages, to (e) one by one"), messages.to(&singly));
    report.ratio(name("link claims, to (e) one by one"), links.to(&singly));
    report.figure(name("no-op events"), events.median(), "/s");
    report.figure(name("messages, agent and answer included"), messages.median(), "/s");
    report.figure(name("link claims"), links.median(), "/s");
    report.figure(name("(e) one by one"), singly.median(), "/s");
    report.figure(name("(e) in batches"), together.median(), "/s");
    report.figure(name("CPU of workers per no-op event"), spent.median(), "µs");
    Ok(to_singly)
}

fn all_cpu(fixture: &WorkerFixture) -> Duration {
    fixture.env.workers.iter().map(|worker| cpu(worker.process.pid())).sum()
}

async fn events_of(fixture: &WorkerFixture, count: u64) -> anyhow::Result<Progress> {
    let first = fixture.last_sequence().await?;
    let last = fixture.publish_events(count, BODY_BYTES).await?;
    fixture.wait_until_processed(first, last).await
}

/// Measures messages with calls of the agent and replies in Slack, all on this machine.
async fn messages_of(fixture: &WorkerFixture, count: usize) -> anyhow::Result<Progress> {
    let first = fixture.last_sequence().await?;
    let envelopes = (0..count).map(|n| {
        let app = &fixture.apps[n % fixture.apps.len()];
        let channel = format!("C{:08}", number() % 4096);
        let slack = &fixture.env.slack;
        let webhook = Webhook::message(slack, app, &channel, "U00000001", "hello");
        let thread = number().to_string();
        webhook.envelope(app, &channel, Conversation::Thread(&channel, &thread), WebhookKind::Event)
    });
    let last = fixture.publish(envelopes).await?;
    let progress = fixture.wait_until_processed(first, last).await?;
    fixture.wait_until_sent().await?;
    Ok(progress)
}

/// Measures commands that each consume a link code.
async fn links_of(fixture: &WorkerFixture, count: usize) -> anyhow::Result<Progress> {
    let codes: Vec<(usize, String)> = stream::iter(0..count)
        .map(async |n| {
            let app = &fixture.apps[n % fixture.apps.len()];
            anyhow::Ok((n, fixture.env.create_link_code(app, &[Surface::Channel]).await?))
        })
        .buffer_unordered(4)
        .try_collect()
        .await?;
    let first = fixture.last_sequence().await?;
    let envelopes = codes.into_iter().map(|(n, code)| {
        let app = &fixture.apps[n % fixture.apps.len()];
        let (channel, user) = (format!("C{:08}", number()), format!("U{:08}", number()));
        let slack = &fixture.env.slack;
        let text = format!("link {code}");
        let webhook = Webhook::command(slack, app, &channel, &user, "/lobu", &text);
        webhook.envelope(app, &channel, Conversation::Person(&channel, &user), WebhookKind::Command)
    });
    let last = fixture.publish(envelopes).await?;
    let progress = fixture.wait_until_processed(first, last).await?;
    fixture.wait_until_sent().await?;
    let linked: i64 = sqlx::query_scalar(
        "select count(*) from link_codes where consumed_at is not null and created_by = 'operator:test'",
    )
    .fetch_one(&fixture.env.pool)
    .await?;
    ensure!(linked as usize >= count, "{linked} of {count} codes were consumed");
    Ok(progress)
}

/// Returns the rates per second of (d) and of the product's reader, for the messages that this part
/// published.
async fn reading(fixture: &WorkerFixture) -> anyhow::Result<(f64, f64)> {
    use async_nats::jetstream::consumer::{AckPolicy, pull};
    const MOST: u64 = 60_000;
    let stream = fixture.js.get_stream(STREAM).await?;
    let state = &stream.cached_info().state;
    let count = state.messages.min(MOST);
    let (mut bare, mut product) = (Series::default(), Series::default());
    for round in 0..=3 {
        let config = pull::Config {
            ack_policy: AckPolicy::None,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await?;
        let began = Instant::now();
        let mut messages = consumer.stream().max_messages_per_batch(200).messages().await?;
        for _ in 0..count {
            ensure!(messages.next().await.is_some(), "the reader of (d) ended");
        }
        let plain = count as f64 / began.elapsed().as_secs_f64();
        let (js, name) = (fixture.js.clone(), format!("bench-{round}"));
        let filter = "slack.in.*.*".to_owned();
        let began = Instant::now();
        let mut reader = StreamReader::new(js, STREAM, filter, name, state.first_sequence);
        let mut read = 0;
        while read < count {
            read += u64::from(matches!(reader.next().await, ReaderEvent::Message(..)));
        }
        if round > 0 {
            bare.push(plain);
            product.push(count as f64 / began.elapsed().as_secs_f64());
        }
    }
    Ok((bare.median(), product.median()))
}
