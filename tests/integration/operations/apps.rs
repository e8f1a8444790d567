//! Slack apps: declared with `tidegate apply`, shown without secrets, rotated with an overlap, and
//! deleted only on purpose.

use reqwest::{Method, StatusCode};
use serde_json::Value;
use tests::{
    control_api::Caller,
    eventually::eventually,
    test_env::{Size, TIMEOUT, TestEnv},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };

const FILE: &str = r#"
[[organization]]
id = "acme"

[[agent]]
organization = "acme"
id = "helper"
url = "https://helper.example/"
secret = "file:agent.secret"

[[app]]
id = "A1"
name = "Helper"
organization = "acme"
client_id = "1.2"
client_secret = "file:client.secret"
signing_secret = "file:signing.secret"
scopes = ["app_mentions:read", "chat:write"]
optional_scopes = ["files:read"]
redirect_url = "https://control.example/slack/oauth/callback"
return_urls = ["https://app.example/slack"]
agent = "helper"
contact = "support@acme.example"
"#;

const CONNECTION: &str = r#"
[[connection]]
organization = "acme"
app = "A1"
team = "T1"
"#;

fn write_secrets(env: &TestEnv) {
    for name in ["agent", "client", "signing"] {
        env.write(&format!("{name}.secret"), &format!("clear-{name}-secret")).expect("written");
    }
}

fn apply(env: &TestEnv, text: &str, args: &[&str]) -> (bool, String, String) {
    let file = env.write("tidegate.toml", text).expect("written");
    let file = file.to_str().expect("UTF-8");
    let ran = env.try_tidegate(&[&["apply", "-f", file], args].concat()).expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (ran.status.success(), text(ran.stdout), text(ran.stderr))
}

fn listed(env: &TestEnv) -> Vec<Value> {
    let printed = env.tidegate(&["apps", "list", "--json"]).expect("apps");
    printed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// An app is created once, shown without secrets, and keeps a replaced secret for a while.
#[tokio::test]
async fn rotates_secrets_of_app() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    write_secrets(&env);
    let (ok, plan, error) = apply(&env, FILE, &[]);
    assert!(ok && plan.contains("+ app A1\n    name: Helper\n"), "{plan}{error}");
    assert!(plan.contains("    client_secret: set\n") && !plan.contains("clear-"), "{plan}");
    let (ok, plan, _) = apply(&env, FILE, &[]);
    assert!(ok && plan.contains("changed: 0, unchanged: 3"), "{plan}");

    let apps = listed(&env);
    assert_eq!((&apps[0]["id"], &apps[0]["connections"]), (&"A1".into(), &0.into()), "{apps:?}");
    assert_eq!(apps[0]["client_secret_previous_until"], Value::Null);
    let id = "A1".parse().expect("an id");
    let secrets = async || {
        let app = env.store.app(&id).await.expect("Postgres").expect("the app");
        app.client_secrets.iter().map(|s| s.expose().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(secrets().await, ["clear-client-secret"]);

    env.write("client.secret", "clear-second-secret").expect("written");
    let (ok, plan, error) = apply(&env, FILE, &[]);
    assert!(ok && plan.contains("~ app A1\n    client_secret: changed\n"), "{plan}{error}");
    assert_eq!(secrets().await, ["clear-second-secret", "clear-client-secret"], "newest first");
    let shown = env.tidegate(&["apps", "show", "A1"]).expect("an app");
    assert!(!shown.contains("clear-") && !shown.contains("old client      -"), "{shown}");
    let expire = "update apps set client_secret_previous_until = now()";
    sqlx::query(expire).execute(&env.pool).await.expect("expired");
    assert_eq!(secrets().await, ["clear-second-secret"]);
    let log = env.tidegate(&["audit-log", "--json"]).expect("entries");
    assert!(log.contains("app.create") && log.contains("app.change"), "{log}");
    assert!(!log.contains("clear-") && !env.logs().contains("clear-"), "{log}");
}

/// An app with connections is deleted with `--prune --yes` only. A connection that a person
/// installed is declared by its app, and stays.
#[tokio::test]
async fn keeps_app_with_connections() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    write_secrets(&env);
    let (ok, plan, error) = apply(&env, &format!("{FILE}{CONNECTION}"), &[]);
    assert!(ok, "{plan}{error}");
    let id = env.store.connection_summaries(None).await.expect("a look")[0].id;
    let loaded = env.store.load_connection(id).await.expect("Postgres").expect("the connection");
    assert_eq!(loaded.signing_secret.expose(), "clear-signing-secret", "the secret of the app");

    let installed = "update connections set installed_by = 'U1'";
    sqlx::query(installed).execute(&env.pool).await.expect("installed");
    let (ok, plan, error) = apply(&env, FILE, &["--prune"]);
    assert!(ok && plan.contains("changed: 0"), "{plan}{error}");
    let without_app = FILE.split("[[app]]").next().expect("the rest");
    let (ok, plan, _) = apply(&env, without_app, &[]);
    assert!(ok && plan.contains("app A1: not in the file, unchanged"), "{plan}");
    for args in [&["--prune"][..], &["--prune", "--dry-run"]] {
        let (ok, _, error) = apply(&env, without_app, args);
        let named = "app A1 is not in the file and has connections";
        assert!(!ok && error.contains(named) && error.contains(&id.to_string()), "{error}");
        assert!(error.contains("pass --yes"), "{error}");
    }
    assert_eq!(listed(&env)[0]["connections"], 1, "rejected, and nothing applied");
    let (ok, plan, error) = apply(&env, without_app, &["--prune", "--yes"]);
    assert!(ok && plan.contains("- app A1\n") && plan.contains(&id.to_string()), "{plan}{error}");
    assert!(env.store.connection_summaries(None).await.expect("a look").is_empty());
    let none = env.try_tidegate(&["apps", "list"]).expect("it runs");
    assert_eq!(none.status.code(), Some(3), "no apps");
}

/// What is wrong with an app is named with its line and a remedy.
#[tokio::test]
async fn rejects_unusable_app() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    write_secrets(&env);
    for (old, new, expected) in [
        (
            "https://control.example/slack/oauth/callback",
            "https://control.example/",
            "redirect_url",
        ),
        ("https://control.example/", "http://control.example/", "redirect_url"),
        ("https://app.example/slack", "app.example", "malformed return URL"),
        ("agent = \"helper\"\ncontact", "agent = \"none\"\ncontact", "has no agent none"),
        ("\"chat:write\"]", "\"chat write\"]", "malformed scope"),
        ("client_id = \"1.2\"", "client_id = \"1 2\"", "malformed client_id"),
        (
            "organization = \"acme\"\nclient",
            "organization = \"b\"\nclient",
            "organization b is not",
        ),
    ] {
        let (ok, plan, error) = apply(&env, &FILE.replace(old, new), &[]);
        assert!(
            !ok && error.contains(expected) && error.contains("nothing applied"),
            "{plan}{error}"
        );
    }
    let other = CONNECTION.replace("A1", "A2");
    let (ok, _, error) = apply(&env, &format!("{FILE}{other}"), &[]);
    assert!(!ok && error.contains("declare the app as [[app]]"), "{error}");
}

/// An organization that an app is declared for is neither deleted nor partly erased.
#[tokio::test]
async fn keeps_organization_with_app() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    env.start_control().await.expect("a control API");
    write_secrets(&env);
    let (ok, plan, error) = apply(&env, &format!("{FILE}{CONNECTION}"), &[]);
    assert!(ok, "{plan}{error}");
    let erased = env.try_tidegate(&["erase", "organization", "acme", "--yes"]).expect("it runs");
    let error = String::from_utf8_lossy(&erased.stderr).into_owned();
    assert!(!erased.status.success() && error.contains("apps are declared for"), "{error}");
    assert_eq!(listed(&env)[0]["connections"], 1, "nothing is erased");
    let delete = "delete from connections";
    sqlx::query(delete).execute(&env.pool).await.expect("deleted");
    let owner = Caller::create(&env, "owner", None);
    let body = serde_json::json!({});
    let (status, why) = owner.send(Method::DELETE, "/v1/organizations/acme", &body).await;
    assert_eq!(status, StatusCode::CONFLICT, "{why}");
    let without_app = FILE.split("[[app]]").next().expect("the rest");
    assert!(apply(&env, without_app, &["--prune", "--yes"]).0, "the app is removed");
    env.tidegate(&["erase", "organization", "acme", "--yes"]).expect("erased");
}

/// A secret that is rotated again while its replaced one is removed keeps the new replaced one.
#[tokio::test]
async fn keeps_secret_of_later_rotation() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    write_secrets(&env);
    let (applied, _, errors) = apply(&env, FILE, &[]);
    assert!(applied, "{errors}");
    let expired = "update apps set signing_secret_previous = 'old',
                                   signing_secret_previous_until = now() - interval '1 s'";
    sqlx::query(expired).execute(&env.pool).await.expect("expired");
    let mut rotating = env.pool.begin().await.expect("a transaction");
    let rotate = "update apps set signing_secret_previous = 'fresh',
                                  signing_secret_previous_until = now() + interval '1 h'";
    sqlx::query(rotate).execute(&mut *rotating).await.expect("rotated");
    let commit = async {
        eventually("the removal waits for the row", TIMEOUT, async || {
            let waits = "select exists (select from pg_stat_activity
                          where wait_event_type = 'Lock' and query like '%app_signing_secrets%'
                            and datname = current_database())";
            let waits: bool = sqlx::query_scalar(waits).fetch_one(&env.pool).await.ok()?;
            waits.then_some(())
        })
        .await;
        rotating.commit().await.expect("committed");
    };
    let (removed, ()) = tokio::join!(env.store.expire_signing_secrets(), commit);
    assert_eq!(removed.expect("an answer"), 0);
    let kept: Option<String> = sqlx::query_scalar("select signing_secret_previous from apps")
        .fetch_one(&env.pool)
        .await
        .expect("an app");
    assert_eq!(kept.as_deref(), Some("fresh"));
}
