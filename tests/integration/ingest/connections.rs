//! Connections: any ingest accepts their webhooks, from their creation until they are disabled.

use shared::{
    directory::Directory,
    domain::{ConnectionId, ConnectionStatus, Surface},
    runtime::config,
};
use tests::{
    eventually::eventually,
    slack::webhook::Webhook,
    test_env::{App, PAIR, SMALL, TIMEOUT, TestEnv, agent_id},
};

/// A slash command of a connection that no ingest has seen yet is accepted and answered. Before
/// Tidegate it got a 404 and was lost.
#[tokio::test]
async fn handles_unseen_connection() {
    let env = TestEnv::start(PAIR).await.expect("a test environment");
    let app = env.prepare(ConnectionStatus::Active).await.expect("a connection");
    let code = env.create_link_code(&app, &[Surface::Channel]).await.expect("a code");
    // The entry is written without waiting for ingests to read it.
    let directory =
        Directory::open(&config::jetstream(env.client().clone())).await.expect("the directory");
    let entry = env.store.directory_entry(app.connection).await.expect("a row").expect("there");
    directory.project(app.connection, &entry).await.expect("written");
    let webhook = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", &format!("link {code}"));
    let answer = env.send(&app, &webhook).await.expect("an answer");
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    let reply = env
        .slack
        .wait_for_receipt("the reply to the command", |r| webhook.response_url.ends_with(&r.to))
        .await;
    assert_eq!(reply.text(), "Linked. *Sample agent* answers here now.");
    assert_eq!(env.binding(&app, "C1").await.expect("a look").as_deref(), Some("sample"));
}

/// A connection that is only a row of Postgres is written to the directory by a worker.
#[tokio::test]
async fn syncs_unannounced_connection() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.prepare(ConnectionStatus::Active).await.expect("a row, and nothing else");
    eventually("a worker writes the entry", TIMEOUT, async || {
        let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
        let answer = env.send(&app, &webhook).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
}

/// Once `connections disable` returns, every ingest answers 404 without a retry and stores nothing.
/// `enable` reverses it.
#[tokio::test]
async fn answers_404_when_disabled() {
    let env = TestEnv::start(PAIR).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let id = app.connection.to_string();
    let sent = |app: &App| Webhook::message(&env.slack, app, "C1", "U1", "hello");
    assert_eq!(env.send(&app, &sent(&app)).await.expect("an answer").status, 200);
    env.tidegate(&["connections", "disable", &id]).expect("stopped");
    let before = env.stored().await.expect("a count");
    for ingest in &env.ingests {
        let answer =
            env.slack.send(&ingest.url(&app), &app.secret, &sent(&app)).await.expect("an answer");
        assert_eq!(answer.status, 404);
        assert_eq!(answer.headers["x-slack-no-retry"], "1");
    }
    assert_eq!(env.stored().await.expect("a count"), before);
    env.tidegate(&["connections", "enable", &id]).expect("started");
    for ingest in &env.ingests {
        let answer =
            env.slack.send(&ingest.url(&app), &app.secret, &sent(&app)).await.expect("an answer");
        assert_eq!(answer.status, 200);
    }
}

/// A webhook that was accepted before its connection was disabled has no effect and gets no reply.
#[tokio::test]
async fn ignores_webhook_after_disable() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let code = env.create_link_code(&app, &[Surface::Channel]).await.expect("a code");
    let webhook = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", &format!("link {code}"));
    env.workers[0].process.freeze();
    assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200);
    env.tidegate(&["connections", "disable", &app.connection.to_string()]).expect("stopped");
    env.workers[0].process.thaw();
    assert_eq!(env.wait_for_outcome(&webhook.dedup_key).await.outcome, "ignored");
    assert_eq!(env.binding(&app, "C1").await.expect("a look"), None);
    let open: i64 = sqlx::query_scalar("select count(*) from outbox")
        .fetch_one(&env.pool)
        .await
        .expect("a count");
    assert_eq!(open, 0, "a message waits in the outbox");
}

/// An unknown or malformed connection id gets 404, and nothing is stored.
#[tokio::test]
async fn answers_404_when_unknown() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let known = env.connect().await.expect("a connection");
    let unknown = App { connection: ConnectionId::random().expect("randomness"), ..known };
    let webhook = Webhook::message(&env.slack, &unknown, "C1", "U1", "hello");
    let answer = env.send(&unknown, &webhook).await.expect("an answer");
    assert_eq!((answer.status, answer.headers.get("x-slack-no-retry")), (404, None));
    let path = env.ingests[0].path("/api/v1/webhooks/not-an-id");
    assert_eq!(
        env.slack.send(&path, &unknown.secret, &webhook).await.expect("an answer").status,
        404
    );
    assert_eq!(env.stored().await.expect("a count"), 0);
}

/// A pending connection answers `url_verification` and stores webhooks. Their replies wait for the
/// token.
#[tokio::test]
async fn answers_handshake_while_pending() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.prepare(ConnectionStatus::Pending).await.expect("a connection");
    env.write_directory_entry(&app).await.expect("announced");
    let answer =
        env.send(&app, &Webhook::url_verification(&app, "ch4ll3nge")).await.expect("an answer");
    assert_eq!((answer.status, answer.body.as_str()), (200, "ch4ll3nge"));
    assert_eq!(env.stored().await.expect("a count"), 0);

    let id = app.connection.to_string();
    let token: String = sqlx::query_scalar("select bot_token from connections where id = $1")
        .bind(&id)
        .fetch_one(&env.pool)
        .await
        .expect("a token");
    let set_token = async |token: Option<&str>| {
        let set = sqlx::query("update connections set bot_token = $2 where id = $1");
        set.bind(&id).bind(token).execute(&env.pool).await.expect("changed");
    };
    set_token(None).await;
    let webhook = Webhook::message(&env.slack, &app, "D1", "U1", "/lobu help");
    assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200);
    assert_eq!(env.wait_for_outcome(&webhook.dedup_key).await.outcome, "command");
    tokio::time::sleep(std::time::Duration::from_secs(2)).await; // it would be sent within milliseconds
    assert!(env.slack.receipts().is_empty(), "nothing is sent without a token");
    set_token(Some(&token)).await;
    env.tidegate(&["connections", "enable", &id]).expect("started");
    env.slack.wait_for_receipt("the answer", |receipt| receipt.to == "D1").await;
}

/// A reply that is due while its connection is disabled waits until it is enabled.
#[tokio::test]
async fn holds_replies_while_disabled() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let webhook = Webhook::message(&env.slack, &app, "D1", "U1", "slow:1500 hello");
    env.send(&app, &webhook).await.expect("an answer");
    let count = async |sql: &'static str, expected: i64| {
        let found = sqlx::query_scalar::<_, i64>(sql).fetch_one(&env.pool).await.ok()?;
        (found == expected).then_some(())
    };
    let running = "select count(*) from agent_slots where lane is not null";
    eventually("the agent is asked", TIMEOUT, async || count(running, 1).await).await;
    let id = app.connection.to_string();
    env.tidegate(&["connections", "disable", &id]).expect("stopped");
    let waiting = "select count(*) from outbox";
    eventually("the reply waits", TIMEOUT, async || count(waiting, 1).await).await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await; // it would be sent within milliseconds
    count(waiting, 1).await.expect("it still waits");
    env.tidegate(&["connections", "enable", &id]).expect("started");
    env.slack
        .wait_for_receipt("the reply", |receipt| receipt.text() == "I heard: slow:1500 hello")
        .await;
    count("select count(*) from outbox_failures", 0).await.expect("nothing was given up");
}
