//! A worker that does not own a partition any more changes nothing in it, whatever it believes.

use shared::{
    codec::envelope::{DedupeKey, Envelope, Word},
    codec::slack::Media,
    partition::{Conversation, Lane},
    store::{
        BatchCommit, CommitOutcome, DecidedWebhook, Decision, Effects, FencingToken, LastMessage,
        Lease, NewDelivery, NewGeneration, Priority, ProcessedAs, WebhookIds,
    },
    types::{ConnectionId, Destination, Kind, Outgoing},
};
use std::time::Duration;
use tests::{
    until::until,
    world::{SOON, Size, World},
};
use time::OffsetDateTime;

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };
const BLINK: Duration = Duration::from_millis(1);

/// One partition, leased by `first` for a moment and then by `second`.
async fn taken_over(world: &World) -> (Lease, Lease) {
    let first = world.store.claim_partitions("first", 1, &[], BLINK).await.expect("a claim");
    let first = first.into_iter().next().expect("a lease");
    let second = until("the lease has run out", SOON, async || {
        let minute = Duration::from_secs(60);
        let claimed = world.store.claim_partitions("second", 64, &[], minute).await.ok()?;
        claimed.into_iter().find(|lease| lease.token.partition == first.token.partition)
    })
    .await;
    assert_eq!(second.token.epoch, first.token.epoch + 1);
    (first, second)
}

/// A webhook of the lease's partition that leads to a delivery and a message.
fn webhook(lease: &Lease, sequence: u64, event: &str) -> (i32, DecidedWebhook) {
    let connection: ConnectionId = format!("{:032x}", 7).parse().expect("an id");
    let to = Destination::ResponseUrl { url: "http://127.0.0.1:1/".into(), fallback: None };
    let effects = Effects {
        delivery: Some(NewDelivery::to_gateway(Priority::Background)),
        messages: vec![Outgoing { to, message: "x".into() }],
        ..Effects::new(ProcessedAs::Delivery)
    };
    let envelope = Envelope {
        connection,
        partition: lease.token.partition,
        kind: Kind::Event,
        lane: Lane::of(connection, Conversation::DirectMessage("D1")),
        dedupe: DedupeKey::event(connection, event),
        received_at_ms: 1_700_000_000_000,
        media: Media::Json,
        signature: Word::new("v0=00").expect("a word"),
        timestamp: Word::new("1700000000").expect("a word"),
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

fn last(webhook: &DecidedWebhook) -> LastMessage {
    let key = webhook.envelope.dedupe.as_str().to_owned();
    LastMessage { sequence: webhook.sequence, key, stored_at: webhook.stored_at }
}

async fn commit(
    world: &World,
    token: FencingToken,
    from: u64,
    webhooks: &[(i32, DecidedWebhook)],
) -> Result<CommitOutcome, shared::store::StoreError> {
    let last = last(&webhooks.last().expect("a webhook").1);
    world.store.commit_batch(&BatchCommit { token, from, last, webhooks }).await
}

/// Rows that commits write, table by table.
async fn rows(world: &World) -> Vec<i64> {
    sqlx::query_scalar(
        "select count(*) from processed_keys union all select count(*) from deliveries
         union all select coalesce(sum(tail), 0)::bigint from delivery_lanes union all select count(*) from outbox
         union all select coalesce(sum(pending), 0)::bigint from outbox_channels
         union all select count(*) from dead_letters",
    )
    .fetch_all(&world.pool)
    .await
    .expect("counts")
}

const NOTHING: [i64; 6] = [0; 6];

#[tokio::test]
async fn a_commit_under_an_old_epoch_changes_nothing() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let (first, second) = taken_over(&world).await;
    let batch = [webhook(&first, 1, "Ev1")];
    let outcome = commit(&world, first.token, 0, &batch).await.expect("an answer");
    assert_eq!((outcome, &rows(&world).await[..]), (CommitOutcome::NotMatched, &NOTHING[..]));
    let dead = shared::store::DeadLetter { subject: "x".into(), ..Default::default() };
    let outcome =
        world.store.commit_dead_letter(&first.token, 0, &last(&batch[0].1), &dead, None).await;
    assert_eq!(outcome.expect("an answer"), CommitOutcome::NotMatched);
    assert_eq!(rows(&world).await, NOTHING);

    let outcome = commit(&world, second.token, 0, &batch).await.expect("an answer");
    assert_eq!(outcome, CommitOutcome::Committed);
    assert_eq!(rows(&world).await, [1, 1, 1, 1, 1, 0]);
    let state = world.store.settled_cursor(first.token.partition).await.expect("a cursor");
    assert_eq!((state.cursor, state.last), (1, Some(last(&batch[0].1))));
}

#[tokio::test]
async fn a_commit_from_another_cursor_or_generation_changes_nothing() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let (_, lease) = taken_over(&world).await;
    let batch = [webhook(&lease, 1, "Ev1")];
    assert_eq!(commit(&world, lease.token, 0, &batch).await.ok(), Some(CommitOutcome::Committed));
    let before = rows(&world).await;
    // Sent again after an unknown result: the cursor has moved.
    let again = [webhook(&lease, 1, "Ev1")];
    let outcome = commit(&world, lease.token, 0, &again).await.expect("an answer");
    assert_eq!((outcome, rows(&world).await), (CommitOutcome::NotMatched, before.clone()));
    let new = NewGeneration { created_ns: 5, cursor: 0 };
    assert!(world.store.bump_generation(&lease.token, new).await.expect("an answer"));
    assert!(!world.store.bump_generation(&lease.token, new).await.expect("an answer"), "once");
    let outcome = commit(&world, lease.token, 0, &[webhook(&lease, 2, "Ev2")]).await;
    assert_eq!(outcome.expect("an answer"), CommitOutcome::NotMatched);
    assert_eq!(rows(&world).await, before);
}

/// A copy that was not known when the batch was prepared: nothing of the batch is in force, and it is prepared anew.
#[tokio::test]
async fn a_copy_makes_the_whole_batch_fail() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let (_, lease) = taken_over(&world).await;
    let first = [webhook(&lease, 1, "Ev1")];
    assert_eq!(commit(&world, lease.token, 0, &first).await.ok(), Some(CommitOutcome::Committed));
    let before = rows(&world).await;
    for batch in [
        [webhook(&lease, 2, "Ev2"), webhook(&lease, 3, "Ev1")],
        [webhook(&lease, 2, "Ev3"), webhook(&lease, 3, "Ev3")],
    ] {
        let error = commit(&world, lease.token, 1, &batch).await.expect_err("a copy");
        assert!(error.refuses_contents(), "{error:?}");
        assert_eq!(rows(&world).await, before);
    }
    let state = world.store.settled_cursor(lease.token.partition).await.expect("a cursor");
    assert_eq!(state.cursor, 1);
}

#[tokio::test]
async fn a_worker_row_that_expired_is_never_renewed_and_claims_nothing() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    world.store.register_worker("w", "name", BLINK).await.expect("a row");
    until("it has expired", SOON, async || {
        let renewed = world.store.renew_worker("w", true, false, Duration::from_secs(60)).await;
        renewed.ok()?.is_none().then_some(())
    })
    .await;
    let (_, lease) = taken_over(&world).await;
    world.store.ensure_gateway_slots(4).await.expect("slots");
    let batch = [webhook(&lease, 1, "Ev1")];
    assert_eq!(commit(&world, lease.token, 0, &batch).await.ok(), Some(CommitOutcome::Committed));
    let partitions = [lease.token.partition];
    let request = shared::store::ClaimRequest {
        worker: "w",
        partitions: &partitions,
        after: None,
        priority: Priority::Background,
        limit: 10,
    };
    let claimed = world.store.claim_deliveries(&request).await.expect("an answer");
    assert!(claimed.deliveries.is_empty());
    let minute = Duration::from_secs(60);
    let claimed =
        world.store.claim_outbox_messages("w", &partitions, None, 10, minute, Duration::ZERO).await;
    assert!(claimed.expect("an answer").messages.is_empty());
    assert_eq!(world.store.expired_workers(16).await.expect("a list"), ["w"]);
}
