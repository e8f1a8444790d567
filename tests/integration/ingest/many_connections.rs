//! Subjects and memory of nats-server, and memory of an ingest, for many connections with webhooks
//! in each of their partitions.
//!
//! With `TIDEGATE_FULL_SIZE` there are 100,000 connections. The figures are printed with
//! `--nocapture`; deploy/CAPACITY.md has those of the full size.

use futures_util::{StreamExt, stream};
use shared::{
    domain::{ConnectionId, HeaderToken, MediaType, WebhookKind},
    secrets::KeyRing,
    stream::{
        Conversation, DEDUP_KEY_HEADER, DedupKey, Envelope, Lane, PARTITIONS,
        PARTITIONS_PER_CONNECTION, Partition, STREAM,
    },
};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tests::{
    directory::{self, NewEntry},
    eventually::eventually,
    size::ci_or_full,
    slack::webhook::Webhook,
    test_env::{App, Size, TestEnv},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };
/// Concurrent publishes.
const AT_ONCE: usize = 1_024;
/// Channels among which a connection finds one for each of its partitions.
const CHANNELS: usize = 64;
/// Maximum memory of an ingest, also of a debug build: a directory of 100,000 connections and a
/// process without load.
const INGEST_BYTES_MAX: u64 = (128 + 48) << 20;
/// Maximum memory of nats-server for a subject and for a connection in the directory.
const SUBJECT_BYTES_MAX: u64 = 1_536;
const ENTRY_BYTES_MAX: u64 = 2_048;
/// Variation of the memory of nats-server, mostly by its garbage collection.
const NATS_NOISE: u64 = 96 << 20;
const FILLED_WITHIN: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

fn app(n: usize) -> anyhow::Result<App> {
    let secret = format!("{:032x}", u128::from_be_bytes(ConnectionId::random()?.to_bytes()));
    Ok(App {
        connection: ConnectionId::random()?,
        org: "acme".parse()?,
        secret,
        token: String::new(),
        app: format!("A{n:08}"),
        team: format!("T{n:08}"),
        bot_user: format!("U{n:08}"),
    })
}

/// Returns channels of which every connection has one in each of its partitions.
fn channels() -> Vec<String> {
    let names = (0..CHANNELS).map(|n| format!("C{n:08}"));
    let mut chosen: Vec<String> = Vec::new();
    for name in names {
        // Two channels are in the same partition for all connections, or differ for nearly all.
        let ids = (0..8).map(|_| ConnectionId::random().expect("randomness"));
        let ids: Vec<ConnectionId> = ids.collect();
        let placed = |channel: &str| {
            let of = |id: &ConnectionId| Partition::of(*id, Some(channel)).number();
            ids.iter().map(of).collect::<Vec<_>>()
        };
        if chosen.iter().all(|other| placed(other) != placed(&name)) {
            chosen.push(name);
        }
    }
    chosen
}

/// Returns an event of about 600 bytes.
fn envelope(id: ConnectionId, partition: Partition, n: usize) -> Envelope {
    Envelope {
        connection: id,
        partition,
        kind: WebhookKind::Event,
        lane: Lane::of(id, Conversation::WithoutChannel("")),
        dedup_key: DedupKey::event(id, &format!("Ev{n:08}")),
        received_at_ms: 1_700_000_000_000,
        media: MediaType::Json,
        signature: HeaderToken::new(format!("v0={:064x}", n)).expect("a word"),
        timestamp: HeaderToken::new("1700000000").expect("a word"),
        retry: None,
        traceparent: None,
        reply: None,
        body: vec![b'x'; 300].into(),
    }
}

/// Stores an event for each connection and partition.
async fn fill(env: &TestEnv, apps: &[App]) -> usize {
    let channels = channels();
    assert_eq!(channels.len(), usize::from(PARTITIONS_PER_CONNECTION), "{channels:?}");
    let js = env.jetstream();
    let mut all = Vec::new();
    for app in apps {
        let of = |channel: &String| Partition::of(app.connection, Some(channel));
        let partitions: BTreeSet<Partition> = channels.iter().map(of).collect();
        all.extend(partitions.into_iter().map(|partition| (app.connection, partition)));
    }
    let count = all.len();
    let store = async |(n, (id, partition))| {
        let envelope: Envelope = envelope(id, partition, n);
        let mut headers = envelope.headers();
        // Without the dedup key: the deduplication window is not measured.
        headers = headers
            .iter()
            .filter(|(name, _)| name.to_string() != DEDUP_KEY_HEADER)
            .flat_map(|(name, values)| values.iter().map(|value| (name.clone(), value.clone())))
            .collect();
        let publish = js.publish_with_headers(envelope.subject(), headers, envelope.body);
        publish.await.expect("sent").await.expect("stored");
    };
    stream::iter(all.into_iter().enumerate())
        .map(store)
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<()>>()
        .await;
    count
}

/// Subjects of the stream and memory of nats-server and ingest stay within a limit for each
/// connection, also after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn bounds_subjects_and_memory() {
    let count = ci_or_full(500, 100_000);
    let mut env = TestEnv::with_rare_sync(SERVERS).await.expect("servers");
    env.change_stream(|stream| stream.max_bytes = 8 << 30).await.expect("room");
    let apps: Vec<App> = (0..count).map(|n| app(n).expect("an app")).collect();
    let nats = |env: &TestEnv| env.nats.process().resident().expect("it runs");
    let per = |bytes: u64, of: usize| bytes / of as u64;
    let empty = nats(&env);
    println!("nats-server, empty: {} MiB", empty / MIB);

    let ring: KeyRing =
        env.setting("TIDEGATE_SIGNING_SECRET_KEYRING").expect("a ring").parse().expect("it");
    let entries = apps.iter().map(|app| NewEntry {
        id: app.connection,
        app: &app.app,
        team: &app.team,
        secret: &app.secret,
    });
    directory::write(&env.jetstream(), &ring, entries).await.expect("a directory");
    let with_directory = nats(&env);
    println!("nats-server with {count} connections in the directory: {} MiB", with_directory / MIB);
    let grown = with_directory.saturating_sub(empty);
    assert!(
        grown < NATS_NOISE + ENTRY_BYTES_MAX * count as u64,
        "nats-server grew by {} MiB",
        grown / MIB
    );

    let began = Instant::now();
    env.start_ingest().await.expect("an ingest");
    let ingest = &env.ingests[0];
    let resident = ingest.process.resident().expect("it runs");
    println!("ingest: ready after {:?}, {} MiB", began.elapsed(), resident / MIB);
    assert!(resident < INGEST_BYTES_MAX, "{} MiB", resident / MIB);

    let began = Instant::now();
    let stored = tokio::time::timeout(FILLED_WITHIN * ci_or_full(1, 5), fill(&env, &apps)).await;
    let stored = stored.expect("the stream is filled in time");
    let info = env.jetstream().get_stream(STREAM).await.expect("it").cached_info().clone();
    let (subjects, messages) = (info.state.subjects_count as usize, info.state.messages as usize);
    println!("{messages} webhooks stored in {:?}, {} MiB", began.elapsed(), info.state.bytes / MIB);
    assert_eq!(
        (subjects, messages),
        (stored, stored),
        "a subject for each connection and partition"
    );
    assert!(subjects <= count * usize::from(PARTITIONS_PER_CONNECTION));
    let full = nats(&env);
    let grown = full.saturating_sub(with_directory);
    println!(
        "nats-server with {subjects} subjects: {} MiB, {} bytes a subject; without the bound on a \
         connection's partitions: {} subjects, {} MiB more",
        full / MIB,
        per(grown, subjects),
        count * usize::from(PARTITIONS),
        per(grown, subjects) * (count * usize::from(PARTITIONS)) as u64 / MIB
    );
    assert!(
        grown < NATS_NOISE + SUBJECT_BYTES_MAX * subjects as u64,
        "nats-server grew by {} MiB for {subjects} subjects",
        grown / MIB
    );

    // The same after a restart, when nats-server reads its subjects from the files.
    let began = Instant::now();
    env.nats.restart().await.expect("it starts");
    eventually("the stream is there", FILLED_WITHIN, async || {
        let stream = env.jetstream().get_stream(STREAM).await.ok()?;
        (stream.cached_info().state.messages as usize == stored).then_some(())
    })
    .await;
    println!("nats-server, restarted in {:?}: {} MiB", began.elapsed(), nats(&env) / MIB);

    let app = &apps[count / 2];
    eventually("a webhook is accepted", FILLED_WITHIN, async || {
        let webhook = Webhook::message(&env.slack, app, "C1", "U1", "hello");
        (env.send(app, &webhook).await.ok()?.status == 200).then_some(())
    })
    .await;
    let peak = env.ingests[0].process.peak_resident().expect("it runs");
    println!("ingest: at most {} MiB", peak / MIB);
    assert!(peak < INGEST_BYTES_MAX, "{} MiB", peak / MIB);
}
