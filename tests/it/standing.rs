//! Nobody's app is switched off by Slack for what we could have helped.

use tests::{
    slack::webhook::Webhook,
    world::{App, Size, World},
};

const INGEST_ONLY: Size = Size { ingests: 1, workers: 0, own_postgres: false };

/// Slack counts every answer but 2xx, over all workspaces of an app: one tenant's mess must not end the others' events.
#[tokio::test]
async fn a_thousand_webhooks_that_belong_to_nobody_cost_the_shared_app_nothing() {
    let world = World::start(INGEST_ONLY).await.expect("a world");
    let shared = "A0SHARED";
    let app =
        world.connect_as(|new| new.app = shared.parse().expect("an id")).await.expect("a tenant");
    let mut refused = 0;
    for n in 0..1_100 {
        let team = if n % 100 == 0 { app.team.clone() } else { format!("T9{n:07}") };
        let sender = App { team, ..app.clone() };
        let webhook = Webhook::message(&world.slack, &sender, "C1", "U1", "hello");
        let answer = world.send_shared(&webhook).await.expect("an answer");
        refused += u32::from(!(200..300).contains(&answer.status));
    }
    assert_eq!(refused, 0);
    let metric = async |line: &str| world.ingests[0].metric(line).await.expect("metrics");
    assert_eq!(
        metric("tidegate_ingest_webhooks_total{outcome=\"unrouted\",kind=\"event\"}").await,
        1_089.0
    );
    assert_eq!(
        (
            metric("tidegate_ingest_apps_at_risk").await,
            metric("tidegate_ingest_app_failure_ratio_max").await
        ),
        (0.0, 0.0)
    );
}

#[tokio::test]
async fn an_app_half_way_to_being_switched_off_is_told_of() {
    let world = World::start(INGEST_ONLY).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    world.tidegate(&["connections", "disable", &app.connection.to_string()]).expect("stopped");
    for _ in 0..500 {
        let webhook = Webhook::message(&world.slack, &app, "C1", "U1", "hello");
        assert_eq!(world.send(&app, &webhook).await.expect("an answer").status, 404);
    }
    assert_eq!(
        world.ingests[0].metric("tidegate_ingest_apps_at_risk").await.expect("metrics"),
        1.0
    );
    let log = world.logged("half of Slack's failure limit exceeded").await.expect("a warning");
    assert!(log.contains(&app.app), "the warning names it");
    let ready = world.ingests[0].ready().await;
    assert!(ready.is_ok(), "an ingest that leaves makes nothing better");
}
