//! `tidegate apply --check-tokens`: compares declared connections with their bot tokens in Slack.

use crate::{
    output,
    slack_api::{self, SlackApi, TokenFacts, TokenLookup},
};
use reqwest::Url;
use shared::store::{ConflictError, Declared, DeclaredConnection};
use tokio::time::Instant;

/// Arguments of the check.
#[derive(Debug, clap::Args)]
pub struct TokenCheck {
    /// Look up each bot token in Slack first, and apply nothing if one does not fit its
    /// connection.
    #[arg(long)]
    check_tokens: bool,
    /// Base URL of Slack's Web API.
    #[arg(
        long,
        env = "TIDEGATE_SLACK_API_URL",
        value_name = "URL",
        default_value = "https://slack.com/api/",
        help_heading = "Settings"
    )]
    slack_api_url: Url,
}

impl TokenCheck {
    /// Returns the connections whose tokens do not fit, with the reason. Checks nothing without
    /// `--check-tokens`.
    pub async fn run(
        &self,
        connections: &[DeclaredConnection],
    ) -> anyhow::Result<Vec<ConflictError>> {
        let mut conflicts = Vec::new();
        if !self.check_tokens {
            return Ok(conflicts);
        }
        let (slack, mut next) = (SlackApi::new(&self.slack_api_url)?, Instant::now());
        for (n, connection) in connections.iter().enumerate() {
            let Some(token) = &connection.bot_token else { continue };
            let look_up = async || slack.look_up_token(token).await;
            let why = match slack_api::look_up_paced(look_up, &mut next).await {
                TokenLookup::Found(facts) => mismatch(connection, &facts),
                TokenLookup::Rejected(code) => {
                    let code = output::sanitize(&code);
                    Some(format!("Slack rejects the bot_token ({code}); install the app again"))
                }
                TokenLookup::Failed(why) => Some(format!("failed to check the bot_token: {why}")),
                TokenLookup::RateLimited(wait) => {
                    Some(format!("Slack limits the rate of calls; check again after {wait:?}"))
                }
            };
            conflicts.extend(why.map(|why| ConflictError { at: Declared::Connection(n), why }));
        }
        Ok(conflicts)
    }
}

/// Returns the difference between a connection and its token.
fn mismatch(declared: &DeclaredConnection, facts: &TokenFacts) -> Option<String> {
    let installation = &facts.installation;
    let place = installation.team.as_ref().map(ToString::to_string);
    let place = place.or_else(|| installation.enterprise.as_ref().map(ToString::to_string));
    let fits = installation.may_be_of(declared.enterprise.as_ref(), declared.team.as_ref());
    let differs = |declared: Option<&str>, own: &str| declared.is_some_and(|id| id != own);
    let bot_user = declared.bot_user.as_ref().map(|user| user.as_str());
    let wrong = match (facts.app.as_deref(), facts.bot_user.as_deref()) {
        (Some(app), _) if differs(Some(declared.app.as_str()), app) => format!("app {app}"),
        _ if !fits => place.unwrap_or_else(|| "another workspace".into()),
        (_, Some(user)) if differs(bot_user, user) => format!("bot_user {user}"),
        _ => return None,
    };
    Some(format!("the bot_token belongs to {}", output::sanitize(&wrong)))
}
