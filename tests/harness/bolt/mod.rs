//! Stock apps behind Tidegate: one with Bolt for Python, one with Bolt for JavaScript, from the public registries.
//!
//! In: which of the two, and whose it is. Out: a process that serves `/slack/events`, to be stopped and started like any
//! other. Both are written as Slack's documentation shows (`app.py`, `app.js`) and pinned: by hashes, by a lock file.

use crate::{
    fetch::{SlackSdk, bolt_js, slack_bolt},
    guard::RunDir,
    port,
    process::Process,
    slack::Slack,
    until::until,
    world::{App, SOON},
};
use std::{fs, net::Ipv4Addr, sync::Arc};
use tokio::net::TcpStream;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// slack_bolt.
    Python,
    /// @slack/bolt.
    JavaScript,
}

impl Language {
    /// As the app calls itself.
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
    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// One line that names what is missing and the remedy.
    pub async fn start(language: Language, slack: &Slack, app: &App) -> anyhow::Result<Self> {
        let run = Arc::new(RunDir::new("bolt")?);
        let port = port::free()?;
        let mut settings = vec![
            ("PORT".to_owned(), port.to_string()),
            ("SLACK_BOT_TOKEN".to_owned(), app.token.clone()),
            ("SLACK_SIGNING_SECRET".to_owned(), app.secret.clone()),
            ("SLACK_API".to_owned(), slack.api()),
        ];
        let (program, file) = match language {
            Language::Python => {
                let SlackSdk { python, packages } = slack_bolt(&run).await?;
                settings.push(("PYTHONPATH".into(), packages.display().to_string()));
                settings.push(("PYTHONDONTWRITEBYTECODE".into(), "1".into()));
                let file = run.path().join("app.py");
                fs::write(&file, include_str!("app.py"))?;
                (python, file)
            }
            Language::JavaScript => {
                let (node, modules) = bolt_js(&run).await?;
                settings.push(("NODE_PATH".into(), modules.display().to_string()));
                let file = run.path().join("app.js");
                fs::write(&file, include_str!("app.js"))?;
                (node, file)
            }
        };
        let process = Process::start(&run, language.as_str(), &program, &[file], &settings, None)?;
        let bolt = Self { process, port, _run: run };
        bolt.listens().await;
        Ok(bolt)
    }

    /// Where it takes what Slack sends.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/slack/events", self.port)
    }

    /// Waits until it listens.
    pub async fn listens(&self) {
        until("the app listens", SOON, async || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.ok()
        })
        .await;
    }

    /// What it heard in a conversation, in the order in which it came.
    pub fn heard(&self, channel: &str) -> Vec<String> {
        let prefix = format!("heard {channel} ");
        self.process
            .log()
            .lines()
            .filter_map(|line| line.strip_prefix(&prefix).map(str::to_owned))
            .collect()
    }
}
