//! Audit log: every change by the command line and by people in Slack has an entry.

use crate::meta::architecture::root;
use serde_json::Value;
use shared::domain::Surface;
use sqlx::AssertSqlSafe;
use std::collections::BTreeSet;
use tests::{
    eventually::eventually,
    slack::webhook::Webhook,
    test_env::{App, SMALL, Size, TIMEOUT, TestEnv, agent_id},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };
const CLIENT_SECRET: &str = "0123456789abcdef-client-secret";
const REFRESH_TOKEN: &str = "xoxe-1-0123456789abcdef";
const ROTATED: &str = "0123456789abcdef-rotated-secret";

/// Commands that change nothing, or whose role can't write the audit log.
const READS: [&str; 38] = [
    "agents list",
    "agents show",
    "agents test",
    "api-keys list",
    "apps",
    "apps list",
    "apps show",
    "audit-log",
    "connections list",
    "connections show",
    "dead-letters list",
    "dead-letters show",
    "deliveries list",
    "deliveries show",
    // Changes the directory, and connections by `apply`.
    "dev",
    "doctor",
    "init",
    "keygen",
    "keys status",
    "ledger verify",
    "link-codes list",
    "listen",
    "manifest",
    "migrate",
    "migrate schema",
    "migrate stream",
    "outbox failures list",
    "partitions",
    "replays list",
    "status",
    "tail",
    "trigger",
    "webhook show",
    // Groups of commands.
    "connections",
    "dead-letters",
    "deliveries",
    "outbox",
    "outbox failures",
];

/// Organization without connections.
const EMPTY_ORG: &str = "empty";
const ORGANIZATION_ERASED: &[&str] =
    &["erasure.request", "organization.delete", "organization.erase"];

/// Command that changes something, with its arguments and the actions that the log gets.
struct Verb {
    command: &'static str,
    args: Vec<String>,
    actions: &'static [&'static str],
}

fn verb(command: &'static str, args: &[&str], actions: &'static [&'static str]) -> Verb {
    Verb { command, args: args.iter().map(|&arg| arg.to_owned()).collect(), actions }
}

impl Verb {
    fn words(&self) -> Vec<&str> {
        self.command.split(' ').chain(self.args.iter().map(String::as_str)).collect()
    }
}

/// Creates rows that commands can change: conversations, dead letters, failed messages, a replay.
async fn seed(env: &TestEnv, app: &App) {
    let (id, org, agent) = (app.connection.to_string(), app.org.to_string(), agent_id());
    for lane in 1..=3 {
        let insert = format!(
            "with lane as (
                 insert into delivery_lanes (connection_id, lane, partition, head, tail, org_id, agent_id, priority, next_at)
                 values ('{id}', {lane}, 0, 1, 1, '{org}', '{agent}', 1, now() + interval '1 hour'))
             insert into deliveries (connection_id, lane, position, partition, generation, sequence, org_id, agent_id,
                                     session, kind, priority, dedup_key, received_at, stored_at, payload, size, schema)
             values ('{id}', {lane}, 1, 0, 1, {lane}, '{org}', '{agent}', 1, 'event', 1, 'delivery-{lane}', now(), now(), '\\x026b31', 0, 1)"
        );
        sqlx::query(AssertSqlSafe(insert)).execute(&env.pool).await.expect("a delivery");
    }
    for sequence in 1..=2 {
        let insert = format!(
            "insert into dead_letters (stage, partition, generation, sequence, subject, connection_id, lane, org_id, agent_id,
                                       kind, dedup_key, reason, attempts, payload)
             values ('dispatch', 0, 1, {sequence}, '', '{id}', {sequence} + 10, '{org}', '{agent}', 'event', 'dead-{sequence}',
                     'reason {sequence}', 1, '\\x026b31')"
        );
        sqlx::query(AssertSqlSafe(insert)).execute(&env.pool).await.expect("a dead letter");
        let insert = format!(
            "insert into outbox_failures (id, connection_id, lane, partition, channel_key, method, dedup_key, request, error,
                                          attempts, created_at)
             values ({sequence}, '{id}', {sequence}, 0, 'C1', 'chat.postMessage', 'failed-{sequence}', 'k1:', 'error', 1, now())"
        );
        sqlx::query(AssertSqlSafe(insert)).execute(&env.pool).await.expect("a failed message");
    }
    let insert = format!(
        "insert into replays (id, connection_id, from_time, to_time, apply) values ('seeded', '{id}', now(), now(), false)"
    );
    sqlx::query(AssertSqlSafe(insert)).execute(&env.pool).await.expect("a replay");
}

/// Returns the changing commands in an order in which each has something to change.
fn verbs(env: &TestEnv, prepared: &Prepared) -> Vec<Verb> {
    let Prepared { app, code_id: code, key_id: key, changed, .. } = prepared;
    let (id, agent) = (app.connection.to_string(), format!("{}/{}", app.org, agent_id()));
    let (id, org) = (id.as_str(), app.org.as_str());
    let secret = |text| env.secret_argument(text).expect("a file");
    let lane = |n: i64| format!("{id}/{n:016x}");
    let rotate = [id, "--secret", &secret(ROTATED)];
    let (client, refresh) = (secret(CLIENT_SECRET), secret(REFRESH_TOKEN));
    let rotation =
        [id, "--client-id", "1.2", "--client-secret", &client, "--refresh-token", &refresh];
    let agent_name = agent_id();
    let create = ["--org", org, "--agent", agent_name.as_str(), "--connection", id];
    vec![
        verb("connections disable", &[id], &["connection.disable"]),
        verb("connections enable", &[id], &["connection.enable"]),
        verb("connections rotate-signing-secret", &rotate, &["connection.rotate_signing_secret"]),
        verb("connections enable-token-rotation", &rotation, &["connection.enable_token_rotation"]),
        verb("connections pause-sending", &[id], &["connection.pause_sending"]),
        verb("connections resume-sending", &[id], &["connection.resume_sending"]),
        verb("agents pause", &[&agent], &["agent.pause"]),
        verb("agents resume", &[&agent], &["agent.resume"]),
        verb("link-codes create", &create, &["link_code.create"]),
        verb("link-codes revoke", &[code], &["link_code.revoke"]),
        verb("deliveries retry", &[&lane(1)], &["deliveries.retry"]),
        verb("deliveries skip", &[&lane(2)], &["deliveries.skip"]),
        verb("deliveries cancel", &[&lane(3)], &["deliveries.cancel"]),
        verb("dead-letters delete", &["2", "--yes"], &["dead_letters.delete"]),
        verb("dead-letters redrive", &["1"], &["dead_letters.redrive"]),
        verb("outbox failures retry", &["1"], &["outbox_failures.retry"]),
        verb("outbox failures delete", &["2", "--yes"], &["outbox_failures.delete"]),
        // No worker runs: the command cancels its replay.
        verb(
            "replay",
            &["--connection", id, "--from", "1h", "--timeout", "10ms"],
            &["replay.create", "replay.cancel"],
        ),
        verb("replays cancel", &["seeded"], &["replay.cancel"]),
        verb("api-keys create", &["--role", "viewer", "--all-orgs"], &["api_key.create"]),
        verb("api-keys revoke", &[key], &["api_key.revoke"]),
        verb("keys rewrap", &[], &["keyring.rewrap"]),
        verb("export", &[org], &["organization.export"]),
        verb("erase person", &["T0/U0", "--yes"], &["erasure.request", "person.erase"]),
        // An erasure of the app's organization would empty the rows that the test reads.
        verb("erase organization", &[EMPTY_ORG, "--yes"], ORGANIZATION_ERASED),
        verb("apply", &["-f", changed], &["agent.change"]),
        verb("connections delete", &[id, "--yes"], &["connection.delete"]),
    ]
}

/// Returns ids, actions and whole rows of the log after an id.
async fn entries_after(env: &TestEnv, id: i64) -> Vec<(i64, String, String)> {
    let sql = "select id, action, a::text from audit_log a where id > $1 order by id";
    sqlx::query_as(sql).bind(id).fetch_all(&env.pool).await.expect("the log")
}

/// Rows that commands can change.
struct Prepared {
    app: App,
    /// Open link code.
    code: String,
    code_id: String,
    /// Valid API key.
    key: String,
    key_id: String,
    /// File that changes an agent.
    changed: String,
}

async fn prepare(env: &TestEnv) -> Prepared {
    let app = env.declare().expect("applied");
    let code = env.create_link_code_by_cli(&app, Surface::Channel).expect("a code");
    let listed = env.tidegate(&["link-codes", "list", "--json"]).expect("printed");
    let listed: Value = serde_json::from_str(listed.lines().next().expect("one")).expect("JSON");
    seed(env, &app).await;
    let file = format!("{}.toml", app.org);
    let text = env.read(&file).expect("the declared file");
    // A command before rotates this secret.
    env.write(&format!("{}.signing", app.org), ROTATED).expect("a file");
    let text = text.replace("\"Sample agent\"", "\"Renamed agent\"");
    let changed = env.write("changed.toml", &text).expect("a file");
    let key = ["api-keys", "create", "--role", "owner", "--org", app.org.as_str(), "--json"];
    let key: Value = serde_json::from_str(&env.tidegate(&key).expect("a key")).expect("JSON");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let empty = "insert into organizations (id) values ($1)";
    sqlx::query(empty).bind(EMPTY_ORG).execute(&env.pool).await.expect("an organization");
    Prepared {
        app,
        code,
        code_id: text(&listed["id"]),
        key: text(&key["key"]),
        key_id: text(&key["id"]),
        changed: changed.display().to_string(),
    }
}

/// Each changing command adds its entries to the audit log once, without secrets, and pages have
/// each entry once.
#[tokio::test]
async fn records_every_command_once() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let prepared = prepare(&env).await;
    let mut last = entries_after(&env, 0).await.last().expect("entries of apply").0;
    for verb in verbs(&env, &prepared) {
        let ran = env.try_tidegate(&verb.words()).expect("it runs");
        let added = entries_after(&env, last).await;
        let actions: Vec<&str> = added.iter().map(|(_, action, _)| action.as_str()).collect();
        let error = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(actions, verb.actions, "{}: {error}", verb.command);
        last = added.last().expect("an entry").0;
    }
    let all = entries_after(&env, 0).await;
    let text: String = all.iter().map(|(_, _, row)| row.as_str()).collect();
    let Prepared { app, code, key, .. } = &prepared;
    let secrets = [&app.secret, &app.token, code, key, CLIENT_SECRET, REFRESH_TOKEN, ROTATED];
    for secret in secrets {
        assert!(!text.contains(secret), "a secret is in the log: {text}");
    }
    assert!(text.contains("Renamed agent") && text.contains("operator:"), "{text}");
    let printed = env.tidegate(&["audit-log", "--json", "--kind", "connection"]).expect("printed");
    assert!(
        printed.lines().all(|line| line.contains("\"object_kind\":\"connection\"")),
        "{printed}"
    );
    assert_eq!(printed.lines().count(), 8, "{printed}");
    // Pages of two have each entry once.
    let (mut seen, mut after) = (Vec::new(), i64::MAX.to_string());
    loop {
        let page = ["audit-log", "--json", "--limit", "2", "--after", &after];
        let ran = env.try_tidegate(&page).expect("it runs");
        if ran.status.code() == Some(3) {
            break; // no more
        }
        for line in String::from_utf8_lossy(&ran.stdout).lines() {
            let entry: Value = serde_json::from_str(line).expect("JSON");
            seen.push(entry["id"].as_i64().expect("an id"));
        }
        after = seen.last().expect("an entry").to_string();
    }
    seen.reverse();
    assert_eq!(seen, all.iter().map(|(id, _, _)| *id).collect::<Vec<_>>());
}

/// Returns all rows of all tables but the log.
async fn dump(env: &TestEnv) -> BTreeSet<String> {
    let tables: Vec<String> = sqlx::query_scalar(
        "select table_name::text from information_schema.tables
          where table_schema = 'public' and table_type = 'BASE TABLE' and table_name <> 'audit_log'",
    )
    .fetch_all(&env.pool)
    .await
    .expect("tables");
    let mut dump = BTreeSet::new();
    for table in tables {
        let sql = AssertSqlSafe(format!("select t::text from {table} t"));
        let rows: Vec<String> = sqlx::query_scalar(sql).fetch_all(&env.pool).await.expect("rows");
        dump.extend(rows.into_iter().map(|row| format!("{table} {row}")));
    }
    dump
}

/// Each command fails and changes nothing if its entry can't be added.
#[tokio::test]
async fn commits_change_with_its_entry() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let prepared = prepare(&env).await;
    for sql in [
        // States that the commands can change.
        "update connections set sending_paused_at = null",
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'refused'; end $$",
        "create trigger refuse before insert on audit_log execute function refuse()",
    ] {
        sqlx::query(AssertSqlSafe(sql)).execute(&env.pool).await.expect("changed");
    }
    let before = dump(&env).await;
    let undoes = ["connections enable", "connections resume-sending", "agents resume"];
    for verb in verbs(&env, &prepared) {
        if undoes.contains(&verb.command) {
            continue; // there is nothing to undo
        }
        let ran = env.try_tidegate(&verb.words()).expect("it runs");
        let error = String::from_utf8_lossy(&ran.stderr);
        assert!(!ran.status.success(), "{}", verb.command);
        assert!(error.contains("refused"), "{}: {error}", verb.command);
        assert_eq!(dump(&env).await, before, "{}", verb.command);
    }
}

/// Each command in the help is a known read or a change that these tests cover.
#[test]
fn knows_every_command() {
    let help = root().join("deploy/cli/src/snapshots/tidegate__tests__help.snap");
    let help = std::fs::read_to_string(help).expect("the snapshot");
    let names: BTreeSet<&str> =
        help.lines().filter_map(|line| line.strip_prefix("## tidegate ")).collect();
    let source = include_str!("audit_log.rs");
    let changing = |name: &str| source.contains(&format!("verb(\"{name}\"")) || name == "replay";
    // `import::imports_installations_of_bolt` has the Slack that `import` needs; the tests of
    // `install` move a connection.
    let elsewhere = ["connections import", "connections move"];
    let changing = |name: &str| changing(name) || elsewhere.contains(&name);
    let groups =
        ["api-keys", "erase", "link-codes", "keys", "webhook", "agents", "ledger", "replays"];
    for name in &names {
        let is_known = READS.contains(name) || groups.contains(name) || changing(name);
        assert!(is_known, "{name} is neither a read nor audited");
    }
    for name in READS {
        assert!(names.contains(name), "{name} is no command");
    }
}

/// Changes by people in Slack are in the audit log with the person. Commands without an effect are
/// not.
#[tokio::test]
async fn records_changes_in_slack() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let code = env.create_link_code(&app, &[Surface::Channel]).await.expect("a code");
    for text in [&format!("link {code}"), "new", "unlink", "unlink"] {
        let webhook = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", text);
        assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200);
        env.slack.wait_for_receipt("a reply", |r| webhook.response_url.ends_with(&r.to)).await;
    }
    let entries = entries_after(&env, 0).await;
    let actions: Vec<&str> = entries.iter().map(|(_, action, _)| action.as_str()).collect();
    let expected = ["link_code.create", "link_code.use", "session.create", "binding.delete"];
    assert_eq!(actions, expected, "a change without effect has no entry");
    let person = format!("slack-user:{}/U1", app.team);
    for (_, _, row) in &entries[1..] {
        assert!(row.contains(&person) && row.contains(app.org.as_str()), "{row}");
    }
}

/// A worker deletes entries older than the setting, and no younger ones.
#[tokio::test]
async fn prunes_old_audit_entries() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    for days in [29, 31, 39, 41] {
        let insert = format!(
            "insert into audit_log (at, actor, action, object_kind, object_id)
             values (now() - interval '{days} days', 'slack', 'agent.pause', 'agent', '{days}')"
        );
        sqlx::query(AssertSqlSafe(insert)).execute(&env.pool).await.expect("an entry");
    }
    let short = sqlx::query("select prune_audit_log(interval '29 days', 10)").execute(&env.pool);
    let error = short.await.expect_err("shorter than the minimum");
    assert!(error.to_string().contains("30 days"), "{error}");
    env.set("TIDEGATE_AUDIT_LOG_RETENTION_PERIOD", "40d");
    env.start_worker().await.expect("a worker");
    let left = async || {
        let sql = "select object_id from audit_log order by id";
        let left: Vec<String> = sqlx::query_scalar(sql).fetch_all(&env.pool).await.ok()?;
        (left.len() < 4).then_some(left)
    };
    let left = eventually("the oldest is deleted", TIMEOUT, left).await;
    assert_eq!(left, ["29", "31", "39"]);
}
