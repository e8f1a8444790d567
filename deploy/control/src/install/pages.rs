//! HTML pages of an installation, and their headers.

use crate::metrics::InstallOutcome;
use askama::Template;
use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};

/// Style of all pages. The Content-Security-Policy allows exactly this text.
pub const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;margin:3rem auto;max-width:34rem;\
    padding:0 1rem;color:#1d1c1d}button{font:inherit;padding:.6rem 1.2rem;border:0;\
    border-radius:.3rem;background:#4a154b;color:#fff;cursor:pointer}";

/// Page of an install link.
#[derive(Template)]
#[template(path = "start.html")]
pub struct StartPage<'a> {
    pub app: &'a str,
    pub organization: &'a str,
    pub contact: &'a str,
    /// Secret of the link, from the URL of this page.
    pub link: &'a str,
    /// True if Slack redirected the browser here after an approval.
    pub is_approved: bool,
}

/// Page with the result of an installation.
#[derive(Template)]
#[template(path = "message.html")]
struct MessagePage<'a> {
    title: &'a str,
    text: &'a str,
    contact: &'a str,
    continue_to: Option<&'a str>,
}

/// Result of an installation, shown to a person.
#[derive(Debug)]
pub struct Message {
    status: StatusCode,
    title: &'static str,
    text: String,
    contact: String,
    continue_to: Option<String>,
    outcome: Option<InstallOutcome>,
}

impl Message {
    /// Creates a message.
    pub fn new(status: StatusCode, title: &'static str, text: impl Into<String>) -> Self {
        let (contact, continue_to, outcome) = (String::new(), None, None);
        Self { status, title, text: text.into(), contact, continue_to, outcome }
    }

    /// Sets the outcome that is counted.
    pub fn ends(self, outcome: InstallOutcome) -> Self {
        Self { outcome: Some(outcome), ..self }
    }

    /// Returns the outcome that is counted, if any.
    pub fn outcome(&self) -> Option<InstallOutcome> {
        self.outcome
    }

    /// Adds a contact for questions.
    pub fn ask(self, contact: &str) -> Self {
        Self { contact: contact.to_owned(), ..self }
    }

    /// Adds a link to continue at.
    pub fn continue_to(self, target: Option<String>) -> Self {
        Self { continue_to: target, ..self }
    }

    /// Returns the title, which identifies the page in logs and tests.
    pub fn title(&self) -> &'static str {
        self.title
    }

    /// Returns the response.
    pub fn respond(&self, slack: &str) -> Response {
        let page = MessagePage {
            title: self.title,
            text: &self.text,
            contact: &self.contact,
            continue_to: self.continue_to.as_deref(),
        };
        respond(self.status, &page, slack)
    }
}

/// Renders a page. `slack` is the origin to which a form may redirect.
pub fn respond(status: StatusCode, page: &impl Template, slack: &str) -> Response {
    let Ok(text) = page.render() else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    (status, headers(slack), Html(text)).into_response()
}

/// Returns the headers of all responses: nothing is cached, framed, executed or loaded, and other
/// sites get no `Referer`, because the URL may contain a secret.
pub fn headers(slack: &str) -> HeaderMap {
    let style = STANDARD.encode(Sha256::digest(STYLE.as_bytes()));
    // A browser also checks the redirect of a form against `form-action`.
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{style}'; form-action 'self' {slack}; \
         frame-ancestors 'none'; base-uri 'none'"
    );
    let mut headers = HeaderMap::new();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::STRICT_TRANSPORT_SECURITY, "max-age=31536000"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_names() {
        let page = StartPage {
            app: "<script>alert(1)</script>",
            organization: "\"'><img src=x>",
            contact: "<b>",
            link: "abc",
            is_approved: false,
        };
        let text = page.render().expect("a page");
        for raw in ["<script", "<img", "<b>"] {
            assert!(!text.contains(raw), "{text}");
        }
        assert!(text.contains("<form method=\"post\" action=\"/install/abc\">"), "{text}");
        assert!(text.contains(STYLE), "the style is the one that the policy allows");
    }
}
