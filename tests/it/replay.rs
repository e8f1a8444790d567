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
    let args = ["replay", "--connection", &connection, "--from", "1h", "--timeout", "60s"];
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
    let said = "select count(*) from outbox_log";
    until("all is said", Duration::from_secs(20), async || {
        (count(&world, said).await == 5).then_some(())
    })
    .await;

    let shown = lines(&stdout(&replay(&world, &app, &["--json"])));
    let effects: Vec<&Value> = shown.iter().map(|line| &line["effects"][0]).collect();
    let call = format!("call agent {}/sample", app.org);
    let call = call.as_str();
    assert_eq!(
        effects,
        [call, call, call, "send by response_url"],
        "of this connection alone, in order"
    );
    assert_eq!(world.agent.asked().len(), 3, "nobody was asked again");
    assert_eq!(count(&world, said).await, 5, "nothing is said again");

    let shown = lines(&stdout(&replay(&world, &app, &["--apply", "--name", "again", "--json"])));
    assert_eq!(shown.len(), 4, "{shown:?}");
    until("what agents answered is said once more", Duration::from_secs(20), async || {
        (count(&world, said).await == 8).then_some(())
    })
    .await;
    let asked = world.agent.asked();
    let of = |channel: &str| -> Vec<_> {
        let asked = asked[3..].iter().filter(|a| a.question["channel"] == channel);
        asked.map(|a| a.question["text"].clone()).collect()
    };
    assert_eq!((of("D1"), of("D2")), (vec!["one".into(), "three".into()], vec!["two".into()]));
    stdout(&replay(&world, &app, &["--apply", "--name", "again"]));
    assert_eq!(world.agent.asked().len(), 6, "one name is one replay");
    let live = "select sum(messages)::bigint from partition_cursors";
    assert_eq!(count(&world, live).await, 5, "the live flow is as it was");
}

/// The worker that runs a replay is killed in it: another goes on, and nothing is enqueued a second time.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_outlives_the_worker_that_runs_it() {
    let world = World::start(PAIR).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    for n in 0..6 {
        let webhook = Webhook::message(&world.slack, &app, "D1", "U1", &format!("hello {n}"));
        world.send(&app, &webhook).await.expect("an answer");
        world.handled(&webhook.dedupe).await;
    }
    let world = Arc::new(world);
    // Results can be read, but not written: whoever runs the replay waits in the middle of it.
    let mut lock = world.pool.begin().await.expect("a transaction");
    let mode = sqlx::query("lock table replay_results in share row exclusive mode");
    mode.execute(&mut *lock).await.expect("locked");
    let replaying = tokio::task::spawn_blocking({
        let (world, app) = (Arc::clone(&world), app.clone());
        move || stdout(&replay(&world, &app, &["--apply", "--json"]))
    });
    let owner: String = until("it has begun", Duration::from_secs(20), async || {
        let some = "select worker from replays where worker is not null and state = 'open'";
        sqlx::query_scalar(some).fetch_optional(&world.pool).await.ok()?
    })
    .await;
    let killed = world.workers.iter().find(|worker| worker.id == owner).expect("one of ours");
    killed.process.kill();
    lock.rollback().await.expect("unlocked");
    let shown = lines(&replaying.await.expect("it ends"));
    assert_eq!(shown.len(), 6, "{shown:?}");
    assert!(count(&world, "select epoch from replays").await >= 2, "another went on");
    let completed = "select count(*) from delivery_log where outcome = 'completed'";
    until("each is delivered twice: live, and replayed", Duration::from_secs(30), async || {
        (count(&world, completed).await == 12).then_some(())
    })
    .await;
    assert_eq!(count(&world, "select count(*) from deliveries").await, 0);
}
