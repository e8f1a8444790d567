//! The fake is believed only because it behaves like Slack: tokens, limits, threads, what runs out, and trouble.

use serde_json::{Value, json};
use std::time::Duration;
use tests::slack::{
    Slack,
    api::Outcome,
    limits::Limit,
    tokens::Installation,
    trouble::{Fault, Trouble},
};

const TOKEN: &str = "xoxb-1";

async fn slack() -> Slack {
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

#[tokio::test]
async fn what_is_posted_stands_in_its_thread_with_its_metadata() {
    let slack = slack().await;
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

#[tokio::test]
async fn history_is_given_page_by_page() {
    let slack = slack().await;
    for n in 0..5 {
        slack.write("T1", "C1", "U1", &n.to_string(), &format!("{n}.000000"));
    }
    let (mut heard, mut cursor) = (Vec::new(), String::new());
    loop {
        let asked = json!({ "channel": "C1", "limit": 2, "cursor": cursor, "oldest": "0.000000" });
        let page = call(&slack, "conversations.history", asked).await;
        let messages = page["messages"].as_array().expect("messages").clone();
        heard.extend(messages.iter().map(|m| m["text"].as_str().unwrap_or_default().to_owned()));
        match page["response_metadata"]["next_cursor"].as_str() {
            Some(next) if !next.is_empty() => cursor = next.to_owned(),
            _ => break,
        }
    }
    assert_eq!(
        heard,
        ["4", "3", "2", "1"],
        "newest first, and the oldest only when it is included"
    );
}

#[tokio::test]
async fn nobody_calls_without_a_good_token_or_the_scope() {
    let slack = slack().await;
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

#[tokio::test]
async fn tokens_rotate_and_a_refresh_token_is_good_once() {
    let slack = slack().await;
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

#[tokio::test]
async fn limits_are_kept_per_method_and_workspace() {
    let slack = slack().await;
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
    assert_eq!(slack.receipts().len(), 3, "what was refused left no receipt");
}

#[tokio::test]
async fn a_trigger_opens_one_view_within_three_seconds() {
    let slack = slack().await;
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

#[tokio::test]
async fn a_response_url_is_good_five_times_within_half_an_hour() {
    let slack = slack().await;
    let say = async |url: &str| {
        let said = reqwest::Client::new().post(url).json(&json!({ "text": "hi" }));
        said.send().await.expect("an answer").status().as_u16()
    };
    let url = slack.response_url();
    for _ in 0..5 {
        assert_eq!(say(&url).await, 200);
    }
    assert_eq!(say(&url).await, 404);
    let late = slack.response_url();
    slack.clock().advance(Duration::from_secs(30 * 60));
    assert_eq!(say(&late).await, 404);
}

#[tokio::test]
async fn a_connection_cut_after_the_fact_leaves_the_message_and_no_answer() {
    let slack = slack().await;
    let post = json!({ "channel": "C1", "text": "hi" });
    let cut = Trouble::new(Fault::Cut).on("chat.postMessage").in_channel("C1").times(1);
    slack.trouble(cut.after_the_fact());
    slack.trouble(Trouble::new(Fault::MidBody).on("chat.postMessage").times(1));
    slack.trouble(Trouble::new(Fault::Says("fatal_error".into())).with_token(TOKEN).times(1));
    slack.trouble(Trouble::new(Fault::Status(503)).times(1));
    assert!(try_call(&slack, "chat.postMessage", post.clone()).await.is_err(), "cut");
    assert!(try_call(&slack, "chat.postMessage", post.clone()).await.is_err(), "within the body");
    assert_eq!(call(&slack, "chat.postMessage", post.clone()).await["error"], "fatal_error");
    assert!(try_call(&slack, "chat.postMessage", post.clone()).await.is_err(), "no JSON");
    assert_eq!(call(&slack, "chat.postMessage", post).await["ok"], true);
    assert_eq!(slack.messages("T1", "C1").len(), 2, "the one that was cut, and the last");
    let calls = slack.calls_of("chat.postMessage");
    assert_eq!(calls.iter().filter(|call| call.took_effect()).count(), 2);
    assert_eq!(calls[0].outcome, Outcome::Broken { fault: Fault::Cut, taken: true });
}
