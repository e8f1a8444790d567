//! Pages of a webhook: search, records with a timeline, and the body.

mod describe;
mod reference;
mod timeline;

use super::{
    Console,
    actions::done_text,
    fields::Fields,
    lists::Link,
    session::{Form, Session},
    shell::{Failure, Shell, respond},
};
use crate::api::Problem;
use askama::Template;
use axum::{
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use form_urlencoded::byte_serialize;
use serde_json::{Value, json};
use shared::{
    domain::ConnectionId,
    store::{ApiCaller, RevealedWebhook, Store},
};
use std::{collections::BTreeMap, sync::Arc};
use timeline::Step;

/// Version of the recording format.
const RECORDING_VERSION: u32 = 1;
/// Origin of the `response_url`s of real webhooks.
const SLACK_ORIGIN: &str = "https://hooks.slack.com";

/// Returns the path of a webhook's page.
pub fn webhook_path(key: &str) -> String {
    // A form encodes a space as a plus, a path as %20.
    let key: String = byte_serialize(key.as_bytes()).collect();
    format!("/webhooks/{}", key.replace('+', "%20"))
}

/// Fails unless the connection exists for the caller.
pub async fn require_connection(
    store: &Store,
    caller: &ApiCaller,
    id: ConnectionId,
) -> Result<(), Problem> {
    let found = store.connection_org(id).await?;
    let is_visible = match &caller.org {
        // Webhooks of a deleted connection still have records.
        None => true,
        Some(own) => found.as_ref() == Some(own),
    };
    let missing = || Problem::not_found(format!("connection {id} does not exist"));
    is_visible.then_some(()).ok_or_else(missing)
}

/// Returns the connection of a dedup key, if it exists for the caller.
async fn connection_of(
    store: &Store,
    caller: &ApiCaller,
    key: &str,
) -> Result<ConnectionId, Problem> {
    let missing = || Problem::not_found(format!("webhook {key} does not exist"));
    let id = key.split(':').next().and_then(|id| id.parse().ok()).ok_or_else(missing)?;
    require_connection(store, caller, id).await.map(|()| id).map_err(|_| missing())
}

/// Redirects to the webhook of a reference, or returns a list unless exactly one matches.
pub async fn find(
    console: &Console,
    session: Session,
    reference: &str,
    fields: &Fields,
) -> Result<Response, Failure> {
    let query = reference::parse(reference);
    let only = fields.parsed("connection")?;
    let mut keys = Vec::new();
    for key in console.store.find_webhooks(&query, only).await? {
        if connection_of(&console.store, &session.caller, &key).await.is_ok() {
            keys.push(key);
        }
    }
    if let [key] = &keys[..] {
        return Ok(Redirect::to(&webhook_path(key)).into_response());
    }
    let links = keys.iter().map(|key| (key.clone(), webhook_path(key))).collect();
    let shell = Shell::of(&session, format!("Webhooks for {reference}"), "/webhooks");
    let status = if keys.is_empty() { StatusCode::NOT_FOUND } else { StatusCode::OK };
    Ok(respond(status, &FoundPage { shell, links }))
}

#[derive(Template)]
#[template(path = "console/found.html")]
struct FoundPage {
    shell: Shell,
    links: Vec<(String, String)>,
}

#[derive(Template)]
#[template(path = "console/webhook.html")]
struct WebhookPage {
    shell: Shell,
    done: Option<String>,
    path: String,
    summary: String,
    tone: &'static str,
    facts: Vec<(&'static str, String)>,
    links: Vec<Link>,
    steps: Vec<Step>,
    body: Option<String>,
    has_body: bool,
    reveals: bool,
    is_operator: bool,
    token: String,
    sections: Vec<describe::Section>,
}

/// Returns the page of a webhook.
pub async fn show(
    State(console): State<Arc<Console>>,
    session: Session,
    Path(key): Path<String>,
    fields: Fields,
) -> Result<Response, Failure> {
    Ok(render(&console, session, &key, done_text(&fields), None).await?)
}

async fn render(
    console: &Console,
    session: Session,
    key: &str,
    done: Option<String>,
    body: Option<String>,
) -> Result<Response, Problem> {
    connection_of(&console.store, &session.caller, key).await?;
    let missing = || Problem::not_found(format!("webhook {key} has no records"));
    let record = console.store.webhook(key).await?.ok_or_else(missing)?;
    let now = console.store.now().await?;
    let path = webhook_path(key);
    let (summary, tone) = describe::summary(&record);
    let page = WebhookPage {
        shell: Shell::of(&session, format!("Webhook {}", short(key)), "/webhooks"),
        done,
        summary,
        tone,
        facts: describe::facts(&record),
        links: describe::links(&record, &path),
        steps: timeline::steps(&record, now),
        has_body: describe::has_body(&record),
        body,
        reveals: console.reveals,
        is_operator: session.is_operator(),
        token: session.form_token(),
        sections: describe::sections(&record),
        path,
    };
    Ok(respond(StatusCode::OK, &page))
}

/// Returns the page of a webhook with its body.
pub async fn reveal(
    State(console): State<Arc<Console>>,
    Path(key): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    let revealed = open(&console, &form.session, &key).await?;
    let body = String::from_utf8_lossy(&revealed.payload.body).into_owned();
    let pretty = serde_json::from_str::<Value>(&body).ok();
    let pretty = pretty.and_then(|value| serde_json::to_string_pretty(&value).ok());
    Ok(render(&console, form.session, &key, None, Some(pretty.unwrap_or(body))).await?)
}

/// Returns a webhook with its body as a recording.
pub async fn download(
    State(console): State<Arc<Console>>,
    Path(key): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    let revealed = open(&console, &form.session, &key).await?;
    let headers = [
        (header::CONTENT_TYPE, "application/jsonl"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"webhook.jsonl\""),
    ];
    Ok((headers, recording(revealed)).into_response())
}

async fn open(console: &Console, session: &Session, key: &str) -> Result<RevealedWebhook, Failure> {
    session.require_operator()?;
    if !console.reveals {
        return Err(Problem::forbidden(
            "bodies are disabled in this deployment; see TIDEGATE_CONSOLE_REVEAL",
        )
        .into());
    }
    let connection = connection_of(&console.store, &session.caller, key).await?;
    let revealed = console.operations(&session.caller).reveal_webhook(connection, key).await?;
    let missing = || Problem::not_found("the body of this webhook is no longer in Postgres");
    Ok(revealed.ok_or_else(missing)?)
}

/// Returns a recording of one webhook: a header line and a line for the message.
fn recording(webhook: RevealedWebhook) -> String {
    let RevealedWebhook { subject, payload } = webhook;
    let headers: BTreeMap<String, String> = payload.headers.into_iter().collect();
    let mut line = json!({ "subject": subject, "headers": headers });
    match String::from_utf8(payload.body) {
        Ok(text) => line["body"] = text.into(),
        Err(no_text) => line["base64"] = STANDARD.encode(no_text.as_bytes()).into(),
    }
    format!("{}\n{line}\n", json!({ "recording": RECORDING_VERSION, "slack": SLACK_ORIGIN }))
}

fn short(key: &str) -> &str {
    key.rsplit(':').next().unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::store::SealedPayload;

    #[test]
    fn escapes_keys_in_paths() {
        assert_eq!(webhook_path("a:event:E/1 2"), "/webhooks/a%3Aevent%3AE%2F1%202");
    }

    #[test]
    fn records_text_and_bytes() {
        let of = |body: &[u8]| {
            let headers = vec![("Tidegate-Kind".to_owned(), "event".to_owned())];
            let payload = SealedPayload { headers, body: body.to_vec() };
            let text = recording(RevealedWebhook { subject: "slack.in.0.a".into(), payload });
            let line = text.lines().nth(1).expect("a message").to_owned();
            serde_json::from_str::<Value>(&line).expect("JSON")
        };
        assert_eq!(of(b"{}")["body"], "{}");
        assert_eq!(of(&[0xff])["base64"], "/w==");
        assert_eq!(of(b"{}")["headers"]["Tidegate-Kind"], "event");
    }
}
