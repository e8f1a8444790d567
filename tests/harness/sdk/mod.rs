//! Slack's SDK for Python, as a second implementation of signatures.
//!
//! The SDK signs webhooks for a gateway, or verifies webhooks that the simulated Slack signed. The
//! scripts belong to the tests; the SDK is a pinned wheel (`fetch.rs`).

mod socket_client;

pub use socket_client::SocketClient;

use crate::{
    fetch::{PythonPackages, slack_sdk},
    run_dir::RunDir,
    slack::webhook::Webhook,
};
use anyhow::{Context, ensure};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;
use std::{
    io::Write,
    process::{Command, Stdio},
    sync::Arc,
};

/// The SDK.
pub struct Sdk(PythonPackages);

/// An answer of a gateway.
#[derive(Debug, Deserialize)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body, as text.
    pub body: String,
}

impl Sdk {
    /// Returns the SDK, fetched if necessary.
    ///
    /// # Errors
    /// One line that names what is missing and the remedy.
    pub async fn get() -> anyhow::Result<Self> {
        let run = Arc::new(RunDir::new("slack-sdk")?);
        Ok(Self(slack_sdk(&run).await?))
    }

    /// Signs webhooks as Slack does and sends them. With `flip`, changes a bit of each after
    /// signing.
    ///
    /// # Errors
    /// The output of Python.
    pub async fn send<'w>(
        &self,
        url: &str,
        secret: &str,
        webhooks: impl IntoIterator<Item = &'w Webhook>,
        flip: bool,
    ) -> anyhow::Result<Vec<Answer>> {
        let line = |webhook: &Webhook| {
            json!({
                "url": url, "secret": secret, "content_type": webhook.content_type,
                "body": BASE64.encode(&webhook.body), "flip": flip,
            })
        };
        self.run(include_str!("send.py"), webhooks.into_iter().map(line)).await
    }

    /// Returns, for each webhook, true if the SDK accepts its signature.
    ///
    /// # Errors
    /// The output of Python.
    pub async fn verifies_each(
        &self,
        secret: &str,
        webhooks: impl IntoIterator<Item = (&[u8], [(&str, &str); 2])>,
    ) -> anyhow::Result<Vec<bool>> {
        #[derive(Deserialize)]
        struct Verdict {
            valid: bool,
        }
        let line = |(body, headers): (&[u8], [(&str, &str); 2])| {
            let headers: std::collections::BTreeMap<_, _> = headers.into();
            json!({ "secret": secret, "body": BASE64.encode(body), "headers": headers })
        };
        let verdicts: Vec<Verdict> =
            self.run(include_str!("verify.py"), webhooks.into_iter().map(line)).await?;
        Ok(verdicts.into_iter().map(|verdict| verdict.valid).collect())
    }

    async fn run<T: DeserializeOwned + Send + 'static>(
        &self,
        script: &'static str,
        lines: impl Iterator<Item = impl Serialize>,
    ) -> anyhow::Result<Vec<T>> {
        let mut input = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut input, &line)?;
            input.push(b'\n');
        }
        let PythonPackages { python, packages } = self.0.clone();
        let output = tokio::task::spawn_blocking(move || {
            // -B: writes no bytecode into the cache.
            let mut child = Command::new(python)
                .args(["-B", "-c", script])
                .env("PYTHONPATH", packages)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .context("failed to start python3")?;
            let mut stdin = child.stdin.take().context("the child has no stdin")?;
            // Written by a thread, because a script may print before it has read all input.
            let fed = std::thread::spawn(move || stdin.write_all(&input));
            let output = child.wait_with_output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            fed.join().ok().context("the thread that writes stdin panicked")??;
            Ok(output.stdout)
        });
        let text = String::from_utf8(output.await??)?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}
