//! `tidegate apply --api`: sends the file to the control API, which applies it.
//!
//! The command then needs an API key, and no access to Postgres, NATS or keyrings.

use crate::settings;
use anyhow::{Context, bail, ensure};
use reqwest::{Client, StatusCode, Url};
use serde::Deserialize;
use serde_json::{Value, json};
use shared::{
    domain::parse_web_address,
    operations::FileProblem,
    secrets::Secret,
    store::{ApplyMode, PlanSummary},
};
use std::{collections::BTreeMap, time::Duration};

/// Maximum time of a request. Exceeds the timeout of the API.
const TIMEOUT: Duration = Duration::from_secs(40);

/// Settings of the control API that applies the file.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Settings")]
pub struct ApiSettings {
    /// URL of the control API that applies the file, instead of this command with Postgres, NATS
    /// and keyrings. It receives the secrets that the file refers to.
    #[arg(long, env = "TIDEGATE_API_URL", value_name = "URL", requires = "api_key")]
    api: Option<Url>,
    /// API key with role owner for all organizations, as file:<path> or env:<name>.
    #[arg(long, env = "TIDEGATE_API_KEY", value_name = "REF", value_parser = settings::secret, requires = "api")]
    api_key: Option<Secret>,
}

/// Problem in the file, as the API returns it.
#[derive(Deserialize)]
struct ReportedProblem {
    line: usize,
    text: String,
}

impl ApiSettings {
    /// Returns the URL and key of the API, if both are set.
    pub fn target(&self) -> Option<(&Url, &Secret)> {
        self.api.as_ref().zip(self.api_key.as_ref())
    }
}

/// Applies a file with its secrets. Returns the plan, or the problems in the file.
pub async fn apply(
    (base, key): (&Url, &Secret),
    file: &str,
    secrets: &BTreeMap<String, String>,
    mode: ApplyMode,
) -> anyhow::Result<Result<PlanSummary, Vec<FileProblem>>> {
    ensure!(
        parse_web_address(base.as_str()).is_some(),
        "secrets are sent by https only, or to this machine, and --api is {base}"
    );
    let _ = rustls::crypto::ring::default_provider().install_default(); // once in a process
    let http = Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy() // a proxy from the environment would see secrets
        .timeout(TIMEOUT)
        .build()
        .context("failed to create the HTTP client")?;
    let url =
        base.join("/v1/declarations").context("malformed URL of the control API; check --api")?;
    let body = json!({
        "file": file, "secrets": secrets, "prune": mode.prune, "confirmed": mode.confirmed,
        "dry_run": mode.dry_run,
    });
    let sent = http.post(url).bearer_auth(key.expose()).json(&body).send().await;
    let response =
        sent.with_context(|| format!("failed to call the control API at {base}; check --api"))?;
    let status = response.status();
    let reply: Value =
        response.json().await.context("the response of the control API is not JSON")?;
    if status == StatusCode::OK {
        return Ok(Ok(serde_json::from_value(reply)
            .context("the response of the control API has an unknown form")?));
    }
    let problems = reply["errors"].clone();
    if let Ok(problems) = serde_json::from_value::<Vec<ReportedProblem>>(problems) {
        let problems = problems.into_iter().map(|p| FileProblem { line: p.line, text: p.text });
        return Ok(Err(problems.collect()));
    }
    let detail = reply["detail"].as_str().unwrap_or("no detail");
    bail!("the control API returned {}: {detail}", status.as_u16())
}
