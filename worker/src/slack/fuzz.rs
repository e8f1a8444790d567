//! Fuzz targets for Slack's answers.

use super::{
    Action, ApiResult, RETRY_AFTER_MAX, ResponseUrlResult, Slack, has_mark, postable, read_answer,
};
use crate::answer_generator::body;
use axum::http;
use futures_util::FutureExt;
use std::time::Duration;

const INPUTS: usize = 20_000;
const TIME: Duration = Duration::from_secs(5);
const WAIT_MAX: Duration = Duration::from_secs(RETRY_AFTER_MAX);
const REASON_CHARS: usize = 120;

const STATUSES: [u16; 8] = [200, 429, 400, 404, 410, 500, 503, 302];
const RETRY_AFTER: [&[u8]; 6] =
    [b"", b"30", b"-1", b"99999999999999999999", b"Wed, 21 Oct 2026 07:28:00 GMT", b"\xff"];

/// Converts an input to a response. The input has a byte for the status, one for `Retry-After`, and
/// the body.
fn response(input: &[u8]) -> Option<reqwest::Response> {
    let [status, retry_after, rest @ ..] = input else { return None };
    let status = STATUSES[usize::from(*status) % STATUSES.len()];
    let retry_after = RETRY_AFTER[usize::from(*retry_after) % RETRY_AFTER.len()];
    let response = http::Response::builder().status(status).header("retry-after", retry_after);
    response.body(body(rest)).ok().map(reqwest::Response::from)
}

fn reads_api_answer(input: &[u8]) {
    let Some(response) = response(input) else { return };
    let result = read_answer(response).now_or_never().expect("the body is in memory");
    match result {
        ApiResult::Succeeded(answer) => {
            let _ = (has_mark(&answer, "mark"), postable(&answer, Some("mark")));
        }
        ApiResult::RateLimited(wait) => assert!(wait <= WAIT_MAX, "{wait:?}"),
        ApiResult::Refused(action, code) => {
            assert!(action != Action::Wait && code.chars().count() <= REASON_CHARS, "{code}");
        }
        ApiResult::Ambiguous(reason) => {
            assert!(reason.chars().count() <= REASON_CHARS, "{reason}");
        }
        ApiResult::NotSent(reason) => panic!("an answer was received: {reason}"),
    }
}

#[test]
fn reads_any_api_answer() {
    bolero::check!().with_iterations(INPUTS).for_each(reads_api_answer);
    bolero::check!().with_test_time(TIME).for_each(reads_api_answer);
}

fn reads_response_url(input: &[u8]) {
    let Some(response) = response(input) else { return };
    let result = Slack::read_response_url(response).now_or_never();
    let result = result.expect("the body is in memory");
    match result {
        ResponseUrlResult::Succeeded => {}
        ResponseUrlResult::RateLimited(wait) => assert!(wait <= WAIT_MAX, "{wait:?}"),
        ResponseUrlResult::UsedUp(reason)
        | ResponseUrlResult::Refused(reason)
        | ResponseUrlResult::Ambiguous(reason) => {
            assert!(reason.chars().count() <= REASON_CHARS, "{reason}");
        }
        ResponseUrlResult::NotSent(reason) => panic!("an answer was received: {reason}"),
    }
}

#[test]
fn reads_any_response_url_answer() {
    bolero::check!().with_iterations(INPUTS).for_each(reads_response_url);
    bolero::check!().with_test_time(TIME).for_each(reads_response_url);
}
