//! Routing of webhooks to the connection of their own app and installation only.

use serde_json::{Value, json};
use shared::stream::STREAM;
use tests::{
    slack::webhook::Webhook,
    test_env::{App, SHARED_APP, Size, TestEnv},
};

const INGEST_ONLY: Size = Size { ingests: 1, workers: 0, own_postgres: false };

fn form(payload: &Value) -> Webhook {
    tests::fixtures::webhook("interaction", &json!({ "_payload": payload }))
}

fn event(env: &TestEnv, app: &App, inner: Value, outer: Value) -> Webhook {
    let mut webhook = Webhook::event(&env.slack, app, "an event", inner);
    let mut body: Value = serde_json::from_slice(&webhook.body).expect("JSON");
    for (name, value) in outer.as_object().expect("an object") {
        body[name] = value.clone();
    }
    webhook.body = body.to_string().into_bytes();
    webhook
}

fn hello() -> Value {
    json!({ "type": "message", "channel": "C1", "user": "U1", "text": "hi", "ts": "1.1" })
}

/// Sends a webhook to the shared route. Returns the connection that it was stored for.
async fn routed_to(env: &TestEnv, webhook: &Webhook) -> Option<String> {
    let before = env.stored().await.expect("a count");
    assert_eq!(env.send_shared(webhook).await.expect("an answer").status, 200);
    (env.stored().await.expect("a count") > before).then_some(())?;
    let js = async_nats::jetstream::new(env.client().clone());
    let stream = js.get_stream(STREAM).await.expect("the stream");
    let last = stream.get_last_raw_message_by_subject("slack.in.*.*").await.expect("a message");
    last.subject.rsplit('.').next().map(str::to_owned)
}

async fn connect(env: &TestEnv, enterprise: Option<&str>, team: Option<&str>) -> App {
    let app = env.connect_as(|new| {
        new.app = SHARED_APP.parse().expect("an id");
        new.enterprise = enterprise.map(|id| id.parse().expect("an id"));
        new.team = team.map(|id| id.parse().expect("an id"));
    });
    app.await.expect("a connection")
}

/// Payloads without an app id, as shortcuts, go to the connection of their workspace or
/// organization.
#[tokio::test]
async fn routes_payload_without_app() {
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = connect(&env, None, Some("T1")).await;
    let org = connect(&env, Some("E1"), None).await;
    let (app, org) = (Some(app.connection.to_string()), Some(org.connection.to_string()));
    let shortcut = json!({
        "type": "shortcut", "token": "x", "action_ts": "1.1", "team": { "id": "T1", "domain": "d" },
        "user": { "id": "U1", "team_id": "T1" }, "is_enterprise_install": false, "enterprise": null,
        "callback_id": "c", "trigger_id": "1.2.a",
    });
    assert_eq!(routed_to(&env, &form(&shortcut)).await, app);
    for (kind, trigger) in [("message_action", "1.2.b"), ("dialog_submission", "1.2.c")] {
        let mut payload = shortcut.clone();
        (payload["type"], payload["trigger_id"]) = (kind.into(), trigger.into());
        // Without a worker a dialog waits until its deadline.
        assert_eq!(routed_to(&env, &form(&payload)).await, app, "{kind}");
    }
    let mut of_org = shortcut;
    (of_org["team"], of_org["enterprise"]) = (Value::Null, json!({ "id": "E1", "name": "Org" }));
    (of_org["is_enterprise_install"], of_org["trigger_id"]) = (true.into(), "1.2.d".into());
    assert_eq!(routed_to(&env, &form(&of_org)).await, org);
}

/// A number out of range or deep nesting in a webhook hides neither its app nor its installation.
#[tokio::test]
async fn routes_odd_values() {
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = Some(connect(&env, None, Some("T1")).await.connection.to_string());
    let deep = format!("{}7{}", r#"{"message":"#.repeat(500), "}".repeat(500));
    for (n, odd) in ["1e999", &deep].into_iter().enumerate() {
        let mut webhook = form(&json!({}));
        webhook.content_type = "application/json";
        webhook.body = format!(
            r#"{{"event_time":{odd},"token":"x","team_id":"T1","api_app_id":"{SHARED_APP}",
                "event":{{"item":{odd},"user":"U1","type":"message","channel":"C1","ts":"1.1"}},
                "type":"event_callback","event_id":"Ev{n}"}}"#
        )
        .into_bytes();
        assert_eq!(routed_to(&env, &webhook).await, app, "{odd}");
        let shortcut = format!(
            r#"{{"state":{odd},"type":"shortcut","team":{{"id":"T1","domain":{odd}}},
                "user":{{"id":"U1"}},"callback_id":"c","trigger_id":"1.{n}"}}"#
        );
        webhook.content_type = "application/x-www-form-urlencoded";
        webhook.body = form_urlencoded::Serializer::new(String::new())
            .append_pair("payload", &shortcut)
            .finish()
            .into_bytes();
        assert_eq!(routed_to(&env, &webhook).await, app, "{odd}");
    }
}

/// A webhook signed with the shared secret does not reach a connection of another app in the same
/// workspace.
#[tokio::test]
async fn routes_app_of_secret_only() {
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let own = connect(&env, None, Some("T1")).await;
    // The shared secret must not verify webhooks of another app in the same workspace.
    let other = env.connect_as(|new| new.team = "T1".parse().ok()).await.expect("another app");
    for (app, expected) in [(&own, Some(own.connection.to_string())), (&other, None)] {
        let webhook = Webhook::message(&env.slack, app, "C1", "U1", "hello");
        assert_eq!(routed_to(&env, &webhook).await, expected);
    }
    let command = Webhook::command(&env.slack, &other, "C1", "U1", "/x", "");
    let answer = env.send_shared(&command).await.expect("an answer");
    assert!(answer.status == 200 && answer.body.contains("ephemeral"), "{answer:?}");
}

/// An event goes to the connection of any installation that it names, and not by its outer team
/// alone if others are authorized.
#[tokio::test]
async fn routes_by_any_installation() {
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let grid = connect(&env, Some("E1"), Some("T1")).await;
    let id = Some(grid.connection.to_string());
    let authorization = |enterprise: Value, team: &str| json!({ "enterprise_id": enterprise, "team_id": team, "is_enterprise_install": false });
    let (ours, other) = (authorization("E1".into(), "T1"), authorization(Value::Null, "T9"));
    for outer in [
        json!({ "team_id": "T9", "authorizations": [other, ours] }),
        json!({ "team_id": "T1", "authorizations": [] }),
        json!({ "team_id": "T1", "authorizations": null }),
        json!({ "team_id": null, "authorizations": null, "context_team_id": "T1" }),
    ] {
        let webhook = event(&env, &grid, hello(), outer.clone());
        assert_eq!(routed_to(&env, &webhook).await, id, "{outer}");
    }
    let foreign = json!({ "team_id": "T1", "authorizations": [other] });
    let webhook = event(&env, &grid, hello(), foreign);
    assert_eq!(routed_to(&env, &webhook).await, None, "the outer team may be another's");
}

/// Events about an installation do not go to the preview connection. Messages do.
#[tokio::test]
async fn keeps_events_from_preview() {
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let own = connect(&env, None, Some("T1")).await;
    let preview = env.connect_as(|new| {
        (new.app, new.team) = (SHARED_APP.parse().expect("an id"), None);
        new.preview_mode = true;
    });
    let preview = preview.await.expect("a preview connection");
    let stranger = App { team: "T9".into(), ..own.clone() };
    for inner in [
        json!({ "type": "app_uninstalled" }),
        json!({ "type": "tokens_revoked", "tokens": { "bot": [own.bot_user] } }),
        json!({ "type": "channel_id_changed", "old_channel_id": "G1", "new_channel_id": "C1" }),
        json!({ "type": "team_join", "user": { "id": "U1" } }),
    ] {
        let webhook = event(&env, &stranger, inner.clone(), json!({}));
        assert_eq!(routed_to(&env, &webhook).await, None, "{inner}");
        let webhook = event(&env, &own, inner.clone(), json!({}));
        assert_eq!(routed_to(&env, &webhook).await, Some(own.connection.to_string()), "{inner}");
    }
    let webhook = event(&env, &stranger, hello(), json!({}));
    assert_eq!(routed_to(&env, &webhook).await, Some(preview.connection.to_string()));
}

/// A body that names another app or workspace is answered and counted, but not stored. One that
/// names neither is stored.
#[tokio::test]
async fn ignores_foreign_body() {
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let other = App { app: "A0OTHER".into(), ..app.clone() };
    let stranger = App { team: "T0OTHER".into(), ..app.clone() };
    for (n, foreign) in [&other, &stranger].into_iter().enumerate() {
        let message = Webhook::message(&env.slack, foreign, "C1", "U1", "hello");
        let answer = env.send(&app, &message).await.expect("an answer");
        assert_eq!((answer.status, answer.body.as_str()), (200, ""), "Slack must not retry it");
        let command = Webhook::command(&env.slack, foreign, "C1", "U1", "/x", "");
        let answer = env.send(&app, &command).await.expect("an answer");
        assert!(answer.status == 200 && answer.body.contains("ephemeral"), "{answer:?}");
        let line = "tidegate_ingest_webhooks_total{outcome=\"other_installation\",kind=\"event\"}";
        let counted = env.ingests[0].metric(line).await.expect("metrics");
        assert_eq!(counted, (n + 1) as f64);
    }
    assert_eq!(env.stored().await.expect("a count"), 0);
    // A body that names neither is stored: its signature is this connection's.
    let nobody = form(&json!({ "type": "shortcut", "trigger_id": "1", "user": { "id": "U1" } }));
    assert_eq!(env.send(&app, &nobody).await.expect("an answer").status, 200);
    let own = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
    assert_eq!(env.send(&app, &own).await.expect("an answer").status, 200);
    assert_eq!(env.stored().await.expect("a count"), 2);
}

/// An unparsable body without an id that Slack resends with other signatures is stored once.
#[tokio::test]
async fn stores_odd_body_once() {
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let text = br#"{"type":"event_callback","event":{"type":"message","channel":"C1","text":"cut \ud83d"}}"#;
    let mut webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
    webhook.body = text.to_vec();
    let (url, now) = (env.ingests[0].url(&app), tests::slack::unix_now());
    for signed_at in [now, now - 60, now - 240] {
        let sent = env.slack.send_signed_at(&url, &app.secret, &webhook, signed_at).await;
        assert_eq!(sent.expect("an answer").status, 200);
    }
    assert_eq!(env.stored().await.expect("a count"), 1);
}
