//! Migrations and invalid rows, whose errors name their place.

use sqlx::Executor;
use tests::test_env::{Size, TestEnv};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };

/// An error names table, column and row, and other rows are read.
#[tokio::test]
async fn names_place_of_invalid_row() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let (app, other) = (env.declare().expect("one"), env.declare().expect("another"));
    for (column, value) in [
        // Each column is read before those above it.
        ("org_id", "'not an id'"),
        ("settings", "'[7]'"),
        ("signing_secret", "'k9:bm90aGluZw=='"),
        ("bot_token", "'k1:bm90aGluZw=='"),
    ] {
        let mut tx = env.pool.begin().await.expect("a transaction");
        tx.execute("set local session_replication_role = replica").await.expect("without keys");
        let sql = format!("update connections set {column} = {value} where id = $1 returning id");
        let sql = sqlx::query_scalar::<_, String>(sqlx::AssertSqlSafe(sql))
            .bind(app.connection.to_string());
        sql.fetch_one(&mut *tx).await.expect("changed");
        tx.commit().await.expect("committed");
        let error = env.store.load_connection(app.connection).await.expect_err("nonsense");
        let expected = format!("invalid value in connections.{column} of row {}: ", app.connection);
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
    assert!(env.store.load_connection(other.connection).await.expect("read").is_some());
}

/// Two concurrent migrations of an existing schema succeed and keep its rows.
#[tokio::test(flavor = "multi_thread")]
async fn repeats_migration_without_change() {
    let env = std::sync::Arc::new(TestEnv::without_processes(SERVERS).await.expect("servers"));
    let app = env.declare().expect("applied");
    let runs = [(); 2].map(|()| {
        let env = std::sync::Arc::clone(&env);
        tokio::task::spawn_blocking(move || env.tidegate(&["migrate"]))
    });
    for run in runs {
        run.await.expect("no panic").expect("migrated");
    }
    assert!(env.store.load_connection(app.connection).await.expect("read").is_some());
}
