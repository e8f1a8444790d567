//! Permissions of processes. All tests run with the deployed permissions, so these tests only check
//! that there are no others.

use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use std::{
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tests::{
    eventually::eventually,
    fetch,
    keys::User,
    run_dir::RunDir,
    test_env::{Size, TIMEOUT, TestEnv},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };

/// Client of NATS with the errors that the server reports.
struct NatsClient {
    client: Client,
    errors: Arc<Mutex<Vec<String>>>,
}

impl NatsClient {
    async fn connect(env: &TestEnv, user: User) -> Self {
        let errors: Arc<Mutex<Vec<String>>> = Arc::default();
        let received = Arc::clone(&errors);
        let options = env.nats.keys().options(user).expect("a key");
        let options = options.event_callback(move |event| {
            let received = Arc::clone(&received);
            async move {
                if let Event::ServerError(error) = event {
                    received.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string());
                }
            }
        });
        let client = options.connect(env.nats.url()).await.expect("a connection");
        Self { client, errors }
    }

    async fn assert_denied(&self, doing: &str, subject: &str) {
        let named = format!("{doing} to \"{subject}\"").to_lowercase();
        eventually(&format!("{doing} to {subject} is forbidden"), TIMEOUT, async || {
            let received = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
            received.iter().any(|error| error.to_lowercase().contains(&named)).then_some(())
        })
        .await;
    }

    async fn assert_no_publish(&self, subjects: &[&str]) {
        for subject in subjects {
            self.client.publish(subject.to_string(), "{}".into()).await.expect("it is sent");
            self.client.flush().await.expect("it is sent");
            self.assert_denied("publish", subject).await;
        }
    }

    async fn assert_no_subscribe(&self, subjects: &[&str]) {
        for subject in subjects {
            let _subscription =
                self.client.subscribe(subject.to_string()).await.expect("it is sent");
            self.client.flush().await.expect("it is sent");
            self.assert_denied("subscription", subject).await;
        }
    }
}

const WEBHOOK_SUBJECT: &str = "slack.in.1.0123456789abcdef0123456789abcdef";

/// An ingest can't read webhooks, write the directory or answer requests.
#[tokio::test]
async fn restricts_ingest_in_nats() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let ingest = NatsClient::connect(&env, User::Ingest).await;
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
        "$JS.API.CONSUMER.CREATE.KV_connections",
        "$JS.API.CONSUMER.CREATE.KV_connections.mine",
        "$JS.API.CONSUMER.CREATE.KV_ingests.mine.$KV.ingests.*",
        "$JS.API.CONSUMER.DELETE.KV_connections.another",
    ];
    ingest.assert_no_publish(&forbidden).await;
    ingest
        .assert_no_subscribe(&[
            "slack.in.>",
            "slack.reply.>",
            "_INBOX_worker.>",
            "_INBOX_operator.>",
            ">",
        ])
        .await;
}

/// A worker can't store webhooks or read answers to an ingest.
#[tokio::test]
async fn restricts_worker_in_nats() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let worker = NatsClient::connect(&env, User::Worker).await;
    let forbidden = [
        WEBHOOK_SUBJECT,
        "$JS.API.STREAM.DELETE.SLACK_IN",
        "$JS.API.STREAM.UPDATE.SLACK_IN",
        "$JS.API.STREAM.CREATE.ANOTHER",
        "$JS.API.STREAM.PURGE.KV_connections",
        "$JS.API.STREAM.MSG.DELETE.KV_connections",
        "$KV.ingests.somebody",
        "_INBOX_ingest.forged",
        "$JS.API.CONSUMER.CREATE.KV_connections",
        "$JS.API.CONSUMER.CREATE.KV_connections.mine.$KV.connections.*",
        "$JS.API.CONSUMER.CREATE.SLACK_IN",
        "$JS.API.CONSUMER.CREATE.SLACK_IN.mine",
        "$JS.API.CONSUMER.DELETE.SLACK_IN.another",
    ];
    worker.assert_no_publish(&forbidden).await;
    worker.assert_no_subscribe(&["slack.reply.>", "slack.in.>", "_INBOX_ingest.>", ">"]).await;
    assert_eq!(env.stored().await.expect("a count"), 0);
}

/// A push consumer with a webhook's subject as its target stores nothing: servers check no
/// permission of the user who created it.
#[tokio::test]
async fn stores_nothing_by_push_consumer() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    env.declare().expect("an entry of the directory");
    let create = async |user, stream: &str, filter: &str| {
        let js = async_nats::jetstream::new(NatsClient::connect(&env, user).await.client);
        let subject = format!("CONSUMER.CREATE.{stream}.push.{filter}");
        let request = serde_json::json!({
            "stream_name": stream,
            "config": {
                "name": "push", "deliver_subject": WEBHOOK_SUBJECT, "filter_subject": filter,
                "deliver_policy": "all", "ack_policy": "none", "replay_policy": "instant",
            },
        });
        js.request::<_, _, serde_json::Value>(subject, &request).await.expect("a response")
    };
    let cycle = create(User::Worker, "SLACK_IN", "slack.in.1.*").await;
    assert_eq!(cycle["error"]["err_code"], 10081, "{cycle}");
    let created = create(User::Ingest, "KV_connections", "$KV.connections.>").await;
    assert_eq!(created["error"], serde_json::Value::Null, "{created}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(env.stored().await.expect("a count"), 0);
}

/// The operator can't delete the stream, store webhooks or answer an ingest.
#[tokio::test]
async fn restricts_operator_in_nats() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let operator = NatsClient::connect(&env, User::Operator).await;
    let forbidden = [
        WEBHOOK_SUBJECT,
        "slack.reply.another.1",
        "$JS.API.STREAM.DELETE.SLACK_IN",
        "$JS.API.STREAM.DELETE.KV_connections",
        "$JS.API.STREAM.PURGE.KV_connections",
        "$KV.ingests.somebody",
        "$JS.API.CONSUMER.CREATE.KV_connections.mine.$KV.connections.*",
    ];
    operator.assert_no_publish(&forbidden).await;
    operator
        .assert_no_subscribe(&["slack.reply.>", "_INBOX_ingest.>", "_INBOX_worker.>", ">"])
        .await;
    assert_eq!(env.stored().await.expect("a count"), 0);
}

/// NATS rejects a client without a key and one with an unknown key.
#[tokio::test]
async fn rejects_unknown_key_in_nats() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let address: ServerAddr = env.nats.url().parse().expect("an address");
    let nobody = ConnectOptions::new().connect(&address).await;
    assert!(nobody.is_err(), "without a key");
    let seed = nkeys::KeyPair::new_user().seed().expect("a seed");
    let stranger = ConnectOptions::with_nkey(seed).connect(&address).await;
    assert!(stranger.is_err(), "with an unknown key");
}

/// `nats-server` accepts the deployed permissions without the user that the tests add.
#[tokio::test]
async fn loads_deployed_users_in_nats() {
    let run = Arc::new(RunDir::new("users").expect("a run"));
    let program = fetch::nats_server(&run).await.expect("a nats-server");
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/nats/permissions.conf");
    let mut check = Command::new(program);
    check.args(["-t", "-c", config]);
    for user in ["INGEST", "WORKER", "OPERATOR", "CONTROL"] {
        check.env(format!("TIDEGATE_{user}_NKEY"), nkeys::KeyPair::new_user().public_key());
    }
    let checked = check.output().expect("it runs");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

async fn assert_denied(env: &TestEnv, role: &str, statements: &[&str]) {
    let database: String =
        sqlx::query_scalar("select current_database()").fetch_one(&env.pool).await.expect("one");
    let url = env.postgres.url_as(role, &database);
    let mut connection = PgConnection::connect(&url).await.expect("a connection");
    for statement in statements {
        let done = sqlx::query(AssertSqlSafe(*statement)).execute(&mut connection).await;
        let error = done.expect_err(statement);
        let code = error.as_database_error().and_then(|error| error.code());
        assert_eq!(code.as_deref(), Some("42501"), "{role}: {statement}: {error}");
    }
}

/// A worker can't change the schema, delete configuration, or read or change the audit log and API
/// keys.
#[tokio::test]
async fn restricts_worker_in_postgres() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
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
        "select * from audit_log",
        "select * from api_keys",
        "insert into idempotency_keys (api_key_id, key, request_hash) values ('', '', '')",
        "update audit_log set actor = 'mine'",
        "delete from audit_log",
        "insert into audit_log (at, actor, action, object_kind, object_id) values (now(), '', '', '', '')",
        // No erasure is requested.
        "insert into erasures (id, org_id) values ('mine', 'acme')",
        "select erase_person_from_audit_log('U1', 0, 10)",
        "select erase_organization_from_audit_log('acme', 0, 10)",
        "select delete_erased_connection('0123456789abcdef0123456789abcdef')",
        "select delete_erased_organization('acme')",
    ];
    assert_denied(&env, "tidegate_worker", &forbidden).await;
}

/// The operator can't change the schema, leases, workers or existing entries of the audit log.
#[tokio::test]
async fn restricts_operator_in_postgres() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let forbidden = [
        "create table mine (id bigint)",
        "drop table dead_letters",
        "truncate dead_letters",
        "set role tidegate_owner",
        "update partition_cursors set owner = 'mine'",
        "update partition_leases set lease_until = now() + interval '1 day'",
        "insert into workers (id) values ('mine')",
        "delete from _sqlx_migrations",
        "update audit_log set actor = 'mine'",
        "delete from audit_log",
        "truncate audit_log",
        "select prune_audit_log(interval '400 days', 1)",
        "select * from console_sessions",
        "insert into audit_log (at, actor, action, object_kind, object_id) values (now(), '', '', '', '')",
    ];
    assert_denied(&env, "tidegate_operator", &forbidden).await;
}

/// The role `tidegate_reader` runs all reading commands and changes nothing.
#[tokio::test]
async fn restricts_reader_in_postgres() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let app = env.declare().expect("applied");
    let forbidden = [
        "create table mine (id bigint)",
        "set role tidegate_owner",
        "insert into organizations (id, name) values ('mine', '')",
        "update agents set url = 'http://mine/'",
        "delete from dead_letters",
        "truncate dead_letters",
        "update partition_cursors set owner = 'mine'",
        "insert into audit_log (at, actor, action, object_kind, object_id) values (now(), '', '', '', '')",
        "select prune_audit_log(interval '400 days', 1)",
        "select erase_organization_from_audit_log('mine', 0, 10)",
    ];
    assert_denied(&env, "tidegate_reader", &forbidden).await;

    let database: String =
        sqlx::query_scalar("select current_database()").fetch_one(&env.pool).await.expect("one");
    env.set("TIDEGATE_POSTGRES_URL", &env.postgres.url_as("tidegate_reader", &database));
    let id = app.connection.to_string();
    let looks: [&[&str]; 8] = [
        &["partitions"],
        &["connections", "list"],
        &["connections", "show", &id],
        &["link-codes", "list"],
        &["agents", "list"],
        &["deliveries", "list"],
        &["dead-letters", "list"],
        &["audit-log"],
    ];
    for args in looks {
        let ran = env.try_tidegate(args).expect("it runs");
        let stderr = String::from_utf8_lossy(&ran.stderr);
        assert!(matches!(ran.status.code(), Some(0 | 3)), "{args:?}: {stderr}");
    }
    let ran = env.try_tidegate(&["connections", "disable", &id]).expect("it runs");
    let stderr = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.code() == Some(1) && stderr.contains("permission denied"), "{stderr}");
}

/// The control API changes no connection's app, creates no API key or lease, and reads no secret
/// but sealed ones.
#[tokio::test]
async fn restricts_control_in_postgres() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let forbidden = [
        "create table mine (id bigint)",
        "set role tidegate_owner",
        "update connections set app_id = 'mine'",
        "insert into api_keys (id, key_hash, role, created_by, expires_at) values ('', '', 'owner', '', now())",
        "update api_keys set role = 'owner'",
        "update api_keys set org_id = null",
        "update console_sessions set expires_at = now()",
        "update runs set sent = 0",
        "select payload from run_parts",
        "update organizations set id = 'mine'",
        "update link_codes set consumed_at = null",
        "update channel_bindings set channel_id = 'mine'",
        "update partition_cursors set owner = 'mine'",
        "select * from workers",
        "select * from token_rotations",
        "select refresh_token from token_rotations",
        "update deleted_connections set purged_at = now()",
        "update audit_log set actor = 'mine'",
        "delete from audit_log",
        "select prune_audit_log(interval '400 days', 1)",
        "select truncate_slot('processed_keys', 0)",
        "update erasures set state = 'done'",
        "select delete_erased_organization('acme')",
        "select erase_organization_from_audit_log('acme', 0, 10)",
    ];
    assert_denied(&env, "tidegate_control", &forbidden).await;
}

/// The control API reads no webhook, stores none, and answers no ingest.
#[tokio::test]
async fn restricts_control_in_nats() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let control = NatsClient::connect(&env, User::Control).await;
    let forbidden = [
        WEBHOOK_SUBJECT,
        "slack.reply.another.1",
        "$KV.ingests.another",
        "$JS.API.STREAM.MSG.GET.SLACK_IN",
        "$JS.API.STREAM.PURGE.SLACK_IN",
        "$JS.API.STREAM.DELETE.SLACK_IN",
        "$JS.API.STREAM.PURGE.KV_connections",
        "$JS.API.CONSUMER.CREATE.SLACK_IN.mine.slack.in.1.*",
        "$JS.API.CONSUMER.CREATE.KV_connections.mine.$KV.connections.*",
    ];
    control.assert_no_publish(&forbidden).await;
    control.assert_no_subscribe(&["slack.reply.>", "slack.in.>", "_INBOX_operator.>", ">"]).await;
    assert_eq!(env.stored().await.expect("a count"), 0);
}

/// Postgres has no role for ingest.
#[tokio::test]
async fn denies_ingest_in_postgres() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let roles: Vec<String> = sqlx::query_scalar(
        "select rolname::text from pg_roles where rolname like 'tidegate%' order by 1",
    )
    .fetch_all(&env.pool)
    .await
    .expect("roles");
    let ours = [
        "tidegate_control",
        "tidegate_operator",
        "tidegate_owner",
        "tidegate_reader",
        "tidegate_tests",
        "tidegate_worker",
    ];
    assert_eq!(roles, ours, "the deployed roles and that of the tests");
}
