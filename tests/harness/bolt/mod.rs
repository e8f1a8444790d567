//! Slack apps that use unmodified Bolt for Python and Bolt for JavaScript, from the public
//! registries.
//!
//! An app is a process that serves `/slack/events`. Both apps follow Slack's documentation
//! (`app.py`, `app.js`). Their packages are pinned, by hashes and by a lock file.

use crate::{
    eventually::eventually,
    fetch::{PythonPackages, bolt_js, slack_bolt},
    port,
    process::Process,
    run_dir::RunDir,
    slack::Slack,
    test_env::{App, TIMEOUT},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv4Addr,
    sync::Arc,
};
use tokio::net::TcpStream;

/// Language of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// slack_bolt.
    Python,
    /// @slack/bolt.
    JavaScript,
}

impl Language {
    /// Returns the name that the app uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Language::Python => "python",
            Language::JavaScript => "javascript",
        }
    }
}

/// A running app.
pub struct Bolt {
    /// Its process.
    pub process: Process,
    port: u16,
    _run: Arc<RunDir>,
}

impl Bolt {
    /// Starts the app and waits until it listens.
    ///
    /// # Errors
    /// One line that names what is missing and the remedy.
    pub async fn start(language: Language, slack: &Slack, app: &App) -> anyhow::Result<Self> {
        let script = match language {
            Language::Python => include_str!("app.py"),
            Language::JavaScript => include_str!("app.js"),
        };
        Self::start_script(language, slack, app, script, "").await
    }

    /// Starts an app with a listener of each kind, and of each of these types of events.
    ///
    /// # Errors
    /// One line that names what is missing and the remedy.
    pub async fn start_with_kinds<'t>(
        language: Language,
        slack: &Slack,
        app: &App,
        event_types: impl IntoIterator<Item = &'t str>,
    ) -> anyhow::Result<Self> {
        let script = match language {
            Language::Python => include_str!("kinds.py"),
            Language::JavaScript => include_str!("kinds.js"),
        };
        let types = event_types.into_iter().collect::<Vec<_>>().join(",");
        Self::start_script(language, slack, app, script, &types).await
    }

    async fn start_script(
        language: Language,
        slack: &Slack,
        app: &App,
        script: &str,
        event_types: &str,
    ) -> anyhow::Result<Self> {
        let run = Arc::new(RunDir::new("bolt")?);
        let port = port::free()?;
        let mut settings = vec![
            ("PORT".to_owned(), port.to_string()),
            ("SLACK_BOT_TOKEN".to_owned(), app.token.clone()),
            ("SLACK_SIGNING_SECRET".to_owned(), app.secret.clone()),
            ("SLACK_API".to_owned(), slack.api()),
            ("EVENT_TYPES".to_owned(), event_types.to_owned()),
        ];
        let (program, file) = match language {
            Language::Python => {
                let PythonPackages { python, packages } = slack_bolt(&run).await?;
                settings.push(("PYTHONPATH".into(), packages.display().to_string()));
                settings.push(("PYTHONDONTWRITEBYTECODE".into(), "1".into()));
                let file = run.path().join("app.py");
                fs::write(&file, script)?;
                (python, file)
            }
            Language::JavaScript => {
                let (node, modules) = bolt_js(&run).await?;
                settings.push(("NODE_PATH".into(), modules.display().to_string()));
                let file = run.path().join("app.js");
                fs::write(&file, script)?;
                (node, file)
            }
        };
        let process = Process::start(&run, language.as_str(), &program, &[file], &settings, None)?;
        let bolt = Self { process, port, _run: run };
        bolt.wait_until_listening().await;
        Ok(bolt)
    }

    /// Returns the URL for requests of Slack.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/slack/events", self.port)
    }

    /// Waits until the app listens.
    pub async fn wait_until_listening(&self) {
        eventually("the app listens", TIMEOUT, async || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.ok()
        })
        .await;
    }

    /// Returns the kinds of the listeners that each webhook reached, by its token.
    pub fn kinds(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut kinds: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for line in self.process.log().lines() {
            let line = line.strip_prefix("kind ").and_then(|line| line.split_once(' '));
            let Some((token, kind)) = line else { continue };
            kinds.entry(token.to_owned()).or_default().insert(kind.to_owned());
        }
        kinds
    }

    /// Returns the texts that the app received in a conversation, in order.
    pub fn received_texts(&self, channel: &str) -> Vec<String> {
        let prefix = format!("heard {channel} ");
        self.process
            .log()
            .lines()
            .filter_map(|line| line.strip_prefix(&prefix).map(str::to_owned))
            .collect()
    }
}
