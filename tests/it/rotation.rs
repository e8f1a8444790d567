//! Tokens that rotate are refreshed by one worker, however many need them.

use futures_util::future::join_all;
use shared::secrets::Secret;
use std::time::Duration;
use tests::{
    slack::{
        tokens::Installation,
        trouble::{Fault, Trouble},
        webhook::Webhook,
    },
    until::until,
    world::{App, SOON, Size, World, agent_id},
};

const EIGHT: Size = Size { ingests: 1, workers: 8, own_postgres: false };
const SMALL: Size = Size { ingests: 1, workers: 1, own_postgres: false };

/// An app whose token rotates; what we know of it is good for `expires_in`.
async fn rotating(world: &World, expires_in: Duration) -> (App, Secret) {
    world.slack.register_client("1.2", "client secret");
    let pair = world.slack.install_rotating(Installation::new("A0ROTATES", "T0ROTATES", "UBOT0"));
    let token = Secret::new(pair.token).expect("not empty");
    let app = world
        .connect_as(|new| {
            new.agent = Some(agent_id());
            new.team = Some("T0ROTATES".parse().expect("an id"));
            new.bot_token = Some(token.clone());
        })
        .await
        .expect("a connection");
    // Connecting installed it for good; this token rotates.
    let pair = world.slack.install_rotating(Installation::new(&app.app, &app.team, &app.bot_user));
    let expires_in = format!("{}s", expires_in.as_secs());
    let id = app.connection.to_string();
    world
        .tidegate(&[
            "connections",
            "enable-token-rotation",
            &id,
            "--client-id=1.2",
            "--client-secret=client secret",
            &format!("--refresh-token={}", pair.refresh),
            &format!("--expires-in={expires_in}"),
        ])
        .expect("the verb");
    world.slack.refuse_token(token.expose(), "token_expired");
    (app, token)
}

#[tokio::test]
async fn eight_workers_with_an_expired_token_refresh_it_once() {
    let world = World::start(EIGHT).await.expect("a world");
    let (app, _) = rotating(&world, Duration::from_secs(43_200)).await;
    let slow = Fault::Slow(Duration::from_secs(1));
    world.slack.trouble(Trouble::new(slow).on("oauth.v2.access"));
    let channels: Vec<String> = (0..32).map(|n| format!("C{n:04}")).collect();
    let world_ = &world;
    join_all(channels.iter().map(|channel| {
        let webhook = Webhook::message(&world_.slack, &app, channel, "U1", "hello");
        let app = &app;
        async move { assert_eq!(world_.send(app, &webhook).await.expect("an answer").status, 200) }
    }))
    .await;
    let answered = |channel: &String| {
        world.slack.messages(&app.team, channel).iter().filter(|m| m.bot_id.is_some()).count()
    };
    until("all are answered", SOON, async || {
        channels.iter().all(|channel| answered(channel) == 1).then_some(())
    })
    .await;
    let expired = world.slack.calls_of("chat.postMessage").len() - channels.len();
    assert!(expired >= 2, "several ran into it: {expired}");
    assert_eq!(world.slack.calls_of("oauth.v2.access").len(), 1);
}

#[tokio::test]
async fn a_token_is_refreshed_ahead_of_its_end() {
    let world = World::start(SMALL).await.expect("a world");
    let (app, first) = rotating(&world, Duration::from_secs(2)).await;
    until("it is refreshed", SOON, async || world.slack.calls_of("oauth.v2.access").pop()).await;
    let webhook = Webhook::message(&world.slack, &app, "C1", "U1", "hello");
    let fresh = until("it is in force", SOON, async || {
        let connection = world.store.hydrate_connection(app.connection).await.ok()??;
        connection.bot_token.filter(|token| token.expose() != first.expose())
    })
    .await;
    world.send(&app, &webhook).await.expect("an answer");
    let said = world.slack.told("answered", |receipt| receipt.by == "chat.postMessage").await;
    assert_eq!(said.token.as_deref(), Some(fresh.expose()));
    assert_eq!(world.slack.calls_of("oauth.v2.access").len(), 1);
}
