//! Slack's own SDK as a second implementation of signatures: ingest accepts webhooks that it signs,
//! and rejects those changed afterwards.

use tests::{
    fixtures,
    sdk::Sdk,
    slack::{sign, unix_now, webhook::Webhook},
    test_env::{Size, TestEnv},
};

const INGEST_ONLY: Size = Size { ingests: 1, workers: 0, own_postgres: false };

/// Ingest accepts webhooks that Slack's SDK signs, and rejects them if a byte was changed after
/// signing.
#[tokio::test]
async fn accepts_signatures_of_sdk() {
    let sdk = Sdk::get().await.expect("Slack's SDK");
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect_for_fixtures().await.expect("a connection");
    let url = env.ingests[0].url(&app);
    let fixtures = fixtures::all();

    let answers = sdk
        .send(&url, &app.secret, fixtures.iter().map(|f| &f.webhook), false)
        .await
        .expect("answers");
    for (fixture, answer) in fixtures.iter().zip(&answers) {
        assert_eq!(answer.status, 200, "{} {}", fixture.shape.name, answer.body);
    }
    let stored = env.stored().await.expect("a count");
    assert_eq!(
        stored as usize,
        fixtures.iter().filter(|fixture| fixture.shape.is_stored()).count()
    );

    let signed: Vec<_> =
        fixtures.iter().filter(|fixture| fixture.shape.name != "ssl_check").collect();
    let answers = sdk
        .send(&url, &app.secret, signed.iter().map(|f| &f.webhook), true)
        .await
        .expect("answers");
    for (fixture, answer) in signed.iter().zip(&answers) {
        assert_eq!(answer.status, 401, "{} {}", fixture.shape.name, answer.body);
    }
    assert_eq!((signed.len(), answers.len()), (fixtures.len() - 1, fixtures.len() - 1));
    assert_eq!(env.stored().await.expect("a count"), stored, "a changed one was stored");
}

/// Slack's SDK accepts the signatures of the simulated Slack, and rejects those of another secret.
#[tokio::test]
async fn verifies_simulated_slack() {
    let sdk = Sdk::get().await.expect("Slack's SDK");
    let fixtures = fixtures::all();
    let timestamp = unix_now().to_string();
    let sign_with = |secret: &str| -> Vec<(&Webhook, String)> {
        fixtures.iter().map(|f| (&f.webhook, sign(secret, &timestamp, &f.webhook.body))).collect()
    };
    for (secret, good) in [("the secret", true), ("another", false)] {
        let signed = sign_with(secret);
        let lines = signed.iter().map(|(webhook, signature)| {
            let headers = [
                ("X-Slack-Signature", signature.as_str()),
                ("X-Slack-Request-Timestamp", timestamp.as_str()),
            ];
            (webhook.body.as_slice(), headers)
        });
        let verdicts = sdk.verifies_each("the secret", lines).await.expect("verdicts");
        assert_eq!(verdicts, vec![good; fixtures.len()]);
    }
}
