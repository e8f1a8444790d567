//! Webhooks of several apps on the shared route and on routes of connections: each reaches the
//! connection of its app and workspace, verified with the secrets of that app.

use async_nats::jetstream;
use futures_util::StreamExt;
use serde_json::{Value, json};
use shared::{
    directory::{ConnectionRecord, DirectoryEntry, TeamEntry},
    domain::{ConnectionId, ConnectionStatus},
    stream::{DIRECTORY_BUCKET, STREAM},
};
use std::{collections::BTreeMap, time::Duration};
use tests::{
    eventually::eventually,
    size::ci_or_full,
    slack::webhook::Webhook,
    test_env::{Size, TIMEOUT, TestEnv},
};

const SERVERS: Size = Size { ingests: 1, workers: 0, own_postgres: false };
/// Maximum time for the directory to reach an ingest, with 100,000 connections.
const LOADED_WITHIN: Duration = Duration::from_secs(300);

/// Apps, workspaces of each, webhooks of all, and requests at once.
struct Extent {
    apps: usize,
    teams: usize,
    webhooks: usize,
    at_once: usize,
}

fn extent() -> Extent {
    ci_or_full(
        Extent { apps: 8, teams: 20, webhooks: 2_000, at_once: 16 },
        Extent { apps: 100, teams: 1_000, webhooks: 1_000_000, at_once: 64 },
    )
}

fn app_id(n: usize) -> String {
    format!("A{n:04}MANY")
}

fn signing_secret(n: usize) -> String {
    format!("signing-secret-of-app-{n:04}")
}

/// Returns the id of the connection of an app in a workspace. Each workspace has all apps.
fn connection(app: usize, team: usize) -> ConnectionId {
    format!("{:016x}{:016x}", app + 1, team + 1).parse().expect("an id")
}

/// Declares apps by the command line.
fn declare(env: &TestEnv, apps: std::ops::Range<usize>, secret: impl Fn(usize) -> String) -> bool {
    let mut file = String::new();
    for n in apps {
        env.write(&format!("{n}.signing"), &secret(n)).expect("written");
        env.write(&format!("{n}.client"), &format!("client-secret-{n}")).expect("written");
        file += &format!(
            "[[app]]\nid = \"{}\"\nclient_id = \"1.{n}\"\nclient_secret = \"file:{n}.client\"\n\
             signing_secret = \"file:{n}.signing\"\nscopes = [\"chat:write\"]\n\
             redirect_url = \"https://control.example/slack/oauth/callback\"\n",
            app_id(n)
        );
    }
    let file = env.write("apps.toml", &file).expect("written");
    let args = ["apply", "--prune", "--yes", "-f", file.to_str().expect("UTF-8")];
    env.try_tidegate(&args).expect("it runs").status.success()
}

/// Writes the directory entries of connections that have no secrets of their own.
async fn write_entries(env: &TestEnv, extent: &Extent) {
    let js = jetstream::new(env.client().clone());
    let mut last = None;
    for app in 0..extent.apps {
        for team in 0..extent.teams {
            let record = ConnectionRecord {
                version: 1,
                status: ConnectionStatus::Active,
                app: app_id(app).parse().expect("an id"),
                enterprise: None,
                team: format!("T{team:06}").parse().ok(),
                preview_mode: false,
                signing_secrets: Vec::new(),
            };
            let id = connection(app, team);
            let routed = TeamEntry { version: 1, connection: Some(id) };
            let routed = serde_json::to_vec(&routed).expect("JSON");
            let entry = DirectoryEntry::Known(record.clone());
            let entry = serde_json::to_vec(&entry).expect("JSON");
            for (key, value) in [(record.team_key(), routed), (id.to_string(), entry)] {
                let subject = format!("$KV.{DIRECTORY_BUCKET}.{key}");
                last = Some(js.publish(subject, value.into()).await.expect("it is sent"));
            }
        }
    }
    last.expect("an entry").await.expect("stored");
    let all = (extent.apps * extent.teams) as f64;
    eventually("the directory is loaded", LOADED_WITHIN, async || {
        let loaded = env.ingests[0].metric("tidegate_ingest_connections").await.ok()?;
        (loaded >= all).then_some(())
    })
    .await;
}

/// Returns the n-th webhook: every tenth is a shortcut, which names no app, and the others are
/// events.
fn webhook(env: &TestEnv, n: usize, app: usize, team: usize) -> Webhook {
    let (id, team) = (connection(app, team).to_string(), format!("T{team:06}"));
    match n % 10 {
        0 => tests::fixtures::webhook(
            "interaction",
            &json!({ "_payload": {
                "type": "shortcut", "token": "x", "action_ts": format!("{n}.1"),
                "team": { "id": team, "domain": "d" }, "user": { "id": "U1", "team_id": team },
                "is_enterprise_install": false, "enterprise": null, "callback_id": id,
                "trigger_id": format!("{n}.{app}.a"),
            }}),
        ),
        _ => {
            let app = tests::test_env::App {
                connection: connection(app, 0),
                org: "any".parse().expect("an id"),
                secret: String::new(),
                token: String::new(),
                app: app_id(app),
                team,
                bot_user: "UBOT".into(),
            };
            let ts = format!("1700000000.{n:06}");
            let message = json!({
                "type": "message", "channel": "C1", "user": "U1", "text": id, "ts": ts,
            });
            Webhook::event(&env.slack, &app, "a message", message)
        }
    }
}

/// Returns the connection that a body names in its text or callback.
fn meant(body: &[u8]) -> Option<String> {
    let form = form_urlencoded::parse(body).find(|(name, _)| name == "payload");
    let payload = form.map(|(_, value)| value.into_owned().into_bytes());
    let body: Value = serde_json::from_slice(payload.as_deref().unwrap_or(body)).ok()?;
    body["event"]["text"].as_str().or(body["callback_id"].as_str()).map(str::to_owned)
}

/// Webhooks of many apps and workspaces on the shared route are each stored for the connection that
/// they name.
#[tokio::test]
async fn routes_many_apps_apart() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    env.start_ingest().await.expect("an ingest");
    let extent = extent();
    assert!(declare(&env, 0..extent.apps, signing_secret), "apps are declared");
    write_entries(&env, &extent).await;
    let sending = futures_util::stream::iter(0..extent.webhooks).map(|n| {
        let (env, app) = (&env, n % extent.apps);
        let team = (n / extent.apps) % extent.teams;
        async move {
            let webhook = webhook(env, n, app, team);
            let url = env.ingests[0].path("/slack/events");
            let answer = env.slack.send(&url, &signing_secret(app), &webhook).await;
            assert_eq!(answer.expect("an answer").status, 200);
        }
    });
    sending.buffer_unordered(extent.at_once).collect::<Vec<()>>().await;
    assert_eq!(env.stored().await.expect("a count"), extent.webhooks as u64);

    let js = jetstream::new(env.client().clone());
    let stream = js.get_stream(STREAM).await.expect("the stream");
    let reads = futures_util::stream::iter(1..=extent.webhooks as u64).map(|sequence| {
        let stream = &stream;
        async move { stream.get_raw_message(sequence).await.expect("a message") }
    });
    let mut reads = reads.buffer_unordered(64);
    let mut of_connections: BTreeMap<String, usize> = BTreeMap::new();
    while let Some(message) = reads.next().await {
        let (_, routed) = message.subject.rsplit_once('.').expect("a subject");
        assert_eq!(meant(&message.payload).as_deref(), Some(routed), "misrouted");
        *of_connections.entry(routed.to_owned()).or_default() += 1;
    }
    let all = (extent.apps * extent.teams).min(extent.webhooks);
    assert_eq!(of_connections.len(), all, "each connection has webhooks");
}

/// The secret of one app verifies no webhook that names another, on both routes. Both secrets of an
/// app verify during a rotation.
#[tokio::test]
async fn verifies_by_named_app() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    env.start_ingest().await.expect("an ingest");
    let shared = env.ingests[0].path("/slack/events");
    let send = async |url: &str, secret: &str, webhook: &Webhook| {
        env.slack.send(url, secret, webhook).await.expect("an answer").status
    };
    let first = webhook(&env, 1, 0, 0);
    assert_eq!(send(&shared, &signing_secret(0), &first).await, 401, "the app is not declared");
    assert!(declare(&env, 0..2, signing_secret), "apps are declared");
    write_entries(&env, &Extent { apps: 2, teams: 1, webhooks: 0, at_once: 1 }).await;
    assert_eq!(send(&shared, &signing_secret(0), &first).await, 200);
    assert_eq!(send(&shared, &signing_secret(1), &first).await, 401, "the secret of another app");
    let shortcut = webhook(&env, 10, 1, 0);
    assert_eq!(send(&shared, &signing_secret(1), &shortcut).await, 200, "it names no app");
    assert_eq!(send(&shared, &signing_secret(7), &shortcut).await, 401, "a secret of no app");
    let own = env.ingests[0].path(&format!("/api/v1/webhooks/{}", connection(0, 0)));
    assert_eq!(send(&own, &signing_secret(0), &webhook(&env, 2, 0, 0)).await, 200, "own route");
    assert_eq!(send(&own, &signing_secret(1), &webhook(&env, 3, 0, 0)).await, 401);
    let stored = env.stored().await.expect("a count");
    assert_eq!(stored, 3);

    // Both secrets verify during a rotation.
    let rotated = |n: usize| if n == 0 { "rotated".into() } else { signing_secret(n) };
    assert!(declare(&env, 0..2, rotated), "the secret is replaced");
    for (n, secret) in [(4, "rotated".to_owned()), (5, signing_secret(0))] {
        assert_eq!(send(&shared, &secret, &webhook(&env, n, 0, 0)).await, 200, "{secret}");
        assert_eq!(send(&own, &secret, &webhook(&env, n + 2, 0, 0)).await, 200, "{secret}");
    }
    // An app that is no longer declared verifies nothing.
    assert!(declare(&env, 0..1, rotated), "an app is removed");
    let late = webhook(&env, 8, 1, 0);
    eventually("the app is gone", TIMEOUT, async || {
        (send(&shared, &signing_secret(1), &late).await == 401).then_some(())
    })
    .await;
}

/// The shared route stores nothing for a connection with a signing secret of its own, which did not
/// sign the webhook.
#[tokio::test]
async fn ignores_other_secret() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    env.start_ingest().await.expect("an ingest");
    assert!(declare(&env, 0..1, signing_secret), "the app is declared");
    let app = |n: usize| (app_id(0).parse().expect("an id"), format!("T{n:06}").parse().ok());
    let own = env.connect_as(|new| (new.app, new.team) = app(1)).await.expect("a connection");
    let of_app = |new: &mut shared::store::NewConnection| {
        (new.app, new.team) = app(2);
        new.signing_secret = shared::secrets::Secret::new(signing_secret(0)).expect("a secret");
    };
    env.connect_as(of_app).await.expect("a connection");
    let shared = env.ingests[0].path("/slack/events");
    for (n, team, stored) in [(1, 1, 0), (2, 2, 1)] {
        let sent = env.slack.send(&shared, &signing_secret(0), &webhook(&env, n, 0, team)).await;
        sent.expect("an answer");
        assert_eq!(env.stored().await.expect("a count"), stored, "of team {team}");
    }
    let webhook = Webhook::message(&env.slack, &own, "C1", "U1", "on its own route");
    assert_eq!(env.send(&own, &webhook).await.expect("an answer").status, 200);
}
