//! Any worker has any connection when it needs it: with one query, and as it is now.

use shared::types::Status;
use std::{sync::Arc, time::Duration};
use tests::{
    until::until,
    world::{App, SOON, Size, World},
};
use tokio_util::sync::CancellationToken;
use worker::hydrate::{Hydrated, Hydrator};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };

async fn ready() -> (World, App, Arc<Hydrator>) {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let app = world.prepare(Status::Active).await.expect("a connection");
    let hydrator = Arc::new(Hydrator::new(world.store.clone()));
    (world, app, hydrator)
}

/// The session in Postgres that hears of changes.
async fn listener(world: &World) -> Option<i32> {
    let listens = "select pid from pg_stat_activity where datname = current_database() and query ilike 'listen%'";
    sqlx::query_scalar(listens).fetch_optional(&world.pool).await.ok()?
}

async fn is_live(hydrator: &Hydrator, app: &App) -> bool {
    matches!(hydrator.hydrate(app.connection).await, Ok(Hydrated::Live(_)))
}

#[tokio::test]
async fn a_hundred_webhooks_of_a_cold_connection_cost_one_query() {
    let (world, app, hydrator) = ready().await;
    let mut lock = world.pool.begin().await.expect("a transaction");
    sqlx::query("lock table connections in access exclusive mode")
        .execute(&mut *lock)
        .await
        .expect("locked");
    let asked: Vec<_> = (0..100)
        .map(|_| {
            let (hydrator, app) = (Arc::clone(&hydrator), app.clone());
            tokio::spawn(async move { is_live(&hydrator, &app).await })
        })
        .collect();
    let queries = async || -> Option<i64> {
        sqlx::query_scalar(
            "select count(*) from pg_stat_activity
              where datname = current_database() and query like '-- connections.hydrate%' and wait_event_type = 'Lock'",
        )
        .fetch_one(&world.pool)
        .await
        .ok()
    };
    until("a query waits", SOON, async || queries().await.filter(|queries| *queries > 0)).await;
    assert_eq!(queries().await, Some(1));
    lock.rollback().await.expect("unlocked");
    for asked in asked {
        assert!(asked.await.expect("no panic"));
    }
}

#[tokio::test]
async fn a_change_is_seen_within_a_second() {
    let (world, app, hydrator) = ready().await;
    let stop = CancellationToken::new();
    let listening = tokio::spawn(Arc::clone(&hydrator).listen(stop.clone()));
    until("it listens", SOON, async || listener(&world).await).await;
    assert!(is_live(&hydrator, &app).await);
    for (status, live) in
        [(Status::Stopped, false), (Status::Active, true), (Status::Revoked, false)]
    {
        world.store.set_connection_status(app.connection, status).await.expect("changed");
        until("the change is seen", Duration::from_secs(1), async || {
            (is_live(&hydrator, &app).await == live).then_some(())
        })
        .await;
    }
    stop.cancel();
    listening.await.expect("it ends");
}

/// Word of a change is lost with the link it was to come by.
#[tokio::test]
async fn a_change_made_while_nobody_could_be_told_is_seen_when_the_link_is_back() {
    let (world, app, hydrator) = ready().await;
    let stop = CancellationToken::new();
    let listening = tokio::spawn(Arc::clone(&hydrator).listen(stop.clone()));
    let pid = until("it listens", SOON, async || listener(&world).await).await;
    assert!(is_live(&hydrator, &app).await);
    let mut change = world.pool.begin().await.expect("a transaction");
    sqlx::query("alter table connections disable trigger connections_notify")
        .execute(&mut *change)
        .await
        .expect("mute");
    sqlx::query("update connections set status = 'stopped'")
        .execute(&mut *change)
        .await
        .expect("changed");
    sqlx::query("alter table connections enable trigger connections_notify")
        .execute(&mut *change)
        .await
        .expect("loud");
    change.commit().await.expect("committed");
    sqlx::query("select pg_terminate_backend($1)")
        .bind(pid)
        .execute(&world.pool)
        .await
        .expect("cut");
    until("the change is seen", SOON, async || (!is_live(&hydrator, &app).await).then_some(()))
        .await;
    stop.cancel();
    listening.await.expect("it ends");
}

/// Word of a change is lost, and nobody knows: the row is read again all the same.
#[tokio::test]
async fn a_change_nobody_was_told_of_is_seen_within_half_a_minute() {
    let (world, app, hydrator) = ready().await;
    let stop = CancellationToken::new();
    let listening = tokio::spawn(Arc::clone(&hydrator).listen(stop.clone()));
    until("it listens", SOON, async || listener(&world).await).await;
    for sql in [
        "alter table connections disable trigger connections_notify",
        "update connections set status = 'stopped'",
    ] {
        assert!(is_live(&hydrator, &app).await);
        sqlx::query(sql).execute(&world.pool).await.expect("changed, and silently");
    }
    assert!(is_live(&hydrator, &app).await, "it was told");
    until("the change is seen", Duration::from_secs(31), async || {
        (!is_live(&hydrator, &app).await).then_some(())
    })
    .await;
    stop.cancel();
    listening.await.expect("it ends");
}
