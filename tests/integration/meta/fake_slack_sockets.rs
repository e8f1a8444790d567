//! Socket Mode of the simulated Slack with Slack's own clients, unchanged.

use serde_json::{Value, json};
use std::time::Duration;
use tests::{
    bolt::Language,
    eventually::eventually,
    sdk::SocketClient,
    slack::{Slack, webhook::Webhook},
    test_env::{App, TIMEOUT},
};

const TOKEN: &str = "xapp-1-A00000001-1-abc";

fn app() -> App {
    App {
        connection: "0123456789abcdef0123456789abcdef".parse().expect("an id"),
        org: "org".parse().expect("an id"),
        secret: "secret".into(),
        token: "xoxb-1".into(),
        app: "A00000001".into(),
        team: "T1".into(),
        bot_user: "UBOT1".into(),
    }
}

/// Returns a click with this value.
pub fn click(slack: &Slack, app: &App, value: &str) -> Webhook {
    let payload = json!({
        "type": "block_actions", "api_app_id": app.app, "team": { "id": app.team },
        "user": { "id": "U1" }, "channel": { "id": "C1" }, "trigger_id": slack.trigger_id(),
        "response_url": slack.response_url(),
        "actions": [{ "type": "button", "action_id": "a", "value": value }],
    });
    let body = form_urlencoded::Serializer::new(String::new())
        .append_pair("payload", &payload.to_string())
        .finish();
    Webhook {
        what: "a click".into(),
        content_type: "application/x-www-form-urlencoded",
        body: body.into_bytes(),
        ..Webhook::url_verification(app, "")
    }
}

/// Checks that a client handles every kind of envelope, a retry, a refresh and a cut.
async fn serves_client(language: Language) {
    let _ = rustls::crypto::ring::default_provider().install_default(); // again for every test
    let (slack, app) = (Slack::start().await.expect("a Slack"), app());
    slack.register_app_token(TOKEN, &app.app);
    let client = SocketClient::start(language, &slack, TOKEN).await.expect("a client");
    let connected = async |times: usize| {
        let is_hello = |line: &&Value| line["state"] == "connected";
        eventually("the client is connected", TIMEOUT, async || {
            let seen = client.lines().iter().filter(is_hello).count();
            (seen >= times && slack.socket_count(&app.app) == 1).then_some(())
        })
        .await;
    };
    connected(1).await;
    let message = |text: &str| Webhook::message(&slack, &app, "C1", "U1", text);
    let delivered = slack.deliver_by_socket(&app.app, &message("hello")).await;
    assert_eq!(
        (delivered.attempts, delivered.ack.is_some()),
        (1, true),
        "{}",
        client.process.log()
    );
    let command = Webhook::command(&slack, &app, "C1", "U1", "/lobu", "help");
    let delivered = slack.deliver_by_socket(&app.app, &command).await;
    let ack = delivered.ack.expect("an acknowledgement");
    assert_eq!(ack["payload"]["text"], "you said help", "{ack}");
    let delivered = slack.deliver_by_socket(&app.app, &click(&slack, &app, "yes")).await;
    assert!(delivered.ack.is_some(), "{}", client.process.log());
    // The first attempt is not acknowledged, and the second is sent at once.
    let delivered = slack.deliver_by_socket(&app.app, &message("not now")).await;
    assert_eq!((delivered.attempts, delivered.ack.is_some()), (2, true));
    for (type_, text, retry) in [
        ("events_api", "hello", json!(0)),
        ("slash_commands", "help", json!(0)),
        ("interactive", "yes", json!(0)),
        ("events_api", "not now", json!(1)),
    ] {
        let is_it = |line: &Value| {
            line["type"] == type_
                && line["text"] == text
                && line["retry_num"].as_u64().unwrap_or_default() == retry
        };
        assert!(client.lines().iter().any(is_it), "{type_}: {}", client.process.log());
    }
    slack.disconnect_sockets(&app.app, "refresh_requested");
    connected(2).await;
    let delivered = slack.deliver_by_socket(&app.app, &message("after a refresh")).await;
    assert!(delivered.ack.is_some(), "{}", client.process.log());
    slack.cut_sockets(&app.app);
    connected(3).await;
    let delivered = slack.deliver_by_socket(&app.app, &message("after a cut")).await;
    assert!(delivered.ack.is_some(), "{}", client.process.log());
}

/// Slack's JavaScript client receives every kind of envelope, a retry, a refresh and a cut.
#[tokio::test(flavor = "multi_thread")]
async fn serves_javascript_client() {
    serves_client(Language::JavaScript).await;
}

/// Slack's Python client receives every kind of envelope, a retry, a refresh and a cut.
#[tokio::test(flavor = "multi_thread")]
async fn serves_python_client() {
    serves_client(Language::Python).await;
}

/// A ticket is valid once, a bot token opens nothing, and an eleventh connection is refused.
#[tokio::test(flavor = "multi_thread")]
async fn refuses_wrong_sockets() {
    let _ = rustls::crypto::ring::default_provider().install_default(); // again for every test
    let slack = Slack::start().await.expect("a Slack");
    slack.register_app_token(TOKEN, "A1");
    let open = async |token: &str| -> Value {
        let url = format!("{}apps.connections.open", slack.api());
        let sent = reqwest::Client::new().post(url).bearer_auth(token).send().await;
        sent.expect("an answer").json().await.expect("JSON")
    };
    assert_eq!(open("xoxb-1").await["error"], "not_allowed_token_type");
    assert_eq!(open("xapp-2").await["error"], "invalid_auth");
    let mut sockets = Vec::new();
    for n in 1..=11 {
        let url = open(TOKEN).await["url"].as_str().expect("a URL").to_owned();
        let (mut socket, _) = tokio_tungstenite::connect_async(url.as_str()).await.expect("open");
        tokio_tungstenite::connect_async(url.as_str()).await.expect_err("the ticket is used");
        let first = tokio::time::timeout(Duration::from_secs(5), async {
            loop {
                let next = futures_util::StreamExt::next(&mut socket).await;
                let next = next.expect("a frame").expect("a frame");
                if let Ok(text) = next.to_text()
                    && let Ok(frame) = serde_json::from_str::<Value>(text)
                {
                    return frame;
                }
            }
        });
        let first = first.await.expect("a frame in time");
        match n {
            11 => assert_eq!(first["reason"], "too_many_websockets", "{first}"),
            _ => assert_eq!(first["num_connections"], n, "{first}"),
        }
        sockets.push(socket);
    }
}
