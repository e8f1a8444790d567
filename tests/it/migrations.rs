//! The schema moves on under rows that are there, and under a release that is still running.

use shared::{
    config,
    secrets::{KeyRing, Place, Secret},
    store::{Chat, Rings, Store},
    types::{ConnectionId, Status, Surface},
};
use sqlx::{Connection, Executor, PgConnection, PgPool, migrate::Migrator};
use std::{fs, path::Path};
use tests::{
    previous,
    slack::webhook::Webhook,
    world::{App, Size, World},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };

/// A database of this world that holds nothing yet; its address.
async fn empty_database(world: &World) -> String {
    let name = format!(
        "old_{:032x}",
        u128::from_be_bytes(ConnectionId::random().expect("randomness").to_bytes())
    );
    world.postgres.create_database(&name).await.expect("a database")
}

/// Rows of every table as the first release wrote them, migrated, and read by this one.
#[tokio::test]
async fn rows_of_the_first_release_are_read_by_this_one() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let url = empty_database(&world).await;
    let first = world.folder("first").expect("a folder");
    let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/migrations");
    fs::copy(migrations.join("0001_spine.sql"), first.join("0001_spine.sql")).expect("copied");
    let mut old = PgConnection::connect(&url).await.expect("a connection");
    Migrator::new(first.as_path())
        .await
        .expect("migrations")
        .run(&mut old)
        .await
        .expect("migrated");

    let ring: KeyRing =
        world.setting("TIDEGATE_TOKEN_KEYS").expect("a ring").parse().expect("a ring");
    let signing: KeyRing =
        world.setting("TIDEGATE_SIGNING_KEYS").expect("a ring").parse().expect("a ring");
    let id = "00ff00ff00ff00ff00ff00ff00ff00ff";
    let seal = |ring: &KeyRing, owner: &str, column: &'static str, clear: &[u8]| {
        ring.seal(Place { owner, column }, clear).expect("sealed").as_str().to_owned()
    };
    let kept = br#"{"headers":[["Tidegate-Schema","1"]],"body":"e30="}"#;
    let rows = include_str!("../fixtures/migrations/0001.sql")
        .replace("{id}", id)
        .replace("{signing_secret}", &seal(&signing, id, "connections.signing_secret", b"signing"))
        .replace("{bot_token}", &seal(&ring, id, "connections.bot_token", b"xoxb-old"))
        .replace("{agent_secret}", &seal(&ring, "acme/helper", "agents.secret", b"agent"))
        .replace("{dead}", &seal(&ring, &format!("slack.in.7.{id}"), "dead.sealed", kept));
    old.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(rows))).await.expect("rows");
    let settings = config::Postgres { url: url.clone(), connections: 4 };
    Store::migrate(&settings).await.expect("migrated");
    Store::migrate(&settings).await.expect("and again");

    let store = Store::new(&settings, Rings { signing, tokens: ring }).expect("a store");
    let id: ConnectionId = id.parse().expect("an id");
    let connection = store.hydrate_connection(id).await.expect("read").expect("there");
    assert_eq!(connection.bot_token.as_ref().map(Secret::expose), Some("xoxb-old"));
    assert_eq!((connection.status, connection.settings.surfaces.len()), (Status::Active, 2));
    let agent =
        store.agent(&connection.org, &"helper".parse().expect("an id")).await.expect("read");
    assert_eq!(agent.expect("there").secret.expose(), "agent");
    let chat = Chat {
        connection: id,
        team: "T1".parse().expect("an id"),
        channel: "C1".parse().expect("an id"),
    };
    let state = store.chat(&chat, None).await.expect("read");
    assert_eq!((state.agent.is_some(), state.session), (true, 1));
    assert_eq!(store.connection_summaries(None).await.expect("read").len(), 1);
    let claims = store.claims(10).await.expect("read");
    let mut states: Vec<&str> = claims.iter().map(|claim| claim.state.as_str()).collect();
    states.sort_unstable();
    assert_eq!(states, ["open", "used"]);
    let dead = store.dead(10).await.expect("read");
    assert_eq!((dead.len(), dead[0].body.as_slice()), (1, b"{}".as_slice()));
    assert_eq!(store.lane_states(10).await.expect("read").len(), 1);
    assert!(store.directory_entry(id).await.expect("read").is_some());
}

/// What no statement of ours writes is named with its place, and stops nothing else.
#[tokio::test]
async fn a_row_that_makes_no_sense_is_an_error_that_names_table_column_and_row() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let (app, other) = (world.declare().expect("one"), world.declare().expect("another"));
    for (column, value) in [
        // Each is looked at before those above it.
        ("org_id", "'not an id'"),
        ("settings", "'[7]'"),
        ("signing_secret", "'k9:bm90aGluZw=='"),
        ("bot_token", "'k1:bm90aGluZw=='"),
    ] {
        let mut tx = world.pool.begin().await.expect("a transaction");
        tx.execute("set local session_replication_role = replica").await.expect("without keys");
        let sql = format!("update connections set {column} = {value} where id = $1 returning id");
        let sql = sqlx::query_scalar::<_, String>(sqlx::AssertSqlSafe(sql))
            .bind(app.connection.to_string());
        sql.fetch_one(&mut *tx).await.expect("changed");
        tx.commit().await.expect("committed");
        let error = world.store.hydrate_connection(app.connection).await.expect_err("nonsense");
        let expected = format!("connections.{column} of row {} makes no sense: ", app.connection);
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
    assert!(world.store.hydrate_connection(other.connection).await.expect("read").is_some());
}

async fn linked_and_answered(world: &World, app: &App, channel: &str) {
    let code = world.mint(app, &[Surface::Channel]).await.expect("a code");
    let webhook =
        Webhook::command(&world.slack, app, channel, "U1", "/lobu", &format!("link {code}"));
    world.send(app, &webhook).await.expect("an answer");
    let said = world.slack.told("linked", |r| webhook.response_url.ends_with(&r.to)).await;
    assert!(said.text().starts_with("Linked."), "{}", said.text());
    let text = format!("hello in {channel}");
    let webhook = Webhook::message(&world.slack, app, channel, "U1", &text);
    world.send(app, &webhook).await.expect("an answer");
    let expected = format!("I heard: {text}");
    world.slack.told("the answer", |receipt| receipt.text() == expected).await;
}

/// What every deploy does: the schema moves first, while the release before works on; then that one is replaced.
#[tokio::test]
async fn the_release_before_goes_on_working_while_the_schema_moves_and_is_then_replaced() {
    let old = match previous::binaries() {
        Ok(old) => old,
        Err(why) => {
            println!("NOT RUN: the release before this one can't be built: {why:#}");
            return;
        }
    };
    let mut world = World::without_processes(SERVERS).await.expect("servers");
    let url = empty_database(&world).await;
    world.set("TIDEGATE_POSTGRES_URL", &url);
    world.pool = PgPool::connect(&url).await.expect("a pool");
    let rings = Rings {
        signing: world.setting("TIDEGATE_SIGNING_KEYS").expect("a ring").parse().expect("a ring"),
        tokens: world.setting("TIDEGATE_TOKEN_KEYS").expect("a ring").parse().expect("a ring"),
    };
    world.store = Store::new(&config::Postgres { url, connections: 4 }, rings).expect("a store");
    let ran = world.run(&old.tidegate, &["migrate"]).expect("it runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    world.start_ingest().await.expect("an ingest");
    world.start_worker_of(&old.worker).expect("the release before");
    world.settled().await.expect("settled");
    world.tidegate(&["migrate"]).expect("migrated under it");
    let app = world.connect().await.expect("a connection");
    linked_and_answered(&world, &app, "C1").await;
    world.start_worker().await.expect("this release");
    world.settled().await.expect("both have their share");
    for n in 2..10 {
        linked_and_answered(&world, &app, &format!("C{n}")).await;
    }
    world.workers[0].process.terminate();
    world.workers[0].process.wait(tests::world::SOON).await.expect("it ends");
    world.settled().await.expect("this release has all");
    linked_and_answered(&world, &app, "C10").await;
}
