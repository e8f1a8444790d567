//! Key rings are rotated while all goes on.

use serde_json::Value;
use shared::{secrets::KeyRing, store::SEALED_COLUMNS, types::Surface};
use std::{collections::BTreeSet, sync::Arc};
use tests::{
    slack::webhook::Webhook,
    until::until,
    world::{App, SOON, Size, World},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };

async fn answered(world: &World, app: &App, text: &str) {
    let webhook = Webhook::message(&world.slack, app, "C1", "U1", text);
    assert_eq!(world.send(app, &webhook).await.expect("an answer").status, 200);
    let expected = format!("I heard: {text}");
    world.slack.told("the answer", |receipt| receipt.text() == expected).await;
}

fn lines(printed: &str) -> Vec<Value> {
    printed.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[tokio::test]
async fn everything_sealed_is_sealed_anew_while_webhooks_are_handled_and_the_old_keys_go() {
    let mut world = World::without_processes(SERVERS).await.expect("servers");
    let (app, other) = (world.declare().expect("one"), world.declare().expect("another"));
    let rings: Vec<(String, String)> = ["TIDEGATE_SIGNING_SECRET_KEYRING", "TIDEGATE_TOKEN_KEYS"]
        .into_iter()
        .map(|name| {
            let old = world.setting(name).expect("a ring").to_owned();
            (old, KeyRing::generate("k2").expect("randomness"))
        })
        .collect();
    for (name, (old, new)) in
        ["TIDEGATE_SIGNING_SECRET_KEYRING", "TIDEGATE_TOKEN_KEYS"].into_iter().zip(&rings)
    {
        world.set(name, &format!("{new},{old}"));
    }
    world.start_ingest().await.expect("an ingest");
    world.start_worker().await.expect("a worker");
    world.settled().await.expect("settled");
    let code = world.mint_by_verb(&app, Surface::Channel).expect("a code");
    let webhook =
        Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", &format!("link {code}"));
    world.send(&app, &webhook).await.expect("an answer");
    world.slack.told("linked", |r| webhook.response_url.ends_with(&r.to)).await;
    let before = lines(&world.tidegate(&["keys", "status", "--json"]).expect("counts"));
    let old = |counts: &[Value]| counts.iter().filter(|c| c["key"] == "k1").count();
    assert!(old(&before) >= 3, "{before:?}");

    let shared = Arc::new(world);
    let operator = Arc::clone(&shared);
    let rewrap =
        tokio::task::spawn_blocking(move || operator.tidegate(&["keys", "rewrap", "--json"]));
    let mut meanwhile = 0;
    while !rewrap.is_finished() || meanwhile < 10 {
        answered(&shared, &app, &format!("meanwhile {meanwhile}")).await;
        meanwhile += 1;
    }
    let after = lines(&rewrap.await.expect("no panic").expect("all is under the new keys"));
    let mut world = Arc::into_inner(shared).expect("nobody else has it");
    assert_eq!(old(&after), 0, "{after:?}");
    let again = world.tidegate(&["keys", "rewrap"]).expect("nothing left to do");
    assert!(again.contains("connections.bot_token: 0\n"), "{again}");

    // Now the old keys go. The directory, too, holds nothing that needs them.
    for (name, (_, new)) in
        ["TIDEGATE_SIGNING_SECRET_KEYRING", "TIDEGATE_TOKEN_KEYS"].into_iter().zip(&rings)
    {
        world.set(name, new);
    }
    world.ingests.remove(0);
    world.workers.remove(0);
    world.start_ingest().await.expect("an ingest");
    world.start_worker().await.expect("a worker");
    answered(&world, &app, "under the new key").await;
    let webhook = Webhook::message(&world.slack, &other, "C1", "U1", "verified");
    assert_eq!(world.send(&other, &webhook).await.expect("an answer").status, 200);
}

/// Whatever column somebody seals next has to be in the list that is sealed anew.
#[tokio::test]
async fn the_list_of_sealed_columns_leaves_none_out() {
    let mut world = World::without_processes(SERVERS).await.expect("servers");
    world.start_ingest().await.expect("an ingest");
    world.start_worker().await.expect("a worker");
    let app = world.declare().expect("applied");
    world
        .tidegate(&[
            "connections",
            "rotate-signing-secret",
            &app.connection.to_string(),
            "--secret",
            "another",
        ])
        .expect("rotated");
    let webhook = Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", "help");
    world.send(&app, &webhook).await.expect("an answer");
    world.handled(&webhook.dedupe).await;
    let js = async_nats::jetstream::new(world.client().clone());
    let subject = shared::stream::subject(
        shared::partition::Partition::of(app.connection, Some("C1")),
        app.connection,
    );
    js.publish(subject, "no envelope".into()).await.expect("sent").await.expect("stored");
    until("it is dead", SOON, async || {
        (!world.dead_letters().await.ok()?.is_empty()).then_some(())
    })
    .await;
    let columns: Vec<(String, String)> = sqlx::query_as(
        "select table_name::text, column_name::text from information_schema.columns
          where table_schema = 'public' and data_type = 'text'",
    )
    .fetch_all(&world.pool)
    .await
    .expect("columns");
    let mut sealed = BTreeSet::new();
    for (table, column) in columns {
        let sql = format!(
            "select exists (select from {table} where {column} ~ '^k1:[A-Za-z0-9+/=]{{30,}}$')"
        );
        let found: bool = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .fetch_one(&world.pool)
            .await
            .expect("a look");
        if found {
            sealed.insert(format!("{table}.{column}"));
        }
    }
    // Bytes of webhooks are sealed as bytes.
    let payloads: Vec<(String, String)> = sqlx::query_as(
        "select table_name::text, column_name::text from information_schema.columns
          where table_schema = 'public' and data_type = 'bytea' and column_name = 'payload'",
    )
    .fetch_all(&world.pool)
    .await
    .expect("columns");
    assert!(payloads.len() >= 2, "{payloads:?}");
    sealed.extend(payloads.into_iter().map(|(table, column)| format!("{table}.{column}")));
    let known: BTreeSet<String> = SEALED_COLUMNS.iter().map(|c| c.name.to_owned()).collect();
    assert!(sealed.len() >= 6 && sealed.is_subset(&known), "{sealed:?}");
}
