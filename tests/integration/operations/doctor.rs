//! Findings of `tidegate doctor`, with their remedies.

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use std::{
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
    process::Command,
};
use tests::{
    eventually::eventually,
    test_env::{SMALL, Size, TIMEOUT, TestEnv},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: true };

/// Runs `tidegate doctor`. Returns whether it has no problem except missing processes, and all
/// findings. Blocks the thread.
fn run_doctor(env: &TestEnv, args: &[&str]) -> (bool, Vec<Value>) {
    let ran = env.try_tidegate(&[&["doctor", "--json"], args].concat()).expect("it runs");
    let out = String::from_utf8(ran.stdout).expect("text");
    let found: Vec<Value> =
        out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let is_problem = |finding: &&Value| finding["level"] == "problem";
    assert_eq!(ran.status.success(), !found.iter().any(|f| is_problem(&f)), "{found:?}");
    // Most of these tests need no process.
    let ok = !found.iter().filter(is_problem).any(|f| f["component"] != "processes");
    (ok, found)
}

fn failed_findings(found: &[Value]) -> Vec<String> {
    let bad = found.iter().filter(|f| f["level"] == "problem" && f["component"] != "processes");
    bad.map(|f| {
        assert_ne!(f["remedy"], "", "{f}");
        format!(
            "{}: {}",
            f["component"].as_str().expect("text"),
            f["summary"].as_str().expect("text")
        )
    })
    .collect()
}

/// `doctor` has no finding for a healthy deployment, and one for a slash command that is sent to
/// another address.
#[tokio::test(flavor = "multi_thread")]
async fn finds_wrong_command_url() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.declare().expect("applied");
    let (ok, found) = run_doctor(&env, &[]);
    assert!(ok && failed_findings(&found).is_empty(), "{found:?}");
    for component in ["postgres", "nats", "directory"] {
        assert!(
            found.iter().any(|f| f["component"] == component && f["level"] == "good"),
            "{component}: {found:?}"
        );
    }
    let id = app.connection.to_string();
    let reached = ["--base-url", "https://gw.example.com", "--connection", &id];
    let manifest = env.tidegate(&[&["manifest"], &reached[..]].concat()).expect("a manifest");
    let file = env.write("app.json", &manifest).expect("written");
    let look = [&["--manifest", file.to_str().expect("UTF-8")], &reached[..]].concat();
    let (ok, found) = run_doctor(&env, &look);
    assert!(ok, "the generated manifest has a finding: {found:?}");
    let right = format!("\"url\": \"https://gw.example.com/api/v1/webhooks/{id}\"");
    assert!(manifest.contains(&right), "{manifest}");
    env.write(
        "app.json",
        &manifest.replace(&right, "\"url\": \"https://old.example.com/slack/events\""),
    )
    .expect("written");
    let (ok, found) = run_doctor(&env, &look);
    let bad = failed_findings(&found);
    assert!(!ok && bad.len() == 1, "{bad:?}");
    assert!(
        bad[0]
            .starts_with("app: slash command /lobu: sent to https://old.example.com/slack/events"),
        "{bad:?}"
    );
}

/// `doctor` finds a connection whose token is of another app or workspace: ingest would drop its
/// webhooks.
#[tokio::test(flavor = "multi_thread")]
async fn finds_connection_of_other_app() {
    let size = Size { ingests: 0, workers: 0, own_postgres: false };
    let mut env = TestEnv::without_processes(size).await.expect("servers");
    env.declare().expect("a connection as Slack knows it");
    let about_slack = |found: &[Value], level: &str| {
        let about = found.iter().filter(|f| f["component"] == "slack" && f["level"] == level);
        about.map(|f| f["summary"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    let (ok, found) = run_doctor(&env, &[]);
    let good = "app and workspace are those of the token: 1 connections";
    assert!(ok && about_slack(&found, "good") == [good], "{found:?}");

    let other_app = |file: String| file.replace("app = \"A", "app = \"A9");
    let other_team = |file: String| file.replace("team = \"T", "team = \"T9");
    let other_app = env.declare_as(other_app).expect("declared for another app");
    let other_team = env.declare_as(other_team).expect("declared for another workspace");
    let (ok, found) = run_doctor(&env, &[]);
    let bad = failed_findings(&found);
    assert!(!ok && bad.len() == 2, "{found:?}");
    for (app, what, declared, actual) in [
        (&other_app, "app", format!("A9{}", &other_app.app[1..]), &other_app.app),
        (&other_team, "team", format!("T9{}", &other_team.team[1..]), &other_team.team),
    ] {
        let id = app.connection;
        let expected = format!(
            "slack: connection {id} is declared for {what} {declared}, and its token is of {what} {actual}"
        );
        assert!(bad.iter().any(|bad| bad.starts_with(&expected)), "{expected}: {bad:?}");
    }

    env.set("TIDEGATE_SLACK_API_URL", "http://127.0.0.1:1/api/");
    let (ok, found) = run_doctor(&env, &[]);
    let warned = about_slack(&found, "warning");
    assert!(ok && warned.len() == 1, "{found:?}");
    assert!(warned[0].starts_with("failed to compare connections with their tokens"), "{warned:?}");
    env.set("TIDEGATE_SLACK_API_URL", "http://slack.example.com/api/");
    let (ok, found) = run_doctor(&env, &[]);
    assert!(
        !ok && failed_findings(&found)[0].contains("tokens are sent by https only"),
        "{found:?}"
    );
}

/// `doctor` finds an outdated directory, a missing schema, and unavailable servers.
#[tokio::test(flavor = "multi_thread")]
async fn finds_outages_and_old_data() {
    let env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let app = env.declare().expect("applied");
    sqlx::query("update connections set preview_mode = true")
        .execute(&env.pool)
        .await
        .expect("changed");
    let (ok, found) = run_doctor(&env, &[]);
    let old = failed_findings(&found);
    assert!(!ok && old.len() == 1 && old[0].contains(&app.connection.to_string()), "{old:?}");
    assert!(old[0].starts_with("directory: entries older than Postgres: 1 ("), "{old:?}");

    sqlx::query("update _sqlx_migrations set success = false")
        .execute(&env.pool)
        .await
        .expect("changed");
    let (_, found) = run_doctor(&env, &[]);
    assert!(failed_findings(&found)[0].starts_with("postgres: schema is missing"), "{found:?}");
    env.postgres.kill();
    let (ok, found) = run_doctor(&env, &[]);
    assert!(
        !ok && failed_findings(&found)[0].starts_with("postgres: failed to connect: "),
        "{found:?}"
    );
    env.nats.kill();
    let (ok, found) = run_doctor(&env, &[]);
    assert!(
        !ok && failed_findings(&found)
            .iter()
            .any(|b| b.starts_with("nats: failed to connect to 127.0.0.1:")),
        "{found:?}"
    );
}

/// Runs openssl in a folder.
fn openssl(folder: &Path, args: &str) {
    let ran = Command::new("openssl").args(args.split(' ')).current_dir(folder).output();
    let ran = ran.expect("openssl is installed");
    assert!(ran.status.success(), "{args}: {}", String::from_utf8_lossy(&ran.stderr));
}

/// Gives Postgres a certificate for `localhost`, and returns the folder with its authority `ca.crt`
/// and another one, `other.crt`.
async fn enable_tls(env: &TestEnv) -> PathBuf {
    let folder = env.folder("tls").expect("a folder");
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for ca in ["ca", "other"] {
        openssl(&folder, &format!("req -x509 {key} -keyout {ca}.key -out {ca}.crt -subj /CN={ca}"));
    }
    openssl(&folder, &format!("req {key} -keyout tls.key -out tls.csr -subj /CN=postgres"));
    std::fs::write(folder.join("names"), "subjectAltName=DNS:localhost").expect("written");
    let sign = "x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile names";
    openssl(&folder, &format!("{sign} -out tls.crt"));
    let url = env.postgres.url("postgres");
    let mut superuser = PgConnection::connect(&url).await.expect("a connection");
    let data: String =
        sqlx::query_scalar("show data_directory").fetch_one(&mut superuser).await.expect("a path");
    let owner = std::fs::metadata(data).expect("a folder").uid();
    chown(folder.join("tls.key"), Some(owner), Some(owner)).expect("another owner");
    for (setting, value) in [
        ("ssl_cert_file", folder.join("tls.crt").display().to_string()),
        ("ssl_key_file", folder.join("tls.key").display().to_string()),
        ("ssl", "on".into()),
    ] {
        let set = format!("alter system set {setting} = '{value}'");
        superuser.execute(AssertSqlSafe(set)).await.expect("set");
    }
    superuser.execute("select pg_reload_conf()").await.expect("reloaded");
    eventually("Postgres offers TLS", TIMEOUT, async || {
        let mut connection = PgConnection::connect(&url).await.ok()?;
        let ssl: String = sqlx::query_scalar("show ssl").fetch_one(&mut connection).await.ok()?;
        (ssl == "on").then_some(())
    })
    .await;
    folder
}

/// The certificate of Postgres is verified if the URL asks for it or the host is not this machine:
/// another authority or host name is a finding.
#[tokio::test(flavor = "multi_thread")]
async fn verifies_certificate_of_postgres() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let folder = enable_tls(&env).await;
    let database: String =
        sqlx::query_scalar("select current_database()").fetch_one(&env.pool).await.expect("one");
    let url = env.postgres.url_as("tidegate_operator", &database);
    let url = url.replace("?sslmode=disable", "");
    let by_name = url.replace("127.0.0.1", "localhost");
    let verified = format!("{by_name}?sslmode=verify-full");
    for (url, authority, level, summary) in [
        (&verified, "ca.crt", "good", "TLS certificate is verified"),
        (&by_name, "ca.crt", "", ""),
        (&format!("{url}?sslmode=disable"), "ca.crt", "", ""),
        // an unknown authority, and another host than the certificate names
        (&verified, "other.crt", "problem", "failed to connect: "),
        (&format!("{url}?sslmode=verify-full"), "ca.crt", "problem", "failed to connect: "),
    ] {
        env.set("TIDEGATE_POSTGRES_URL", url);
        let file = folder.join(authority).display().to_string();
        env.set("TIDEGATE_POSTGRES_CA_FILE", &file);
        let (ok, found) = run_doctor(&env, &[]);
        let about = |finding: &&Value| {
            let summary = finding["summary"].as_str().unwrap_or_default();
            finding["component"] == "postgres"
                && (summary.contains("TLS") || summary.contains("connect"))
        };
        let finding = found.iter().find(about);
        assert_eq!(finding.is_none(), summary.is_empty(), "{url}: {found:?}");
        if let Some(finding) = finding {
            assert_eq!(finding["level"], level, "{url}: {finding}");
            assert!(finding["summary"].as_str().expect("text").starts_with(summary), "{finding}");
        }
        assert_eq!(ok, level != "problem", "{url}: {found:?}");
    }
}

/// Starts a proxy that replaces Content-Length by Transfer-Encoding. Returns its port.
async fn start_chunking_proxy(target: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n{}") {
                assert_ne!(near.read_buf(&mut request).await.expect("a request"), 0);
            }
            let text = String::from_utf8(request).expect("text").to_lowercase();
            let text = text.replace("content-length: 2", "transfer-encoding: chunked");
            let text =
                text.replace("\r\n\r\n{}", "\r\nconnection: close\r\n\r\n2\r\n{}\r\n0\r\n\r\n");
            let mut far = TcpStream::connect(&target).await.expect("ingest");
            far.write_all(text.as_bytes()).await.expect("sent");
            tokio::io::copy(&mut far, &mut near).await.expect("a response");
        }
    });
    port
}

/// A proxy that sends bodies in chunks makes ingest refuse every webhook of Slack.
#[tokio::test(flavor = "multi_thread")]
async fn probes_public_url() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.declare().expect("applied");
    let address = env.ingests[0].path("").trim_start_matches("http://").to_owned();
    let direct = address.rsplit(':').next().expect("a port").parse().expect("a port");
    let chunking = start_chunking_proxy(address).await;
    let id = app.connection.to_string();
    for (port, connection, level, summary) in [
        (direct, &id, "good", "reaches ingest unchanged"),
        (chunking, &id, "problem", "gets bodies in chunks"),
        (direct, &"0".repeat(32), "problem", "answers 404"),
        (1, &id, "problem", "does not answer within 3 s"),
    ] {
        let base = format!("http://localhost:{port}");
        let args = ["--probe", "--base-url", &base, "--connection", connection];
        let (_, found) = run_doctor(&env, &args);
        let edge = found.iter().find(|finding| finding["component"] == "edge");
        let edge = edge.expect("a finding about the edge");
        assert_eq!(edge["level"], level, "{edge}");
        assert!(edge["summary"].as_str().expect("text").contains(summary), "{edge}");
    }
}
