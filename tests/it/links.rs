//! A link code binds one conversation, once, and only where it may.

use shared::{
    store::NewClaim,
    types::{Platform, Surface},
};
use std::time::Duration;
use tests::{
    race::Race,
    slack::webhook::Webhook,
    world::{App, PAIR, SMALL, World, agent_id},
};

/// More than anything should take here, on a machine that builds at the same time.
const MANY_WITHIN: Duration = Duration::from_secs(120);

async fn say(world: &World, app: &App, channel: &str, user: &str, text: &str) -> String {
    let webhook = Webhook::command(&world.slack, app, channel, user, "/lobu", text);
    assert_eq!(world.send(app, &webhook).await.expect("an answer").status, 200);
    let said =
        world.slack.told("the person hears", |r| webhook.response_url.ends_with(&r.to)).await;
    assert_eq!(said.body["response_type"], "ephemeral");
    said.text().to_owned()
}

async fn link(world: &World, app: &App, channel: &str, user: &str, code: &str) -> String {
    say(world, app, channel, user, &format!("link {code}")).await
}

async fn sql(world: &World, statement: &'static str) {
    sqlx::query(statement).execute(&world.pool).await.expect(statement);
}

#[tokio::test]
async fn a_code_used_on_the_wrong_surface_is_not_burnt() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let code = world.mint(&app, &[Surface::Dm]).await.expect("a code");
    let said = link(&world, &app, "C1", "U1", &code).await;
    assert!(said.contains("can't be used here"), "{said}");
    assert_eq!(world.binding(&app, "C1").await.expect("a look"), None);
    assert!(link(&world, &app, "D1", "U1", &code.to_lowercase()).await.starts_with("Linked."));
}

#[tokio::test]
async fn of_sixty_four_people_racing_for_one_code_one_wins_and_sixty_three_hear_so() {
    let world = World::start(PAIR).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let code = world.mint(&app, &[Surface::Channel]).await.expect("a code");
    let racers = (0..64).map(|n| {
        let (world, app, code) = (&world, &app, &code);
        async move { link(world, app, &format!("C{n}"), &format!("U{n}"), code).await }
    });
    let said = futures_util::future::join_all(racers).await;
    assert_eq!(said.iter().filter(|said| said.starts_with("Linked.")).count(), 1, "{said:?}");
    assert_eq!(said.iter().filter(|said| said.contains("already used")).count(), 63, "{said:?}");
    assert_eq!(bindings(&world).await, 1);
}

async fn bindings(world: &World) -> i64 {
    let count = sqlx::query_scalar("select count(*) from channel_bindings");
    count.fetch_one(&world.pool).await.expect("a count")
}

/// Ten people use each code at the same moment, each in a channel of their own, over two ingests and two workers.
#[tokio::test]
async fn two_thousand_links_at_once_for_two_hundred_codes_make_two_hundred_bindings() {
    let world = World::start(PAIR).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let race = Race::new(&world, &app, 200, 10).await.expect("codes");
    race.run(&world, &app, 100).await.expect("everybody is taken");
    race.heard(&world, MANY_WITHIN).await.expect("everybody hears");
    let verdict =
        race.judged(&world, MANY_WITHIN).await.expect("one wins each, the others hear so");
    assert!(verdict.holds(false), "{verdict}");
}

/// The first answer may have been lost on its way.
#[tokio::test]
async fn the_same_person_using_the_same_code_again_hears_the_same() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let code = world.mint(&app, &[Surface::Channel]).await.expect("a code");
    let first = link(&world, &app, "C1", "U1", &code).await;
    assert_eq!(link(&world, &app, "C1", "U1", &code).await, first);
    assert!(link(&world, &app, "C1", "U2", &code).await.contains("already used"));
    assert!(link(&world, &app, "C2", "U1", &code).await.contains("already used"));
}

#[tokio::test]
async fn a_code_of_another_connection_and_a_made_up_one_are_answered_alike() {
    let world = World::start(SMALL).await.expect("a world");
    let (app, other) =
        (world.connect().await.expect("one"), world.connect().await.expect("another"));
    let code = world.mint(&other, &[Surface::Channel]).await.expect("a code");
    let said = link(&world, &app, "C1", "U1", &code).await;
    assert!(said.contains("invalid or expired"), "{said}");
    assert_eq!(link(&world, &app, "C1", "U1", "AAAA-BBBB-CCCC").await, said);
    assert_eq!(link(&world, &app, "C1", "U1", "nonsense").await, said);
    assert!(
        link(&world, &other, "C1", "U1", &code).await.starts_with("Linked."),
        "and it still works where it belongs"
    );
}

#[tokio::test]
async fn a_code_for_another_platform_expired_or_taken_back_binds_nothing_and_survives_where_it_may()
{
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let code = world.mint(&app, &[Surface::Channel]).await.expect("a code");
    let refused = async |user: &str| {
        let said = link(&world, &app, "C1", user, &code).await;
        assert!(said.contains("invalid or expired"), "{said}");
    };
    // No release writes another platform yet; one that did would widen the check.
    sql(&world, "alter table link_codes drop constraint link_codes_platform_check").await;
    sql(&world, "update link_codes set platform = 'telegram'").await;
    refused("U1").await;
    sql(&world, "update link_codes set platform = 'slack', expires_at = now()").await;
    refused("U2").await;
    sql(&world, "update link_codes set expires_at = created_at + interval '15 minutes'").await;
    assert!(link(&world, &app, "C1", "U3", &code).await.starts_with("Linked."));
    assert_eq!(bindings(&world).await, 1);

    let other = world.mint(&app, &[Surface::Channel]).await.expect("another code");
    let listed = world.tidegate(&["link-codes", "list", "--json"]).expect("a list");
    let claims: Vec<serde_json::Value> =
        listed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let states: Vec<_> = claims.iter().map(|claim| claim["state"].as_str()).collect();
    assert_eq!(states, [Some("open"), Some("used")]);
    assert!(!listed.contains(&code) && !listed.contains(&other), "a list of codes: {listed}");
    let id = claims[0]["id"].as_str().expect("an id");
    world.tidegate(&["link-codes", "revoke", id]).expect("taken back");
    let said = link(&world, &app, "C2", "U4", &other).await;
    assert!(said.contains("invalid or expired"), "{said}");
    assert!(!world.try_tidegate(&["link-codes", "revoke", id]).expect("it runs").status.success());
}

#[tokio::test]
async fn whoever_guesses_codes_is_not_listened_to_for_a_while_and_can_not_tell() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let code = world.mint(&app, &[Surface::Channel]).await.expect("a code");
    let mut said = Vec::new();
    for n in 0..5 {
        said.push(link(&world, &app, "C1", "UGUESSER", &format!("AAAA-BBBB-CCC{n}")).await);
    }
    said.push(link(&world, &app, "C1", "UGUESSER", &code).await);
    said.dedup();
    assert_eq!(said.len(), 1, "the right code is answered like the wrong ones: {said:?}");
    assert_eq!(bindings(&world).await, 0);
    sql(&world, "update link_code_attempts set until = now() where who like '%/UGUESSER'").await;
    assert!(link(&world, &app, "C1", "UGUESSER", &code).await.starts_with("Linked."));

    // The workspace as a whole has a limit, too: many people are not many chances.
    let code = world.mint(&app, &[Surface::Channel]).await.expect("a code");
    sql(&world, "update link_code_attempts set misses = 100, until = now() + interval '1 minute' where who not like '%/U%'").await;
    assert!(link(&world, &app, "C2", "UNEW", &code).await.contains("invalid or expired"));
    sql(&world, "update link_code_attempts set until = now() - interval '1 minute'").await;
    assert!(link(&world, &app, "C2", "UNEW", &code).await.starts_with("Linked."));
    link(&world, &app, "C3", "UNEW", "AAAA-BBBB-CCCC").await;
    let kept: i64 = sqlx::query_scalar("select count(*) from link_code_attempts")
        .fetch_one(&world.pool)
        .await
        .expect("a count");
    assert_eq!(kept, 2, "what is over was swept away: the person and the workspace are left");
}

/// The original said "Linked", and then "isn't linked": it wrote the binding under the claim's organization and looked
/// it up under the connection's.
#[tokio::test]
async fn a_code_of_another_organization_links_through_a_preview_connection_and_its_agent_answers() {
    let world = World::start(SMALL).await.expect("a world");
    let preview = world.connect_as(|new| new.preview_mode = true).await.expect("a preview");
    let theirs = world.connect().await.expect("another organization");
    let claim = NewClaim {
        org: theirs.org.clone(),
        agent: agent_id(),
        platform: Platform::Slack,
        surfaces: vec![Surface::Channel],
        connection: None,
        ttl: Duration::from_secs(900),
        created_by: "test".into(),
    };
    let code = world.store.mint_claim(&claim).await.expect("a code").reveal();
    let elsewhere = link(&world, &theirs, "C1", "U1", &code).await;
    assert!(elsewhere.contains("invalid or expired"), "good on preview bots alone: {elsewhere}");
    assert!(link(&world, &preview, "C1", "U1", &code).await.starts_with("Linked."));
    let webhook = Webhook::message(&world.slack, &preview, "C1", "U1", "hello across");
    world.send(&preview, &webhook).await.expect("an answer");
    let answer = world.slack.told("the answer", |r| r.text() == "I heard: hello across").await;
    assert_eq!(answer.to, "C1");
}
