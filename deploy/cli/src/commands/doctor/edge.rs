//! Checks the way from Slack to ingest: a request to the public URL arrives as it was sent.

use super::Finding;
use anyhow::Context as _;
use reqwest::{Client, header::CONTENT_TYPE, redirect::Policy};
use std::{error::Error as _, time::Duration};

const COMPONENT: &str = "edge";
/// Time after which Slack gives a webhook up.
const SLACK_TIMEOUT: Duration = Duration::from_secs(3);

/// Posts an unsigned body to the URL of the app's webhooks, which ingest refuses.
pub(super) async fn check(url: &str, findings: &mut Vec<Finding>) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default(); // once in a process
    let http = Client::builder()
        .redirect(Policy::none())
        .no_proxy()
        .timeout(SLACK_TIMEOUT)
        .build()
        .context("failed to create the HTTP client")?;
    let sent = http.post(url).header(CONTENT_TYPE, "application/json").body("{}").send().await;
    findings.push(match sent {
        Ok(response) => refusal(url, response.status().as_u16()),
        Err(error) => {
            let cause =
                error.source().map_or_else(|| "no response".to_owned(), ToString::to_string);
            Finding::problem(
                COMPONENT,
                format!("{url} does not answer within 3 s: {cause}"),
                "check the DNS name, the certificate and the proxy in front of ingest",
            )
        }
    });
    Ok(())
}

/// Judges the status of the response to an unsigned body with a length.
fn refusal(url: &str, status: u16) -> Finding {
    let problem =
        |what: &str, remedy: &str| Finding::problem(COMPONENT, format!("{url} {what}"), remedy);
    match status {
        401 => Finding::good(COMPONENT, format!("{url} reaches ingest unchanged")),
        400 => problem(
            "gets bodies in chunks: a proxy replaces Content-Length by Transfer-Encoding, which \
             ingest refuses with 400; Slack disables an app whose webhooks fail",
            "let the proxy read a request before it forwards it, as nginx does with \
             proxy_request_buffering on",
        ),
        404 => problem(
            "answers 404: no ingest is behind the URL, or the connection is not declared, or the \
             shared app has no signing secret",
            "route the path to ingest, and check the connection with tidegate connections list",
        ),
        status => problem(
            &format!("answers {status} where ingest answers 401"),
            "check the route, the access rules and the logs of the proxy in front of ingest",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::render;

    #[test]
    fn explains_statuses() {
        let findings = [401, 400, 404, 403].map(|status| refusal("https://gw.example/x", status));
        insta::assert_snapshot!(render(&findings), @r"
        good     edge      https://gw.example/x reaches ingest unchanged
        problem  edge      https://gw.example/x gets bodies in chunks: a proxy replaces Content-Length by Transfer-Encoding, which ingest refuses with 400; Slack disables an app whose webhooks fail
                           → let the proxy read a request before it forwards it, as nginx does with proxy_request_buffering on
        problem  edge      https://gw.example/x answers 404: no ingest is behind the URL, or the connection is not declared, or the shared app has no signing secret
                           → route the path to ingest, and check the connection with tidegate connections list
        problem  edge      https://gw.example/x answers 403 where ingest answers 401
                           → check the route, the access rules and the logs of the proxy in front of ingest
        ");
    }
}
