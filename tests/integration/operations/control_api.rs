//! The control API: keys, roles, organizations, pages, repeated writes, and its description.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use shared::domain::ApiKey;
use std::{collections::BTreeSet, time::Duration};
use tests::{
    control_api::{Caller, answer},
    eventually::eventually,
    slack::webhook::Webhook,
    test_env::{SMALL, Size, TIMEOUT, TestEnv, agent_id},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };

async fn start() -> TestEnv {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    env.start_control().await.expect("a control API");
    env
}

/// Returns the paths of the description with their methods.
async fn operations(env: &TestEnv) -> Vec<(String, String)> {
    let document = reqwest::get(env.controls[0].path("/v1/openapi.json")).await.expect("an answer");
    let document: Value = document.json().await.expect("JSON");
    let paths = document["paths"].as_object().expect("paths");
    let mut found = Vec::new();
    for (path, methods) in paths {
        for method in methods.as_object().expect("methods").keys() {
            found.push((path.clone(), method.to_uppercase()));
        }
    }
    found
}

/// Replaces the parameters of a path.
fn concrete(path: &str) -> String {
    let mut made = String::new();
    for part in path.split('/').skip(1) {
        made += "/";
        made += match part {
            "{connection}" => "00000000000000000000000000000007",
            part if part.starts_with('{') => "any",
            part => part,
        };
    }
    made
}

/// Each documented operation is a route that needs a key, and for writes a role. No other method of
/// a documented path is a route.
#[tokio::test]
async fn documents_every_route() {
    let env = start().await;
    let viewer = Caller::create(&env, "viewer", None);
    let documented: BTreeSet<(String, String)> = operations(&env).await.into_iter().collect();
    assert!(documented.len() > 30, "{documented:?}");
    let paths: BTreeSet<&String> = documented.iter().map(|(path, _)| path).collect();
    for path in paths {
        let url = concrete(path);
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let verb: Method = method.parse().expect("a method");
            let is_documented = documented.contains(&(path.clone(), method.to_owned()));
            if !is_documented {
                let (status, _) = viewer.send(verb, &url, &json!({})).await;
                assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
                continue;
            }
            let without = viewer.http.request(verb.clone(), format!("{}{url}", viewer.base));
            let (status, _) = answer(without).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path} without a key");
            if method != "GET" {
                let (status, _) = viewer.send(verb, &url, &json!({})).await;
                assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path} as a viewer");
            }
        }
    }
    let (status, _) = viewer.get("/v1/nothing").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

/// A key works until it is revoked or expires. Its hash and the time of its last use are stored.
#[tokio::test]
async fn rejects_revoked_key() {
    let env = start().await;
    let caller = Caller::create(&env, "viewer", None);
    assert_eq!(caller.get("/v1/organizations").await.0, StatusCode::OK);
    let listed = env.tidegate(&["api-keys", "list", "--json"]).expect("printed");
    assert!(!listed.contains(&caller.key[4..]), "the key is printed once");
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    assert!(listed["last_used_at"].is_string(), "{listed}");
    let before = listed["last_used_at"].clone();
    assert_eq!(caller.get("/v1/organizations").await.0, StatusCode::OK);
    let again = env.tidegate(&["api-keys", "list", "--json"]).expect("printed");
    let again: Value = serde_json::from_str(&again).expect("JSON");
    assert_eq!(again["last_used_at"], before, "written at most once a minute");

    let id = listed["id"].as_str().expect("an id");
    env.tidegate(&["api-keys", "revoke", id]).expect("revoked");
    assert_eq!(caller.get("/v1/organizations").await.0, StatusCode::UNAUTHORIZED);
    let again = env.try_tidegate(&["api-keys", "revoke", id]).expect("it runs");
    assert_eq!(again.status.code(), Some(3), "nothing to revoke");

    let expired = Caller::create(&env, "viewer", None);
    let expire = "update api_keys set expires_at = now() where revoked_at is null";
    sqlx::query(expire).execute(&env.pool).await.expect("expired");
    assert_eq!(expired.get("/v1/organizations").await.0, StatusCode::UNAUTHORIZED);
    for wrong in ["", "tgk_", "tgk_short", &caller.key[..46], "Basic abc"] {
        let key = wrong.to_owned();
        let stranger = Caller { http: reqwest::Client::new(), base: caller.base.clone(), key };
        assert_eq!(stranger.get("/v1/organizations").await.0, StatusCode::UNAUTHORIZED, "{wrong}");
    }
    let dump: Vec<String> = sqlx::query_scalar("select k::text from api_keys k")
        .fetch_all(&env.pool)
        .await
        .expect("keys");
    assert!(!dump.concat().contains(&caller.key[4..]) && dump.len() == 2, "{dump:?}");
    assert!(!env.logs().contains(&caller.key[4..]), "the key is in no log");
}

/// Creates an organization with an agent by the API.
async fn create_agent(owner: &Caller, env: &TestEnv, org: &str) -> Value {
    let named = json!({ "name": "Example" });
    let (status, made) = owner.send(Method::PUT, &format!("/v1/organizations/{org}"), &named).await;
    assert_eq!((status, &made["agents"]), (StatusCode::OK, &json!(0)), "{made}");
    let url = env.agent.url();
    let agent = json!({ "name": "Helper", "url": url, "secret": "0123456789abcdef-agent" });
    let path = format!("/v1/organizations/{org}/agents/helper");
    let (status, made) = owner.send(Method::PUT, &path, &agent).await;
    assert_eq!(status, StatusCode::OK, "{made}");
    made
}

/// Organizations and agents are created and changed, with entries in the audit log.
#[tokio::test]
async fn changes_agents_with_audit() {
    let env = start().await;
    let owner = Caller::create(&env, "owner", None);
    let made = create_agent(&owner, &env, "acme").await;
    assert_eq!((&made["mode"], &made["max_concurrent"]), (&json!("reply"), &json!(16)));
    assert!(!made.to_string().contains("0123456789abcdef-agent"), "{made}");
    let path = "/v1/organizations/acme/agents/helper";
    // The secret stays if it is left out.
    let changed = json!({ "name": "Helper", "url": env.agent.url(), "max_concurrent": 4 });
    let (status, made) = owner.send(Method::PUT, path, &changed).await;
    assert_eq!((status, &made["max_concurrent"]), (StatusCode::OK, &json!(4)));
    let (org, id) = ("acme".parse().expect("an id"), "helper".parse().expect("an id"));
    let stored = env.store.agent(&org, &id).await.expect("Postgres").expect("the agent");
    assert_eq!(stored.secret.expose(), "0123456789abcdef-agent");
    let (status, paused) = owner.post(&format!("{path}/pause"), &json!({})).await;
    assert_eq!((status, paused["paused_at"].is_string()), (StatusCode::OK, true), "{paused}");
    for (body, expected) in [
        (json!({ "url": "ftp://x" }), 422),
        (json!({ "url": "https://user:password@example.com/" }), 422),
        (json!({ "url": env.agent.url(), "timeout_ms": 1 }), 422),
        (json!({ "url": env.agent.url(), "unknown": 1 }), 422),
        (json!({ "name": "no url" }), 422),
    ] {
        let (status, why) = owner.send(Method::PUT, path, &body).await;
        assert_eq!(status.as_u16(), expected, "{body}: {why}");
    }
    let fresh = json!({ "url": env.agent.url() });
    let (status, why) =
        owner.send(Method::PUT, "/v1/organizations/acme/agents/second", &fresh).await;
    assert_eq!(status, StatusCode::CONFLICT, "a new agent needs a secret: {why}");
    let (status, _) = owner.send(Method::PUT, "/v1/organizations/none/agents/a", &fresh).await;
    assert_eq!(status, StatusCode::NOT_FOUND);

    let (_, log) = owner.get("/v1/audit-log?organization=acme").await;
    let entries = log["items"].as_array().expect("entries");
    let actions: Vec<&str> = entries.iter().filter_map(|entry| entry["action"].as_str()).collect();
    let expected = ["agent.pause", "agent.change", "agent.create", "organization.create"];
    assert_eq!(actions, expected, "newest first");
    assert_eq!(entries[1]["before"]["max_concurrent"], "16");
    assert!(entries.iter().all(|entry| {
        entry["actor"].as_str().is_some_and(|actor| actor.starts_with("api-key:"))
    }));
    assert!(!log.to_string().contains("0123456789abcdef-agent"), "{log}");
}

/// A repeated write gets the response of the first one; another write with the same key fails.
#[tokio::test]
async fn answers_repeated_writes() {
    let mut env = start().await;
    env.start_control().await.expect("a second control API");
    let owner = Caller::create(&env, "owner", None);
    create_agent(&owner, &env, "acme").await;
    let path = "/v1/organizations/acme/link-codes";
    let with_key = |body: &Value| {
        owner.request(Method::POST, path).json(body).header("idempotency-key", "order-1")
    };
    let body = json!({ "agent": "helper", "surfaces": ["channel"] });
    let (status, first) = answer(with_key(&body)).await;
    assert_eq!(status, StatusCode::CREATED, "{first}");
    let repeated = with_key(&body).send().await.expect("a response");
    assert_eq!(repeated.headers()["idempotency-replayed"], "true");
    assert_eq!(repeated.status(), StatusCode::CREATED);
    assert_eq!(repeated.json::<Value>().await.expect("JSON"), first);
    let (status, why) = answer(with_key(&json!({ "agent": "helper" }))).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{why}");
    let codes: i64 = sqlx::query_scalar("select count(*) from link_codes")
        .fetch_one(&env.pool)
        .await
        .expect("a count");
    assert_eq!(codes, 1);
    let stored: Vec<String> = sqlx::query_scalar("select k::text from idempotency_keys k")
        .fetch_all(&env.pool)
        .await
        .expect("rows");
    let code = first["code"].as_str().expect("a code");
    assert!(!stored.concat().contains(code), "the stored response is sealed");
    // Concurrent requests to two processes: one creates a code, and the others wait or get its
    // response.
    let many = (0..16).map(|n| {
        let url = env.controls[n % 2].path(path);
        let request = owner.http.post(url).bearer_auth(&owner.key).json(&body);
        answer(request.header("idempotency-key", "order-2"))
    });
    let answers = futures_util::future::join_all(many).await;
    let made: BTreeSet<String> = answers
        .iter()
        .filter(|(status, _)| *status == StatusCode::CREATED)
        .map(|(_, body)| body["code"].to_string())
        .collect();
    assert_eq!(made.len(), 1, "{answers:?}");
    assert!(
        answers
            .iter()
            .all(|(status, _)| { [StatusCode::CREATED, StatusCode::CONFLICT].contains(status) })
    );
}

/// A write whose caller leaves runs to its end, and a repeated write gets its response.
#[tokio::test]
async fn completes_write_without_caller() {
    /// Time after which the caller leaves.
    const LEAVES_AFTER: Duration = Duration::from_millis(500);
    let env = start().await;
    let owner = Caller::create(&env, "owner", None);
    let write = || {
        let request = owner.request(Method::PUT, "/v1/organizations/acme");
        request.json(&json!({ "name": "Example" })).header("idempotency-key", "order-3")
    };
    let mut lock = env.pool.begin().await.expect("a transaction");
    let exclusive = "lock table organizations in exclusive mode";
    sqlx::query(exclusive).execute(&mut *lock).await.expect("locked");
    let left = write().timeout(LEAVES_AFTER).send().await;
    assert!(left.is_err(), "the write waits for the lock");
    lock.rollback().await.expect("unlocked");
    let repeated = eventually("the write is recorded", TIMEOUT, async || {
        let response = write().send().await.expect("a response");
        (response.status() != StatusCode::CONFLICT).then_some(response)
    })
    .await;
    assert_eq!(repeated.status(), StatusCode::OK);
    assert_eq!(repeated.headers()["idempotency-replayed"], "true");
}

/// A key that sends too much is refused, and others are not.
#[tokio::test]
async fn limits_rate_of_key() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    env.set("TIDEGATE_API_KEY_MAX_RATE", "1");
    env.set("TIDEGATE_API_KEY_MAX_BURST", "5");
    env.start_control().await.expect("a control API");
    let (busy, other) =
        (Caller::create(&env, "viewer", None), Caller::create(&env, "viewer", None));
    let mut refused = 0;
    for _ in 0..20 {
        let response =
            busy.request(Method::GET, "/v1/organizations").send().await.expect("a response");
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            assert!(response.headers().contains_key("retry-after"));
            refused += 1;
        }
    }
    assert!(refused >= 10, "{refused}");
    assert_eq!(other.get("/v1/organizations").await.0, StatusCode::OK);
    let page = reqwest::get(env.controls[0].admin("/metrics")).await.expect("an answer");
    let page = page.text().await.expect("a page");
    let line =
        format!("tidegate_control_requests_rejected_total{{reason=\"rate_limited\"}} {refused}");
    assert!(page.contains(&line), "{page}");
}

/// Pages have each row once, also while rows are added.
#[tokio::test]
async fn lists_in_pages() {
    let env = start().await;
    let owner = Caller::create(&env, "owner", None);
    for n in 0..7 {
        let path = format!("/v1/organizations/org{n}");
        assert_eq!(owner.send(Method::PUT, &path, &json!({})).await.0, StatusCode::OK);
    }
    for list in ["organizations", "audit-log"] {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let (status, page) = owner.get(&format!("/v1/{list}?limit=3{cursor}")).await;
            assert_eq!(status, StatusCode::OK, "{page}");
            let items = page["items"].as_array().expect("items");
            seen.extend(items.iter().map(|item| item["id"].to_string()));
            let Some(next) = page["next"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len(), "{list}: {seen:?}");
        // The audit log also has the creation of the key.
        assert!([7, 8].contains(&seen.len()), "{list}: {seen:?}");
    }
    for (wrong, expected) in [
        ("limit=0", 400),
        ("limit=201", 400),
        ("limit=x", 400),
        ("cursor=%00", 400),
        ("cursor=x", 404),
        ("cursor=WzFd", 404),
    ] {
        let (status, _) = owner.get(&format!("/v1/organizations?{wrong}")).await;
        assert_eq!(status.as_u16(), expected, "{wrong}");
    }
}

/// A code that the API creates links a channel, and the log names both.
#[tokio::test]
async fn links_channel_by_api() {
    let mut env = TestEnv::start(SMALL).await.expect("a test environment");
    env.start_control().await.expect("a control API");
    let app = env.connect().await.expect("a connection");
    let caller = Caller::create(&env, "operator", Some(app.org.as_str()));
    let input = json!({
        "agent": agent_id().as_str(), "surfaces": ["channel"],
        "connection": app.connection.to_string(),
    });
    let path = format!("/v1/organizations/{}/link-codes", app.org);
    let (status, made) = caller.post(&path, &input).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let text = format!("link {}", made["code"].as_str().expect("a code"));
    let webhook = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", &text);
    assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200);
    let bindings = format!("/v1/connections/{}/bindings", app.connection);
    let binding = eventually("the channel is linked", TIMEOUT, async || {
        let (_, page) = caller.get(&bindings).await;
        page["items"].as_array()?.first().cloned()
    })
    .await;
    assert_eq!((&binding["channel"], &binding["bound_by"]), (&json!("C1"), &json!("U1")));

    // The connection is disabled on every ingest when the request returns.
    let connection = format!("/v1/connections/{}", app.connection);
    let (status, disabled) = caller.post(&format!("{connection}/disable"), &json!({})).await;
    assert_eq!((status, &disabled["status"]), (StatusCode::OK, &json!("stopped")));
    let message = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
    assert_eq!(env.send(&app, &message).await.expect("an answer").status, 404);
    let (status, _) = caller.post(&format!("{connection}/enable"), &json!({})).await;
    assert_eq!(status, StatusCode::OK);

    let reversed = json!({
        "connection": app.connection.to_string(),
        "from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z",
    });
    let (status, why) = caller.post("/v1/replays", &reversed).await;
    assert_eq!(status, StatusCode::CONFLICT, "{why}");
    let one = format!("{bindings}/{}/C1", app.team);
    let (status, _) = caller.send(Method::DELETE, &one, &json!({})).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (status, _) = caller.send(Method::DELETE, &one, &json!({})).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (_, log) = caller.get("/v1/audit-log").await;
    let entries = log["items"].as_array().expect("entries");
    let actions: Vec<&str> = entries.iter().filter_map(|entry| entry["action"].as_str()).collect();
    let expected = [
        "binding.delete",
        "connection.enable",
        "connection.disable",
        "link_code.use",
        "link_code.create",
        "api_key.create",
    ];
    assert_eq!(actions, expected);
    assert_eq!(entries[3]["actor"], format!("slack-user:{}/U1", app.team));
}

/// Usage as CSV is read and sent in pages: each row once, and no length before the last page.
#[tokio::test]
async fn streams_usage_in_pages() {
    let env = start().await;
    let insert = "insert into connection_usage (connection_id, hour, webhooks)
                  select 'c' || n % 7, date_trunc('hour', now()) - n / 7 * interval '1 hour', n
                    from generate_series(1, 2500) n";
    sqlx::query(insert).execute(&env.pool).await.expect("rows");
    let caller = Caller::create(&env, "viewer", None);
    let response = caller.request(Method::GET, "/v1/usage.csv").send().await.expect("an answer");
    assert_eq!(response.content_length(), None, "it is streamed");
    let text = response.text().await.expect("a body");
    let mut lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2_501);
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), 2_501);
}

/// At most eight responses are streamed at once, and a key that is revoked meanwhile reads no
/// further page.
#[tokio::test]
async fn bounds_streamed_responses() {
    let env = start().await;
    // More rows than the buffers of the sockets hold.
    let insert = "insert into connection_usage (connection_id, hour, webhooks)
                  select repeat('c', 1000) || n % 97, date_trunc('hour', now()) - n / 97 * interval '1 hour', n
                    from generate_series(1, 40000) n";
    sqlx::query(insert).execute(&env.pool).await.expect("rows");
    let caller = Caller::create(&env, "viewer", None);
    let get =
        async || caller.request(Method::GET, "/v1/usage.csv").send().await.expect("an answer");
    let mut streams = Vec::new();
    for _ in 0..8 {
        streams.push(get().await);
    }
    assert!(streams.iter().all(|response| response.status() == StatusCode::OK));
    assert_eq!(get().await.status(), StatusCode::SERVICE_UNAVAILABLE);
    let key: ApiKey = caller.key.parse().expect("a key");
    env.tidegate(&["api-keys", "revoke", &key.hash().id()]).expect("revoked");
    let read = streams.remove(0).text().await;
    assert!(read.is_err(), "it ends early: {} bytes", read.unwrap_or_default().len());
}

/// Peers that never read their responses do not keep the places of others. They need no key.
#[tokio::test]
async fn closes_peers_that_do_not_read() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    env.set("TIDEGATE_HTTP_MAX_CONNECTIONS", "2");
    env.start_control().await.expect("a control API");
    let base = env.controls[0].path("");
    let address = base.trim_start_matches("http://").to_owned();
    let requests = "GET /v1/openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(500);
    let mut silent = Vec::new();
    for _ in 0..2 {
        let mut socket = TcpStream::connect(&address).await.expect("connected");
        socket.write_all(requests.as_bytes()).await.expect("sent");
        silent.push(socket);
    }
    eventually("another peer gets a response", TIMEOUT, async || {
        let get = reqwest::get(format!("{base}/v1/openapi.json"));
        tokio::time::timeout(Duration::from_secs(1), get).await.ok()?.ok().map(drop)
    })
    .await;
}

/// The process stops cleanly, is not ready before, and exports no id.
#[tokio::test]
async fn stops_cleanly() {
    let env = start().await;
    let caller = Caller::create(&env, "viewer", None);
    assert_eq!(
        caller.get("/v1/connections/00000000000000000000000000000007").await.0.as_u16(),
        404
    );
    let control = &env.controls[0];
    let page = reqwest::get(control.admin("/metrics")).await.expect("an answer");
    let page = page.text().await.expect("a page");
    assert!(page.contains("http_route=\"/v1/connections/{connection}\""), "{page}");
    assert!(!page.contains("00000000000000000000000000000007"), "{page}");
    assert!(page.contains("tidegate_control_postgres_reachable 1"), "{page}");
    control.process.terminate();
    let ended = control.process.wait(TIMEOUT).await.expect("it ends");
    assert!(ended.success(), "{ended:?}: {}", control.process.log());
}
