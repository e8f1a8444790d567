//! Who does not own a partition any more changes nothing in it, whatever it believes.

use shared::{
    codec::envelope::DedupeKey,
    partition::{Conversation, Lane},
    store::{Committed, Dying, Effects, Held, Leased, OneOfMany, Owner, Position},
    types::{ConnectionId, Destination, Outgoing},
};
use std::time::Duration;
use tests::{
    until::until,
    world::{SOON, Size, World},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };
const BLINK: Duration = Duration::from_millis(1);

/// One partition, leased by `first` for a moment and then by `second`.
async fn taken_over(world: &World) -> (Leased, Leased) {
    let first = world.store.claim_partitions("first", 1, BLINK).await.expect("a claim")[0];
    let second = until("the lease has run out", SOON, async || {
        let claimed =
            world.store.claim_partitions("second", 64, Duration::from_secs(60)).await.ok()?;
        claimed.into_iter().find(|leased| leased.partition == first.partition)
    })
    .await;
    assert_eq!(second.epoch, first.epoch + 1);
    (first, second)
}

fn owner(worker: &str, leased: Leased) -> Owner {
    let Leased { partition, epoch, generation, .. } = leased;
    Owner::live(worker, partition, epoch, generation)
}

fn position(n: u64) -> Position {
    let connection = ConnectionId::random().expect("randomness");
    Position {
        sequence: n,
        lane: Lane::of(connection, Conversation::DirectMessage("D1")),
        connection,
        dedupe: DedupeKey::event(connection, &format!("Ev{n}")),
        traceparent: None,
    }
}

fn saying() -> Effects {
    let to = Destination::ResponseUrl { url: "http://127.0.0.1:1/".into(), fallback: None };
    Effects {
        say: vec![Outgoing { to, message: "x".into() }],
        outcome: "done",
        ..Effects::default()
    }
}

async fn count(world: &World, table: &'static str) -> i64 {
    let query = match table {
        "seen" => "select count(*) from seen",
        "lanes" => "select count(*) from lanes",
        "outbox" => "select count(*) from outbox",
        _ => "select count(*) from dead",
    };
    sqlx::query_scalar(query).fetch_one(&world.pool).await.expect("a count")
}

#[tokio::test]
async fn a_commit_under_an_old_epoch_changes_nothing() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let (first, second) = taken_over(&world).await;
    let at = position(1);
    let commit =
        async |owner: &Owner| world.store.commit(owner, &at, &saying()).await.expect("an answer");
    assert_eq!(commit(&owner("first", first)).await, Committed::Fenced);
    for table in ["seen", "lanes", "outbox"] {
        assert_eq!(count(&world, table).await, 0, "{table}");
    }
    assert_eq!(commit(&owner("second", second)).await, Committed::Applied { claim: None });
    assert_eq!(commit(&owner("second", second)).await, Committed::AlreadyDone);
    assert_eq!(count(&world, "outbox").await, 1);
}

/// Many commits in one statement have each their own guards.
#[tokio::test]
async fn of_commits_made_together_each_hears_its_own_answer() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let (first, second) = taken_over(&world).await;
    let (old, new) =
        (owner("second", Leased { epoch: first.epoch, ..second }), owner("second", second));
    let (at, effects) = ([1, 2, 3, 4].map(position), saying());
    let trigger = position(9).dedupe;
    let [once, twice] = [(), ()].map(|()| Effects { trigger: Some(trigger.clone()), ..saying() });
    world.store.commit(&new, &at[0], &effects).await.expect("an answer");
    let together = [
        OneOfMany { owner: &new, at: &at[0], effects: &effects },
        OneOfMany { owner: &old, at: &at[1], effects: &effects },
        OneOfMany { owner: &new, at: &at[2], effects: &once },
        OneOfMany { owner: &new, at: &at[3], effects: &twice },
    ];
    let committed = world.store.commit_together(&together).await.expect("answers");
    let applied = Committed::Applied { claim: None };
    assert_eq!(committed, [Committed::AlreadyDone, Committed::Fenced, applied.clone(), applied]);
    assert_eq!(count(&world, "seen").await, 4, "three webhooks and a trigger");
    assert_eq!(count(&world, "lanes").await, 3);
    assert_eq!(
        count(&world, "outbox").await,
        2,
        "the one before, and one of the two with one trigger"
    );
}

/// One that is behind its lane must not be skipped, nor take the others with it: together nothing is done, alone it is told.
#[tokio::test]
async fn commits_made_together_change_nothing_when_one_is_behind_its_lane() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let owner = owner("second", taken_over(&world).await.1);
    let (later, effects) = (position(5), saying());
    let early = Position { sequence: 4, dedupe: position(4).dedupe, ..later.clone() };
    world.store.commit(&owner, &later, &effects).await.expect("an answer");
    let other = position(6);
    let together = [&other, &early].map(|at| OneOfMany { owner: &owner, at, effects: &effects });
    let error = world.store.commit_together(&together).await.expect_err("one is behind");
    assert!(error.is_about_the_data(), "{error:?}");
    assert_eq!((count(&world, "seen").await, count(&world, "outbox").await), (1, 1));
    assert_eq!(
        world.store.commit(&owner, &early, &effects).await.expect("an answer"),
        Committed::OrderSlip
    );
}

#[tokio::test]
async fn a_grave_and_a_delivery_under_an_old_epoch_are_refused_too() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let (first, second) = taken_over(&world).await;
    world.store.commit(&owner("second", second), &position(1), &saying()).await.expect("an answer");
    let old = owner("first", first);
    assert!(world.store.take_outgoing(&old, 10, SOON).await.expect("an answer").rows.is_empty());
    let dying = Dying {
        sequence: 2,
        subject: "x",
        headers: Vec::new(),
        body: b"",
        connection: None,
        dedupe: None,
        for_good: true,
        reason: "why\0",
        last_error: "",
        attempts: 1,
    };
    assert!(!world.store.bury(&old, &dying).await.expect("an answer"));
    assert_eq!(count(&world, "dead").await, 0);
    assert!(
        world.store.bury(&owner("second", second), &dying).await.expect("even with a NUL in it")
    );
}

#[tokio::test]
async fn an_old_owner_neither_renews_nor_gives_back() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let (first, second) = taken_over(&world).await;
    let held = |leased: Leased, cursor| {
        let Leased { partition, epoch, generation, cursor_at, .. } = leased;
        Held { partition, epoch, generation, cursor, cursor_at }
    };
    assert!(
        world.store.renew_partitions(&[held(first, 99)], SOON).await.expect("an answer").is_empty()
    );
    world.store.release_partitions(&[held(first, 99)]).await.expect("an answer");
    let kept = world.store.renew_partitions(&[held(second, 7)], SOON).await.expect("an answer");
    assert_eq!(kept, [second.partition]);
    world.store.release_partitions(&[held(second, 7)]).await.expect("an answer");
    let third = world.store.claim_partitions("third", 1, SOON).await.expect("a claim")[0];
    assert_eq!((third.partition, third.cursor), (second.partition, 7));
}

#[tokio::test]
async fn a_sequence_below_its_lanes_last_that_is_not_done_is_an_order_slip() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let (_, second) = taken_over(&world).await;
    let owner = owner("second", second);
    let (late, early) = (position(9), Position { sequence: 8, ..position(8) });
    let early = Position { lane: late.lane, ..early };
    world.store.commit(&owner, &late, &saying()).await.expect("an answer");
    assert_eq!(
        world.store.commit(&owner, &early, &saying()).await.expect("an answer"),
        Committed::OrderSlip
    );
    assert!(
        !world.store.is_seen("live", &early.dedupe).await.expect("an answer"),
        "it is not called done"
    );
}
