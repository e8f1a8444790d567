//! A link code binds one conversation, once, and only where it may.

use shared::types::Surface;
use tests::{
    slack::webhook::Webhook,
    world::{App, SMALL, World},
};

async fn link(world: &World, app: &App, channel: &str, user: &str, code: &str) -> String {
    let webhook =
        Webhook::command(&world.slack, app, channel, user, "/lobu", &format!("link {code}"));
    assert_eq!(world.send(app, &webhook).await.expect("an answer").status, 200);
    let said =
        world.slack.told("the person hears", |r| webhook.response_url.ends_with(&r.to)).await;
    assert_eq!(said.body["response_type"], "ephemeral");
    said.text().to_owned()
}

#[tokio::test]
async fn a_code_used_on_the_wrong_surface_is_not_burnt() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let code = world.mint(&app, &[Surface::Dm]).await.expect("a code");
    let said = link(&world, &app, "C1", "U1", &code).await;
    assert!(said.contains("not here"), "{said}");
    assert_eq!(world.binding(&app, "C1").await.expect("a look"), None);
    assert!(link(&world, &app, "D1", "U1", &code.to_lowercase()).await.starts_with("Linked."));
}

#[tokio::test]
async fn of_sixteen_people_racing_for_one_code_one_wins_and_fifteen_hear_so() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let code = world.mint(&app, &[Surface::Channel]).await.expect("a code");
    let racers = (0..16).map(|n| {
        let (world, app, code) = (&world, &app, &code);
        async move { link(world, app, &format!("C{n}"), &format!("U{n}"), code).await }
    });
    let said = futures_util::future::join_all(racers).await;
    assert_eq!(said.iter().filter(|said| said.starts_with("Linked.")).count(), 1, "{said:?}");
    assert_eq!(said.iter().filter(|said| said.contains("used already")).count(), 15, "{said:?}");
}

/// The first answer may have been lost on its way.
#[tokio::test]
async fn the_same_person_using_the_same_code_again_hears_the_same() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let code = world.mint(&app, &[Surface::Channel]).await.expect("a code");
    let first = link(&world, &app, "C1", "U1", &code).await;
    assert_eq!(link(&world, &app, "C1", "U1", &code).await, first);
    assert!(link(&world, &app, "C1", "U2", &code).await.contains("used already"));
    assert!(link(&world, &app, "C2", "U1", &code).await.contains("used already"));
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
