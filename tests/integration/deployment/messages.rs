//! Messages of the programs at start and of the command line: they name the thing, where it is, and
//! what to do next.

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

/// As in `tidegate connections --help | head -1`.
#[test]
fn help_survives_closed_pipe() {
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

#[test]
fn bare_commands_show_help() {
    for args in [&[][..], &["connections"], &["dead-letters"]] {
        let ran = tidegate(args);
        let help = stderr(&ran);
        assert!(help.contains("Usage: tidegate") && help.contains("Commands:"), "{args:?} {help}");
        assert_eq!(ran.status.code(), Some(64), "{args:?}");
    }
}

/// The argument is named with the help of the invoked command, not of another one.
#[test]
fn names_wrong_arguments() {
    for (args, says) in [
        (&["agents", "show"][..], "argument <AGENT> is missing: Agent, as <organization>/<agent>"),
        (&["dead-letters", "show", "x"], "<ID> is malformed (invalid digit found in string): "),
        (
            &["deliveries", "list", "--connection", "abc"],
            "--connection is malformed (a connection id must be 32 lower-case hex digits): \
             Only select conversations of this connection",
        ),
        (&["conections"], "unrecognized subcommand 'conections'; a similar one is connections; "),
        (&["partitions", "--jsn"], "unexpected argument '--jsn' found; a similar one is --json; "),
    ] {
        let ran = tidegate(args);
        let said = stderr(&ran);
        assert!(said.starts_with(says), "{args:?}: {said}");
        assert_eq!((ran.status.code(), said.lines().count()), (Some(64), 1), "{said}");
    }
}

#[test]
fn names_unreachable_servers() {
    for (args, says, setting) in [
        (&["agents", "list"][..], "failed to connect to Postgres at 127.0.0.1:1", "POSTGRES_URL"),
        (&["migrate", "schema"], "failed to connect to Postgres at 127.0.0.1:1", "POSTGRES_URL"),
        (&["tail"], "failed to connect to NATS at 127.0.0.1:1", "TIDEGATE_NATS_URL"),
        (&["migrate", "stream"], "failed to connect to NATS at 127.0.0.1:1", "TIDEGATE_NATS_URL"),
    ] {
        let ran = tidegate(args);
        let said = stderr(&ran);
        assert!(said.contains(says) && said.contains(setting), "{args:?}: {said}");
        assert_eq!((ran.status.code(), said.lines().count()), (Some(1), 1), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

/// A failure of Postgres is said once, with the next command, and without a line of its source.
#[tokio::test(flavor = "multi_thread")]
async fn names_next_command() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    sqlx::query("alter table agents rename to elsewhere")
        .execute(&env.pool)
        .await
        .expect("renamed");
    let ran = env.try_tidegate(&["agents", "list"]).expect("it runs");
    let said = stderr(&ran);
    assert!(said.contains("run tidegate migrate"), "{said}");
    assert_eq!(said.matches("does not exist").count(), 1, "{said}");
    assert!(!said.contains("at line"), "{said}");
}

/// NATS is away: the emergency command changes Postgres, and says how far it came.
#[tokio::test(flavor = "multi_thread")]
async fn disable_without_nats_says_so() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let app = env.declare().expect("a connection");
    env.nats.kill();
    let id = app.connection.to_string();
    let ran = env.try_tidegate(&["connections", "disable", &id]).expect("it runs");
    let said = stderr(&ran);
    let says = format!("connection {id} is disabled in Postgres, but not on every ingest");
    assert!(said.starts_with(&says) && said.contains(&env.nats.url()[7..]), "{said}");
    assert_eq!(ran.status.code(), Some(1), "{said}");
    let status: String = sqlx::query_scalar("select status from connections where id = $1")
        .bind(&id)
        .fetch_one(&env.pool)
        .await
        .expect("a connection");
    assert_eq!(status, "stopped");
}

/// A process whose NATS is wrong names address and settings in its log.
#[tokio::test]
async fn log_names_unreachable_nats() {
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

/// 64 partitions are one line.
#[tokio::test]
async fn start_of_worker_has_few_lines() {
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
