//! What Slack's own SDK signs is taken, and what was changed after it signed is not: a second opinion on what a
//! signature is, by people who never saw this code.

use tests::{
    fixtures,
    sdk::Sdk,
    slack::{sign, unix_now, webhook::Webhook},
    world::{Size, World},
};

const INGEST_ONLY: Size = Size { ingests: 1, workers: 0, own_postgres: false };

#[tokio::test]
async fn what_slacks_own_sdk_signs_is_taken_and_changed_by_a_byte_it_is_refused() {
    let sdk = Sdk::get().await.expect("Slack's SDK");
    let world = World::start(INGEST_ONLY).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let url = world.ingests[0].url(&app);
    let fixtures = fixtures::all().expect("fixtures");

    let answers = sdk
        .send(&url, &app.secret, fixtures.iter().map(|f| &f.webhook), false)
        .await
        .expect("answers");
    for (fixture, answer) in fixtures.iter().zip(&answers) {
        assert_eq!(answer.status, 200, "{} {}", fixture.name, answer.body);
    }
    let stored = world.stored().await.expect("a count");
    assert_eq!(stored as usize, fixtures.iter().filter(|fixture| fixture.is_stored()).count());

    let signed: Vec<_> = fixtures.iter().filter(|fixture| !fixture.is_ssl_check()).collect();
    let answers = sdk
        .send(&url, &app.secret, signed.iter().map(|f| &f.webhook), true)
        .await
        .expect("answers");
    for (fixture, answer) in signed.iter().zip(&answers) {
        assert_eq!(answer.status, 401, "{} {}", fixture.name, answer.body);
    }
    assert_eq!((signed.len(), answers.len()), (fixtures.len() - 1, fixtures.len() - 1));
    assert_eq!(world.stored().await.expect("a count"), stored, "a changed one was stored");
}

/// The fake Slack of all other tests is no friend of ours alone.
#[tokio::test]
async fn what_the_fake_slack_signs_is_slacks_to_the_sdk() {
    let sdk = Sdk::get().await.expect("Slack's SDK");
    let fixtures = fixtures::all().expect("fixtures");
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
        let verdicts = sdk.takes("the secret", lines).await.expect("verdicts");
        assert_eq!(verdicts, vec![good; fixtures.len()]);
    }
}
