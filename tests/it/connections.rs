//! Any process takes any connection's webhook, from the moment the connection exists until it is stopped.

use shared::{
    config,
    directory::Directory,
    types::{ConnectionId, Status, Surface},
};
use tests::{
    slack::webhook::Webhook,
    until::until,
    world::{App, PAIR, SMALL, SOON, World, agent_id},
};

/// The fault this product was made to remove: a slash command lands on a process that never saw its connection, is
/// answered 404, is never sent again, and the claim is never consumed.
#[tokio::test]
async fn a_webhook_for_a_connection_no_process_has_seen_is_handled() {
    let world = World::start(PAIR).await.expect("a world");
    let app = world.prepare(Status::Active).await.expect("a connection");
    let code = world.mint(&app, &[Surface::Channel]).await.expect("a code");
    // The entry is written, and nobody waits for anyone to have read it.
    let directory =
        Directory::open(&config::jetstream(world.client().clone())).await.expect("the directory");
    let entry = world.store.directory_entry(app.connection).await.expect("a row").expect("there");
    directory.project(app.connection, &entry).await.expect("written");
    let webhook =
        Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", &format!("link {code}"));
    let answer = world.send(&app, &webhook).await.expect("an answer");
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    let said =
        world.slack.told("the person hears", |r| webhook.response_url.ends_with(&r.to)).await;
    assert_eq!(said.text(), "Linked. *Sample agent* answers here now.");
    assert_eq!(world.binding(&app, "C1").await.expect("a look").as_deref(), Some("sample"));
}

#[tokio::test]
async fn a_connection_that_nobody_announced_is_announced_by_a_worker() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.prepare(Status::Active).await.expect("a row, and nothing else");
    until("a worker writes the directory", SOON, async || {
        let webhook = Webhook::message(&world.slack, &app, "C1", "U1", "hello");
        let answer = world.send(&app, &webhook).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_stopped_connection_is_answered_404() {
    let world = World::start(PAIR).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let id = app.connection.to_string();
    let sent = |app: &App| Webhook::message(&world.slack, app, "C1", "U1", "hello");
    assert_eq!(world.send(&app, &sent(&app)).await.expect("an answer").status, 200);
    world.tidegate(&["connections", "disable", &id]).expect("stopped");
    let before = world.stored().await.expect("a count");
    for ingest in &world.ingests {
        let answer =
            world.slack.send(&ingest.url(&app), &app.secret, &sent(&app)).await.expect("an answer");
        assert_eq!(answer.status, 404);
        assert_eq!(answer.headers["x-slack-no-retry"], "1");
    }
    assert_eq!(world.stored().await.expect("a count"), before);
    world.tidegate(&["connections", "enable", &id]).expect("started");
    for ingest in &world.ingests {
        let answer =
            world.slack.send(&ingest.url(&app), &app.secret, &sent(&app)).await.expect("an answer");
        assert_eq!(answer.status, 200);
    }
}

#[tokio::test]
async fn a_connection_stopped_between_accept_and_handling_has_no_effect() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let code = world.mint(&app, &[Surface::Channel]).await.expect("a code");
    let webhook =
        Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", &format!("link {code}"));
    world.workers[0].process.freeze();
    assert_eq!(world.send(&app, &webhook).await.expect("an answer").status, 200);
    world.tidegate(&["connections", "disable", &app.connection.to_string()]).expect("stopped");
    world.workers[0].process.thaw();
    assert_eq!(world.handled(&webhook.dedupe).await.outcome, "ignored");
    assert_eq!(world.binding(&app, "C1").await.expect("a look"), None);
    let open: i64 = sqlx::query_scalar("select count(*) from outbox")
        .fetch_one(&world.pool)
        .await
        .expect("a count");
    assert_eq!(open, 0, "nothing is to be said, now or later");
}

#[tokio::test]
async fn an_unknown_connection_is_answered_404() {
    let world = World::start(SMALL).await.expect("a world");
    let known = world.connect().await.expect("a connection");
    let unknown = App { connection: ConnectionId::random().expect("randomness"), ..known };
    let webhook = Webhook::message(&world.slack, &unknown, "C1", "U1", "hello");
    let answer = world.send(&unknown, &webhook).await.expect("an answer");
    assert_eq!((answer.status, answer.headers.get("x-slack-no-retry")), (404, None));
    let path = world.ingests[0].path("/api/v1/webhooks/not-an-id");
    assert_eq!(
        world.slack.send(&path, &unknown.secret, &webhook).await.expect("an answer").status,
        404
    );
    assert_eq!(world.stored().await.expect("a count"), 0);
}

#[tokio::test]
async fn a_pending_connection_answers_the_handshake_and_its_replies_wait() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.prepare(Status::Pending).await.expect("a connection");
    world.project(&app).await.expect("announced");
    let answer =
        world.send(&app, &Webhook::url_verification(&app, "ch4ll3nge")).await.expect("an answer");
    assert_eq!((answer.status, answer.body.as_str()), (200, "ch4ll3nge"));
    assert_eq!(world.stored().await.expect("a count"), 0);

    let id = app.connection.to_string();
    let token: String = sqlx::query_scalar("select bot_token from connections where id = $1")
        .bind(&id)
        .fetch_one(&world.pool)
        .await
        .expect("a token");
    let set_token = async |token: Option<&str>| {
        let set = sqlx::query("update connections set bot_token = $2 where id = $1");
        set.bind(&id).bind(token).execute(&world.pool).await.expect("changed");
    };
    set_token(None).await;
    let webhook = Webhook::message(&world.slack, &app, "D1", "U1", "/lobu help");
    assert_eq!(world.send(&app, &webhook).await.expect("an answer").status, 200);
    assert_eq!(world.handled(&webhook.dedupe).await.outcome, "command");
    tokio::time::sleep(std::time::Duration::from_secs(2)).await; // it would be sent within milliseconds
    assert!(world.slack.receipts().is_empty(), "nothing is sent without a token");
    set_token(Some(&token)).await;
    world.tidegate(&["connections", "enable", &id]).expect("started");
    world.slack.told("the answer", |told| told.to == "D1").await;
}

#[tokio::test]
async fn replies_of_a_stopped_connection_wait_until_it_is_started() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let webhook = Webhook::message(&world.slack, &app, "D1", "U1", "slow:1500 hello");
    world.send(&app, &webhook).await.expect("an answer");
    let count = async |sql: &'static str, expected: i64| {
        let found = sqlx::query_scalar::<_, i64>(sql).fetch_one(&world.pool).await.ok()?;
        (found == expected).then_some(())
    };
    let running = "select count(*) from agent_slots where lane is not null";
    until("the agent is asked", SOON, async || count(running, 1).await).await;
    let id = app.connection.to_string();
    world.tidegate(&["connections", "disable", &id]).expect("stopped");
    let waiting = "select count(*) from outbox";
    until("the reply waits", SOON, async || count(waiting, 1).await).await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await; // it would be sent within milliseconds
    count(waiting, 1).await.expect("it still waits");
    world.tidegate(&["connections", "enable", &id]).expect("started");
    world.slack.told("the reply", |told| told.text() == "I heard: slow:1500 hello").await;
    count("select count(*) from outbox_failures", 0).await.expect("nothing was given up");
}
