//! Nothing that Slack did not sign goes further.

use tests::{
    slack::{forged, unix_now, webhook::Webhook},
    world::{SMALL, World},
};

#[tokio::test]
async fn a_forged_webhook_is_refused_and_nothing_is_stored() {
    let world = World::start(SMALL).await.expect("a world");
    let (app, other) =
        (world.connect().await.expect("one"), world.connect().await.expect("another"));
    let (url, webhook) =
        (world.ingests[0].url(&app), Webhook::message(&world.slack, &app, "C1", "U1", "hello"));
    let mut forgeries = forged::signatures(&webhook, &app.secret, &other.secret);
    forgeries.extend(forged::headers(&webhook, &app.secret));
    let mut bodies = Vec::new();
    for forgery in &forgeries {
        let answer = forgery.send(&world.slack, &url).await.expect("an answer");
        assert_eq!(answer.status, 401, "{}", forgery.what);
        bodies.push(answer.body);
    }
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
