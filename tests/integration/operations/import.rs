//! Import of the installations of a Bolt app.

use serde_json::{Value, json};
use std::process::Output;
use tests::{
    eventually::eventually,
    slack::{tokens::Installation, webhook::Webhook},
    test_env::{App, SMALL, TIMEOUT, TestEnv},
};

/// Returns the report of each row.
fn reports(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn outcomes(reports: &[Value]) -> Vec<&str> {
    reports.iter().map(|report| report["outcome"].as_str().expect("an outcome")).collect()
}

/// Installations of Bolt for JavaScript and Python become connections that answer at once, each
/// reported by row. A second import leaves these alone and imports rows that were corrected.
// The simulated Slack answers while the command runs.
#[tokio::test(flavor = "multi_thread")]
async fn imports_installations_of_bolt() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let own = env.declare().expect("an organization with an agent");
    env.write("import.signing", "signing-of-import").expect("written");
    let installation = |token: &str, team: &str| {
        env.slack.install(token, Installation::new("A77", team, "UBOT77"));
    };
    installation("xoxb-js", "T771");
    installation("xoxb-py", "T772");
    installation("xoxb-other", "T999");
    let javascript = |team: &str, token: &str| {
        json!({
            "team": { "id": team, "name": "x" }, "appId": "A77", "tokenType": "bot",
            "isEnterpriseInstall": false, "authVersion": "v2", "user": { "id": "U1" },
            "bot": { "scopes": ["chat:write"], "token": token, "userId": "UBOT77", "id": "B77" },
        })
    };
    let rows = |last: &str| {
        json!([
            javascript("T771", "xoxb-js"),
            { "team_id": "T772", "bot_token": "xoxb-py", "bot_scopes": ["chat:write"],
              "is_enterprise_install": false, "installed_at": 1700000000.5 },
            javascript("T773", "xoxb-revoked"),
            javascript("T774", last),
            { "team_id": "T775", "bot_token": null },
        ])
    };
    let file = env.write("installations.json", &rows("xoxb-other").to_string()).expect("written");
    let path = file.to_str().expect("a path in UTF-8");
    let secret = format!("file:{}", file.with_file_name("import.signing").display());
    let mut args = vec!["connections", "import", path, "--org", own.org.as_str(), "--app", "A77"];
    args.extend(["--agent", "sample", "--signing-secret", &secret, "--json"]);
    let agent = tests::test_env::agent_id();
    let at = args.iter().position(|arg| *arg == "sample").expect("the agent");
    args[at] = agent.as_str();
    let import = |more: &[&str]| {
        let output = env.try_tidegate(&[&args[..], more].concat()).expect("it runs");
        assert!(!String::from_utf8_lossy(&output.stdout).contains("xoxb-"), "no token is printed");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("xoxb-"), "no token is printed");
        output
    };
    let dry = import(&["--dry-run"]);
    let expected = ["created", "created", "failed", "failed", "failed"];
    assert_eq!(outcomes(&reports(&dry)), expected, "{}", String::from_utf8_lossy(&dry.stdout));
    assert_eq!(dry.status.code(), Some(1));
    let connections = async || {
        let count = sqlx::query_scalar("select count(*) from connections where app_id = 'A77'");
        count.fetch_one(&env.pool).await.expect("a count")
    };
    let stored: i64 = connections().await;
    assert_eq!(stored, 0, "nothing is stored");

    let first = import(&[]);
    let found = reports(&first);
    assert_eq!(outcomes(&found), expected);
    assert_eq!(found[2]["note"], "Slack rejects the token: invalid_auth");
    assert_eq!(found[3]["note"], "the token belongs to another workspace");
    assert_eq!((&found[4]["row"], &found[4]["note"]), (&json!("5"), &json!("no bot token")));
    for (n, team) in [(0, "T771"), (1, "T772")] {
        let app = App {
            connection: found[n]["connection"].as_str().expect("an id").parse().expect("an id"),
            secret: "signing-of-import".into(),
            app: "A77".into(),
            team: team.into(),
            bot_user: "UBOT77".into(),
            ..own.clone()
        };
        let hello = Webhook::message(&env.slack, &app, "D1", "U1", "hello");
        assert_eq!(env.send(&app, &hello).await.expect("an answer").status, 200);
        eventually("the agent's answer is sent", TIMEOUT, async || {
            (!env.slack.messages(team, "D1").is_empty()).then_some(())
        })
        .await;
    }

    installation("xoxb-mended", "T774");
    env.write("installations.json", &rows("xoxb-mended").to_string()).expect("written");
    let calls = env.slack.calls_of("auth.test").len();
    let second = import(&[]);
    let expected = ["unchanged", "unchanged", "failed", "created", "failed"];
    assert_eq!(outcomes(&reports(&second)), expected);
    assert_eq!(env.slack.calls_of("auth.test").len() - calls, 2, "only for the new ones");
    let stored: i64 = connections().await;
    assert_eq!(stored, 3);
    let created = "select count(*) from audit_log where action = 'connection.create'
                      and after::text like '%UBOT77%'";
    let created: i64 = sqlx::query_scalar(created).fetch_one(&env.pool).await.expect("a count");
    assert_eq!(created, 3, "each is in the audit log");
}
