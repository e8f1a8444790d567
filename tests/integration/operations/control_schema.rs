//! Behaviour of the control API as its description states, for generated requests.
//!
//! Schemathesis sends valid and invalid requests to each operation, alone and in sequences in which
//! one uses what another returned, and checks each response against the description.

use reqwest::Method;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tests::{
    control_api::Caller,
    fetch,
    process::Process,
    run_dir::RunDir,
    size::ci_or_full,
    test_env::{Size, TestEnv, agent_id},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };
/// Maximum time of a run.
const MAX_TIME: Duration = Duration::from_secs(180);

/// Organizations with an agent, a connection, a link code and a replay each. Several, because some
/// requests delete.
const ORGANIZATIONS: usize = 4;
/// Share of parameters that are ids of existing objects.
const EXISTING_SHARE: f32 = 0.7;

/// Returns the configuration: ids of objects, so that requests reach them.
async fn configuration(env: &TestEnv, caller: &Caller) -> String {
    let mut ids: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for _ in 0..ORGANIZATIONS {
        let app = env.declare().expect("applied");
        let code = json!({ "agent": agent_id().as_str() });
        let path = format!("/v1/organizations/{}/link-codes", app.org);
        let (_, code) = caller.post(&path, &code).await;
        let replay = json!({
            "connection": app.connection.to_string(),
            "from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z",
        });
        let (_, replay) = caller.post("/v1/replays", &replay).await;
        let person = json!({ "team": app.team, "user": "U1" });
        let (_, erasure) = caller.post("/v1/erasures/people", &person).await;
        let member = format!("/v1/organizations/{}/members/steve", app.org);
        caller.send(Method::PUT, &member, &json!({ "slack": [] })).await;
        for (name, value) in [
            ("organization", app.org.to_string()),
            ("connection", app.connection.to_string()),
            ("agent", agent_id().to_string()),
            ("team", app.team),
            ("channel", "C1".to_owned()),
            ("link_code", code["id"].as_str().expect("an id").to_owned()),
            ("replay", replay["id"].as_str().expect("an id").to_owned()),
            ("erasure", erasure["id"].as_str().expect("an id").to_owned()),
            ("member", "steve".to_owned()),
        ] {
            ids.entry(name).or_default().push(value);
        }
    }
    let mut text = String::new();
    for (name, values) in &ids {
        text += &format!("[dictionaries.{name}]\nvalues = {values:?}\n");
    }
    text += "[parameters]\n";
    for name in ids.keys() {
        for place in ["path", "query", "body"] {
            text += &format!(
                "\"{place}.{name}\" = {{ dictionary = \"{name}\", probability = {EXISTING_SHARE} }}\n"
            );
        }
    }
    text
}

/// Schemathesis finds no difference between responses and description, and tests every operation.
#[tokio::test]
async fn answers_as_described() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    env.set("TIDEGATE_API_KEY_MAX_RATE", "1000000");
    env.set("TIDEGATE_API_KEY_MAX_BURST", "1000000");
    env.start_control().await.expect("a control API");
    let caller = Caller::create(&env, "owner", None);
    let configuration = configuration(&env, &caller).await;
    let document = reqwest::get(caller.base.clone() + "/v1/openapi.json").await.expect("an answer");
    let document: Value = document.json().await.expect("JSON");
    let paths = document["paths"].as_object().expect("paths");
    let operations: usize =
        paths.values().map(|methods| methods.as_object().expect("methods").len()).sum();

    let run = Arc::new(RunDir::new("schemathesis").expect("a folder"));
    let found = fetch::schemathesis(&run).await.expect("Schemathesis");
    let file = run.path().join("schemathesis.toml");
    std::fs::write(&file, configuration).expect("written");
    let (file, examples) = (file.display().to_string(), ci_or_full(20, 400).to_string());
    let url = format!("{}/v1/openapi.json", caller.base);
    let key = format!("Authorization: Bearer {}", caller.key);
    let mut arguments = vec!["-B", "-m", "schemathesis.cli", "--config-file", &file, "run", &url];
    arguments.extend(["--header", &key, "--checks", "all", "--mode", "all", "--workers", "1"]);
    arguments.extend(["--max-examples", &examples, "--seed", "1", "--no-shrink", "--no-color"]);
    arguments.extend(["--continue-on-failure", "--generation-database", "none"]);
    // The machine may be busy.
    arguments.extend(["--suppress-health-check", "too_slow,filter_too_much"]);
    let envs = vec![
        ("PYTHONPATH".to_owned(), found.packages.display().to_string()),
        ("HOME".to_owned(), run.path().display().to_string()),
    ];
    let process = Process::start(&run, "schemathesis", &found.python, &arguments, &envs, None)
        .expect("it starts");
    let ended = process.wait(MAX_TIME * ci_or_full(1, 20)).await;
    let log = process.log();
    let ended = ended.unwrap_or_else(|error| panic!("{error:#}: {log}"));
    assert!(ended.success(), "{log}");
    let all = [format!("Selected: {operations}/{operations}"), format!("Tested: {operations}")];
    for line in all {
        assert!(log.contains(&line), "{line}: {log}");
    }
    assert!(!log.contains("Failures:") && !log.contains("Errors:"), "{log}");
}
