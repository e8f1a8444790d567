//! Comparison of connections with the app, installation and bot user of their tokens.
//!
//! Ingest answers a webhook for another app or installation than the connection's with 200 and
//! drops it. So a wrong `app` or `team` in `tidegate.toml` loses every webhook, and Slack reports
//! no error.

use super::{Finding, settings::SlackSettings};
use crate::slack_api::{SlackApi, TokenFacts, TokenLookup};
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
/// Maximum number of concurrent token lookups.
const CONCURRENT_MAX: usize = 16;
/// Maximum time of all token lookups together.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum number of rejected tokens with a finding.
const NAMED_MAX: usize = 10;

/// Compares all usable connections with their tokens. `store` needs the keyring of tokens.
pub(super) async fn check(settings: &SlackSettings, store: &Store, findings: &mut Vec<Finding>) {
    if settings.token_keyring.is_none() {
        return findings.push(Finding::warning(
            COMPONENT,
            "connections are not compared with their tokens: no keyring is set",
            "set TIDEGATE_TOKEN_KEYRING",
        ));
    }
    let connections = match store.connection_summaries(None).await {
        Ok(connections) => connections,
        Err(error) => return findings.push(Finding::unread_connections(&error)),
    };
    let is_usable = |c: &ConnectionSummary| {
        let is_live = matches!(c.status, ConnectionStatus::Active | ConnectionStatus::Error);
        is_live && c.has_bot_token
    };
    let connections: Vec<_> = connections.into_iter().filter(is_usable).collect();
    match SlackApi::new(&settings.slack_api_url) {
        Ok(slack) => findings.extend(render(&look_up_all(&slack, store, connections).await)),
        Err(error) => findings.push(Finding::problem(
            COMPONENT,
            format!("{error:#}"),
            "set TIDEGATE_SLACK_API_URL to https://slack.com/api/",
        )),
    }
}

/// Looks up the tokens of connections, until the first lookup fails or the time ends.
async fn look_up_all(
    slack: &SlackApi,
    store: &Store,
    connections: Vec<ConnectionSummary>,
) -> Vec<(ConnectionSummary, TokenLookup)> {
    let deadline = Instant::now() + TIMEOUT;
    let mut lookups = stream::iter(connections)
        .map(|connection| async move {
            let lookup = async {
                match store.load_bot_token(connection.id).await {
                    Ok(Some(token)) => match slack.look_up_token(&token).await {
                        TokenLookup::RateLimited(time) => {
                            TokenLookup::Failed(format!("rate limited for {time:?}"))
                        }
                        lookup => lookup,
                    },
                    Ok(None) => TokenLookup::Rejected("its token was deleted".into()),
                    Err(error) => TokenLookup::Failed(ErrorChain(&error).to_string()),
                }
            };
            let lookup = tokio::time::timeout_at(deadline, lookup).await;
            let late = || TokenLookup::Failed(format!("not finished within {TIMEOUT:?}"));
            (connection, lookup.unwrap_or_else(|_| late()))
        })
        .buffer_unordered(CONCURRENT_MAX);
    let mut all = Vec::new();
    while let Some(lookup) = lookups.next().await {
        let is_over = matches!(lookup.1, TokenLookup::Failed(_));
        all.push(lookup);
        if is_over {
            break;
        }
    }
    all
}

/// Returns the findings about connections and their tokens.
fn render(lookups: &[(ConnectionSummary, TokenLookup)]) -> Vec<Finding> {
    let (mut findings, mut matching, mut rejected) = (Vec::new(), 0, 0);
    for (connection, lookup) in lookups {
        match lookup {
            TokenLookup::Found(facts) => {
                let found = mismatches(connection, facts);
                matching += usize::from(found.is_empty());
                findings.extend(found);
            }
            TokenLookup::Rejected(code) => {
                rejected += 1;
                if rejected <= NAMED_MAX {
                    findings.push(Finding::warning(
                        COMPONENT,
                        format!("the token of connection {} is unusable: {code}", connection.id),
                        "install the app again and declare its new token with tidegate apply",
                    ));
                }
            }
            // `look_up_all` replaces this by `Failed`.
            TokenLookup::RateLimited(_) => {}
            TokenLookup::Failed(reason) => findings.push(Finding::warning(
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

/// Returns the findings about one connection. Compares installations as ingest does.
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

/// Ids of an installation, named as in `tidegate.toml`.
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
    use crate::commands::doctor::{render as render_findings, unreachable_store};
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

    fn token_of(
        app: &str,
        enterprise: Option<&str>,
        team: Option<&str>,
        bot_user: &str,
    ) -> TokenLookup {
        TokenLookup::Found(TokenFacts {
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
            (connection(None, one), token_of("A2", None, one, "U1")),
            (connection(None, one), token_of("A1", None, Some("T2"), "U1")),
            (connection(Some("E1"), None), token_of("A1", Some("E2"), None, "U1")),
            (connection(Some("E1"), one), token_of("A1", Some("E1"), Some("T2"), "U2")),
            (connection(None, one), TokenLookup::Rejected("invalid_auth".into())),
            (connection(None, one), TokenLookup::Failed("connection refused".into())),
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
        warning  slack     the token of connection 00000000000000000000000000000007 is unusable: invalid_auth
                           → install the app again and declare its new token with tidegate apply
        warning  slack     failed to compare connections with their tokens: connection refused
                           → check TIDEGATE_TOKEN_KEYRING, and the network path to TIDEGATE_SLACK_API_URL
        "#);
    }

    #[tokio::test]
    async fn reports_unread_connections() {
        let settings = SlackSettings {
            token_keyring: Some(shared::secrets::KeyRing::default()),
            signing_secret_keyring: None,
            slack_api_url: "https://slack.invalid/".parse().expect("a URL"),
        };
        let mut findings = Vec::new();
        check(&settings, &unreachable_store(), &mut findings).await;
        let found = render_findings(&findings);
        assert!(
            found.starts_with("problem  postgres  failed to read the connections: "),
            "{found}"
        );
    }

    #[test]
    fn accepts_matching_installations() {
        let no_app = TokenLookup::Found(TokenFacts {
            installation: Installation { enterprise: None, team: "T1".parse().ok() },
            bot_user: None,
            app: None,
        });
        let found = render(&[
            (connection(None, Some("T1")), token_of("A1", None, Some("T1"), "U1")),
            (connection(None, Some("T1")), token_of("A1", Some("E1"), Some("T1"), "U1")),
            (connection(Some("E1"), None), token_of("A1", Some("E1"), Some("T1"), "U1")),
            (connection(Some("E1"), None), token_of("A1", Some("E1"), None, "U1")),
            (connection(None, None), token_of("A1", None, Some("T9"), "U1")),
            (connection(None, Some("T1")), no_app),
        ]);
        insta::assert_snapshot!(
            render_findings(&found),
            @"good     slack     app and workspace are those of the token: 6 connections"
        );
    }
}
