//! What is to be said is said: once where Slack lets us look, and counted where it does not.

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
    slack::{
        api::Outcome,
        tokens::Installation,
        trouble::{Fault, Trouble},
        webhook::Webhook,
    },
    until::until,
    world::{App, PAIR, SMALL, SOON, World, agent_id},
};
use tokio::net::TcpListener;

const POST: &str = "chat.postMessage";

fn answered(new: &mut NewConnection) {
    new.agent = Some(agent_id());
}

/// One message in each of so many conversations, half of them direct; all are accepted.
async fn say(world: &World, app: &App, conversations: usize, text: &str) {
    let sending = (0..conversations).map(|n| async move {
        let webhook = Webhook::message(&world.slack, app, &channel(n), "U1", text);
        assert_eq!(world.send(app, &webhook).await.expect("an answer").status, 200);
    });
    join_all(sending).await;
}

fn channel(n: usize) -> String {
    format!("{}{n:04}", if n.is_multiple_of(2) { "C" } else { "D" })
}

/// What the bot said in all of them.
fn said(world: &World, app: &App, conversations: usize) -> usize {
    let of = |n| world.slack.messages(&app.team, &channel(n));
    (0..conversations).flat_map(of).filter(|message| message.bot_id.is_some()).count()
}

/// How many messages were sent, how many not, and how many were sent again in doubt.
async fn rows(world: &World) -> (i64, i64, i64) {
    let row = sqlx::query(
        "select (select count(*) from outbox_log) as sent,
                (select count(*) from outbox) + (select count(*) from outbox_failures) as other,
                (select coalesce(sum(resend_count), 0)::bigint
                   from (select resend_count from outbox_log union all select resend_count from outbox_failures) r)
                    as resends",
    )
    .fetch_one(&world.pool)
    .await
    .expect("a count");
    (row.get("sent"), row.get("other"), row.get("resends"))
}

async fn all_sent(world: &World, count: i64, within: Duration) -> i64 {
    until(&format!("{count} rows are sent"), within, async || {
        let (sent, other, doubts) = rows(world).await;
        (sent == count && other == 0).then_some(doubts)
    })
    .await
}

async fn status(world: &World, app: &App) -> String {
    sqlx::query_scalar("select status from connections where id = $1")
        .bind(app.connection.to_string())
        .fetch_one(&world.pool)
        .await
        .expect("a status")
}

#[tokio::test]
async fn a_thousand_connections_cut_after_slack_took_the_message_leave_a_thousand_messages() {
    let world = World::start(PAIR).await.expect("a world");
    let app = world.connect_as(answered).await.expect("a connection");
    world.slack.trouble(Trouble::new(Fault::Cut).on(POST).after_the_fact().times(1000));
    for round in 0..4 {
        say(&world, &app, 250, &format!("round {round}")).await;
    }
    let doubts = all_sent(&world, 1000, Duration::from_secs(120)).await;
    assert_eq!(said(&world, &app, 250), 1000, "each once");
    let calls = world.slack.calls_of(POST);
    assert!(calls.iter().all(|call| matches!(call.outcome, Outcome::Broken { taken: true, .. })));
    assert_eq!((calls.len(), doubts), (1000, 0), "no call was repeated, no doubt was left");
}

#[tokio::test]
async fn where_slack_gives_no_way_to_look_the_doubt_is_counted_and_it_is_said_again() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(answered).await.expect("a connection");
    let blind = Installation::new(&app.app, &app.team, &app.bot_user)
        .without("channels:history")
        .without("im:history");
    world.slack.install(&app.token, blind);
    let cut = |on: &str, times| Trouble::new(Fault::Cut).on(on).after_the_fact().times(times);
    world.slack.trouble(cut(POST, 20));
    world.slack.trouble(cut("response_url", 10));
    say(&world, &app, 20, "hello").await;
    for n in 0..10 {
        let user = format!("U{n}");
        let help = Webhook::command(&world.slack, &app, "C1", &user, "/lobu", "help");
        world.send(&app, &help).await.expect("an answer");
    }
    let doubts = all_sent(&world, 30, SOON).await;
    assert_eq!(doubts, 30, "every one of them was in doubt, once");
    assert_eq!(said(&world, &app, 20), 40, "and is there twice");
    let calls = world.slack.calls_of("response_url");
    assert_eq!(calls.iter().filter(|call| call.took_effect()).count(), 20);
    for (method, count) in [(POST, 20.0), ("response_url", 10.0)] {
        let line = format!(
            "tidegate_outbox_ambiguous_sends_total{{method=\"{method}\",outcome=\"resent\"}}"
        );
        assert_eq!(world.workers[0].metric(&line).await.expect("a page"), count, "{line}");
    }
}

#[tokio::test]
async fn what_slack_may_or_may_not_have_done_is_looked_up_before_it_is_said_again() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(answered).await.expect("a connection");
    let faults = [
        Fault::Says("fatal_error".into()),
        Fault::Says("internal_error".into()),
        Fault::Status(503),
        Fault::Garbage,
        Fault::MidBody,
        Fault::Cut,
    ];
    for fault in &faults {
        for taken in [true, false] {
            let trouble = Trouble::new(fault.clone()).on(POST).times(1);
            world.slack.trouble(if taken { trouble.after_the_fact() } else { trouble });
        }
    }
    say(&world, &app, 2 * faults.len(), "hello").await;
    let doubts = all_sent(&world, 2 * faults.len() as i64, SOON).await;
    assert_eq!((said(&world, &app, 2 * faults.len()), doubts), (2 * faults.len(), 0));
}

#[tokio::test]
async fn a_sender_that_is_frozen_and_woken_says_nothing_twice() {
    let world = World::start(PAIR).await.expect("a world");
    let app = world.connect_as(answered).await.expect("a connection");
    // Taken at once, answered late: the sender freezes in between.
    world.slack.trouble(Trouble::new(Fault::Slow(Duration::from_secs(4))).on(POST).times(1));
    say(&world, &app, 1, "hello").await;
    until("Slack has it", SOON, async || world.slack.calls_of(POST).pop()).await;
    let sender = world.owner_of(&app, &channel(0)).await.expect("an owner");
    sender.process.freeze();
    let doubts = all_sent(&world, 1, SOON).await;
    sender.process.thaw();
    world.settled().await.expect("the woken one works again");
    assert_eq!((said(&world, &app, 1), world.slack.calls_of(POST).len(), doubts), (1, 1, 0));
}

#[tokio::test]
async fn a_response_url_that_is_used_up_or_not_slacks_is_not_insisted_on() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let help = |user: &str| Webhook::command(&world.slack, &app, "C1", user, "/lobu", "help");

    // Too old for Slack.
    let old = help("U1");
    world.slack.clock().advance(Duration::from_secs(31 * 60));
    world.send(&app, &old).await.expect("an answer");
    let told = world.slack.told("told another way", |r| r.by == "chat.postEphemeral").await;
    assert_eq!((told.to.as_str(), told.body["user"].as_str()), ("C1", Some("U1")));
    assert!(told.body.get("response_type").is_none(), "{:?}", told.body);

    // Used five times, none of which Slack took.
    world.slack.trouble(Trouble::new(Fault::RateLimited(0)).on("response_url").times(9));
    world.send(&app, &help("U2")).await.expect("an answer");
    world
        .slack
        .told("told another way", |r| r.by == "chat.postEphemeral" && r.body["user"] == "U2")
        .await;
    let calls = world.slack.calls_of("response_url");
    let limited = calls.iter().filter(|call| matches!(call.outcome, Outcome::Broken { .. }));
    assert_eq!(limited.count(), 5);
    world.slack.heal();

    // Somebody else's.
    let mut foreign = help("U3");
    let body = String::from_utf8(foreign.body).expect("text");
    let (ours, theirs) = ("127.0.0.1", "127.0.0.2");
    assert!(body.contains(ours), "{body}");
    foreign.body = body.replace(ours, theirs).into_bytes();
    world.send(&app, &foreign).await.expect("an answer");
    let why: String = until("given up", SOON, async || {
        sqlx::query_scalar("select error from outbox_failures")
            .fetch_optional(&world.pool)
            .await
            .ok()?
    })
    .await;
    assert_eq!(why, "the response_url is not Slack's");
}

#[tokio::test]
async fn what_slack_says_of_a_token_is_done_to_its_connection_and_to_no_other() {
    let world = World::start(SMALL).await.expect("a world");
    let gone = world.connect_as(answered).await.expect("a connection");
    let doubtful = world.connect_as(answered).await.expect("a connection");
    let good = world.connect_as(answered).await.expect("a connection");
    world.slack.refuse_token(&gone.token, "account_inactive");
    world.slack.refuse_token(&doubtful.token, "invalid_auth");
    for app in [&gone, &doubtful, &good] {
        say(&world, app, 1, "hello").await;
    }
    let becomes = async |app: &App, wanted: &str| {
        until(wanted, SOON, async || (status(&world, app).await == wanted).then_some(())).await;
    };
    becomes(&gone, "revoked").await;
    becomes(&doubtful, "error").await;
    let asked = world.slack.calls_of("auth.test");
    assert!(asked.len() >= 3, "not before it was confirmed several times: {}", asked.len());
    assert_eq!(status(&world, &good).await, "active");
    assert_eq!(said(&world, &good, 1), 1);

    // What was to be said is kept, and said as soon as the token is good.
    let there = Installation::new(&doubtful.app, &doubtful.team, &doubtful.bot_user);
    world.slack.install(&doubtful.token, there);
    becomes(&doubtful, "active").await;
    assert_eq!(said(&world, &doubtful, 1), 1);
}

/// What each of Slack's other words asks of us is done: kept or given up, and what becomes of the connection.
#[tokio::test]
async fn what_can_be_mended_is_kept_and_what_can_not_is_given_up() {
    let world = World::start(SMALL).await.expect("a world");
    let words = [
        ("team_added_to_org", "pending", "active"),
        ("accesslimited", "pending", "active"),
        ("not_allowed_token_type", "pending", "error"),
        ("message_limit_exceeded", "pending", "active"),
        ("missing_scope", "failed", "active"),
        ("team_access_not_granted", "failed", "active"),
        ("msg_too_long", "failed", "active"),
        ("no\0word of Slack's", "failed", "active"), // Postgres keeps no NUL in a text
    ];
    let mut apps = Vec::new();
    for (word, ..) in words {
        let app = world.connect_as(answered).await.expect("a connection");
        world.slack.trouble(Trouble::new(Fault::Says(word.into())).on(POST).with_token(&app.token));
        say(&world, &app, 1, "hello").await;
        apps.push(app);
    }
    for ((word, state, becomes), app) in words.into_iter().zip(&apps) {
        let (found, error): (String, String) = until(word, SOON, async || {
            let query = "select 'failed', error from outbox_failures where connection_id = $1
                         union all
                         select 'pending', last_error from outbox_lanes where connection_id = $1 and last_error <> ''";
            let row = sqlx::query_as(query).bind(app.connection.to_string());
            row.fetch_optional(&world.pool).await.ok()?
        })
        .await;
        assert_eq!((found.as_str(), error), (state, word.replace('\0', "\u{fffd}")));
        assert_eq!(status(&world, app).await, becomes, "{word}");
    }
    let limited: i64 =
        sqlx::query_scalar("select count(*) from slack_rate_limits where connection_id = $1")
            .bind(apps[3].connection.to_string())
            .fetch_one(&world.pool)
            .await
            .expect("a count");
    assert_eq!(limited, 3, "a full workspace pauses all that is said there");
}

/// The text alone is refused, too: the person hears that there was an answer, and the operator finds it by the reference.
#[tokio::test]
async fn an_answer_that_slack_refuses_for_its_form_leaves_a_note() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(answered).await.expect("a connection");
    let refusals = Trouble::new(Fault::Says("msg_too_long".into())).on(POST).times(1);
    world.slack.trouble(refusals);
    say(&world, &app, 1, "hello").await;
    let note = world.slack.told("the note", |told| {
        told.to == channel(0) && told.text().starts_with("Slack did not accept the answer.")
    });
    let note = note.await;
    let key: String = until("it is given up", SOON, async || {
        let query = "select dedup_key from outbox_failures where error = 'msg_too_long'";
        sqlx::query_scalar(query).fetch_optional(&world.pool).await.ok()?
    })
    .await;
    let reference = key.rsplit(':').next().expect("a reference");
    assert!(note.text().contains(reference), "{note:?}");
}

#[tokio::test]
async fn a_response_url_that_leads_elsewhere_is_not_followed() {
    let mut world = World::without_processes(SMALL).await.expect("servers");
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
    world.set("TIDEGATE_RESPONSE_URL_ORIGINS", &origin);
    world.start_ingest().await.expect("an ingest");
    world.start_worker().await.expect("a worker");
    world.settled().await.expect("settled");
    let app = world.connect().await.expect("a connection");
    let mut help = Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", "help");
    let body = form_urlencoded::parse(&help.body).into_owned().map(|(name, value)| {
        let value = if name == "response_url" { format!("{origin}/here") } else { value };
        (name, value)
    });
    help.body =
        form_urlencoded::Serializer::new(String::new()).extend_pairs(body).finish().into_bytes();
    world.send(&app, &help).await.expect("an answer");
    let why: String = until("given up", SOON, async || {
        let query = "select error from outbox_failures";
        sqlx::query_scalar(query).fetch_optional(&world.pool).await.ok()?
    })
    .await;
    assert!(why.starts_with("307"), "{why}");
    assert_eq!(asked.load(Ordering::Relaxed), 1, "the redirect was followed");
}

#[tokio::test]
async fn a_conversation_that_is_closed_to_us_is_noted_and_holds_up_nobody() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(answered).await.expect("a connection");
    world
        .slack
        .trouble(Trouble::new(Fault::Says("is_archived".into())).on(POST).in_channel("C0000"));
    say(&world, &app, 2, "hello").await;
    until("one is said, one is given up", SOON, async || {
        let failed: i64 = sqlx::query_scalar("select count(*) from outbox_failures")
            .fetch_one(&world.pool)
            .await
            .ok()?;
        (failed == 1 && rows(&world).await == (1, 1, 0)).then_some(())
    })
    .await;
    assert_eq!(world.slack.calls_of(POST).len(), 2, "it is not tried again");
    assert_eq!(status(&world, &app).await, "active");
}
