//! Commands of people, as slash commands and as messages.

use serde_json::Value;
use shared::{
    domain::{AgentMode, Platform, Surface},
    store::{NewAgent, NewLinkCode},
};
use std::time::Duration;
use tests::{
    slack::{Receipt, unix_now, webhook::Webhook},
    test_env::{App, SMALL, TestEnv, actor, agent_id},
};

async fn send_command(env: &TestEnv, app: &App, channel: &str, user: &str, text: &str) -> String {
    let webhook = Webhook::command(&env.slack, app, channel, user, "/lobu", text);
    assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
    let reply = env
        .slack
        .wait_for_receipt("the reply to the command", |r| webhook.response_url.ends_with(&r.to))
        .await;
    assert_eq!(reply.body["response_type"], "ephemeral");
    reply.text().to_owned()
}

/// Sends a message and returns its replies: at most one.
async fn send_message(
    env: &TestEnv,
    app: &App,
    channel: &str,
    user: &str,
    text: &str,
) -> Vec<Receipt> {
    let before = env.slack.receipts().len();
    let webhook = Webhook::message(&env.slack, app, channel, user, text);
    assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
    env.wait_for_outcome(&webhook.dedup_key).await;
    // A later message of the lane is answered after all replies to this one.
    let last = Webhook::message(&env.slack, app, channel, user, "/lobu nonsense");
    env.send(app, &last).await.expect("an answer");
    let over =
        |replies: &[Receipt]| replies.iter().any(|r| r.text().starts_with("Unknown command."));
    env.slack
        .wait_for_receipt("the reply to the later command", |_| {
            over(&env.slack.receipts()[before..])
        })
        .await;
    let mut replies = env.slack.receipts().split_off(before);
    // The announcement of a binding in its channel may be sent after the reply to the command.
    let is_other =
        |text: &str| text.starts_with("Unknown command.") || text.contains("linked this channel");
    replies.retain(|receipt| !is_other(receipt.text()));
    replies
}

fn agent_requests(env: &TestEnv, kind: &str) -> Vec<Value> {
    let asked = env.agent.requests().into_iter().map(|asked| asked.question);
    asked.filter(|question| question["type"] == kind).collect()
}

/// A command gets the same reply as a slash command and as text, and no command reaches the agent.
#[tokio::test]
async fn treats_slash_and_text_alike() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    for text in
        ["help", "status", "unlink", "new", "link", "link AAAA-BBBB-CCCC", "agents", "try x"]
    {
        let slash = send_command(&env, &app, "D1", "U1", text).await;
        let replies = send_message(&env, &app, "D2", "U1", &format!("/lobu {text}")).await;
        let replies: Vec<_> = replies.iter().map(Receipt::text).collect();
        // Session names differ in their number only.
        assert_eq!(replies, [slash.as_str()], "{text}");
    }
    let help = send_command(&env, &app, "D1", "U1", "").await;
    for verb in ["help", "status", "link <code>", "unlink", "new", "clear"] {
        assert!(help.contains(&format!("`/lobu {verb}`")), "{help}");
    }
    assert!(!help.contains("try"), "`try` is for preview connections: {help}");
    assert_eq!(agent_requests(&env, "message").len(), 0, "a command reached the agent");
}

/// `unlink`, `new` and `clear` take effect, and the agent is notified. `clear` reports a failure of
/// the agent.
#[tokio::test]
async fn unlinks_and_resets_conversation() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let code = env.create_link_code(&app, &[Surface::Channel]).await.expect("a code");
    assert!(send_command(&env, &app, "C1", "U1", "clear").await.contains("isn't linked"));
    assert!(
        send_command(&env, &app, "C1", "U1", &format!("link {code}")).await.starts_with("Linked.")
    );
    assert!(send_command(&env, &app, "C1", "U1", "status").await.contains("linked by <@U1>"));
    let session = async |text: &str| {
        send_message(&env, &app, "C1", "U1", text).await;
        let question = agent_requests(&env, "message").pop().expect("it was asked");
        assert_eq!(question["text"], text);
        question["session"].as_i64()
    };
    assert_eq!(session("first").await, Some(1));
    send_command(&env, &app, "C1", "U1", "new").await;
    assert_eq!(session("second").await, Some(2));
    assert!(send_command(&env, &app, "C1", "U1", "clear").await.contains("asked to forget"));
    let forget = agent_requests(&env, "forget");
    assert_eq!((forget.len(), forget[0]["session"].as_i64()), (1, Some(2)));
    assert_eq!(session("third").await, Some(3));
    env.agent.set_failing(true);
    let reply = send_command(&env, &app, "C1", "U1", "clear").await;
    assert!(reply.contains("this session continues"), "the failure is reported: {reply}");
    env.agent.set_failing(false);
    assert_eq!(session("fourth").await, Some(3));
    assert!(send_command(&env, &app, "C1", "U1", "unlink").await.starts_with("Unlinked."));
    assert!(send_command(&env, &app, "C1", "U1", "unlink").await.contains("isn't linked"));
    assert_eq!(send_message(&env, &app, "C1", "U1", "anybody?").await.len(), 0);
}

/// On an ordinary connection `agents` and `try` list and bind no agent.
#[tokio::test]
async fn hides_agents_without_preview() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    for text in ["agents", "try sample", "try"] {
        let reply = send_command(&env, &app, "C1", "U1", text).await;
        assert!(reply.contains("preview") && !reply.contains("Sample"), "{text}: {reply}");
    }
    assert_eq!(env.binding(&app, "C1").await.expect("a look"), None);
}

/// On a preview connection `agents` lists agents, and `try` binds one to the channel.
#[tokio::test]
async fn lists_and_tries_preview_agents() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.preview_mode = true).await.expect("a preview");
    let notice = send_message(&env, &app, "D1", "U1", "hello?").await;
    assert_eq!(notice.len(), 1);
    assert!(notice[0].text().contains("/lobu link <code>"), "{notice:?}");
    assert_eq!(send_message(&env, &app, "C9", "U1", "not meant for the bot").await.len(), 0);
    let menu = send_command(&env, &app, "C1", "U1", "agents").await;
    assert_eq!(menu, "`/lobu try sample` for *Sample agent*");
    assert_eq!(send_command(&env, &app, "C1", "U1", "try nobody").await, menu);
    assert!(send_command(&env, &app, "C1", "U1", "try sample").await.starts_with("Linked."));
    let replies = send_message(&env, &app, "C1", "U1", "hello").await;
    assert_eq!(replies.iter().map(Receipt::text).collect::<Vec<_>>(), ["I heard: hello"]);
}

/// On a preview connection a message that is a link code binds the conversation. On another
/// connection it goes to the agent.
#[tokio::test]
async fn accepts_bare_code_in_preview() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let preview = env.connect_as(|new| new.preview_mode = true).await.expect("a preview");
    let code = async || {
        let claim = NewLinkCode {
            org: preview.org.clone(),
            agent: agent_id(),
            platform: Platform::Slack,
            surfaces: vec![Surface::Dm],
            connection: None,
            ttl: Duration::from_secs(900),
        };
        env.store.create_link_code(&actor(), &claim).await.expect("a code").reveal()
    };
    for (n, before) in ["", "link ", "/link ", "lobu link ", "/lobu link "].into_iter().enumerate()
    {
        let replies = send_message(
            &env,
            &preview,
            &format!("D{n}"),
            "U1",
            &format!("{before}{}", code().await),
        )
        .await;
        assert_eq!(replies.len(), 1, "{before}");
        assert!(replies[0].text().starts_with("Linked."), "{before}: {}", replies[0].text());
    }
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let code = env.create_link_code(&app, &[Surface::Dm]).await.expect("a code");
    for text in [code.clone(), format!("link {code}"), "lobu is great".into()] {
        let replies = send_message(&env, &app, "D9", "U1", &text).await;
        let expected = format!("I heard: {text}");
        assert_eq!(replies.iter().map(Receipt::text).collect::<Vec<_>>(), [expected.as_str()]);
    }
    assert_eq!(env.binding(&app, "D9").await.expect("a look"), None);
}

/// A mention, which Slack sends as `app_mention` and as `message`, uses a link code once and gets
/// one reply.
#[tokio::test]
async fn runs_command_of_mention_once() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let code = env.create_link_code(&app, &[Surface::Channel]).await.expect("a code");
    let ts = format!("{}.000100", unix_now());
    let text = format!("<@{}> /lobu link {code}", app.bot_user);
    for kind in ["app_mention", "message"] {
        let webhook = Webhook::message_event(&env.slack, &app, kind, "C1", "U1", &text, &ts);
        env.send(&app, &webhook).await.expect("an answer");
        env.wait_for_outcome(&webhook.dedup_key).await;
    }
    let replies = send_message(&env, &app, "C1", "U1", "/lobu status").await;
    assert!(
        replies.iter().any(|receipt| receipt.text().contains("linked by <@U1>")),
        "{replies:?}"
    );
    let linked = env.slack.receipts().iter().filter(|r| r.text().starts_with("Linked.")).count();
    assert_eq!(linked, 1);
}

/// A person of another workspace can't bind a shared channel, and the agent does not get the
/// person's code.
#[tokio::test]
async fn rejects_guest_of_shared_channel() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let code = env.create_link_code(&app, &[Surface::Channel]).await.expect("a code");
    let inner = serde_json::json!({
        "type": "message", "channel": "C1", "user": "UGUEST", "user_team": "TOTHER", "channel_type": "channel",
        "text": format!("/lobu link {code}"), "ts": format!("{}.000200", unix_now()),
    });
    let webhook = Webhook::event(&env.slack, &app, "a guest's command", inner);
    env.send(&app, &webhook).await.expect("an answer");
    env.wait_for_outcome(&webhook.dedup_key).await;
    assert_eq!(env.binding(&app, "C1").await.expect("a look"), None);
    let notice = env.slack.wait_for_receipt("the guest gets a notice", |r| {
        r.text().starts_with("Only members of this")
    });
    assert_eq!(notice.await.by, "chat.postEphemeral");
    assert_eq!(agent_requests(&env, "message").len(), 0, "the agent got the code");
}

/// Only members of the agent's organization bind it by name. If two organizations have the agent
/// id, the reply asks for one.
#[tokio::test]
async fn links_agent_by_name() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.preview_mode = true).await.expect("a preview");
    let other = env.connect().await.expect("another organization");
    let member = async |org: &str| {
        sqlx::query("insert into organization_members (org_id, user_id) values ($1, 'steve')")
            .bind(org)
            .execute(&env.pool)
            .await
            .expect("a member");
    };
    let refused = send_command(&env, &app, "C1", "U1", "link sample").await;
    assert!(refused.contains("invalid or expired"), "{refused}");
    sqlx::query(
        "insert into user_identities (platform, team_id, platform_user_id, user_id) values ('slack', $1, 'U1', 'steve')",
    )
    .bind(&app.team)
    .execute(&env.pool)
    .await
    .expect("an identity");
    assert_eq!(
        send_command(&env, &app, "C1", "U1", "link sample").await,
        refused,
        "a user without an organization"
    );
    member(app.org.as_str()).await;
    assert!(send_command(&env, &app, "C1", "U1", "link sample").await.starts_with("Linked."));
    assert_eq!(
        send_command(&env, &app, "C1", "U2", "link sample").await,
        refused,
        "a person without an identity"
    );
    member(other.org.as_str()).await;
    let reply = send_command(&env, &app, "C2", "U1", "link sample").await;
    let name = format!("/lobu link {}/sample", other.org);
    assert!(reply.contains("Several") && reply.contains(&name), "{reply}");
    assert!(
        send_command(&env, &app, "C2", "U1", &name["/lobu ".len()..]).await.starts_with("Linked.")
    );

    // An ordinary connection links agents of its own organization only.
    env.store
        .put_agent(&NewAgent {
            org: app.org.clone(),
            id: "extra".parse().expect("an id"),
            name: String::new(),
            mode: AgentMode::Reply,
            url: env.agent.url(),
            secret: shared::secrets::Secret::new("s".into()).expect("not empty"),
            timeout: NewAgent::TIMEOUT,
            max_concurrent: NewAgent::MAX_CONCURRENT,
            max_per_user: 1_000_000,
            retry_for: None,
            keep_for: NewAgent::KEEP_FOR,
            signs_as_slack: false,
            headers: Default::default(),
            policies: Default::default(),
        })
        .await
        .expect("an agent");
    sqlx::query(
        "insert into user_identities (platform, team_id, platform_user_id, user_id) values ('slack', $1, 'U1', 'steve')",
    )
    .bind(&other.team)
    .execute(&env.pool)
    .await
    .expect("an identity");
    assert_eq!(send_command(&env, &other, "C1", "U1", "link extra").await, refused);
}

/// A connection limited to direct messages ignores messages and rejects commands of a channel.
#[tokio::test]
async fn ignores_disabled_surfaces() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env
        .connect_as(|new| {
            new.agent = Some(agent_id());
            new.settings.surfaces = vec![Surface::Dm];
        })
        .await
        .expect("a connection");
    let code = env.create_link_code(&app, &[Surface::Channel]).await.expect("a code");
    let reply = send_command(&env, &app, "C1", "U1", &format!("link {code}")).await;
    assert_eq!(
        reply,
        "This app is disabled in this type of conversation. Use it in a direct message with this app."
    );
    let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
    env.send(&app, &webhook).await.expect("an answer");
    assert_eq!(env.wait_for_outcome(&webhook.dedup_key).await.outcome, "ignored");
    assert_eq!(send_message(&env, &app, "D1", "U1", "hello").await.len(), 1);
}
