//! Messages of the programs at their start and of the command line: they name the thing, its place
//! and the next step.

use std::{
    io,
    process::{Command, Output, Stdio},
};
use tests::{
    binaries::Binaries,
    eventually::eventually,
    keys::User,
    test_env::{Size, TIMEOUT, TestEnv},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };
const NOWHERE: [(&str, &str); 4] = [
    ("TIDEGATE_NATS_URL", "nats://user:hunter2@127.0.0.1:1"),
    ("TIDEGATE_POSTGRES_URL", "postgres://user:hunter2@127.0.0.1:1/none"),
    ("TIDEGATE_SIGNING_SECRET_KEYRING", "k1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
    ("TIDEGATE_TOKEN_KEYRING", "k1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
];

fn tidegate(args: &[&str]) -> Output {
    let mut command = Command::new(&Binaries::get().expect("binaries").tidegate);
    command.args(args).env_clear().envs(NOWHERE).output().expect("it runs")
}

fn stderr(ran: &Output) -> String {
    String::from_utf8(ran.stderr.clone()).expect("text")
}

/// `--help` into a closed pipe, as in `tidegate connections --help | head -1`, exits with 0 and
/// prints no error.
#[test]
fn prints_help_to_closed_pipe() {
    let binaries = Binaries::get().expect("binaries");
    let programs = [&binaries.ingest, &binaries.worker, &binaries.control, &binaries.tidegate];
    for program in programs {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        let ran = Command::new(program).arg("--help").stdout(Stdio::from(writer)).output();
        let ran = ran.expect("it runs");
        assert_eq!((ran.status.code(), stderr(&ran)), (Some(0), String::new()), "{program:?}");
    }
}

/// A closed standard error does not end a command.
#[test]
fn survives_closed_standard_error() {
    let (reader, writer) = io::pipe().expect("a pipe");
    drop(reader);
    let ran = Command::new(&Binaries::get().expect("binaries").tidegate)
        .args(["manifest", "--socket-mode"])
        .stderr(Stdio::from(writer))
        .output()
        .expect("it runs");
    let manifest: Result<serde_json::Value, _> = serde_json::from_slice(&ran.stdout);
    assert!(ran.status.success() && manifest.is_ok(), "{ran:?}");
}

/// A command without a subcommand prints its help and exits with 64.
#[test]
fn shows_help_for_bare_commands() {
    for args in [&[][..], &["connections"], &["dead-letters"]] {
        let ran = tidegate(args);
        let help = stderr(&ran);
        assert!(help.contains("Usage: tidegate") && help.contains("Commands:"), "{args:?} {help}");
        assert_eq!(ran.status.code(), Some(64), "{args:?}");
    }
}

/// An error names the wrong argument with the help of the invoked command, in one line.
#[test]
fn names_wrong_arguments() {
    for (args, expected) in [
        (&["agents", "show"][..], "argument <AGENT> is missing: Agent, as <organization>/<agent>"),
        (&["dead-letters", "show", "x"], "<ID> is malformed (invalid digit found in string): "),
        (
            &["deliveries", "list", "--connection", "abc"],
            "--connection is malformed (a connection id must be 32 lower-case hex digits): \
             Only select conversations of this connection",
        ),
        (&["conections"], "unrecognized subcommand 'conections'; similar: connections; "),
        (&["partitions", "--jsn"], "unexpected argument '--jsn' found; similar: --json; "),
    ] {
        let ran = tidegate(args);
        let error = stderr(&ran);
        assert!(error.starts_with(expected), "{args:?}: {error}");
        assert_eq!((ran.status.code(), error.lines().count()), (Some(64), 1), "{error}");
    }
}

/// An error names the address of an unreachable server and its setting in one line, without the
/// password.
#[test]
fn names_unreachable_servers() {
    for (args, expected, setting) in [
        (&["agents", "list"][..], "failed to connect to Postgres at 127.0.0.1:1", "POSTGRES_URL"),
        (&["migrate", "schema"], "failed to connect to Postgres at 127.0.0.1:1", "POSTGRES_URL"),
        (&["tail"], "failed to connect to NATS at 127.0.0.1:1", "TIDEGATE_NATS_URL"),
        (&["migrate", "stream"], "failed to connect to NATS at 127.0.0.1:1", "TIDEGATE_NATS_URL"),
    ] {
        let ran = tidegate(args);
        let error = stderr(&ran);
        assert!(error.contains(expected) && error.contains(setting), "{args:?}: {error}");
        assert_eq!((ran.status.code(), error.lines().count()), (Some(1), 1), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

/// A missing table is reported once, with `tidegate migrate` as the remedy and without a source
/// line.
#[tokio::test(flavor = "multi_thread")]
async fn names_next_command() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    sqlx::query("alter table agents rename to elsewhere")
        .execute(&env.pool)
        .await
        .expect("renamed");
    let ran = env.try_tidegate(&["agents", "list"]).expect("it runs");
    let error = stderr(&ran);
    assert!(error.contains("run tidegate migrate"), "{error}");
    assert_eq!(error.matches("does not exist").count(), 1, "{error}");
    assert!(!error.contains("at line"), "{error}");
}

/// A list without rows prints no table and exits with 3.
#[tokio::test(flavor = "multi_thread")]
async fn reports_empty_lists() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    for list in [
        &["agents", "list"][..],
        &["api-keys", "list"],
        &["apps", "list"],
        &["audit-log"],
        &["connections", "list"],
        &["dead-letters", "list"],
        &["deliveries", "list"],
        &["link-codes", "list"],
        &["outbox", "failures", "list"],
        &["replays", "list"],
    ] {
        let ran = env.try_tidegate(list).expect("it runs");
        assert_eq!((ran.status.code(), &ran.stdout[..]), (Some(3), &b""[..]), "{list:?}: {ran:?}");
    }
}

/// Without NATS `connections disable` changes Postgres, reports that ingests do not know it yet,
/// and fails.
#[tokio::test(flavor = "multi_thread")]
async fn reports_disable_without_nats() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let app = env.declare().expect("a connection");
    env.nats.kill();
    let id = app.connection.to_string();
    let ran = env.try_tidegate(&["connections", "disable", &id]).expect("it runs");
    let error = stderr(&ran);
    let expected = format!("connection {id} is disabled in Postgres, but not on every ingest");
    assert!(error.starts_with(&expected) && error.contains(&env.nats.url()[7..]), "{error}");
    assert_eq!(ran.status.code(), Some(1), "{error}");
    let status: String = sqlx::query_scalar("select status from connections where id = $1")
        .bind(&id)
        .fetch_one(&env.pool)
        .await
        .expect("a connection");
    assert_eq!(status, "stopped");
}

/// A process with a wrong address or key of NATS logs the address and the setting.
#[tokio::test]
async fn logs_unreachable_nats() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let stranger = nkeys::KeyPair::new_user().seed().expect("a seed");
    let stranger = env.write("stranger.seed", &stranger).expect("written").display().to_string();
    let (ours, nats) = (env.nats.keys().file(User::Ingest).display().to_string(), env.nats.url());
    for (url, seed) in [("nats://127.0.0.1:1".to_owned(), ours), (nats, stranger)] {
        env.set("TIDEGATE_NATS_URL", &url);
        env.set("TIDEGATE_NATS_NKEY_FILE", &seed);
        let ingest = env.spawn_ingest().expect("an ingest");
        eventually(&format!("the log names {url}"), TIMEOUT, async || {
            let log = ingest.process.log();
            let mut failures =
                log.lines().filter(|line| line.contains("failed to connect to NATS"));
            let names = |line: &str| line.contains(&url[7..]) && line.contains("TIDEGATE_NATS_URL");
            failures.any(names).then_some(())
        })
        .await;
    }
}

/// A worker that claims 64 partitions logs fewer than 20 lines.
#[tokio::test]
async fn logs_few_lines_at_worker_start() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    env.start_worker().await.expect("a worker");
    let worker = &env.workers[0];
    eventually("all partitions are owned", TIMEOUT, async || {
        (worker.metric("tidegate_worker_partitions_owned").await.ok()? == 64.0).then_some(())
    })
    .await;
    let log = worker.process.log();
    assert!(log.contains("partitions claimed") && log.lines().count() < 20, "{log}");
}
