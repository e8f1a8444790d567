//! Fencing: a worker without a partition's lease changes nothing in it.

use shared::{
    domain::{ConnectionId, Destination, HeaderToken, MediaType, OutgoingMessage, WebhookKind},
    store::{
        BatchCommit, ClaimRequest, ClaimedDelivery, CommitOutcome, DecidedWebhook, Decision,
        Effects, FencingToken, FinishedDelivery, FinishedOutcome, LastMessage, Lease, NewDelivery,
        NewGeneration, NewRun, Priority, ProcessedAs, RunPart, RunState, RunWrite, WebhookIds,
    },
    stream::{Conversation, DedupKey, Envelope, Lane},
};
use std::time::Duration;
use tests::{
    eventually::eventually,
    test_env::{Size, TIMEOUT, TestEnv},
};
use time::OffsetDateTime;

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };
const SHORT_TTL: Duration = Duration::from_millis(1);

/// Leases a partition to `first` for a moment and then to `second`. Returns both leases.
async fn take_over(env: &TestEnv) -> (Lease, Lease) {
    let first = env.store.claim_partitions("first", 1, &[], SHORT_TTL).await.expect("a claim");
    let first = first.into_iter().next().expect("a lease");
    let second = eventually("the lease has run out", TIMEOUT, async || {
        let minute = Duration::from_secs(60);
        let claimed = env.store.claim_partitions("second", 64, &[], minute).await.ok()?;
        claimed.into_iter().find(|lease| lease.token.partition == first.token.partition)
    })
    .await;
    assert_eq!(second.token.epoch, first.token.epoch + 1);
    (first, second)
}

/// Returns a webhook of the lease's partition with a delivery and an outbox message.
fn webhook(lease: &Lease, sequence: u64, event: &str) -> (i32, DecidedWebhook) {
    let connection = format!("{:032x}", 7).parse().expect("an id");
    webhook_of(connection, lease, sequence, event)
}

fn webhook_of(
    connection: ConnectionId,
    lease: &Lease,
    sequence: u64,
    event: &str,
) -> (i32, DecidedWebhook) {
    let to = Destination::ResponseUrl { url: "http://127.0.0.1:1/".into(), fallback: None };
    let effects = Effects {
        delivery: Some(NewDelivery::to_gateway(Priority::Background)),
        messages: vec![OutgoingMessage { to, message: "x".into() }],
        ..Effects::new(ProcessedAs::Delivery)
    };
    let envelope = Envelope {
        connection,
        partition: lease.token.partition,
        kind: WebhookKind::Event,
        lane: Lane::of(connection, Conversation::DirectMessage("D1")),
        dedup_key: DedupKey::event(connection, event),
        received_at_ms: 1_700_000_000_000,
        media: MediaType::Json,
        signature: HeaderToken::new("v0=00").expect("a word"),
        timestamp: HeaderToken::new("1700000000").expect("a word"),
        retry: None,
        traceparent: None,
        reply: None,
        body: "{}".into(),
    };
    let decision = Decision::Apply(Box::new(effects));
    let stored_at = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let ids = WebhookIds::default();
    (19_675, DecidedWebhook { sequence, stored_at, envelope, ids, decision })
}

fn last_message(webhook: &DecidedWebhook) -> LastMessage {
    let key = webhook.envelope.dedup_key.as_str().to_owned();
    LastMessage { sequence: webhook.sequence, key, stored_at: webhook.stored_at }
}

async fn commit(
    env: &TestEnv,
    token: FencingToken,
    from: u64,
    webhooks: &[(i32, DecidedWebhook)],
) -> Result<CommitOutcome, shared::store::StoreError> {
    let last = last_message(&webhooks.last().expect("a webhook").1);
    env.store.commit_batch(&BatchCommit { token, from, last, webhooks }).await
}

/// Counts the rows that commits write, table by table.
async fn count_rows(env: &TestEnv) -> Vec<i64> {
    sqlx::query_scalar(
        "select count(*) from processed_keys union all select count(*) from deliveries
         union all select coalesce(sum(tail), 0)::bigint from delivery_lanes union all select count(*) from outbox
         union all select coalesce(sum(pending), 0)::bigint from outbox_channels
         union all select count(*) from dead_letters",
    )
    .fetch_all(&env.pool)
    .await
    .expect("counts")
}

const NO_ROWS: [i64; 6] = [0; 6];

/// Commits with the token of an earlier epoch change nothing, and those with the current one do.
#[tokio::test]
async fn rejects_old_epoch() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let (first, second) = take_over(&env).await;
    let batch = [webhook(&first, 1, "Ev1")];
    let outcome = commit(&env, first.token, 0, &batch).await.expect("an answer");
    assert_eq!((outcome, &count_rows(&env).await[..]), (CommitOutcome::NotMatched, &NO_ROWS[..]));
    let dead = shared::store::DeadLetter { subject: "x".into(), ..Default::default() };
    let outcome = env
        .store
        .commit_dead_letter(&first.token, 0, &last_message(&batch[0].1), &dead, None)
        .await;
    assert_eq!(outcome.expect("an answer"), CommitOutcome::NotMatched);
    assert_eq!(count_rows(&env).await, NO_ROWS);

    let outcome = commit(&env, second.token, 0, &batch).await.expect("an answer");
    assert_eq!(outcome, CommitOutcome::Committed);
    assert_eq!(count_rows(&env).await, [1, 1, 1, 1, 1, 0]);
    let state = env.store.settled_cursor(first.token.partition).await.expect("a cursor");
    assert_eq!((state.cursor, state.last), (1, Some(last_message(&batch[0].1))));
}

/// A commit from a cursor that has moved, or of an earlier generation, changes nothing.
#[tokio::test]
async fn rejects_other_cursor_or_generation() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let (_, lease) = take_over(&env).await;
    let batch = [webhook(&lease, 1, "Ev1")];
    assert_eq!(commit(&env, lease.token, 0, &batch).await.ok(), Some(CommitOutcome::Committed));
    let before = count_rows(&env).await;
    // A repeat after an unknown result: the cursor has moved.
    let again = [webhook(&lease, 1, "Ev1")];
    let outcome = commit(&env, lease.token, 0, &again).await.expect("an answer");
    assert_eq!((outcome, count_rows(&env).await), (CommitOutcome::NotMatched, before.clone()));
    let new = NewGeneration { created_ns: 5, cursor: 0 };
    assert!(env.store.bump_generation(&lease.token, new).await.expect("an answer"));
    assert!(!env.store.bump_generation(&lease.token, new).await.expect("an answer"), "once");
    let outcome = commit(&env, lease.token, 0, &[webhook(&lease, 2, "Ev2")]).await;
    assert_eq!(outcome.expect("an answer"), CommitOutcome::NotMatched);
    assert_eq!(count_rows(&env).await, before);
}

/// A batch with a webhook that is already processed, or twice in it, commits nothing and reports
/// its contents as the cause.
#[tokio::test]
async fn rejects_batch_with_copy() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let (_, lease) = take_over(&env).await;
    let first = [webhook(&lease, 1, "Ev1")];
    assert_eq!(commit(&env, lease.token, 0, &first).await.ok(), Some(CommitOutcome::Committed));
    let before = count_rows(&env).await;
    for batch in [
        [webhook(&lease, 2, "Ev2"), webhook(&lease, 3, "Ev1")],
        [webhook(&lease, 2, "Ev3"), webhook(&lease, 3, "Ev3")],
    ] {
        let error = commit(&env, lease.token, 1, &batch).await.expect_err("a copy");
        assert!(error.is_content_rejection(), "{error:?}");
        assert_eq!(count_rows(&env).await, before);
    }
    let state = env.store.settled_cursor(lease.token.partition).await.expect("a cursor");
    assert_eq!(state.cursor, 1);
}

/// A worker whose row has expired claims no deliveries and no messages, and is listed as expired.
#[tokio::test]
async fn rejects_expired_worker_row() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    env.store.register_worker("w", "name", SHORT_TTL).await.expect("a row");
    eventually("the worker's row has expired", TIMEOUT, async || {
        let renewed = env.store.renew_worker("w", true, false, Duration::from_secs(60)).await;
        renewed.ok()?.is_none().then_some(())
    })
    .await;
    let (_, lease) = take_over(&env).await;
    env.store.ensure_gateway_slots(4).await.expect("slots");
    let batch = [webhook(&lease, 1, "Ev1")];
    assert_eq!(commit(&env, lease.token, 0, &batch).await.ok(), Some(CommitOutcome::Committed));
    let partitions = [lease.token.partition];
    let request = ClaimRequest {
        organizations: &[],
        other_organizations: 8,
        worker: "w",
        partitions: &partitions,
        after: None,
        priority: Priority::Background,
        limit: 10,
    };
    let claimed = env.store.claim_deliveries(&request).await.expect("an answer");
    assert!(claimed.deliveries.is_empty());
    let minute = Duration::from_secs(60);
    let claimed =
        env.store.claim_outbox_messages("w", &partitions, None, 10, minute, Duration::ZERO).await;
    assert!(claimed.expect("an answer").messages.is_empty());
    assert_eq!(env.store.expired_workers(16).await.expect("a list"), ["w"]);
}

/// A process that lost only its lease withdraws its own mark of a suspect webhook, and no other
/// mark.
#[tokio::test]
async fn withdraws_own_mark_only() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let (_, lease) = take_over(&env).await;
    let (token, partition) = (lease.token, lease.token.partition);
    let mark = async || env.store.suspect_webhook(&token, 7).await.expect("an answer");
    assert_eq!((mark().await, mark().await), (Some(1), Some(2)));
    env.store.withdraw_suspect(partition, 7).await.expect("withdrawn");
    env.store.withdraw_suspect(partition, 8).await.expect("another webhook's");
    assert_eq!(mark().await, Some(2));
    env.store.withdraw_suspect(partition, 7).await.expect("withdrawn");
    env.store.withdraw_suspect(partition, 7).await.expect("withdrawn");
    env.store.withdraw_suspect(partition, 7).await.expect("none is left");
    assert_eq!(mark().await, Some(1));
}

/// A worker with an earlier epoch or generation records no purge: in another stream the same
/// sequences are of other webhooks.
#[tokio::test]
async fn rejects_purge_of_old_epoch() {
    let env = TestEnv::start(SERVERS).await.expect("servers");
    let (first, second) = take_over(&env).await;
    let record = async |token: &FencingToken| {
        env.store.record_removal(token, "slack.in.0.*", 100).await.expect("Postgres")
    };
    assert_eq!(record(&first.token).await, None);
    assert!(record(&second.token).await.is_some());
    let new = NewGeneration { created_ns: 2, cursor: 0 };
    assert!(env.store.bump_generation(&second.token, new).await.expect("Postgres"));
    assert_eq!(record(&second.token).await, None);
}

/// Claims the due delivery for worker `w`.
async fn claim_delivery(env: &TestEnv, lease: &Lease) -> Option<ClaimedDelivery> {
    let request = ClaimRequest {
        organizations: &[],
        other_organizations: 8,
        worker: "w",
        partitions: &[lease.token.partition],
        after: None,
        priority: Priority::Background,
        limit: 10,
    };
    env.store.claim_deliveries(&request).await.expect("an answer").deliveries.pop()
}

/// A repeated write of a run has no further effect. A run ends with its delivery, so that a later
/// one can have its position.
#[tokio::test]
async fn repeats_run_write() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let app = env.connect().await.expect("a connection");
    let (_, lease) = take_over(&env).await;
    env.store.register_worker("w", "name", Duration::from_secs(60)).await.expect("a row");
    env.store.ensure_gateway_slots(4).await.expect("slots");
    let batch = [webhook_of(app.connection, &lease, 1, "Ev1")];
    assert_eq!(commit(&env, lease.token, 0, &batch).await.ok(), Some(CommitOutcome::Committed));
    let delivery = claim_delivery(&env, &lease).await.expect("a delivery");
    let new =
        NewRun { id: "run_1", channel: "C1", thread_ts: "1.1", trigger_ts: "1.1", max_runs: 8 };
    let begun = env.store.begin_run(&delivery, &new).await.expect("an answer");
    assert!(begun.is_some());
    let parts = vec![RunPart { n: 1, begins: true, content: b"a".to_vec() }];
    let write = RunWrite::new(&delivery, RunState { parts: 1, ..RunState::default() }, parts);
    for _ in 0..2 {
        let saved = env.store.save_runs(std::slice::from_ref(&write)).await.expect("an answer");
        assert_eq!(saved, [true]);
    }

    // Releasing a lane in time does not count the attempt, but later attempts look for its run.
    let released = env.store.release_delivery_lanes("w", Some(&[]), 10).await.expect("an answer");
    assert_eq!(released, 1);
    let delivery = claim_delivery(&env, &lease).await.expect("a delivery");
    assert_eq!(delivery.attempts, 2);
    let stored = env.store.stored_run((&delivery).into()).await.expect("an answer").expect("a run");
    assert_eq!(stored.parts, write.parts);

    let outcome = FinishedOutcome::Completed("completed");
    let key = (&delivery).into();
    let finished = FinishedDelivery { delivery, outcome, messages: vec![], traceparent: None };
    assert_eq!(env.store.finish_deliveries(&[&finished]).await.expect("an answer"), [true]);
    assert_eq!(env.store.stored_run(key).await.expect("an answer"), None);
    let parts: i64 = sqlx::query_scalar("select count(*) from run_parts")
        .fetch_one(&env.pool)
        .await
        .expect("a count");
    assert_eq!(parts, 0);
}

/// A reason of a team's own handler may have characters that Postgres does not store.
#[tokio::test]
async fn stores_reason_with_nul() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let app = env.connect().await.expect("a connection");
    let (_, lease) = take_over(&env).await;
    env.store.register_worker("w", "name", Duration::from_secs(60)).await.expect("a row");
    env.store.ensure_gateway_slots(4).await.expect("slots");
    let batch = [webhook_of(app.connection, &lease, 1, "Ev1")];
    assert_eq!(commit(&env, lease.token, 0, &batch).await.ok(), Some(CommitOutcome::Committed));
    let delivery = claim_delivery(&env, &lease).await.expect("a delivery");
    let outcome = FinishedOutcome::DeadLetter { reason: "a\0b".into(), error: "c\0d".into() };
    let finished = FinishedDelivery { delivery, outcome, messages: vec![], traceparent: None };
    assert_eq!(env.store.finish_deliveries(&[&finished]).await.expect("an answer"), [true]);
    let dead = env.dead_letters().await.expect("a list");
    assert_eq!((&*dead[0].reason, &*dead[0].last_error), ("a\u{fffd}b", "c\u{fffd}d"));
}
