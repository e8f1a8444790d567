//! Quotas per connection and workspace: one tenant can't fill the shared stream.
//!
//! `ingest/src/webhook/quota.rs` has the tests of the rates.

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use shared::{
    runtime::config::parse_bytes,
    stream::{DedupKey, STREAM},
};
use std::time::{Duration, Instant};
use tests::{
    eventually::eventually,
    fixtures,
    size::ci_or_full,
    slack::{Answer, webhook::Webhook},
    test_env::{App, SMALL, Size, TIMEOUT, TestEnv},
};

/// Two ingests that share the quotas, without a worker: stored webhooks are not processed.
const TWO_INGESTS: Size = Size { ingests: 2, workers: 0, ..SMALL };
const SLACK_DEADLINE: Duration = Duration::from_secs(3);
const OVER_QUOTA: &str = "This workspace sends too much at once. Please try again in a moment.";
const KIB: u64 = 1024;

async fn start_with_quotas(size: Size, settings: [(&str, &str); 4]) -> TestEnv {
    let mut env = TestEnv::without_processes(size).await.expect("a test environment");
    for (name, value) in settings {
        env.set(&format!("TIDEGATE_QUOTA_{name}"), value);
    }
    env.start_processes().await.expect("processes");
    for ingest in &env.ingests {
        eventually("the ingest counts all ingests", TIMEOUT, async || {
            let live = ingest.metric("tidegate_ingest_live_ingests").await.ok()?;
            (live == size.ingests as f64).then_some(())
        })
        .await;
    }
    env
}

/// A tenant that sends large bodies as fast as it can is refused what is over its quota, on both
/// ingests together. Another tenant's webhooks are accepted.
#[tokio::test]
async fn limits_tenant_that_floods() {
    // A debug build takes long for a signature of 1 MiB.
    let (body, burst, per_second) =
        ci_or_full((128 * KIB, "1MiB", "64KiB"), (1024 * KIB, "16MiB", "256KiB"));
    let bytes = |setting| parse_bytes(setting).expect("a size");
    let env = start_with_quotas(
        TWO_INGESTS,
        [
            ("WEBHOOKS_PER_SECOND", "50"),
            ("MAX_WEBHOOK_BURST", "1000"),
            ("BYTES_PER_SECOND", per_second),
            ("MAX_BYTE_BURST", burst),
        ],
    )
    .await;
    let (hostile, other) = (env.connect().await, env.connect().await);
    let (hostile, other) = (hostile.expect("a connection"), other.expect("a connection"));
    let text = "x".repeat(body as usize);
    let began = Instant::now();
    let flood = async {
        let sends = stream::iter(0..60).map(async |_| {
            let webhook = Webhook::message(&env.slack, &hostile, "C1", "U1", &text);
            env.send(&hostile, &webhook).await.expect("an answer")
        });
        sends.buffer_unordered(2).collect::<Vec<Answer>>().await
    };
    let ordinary = async {
        let mut pace = tokio::time::interval(Duration::from_millis(100));
        for _ in 0..20 {
            pace.tick().await;
            let webhook = Webhook::message(&env.slack, &other, "C1", "U1", "hello");
            let answer = env.send(&other, &webhook).await.expect("an answer");
            assert_eq!(answer.status, 200, "the other tenant's: {answer:?}");
            assert!(answer.took < SLACK_DEADLINE, "the other tenant's took {:?}", answer.took);
        }
    };
    let (answers, ()) = tokio::join!(flood, ordinary);
    let seconds = began.elapsed().as_secs() + 1;
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 503).collect();
    let accepted = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(accepted + refused.len(), answers.len(), "{answers:?}");
    for answer in &refused {
        let wait: u64 = answer.headers["retry-after"].to_str().expect("text").parse().expect("s");
        assert!((1..=60).contains(&wait), "{wait}");
    }
    // Each ingest accepts whole bodies from its half.
    let most = (bytes(burst) + bytes(per_second) * seconds) / body + 2;
    assert!((4..=most).contains(&(accepted as u64)), "{accepted} accepted, allowed are {most}");
    let stream = env.jetstream().get_stream(STREAM).await.expect("the stream");
    let stored = stream.cached_info().state.bytes;
    assert!(stored <= (most + 1) * body, "{stored} bytes in the stream");

    let mut counted = 0.0;
    for ingest in &env.ingests {
        let line = format!("tidegate_ingest_quota_refusals_total{{app=\"{}\"}}", hostile.app);
        counted += ingest.metric(&line).await.unwrap_or(0.0);
    }
    assert_eq!(counted, refused.len() as f64);
    let logs = env.wait_for_log("webhooks over quota refused").await.expect("it is logged");
    let line = logs.lines().find(|line| line.contains("webhooks over quota refused"));
    assert!(line.expect("a line").contains(&hostile.connection.to_string()), "{line:?}");
}

/// Sends events until one is refused, and then this webhook. Returns its refusal.
async fn send_over_quota(env: &TestEnv, app: &App, webhook: impl Fn() -> Webhook) -> Answer {
    for _ in 0..20 {
        let event = Webhook::message(&env.slack, app, "C1", "U1", "hello");
        let answer = env.send(app, &event).await.expect("an answer");
        if answer.status == 503 {
            let answer = env.send(app, &webhook()).await.expect("an answer");
            if answer.status == 503 || answer.body.contains(OVER_QUOTA) {
                return answer;
            }
        }
    }
    panic!("the quota has always room");
}

fn interaction(env: &TestEnv, app: &App, change: impl Fn(&mut Value)) -> Webhook {
    let mut fixture = fixtures::named("view_submission").content;
    let trigger_id = format!("{}.9.trigger", env.slack.unique());
    let payload = &mut fixture["_payload"];
    payload["trigger_id"] = json!(trigger_id);
    change(payload);
    let body = form_urlencoded::Serializer::new(String::new())
        .append_pair("payload", &payload.to_string())
        .finish();
    Webhook {
        what: payload["type"].to_string(),
        content_type: "application/x-www-form-urlencoded",
        body: body.into_bytes(),
        dedup_key: DedupKey::new(app.connection, "action", &[trigger_id.as_bytes(), b""]),
        response_url: String::new(),
    }
}

/// Over the quota a command and a submission get a body with the reason. Events and clicks get a
/// 503, which Slack retries or shows.
#[tokio::test]
async fn explains_refusal_by_kind() {
    let env = start_with_quotas(
        Size { ingests: 1, ..TWO_INGESTS },
        [
            ("WEBHOOKS_PER_SECOND", "1"),
            ("MAX_WEBHOOK_BURST", "1"),
            ("BYTES_PER_SECOND", "900MiB"),
            ("MAX_BYTE_BURST", "900MiB"),
        ],
    )
    .await;
    let app = env.connect_for_fixtures().await.expect("a connection");
    let json = |answer: &Answer| serde_json::from_str::<Value>(&answer.body).expect("JSON");

    let command = || Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", "help");
    let answer = send_over_quota(&env, &app, command).await;
    assert_eq!(json(&answer), json!({ "response_type": "ephemeral", "text": OVER_QUOTA }));

    let submission = || interaction(&env, &app, |_| ());
    let answer = send_over_quota(&env, &app, submission).await;
    let errors = json!({ "response_action": "errors", "errors": { "multiline": OVER_QUOTA } });
    assert_eq!((answer.status, json(&answer)), (200, errors));

    for kind in ["block_actions", "shortcut", "view_closed"] {
        let click = || interaction(&env, &app, |payload| payload["type"] = kind.into());
        let answer = send_over_quota(&env, &app, click).await;
        assert_eq!((answer.status, answer.body.as_str()), (503, ""), "{kind}");
        assert_eq!(answer.headers["retry-after"], "1", "{kind}");
    }
}
