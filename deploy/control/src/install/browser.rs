//! What a browser sends beside the address: cookies, and which site opened a page.

use crate::cookies::cookie;
use axum::http::HeaderMap;
use shared::domain::{InstallBrowser, InstallLink, parse_web_address};

/// Cookie of the browser. The prefix makes browsers refuse it from other hosts and without TLS.
const BROWSER_COOKIE: &str = "__Host-tidegate-install";
/// Cookie with the secret of the link that the browser used last, for a return without a state.
const LINK_COOKIE: &str = "__Host-tidegate-link";
/// Attributes of both. `Lax`: Slack's redirect brings them, other sites' requests do not.
const COOKIE_ATTRIBUTES: &str = "; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=";
/// Lifetime of the browser's cookie in seconds. Longer than that of a state.
const BROWSER_COOKIE_SECONDS: u32 = 3600;
/// Lifetime of the link's cookie in seconds: an admin approves within it.
const LINK_COOKIE_SECONDS: u32 = 7 * 24 * 3600;
/// Returns the `Set-Cookie` headers of a browser that begins an installation by a link.
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

/// Returns whether the page of a link sent a form, and no other site. A browser tells it.
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
