//! Export of an organization, and erasure of a person and of an organization, proved by a search in
//! all stored data.

use reqwest::StatusCode;
use serde_json::{Value, json};
use shared::domain::Surface;
use tests::{
    control_api::Caller,
    dump::{contains, dump_postgres, dump_streams, pg_dump, stream_files},
    eventually::eventually,
    slack::webhook::Webhook,
    test_env::{App, SMALL, TIMEOUT, TestEnv},
};

const PERSON: &str = "U7PERSON";
const DIRECT: &str = "D7PERSON";
const WORDS: &str = "words of the person who is erased";

/// Sends webhooks of a person, who links a channel, mistypes a code and asks in a direct message,
/// and of another person, who asks, too. Waits for the answers.
async fn talk(env: &TestEnv, app: &App) {
    let code = env.create_link_code_by_cli(app, Surface::Channel).expect("a code");
    let link = format!("link {code}");
    for webhook in [
        Webhook::command(&env.slack, app, "C7", PERSON, "/lobu", &link),
        Webhook::command(&env.slack, app, "C7", PERSON, "/lobu", "link AAAA-BBBB-CCCC"),
        Webhook::message(&env.slack, app, DIRECT, PERSON, WORDS),
        Webhook::message(&env.slack, app, "D8", "U8OTHER", "words of another person"),
    ] {
        assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
        env.wait_for_outcome(&webhook.dedup_key).await;
    }
    eventually("the channel is linked", TIMEOUT, async || {
        let bindings = "select count(*) from channel_bindings where channel_id = 'C7'";
        let bindings: i64 =
            sqlx::query_scalar(bindings).fetch_one(&env.pool).await.expect("a count");
        (bindings == 1).then_some(())
    })
    .await;
    for channel in [DIRECT, "D8"] {
        eventually("the agent's answer is sent", TIMEOUT, async || {
            (!env.slack.messages(&app.team, channel).is_empty()).then_some(())
        })
        .await;
    }
}

/// Fails if Postgres, NATS or its files contain one of these texts.
async fn assert_gone(env: &TestEnv, texts: &[&str]) {
    let (mut dump, messages) = (dump_postgres(env).await, dump_streams(env).await);
    dump += &pg_dump(env).await.unwrap_or_default();
    let files = stream_files(env);
    for text in texts {
        let line = dump.lines().find(|line| line.contains(text));
        assert_eq!(line, None, "{text} is in Postgres");
        assert!(!contains(&messages, text), "{text} is in a message of NATS");
        assert!(!contains(&files.bytes, text), "{text} is in a file of the stream");
    }
}

/// Waits until workers have deleted the lanes of a deleted connection.
async fn wait_for_empty_lanes(env: &TestEnv, app: &App) {
    let lanes = "select (select count(*) from outbox_lanes where connection_id = $1)
                      + (select count(*) from delivery_lanes where connection_id = $1)
                      + (select count(*) from outbox_channels where connection_id = $1)";
    eventually("workers have deleted empty lanes", TIMEOUT, async || {
        let lanes = sqlx::query_scalar(lanes).bind(app.connection.to_string());
        let lanes: i64 = lanes.fetch_one(&env.pool).await.expect("a count");
        (lanes == 0).then_some(())
    })
    .await;
}

/// Nothing of the person is left, and what others wrote stays. The ledger accounts for what was
/// overwritten.
#[tokio::test]
async fn erases_person() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.declare().expect("applied");
    talk(&env, &app).await;
    let (dump, messages) = (dump_postgres(&env).await, dump_streams(&env).await);
    assert!(dump.contains(PERSON) && dump.contains(DIRECT), "the person is stored before");
    let by_program = pg_dump(&env).await;
    assert!(
        by_program.is_none_or(|dump| dump.contains(PERSON)),
        "the person is in the dump of pg_dump before"
    );
    assert!(contains(&stream_files(&env).bytes, WORDS), "the words are in the files before");
    assert!(
        contains(&messages, WORDS) && contains(&messages, PERSON),
        "the words are stored before"
    );
    let person = format!("{}/{PERSON}", app.team);
    let without = env.try_tidegate(&["erase", "person", &person]).expect("it runs");
    assert_eq!(without.status.code(), Some(1), "--yes is required");
    eventually("the person has no open deliveries", TIMEOUT, async || {
        let ran = env.try_tidegate(&["erase", "person", &person, "--yes"]).expect("it runs");
        ran.status.success().then_some(())
    })
    .await;
    assert_gone(&env, &[PERSON, WORDS]).await;
    let (dump, messages) = (dump_postgres(&env).await, dump_streams(&env).await);
    assert!(contains(&messages, "words of another person"), "others stay");
    assert!(
        dump.contains("person.erase") && dump.contains("slack-user:"),
        "the erasure is logged without the person"
    );
    env.tidegate(&["ledger", "verify"]).expect("every webhook is accounted for");
}

/// An export has each kind of row of the organization, no secret, and nothing of others. After the
/// erasure only ids of the organization and its connections are left.
#[tokio::test]
async fn exports_and_erases_organization() {
    let mut env = TestEnv::start(SMALL).await.expect("a test environment");
    env.start_control().await.expect("a control API");
    let (app, other) = (env.declare().expect("applied"), env.declare().expect("applied"));
    talk(&env, &app).await;
    let exported = env.tidegate(&["export", app.org.as_str()]).expect("printed");
    for kind in ["organization", "agent", "connection", "binding", "link_code", "audit_entry"] {
        assert!(exported.contains(&format!("{{\"kind\":\"{kind}\"")), "{kind}: {exported}");
    }
    for line in exported.lines() {
        let row: Value = serde_json::from_str(line).expect("JSON");
        assert!(row["row"].is_object(), "{line}");
    }
    for hidden in [&app.token, &app.secret, other.org.as_str(), &other.team, WORDS, "k1:"] {
        assert!(!exported.contains(hidden), "{hidden} is exported");
    }
    let owner = Caller::create(&env, "owner", Some(app.org.as_str()));
    let path = format!("/v1/organizations/{}/export", app.org);
    let response = owner.request(reqwest::Method::GET, &path).send().await.expect("a response");
    assert_eq!(response.status(), StatusCode::OK);
    let by_api = response.text().await.expect("a body");
    assert!(by_api.lines().count() > exported.lines().count(), "the export and the key are logged");

    env.tidegate(&["erase", "organization", app.org.as_str(), "--yes"]).expect("erased");
    wait_for_empty_lanes(&env, &app).await;
    assert_gone(&env, &[PERSON, DIRECT, WORDS, &app.token]).await;
    // The directory keeps the key of the workspace, with a tombstone.
    let (dump, files) = (dump_postgres(&env).await, stream_files(&env).bytes);
    for text in [&app.team, &app.bot_user] {
        let line = dump.lines().find(|line| line.contains(text));
        assert_eq!(line, None, "{text} is in Postgres");
        assert!(!contains(&files, text), "{text} is in a file of the stream");
    }
    let log = env.tidegate(&["audit-log", "--json", "--org", app.org.as_str()]).expect("printed");
    assert!(log.contains("organization.erase") && log.contains("connection.delete"), "{log}");
    env.tidegate(&["ledger", "verify"]).expect("every webhook is accounted for");
    let hello = Webhook::message(&env.slack, &other, "D1", "U1", "hello");
    assert_eq!(env.send(&other, &hello).await.expect("an answer").status, 200);
}

/// Webhooks that intake has not processed when the erasure begins are overwritten once it has.
#[tokio::test]
async fn waits_for_intake_of_organization() {
    let mut env = TestEnv::without_processes(SMALL).await.expect("servers");
    env.start_ingest().await.expect("an ingest");
    let app = env.declare().expect("applied");
    let webhook = Webhook::message(&env.slack, &app, DIRECT, PERSON, WORDS);
    assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200);
    let ran = env.try_tidegate(&["erase", "organization", app.org.as_str(), "--yes"]);
    let ran = ran.expect("it runs");
    let error = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(1), "{error}");
    assert!(error.contains("open webhooks of others: 1"), "{error}");
    env.start_worker().await.expect("a worker");
    eventually("the worker completes the erasure", 4 * TIMEOUT, async || {
        let left = "select count(*) from organizations where id = $1";
        let left = sqlx::query_scalar(left).bind(app.org.as_str());
        let left: i64 = left.fetch_one(&env.pool).await.expect("a count");
        (left == 0).then_some(())
    })
    .await;
    wait_for_empty_lanes(&env, &app).await;
    assert_gone(&env, &[PERSON, DIRECT, WORDS]).await;
    env.tidegate(&["ledger", "verify"]).expect("every webhook is accounted for");
}

/// Complete blocks of the stream are compressed. A person's webhooks in them are overwritten, too.
#[tokio::test]
async fn erases_from_compressed_blocks() {
    /// Webhooks that fill more than a block of 8 MiB. No agent answers them.
    const LARGE: usize = 12;
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.declare().expect("applied");
    for n in 0..LARGE {
        let text: String = (0..18_000).map(|word| format!("{WORDS} {n} {word} ")).collect();
        let webhook = Webhook::message(&env.slack, &app, "C9", PERSON, &text);
        assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200);
        env.wait_for_outcome(&webhook.dedup_key).await;
    }
    let other = Webhook::message(&env.slack, &app, "C9", "U8OTHER", "words of another person");
    assert_eq!(env.send(&app, &other).await.expect("an answer").status, 200);
    let files = eventually("a block is compressed", TIMEOUT, async || {
        let files = stream_files(&env);
        (files.compressed > 0).then_some(files)
    })
    .await;
    println!("compressed blocks: {} of {}", files.compressed, files.blocks);
    let last = format!("{WORDS} 3 17999 ");
    assert!(contains(&files.bytes, &last), "a compressed block is read");
    let person = format!("{}/{PERSON}", app.team);
    eventually("the person has no open deliveries", TIMEOUT, async || {
        let ran = env.try_tidegate(&["erase", "person", &person, "--yes"]).expect("it runs");
        ran.status.success().then_some(())
    })
    .await;
    assert_gone(&env, &[PERSON, WORDS]).await;
    assert!(contains(&dump_streams(&env).await, "words of another person"), "others stay");
    env.tidegate(&["ledger", "verify"]).expect("every webhook is accounted for");
}

/// An owner's key requests erasures, which a worker carries out and which are recorded without the
/// person. An organization's own key erases its organization only.
#[tokio::test]
async fn erases_by_api() {
    let mut env = TestEnv::start(SMALL).await.expect("a test environment");
    env.start_control().await.expect("a control API");
    let (app, other) = (env.declare().expect("applied"), env.declare().expect("applied"));
    talk(&env, &app).await;
    let (owner, operator) =
        (Caller::create(&env, "owner", None), Caller::create(&env, "operator", None));
    let own = Caller::create(&env, "owner", Some(app.org.as_str()));
    let person = json!({ "team": app.team, "user": PERSON });
    let org = json!({ "organization": app.org.as_str() });
    for (caller, path, body, status) in [
        (&operator, "/v1/erasures/people", &person, StatusCode::FORBIDDEN),
        (&operator, "/v1/erasures/organizations", &org, StatusCode::FORBIDDEN),
        (&own, "/v1/erasures/people", &person, StatusCode::NOT_FOUND),
        (
            &own,
            "/v1/erasures/organizations",
            &json!({ "organization": other.org.as_str() }),
            StatusCode::NOT_FOUND,
        ),
        (
            &owner,
            "/v1/erasures/organizations",
            &json!({ "organization": "unknown" }),
            StatusCode::NOT_FOUND,
        ),
    ] {
        let (answered, text) = caller.post(path, body).await;
        assert_eq!(answered, status, "{path} {body}: {text}");
    }
    let wait_until_done = async |erasure: &Value| {
        let path = format!("/v1/erasures/{}", erasure["id"].as_str().expect("an id"));
        eventually("the erasure is done", 4 * TIMEOUT, async || {
            let (_, found) = owner.get(&path).await;
            (found["state"] == "done").then_some(found)
        })
        .await
    };
    let (status, erasure) = owner.post("/v1/erasures/people", &person).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{erasure}");
    let done = wait_until_done(&erasure).await;
    assert_eq!((&done["team"], &done["user"]), (&Value::Null, &Value::Null), "{done}");
    assert!(done["rows"].as_i64() > Some(0) && done["webhooks"].as_i64() > Some(0), "{done}");
    assert_gone(&env, &[PERSON, WORDS]).await;

    let (status, erasure) = own.post("/v1/erasures/organizations", &org).await;
    assert_eq!((status, &erasure["organization"]), (StatusCode::ACCEPTED, &org["organization"]));
    let (_, again) = owner.post("/v1/erasures/organizations", &org).await;
    let is_same = again["id"] == erasure["id"] || again["status"] == 404;
    assert!(is_same, "one erasure at a time: {again}");
    wait_until_done(&erasure).await;
    let (status, _) = own.get("/v1/erasures").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "the organization's keys are deleted");
    wait_for_empty_lanes(&env, &app).await;
    assert_gone(&env, &[PERSON, DIRECT, WORDS, &app.token]).await;
    let left = "select (select count(*) from organizations where id = $1)
                     + (select count(*) from connections where org_id = $1)
                     + (select count(*) from agents where org_id = $1)";
    let left: i64 = sqlx::query_scalar(left)
        .bind(app.org.as_str())
        .fetch_one(&env.pool)
        .await
        .expect("a count");
    assert_eq!(left, 0);
    let log = env.tidegate(&["audit-log", "--json", "--action", "erasure.request"]);
    let log = log.expect("printed");
    assert_eq!(log.lines().count(), 2, "{log}");
    assert!(log.lines().all(|line| line.contains("api-key:")), "{log}");
    for action in ["person.erase", "organization.erase", "organization.delete"] {
        let log = env.tidegate(&["audit-log", "--json", "--action", action]).expect("printed");
        assert!(log.contains("api-key:"), "in the name of the key: {action} {log}");
    }
    env.tidegate(&["ledger", "verify"]).expect("every webhook is accounted for");
    let hello = Webhook::message(&env.slack, &other, "D1", "U1", "hello");
    assert_eq!(
        env.send(&other, &hello).await.expect("an answer").status,
        200,
        "the other organization works"
    );
}
