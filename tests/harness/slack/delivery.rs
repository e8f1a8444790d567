//! Delivery of webhooks with Slack's timeout and retries. An app that fails too often is disabled.
//!
//! An app has three seconds to answer. Events are retried at once, after one minute and after five
//! minutes, with the number and the reason of the retry. With delayed events they are then retried
//! every hour for a day. Two redirects are followed. Commands and clicks are sent once. An app that
//! fails more than 95 % of the attempts within an hour gets no webhooks until a person enables it
//! again. Apps with fewer than a thousand attempts an hour are exempt.
//!
//! All waits between attempts use the clock of the simulated Slack ([`super::clock::Clock`]).

use super::{Answer, Slack, sign, unix_now, webhook::Webhook};
use axum::http::header::LOCATION;
use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant, SystemTime},
};

/// Time that Slack waits for an answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum number of redirects.
const REDIRECTS_MAX: usize = 2;
/// Times before the second, third and fourth attempt.
pub(super) const RETRIES: [Duration; 3] =
    [Duration::ZERO, Duration::from_secs(60), Duration::from_secs(5 * 60)];
/// Interval and number of delayed attempts.
const HOURLY: (Duration, u32) = (Duration::from_secs(3600), 24);
/// Period over which failures are counted.
const HOUR: Duration = Duration::from_secs(3600);
/// Minimum number of attempts in an hour for an app to be disabled.
const JUDGED_FROM: usize = 1_000;
/// Percentage of failed attempts above which an app is disabled.
const FAILED_MAX: usize = 95;

/// Reason of a failed attempt, in Slack's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No answer in time.
    HttpTimeout,
    /// More than two redirects.
    TooManyRedirects,
    /// Connection refused.
    ConnectionFailed,
    /// Status other than 2xx.
    HttpError,
    /// The connection ended before an answer.
    UnknownError,
}

impl Reason {
    /// Returns the value of `x-slack-retry-reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::HttpTimeout => "http_timeout",
            Reason::TooManyRedirects => "too_many_redirects",
            Reason::ConnectionFailed => "connection_failed",
            Reason::HttpError => "http_error",
            Reason::UnknownError => "unknown_error",
        }
    }
}

/// One attempt.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Number, from 0.
    pub number: u32,
    /// Time of Slack's clock.
    pub at: SystemTime,
    /// The answer.
    pub answer: Option<Answer>,
    /// Reason of the failure.
    pub wrong: Option<Reason>,
}

/// All attempts of one webhook.
#[derive(Debug, Clone, Default)]
pub struct Delivery {
    /// Attempts in order.
    pub attempts: Vec<Attempt>,
    /// True if the app was disabled before or during the delivery.
    pub disabled: bool,
}

impl Delivery {
    /// Returns true if the last attempt succeeded.
    pub fn is_accepted(&self) -> bool {
        self.attempts.last().is_some_and(|attempt| attempt.wrong.is_none())
    }
}

/// Failure statistics of an app.
#[derive(Debug, Clone, Default)]
pub(super) struct FailureStats {
    attempts: VecDeque<(SystemTime, bool)>,
    off: bool,
}

/// Failure statistics of all apps, by the URL of their webhooks.
#[derive(Debug, Default)]
pub(super) struct AppFailureStats(HashMap<String, FailureStats>);

impl AppFailureStats {
    fn of(&mut self, url: &str) -> &mut FailureStats {
        self.0.entry(url.to_owned()).or_default()
    }
}

impl FailureStats {
    fn record(&mut self, now: SystemTime, failed: bool) {
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
    /// Delivers an event with all retries. `delayed` is true if the app subscribed to delayed
    /// events.
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
            if self.is_disabled(url) {
                delivery.disabled = true;
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

    /// Makes one attempt. `retry` is its number and the reason of the previous failure; `None` for
    /// the first attempt.
    pub async fn attempt(
        &self,
        url: &str,
        secret: &str,
        webhook: &Webhook,
        retry: Option<(u32, Reason)>,
    ) -> Attempt {
        let at = self.clock().now();
        let tried =
            tokio::time::timeout(ANSWER_TIMEOUT, self.follow(url, secret, webhook, retry)).await;
        let (answer, wrong) = match tried {
            Err(_) => (None, Some(Reason::HttpTimeout)),
            Ok(Err(reason)) => (None, Some(reason)),
            Ok(Ok(answer)) if (200..300).contains(&answer.status) => (Some(answer), None),
            Ok(Ok(answer)) if is_redirect(&answer) => {
                (Some(answer), Some(Reason::TooManyRedirects))
            }
            Ok(Ok(answer)) => (Some(answer), Some(Reason::HttpError)),
        };
        self.state().failure_stats.of(url).record(at, wrong.is_some());
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
            headers.extend([
                ("x-slack-retry-num", &*number),
                ("x-slack-retry-reason", reason.as_str()),
            ]);
        }
        let mut to = url.to_owned();
        for followed in 0.. {
            let mut answer = match self.send_with(&to, webhook, &headers).await {
                Ok(answer) => answer,
                Err(error) => {
                    let error = error.downcast_ref::<reqwest::Error>();
                    let not_connected = error.is_some_and(reqwest::Error::is_connect);
                    return Err(match not_connected {
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

    /// Returns true if Slack has disabled webhooks to a URL.
    pub fn is_disabled(&self, url: &str) -> bool {
        self.state().failure_stats.of(url).off
    }

    /// Returns the number of attempts to a URL within the last hour.
    pub fn attempts_at(&self, url: &str) -> usize {
        self.state().failure_stats.of(url).attempts.len()
    }

    /// Enables webhooks to a URL again, as a person does.
    pub fn switch_on(&self, url: &str) {
        *self.state().failure_stats.of(url) = FailureStats::default();
    }
}

fn is_redirect(answer: &Answer) -> bool {
    matches!(answer.status, 301 | 302)
}
