//! Rows that are written for a connection after its deletion, and records that retention has to
//! bound.

use std::time::Duration;
use tests::{
    eventually::eventually,
    test_env::{SMALL, Size, TestEnv},
};

/// Two rounds of retention.
const WITHIN: Duration = Duration::from_secs(60);

async fn count(env: &TestEnv, sql: &'static str, id: &str) -> i64 {
    sqlx::query_scalar(sql).bind(id).fetch_one(&env.pool).await.expect("a count")
}

/// Rows that are written for a connection after its deletion are deleted, and those of another
/// stay.
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

/// Traffic of a connection that was deleted days ago, while no worker ran, is deleted. Afterwards
/// the connection is not visited again.
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
    eventually("the rows are deleted, and the connection is marked as empty", WITHIN, async || {
        (count(&env, left, &id).await == 0).then_some(())
    })
    .await;
}

/// The tombstone of a connection is deleted 30 days after the connection, once its webhooks are
/// purged and its traffic is deleted.
#[tokio::test]
async fn deletes_old_tombstones() {
    let mut env = TestEnv::without_processes(SMALL).await.expect("servers");
    let (old, recent) = (env.declare().expect("one"), env.declare().expect("another"));
    for (app, days) in [(&old, 31), (&recent, 29)] {
        let id = app.connection.to_string();
        let delete = "delete from connections where id = $1";
        sqlx::query(delete).bind(&id).execute(&env.pool).await.expect("deleted");
        let age = "update deleted_connections set deleted_at = now() - make_interval(days => $2)
                    where id = $1";
        sqlx::query(age).bind(&id).bind(days).execute(&env.pool).await.expect("aged");
    }
    env.start_processes().await.expect("processes");
    let tombstone = "select count(*) from deleted_connections where id = $1";
    eventually("the old tombstone is deleted", WITHIN, async || {
        (count(&env, tombstone, &old.connection.to_string()).await == 0).then_some(())
    })
    .await;
    let emptied =
        "select count(*) from deleted_connections where id = $1 and emptied_at is not null";
    eventually("the recent one is kept", WITHIN, async || {
        (count(&env, emptied, &recent.connection.to_string()).await == 1).then_some(())
    })
    .await;
}

/// No statement of a deletion or erasure changes more rows of a table than a step: it would reach
/// its timeout each time.
#[tokio::test]
async fn deletes_in_bounded_steps() {
    let size = Size { ingests: 0, workers: 0, own_postgres: false };
    let env = TestEnv::without_processes(size).await.expect("servers");
    let (app, uninstalled) = (env.declare().expect("one"), env.declare().expect("another"));
    let function = "create function limit_rows() returns trigger language plpgsql as $$
                    begin
                        if (select count(*) from changed) > 5000 then
                            raise exception 'a statement changes % rows', (select count(*) from changed);
                        end if;
                        return null;
                    end $$";
    sqlx::query(function).execute(&env.pool).await.expect("created");
    for (table, event) in [
        ("channel_bindings", "delete"),
        ("conversation_sessions", "delete"),
        ("welcomed_users", "delete"),
        ("audit_log", "update"),
    ] {
        let trigger = format!(
            "create trigger limit_rows after {event} on {table} referencing old table as changed
             for each statement execute function limit_rows()"
        );
        sqlx::query(sqlx::AssertSqlSafe(trigger)).execute(&env.pool).await.expect("created");
    }
    for connection in [&app, &uninstalled] {
        for sql in [
            "insert into channel_bindings (connection_id, team_id, channel_id, org_id, agent_id, bound_by)
             select $1, 'T', 'C' || n, a.org_id, a.id, 'U1'
               from generate_series(1, 12000) n, connections c join agents a using (org_id) where c.id = $1",
            "insert into conversation_sessions (connection_id, team_id, channel_id, number)
             select $1, 'T', 'C' || n, 1 from generate_series(1, 12000) n",
            "insert into welcomed_users (connection_id, team_id, user_id)
             select $1, 'T', 'U' || n from generate_series(1, 12000) n",
            "insert into audit_log (actor, action, object_kind, object_id, org_id)
             select 'slack-user:T/U0GONE', 'x', 'x', 'x/' || n, c.org_id
               from generate_series(1, 6000) n, connections c where c.id = $1",
        ] {
            let query = sqlx::query(sql).bind(connection.connection.to_string());
            query.execute(&env.pool).await.expect("rows");
        }
    }
    let person = format!("{}/U0GONE", app.team);
    env.tidegate(&["erase", "person", &person, "--yes"]).expect("erased");
    let left = "select count(*) from audit_log where actor like '%' || $1";
    assert_eq!(count(&env, left, "U0GONE").await, 0);
    let id = app.connection.to_string();
    let printed = env.tidegate(&["connections", "delete", &id, "--yes"]).expect("deleted");
    assert!(printed.contains("bindings: 12000\n"), "{printed}");
    env.tidegate(&["erase", "organization", app.org.as_str(), "--yes"]).expect("erased");
    let left = "select count(*) from audit_log where org_id = $1 and object_id like 'x/%'
                   and object_id <> 'x/erased'";
    assert_eq!(count(&env, left, app.org.as_str()).await, 0);

    let id = uninstalled.connection.to_string();
    let revoke = "update connections set status = 'revoked', installed_by = 'U1' where id = $1";
    sqlx::query(revoke).bind(&id).execute(&env.pool).await.expect("revoked");
    let age = "alter table connections disable trigger connections_changed";
    sqlx::query(age).execute(&env.pool).await.expect("disabled");
    let age = "update connections set updated_at = now() - interval '3 days' where id = $1";
    sqlx::query(age).bind(&id).execute(&env.pool).await.expect("aged");
    for expected in [1, 1, 1, 1, 0] {
        let delete =
            "select delete_uninstalled_connections(interval '2 days', 100, 0) where $1 <> ''";
        assert_eq!(count(&env, delete, "x").await, expected);
    }
    assert_eq!(count(&env, "select count(*) from connections where id = $1", &id).await, 0);
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
