//! Dead letters: webhooks that can't be processed are kept with a reason and delay nothing.

use shared::{
    domain::ConnectionId,
    store::{DeadLetter, FailureFilter},
    stream::{self, Partition},
};
use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};
use tests::{
    eventually::eventually,
    slack::webhook::Webhook,
    test_env::{App, SMALL, TIMEOUT, TestEnv, actor, agent_id},
};

/// Maximum time of several restarts of a worker, each of which waits for the previous lease.
const RESTARTS_TIMEOUT: Duration = Duration::from_secs(90);
/// Longer than two commits take to time out.
const LOCK_TIME: Duration = Duration::from_secs(13);
/// Number of other messages in the same partition.
const OTHER_MESSAGES: usize = 12;

/// Sends messages of one channel that are committed together, one of them `bad`, from `user`.
/// Returns the webhook of that message and the others.
async fn send_batch(env: &TestEnv, app: &App, bad: &str, user: &str) -> (Webhook, Vec<Webhook>) {
    eventually("the partition is owned", TIMEOUT, async || env.owner_of(app, "C1").await.ok())
        .await;
    let mut blocked = env.pool.begin().await.expect("a transaction");
    sqlx::query("select from partition_cursors for update")
        .execute(&mut *blocked)
        .await
        .expect("no commit goes through");
    let mut others = Vec::new();
    let poison = Webhook::message(&env.slack, app, "C1", user, bad);
    for n in 0..OTHER_MESSAGES {
        if n == OTHER_MESSAGES / 2 {
            assert_eq!(env.send(app, &poison).await.expect("an answer").status, 200);
        }
        let other = Webhook::message(&env.slack, app, "C1", "U1", &format!("other {n}"));
        assert_eq!(env.send(app, &other).await.expect("an answer").status, 200);
        others.push(other);
    }
    blocked.rollback().await.expect("commits go on");
    (poison, others)
}

/// Checks that the bad webhook is the only dead letter, with its bytes, and that all others were
/// processed.
async fn assert_one_dead_letter(env: &TestEnv, bad: &Webhook, others: &[Webhook]) -> DeadLetter {
    for other in others {
        let handled = async || env.find_outcome(&other.dedup_key).await;
        let handled =
            eventually(&format!("{} is processed", other.what), RESTARTS_TIMEOUT, handled).await;
        assert_eq!(handled.outcome, "completed", "{}", other.what);
    }
    let mut dead = env.dead_letters().await.expect("a list");
    assert_eq!(dead.len(), 1, "{dead:?}");
    let dead = dead.remove(0);
    assert_eq!(dead.dedup_key.as_deref(), Some(bad.dedup_key.as_str()));
    assert_eq!(dead.body, bad.body, "the bytes are stored");
    dead
}

/// Messages of the stream that are no envelopes become dead letters with their bytes, and later
/// webhooks are processed.
#[tokio::test]
async fn keeps_undecodable_envelope() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let js = async_nats::jetstream::new(env.client().clone());
    let subject = stream::subject(Partition::of(app.connection, Some("C1")), app.connection);
    js.publish(subject.clone(), "no envelope".into()).await.expect("sent").await.expect("stored");
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Tidegate-Schema", "1");
    for (key, body) in [("half", "half an envelope"), ("a\0key", "a key that Postgres rejects")] {
        headers.insert("Nats-Msg-Id", key);
        let sent = js.publish_with_headers(subject.clone(), headers.clone(), body.into()).await;
        sent.expect("sent").await.expect("stored");
    }

    let webhook = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", "help");
    env.send(&app, &webhook).await.expect("an answer");
    assert_eq!(
        env.wait_for_outcome(&webhook.dedup_key).await.outcome,
        "command",
        "later webhooks are processed"
    );
    let dead = env.dead_letters().await.expect("a list");
    let found: Vec<_> =
        dead.iter().map(|one| (one.sequence, one.reason.as_str(), one.body.as_slice())).collect();
    assert_eq!(
        found,
        [
            (3, "undecodable envelope: unknown kind", &b"a key that Postgres rejects"[..]),
            (2, "undecodable envelope: unknown kind", b"half an envelope"),
            (1, "undecodable envelope: no headers", b"no envelope"),
        ]
    );
    let printed = env.tidegate(&["dead-letters", "list"]).expect("printed");
    assert!(
        printed.contains("envelope: no headers") && printed.contains(&app.connection.to_string()),
        "{printed}"
    );
}

/// Signed bodies that are no webhook of Slack become dead letters.
#[tokio::test]
async fn keeps_unparsable_webhook() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    for body in ["{\"type\":\"surprise\"}", "[1]", "not json"] {
        let mut webhook = Webhook::url_verification(&app, "");
        webhook.body = body.into();
        assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200, "{body}");
    }
    let dead = eventually("all three are dead letters", TIMEOUT, async || {
        let dead = env.dead_letters().await.ok()?;
        (dead.len() == 3).then_some(dead)
    })
    .await;
    assert!(dead.iter().all(|one| one.reason == "signed by Slack, but not understood"), "{dead:?}");
}

/// A dead letter that can't be decrypted is listed and shown, and does not stop the redrive of
/// others.
#[tokio::test]
async fn lists_undecryptable_row() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    for n in 0..3 {
        let mut webhook = Webhook::url_verification(&app, "");
        webhook.body = format!("[{n}]").into();
        assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200);
    }
    let dead = eventually("all three are dead letters", TIMEOUT, async || {
        let dead = env.dead_letters().await.ok()?;
        (dead.len() == 3).then_some(dead)
    })
    .await;
    let damaged = dead.iter().map(|one| one.id).min().expect("three");
    let damage =
        sqlx::query("update dead_letters set payload = 'nobody sealed this' where id = $1");
    damage.bind(damaged).execute(&env.pool).await.expect("damaged");

    let listed = env.tidegate(&["dead-letters", "list"]).expect("printed");
    assert_eq!(listed.matches("not understood").count(), 3, "{listed}");
    let shown = env.tidegate(&["dead-letters", "show", &damaged.to_string()]).expect("printed");
    assert!(shown.contains("failed to decrypt"), "{shown}");

    let tries = |id: i64| dead.iter().find(|one| one.id == id).map_or(0, |one| one.attempts);
    let filter = FailureFilter::default();
    let asked = env.store.redrive_dead_letters(&actor(), &filter).await.expect("asked");
    assert_eq!(asked.len(), 3);
    let after = eventually("each is attempted", TIMEOUT, async || {
        let after = env.dead_letters().await.ok()?;
        after.iter().all(|one| one.redrive_at.is_none()).then_some(after)
    })
    .await;
    for one in &after {
        assert_eq!(one.attempts, tries(one.id) + 1, "{one:?}");
        let unopened = one.last_error.contains("the payload cannot be decrypted");
        assert_eq!(unopened, one.id == damaged, "{one:?}");
    }
}

/// A connection whose row can't be read, as one that a newer release wrote, makes only its own
/// webhooks dead letters.
#[tokio::test]
async fn isolates_unreadable_connection() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let connect =
        async |id| env.connect_as(|new| (new.id, new.agent) = (id, Some(agent_id()))).await;
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
            .execute(&env.pool)
            .await
            .expect("changed")
    };
    set(r#"{"surfaces": ["hologram"]}"#).await;
    let unread = Webhook::message(&env.slack, &newer, "D1", "U1", "hello");
    env.send(&newer, &unread).await.expect("an answer");
    let read = Webhook::message(&env.slack, &other, "D1", "U1", "hello");
    env.send(&other, &read).await.expect("an answer");
    assert_eq!(env.wait_for_outcome(&read.dedup_key).await.outcome, "completed");
    let dead = env.dead_letters().await.expect("a list");
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0].reason, "the connection is unreadable");
    assert!(dead[0].last_error.contains("connections.settings"), "{}", dead[0].last_error);
    set("{}").await;
    env.tidegate(&["dead-letters", "redrive", &dead[0].id.to_string()]).expect("redriven");
    assert_eq!(env.wait_for_outcome(&unread.dedup_key).await.outcome, "completed");
}

/// A webhook whose effects Postgres rejects is found by halving its batch, and is the only dead
/// letter of it.
#[tokio::test]
async fn isolates_rejected_webhook() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    sqlx::query("alter table deliveries add check (user_id <> 'UREFUSED')")
        .execute(&env.pool)
        .await
        .expect("a constraint");
    let (bad, others) = send_batch(&env, &app, "refused", "UREFUSED").await;
    let dead = assert_one_dead_letter(&env, &bad, &others).await;
    assert_eq!(dead.reason, "Postgres rejects the effects");
    assert!(dead.last_error.contains("violates check constraint"), "{}", dead.last_error);
    let refused = env.workers[0].metric("tidegate_worker_batches_refused_total").await;
    assert!(refused.expect("metrics") >= 3.0, "it was found by halving the batch");
}

/// Commits that fail while another session locks their table, as in a migration, are repeated, and
/// no webhook is given up.
#[tokio::test]
async fn waits_for_locked_table() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    eventually("the partition is owned", TIMEOUT, async || env.owner_of(&app, "C1").await.ok())
        .await;
    let mut locked = env.pool.begin().await.expect("a transaction");
    sqlx::query("lock table deliveries in share mode").execute(&mut *locked).await.expect("a lock");
    let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
    assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200);
    tokio::time::sleep(LOCK_TIME).await;
    locked.rollback().await.expect("it is free");
    assert_eq!(env.wait_for_outcome(&webhook.dedup_key).await.outcome, "completed");
    assert_eq!(env.dead_letters().await.expect("a list").len(), 0);
}

/// Starts an environment whose worker panics or exits when a message asks for it.
async fn start_faulty_worker() -> (TestEnv, App) {
    let mut env = TestEnv::without_processes(SMALL).await.expect("servers");
    env.start_ingest().await.expect("an ingest");
    env.start_worker_of(Path::new(env!("CARGO_BIN_EXE_faulty_worker"))).expect("a worker");
    let app = env.connect().await.expect("a connection");
    (env, app)
}

/// A webhook whose decision panics is the only dead letter of its batch, and the process continues.
#[tokio::test]
async fn isolates_panicking_decision() {
    let (env, app) = start_faulty_worker().await;
    let (bad, others) = send_batch(&env, &app, "panic when it is decided", "U1").await;
    let dead = assert_one_dead_letter(&env, &bad, &others).await;
    assert_eq!(dead.reason, "the decision panicked");
    assert!(env.workers[0].process.is_running(), "the process has ended");
}

/// A webhook that ends the process is the only dead letter of its batch after at most five
/// restarts, and again after a redrive.
#[tokio::test]
async fn isolates_crashing_webhook() {
    let (env, app) = start_faulty_worker().await;
    let (worker, ends) = (&env.workers[0].process, AtomicUsize::new(0));
    let kept_running = || {
        if !worker.is_running() {
            ends.fetch_add(1, Relaxed);
            worker.restart().expect("it starts again");
        }
    };
    let (bad, others) = send_batch(&env, &app, "end when it is decided", "U1").await;
    eventually("the webhook is a dead letter", RESTARTS_TIMEOUT, async || {
        kept_running();
        (!env.dead_letters().await.ok()?.is_empty()).then_some(())
    })
    .await;
    let dead = assert_one_dead_letter(&env, &bad, &others).await;
    assert_eq!(dead.reason, "the process ended during the decision");
    assert!(worker.is_running());
    // Up to three times with its batch, then twice alone.
    let until_dead = ends.load(Relaxed);
    assert!(until_dead <= 5, "the process ended {until_dead} times");

    // The same after a redrive.
    let mark = "update dead_letters set redrive_at = now()";
    sqlx::query(mark).execute(&env.pool).await.expect("what redrive does");
    eventually("the redrive is given up", RESTARTS_TIMEOUT, async || {
        kept_running();
        let dead = env.dead_letters().await.ok()?.pop()?;
        let reason = "the process ended during the decision";
        (dead.redrive_at.is_none() && dead.last_error == reason).then_some(())
    })
    .await;
    let redriving = ends.load(Relaxed) - until_dead;
    assert_eq!(redriving, 2, "the process ended {redriving} times");
}
