//! Slack delivers as Slack does: again at once, after a minute, after five; and what it gives up on is known.

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header::LOCATION},
    response::IntoResponse,
    routing::any,
};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tests::{
    slack::{Slack, delivery::Reason, webhook::Webhook},
    until::until,
    world::{App, SMALL, SOON, World},
};

/// A gateway that answers by a list, the last for ever, and notes the retry headers.
#[derive(Clone, Default)]
struct Scripted {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    heard: Arc<Mutex<Vec<(String, String)>>>,
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    Status(u16),
    Redirect,
    NoRetry,
}

impl Scripted {
    async fn start(answers: &[Answer]) -> (Self, String) {
        let gateway = Self::default();
        gateway.script(answers);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        let routes = Router::new().fallback(any(answer)).with_state(gateway.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (gateway, url)
    }

    fn script(&self, answers: &[Answer]) {
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner) = answers.to_vec().into();
    }

    fn heard(&self) -> Vec<(String, String)> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn has_heard(&self, count: usize) {
        until(&format!("{count} attempts"), SOON, async || {
            (self.heard().len() >= count).then_some(())
        })
        .await;
    }
}

async fn answer(State(gateway): State<Scripted>, headers: HeaderMap) -> impl IntoResponse {
    let text =
        |name| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let retry = (text("x-slack-retry-num"), text("x-slack-retry-reason"));
    gateway.heard.lock().unwrap_or_else(PoisonError::into_inner).push(retry);
    let mut answers = gateway.answers.lock().unwrap_or_else(PoisonError::into_inner);
    let answer = match answers.len() {
        1 => answers.front().copied(),
        _ => answers.pop_front(),
    };
    let mut headers = HeaderMap::new();
    let status = match answer.unwrap_or(Answer::Status(200)) {
        Answer::Status(status) => status,
        Answer::Redirect => {
            headers.insert(LOCATION, "/elsewhere".parse().expect("a value"));
            302
        }
        Answer::NoRetry => {
            headers.insert("x-slack-no-retry", "1".parse().expect("a value"));
            404
        }
    };
    (StatusCode::from_u16(status).expect("a status"), headers)
}

async fn slack() -> (Slack, App, Webhook) {
    let _ = rustls::crypto::ring::default_provider().install_default(); // again for every test
    let slack = Slack::start().await.expect("a Slack");
    let app = App {
        connection: format!("{:032x}", 7).parse().expect("an id"),
        org: "example".parse().expect("an id"),
        secret: "secret".into(),
        token: "xoxb-1".into(),
        app: "A1".into(),
        team: "T1".into(),
        bot_user: "UBOT".into(),
    };
    let webhook = Webhook::message(&slack, &app, "D1", "U1", "hello");
    (slack, app, webhook)
}

#[tokio::test]
async fn what_is_refused_comes_again_at_once_after_a_minute_and_after_five() {
    let (slack, app, webhook) = slack().await;
    let (gateway, url) = Scripted::start(&[Answer::Status(503)]).await;
    let moving = async {
        gateway.has_heard(2).await;
        slack.clock().advance(Duration::from_secs(59));
        assert_eq!(gateway.heard().len(), 2, "not before a minute is over");
        slack.clock().advance(Duration::from_secs(1));
        gateway.has_heard(3).await;
        gateway.script(&[Answer::Status(200)]);
        slack.clock().advance(Duration::from_secs(5 * 60));
    };
    let (delivery, ()) = tokio::join!(slack.deliver(&url, &app.secret, &webhook, false), moving);
    assert!(delivery.is_taken());
    let heard = gateway.heard();
    let heard: Vec<_> = heard.iter().map(|(n, why)| (n.as_str(), why.as_str())).collect();
    let again = |n| (n, "http_error");
    assert_eq!(heard, [("", ""), again("1"), again("2"), again("3")]);
}

#[tokio::test]
async fn with_delayed_events_it_comes_every_hour_for_a_day() {
    let (slack, app, webhook) = slack().await;
    let (gateway, url) = Scripted::start(&[Answer::Status(500)]).await;
    let moving = async {
        for heard in 2..28 {
            gateway.has_heard(heard).await;
            slack.clock().advance(Duration::from_secs(3600));
        }
    };
    let (delivery, ()) = tokio::join!(slack.deliver(&url, &app.secret, &webhook, true), moving);
    assert_eq!((delivery.is_taken(), delivery.attempts.len()), (false, 28));
}

#[tokio::test]
async fn two_redirects_are_followed_and_not_a_third() {
    let (slack, app, webhook) = slack().await;
    let (gateway, url) =
        Scripted::start(&[Answer::Redirect, Answer::Redirect, Answer::Status(200)]).await;
    assert_eq!(slack.attempt(&url, &app.secret, &webhook, None).await.wrong, None);
    gateway.script(&[Answer::Redirect]);
    let lost = slack.attempt(&url, &app.secret, &webhook, None).await;
    assert_eq!(lost.wrong, Some(Reason::TooManyRedirects));
    assert_eq!(gateway.heard().len(), 3 + 3);
}

#[tokio::test]
async fn who_asks_for_no_retry_gets_none() {
    let (slack, app, webhook) = slack().await;
    let (_gateway, url) = Scripted::start(&[Answer::NoRetry]).await;
    let delivery = slack.deliver(&url, &app.secret, &webhook, true).await;
    assert_eq!((delivery.is_taken(), delivery.attempts.len()), (false, 1));
}

#[tokio::test]
async fn an_app_that_fails_more_than_95_of_100_in_an_hour_is_switched_off() {
    let (slack, app, webhook) = slack().await;
    let (gateway, url) = Scripted::start(&[Answer::Status(200)]).await;
    for n in 0..1_000 {
        if n == 50 {
            gateway.script(&[Answer::Status(404)]);
        }
        slack.attempt(&url, &app.secret, &webhook, None).await;
    }
    assert!(!slack.is_switched_off(&url), "95 of 100 are not more than that");
    slack.attempt(&url, &app.secret, &webhook, None).await;
    let delivery = slack.deliver(&url, &app.secret, &webhook, false).await;
    assert!(delivery.switched_off && delivery.attempts.is_empty());
    assert_eq!(gateway.heard().len(), 1_001);
    slack.switch_on(&url);
    slack.clock().advance(Duration::from_secs(3600));
    gateway.script(&[Answer::Status(200)]);
    assert!(slack.deliver(&url, &app.secret, &webhook, false).await.is_taken());
}

#[tokio::test]
async fn what_was_refused_while_nats_was_away_is_taken_when_slack_sends_it_again_and_handled_once()
{
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let webhook = Webhook::message(&world.slack, &app, "C1", "U1", "hello");
    let url = world.ingests[0].url(&app);
    world.nats.kill();
    let back = async {
        until("both quick attempts are refused", SOON, async || {
            (world.slack.attempts_at(&url) >= 2).then_some(())
        })
        .await;
        world.nats.restart().await.expect("NATS comes back");
        until("webhooks are taken again", SOON, async || {
            let other = Webhook::message(&world.slack, &app, "C2", "U1", "hello");
            (world.send(&app, &other).await.ok()?.status == 200).then_some(())
        })
        .await;
        world.slack.clock().advance(Duration::from_secs(60));
    };
    let (delivery, ()) =
        tokio::join!(world.slack.deliver(&url, &app.secret, &webhook, false), back);
    let statuses: Vec<_> = delivery
        .attempts
        .iter()
        .filter_map(|attempt| attempt.answer.as_ref().map(|answer| answer.status))
        .collect();
    assert_eq!(statuses, [503, 503, 200]);
    assert_eq!(world.handled(&webhook.dedupe).await.outcome, "ignored");
}
