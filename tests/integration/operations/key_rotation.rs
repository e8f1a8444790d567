//! Rotation of keyrings during operation.

use serde_json::Value;
use shared::{domain::Surface, operations::Operations, secrets::KeyRing, store::SEALED_COLUMNS};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tests::{
    eventually::eventually,
    slack::webhook::Webhook,
    test_env::{App, Size, TIMEOUT, TestEnv, actor},
};
use tokio::{sync::Notify, time::sleep};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };

async fn send_and_wait(env: &TestEnv, app: &App, text: &str) {
    let webhook = Webhook::message(&env.slack, app, "C1", "U1", text);
    assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
    let expected = format!("I heard: {text}");
    env.slack.wait_for_receipt("the answer", |receipt| receipt.text() == expected).await;
}

fn json_lines(printed: &str) -> Vec<Value> {
    printed.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// `keys rewrap` re-encrypts every value while messages are answered. Afterwards processes run
/// without the old keys.
#[tokio::test]
async fn reencrypts_during_operation() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let (app, other) = (env.declare().expect("one"), env.declare().expect("another"));
    let rings: Vec<(String, String)> =
        ["TIDEGATE_SIGNING_SECRET_KEYRING", "TIDEGATE_TOKEN_KEYRING"]
            .into_iter()
            .map(|name| {
                let old = env.setting(name).expect("a ring").to_owned();
                (old, KeyRing::generate("k2").expect("randomness"))
            })
            .collect();
    for (name, (old, new)) in
        ["TIDEGATE_SIGNING_SECRET_KEYRING", "TIDEGATE_TOKEN_KEYRING"].into_iter().zip(&rings)
    {
        env.set(name, &format!("{new},{old}"));
    }
    env.start_ingest().await.expect("an ingest");
    env.start_worker().await.expect("a worker");
    env.wait_until_balanced().await.expect("settled");
    let code = env.create_link_code_by_cli(&app, Surface::Channel).expect("a code");
    let webhook = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", &format!("link {code}"));
    env.send(&app, &webhook).await.expect("an answer");
    env.slack
        .wait_for_receipt("the reply to the link code", |r| webhook.response_url.ends_with(&r.to))
        .await;
    let before = json_lines(&env.tidegate(&["keys", "status", "--json"]).expect("counts"));
    let old = |counts: &[Value]| counts.iter().filter(|c| c["key"] == "k1").count();
    assert!(old(&before) >= 3, "{before:?}");

    let shared = Arc::new(env);
    let operator = Arc::clone(&shared);
    let rewrap =
        tokio::task::spawn_blocking(move || operator.tidegate(&["keys", "rewrap", "--json"]));
    let mut meanwhile = 0;
    while !rewrap.is_finished() || meanwhile < 10 {
        send_and_wait(&shared, &app, &format!("meanwhile {meanwhile}")).await;
        meanwhile += 1;
    }
    let after = json_lines(&rewrap.await.expect("no panic").expect("all is under the new keys"));
    let mut env = Arc::into_inner(shared).expect("nobody else has it");
    assert_eq!(old(&after), 0, "{after:?}");
    let again = env.tidegate(&["keys", "rewrap"]).expect("nothing left to do");
    assert!(again.contains("connections.bot_token: 0\n"), "{again}");

    // The old keys are removed. The directory does not need them either.
    for (name, (_, new)) in
        ["TIDEGATE_SIGNING_SECRET_KEYRING", "TIDEGATE_TOKEN_KEYRING"].into_iter().zip(&rings)
    {
        env.set(name, new);
    }
    env.ingests.remove(0);
    env.workers.remove(0);
    env.start_ingest().await.expect("an ingest");
    env.start_worker().await.expect("a worker");
    send_and_wait(&env, &app, "under the new key").await;
    let webhook = Webhook::message(&env.slack, &other, "C1", "U1", "verified");
    assert_eq!(env.send(&other, &webhook).await.expect("an answer").status, 200);
}

/// A connection that is deleted before its secrets are published does not end the rotation.
#[tokio::test]
async fn skips_deleted_connection() {
    /// Time in which the rotation reads the connections and begins to wait for NATS.
    const READ_WITHIN: Duration = Duration::from_millis(500);
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let (app, deleted) = (env.declare().expect("one"), env.declare().expect("another"));
    let js = async_nats::jetstream::new(env.client().clone());
    let operations = Operations::new(env.store.clone(), actor());
    let (last, reencrypted) = (SEALED_COLUMNS.last().expect("a column").name, Notify::new());
    env.nats.freeze();
    let rewrap = operations.rewrap(&js, |column, _, is_finished| {
        if column.name == last && is_finished {
            reencrypted.notify_one();
        }
    });
    let delete = async {
        reencrypted.notified().await;
        sleep(READ_WITHIN).await;
        let delete = sqlx::query("delete from connections where id = $1");
        delete.bind(deleted.connection.to_string()).execute(&env.pool).await.expect("deleted");
        env.nats.thaw();
    };
    let (unopened, ()) = tokio::join!(rewrap, delete);
    assert_eq!(unopened.expect("all others are published"), Vec::<String>::new());
    let left = env.store.directory_entry(app.connection).await.expect("a look");
    assert!(left.is_some(), "the other connection exists");
}

/// Every encrypted column is in the list of columns to re-encrypt.
#[tokio::test]
async fn lists_every_encrypted_column() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    env.start_ingest().await.expect("an ingest");
    env.start_worker().await.expect("a worker");
    let app = env.declare().expect("applied");
    env.tidegate(&[
        "connections",
        "rotate-signing-secret",
        &app.connection.to_string(),
        "--secret",
        &env.secret_argument("another").expect("a file"),
    ])
    .expect("rotated");
    let webhook = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", "help");
    env.send(&app, &webhook).await.expect("an answer");
    env.wait_for_outcome(&webhook.dedup_key).await;
    let js = async_nats::jetstream::new(env.client().clone());
    let subject = shared::stream::subject(
        shared::stream::Partition::of(app.connection, Some("C1")),
        app.connection,
    );
    js.publish(subject, "no envelope".into()).await.expect("sent").await.expect("stored");
    eventually("the message is a dead letter", TIMEOUT, async || {
        (!env.dead_letters().await.ok()?.is_empty()).then_some(())
    })
    .await;
    let columns: Vec<(String, String)> = sqlx::query_as(
        "select table_name::text, column_name::text from information_schema.columns
          where table_schema = 'public' and data_type = 'text'",
    )
    .fetch_all(&env.pool)
    .await
    .expect("columns");
    let mut sealed = BTreeSet::new();
    for (table, column) in columns {
        let sql = format!(
            "select exists (select from {table} where {column} ~ '^k1:[A-Za-z0-9+/=]{{30,}}$')"
        );
        let found: bool = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .fetch_one(&env.pool)
            .await
            .expect("a look");
        if found {
            sealed.insert(format!("{table}.{column}"));
        }
    }
    // Bodies of webhooks are stored as encrypted bytes.
    let payloads: Vec<(String, String)> = sqlx::query_as(
        "select table_name::text, column_name::text from information_schema.columns
          where table_schema = 'public' and data_type = 'bytea' and column_name = 'payload'",
    )
    .fetch_all(&env.pool)
    .await
    .expect("columns");
    assert!(payloads.len() >= 2, "{payloads:?}");
    sealed.extend(payloads.into_iter().map(|(table, column)| format!("{table}.{column}")));
    let known: BTreeSet<String> = SEALED_COLUMNS.iter().map(|c| c.name.to_owned()).collect();
    assert!(sealed.len() >= 6 && sealed.is_subset(&known), "{sealed:?}");
}
