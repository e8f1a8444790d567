//! Installations, their tokens, and token rotation.
//!
//! A token belongs to an installation, or is rejected with an error of Slack. A rotating token is
//! valid for twelve hours. A refresh token is valid once, but stays valid for 5 s after its use,
//! because two callers may use it concurrently. At most two rotating access tokens of an
//! installation are valid.

use super::oauth::{Client, Code, code_expiry};
use serde_json::{Value, json};
use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, SystemTime},
};

/// Lifetime of a rotating token.
const TOKEN_LIFE: Duration = Duration::from_secs(12 * 3600);
/// Time for which a used refresh token stays valid.
const REFRESH_GRACE: Duration = Duration::from_secs(5);
/// Maximum number of valid rotating access tokens of an installation.
const TOKENS_MAX: usize = 2;
/// Scopes of an app unless a test changes them.
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

/// An app in a workspace, or in an organization on Grid.
#[derive(Debug, Clone)]
pub struct Installation {
    /// The app.
    pub app: String,
    /// The workspace; `None` for an organization.
    pub team: Option<String>,
    /// The organization on Grid.
    pub enterprise: Option<String>,
    /// User of the bot.
    pub bot_user: String,
    /// Scopes.
    pub scopes: BTreeSet<String>,
}

impl Installation {
    /// Returns an installation in a workspace, with the default scopes.
    pub fn new(app: &str, team: &str, bot_user: &str) -> Self {
        Self {
            app: app.to_owned(),
            team: Some(team.to_owned()),
            enterprise: None,
            bot_user: bot_user.to_owned(),
            scopes: SCOPES.map(str::to_owned).into(),
        }
    }

    /// Removes a scope.
    pub fn without(mut self, scope: &str) -> Self {
        self.scopes.remove(scope);
        self
    }

    /// Installs the app for an organization.
    pub fn of_enterprise(mut self, enterprise: &str) -> Self {
        self.enterprise = Some(enterprise.to_owned());
        self.team = None;
        self
    }

    /// Returns the id of the bot in messages.
    pub fn bot_id(&self) -> String {
        format!("B{}", self.bot_user.trim_start_matches(['U', 'W']))
    }
}

/// A token and its refresh token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The bot token.
    pub token: String,
    /// The refresh token.
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

/// All installations and tokens.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    installations: Vec<Installation>,
    tokens: HashMap<String, Token>,
    refreshes: HashMap<String, Refresh>,
    codes: HashMap<String, Code>,
    pub(super) clients: HashMap<String, Client>,
    installers: HashMap<usize, String>,
    count: u64,
}

impl Tokens {
    /// Adds a token that does not expire.
    pub(super) fn install(&mut self, token: &str, installation: Installation) {
        let installation = self.add(installation);
        self.put(token.to_owned(), installation, None);
    }

    /// Adds tokens that rotate.
    pub(super) fn install_rotating(&mut self, installation: Installation, now: SystemTime) -> Pair {
        let installation = self.add(installation);
        self.renewed(installation, now)
    }

    /// Returns an authorization code of a new installation.
    pub(super) fn authorize(&mut self, installation: Installation, now: SystemTime) -> String {
        let installation = self.add(installation);
        self.give_code(installation, None, "U0INSTALLER".into(), now)
    }

    /// Returns an authorization code for an installation that a person allowed. An app is installed
    /// once in a workspace or organization: another installation replaces it.
    pub(super) fn allow(
        &mut self,
        installation: Installation,
        request: Option<(String, String, Option<String>)>,
        installer: String,
        now: SystemTime,
    ) -> String {
        let is_same = |there: &Installation| {
            let place = |of: &Installation| of.team.clone().or_else(|| of.enterprise.clone());
            there.app == installation.app && place(there) == place(&installation)
        };
        let number = match self.installations.iter().position(is_same) {
            Some(number) => {
                self.installations[number] = installation;
                number
            }
            None => self.add(installation),
        };
        self.give_code(number, request, installer, now)
    }

    fn give_code(
        &mut self,
        installation: usize,
        request: Option<(String, String, Option<String>)>,
        installer: String,
        now: SystemTime,
    ) -> String {
        let code = format!("code.{}", self.number());
        let expires = code_expiry(now);
        self.codes.insert(code.clone(), Code { installation, request, installer, expires });
        code
    }

    /// Rejects all tokens of an installation, and its refresh tokens.
    pub(super) fn uninstall(&mut self, app: &str, place: &str) {
        let removed: Vec<usize> = (0..self.installations.len())
            .filter(|n| {
                let there = &self.installations[*n];
                let of = there.team.as_deref().or(there.enterprise.as_deref());
                there.app == app && of == Some(place)
            })
            .collect();
        for token in self.tokens.values_mut().filter(|t| removed.contains(&t.installation)) {
            token.refused = Some("account_inactive".into());
        }
        self.refreshes.retain(|_, refresh| !removed.contains(&refresh.installation));
    }

    pub(super) fn register(&mut self, client: &str, secret: &str) {
        let client_of = Client { secret: secret.to_owned(), ..Client::default() };
        self.clients.insert(client.to_owned(), client_of);
    }

    /// Makes all later calls with a token fail with an error.
    pub(super) fn refuse(&mut self, token: &str, error: &str) {
        if let Some(token) = self.tokens.get_mut(token) {
            token.refused = Some(error.to_owned());
        }
    }

    /// Returns the installation of a token.
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

    /// Answers `oauth.v2.access` for a code or a refresh token.
    pub(super) fn access(&mut self, args: &Value, now: SystemTime) -> Result<Value, &'static str> {
        let text = |name: &str| args[name].as_str().unwrap_or_default();
        match self.clients.get(text("client_id")) {
            None => return Err("invalid_client_id"),
            Some(client) if client.secret != text("client_secret") => {
                return Err("bad_client_secret");
            }
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
            self.codes.get(text("code")).ok_or("invalid_code")?.check(args, now)?;
            let code = self.codes.remove(text("code")).ok_or("invalid_code")?;
            self.installers.insert(code.installation, code.installer);
            (code.installation, true)
        };
        let pair = self.renewed(installation, now);
        let there = &self.installations[installation];
        let team = there.team.as_ref().map(|id| json!({ "id": id, "name": "Example" }));
        let enterprise = there.enterprise.as_ref().map(|id| json!({ "id": id, "name": "Example" }));
        let mut answer = json!({
            "ok": true, "access_token": pair.token, "token_type": "bot", "app_id": there.app,
            "bot_user_id": there.bot_user, "scope": scopes(there), "team": team,
            "enterprise": enterprise, "is_enterprise_install": there.team.is_none(),
            "authed_user": {
                "id": self.installers.get(&installation).map_or("U0INSTALLER", String::as_str),
            },
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

/// Returns the scopes in Slack's format.
pub(super) fn scopes(installation: &Installation) -> String {
    installation.scopes.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}
