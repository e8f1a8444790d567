//! What a person can ask for, as a slash command and as text: one table, one meaning.

use serde_json::Value;
use shared::{
    store::{NewAgent, NewClaim},
    types::{AgentMode, Platform, Surface},
};
use std::time::Duration;
use tests::{
    slack::{Receipt, unix_now, webhook::Webhook},
    world::{App, SMALL, World, agent_id},
};

async fn command(world: &World, app: &App, channel: &str, user: &str, text: &str) -> String {
    let webhook = Webhook::command(&world.slack, app, channel, user, "/lobu", text);
    assert_eq!(world.send(app, &webhook).await.expect("an answer").status, 200);
    let said =
        world.slack.told("the person hears", |r| webhook.response_url.ends_with(&r.to)).await;
    assert_eq!(said.body["response_type"], "ephemeral");
    said.text().to_owned()
}

/// Sends a message, and gives what Slack was told for it: one thing at most.
async fn message(world: &World, app: &App, channel: &str, user: &str, text: &str) -> Vec<Receipt> {
    let before = world.slack.receipts().len();
    let webhook = Webhook::message(&world.slack, app, channel, user, text);
    assert_eq!(world.send(app, &webhook).await.expect("an answer").status, 200);
    world.handled(&webhook.dedupe).await;
    // What is said after it in the same conversation's lane comes after whatever it led to.
    let last = Webhook::message(&world.slack, app, channel, user, "/lobu nonsense");
    world.send(app, &last).await.expect("an answer");
    let over = |said: &[Receipt]| said.iter().any(|r| r.text().starts_with("Unknown command."));
    world.slack.told("what comes after", |_| over(&world.slack.receipts()[before..])).await;
    let mut said = world.slack.receipts().split_off(before);
    said.retain(|receipt| !receipt.text().starts_with("Unknown command."));
    said
}

fn asked(world: &World, kind: &str) -> Vec<Value> {
    let asked = world.agent.asked().into_iter().map(|asked| asked.question);
    asked.filter(|question| question["type"] == kind).collect()
}

#[tokio::test]
async fn the_slash_form_and_the_text_form_say_and_do_the_same() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    for text in
        ["help", "status", "unlink", "new", "link", "link AAAA-BBBB-CCCC", "agents", "try x"]
    {
        let slash = command(&world, &app, "D1", "U1", text).await;
        let spoken = message(&world, &app, "D2", "U1", &format!("/lobu {text}")).await;
        let spoken: Vec<_> = spoken.iter().map(Receipt::text).collect();
        // What names a session differs in its number alone.
        assert_eq!(spoken, [slash.as_str()], "{text}");
    }
    let help = command(&world, &app, "D1", "U1", "").await;
    for verb in ["help", "status", "link <code>", "unlink", "new", "clear"] {
        assert!(help.contains(&format!("`/lobu {verb}`")), "{help}");
    }
    assert!(!help.contains("try"), "that is for preview bots: {help}");
    assert_eq!(asked(&world, "message").len(), 0, "no command reached the agent");
}

#[tokio::test]
async fn a_conversation_is_unlinked_begun_anew_and_cleared_and_its_agent_knows() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let code = world.mint(&app, &[Surface::Channel]).await.expect("a code");
    assert!(command(&world, &app, "C1", "U1", "clear").await.contains("isn't linked"));
    assert!(
        command(&world, &app, "C1", "U1", &format!("link {code}")).await.starts_with("Linked.")
    );
    assert!(command(&world, &app, "C1", "U1", "status").await.contains("linked by <@U1>"));
    let session = async |text: &str| {
        message(&world, &app, "C1", "U1", text).await;
        let question = asked(&world, "message").pop().expect("it was asked");
        assert_eq!(question["text"], text);
        question["session"].as_i64()
    };
    assert_eq!(session("first").await, Some(1));
    command(&world, &app, "C1", "U1", "new").await;
    assert_eq!(session("second").await, Some(2));
    assert!(command(&world, &app, "C1", "U1", "clear").await.contains("asked to forget"));
    let forget = asked(&world, "forget");
    assert_eq!((forget.len(), forget[0]["session"].as_i64()), (1, Some(2)));
    assert_eq!(session("third").await, Some(3));
    world.agent.break_down(true);
    let said = command(&world, &app, "C1", "U1", "clear").await;
    assert!(said.contains("this session continues"), "no success is claimed: {said}");
    world.agent.break_down(false);
    assert_eq!(session("fourth").await, Some(3));
    assert!(command(&world, &app, "C1", "U1", "unlink").await.starts_with("Unlinked."));
    assert!(command(&world, &app, "C1", "U1", "unlink").await.contains("isn't linked"));
    assert_eq!(message(&world, &app, "C1", "U1", "anybody?").await.len(), 0);
}

#[tokio::test]
async fn an_ordinary_tenants_agents_are_neither_listed_nor_tried() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    for text in ["agents", "try sample", "try"] {
        let said = command(&world, &app, "C1", "U1", text).await;
        assert!(said.contains("preview") && !said.contains("Sample"), "{text}: {said}");
    }
    assert_eq!(world.binding(&app, "C1").await.expect("a look"), None);
}

#[tokio::test]
async fn a_preview_bot_shows_the_way_lists_agents_and_lets_one_be_tried() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.preview_mode = true).await.expect("a preview");
    let notice = message(&world, &app, "D1", "U1", "hello?").await;
    assert_eq!(notice.len(), 1);
    assert!(notice[0].text().contains("/lobu link <code>"), "{notice:?}");
    assert_eq!(message(&world, &app, "C9", "U1", "not meant for the bot").await.len(), 0);
    let menu = command(&world, &app, "C1", "U1", "agents").await;
    assert_eq!(menu, "`/lobu try sample` for *Sample agent*");
    assert_eq!(command(&world, &app, "C1", "U1", "try nobody").await, menu);
    assert!(command(&world, &app, "C1", "U1", "try sample").await.starts_with("Linked."));
    let said = message(&world, &app, "C1", "U1", "hello").await;
    assert_eq!(said.iter().map(Receipt::text).collect::<Vec<_>>(), ["I heard: hello"]);
}

#[tokio::test]
async fn a_code_said_to_a_preview_bot_links_and_to_any_other_is_chat() {
    let world = World::start(SMALL).await.expect("a world");
    let preview = world.connect_as(|new| new.preview_mode = true).await.expect("a preview");
    let code = async || {
        let claim = NewClaim {
            org: preview.org.clone(),
            agent: agent_id(),
            platform: Platform::Slack,
            surfaces: vec![Surface::Dm],
            connection: None,
            ttl: Duration::from_secs(900),
            created_by: "test".into(),
        };
        world.store.mint_claim(&claim).await.expect("a code").reveal()
    };
    for (n, before) in ["", "link ", "/link ", "lobu link ", "/lobu link "].into_iter().enumerate()
    {
        let said =
            message(&world, &preview, &format!("D{n}"), "U1", &format!("{before}{}", code().await))
                .await;
        assert_eq!(said.len(), 1, "{before}");
        assert!(said[0].text().starts_with("Linked."), "{before}: {}", said[0].text());
    }
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let code = world.mint(&app, &[Surface::Dm]).await.expect("a code");
    for text in [code.clone(), format!("link {code}"), "lobu is great".into()] {
        let said = message(&world, &app, "D9", "U1", &text).await;
        let expected = format!("I heard: {text}");
        assert_eq!(said.iter().map(Receipt::text).collect::<Vec<_>>(), [expected.as_str()]);
    }
    assert_eq!(world.binding(&app, "D9").await.expect("a look"), None);
}

/// Slack tells one mention as `app_mention` and as `message`: the second would hear that its code was used.
#[tokio::test]
async fn a_command_in_a_mention_told_twice_is_done_once() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let code = world.mint(&app, &[Surface::Channel]).await.expect("a code");
    let ts = format!("{}.000100", unix_now());
    let text = format!("<@{}> /lobu link {code}", app.bot_user);
    for kind in ["app_mention", "message"] {
        let webhook = Webhook::said(&world.slack, &app, kind, "C1", "U1", &text, &ts);
        world.send(&app, &webhook).await.expect("an answer");
        world.handled(&webhook.dedupe).await;
    }
    let said = message(&world, &app, "C1", "U1", "/lobu status").await;
    assert!(said.iter().any(|receipt| receipt.text().contains("linked by <@U1>")), "{said:?}");
    let linked = world.slack.receipts().iter().filter(|r| r.text().starts_with("Linked.")).count();
    assert_eq!(linked, 1);
}

/// Whoever shares a channel from another company may talk there, but decides nothing.
#[tokio::test]
async fn a_guest_of_a_shared_channel_links_nothing() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let code = world.mint(&app, &[Surface::Channel]).await.expect("a code");
    let inner = serde_json::json!({
        "type": "message", "channel": "C1", "user": "UGUEST", "user_team": "TOTHER", "channel_type": "channel",
        "text": format!("/lobu link {code}"), "ts": format!("{}.000200", unix_now()),
    });
    let webhook = Webhook::event(&world.slack, &app, "a guest's command", inner);
    world.send(&app, &webhook).await.expect("an answer");
    world.handled(&webhook.dedupe).await;
    assert_eq!(world.binding(&app, "C1").await.expect("a look"), None);
    assert_eq!(asked(&world, "message").len(), 1, "to the agent it is a message like any other");
}

/// The same id may be another organization's agent, too; and who used a code once is nobody's member for it.
#[tokio::test]
async fn members_link_their_agents_by_name_and_what_is_ambiguous_is_asked_back() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.preview_mode = true).await.expect("a preview");
    let other = world.connect().await.expect("another organization");
    let member = async |org: &str| {
        sqlx::query("insert into organization_members (org_id, user_id) values ($1, 'steve')")
            .bind(org)
            .execute(&world.pool)
            .await
            .expect("a member");
    };
    let refused = command(&world, &app, "C1", "U1", "link sample").await;
    assert!(refused.contains("invalid or expired"), "{refused}");
    sqlx::query(
        "insert into user_identities (platform, team_id, platform_user_id, user_id) values ('slack', $1, 'U1', 'steve')",
    )
    .bind(&app.team)
    .execute(&world.pool)
    .await
    .expect("an identity");
    assert_eq!(
        command(&world, &app, "C1", "U1", "link sample").await,
        refused,
        "a member of nothing"
    );
    member(app.org.as_str()).await;
    assert!(command(&world, &app, "C1", "U1", "link sample").await.starts_with("Linked."));
    assert_eq!(command(&world, &app, "C1", "U2", "link sample").await, refused, "nobody's member");
    member(other.org.as_str()).await;
    let said = command(&world, &app, "C2", "U1", "link sample").await;
    let name = format!("/lobu link {}/sample", other.org);
    assert!(said.contains("Several") && said.contains(&name), "{said}");
    assert!(
        command(&world, &app, "C2", "U1", &name["/lobu ".len()..]).await.starts_with("Linked.")
    );

    // On an ordinary tenant's bot only that tenant's agents count.
    world
        .store
        .put_agent(&NewAgent {
            org: app.org.clone(),
            id: "extra".parse().expect("an id"),
            name: String::new(),
            mode: AgentMode::Reply,
            url: world.agent.url(),
            secret: shared::secrets::Secret::new("s".into()).expect("not empty"),
            timeout: NewAgent::TIMEOUT,
            max_concurrent: NewAgent::MAX_CONCURRENT,
            retry_for: None,
            keep_for: NewAgent::KEEP_FOR,
        })
        .await
        .expect("an agent");
    sqlx::query(
        "insert into user_identities (platform, team_id, platform_user_id, user_id) values ('slack', $1, 'U1', 'steve')",
    )
    .bind(&other.team)
    .execute(&world.pool)
    .await
    .expect("an identity");
    assert_eq!(command(&world, &other, "C1", "U1", "link extra").await, refused);
}

#[tokio::test]
async fn a_connection_works_only_on_the_surfaces_it_is_allowed() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world
        .connect_as(|new| {
            new.agent = Some(agent_id());
            new.settings.surfaces = vec![Surface::Dm];
        })
        .await
        .expect("a connection");
    let code = world.mint(&app, &[Surface::Channel]).await.expect("a code");
    let said = command(&world, &app, "C1", "U1", &format!("link {code}")).await;
    assert_eq!(
        said,
        "This app is disabled in this type of conversation. Use it in a direct message with this app."
    );
    let webhook = Webhook::message(&world.slack, &app, "C1", "U1", "hello");
    world.send(&app, &webhook).await.expect("an answer");
    assert_eq!(world.handled(&webhook.dedupe).await.outcome, "ignored");
    assert_eq!(message(&world, &app, "D1", "U1", "hello").await.len(), 1);
}
