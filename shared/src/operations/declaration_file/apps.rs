//! Declared apps.

use super::{Reader, line_of, schema::App};
use crate::{
    domain::{AppId, OAUTH_CALLBACK_PATH, OrgId, parse_web_address},
    store::NewApp,
};
use std::collections::{BTreeMap, BTreeSet};
use toml::Spanned;

/// Maximum number of scopes, and of return URLs.
const MAX_ITEMS: usize = 200;

impl Reader<'_> {
    /// Reads the apps. Returns them with their lines.
    pub(super) fn apps(
        &mut self,
        apps: Vec<App>,
        organizations: &BTreeSet<OrgId>,
        lines: &mut BTreeMap<String, usize>,
    ) -> (Vec<NewApp>, Vec<usize>) {
        let (mut read, mut app_lines) = (Vec::new(), Vec::new());
        for app in apps {
            let span = app.id.span();
            self.require_unique(lines, format!("app {}", app.id.get_ref()), &span);
            if let Some(org) = app.organization.as_ref().filter(|org| !organizations.contains(org))
            {
                let why = format!(
                    "organization {org} is not declared; add [[organization]] with this id"
                );
                self.problem(&span, why);
            }
            let redirect = parse_web_address(app.redirect_url.get_ref());
            if redirect.is_none_or(|url| url.path() != OAUTH_CALLBACK_PATH) {
                let why =
                    format!("malformed redirect_url; write https://host{OAUTH_CALLBACK_PATH}");
                self.problem(&app.redirect_url.span(), why);
            }
            for url in &app.return_urls {
                if parse_web_address(url.get_ref()).is_none_or(|url| url.query().is_some()) {
                    let why = "malformed return URL; write https://host/path, without a query";
                    self.problem(&url.span(), why.into());
                }
            }
            let is_id = |b: u8| b.is_ascii_alphanumeric() || b == b'.';
            let id = app.client_id.get_ref();
            if id.is_empty() || !id.bytes().all(is_id) {
                let why = "malformed client_id; write it as Slack shows it, as in 123.456";
                self.problem(&app.client_id.span(), why.into());
            }
            let (scopes, optional_scopes) =
                (self.scopes(app.scopes), self.scopes(app.optional_scopes));
            if scopes.is_empty() || app.return_urls.len() > MAX_ITEMS {
                let why = format!("write at least one scope, and {MAX_ITEMS} return URLs at most");
                self.problem(&span, why);
            }
            let secrets = (self.secret(&app.client_secret), self.secret(&app.signing_secret));
            let (Some(client_secret), Some(signing_secret)) = secrets else { continue };
            app_lines.push(line_of(self.text, &span));
            read.push(NewApp {
                id: app.id.into_inner(),
                name: app.name,
                org: app.organization,
                client_id: app.client_id.into_inner(),
                client_secret,
                signing_secret,
                scopes,
                optional_scopes,
                redirect_url: app.redirect_url.into_inner(),
                return_urls: app.return_urls.into_iter().map(Spanned::into_inner).collect(),
                agent: app.agent,
                contact: app.contact,
            });
        }
        (read, app_lines)
    }

    fn scopes(&mut self, scopes: Vec<Spanned<String>>) -> Vec<String> {
        let is_word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'.' | b'_' | b'-');
        for scope in &scopes {
            let text = scope.get_ref();
            if text.is_empty() || !text.bytes().all(is_word) || scopes.len() > MAX_ITEMS {
                let why = format!("malformed scope; write {MAX_ITEMS} at most, as in chat:write");
                self.problem(&scope.span(), why);
            }
        }
        scopes.into_iter().map(Spanned::into_inner).collect()
    }
}

/// Returns whether an app is declared.
pub(super) fn is_declared(apps: &[NewApp], id: &AppId) -> bool {
    apps.iter().any(|app| app.id == *id)
}
