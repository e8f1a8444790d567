//! `tidegate apply` by the control API, with the same effects as by database.

use reqwest::StatusCode;
use serde_json::json;
use std::{path::PathBuf, process::Command};
use tests::{
    binaries::Binaries,
    control_api::Caller,
    test_env::{Size, TestEnv},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };

/// File with an object of each kind.
const FILE: &str = r#"
[[organization]]
id = "acme"
name = "Acme"

[[member]]
organization = "acme"
user = "steve"
slack = ["T1/U1", "T2/U2"]

[[agent]]
organization = "acme"
id = "helper"
name = "Helper"
url = "https://helper.example/"
secret = "file:agent.secret"
max_concurrent = 3

[[app]]
id = "A1"
organization = "acme"
client_id = "1.2"
client_secret = "file:client.secret"
signing_secret = "file:signing.secret"
scopes = ["chat:write"]
redirect_url = "https://control.example/slack/oauth/callback"

[[connection]]
organization = "acme"
agent = "helper"
app = "A1"
team = "T1"
bot_token = "file:token.secret"

[[connection]]
organization = "acme"
app = "A2"
team = "T2"
signing_secret = "file:signing.secret"
settings = { surfaces = ["dm"], welcome = false }

[notifications]
url = "https://backend.example/"
secret = "file:agent.secret"
"#;

/// Deployment with a control API, and a key of all organizations.
struct Deployment {
    env: TestEnv,
    key: PathBuf,
}

impl Deployment {
    async fn start() -> Self {
        let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
        env.start_control().await.expect("a control API");
        for (name, secret) in [
            ("agent", "clear-agent-secret"),
            ("client", "clear-client-secret"),
            ("signing", "clear-signing-secret"),
            ("token", "xoxb-clear-token-secret"),
        ] {
            env.write(&format!("{name}.secret"), secret).expect("written");
        }
        let caller = Caller::create(&env, "owner", None);
        let key = env.write("api.key", &caller.key).expect("written");
        Self { env, key }
    }

    /// Applies a file by database or by the API. Returns success, output and errors.
    fn apply(&self, by_api: bool, text: &str, args: &[&str]) -> (bool, String, String) {
        let file = self.env.write("tidegate.toml", text).expect("written");
        let file = file.to_str().expect("UTF-8");
        let ran = if by_api {
            // Without database and keyrings.
            let mut command = Command::new(&Binaries::get().expect("binaries").tidegate);
            command.env_clear().args([
                "apply",
                "-f",
                file,
                "--api",
                &self.env.controls[0].path(""),
            ]);
            command.args(["--api-key", &format!("file:{}", self.key.display())]).args(args);
            command.output().expect("it runs")
        } else {
            self.env.try_tidegate(&[&["apply", "-f", file], args].concat()).expect("it runs")
        };
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (ran.status.success(), text(ran.stdout), text(ran.stderr))
    }

    /// Returns the declared rows, without random ids, versions, times and nonces.
    async fn state(&self) -> Vec<String> {
        let mut state = Vec::new();
        for sql in [
            "select (to_jsonb(t) - 'created_at')::text from organizations t order by 1",
            "select (to_jsonb(t) - 'created_at')::text from organization_members t order by 1",
            "select (to_jsonb(t) - 'created_at')::text from user_identities t order by 1",
            "select (to_jsonb(t) - 'secret' - 'created_at' - 'updated_at')::text from agents t order by 1",
            "select (to_jsonb(t) - 'client_secret' - 'client_secret_previous' - 'client_secret_previous_until'
                     - 'signing_secret' - 'signing_secret_previous' - 'signing_secret_previous_until'
                     - 'version' - 'created_at' - 'updated_at')::text from apps t order by 1",
            "select (to_jsonb(t) - 'id' - 'version' - 'signing_secret' - 'signing_secret_previous'
                     - 'signing_secret_previous_until' - 'bot_token' - 'created_at' - 'updated_at'
                     - 'installed_at')::text from connections t order by app_id",
            "select (to_jsonb(t) - 'secret' - 'updated_at')::text from notification_endpoint t order by 1",
            "select action || ' ' || coalesce(org_id, '') || ' ' || coalesce(after::text, '')
               from audit_log where actor like 'api-key:%' or actor like 'operator:%'
                and action not like 'api_key.%' order by id",
        ] {
            let rows = sqlx::query_scalar(sql).fetch_all(&self.env.pool).await;
            state.extend(rows.unwrap_or_else(|error| panic!("{sql}: {error}")));
        }
        for connection in self.env.store.connection_summaries(None).await.expect("Postgres") {
            let found = self.env.store.load_connection(connection.id).await.expect("Postgres");
            let found = found.expect("a row");
            let token = found.bot_token.map(|token| token.expose().to_owned());
            state.push(format!("{} {token:?}", found.signing_secret.expose()));
        }
        state
    }
}

/// The API and the database have the same state, plan, refusals and audit log after each step:
/// creation, a repeated file, changes, and `--prune` with and without `--yes`.
#[tokio::test]
async fn matches_api_and_database() {
    let changed =
        FILE.replace("max_concurrent = 3", "max_concurrent = 4").replace("T2/U2", "T3/U3");
    let less = changed[..changed.rfind("[[connection]]").expect("two of them")].to_owned();
    let without_app = less.split("[[app]]").next().expect("the rest").to_owned();
    let wrong = FILE.replace("agent = \"helper\"", "agent = \"nobody\"");
    let misspelt = FILE.replace("bot_token", "bot_tokens");
    let steps: [(&str, &[&str]); 11] = [
        (FILE, &["--dry-run"]),
        (FILE, &[]),
        (FILE, &[]),
        (&wrong, &[]),
        (&misspelt, &[]),
        (&changed, &[]),
        (&less, &["--prune", "--dry-run"]),
        (&less, &["--prune"]),
        (&less, &["--prune", "--yes"]),
        (&without_app, &["--prune", "--dry-run"]),
        ("", &["--prune", "--yes"]),
    ];
    let mut of_both = Vec::new();
    for by_api in [false, true] {
        let deployment = Deployment::start().await;
        let mut seen = Vec::new();
        for (text, args) in steps {
            let (ok, printed, error) = deployment.apply(by_api, text, args);
            assert!(!printed.contains("clear-") && !error.contains("clear-"), "{printed}{error}");
            // Connections have random ids, in parentheses.
            let without_ids = |text: &str| {
                let words = text.split(' ').filter(|word| !word.contains("(") && word.len() < 32);
                words.collect::<Vec<_>>().join(" ")
            };
            let file = deployment.env.write("tidegate.toml", text).expect("written");
            let error = error.replace(file.to_str().expect("UTF-8"), "tidegate.toml");
            seen.push((ok, without_ids(&printed), without_ids(&error), deployment.state().await));
        }
        assert!(!deployment.env.logs().contains("clear-"), "no secret is in a log");
        let succeeded: Vec<bool> = seen.iter().map(|(ok, ..)| *ok).collect();
        let refused = [3, 4, 7, 9];
        assert!((0..11).all(|n| succeeded[n] != refused.contains(&n)), "{seen:#?}");
        of_both.push(seen);
    }
    for (n, (database, api)) in of_both[0].iter().zip(&of_both[1]).enumerate() {
        assert_eq!(database, api, "step {n}");
    }
}

/// Declarations are for keys of all organizations, and a large file for these alone.
#[tokio::test]
async fn rejects_key_of_organization() {
    let deployment = Deployment::start().await;
    assert!(deployment.apply(false, FILE, &[]).0);
    let before = deployment.state().await;
    let empty = json!({ "file": "", "prune": true, "confirmed": true });
    let large = json!({ "file": format!("#{}", "x".repeat(100 * 1024)) });
    let key = |role, org| Caller::create(&deployment.env, role, org);
    for (caller, body, status) in [
        (key("owner", Some("acme")), &empty, StatusCode::FORBIDDEN),
        (key("operator", None), &empty, StatusCode::FORBIDDEN),
        (key("owner", Some("acme")), &large, StatusCode::PAYLOAD_TOO_LARGE),
        (key("owner", None), &large, StatusCode::OK),
    ] {
        let (answered, text) = caller.post("/v1/declarations", body).await;
        assert_eq!(answered, status, "{text}");
    }
    let huge = json!({ "file": "x".repeat(1024 * 1024) });
    let (status, _) = key("owner", None).post("/v1/declarations", &huge).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(deployment.state().await, before, "nothing changed");
}
