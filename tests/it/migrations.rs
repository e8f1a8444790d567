//! Rows that no statement of ours wrote are errors that name their place, and the schema is that of the migrations.

use sqlx::Executor;
use tests::world::{Size, World};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };

/// What no statement of ours writes is named with its place, and stops nothing else.
#[tokio::test]
async fn a_row_that_makes_no_sense_is_an_error_that_names_table_column_and_row() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let (app, other) = (world.declare().expect("one"), world.declare().expect("another"));
    for (column, value) in [
        // Each is looked at before those above it.
        ("org_id", "'not an id'"),
        ("settings", "'[7]'"),
        ("signing_secret", "'k9:bm90aGluZw=='"),
        ("bot_token", "'k1:bm90aGluZw=='"),
    ] {
        let mut tx = world.pool.begin().await.expect("a transaction");
        tx.execute("set local session_replication_role = replica").await.expect("without keys");
        let sql = format!("update connections set {column} = {value} where id = $1 returning id");
        let sql = sqlx::query_scalar::<_, String>(sqlx::AssertSqlSafe(sql))
            .bind(app.connection.to_string());
        sql.fetch_one(&mut *tx).await.expect("changed");
        tx.commit().await.expect("committed");
        let error = world.store.hydrate_connection(app.connection).await.expect_err("nonsense");
        let expected = format!("connections.{column} of row {} makes no sense: ", app.connection);
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
    assert!(world.store.hydrate_connection(other.connection).await.expect("read").is_some());
}

/// Migrating twice, by two at once, changes nothing that the first did not.
#[tokio::test(flavor = "multi_thread")]
async fn migrating_again_changes_nothing() {
    let world = std::sync::Arc::new(World::without_processes(SERVERS).await.expect("servers"));
    let app = world.declare().expect("applied");
    let runs = [(); 2].map(|()| {
        let world = std::sync::Arc::clone(&world);
        tokio::task::spawn_blocking(move || world.tidegate(&["migrate"]))
    });
    for run in runs {
        run.await.expect("no panic").expect("migrated");
    }
    assert!(world.store.hydrate_connection(app.connection).await.expect("read").is_some());
}
