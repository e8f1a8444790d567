//! What an agent is asked, and what becomes of its answers: as `worker/docs/agents.md` has it.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use shared::{
    secrets::Secret,
    store::{NewAgent, NewConnection},
    types::AgentMode,
};
use std::path::Path;
use tests::{
    slack::{Receipt, unix_now, webhook::Webhook},
    until::until,
    world::{App, SMALL, SOON, World, agent_id},
};

fn answered(new: &mut NewConnection) {
    new.agent = Some(agent_id());
}

async fn say(world: &World, app: &App, channel: &str, text: &str) -> Webhook {
    let webhook = Webhook::message(&world.slack, app, channel, "U1", text);
    assert_eq!(world.send(app, &webhook).await.expect("an answer").status, 200);
    webhook
}

async fn told(world: &World, text: &str) -> Receipt {
    let wanted = format!("I heard: {text}");
    world.slack.told(text, |receipt| receipt.text() == wanted).await
}

/// Whether a value is what a part of the schema says.
fn fits(part: &str, value: &Value) -> Result<(), String> {
    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../worker/docs/agent.schema.json"));
    let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
    let url = format!("{}#/$defs/{part}", file.canonicalize().expect("the schema").display());
    let schema = compiler.compile(&url, &mut schemas).expect("a schema");
    schemas.validate(value, schema).map_err(|wrong| wrong.to_string())
}

#[tokio::test]
async fn what_an_agent_is_asked_is_what_the_schema_says_signed_and_with_one_id_for_all_tries() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(answered).await.expect("a connection");
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let agent = NewAgent {
        org: app.org.clone(),
        id: agent_id(),
        name: "Sample agent".into(),
        mode: AgentMode::Reply,
        url: world.agent.url(),
        secret: Secret::new(secret.into()).expect("not empty"),
        timeout: NewAgent::TIMEOUT,
        max_concurrent: NewAgent::MAX_CONCURRENT,
        retry_for: None,
        keep_for: NewAgent::KEEP_FOR,
    };
    world.store.put_agent(&agent).await.expect("Postgres");
    let webhook = say(&world, &app, "C1", "fail:1 hello").await;
    told(&world, "fail:1 hello").await;

    let asked = world.agent.asked();
    assert_eq!(asked.len(), 2, "once in vain");
    let key = BASE64.decode(secret.trim_start_matches("whsec_")).expect("base64");
    for asked in &asked {
        fits("question", &asked.question).expect("what the schema says");
        let header = |name: &str| asked.headers[name].to_str().expect("text").to_owned();
        let id = webhook.dedupe.as_str();
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
    // The schema is no rubber stamp.
    let mut odd = asked[0].question.clone();
    odd["ts"] = json!(1.5);
    assert!(fits("question", &odd).is_err());
    for (part, good) in [
        ("answer", json!({ "text": "hi", "blocks": [], "ephemeral": true, "thread": false })),
        ("error", json!({ "error": "no" })),
    ] {
        fits(part, &good).expect("what the schema says");
    }
    assert!(fits("answer", &json!({ "blocks": "x" })).is_err());
}

#[tokio::test]
async fn an_agent_decides_how_its_answer_is_said_and_nothing_else() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(answered).await.expect("a connection");
    let thread = |receipt: &Receipt| receipt.body.get("thread_ts").is_some();

    say(&world, &app, "C1", "hello").await;
    say(&world, &app, "C2", "loose hello").await;
    say(&world, &app, "C3", "blocks hello").await;
    say(&world, &app, "C4", "whisper hello").await;
    say(&world, &app, "D1", "hello you").await;
    let silent = say(&world, &app, "C5", "silent hello").await;

    assert!(thread(&told(&world, "hello").await), "in a channel in its thread");
    assert!(!thread(&told(&world, "hello you").await), "in a direct message beside it");
    assert!(!thread(&told(&world, "loose hello").await), "unless the agent wants it otherwise");
    let blocks = told(&world, "blocks hello").await;
    assert_eq!(blocks.body["blocks"][0]["text"]["text"], "*I heard*");
    let whisper = told(&world, "whisper hello").await;
    assert_eq!((whisper.by.as_str(), &whisper.body["user"]), ("chat.postEphemeral", &json!("U1")));
    world.handled(&silent.dedupe).await;
    assert_eq!(world.slack.receipts().iter().filter(|r| r.to == "C5").count(), 0);
}

#[tokio::test]
async fn a_slow_agent_is_shown_to_be_at_it() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(answered).await.expect("a connection");
    let ts = world.slack.ts();
    let webhook = Webhook::said(&world.slack, &app, "message", "C1", "U1", "slow:4000 hello", &ts);
    world.send(&app, &webhook).await.expect("an answer");
    say(&world, &app, "C2", "hello").await;
    let status = world.slack.told("a status", |r| r.by == "assistant.threads.setStatus").await;
    assert_eq!(
        (&status.body["channel_id"], &status.body["thread_ts"], &status.body["status"]),
        (&json!("C1"), &json!(ts), &json!("is thinking…"))
    );
    told(&world, "slow:4000 hello").await;
    let shown = world.slack.calls_of("assistant.threads.setStatus");
    assert_eq!(shown.len(), 1, "once, and not for the quick one");
}

#[tokio::test]
async fn bots_ask_an_agent_only_where_they_may_and_not_for_ever() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(answered).await.expect("a connection");
    sqlx::query(
        "update connections set settings = settings || '{\"answer_bots\": true}' where id = $1",
    )
    .bind(app.connection.to_string())
    .execute(&world.pool)
    .await
    .expect("Postgres");
    let by_bot = async |user: &str, text: &str, hops: Option<u64>| {
        let mut inner = json!({
            "type": "message", "channel": "D1", "user": user, "bot_id": "B9", "text": text, "ts": world.slack.ts(),
        });
        if let Some(hops) = hops {
            inner["metadata"] =
                json!({ "event_type": "tidegate", "event_payload": { "id": "x", "hops": hops } });
        }
        let webhook = Webhook::event(&world.slack, &app, text, inner);
        world.send(&app, &webhook).await.expect("an answer");
        world.handled(&webhook.dedupe).await.outcome
    };
    until("the setting is in force", SOON, async || {
        (by_bot("U9", "first", None).await == "completed").then_some(())
    })
    .await;
    let first = told(&world, "first").await;
    assert_eq!(first.body["metadata"]["event_payload"]["hops"], 1);
    assert_eq!(by_bot("U9", "second", Some(2)).await, "completed");
    assert_eq!(told(&world, "second").await.body["metadata"]["event_payload"]["hops"], 3);
    assert_eq!(
        by_bot("U9", "third", Some(3)).await,
        "ignored",
        "three answers in a row are enough"
    );
    assert_eq!(by_bot(&app.bot_user, "ourselves", None).await, "ignored");
}

#[tokio::test]
async fn an_agent_at_an_inner_address_is_not_called_unless_the_deployment_names_its_network() {
    let mut world = World::without_processes(SMALL).await.expect("servers");
    world.set("TIDEGATE_AGENT_NETWORKS", "10.1.0.0/16");
    world.start_ingest().await.expect("an ingest");
    world.start_worker().await.expect("a worker");
    world.settled().await.expect("settled");
    for url in [world.agent.url(), world.agent.url().replace("127.0.0.1", "localhost")] {
        let app = world.connect_as(answered).await.expect("a connection");
        let agent = NewAgent {
            org: app.org.clone(),
            id: agent_id(),
            name: "Sample agent".into(),
            mode: AgentMode::Reply,
            url,
            secret: Secret::new("secret".into()).expect("not empty"),
            timeout: NewAgent::TIMEOUT,
            max_concurrent: NewAgent::MAX_CONCURRENT,
            retry_for: None,
            keep_for: NewAgent::KEEP_FOR,
        };
        world.store.put_agent(&agent).await.expect("Postgres");
        say(&world, &app, "C1", "hello").await;
        let why: String = until("it is refused", SOON, async || {
            sqlx::query_scalar("select last_error from delivery_lanes where connection_id = $1 and last_error <> ''")
                .bind(app.connection.to_string())
                .fetch_optional(&world.pool)
                .await
                .ok()?
        })
        .await;
        assert!(why.contains("no address for an agent"), "{why}");
    }
    assert!(world.agent.asked().is_empty());
}

#[tokio::test]
async fn a_worker_with_a_handler_of_somebody_elses_is_a_worker() {
    let mut world = World::without_processes(SMALL).await.expect("servers");
    world.start_ingest().await.expect("an ingest");
    world.start_example("own_handler").await.expect("a worker");
    world.settled().await.expect("settled");
    let app = world.connect().await.expect("a connection");
    let webhook = say(&world, &app, "C1", "hello").await;
    let wanted = format!("hello ({})", webhook.dedupe);
    world.slack.told("the handler's own words", |receipt| receipt.text() == wanted).await;
    let help = Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", "help");
    world.send(&app, &help).await.expect("an answer");
    world.slack.told("Tidegate's own business", |r| help.response_url.ends_with(&r.to)).await;
    assert_eq!(world.handled(&webhook.dedupe).await.outcome, "completed");
    assert!(world.agent.asked().is_empty());
}
