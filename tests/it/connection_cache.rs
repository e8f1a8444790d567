//! Workers keep connections in memory and hear of their changes.

use shared::types::Status;
use std::time::Duration;
use tests::{
    slack::webhook::Webhook,
    until::until,
    world::{App, SMALL, SOON, World, agent_id},
};

/// The session in Postgres that hears of changes.
async fn listener(world: &World) -> Option<i32> {
    let listens = "select pid from pg_stat_activity where datname = current_database()
                      and query ilike 'listen%connections%'";
    sqlx::query_scalar(listens).fetch_optional(&world.pool).await.ok()?
}

async fn cached(world: &World, result: &str) -> f64 {
    let name = format!("tidegate_connection_cache_requests_total{{result=\"{result}\"}}");
    world.workers[0].metric(&name).await.unwrap_or(0.0)
}

async fn answered(world: &World, app: &App, text: &str) -> bool {
    let webhook = Webhook::message(&world.slack, app, "D1", "U1", text);
    assert_eq!(world.send(app, &webhook).await.expect("an answer").status, 200);
    world.handled(&webhook.dedupe).await.outcome == "completed"
}

#[tokio::test]
async fn webhooks_of_one_connection_share_its_row() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    for n in 0..20 {
        assert!(answered(&world, &app, &format!("hello {n}")).await);
    }
    let (hits, misses) = (cached(&world, "hit").await, cached(&world, "miss").await);
    assert!(hits >= 20.0 && misses <= 5.0, "{hits} hits, {misses} misses");
}

/// The link by which changes are told is cut while the connection is stopped, by somebody who tells nobody.
#[tokio::test]
async fn change_is_decided_by_the_row_and_never_by_the_cache() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    assert!(answered(&world, &app, "before").await);
    let pid = until("it listens", SOON, async || listener(&world).await).await;
    for sql in [
        "alter table connections disable trigger connections_notify",
        "update connections set status = 'stopped'",
        "alter table connections enable trigger connections_notify",
    ] {
        sqlx::query(sql).execute(&world.pool).await.expect("changed, and silently");
    }
    let cut = sqlx::query("select pg_terminate_backend($1)").bind(pid);
    cut.execute(&world.pool).await.expect("cut");
    assert!(!answered(&world, &app, "stopped").await, "the row says so");
    world.store.set_connection_status(app.connection, Status::Active).await.expect("changed");
    until("it is answered again", Duration::from_secs(31), async || {
        answered(&world, &app, "active").await.then_some(())
    })
    .await;
}
