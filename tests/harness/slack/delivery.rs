//! How Slack delivers: an answer within three seconds, or it comes again; and what it thinks of an app that fails too often.
//!
//! In: a webhook and where it goes. Out: every attempt, and what Slack made of it. Events come again at once, after a minute and
//! after five, with the number and the reason; with delayed events every hour for a day after that. Two redirects are followed.
//! Commands and clicks are sent once. An app more than 95 % of whose attempts fail within an hour gets nothing any more, until a
//! person switches it on again; Slack spares those that get fewer than a thousand an hour.
//!
//! What Slack waits for, it waits for by its own [`super::clock::Clock`]: move it, and an hour takes no time.

use super::{Answer, Slack, sign, unix_now, webhook::Webhook};
use axum::http::header::LOCATION;
use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant, SystemTime},
};

/// Slack waits this long for an answer.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// Redirects that it follows.
const REDIRECTS_MAX: usize = 2;
/// Waits before the second, third and fourth attempt.
const RETRIES: [Duration; 3] =
    [Duration::ZERO, Duration::from_secs(60), Duration::from_secs(5 * 60)];
/// With delayed events, this often and for so long after these.
const HOURLY: (Duration, u32) = (Duration::from_secs(3600), 24);
/// An app is judged by its last hour.
const HOUR: Duration = Duration::from_secs(3600);
/// Fewer than so many an hour, and it is not judged.
const JUDGED_FROM: usize = 1_000;
/// More than so many of a hundred failed: it is switched off.
const FAILED_MAX: usize = 95;

/// Why Slack was not satisfied, in its own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No answer in time.
    HttpTimeout,
    /// More than two redirects.
    TooManyRedirects,
    /// Nobody listens.
    ConnectionFailed,
    /// Anything but 2xx.
    HttpError,
    /// The connection ended before an answer.
    UnknownError,
}

impl Reason {
    /// As it stands in `x-slack-retry-reason`.
    pub fn word(self) -> &'static str {
        match self {
            Reason::HttpTimeout => "http_timeout",
            Reason::TooManyRedirects => "too_many_redirects",
            Reason::ConnectionFailed => "connection_failed",
            Reason::HttpError => "http_error",
            Reason::UnknownError => "unknown_error",
        }
    }
}

/// One try.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Which: 0 is the first.
    pub number: u32,
    /// When, by Slack's clock.
    pub at: SystemTime,
    /// What it got.
    pub answer: Option<Answer>,
    /// Why that was not enough.
    pub wrong: Option<Reason>,
}

/// All tries of one webhook.
#[derive(Debug, Clone, Default)]
pub struct Delivery {
    /// In order.
    pub attempts: Vec<Attempt>,
    /// The app is switched off: nothing was sent, or nothing more.
    pub switched_off: bool,
}

impl Delivery {
    /// Whether Slack is satisfied.
    pub fn is_taken(&self) -> bool {
        self.attempts.last().is_some_and(|attempt| attempt.wrong.is_none())
    }
}

/// How an app stands with Slack.
#[derive(Debug, Clone, Default)]
pub(super) struct Standing {
    attempts: VecDeque<(SystemTime, bool)>,
    off: bool,
}

/// How all apps stand, by the address that they are sent to.
#[derive(Debug, Default)]
pub(super) struct Standings(HashMap<String, Standing>);

impl Standings {
    fn of(&mut self, url: &str) -> &mut Standing {
        self.0.entry(url.to_owned()).or_default()
    }
}

impl Standing {
    fn note(&mut self, now: SystemTime, failed: bool) {
        self.attempts.push_back((now, failed));
        while self.attempts.front().is_some_and(|(at, _)| *at + HOUR <= now) {
            self.attempts.pop_front();
        }
        let failed = self.attempts.iter().filter(|(_, failed)| *failed).count();
        let all = self.attempts.len();
        if all >= JUDGED_FROM && failed * 100 > all * FAILED_MAX {
            self.off = true;
        }
    }
}

impl Slack {
    /// Delivers an event as Slack does, to the end. `delayed`: the app asked for delayed events.
    pub async fn deliver(
        &self,
        url: &str,
        secret: &str,
        webhook: &Webhook,
        delayed: bool,
    ) -> Delivery {
        let hourly = if delayed { HOURLY.1 } else { 0 };
        let waits = RETRIES.into_iter().chain((0..hourly).map(|_| HOURLY.0));
        let mut delivery = Delivery::default();
        let mut waits = waits.enumerate();
        let mut retry: Option<(u32, Reason)> = None;
        loop {
            if self.is_switched_off(url) {
                delivery.switched_off = true;
                return delivery;
            }
            let attempt = self.attempt(url, secret, webhook, retry).await;
            let last = attempt.wrong;
            let enough = attempt.answer.as_ref().is_some_and(|answer| {
                answer.headers.get("x-slack-no-retry").is_some_and(|value| value == "1")
            });
            delivery.attempts.push(attempt);
            let Some(reason) = last.filter(|_| !enough) else { return delivery };
            let Some((index, wait)) = waits.next() else { return delivery };
            retry = Some((index as u32 + 1, reason));
            self.clock().reaches(self.clock().now() + wait).await;
        }
    }

    /// One attempt, and what Slack makes of it. `retry`: which, and why the one before was not enough.
    pub async fn attempt(
        &self,
        url: &str,
        secret: &str,
        webhook: &Webhook,
        retry: Option<(u32, Reason)>,
    ) -> Attempt {
        let at = self.clock().now();
        let tried = tokio::time::timeout(PATIENCE, self.follow(url, secret, webhook, retry)).await;
        let (answer, wrong) = match tried {
            Err(_) => (None, Some(Reason::HttpTimeout)),
            Ok(Err(reason)) => (None, Some(reason)),
            Ok(Ok(answer)) if (200..300).contains(&answer.status) => (Some(answer), None),
            Ok(Ok(answer)) if is_redirect(&answer) => {
                (Some(answer), Some(Reason::TooManyRedirects))
            }
            Ok(Ok(answer)) => (Some(answer), Some(Reason::HttpError)),
        };
        self.state().standings.of(url).note(at, wrong.is_some());
        Attempt { number: retry.map_or(0, |(number, _)| number), at, answer, wrong }
    }

    async fn follow(
        &self,
        url: &str,
        secret: &str,
        webhook: &Webhook,
        retry: Option<(u32, Reason)>,
    ) -> Result<Answer, Reason> {
        let (second, began) = (unix_now().to_string(), Instant::now());
        let signature = sign(secret, &second, &webhook.body);
        let number = retry.map(|(number, _)| number.to_string()).unwrap_or_default();
        let mut headers =
            vec![("x-slack-signature", &*signature), ("x-slack-request-timestamp", &*second)];
        if let Some((_, reason)) = retry {
            headers
                .extend([("x-slack-retry-num", &*number), ("x-slack-retry-reason", reason.word())]);
        }
        let mut to = url.to_owned();
        for followed in 0.. {
            let mut answer = match self.send_with(&to, webhook, &headers).await {
                Ok(answer) => answer,
                Err(error) => {
                    let error = error.downcast_ref::<reqwest::Error>();
                    let unheard = error.is_some_and(reqwest::Error::is_connect);
                    return Err(match unheard {
                        true => Reason::ConnectionFailed,
                        false => Reason::UnknownError,
                    });
                }
            };
            answer.took = began.elapsed();
            let next = answer.headers.get(LOCATION).and_then(|value| value.to_str().ok());
            match next {
                Some(next) if is_redirect(&answer) && followed < REDIRECTS_MAX => {
                    let base = reqwest::Url::parse(&to).map_err(|_| Reason::UnknownError)?;
                    to = base.join(next).map_err(|_| Reason::UnknownError)?.to_string();
                }
                _ => return Ok(answer),
            }
        }
        Err(Reason::TooManyRedirects)
    }

    /// Whether Slack has switched off what is sent to this address.
    pub fn is_switched_off(&self, url: &str) -> bool {
        self.state().standings.of(url).off
    }

    /// How many attempts were made at this address within the hour.
    pub fn attempts_at(&self, url: &str) -> usize {
        self.state().standings.of(url).attempts.len()
    }

    /// A person switches it on again.
    pub fn switch_on(&self, url: &str) {
        *self.state().standings.of(url) = Standing::default();
    }
}

fn is_redirect(answer: &Answer) -> bool {
    matches!(answer.status, 301 | 302)
}
