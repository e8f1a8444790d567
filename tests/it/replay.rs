//! A stretch of the stream can be handled once more: for a look, or in earnest.

use serde_json::Value;
use std::{process::Output, sync::Arc, time::Duration};
use tests::{
    slack::webhook::Webhook,
    until::until,
    world::{App, PAIR, SMALL, World, agent_id},
};

/// Says three things in two conversations and types a command; gives what was said, once all is done.
async fn spoken(world: &World, app: &App) -> Vec<Webhook> {
    let message = |channel, text| Webhook::message(&world.slack, app, channel, "U1", text);
    let said = vec![
        message("D1", "one"),
        message("D2", "two"),
        message("D1", "three"),
        Webhook::command(&world.slack, app, "D1", "U1", "/lobu", "help"),
    ];
    for webhook in &said {
        assert_eq!(world.send(app, webhook).await.expect("an answer").status, 200);
    }
    for webhook in &said {
        world.handled(&webhook.dedupe).await;
    }
    said
}

fn lines(printed: &str) -> Vec<Value> {
    printed.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn replay(world: &World, app: &App, more: &[&str]) -> Output {
    let connection = app.connection.to_string();
    let args = ["replay", "--connection", &connection, "--from", "1h", "--within", "60s"];
    world.try_tidegate(&[&args, more].concat()).expect("it runs")
}

fn stdout(ran: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(ran.status.success(), "{}{}", text(&ran.stdout), text(&ran.stderr));
    text(&ran.stdout)
}

async fn count(world: &World, query: &'static str) -> i64 {
    sqlx::query_scalar(query).fetch_one(&world.pool).await.expect("a count")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_says_what_would_happen_and_changes_nothing_until_it_is_applied() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let other = world.connect().await.expect("another");
    let foreign = Webhook::command(&world.slack, &other, "D1", "U1", "/lobu", "help");
    world.send(&other, &foreign).await.expect("an answer");
    spoken(&world, &app).await;
    let said = "select count(*) from outbox where state = 'sent'";
    until("all is said", Duration::from_secs(20), async || {
        (count(&world, said).await == 5).then_some(())
    })
    .await;

    let shown = lines(&stdout(&replay(&world, &app, &["--json"])));
    let effects: Vec<&Value> = shown.iter().map(|line| &line["effects"][0]).collect();
    let ask = "ask agent sample";
    assert_eq!(
        effects,
        [ask, ask, ask, "say by response_url"],
        "of this connection alone, in order"
    );
    assert_eq!(world.agent.asked().len(), 3, "nobody was asked again");
    assert_eq!(count(&world, "select count(*) from outbox").await, 5, "nothing is said again");

    let shown = lines(&stdout(&replay(&world, &app, &["--apply", "--name", "again", "--json"])));
    assert!(shown.iter().all(|line| line["outcome"] == "done"), "{shown:?}");
    let asked: Vec<_> = world.agent.asked().iter().map(|a| a.question["text"].clone()).collect();
    assert_eq!(asked[3..], ["one", "two", "three"]);
    until("all of it is said once more", Duration::from_secs(20), async || {
        (count(&world, said).await == 9).then_some(())
    })
    .await;
    stdout(&replay(&world, &app, &["--apply", "--name", "again"]));
    assert_eq!(world.agent.asked().len(), 6, "one name is one replay");
    let live = "select count(*) from seen where scope = 'live' and outcome = 'done'";
    assert_eq!(count(&world, live).await, 5, "the live flow is as it was");
}

/// The worker that runs a replay is killed in it: another goes on, and nothing is said a second time.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_outlives_the_worker_that_runs_it() {
    let world = World::start(PAIR).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    for n in 0..6 {
        let webhook = Webhook::message(&world.slack, &app, "D1", "U1", &format!("slow:500 {n}"));
        world.send(&app, &webhook).await.expect("an answer");
    }
    let live = "select count(*) from seen where scope = 'live' and outcome = 'done'";
    until("all is done", Duration::from_secs(30), async || {
        (count(&world, live).await == 6).then_some(())
    })
    .await;
    let world = Arc::new(world);
    let replaying = tokio::task::spawn_blocking({
        let (world, app) = (Arc::clone(&world), app.clone());
        move || stdout(&replay(&world, &app, &["--apply", "--json"]))
    });
    let owner: String = until("it has begun", Duration::from_secs(20), async || {
        let some = "select owner from replays where cursor > 0 and state = 'open'";
        sqlx::query_scalar(some).fetch_optional(&world.pool).await.ok()?
    })
    .await;
    let killed = world.workers.iter().find(|worker| worker.id == owner).expect("one of ours");
    killed.process.kill();
    let shown = lines(&replaying.await.expect("it ends"));
    assert!(shown.len() == 6 && shown.iter().all(|line| line["outcome"] == "done"), "{shown:?}");
    let by: i64 = count(&world, "select epoch from replays").await;
    assert_eq!(by, 2, "another went on");
    assert_eq!(
        count(&world, "select count(*) from seen where scope <> 'live' and outcome = 'done'").await,
        6
    );
    assert_eq!(
        count(&world, "select count(*) from outbox").await,
        12,
        "each is said twice: live, and replayed"
    );
}
