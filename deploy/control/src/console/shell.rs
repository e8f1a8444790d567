//! Frame of all pages: navigation, headers and errors.

use super::session::Session;
use crate::api::Problem;
use askama::Template;
use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use shared::{operations::OperationError, store::StoreError};

/// Pages of the navigation: path and name.
const PAGES: [(&str, &str); 12] = [
    ("/", "Overview"),
    ("/webhooks", "Webhooks"),
    ("/conversations", "Conversations"),
    ("/agents", "Agents"),
    ("/connections", "Connections"),
    ("/apps", "Apps"),
    ("/link-codes", "Link codes"),
    ("/bindings", "Bindings"),
    ("/dead-letters", "Dead letters"),
    ("/outbox-failures", "Outbox failures"),
    ("/usage", "Usage"),
    ("/audit-log", "Audit log"),
];

/// Content-Security-Policy of all pages: nothing inline or from other origins, no frames.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
                      img-src data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// Frame around the content of all pages.
pub struct Shell {
    /// Title.
    pub title: String,
    /// Path of the page in the navigation.
    section: &'static str,
    /// Person. `None` on pages without a session.
    pub user: Option<User>,
}

/// Person who is logged in.
pub struct User {
    /// Key, role and organization.
    pub name: String,
    /// Token of the logout form.
    pub token: String,
}

/// Page in the navigation.
pub struct NavigationItem {
    pub path: &'static str,
    pub name: &'static str,
    pub is_current: bool,
}

impl Shell {
    /// Creates the frame of a page of a session.
    pub fn of(session: &Session, title: impl Into<String>, section: &'static str) -> Self {
        let caller = &session.caller;
        let org = caller.org.as_ref().map_or("all organizations", |org| org.as_str());
        let name = format!("{} · {} · {org}", caller.key, caller.role);
        let user = Some(User { name, token: session.form_token() });
        Self { title: title.into(), section, user }
    }

    /// Creates the frame of a page without a session.
    pub fn outside(title: impl Into<String>) -> Self {
        Self { title: title.into(), section: "", user: None }
    }

    /// Returns the pages of the navigation.
    pub fn navigation(&self) -> Vec<NavigationItem> {
        let item = |(path, name)| NavigationItem { path, name, is_current: path == self.section };
        PAGES.into_iter().map(item).collect()
    }
}

/// Renders a page.
pub fn respond(status: StatusCode, page: &impl Template) -> Response {
    match page.render() {
        Ok(text) => (status, Html(text)).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Adds the headers of all responses: nothing is cached, framed or loaded from other origins, and
/// other sites get no `Referer`.
pub async fn add_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Error of a page.
#[derive(Debug)]
pub struct Failure(pub Problem);

#[derive(Template)]
#[template(path = "console/error.html")]
struct ErrorPage<'a> {
    shell: Shell,
    detail: &'a str,
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (title, detail) = self.0.texts();
        respond(self.0.status(), &ErrorPage { shell: Shell::outside(title), detail })
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self(error.into())
    }
}

impl From<OperationError> for Failure {
    fn from(error: OperationError) -> Self {
        Self(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_errors() {
        let page = ErrorPage { shell: Shell::outside("<b>"), detail: "<script>alert(1)</script>" };
        let text = page.render().expect("a page");
        assert!(!text.contains("<script>") && !text.contains("<b>"), "{text}");
    }

    /// The templates have nothing inline, because the policy blocks it.
    #[test]
    fn has_nothing_inline() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/templates/console");
        let mut files = 0;
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let text = std::fs::read_to_string(entry.expect("an entry").path()).expect("a file");
            for inline in [" style=", "<style", " onclick=", "javascript:", "|safe"] {
                assert!(!text.contains(inline), "{inline}");
            }
            files += 1;
        }
        assert!(files >= 5, "{files}");
    }
}
