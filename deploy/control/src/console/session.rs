//! Login, the caller of a request, and forms.
//!
//! A browser without a session is redirected to the login page, and back after the login. A form is
//! accepted only if it was sent from the console's origin and has the session's token.

use super::{
    Console,
    fields::Fields,
    shell::{Failure, Shell, respond},
};
use crate::{api::Problem, cookies::cookie, metrics::Rejection};
use askama::Template;
use axum::{
    Extension,
    body::Bytes,
    extract::{ConnectInfo, FromRequest, FromRequestParts, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Redirect, Response},
};
use governor::{DefaultKeyedRateLimiter, Quota};
use shared::{
    domain::{ApiKey, ApiKeyHash, ApiKeyRole, ConsoleSession},
    store::ApiCaller,
};
use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
};

/// Cookie of a session. With this prefix, browsers reject it from other hosts and without TLS.
const COOKIE: &str = "__Host-tidegate-console";
/// Attributes of the cookie. `Lax`: it is sent with links from Slack and alerts, but not with forms
/// of other sites.
const COOKIE_ATTRIBUTES: &str = "; Path=/; Secure; HttpOnly; SameSite=Lax";
/// Lifetime of the cookie in seconds: that of a session.
const COOKIE_SECONDS: u32 = 8 * 3600;

/// Maximum login attempts per minute, and in a burst, with one API key.
const MAX_LOGINS_OF_KEY: NonZeroU32 = NonZeroU32::MIN.saturating_add(9);
/// Maximum login attempts per minute, and in a burst, of an IP address. Behind a proxy, all people
/// share one. Protects Postgres: keys can't be guessed.
const MAX_LOGINS_OF_PEER: NonZeroU32 = NonZeroU32::MIN.saturating_add(199);

/// Limits of login attempts.
pub struct LoginLimits {
    of_key: DefaultKeyedRateLimiter<ApiKeyHash>,
    of_peer: DefaultKeyedRateLimiter<IpAddr>,
}

impl Default for LoginLimits {
    fn default() -> Self {
        Self {
            of_key: DefaultKeyedRateLimiter::keyed(Quota::per_minute(MAX_LOGINS_OF_KEY)),
            of_peer: DefaultKeyedRateLimiter::keyed(Quota::per_minute(MAX_LOGINS_OF_PEER)),
        }
    }
}

impl LoginLimits {
    /// Counts an attempt. Returns false if the key or the address has too many. A malformed key
    /// counts for the address only, because Postgres is not asked.
    fn admit(&self, peer: IpAddr, key: Option<&ApiKeyHash>) -> bool {
        self.of_key.retain_recent();
        self.of_peer.retain_recent();
        self.of_peer.check_key(&peer).is_ok()
            && key.is_none_or(|key| self.of_key.check_key(key).is_ok())
    }
}

/// Session of a request.
#[derive(Debug)]
pub struct Session {
    /// Key of the session, with its role and organization.
    pub caller: ApiCaller,
    secret: ConsoleSession,
}

impl Session {
    /// Returns the token that forms must contain.
    pub fn form_token(&self) -> String {
        self.secret.form_token()
    }

    /// Fails unless the role allows changes.
    pub fn require_operator(&self) -> Result<(), Problem> {
        match self.is_operator() {
            true => Ok(()),
            false => Err(Problem::forbidden("the role of the session must be operator or higher")),
        }
    }

    /// Returns whether the role allows changes.
    pub fn is_operator(&self) -> bool {
        self.caller.role >= ApiKeyRole::Operator
    }

    async fn of(console: &Console, headers: &HeaderMap) -> Result<Option<Self>, Problem> {
        let sent = cookie(headers, COOKIE).and_then(|text| text.parse::<ConsoleSession>().ok());
        let Some(secret) = sent else { return Ok(None) };
        let caller = console.store.console_caller(&secret.hash()).await?;
        Ok(caller.map(|caller| Self { caller, secret }))
    }
}

impl FromRequestParts<Arc<Console>> for Session {
    type Rejection = Response;

    async fn from_request_parts(
        parts: &mut Parts,
        console: &Arc<Console>,
    ) -> Result<Self, Response> {
        match Self::of(console, &parts.headers).await {
            Ok(Some(session)) => Ok(session),
            Ok(None) if parts.method == Method::GET => {
                let to = parts.uri.path_and_query().map_or("/", |target| target.as_str());
                let login = match to {
                    "/" => "/login".to_owned(),
                    to => Fields::default().with("to", to).url("/login"),
                };
                Err(Redirect::to(&login).into_response())
            }
            Ok(None) => {
                let problem = Problem::unauthorized("the session has ended; log in again");
                Err(Failure(problem).into_response())
            }
            Err(problem) => Err(Failure(problem).into_response()),
        }
    }
}

/// Form of a session, sent from one of its pages.
pub struct Form {
    /// Session.
    pub session: Session,
    /// Fields.
    pub fields: Fields,
}

impl FromRequest<Arc<Console>> for Form {
    type Rejection = Response;

    async fn from_request(request: Request, console: &Arc<Console>) -> Result<Self, Response> {
        let failed = |problem| Failure(problem).into_response();
        let (mut parts, body) = request.into_parts();
        let foreign = || Problem::forbidden("the form was not sent from a page of this session");
        if !is_same_site(&parts.headers) {
            return Err(failed(foreign()));
        }
        let session = Session::from_request_parts(&mut parts, console).await?;
        let body = Bytes::from_request(Request::from_parts(parts, body), console).await;
        let body = body.map_err(|_| failed(Problem::too_large("the form is too large")))?;
        let fields = Fields::parse(&body).map_err(failed)?;
        if !session.secret.accepts_form(fields.get("token").unwrap_or_default()) {
            return Err(failed(foreign()));
        }
        Ok(Self { session, fields: fields.without(&["token"]) })
    }
}

/// Returns whether a form was sent from the console's origin. Without `Sec-Fetch-Site` and `Origin`
/// it was not.
fn is_same_site(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => site == "same-origin",
        (None, Some(origin)) => {
            let host = origin.split_once("://").map(|(_, host)| host);
            host.is_some() && host == text("host")
        }
        (None, None) => false,
    }
}

/// Returns a path of this console, or `/` for anything else.
pub fn safe_path(path: Option<&str>) -> &str {
    let is_own = |path: &&str| {
        let forbidden = |c: char| c == '\\' || c.is_control();
        path.starts_with('/') && !path.starts_with("//") && !path.contains(forbidden)
    };
    path.filter(is_own).unwrap_or("/")
}

#[derive(Template)]
#[template(path = "console/login.html")]
struct LoginPage {
    shell: Shell,
    error: Option<&'static str>,
    to: String,
}

fn login_page(status: StatusCode, error: Option<&'static str>, to: &str) -> Response {
    let page = LoginPage { shell: Shell::outside("Log in"), error, to: to.to_owned() };
    respond(status, &page)
}

/// Returns the login page.
pub async fn show_login(fields: Fields) -> Response {
    login_page(StatusCode::OK, None, safe_path(fields.get("to")))
}

/// Begins a session with an API key.
pub async fn log_in(
    State(console): State<Arc<Console>>,
    Extension(ConnectInfo(peer)): Extension<ConnectInfo<SocketAddr>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Failure> {
    if !is_same_site(&headers) {
        return Err(Problem::forbidden("the form was not sent from the login page").into());
    }
    let fields = Fields::parse(&body)?;
    let to = safe_path(fields.get("to"));
    let key = fields.get("key").and_then(|key| key.parse::<ApiKey>().ok()).map(|key| key.hash());
    if !console.logins.admit(peer.ip(), key.as_ref()) {
        console.metrics.record_rejection(Rejection::RateLimited);
        let error = "Too many attempts. Try again in a minute.";
        return Ok(login_page(StatusCode::TOO_MANY_REQUESTS, Some(error), to));
    }
    let begun = match key {
        Some(key) => console.store.begin_console_session(&key).await?,
        None => None,
    };
    let Some(session) = begun else {
        console.metrics.record_rejection(Rejection::Unauthorized);
        let error = "This API key is not valid.";
        return Ok(login_page(StatusCode::UNAUTHORIZED, Some(error), to));
    };
    Ok(with_cookie(Redirect::to(to), &session.reveal(), COOKIE_SECONDS))
}

/// Ends the session.
pub async fn log_out(State(console): State<Arc<Console>>, form: Form) -> Result<Response, Failure> {
    console.store.end_console_session(&form.session.secret.hash()).await?;
    Ok(with_cookie(Redirect::to("/login"), "", 0))
}

fn with_cookie(redirect: Redirect, value: &str, seconds: u32) -> Response {
    let mut response = redirect.into_response();
    let cookie = format!("{COOKIE}={value}{COOKIE_ATTRIBUTES}; Max-Age={seconds}");
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_own_forms_only() {
        for (pairs, accepted) in [
            (&[("sec-fetch-site", "same-origin")][..], true),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "none"), ("origin", "http://own:1"), ("host", "own:1")], false),
            (&[("origin", "https://own:1"), ("host", "own:1")], true),
            (&[("origin", "https://evil"), ("host", "own:1")], false),
            (&[("origin", "null"), ("host", "own:1")], false),
            (&[("host", "own:1")], false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, value.parse().expect("a header"));
            }
            assert_eq!(is_same_site(&headers), accepted, "{pairs:?}");
        }
    }

    /// People behind one proxy share its address, and each has attempts of their own.
    #[test]
    fn limits_logins_per_key_and_address() {
        let random = || ApiKey::random().expect("randomness").hash();
        let (limits, proxy) = (LoginLimits::default(), IpAddr::from([10, 0, 0, 1]));
        let key = random();
        for _ in 0..MAX_LOGINS_OF_KEY.get() {
            assert!(limits.admit(proxy, Some(&key)));
        }
        assert!(!limits.admit(proxy, Some(&key)), "too many with this key");
        let most = MAX_LOGINS_OF_PEER.get();
        let others = (0..2 * most).take_while(|_| limits.admit(proxy, Some(&random()))).count();
        let expected = (most - MAX_LOGINS_OF_KEY.get() - 1) as usize;
        assert!(others >= expected, "others may log in: {others}");
        assert!(others < 2 * most as usize, "too many of this address");
        assert!(limits.admit(IpAddr::from([10, 0, 0, 2]), Some(&random())));
    }

    #[test]
    fn redirects_within_console() {
        for (to, expected) in [
            (Some("/webhooks?q=1"), "/webhooks?q=1"),
            (Some("//evil.example"), "/"),
            (Some("/\\evil.example"), "/"),
            (Some("https://evil.example"), "/"),
            (Some("/a\r\nset-cookie: x"), "/"),
            (None, "/"),
        ] {
            assert_eq!(safe_path(to), expected);
        }
    }
}
