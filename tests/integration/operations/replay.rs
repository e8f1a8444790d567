//! Replays of a range of the stream, previewed or applied.

use reqwest::StatusCode;
use serde_json::Value;
use std::{process::Output, sync::Arc, time::Duration};
use tests::{
    control_api::Caller,
    eventually::eventually,
    slack::webhook::Webhook,
    test_env::{App, PAIR, SMALL, Size, TestEnv, agent_id},
};

/// Sends three messages in two conversations and a command. Returns the messages when all are
/// processed.
async fn send_conversations(env: &TestEnv, app: &App) -> Vec<Webhook> {
    let message = |channel, text| Webhook::message(&env.slack, app, channel, "U1", text);
    let webhooks = vec![
        message("D1", "one"),
        message("D2", "two"),
        message("D1", "three"),
        Webhook::command(&env.slack, app, "D1", "U1", "/lobu", "help"),
    ];
    for webhook in &webhooks {
        assert_eq!(env.send(app, webhook).await.expect("an answer").status, 200);
    }
    for webhook in &webhooks {
        env.wait_for_outcome(&webhook.dedup_key).await;
    }
    webhooks
}

fn json_lines(printed: &str) -> Vec<Value> {
    printed.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn run_replay(env: &TestEnv, app: &App, more: &[&str]) -> Output {
    let connection = app.connection.to_string();
    let args = ["replay", "--connection", &connection, "--from", "1h", "--timeout", "60s"];
    env.try_tidegate(&[&args, more].concat()).expect("it runs")
}

fn stdout(ran: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(ran.status.success(), "{}{}", text(&ran.stdout), text(&ran.stderr));
    text(&ran.stdout)
}

async fn count_rows(env: &TestEnv, query: &'static str) -> i64 {
    sqlx::query_scalar(query).fetch_one(&env.pool).await.expect("a count")
}

/// A replay without `--apply` shows the effects and changes nothing. With it, deliveries are
/// repeated once per name.
#[tokio::test(flavor = "multi_thread")]
async fn previews_before_apply() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let other = env.connect().await.expect("another");
    let foreign = Webhook::command(&env.slack, &other, "D1", "U1", "/lobu", "help");
    env.send(&other, &foreign).await.expect("an answer");
    send_conversations(&env, &app).await;
    let sent = "select count(*) from outbox_log";
    eventually("all messages are sent", Duration::from_secs(20), async || {
        (count_rows(&env, sent).await == 5).then_some(())
    })
    .await;

    let shown = json_lines(&stdout(&run_replay(&env, &app, &["--json"])));
    let effects: Vec<&Value> = shown.iter().map(|line| &line["effects"][0]).collect();
    let call = format!("call agent {}/sample", app.org);
    let call = call.as_str();
    assert_eq!(
        effects,
        [call, call, call, "send by response_url"],
        "of this connection alone, in order"
    );
    assert_eq!(env.agent.requests().len(), 3, "the agent is not called again");
    assert_eq!(count_rows(&env, sent).await, 5, "no message is sent again");

    let shown =
        json_lines(&stdout(&run_replay(&env, &app, &["--apply", "--name", "again", "--json"])));
    assert_eq!(shown.len(), 4, "{shown:?}");
    eventually("the agents' answers are sent again", Duration::from_secs(20), async || {
        (count_rows(&env, sent).await == 8).then_some(())
    })
    .await;
    let asked = env.agent.requests();
    let of = |channel: &str| -> Vec<_> {
        let asked = asked[3..].iter().filter(|a| a.question["channel"] == channel);
        asked.map(|a| a.question["text"].clone()).collect()
    };
    assert_eq!((of("D1"), of("D2")), (vec!["one".into(), "three".into()], vec!["two".into()]));
    stdout(&run_replay(&env, &app, &["--apply", "--name", "again"]));
    assert_eq!(env.agent.requests().len(), 6, "one name is one replay");
    let live = "select sum(messages)::bigint from partition_cursors";
    assert_eq!(count_rows(&env, live).await, 5, "the live counts are unchanged");
}

/// After a stream reset, replayed deliveries have the generation of the stream they are read from.
#[tokio::test(flavor = "multi_thread")]
async fn records_current_generation() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    send_conversations(&env, &app).await;
    let raise = "update partition_cursors set generation = 3";
    sqlx::query(raise).execute(&env.pool).await.expect("raised");
    stdout(&run_replay(&env, &app, &["--apply", "--name", "later"]));
    let replayed = "select count(*) from delivery_log
                     where dedup_key like '%:replay:%' and generation = 3";
    eventually("the replayed deliveries end", Duration::from_secs(20), async || {
        (count_rows(&env, replayed).await == 3).then_some(())
    })
    .await;
}

/// Another worker continues the replay of a killed one, and enqueues nothing a second time.
#[tokio::test(flavor = "multi_thread")]
async fn survives_killed_worker() {
    let env = TestEnv::start(PAIR).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    for n in 0..6 {
        let webhook = Webhook::message(&env.slack, &app, "D1", "U1", &format!("hello {n}"));
        env.send(&app, &webhook).await.expect("an answer");
        env.wait_for_outcome(&webhook.dedup_key).await;
    }
    let env = Arc::new(env);
    // Results can be read, but not written: the replay waits in the middle.
    let mut lock = env.pool.begin().await.expect("a transaction");
    let mode = sqlx::query("lock table replay_results in share row exclusive mode");
    mode.execute(&mut *lock).await.expect("locked");
    let replaying = tokio::task::spawn_blocking({
        let (env, app) = (Arc::clone(&env), app.clone());
        move || stdout(&run_replay(&env, &app, &["--apply", "--json"]))
    });
    let owner: String = eventually("the replay runs", Duration::from_secs(20), async || {
        let some = "select worker from replays where worker is not null and state = 'open'";
        sqlx::query_scalar(some).fetch_optional(&env.pool).await.ok()?
    })
    .await;
    let killed = env.workers.iter().find(|worker| worker.id == owner).expect("one of ours");
    killed.process.kill();
    lock.rollback().await.expect("unlocked");
    let shown = json_lines(&replaying.await.expect("it ends"));
    assert_eq!(shown.len(), 6, "{shown:?}");
    assert!(count_rows(&env, "select epoch from replays").await >= 2, "another worker continued");
    let completed = "select count(*) from delivery_log where outcome = 'completed'";
    eventually(
        "each is delivered twice: live, and replayed",
        Duration::from_secs(30),
        async || (count_rows(&env, completed).await == 12).then_some(()),
    )
    .await;
    assert_eq!(count_rows(&env, "select count(*) from deliveries").await, 0);
}

/// A delivery that Postgres does not take is not reported as enqueued.
#[tokio::test(flavor = "multi_thread")]
async fn fails_without_commit() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    send_conversations(&env, &app).await;
    let refuse = "create function refuse() returns trigger language plpgsql as
                  $$ begin raise exception 'refused'; end $$;
                  create trigger refuse before insert on deliveries
                      for each row execute function refuse()";
    sqlx::raw_sql(refuse).execute(&env.pool).await.expect("a trigger");
    let ran = run_replay(&env, &app, &["--apply", "--name", "refused", "--json"]);
    let error = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(!ran.status.success() && error.contains("refused is failed"), "{error}");
    let results = "select count(*) from replay_results where replay = 'refused'";
    assert_eq!(count_rows(&env, results).await, 0, "the first one was not enqueued");

    sqlx::raw_sql("drop trigger refuse on deliveries").execute(&env.pool).await.expect("dropped");
    let shown = json_lines(&stdout(&run_replay(&env, &app, &["--apply", "--json"])));
    assert_eq!(shown.len(), 4, "{shown:?}");
}

/// A connection has three open replays at most, and one of them runs at a time: those of another
/// connection do not wait for all of them.
#[tokio::test]
async fn bounds_replays_of_connection() {
    let size = Size { ingests: 0, workers: 0, own_postgres: false };
    let mut env = TestEnv::without_processes(size).await.expect("servers");
    env.start_control().await.expect("a control API");
    let (many, other) = (env.declare().expect("applied"), env.declare().expect("applied"));
    let operator = Caller::create(&env, "operator", None);
    let create = async |app: &App| {
        let body = serde_json::json!({
            "connection": app.connection, "from": "2026-01-01T00:00:00Z",
            "to": "2026-01-02T00:00:00Z",
        });
        operator.post("/v1/replays", &body).await.0
    };
    for _ in 0..3 {
        assert_eq!(create(&many).await, StatusCode::CREATED);
    }
    assert_eq!(create(&many).await, StatusCode::CONFLICT);
    assert_eq!(create(&other).await, StatusCode::CREATED);
    let claim = async || {
        let claimed = env.store.claim_replay("w", Duration::from_secs(60)).await;
        claimed.expect("Postgres").map(|replay| replay.connection)
    };
    assert_eq!(claim().await, Some(many.connection), "the oldest");
    assert_eq!(claim().await, Some(other.connection));
    assert_eq!(claim().await, None);
}
