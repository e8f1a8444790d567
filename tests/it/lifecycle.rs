//! The life of a connection: removed and made again, its channels renamed, its people greeted, its tokens refused.

use serde_json::{Value, json};
use shared::types::{Status, Surface};
use tests::{
    slack::{unix_now, webhook::Webhook},
    until::until,
    world::{App, SMALL, SOON, World},
};

fn event(world: &World, app: &App, inner: Value, at: u64) -> Webhook {
    let mut webhook = Webhook::event(&world.slack, app, "an event", inner);
    let mut body: Value = serde_json::from_slice(&webhook.body).expect("JSON");
    body["event_time"] = at.into();
    webhook.body = body.to_string().into_bytes();
    webhook
}

async fn handled(world: &World, app: &App, webhook: &Webhook) -> String {
    assert_eq!(world.send(app, webhook).await.expect("an answer").status, 200);
    world.handled(&webhook.dedupe).await.outcome
}

async fn status(world: &World, app: &App) -> Status {
    let found = world.store.connection_summaries(Some(app.connection)).await.expect("a look");
    found.first().expect("it is there").status
}

#[tokio::test]
async fn an_app_that_is_removed_is_revoked_whichever_word_of_it_comes_first_and_not_by_a_late_one()
{
    let world = World::start(SMALL).await.expect("a world");
    let removed = json!({ "type": "app_uninstalled" });
    for first_is_removal in [true, false] {
        let app = world.connect().await.expect("a connection");
        let now = unix_now(); // after the installation, which counts in seconds
        let revoked = json!({ "type": "tokens_revoked", "tokens": { "oauth": ["U1"], "bot": [app.bot_user] } });
        let words = [event(&world, &app, removed.clone(), now), event(&world, &app, revoked, now)];
        let (first, second) =
            if first_is_removal { (&words[0], &words[1]) } else { (&words[1], &words[0]) };
        // Both are accepted before either is handled.
        world.workers[0].process.freeze();
        for webhook in [first, second] {
            assert_eq!(world.send(&app, webhook).await.expect("an answer").status, 200);
        }
        world.workers[0].process.thaw();
        assert_eq!(world.handled(&first.dedupe).await.outcome, "installation_event");
        world.handled(&second.dedupe).await;
        assert_eq!(status(&world, &app).await, Status::Revoked);
        until("ingest refuses it", SOON, async || {
            let webhook = Webhook::message(&world.slack, &app, "C1", "U1", "hello");
            (world.send(&app, &webhook).await.ok()?.status == 404).then_some(())
        })
        .await;
    }

    // What was said of an installation before this one, or of somebody else's tokens, is not about it.
    let app = world.connect().await.expect("a connection");
    let late = event(&world, &app, removed.clone(), unix_now() - 3600);
    let persons = json!({ "type": "tokens_revoked", "tokens": { "oauth": ["U1"], "bot": [] } });
    let other = json!({ "type": "tokens_revoked", "tokens": { "bot": ["UOTHERBOT"] } });
    for webhook in [
        late,
        event(&world, &app, persons, unix_now() + 1),
        event(&world, &app, other, unix_now() + 1),
    ] {
        handled(&world, &app, &webhook).await;
        assert_eq!(
            status(&world, &app).await,
            Status::Active,
            "{}",
            String::from_utf8_lossy(&webhook.body)
        );
    }
    let history = world.store.connection_history(app.connection).await.expect("a history");
    assert_eq!(history.len(), 1, "{history:?}");
}

#[tokio::test]
async fn a_channel_that_gets_another_id_stays_linked() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let code = world.mint(&app, &[Surface::Channel]).await.expect("a code");
    let webhook =
        Webhook::command(&world.slack, &app, "G1", "U1", "/lobu", &format!("link {code}"));
    handled(&world, &app, &webhook).await;
    let renamed =
        json!({ "type": "channel_id_changed", "old_channel_id": "G1", "new_channel_id": "C1" });
    let webhook = event(&world, &app, renamed, unix_now());
    assert_eq!(handled(&world, &app, &webhook).await, "installation_event");
    assert_eq!(world.binding(&app, "G1").await.expect("a look"), None);
    let webhook = Webhook::message(&world.slack, &app, "C1", "U1", "still there?");
    handled(&world, &app, &webhook).await;
    world.slack.told("the answer", |receipt| receipt.text() == "I heard: still there?").await;
}

#[tokio::test]
async fn who_joins_is_greeted_once_and_bots_are_not() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let quiet = world.connect_as(|new| new.settings.welcome = false).await.expect("a quiet one");
    let join = |user: Value| json!({ "type": "team_join", "user": user });
    let person = json!({ "id": "UNEW", "is_bot": false, "deleted": false });
    // Slack sends an event again under the same id, and after days under another.
    for user in [
        person.clone(),
        person.clone(),
        json!({ "id": "UROBOT", "is_bot": true }),
        json!({ "id": "UGONE", "deleted": true }),
    ] {
        let webhook = event(&world, &app, join(user), unix_now());
        handled(&world, &app, &webhook).await;
    }
    handled(&world, &quiet, &event(&world, &quiet, join(person), unix_now())).await;
    let other = json!({ "id": "ULAST" });
    handled(&world, &app, &event(&world, &app, join(other), unix_now())).await;
    world.slack.told("the last is greeted", |r| r.text().contains("<@ULAST>")).await;
    let greeted: Vec<_> =
        world.slack.receipts().into_iter().filter(|r| r.text().starts_with("Welcome")).collect();
    assert_eq!(greeted.len(), 2, "{greeted:?}");
    assert!(greeted[0].text().contains("<@UNEW>") && greeted[0].text().contains("`/lobu help`"));
}
