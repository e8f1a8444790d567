//! Directory of every ingest: it is current, also during outages.

use async_nats::{header::NATS_MESSAGE_TTL, jetstream::message::PublishMessage};
use shared::{
    directory::{AppEntry, Directory, DirectoryEntry, TOMBSTONE_TTL, app_key, team_key},
    domain::AppId,
    runtime::config,
};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tests::{
    eventually::eventually,
    slack::webhook::Webhook,
    test_env::{App, PAIR, SHARED_APP, SMALL, Size, TIMEOUT, TestEnv},
};

const INGEST_ONLY: Size = Size { ingests: 1, workers: 0, own_postgres: false };

async fn status(env: &TestEnv, ingest: usize, app: &App, secret: &str) -> u16 {
    let webhook = Webhook::message(&env.slack, app, "C1", "U1", "hello");
    env.slack.send(&env.ingests[ingest].url(app), secret, &webhook).await.expect("an answer").status
}

/// Once the rotation returns, every ingest accepts the new signing secret, and the old one during
/// the overlap only.
#[tokio::test]
async fn rotates_secret_on_every_ingest() {
    let env = TestEnv::start(Size { ingests: 2, ..INGEST_ONLY }).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let rotate = |secret: &str, overlap: &str| {
        let id = app.connection.to_string();
        let secret = env.secret_argument(secret).expect("a file");
        let args = [
            "connections",
            "rotate-signing-secret",
            &id,
            "--secret",
            &secret,
            "--overlap",
            overlap,
        ];
        env.tidegate(&args).expect("rotated");
    };
    rotate("the second", "1h");
    for ingest in 0..2 {
        assert_eq!(status(&env, ingest, &app, "the second").await, 200);
        assert_eq!(
            status(&env, ingest, &app, &app.secret).await,
            200,
            "the previous secret is valid during the overlap"
        );
        let matched = async |secret: &str| {
            let line = format!("tidegate_ingest_signatures_verified_total{{secret=\"{secret}\"}}");
            env.ingests[ingest].metric(&line).await.expect("metrics")
        };
        assert_eq!((matched("current").await, matched("previous").await), (1.0, 1.0));
    }
    rotate("the third", "0s");
    for ingest in 0..2 {
        assert_eq!(status(&env, ingest, &app, "the third").await, 200);
        assert_eq!(status(&env, ingest, &app, "the second").await, 401, "the overlap has ended");
    }
}

/// A connection that is disabled right after an outage of NATS, in which no ingest was notified,
/// gets no 200 from any ingest once the command returns.
#[tokio::test]
async fn disables_right_after_nats_restart() {
    let env = TestEnv::start(PAIR).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    for round in 0..3 {
        // The reports of the ingests expire meanwhile, so that the command waits for none.
        env.nats.kill();
        eventually("the ingests' reports are too old", TIMEOUT, async || {
            let answer = status(&env, 0, &app, &app.secret).await;
            (env.logs().matches("failed to read directory").count() > 2 * round && answer == 503)
                .then_some(())
        })
        .await;
        env.nats.restart().await.expect("NATS comes back");
        env.tidegate(&["connections", "disable", &app.connection.to_string()]).expect("stopped");
        let first =
            [status(&env, 0, &app, &app.secret).await, status(&env, 1, &app, &app.secret).await];
        assert!(first.iter().all(|status| [404, 503].contains(status)), "round {round}: {first:?}");
        eventually("both ingests answer 404", TIMEOUT, async || {
            let both = [
                status(&env, 0, &app, &app.secret).await,
                status(&env, 1, &app, &app.secret).await,
            ];
            (both == [404, 404]).then_some(())
        })
        .await;
        env.tidegate(&["connections", "enable", &app.connection.to_string()]).expect("started");
    }
}

/// An ingest that starts while Postgres is down accepts webhooks.
#[tokio::test]
async fn starts_ingest_without_postgres() {
    let mut env = TestEnv::start(Size { own_postgres: true, ..INGEST_ONLY })
        .await
        .expect("a test environment");
    let app = env.connect().await.expect("a connection");
    env.postgres.kill();
    env.start_ingest().await.expect("it starts");
    assert_eq!(status(&env, 1, &app, &app.secret).await, 200);
}

/// An older version of a deleted connection does not replace its tombstone in the directory.
#[tokio::test]
async fn rejects_older_write_after_delete() {
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    assert_eq!(status(&env, 0, &app, &app.secret).await, 200);
    let directory =
        Directory::open(&config::jetstream(env.client().clone())).await.expect("the directory");
    let old = env.store.directory_entry(app.connection).await.expect("a row").expect("there");
    let gone = DirectoryEntry::Deleted { version: old.version() + 1 };
    let revision = directory.project(app.connection, &gone).await.expect("written");
    directory.wait_until_applied(revision, TIMEOUT).await.expect("in force");
    assert_eq!(status(&env, 0, &app, &app.secret).await, 404);
    directory.project(app.connection, &old).await.expect("refused without an error");
    assert_eq!(directory.entry(app.connection).await.expect("read"), Some(gone));
    assert_eq!(status(&env, 0, &app, &app.secret).await, 404);
}

/// NATS removes tombstones of connections, teams and apps in time. Until then they refuse older
/// versions. Ingests that have a tombstone and ingests that don't answer alike.
#[tokio::test]
async fn removes_tombstones_in_time() {
    let mut env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect_as(|new| new.app = SHARED_APP.parse().expect("an id")).await;
    let app = app.expect("a connection");
    let other = env.connect().await.expect("another connection");
    let js = config::jetstream(env.client().clone());
    let directory = Directory::open(&js).await.expect("the directory");
    let old = env.store.directory_entry(app.connection).await.expect("a row").expect("there");
    let other_app: AppId = "A0GONE".parse().expect("an id");
    let keys = [app.connection.to_string(), old.team_key().expect("a team"), app_key(&other_app)];
    let stream = js.get_stream("KV_connections").await.expect("the bucket");
    let last = async |key: &str| {
        stream.get_last_raw_message_by_subject(&format!("$KV.connections.{key}")).await
    };
    for key in &keys[..2] {
        let message = last(key).await.expect("an entry");
        assert!(message.headers.get(NATS_MESSAGE_TTL).is_none(), "{key}: {message:?}");
    }
    let gone = DirectoryEntry::Deleted { version: old.version() + 1 };
    directory.project(app.connection, &gone).await.expect("written");
    let deleted_app = AppEntry::Deleted { version: 2 };
    let revision = directory.project_app(&other_app, &deleted_app).await.expect("written");
    directory.wait_until_applied(revision, TIMEOUT).await.expect("in force");
    directory.project(app.connection, &old).await.expect("refused without an error");
    let known = AppEntry::Known { version: 1, signing_secrets: Vec::new() };
    directory.project_app(&other_app, &known).await.expect("refused without an error");
    assert_eq!(directory.identity().await.expect("the bucket").1, revision, "nothing is written");

    // The same tombstones again, for a second.
    for key in &keys {
        let message = last(key).await.expect("a tombstone");
        let ttl = message.headers.get(NATS_MESSAGE_TTL).map(|ttl| ttl.to_string());
        assert_eq!(ttl, Some(TOMBSTONE_TTL.as_secs().to_string()), "{key}");
        let short = PublishMessage::build().payload(message.payload).ttl(Duration::from_secs(1));
        let sent = js.send_publish(format!("$KV.connections.{key}"), short).await.expect("sent");
        sent.await.expect("stored");
    }
    eventually("the tombstones are gone", TIMEOUT, async || {
        let mut left = 0;
        for key in &keys {
            left += usize::from(last(key).await.is_ok());
        }
        (left == 0).then_some(())
    })
    .await;
    assert_eq!(directory.connections().await.expect("read"), [other.connection]);
    let started = Instant::now();
    env.start_ingest().await.expect("an ingest without the tombstones");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(status(&env, 1, &other, &other.secret).await, 200);
    for shared in [false, true] {
        let mut answers = Vec::new();
        for ingest in &env.ingests {
            let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
            let (url, secret) = match shared {
                false => (ingest.url(&app), &app.secret),
                true => (ingest.path("/slack/events"), &env.shared_secret),
            };
            let mut answer = env.slack.send(&url, secret, &webhook).await.expect("an answer");
            answer.headers.remove("date");
            answers.push((answer.status, answer.headers, answer.body));
        }
        assert_eq!(answers[0].0, if shared { 200 } else { 404 });
        assert_eq!(answers[0], answers[1]);
    }
    assert_eq!(env.stored().await.expect("a count"), 1);
}

/// A connection whose row is deleted directly in Postgres becomes unknown to ingest.
#[tokio::test]
async fn writes_tombstone_for_missing_row() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    sqlx::query("delete from connections where id = $1")
        .bind(app.connection.to_string())
        .execute(&env.pool)
        .await
        .expect("deleted");
    eventually("the connection is unknown", TIMEOUT, async || {
        (status(&env, 0, &app, &app.secret).await == 404).then_some(())
    })
    .await;
}

/// On the shared route a webhook goes to the connection of its own workspace, to the preview
/// connection if there is none, and never to another tenant's.
#[tokio::test]
async fn isolates_tenants_on_shared_route() {
    let env = TestEnv::start(Size { ingests: 1, workers: 0, own_postgres: false })
        .await
        .expect("a test environment");
    let shared = SHARED_APP;
    let one =
        env.connect_as(|new| new.app = shared.parse().expect("an id")).await.expect("one tenant");
    let two =
        env.connect_as(|new| new.app = shared.parse().expect("an id")).await.expect("another");
    let stored_for = async |team: &str| {
        let app = App { team: team.into(), ..one.clone() };
        let before = env.stored().await.expect("a count");
        let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
        assert_eq!(env.send_shared(&webhook).await.expect("an answer").status, 200);
        (env.stored().await.expect("a count") > before).then_some(())?;
        let js = async_nats::jetstream::new(env.client().clone());
        let stream = js.get_stream(shared::stream::STREAM).await.expect("the stream");
        let last = stream.get_last_raw_message_by_subject("slack.in.*.*").await.expect("a message");
        last.subject.rsplit('.').next().map(str::to_owned)
    };
    assert_eq!(stored_for(&one.team).await, Some(one.connection.to_string()));
    assert_eq!(stored_for(&two.team).await, Some(two.connection.to_string()));
    assert_eq!(stored_for("T0STRANGER").await, None, "an unrouted webhook is not stored");
    let preview = env.connect_as(|new| {
        (new.app, new.team, new.preview_mode) = (shared.parse().expect("an id"), None, true);
    });
    let preview = preview.await.expect("a preview connection");
    assert_eq!(stored_for("T0STRANGER").await, Some(preview.connection.to_string()));
    assert_eq!(stored_for(&two.team).await, Some(two.connection.to_string()));
    env.tidegate(&["connections", "disable", &two.connection.to_string()]).expect("stopped");
    assert_eq!(
        stored_for(&two.team).await,
        None,
        "the preview connection does not get webhooks of a stopped one"
    );
    let unrouted = Webhook::command(
        &env.slack,
        &App { team: two.team.clone(), ..one.clone() },
        "C1",
        "U1",
        "/lobu",
        "help",
    );
    let answer = env.send_shared(&unrouted).await.expect("an answer");
    assert!(answer.status == 200 && answer.body.contains("ephemeral"), "{answer:?}");
}

/// After its bucket is recreated the directory gets all connections again. Meanwhile ingest keeps
/// what it knew.
#[tokio::test]
async fn restores_recreated_directory() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let js = async_nats::jetstream::new(env.client().clone());
    js.delete_key_value("connections").await.expect("deleted");
    env.tidegate(&["migrate"]).expect("recreated");
    assert_eq!(status(&env, 0, &app, &app.secret).await, 200, "ingest keeps the known connections");
    let fresh = env.connect().await.expect("a connection after that");
    eventually("both are accepted", Duration::from_secs(60), async || {
        let both = [
            status(&env, 0, &app, &app.secret).await,
            status(&env, 0, &fresh, &fresh.secret).await,
        ];
        (both == [200, 200]).then_some(())
    })
    .await;
}

/// Keys of different installations differ, also for ids that are parts of keys.
#[test]
fn separates_keys_of_installations() {
    let words = ["_", "team", "enterprise", "preview", "app", "T1"];
    let mut keys = Vec::new();
    for app in words {
        let app: AppId = app.parse().expect("an id");
        keys.extend([app_key(&app), team_key(&app, None, None)]);
        for id in words {
            let (enterprise, team) = (id.parse().expect("an id"), id.parse().expect("an id"));
            keys.push(team_key(&app, Some(&enterprise), None));
            keys.push(team_key(&app, None, Some(&team)));
        }
    }
    let distinct: BTreeSet<&String> = keys.iter().collect();
    assert_eq!(distinct.len(), keys.len(), "{keys:?}");
}
