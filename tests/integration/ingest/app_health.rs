//! Failures that count towards Slack's limit of an app.

use serde_json::json;
use tests::{
    slack::webhook::Webhook,
    test_env::{App, SHARED_APP, Size, TestEnv},
};

const INGEST_ONLY: Size = Size { ingests: 1, workers: 0, own_postgres: false };

/// Webhooks without a connection get 200 and do not count as failures: too many would make Slack
/// disable the app for all.
#[tokio::test]
async fn accepts_unrouted_webhooks() {
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let shared = SHARED_APP;
    let app =
        env.connect_as(|new| new.app = shared.parse().expect("an id")).await.expect("a tenant");
    let mut refused = 0;
    for n in 0..1_100 {
        let team = if n % 100 == 0 { app.team.clone() } else { format!("T9{n:07}") };
        let sender = App { team, ..app.clone() };
        let webhook = Webhook::message(&env.slack, &sender, "C1", "U1", "hello");
        let answer = env.send_shared(&webhook).await.expect("an answer");
        refused += u32::from(!(200..300).contains(&answer.status));
    }
    assert_eq!(refused, 0);
    let metric = async |line: &str| env.ingests[0].metric(line).await.expect("metrics");
    assert_eq!(
        metric("tidegate_ingest_webhooks_total{outcome=\"unrouted\",kind=\"event\"}").await,
        1_089.0
    );
    assert_eq!(
        (
            metric("tidegate_ingest_apps_at_risk").await,
            metric("tidegate_ingest_app_failure_ratio_max").await
        ),
        (0.0, 0.0)
    );
}

/// An app with half of the failures that Slack allows is logged and counted as at risk, and the
/// ingest stays ready.
#[tokio::test]
async fn warns_at_half_of_failure_limit() {
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    env.tidegate(&["connections", "disable", &app.connection.to_string()]).expect("stopped");
    for _ in 0..500 {
        let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
        assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 404);
    }
    assert_eq!(env.ingests[0].metric("tidegate_ingest_apps_at_risk").await.expect("metrics"), 1.0);
    let log = env
        .wait_for_log("app failure ratio exceeded half of Slack's limit")
        .await
        .expect("a warning");
    assert!(log.contains(&app.app), "the warning names the app");
    let ready = env.ingests[0].wait_until_ready().await;
    assert!(ready.is_ok(), "the ingest stays ready");
}

/// Requests without a valid signature neither count as failures of an app nor dilute them.
#[tokio::test]
async fn ignores_unverified_requests() {
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let url = env.ingests[0].url(&app);
    let mut other = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
    other.content_type = "text/html";
    for _ in 0..550 {
        let answer = env.slack.send(&url, "no secret", &other).await.expect("an answer");
        assert_eq!(answer.status, 415);
    }
    let at_risk = async || env.ingests[0].metric("tidegate_ingest_apps_at_risk").await;
    assert_eq!(at_risk().await.expect("metrics"), 0.0);
    let check = tests::fixtures::webhook("ssl_check", &json!({ "_form": { "ssl_check": "1" } }));
    for _ in 0..600 {
        assert_eq!(env.slack.send_with(&url, &check, &[]).await.expect("an answer").status, 200);
    }
    env.tidegate(&["connections", "disable", &app.connection.to_string()]).expect("stopped");
    let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
    for _ in 0..500 {
        assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 404);
    }
    assert_eq!(at_risk().await.expect("metrics"), 1.0);
}
