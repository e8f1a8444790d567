//! Link codes: each binds one conversation once, where it is allowed.

use shared::{
    domain::{LinkBy, Platform, Surface},
    store::NewLinkCode,
};
use std::time::Duration;
use tests::{
    link_code_race::LinkCodeRace,
    slack::webhook::Webhook,
    test_env::{App, PAIR, SMALL, TestEnv, actor, agent_id},
};

/// Maximum time of the race, on a machine that also builds.
const RACE_TIMEOUT: Duration = Duration::from_secs(120);

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

async fn link(env: &TestEnv, app: &App, channel: &str, user: &str, code: &str) -> String {
    send_command(env, app, channel, user, &format!("link {code}")).await
}

async fn execute(env: &TestEnv, statement: &'static str) {
    sqlx::query(statement).execute(&env.pool).await.expect(statement);
}

/// A code for direct messages is rejected in a channel, and is not consumed by that.
#[tokio::test]
async fn rejects_wrong_surface() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let code = env.create_link_code(&app, &[Surface::Dm]).await.expect("a code");
    let reply = link(&env, &app, "C1", "U1", &code).await;
    assert!(reply.contains("can't be used here"), "{reply}");
    assert_eq!(env.binding(&app, "C1").await.expect("a look"), None);
    assert!(link(&env, &app, "D1", "U1", &code.to_lowercase()).await.starts_with("Linked."));
}

/// Of 64 people who use one code at the same time, one gets a binding and 63 a notice that it is
/// used.
#[tokio::test]
async fn accepts_one_of_64_users() {
    let env = TestEnv::start(PAIR).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let code = env.create_link_code(&app, &[Surface::Channel]).await.expect("a code");
    let racers = (0..64).map(|n| {
        let (env, app, code) = (&env, &app, &code);
        async move { link(env, app, &format!("C{n}"), &format!("U{n}"), code).await }
    });
    let replies = futures_util::future::join_all(racers).await;
    assert_eq!(
        replies.iter().filter(|reply| reply.starts_with("Linked.")).count(),
        1,
        "{replies:?}"
    );
    assert_eq!(
        replies.iter().filter(|reply| reply.contains("already used")).count(),
        63,
        "{replies:?}"
    );
    assert_eq!(count_bindings(&env).await, 1);
}

async fn count_bindings(env: &TestEnv) -> i64 {
    let count = sqlx::query_scalar("select count(*) from channel_bindings");
    count.fetch_one(&env.pool).await.expect("a count")
}

/// Each of 200 codes, used by ten people at the same time in different channels, creates one
/// binding, over two ingests and two workers.
#[tokio::test]
async fn accepts_200_of_2000_users() {
    let env = TestEnv::start(PAIR).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let race = LinkCodeRace::new(&env, &app, 200, 10).await.expect("codes");
    race.run(&env, &app, 100).await.expect("every command is accepted");
    race.wait_for_answers(&env, RACE_TIMEOUT).await.expect("everybody gets a reply");
    let verdict = race
        .verdict(&env, RACE_TIMEOUT)
        .await
        .expect("one wins each code, and the others get a notice");
    assert!(verdict.holds(false), "{verdict}");
}

/// The person who used a code gets the same reply to a repeat in the same channel: the first reply
/// may have been lost.
#[tokio::test]
async fn repeats_answer_to_same_user() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let code = env.create_link_code(&app, &[Surface::Channel]).await.expect("a code");
    let first = link(&env, &app, "C1", "U1", &code).await;
    assert_eq!(link(&env, &app, "C1", "U1", &code).await, first);
    assert!(link(&env, &app, "C1", "U2", &code).await.contains("already used"));
    assert!(link(&env, &app, "C2", "U1", &code).await.contains("already used"));
}

/// A code of another connection gets the reply to an unknown code, and stays valid on its own
/// connection.
#[tokio::test]
async fn hides_codes_of_other_connections() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let (app, other) = (env.connect().await.expect("one"), env.connect().await.expect("another"));
    let code = env.create_link_code(&other, &[Surface::Channel]).await.expect("a code");
    let reply = link(&env, &app, "C1", "U1", &code).await;
    assert!(reply.contains("invalid or expired"), "{reply}");
    assert_eq!(link(&env, &app, "C1", "U1", "AAAA-BBBB-CCCC").await, reply);
    assert_eq!(link(&env, &app, "C1", "U1", "nonsense").await, reply);
    assert!(
        link(&env, &other, "C1", "U1", &code).await.starts_with("Linked."),
        "the code is valid on its own connection"
    );
}

/// Codes of another platform, expired and revoked codes create no binding. A rejected use does not
/// consume a code.
#[tokio::test]
async fn rejects_invalid_codes() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let code = env.create_link_code(&app, &[Surface::Channel]).await.expect("a code");
    let refused = async |user: &str| {
        let reply = link(&env, &app, "C1", user, &code).await;
        assert!(reply.contains("invalid or expired"), "{reply}");
    };
    // No release writes another platform. One that does has to extend the check.
    execute(&env, "alter table link_codes drop constraint link_codes_platform_check").await;
    execute(&env, "update link_codes set platform = 'telegram'").await;
    refused("U1").await;
    execute(&env, "update link_codes set platform = 'slack', expires_at = now()").await;
    refused("U2").await;
    execute(&env, "update link_codes set expires_at = created_at + interval '15 minutes'").await;
    assert!(link(&env, &app, "C1", "U3", &code).await.starts_with("Linked."));
    assert_eq!(count_bindings(&env).await, 1);

    let other = env.create_link_code(&app, &[Surface::Channel]).await.expect("another code");
    let listed = env.tidegate(&["link-codes", "list", "--json"]).expect("a list");
    let claims: Vec<serde_json::Value> =
        listed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let states: Vec<_> = claims.iter().map(|claim| claim["state"].as_str()).collect();
    assert_eq!(states, [Some("open"), Some("used")]);
    assert!(!listed.contains(&code) && !listed.contains(&other), "the list shows codes: {listed}");
    let id = claims[0]["id"].as_str().expect("an id");
    env.tidegate(&["link-codes", "revoke", id]).expect("the code is revoked");
    let reply = link(&env, &app, "C2", "U4", &other).await;
    assert!(reply.contains("invalid or expired"), "{reply}");
    assert!(!env.try_tidegate(&["link-codes", "revoke", id]).expect("it runs").status.success());
}

/// After five wrong codes of a person, or too many of a workspace, a valid code is rejected for a
/// while with the same reply.
#[tokio::test]
async fn limits_guesses() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let code = env.create_link_code(&app, &[Surface::Channel]).await.expect("a code");
    let mut replies = Vec::new();
    for n in 0..5 {
        replies.push(link(&env, &app, "C1", "UGUESSER", &format!("AAAA-BBBB-CCC{n}")).await);
    }
    replies.push(link(&env, &app, "C1", "UGUESSER", &code).await);
    replies.dedup();
    assert_eq!(replies.len(), 1, "the right code is answered like the wrong ones: {replies:?}");
    assert_eq!(count_bindings(&env).await, 0);
    execute(&env, "update link_code_attempts set until = now() where who like '%/UGUESSER'").await;
    assert!(link(&env, &app, "C1", "UGUESSER", &code).await.starts_with("Linked."));

    // The workspace has a limit of its own, so that several people do not get more attempts.
    let code = env.create_link_code(&app, &[Surface::Channel]).await.expect("a code");
    execute(&env, "update link_code_attempts set misses = 100, until = now() + interval '1 minute' where who not like '%/U%'").await;
    assert!(link(&env, &app, "C2", "UNEW", &code).await.contains("invalid or expired"));
    execute(&env, "update link_code_attempts set until = now() - interval '1 minute'").await;
    assert!(link(&env, &app, "C2", "UNEW", &code).await.starts_with("Linked."));
    link(&env, &app, "C3", "UNEW", "AAAA-BBBB-CCCC").await;
    let kept: i64 = sqlx::query_scalar("select count(*) from link_code_attempts")
        .fetch_one(&env.pool)
        .await
        .expect("a count");
    assert_eq!(
        kept, 2,
        "expired attempts are deleted; those of the person and the workspace are left"
    );
}

/// A preview connection binds an agent of another organization, and the agent answers. An ordinary
/// connection does not.
#[tokio::test]
async fn links_other_organization() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let preview = env.connect_as(|new| new.preview_mode = true).await.expect("a preview");
    let theirs = env.connect().await.expect("another organization");
    let claim = NewLinkCode {
        org: theirs.org.clone(),
        agent: agent_id(),
        platform: Platform::Slack,
        surfaces: vec![Surface::Channel],
        connection: None,
        ttl: Duration::from_secs(900),
    };
    let code = env.store.create_link_code(&actor(), &claim).await.expect("a code").reveal();
    let elsewhere = link(&env, &theirs, "C1", "U1", &code).await;
    assert!(
        elsewhere.contains("invalid or expired"),
        "the code is valid on preview connections only: {elsewhere}"
    );
    assert!(link(&env, &preview, "C1", "U1", &code).await.starts_with("Linked."));
    let webhook = Webhook::message(&env.slack, &preview, "C1", "U1", "hello across");
    env.send(&preview, &webhook).await.expect("an answer");
    let answer =
        env.slack.wait_for_receipt("the answer", |r| r.text() == "I heard: hello across").await;
    assert_eq!(answer.to, "C1");
}

/// A command in a direct message of two people or in a private channel without the app does not
/// consume a code.
#[tokio::test]
async fn keeps_code_where_app_is_absent() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let code = env.create_link_code(&app, &[Surface::Dm, Surface::Channel]).await.expect("a code");
    let link_in = async |channel: &str, name: &str| {
        let text = format!("link {code}");
        let mut webhook = Webhook::command(&env.slack, &app, channel, "U1", "/lobu", &text);
        let body = String::from_utf8(webhook.body).expect("text");
        let name = format!("channel_name={name}");
        webhook.body = body.replace("channel_name=general", &name).into_bytes();
        env.send(&app, &webhook).await.expect("an answer");
        let reply = env.slack.wait_for_receipt("the reply to the command", |r| {
            webhook.response_url.ends_with(&r.to)
        });
        reply.await.text().to_owned()
    };
    for (channel, name) in [("D7", "directmessage"), ("C7", "privategroup")] {
        let refused = link_in(channel, name).await;
        assert!(refused.contains("nothing was linked"), "{refused}");
    }
    let hello = Webhook::message(&env.slack, &app, "D7", "U1", "hello");
    env.send(&app, &hello).await.expect("an answer");
    env.wait_for_outcome(&hello.dedup_key).await;
    assert!(link_in("D7", "directmessage").await.starts_with("Linked."));
    assert_eq!(count_bindings(&env).await, 1);
}

/// A new and a removed binding are each posted in the channel once and kept in the history.
#[tokio::test]
async fn announces_and_records_changes() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let code = env.create_link_code(&app, &[Surface::Channel]).await.expect("a code");
    assert!(link(&env, &app, "C1", "U1", &code).await.starts_with("Linked."));
    let posted_in_channel = async |text: &str| {
        env.slack
            .wait_for_receipt(text, |r| {
                r.to == "C1" && r.by == "chat.postMessage" && r.text() == text
            })
            .await
    };
    posted_in_channel("<@U1> linked this channel to the agent *Sample agent*.").await;
    assert!(
        link(&env, &app, "C1", "U1", &code).await.starts_with("Linked."),
        "the reply is repeated"
    );
    assert!(send_command(&env, &app, "C1", "U2", "unlink").await.starts_with("Unlinked."));
    posted_in_channel("<@U2> unlinked this channel from its agent.").await;
    assert_eq!(env.slack.calls_of("chat.postMessage").len(), 2);
    let history = env.store.binding_history(app.connection, 10).await.expect("a history");
    let history: Vec<_> = history.iter().map(|h| (h.agent.as_deref(), h.by.as_str())).collect();
    assert_eq!(history, [(None, "U2"), (Some("sample"), "U1")]);
}

/// With `link_by = binder` only the person who created a binding and members of the organization
/// change it.
#[tokio::test]
async fn restricts_changes_to_binder() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app =
        env.connect_as(|new| new.settings.link_by = LinkBy::Binder).await.expect("a connection");
    let code = env.create_link_code(&app, &[Surface::Channel]).await.expect("a code");
    assert!(link(&env, &app, "C1", "U1", &code).await.starts_with("Linked."));
    let another = env.create_link_code(&app, &[Surface::Channel]).await.expect("another");
    for command in ["unlink".to_owned(), format!("link {another}")] {
        let refused = send_command(&env, &app, "C1", "U2", &command).await;
        assert!(refused.starts_with("Only <@U1>"), "{refused}");
    }
    // A declared member of the organization may change bindings.
    for statement in [
        "insert into user_identities (platform, team_id, platform_user_id, user_id)
         select 'slack', team_id, 'UADMIN', 'ada' from connections where id = $1",
        "insert into organization_members (org_id, user_id)
         select org_id, 'ada' from connections where id = $1",
    ] {
        let query = sqlx::query(statement).bind(app.connection.to_string());
        query.execute(&env.pool).await.expect(statement);
    }
    assert!(send_command(&env, &app, "C1", "UADMIN", "unlink").await.starts_with("Unlinked."));
    assert!(
        link(&env, &app, "C1", "U2", &another).await.starts_with("Linked."),
        "the rejected use consumed the code"
    );
}
