//! Signatures: webhooks that Slack did not sign are rejected.

use tests::{
    slack::{forged, unix_now, webhook::Webhook},
    test_env::{SMALL, TestEnv},
};

/// Forged signatures and headers get the same 401, and nothing is stored.
#[tokio::test]
async fn rejects_forged_webhook() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let (app, other) = (env.connect().await.expect("one"), env.connect().await.expect("another"));
    let (url, webhook) =
        (env.ingests[0].url(&app), Webhook::message(&env.slack, &app, "C1", "U1", "hello"));
    let mut forgeries = forged::signatures(&webhook, &app.secret, &other.secret);
    forgeries.extend(forged::headers(&webhook, &app.secret));
    let mut bodies = Vec::new();
    for forgery in &forgeries {
        let answer = forgery.send(&env.slack, &url).await.expect("an answer");
        assert_eq!(answer.status, 401, "{}", forgery.what);
        bodies.push(answer.body);
    }
    assert!(
        bodies.windows(2).all(|pair| pair[0] == pair[1]),
        "the answers reveal the cause: {bodies:?}"
    );
    assert_eq!(env.stored().await.expect("a count"), 0);

    let answer = env
        .slack
        .send_signed_at(&url, &app.secret, &webhook, unix_now() - 240)
        .await
        .expect("an answer");
    assert_eq!(answer.status, 200, "the same webhook with a valid signature is accepted");
}

/// A body over 1 MiB gets 413, and another media type 415.
#[tokio::test]
async fn rejects_unsupported_bodies() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let url = env.ingests[0].url(&app);
    let mut webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
    webhook.body.resize(1024 * 1024, b' ');
    assert_eq!(
        env.slack.send(&url, &app.secret, &webhook).await.expect("an answer").status,
        200,
        "1 MiB is accepted"
    );
    webhook.body.push(b' ');
    assert_eq!(env.slack.send(&url, &app.secret, &webhook).await.expect("an answer").status, 413);
    webhook.body.truncate(100);
    webhook.content_type = "text/html";
    assert_eq!(env.slack.send(&url, &app.secret, &webhook).await.expect("an answer").status, 415);
}

/// A webhook that Tidegate forwarded gets 508: an agent whose URL is Tidegate's own would make a
/// loop.
#[tokio::test]
async fn rejects_forwarded_webhook() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
    let (url, now) = (env.ingests[0].url(&app), unix_now().to_string());
    let signature = tests::slack::sign(&app.secret, &now, &webhook.body);
    let headers = [
        ("x-slack-signature", signature.as_str()),
        ("x-slack-request-timestamp", &now),
        ("tidegate-delivery", "x"),
    ];
    let answer = env.slack.send_with(&url, &webhook, &headers).await.expect("an answer");
    assert_eq!(answer.status, 508);
    let answer = env.slack.send_with(&url, &webhook, &headers[..2]).await.expect("an answer");
    assert_eq!(answer.status, 200);
    for sloppy in [format!("{url}/"), url.replace("/api/", "//api/")] {
        let answer = env.slack.send_with(&sloppy, &webhook, &headers[..2]).await;
        assert_eq!(answer.expect("an answer").status, 200, "{sloppy}");
    }
    assert_eq!(env.stored().await.expect("a count"), 1);
}
