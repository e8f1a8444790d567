//! Rotating tokens: each is refreshed by one worker.

use futures_util::future::join_all;
use shared::secrets::Secret;
use std::time::Duration;
use tests::{
    eventually::eventually,
    slack::{
        fault_injection::{Fault, FaultRule},
        tokens::Installation,
        webhook::Webhook,
    },
    test_env::{App, Role, Server, Size, TIMEOUT, TestEnv, agent_id},
};

const EIGHT_WORKERS: Size = Size { ingests: 1, workers: 8, own_postgres: false };
const SMALL: Size = Size { ingests: 1, workers: 1, own_postgres: false };

/// Connects an app with a rotating token that expires after `expires_in`.
async fn connect_rotating(env: &TestEnv, expires_in: Duration) -> (App, Secret) {
    env.slack.register_client("1.2", "client secret");
    let pair = env.slack.install_rotating(Installation::new("A0ROTATES", "T0ROTATES", "UBOT0"));
    let token = Secret::new(pair.token).expect("not empty");
    let app = env
        .connect_as(|new| {
            new.agent = Some(agent_id());
            new.team = Some("T0ROTATES".parse().expect("an id"));
            new.bot_token = Some(token.clone());
        })
        .await
        .expect("a connection");
    // `connect_as` installed a permanent token; this one rotates.
    let pair = env.slack.install_rotating(Installation::new(&app.app, &app.team, &app.bot_user));
    let expires_in = format!("{}s", expires_in.as_secs());
    let id = app.connection.to_string();
    env.tidegate(&[
        "connections",
        "enable-token-rotation",
        &id,
        "--client-id=1.2",
        "--client-secret",
        &env.secret_argument("client secret").expect("a file"),
        "--refresh-token",
        &env.secret_argument(&pair.refresh).expect("a file"),
        &format!("--expires-in={expires_in}"),
    ])
    .expect("token rotation is enabled");
    env.slack.refuse_token(token.expose(), "token_expired");
    (app, token)
}

/// Of eight workers that meet an expired token, one refreshes it, and every message is sent once.
#[tokio::test]
async fn refreshes_expired_token_once() {
    let env = TestEnv::start(EIGHT_WORKERS).await.expect("a test environment");
    let (app, _) = connect_rotating(&env, Duration::from_secs(43_200)).await;
    let slow = Fault::Slow(Duration::from_secs(1));
    env.slack.inject_fault(FaultRule::new(slow).on("oauth.v2.access"));
    let channels: Vec<String> = (0..32).map(|n| format!("C{n:04}")).collect();
    let env_ref = &env;
    join_all(channels.iter().map(|channel| {
        let webhook = Webhook::message(&env_ref.slack, &app, channel, "U1", "hello");
        let app = &app;
        async move { assert_eq!(env_ref.send(app, &webhook).await.expect("an answer").status, 200) }
    }))
    .await;
    let answered = |channel: &String| {
        env.slack.messages(&app.team, channel).iter().filter(|m| m.bot_id.is_some()).count()
    };
    eventually("all are answered", TIMEOUT, async || {
        channels.iter().all(|channel| answered(channel) == 1).then_some(())
    })
    .await;
    let expired = env.slack.calls_of("chat.postMessage").len() - channels.len();
    assert!(expired >= 2, "several calls failed with the expired token: {expired}");
    assert_eq!(env.slack.calls_of("oauth.v2.access").len(), 1);
}

/// A token is refreshed before it expires, and the next message uses the new one.
#[tokio::test]
async fn refreshes_before_expiry() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let (app, first) = connect_rotating(&env, Duration::from_secs(2)).await;
    eventually("the token is refreshed", TIMEOUT, async || {
        env.slack.calls_of("oauth.v2.access").pop()
    })
    .await;
    let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
    let fresh = eventually("the new token is in force", TIMEOUT, async || {
        let connection = env.store.load_connection(app.connection).await.ok()??;
        connection.bot_token.filter(|token| token.expose() != first.expose())
    })
    .await;
    env.send(&app, &webhook).await.expect("an answer");
    let answer =
        env.slack.wait_for_receipt("the answer", |receipt| receipt.by == "chat.postMessage").await;
    assert_eq!(answer.token.as_deref(), Some(fresh.expose()));
    assert_eq!(env.slack.calls_of("oauth.v2.access").len(), 1);
    // An alert watches refreshes that fail.
    let metric = "tidegate_token_refreshes_total{outcome=\"refreshed\"}";
    assert_eq!(env.workers[0].metric(metric).await.expect("a metric"), 1.0);
}

/// Returns the number of refreshes of a connection's token.
async fn refreshes(env: &TestEnv, app: &App) -> i64 {
    let generation = "select generation from token_rotations where connection_id = $1";
    let id = app.connection.to_string();
    sqlx::query_scalar(generation).bind(id).fetch_one(&env.pool).await.expect("a row")
}

/// If Postgres is gone when Slack returns new tokens, they are written once it is back, and no
/// worker uses the old refresh token again.
#[tokio::test(flavor = "multi_thread")]
async fn keeps_tokens_without_postgres() {
    let size = Size { workers: 0, ..SMALL };
    let mut env = TestEnv::without_processes(size).await.expect("servers");
    env.start_ingest().await.expect("an ingest");
    let mut links = Vec::new();
    for _ in 0..2 {
        let link = env.link_through_proxy(Role::Worker, Server::Postgres).await;
        links.push(link.expect("a link"));
        env.start_worker().await.expect("a worker");
    }
    env.wait_until_balanced().await.expect("both work");
    let slow = Fault::Slow(Duration::from_secs(3));
    env.slack.inject_fault(FaultRule::new(slow).on("oauth.v2.access"));
    let (app, first) = connect_rotating(&env, Duration::from_secs(2)).await;
    let leased = "select exists (select from token_rotations where leased_until > now())";
    let is_leased = async || sqlx::query_scalar(leased).fetch_one(&env.pool).await.ok();
    eventually("a worker asks Slack", TIMEOUT, async || {
        is_leased().await.filter(|leased: &bool| *leased)
    })
    .await;
    links.iter().for_each(|link| link.cut());
    let has_tokens = |worker: &usize| {
        env.workers[*worker].process.log().contains("failed to record refreshed token")
    };
    let keeper =
        eventually("Slack returns the new tokens", TIMEOUT, async || (0..2).find(has_tokens)).await;
    eventually("the lease ends", TIMEOUT, async || {
        is_leased().await.filter(|leased: &bool| !leased)
    })
    .await;

    // The other worker reaches Postgres first. Its refresh of another due token shows that it has
    // looked.
    env.slack.clear_faults();
    links[1 - keeper].heal();
    let (second, _) = connect_rotating(&env, Duration::from_secs(1)).await;
    eventually("the other worker refreshes the due token", TIMEOUT, async || {
        (refreshes(&env, &second).await == 1).then_some(())
    })
    .await;
    assert_eq!(refreshes(&env, &app).await, 0, "the new tokens are not written yet");
    links[keeper].heal();
    eventually("the new tokens are written", TIMEOUT, async || {
        (refreshes(&env, &app).await == 1).then_some(())
    })
    .await;
    assert_eq!(env.slack.calls_of("oauth.v2.access").len(), 2, "each token was refreshed once");
    let connection = env.store.load_connection(app.connection).await.expect("it").expect("it");
    let token = connection.bot_token.expect("a token");
    assert_ne!(token.expose(), first.expose());
    let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
    env.send(&app, &webhook).await.expect("an answer");
    let is_answer = |r: &tests::slack::Receipt| r.token.as_deref() == Some(token.expose());
    env.slack.wait_for_receipt("an answer with the new token", is_answer).await;
}

/// A refresh whose worker crashed is repeated by another worker after its lease.
#[tokio::test(flavor = "multi_thread")]
async fn refreshes_after_crash() {
    /// Maximum time until the lease has ended and another worker refreshes the token.
    const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(90);
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let (app, _) = connect_rotating(&env, Duration::from_secs(43_200)).await;
    // State after a worker crashed during its call of Slack.
    let crashed =
        "update token_rotations set refresh_at = now(), leased_until = now() + interval '1 s'";
    sqlx::query(crashed).execute(&env.pool).await.expect("Postgres");
    eventually("the token is refreshed", TAKEN_OVER_WITHIN, async || {
        (refreshes(&env, &app).await == 1).then_some(())
    })
    .await;
}
