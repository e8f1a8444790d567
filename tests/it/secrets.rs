//! No secret of ours rests, moves or is printed in clear.

use shared::types::Surface;
use std::{fs, path::Path};
use tests::{
    slack::webhook::Webhook,
    until::until,
    world::{App, SOON, Size, World},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };

/// Everything secret that this world holds, by name.
fn secrets(world: &World, app: &App) -> Vec<(String, String)> {
    let ring = |name: &str| {
        let ring = world.setting(name).expect("a ring");
        ring.split_once(':').expect("an id and a key").1.to_owned()
    };
    let agent = world.read(&format!("org-{}.agent", app.org.as_str().trim_start_matches("org-")));
    [
        ("the signing secret", app.secret.clone()),
        ("the rotated signing secret", ROTATED.to_owned()),
        ("the bot token", app.token.clone()),
        ("the agent's secret", agent.expect("a file")),
        ("the shared app's secret", world.shared_secret.clone()),
        ("the signing key", ring("TIDEGATE_SIGNING_SECRET_KEYRING")),
        ("the token key", ring("TIDEGATE_TOKEN_KEYS")),
    ]
    .into_iter()
    .map(|(name, secret)| (name.to_owned(), secret))
    .collect()
}

const ROTATED: &str = "0123456789abcdef-rotated-secret";

/// Links, talks, mistypes, guesses, fails, rotates, clears: whatever touches a secret. Gives what was printed, and the code.
async fn live(world: &World, app: &App) -> (String, String) {
    let id = app.connection.to_string();
    let code = world.mint_by_verb(app, Surface::Channel).expect("a code");
    for text in ["help", "link AAAA-BBBB-CCCC", &format!("link {code}"), "status", "clear", "new"] {
        let webhook = Webhook::command(&world.slack, app, "C1", "U1", "/lobu", text);
        assert_eq!(world.send(app, &webhook).await.expect("an answer").status, 200);
        world.slack.told("said", |r| webhook.response_url.ends_with(&r.to)).await;
    }
    for text in ["hello there", "fail:1 once", "poison pill"] {
        let webhook = Webhook::message(&world.slack, app, "C1", "U1", text);
        world.send(app, &webhook).await.expect("an answer");
    }
    world.slack.told("the answer", |receipt| receipt.text() == "I heard: fail:1 once").await;
    let forged = Webhook::message(&world.slack, app, "C1", "U1", "forged");
    let url = world.ingests[0].url(app);
    let answer = world.slack.send(&url, "not the secret", &forged).await.expect("an answer");
    assert_eq!(answer.status, 401);
    let shared = Webhook::message(&world.slack, app, "C2", "U1", "by the shared route");
    world.send_shared(&shared).await.expect("an answer");
    let mut printed = String::new();
    for args in [
        &["connections", "rotate-signing-secret", &id, "--secret", ROTATED][..],
        &["connections", "list"],
        &["connections", "show", &id, "--json"],
        &["link-codes", "list"],
        &["dead", "list"],
        &["keys", "status"],
        &["doctor"],
        &["connections", "show", "00ff00ff00ff00ff00ff00ff00ff00ff"],
        &["apply", "-f", "/nonexistent"],
    ] {
        let ran = world.try_tidegate(args).expect("it runs");
        printed += &String::from_utf8_lossy(&ran.stdout);
        printed += &String::from_utf8_lossy(&ran.stderr);
    }
    (printed, code)
}

async fn dump(world: &World) -> String {
    let tables: Vec<String> = sqlx::query_scalar(
        "select table_name::text from information_schema.tables
          where table_schema = 'public' and table_type = 'BASE TABLE'",
    )
    .fetch_all(&world.pool)
    .await
    .expect("tables");
    let mut dump = String::new();
    for table in tables {
        let sql = format!("select t::text from {table} t");
        let rows: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .fetch_all(&world.pool)
            .await
            .expect("rows");
        dump += &rows.join("\n");
    }
    dump
}

/// Every file below a folder, as it lies there.
fn bytes_below(dir: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        // A file may go while we look.
        bytes.extend(if path.is_dir() {
            bytes_below(&path)
        } else {
            fs::read(&path).unwrap_or_default()
        });
    }
    bytes
}

/// Every message of every stream, uncompressed: the store's blocks may hide what is there.
async fn messages(world: &World) -> Vec<u8> {
    use futures_util::TryStreamExt;
    let js = async_nats::jetstream::new(world.client().clone());
    let names: Vec<String> = js.stream_names().try_collect().await.expect("names");
    assert!(names.len() >= 3, "{names:?}");
    let mut bytes = Vec::new();
    for name in names {
        let stream = js.get_stream(&name).await.expect("a stream");
        for sequence in 1..=stream.cached_info().state.last_sequence {
            if let Ok(message) = stream.get_raw_message(sequence).await {
                bytes.extend_from_slice(message.subject.as_bytes());
                bytes.extend_from_slice(format!("{:?}", message.headers).as_bytes());
                bytes.extend_from_slice(&message.payload);
            }
        }
    }
    bytes
}

fn holds(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

#[tokio::test]
async fn a_dump_of_postgres_the_store_of_nats_and_the_logs_at_trace_hold_no_secret_of_ours() {
    let mut world = World::without_processes(SERVERS).await.expect("servers");
    world.set("TIDEGATE_LOG", "trace");
    world.start_ingest().await.expect("an ingest");
    world.start_worker().await.expect("a worker");
    world.settled().await.expect("settled");
    let app = world.declare().expect("applied");
    let (printed, code) = live(&world, &app).await;
    until("one is dead", SOON, async || {
        (!world.dead_letters().await.ok()?.is_empty()).then_some(())
    })
    .await;
    // All that was said is to be looked through: nothing was dropped, and nothing is still under way.
    let (ingest, worker) = (&world.ingests[0], &world.workers[0]);
    let mut pages = Vec::new();
    for page in [ingest.admin("/metrics"), worker.admin("/metrics")] {
        pages.push(reqwest::get(page).await.expect("an answer").text().await.expect("a page"));
    }
    for process in [&ingest.process, &worker.process] {
        process.terminate();
        process.wait(SOON).await.expect("it ends");
    }
    let (logs, dump) = (world.logs() + &printed, dump(&world).await);
    let (store, messages) = (bytes_below(world.nats.store_dir()), messages(&world).await);

    // What is looked through is what it should be.
    let id = app.connection.to_string();
    assert!(logs.contains("TRACE") && logs.contains(&id), "the logs tell everything");
    assert!(dump.contains(&id) && dump.contains("k1:"), "the dump is one");
    assert!(holds(&store, &id) && holds(&messages, &id), "the store is the stream's");
    assert!(holds(&messages, "hello there"), "bodies rest as Slack sent them");

    for (name, secret) in secrets(&world, &app) {
        let secret = secret.as_str();
        assert!(secret.len() >= 16, "{name} is looked for by something that is no word");
        let line = logs.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{name} is in the logs");
        assert!(!dump.contains(secret), "{name} is in Postgres");
        assert!(!holds(&store, secret), "{name} is in the store of NATS");
        assert!(!holds(&messages, secret), "{name} is in a message of NATS");
    }
    // A code and a response_url come in bodies; nowhere else.
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
        for (name, secret) in secrets(&world, &app) {
            assert!(!page.contains(&secret), "{name} is a metric");
        }
        assert!(!page.contains(&id), "a connection is a metric");
    }
}
