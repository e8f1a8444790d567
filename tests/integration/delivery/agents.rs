//! Requests to agents and their replies, as documented in `worker/docs/agents.md`.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use shared::{
    domain::AgentMode,
    secrets::Secret,
    store::{NewAgent, NewConnection},
};
use std::path::Path;
use tests::{
    eventually::eventually,
    slack::{Receipt, unix_now, webhook::Webhook},
    test_env::{App, SMALL, TIMEOUT, TestEnv, agent_id},
};

fn use_sample_agent(new: &mut NewConnection) {
    new.agent = Some(agent_id());
}

async fn send_message(env: &TestEnv, app: &App, channel: &str, text: &str) -> Webhook {
    let webhook = Webhook::message(&env.slack, app, channel, "U1", text);
    assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
    webhook
}

async fn wait_for_text(env: &TestEnv, text: &str) -> Receipt {
    let wanted = format!("I heard: {text}");
    env.slack.wait_for_receipt(text, |receipt| receipt.text() == wanted).await
}

/// Returns an error if a value does not match a definition of the schema.
fn check_schema(part: &str, value: &Value) -> Result<(), String> {
    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../worker/docs/agent.schema.json"));
    let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
    let url = format!("{}#/$defs/{part}", file.canonicalize().expect("the schema").display());
    let schema = compiler.compile(&url, &mut schemas).expect("a schema");
    schemas.validate(value, schema).map_err(|wrong| wrong.to_string())
}

/// Requests match the schema, are signed, and have the same id in all attempts.
#[tokio::test]
async fn sends_requests_as_documented() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(use_sample_agent).await.expect("a connection");
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let agent = NewAgent {
        org: app.org.clone(),
        id: agent_id(),
        name: "Sample agent".into(),
        mode: AgentMode::Reply,
        url: env.agent.url(),
        secret: Secret::new(secret.into()).expect("not empty"),
        timeout: NewAgent::TIMEOUT,
        max_concurrent: NewAgent::MAX_CONCURRENT,
        max_per_user: 1_000_000,
        retry_for: None,
        keep_for: NewAgent::KEEP_FOR,
        signs_as_slack: false,
        headers: Default::default(),
        policies: Default::default(),
    };
    env.store.put_agent(&agent).await.expect("Postgres");
    let webhook = send_message(&env, &app, "C1", "fail:1 hello").await;
    wait_for_text(&env, "fail:1 hello").await;

    let asked = env.agent.requests();
    assert_eq!(asked.len(), 2, "one failed attempt and one success");
    let key = BASE64.decode(secret.trim_start_matches("whsec_")).expect("base64");
    for asked in &asked {
        check_schema("question", &asked.question).expect("a value of the schema");
        let header = |name: &str| asked.headers[name].to_str().expect("text").to_owned();
        let id = webhook.dedup_key.as_str();
        assert_eq!(
            (&*asked.id, &*header("webhook-id"), &asked.question["id"]),
            (id, id, &json!(id))
        );
        let timestamp = header("webhook-timestamp");
        let age = unix_now().abs_diff(timestamp.parse().expect("a number"));
        assert!(age < 60, "signed {age} s ago");
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("a key");
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(&asked.body);
        let signature = format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()));
        assert_eq!(header("webhook-signature"), signature);
    }
    // The schema rejects other values.
    let mut odd = asked[0].question.clone();
    odd["ts"] = json!(1.5);
    assert!(check_schema("question", &odd).is_err());
    for (part, good) in [
        ("answer", json!({ "text": "hi", "blocks": [], "ephemeral": true, "thread": false })),
        ("error", json!({ "error": "no" })),
    ] {
        check_schema(part, &good).expect("a value of the schema");
    }
    assert!(check_schema("answer", &json!({ "blocks": "x" })).is_err());
}

/// An agent chooses visibility, thread and blocks of its reply. Calls to agents and Slack ignore
/// the proxy variables of the environment.
#[tokio::test]
async fn posts_reply_as_agent_requests() {
    let mut env = TestEnv::without_processes(SMALL).await.expect("servers");
    for name in ["http_proxy", "https_proxy", "all_proxy"] {
        env.set(name, "http://127.0.0.1:1");
    }
    env.start_ingest().await.expect("an ingest");
    env.start_worker().await.expect("a worker");
    let app = env.connect_as(use_sample_agent).await.expect("a connection");
    let thread = |receipt: &Receipt| receipt.body.get("thread_ts").is_some();

    send_message(&env, &app, "C1", "hello").await;
    send_message(&env, &app, "C2", "loose hello").await;
    send_message(&env, &app, "C3", "blocks hello").await;
    send_message(&env, &app, "C4", "whisper hello").await;
    send_message(&env, &app, "D1", "hello you").await;
    let silent = send_message(&env, &app, "C5", "silent hello").await;

    assert!(thread(&wait_for_text(&env, "hello").await), "a reply in a channel is in the thread");
    assert!(
        !thread(&wait_for_text(&env, "hello you").await),
        "a reply in a direct message is not in a thread"
    );
    assert!(!thread(&wait_for_text(&env, "loose hello").await), "the agent chooses no thread");
    let blocks = wait_for_text(&env, "blocks hello").await;
    assert_eq!(blocks.body["blocks"][0]["text"]["text"], "*I heard*");
    let whisper = wait_for_text(&env, "whisper hello").await;
    assert_eq!((whisper.by.as_str(), &whisper.body["user"]), ("chat.postEphemeral", &json!("U1")));
    env.wait_for_outcome(&silent.dedup_key).await;
    assert_eq!(env.slack.receipts().iter().filter(|r| r.to == "C5").count(), 0);
}

/// Messages of bots reach an agent only if a setting allows them, and not after three agents'
/// answers in a row.
#[tokio::test]
async fn limits_messages_of_bots() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(use_sample_agent).await.expect("a connection");
    sqlx::query(
        "update connections set settings = settings || '{\"answer_bots\": true}' where id = $1",
    )
    .bind(app.connection.to_string())
    .execute(&env.pool)
    .await
    .expect("Postgres");
    let by_bot = async |user: &str, text: &str, hops: Option<u64>| {
        let mut inner = json!({
            "type": "message", "channel": "D1", "user": user, "bot_id": "B9", "text": text, "ts": env.slack.ts(),
        });
        if let Some(hops) = hops {
            inner["metadata"] =
                json!({ "event_type": "tidegate", "event_payload": { "id": "x", "hops": hops } });
        }
        let webhook = Webhook::event(&env.slack, &app, text, inner);
        env.send(&app, &webhook).await.expect("an answer");
        env.wait_for_outcome(&webhook.dedup_key).await.outcome
    };
    eventually("the setting is in force", TIMEOUT, async || {
        (by_bot("U9", "first", None).await == "completed").then_some(())
    })
    .await;
    let first = wait_for_text(&env, "first").await;
    assert_eq!(first.body["metadata"]["event_payload"]["hops"], 1);
    assert_eq!(by_bot("U9", "second", Some(2)).await, "completed");
    assert_eq!(wait_for_text(&env, "second").await.body["metadata"]["event_payload"]["hops"], 3);
    assert_eq!(by_bot("U9", "third", Some(3)).await, "ignored", "at most three answers in a row");
    assert_eq!(by_bot(&app.bot_user, "ourselves", None).await, "ignored");
}

/// An agent in a private network is called only if a setting names the network.
#[tokio::test]
async fn blocks_private_addresses() {
    let mut env = TestEnv::without_processes(SMALL).await.expect("servers");
    env.set("TIDEGATE_AGENT_ALLOWED_NETWORKS", "10.1.0.0/16");
    env.start_ingest().await.expect("an ingest");
    env.start_worker().await.expect("a worker");
    env.wait_until_balanced().await.expect("settled");
    for url in [env.agent.url(), env.agent.url().replace("127.0.0.1", "localhost")] {
        let app = env.connect_as(use_sample_agent).await.expect("a connection");
        let agent = NewAgent {
            org: app.org.clone(),
            id: agent_id(),
            name: "Sample agent".into(),
            mode: AgentMode::Reply,
            url,
            secret: Secret::new("secret".into()).expect("not empty"),
            timeout: NewAgent::TIMEOUT,
            max_concurrent: NewAgent::MAX_CONCURRENT,
            max_per_user: 1_000_000,
            retry_for: None,
            keep_for: NewAgent::KEEP_FOR,
            signs_as_slack: false,
            headers: Default::default(),
            policies: Default::default(),
        };
        env.store.put_agent(&agent).await.expect("Postgres");
        send_message(&env, &app, "C1", "hello").await;
        let why: String = eventually("the address is blocked", TIMEOUT, async || {
            sqlx::query_scalar("select last_error from delivery_lanes where connection_id = $1 and last_error <> ''")
                .bind(app.connection.to_string())
                .fetch_optional(&env.pool)
                .await
                .ok()?
        })
        .await;
        assert!(why.contains("is blocked for agents"), "{why}");
    }
    assert!(env.agent.requests().is_empty());
}

/// The handler of `worker/examples/own_handler.rs` answers messages in place of an agent. Commands
/// keep their replies.
#[tokio::test]
async fn runs_custom_handler() {
    let mut env = TestEnv::without_processes(SMALL).await.expect("servers");
    env.start_ingest().await.expect("an ingest");
    env.start_example("own_handler").await.expect("a worker");
    env.wait_until_balanced().await.expect("settled");
    let app = env.connect().await.expect("a connection");
    let webhook = send_message(&env, &app, "C1", "hello").await;
    let wanted = format!("hello ({})", webhook.dedup_key);
    env.slack.wait_for_receipt("the handler's answer", |receipt| receipt.text() == wanted).await;
    let help = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", "help");
    env.send(&app, &help).await.expect("an answer");
    env.slack
        .wait_for_receipt("the reply to the command", |r| help.response_url.ends_with(&r.to))
        .await;
    assert_eq!(env.wait_for_outcome(&webhook.dedup_key).await.outcome, "completed");
    assert!(env.agent.requests().is_empty());
}
