//! Handlers of the requests of a browser that installs an app.

use super::{
    Installer, browser,
    pages::{self, Message, StartPage},
    slack::{ExchangeError, Grant},
};
use crate::metrics::InstallOutcome;
use axum::{
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use shared::{
    domain::{
        Actor, AppId, EnterpriseId, InstallBrowser, InstallHash, InstallLink, InstallState, TeamId,
        is_return_url_allowed, parse_web_address,
    },
    operations::{InstallResult, OperationError, Operations},
    runtime::telemetry::ErrorChain,
    store::{App, ConsumedState, FoundInstallLink, NewInstallation, StateRejection},
};
use std::sync::Arc;
use tracing::{info, warn};

/// Maximum comparisons of an installation with concurrent ones of the same workspace.
const MAX_COMPARISONS: u32 = 200;
/// Query parameter of the return URL with the id of the connection.
const CONNECTION_PARAMETER: &str = "tidegate_connection";

/// Parameters of Slack's redirect.
#[derive(Deserialize)]
pub struct Callback {
    code: Option<String>,
    state: Option<String>,
    error: Option<String>,
}

type Page = Result<Response, Message>;

/// Returns the page of an install link.
pub async fn start(State(installer): State<Arc<Installer>>, Path(link): Path<String>) -> Response {
    finish(&installer, installer.start_page(&link, false).await)
}

/// Begins an installation: redirects the browser to Slack.
pub async fn begin(
    State(installer): State<Arc<Installer>>,
    Path(link): Path<String>,
    headers: HeaderMap,
) -> Response {
    finish(&installer, installer.begin(&link, &headers).await)
}

/// Completes an installation after Slack has redirected the browser back.
pub async fn callback(
    State(installer): State<Arc<Installer>>,
    headers: HeaderMap,
    query: Result<Query<Callback>, QueryRejection>,
) -> Response {
    let malformed = || {
        let text = "The URL is malformed. Open the install link again.";
        Message::new(StatusCode::BAD_REQUEST, "Malformed request", text)
    };
    let page = match query {
        Ok(Query(callback)) => installer.callback(callback, &headers).await,
        Err(_) => Err(malformed()),
    };
    finish(&installer, page)
}

fn finish(installer: &Installer, page: Page) -> Response {
    page.unwrap_or_else(|message| {
        if let Some(outcome) = message.outcome() {
            installer.metrics.record_install(outcome);
        }
        info!(page = message.title(), "installation not completed");
        message.respond(&installer.slack.origin())
    })
}

impl Installer {
    /// Returns an open link with its app.
    async fn open_link(&self, text: &str) -> Result<(InstallLink, FoundInstallLink, App), Message> {
        let unknown = || {
            let text = "The link is incomplete, or was deleted. Ask for a new one.";
            Message::new(StatusCode::NOT_FOUND, "Unknown link", text)
        };
        let link: InstallLink = text.parse().map_err(|_| unknown())?;
        let found = self.store.install_link(&link.hash()).await.map_err(unavailable)?;
        let found = found.ok_or_else(unknown)?;
        let app = self.app(&found.app).await?;
        if found.is_closed {
            let text = "The link has expired or was revoked. Ask for a new one.";
            let message = Message::new(StatusCode::GONE, "Expired link", text);
            return Err(message.ask(&app.contact));
        }
        Ok((link, found, app))
    }

    async fn app(&self, id: &AppId) -> Result<App, Message> {
        let app = self.store.app(id).await.map_err(unavailable)?;
        app.ok_or_else(|| {
            let text = "The app is no longer available.";
            Message::new(StatusCode::NOT_FOUND, "Unknown app", text)
        })
    }

    async fn start_page(&self, link: &str, is_approved: bool) -> Page {
        let (link, found, app) = self.open_link(link).await?;
        let organization =
            if found.org_name.is_empty() { found.org.as_str() } else { found.org_name.as_str() };
        let page = StartPage {
            app: name(&app),
            organization,
            contact: &app.contact,
            link: &link.reveal(),
            is_approved,
        };
        Ok(pages::respond(StatusCode::OK, &page, &self.slack.origin()))
    }

    async fn begin(&self, link: &str, headers: &HeaderMap) -> Page {
        let (link, found, app) = self.open_link(link).await?;
        if !browser::is_same_site(headers, &app.redirect_url) {
            let text = "Another site opened this page. Open the install link again, and check \
                        which organization it is for.";
            return Err(Message::new(StatusCode::FORBIDDEN, "Not begun on this page", text));
        }
        // A browser that installs in two tabs keeps its cookie.
        let browser = match browser::known(headers) {
            Some(browser) => browser,
            None => InstallBrowser::random().map_err(|_| failed("no randomness"))?,
        };
        let state = InstallState::random().map_err(|_| failed("no randomness"))?;
        let begun = self
            .store
            .begin_install(&found.hash, &browser.hash(), &state, &app.redirect_url)
            .await
            .map_err(unavailable)?;
        if !begun {
            let text = "The link was used too often. Try again in ten minutes.";
            return Err(Message::new(StatusCode::TOO_MANY_REQUESTS, "Too many attempts", text));
        }
        let scopes: Vec<&str> =
            app.scopes.iter().chain(&app.optional_scopes).map(String::as_str).collect();
        let target = self.slack.authorize_url(&[
            ("client_id", &app.client_id),
            ("scope", &scopes.join(",")),
            ("redirect_uri", &app.redirect_url),
            ("state", &state.reveal()),
            ("code_challenge", &browser.code_verifier(&state).challenge()),
            ("code_challenge_method", "S256"),
        ]);
        let target = target.ok_or_else(|| failed("no address of Slack"))?;
        let mut response = redirect(target.as_str(), &self.slack.origin())?;
        for cookie in browser::cookies(&browser, &link) {
            let cookie = HeaderValue::from_str(&cookie).map_err(|_| failed("no cookie"))?;
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
        Ok(response)
    }

    async fn callback(&self, callback: Callback, headers: &HeaderMap) -> Page {
        let Some(state) = &callback.state else { return self.without_state(headers).await };
        let taken = self.take_state(state, headers).await?;
        let app = self.app(&taken.link.app).await?;
        if let Some(error) = &callback.error {
            return Err(refused_by_person(error).ask(&app.contact));
        }
        let code = callback.code.as_deref().filter(|code| !code.is_empty());
        let code = code.ok_or_else(|| refused_by_person("no code"))?;
        if taken.redirect_url != app.redirect_url {
            let text = "The app's redirect URL has changed. Open the install link again.";
            let message = Message::new(StatusCode::CONFLICT, "Not completed", text);
            return Err(message.ends(InstallOutcome::Refused));
        }
        // `take_state` has parsed both.
        let (Ok(state), Some(browser)) = (state.parse::<InstallState>(), browser::known(headers))
        else {
            return Err(failed("no state"));
        };
        let verifier = browser.code_verifier(&state);
        let grant = self.slack.exchange(&app, code, &taken.redirect_url, &verifier).await;
        let grant = grant.map_err(|error| exchange_failed(&app, &error))?;
        self.install(taken, app, grant).await
    }

    /// Handles a callback without a state, as after Slack's admin pages and approvals. A code alone
    /// is never exchanged: it may be another person's.
    async fn without_state(&self, headers: &HeaderMap) -> Page {
        match browser::last_link(headers) {
            Some(link) => self.start_page(&link, true).await,
            None => {
                let text = "The app was approved, but is not connected yet. Open the install link \
                            that you were given, and click once more.";
                Err(Message::new(StatusCode::OK, "One more step", text))
            }
        }
    }

    async fn take_state(&self, state: &str, headers: &HeaderMap) -> Result<ConsumedState, Message> {
        let refused = |refusal| {
            let (status, title, text) = match refusal {
                StateRejection::Unknown => (
                    StatusCode::BAD_REQUEST,
                    "Unknown installation",
                    "This installation did not begin here. Open the install link again.",
                ),
                StateRejection::OtherBrowser => (
                    StatusCode::FORBIDDEN,
                    "Started in another browser",
                    "This installation began in another browser, or cookies are blocked. Open the \
                     install link in this browser.",
                ),
                StateRejection::Consumed => (
                    StatusCode::CONFLICT,
                    "Already completed",
                    "This installation was already completed. Open the install link again if the \
                     app does not answer.",
                ),
                StateRejection::Expired => (
                    StatusCode::GONE,
                    "Expired",
                    "This installation took longer than ten minutes. Open the install link again.",
                ),
            };
            let link = browser::last_link(headers).map(|link| format!("/install/{link}"));
            Message::new(status, title, text).continue_to(link).ends(InstallOutcome::StateRefused)
        };
        let parsed: InstallState = state.parse().map_err(|_| refused(StateRejection::Unknown))?;
        let browser: InstallHash = match browser::known(headers) {
            Some(browser) => browser.hash(),
            None => return Err(refused(StateRejection::OtherBrowser)),
        };
        let taken = self.store.consume_install_state(&parsed.hash(), &browser).await;
        taken.map_err(unavailable)?.map_err(refused)
    }

    async fn install(&self, taken: ConsumedState, app: App, grant: Grant) -> Page {
        let ConsumedState { link, taken_at, .. } = taken;
        let place = grant.team.as_ref().map(TeamId::as_str);
        let place = place.or_else(|| grant.enterprise.as_ref().map(EnterpriseId::as_str));
        let team = place.and_then(|place| place.parse().ok());
        let actor = match team {
            Some(team) => Actor::SlackUser { team, user: grant.installer.clone() },
            None => Actor::Slack,
        };
        let missing: Vec<&str> = app
            .scopes
            .iter()
            .chain(&app.optional_scopes)
            .map(String::as_str)
            .filter(|scope| !grant.scopes.iter().any(|granted| granted == scope))
            .collect();
        let missing = missing.join(", ");
        let return_url = link.return_url.clone();
        let new = NewInstallation {
            agent: link.agent.clone().or_else(|| app.agent.clone()),
            link,
            enterprise: grant.enterprise,
            team: grant.team,
            bot_token: grant.bot_token,
            bot_user: grant.bot_user,
            scopes: grant.scopes,
            installer: grant.installer,
            rotation: grant.rotation,
            began_at: taken_at,
        };
        let operations = Operations::new(self.store.clone(), actor);
        let installed = self.complete(&operations, &new).await.map_err(|error| {
            warn!(error = %ErrorChain(&error), "failed to complete installation");
            let text = "The app is installed, but not connected. Open the install link again in \
                        a minute.";
            Message::new(StatusCode::SERVICE_UNAVAILABLE, "Not completed", text)
                .ask(&app.contact)
                .ends(InstallOutcome::Failed)
        })?;
        let connection = match installed {
            InstallResult::Installed(connection) => connection,
            InstallResult::Contested { .. } => {
                let text =
                    "The app was installed several times at once. Open the install link again.";
                let message = Message::new(StatusCode::CONFLICT, "Not completed", text);
                return Err(message.ends(InstallOutcome::Failed));
            }
            InstallResult::OtherOrganization => {
                let text = "This workspace is already connected to another organization. Only \
                            the operator of this service can move it.";
                let message =
                    Message::new(StatusCode::CONFLICT, "Connected to another organization", text);
                return Err(message.ask(&app.contact).ends(InstallOutcome::Refused));
            }
            InstallResult::TooManyConnections => {
                let text = "The organization has the maximum of connected workspaces. Ask the \
                            operator of this service.";
                let message = Message::new(StatusCode::CONFLICT, "Too many workspaces", text);
                return Err(message.ask(&app.contact).ends(InstallOutcome::Refused));
            }
            InstallResult::LinkUsed => {
                let text = "The link was used for another workspace, or was revoked. Ask for a new \
                            one.";
                let message = Message::new(StatusCode::CONFLICT, "Link was used", text);
                return Err(message.ask(&app.contact).ends(InstallOutcome::Refused));
            }
        };
        info!(%connection, missing_scopes = missing, "app installed");
        self.metrics.record_install(InstallOutcome::Installed);
        let target = return_url
            // The list may have changed since the link was created.
            .filter(|url| is_return_url_allowed(url, &app.return_urls))
            .and_then(|url| parse_web_address(&url));
        if let Some(mut target) = target {
            let id = connection.to_string();
            target.query_pairs_mut().append_pair(CONNECTION_PARAMETER, &id);
            return redirect(target.as_str(), &self.slack.origin());
        }
        let mut text = format!("{} is connected to your workspace.", name(&app));
        if !missing.is_empty() {
            text += &format!(" Some features are off, because you did not allow: {missing}.");
        }
        Ok(Message::new(StatusCode::OK, "Connected", text).respond(&self.slack.origin()))
    }
}

impl Installer {
    /// Records an installation. Of concurrent installations of a workspace, one whose token Slack
    /// accepts is kept.
    async fn complete(
        &self,
        operations: &Operations,
        new: &NewInstallation,
    ) -> Result<InstallResult, OperationError> {
        let mut result = operations.install_connection(&self.js, new, None).await?;
        for _ in 0..MAX_COMPARISONS {
            let InstallResult::Contested { connection, version, token } = &result else { break };
            if self.slack.accepts(token).await {
                return operations.keep_installation(&self.js, &new.link, *connection).await;
            }
            let replaces = Some(*version);
            result = operations.install_connection(&self.js, new, replaces).await?;
        }
        Ok(result)
    }
}

/// Returns the name of an app, or its id.
fn name(app: &App) -> &str {
    if app.name.is_empty() { app.id.as_str() } else { &app.name }
}

fn redirect(target: &str, slack: &str) -> Page {
    let target = HeaderValue::from_str(target).map_err(|_| failed("no address"))?;
    let mut response = (StatusCode::SEE_OTHER, pages::headers(slack)).into_response();
    response.headers_mut().insert(header::LOCATION, target);
    Ok(response)
}

fn refused_by_person(error: &str) -> Message {
    let text = match error {
        "access_denied" => "The installation was cancelled on Slack's page. Nothing was connected.",
        _ => "Slack did not allow the app. Nothing was connected.",
    };
    Message::new(StatusCode::OK, "Not connected", text).ends(InstallOutcome::Cancelled)
}

fn exchange_failed(app: &App, error: &ExchangeError) -> Message {
    warn!(app = %app.id, error = %ErrorChain(error), "failed to exchange code");
    let (status, text) = match error {
        ExchangeError::Unavailable(_) => (
            StatusCode::BAD_GATEWAY,
            "Slack did not answer. Open the install link again in a minute.".to_owned(),
        ),
        ExchangeError::Refused(code) => (
            StatusCode::BAD_GATEWAY,
            format!("Slack refused the installation ({code}). Open the install link again."),
        ),
        ExchangeError::UnexpectedResponse(_) => (
            StatusCode::BAD_GATEWAY,
            "Slack sent an unexpected response. Open the install link again.".to_owned(),
        ),
    };
    Message::new(status, "Not connected", text)
        .ask(&app.contact)
        .ends(InstallOutcome::ExchangeFailed)
}

fn unavailable(error: shared::store::StoreError) -> Message {
    warn!(error = %ErrorChain(&error), "failed to answer browser");
    let text = "Please try again in a minute.";
    Message::new(StatusCode::SERVICE_UNAVAILABLE, "Temporarily unavailable", text)
}

fn failed(why: &'static str) -> Message {
    warn!(why, "failed to answer browser");
    let text = "Please try again in a minute.";
    Message::new(StatusCode::INTERNAL_SERVER_ERROR, "Not completed", text)
}
