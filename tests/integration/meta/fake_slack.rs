//! Behaviour of the simulated Slack: tokens, rate limits, threads, expiry, and faults.

use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tests::fetch::bolt_js;
use tests::run_dir::RunDir;
use tests::slack::{
    Slack,
    api::Outcome,
    fault_injection::{Fault, FaultRule},
    limits::Limit,
    oauth::Allowed,
    tokens::Installation,
};

const TOKEN: &str = "xoxb-1";

async fn start_slack() -> Slack {
    let _ = rustls::crypto::ring::default_provider().install_default(); // again for every test
    let slack = Slack::start().await.expect("a Slack");
    slack.install(TOKEN, Installation::new("A1", "T1", "UBOT1"));
    slack
}

async fn try_call(slack: &Slack, method: &str, args: Value) -> reqwest::Result<Value> {
    let url = format!("{}{method}", slack.api());
    reqwest::Client::new().post(url).bearer_auth(TOKEN).json(&args).send().await?.json().await
}

async fn call(slack: &Slack, method: &str, args: Value) -> Value {
    try_call(slack, method, args).await.expect("an answer")
}

/// Replies, their metadata and edits can be read back. An unknown thread is an error.
#[tokio::test]
async fn keeps_thread_and_metadata() {
    let slack = start_slack().await;
    slack.write("T1", "C1", "U1", "hello", "1.000001");
    let metadata = json!({ "event_type": "tidegate", "event_payload": { "id": 7 } });
    let post =
        json!({ "channel": "C1", "thread_ts": "1.000001", "text": "hi", "metadata": metadata });
    let posted = call(&slack, "chat.postMessage", post).await;
    assert_eq!(posted["ok"], true, "{posted}");
    let asked = json!({ "channel": "C1", "ts": "1.000001", "include_all_metadata": true });
    let thread = call(&slack, "conversations.replies", asked).await;
    assert_eq!(thread["messages"][0]["text"], "hello");
    assert_eq!(thread["messages"][1]["metadata"], metadata);
    let history = call(&slack, "conversations.history", json!({ "channel": "C1" })).await;
    assert_eq!(history["messages"].as_array().map(Vec::len), Some(1), "replies stand in threads");
    let gone = json!({ "channel": "C1", "ts": "9.000009" });
    assert_eq!(call(&slack, "conversations.replies", gone).await["error"], "thread_not_found");
    let change = json!({ "channel": "C1", "ts": posted["ts"], "text": "hi!" });
    assert_eq!(call(&slack, "chat.update", change).await["ok"], true);
    assert_eq!(slack.messages("T1", "C1")[1].text, "hi!");
}

/// `conversations.history` returns pages, the newest message first.
#[tokio::test]
async fn pages_history() {
    let slack = start_slack().await;
    for n in 0..5 {
        slack.write("T1", "C1", "U1", &n.to_string(), &format!("{n}.000000"));
    }
    let (mut texts, mut cursor) = (Vec::new(), String::new());
    loop {
        let asked = json!({ "channel": "C1", "limit": 2, "cursor": cursor, "oldest": "0.000000" });
        let page = call(&slack, "conversations.history", asked).await;
        let messages = page["messages"].as_array().expect("messages").clone();
        texts.extend(messages.iter().map(|m| m["text"].as_str().unwrap_or_default().to_owned()));
        match page["response_metadata"]["next_cursor"].as_str() {
            Some(next) if !next.is_empty() => cursor = next.to_owned(),
            _ => break,
        }
    }
    assert_eq!(
        texts,
        ["4", "3", "2", "1"],
        "newest first, and the oldest only when it is included"
    );
}

/// Calls without a token, without a scope and with a revoked token get Slack's errors.
#[tokio::test]
async fn requires_token_and_scope() {
    let slack = start_slack().await;
    let stranger = reqwest::Client::new().post(format!("{}auth.test", slack.api()));
    let none: Value = stranger.send().await.expect("an answer").json().await.expect("JSON");
    assert_eq!(none["error"], "not_authed");
    slack.install(TOKEN, Installation::new("A1", "T1", "UBOT1").without("channels:history"));
    let refused = call(&slack, "conversations.history", json!({ "channel": "C1" })).await;
    assert_eq!(
        (&refused["error"], &refused["needed"]),
        (&json!("missing_scope"), &json!("channels:history"))
    );
    slack.refuse_token(TOKEN, "token_revoked");
    assert_eq!(call(&slack, "auth.test", json!({})).await["error"], "token_revoked");
}

/// A refresh token is valid once, and an access token for twelve hours.
#[tokio::test]
async fn rotates_tokens() {
    let slack = start_slack().await;
    slack.register_client("1.2", "shh");
    let first = slack.install_rotating(Installation::new("A1", "T1", "UBOT1"));
    let url = format!("{}oauth.v2.access", slack.api());
    let refresh = async |token: &str| -> Value {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "refresh_token")
            .append_pair("refresh_token", token)
            .finish();
        let request = reqwest::Client::new().post(&url).basic_auth("1.2", Some("shh"));
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        request.body(form).send().await.expect("an answer").json().await.expect("JSON")
    };
    let test = async |token: &str| -> Value {
        let request = reqwest::Client::new().post(format!("{}auth.test", slack.api()));
        request.bearer_auth(token).send().await.expect("an answer").json().await.expect("JSON")
    };
    assert_eq!(test(&first.token).await["ok"], true);
    let second = refresh(&first.refresh).await;
    assert_eq!((&second["ok"], &second["expires_in"]), (&json!(true), &json!(43_200)));
    slack.clock().advance(Duration::from_secs(60));
    assert_eq!(refresh(&first.refresh).await["error"], "invalid_refresh_token");
    let token = second["access_token"].as_str().expect("a token");
    slack.clock().advance(Duration::from_secs(12 * 3600));
    assert_eq!(test(token).await["error"], "token_expired");
}

/// Slack's own OAuth library installs with the simulated Slack, and its second use of a code fails.
#[tokio::test]
async fn installs_with_slack_oauth() {
    let slack = start_slack().await;
    let redirect = "http://127.0.0.1:9/slack/oauth_redirect";
    slack.register_app("A0SDK", "7.8", "a-client-secret", redirect);
    let run = Arc::new(RunDir::new("oauth").expect("a folder"));
    let (node, modules) = bolt_js(&run).await.expect("@slack/bolt, which has @slack/oauth");
    let file = run.path().join("install.js");
    std::fs::write(&file, include_str!("../../harness/sdk/install.js")).expect("written");
    let mut command = std::process::Command::new(node);
    command
        .arg(file)
        .env("NODE_PATH", modules)
        .env("SLACK", slack.response_origin())
        .env("CLIENT_ID", "7.8")
        .env("CLIENT_SECRET", "a-client-secret")
        .env("REDIRECT", redirect);
    let output = run_blocking(command).await;
    let seen: Value = serde_json::from_str(&output).unwrap_or_else(|_| panic!("{output}"));
    let installation = &seen["installation"];
    assert_eq!(installation["team"]["id"], "T0SDK", "{seen}");
    assert_eq!(installation["appId"], "A0SDK");
    assert_eq!(installation["bot"]["scopes"], json!(["chat:write", "commands"]));
    assert!(installation["bot"]["refreshToken"].is_string(), "{seen}");
    assert_eq!((&seen["again"], &seen["stored"]), (&json!("invalid_code"), &json!(1)), "{seen}");
    let token = installation["bot"]["token"].as_str().expect("a token");
    let request = reqwest::Client::new().post(format!("{}auth.test", slack.api()));
    let answer = request.bearer_auth(token).send().await.expect("an answer");
    assert_eq!(answer.json::<Value>().await.expect("JSON")["team_id"], "T0SDK");
}

/// Runs a program while the simulated Slack answers. Returns its output, or its errors if it fails.
async fn run_blocking(mut command: std::process::Command) -> String {
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("it ends");
    let output = output.expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { text(&output.stdout) } else { text(&output.stderr) }
}

/// A code belongs to a client, a redirect URI and a challenge, and is used once.
#[tokio::test]
async fn binds_codes_to_requests() {
    let slack = start_slack().await;
    let redirect = "https://app.example/back";
    slack.register_app("A1", "1.2", "shh", redirect);
    slack.register_app("A2", "3.4", "shh", redirect);
    let challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
    let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"; // RFC 7636, appendix B
    let page = format!(
        "{}/oauth/v2/authorize?client_id=1.2&scope=chat:write&state=s&redirect_uri={redirect}\
         &code_challenge={challenge}&code_challenge_method=S256",
        slack.response_origin()
    );
    for (old, new) in [("client_id=1.2", "client_id=9.9"), ("/back", "/evil"), ("S256", "plain")] {
        let wrong = page.replace(old, new);
        assert!(slack.allow(&wrong, &Allowed::in_team("T1")).is_err(), "{new}");
    }
    let back = slack.allow(&page, &Allowed::in_team("T1")).expect("a redirect");
    let code = back.split("code=").nth(1).and_then(|rest| rest.split('&').next()).expect("a code");
    let url = format!("{}oauth.v2.access", slack.api());
    let exchange = async |client: &str, secret: &str, redirect: &str, verifier: &str| -> Value {
        let form = form_urlencoded::Serializer::new(String::new())
            .extend_pairs([("code", code), ("redirect_uri", redirect), ("code_verifier", verifier)])
            .finish();
        let request = reqwest::Client::new().post(&url).basic_auth(client, Some(secret));
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        request.body(form).send().await.expect("an answer").json().await.expect("JSON")
    };
    for (client, secret, to, verifier, error) in [
        ("9.9", "shh", redirect, verifier, "invalid_client_id"),
        ("1.2", "wrong", redirect, verifier, "bad_client_secret"),
        ("3.4", "shh", redirect, verifier, "invalid_code"),
        ("1.2", "shh", "https://app.example/", verifier, "bad_redirect_uri"),
        ("1.2", "shh", redirect, "another", "invalid_code_verifier"),
        ("1.2", "shh", redirect, "", "invalid_code_verifier"),
    ] {
        assert_eq!(exchange(client, secret, to, verifier).await["error"], error);
    }
    let granted = exchange("1.2", "shh", redirect, verifier).await;
    assert_eq!((&granted["ok"], &granted["app_id"]), (&json!(true), &json!("A1")), "{granted}");
    assert_eq!(exchange("1.2", "shh", redirect, verifier).await["error"], "invalid_code");
}

/// A call over the limit gets 429 with `Retry-After`, has no effect, and limits no other channel.
#[tokio::test]
async fn limits_per_method_and_workspace() {
    let slack = start_slack().await;
    slack.limit(vec![Limit::channel("chat.postMessage", 1, Duration::from_secs(60))]);
    let post = |channel: &str| json!({ "channel": channel, "text": "hi" });
    assert_eq!(call(&slack, "chat.postMessage", post("C1")).await["ok"], true);
    let url = format!("{}chat.postMessage", slack.api());
    let again = reqwest::Client::new().post(url).bearer_auth(TOKEN).json(&post("C1"));
    let again = again.send().await.expect("an answer");
    assert_eq!(again.status(), 429);
    let wait: u64 =
        again.headers()["retry-after"].to_str().expect("text").parse().expect("seconds");
    assert!((59..=61).contains(&wait), "{wait}");
    assert_eq!(call(&slack, "chat.postMessage", post("C2")).await["ok"], true);
    slack.clock().advance(Duration::from_secs(wait));
    assert_eq!(call(&slack, "chat.postMessage", post("C1")).await["ok"], true);
    assert_eq!(slack.receipts().len(), 3, "a refused call leaves no receipt");
}

/// A failed deletion leaves the thread as it is.
#[tokio::test]
async fn keeps_thread_if_deletion_fails() {
    let slack = start_slack().await;
    let root = json!({ "channel": "C1", "ts": "1.000001" });
    assert_eq!(call(&slack, "chat.delete", root).await["error"], "message_not_found");
    slack.write("T1", "C1", "U1", "hello", "1.000001");
    let post = json!({ "channel": "C1", "thread_ts": "1.000001", "text": "hi" });
    let posted = call(&slack, "chat.postMessage", post).await;
    assert_eq!(posted["message"]["thread_ts"], "1.000001", "{posted}");
}

/// A call that is refused for its token or scope does not count towards a limit.
#[tokio::test]
async fn counts_only_allowed_calls() {
    let slack = start_slack().await;
    slack.install(TOKEN, Installation::new("A1", "T1", "UBOT1").without("reactions:write"));
    slack.limit(vec![Limit::workspace(1, Duration::from_secs(60))]);
    let refused = call(&slack, "reactions.add", json!({ "channel": "C1" })).await;
    assert_eq!(refused["error"], "missing_scope");
    let post = json!({ "channel": "C1", "text": "hi" });
    assert_eq!(call(&slack, "chat.postMessage", post).await["ok"], true);
}

/// A trigger opens one view within three seconds, and an outdated hash is a conflict.
#[tokio::test]
async fn opens_one_view_per_trigger() {
    let slack = start_slack().await;
    let view = json!({ "type": "modal", "blocks": [] });
    let open = async |trigger: &str| {
        call(&slack, "views.open", json!({ "trigger_id": trigger, "view": view })).await
    };
    let trigger = slack.trigger_id();
    let opened = open(&trigger).await;
    assert_eq!(opened["ok"], true);
    assert_eq!(open(&trigger).await["error"], "exchanged_trigger_id");
    let late = slack.trigger_id();
    slack.clock().advance(Duration::from_secs(3));
    assert_eq!(open(&late).await["error"], "expired_trigger_id");
    let id = &opened["view"]["id"];
    let change = |hash: &Value| json!({ "view_id": id, "hash": hash, "view": view });
    assert_eq!(call(&slack, "views.update", change(&opened["view"]["hash"])).await["ok"], true);
    let stale = call(&slack, "views.update", change(&opened["view"]["hash"])).await;
    assert_eq!(stale["error"], "hash_conflict");
}

/// A `response_url` can be used five times within 30 minutes.
#[tokio::test]
async fn limits_uses_of_response_url() {
    let slack = start_slack().await;
    let send = async |url: &str| {
        let request = reqwest::Client::new().post(url).json(&json!({ "text": "hi" }));
        request.send().await.expect("an answer").status().as_u16()
    };
    let url = slack.response_url();
    for _ in 0..5 {
        assert_eq!(send(&url).await, 200);
    }
    assert_eq!(send(&url).await, 404);
    let late = slack.response_url();
    slack.clock().advance(Duration::from_secs(30 * 60));
    assert_eq!(send(&late).await, 404);
}

/// A message whose connection is cut after the call took effect is kept. Other faults have no
/// effect.
#[tokio::test]
async fn keeps_message_without_answer() {
    let slack = start_slack().await;
    let post = json!({ "channel": "C1", "text": "hi" });
    let cut = FaultRule::new(Fault::Cut).on("chat.postMessage").in_channel("C1").times(1);
    slack.inject_fault(cut.after_effect());
    slack.inject_fault(FaultRule::new(Fault::MidBody).on("chat.postMessage").times(1));
    slack.inject_fault(
        FaultRule::new(Fault::ApiError("fatal_error".into())).with_token(TOKEN).times(1),
    );
    slack.inject_fault(FaultRule::new(Fault::Status(503)).times(1));
    assert!(try_call(&slack, "chat.postMessage", post.clone()).await.is_err(), "cut");
    assert!(try_call(&slack, "chat.postMessage", post.clone()).await.is_err(), "within the body");
    assert_eq!(call(&slack, "chat.postMessage", post.clone()).await["error"], "fatal_error");
    assert!(try_call(&slack, "chat.postMessage", post.clone()).await.is_err(), "no JSON");
    assert_eq!(call(&slack, "chat.postMessage", post).await["ok"], true);
    assert_eq!(slack.messages("T1", "C1").len(), 2, "the one that was cut, and the last");
    let calls = slack.calls_of("chat.postMessage");
    assert_eq!(calls.iter().filter(|call| call.took_effect()).count(), 2);
    assert_eq!(calls[0].outcome, Outcome::Faulted { fault: Fault::Cut, taken: true });
}
