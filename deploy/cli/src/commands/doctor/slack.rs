//! Comparison of connections with what Slack answers about their tokens.
//!
//! Ingest answers a webhook whose body names another app or installation than the connection's with
//! 200 and drops it. So a wrong `app` or `team` in `tidegate.toml` loses every webhook, and Slack
//! reports no error.

use super::{Finding, settings::SlackSettings};
use crate::slack_api::{Answer, SlackApi, TokenFacts};
use futures_util::{StreamExt, stream};
use shared::{
    domain::{ConnectionStatus, EnterpriseId, TeamId},
    runtime::telemetry::ErrorChain,
    slack::Installation,
    store::{ConnectionSummary, Store},
};
use std::{fmt, time::Duration};
use tokio::time::Instant;

const COMPONENT: &str = "slack";
/// Maximum number of connections that are asked about at the same time.
const CONCURRENT_MAX: usize = 16;
/// Maximum time to ask about all connections.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum number of refused tokens that are named.
const NAMED_MAX: usize = 10;

/// Compares all usable connections with their tokens. The store has the keyring of tokens.
pub(super) async fn check(settings: &SlackSettings, store: &Store, findings: &mut Vec<Finding>) {
    if settings.token_keyring.is_none() {
        return findings.push(Finding::warning(
            COMPONENT,
            "connections are not compared with their tokens: there is no keyring",
            "set TIDEGATE_TOKEN_KEYRING",
        ));
    }
    let connections = store.connection_summaries(None).await.unwrap_or_default();
    let is_usable = |c: &ConnectionSummary| {
        let is_live = matches!(c.status, ConnectionStatus::Active | ConnectionStatus::Error);
        is_live && c.has_bot_token
    };
    let connections: Vec<_> = connections.into_iter().filter(is_usable).collect();
    match SlackApi::new(&settings.slack_api_url) {
        Ok(slack) => findings.extend(render(&ask_about_all(&slack, store, connections).await)),
        Err(error) => findings.push(Finding::problem(
            COMPONENT,
            format!("{error:#}"),
            "set TIDEGATE_SLACK_API_URL to https://slack.com/api/",
        )),
    }
}

/// Asks about each connection until the first that Slack does not answer, or the end of the time.
async fn ask_about_all(
    slack: &SlackApi,
    store: &Store,
    connections: Vec<ConnectionSummary>,
) -> Vec<(ConnectionSummary, Answer)> {
    let deadline = Instant::now() + TIMEOUT;
    let mut answers = stream::iter(connections)
        .map(|connection| async move {
            let answer = async {
                match store.load_bot_token(connection.id).await {
                    Ok(Some(token)) => match slack.ask(&token).await {
                        Answer::RateLimited(time) => {
                            Answer::Failed(format!("rate limited for {time:?}"))
                        }
                        answer => answer,
                    },
                    Ok(None) => Answer::Refused("it has no token any more".into()),
                    Err(error) => Answer::Failed(ErrorChain(&error).to_string()),
                }
            };
            let answer = tokio::time::timeout_at(deadline, answer).await;
            let late = || Answer::Failed(format!("it took over {TIMEOUT:?}"));
            (connection, answer.unwrap_or_else(|_| late()))
        })
        .buffer_unordered(CONCURRENT_MAX);
    let mut all = Vec::new();
    while let Some(answer) = answers.next().await {
        let is_over = matches!(answer.1, Answer::Failed(_));
        all.push(answer);
        if is_over {
            break;
        }
    }
    all
}

/// Returns the findings about connections and their tokens.
fn render(answers: &[(ConnectionSummary, Answer)]) -> Vec<Finding> {
    let (mut findings, mut matching, mut refused) = (Vec::new(), 0, 0);
    for (connection, answer) in answers {
        match answer {
            Answer::Answered(facts) => {
                let found = mismatches(connection, facts);
                matching += usize::from(found.is_empty());
                findings.extend(found);
            }
            Answer::Refused(code) => {
                refused += 1;
                if refused <= NAMED_MAX {
                    findings.push(Finding::warning(
                        COMPONENT,
                        format!("the token of connection {} is of no use: {code}", connection.id),
                        "install the app again and declare its new token with tidegate apply",
                    ));
                }
            }
            // Replaced by a failure above.
            Answer::RateLimited(_) => {}
            Answer::Failed(reason) => findings.push(Finding::warning(
                COMPONENT,
                format!("failed to compare connections with their tokens: {reason}"),
                "check TIDEGATE_TOKEN_KEYRING, and the network path to TIDEGATE_SLACK_API_URL",
            )),
        }
    }
    if findings.is_empty() && matching > 0 {
        let summary = format!("app and workspace are those of the token: {matching} connections");
        findings.push(Finding::good(COMPONENT, summary));
    }
    findings
}

/// Returns the findings about one connection. The comparison of installations is that of ingest.
fn mismatches(connection: &ConnectionSummary, facts: &TokenFacts) -> Vec<Finding> {
    let id = connection.id;
    let dropped = "ingest drops the webhooks that Slack sends for it";
    let mut found = Vec::new();
    if let Some(app) = facts.app.as_ref().filter(|app| **app != connection.app.as_str()) {
        found.push(Finding::problem(
            COMPONENT,
            format!(
                "connection {id} is declared for app {}, and its token is of app {app}: {dropped}",
                connection.app
            ),
            format!("set app = \"{app}\" for it in tidegate.toml, and run tidegate apply"),
        ));
    }
    let Installation { enterprise, team } = &facts.installation;
    let declared = (connection.enterprise.as_ref(), connection.team.as_ref());
    if !facts.installation.may_be_of(declared.0, declared.1) {
        let (declared, actual) =
            (Ids(declared.0, declared.1), Ids(enterprise.as_ref(), team.as_ref()));
        found.push(Finding::problem(
            COMPONENT,
            format!("connection {id} is declared for {declared}, and its token is of {actual}: {dropped}"),
            format!("declare it for {actual} in tidegate.toml, and run tidegate apply"),
        ));
    }
    let users = connection.bot_user.as_ref().zip(facts.bot_user.as_ref());
    if let Some((declared, actual)) = users.filter(|(declared, actual)| declared != actual) {
        found.push(Finding::problem(
            COMPONENT,
            format!(
                "connection {id} is declared with bot user {declared}, and its token is of \
                 {actual}: mentions and its own messages are not recognized"
            ),
            format!("set bot_user = \"{actual}\" for it in tidegate.toml, and run tidegate apply"),
        ));
    }
    found
}

/// Ids of an installation, in the words of `tidegate.toml`.
struct Ids<'a>(Option<&'a EnterpriseId>, Option<&'a TeamId>);

impl fmt::Display for Ids<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ids(None, None) => f.write_str("no installation"),
            Ids(None, Some(team)) => write!(f, "team {team}"),
            Ids(Some(enterprise), None) => write!(f, "enterprise {enterprise}"),
            Ids(Some(enterprise), Some(team)) => {
                write!(f, "team {team} of enterprise {enterprise}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::render as render_findings;
    use serde_json::json;

    fn connection(enterprise: Option<&str>, team: Option<&str>) -> ConnectionSummary {
        ConnectionSummary {
            id: format!("{:032x}", 7).parse().expect("an id"),
            organization: "acme".parse().expect("an id"),
            agent: None,
            app: "A1".parse().expect("an id"),
            enterprise: enterprise.map(|id| id.parse().expect("an id")),
            team: team.map(|id| id.parse().expect("an id")),
            preview_mode: false,
            status: ConnectionStatus::Active,
            reason: String::new(),
            bot_user: Some("U1".into()),
            scopes: Vec::new(),
            installed_by: None,
            has_bot_token: true,
            settings: serde_json::from_value(json!({})).expect("the defaults"),
            bindings: 0,
            backlog: None,
            sending_paused_at: None,
            installed_at: None,
            updated_at: None,
            version: 1,
        }
    }

    fn answered(app: &str, enterprise: Option<&str>, team: Option<&str>, bot_user: &str) -> Answer {
        Answer::Answered(TokenFacts {
            installation: Installation {
                enterprise: enterprise.map(|id| id.parse().expect("an id")),
                team: team.map(|id| id.parse().expect("an id")),
            },
            bot_user: Some(bot_user.into()),
            app: Some(app.into()),
        })
    }

    #[test]
    fn renders_mismatches() {
        let one = Some("T1");
        let found = render(&[
            (connection(None, one), answered("A2", None, one, "U1")),
            (connection(None, one), answered("A1", None, Some("T2"), "U1")),
            (connection(Some("E1"), None), answered("A1", Some("E2"), None, "U1")),
            (connection(Some("E1"), one), answered("A1", Some("E1"), Some("T2"), "U2")),
            (connection(None, one), Answer::Refused("invalid_auth".into())),
            (connection(None, one), Answer::Failed("connection refused".into())),
        ]);
        insta::assert_snapshot!(render_findings(&found), @r#"
        problem  slack     connection 00000000000000000000000000000007 is declared for app A1, and its token is of app A2: ingest drops the webhooks that Slack sends for it
                           → set app = "A2" for it in tidegate.toml, and run tidegate apply
        problem  slack     connection 00000000000000000000000000000007 is declared for team T1, and its token is of team T2: ingest drops the webhooks that Slack sends for it
                           → declare it for team T2 in tidegate.toml, and run tidegate apply
        problem  slack     connection 00000000000000000000000000000007 is declared for enterprise E1, and its token is of enterprise E2: ingest drops the webhooks that Slack sends for it
                           → declare it for enterprise E2 in tidegate.toml, and run tidegate apply
        problem  slack     connection 00000000000000000000000000000007 is declared for team T1 of enterprise E1, and its token is of team T2 of enterprise E1: ingest drops the webhooks that Slack sends for it
                           → declare it for team T2 of enterprise E1 in tidegate.toml, and run tidegate apply
        problem  slack     connection 00000000000000000000000000000007 is declared with bot user U1, and its token is of U2: mentions and its own messages are not recognized
                           → set bot_user = "U2" for it in tidegate.toml, and run tidegate apply
        warning  slack     the token of connection 00000000000000000000000000000007 is of no use: invalid_auth
                           → install the app again and declare its new token with tidegate apply
        warning  slack     failed to compare connections with their tokens: connection refused
                           → check TIDEGATE_TOKEN_KEYRING, and the network path to TIDEGATE_SLACK_API_URL
        "#);
    }

    #[test]
    fn accepts_what_ingest_accepts() {
        let no_app = Answer::Answered(TokenFacts {
            installation: Installation { enterprise: None, team: "T1".parse().ok() },
            bot_user: None,
            app: None,
        });
        let found = render(&[
            (connection(None, Some("T1")), answered("A1", None, Some("T1"), "U1")),
            (connection(None, Some("T1")), answered("A1", Some("E1"), Some("T1"), "U1")),
            (connection(Some("E1"), None), answered("A1", Some("E1"), Some("T1"), "U1")),
            (connection(Some("E1"), None), answered("A1", Some("E1"), None, "U1")),
            (connection(None, None), answered("A1", None, Some("T9"), "U1")),
            (connection(None, Some("T1")), no_app),
        ]);
        insta::assert_snapshot!(
            render_findings(&found),
            @"good     slack     app and workspace are those of the token: 6 connections"
        );
    }
}
