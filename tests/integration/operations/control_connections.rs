//! Connections, agents, organizations and bindings by the control API, with the effects of the
//! command line.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tests::{
    control_api::Caller,
    eventually::eventually,
    slack::{tokens::Installation, webhook::Webhook},
    test_env::{App, SMALL, Size, TIMEOUT, TestEnv},
};

/// Creates an organization, an agent and a connection by the API.
async fn create(env: &TestEnv, owner: &Caller, team: &str) -> App {
    let org = "/v1/organizations/acme";
    let (status, why) = owner.send(Method::PUT, org, &json!({ "name": "Acme" })).await;
    assert_eq!(status, StatusCode::OK, "{why}");
    let agent = json!({ "url": env.agent.url(), "secret": "0123456789abcdef-agent" });
    let (status, why) = owner.send(Method::PUT, &format!("{org}/agents/helper"), &agent).await;
    assert_eq!(status, StatusCode::OK, "{why}");
    let (secret, token) = (format!("signing-of-{team}"), format!("xoxb-of-{team}"));
    let new = json!({
        "organization": "acme", "agent": "helper", "app": "A07", "team": team,
        "signing_secret": secret, "bot_token": token, "bot_user": "UBOT07",
        "settings": { "welcome": false },
    });
    let (status, made) = owner.post("/v1/connections", &new).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    assert_eq!((&made["status"], &made["settings"]["welcome"]), (&json!("active"), &json!(false)));
    assert!(!made.to_string().contains(&secret) && !made.to_string().contains(&token), "{made}");
    env.slack.install(&token, Installation::new("A07", team, "UBOT07"));
    App {
        connection: made["id"].as_str().expect("an id").parse().expect("an id"),
        org: "acme".parse().expect("an id"),
        secret,
        token,
        app: "A07".into(),
        team: team.into(),
        bot_user: "UBOT07".into(),
    }
}

async fn actions(owner: &Caller) -> Vec<String> {
    let (_, log) = owner.get("/v1/audit-log?organization=acme").await;
    let entries = log["items"].as_array().expect("entries").iter();
    entries.map(|entry| entry["action"].as_str().expect("an action").to_owned()).collect()
}

/// A connection that the API creates answers as soon as the request returns, keeps what a change
/// leaves out, and is gone on every ingest when its deletion returns. Workers delete its data.
#[tokio::test]
async fn creates_then_deletes() {
    let mut env = TestEnv::start(SMALL).await.expect("a test environment");
    env.start_control().await.expect("a control API");
    let owner = Caller::create(&env, "owner", None);
    let app = create(&env, &owner, "T07").await;
    let path = format!("/v1/connections/{}", app.connection);
    let hello = Webhook::message(&env.slack, &app, "D1", "U1", "hello");
    assert_eq!(env.send(&app, &hello).await.expect("an answer").status, 200);
    eventually("the agent's answer is sent", TIMEOUT, async || {
        (!env.slack.messages("T07", "D1").is_empty()).then_some(())
    })
    .await;

    let same = json!({
        "organization": "acme", "app": "A07", "team": "T07", "signing_secret": "another",
    });
    let (status, why) = owner.post("/v1/connections", &same).await;
    assert_eq!(status, StatusCode::CONFLICT, "one connection per installation: {why}");
    let (status, _) = owner.send(Method::PUT, "/v1/organizations/other", &json!({})).await;
    assert_eq!(status, StatusCode::OK);
    let foreign = json!({
        "organization": "other", "app": "A07", "team": "T07", "signing_secret": "another",
    });
    let (status, why) = owner.post("/v1/connections", &foreign).await;
    assert_eq!(status, StatusCode::CONFLICT, "{why}");
    assert!(!why.to_string().contains("acme"), "the owner is not named: {why}");

    let patch = json!({ "agent": null, "settings": { "broadcasts": true } });
    let (status, changed) = owner.send(Method::PATCH, &path, &patch).await;
    assert_eq!((status, &changed["agent"]), (StatusCode::OK, &Value::Null), "{changed}");
    let settings = &changed["settings"];
    assert_eq!((&settings["broadcasts"], &settings["welcome"]), (&json!(true), &json!(false)));
    assert_eq!(changed["status"], "active", "the token stays");
    let binding = format!("{path}/bindings/T07/C9");
    let (status, why) = owner.send(Method::PUT, &binding, &json!({ "agent": "helper" })).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "{why}");
    let (status, _) = owner.send(Method::PUT, &binding, &json!({ "agent": "none" })).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (_, page) = owner.get(&format!("{path}/bindings")).await;
    assert_eq!(page["items"][0]["bound_by"], "UBOT07", "bound by the app: {page}");

    let rotate = format!("{path}/rotate-signing-secret");
    let new = json!({ "secret": "signing-new", "overlap_seconds": 0 });
    assert_eq!(owner.post(&rotate, &new).await.0, StatusCode::NO_CONTENT);
    let late = Webhook::message(&env.slack, &app, "D1", "U1", "signed with the old secret");
    assert_eq!(env.send(&app, &late).await.expect("an answer").status, 401);

    let in_use = "/v1/organizations/acme/agents/helper";
    let (status, why) =
        owner.send(Method::PATCH, &path, &json!({ "agent": "helper", "bot_user": null })).await;
    assert_eq!(status, StatusCode::OK, "{why}");
    let delete = async |path: &str| owner.send(Method::DELETE, path, &json!({})).await.0;
    assert_eq!(delete(in_use).await, StatusCode::CONFLICT, "a connection's default agent");
    assert_eq!(delete("/v1/organizations/acme").await, StatusCode::CONFLICT, "it has a connection");
    assert_eq!(delete(&path).await, StatusCode::NO_CONTENT);
    assert_eq!(delete(&path).await, StatusCode::NOT_FOUND);
    let signed = App { secret: "signing-new".into(), ..app.clone() };
    let gone = Webhook::message(&env.slack, &signed, "D1", "U1", "too late");
    assert_eq!(env.send(&signed, &gone).await.expect("an answer").status, 404);
    assert_eq!(delete(in_use).await, StatusCode::NO_CONTENT);
    assert_eq!(delete("/v1/organizations/acme").await, StatusCode::NO_CONTENT);
    assert_eq!(delete("/v1/organizations/acme").await, StatusCode::NOT_FOUND);
    let expected = [
        "organization.delete",
        "agent.delete",
        "connection.delete",
        "connection.change",
        "connection.rotate_signing_secret",
        "binding.create",
        "connection.change",
        "connection.create",
        "agent.create",
        "organization.create",
    ];
    assert_eq!(actions(&owner).await, expected);

    let count = "select (select count(*) from delivery_log where connection_id = $1)
                      + (select count(*) from outbox_log where connection_id = $1)
                      + (select count(*) from deleted_connections where id = $1 and purged_at is null)";
    eventually("workers have deleted its data", 3 * TIMEOUT, async || {
        let rows: i64 = sqlx::query_scalar(count)
            .bind(app.connection.to_string())
            .fetch_one(&env.pool)
            .await
            .expect("a count");
        (rows == 0).then_some(())
    })
    .await;
    assert_eq!(env.stored().await.expect("a count"), 0, "its webhooks are purged");
}

/// Starts a control API without other processes and creates `acme`. Returns a caller with the key
/// of all organizations.
async fn start_control() -> (TestEnv, Caller) {
    let size = Size { ingests: 0, workers: 0, own_postgres: false };
    let mut env = TestEnv::without_processes(size).await.expect("servers");
    env.start_control().await.expect("a control API");
    let acme = "acme".parse().expect("an id");
    env.store.ensure_organization(&acme, "Acme").await.expect("stored");
    let owner = Caller::create(&env, "owner", None);
    (env, owner)
}

/// The key of an organization makes no connection of an app that it shares with others: the app's
/// secret would verify webhooks of their workspaces for it.
#[tokio::test]
async fn rejects_app_of_others() {
    let (env, all) = start_control().await;
    let other = "other".parse().expect("an id");
    env.store.ensure_organization(&other, "Other").await.expect("stored");
    let own = Caller::create(&env, "owner", Some("acme"));
    let declare = "insert into apps (id, org_id, client_id, client_secret, signing_secret, scopes, redirect_url)
                   values ($1, $2, '1', 'k1:', 'k1:', '{}', 'https://example.com/')";
    for (app, org) in [("A0SHARED", None), ("A0OTHER", Some("other")), ("A0OWN", Some("acme"))] {
        let query = sqlx::query(declare).bind(app).bind(org);
        query.execute(&env.pool).await.expect("declared");
    }
    let new = |org: &str, app: &str, team: &str| json!({ "organization": org, "app": app, "team": team, "signing_secret": "x" });
    let (status, why) = all.post("/v1/connections", &new("other", "A0PLAIN", "T1")).await;
    assert_eq!(status, StatusCode::CREATED, "{why}");
    for app in ["A0SHARED", "A0OTHER", "A0PLAIN"] {
        let (status, why) = own.post("/v1/connections", &new("acme", app, "T9")).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{app}: {why}");
    }
    for (caller, app) in [(&own, "A0OWN"), (&own, "A0NEW"), (&all, "A0SHARED")] {
        let (status, why) = caller.post("/v1/connections", &new("acme", app, "T9")).await;
        assert_eq!(status, StatusCode::CREATED, "{app}: {why}");
    }
}

/// The pause of an agent ends with the agent: another one with its id is not paused.
#[tokio::test]
async fn ends_pause_with_agent() {
    let (env, owner) = start_control().await;
    let path = "/v1/organizations/acme/agents/helper";
    let agent = json!({ "url": env.agent.url(), "secret": "0123456789abcdef-agent" });
    assert_eq!(owner.send(Method::PUT, path, &agent).await.0, StatusCode::OK);
    let (status, why) = owner.post(&format!("{path}/pause"), &json!({})).await;
    assert_eq!(status, StatusCode::OK, "{why}");
    let count = async || -> i64 {
        let query = sqlx::query_scalar("select count(*) from pauses where agent_id = 'helper'");
        query.fetch_one(&env.pool).await.expect("a count")
    };
    assert_eq!(count().await, 1);
    assert_eq!(owner.send(Method::DELETE, path, &json!({})).await.0, StatusCode::NO_CONTENT);
    assert_eq!(count().await, 0);
}

/// Sends a change while another transaction holds a row, and commits that one once the change waits
/// for it.
async fn send_during(
    env: &TestEnv,
    caller: &Caller,
    (method, path, body): (Method, &str, &Value),
    lock: &'static str,
    meanwhile: impl AsyncFnOnce(&mut sqlx::PgConnection),
) {
    let mut tx = env.pool.begin().await.expect("Postgres");
    sqlx::query(lock).execute(&mut *tx).await.expect("locked");
    let change = async {
        let (status, why) = caller.send(method, path, body).await;
        assert_eq!(status, StatusCode::OK, "{why}");
    };
    let commit = async {
        eventually("the change waits", TIMEOUT, async || {
            let waits =
                "select exists (select from pg_stat_activity where datname = current_database()
                                           and wait_event_type = 'Lock')";
            let waits: bool = sqlx::query_scalar(waits).fetch_one(&env.pool).await.ok()?;
            waits.then_some(())
        })
        .await;
        meanwhile(&mut *tx).await;
        tx.commit().await.expect("committed");
    };
    tokio::join!(change, commit);
}

/// A change of some fields keeps what a concurrent one wrote to the others.
#[tokio::test]
async fn keeps_concurrent_changes() {
    let (env, owner) = start_control().await;
    let path = "/v1/organizations/acme/agents/helper";
    let agent = json!({ "url": env.agent.url(), "secret": "0123456789abcdef-agent" });
    assert_eq!(owner.send(Method::PUT, path, &agent).await.0, StatusCode::OK);
    let renamed = json!({ "url": env.agent.url(), "name": "Helper" });
    let (org, id) = ("acme".parse().expect("an id"), "helper".parse().expect("an id"));
    let lock = "select 1 from organizations where id = 'acme' for update";
    send_during(&env, &owner, (Method::PUT, path, &renamed), lock, async |_| {
        let new = tests::test_env::new_agent(&org, id, env.agent.url()).expect("an agent");
        env.store.put_agent(&new).await.expect("stored");
    })
    .await;
    let id = "helper".parse().expect("an id");
    let stored = env.store.agent(&org, &id).await.expect("Postgres").expect("the agent");
    assert_eq!(stored.name, "Helper");
    assert_eq!(stored.secret.expose(), "secret of helper of acme", "the newer secret");

    let new = json!({ "organization": "acme", "app": "A07", "team": "T07", "signing_secret": "x" });
    let (status, made) = owner.post("/v1/connections", &new).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let path = format!("/v1/connections/{}", made["id"].as_str().expect("an id"));
    let patch = json!({ "settings": { "welcome": false } });
    let lock = "select 1 from connections for update";
    send_during(&env, &owner, (Method::PATCH, &path, &patch), lock, async |tx| {
        let set = "update connections set settings = settings || '{\"broadcasts\": true}'";
        sqlx::query(set).execute(tx).await.expect("changed");
    })
    .await;
    let (_, shown) = owner.get(&path).await;
    let settings = &shown["settings"];
    assert_eq!((&settings["broadcasts"], &settings["welcome"]), (&json!(true), &json!(false)));
}

/// An organization can't create objects without limit. Existing ones can be changed.
#[tokio::test]
async fn limits_organization() {
    let (env, owner) = start_control().await;
    let agents = "/v1/organizations/acme/agents";
    let agent = json!({ "url": env.agent.url(), "secret": "0123456789abcdef-agent" });
    assert_eq!(owner.send(Method::PUT, &format!("{agents}/first"), &agent).await.0, StatusCode::OK);
    for sql in [
        "insert into apps (id, client_id, client_secret, signing_secret, scopes, redirect_url)
         values ('A07', '1', 'k1:', 'k1:', '{}', 'https://example.com/')",
        "insert into agents (org_id, id, url, secret, max_concurrent)
         select 'acme', 'a' || n, 'https://example.com/', 'k1:', 1 from generate_series(2, 10000) n",
        "insert into link_codes (code_hash, org_id, agent_id, surfaces, expires_at)
         select sha256(n::text::bytea), 'acme', 'first', '{dm}', now() + interval '30 minutes' from generate_series(1, 10000) n",
        "insert into install_links (link_hash, org_id, app_id, expires_at)
         select sha256(n::text::bytea), 'acme', 'A07', now() + interval '1 day' from generate_series(1, 100000) n",
        "insert into connections (id, org_id, app_id, team_id)
         select lpad(to_hex(n), 32, '0'), 'acme', 'A08', 'T' || n from generate_series(1, 100000) n",
    ] {
        let mut tx = env.pool.begin().await.expect("Postgres");
        let quick = "set local session_replication_role = replica";
        sqlx::query(quick).execute(&mut *tx).await.expect("no triggers");
        sqlx::query(sql).execute(&mut *tx).await.expect("rows");
        tx.commit().await.expect("committed");
    }
    let new = json!({ "organization": "acme", "app": "A08", "team": "T", "signing_secret": "x" });
    let org = "/v1/organizations/acme";
    for (method, path, body) in [
        (Method::PUT, format!("{agents}/more"), agent.clone()),
        (Method::POST, format!("{org}/link-codes"), json!({ "agent": "first" })),
        (Method::POST, format!("{org}/install-links"), json!({ "app": "A07" })),
        (Method::POST, "/v1/connections".into(), new),
    ] {
        let (status, why) = owner.send(method, &path, &body).await;
        assert_eq!(status, StatusCode::CONFLICT, "{path}: {why}");
        assert!(why.to_string().contains("has the maximum of"), "{why}");
    }
    let renamed = json!({ "url": env.agent.url(), "name": "First" });
    let first = format!("{agents}/first");
    assert_eq!(owner.send(Method::PUT, &first, &renamed).await.0, StatusCode::OK);
    let long = json!({ "url": format!("https://example.com/{}", "x".repeat(2_048)) });
    let (status, why) = owner.send(Method::PUT, &first, &long).await;
    assert!(status.is_client_error() && why.to_string().contains("2048"), "{why}");
}
