//! Wrong clocks: only the age of a signature is judged by comparing the clocks of two machines.
//! Everything else follows Postgres's clock, the stream's times, or Slack's.
//!
//! Without libfaketime, which `.ci/run` installs, these tests pass without testing anything.

use reqwest::StatusCode;
use shared::domain::Surface;
use std::time::{Duration, Instant};
use tests::{
    eventually::eventually,
    fake_time,
    slack::{tokens::Installation, webhook::Webhook},
    test_env::{App, Size, TIMEOUT, TestEnv, agent_id},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };
/// Pace of a channel.
const PACE: Duration = Duration::from_millis(500);
/// Maximum time of a round of retention, and of the directory's comparison if a notification is
/// lost.
const MAINTAINED_WITHIN: Duration = Duration::from_secs(60);

/// Starts processes with wrong clocks: ingests by as much as the age of a signature allows, all
/// others by an hour. `tidegate` is an hour ahead. Returns `None` without libfaketime.
async fn start() -> Option<TestEnv> {
    if fake_time::settings("+1h").is_none() {
        eprintln!("skipped: {}", fake_time::MISSING);
        return None;
    }
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    env.set("TIDEGATE_SLACK_CHANNEL_MIN_INTERVAL", &format!("{}ms", PACE.as_millis()));
    for off in ["+4m", "-4m"] {
        env.set_clock(off);
        env.start_ingest().await.expect("an ingest");
    }
    for off in ["-1h", "+1h"] {
        env.set_clock(off);
        env.start_worker().await.expect("a worker");
    }
    env.start_control().await.expect("a control API");
    env.wait_until_balanced().await.expect("both own partitions");
    Some(env)
}

async fn connect(env: &TestEnv) -> App {
    env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection")
}

async fn epochs(env: &TestEnv) -> i64 {
    let sum = sqlx::query_scalar("select sum(epoch)::bigint from partition_cursors");
    sum.fetch_one(&env.pool).await.expect("a sum")
}

/// Sends a message and waits for its answer.
async fn ask(env: &TestEnv, app: &App, text: &str) {
    let webhook = Webhook::message(&env.slack, app, "C1", "U1", text);
    assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
    let expected = format!("I heard: {text}");
    env.slack
        .wait_for_receipt("the answer", |r| r.by == "chat.postMessage" && r.text() == expected)
        .await;
}

/// Workers with wrong clocks keep their leases, and a channel's messages keep their interval.
#[tokio::test(flavor = "multi_thread")]
async fn keeps_leases_and_pace() {
    let Some(env) = start().await else { return };
    let app = connect(&env).await;
    let before = epochs(&env).await;
    let began = Instant::now();
    for n in 0..5 {
        ask(&env, &app, &format!("message {n}")).await;
    }
    let took = began.elapsed();
    assert!((4 * PACE..TIMEOUT).contains(&took), "five messages took {took:?}");
    env.wait_until_balanced().await.expect("both own partitions");
    assert_eq!(epochs(&env).await, before, "a partition changed its owner");
}

/// Link codes, API keys and idempotency keys are valid for their time by Postgres's clock, whatever
/// the clock of the machine that creates or checks them.
#[tokio::test(flavor = "multi_thread")]
async fn keeps_validity_of_codes_and_keys() {
    let Some(env) = start().await else { return };
    let app = connect(&env).await;
    let link = async |ttl: &str, channel: &str| {
        let id = app.connection.to_string();
        let (org, agent) = (app.org.as_str(), agent_id().to_string());
        let args = ["link-codes", "create", "--org", org, "--agent", &agent, "--ttl", ttl];
        let on = ["--surfaces", Surface::Channel.as_str(), "--connection", &id];
        let code = env.tidegate(&[&args[..], &on[..]].concat()).expect("a code");
        if ttl == "1s" {
            let left = "select count(*) from link_codes
                         where consumed_at is null and expires_at > now()";
            eventually("the code has expired", TIMEOUT, async || {
                let left: i64 = sqlx::query_scalar(left).fetch_one(&env.pool).await.ok()?;
                (left == 0).then_some(())
            })
            .await;
        }
        let text = format!("link {}", code.trim());
        let command = Webhook::command(&env.slack, &app, channel, "U1", "/lobu", &text);
        assert_eq!(env.send(&app, &command).await.expect("an answer").status, 200);
        env.wait_for_outcome(&command.dedup_key).await;
        env.binding(&app, channel).await.expect("Postgres")
    };
    assert!(link("5m", "C7").await.is_some(), "the code is valid for five minutes");
    let bound = "select count(*) from channel_bindings where channel_id = 'C8'";
    link("1s", "C8").await;
    let bound: i64 = sqlx::query_scalar(bound).fetch_one(&env.pool).await.expect("a count");
    assert_eq!(bound, 0, "the code has expired");

    let create = |ttl: &str| {
        let args = ["api-keys", "create", "--role", "owner", "--all-orgs", "--ttl", ttl];
        env.tidegate(&args).expect("a key").trim().to_owned()
    };
    let ask = async |key: &str| {
        let url = env.controls[0].path("/v1/organizations");
        reqwest::Client::new().get(url).bearer_auth(key).send().await.expect("an answer").status()
    };
    let (long, short) = (create("30m"), create("1s"));
    assert_eq!(ask(&long).await, StatusCode::OK);
    // A repeated write gets the first response for a day.
    let url = env.controls[0].path(&format!("/v1/organizations/{}/link-codes", app.org));
    let body = serde_json::json!({ "agent": agent_id().as_str(), "surfaces": ["channel"] });
    for is_repeated in [false, true] {
        let request = reqwest::Client::new().post(&url).bearer_auth(&long).json(&body);
        let response = request.header("idempotency-key", "order-1").send().await.expect("it");
        assert_eq!(response.status(), StatusCode::CREATED);
        assert_eq!(response.headers().contains_key("idempotency-replayed"), is_repeated);
        let older = "update idempotency_keys set at = at - interval '23 hours 30 minutes'";
        sqlx::query(older).execute(&env.pool).await.expect("a row");
    }
    eventually("the key expires", TIMEOUT, async || {
        (ask(&short).await == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
}

/// A worker with a wrong clock refreshes a due token, and none that is valid for another half hour.
#[tokio::test(flavor = "multi_thread")]
async fn refreshes_tokens_when_due() {
    let Some(env) = start().await else { return };
    env.slack.register_client("1.2", "client secret");
    let rotate = async |expires_in: &str| {
        let app = connect(&env).await;
        let installation = Installation::new(&app.app, &app.team, &app.bot_user);
        let pair = env.slack.install_rotating(installation);
        let id = app.connection.to_string();
        let secrets = ["client secret", &pair.refresh].map(|it| env.secret_argument(it));
        let [client, refresh] = secrets.map(|it| it.expect("a file"));
        let args = ["connections", "enable-token-rotation", &id, "--client-id=1.2"];
        let more = ["--client-secret", &client, "--refresh-token", &refresh];
        let expires_in = format!("--expires-in={expires_in}");
        env.tidegate(&[&args[..], &more[..], &[&expires_in]].concat()).expect("it rotates");
        app.connection.to_string()
    };
    let refreshed = async |id: &str| -> i64 {
        let generation = "select generation from token_rotations where connection_id = $1";
        sqlx::query_scalar(generation).bind(id).fetch_one(&env.pool).await.expect("a row")
    };
    let later = rotate("30m").await;
    for (n, worker) in env.workers.iter().enumerate() {
        let due = rotate("1s").await;
        eventually("the due token is refreshed", TIMEOUT, async || {
            (refreshed(&due).await == 1).then_some(())
        })
        .await;
        assert_eq!(refreshed(&later).await, 0, "half an hour is left");
        if n == 0 {
            worker.process.kill(); // the other worker has to refresh the next one
        }
    }
}

/// Retention and the overlap of signing secrets follow Postgres's clock, whichever worker applies
/// them.
#[tokio::test(flavor = "multi_thread")]
async fn expires_rows_and_secrets() {
    let Some(env) = start().await else { return };
    let app = connect(&env).await;
    let id = app.connection.to_string();
    let insert = "insert into user_questions (connection_id, user_id, partition, minute, asked, told, at)
                  select $1, user_id, 1, 1, 1, false, now() - age
                    from (values ('UNEW', interval '9 minutes'), ('UOLD', interval '11 minutes')) v (user_id, age)";
    sqlx::query(insert).bind(&id).execute(&env.pool).await.expect("rows");
    let insert = "insert into dead_letters (stage, partition, generation, sequence, subject, connection_id, reason, attempts, payload, at)
                  select 'intake', 1, 1, 1, 'x', $1, reason, 0, '\\x00', now() - age
                    from (values ('new', interval '30 days' - interval '30 minutes'),
                                 ('old', interval '30 days 30 minutes')) v (reason, age)";
    sqlx::query(insert).bind(&id).execute(&env.pool).await.expect("rows");
    let rows = "select (select string_agg(user_id, ' ') from user_questions),
                       (select string_agg(reason, ' ') from dead_letters)";
    let deleted = async || {
        eventually("the expired rows are deleted", MAINTAINED_WITHIN, async || {
            let left: (Option<String>, Option<String>) =
                sqlx::query_as(rows).fetch_one(&env.pool).await.ok()?;
            let left = (left.0.unwrap_or_default(), left.1.unwrap_or_default());
            assert!(left.0.contains("UNEW") && left.1.contains("new"), "{left:?}");
            (left == ("UNEW".into(), "new".into())).then_some(())
        })
        .await;
    };
    deleted().await;
    // The owner of partition 0 runs retention. The other worker gets its turn.
    let owner = "select owner from partition_cursors where partition = 0";
    let owner: String = sqlx::query_scalar(owner).fetch_one(&env.pool).await.expect("a row");
    let owner = env.workers.iter().find(|worker| worker.id == owner).expect("one of ours");
    owner.process.kill();
    let insert = "insert into user_questions (connection_id, user_id, partition, minute, asked, told, at)
                  select connection_id, 'UOLD', 1, 1, 1, false, now() - interval '11 minutes' from user_questions";
    sqlx::query(insert).execute(&env.pool).await.expect("a row");
    deleted().await;

    let status = async |ingest: usize, secret: &str| {
        let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
        let url = env.ingests[ingest].url(&app);
        env.slack.send(&url, secret, &webhook).await.expect("an answer").status
    };
    let rotate = |secret: &str, overlap: &str| {
        let secret = env.secret_argument(secret).expect("a file");
        let args = ["connections", "rotate-signing-secret", &id, "--secret", &secret];
        env.tidegate(&[&args[..], &["--overlap", overlap]].concat()).expect("rotated");
    };
    rotate("the second", "2m");
    for ingest in 0..2 {
        assert_eq!(
            status(ingest, &app.secret).await,
            200,
            "the overlap of two minutes has not ended"
        );
    }
    rotate("the third", "1s");
    for ingest in 0..2 {
        eventually("the second secret ends", MAINTAINED_WITHIN, async || {
            (status(ingest, "the second").await == 401).then_some(())
        })
        .await;
        assert_eq!(status(ingest, "the third").await, 200);
    }
}

/// The range of a replay ends now by Postgres's clock. An uninstallation without a time is dated by
/// Slack's signature, not by the ingest's clock.
#[tokio::test(flavor = "multi_thread")]
async fn dates_replays_and_removals() {
    let Some(env) = start().await else { return };
    let app = connect(&env).await;
    ask(&env, &app, "hello").await;
    let id = app.connection.to_string();
    let args = ["replay", "--connection", &id, "--from", "10m", "--timeout", "60s", "--json"];
    let replayed = env.tidegate(&args).expect("the message is found");
    assert_eq!(replayed.lines().count(), 1, "{replayed}");
    let listed = env.tidegate(&["audit-log", "--from", "10m"]).expect("the replay is listed");
    assert!(listed.contains("replay.create"), "{listed}");

    let inner = serde_json::json!({ "type": "app_uninstalled" });
    let mut webhook = Webhook::event(&env.slack, &app, "app_uninstalled", inner);
    let mut body: serde_json::Value = serde_json::from_slice(&webhook.body).expect("JSON");
    body.as_object_mut().expect("an object").remove("event_time");
    webhook.body = body.to_string().into_bytes();
    // By the clock of this ingest, which is behind, the app was removed before it was installed.
    let url = env.ingests[1].url(&app);
    let answer = env.slack.send(&url, &app.secret, &webhook).await.expect("an answer");
    assert_eq!(answer.status, 200);
    let status = "select status from connections where id = $1";
    eventually("the connection is revoked", TIMEOUT, async || {
        let status: String =
            sqlx::query_scalar(status).bind(&id).fetch_one(&env.pool).await.ok()?;
        (status == "revoked").then_some(())
    })
    .await;
}
