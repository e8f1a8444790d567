//! Consumers of NATS, of which a server allows a bounded number for a stream: commands leave none,
//! so that neither many commands nor a long file keep others from NATS.
//!
//! With `TIDEGATE_FULL_SIZE` 200 commands run in a row, and a file declares 10,000 connections.

use shared::stream::{DIRECTORY_BUCKET, INGESTS_BUCKET, STREAM};
use std::{
    fmt::Write as _,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};
use tests::{
    size::ci_or_full,
    test_env::{SMALL, Size, TestEnv, agent_id},
};

/// One ingest without a worker, whose readers are consumers.
const INGEST_ONLY: Size = Size { workers: 0, ..SMALL };

/// Returns the number of consumers of the webhooks and of the directory.
async fn consumers(env: &TestEnv) -> usize {
    let mut all = 0;
    for bucket in [None, Some(DIRECTORY_BUCKET), Some(INGESTS_BUCKET)] {
        let name = bucket.map_or_else(|| STREAM.to_owned(), |bucket| format!("KV_{bucket}"));
        let stream = env.jetstream().get_stream(name).await.expect("the stream");
        all += stream.cached_info().state.consumer_count;
    }
    all
}

/// Writes a file that declares connections. Returns its path.
fn declarations(env: &TestEnv, connections: usize) -> String {
    let mut text = format!(
        r#"
[[organization]]
id = "acme"
name = "Example"

[[agent]]
organization = "acme"
id = "{}"
name = "Sample agent"
url = "{}"
secret = "file:acme.agent"
"#,
        agent_id(),
        env.agent.url()
    );
    for n in 0..connections {
        let connection = format!(
            r#"
[[connection]]
organization = "acme"
app = "A{n:08}"
team = "T{n:08}"
bot_user = "U{n:08}"
signing_secret = "file:acme.signing"
bot_token = "file:acme.token"
"#
        );
        text.write_str(&connection).expect("a string grows");
    }
    let file = env.write("acme.toml", &text).expect("a file");
    file.to_str().expect("a path in UTF-8").to_owned()
}

/// Many commands and large files leave no consumer of NATS, and use at most one at a time.
#[tokio::test(flavor = "multi_thread")]
async fn leaves_none_after_commands() {
    let (commands, connections) = ci_or_full((20, 300), (200, 10_000));
    // More deletions than a server allows consumers.
    let deleted = ci_or_full(100, 1_100);
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    for (name, text) in [
        ("acme.agent", "a secret of the agent, long enough"),
        ("acme.signing", "0123456789abcdef0123456789abcdef"),
        ("acme.token", "xoxb-1-2-0123456789abcdef"),
    ] {
        env.write(name, text).expect("a file");
    }
    let before = consumers(&env).await;
    let (most, done) = (AtomicUsize::new(before), AtomicBool::new(false));
    let watch = async {
        while !done.load(Ordering::Relaxed) {
            most.fetch_max(consumers(&env).await, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let run = async {
        let run = async |args: &[&str]| {
            let began = Instant::now();
            env.run_tidegate(args).await.unwrap_or_else(|error| panic!("{args:?}: {error:#}"));
            began.elapsed()
        };
        let mut took = Duration::ZERO;
        for _ in 0..commands {
            took += run(&["partitions"]).await;
        }
        println!("{commands} times tidegate partitions: {took:?}");
        let file = declarations(&env, connections);
        println!("tidegate apply of {connections}: {:?}", run(&["apply", "-f", &file]).await);
        let file = declarations(&env, connections - deleted);
        let took = run(&["apply", "-f", &file, "--prune", "--yes"]).await;
        println!("tidegate apply --prune of {deleted}: {took:?}");
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(watch, run);
    let most = most.into_inner();
    assert!(most <= before + 1, "{most} consumers at once, {before} before");
    let left: i64 = sqlx::query_scalar("select count(*) from connections")
        .fetch_one(&env.pool)
        .await
        .expect("a count");
    assert_eq!(left, (connections - deleted) as i64);
}
