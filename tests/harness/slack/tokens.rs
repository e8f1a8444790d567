//! Who may call: installations, their tokens, and how those are renewed.
//!
//! In: installations that a test makes. Out: for a token, the installation it speaks for, or Slack's word for why not. A token
//! that rotates is good for twelve hours; a refresh token is good once, and for a moment more, because two may ask at once;
//! at most two access tokens of an installation are good at a time.

use serde_json::{Value, json};
use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, SystemTime},
};

/// A token that rotates lives this long.
const TOKEN_LIFE: Duration = Duration::from_secs(12 * 3600);
/// A refresh token that was used still answers for this long.
const REFRESH_GRACE: Duration = Duration::from_secs(5);
/// Good access tokens of an installation at a time.
const TOKENS_MAX: usize = 2;
/// What an app usually asks for.
const SCOPES: [&str; 12] = [
    "app_mentions:read",
    "assistant:write",
    "channels:history",
    "channels:read",
    "chat:write",
    "commands",
    "groups:history",
    "im:history",
    "im:write",
    "mpim:history",
    "reactions:write",
    "users:read",
];

/// An app in a workspace, or in a whole organization on Grid.
#[derive(Debug, Clone)]
pub struct Installation {
    /// The app.
    pub app: String,
    /// The workspace; none when it is installed for the whole organization.
    pub team: Option<String>,
    /// The organization on Grid.
    pub enterprise: Option<String>,
    /// The bot's user.
    pub bot_user: String,
    /// What it may do.
    pub scopes: BTreeSet<String>,
}

impl Installation {
    /// An app in a workspace, allowed what apps like ours ask for.
    pub fn new(app: &str, team: &str, bot_user: &str) -> Self {
        Self {
            app: app.to_owned(),
            team: Some(team.to_owned()),
            enterprise: None,
            bot_user: bot_user.to_owned(),
            scopes: SCOPES.map(str::to_owned).into(),
        }
    }

    /// The same, without something it might do.
    pub fn without(mut self, scope: &str) -> Self {
        self.scopes.remove(scope);
        self
    }

    /// The same, for a whole organization.
    pub fn of_enterprise(mut self, enterprise: &str) -> Self {
        self.enterprise = Some(enterprise.to_owned());
        self.team = None;
        self
    }

    /// The bot, as messages name it.
    pub fn bot_id(&self) -> String {
        format!("B{}", self.bot_user.trim_start_matches(['U', 'W']))
    }
}

/// A token and the one that renews it, as an installation gives them out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The bot token.
    pub token: String,
    /// What renews it.
    pub refresh: String,
}

#[derive(Debug)]
struct Token {
    installation: usize,
    expires: Option<SystemTime>,
    refused: Option<String>,
    order: u64,
}

#[derive(Debug)]
struct Refresh {
    installation: usize,
    used: Option<SystemTime>,
}

/// Every installation and token there is.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    installations: Vec<Installation>,
    tokens: HashMap<String, Token>,
    refreshes: HashMap<String, Refresh>,
    codes: HashMap<String, usize>,
    clients: HashMap<String, String>,
    count: u64,
}

impl Tokens {
    /// A token that never runs out.
    pub(super) fn install(&mut self, token: &str, installation: Installation) {
        let installation = self.add(installation);
        self.put(token.to_owned(), installation, None);
    }

    /// Tokens that rotate.
    pub(super) fn install_rotating(&mut self, installation: Installation, now: SystemTime) -> Pair {
        let installation = self.add(installation);
        self.renewed(installation, now)
    }

    /// A code that the installation's redirect would carry.
    pub(super) fn authorize(&mut self, installation: Installation) -> String {
        let installation = self.add(installation);
        let code = format!("code.{}", self.number());
        self.codes.insert(code.clone(), installation);
        code
    }

    pub(super) fn register(&mut self, client: &str, secret: &str) {
        self.clients.insert(client.to_owned(), secret.to_owned());
    }

    /// From now on this token is answered with this word.
    pub(super) fn refuse(&mut self, token: &str, error: &str) {
        if let Some(token) = self.tokens.get_mut(token) {
            token.refused = Some(error.to_owned());
        }
    }

    /// Whom a token speaks for.
    pub(super) fn caller(&self, token: &str, now: SystemTime) -> Result<&Installation, &str> {
        let Some(token) = self.tokens.get(token) else { return Err("invalid_auth") };
        if let Some(error) = &token.refused {
            return Err(error);
        }
        if token.expires.is_some_and(|at| at <= now) {
            return Err("token_expired");
        }
        Ok(&self.installations[token.installation])
    }

    /// `oauth.v2.access`, by a code or a refresh token.
    pub(super) fn access(&mut self, args: &Value, now: SystemTime) -> Result<Value, &'static str> {
        let text = |name: &str| args[name].as_str().unwrap_or_default();
        match self.clients.get(text("client_id")) {
            None => return Err("invalid_client_id"),
            Some(secret) if secret != text("client_secret") => return Err("bad_client_secret"),
            Some(_) => {}
        }
        let (installation, rotating) = if text("grant_type") == "refresh_token" {
            let refresh = self.refreshes.get_mut(text("refresh_token"));
            let refresh = refresh.ok_or("invalid_refresh_token")?;
            if refresh.used.is_some_and(|at| at + REFRESH_GRACE <= now) {
                return Err("invalid_refresh_token");
            }
            refresh.used.get_or_insert(now);
            (refresh.installation, true)
        } else {
            (self.codes.remove(text("code")).ok_or("invalid_code")?, true)
        };
        let pair = self.renewed(installation, now);
        let there = &self.installations[installation];
        let team = there.team.as_ref().map(|id| json!({ "id": id, "name": "Example" }));
        let enterprise = there.enterprise.as_ref().map(|id| json!({ "id": id, "name": "Example" }));
        let mut answer = json!({
            "ok": true, "access_token": pair.token, "token_type": "bot", "app_id": there.app,
            "bot_user_id": there.bot_user, "scope": scopes(there), "team": team,
            "enterprise": enterprise, "is_enterprise_install": there.team.is_none(),
            "authed_user": { "id": "U0INSTALLER" },
        });
        if rotating {
            answer["refresh_token"] = pair.refresh.into();
            answer["expires_in"] = TOKEN_LIFE.as_secs().into();
        }
        Ok(answer)
    }

    fn renewed(&mut self, installation: usize, now: SystemTime) -> Pair {
        let number = self.number();
        let pair = Pair {
            token: format!("xoxe.xoxb-1-{number:032x}"),
            refresh: format!("xoxe-1-{number:032x}"),
        };
        self.put(pair.token.clone(), installation, Some(now + TOKEN_LIFE));
        self.refreshes.insert(pair.refresh.clone(), Refresh { installation, used: None });
        pair
    }

    fn put(&mut self, token: String, installation: usize, expires: Option<SystemTime>) {
        let order = self.number();
        self.tokens.insert(token, Token { installation, expires, refused: None, order });
        let of_it = self.tokens.values_mut();
        let mut good: Vec<&mut Token> = of_it
            .filter(|t| {
                t.installation == installation && t.expires.is_some() && t.refused.is_none()
            })
            .collect();
        good.sort_by_key(|token| token.order);
        let spare = good.len().saturating_sub(TOKENS_MAX);
        for old in &mut good[..spare] {
            old.refused = Some("token_revoked".into());
        }
    }

    fn add(&mut self, installation: Installation) -> usize {
        self.installations.push(installation);
        self.installations.len() - 1
    }

    fn number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }
}

/// As Slack lists them.
pub(super) fn scopes(installation: &Installation) -> String {
    installation.scopes.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}
