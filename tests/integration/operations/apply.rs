//! Declarations in a file, applied by `tidegate apply`: all or nothing, and in force on every
//! ingest once it returns.

use shared::{domain::ConnectionStatus, secrets::Secret};
use tests::{
    eventually::eventually,
    slack::{tokens::Installation, webhook::Webhook},
    test_env::{App, PAIR, Size, TIMEOUT, TestEnv, actor},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };

/// File with an object of each kind, whose secrets are in other files.
const FILE: &str = r#"
[[organization]]
id = "acme"
name = "Acme"

[[member]]
organization = "acme"
user = "steve"
slack = ["T1/U1"]

[[agent]]
organization = "acme"
id = "helper"
name = "Helper"
url = "https://helper.example/"
secret = "file:agent.secret"

[[connection]]
organization = "acme"
agent = "helper"
app = "A1"
team = "T1"
bot_user = "UBOT"
signing_secret = "file:signing.secret"
bot_token = "file:token.secret"

[[connection]]
organization = "acme"
app = "A1"
preview_mode = true
signing_secret = "file:signing.secret"
settings = { surfaces = ["dm"], welcome = false }
"#;

fn write_secrets(env: &TestEnv) {
    for (name, start) in [("agent", ""), ("signing", ""), ("token", "xoxb-")] {
        let text = format!("{start}clear-{name}-secret");
        env.write(&format!("{name}.secret"), &text).expect("written");
    }
}

fn apply(env: &TestEnv, text: &str, args: &[&str]) -> (bool, String, String) {
    let file = env.write("tidegate.toml", text).expect("written");
    let file = file.to_str().expect("UTF-8");
    let ran = env.try_tidegate(&[&["apply", "-f", file], args].concat()).expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (ran.status.success(), text(ran.stdout), text(ran.stderr))
}

/// With `--check-tokens`, a token that Slack rejects or that is of another app or workspace prevents
/// the application.
#[tokio::test(flavor = "multi_thread")] // the simulated Slack answers while the command runs
async fn checks_tokens() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    write_secrets(&env);
    let (ok, _, error) = apply(&env, FILE, &["--check-tokens"]);
    assert!(!ok && error.contains("Slack rejects the bot_token (invalid_auth)"), "{error}");
    let line = FILE.lines().position(|line| line == "app = \"A1\"").expect("a connection") + 1;
    assert!(error.contains(&format!("tidegate.toml:{line}: ")), "{error}");
    for (app, team, user, wrong) in [
        ("A2", "T1", "UBOT", "app A2"),
        ("A1", "T2", "UBOT", "T2"),
        ("A1", "T1", "UOTHER", "bot_user UOTHER"),
    ] {
        env.slack.install("xoxb-clear-token-secret", Installation::new(app, team, user));
        let (ok, _, error) = apply(&env, FILE, &["--check-tokens"]);
        let why = format!("the bot_token belongs to {wrong}\nnothing applied\n");
        assert!(!ok && error.ends_with(&why), "{error}");
    }
    assert_eq!(env.store.connection_summaries(None).await.expect("a look").len(), 0);
    env.slack.install("xoxb-clear-token-secret", Installation::new("A1", "T1", "UBOT"));
    let (ok, plan, error) = apply(&env, FILE, &["--check-tokens"]);
    assert!(ok && plan.ends_with("applied on every ingest\n"), "{plan}{error}");
}

/// A dry run shows the diff, a second run changes nothing, and rows are deleted only with
/// `--prune`.
#[tokio::test]
async fn applies_diff_once() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    write_secrets(&env);
    let all = async || env.store.connection_summaries(None).await.expect("a look");
    let (ok, plan, error) = apply(&env, FILE, &["--dry-run"]);
    assert!(ok && plan.ends_with("to change: 5, unchanged: 0\n"), "{plan}{error}");
    assert!(
        plan.contains("+ agent acme/helper\n") && plan.contains("    bot_token: set\n"),
        "{plan}"
    );
    assert!(!plan.contains("clear-"), "a plan shows no secrets: {plan}");
    assert_eq!(plan.matches(" (new id)\n").count(), 2, "the next run chooses the ids: {plan}");
    assert_eq!(all().await.len(), 0, "a dry run changes nothing");

    let (ok, plan, error) = apply(&env, FILE, &[]);
    assert!(
        ok && plan.ends_with("changed: 5, unchanged: 0\napplied on every ingest\n"),
        "{plan}{error}"
    );
    let made = all().await;
    let [preview, team] = &made[..] else { panic!("{made:?}") };
    assert_eq!(
        (preview.status, preview.preview_mode),
        (ConnectionStatus::Pending, true),
        "it has no token"
    );
    assert_eq!(
        (team.status, team.agent.as_ref().map(|a| a.as_str())),
        (ConnectionStatus::Active, Some("helper"))
    );
    assert_eq!((preview.settings.welcome, preview.settings.surfaces.len()), (false, 1));

    let (ok, plan, _) = apply(&env, FILE, &[]);
    assert!(ok && plan == "changed: 0, unchanged: 5\napplied on every ingest\n", "{plan}");
    let again = all().await;
    assert_eq!(again[1].version, team.version, "the second run writes nothing");

    // A new secret, a removed agent and a setting: each is one line.
    env.write("signing.secret", "another-clear-signing-secret").expect("written");
    let changed =
        FILE.replace("agent = \"helper\"\napp", "app").replace("welcome = false", "welcome = true");
    let (ok, plan, _) = apply(&env, &changed, &[]);
    assert!(
        ok && plan.contains("    agent: helper → none\n    signing_secret: changed\n"),
        "{plan}"
    );
    assert!(plan.contains("    welcome: false → true\n"), "{plan}");
    let secrets: Vec<(bool,)> =
        sqlx::query_as("select signing_secret_previous is not null from connections")
            .fetch_all(&env.pool)
            .await
            .expect("rows");
    assert_eq!(secrets, [(true,), (true,)], "the previous secret stays valid for a while");

    // A revoked installation becomes active with a new token only.
    let revoked = ConnectionStatus::Revoked;
    env.store.set_connection_status(&actor(), team.id, revoked).await.expect("revoked");
    let (_, plan, _) = apply(&env, &changed, &[]);
    assert!(plan.starts_with("changed: 0"), "{plan}");
    // Disabling must not hide that the connection is revoked.
    for verb in ["disable", "enable"] {
        let id = team.id.to_string();
        let ran = env.try_tidegate(&["connections", verb, &id]).expect("it runs");
        let error = String::from_utf8(ran.stderr).expect("text");
        assert!(error.contains("install the app again"), "{verb}: {error}");
    }
    env.write("token.secret", "xoxb-another-clear-token-secret").expect("written");
    let (_, plan, _) = apply(&env, &changed, &[]);
    assert!(plan.contains("    bot_token: changed\n    status: revoked → active\n"), "{plan}");
    let found = env.store.load_connection(team.id).await.expect("a look").expect("a row");
    let token = found.bot_token.as_ref().map(Secret::expose);
    assert_eq!(token, Some("xoxb-another-clear-token-secret"));

    // Rows that the file does not name stay, unless `--prune` is set.
    let less = changed[..changed.rfind("[[connection]]").expect("two of them")].to_owned();
    let (_, plan, _) = apply(&env, &less, &[]);
    assert!(
        plan.contains(&format!(
            "  connection A1/preview ({}): not in the file, unchanged\n",
            preview.id
        )),
        "{plan}"
    );
    let (_, plan, _) = apply(&env, &less, &["--prune", "--dry-run"]);
    assert!(plan.contains("- connection A1/preview"), "{plan}");
    assert_eq!(all().await.len(), 2);
    let (ok, _, error) = apply(&env, "", &["--prune"]);
    assert!(!ok && error.contains("pass --yes to do it"), "{error}");
    assert_eq!(all().await.len(), 2);
    let (ok, _, error) = apply(&env, "", &["--prune", "--yes"]);
    assert!(ok, "{error}");
    assert_eq!(all().await.len(), 0);
    let left: i64 = sqlx::query_scalar(
        "select (select count(*) from organizations) + (select count(*) from agents) + (select count(*) from user_identities)",
    )
    .fetch_one(&env.pool)
    .await
    .expect("a count");
    assert_eq!(left, 0);
}

/// Conflicts within the file or with existing rows change nothing and are reported with their line.
#[tokio::test]
async fn rejects_conflicting_file() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    write_secrets(&env);
    let refused = async |text: &str, line: usize, expected: &str| {
        let (ok, out, error) = apply(&env, text, &[]);
        let found = error.contains(&format!("tidegate.toml:{line}: ")) && error.contains(expected);
        assert!(!ok && found && out.is_empty(), "{line} {expected}: {out}{error}");
        assert!(error.ends_with("nothing applied\n"), "{error}");
        let count: i64 = sqlx::query_scalar("select count(*) from organizations")
            .fetch_one(&env.pool)
            .await
            .expect("a count");
        count
    };
    for (text, line, expected) in [
        (FILE.replace("preview_mode", "preview"), 30, "unknown field `preview`"),
        (FILE.replace("preview_mode = true", "team = \"T1\""), 29, "in line 21 already"),
        (
            FILE.replace("file:token.secret", "env:TG_NO_SUCH_TOKEN"),
            25,
            "TG_NO_SUCH_TOKEN is not set",
        ),
        (FILE.replace("agent = \"helper\"", "agent = \"nobody\""), 21, "has no agent nobody"),
    ] {
        assert_eq!(refused(&text, line, expected).await, 0);
    }
    apply(&env, FILE, &[]);
    // Another organization can't take over an installation, and an id can't be assigned to another
    // one.
    let other = FILE.replace("\"acme\"", "\"other\"");
    assert_eq!(refused(&other, 21, "belongs to organization acme").await, 1);
    let made = env.store.connection_summaries(None).await.expect("a look");
    let id = format!("team = \"T2\"\nid = \"{}\"", made[1].id);
    assert_eq!(
        refused(&FILE.replacen("team = \"T1\"", &id, 1), 21, "belongs to another installation")
            .await,
        1
    );
    let fresh = "team = \"T1\"\nid = \"00ff00ff00ff00ff00ff00ff00ff00ff\"";
    assert_eq!(
        refused(&FILE.replacen("team = \"T1\"", fresh, 1), 21, "already exists as").await,
        1
    );
    assert_eq!(refused(&FILE.replace("preview_mode = true", "pre = "), 30, "").await, 1);
}

/// A change is in force on every ingest when the command returns.
#[tokio::test]
async fn waits_for_every_ingest() {
    let env = TestEnv::start(PAIR).await.expect("a test environment");
    let app = env.declare().expect("applied");
    let (code, status) = (
        env.create_link_code_by_cli(&app, shared::domain::Surface::Channel),
        async |app: &App, n: usize| {
            let webhook = Webhook::message(&env.slack, app, "C1", "U1", "hello");
            let url = env.ingests[n].url(app);
            env.slack.send(&url, &app.secret, &webhook).await.expect("an answer").status
        },
    );
    for ingest in 0..2 {
        assert_eq!(status(&app, ingest).await, 200);
    }
    let code = code.expect("a code");
    let webhook = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", &format!("link {code}"));
    env.send(&app, &webhook).await.expect("an answer");
    let reply = env
        .slack
        .wait_for_receipt("the reply to the link code", |r| webhook.response_url.ends_with(&r.to))
        .await;
    assert!(reply.text().starts_with("Linked."), "{}", reply.text());
}

/// A change that commits while the file is applied is compared with the file, not undone.
#[tokio::test(flavor = "multi_thread")]
async fn keeps_revocation_beside_it() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    write_secrets(&env);
    assert!(apply(&env, FILE, &[]).0);
    let mut revocation = env.pool.begin().await.expect("a transaction");
    let revoke = "update connections set status = 'revoked', status_reason = 'removed'
                   where team_id = 'T1'";
    sqlx::query(revoke).execute(&mut *revocation).await.expect("revoked");
    let changed = FILE.replace("bot_user = \"UBOT\"", "bot_user = \"UOTHER\"");
    let file = env.write("changed.toml", &changed).expect("written");
    let args = ["apply", "-f", file.to_str().expect("UTF-8")];
    let commit = async {
        let waits = "select exists (select from pg_stat_activity
                      where datname = current_database() and wait_event_type = 'Lock')";
        eventually("the file waits for the revocation", TIMEOUT, async || {
            let waits: bool = sqlx::query_scalar(waits).fetch_one(&env.pool).await.ok()?;
            waits.then_some(())
        })
        .await;
        revocation.commit().await.expect("committed");
    };
    let (applied, ()) = tokio::join!(env.run_tidegate(&args), commit);
    applied.expect("applied");
    let row = "select status, bot_user_id from connections where team_id = 'T1'";
    let row: (String, String) = sqlx::query_as(row).fetch_one(&env.pool).await.expect("a row");
    assert_eq!(row, ("revoked".into(), "UOTHER".into()));
}
