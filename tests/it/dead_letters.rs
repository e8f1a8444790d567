//! What can't be handled is kept, with why, and holds nobody up.

use shared::{
    partition::Partition,
    store::{DeadLetter, DeadLetterFilter},
    stream,
    types::ConnectionId,
};
use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};
use tests::{
    slack::webhook::Webhook,
    until::until,
    world::{App, SMALL, SOON, World, agent_id},
};

/// A worker is started again, and waits for the lease of the one before, several times.
const PATIENTLY: Duration = Duration::from_secs(90);
/// A table is locked for as long as two commits take to time out, and longer.
const LOCKED: Duration = Duration::from_secs(13);
/// Messages beside the one that is given up, in the same partition.
const OTHERS: usize = 12;

/// Sends messages of one channel that are committed together, one of them `bad`, from `user`. Gives that one and the others.
async fn in_one_batch(world: &World, app: &App, bad: &str, user: &str) -> (Webhook, Vec<Webhook>) {
    until("the partition is owned", SOON, async || world.owner_of(app, "C1").await.ok()).await;
    let mut blocked = world.pool.begin().await.expect("a transaction");
    sqlx::query("select from partition_cursors for update")
        .execute(&mut *blocked)
        .await
        .expect("no commit goes through");
    let mut others = Vec::new();
    let poison = Webhook::message(&world.slack, app, "C1", user, bad);
    for n in 0..OTHERS {
        if n == OTHERS / 2 {
            assert_eq!(world.send(app, &poison).await.expect("an answer").status, 200);
        }
        let other = Webhook::message(&world.slack, app, "C1", "U1", &format!("other {n}"));
        assert_eq!(world.send(app, &other).await.expect("an answer").status, 200);
        others.push(other);
    }
    blocked.rollback().await.expect("commits go on");
    (poison, others)
}

/// The only dead letter is the bad one, with its bytes, and all others were handled.
async fn only_one_is_dead(world: &World, bad: &Webhook, others: &[Webhook]) -> DeadLetter {
    for other in others {
        let handled = async || world.look(&other.dedupe).await;
        let handled = until(&format!("{} is handled", other.what), PATIENTLY, handled).await;
        assert_eq!(handled.outcome, "completed", "{}", other.what);
    }
    let mut dead = world.dead_letters().await.expect("a list");
    assert_eq!(dead.len(), 1, "{dead:?}");
    let dead = dead.remove(0);
    assert_eq!(dead.dedup_key.as_deref(), Some(bad.dedupe.as_str()));
    assert_eq!(dead.body, bad.body, "its bytes are kept");
    dead
}

#[tokio::test]
async fn an_undecodable_envelope_is_dead_with_its_reason_and_stops_nothing() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let js = async_nats::jetstream::new(world.client().clone());
    let subject = stream::subject(Partition::of(app.connection, Some("C1")), app.connection);
    js.publish(subject.clone(), "no envelope".into()).await.expect("sent").await.expect("stored");
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Tidegate-Schema", "1");
    js.publish_with_headers(subject, headers, "half an envelope".into())
        .await
        .expect("sent")
        .await
        .expect("stored");

    let webhook = Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", "help");
    world.send(&app, &webhook).await.expect("an answer");
    assert_eq!(
        world.handled(&webhook.dedupe).await.outcome,
        "command",
        "what is behind them goes on"
    );
    let dead = world.dead_letters().await.expect("a list");
    let found: Vec<_> =
        dead.iter().map(|one| (one.sequence, one.reason.as_str(), one.body.as_slice())).collect();
    assert_eq!(
        found,
        [
            (2, "undecodable envelope: its kind is not one of ours", &b"half an envelope"[..]),
            (1, "undecodable envelope: it has no headers", b"no envelope"),
        ]
    );
    let printed = world.tidegate(&["dead-letters", "list"]).expect("printed");
    assert!(
        printed.contains("it has no headers") && printed.contains(&app.connection.to_string()),
        "{printed}"
    );
}

#[tokio::test]
async fn what_slack_signed_and_nobody_understands_is_stored_and_found_among_the_dead() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    for body in ["{\"type\":\"surprise\"}", "[1]", "not json"] {
        let mut webhook = Webhook::url_verification(&app, "");
        webhook.body = body.into();
        assert_eq!(world.send(&app, &webhook).await.expect("an answer").status, 200, "{body}");
    }
    let dead = until("all three are dead", SOON, async || {
        let dead = world.dead_letters().await.ok()?;
        (dead.len() == 3).then_some(dead)
    })
    .await;
    assert!(dead.iter().all(|one| one.reason == "signed by Slack, but not understood"), "{dead:?}");
}

#[tokio::test]
async fn one_whose_bytes_can_not_be_opened_is_listed_and_holds_up_no_other() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    for n in 0..3 {
        let mut webhook = Webhook::url_verification(&app, "");
        webhook.body = format!("[{n}]").into();
        assert_eq!(world.send(&app, &webhook).await.expect("an answer").status, 200);
    }
    let dead = until("all three are dead", SOON, async || {
        let dead = world.dead_letters().await.ok()?;
        (dead.len() == 3).then_some(dead)
    })
    .await;
    let damaged = dead.iter().map(|one| one.id).min().expect("three");
    let damage =
        sqlx::query("update dead_letters set payload = 'nobody sealed this' where id = $1");
    damage.bind(damaged).execute(&world.pool).await.expect("damaged");

    let listed = world.tidegate(&["dead-letters", "list"]).expect("printed");
    assert_eq!(listed.matches("not understood").count(), 3, "{listed}");
    let shown = world.tidegate(&["dead-letters", "show", &damaged.to_string()]).expect("printed");
    assert!(shown.contains("failed to open"), "{shown}");

    let tries = |id: i64| dead.iter().find(|one| one.id == id).map_or(0, |one| one.attempts);
    let asked =
        world.store.redrive_dead_letters(&DeadLetterFilter::default(), 10).await.expect("asked");
    assert_eq!(asked.len(), 3);
    let after = until("each had its try", SOON, async || {
        let after = world.dead_letters().await.ok()?;
        after.iter().all(|one| one.redrive_at.is_none()).then_some(after)
    })
    .await;
    for one in &after {
        assert_eq!(one.attempts, tries(one.id) + 1, "{one:?}");
        let unopened = one.last_error.contains("its bytes cannot be opened");
        assert_eq!(unopened, one.id == damaged, "{one:?}");
    }
}

/// A release that is newer may have written it. It is the webhooks of this connection that wait for a person, and no others.
#[tokio::test]
async fn a_connection_that_can_not_be_read_stops_no_other_of_its_partition() {
    let world = World::start(SMALL).await.expect("a world");
    let connect =
        async |id| world.connect_as(|new| (new.id, new.agent) = (id, Some(agent_id()))).await;
    let random = || ConnectionId::random().expect("randomness");
    let of = |id| Partition::of(id, Some("D1"));
    let id = random();
    let same = std::iter::repeat_with(random).find(|other| of(*other) == of(id)).expect("another");
    let newer = connect(id).await.expect("one");
    let other = connect(same).await.expect("another");
    let set = async |settings: &str| {
        sqlx::query("update connections set settings = $1::jsonb where id = $2")
            .bind(settings)
            .bind(newer.connection.to_string())
            .execute(&world.pool)
            .await
            .expect("changed")
    };
    set(r#"{"surfaces": ["hologram"]}"#).await;
    let unread = Webhook::message(&world.slack, &newer, "D1", "U1", "hello");
    world.send(&newer, &unread).await.expect("an answer");
    let read = Webhook::message(&world.slack, &other, "D1", "U1", "hello");
    world.send(&other, &read).await.expect("an answer");
    assert_eq!(world.handled(&read.dedupe).await.outcome, "completed");
    let dead = world.dead_letters().await.expect("a list");
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0].reason, "its connection is unreadable");
    assert!(dead[0].last_error.contains("connections.settings"), "{}", dead[0].last_error);
    set("{}").await;
    world.tidegate(&["dead-letters", "redrive", &dead[0].id.to_string()]).expect("redriven");
    assert_eq!(world.handled(&unread.dedupe).await.outcome, "completed");
}

/// A constraint that a row of it breaks stands for whatever Postgres refuses.
#[tokio::test]
async fn webhook_that_postgres_refuses_is_given_up_alone() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    sqlx::query("alter table deliveries add check (user_id <> 'UREFUSED')")
        .execute(&world.pool)
        .await
        .expect("a constraint");
    let (bad, others) = in_one_batch(&world, &app, "refused", "UREFUSED").await;
    let dead = only_one_is_dead(&world, &bad, &others).await;
    assert_eq!(dead.reason, "Postgres refuses its effects");
    assert!(dead.last_error.contains("violates check constraint"), "{}", dead.last_error);
    let refused = world.workers[0].metric("tidegate_worker_batches_refused_total").await;
    assert!(refused.expect("metrics") >= 3.0, "it was found by halving the batch");
}

/// Commits fail while somebody else locks their table, as a change of the schema does: that is no webhook's fault.
#[tokio::test]
async fn table_that_is_locked_for_long_kills_no_webhook() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    until("the partition is owned", SOON, async || world.owner_of(&app, "C1").await.ok()).await;
    let mut locked = world.pool.begin().await.expect("a transaction");
    sqlx::query("lock table deliveries in share mode").execute(&mut *locked).await.expect("a lock");
    let webhook = Webhook::message(&world.slack, &app, "C1", "U1", "hello");
    assert_eq!(world.send(&app, &webhook).await.expect("an answer").status, 200);
    tokio::time::sleep(LOCKED).await;
    locked.rollback().await.expect("it is free");
    assert_eq!(world.handled(&webhook.dedupe).await.outcome, "completed");
    assert_eq!(world.dead_letters().await.expect("a list").len(), 0);
}

/// A world whose worker panics, or ends, when a message says so.
async fn unwell() -> (World, App) {
    let mut world = World::without_processes(SMALL).await.expect("servers");
    world.start_ingest().await.expect("an ingest");
    world.start_worker_of(Path::new(env!("CARGO_BIN_EXE_unwell"))).expect("a worker");
    let app = world.connect().await.expect("a connection");
    (world, app)
}

#[tokio::test]
async fn decision_that_panics_is_given_up_alone() {
    let (world, app) = unwell().await;
    let (bad, others) = in_one_batch(&world, &app, "panic when it is decided", "U1").await;
    let dead = only_one_is_dead(&world, &bad, &others).await;
    assert_eq!(dead.reason, "deciding it panicked");
    assert!(world.workers[0].process.is_running(), "the process goes on");
}

/// The worker is started again each time, as by an orchestrator.
#[tokio::test]
async fn webhook_that_ends_the_process_is_given_up_alone() {
    let (world, app) = unwell().await;
    let (worker, ends) = (&world.workers[0].process, AtomicUsize::new(0));
    let kept_running = || {
        if !worker.is_running() {
            ends.fetch_add(1, Relaxed);
            worker.restart().expect("it starts again");
        }
    };
    let (bad, others) = in_one_batch(&world, &app, "end when it is decided", "U1").await;
    until("it is a dead letter", PATIENTLY, async || {
        kept_running();
        (!world.dead_letters().await.ok()?.is_empty()).then_some(())
    })
    .await;
    let dead = only_one_is_dead(&world, &bad, &others).await;
    assert_eq!(dead.reason, "its process ended when it was decided");
    assert!(worker.is_running());
    // Up to three times with the others, then twice alone.
    let until_dead = ends.load(Relaxed);
    assert!(until_dead <= 5, "the process ended {until_dead} times");

    // The same when it is redriven.
    let mark = "update dead_letters set redrive_at = now()";
    sqlx::query(mark).execute(&world.pool).await.expect("what redrive does");
    until("its redrive is given up", PATIENTLY, async || {
        kept_running();
        let dead = world.dead_letters().await.ok()?.pop()?;
        let reason = "its process ended when it was decided";
        (dead.redrive_at.is_none() && dead.last_error == reason).then_some(())
    })
    .await;
    let redriving = ends.load(Relaxed) - until_dead;
    assert_eq!(redriving, 2, "the process ended {redriving} times");
}
