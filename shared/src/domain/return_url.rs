//! URLs that a browser is redirected to: Slack's OAuth callback, and the page after an
//! installation.

use url::{Host, Url};

/// Path to which Slack redirects a browser.
pub const OAUTH_CALLBACK_PATH: &str = "/slack/oauth/callback";

/// Parses a URL that a browser may be redirected to: `https`, or `http` on the same machine,
/// without user, password and fragment.
pub fn parse_web_address(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let is_local = match url.host()? {
        Host::Domain(name) => name == "localhost",
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
    };
    let is_safe = url.scheme() == "https" || (url.scheme() == "http" && is_local);
    let is_plain =
        url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    (is_safe && is_plain).then_some(url)
}

/// Returns whether a URL has the origin of a URL in `allowed`, and the same path or one below it.
pub fn is_return_url_allowed(url: &str, allowed: &[String]) -> bool {
    let Some(url) = parse_web_address(url) else { return false };
    allowed.iter().filter_map(|allowed| parse_web_address(allowed)).any(|allowed| {
        let below = url.path().strip_prefix(allowed.path());
        let is_below = below.is_some_and(|rest| {
            rest.is_empty() || rest.starts_with('/') || allowed.path().ends_with('/')
        });
        url.origin() == allowed.origin() && is_below
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allows_declared_addresses() {
        let allowed = ["https://app.example/slack".to_owned(), "http://127.0.0.1:8/".to_owned()];
        for url in [
            "https://app.example/slack",
            "https://app.example:443/slack/done?team=1",
            "https://APP.example/slack/../slack/x",
            "http://127.0.0.1:8/x",
        ] {
            assert!(is_return_url_allowed(url, &allowed), "{url}");
        }
        for url in [
            "https://app.example/slackers",
            "https://app.example/",
            "https://app.example/slack/../admin",
            "https://app.example/slack/%2e%2e/admin",
            "https://app.example.evil.example/slack",
            "https://app.example@evil.example/slack",
            "https://user@app.example/slack",
            "https://app.example:8443/slack",
            "http://app.example/slack",
            "https:\\\\evil.example/slack",
            "//evil.example/slack",
            "/slack",
            "javascript:alert(1)//https://app.example/slack",
            "http://127.0.0.1:9/x",
            "",
        ] {
            assert!(!is_return_url_allowed(url, &allowed), "{url}");
        }
        assert!(!is_return_url_allowed("https://app.example/slack", &[]));
    }
}
