//! Defects that the gateway before this one had, each with the test that would have found it.
//!
//! What is known of them was read in its source and its issues. Most of the tests stand where they belong; those that belong
//! nowhere else stand here.

use shared::types::Surface;
use std::process::Command;
use tests::{
    slack::webhook::Webhook,
    world::{SMALL, Size, World},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };

/// The defect, and the test.
const DEFECTS: [(&str, &str); 18] = [
    (
        "a code used on the wrong surface was burnt",
        "links::a_code_used_on_the_wrong_surface_is_not_burnt",
    ),
    (
        "preview mode had to be edited into the database",
        "defects::preview_mode_is_declared_in_a_file_and_works",
    ),
    (
        "a link across organizations was written under one and looked up under the other",
        "links::a_code_of_another_organization_links_through_a_preview_connection_and_its_agent_answers",
    ),
    (
        "a code could be used on another tenant's bot",
        "links::a_code_of_another_connection_and_a_made_up_one_are_answered_alike",
    ),
    (
        "any tenant's bot listed and bound its agents",
        "commands::an_ordinary_tenants_agents_are_neither_listed_nor_tried",
    ),
    (
        "whoever used a code was taken for whoever minted it",
        "defects::who_uses_a_code_is_not_taken_for_who_minted_it",
    ),
    (
        "codes had 31 bits and no limit on guesses",
        "links::whoever_guesses_codes_is_not_listened_to_for_a_while_and_can_not_tell",
    ),
    (
        "a code was good on every platform",
        "links::a_code_for_another_platform_expired_or_taken_back_binds_nothing_and_survives_where_it_may",
    ),
    (
        "an agent was linked by an id that several organizations may have",
        "commands::members_link_their_agents_by_name_and_what_is_ambiguous_is_asked_back",
    ),
    (
        "new and clear only said that they did something",
        "commands::a_conversation_is_unlinked_begun_anew_and_cleared_and_its_agent_knows",
    ),
    (
        "help and the slash form differed from the text form",
        "commands::the_slash_form_and_the_text_form_say_and_do_the_same",
    ),
    (
        "replies were public, and failed where the bot was no member",
        "defects::a_command_is_answered_to_its_person_alone_where_the_bot_is_no_member",
    ),
    (
        "an upsert took over another organization's row",
        "apply::a_file_that_clashes_with_itself_or_with_what_is_there_changes_nothing_and_says_where",
    ),
    (
        "an installation needed an agent that nobody made",
        "defects::an_app_is_installed_without_an_agent",
    ),
    (
        "two installations at once made two rows",
        "defects::two_installations_of_one_app_in_one_workspace_make_one_row",
    ),
    (
        "webhooks of Grid and Connect went to the wrong workspace",
        "kinds::every_sort_of_webhook_is_routed_and_placed_by_the_ids_it_keeps_in_its_own_way",
    ),
    ("one mention came twice", "commands::a_command_in_a_mention_told_twice_is_done_once"),
    (
        "an app that was removed went on being spoken for",
        "lifecycle::an_app_that_is_removed_is_revoked_whichever_word_of_it_comes_first_and_not_by_a_late_one",
    ),
];

#[test]
fn every_known_defect_has_a_test() {
    let listed = Command::new(std::env::current_exe().expect("ourselves"))
        .arg("--list")
        .output()
        .expect("a list");
    let listed = String::from_utf8(listed.stdout).expect("text");
    for (defect, test) in DEFECTS {
        let line = format!("{test}: test");
        assert!(listed.lines().any(|there| there == line), "{defect}: there is no test {test}");
    }
}

#[tokio::test]
async fn preview_mode_is_declared_in_a_file_and_works() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world
        .declare_as(|file| file.replace("team =", "preview_mode = true\nteam ="))
        .expect("applied");
    let args = ["link-codes", "create", "--org", app.org.as_str(), "--agent", "sample"];
    let code = world.tidegate(&args).expect("a code for any preview bot");
    let webhook = Webhook::message(&world.slack, &app, "D1", "U1", code.trim());
    world.send(&app, &webhook).await.expect("an answer");
    let said = world.slack.told("linked", |receipt| receipt.to == "D1").await;
    assert!(said.text().starts_with("Linked."), "{}", said.text());
}

#[tokio::test]
async fn who_uses_a_code_is_not_taken_for_who_minted_it() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.declare().expect("applied");
    let code = world.mint_by_verb(&app, Surface::Channel).expect("a code");
    for (text, starts) in
        [(format!("link {code}"), "Linked."), ("link sample".into(), "This code is invalid")]
    {
        let webhook = Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", &text);
        world.send(&app, &webhook).await.expect("an answer");
        let said = world.slack.told("said", |r| webhook.response_url.ends_with(&r.to)).await;
        assert!(said.text().starts_with(starts), "{text}: {}", said.text());
    }
    let known: i64 = sqlx::query_scalar("select count(*) from user_identities")
        .fetch_one(&world.pool)
        .await
        .expect("a count");
    assert_eq!(known, 0);
}

#[tokio::test]
async fn a_command_is_answered_to_its_person_alone_where_the_bot_is_no_member() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.declare().expect("applied");
    for text in ["help", "status", "link", "agents", "unlink", "new"] {
        let webhook = Webhook::command(&world.slack, &app, "C0NOMEMBER", "U1", "/lobu", text);
        world.send(&app, &webhook).await.expect("an answer");
        let said = world.slack.told("said", |r| webhook.response_url.ends_with(&r.to)).await;
        assert_eq!(said.body["response_type"], "ephemeral", "{text}");
    }
    let told = world.slack.receipts();
    assert!(told.iter().all(|receipt| receipt.by == "response_url"), "{told:?}");
}

#[tokio::test]
async fn an_app_is_installed_without_an_agent() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let app = world.declare_as(|file| {
        let (before, rest) = file.split_once("[[agent]]").expect("an agent");
        let (_, after) = rest.split_once("[[connection]]").expect("a connection");
        format!("{before}[[connection]]{after}")
    });
    let app = app.expect("applied");
    let found = world.store.connection_summaries(Some(app.connection)).await.expect("a look");
    assert_eq!((found[0].agent.as_ref(), found[0].has_bot_token), (None, true));
}

#[tokio::test]
async fn two_installations_of_one_app_in_one_workspace_make_one_row() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let made = (0..8).map(|_| {
        world.prepare_as(|new| {
            new.app = "A1".parse().expect("an id");
            new.team = Some("T1".parse().expect("an id"));
        })
    });
    let made = futures_util::future::join_all(made).await;
    assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 1);
    assert_eq!(world.store.connection_summaries(None).await.expect("a look").len(), 1);
}
