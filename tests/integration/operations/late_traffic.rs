//! Rows that arrive for a connection after its deletion, and rows that retention has to bound.

use std::time::Duration;
use tests::{
    eventually::eventually,
    test_env::{SMALL, TestEnv},
};

/// Two rounds of retention.
const WITHIN: Duration = Duration::from_secs(60);

async fn count(env: &TestEnv, sql: &'static str, id: &str) -> i64 {
    sqlx::query_scalar(sql).bind(id).fetch_one(&env.pool).await.expect("a count")
}

#[tokio::test]
async fn deletes_rows_after_deletion() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let (app, other) = (env.declare().expect("one"), env.declare().expect("another"));
    let id = app.connection.to_string();
    env.tidegate(&["connections", "delete", &id, "--yes"]).expect("it is deleted");
    for connection in [&id, &other.connection.to_string()] {
        for sql in [
            "insert into dead_letters (stage, partition, generation, sequence, subject, connection_id, reason, attempts)
             select 'intake', 1, 1, n, 'x', $1, 'x', 0 from generate_series(1, 20) n",
            "insert into user_questions (connection_id, user_id, partition, minute, asked, told)
             select $1, 'U' || n, 1, 1, 1, false from generate_series(1, 20) n",
            "insert into delivery_log (slot, connection_id, partition, generation, sequence, lane, dedup_key, org_id,
                                       agent_id, kind, outcome, attempts)
             select extract(epoch from now())::bigint / 86400 % 32, $1, 1, 1, n, n, $1 || n, 'o', 'a', 'event', 'completed', 1 from generate_series(1, 20) n",
            "insert into replays (id, connection_id, from_time, to_time, apply, state) values ($1, $1, now(), now(), false, 'done')",
            "insert into replay_results (replay, sequence, stored_at, kind, outcome, effects)
             select $1, n, now(), 'event', 'delivery', '{}' from generate_series(1, 12000) n",
        ] {
            sqlx::query(sql).bind(connection).execute(&env.pool).await.expect("rows");
        }
    }
    let left = "select (select count(*) from dead_letters where connection_id = $1)
                     + (select count(*) from user_questions where connection_id = $1)
                     + (select count(*) from replays where connection_id = $1)
                     + (select count(*) from replay_results where replay = $1)
                     + (select count(*) from delivery_log where connection_id = $1)";
    eventually("the late rows are gone", WITHIN, async || {
        (count(&env, left, &id).await == 0).then_some(())
    })
    .await;
    assert_eq!(count(&env, left, &other.connection.to_string()).await, 12_061);
}

/// Traffic of a connection that was deleted days ago, while no worker ran, is deleted. Afterwards the
/// connection is not visited again.
#[tokio::test]
async fn deletes_rows_of_old_deletion() {
    let mut env = TestEnv::without_processes(SMALL).await.expect("servers");
    let app = env.declare().expect("applied");
    let id = app.connection.to_string();
    for sql in [
        "delete from connections where id = $1",
        "update deleted_connections set deleted_at = now() - interval '3 days' where id = $1",
        "insert into outbox (connection_id, lane, position, partition, channel_key, method, dedup_key, request)
         select $1, n, 1, 0, 'C' || n, 'x', n, 'x' from generate_series(1, 1000) n",
        "insert into outbox_failures (id, connection_id, lane, partition, channel_key, method, dedup_key, request, error,
                                      attempts, created_at)
         select n, $1, n, 0, 'C', 'x', n, 'x', 'x', 1, now() from generate_series(1, 20) n",
    ] {
        sqlx::query(sql).bind(&id).execute(&env.pool).await.expect("rows");
    }
    env.start_processes().await.expect("processes");
    let left = "select (select count(*) from outbox where connection_id = $1)
                     + (select count(*) from outbox_failures where connection_id = $1)
                     + (select count(*) from deleted_connections where id = $1 and emptied_at is null)";
    eventually("the rows are gone, and the connection is done with", WITHIN, async || {
        (count(&env, left, &id).await == 0).then_some(())
    })
    .await;
}

/// Records of purges are merged after a day, and those of earlier streams are deleted.
#[tokio::test]
async fn bounds_records_of_purges() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    for sql in [
        "insert into stream_removals (partition, generation, subject, up_to, removed, at)
         select 5, c.generation, $1, n, 3, now() - interval '2 days'
           from generate_series(1, 500) n, partition_cursors c where c.partition = 5",
        "insert into stream_removals (partition, generation, subject, up_to, removed, at)
         select 5, c.generation - 1, $1, n, 3, now() from generate_series(1, 500) n, partition_cursors c where c.partition = 5",
        "insert into stream_removals (partition, generation, subject, up_to, removed, at)
         select 5, c.generation, $1, n, 7, now() from generate_series(1, 2) n, partition_cursors c where c.partition = 5",
    ] {
        sqlx::query(sql).bind("slack.in.5.x").execute(&env.pool).await.expect("rows");
    }
    let rows = "select count(*) from stream_removals where partition = 5 and $1 <> ''";
    eventually("the records are merged", WITHIN, async || {
        (count(&env, rows, "x").await == 3).then_some(())
    })
    .await;
    let removed =
        "select sum(removed)::bigint from stream_removals where partition = 5 and $1 <> ''";
    assert_eq!(count(&env, removed, "x").await, 500 * 3 + 2 * 7);
}
