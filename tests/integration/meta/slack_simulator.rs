//! Program `slack`, the simulated Slack for developers: it reports what Slack would.

use serde_json::Value;
use std::process::{Command, Output};
use tests::test_env::{App, SMALL, TestEnv};

async fn run_slack(url: String, app: &App, args: &'static [&'static str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slack"));
    command.args(["--url", &url, "--app", &app.app, "--team", &app.team, "--json"]).args(args);
    command.env("SLACK_SIGNING_SECRET", &app.secret);
    let run = tokio::task::spawn_blocking(move || command.output());
    run.await.expect("it is waited for").expect("it runs")
}

fn json(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"))
}

/// The simulator's scenario, load and single webhooks are satisfied by ingest's answers.
#[tokio::test]
async fn accepts_answers_of_ingest() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let url = env.ingests[0].url(&app);
    let scenario = run_slack(url.clone(), &app, &["scenario"]).await;
    let lines = json(&scenario);
    let lines = lines.as_array().expect("lines");
    let wrong: Vec<&Value> = lines.iter().filter(|line| line["satisfied"] != true).collect();
    assert!(wrong.is_empty() && scenario.status.success(), "{wrong:#?}");
    assert!(
        lines.len() > tests::shapes::all().len() + 4,
        "a webhook of each kind, a copy and forgeries: {}",
        lines.len()
    );
    let load = run_slack(url.clone(), &app, &["load", "--rate", "50", "--seconds", "2"]).await;
    assert!(load.status.success(), "{}", json(&load));
    assert_eq!(json(&load)["sent"], 100);
    let send = run_slack(url, &app, &["send", "--command", "/lobu help"]).await;
    assert_eq!(json(&send)[0]["status"], 200);
}

/// The simulator fails and reports `connection_failed` if nothing listens at the URL.
#[tokio::test]
async fn reports_missing_gateway() {
    let env = TestEnv::without_processes(SMALL).await.expect("servers");
    let app = env.connect().await.expect("a connection");
    let sent = run_slack("http://127.0.0.1:1/".into(), &app, &["send"]).await;
    assert!(!sent.status.success());
    assert_eq!(json(&sent)[0]["wrong"], "connection_failed");
}
