//! Delivery by the simulated Slack, with Slack's retries: at once, after one minute, and after
//! five.

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
    eventually::eventually,
    slack::{Slack, delivery::Reason, webhook::Webhook},
    test_env::{App, SMALL, TIMEOUT, TestEnv},
};

/// Gateway with a list of answers, the last of which is repeated. Records retry headers.
#[derive(Clone, Default)]
struct ScriptedGateway {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    received: Arc<Mutex<Vec<(String, String)>>>,
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    Status(u16),
    Redirect,
    NoRetry,
}

impl ScriptedGateway {
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

    fn requests(&self) -> Vec<(String, String)> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn wait_for_requests(&self, count: usize) {
        eventually(&format!("{count} attempts"), TIMEOUT, async || {
            (self.requests().len() >= count).then_some(())
        })
        .await;
    }
}

async fn answer(State(gateway): State<ScriptedGateway>, headers: HeaderMap) -> impl IntoResponse {
    let text =
        |name| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let retry = (text("x-slack-retry-num"), text("x-slack-retry-reason"));
    gateway.received.lock().unwrap_or_else(PoisonError::into_inner).push(retry);
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

async fn start_slack() -> (Slack, App, Webhook) {
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

/// A failed delivery is retried at once, after one minute and after five, with the retry headers.
#[tokio::test]
async fn retries_three_times() {
    let (slack, app, webhook) = start_slack().await;
    let (gateway, url) = ScriptedGateway::start(&[Answer::Status(503)]).await;
    let moving = async {
        gateway.wait_for_requests(2).await;
        slack.clock().advance(Duration::from_secs(59));
        assert_eq!(gateway.requests().len(), 2, "not before a minute is over");
        slack.clock().advance(Duration::from_secs(1));
        gateway.wait_for_requests(3).await;
        gateway.script(&[Answer::Status(200)]);
        slack.clock().advance(Duration::from_secs(5 * 60));
    };
    let (delivery, ()) = tokio::join!(slack.deliver(&url, &app.secret, &webhook, false), moving);
    assert!(delivery.is_accepted());
    let requests = gateway.requests();
    let requests: Vec<_> = requests.iter().map(|(n, why)| (n.as_str(), why.as_str())).collect();
    let again = |n| (n, "http_error");
    assert_eq!(requests, [("", ""), again("1"), again("2"), again("3")]);
}

/// Events of an app with delayed events are retried every hour for a day.
#[tokio::test]
async fn retries_delayed_hourly() {
    let (slack, app, webhook) = start_slack().await;
    let (gateway, url) = ScriptedGateway::start(&[Answer::Status(500)]).await;
    let moving = async {
        for count in 2..28 {
            gateway.wait_for_requests(count).await;
            slack.clock().advance(Duration::from_secs(3600));
        }
    };
    let (delivery, ()) = tokio::join!(slack.deliver(&url, &app.secret, &webhook, true), moving);
    assert_eq!((delivery.is_accepted(), delivery.attempts.len()), (false, 28));
}

/// A delivery follows two redirects, and fails at the third.
#[tokio::test]
async fn follows_two_redirects() {
    let (slack, app, webhook) = start_slack().await;
    let (gateway, url) =
        ScriptedGateway::start(&[Answer::Redirect, Answer::Redirect, Answer::Status(200)]).await;
    assert_eq!(slack.attempt(&url, &app.secret, &webhook, None).await.wrong, None);
    gateway.script(&[Answer::Redirect]);
    let lost = slack.attempt(&url, &app.secret, &webhook, None).await;
    assert_eq!(lost.wrong, Some(Reason::TooManyRedirects));
    assert_eq!(gateway.requests().len(), 3 + 3);
}

/// A response with `x-slack-no-retry` ends the retries.
#[tokio::test]
async fn honors_no_retry_header() {
    let (slack, app, webhook) = start_slack().await;
    let (_gateway, url) = ScriptedGateway::start(&[Answer::NoRetry]).await;
    let delivery = slack.deliver(&url, &app.secret, &webhook, true).await;
    assert_eq!((delivery.is_accepted(), delivery.attempts.len()), (false, 1));
}

/// An app is disabled once more than 95 % of at least 1,000 attempts of an hour failed.
#[tokio::test]
async fn disables_failing_app() {
    let (slack, app, webhook) = start_slack().await;
    let (gateway, url) = ScriptedGateway::start(&[Answer::Status(200)]).await;
    for n in 0..1_000 {
        if n == 50 {
            gateway.script(&[Answer::Status(404)]);
        }
        slack.attempt(&url, &app.secret, &webhook, None).await;
    }
    assert!(!slack.is_disabled(&url), "exactly 95 % do not disable the app");
    slack.attempt(&url, &app.secret, &webhook, None).await;
    let delivery = slack.deliver(&url, &app.secret, &webhook, false).await;
    assert!(delivery.disabled && delivery.attempts.is_empty());
    assert_eq!(gateway.requests().len(), 1_001);
    slack.switch_on(&url);
    slack.clock().advance(Duration::from_secs(3600));
    gateway.script(&[Answer::Status(200)]);
    assert!(slack.deliver(&url, &app.secret, &webhook, false).await.is_accepted());
}

/// A webhook that was refused while NATS was down is accepted when Slack resends it, and processed
/// once.
#[tokio::test]
async fn redelivers_after_outage() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
    let url = env.ingests[0].url(&app);
    env.nats.kill();
    let back = async {
        eventually("the first two attempts are refused", TIMEOUT, async || {
            (env.slack.attempts_at(&url) >= 2).then_some(())
        })
        .await;
        env.nats.restart().await.expect("NATS comes back");
        eventually("webhooks are accepted again", TIMEOUT, async || {
            let other = Webhook::message(&env.slack, &app, "C2", "U1", "hello");
            (env.send(&app, &other).await.ok()?.status == 200).then_some(())
        })
        .await;
        env.slack.clock().advance(Duration::from_secs(60));
    };
    let (delivery, ()) = tokio::join!(env.slack.deliver(&url, &app.secret, &webhook, false), back);
    let statuses: Vec<_> = delivery
        .attempts
        .iter()
        .filter_map(|attempt| attempt.answer.as_ref().map(|answer| answer.status))
        .collect();
    assert_eq!(statuses, [503, 503, 200]);
    assert_eq!(env.wait_for_outcome(&webhook.dedup_key).await.outcome, "ignored");
}
