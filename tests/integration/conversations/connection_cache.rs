//! Connection cache of workers and notifications of changes.

use shared::domain::ConnectionStatus;
use std::time::Duration;
use tests::{
    eventually::eventually,
    slack::webhook::Webhook,
    test_env::{App, SMALL, TIMEOUT, TestEnv, actor, agent_id},
};

/// Returns the process id of the Postgres session that listens for changes.
async fn listener_pid(env: &TestEnv) -> Option<i32> {
    let listens = "select pid from pg_stat_activity where datname = current_database()
                      and query ilike 'listen%connections%'";
    sqlx::query_scalar(listens).fetch_optional(&env.pool).await.ok()?
}

async fn cache_requests(env: &TestEnv, result: &str) -> f64 {
    let name = format!("tidegate_connection_cache_requests_total{{result=\"{result}\"}}");
    env.workers[0].metric(&name).await.unwrap_or(0.0)
}

async fn is_answered(env: &TestEnv, app: &App, text: &str) -> bool {
    let webhook = Webhook::message(&env.slack, app, "D1", "U1", text);
    assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
    env.wait_for_outcome(&webhook.dedup_key).await.outcome == "completed"
}

/// Twenty webhooks of a connection cause at most five reads of its row.
#[tokio::test]
async fn shares_row_between_webhooks() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    for n in 0..20 {
        assert!(is_answered(&env, &app, &format!("hello {n}")).await);
    }
    let (hits, misses) = (cache_requests(&env, "hit").await, cache_requests(&env, "miss").await);
    assert!(hits >= 20.0 && misses <= 5.0, "{hits} hits, {misses} misses");
}

/// A connection that is disabled without a notification answers nothing more, even if the session
/// that listens for notifications is cut.
#[tokio::test]
async fn decides_by_row_not_by_cache() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    assert!(is_answered(&env, &app, "before").await);
    let pid =
        eventually("the worker listens for changes", TIMEOUT, async || listener_pid(&env).await)
            .await;
    for sql in [
        "alter table connections disable trigger connections_notify",
        "update connections set status = 'stopped'",
        "alter table connections enable trigger connections_notify",
    ] {
        sqlx::query(sql).execute(&env.pool).await.expect("changed, and silently");
    }
    let cut = sqlx::query("select pg_terminate_backend($1)").bind(pid);
    cut.execute(&env.pool).await.expect("cut");
    assert!(!is_answered(&env, &app, "stopped").await, "the row is `stopped`");
    env.store
        .set_connection_status(&actor(), app.connection, ConnectionStatus::Active)
        .await
        .expect("changed");
    eventually("the connection answers again", Duration::from_secs(31), async || {
        is_answered(&env, &app, "active").await.then_some(())
    })
    .await;
}
