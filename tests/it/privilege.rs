//! Nobody may do more than it needs. The whole suite runs under the permissions that are deployed, so what is needed is
//! there; these tests say what is not.

use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use std::{
    process::Command,
    sync::{Arc, Mutex, PoisonError},
};
use tests::{
    fetch,
    guard::RunDir,
    keys::User,
    until::until,
    world::{SOON, Size, World},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };

/// Somebody, and what the server reproached them with.
struct Somebody {
    client: Client,
    reproaches: Arc<Mutex<Vec<String>>>,
}

impl Somebody {
    async fn connect(world: &World, user: User) -> Self {
        let reproaches: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = Arc::clone(&reproaches);
        let options = world.nats.keys().options(user).expect("a key");
        let options = options.event_callback(move |event| {
            let heard = Arc::clone(&heard);
            async move {
                if let Event::ServerError(error) = event {
                    heard.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string());
                }
            }
        });
        let client = options.connect(world.nats.url()).await.expect("a connection");
        Self { client, reproaches }
    }

    async fn is_reproached(&self, doing: &str, subject: &str) {
        let named = format!("{doing} to \"{subject}\"").to_lowercase();
        until(&format!("{doing} to {subject} is forbidden"), SOON, async || {
            let heard = self.reproaches.lock().unwrap_or_else(PoisonError::into_inner);
            heard.iter().any(|reproach| reproach.to_lowercase().contains(&named)).then_some(())
        })
        .await;
    }

    async fn may_not_publish(&self, subjects: &[&str]) {
        for subject in subjects {
            self.client.publish(subject.to_string(), "{}".into()).await.expect("it is sent");
            self.client.flush().await.expect("it is sent");
            self.is_reproached("publish", subject).await;
        }
    }

    async fn may_not_hear(&self, subjects: &[&str]) {
        for subject in subjects {
            let _unheard = self.client.subscribe(subject.to_string()).await.expect("it is sent");
            self.client.flush().await.expect("it is sent");
            self.is_reproached("subscription", subject).await;
        }
    }
}

const A_WEBHOOK: &str = "slack.in.1.0123456789abcdef0123456789abcdef";

#[tokio::test]
async fn an_ingest_reads_no_webhook_writes_no_directory_and_answers_nobody() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let ingest = Somebody::connect(&world, User::Ingest).await;
    let forbidden = [
        "$JS.API.STREAM.INFO.SLACK_IN",
        "$JS.API.STREAM.MSG.GET.SLACK_IN",
        "$JS.API.DIRECT.GET.SLACK_IN",
        "$JS.API.CONSUMER.CREATE.SLACK_IN.mine.slack.in.1.*",
        "$JS.API.STREAM.PURGE.SLACK_IN",
        "$JS.API.STREAM.DELETE.SLACK_IN",
        "$JS.API.STREAM.PURGE.KV_connections",
        "$KV.connections.0123456789abcdef0123456789abcdef",
        "slack.reply.another.1",
        "_INBOX_worker.forged",
    ];
    ingest.may_not_publish(&forbidden).await;
    ingest.may_not_hear(&["slack.in.>", "_INBOX_worker.>", "_INBOX_operator.>", ">"]).await;
}

#[tokio::test]
async fn a_worker_stores_no_webhook_and_hears_no_answer_that_is_meant_for_an_ingest() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let worker = Somebody::connect(&world, User::Worker).await;
    let forbidden = [
        A_WEBHOOK,
        "$JS.API.STREAM.DELETE.SLACK_IN",
        "$JS.API.STREAM.UPDATE.SLACK_IN",
        "$JS.API.STREAM.CREATE.ANOTHER",
        "$JS.API.STREAM.PURGE.KV_connections",
        "$JS.API.STREAM.MSG.DELETE.SLACK_IN",
        "$KV.ingests.somebody",
        "_INBOX_ingest.forged",
    ];
    worker.may_not_publish(&forbidden).await;
    worker.may_not_hear(&["slack.reply.>", "slack.in.>", "_INBOX_ingest.>", ">"]).await;
    assert_eq!(world.stored().await.expect("a count"), 0);
}

#[tokio::test]
async fn the_operator_deletes_no_stream_stores_no_webhook_and_answers_no_ingest() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let operator = Somebody::connect(&world, User::Operator).await;
    let forbidden = [
        A_WEBHOOK,
        "slack.reply.another.1",
        "$JS.API.STREAM.DELETE.SLACK_IN",
        "$JS.API.STREAM.DELETE.KV_connections",
        "$JS.API.STREAM.PURGE.KV_connections",
        "$KV.ingests.somebody",
    ];
    operator.may_not_publish(&forbidden).await;
    operator.may_not_hear(&["slack.reply.>", "_INBOX_ingest.>", "_INBOX_worker.>", ">"]).await;
    assert_eq!(world.stored().await.expect("a count"), 0);
}

#[tokio::test]
async fn nobody_connects_to_nats_without_a_key_that_it_knows() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let address: ServerAddr = world.nats.url().parse().expect("an address");
    let nobody = ConnectOptions::new().connect(&address).await;
    assert!(nobody.is_err(), "without a key");
    let seed = nkeys::KeyPair::new_user().seed().expect("a seed");
    let stranger = ConnectOptions::with_nkey(seed).connect(&address).await;
    assert!(stranger.is_err(), "with a key of its own");
}

/// The file that is deployed, alone: the tests' server adds a user to it.
#[tokio::test]
async fn the_deployed_users_are_what_a_nats_server_understands() {
    let run = Arc::new(RunDir::new("users").expect("a run"));
    let program = fetch::nats_server(&run).await.expect("a nats-server");
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/nats/permissions.conf");
    let mut check = Command::new(program);
    check.args(["-t", "-c", config]);
    for user in ["INGEST", "WORKER", "OPERATOR"] {
        check.env(format!("TIDEGATE_{user}_NKEY"), nkeys::KeyPair::new_user().public_key());
    }
    let checked = check.output().expect("it runs");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

async fn may_not(world: &World, role: &str, statements: &[&str]) {
    let database: String =
        sqlx::query_scalar("select current_database()").fetch_one(&world.pool).await.expect("one");
    let url = world.postgres.url_as(role, &database);
    let mut connection = PgConnection::connect(&url).await.expect("a connection");
    for statement in statements {
        let done = sqlx::query(AssertSqlSafe(*statement)).execute(&mut connection).await;
        let error = done.expect_err(statement);
        let code = error.as_database_error().and_then(|error| error.code());
        assert_eq!(code.as_deref(), Some("42501"), "{role}: {statement}: {error}");
    }
}

#[tokio::test]
async fn a_worker_changes_rows_and_nothing_else() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let forbidden = [
        "create table mine (id bigint)",
        "drop table processed_keys",
        "alter table processed_keys add column mine text",
        "truncate processed_keys",
        "create role mine",
        "set role tidegate_owner",
        "insert into organizations (id) values ('mine')",
        "update agents set url = 'http://mine/'",
        "delete from connections",
        "insert into link_codes (code_hash) values ('mine')",
        "delete from agents",
        "delete from partition_cursors",
        "delete from _sqlx_migrations",
    ];
    may_not(&world, "tidegate_worker", &forbidden).await;
}

#[tokio::test]
async fn the_operator_takes_no_lease_and_changes_no_schema() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let forbidden = [
        "create table mine (id bigint)",
        "drop table dead_letters",
        "truncate dead_letters",
        "set role tidegate_owner",
        "update partition_cursors set owner = 'mine'",
        "update partition_leases set lease_until = now() + interval '1 day'",
        "insert into workers (id) values ('mine')",
        "delete from _sqlx_migrations",
    ];
    may_not(&world, "tidegate_operator", &forbidden).await;
}

#[tokio::test]
async fn ingest_has_no_role_in_postgres() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let roles: Vec<String> = sqlx::query_scalar(
        "select rolname::text from pg_roles where rolname like 'tidegate%' order by 1",
    )
    .fetch_all(&world.pool)
    .await
    .expect("roles");
    let ours = ["tidegate_operator", "tidegate_owner", "tidegate_tests", "tidegate_worker"];
    assert_eq!(roles, ours, "and the tests' own, which is worker and operator together");
}
