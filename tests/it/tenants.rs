//! A tenant that leaves, leaves nothing behind.

use serde_json::Value;
use shared::{
    config,
    directory::{Directory, Entry},
    types::Surface,
};
use tests::{
    slack::webhook::Webhook,
    until::try_until,
    world::{App, PAIR, SOON, World},
};

async fn answered(world: &World, app: &App, text: &str) {
    let webhook = Webhook::message(&world.slack, app, "C1", "U1", text);
    assert_eq!(world.send(app, &webhook).await.expect("an answer").status, 200);
    let expected = format!("I heard: {text}");
    world.slack.told("the answer", |receipt| receipt.text() == expected).await;
}

/// Tables with a row that names the connection; but for its tombstone, what was removed from the stream, and the key by which
/// a partition recognizes the stream.
async fn rows_that_name(world: &World, id: &str) -> Vec<String> {
    let tables: Vec<String> = sqlx::query_scalar(
        "select table_name::text from information_schema.tables
          where table_schema = 'public' and table_type = 'BASE TABLE'
            and table_name not in ('deleted_connections', 'stream_removals', 'partition_cursors')",
    )
    .fetch_all(&world.pool)
    .await
    .expect("tables");
    let mut found = Vec::new();
    for table in tables {
        let sql = format!("select count(*) from {table} t where t::text like '%' || $1 || '%'");
        let count: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .bind(id)
            .fetch_one(&world.pool)
            .await
            .expect("a count");
        if count > 0 {
            found.push(table);
        }
    }
    found
}

#[tokio::test]
async fn a_deleted_connection_is_gone_from_postgres_the_directory_and_the_stream_and_others_stay() {
    let world = World::start(PAIR).await.expect("a world");
    let (app, other) = (world.declare().expect("one"), world.declare().expect("another"));
    for app in [&app, &other] {
        let code = world.mint_by_verb(app, Surface::Channel).expect("a code");
        world.mint_by_verb(app, Surface::Dm).expect("a code that nobody uses");
        let webhook =
            Webhook::command(&world.slack, app, "C1", "U1", "/lobu", &format!("link {code}"));
        world.send(app, &webhook).await.expect("an answer");
        world.slack.told("linked", |r| webhook.response_url.ends_with(&r.to)).await;
    }
    answered(&world, &app, "from the one who leaves").await;
    answered(&world, &other, "from the one who stays").await;
    let (id, stays) = (app.connection.to_string(), other.connection.to_string());
    let listed = world.tidegate(&["connections", "list"]).expect("a list");
    assert!(listed.contains(&id) && listed.contains(&stays), "{listed}");
    let shown = world.tidegate(&["connections", "show", &id, "--json"]).expect("shown");
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!((&shown["status"], &shown["bindings"]), (&"active".into(), &1.into()));
    assert!(!shown.to_string().contains(&app.token), "{shown}");
    assert!(rows_that_name(&world, &id).await.len() > 3, "there is something to delete");

    let ran = world.try_tidegate(&["connections", "delete", &id]).expect("it runs");
    let error = String::from_utf8(ran.stderr).expect("text");
    assert!(!ran.status.success() && error.contains("--yes"), "{error}");
    let said = world.tidegate(&["connections", "delete", &id, "--yes"]).expect("deleted");
    assert!(
        said.contains("bindings: 1\nlink codes: 2\n")
            && said.contains("webhooks in the stream: 2\n"),
        "{said}"
    );
    let gone = try_until("no row names it", SOON, async || {
        rows_that_name(&world, &id).await.is_empty().then_some(())
    });
    assert!(gone.await.is_ok(), "{:?} name it", rows_that_name(&world, &id).await);
    let directory =
        Directory::open(&config::jetstream(world.client().clone())).await.expect("the directory");
    let entry = directory.entry(app.connection).await.expect("a look");
    assert!(matches!(entry, Some(Entry::Deleted { .. })), "{entry:?}");
    for ingest in &world.ingests {
        let webhook = Webhook::message(&world.slack, &app, "C1", "U1", "hello?");
        let answer = world.slack.send(&ingest.url(&app), &app.secret, &webhook).await;
        assert_eq!(answer.expect("an answer").status, 404);
    }
    assert_eq!(world.stored().await.expect("a count"), 2, "the other's are there");
    answered(&world, &other, "still here").await;
    assert!(!world.try_tidegate(&["connections", "show", &id]).expect("it runs").status.success());
}
