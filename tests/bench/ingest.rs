//! Measurements of ingest beside its baselines.

use crate::{
    baseline::TENANTS,
    client::{Client, Sent, number},
    ingest_fixture::{IngestFixture, Server},
    interleaved::Series,
    machine::cpu,
    report::{Bound::*, Report},
    tenants::{BODY_BYTES, Tenants, Way},
};
use async_nats::HeaderMap;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// Concurrent webhooks of a closed loop.
const IN_FLIGHT: usize = 64;
/// Connections of an open loop, more than the webhooks that wait at half load.
const LINES: usize = 256;
/// Orders of (b), (b′) and ingest in successive rounds, because NATS removes in one slice what was
/// stored in the previous slice.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1], [2, 0, 1], [1, 0, 2]];
/// Quantiles of latencies.
const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)];
/// Time after a purge of the stream in which latencies are not counted, because NATS is still
/// removing messages.
const SETTLING: Duration = Duration::from_millis(250);

/// Measures with one nats-server.
pub async fn alone(report: &mut Report) -> anyhow::Result<()> {
    report.part("ingest R1");
    measure(report, &IngestFixture::start(1).await?, Rounds { closed: 12, open: 12, slice_ms: 500 })
        .await
}

/// Measures with three nats-servers on this machine.
pub async fn replicated(report: &mut Report) -> anyhow::Result<()> {
    report.part("ingest R3");
    measure(report, &IngestFixture::start(3).await?, Rounds { closed: 6, open: 6, slice_ms: 600 })
        .await
}

struct Rounds {
    closed: usize,
    open: usize,
    slice_ms: u64,
}

/// Results of one of the compared servers.
#[derive(Default)]
struct Runner {
    rate: Series,
    /// Microseconds of CPU per webhook of the server, of NATS and of the client.
    server: Series,
    nats: Series,
    client: Series,
}

async fn measure(
    report: &mut Report,
    fixture: &IngestFixture,
    rounds: Rounds,
) -> anyhow::Result<()> {
    let tenants = Arc::new(Tenants::random(TENANTS)?);
    let secret = &tenants.all()[0].secret;
    fixture.provision(&tenants).await?;
    let (ingest, _) = fixture.ingest("ingest").await?;
    let bare = fixture.baseline("bare", secret).await?;
    let least = fixture.baseline("publish", secret).await?;
    let enveloped = fixture.baseline("enveloped", secret).await?;
    let slice = Duration::from_millis(rounds.slice_ms);
    let mut to_bare = bare.client(&tenants, Way::Root, IN_FLIGHT);
    let servers = [(&least, Way::Root), (&enveloped, Way::Root), (&ingest, Way::Connection)];
    let mut clients = servers.map(|(server, way)| server.client(&tenants, way, IN_FLIGHT));

    let (mut a, mut c) = <(Runner, Series)>::default();
    let mut runners = <[Runner; 3]>::default();
    for round in 0..=rounds.closed {
        // The first round is a warm-up and is not counted.
        let counted = round > 0;
        let published = publishes(fixture, &tenants, slice).await?;
        if counted {
            c.push(published);
        }
        // (a) does not use NATS, which meanwhile removes what (c) stored, twice as much as the
        // others.
        closed(fixture, &mut to_bare, &bare, slice, counted.then_some(&mut a)).await?;
        for n in ORDERS[round % ORDERS.len()] {
            let into = counted.then_some(&mut runners[n]);
            closed(fixture, &mut clients[n], servers[n].0, slice, into).await?;
        }
    }
    let [b, same, ours] = runners;
    let sum = a.rate.with(&c, |a, c| 1.0 / (1.0 / a + 1.0 / c));
    let to_b = ours.rate.to(&b.rate);
    report.ratio_target("accepted/s at 64 in flight, to (b)", to_b, AtLeast(0.95));
    report.target("accepted/s at 64 in flight, to (b): the aim", to_b, AtLeast(1.15), "×");
    let to_sum = ours.rate.to(&sum);
    report.ratio_target("accepted/s, to (a) and (c) one after the other", to_sum, AtLeast(0.95));
    report.ratio(
        "accepted/s of (b′), which stores what ingest stores, to (b)",
        same.rate.to(&b.rate),
    );
    report.ratio("accepted/s at 64 in flight, to (b′)", ours.rate.to(&same.rate));
    for (who, runner) in [("ingest", &ours), ("(b′)", &same)] {
        let cpu = |whose: &str| format!("CPU per webhook of {whose}, {who} to (b)");
        report.ratio(cpu("the server"), runner.server.to(&b.server));
        report.ratio(cpu("NATS"), runner.nats.to(&b.nats));
    }
    let all = [
        ("(a) bare", &a),
        ("(b) least", &b),
        ("(b′) least, storing the same", &same),
        ("ingest", &ours),
    ];
    for (who, runner) in all {
        report.figure(format!("{who}: accepted"), runner.rate.median(), "/s");
    }
    report.figure("(c) publishes without HTTP", c.median(), "/s");
    for (who, runner) in all {
        report.figure(format!("{who}: CPU per webhook"), runner.server.median(), "µs");
        report.figure(format!("{who}: CPU of NATS per webhook"), runner.nats.median(), "µs");
        report.figure(
            format!("{who}: CPU of the client per webhook"),
            runner.client.median(),
            "µs",
        );
    }

    let half = ours.rate.median().min(b.rate.median()) / 2.0;
    let mut clients = servers.map(|(server, way)| server.client(&tenants, way, LINES));
    // Quantiles of each slice, because those of all slices together would be those of the slowest
    // slice.
    let mut acks = <[[Series; QUANTILES.len()]; 4]>::default();
    for round in 0..=rounds.open {
        // (b) runs twice, at alternating ends. Its ratio to itself shows the error of a ratio.
        let mut order = ORDERS[round % ORDERS.len()].map(|n| (n, n)).to_vec();
        order.insert(if round % 2 == 0 { 3 } else { 0 }, (3, 0));
        for (n, which) in order {
            let (sent, _) = clients[which].open(half, SETTLING, slice * 2).await?;
            fixture.clear().await?;
            for (series, (_, quantile)) in acks[n].iter_mut().zip(QUANTILES) {
                if round > 0 {
                    series.push(sent.latency.value_at_quantile(quantile) as f64 / 1e3);
                }
            }
        }
    }
    let [b, same, ours, again] = &acks;
    report.ratio_target("ack p99 at half load, to (b)", ours[2].to(&b[2]), AtMost(1.5));
    report.ratio("ack p50 at half load, to (b)", ours[0].to(&b[0]));
    for (who, acks) in [("(b′)", same), ("(b) once more", again)] {
        report.ratio(format!("ack p99 at half load, {who} to (b)"), acks[2].to(&b[2]));
        report.ratio(format!("ack p50 at half load, {who} to (b)"), acks[0].to(&b[0]));
    }
    report.figure("half load", half, "/s");
    for (who, acks) in [("(b) least", b), ("(b′)", same), ("ingest", ours)] {
        for (series, (name, _)) in acks.iter().zip(QUANTILES) {
            report.figure(format!("{who}: ack {name} at half load"), series.median(), "ms");
        }
    }
    Ok(())
}

async fn closed(
    fixture: &IngestFixture,
    client: &mut Client,
    server: &Server,
    slice: Duration,
    into: Option<&mut Runner>,
) -> anyhow::Result<Sent> {
    let (server, ourselves) = (server.process.pid(), std::process::id());
    let before = (cpu(server), fixture.nats_cpu(), cpu(ourselves));
    let sent = client.closed(slice).await?;
    let after = (cpu(server), fixture.nats_cpu(), cpu(ourselves));
    fixture.clear().await?;
    if let Some(runner) = into {
        let each = |spent: Duration| spent.as_secs_f64() * 1e6 / sent.accepted as f64;
        runner.rate.push(sent.rate());
        runner.server.push(each(after.0 - before.0));
        runner.nats.push(each(after.1 - before.1));
        runner.client.push(each(after.2 - before.2));
    }
    Ok(sent)
}

/// Returns the rate per second of (c): awaited publishes of the same bytes without HTTP, with the
/// same concurrency.
async fn publishes(
    fixture: &IngestFixture,
    tenants: &Arc<Tenants>,
    slice: Duration,
) -> anyhow::Result<f64> {
    let (began, until) = (Instant::now(), Instant::now() + slice);
    let js = async_nats::jetstream::new(fixture.client().clone());
    let mut tasks = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (js, tenants) = (js.clone(), Arc::clone(tenants));
        tasks.spawn(async move {
            let (mut done, mut body) = (0u64, Vec::new());
            let bytes = tenants.envelope(0, BODY_BYTES).body;
            while Instant::now() < until {
                // A new buffer each time, as for a request.
                body.clear();
                body.extend_from_slice(&bytes);
                let mut with = HeaderMap::new();
                with.insert("Nats-Msg-Id", format!("c{:x}", number()));
                let body = body.clone().into();
                js.publish_with_headers("slack.in.0.baseline", with, body).await?.await?;
                done += 1;
            }
            anyhow::Ok(done)
        });
    }
    let mut done = 0;
    while let Some(ended) = tasks.join_next().await {
        done += ended??;
    }
    let rate = done as f64 / began.elapsed().as_secs_f64();
    fixture.clear().await?;
    Ok(rate)
}

/// Measures the rate with many connections, and the startup of an ingest with so many connections.
pub async fn connections(report: &mut Report) -> anyhow::Result<()> {
    report.part("connections");
    const SIZES: [usize; 3] = [10, 10_000, 100_000];
    let slice = Duration::from_millis(500);
    let mut fixtures = Vec::new();
    for size in SIZES {
        let fixture = IngestFixture::start(1).await?;
        let tenants = Arc::new(Tenants::random(size)?);
        fixture.provision(&tenants).await?;
        let (ingest, ready) = fixture.ingest("ingest").await?;
        let own = crate::machine::own_memory(ingest.process.pid());
        let resident = ingest.process.resident()?;
        let client = ingest.client(&tenants, Way::Connection, IN_FLIGHT);
        fixtures.push((fixture, ingest, client, Runner::default(), ready, own, resident));
    }
    for round in 0..=10 {
        for (fixture, ingest, client, runner, ..) in &mut fixtures {
            let counted = round > 0;
            closed(fixture, client, ingest, slice, counted.then_some(runner)).await?;
        }
    }
    let ten = &fixtures[0].3;
    for (size, (_, _, _, runner, ..)) in SIZES.iter().zip(&fixtures) {
        report.figure(format!("{size} connections: accepted"), runner.rate.median(), "/s");
        if *size > 10 {
            let name = format!("accepted/s with {size} connections, to 10");
            report.ratio_target(&name, runner.rate.to(&ten.rate), AtLeast(0.95));
            let cpu = |whose: &str| format!("CPU per webhook of {whose} with {size}, to 10");
            report.ratio(cpu("ingest"), runner.server.to(&ten.server));
            report.ratio(cpu("NATS"), runner.nats.to(&ten.nats));
            report.ratio(cpu("the client"), runner.client.to(&ten.client));
        }
    }
    // Startup again, without other load.
    let (fixture, _, _, _, first, own, resident) = fixtures.pop().expect("three");
    drop(fixtures);
    let mut ready = Series::from_iter([first.as_secs_f64()]);
    for n in 2..=3 {
        let (again, took) = fixture.ingest(&format!("ingest-{n}")).await?;
        drop(again);
        ready.push(took.as_secs_f64());
    }
    const MIB: f64 = 1024.0 * 1024.0;
    let (own, resident) = (own as f64 / MIB, resident as f64 / MIB);
    report.figure("cold ingest to ready, the slowest of 3", ready.max(), "s");
    report.target("cold ingest to ready with 100000 connections", ready.median(), AtMost(3.0), "s");
    report.target("its own memory when ready", own, AtMost(64.0), "MiB");
    report.figure("resident memory when ready, the program's file included", resident, "MiB");
    report.figure("own memory per connection", own * MIB / SIZES[2] as f64, "bytes");
    Ok(())
}
