//! Defects of the gateway before Tidegate, each with the test that detects it.
//!
//! They were found in its source and its issues. Tests without a module of their own subject are
//! here.

use crate::meta::architecture::listed_tests;
use shared::domain::Surface;
use tests::{
    slack::webhook::Webhook,
    test_env::{SMALL, Size, TestEnv},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };

/// Defects with their tests.
const DEFECTS: [(&str, &str); 18] = [
    ("a use of a code on the wrong surface consumed it", "link_codes::rejects_wrong_surface"),
    (
        "preview mode could be set in the database only",
        "regressions::applies_preview_mode_from_file",
    ),
    (
        "a binding across organizations was stored under one and looked up under the other",
        "link_codes::links_other_organization",
    ),
    (
        "a code could be used on another tenant's connection",
        "link_codes::hides_codes_of_other_connections",
    ),
    (
        "commands on any connection listed and bound its agents",
        "commands::hides_agents_without_preview",
    ),
    (
        "the person who used a code got the identity of its creator",
        "regressions::separates_user_and_creator",
    ),
    ("codes had 31 bits and no limit on guesses", "link_codes::limits_guesses"),
    ("a code was valid on every platform", "link_codes::rejects_invalid_codes"),
    (
        "an agent was bound by an id that several organizations may have",
        "commands::links_agent_by_name",
    ),
    (
        "new and clear reported success without an effect",
        "commands::unlinks_and_resets_conversation",
    ),
    (
        "slash commands and text commands had different replies",
        "commands::treats_slash_and_text_alike",
    ),
    (
        "replies were public, and failed where the bot was no member",
        "regressions::answers_privately_as_non_member",
    ),
    ("an upsert took over another organization's row", "apply::rejects_conflicting_file"),
    (
        "an installation needed an agent that nothing created",
        "regressions::installs_app_without_agent",
    ),
    (
        "two concurrent installations created two rows",
        "regressions::merges_concurrent_installations",
    ),
    ("webhooks of Grid and Connect went to the wrong workspace", "routing::classifies_every_shape"),
    ("one mention was processed twice", "commands::runs_command_of_mention_once"),
    ("a removed app kept its active connection", "installation_events::revokes_removed_app"),
];

/// Each test in the list exists.
#[test]
fn names_test_of_every_defect() {
    let tests = listed_tests();
    for (defect, test) in DEFECTS {
        assert!(tests.contains(test), "{defect}: there is no test {test}");
    }
}

/// Preview mode can be declared in a file, and a link code works on that connection.
#[tokio::test]
async fn applies_preview_mode_from_file() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env
        .declare_as(|file| file.replace("team =", "preview_mode = true\nteam ="))
        .expect("applied");
    let args = ["link-codes", "create", "--org", app.org.as_str(), "--agent", "sample"];
    let code = env.tidegate(&args).expect("a code for any preview bot");
    let webhook = Webhook::message(&env.slack, &app, "D1", "U1", code.trim());
    env.send(&app, &webhook).await.expect("an answer");
    let reply = env
        .slack
        .wait_for_receipt("the reply to the link code", |receipt| receipt.to == "D1")
        .await;
    assert!(reply.text().starts_with("Linked."), "{}", reply.text());
}

/// The person who uses a link code does not get the identity of the person who created it.
#[tokio::test]
async fn separates_user_and_creator() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.declare().expect("applied");
    let code = env.create_link_code_by_cli(&app, Surface::Channel).expect("a code");
    for (text, starts) in
        [(format!("link {code}"), "Linked."), ("link sample".into(), "This code is invalid")]
    {
        let webhook = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", &text);
        env.send(&app, &webhook).await.expect("an answer");
        let reply = env
            .slack
            .wait_for_receipt("the reply", |r| webhook.response_url.ends_with(&r.to))
            .await;
        assert!(reply.text().starts_with(starts), "{text}: {}", reply.text());
    }
    let known: i64 = sqlx::query_scalar("select count(*) from user_identities")
        .fetch_one(&env.pool)
        .await
        .expect("a count");
    assert_eq!(known, 0);
}

/// Replies to commands are ephemeral and use the `response_url`, also where the bot is no member.
#[tokio::test]
async fn answers_privately_as_non_member() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.declare().expect("applied");
    for text in ["help", "status", "link", "agents", "unlink", "new"] {
        let webhook = Webhook::command(&env.slack, &app, "C0NOMEMBER", "U1", "/lobu", text);
        env.send(&app, &webhook).await.expect("an answer");
        let reply = env
            .slack
            .wait_for_receipt("the reply", |r| webhook.response_url.ends_with(&r.to))
            .await;
        assert_eq!(reply.body["response_type"], "ephemeral", "{text}");
    }
    let receipts = env.slack.receipts();
    assert!(receipts.iter().all(|receipt| receipt.by == "response_url"), "{receipts:?}");
}

/// A connection can be declared without an agent.
#[tokio::test]
async fn installs_app_without_agent() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let app = env.declare_as(|file| {
        let (before, rest) = file.split_once("[[agent]]").expect("an agent");
        let (_, after) = rest.split_once("[[connection]]").expect("a connection");
        format!("{before}[[connection]]{after}")
    });
    let app = app.expect("applied");
    let found = env.store.connection_summaries(Some(app.connection)).await.expect("a look");
    assert_eq!((found[0].agent.as_ref(), found[0].has_bot_token), (None, true));
}

/// Of eight concurrent installations of one app in one workspace one makes a connection.
#[tokio::test]
async fn merges_concurrent_installations() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let made = (0..8).map(|_| {
        env.prepare_as(|new| {
            new.app = "A1".parse().expect("an id");
            new.team = Some("T1".parse().expect("an id"));
        })
    });
    let made = futures_util::future::join_all(made).await;
    assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 1);
    assert_eq!(env.store.connection_summaries(None).await.expect("a look").len(), 1);
}
