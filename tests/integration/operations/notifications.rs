//! Notifications to the operator's backend.

use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use tests::{
    eventually::eventually,
    install::Setup,
    slack::{oauth::Allowed, webhook::Webhook},
    test_env::{App, SMALL, TIMEOUT, TestEnv},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Request that the backend received.
#[derive(Debug, Clone)]
struct Received {
    id: String,
    timestamp: String,
    signature: String,
    body: String,
}

impl Received {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }

    fn kind(&self) -> String {
        self.json()["type"].as_str().expect("a type").to_owned()
    }

    fn connection(&self) -> String {
        self.json()["data"]["connection"].as_str().expect("a connection").to_owned()
    }

    /// Fails unless the signature is that of the Standard Webhooks specification.
    fn assert_signed(&self) {
        use base64::{Engine, engine::general_purpose::STANDARD};
        use hmac::{Hmac, KeyInit, Mac};
        let key = STANDARD.decode(SECRET.trim_start_matches("whsec_")).expect("base64");
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&key).expect("a key");
        mac.update(format!("{}.{}.{}", self.id, self.timestamp, self.body).as_bytes());
        let expected = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
        assert_eq!(self.signature, expected);
    }
}

/// Backend of an operator: records requests, and answers with a status and a body.
#[derive(Clone)]
struct Backend {
    url: String,
    received: Arc<Mutex<Vec<Received>>>,
    answer: Arc<Mutex<(u16, String)>>,
}

impl Backend {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/tidegate", listener.local_addr().expect("an address"));
        let answer = Arc::new(Mutex::new((204, String::new())));
        let backend = Self { url, received: Arc::default(), answer };
        let served = backend.clone();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let served = served.clone();
                tokio::spawn(async move {
                    let (mut data, mut chunk) = (Vec::new(), [0; 4096]);
                    let (head, length) = loop {
                        let read = socket.read(&mut chunk).await.unwrap_or_default();
                        if read == 0 {
                            return;
                        }
                        data.extend_from_slice(&chunk[..read]);
                        let text = String::from_utf8_lossy(&data).into_owned();
                        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                        let length = header(head, "content-length").parse().unwrap_or(0);
                        if body.len() >= length {
                            break (head.to_owned(), length);
                        }
                    };
                    let body = String::from_utf8_lossy(&data[data.len() - length..]).into_owned();
                    let received = Received {
                        id: header(&head, "webhook-id"),
                        timestamp: header(&head, "webhook-timestamp"),
                        signature: header(&head, "webhook-signature"),
                        body,
                    };
                    served.lock().push(received);
                    let (status, text) = served.answer();
                    let response = format!(
                        "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
                        text.len()
                    );
                    let _ = socket.write_all(response.as_bytes()).await;
                });
            }
        });
        backend
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Received>> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self) -> (u16, String) {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn answer_with(&self, status: u16, body: &str) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = (status, body.to_owned());
    }

    fn kinds_of(&self, app: &App) -> Vec<String> {
        let id = app.connection.to_string();
        self.lock().iter().filter(|one| one.connection() == id).map(Received::kind).collect()
    }

    async fn wait_for(&self, app: &App, kind: &str) -> Received {
        let id = app.connection.to_string();
        eventually(&format!("the backend gets {kind}"), TIMEOUT, async || {
            self.lock().iter().find(|one| one.kind() == kind && one.connection() == id).cloned()
        })
        .await
    }
}

fn header(head: &str, name: &str) -> String {
    let line = head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    });
    line.unwrap_or_default()
}

/// Declares the backend with `tidegate apply`.
fn declare(env: &TestEnv, backend: &Backend) {
    env.write("notifications.secret", SECRET).expect("written");
    let text = format!(
        "[notifications]\nurl = \"{}\"\nsecret = \"file:notifications.secret\"\n",
        backend.url
    );
    let file = env.write("notifications.toml", &text).expect("written");
    let file = file.to_str().expect("a path in UTF-8");
    env.tidegate(&["apply", "-f", file]).expect("applied");
}

async fn execute(env: &TestEnv, sql: &'static str, app: &App) {
    let done = sqlx::query(sql).bind(app.connection.to_string()).execute(&env.pool).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// The backend gets each kind of event, signed, in the order of the events of a connection.
#[tokio::test]
async fn notifies_of_each_kind() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let backend = Backend::start().await;
    let silent = env.declare().expect("a connection before there is a backend");
    declare(&env, &backend);
    let app = env.declare().expect("a connection");
    let installed = backend.wait_for(&app, "connection.installed").await;
    installed.assert_signed();
    let data = &installed.json()["data"];
    assert_eq!(
        (&data["organization"], &data["team"]),
        (&json!(app.org.as_str()), &json!(app.team))
    );
    assert_eq!((&data["app"], &data["again"]), (&json!(app.app), &json!(false)));
    assert!(!installed.body.contains(&app.token), "{}", installed.body);

    let code = env.create_link_code_by_cli(&app, shared::domain::Surface::Channel).expect("a code");
    let link = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", &format!("link {code}"));
    assert_eq!(env.send(&app, &link).await.expect("an answer").status, 200);
    let used = backend.wait_for(&app, "link_code.used").await.json();
    assert_eq!((&used["data"]["channel"], &used["data"]["user"]), (&json!("C1"), &json!("U1")));

    // The test writes the causes of the remaining events as workers do.
    let dead = "insert into dead_letters (stage, partition, generation, sequence, subject, connection_id, reason, attempts)
                select 'intake', 0, 1, n, '', $1, 'test', 1 from generate_series(1, 50) n";
    execute(&env, dead, &app).await;
    backend.wait_for(&app, "dead_letter.added").await;
    let full =
        "insert into connection_backlog (connection_id, deliveries, delivery_bytes, dead_letters,
                    dead_letter_bytes, deliveries_full, dead_letters_full, ignores)
                values ($1, 1, 1, 1, 1, true, false, false)";
    execute(&env, full, &app).await;
    let limit = backend.wait_for(&app, "limit.reached").await.json();
    assert_eq!(limit["data"]["limit"], "deliveries");
    execute(
        &env,
        "update connections set status = 'error', status_reason = 'invalid_auth' where id = $1",
        &app,
    )
    .await;
    let failed = backend.wait_for(&app, "connection.token_failed").await.json();
    assert_eq!(failed["data"]["reason"], "invalid_auth");
    let removal = json!({ "type": "app_uninstalled" });
    let uninstalled = Webhook::event(&env.slack, &app, "removal", removal);
    assert_eq!(env.send(&app, &uninstalled).await.expect("an answer").status, 200);
    backend.wait_for(&app, "connection.uninstalled").await;
    assert!(backend.kinds_of(&silent).is_empty(), "its installation was before the backend");
    let order = backend.kinds_of(&app);
    let expected = [
        "connection.installed",
        "link_code.used",
        "dead_letter.added",
        "limit.reached",
        "connection.token_failed",
        "connection.uninstalled",
    ];
    assert_eq!(order, expected, "one for all dead letters");
    assert!(!env.logs().contains(SECRET), "the secret is in no log");
}

/// An installation that grants other scopes causes a notification with both lists. One that grants
/// the same does not.
#[tokio::test]
async fn notifies_of_changed_scopes() {
    let setup = Setup::start(SMALL).await;
    let backend = Backend::start().await;
    declare(&setup.env, &backend);
    let mut all = Allowed::in_team("T0NEW");
    assert!(setup.install("acme", &all).await.status().is_success());
    let app = setup.app().await;
    backend.wait_for(&app, "connection.installed").await;
    assert!(setup.install("acme", &all).await.status().is_success());
    all.without = vec!["files:read".into()];
    assert!(setup.install("acme", &all).await.status().is_success());
    let changed = backend.wait_for(&app, "connection.scopes_changed").await;
    changed.assert_signed();
    let data = &changed.json()["data"];
    let (before, after) = (data["before"].to_string(), data["after"].to_string());
    assert!(before.contains("files:read") && !after.contains("files:read"), "{data}");
    assert!(after.contains("chat:write"), "{data}");
    let kinds = backend.kinds_of(&app);
    let changes = kinds.iter().filter(|kind| *kind == "connection.scopes_changed").count();
    assert_eq!(changes, 1, "{kinds:?}");
}

/// Notifications to a failing backend are repeated with the same id and in order, while other
/// connections' are sent. Too old ones are given up, and over a hundred of a connection are cut.
#[tokio::test]
async fn repeats_until_confirmed() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let backend = Backend::start().await;
    declare(&env, &backend);
    backend.answer_with(503, "");
    let app = env.declare().expect("a connection");
    let first = backend.wait_for(&app, "connection.installed").await;
    execute(&env, "update connections set status = 'revoked' where id = $1", &app).await;
    let other = env.declare().expect("a connection");
    backend.wait_for(&other, "connection.installed").await;
    eventually("the notification is repeated", TIMEOUT, async || {
        let repeated = backend.lock().iter().filter(|one| one.id == first.id).count();
        (repeated >= 2).then_some(())
    })
    .await;
    assert!(!backend.kinds_of(&app).contains(&"connection.uninstalled".to_owned()));
    backend.answer_with(200, "ok");
    backend.wait_for(&app, "connection.uninstalled").await;
    eventually("no notification waits", TIMEOUT, async || {
        let rows: i64 = sqlx::query_scalar("select count(*) from notifications")
            .fetch_one(&env.pool)
            .await
            .expect("a count");
        (rows == 0).then_some(())
    })
    .await;

    backend.answer_with(500, "");
    // The status switches so fast that no worker sends a notification meanwhile.
    for _ in 0..60 {
        execute(&env, "update connections set status = 'active', installed_at = clock_timestamp() where id = $1", &app).await;
        execute(&env, "update connections set status = 'error' where id = $1", &app).await;
    }
    let (rows, last): (i64, String) = sqlx::query_as(
        "select count(*), (array_agg(event order by id desc))[1] from notifications where connection_id = $1",
    )
    .bind(app.connection.to_string())
    .fetch_one(&env.pool)
    .await
    .expect("a row");
    assert_eq!((rows, last.as_str()), (100, "notifications.missing"));
    execute(&env, "update notifications set at = now() - interval '73 hours', next_at = now() where connection_id = $1", &app).await;
    let given_up = "tidegate_notifications_total{outcome=\"given_up\"}";
    eventually("they are given up", 4 * TIMEOUT, async || {
        let (rows,): (i64,) = sqlx::query_as("select count(*) from notifications")
            .fetch_one(&env.pool)
            .await
            .expect("a count");
        (rows == 0).then_some(())
    })
    .await;
    let mut counted = 0.0;
    for worker in &env.workers {
        counted += worker.metric(given_up).await.expect("a metric");
    }
    assert_eq!(counted, 100.0);
}

/// The answer to an installation may refuse the connection, which then answers nothing.
#[tokio::test]
async fn stops_refused_connection() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let backend = Backend::start().await;
    declare(&env, &backend);
    let accepted = env.declare().expect("a connection");
    backend.wait_for(&accepted, "connection.installed").await;
    backend.answer_with(200, r#"{"accept":false,"reason":"unpaid"}"#);
    let refused = env.declare().expect("a connection");
    let hello = Webhook::message(&env.slack, &refused, "D1", "U1", "hello");
    eventually("ingest answers 404", TIMEOUT, async || {
        let answer = env.send(&refused, &hello).await.expect("an answer");
        (answer.status == 404).then_some(())
    })
    .await;
    let hello = Webhook::message(&env.slack, &accepted, "D1", "U1", "hello");
    assert_eq!(env.send(&accepted, &hello).await.expect("an answer").status, 200);
    let shown = env.tidegate(&["connections", "show", &refused.connection.to_string()]);
    assert!(shown.expect("printed").contains("refused by the backend: unpaid"));
    let log =
        env.tidegate(&["audit-log", "--json", "--action", "connection.veto"]).expect("printed");
    let entry: Value = serde_json::from_str(log.trim()).expect("one entry");
    assert_eq!(
        (&entry["actor"], &entry["object_id"]),
        (&json!("backend"), &json!(refused.connection.to_string()))
    );
}
