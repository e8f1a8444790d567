//! Export of an organization, and erasure of a person and of an organization, proved by a search in
//! everything that rests.

use reqwest::StatusCode;
use serde_json::Value;
use shared::domain::Surface;
use std::path::Path;
use tests::{
    control_api::Caller,
    dump::{contains, dump_postgres, dump_streams, read_all},
    eventually::eventually,
    slack::webhook::Webhook,
    test_env::{App, SMALL, TIMEOUT, TestEnv},
};

const PERSON: &str = "U7PERSON";
const DIRECT: &str = "D7PERSON";
const WORDS: &str = "words of the person who is erased";

/// A person links a channel, mistypes a code, and asks in a direct message; another one asks, too.
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

/// Returns the files of the stream of webhooks.
fn stream_files(folder: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true if path.ends_with("SLACK_IN") => bytes.extend(read_all(&path)),
            true => bytes.extend(stream_files(&path)),
            false => {}
        }
    }
    bytes
}

/// Fails if anything that rests contains one of these texts.
async fn assert_gone(env: &TestEnv, texts: &[&str]) {
    let (dump, messages) = (dump_postgres(env).await, dump_streams(env).await);
    let files = stream_files(env.nats.store_dir());
    assert!(!files.is_empty(), "the stream has files");
    for text in texts {
        let line = dump.lines().find(|line| line.contains(text));
        assert_eq!(line, None, "{text} is in Postgres");
        assert!(!contains(&messages, text), "{text} is in a message of NATS");
        assert!(!contains(&files, text), "{text} is in a file of the stream");
    }
}

/// Nothing of the person is left, and what others wrote stays. The ledger accounts for what was
/// overwritten.
#[tokio::test]
async fn erases_person() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.declare().expect("applied");
    talk(&env, &app).await;
    let (dump, messages) = (dump_postgres(&env).await, dump_streams(&env).await);
    assert!(dump.contains(PERSON) && dump.contains(DIRECT), "the person is there before");
    assert!(contains(&messages, WORDS) && contains(&messages, PERSON), "so are the words");
    let person = format!("{}/{PERSON}", app.team);
    let without = env.try_tidegate(&["erase", "person", &person]).expect("it runs");
    assert_eq!(without.status.code(), Some(1), "--yes is required");
    eventually("nothing of the person is open", TIMEOUT, async || {
        let ran = env.try_tidegate(&["erase", "person", &person, "--yes"]).expect("it runs");
        ran.status.success().then_some(())
    })
    .await;
    assert_gone(&env, &[PERSON, WORDS]).await;
    let (dump, messages) = (dump_postgres(&env).await, dump_streams(&env).await);
    assert!(contains(&messages, "words of another person"), "others stay");
    assert!(dump.contains("person.erase") && dump.contains("slack-user:"), "the log tells of it");
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
    let lanes = "select (select count(*) from outbox_lanes where connection_id = $1)
                      + (select count(*) from delivery_lanes where connection_id = $1)
                      + (select count(*) from outbox_channels where connection_id = $1)";
    eventually("workers have deleted empty lanes", TIMEOUT, async || {
        let lanes = sqlx::query_scalar(lanes).bind(app.connection.to_string());
        let lanes: i64 = lanes.fetch_one(&env.pool).await.expect("a count");
        (lanes == 0).then_some(())
    })
    .await;
    assert_gone(&env, &[PERSON, DIRECT, WORDS, &app.token]).await;
    // The directory keeps the key of the workspace, with a tombstone.
    let (dump, files) = (dump_postgres(&env).await, stream_files(env.nats.store_dir()));
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
