//! Forwarder of Socket Mode webhooks to ingest, with the signatures that Slack's HTTP requests
//! have.

use super::envelope::{Envelope, Kind, acknowledge};
use crate::output;
use anyhow::Context;
use reqwest::{Client, Url};
use shared::{
    domain::{AppId, ConnectionId, MediaType},
    secrets::Secret,
    signature,
    slack::BodyParts,
    store::Store,
};
use std::sync::Mutex;

/// Sender of webhooks to the URL of their connection at ingest.
pub struct Forwarder {
    store: Store,
    http: Client,
    ingest: Url,
    /// App of the Socket Mode connections, for interactions whose payload names none.
    app: Mutex<Option<AppId>>,
}

impl Forwarder {
    /// Returns a forwarder to the ingest at a base URL.
    pub fn new(store: Store, http: Client, ingest: Url) -> Self {
        Self { store, http, ingest, app: Mutex::default() }
    }

    /// Sets the app of webhooks that name none.
    pub fn set_app(&self, app: &str) {
        if let (Ok(mut own), Ok(app)) = (self.app.lock(), app.parse()) {
            *own = Some(app);
        }
    }

    /// Sends a webhook to ingest. Returns the acknowledgement if ingest accepted it.
    pub async fn forward(&self, envelope: &Envelope) -> Option<String> {
        let kind = match envelope.kind {
            Kind::Event => "event",
            Kind::Command => "command",
            Kind::Interaction => "interaction",
        };
        let (result, ack) = match self.send(envelope).await {
            Ok((status, body)) => {
                let result = format!("answered {status}");
                (result, acknowledge(envelope, status, &body))
            }
            Err(error) => (format!("failed to forward: {error:#}"), None),
        };
        let _stdout_closed = output::print_line(&format!("slack        {kind}: {result}"));
        ack
    }

    async fn send(&self, envelope: &Envelope) -> anyhow::Result<(u16, String)> {
        let request = &envelope.request;
        let (connection, secret) = self.target(request.media, &request.body).await?;
        let url = self.ingest.join(&format!("api/v1/webhooks/{connection}"))?;
        let now = signature::unix_now();
        let content_type = match request.media {
            MediaType::Json => "application/json",
            MediaType::Form => "application/x-www-form-urlencoded",
        };
        let mut sent = self
            .http
            .post(url)
            .header("content-type", content_type)
            .header("x-slack-request-timestamp", now)
            .header("x-slack-signature", signature::slack(&secret, now, &request.body))
            .body(request.body.clone());
        if let Some((number, reason)) = &request.retry {
            sent = sent
                .header("x-slack-retry-num", *number)
                .header("x-slack-retry-reason", reason.as_str());
        }
        let response = sent.send().await.map_err(reqwest::Error::without_url)?;
        let status = response.status().as_u16();
        Ok((status, response.text().await.map_err(reqwest::Error::without_url)?))
    }

    /// Returns the connection that a webhook is for, and its signing secret.
    async fn target(
        &self,
        media: MediaType,
        body: &[u8],
    ) -> anyhow::Result<(ConnectionId, Secret)> {
        let (named, installations) = {
            let parts = BodyParts::split(media, body);
            let payload = parts.read();
            (payload.app().and_then(|app| app.parse().ok()), payload.installations())
        };
        let own = self.app.lock().ok().and_then(|app| app.clone());
        let app: AppId = named.or(own).context("the webhook names no app")?;
        for installation in &installations {
            let (enterprise, team) = (installation.enterprise.as_ref(), installation.team.as_ref());
            let found = self.store.installed_connection(&app, enterprise, team).await?;
            let Some(id) = found else { continue };
            let connection = self.store.load_connection(id).await?;
            let connection = connection.with_context(|| format!("connection {id} is deleted"))?;
            return Ok((id, connection.signing_secret));
        }
        let places = installations.iter().filter_map(|installation| {
            let team = installation.team.as_ref().map(ToString::to_string);
            team.or_else(|| installation.enterprise.as_ref().map(ToString::to_string))
        });
        let places = places.collect::<Vec<_>>().join(", ");
        anyhow::bail!(
            "no connection of app {app} in workspace {places}; create it with tidegate init, \
             or declare it in tidegate.toml and run tidegate apply"
        )
    }
}
