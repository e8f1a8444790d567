//! Nothing that Slack did not sign goes further.

use tests::{
    slack::{sign, unix_now, webhook::Webhook},
    world::{SMALL, World},
};

#[tokio::test]
async fn a_forged_webhook_is_refused_and_nothing_is_stored() {
    let world = World::start(SMALL).await.expect("a world");
    let (app, other) =
        (world.connect().await.expect("one"), world.connect().await.expect("another"));
    let (url, webhook) =
        (world.ingests[0].url(&app), Webhook::message(&world.slack, &app, "C1", "U1", "hello"));
    let now = unix_now();
    let good = sign(&app.secret, &now.to_string(), &webhook.body);
    let stamp = |second: u64| second.to_string();
    let mut changed = webhook.clone();
    changed.body[10] ^= 1;
    let cases = [
        (
            "another connection's secret",
            &webhook,
            sign(&other.secret, &stamp(now), &webhook.body),
            stamp(now),
        ),
        ("a changed byte", &changed, good.clone(), stamp(now)),
        ("another second", &webhook, good.clone(), stamp(now + 1)),
        (
            "too old",
            &webhook,
            sign(&app.secret, &stamp(now - 310), &webhook.body),
            stamp(now - 310),
        ),
        (
            "from the future",
            &webhook,
            sign(&app.secret, &stamp(now + 310), &webhook.body),
            stamp(now + 310),
        ),
        ("no hex", &webhook, good.replace("v0=", "v0=zz"), stamp(now)),
        ("empty", &webhook, String::new(), stamp(now)),
    ];
    let mut bodies = Vec::new();
    for (what, webhook, signature, timestamp) in &cases {
        let headers =
            [("x-slack-signature", signature.as_str()), ("x-slack-request-timestamp", timestamp)];
        let answer = world.slack.send_with(&url, webhook, &headers).await.expect("an answer");
        assert_eq!(answer.status, 401, "{what}");
        bodies.push(answer.body);
    }
    let twice = [
        ("x-slack-signature", good.as_str()),
        ("x-slack-signature", &good),
        ("x-slack-request-timestamp", &stamp(now)),
    ];
    assert_eq!(
        world.slack.send_with(&url, &webhook, &twice).await.expect("an answer").status,
        401,
        "two signatures"
    );
    assert_eq!(
        world.slack.send_with(&url, &webhook, &[]).await.expect("an answer").status,
        401,
        "none"
    );
    assert!(
        bodies.windows(2).all(|pair| pair[0] == pair[1]),
        "the answers tell the causes apart: {bodies:?}"
    );
    assert_eq!(world.stored().await.expect("a count"), 0);

    let answer = world
        .slack
        .send_signed_at(&url, &app.secret, &webhook, unix_now() - 240)
        .await
        .expect("an answer");
    assert_eq!(answer.status, 200, "and the same webhook, signed well, is taken");
}

#[tokio::test]
async fn what_is_too_large_or_no_form_or_json_is_refused_before_it_is_read() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let url = world.ingests[0].url(&app);
    let mut webhook = Webhook::message(&world.slack, &app, "C1", "U1", "hello");
    webhook.body.resize(1024 * 1024, b' ');
    assert_eq!(
        world.slack.send(&url, &app.secret, &webhook).await.expect("an answer").status,
        200,
        "1 MiB is taken"
    );
    webhook.body.push(b' ');
    assert_eq!(world.slack.send(&url, &app.secret, &webhook).await.expect("an answer").status, 413);
    webhook.body.truncate(100);
    webhook.content_type = "text/html";
    assert_eq!(world.slack.send(&url, &app.secret, &webhook).await.expect("an answer").status, 415);
}
