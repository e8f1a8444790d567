//! Cookies of a browser that installs an app, and the check of the origin of a form.

use crate::cookies::cookie;
use axum::http::HeaderMap;
use shared::domain::{InstallBrowser, InstallLink, parse_web_address};

/// Cookie that identifies the browser. With this prefix, browsers reject it from other hosts and
/// without TLS.
const BROWSER_COOKIE: &str = "__Host-tidegate-install";
/// Cookie with the secret of the link that the browser used last, for a callback without a state.
const LINK_COOKIE: &str = "__Host-tidegate-link";
/// Attributes of both cookies. `Lax`: they are sent with Slack's redirect, but not with forms of
/// other sites.
const COOKIE_ATTRIBUTES: &str = "; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=";
/// Lifetime of the browser cookie in seconds. Longer than that of a state.
const BROWSER_COOKIE_SECONDS: u32 = 3600;
/// Lifetime of the link cookie in seconds. An admin has this time for an approval.
const LINK_COOKIE_SECONDS: u32 = 7 * 24 * 3600;

/// Returns the `Set-Cookie` headers for a browser that begins an installation.
pub fn cookies(browser: &InstallBrowser, link: &InstallLink) -> [String; 2] {
    [
        (BROWSER_COOKIE, browser.reveal(), BROWSER_COOKIE_SECONDS),
        (LINK_COOKIE, link.reveal(), LINK_COOKIE_SECONDS),
    ]
    .map(|(name, value, seconds)| format!("{name}={value}{COOKIE_ATTRIBUTES}{seconds}"))
}

/// Returns the secret of the link that the browser used last.
pub fn last_link(headers: &HeaderMap) -> Option<String> {
    cookie(headers, LINK_COOKIE).filter(|link| link.parse::<InstallLink>().is_ok())
}

/// Returns the browser, if it has begun an installation.
pub fn known(headers: &HeaderMap) -> Option<InstallBrowser> {
    cookie(headers, BROWSER_COOKIE)?.parse().ok()
}

/// Returns whether a form was sent from the origin of `redirect_url`. Without `Sec-Fetch-Site` and
/// `Origin` it was not.
pub fn is_same_site(headers: &HeaderMap, redirect_url: &str) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => site == "same-origin",
        (None, Some(origin)) => {
            let own = parse_web_address(redirect_url);
            own.is_some_and(|url| url.origin().ascii_serialization() == origin)
        }
        (None, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().expect("a header"));
        }
        headers
    }

    #[test]
    fn accepts_own_forms_only() {
        let own = "https://control.example/slack/oauth/callback";
        for (pairs, accepted) in [
            (&[("sec-fetch-site", "same-origin")][..], true),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "same-site"), ("origin", "https://control.example")], false),
            (&[("origin", "https://control.example")], true),
            (&[("origin", "https://evil.example")], false),
            (&[("origin", "null")], false),
            (&[], false),
        ] {
            assert_eq!(is_same_site(&headers(pairs), own), accepted, "{pairs:?}");
        }
    }
}
