//! What a file declares is brought about, by `tidegate apply`: all of it or nothing, and in force when it says so.

use shared::{secrets::Secret, types::Status};
use tests::{
    slack::webhook::Webhook,
    world::{App, PAIR, Size, World},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };

/// A file that declares one of each; `{signing}` and the like are the names of files with secrets.
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

fn secrets(world: &World) {
    for name in ["agent", "signing", "token"] {
        world.write(&format!("{name}.secret"), &format!("clear-{name}-secret")).expect("written");
    }
}

fn apply(world: &World, text: &str, args: &[&str]) -> (bool, String, String) {
    let file = world.write("tidegate.toml", text).expect("written");
    let file = file.to_str().expect("UTF-8");
    let ran = world.try_tidegate(&[&["apply", "-f", file], args].concat()).expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (ran.status.success(), text(ran.stdout), text(ran.stderr))
}

#[tokio::test]
async fn what_is_declared_is_shown_as_a_diff_applied_once_and_pruned_only_when_told() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    secrets(&world);
    let all = async || world.store.connection_summaries(None).await.expect("a look");
    let (ok, plan, error) = apply(&world, FILE, &["--dry-run"]);
    assert!(ok && plan.ends_with("to change: 5, unchanged: 0\n"), "{plan}{error}");
    assert!(
        plan.contains("+ agent acme/helper\n") && plan.contains("    bot_token: set\n"),
        "{plan}"
    );
    assert!(!plan.contains("clear-"), "a plan tells no secrets: {plan}");
    assert_eq!(all().await.len(), 0, "a dry run changes nothing");

    let (ok, plan, error) = apply(&world, FILE, &[]);
    assert!(
        ok && plan.ends_with("changed: 5, unchanged: 0\napplied on every ingest\n"),
        "{plan}{error}"
    );
    let made = all().await;
    let [preview, team] = &made[..] else { panic!("{made:?}") };
    assert_eq!((preview.status, preview.preview_mode), (Status::Pending, true), "it has no token");
    assert_eq!(
        (team.status, team.agent.as_ref().map(|a| a.as_str())),
        (Status::Active, Some("helper"))
    );
    assert_eq!((preview.settings.welcome, preview.settings.surfaces.len()), (false, 1));

    let (ok, plan, _) = apply(&world, FILE, &[]);
    assert!(ok && plan == "changed: 0, unchanged: 5\napplied on every ingest\n", "{plan}");
    let again = all().await;
    assert_eq!(again[1].version, team.version, "applied again, nothing is written");

    // A new secret, an agent taken away, a setting: each is one line.
    world.write("signing.secret", "another-clear-signing-secret").expect("written");
    let changed =
        FILE.replace("agent = \"helper\"\napp", "app").replace("welcome = false", "welcome = true");
    let (ok, plan, _) = apply(&world, &changed, &[]);
    assert!(
        ok && plan.contains("    agent: helper → none\n    signing_secret: changed\n"),
        "{plan}"
    );
    assert!(plan.contains("    welcome: false → true\n"), "{plan}");
    let secrets: Vec<(bool,)> =
        sqlx::query_as("select signing_secret_previous is not null from connections")
            .fetch_all(&world.pool)
            .await
            .expect("rows");
    assert_eq!(secrets, [(true,), (true,)], "the secret before stays good for a while");

    // A revoked installation lives again with a new token, and only then.
    world.store.set_connection_status(team.id, Status::Revoked).await.expect("revoked");
    let (_, plan, _) = apply(&world, &changed, &[]);
    assert!(plan.starts_with("changed: 0"), "{plan}");
    let (_, error) = {
        let ran =
            world.try_tidegate(&["connections", "enable", &team.id.to_string()]).expect("it runs");
        (ran.status, String::from_utf8(ran.stderr).expect("text"))
    };
    assert!(error.contains("install the app again"), "{error}");
    world.write("token.secret", "another-clear-token-secret").expect("written");
    let (_, plan, _) = apply(&world, &changed, &[]);
    assert!(plan.contains("    bot_token: changed\n    status: revoked → active\n"), "{plan}");
    let found = world.store.hydrate_connection(team.id).await.expect("a look").expect("a row");
    assert_eq!(found.bot_token.as_ref().map(Secret::expose), Some("another-clear-token-secret"));

    // What is not in the file stays until told otherwise.
    let less = changed[..changed.rfind("[[connection]]").expect("two of them")].to_owned();
    let (_, plan, _) = apply(&world, &less, &[]);
    assert!(
        plan.contains(&format!(
            "  connection A1/preview ({}): not in the file, unchanged\n",
            preview.id
        )),
        "{plan}"
    );
    let (_, plan, _) = apply(&world, &less, &["--prune", "--dry-run"]);
    assert!(plan.contains("- connection A1/preview"), "{plan}");
    assert_eq!(all().await.len(), 2);
    let (ok, _, error) = apply(&world, "", &["--prune"]);
    assert!(ok, "{error}");
    assert_eq!(all().await.len(), 0);
    let left: i64 = sqlx::query_scalar(
        "select (select count(*) from organizations) + (select count(*) from agents) + (select count(*) from user_identities)",
    )
    .fetch_one(&world.pool)
    .await
    .expect("a count");
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_file_that_clashes_with_itself_or_with_what_is_there_changes_nothing_and_says_where() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    secrets(&world);
    let refused = async |text: &str, line: usize, says: &str| {
        let (ok, out, error) = apply(&world, text, &[]);
        let found = error.contains(&format!("tidegate.toml:{line}: ")) && error.contains(says);
        assert!(!ok && found && out.is_empty(), "{line} {says}: {out}{error}");
        assert!(error.ends_with("nothing applied\n"), "{error}");
        let count: i64 = sqlx::query_scalar("select count(*) from organizations")
            .fetch_one(&world.pool)
            .await
            .expect("a count");
        count
    };
    for (text, line, says) in [
        (FILE.replace("preview_mode", "preview"), 30, "unknown field `preview`"),
        (FILE.replace("preview_mode = true", "team = \"T1\""), 29, "in line 21 already"),
        (
            FILE.replace("file:token.secret", "env:TG_NO_SUCH_TOKEN"),
            25,
            "TG_NO_SUCH_TOKEN is not set",
        ),
        (FILE.replace("agent = \"helper\"", "agent = \"nobody\""), 21, "has no agent nobody"),
    ] {
        assert_eq!(refused(&text, line, says).await, 0);
    }
    apply(&world, FILE, &[]);
    // Another organization can't take over an installation, nor can an id be given to another.
    let other = FILE.replace("\"acme\"", "\"other\"");
    assert_eq!(refused(&other, 21, "belongs to organization acme").await, 1);
    let made = world.store.connection_summaries(None).await.expect("a look");
    let id = format!("team = \"T2\"\nid = \"{}\"", made[1].id);
    assert_eq!(
        refused(&FILE.replacen("team = \"T1\"", &id, 1), 21, "is of another installation").await,
        1
    );
    let fresh = "team = \"T1\"\nid = \"00ff00ff00ff00ff00ff00ff00ff00ff\"";
    assert_eq!(
        refused(&FILE.replacen("team = \"T1\"", fresh, 1), 21, "is there already, as").await,
        1
    );
    assert_eq!(refused(&FILE.replace("preview_mode = true", "pre = "), 30, "").await, 1);
}

#[tokio::test]
async fn what_is_declared_is_in_force_on_every_ingest_when_apply_returns() {
    let world = World::start(PAIR).await.expect("a world");
    let app = world.declare().expect("applied");
    let (code, status) =
        (world.mint_by_verb(&app, shared::types::Surface::Channel), async |app: &App, n: usize| {
            let webhook = Webhook::message(&world.slack, app, "C1", "U1", "hello");
            let url = world.ingests[n].url(app);
            world.slack.send(&url, &app.secret, &webhook).await.expect("an answer").status
        });
    for ingest in 0..2 {
        assert_eq!(status(&app, ingest).await, 200);
    }
    let code = code.expect("a code");
    let webhook =
        Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", &format!("link {code}"));
    world.send(&app, &webhook).await.expect("an answer");
    let said = world.slack.told("linked", |r| webhook.response_url.ends_with(&r.to)).await;
    assert!(said.text().starts_with("Linked."), "{}", said.text());
}
