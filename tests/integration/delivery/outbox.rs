//! Messages to Slack: sent once where Slack offers a look-up; elsewhere resends are counted.

use axum::{Router, http::StatusCode};
use futures_util::future::join_all;
use shared::store::NewConnection;
use sqlx::Row;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tests::{
    eventually::eventually,
    slack::{
        api::Outcome,
        fault_injection::{Fault, FaultRule},
        tokens::Installation,
        webhook::Webhook,
    },
    test_env::{App, PAIR, SMALL, TIMEOUT, TestEnv, agent_id},
};
use tokio::net::TcpListener;

const POST: &str = "chat.postMessage";

fn use_sample_agent(new: &mut NewConnection) {
    new.agent = Some(agent_id());
}

/// Sends one message in each conversation, half of them direct. All are accepted.
async fn send_messages(env: &TestEnv, app: &App, conversations: usize, text: &str) {
    let sending = (0..conversations).map(|n| async move {
        let webhook = Webhook::message(&env.slack, app, &channel(n), "U1", text);
        assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
    });
    join_all(sending).await;
}

fn channel(n: usize) -> String {
    format!("{}{n:04}", if n.is_multiple_of(2) { "C" } else { "D" })
}

/// Returns the number of messages of the bot in all conversations.
fn count_posts(env: &TestEnv, app: &App, conversations: usize) -> usize {
    let of = |n| env.slack.messages(&app.team, &channel(n));
    (0..conversations).flat_map(of).filter(|message| message.bot_id.is_some()).count()
}

/// Returns the numbers of sent messages, of other messages, and of resends.
async fn count_rows(env: &TestEnv) -> (i64, i64, i64) {
    let row = sqlx::query(
        "select (select count(*) from outbox_log) as sent,
                (select count(*) from outbox) + (select count(*) from outbox_failures) as other,
                (select coalesce(sum(resend_count), 0)::bigint
                   from (select resend_count from outbox_log union all select resend_count from outbox_failures) r)
                    as resends",
    )
    .fetch_one(&env.pool)
    .await
    .expect("a count");
    (row.get("sent"), row.get("other"), row.get("resends"))
}

async fn wait_until_sent(env: &TestEnv, count: i64, within: Duration) -> i64 {
    eventually(&format!("{count} rows are sent"), within, async || {
        let (sent, other, resends) = count_rows(env).await;
        (sent == count && other == 0).then_some(resends)
    })
    .await
}

async fn status(env: &TestEnv, app: &App) -> String {
    sqlx::query_scalar("select status from connections where id = $1")
        .bind(app.connection.to_string())
        .fetch_one(&env.pool)
        .await
        .expect("a status")
}

/// Of 1,000 messages whose connection is cut after Slack accepted them, none is lost or sent twice.
#[tokio::test]
async fn sends_once_despite_1000_cuts() {
    let env = TestEnv::start(PAIR).await.expect("a test environment");
    let app = env.connect_as(use_sample_agent).await.expect("a connection");
    env.slack.inject_fault(FaultRule::new(Fault::Cut).on(POST).after_effect().times(1000));
    for round in 0..4 {
        send_messages(&env, &app, 250, &format!("round {round}")).await;
    }
    let resends = wait_until_sent(&env, 1000, Duration::from_secs(120)).await;
    assert_eq!(count_posts(&env, &app, 250), 1000, "each message is posted once");
    let calls = env.slack.calls_of(POST);
    assert!(calls.iter().all(|call| matches!(call.outcome, Outcome::Faulted { taken: true, .. })));
    assert_eq!(
        (calls.len(), resends),
        (1000, 0),
        "no call was repeated, and no message is ambiguous"
    );
}

/// Ambiguous messages that Slack offers no look-up for are sent again once and counted.
#[tokio::test]
async fn counts_resends_without_lookup() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(use_sample_agent).await.expect("a connection");
    let blind = Installation::new(&app.app, &app.team, &app.bot_user)
        .without("channels:history")
        .without("im:history");
    env.slack.install(&app.token, blind);
    let cut = |on: &str, times| FaultRule::new(Fault::Cut).on(on).after_effect().times(times);
    env.slack.inject_fault(cut(POST, 20));
    env.slack.inject_fault(cut("response_url", 10));
    send_messages(&env, &app, 20, "hello").await;
    for n in 0..10 {
        let user = format!("U{n}");
        let help = Webhook::command(&env.slack, &app, "C1", &user, "/lobu", "help");
        env.send(&app, &help).await.expect("an answer");
    }
    let resends = wait_until_sent(&env, 30, TIMEOUT).await;
    assert_eq!(resends, 30, "each message was ambiguous once");
    assert_eq!(count_posts(&env, &app, 20), 40, "each message is in Slack twice");
    let calls = env.slack.calls_of("response_url");
    assert_eq!(calls.iter().filter(|call| call.took_effect()).count(), 20);
    for (method, count) in [(POST, 20.0), ("response_url", 10.0)] {
        let line = format!(
            "tidegate_outbox_ambiguous_sends_total{{method=\"{method}\",outcome=\"resent\"}}"
        );
        assert_eq!(env.workers[0].metric(&line).await.expect("a page"), count, "{line}");
    }
}

/// After each kind of failed call a message is looked up first, so that it is in Slack once.
#[tokio::test]
async fn reconciles_before_resend() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(use_sample_agent).await.expect("a connection");
    let faults = [
        Fault::ApiError("fatal_error".into()),
        Fault::ApiError("internal_error".into()),
        Fault::Status(503),
        Fault::Garbage,
        Fault::MidBody,
        Fault::Cut,
    ];
    for fault in &faults {
        for taken in [true, false] {
            let rule = FaultRule::new(fault.clone()).on(POST).times(1);
            env.slack.inject_fault(if taken { rule.after_effect() } else { rule });
        }
    }
    send_messages(&env, &app, 2 * faults.len(), "hello").await;
    let resends = wait_until_sent(&env, 2 * faults.len() as i64, TIMEOUT).await;
    assert_eq!((count_posts(&env, &app, 2 * faults.len()), resends), (2 * faults.len(), 0));
}

/// A message whose worker froze during the call is looked up by another worker, and not sent again.
#[tokio::test]
async fn sends_once_after_freeze() {
    let env = TestEnv::start(PAIR).await.expect("a test environment");
    let app = env.connect_as(use_sample_agent).await.expect("a connection");
    // Slack accepts the message at once and answers late. The sender is frozen in between.
    env.slack.inject_fault(FaultRule::new(Fault::Slow(Duration::from_secs(4))).on(POST).times(1));
    send_messages(&env, &app, 1, "hello").await;
    eventually("Slack accepts the message", TIMEOUT, async || env.slack.calls_of(POST).pop()).await;
    let sender = env.owner_of(&app, &channel(0)).await.expect("an owner");
    sender.process.freeze();
    let resends = wait_until_sent(&env, 1, TIMEOUT).await;
    sender.process.thaw();
    env.wait_until_balanced().await.expect("the thawed worker owns partitions again");
    assert_eq!((count_posts(&env, &app, 1), env.slack.calls_of(POST).len(), resends), (1, 1, 0));
}

/// The Web API replaces a `response_url` that is expired or used up. One of another origin gets no
/// message.
#[tokio::test]
async fn replaces_invalid_response_url() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let help = |user: &str| Webhook::command(&env.slack, &app, "C1", user, "/lobu", "help");

    // Too old.
    let old = help("U1");
    env.slack.clock().advance(Duration::from_secs(31 * 60));
    env.send(&app, &old).await.expect("an answer");
    let posted = env
        .slack
        .wait_for_receipt("the message by the Web API", |r| r.by == "chat.postEphemeral")
        .await;
    assert_eq!((posted.to.as_str(), posted.body["user"].as_str()), ("C1", Some("U1")));
    assert!(posted.body.get("response_type").is_none(), "{:?}", posted.body);

    // Used up by five failed calls.
    env.slack.inject_fault(FaultRule::new(Fault::RateLimited(0)).on("response_url").times(9));
    env.send(&app, &help("U2")).await.expect("an answer");
    env.slack
        .wait_for_receipt("the message by the Web API", |r| {
            r.by == "chat.postEphemeral" && r.body["user"] == "U2"
        })
        .await;
    let calls = env.slack.calls_of("response_url");
    let limited = calls.iter().filter(|call| matches!(call.outcome, Outcome::Faulted { .. }));
    assert_eq!(limited.count(), 5);
    env.slack.clear_faults();

    // Of another origin.
    let mut foreign = help("U3");
    let body = String::from_utf8(foreign.body).expect("text");
    let (ours, theirs) = ("127.0.0.1", "127.0.0.2");
    assert!(body.contains(ours), "{body}");
    foreign.body = body.replace(ours, theirs).into_bytes();
    env.send(&app, &foreign).await.expect("an answer");
    let why: String = eventually("the message is given up", TIMEOUT, async || {
        sqlx::query_scalar("select error from outbox_failures")
            .fetch_optional(&env.pool)
            .await
            .ok()?
    })
    .await;
    assert_eq!(why, "TIDEGATE_RESPONSE_URL_ORIGINS does not allow the response_url");
}

/// An error about a token changes its own connection only: revoked at once, or in error after
/// several refusals until the token works again.
#[tokio::test]
async fn applies_token_errors() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let revoked = env.connect_as(use_sample_agent).await.expect("a connection");
    let failing = env.connect_as(use_sample_agent).await.expect("a connection");
    let good = env.connect_as(use_sample_agent).await.expect("a connection");
    env.slack.refuse_token(&revoked.token, "account_inactive");
    env.slack.refuse_token(&failing.token, "invalid_auth");
    for app in [&revoked, &failing, &good] {
        send_messages(&env, app, 1, "hello").await;
    }
    let becomes = async |app: &App, wanted: &str| {
        eventually(wanted, TIMEOUT, async || (status(&env, app).await == wanted).then_some(()))
            .await;
    };
    becomes(&revoked, "revoked").await;
    becomes(&failing, "error").await;
    let asked = env.slack.calls_of("auth.test");
    assert!(asked.len() >= 3, "the token is checked several times: {}", asked.len());
    assert_eq!(status(&env, &good).await, "active");
    assert_eq!(count_posts(&env, &good, 1), 1);

    // The message is sent once the token is valid again.
    let there = Installation::new(&failing.app, &failing.team, &failing.bot_user);
    env.slack.install(&failing.token, there);
    becomes(&failing, "active").await;
    assert_eq!(count_posts(&env, &failing, 1), 1);
}

/// Each error of Slack decides whether the message is kept or given up, and the status of the
/// connection.
#[tokio::test]
async fn handles_each_error_of_slack() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let cases = [
        ("team_added_to_org", "pending", "active"),
        ("accesslimited", "pending", "active"),
        ("not_allowed_token_type", "pending", "error"),
        ("message_limit_exceeded", "pending", "active"),
        ("missing_scope", "failed", "active"),
        ("team_access_not_granted", "failed", "active"),
        ("msg_too_long", "failed", "active"),
        ("no\0word of Slack's", "failed", "active"), // Postgres stores no NUL in a text
    ];
    let mut apps = Vec::new();
    for (code, ..) in cases {
        let app = env.connect_as(use_sample_agent).await.expect("a connection");
        env.slack.inject_fault(
            FaultRule::new(Fault::ApiError(code.into())).on(POST).with_token(&app.token),
        );
        send_messages(&env, &app, 1, "hello").await;
        apps.push(app);
    }
    for ((code, state, becomes), app) in cases.into_iter().zip(&apps) {
        let (found, error): (String, String) = eventually(code, TIMEOUT, async || {
            let query = "select 'failed', error from outbox_failures where connection_id = $1
                         union all
                         select 'pending', last_error from outbox_lanes where connection_id = $1 and last_error <> ''";
            let row = sqlx::query_as(query).bind(app.connection.to_string());
            row.fetch_optional(&env.pool).await.ok()?
        })
        .await;
        assert_eq!((found.as_str(), error), (state, code.replace('\0', "\u{fffd}")));
        assert_eq!(status(&env, app).await, becomes, "{code}");
    }
    let limited: i64 =
        sqlx::query_scalar("select count(*) from slack_rate_limits where connection_id = $1")
            .bind(apps[3].connection.to_string())
            .fetch_one(&env.pool)
            .await
            .expect("a count");
    assert_eq!(limited, 3, "a full workspace pauses all posting methods");
}

/// When Slack rejects the text alone, too, the person gets a note with a reference for the
/// operator.
#[tokio::test]
async fn sends_note_for_rejected_reply() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(use_sample_agent).await.expect("a connection");
    let refusals = FaultRule::new(Fault::ApiError("msg_too_long".into())).on(POST).times(1);
    env.slack.inject_fault(refusals);
    send_messages(&env, &app, 1, "hello").await;
    let note = env.slack.wait_for_receipt("the note", |receipt| {
        receipt.to == channel(0) && receipt.text().starts_with("Slack did not accept the answer.")
    });
    let note = note.await;
    let key: String = eventually("the message is given up", TIMEOUT, async || {
        let query = "select dedup_key from outbox_failures where error = 'msg_too_long'";
        sqlx::query_scalar(query).fetch_optional(&env.pool).await.ok()?
    })
    .await;
    let reference = key.rsplit(':').next().expect("a reference");
    assert!(note.text().contains(reference), "{note:?}");
}

/// A redirect of a `response_url` is a failure and not followed.
#[tokio::test]
async fn ignores_redirect_of_response_url() {
    let mut env = TestEnv::without_processes(SMALL).await.expect("servers");
    let asked = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let origin = format!("http://{}", listener.local_addr().expect("an address"));
    let count = Arc::clone(&asked);
    let answer = move || async move {
        count.fetch_add(1, Ordering::Relaxed);
        (StatusCode::TEMPORARY_REDIRECT, [("location", "/elsewhere")])
    };
    let router = Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, router).await });
    env.set("TIDEGATE_RESPONSE_URL_ORIGINS", &origin);
    env.start_ingest().await.expect("an ingest");
    env.start_worker().await.expect("a worker");
    env.wait_until_balanced().await.expect("settled");
    let app = env.connect().await.expect("a connection");
    let mut help = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", "help");
    let body = form_urlencoded::parse(&help.body).into_owned().map(|(name, value)| {
        let value = if name == "response_url" { format!("{origin}/here") } else { value };
        (name, value)
    });
    help.body =
        form_urlencoded::Serializer::new(String::new()).extend_pairs(body).finish().into_bytes();
    env.send(&app, &help).await.expect("an answer");
    let why: String = eventually("the message is given up", TIMEOUT, async || {
        let query = "select error from outbox_failures";
        sqlx::query_scalar(query).fetch_optional(&env.pool).await.ok()?
    })
    .await;
    assert!(why.starts_with("307"), "{why}");
    assert_eq!(asked.load(Ordering::Relaxed), 1, "the redirect was followed");
}

/// A message to an archived channel is given up without another call, and other messages are sent.
#[tokio::test]
async fn isolates_closed_conversation() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(use_sample_agent).await.expect("a connection");
    env.slack.inject_fault(
        FaultRule::new(Fault::ApiError("is_archived".into())).on(POST).in_channel("C0000"),
    );
    send_messages(&env, &app, 2, "hello").await;
    eventually("one message is sent, one is given up", TIMEOUT, async || {
        let failed: i64 = sqlx::query_scalar("select count(*) from outbox_failures")
            .fetch_one(&env.pool)
            .await
            .ok()?;
        (failed == 1 && count_rows(&env).await == (1, 1, 0)).then_some(())
    })
    .await;
    assert_eq!(env.slack.calls_of(POST).len(), 2, "the message is not attempted again");
    assert_eq!(status(&env, &app).await, "active");
}
