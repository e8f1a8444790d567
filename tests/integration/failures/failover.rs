//! Failover: webhooks accepted before a process is killed, frozen or stopped are processed once by
//! others.

use futures_util::TryStreamExt;
use shared::domain::Surface;
use std::time::{Duration, Instant};
use tests::{
    eventually::eventually,
    slack::webhook::Webhook,
    test_env::{LEASE_TTL, PAIR, Role, SMALL, Server, Size, TIMEOUT, TestEnv, agent_id},
};

/// Another worker processes a webhook that was stored for a worker that is killed.
#[tokio::test]
async fn handles_webhook_of_killed_worker() {
    let env = TestEnv::start(PAIR).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let code = env.create_link_code(&app, &[Surface::Channel]).await.expect("a code");
    let webhook = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", &format!("link {code}"));
    let owner = env.owner_of(&app, "C1").await.expect("an owner");
    owner.process.freeze();
    assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200);
    owner.process.kill();
    let reply = env
        .slack
        .wait_for_receipt("the reply to the command", |r| webhook.response_url.ends_with(&r.to))
        .await;
    assert!(reply.text().starts_with("Linked."), "{}", reply.text());
    assert_ne!(env.wait_for_outcome(&webhook.dedup_key).await.worker, owner.id);
}

/// After Postgres is restored from a backup, webhooks committed since are read again, without a
/// later webhook or an expired lease.
#[tokio::test]
async fn rereads_after_postgres_restore() {
    let size = Size { ingests: 1, workers: 1, own_postgres: true };
    let mut env = TestEnv::without_processes(size).await.expect("servers");
    env.set("TIDEGATE_LEASE_TTL", "12s");
    env.start_processes().await.expect("processes");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    env.postgres.save().await.expect("it comes back");
    let webhook = Webhook::message(&env.slack, &app, "D1", "U1", "hello");
    assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200);
    env.wait_for_outcome(&webhook.dedup_key).await;
    env.postgres.restore().await.expect("it comes back");
    env.wait_for_outcome(&webhook.dedup_key).await;
    assert_eq!(env.agent.requests().len(), 2);
}

/// While Postgres rejects commits, as with a full disk, and workers are killed, no webhook is given
/// up and attempts are spaced.
#[tokio::test]
async fn retries_failing_commits() {
    const KILLS: usize = 4;
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let run = async |sql: &'static str| {
        sqlx::raw_sql(sql).execute(&env.pool).await.expect("done");
    };
    run("update partition_cursors set claims = 5;
         create function disk_full() returns trigger language plpgsql as
             $$ begin raise exception 'no space left' using errcode = '53100'; end $$;
         create trigger disk_full before insert on deliveries for each row execute function disk_full()")
        .await;
    let worker = &env.workers[0].process;
    worker.kill();
    let webhook = Webhook::message(&env.slack, &app, "D1", "U1", "hello");
    assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200);
    let refused = || worker.log().matches("commit has an unknown result").count();
    for _ in 0..KILLS {
        let before = refused();
        worker.restart().expect("it starts");
        eventually("the commit is attempted", TIMEOUT, async || (refused() > before).then_some(()))
            .await;
        worker.kill();
    }
    let before = refused();
    worker.restart().expect("it starts");
    eventually("the commit is attempted", TIMEOUT, async || (refused() > before).then_some(()))
        .await;
    let (before, began) = (refused(), Instant::now());
    tokio::time::sleep(Duration::from_secs(3)).await;
    let tries = refused() - before;
    let most = began.elapsed().as_millis() as usize / 250 + 2;
    assert!(tries <= most, "{tries} attempts in {:?}", began.elapsed());
    run("drop trigger disk_full on deliveries").await;
    assert_eq!(env.wait_for_outcome(&webhook.dedup_key).await.outcome, "completed");
}

/// An answer whose recording Postgres cancels at its timeout, as after a freeze, is recorded later
/// without another call of the agent.
#[tokio::test]
async fn records_outcome_after_timeout() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let run = async |sql: &'static str| {
        sqlx::raw_sql(sql).execute(&env.pool).await.expect("done");
    };
    run("create function slow() returns trigger language plpgsql as
             $$ begin perform pg_sleep(60); return new; end $$;
         create trigger slow before insert on outbox for each row execute function slow()")
    .await;
    let webhook = Webhook::message(&env.slack, &app, "D1", "U1", "hello");
    assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200);
    let log = || env.workers[0].process.log();
    eventually("the statement is cancelled", TIMEOUT, async || {
        log().contains("canceling statement due to statement timeout").then_some(())
    })
    .await;
    run("drop trigger slow on outbox").await;
    env.slack.wait_for_receipt("the answer", |receipt| receipt.text() == "I heard: hello").await;
    assert_eq!(env.agent.requests().len(), 1, "{}", log());
}

/// A worker frozen past its lease repeats no reply when it continues, finds out that it lost its
/// partitions, and gets some again.
#[tokio::test]
async fn fences_frozen_worker() {
    let env = TestEnv::start(PAIR).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let owner = env.owner_of(&app, "C1").await.expect("an owner");
    owner.process.freeze();
    let webhook = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", "help");
    env.send(&app, &webhook).await.expect("an answer");
    let handled = env.wait_for_outcome(&webhook.dedup_key).await;
    assert_ne!(handled.worker, owner.id);
    owner.process.thaw();
    eventually("the frozen worker detects the loss", TIMEOUT, async || {
        let log = owner.process.log();
        (log.contains("partition lost") || log.contains("row expired")).then_some(())
    })
    .await;
    env.wait_until_balanced().await.expect("it takes part again");
    let after = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", "help");
    env.send(&app, &after).await.expect("an answer");
    env.slack
        .wait_for_receipt("the reply to the later command", |receipt| {
            after.response_url.ends_with(&receipt.to)
        })
        .await;
    let receipts = env.slack.receipts();
    assert_eq!(
        receipts.iter().filter(|receipt| webhook.response_url.ends_with(&receipt.to)).count(),
        1
    );
}

/// A worker that is stopped releases its partitions and exits with 0, and another worker owns all
/// partitions afterwards.
#[tokio::test]
async fn releases_partitions_on_stop() {
    let env = TestEnv::start(PAIR).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    env.wait_until_balanced().await.expect("each worker owns its share");
    let owner = env.owner_of(&app, "C1").await.expect("an owner");
    let owned = eventually("the worker knows its partitions", TIMEOUT, async || {
        let owned = owner.metric("tidegate_worker_partitions_owned").await.ok()? as usize;
        (owned == 32).then_some(owned)
    })
    .await;
    let releases = || owner.process.log().matches("partition released").count();
    let before = releases();
    owner.process.terminate();
    let status = owner.process.wait(TIMEOUT).await.expect("it ends");
    assert!(status.success(), "{status}\n{}", owner.process.log());
    assert_eq!(releases() - before, owned, "{}", owner.process.log());
    env.wait_until_balanced().await.expect("the other takes all");
    let webhook = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", "help");
    env.send(&app, &webhook).await.expect("an answer");
    assert_ne!(env.wait_for_outcome(&webhook.dedup_key).await.worker, owner.id);
}

/// While NATS is down events get a 503 and commands a notice within 3 s. Afterwards webhooks are
/// accepted and processed.
#[tokio::test]
async fn recovers_from_nats_outage() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    env.nats.kill();
    let event = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
    let answer = env.send(&app, &event).await.expect("an answer");
    assert_eq!(
        (answer.status, &answer.headers["retry-after"]),
        (503, &"1".parse().expect("a value"))
    );
    assert!(answer.took < Duration::from_secs(3), "{:?}", answer.took);
    let command = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", "help");
    let answer = env.send(&app, &command).await.expect("an answer");
    assert_eq!(answer.status, 200, "Slack does not resend a command, so the user gets a notice");
    assert!(
        answer.body.contains("try again") && answer.took < Duration::from_secs(3),
        "{answer:?}"
    );
    env.nats.restart().await.expect("NATS comes back");
    eventually("webhooks are accepted again", TIMEOUT, async || {
        let answer = env.send(&app, &event).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
    assert_eq!(env.wait_for_outcome(&event.dedup_key).await.outcome, "ignored");
}

/// While Postgres is down webhooks are accepted. They are processed once it is back.
#[tokio::test]
async fn recovers_from_postgres_outage() {
    let env =
        TestEnv::start(Size { own_postgres: true, ..SMALL }).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    env.postgres.kill();
    let webhook = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", "help");
    let answer = env.send(&app, &webhook).await.expect("an answer");
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    env.postgres.restart().await.expect("Postgres comes back");
    env.slack
        .wait_for_receipt("the reply to the command", |receipt| {
            webhook.response_url.ends_with(&receipt.to)
        })
        .await;
}

/// Readers of NATS that are deleted are created again, and no webhook is missed.
#[tokio::test]
async fn recreates_deleted_readers() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let js = async_nats::jetstream::new(env.client().clone());
    let stream = js.get_stream(shared::stream::STREAM).await.expect("the stream");
    let readers = async || {
        let names = stream.consumer_names().try_collect::<Vec<String>>().await;
        names.expect("names").into_iter().filter(|name| name.starts_with('p')).collect::<Vec<_>>()
    };
    let before = eventually("every partition is read", TIMEOUT, async || {
        let names = readers().await;
        (names.len() == 64).then_some(names)
    })
    .await;
    for name in &before {
        stream.delete_consumer(name).await.expect("it goes");
    }
    for n in 0..8 {
        let user = format!("U{n}");
        let webhook = Webhook::command(&env.slack, &app, "C1", &user, "/lobu", "help");
        env.send(&app, &webhook).await.expect("an answer");
        env.wait_for_outcome(&webhook.dedup_key).await;
    }
    eventually("every partition is read again", TIMEOUT, async || {
        (readers().await.len() == 64).then_some(())
    })
    .await;
}

/// A worker far from Postgres owns all partitions, keeps them, and handles webhooks.
#[tokio::test(flavor = "multi_thread")]
async fn owns_partitions_at_high_latency() {
    const ONE_WAY: Duration = Duration::from_millis(100);
    let mut env = TestEnv::without_processes(SMALL).await.expect("servers");
    env.start_ingest().await.expect("an ingest");
    let link = env.link_through_proxy(Role::Worker, Server::Postgres).await.expect("a link");
    link.delay(ONE_WAY);
    env.start_worker().await.expect("a worker");
    env.wait_until_balanced().await.expect("it owns all partitions");
    let epochs = "select sum(epoch)::bigint from partition_cursors";
    let epochs =
        async || -> i64 { sqlx::query_scalar(epochs).fetch_one(&env.pool).await.expect("a sum") };
    // Preparing each statement takes further round trips at first.
    eventually("the worker keeps its partitions", TIMEOUT * 2, async || {
        let before = epochs().await;
        tokio::time::sleep(2 * LEASE_TTL).await;
        (epochs().await == before).then_some(())
    })
    .await;
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    for n in 0..3 {
        let text = format!("message {n}");
        let webhook = Webhook::message(&env.slack, &app, "C1", "U1", &text);
        assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200);
        let expected = format!("I heard: {text}");
        env.slack.wait_for_receipt("the answer", |r| r.text() == expected).await;
    }
    env.wait_until_balanced().await.expect("it owns all partitions");
}
