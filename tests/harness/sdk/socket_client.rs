//! Processes of Slack's Socket Mode clients.

use crate::{
    bolt::Language,
    fetch::{PythonPackages, bolt_js, slack_sdk},
    process::Process,
    run_dir::RunDir,
    slack::Slack,
};
use serde_json::Value;
use std::{fs, sync::Arc};

/// A running client.
pub struct SocketClient {
    /// Its process.
    pub process: Process,
    _run: Arc<RunDir>,
}

impl SocketClient {
    /// Starts a client with an app-level token.
    ///
    /// # Errors
    /// One line that names what is missing and the remedy.
    pub async fn start(language: Language, slack: &Slack, token: &str) -> anyhow::Result<Self> {
        let run = Arc::new(RunDir::new("socket")?);
        let mut settings = vec![
            ("SLACK_APP_TOKEN".to_owned(), token.to_owned()),
            ("SLACK_API".into(), slack.api()),
        ];
        let (program, file, script) = match language {
            Language::Python => {
                let PythonPackages { python, packages } = slack_sdk(&run).await?;
                settings.push(("PYTHONPATH".into(), packages.display().to_string()));
                settings.push(("PYTHONDONTWRITEBYTECODE".into(), "1".into()));
                (python, "socket.client.py", include_str!("socket.py"))
            }
            Language::JavaScript => {
                let (node, modules) = bolt_js(&run).await?;
                settings.push(("NODE_PATH".into(), modules.display().to_string()));
                (node, "socket.js", include_str!("socket.js"))
            }
        };
        let file = run.path().join(file);
        fs::write(&file, script)?;
        let process = Process::start(&run, language.as_str(), &program, &[file], &settings, None)?;
        Ok(Self { process, _run: run })
    }

    /// Returns the lines that the client printed.
    pub fn lines(&self) -> Vec<Value> {
        let log = self.process.log();
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}
