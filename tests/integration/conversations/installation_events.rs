//! Events of an installation: removal, reinstallation, renamed channels, new members, revoked
//! tokens.

use serde_json::{Value, json};
use shared::domain::{ConnectionStatus, Surface};
use tests::{
    eventually::eventually,
    slack::{unix_now, webhook::Webhook},
    test_env::{App, SMALL, TIMEOUT, TestEnv},
};

fn event(env: &TestEnv, app: &App, inner: Value, at: u64) -> Webhook {
    let mut webhook = Webhook::event(&env.slack, app, "an event", inner);
    let mut body: Value = serde_json::from_slice(&webhook.body).expect("JSON");
    body["event_time"] = at.into();
    webhook.body = body.to_string().into_bytes();
    webhook
}

async fn send_and_wait(env: &TestEnv, app: &App, webhook: &Webhook) -> String {
    assert_eq!(env.send(app, webhook).await.expect("an answer").status, 200);
    env.wait_for_outcome(&webhook.dedup_key).await.outcome
}

async fn status(env: &TestEnv, app: &App) -> ConnectionStatus {
    let found = env.store.connection_summaries(Some(app.connection)).await.expect("a look");
    found.first().expect("it is there").status
}

/// `app_uninstalled` and `tokens_revoked`, in either order, revoke the connection. Late events of
/// an earlier installation do not.
#[tokio::test]
async fn revokes_removed_app() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let removed = json!({ "type": "app_uninstalled" });
    for first_is_removal in [true, false] {
        let app = env.connect().await.expect("a connection");
        let now = unix_now(); // after the installation, whose time is in seconds
        let revoked = json!({ "type": "tokens_revoked", "tokens": { "oauth": ["U1"], "bot": [app.bot_user] } });
        let words = [event(&env, &app, removed.clone(), now), event(&env, &app, revoked, now)];
        let (first, second) =
            if first_is_removal { (&words[0], &words[1]) } else { (&words[1], &words[0]) };
        // Both are accepted before either is processed.
        env.workers[0].process.freeze();
        for webhook in [first, second] {
            assert_eq!(env.send(&app, webhook).await.expect("an answer").status, 200);
        }
        env.workers[0].process.thaw();
        assert_eq!(env.wait_for_outcome(&first.dedup_key).await.outcome, "installation_event");
        env.wait_for_outcome(&second.dedup_key).await;
        assert_eq!(status(&env, &app).await, ConnectionStatus::Revoked);
        eventually("ingest answers 404", TIMEOUT, async || {
            let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
            (env.send(&app, &webhook).await.ok()?.status == 404).then_some(())
        })
        .await;
    }

    // One of the two events had an effect and is in the audit log.
    let recorded: Vec<String> = sqlx::query_scalar(
        "select actor from audit_log where action = 'connection.revoke' and org_id is not null",
    )
    .fetch_all(&env.pool)
    .await
    .expect("the log");
    assert_eq!(recorded, ["slack", "slack"]);

    // Events of an earlier installation, or of other tokens, have no effect.
    let app = env.connect().await.expect("a connection");
    let late = event(&env, &app, removed.clone(), unix_now() - 3600);
    let persons = json!({ "type": "tokens_revoked", "tokens": { "oauth": ["U1"], "bot": [] } });
    let other = json!({ "type": "tokens_revoked", "tokens": { "bot": ["UOTHERBOT"] } });
    for webhook in
        [late, event(&env, &app, persons, unix_now() + 1), event(&env, &app, other, unix_now() + 1)]
    {
        send_and_wait(&env, &app, &webhook).await;
        assert_eq!(
            status(&env, &app).await,
            ConnectionStatus::Active,
            "{}",
            String::from_utf8_lossy(&webhook.body)
        );
    }
    let history = env.store.connection_history(app.connection).await.expect("a history");
    assert_eq!(history.len(), 1, "{history:?}");
}

/// A binding follows its channel when the channel's id changes.
#[tokio::test]
async fn keeps_binding_on_rename() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let code = env.create_link_code(&app, &[Surface::Channel]).await.expect("a code");
    let webhook = Webhook::command(&env.slack, &app, "G1", "U1", "/lobu", &format!("link {code}"));
    send_and_wait(&env, &app, &webhook).await;
    let renamed =
        json!({ "type": "channel_id_changed", "old_channel_id": "G1", "new_channel_id": "C1" });
    let webhook = event(&env, &app, renamed, unix_now());
    assert_eq!(send_and_wait(&env, &app, &webhook).await, "installation_event");
    assert_eq!(env.binding(&app, "G1").await.expect("a look"), None);
    let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "still there?");
    send_and_wait(&env, &app, &webhook).await;
    env.slack
        .wait_for_receipt("the answer", |receipt| receipt.text() == "I heard: still there?")
        .await;
}

/// A new member of the workspace is welcomed once. Bots and deleted users are not, nor is anyone if
/// the setting is off.
#[tokio::test]
async fn greets_new_people_once() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let quiet = env.connect_as(|new| new.settings.welcome = false).await.expect("a quiet one");
    let join = |user: Value| json!({ "type": "team_join", "user": user });
    let person = json!({ "id": "UNEW", "is_bot": false, "deleted": false });
    // Slack resends an event under the same id, and days later under another.
    for user in [
        person.clone(),
        person.clone(),
        json!({ "id": "UROBOT", "is_bot": true }),
        json!({ "id": "UGONE", "deleted": true }),
    ] {
        let webhook = event(&env, &app, join(user), unix_now());
        send_and_wait(&env, &app, &webhook).await;
    }
    send_and_wait(&env, &quiet, &event(&env, &quiet, join(person), unix_now())).await;
    let other = json!({ "id": "ULAST" });
    send_and_wait(&env, &app, &event(&env, &app, join(other), unix_now())).await;
    env.slack
        .wait_for_receipt("the last member is welcomed", |r| r.text().contains("<@ULAST>"))
        .await;
    let greeted: Vec<_> =
        env.slack.receipts().into_iter().filter(|r| r.text().starts_with("Welcome")).collect();
    assert_eq!(greeted.len(), 2, "{greeted:?}");
    assert!(greeted[0].text().contains("<@UNEW>") && greeted[0].text().contains("`/lobu help`"));
}
