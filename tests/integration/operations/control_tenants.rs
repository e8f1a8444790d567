//! Isolation of organizations in the control API: a key sees and changes nothing of another
//! organization.
//!
//! Requests are generated from the description of the API: each operation, with each combination of
//! ids of own and foreign objects in its path, query and body that has a foreign one.

use futures_util::{StreamExt, stream};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use tests::{
    control_api::{Caller, answer},
    test_env::{App, Size, TestEnv, agent_id},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };
/// Number of requests for objects of other organizations.
const FOREIGN_REQUESTS: usize = 10_000;
/// Organizations besides the key's own.
const OTHERS: usize = 8;
/// User who is a member of each organization.
const MEMBER: &str = "steve";
/// Concurrent requests.
const CONCURRENT: usize = 8;

/// Creates objects of each kind that belong to an app's organization.
async fn seed(env: &TestEnv, app: &App, n: i64) {
    let (id, org, agent) = (app.connection.to_string(), app.org.to_string(), agent_id());
    for sql in [
        format!(
            "insert into delivery_lanes (connection_id, lane, partition, head, tail, org_id, agent_id, priority, next_at)
             values ('{id}', {n}, 0, 1, 1, '{org}', '{agent}', 1, now() + interval '1 hour')"
        ),
        format!(
            "insert into deliveries (connection_id, lane, position, partition, generation, sequence, org_id, agent_id,
                                     session, kind, priority, dedup_key, received_at, stored_at, payload, size, schema)
             values ('{id}', {n}, 1, 0, 1, {n}, '{org}', '{agent}', 1, 'event', 1, '{id}:event:Ev{n}', now(), now(), '', 0, 1)"
        ),
        format!(
            "insert into dead_letters (stage, partition, generation, sequence, subject, connection_id, reason, attempts)
             values ('intake', 0, 1, {n}, '', '{id}', 'seeded', 1)"
        ),
        format!(
            "insert into outbox_failures (id, connection_id, lane, partition, channel_key, method, dedup_key, request, error,
                                          attempts, created_at)
             values ({n}, '{id}', {n}, 0, 'C1', 'chat.postMessage', 'failed-{n}', 'k1:', 'error', 1, now())"
        ),
        format!("insert into replays (id, connection_id, from_time, to_time, apply) values ('{org}', '{id}', now(), now(), false)"),
        format!("insert into connection_usage (connection_id, hour, webhooks) values ('{id}', date_trunc('hour', now()), {n})"),
        format!(
            "insert into channel_bindings (connection_id, team_id, channel_id, org_id, agent_id, bound_by)
             values ('{id}', '{}', 'C1', '{org}', '{agent}', 'U1')",
            app.team
        ),
        format!("insert into organization_members (org_id, user_id) values ('{org}', '{MEMBER}')"),
        format!("insert into erasures (id, org_id) values ('{org}', '{org}')"),
    ] {
        sqlx::query(AssertSqlSafe(sql)).execute(&env.pool).await.expect("seeded");
    }
}

/// Ids of the objects of an organization.
struct Ids {
    org: String,
    connection: String,
    app: String,
    team: String,
    link_code: String,
    replay: String,
    dead_letter: i64,
    failure: i64,
}

impl Ids {
    async fn of(env: &TestEnv, app: &App, n: i64) -> Self {
        let (org, connection) = (app.org.to_string(), app.connection.to_string());
        let code =
            "select substr(encode(code_hash, 'hex'), 1, 16) from link_codes where org_id = $1";
        let code = sqlx::query_scalar(code).bind(&org).fetch_one(&env.pool).await;
        let dead = "select id from dead_letters where connection_id = $1";
        let dead = sqlx::query_scalar(dead).bind(&connection).fetch_one(&env.pool).await;
        Self {
            replay: org.clone(),
            org,
            connection,
            app: app.app.clone(),
            team: app.team.clone(),
            link_code: code.expect("a code"),
            dead_letter: dead.expect("a dead letter"),
            failure: n,
        }
    }

    /// Returns the value of a parameter that names an object of an organization.
    fn parameter(&self, name: &str) -> Option<&str> {
        Some(match name {
            "organization" => &self.org,
            "app" => &self.app,
            "connection" => &self.connection,
            "link_code" => &self.link_code,
            "replay" | "erasure" => &self.replay,
            _ => return None,
        })
    }
}

/// Request for a foreign object.
struct Foreign {
    method: Method,
    path: String,
    body: Option<Value>,
}

/// Returns the bodies of an operation: with `own` and `foreign` ids. `in_path` states whether the
/// path names a foreign object, so that a body without one will do.
fn bodies(id: &str, own: &Ids, foreign: &Ids, in_path: bool) -> Vec<Value> {
    let agent = agent_id();
    let agent = agent.as_str();
    let (all, mut bodies) = (json!({ "connection": foreign.connection }), Vec::new());
    let mut benign = |body: Value| {
        if in_path {
            bodies.push(body);
        }
    };
    match id {
        "putOrganization" => benign(json!({ "name": "mine" })),
        "putAgent" => benign(json!({ "url": "https://example.com/", "secret": "mine" })),
        "changeConnection" => benign(json!({ "agent": agent, "bot_token": "xoxb-mine" })),
        "rotateSigningSecret" => benign(json!({ "secret": "mine" })),
        "enableTokenRotation" => {
            benign(json!({ "client_id": "1", "client_secret": "mine", "refresh_token": "mine" }));
        }
        "createLinkCode" => {
            benign(json!({ "agent": agent }));
            bodies.push(json!({ "agent": agent, "connection": foreign.connection }));
        }
        "putBinding" => {
            benign(json!({ "agent": agent }));
            benign(json!({ "agent": agent, "organization": own.org }));
            bodies.push(json!({ "agent": agent, "organization": foreign.org }));
        }
        "putMember" => benign(json!({ "slack": [] })),
        "eraseOrganization" => bodies.push(json!({ "organization": foreign.org })),
        "erasePerson" => bodies.push(json!({ "team": foreign.team, "user": "U1" })),
        // It needs a key of all organizations (`declarations::rejects_key_of_organization`).
        "applyDeclarations" => {}
        "createInstallLink" => benign(json!({ "app": own.app, "agent": agent })),
        // Moving an own connection needs a key of all organizations
        // (`install::moves_connection_to_organization`).
        "moveConnection" => benign(json!({ "organization": own.org, "agent": agent })),
        "createConnection" => {
            let new = |org: &str| json!({ "organization": org, "app": "AMINE", "team": "TMINE", "signing_secret": "mine" });
            bodies.push(new(&foreign.org));
            let taken = json!({
                "organization": foreign.org, "app": foreign.app, "team": foreign.team,
                "signing_secret": "mine", "bot_token": "xoxb-mine",
            });
            bodies.push(taken);
        }
        "retryDeliveries" | "skipDeliveries" => bodies.push(all),
        "cancelDeliveries" => bodies.push(json!({ "selection": all })),
        "redriveDeadLetters" | "deleteDeadLetters" => {
            bodies.push(json!({ "ids": [foreign.dead_letter] }));
        }
        "retryOutboxFailures" | "deleteOutboxFailures" => {
            bodies.push(json!({ "ids": [foreign.failure] }));
        }
        "createReplay" => bodies.push(json!({
            "connection": foreign.connection, "from": "2026-01-01T00:00:00Z",
            "to": "2026-01-02T00:00:00Z",
        })),
        unknown => panic!("{unknown} needs bodies here"),
    }
    bodies
}

/// Returns every path of a template with at least one foreign id if it has ids, and the template
/// itself otherwise. The flag states whether it has a foreign id.
fn paths(template: &str, own: &Ids, foreign: &Ids) -> Vec<(String, bool)> {
    let mut all = vec![(String::new(), false)];
    for part in template.split('/').skip(1) {
        let name = part.strip_prefix('{').and_then(|part| part.strip_suffix('}'));
        let agent = agent_id();
        all = all
            .into_iter()
            .flat_map(|(path, is_foreign)| {
                let plain = |value: &str| (format!("{path}/{value}"), is_foreign);
                match name.map(|name| (name, own.parameter(name), foreign.parameter(name))) {
                    None => vec![plain(part)],
                    Some((_, Some(own), Some(other))) => {
                        vec![plain(own), (format!("{path}/{other}"), true)]
                    }
                    Some(("agent", ..)) => vec![plain(agent.as_str())],
                    Some(("team", ..)) => vec![plain(&foreign.team)],
                    Some(("channel", ..)) => vec![plain("C1")],
                    Some(("install_link", ..)) => vec![plain("mine")],
                    Some(("member", ..)) => vec![plain(MEMBER)],
                    Some((name, ..)) => panic!("{name} needs a value here"),
                }
            })
            .collect();
    }
    all
}

/// Returns the requests of an operation that name a foreign object.
fn requests(
    (template, method, operation): (&str, &str, &Value),
    own: &Ids,
    foreign: &Ids,
) -> Vec<Foreign> {
    let id = operation["operationId"].as_str().expect("an id");
    let method: Method = method.to_uppercase().parse().expect("a method");
    let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
    let in_query = |name: &str| {
        parameters.iter().any(|p| p["in"] == "query" && p["name"].as_str() == Some(name))
    };
    let mut queries = vec![(String::new(), false)];
    for name in ["organization", "connection"].into_iter().filter(|name| in_query(name)) {
        let value = foreign.parameter(name).expect("an id");
        let with = queries.iter().map(|(query, _)| (format!("{query}&{name}={value}"), true));
        queries = queries.clone().into_iter().chain(with.collect::<Vec<_>>()).collect();
    }
    if in_query("reference") {
        queries = vec![("&reference=C1/1.2".into(), false)];
    }
    let mut requests = Vec::new();
    for (path, in_path) in paths(template, own, foreign) {
        for (query, in_query) in &queries {
            let path = format!("{path}{}", query.replacen('&', "?", 1));
            if operation["requestBody"].is_object() {
                let made = bodies(id, own, foreign, in_path || *in_query);
                requests.extend(made.into_iter().map(|body| Foreign {
                    method: method.clone(),
                    path: path.clone(),
                    body: Some(body),
                }));
            } else if in_path || *in_query {
                requests.push(Foreign { method: method.clone(), path, body: None });
            }
        }
    }
    requests
}

/// Returns the rows that the key of another organization could have changed.
async fn state(env: &TestEnv) -> String {
    let mut state = String::new();
    for table in [
        "organizations",
        "organization_members",
        "user_identities",
        "token_rotations",
        "api_keys",
        "erasures",
        "agents",
        "connections",
        "channel_bindings",
        "link_codes",
        "apps",
        "install_links",
        "deliveries",
        "delivery_lanes",
        "dead_letters",
        "outbox_failures",
        "replays",
        "audit_log",
    ] {
        let sql = AssertSqlSafe(format!(
            "select (to_jsonb(t) - 'last_used_at')::text from {table} t order by 1"
        ));
        let rows: Vec<String> = sqlx::query_scalar(sql).fetch_all(&env.pool).await.expect("rows");
        state += &rows.join("\n");
    }
    state
}

/// Sends a request for a foreign object. Checks that it is answered like one for a missing object,
/// or by an empty list.
async fn assert_hidden(caller: &Caller, request: &Foreign, foreign: &Ids) {
    let Foreign { method, path, body } = request;
    let mut sent = caller.request(method.clone(), path);
    if let Some(body) = body {
        sent = sent.json(body);
    }
    let response = sent.send().await.expect("a response");
    let status = response.status();
    let text = response.text().await.expect("a body");
    let empty = ["{\"items\":[],\"next\":null}", "{\"ids\":[]}", "{\"changed\":0,\"requested\":0}"];
    let is_empty = empty.contains(&text.as_str())
        || (path.starts_with("/v1/usage.csv") && text.lines().count() == 1);
    let is_hidden = match status {
        StatusCode::NOT_FOUND => true,
        StatusCode::OK => is_empty,
        _ => false,
    };
    assert!(is_hidden, "{method} {path} {body:?}: {status} {text}");
    // The error may repeat ids of the request.
    let named = format!("{path} {}", body.as_ref().map(Value::to_string).unwrap_or_default());
    for id in [&foreign.org, &foreign.connection, &foreign.team] {
        assert!(!text.contains(id) || named.contains(id), "{method} {path}: {text}");
    }
}

/// Each generated request of an organization's key for a foreign object is answered as for a
/// missing one, and changes nothing.
#[tokio::test]
async fn hides_other_organizations() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    env.set("TIDEGATE_API_KEY_MAX_RATE", "100000");
    env.set("TIDEGATE_API_KEY_MAX_BURST", "100000");
    env.start_control().await.expect("a control API");
    let mut all = Vec::new();
    for n in 0..=OTHERS as i64 {
        let app = env.declare().expect("applied");
        seed(&env, &app, n).await;
        env.create_link_code_by_cli(&app, shared::domain::Surface::Dm).expect("a code");
        all.push(Ids::of(&env, &app, n).await);
    }
    // After `apply`, which opens the secrets of apps: these can't be opened.
    for Ids { app, org, .. } in &all {
        sqlx::query(
            "insert into apps (id, org_id, client_id, client_secret, signing_secret, scopes, redirect_url)
             values ($1, $2, '1', 'k1:', 'k1:', '{}', 'https://example.com/')",
        )
        .bind(app)
        .bind(org)
        .execute(&env.pool)
        .await
        .expect("seeded");
    }
    let (own, others) = all.split_first().expect("organizations");
    let caller = Caller::create(&env, "owner", Some(&own.org));
    let document = reqwest::get(caller.base.clone() + "/v1/openapi.json").await.expect("an answer");
    let document: Value = document.json().await.expect("JSON");
    let operations = || {
        let paths = document["paths"].as_object().expect("paths").iter();
        paths.flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("methods").iter();
            methods.map(move |(method, operation)| (path.as_str(), method.as_str(), operation))
        })
    };
    // Reads of own objects succeed, so the generated requests are valid.
    for operation in operations().filter(|(_, method, _)| *method == "get") {
        for request in requests(operation, own, own) {
            let (status, body) = answer(caller.request(Method::GET, &request.path)).await;
            assert_eq!(status, StatusCode::OK, "{}: {body}", request.path);
        }
    }
    let before = state(&env).await;
    let generated: Vec<_> = others
        .iter()
        .flat_map(|foreign| {
            operations()
                .flat_map(|operation| requests(operation, own, foreign))
                .map(move |r| (r, foreign))
        })
        .collect();
    let covered =
        operations().filter(|operation| !requests(*operation, own, &others[0]).is_empty());
    let (covered, of) = (covered.count(), operations().count());
    // The lists of organizations, apps and erasures have no parameter, and declarations are a file.
    assert!(covered + 4 >= of, "{covered} of {of} operations name objects");
    stream::iter(generated.iter().cycle().take(FOREIGN_REQUESTS))
        .for_each_concurrent(CONCURRENT, async |(request, foreign)| {
            assert_hidden(&caller, request, foreign).await;
        })
        .await;
    assert!(generated.len() >= OTHERS * of, "{} requests", generated.len());
    assert_eq!(state(&env).await, before, "nothing changed");
}
