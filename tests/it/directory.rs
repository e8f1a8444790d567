//! What ingest knows of connections is what is so now, on every ingest, in every weather.

use shared::{
    config,
    directory::{Directory, Entry},
};
use std::time::Duration;
use tests::{
    slack::webhook::Webhook,
    until::until,
    world::{App, PAIR, SMALL, SOON, Size, World},
};

const INGEST_ONLY: Size = Size { ingests: 1, workers: 0, own_postgres: false };

async fn status(world: &World, ingest: usize, app: &App, secret: &str) -> u16 {
    let webhook = Webhook::message(&world.slack, app, "C1", "U1", "hello");
    world
        .slack
        .send(&world.ingests[ingest].url(app), secret, &webhook)
        .await
        .expect("an answer")
        .status
}

#[tokio::test]
async fn a_rotated_signing_secret_is_in_force_on_every_ingest_when_the_verb_returns() {
    let world = World::start(Size { ingests: 2, ..INGEST_ONLY }).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let rotate = |secret: &str, overlap: &str| {
        let id = app.connection.to_string();
        let args =
            ["connections", "rotate-signing-secret", &id, "--secret", secret, "--overlap", overlap];
        world.tidegate(&args).expect("rotated");
    };
    rotate("the second", "1h");
    for ingest in 0..2 {
        assert_eq!(status(&world, ingest, &app, "the second").await, 200);
        assert_eq!(status(&world, ingest, &app, &app.secret).await, 200, "it is still good");
        let matched = async |secret: &str| {
            let line = format!("tidegate_ingest_signatures_verified_total{{secret=\"{secret}\"}}");
            world.ingests[ingest].metric(&line).await.expect("metrics")
        };
        assert_eq!((matched("current").await, matched("previous").await), (1.0, 1.0));
    }
    rotate("the third", "0s");
    for ingest in 0..2 {
        assert_eq!(status(&world, ingest, &app, "the third").await, 200);
        assert_eq!(status(&world, ingest, &app, "the second").await, 401, "its time is over");
    }
}

/// While NATS was away nobody heard of anything. What is changed as soon as it is back must hold as soon as that is said.
#[tokio::test]
async fn a_stop_is_in_force_when_the_verb_returns_also_right_after_nats_restarted() {
    let world = World::start(PAIR).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    for round in 0..3 {
        // The reports of the ingests expire meanwhile: nobody is there to be waited for.
        world.nats.kill();
        until("the ingests' reports are too old", SOON, async || {
            let answer = status(&world, 0, &app, &app.secret).await;
            (world.logs().matches("failed to read directory").count() > 2 * round && answer == 503)
                .then_some(())
        })
        .await;
        world.nats.restart().await.expect("NATS comes back");
        world.tidegate(&["connections", "disable", &app.connection.to_string()]).expect("stopped");
        let first = [
            status(&world, 0, &app, &app.secret).await,
            status(&world, 1, &app, &app.secret).await,
        ];
        assert!(first.iter().all(|status| [404, 503].contains(status)), "round {round}: {first:?}");
        until("both know", SOON, async || {
            let both = [
                status(&world, 0, &app, &app.secret).await,
                status(&world, 1, &app, &app.secret).await,
            ];
            (both == [404, 404]).then_some(())
        })
        .await;
        world.tidegate(&["connections", "enable", &app.connection.to_string()]).expect("started");
    }
}

#[tokio::test]
async fn an_ingest_starts_and_takes_webhooks_while_postgres_is_away() {
    let mut world =
        World::start(Size { own_postgres: true, ..INGEST_ONLY }).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    world.postgres.kill();
    world.start_ingest().await.expect("it starts");
    assert_eq!(status(&world, 1, &app, &app.secret).await, 200);
}

#[tokio::test]
async fn a_deleted_connection_is_unknown_and_an_older_writer_does_not_bring_it_back() {
    let world = World::start(INGEST_ONLY).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    assert_eq!(status(&world, 0, &app, &app.secret).await, 200);
    let directory =
        Directory::open(&config::jetstream(world.client().clone())).await.expect("the directory");
    let old = world.store.directory_entry(app.connection).await.expect("a row").expect("there");
    let gone = Entry::Deleted { version: old.version() + 1 };
    let revision = directory.project(app.connection, &gone).await.expect("written");
    directory.applied_everywhere(revision, SOON).await.expect("in force");
    assert_eq!(status(&world, 0, &app, &app.secret).await, 404);
    directory.project(app.connection, &old).await.expect("refused without an error");
    assert_eq!(directory.entry(app.connection).await.expect("read"), Some(gone));
    assert_eq!(status(&world, 0, &app, &app.secret).await, 404);
}

#[tokio::test]
async fn a_row_that_is_gone_leaves_a_tombstone_by_itself() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    sqlx::query("delete from connections where id = $1")
        .bind(app.connection.to_string())
        .execute(&world.pool)
        .await
        .expect("deleted");
    until("it is unknown", SOON, async || {
        (status(&world, 0, &app, &app.secret).await == 404).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_shared_route_finds_the_installations_connection_and_never_another_tenants() {
    let world =
        World::start(Size { ingests: 1, workers: 0, own_postgres: false }).await.expect("a world");
    let shared = "A0SHARED";
    let one =
        world.connect_as(|new| new.app = shared.parse().expect("an id")).await.expect("one tenant");
    let two =
        world.connect_as(|new| new.app = shared.parse().expect("an id")).await.expect("another");
    let stored_for = async |team: &str| {
        let app = App { team: team.into(), ..one.clone() };
        let before = world.stored().await.expect("a count");
        let webhook = Webhook::message(&world.slack, &app, "C1", "U1", "hello");
        assert_eq!(world.send_shared(&webhook).await.expect("an answer").status, 200);
        (world.stored().await.expect("a count") > before).then_some(())?;
        let js = async_nats::jetstream::new(world.client().clone());
        let stream = js.get_stream(shared::stream::STREAM).await.expect("the stream");
        let last = stream.get_last_raw_message_by_subject("slack.in.*.*").await.expect("a message");
        last.subject.rsplit('.').next().map(str::to_owned)
    };
    assert_eq!(stored_for(&one.team).await, Some(one.connection.to_string()));
    assert_eq!(stored_for(&two.team).await, Some(two.connection.to_string()));
    assert_eq!(stored_for("T0STRANGER").await, None, "unrouted, and nobody else's");
    let preview = world.connect_as(|new| {
        (new.app, new.team, new.preview_mode) = (shared.parse().expect("an id"), None, true);
    });
    let preview = preview.await.expect("a preview connection");
    assert_eq!(stored_for("T0STRANGER").await, Some(preview.connection.to_string()));
    assert_eq!(stored_for(&two.team).await, Some(two.connection.to_string()));
    world.tidegate(&["connections", "disable", &two.connection.to_string()]).expect("stopped");
    assert_eq!(stored_for(&two.team).await, None, "stopped is not the preview's, either");
    let unrouted = Webhook::command(
        &world.slack,
        &App { team: two.team.clone(), ..one.clone() },
        "C1",
        "U1",
        "/lobu",
        "help",
    );
    let answer = world.send_shared(&unrouted).await.expect("an answer");
    assert!(answer.status == 200 && answer.body.contains("ephemeral"), "{answer:?}");
}

#[tokio::test]
async fn a_directory_made_anew_is_written_and_read_again() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let js = async_nats::jetstream::new(world.client().clone());
    js.delete_key_value("connections").await.expect("deleted");
    world.tidegate(&["migrate"]).expect("made anew");
    assert_eq!(status(&world, 0, &app, &app.secret).await, 200, "what was known is not forgotten");
    let fresh = world.connect().await.expect("a connection after that");
    until("both are taken", Duration::from_secs(60), async || {
        let both = [
            status(&world, 0, &app, &app.secret).await,
            status(&world, 0, &fresh, &fresh.secret).await,
        ];
        (both == [200, 200]).then_some(())
    })
    .await;
}
