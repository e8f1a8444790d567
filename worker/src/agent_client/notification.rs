//! Notifications to the operator's backend, signed by Standard Webhooks.

use super::client::{AgentClient, blocked};
use reqwest::Url;
use shared::{runtime::telemetry::ErrorChain, signature, store::NotificationEndpoint};
use std::time::Duration;

/// Maximum bytes of a response.
const RESPONSE_BYTES_MAX: usize = 16 * 1024;

impl AgentClient {
    /// Sends a notification. `id` is the same in every attempt. Returns the body of the response.
    /// The error is a text for operators.
    pub async fn notify(
        &self,
        endpoint: &NotificationEndpoint,
        id: &str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, String> {
        let url: Url = endpoint.url.parse().map_err(|_| "its URL is malformed".to_owned())?;
        let plain_http = self.networks.check(&url).map_err(|refused| refused.to_string())?;
        let client = if plain_http { &self.plain_http } else { &self.https };
        let now = signature::unix_now();
        let signature = signature::standard_webhooks(&endpoint.secret, id, now, &body)
            .ok_or_else(|| "its secret whsec_… is malformed".to_owned())?;
        let failed = |error: reqwest::Error| {
            let error = error.without_url();
            match blocked(&error) {
                Some(blocked) => blocked.to_string(),
                None => ErrorChain(&error).to_string(),
            }
        };
        let request = client
            .post(url)
            .timeout(timeout)
            .header("content-type", "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", now)
            .header("webhook-signature", signature)
            .body(body);
        let mut response = request.send().await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(format!("the backend answered {}", response.status().as_u16()));
        }
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if answer.len() + chunk.len() > RESPONSE_BYTES_MAX {
                return Err(format!("its answer exceeds {RESPONSE_BYTES_MAX} bytes"));
            }
            answer.extend_from_slice(&chunk);
        }
        Ok(answer)
    }
}
