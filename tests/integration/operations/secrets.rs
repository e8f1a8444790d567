//! No secret is stored, sent or printed in clear text.

use shared::domain::Surface;
use tests::{
    dump::{contains, dump_postgres, dump_streams, read_all},
    eventually::eventually,
    slack::webhook::Webhook,
    test_env::{App, Size, TIMEOUT, TestEnv},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };

/// Returns the secrets of the environment with their names.
fn secrets(env: &TestEnv, app: &App) -> Vec<(String, String)> {
    let ring = |name: &str| {
        let ring = env.setting(name).expect("a ring");
        ring.split_once(':').expect("an id and a key").1.to_owned()
    };
    let agent = env.read(&format!("org-{}.agent", app.org.as_str().trim_start_matches("org-")));
    [
        ("the signing secret", app.secret.clone()),
        ("the rotated signing secret", ROTATED.to_owned()),
        ("the bot token", app.token.clone()),
        ("the agent's secret", agent.expect("a file")),
        ("the shared app's secret", env.shared_secret.clone()),
        ("the signing key", ring("TIDEGATE_SIGNING_SECRET_KEYRING")),
        ("the token key", ring("TIDEGATE_TOKEN_KEYRING")),
    ]
    .into_iter()
    .map(|(name, secret)| (name.to_owned(), secret))
    .collect()
}

const ROTATED: &str = "0123456789abcdef-rotated-secret";

/// Uses every secret: links, messages, wrong codes, failures, rotations. Returns the output of the
/// commands, and a link code.
async fn use_secrets(env: &TestEnv, app: &App) -> (String, String) {
    let id = app.connection.to_string();
    let code = env.create_link_code_by_cli(app, Surface::Channel).expect("a code");
    for text in ["help", "link AAAA-BBBB-CCCC", &format!("link {code}"), "status", "clear", "new"] {
        let webhook = Webhook::command(&env.slack, app, "C1", "U1", "/lobu", text);
        assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
        env.slack.wait_for_receipt("the reply", |r| webhook.response_url.ends_with(&r.to)).await;
    }
    for text in ["hello there", "fail:1 once", "poison pill"] {
        let webhook = Webhook::message(&env.slack, app, "C1", "U1", text);
        env.send(app, &webhook).await.expect("an answer");
    }
    env.slack
        .wait_for_receipt("the answer", |receipt| receipt.text() == "I heard: fail:1 once")
        .await;
    let forged = Webhook::message(&env.slack, app, "C1", "U1", "forged");
    let url = env.ingests[0].url(app);
    let answer = env.slack.send(&url, "not the secret", &forged).await.expect("an answer");
    assert_eq!(answer.status, 401);
    let shared = Webhook::message(&env.slack, app, "C2", "U1", "by the shared route");
    env.send_shared(&shared).await.expect("an answer");
    let mut printed = String::new();
    let rotated = env.secret_argument(ROTATED).expect("a file");
    for args in [
        &["connections", "rotate-signing-secret", &id, "--secret", &rotated][..],
        &["connections", "rotate-signing-secret", &id, "--secret", ROTATED],
        &["connections", "list"],
        &["connections", "show", &id, "--json"],
        &["link-codes", "list"],
        &["dead-letters", "list"],
        &["keys", "status"],
        &["doctor"],
        &["connections", "show", "00ff00ff00ff00ff00ff00ff00ff00ff"],
        &["apply", "-f", "/nonexistent"],
    ] {
        let ran = env.try_tidegate(args).expect("it runs");
        printed += &String::from_utf8_lossy(&ran.stdout);
        printed += &String::from_utf8_lossy(&ran.stderr);
    }
    (printed, code)
}

/// No secret is in a dump of Postgres, the store of NATS, the metrics, or logs at level trace.
#[tokio::test]
async fn hides_secrets_at_rest_and_in_logs() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    env.set("TIDEGATE_LOG_FILTER", "trace");
    env.start_ingest().await.expect("an ingest");
    env.start_worker().await.expect("a worker");
    env.wait_until_balanced().await.expect("settled");
    let app = env.declare().expect("applied");
    let (printed, code) = use_secrets(&env, &app).await;
    eventually("one delivery is a dead letter", TIMEOUT, async || {
        (!env.dead_letters().await.ok()?.is_empty()).then_some(())
    })
    .await;
    // All log lines must be checked: none was dropped, and none is still being written.
    let (ingest, worker) = (&env.ingests[0], &env.workers[0]);
    let mut pages = Vec::new();
    for page in [ingest.admin("/metrics"), worker.admin("/metrics")] {
        pages.push(reqwest::get(page).await.expect("an answer").text().await.expect("a page"));
    }
    for process in [&ingest.process, &worker.process] {
        process.terminate();
        process.wait(TIMEOUT).await.expect("it ends");
    }
    let (logs, dump) = (env.logs() + &printed, dump_postgres(&env).await);
    let (store, messages) = (read_all(env.nats.store_dir()), dump_streams(&env).await);

    // The searched data has the expected content.
    let id = app.connection.to_string();
    assert!(logs.contains("TRACE") && logs.contains(&id), "the logs are at level trace");
    assert!(dump.contains(&id) && dump.contains("k1:"), "the dump has rows");
    assert!(contains(&store, &id) && contains(&messages, &id), "the store has the stream");
    assert!(contains(&messages, "hello there"), "bodies are stored as Slack sent them");

    for (name, secret) in secrets(&env, &app) {
        let secret = secret.as_str();
        assert!(secret.len() >= 16, "{name} is too short to be searched for");
        let line = logs.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{name} is in the logs");
        assert!(!dump.contains(secret), "{name} is in Postgres");
        assert!(!contains(&store, secret), "{name} is in the store of NATS");
        assert!(!contains(&messages, secret), "{name} is in a message of NATS");
    }
    // A code and a response_url are in bodies only.
    for (name, secret) in [("a link code", code.as_str()), ("a response_url", "/commands/")] {
        let line = logs.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{name} is in the logs");
        assert!(!dump.contains(secret), "{name} is in Postgres");
    }
    for page in pages {
        assert!(
            page.contains("# EOF") && page.contains("\ntidegate_log_lines_dropped_total 0\n"),
            "{page}"
        );
        for (name, secret) in secrets(&env, &app) {
            assert!(!page.contains(&secret), "{name} is a metric");
        }
        assert!(!page.contains(&id), "a connection is a metric");
    }
}
