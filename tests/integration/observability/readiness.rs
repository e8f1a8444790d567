//! Readiness of a process that can't work, although it runs and its servers answer.

use shared::secrets::KeyRing;
use tests::{
    eventually::eventually,
    keys::User,
    test_env::{Size, TIMEOUT, TestEnv},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };

/// Waits until `/readyz` answers 503 with a text.
async fn wait_for_obstacle(url: String, text: &str) {
    eventually(&format!("not ready: {text}"), TIMEOUT, async || {
        let answer = reqwest::get(&url).await.ok()?;
        let status = answer.status().as_u16();
        (status == 503 && answer.text().await.ok()?.contains(text)).then_some(())
    })
    .await;
}

async fn wait_until_ready(url: String) {
    eventually("ready", TIMEOUT, async || {
        reqwest::get(&url).await.ok()?.status().is_success().then_some(())
    })
    .await;
}

fn other_ring() -> String {
    KeyRing::generate("k1").expect("a ring")
}

/// A worker whose keyring opens no value of a column is not ready and names setting and column.
#[tokio::test]
async fn names_wrong_keyrings_of_worker() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    env.declare().expect("a connection with secret and token");
    for (setting, column) in [
        ("TIDEGATE_TOKEN_KEYRING", "connections.bot_token"),
        ("TIDEGATE_TOKEN_KEYRING", "agents.secret"),
        ("TIDEGATE_SIGNING_SECRET_KEYRING", "connections.signing_secret"),
    ] {
        let right = env.setting(setting).expect("a ring").to_owned();
        env.set(setting, &other_ring());
        env.start_worker().await.expect("a worker");
        let worker = env.workers.pop().expect("a worker");
        let text = format!("{setting} opens no value of {column}");
        wait_for_obstacle(worker.admin("/readyz"), &text).await;
        env.set(setting, &right);
    }
    env.start_worker().await.expect("a worker");
    wait_until_ready(env.workers[0].admin("/readyz")).await;
}

/// A worker that can't read the stream, as with another process's NATS user, is not ready and owns
/// no partition.
#[tokio::test]
async fn owns_nothing_without_stream() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    env.start_worker().await.expect("a worker");
    wait_until_ready(env.workers[0].admin("/readyz")).await;
    let seed = env.nats.keys().file(User::Operator).display().to_string();
    env.set("TIDEGATE_NATS_NKEY_FILE", &seed);
    env.start_worker().await.expect("a worker");
    let text = "failed to read stream SLACK_IN from NATS at 127.0.0.1:";
    wait_for_obstacle(env.workers[1].admin("/readyz"), text).await;
    let owned = async |n: usize| env.workers[n].metric("tidegate_worker_partitions_owned").await;
    eventually("the other worker has all partitions", TIMEOUT, async || {
        (owned(0).await.ok()? == 64.0 && owned(1).await.ok()? == 0.0).then_some(())
    })
    .await;
}

/// A worker on an older schema is not ready and names the command, and becomes ready after the
/// migration.
#[tokio::test]
async fn names_old_schema_of_worker() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    sqlx::query("update _sqlx_migrations set version = version - 1000")
        .execute(&env.pool)
        .await
        .expect("changed");
    env.start_worker().await.expect("a worker");
    wait_for_obstacle(env.workers[0].admin("/readyz"), "run tidegate migrate").await;
    sqlx::query("update _sqlx_migrations set version = version + 1000")
        .execute(&env.pool)
        .await
        .expect("changed");
    wait_until_ready(env.workers[0].admin("/readyz")).await;
}

/// An ingest with another process's NATS user or a wrong keyring is not ready and names the
/// setting.
#[tokio::test]
async fn names_obstacles_of_ingest() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    env.declare().expect("a connection");
    let seed = env.nats.keys().file(User::Worker).display().to_string();
    let right = env.nats.keys().file(User::Ingest).display().to_string();
    env.set("TIDEGATE_NATS_NKEY_FILE", &seed);
    let ingest = env.spawn_ingest().expect("an ingest");
    wait_for_obstacle(ingest.admin("/readyz"), "check that TIDEGATE_NATS_NKEY_FILE is ingest's")
        .await;
    drop(ingest);

    env.set("TIDEGATE_NATS_NKEY_FILE", &right);
    let ring = env.setting("TIDEGATE_SIGNING_SECRET_KEYRING").expect("a ring").to_owned();
    env.set("TIDEGATE_SIGNING_SECRET_KEYRING", &other_ring());
    let ingest = env.spawn_ingest().expect("an ingest");
    let text = "TIDEGATE_SIGNING_SECRET_KEYRING opens no signing secret of the directory";
    wait_for_obstacle(ingest.admin("/readyz"), text).await;
    drop(ingest);

    env.set("TIDEGATE_SIGNING_SECRET_KEYRING", &ring);
    env.start_ingest().await.expect("a ready ingest");
}

/// A control API that has never reached Postgres logs the reason.
#[tokio::test]
async fn logs_unreachable_postgres() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let nowhere = "postgres://tidegate_control@127.0.0.1:1/tidegate";
    env.set("TIDEGATE_POSTGRES_URL", nowhere);
    let control = env.spawn_control().expect("a control API");
    env.controls.push(control);
    env.wait_for_log("Postgres unreachable").await.expect("logged");
}
