//! Faults of a deployment and of a Slack app, each seeded and named by `tidegate doctor`.

use serde_json::Value;
use tests::{
    eventually::eventually,
    keys::User,
    test_env::{SMALL, Size, TIMEOUT, TestEnv},
};

/// Returns the findings of `tidegate doctor`. Blocks the thread.
fn findings(env: &TestEnv, args: &[&str]) -> Vec<Value> {
    let ran = env.try_tidegate(&[&["doctor", "--json"], args].concat()).expect("it runs");
    let out = String::from_utf8(ran.stdout).expect("text");
    out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[track_caller]
fn assert_names(fault: &str, findings: &[Value], summary: &str) {
    let named = findings.iter().find(|finding| {
        let text = finding["summary"].as_str().unwrap_or_default();
        finding["level"] != "good" && text.contains(summary)
    });
    let named = named.unwrap_or_else(|| panic!("{fault}: {summary} is missing: {findings:#?}"));
    assert_ne!(named["remedy"], "", "{fault}: {named}");
}

/// `doctor` names each seeded fault of settings, connections, agents, schema and processes with a
/// remedy.
#[tokio::test(flavor = "multi_thread")]
async fn names_faults_of_deployment() {
    let mut env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.declare().expect("a connection");
    let found = findings(&env, &[]);
    let select = "select bot_user_id, team_id, app_id from connections where id = $1";
    let row: (Option<String>, Option<String>, String) = sqlx::query_as(select)
        .bind(app.connection.to_string())
        .fetch_one(&env.pool)
        .await
        .expect("a connection");
    let (bot_user, team, slack_app) = row;
    let problems = found.iter().filter(|finding| finding["level"] == "problem");
    assert_eq!(problems.count(), 0, "{found:#?}");

    // 1 to 7: settings of the operator that cannot work
    let other = shared::secrets::KeyRing::generate("k1").expect("a ring");
    let nobody = "127.0.0.1:1";
    let seed = |env: &TestEnv, user| env.nats.keys().file(user).display().to_string();
    for (fault, setting, value, summary) in [
        (
            "token ring",
            "TIDEGATE_TOKEN_KEYRING",
            other.clone(),
            "TIDEGATE_TOKEN_KEYRING opens no value of",
        ),
        (
            "signing ring",
            "TIDEGATE_SIGNING_SECRET_KEYRING",
            other.clone(),
            "TIDEGATE_SIGNING_SECRET_KEYRING opens no value of",
        ),
        (
            "NATS address",
            "TIDEGATE_NATS_URL",
            format!("nats://{nobody}"),
            "failed to connect to 127.0.0.1:1",
        ),
        (
            "Postgres address",
            "TIDEGATE_POSTGRES_URL",
            format!("postgres://{nobody}/none"),
            "failed to connect to Postgres at 127.0.0.1:1",
        ),
        (
            "NATS user",
            "TIDEGATE_NATS_NKEY_FILE",
            seed(&env, User::Ingest),
            "failed to read the permissions of this NATS user",
        ),
        (
            "Slack by clear text",
            "TIDEGATE_SLACK_API_URL",
            "http://slack.example.com/api/".into(),
            "tokens are sent by https only",
        ),
        (
            "Slack out of reach",
            "TIDEGATE_SLACK_API_URL",
            format!("http://{nobody}/api/"),
            "failed to compare connections with their tokens",
        ),
    ] {
        let before = env.setting(setting).map(str::to_owned);
        env.set(setting, &value);
        assert_names(fault, &findings(&env, &[]), summary);
        match before {
            Some(before) => env.set(setting, &before),
            None => env.unset(setting),
        }
    }

    // 8 to 17: what Postgres holds
    for (fault, statement, summary) in [
        ("pending", "update connections set status = 'pending'", "is pending"),
        ("revoked", "update connections set status = 'revoked'", "is revoked"),
        ("error", "update connections set status = 'error'", "is error"),
        (
            "bot user",
            "update connections set bot_user_id = 'U9OTHER'",
            "declared with bot user U9OTHER",
        ),
        ("team", "update connections set team_id = 'T9OTHER'", "declared for team T9OTHER"),
        ("app", "update connections set app_id = 'A9OTHER'", "declared for app A9OTHER"),
        ("paused agent", "update agents set paused_at = now()", "is paused"),
        (
            "failing agent",
            "insert into agent_health (org_id, agent_id, opened_at, probe_at, last_error)
             select org_id, id, now(), now() + interval '1 hour', '503' from agents
             on conflict (org_id, agent_id) do update set opened_at = now(), last_error = '503'",
            "does not answer: 503",
        ),
        ("old schema", "update _sqlx_migrations set version = -1", "older than the required"),
        ("no schema", "update _sqlx_migrations set success = false", "schema is missing"),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&env.pool).await.expect(fault);
        assert_names(fault, &findings(&env, &[]), summary);
        let undo =
            "update connections set status = 'active', bot_user_id = $1, team_id = $2, app_id = $3";
        let undone = sqlx::query(undo).bind(&bot_user).bind(&team).bind(&slack_app);
        undone.execute(&env.pool).await.expect("undone");
        for undo in [
            "update agents set paused_at = null",
            "delete from agent_health",
            "update _sqlx_migrations set success = true",
            "update _sqlx_migrations set version = 1 where version = -1",
        ] {
            sqlx::query(undo).execute(&env.pool).await.expect("undone");
        }
    }

    // 18 and 19: processes that stopped
    let ingest = env.ingests.pop().expect("an ingest");
    drop(ingest);
    let worker = env.workers.pop().expect("a worker");
    drop(worker);
    eventually("the processes are reported as missing", TIMEOUT, async || {
        let found = findings(&env, &[]);
        let named = |text: &str| {
            found.iter().any(|f| f["summary"].as_str().unwrap_or_default().contains(text))
        };
        (named("no ingest runs") && named("partitions without a worker: 64 of 64")).then_some(())
    })
    .await;
}

/// `doctor --fix` writes outdated entries of the directory as a worker would, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn fixes_stale_directory() {
    let size = Size { ingests: 1, workers: 0, own_postgres: false };
    let env = TestEnv::start(size).await.expect("a test environment");
    let app = env.declare().expect("a connection");
    let stopped = "update connections set status = 'stopped' where id = $1";
    let id = app.connection.to_string();
    sqlx::query(stopped).bind(&id).execute(&env.pool).await.expect("changed without an entry");
    assert_names("stale", &findings(&env, &[]), "entries older than Postgres: 1");
    let fixed = findings(&env, &["--fix"]);
    let has_finding = |text: &str| {
        let mut summaries = fixed.iter().filter_map(|finding| finding["summary"].as_str());
        summaries.any(|summary| summary.contains(text))
    };
    assert!(has_finding("entries written that were older than Postgres: 1"), "{fixed:#?}");
    assert!(has_finding("has all connections of Postgres"), "{fixed:#?}");
    let webhook = tests::slack::webhook::Webhook::message(&env.slack, &app, "D1", "U1", "hello");
    eventually("ingest answers 404", TIMEOUT, async || {
        (env.send(&app, &webhook).await.ok()?.status == 404).then_some(())
    })
    .await;
    let again = findings(&env, &["--fix"]);
    assert!(!again.iter().any(|f| f["summary"].to_string().contains("written")), "{again:#?}");
}

/// `doctor --manifest` names each seeded fault of an app's addresses, events and scopes.
#[tokio::test(flavor = "multi_thread")]
async fn names_faults_of_app() {
    let size = Size { ingests: 0, workers: 0, own_postgres: false };
    let env = TestEnv::without_processes(size).await.expect("servers");
    let manifest = env.tidegate(&["manifest", "--base-url", "https://gw.example.com"]);
    let manifest: Value = serde_json::from_str(&manifest.expect("a manifest")).expect("JSON");
    let old = Value::from("https://old.example.com/slack/events");
    let events = "/settings/event_subscriptions";
    for (fault, pointer, value, summary) in [
        ("command", "/features/slash_commands/0/url", old.clone(), "slash command /lobu: sent to"),
        ("no command", "/features/slash_commands/0/command", "/x".into(), "/lobu is missing"),
        ("events", "/settings/event_subscriptions/request_url", old.clone(), "events: sent to"),
        ("clicks", "/settings/interactivity/request_url", old.clone(), "interactions: sent to"),
        ("menus", "/settings/interactivity/message_menu_options_url", old, "options: sent to"),
        ("socket mode", "/settings/socket_mode_enabled", true.into(), "socket mode is enabled"),
        ("scopes", "/oauth_config/scopes/bot", Value::Array(vec![]), "scope chat:write is missing"),
        (
            "bot events",
            &format!("{events}/bot_events"),
            Value::Array(vec![]),
            "event message.im is not subscribed",
        ),
    ] {
        let mut seeded = manifest.clone();
        let (parent, field) = pointer.rsplit_once('/').expect("a field");
        seeded.pointer_mut(parent).expect(fault)[field] = value;
        let file = env.write("app.json", &seeded.to_string()).expect("written");
        let file = file.to_str().expect("UTF-8");
        let args = ["--manifest", file, "--base-url", "https://gw.example.com"];
        assert_names(fault, &findings(&env, &args), summary);
    }
}
