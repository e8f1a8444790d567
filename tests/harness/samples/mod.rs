//! Processes of the sample agents of `worker/examples`, with the libraries of Standard Webhooks
//! from the public registries. Their packages are pinned, by hashes and by a lock file.

use crate::{
    bolt::Language,
    eventually::eventually,
    fetch::{PythonPackages, standard_webhooks_js, standard_webhooks_python},
    port,
    process::Process,
    run_dir::RunDir,
    test_env::TIMEOUT,
};
use std::{fs, net::Ipv4Addr, sync::Arc};
use tokio::net::TcpStream;

/// A running sample.
pub struct Sample {
    /// Its process.
    pub process: Process,
    port: u16,
    _run: Arc<RunDir>,
}

impl Sample {
    /// Returns the source of a sample.
    pub fn source(language: Language) -> &'static str {
        match language {
            Language::Python => include_str!("../../../worker/examples/agent.py"),
            Language::JavaScript => include_str!("../../../worker/examples/agent.js"),
        }
    }

    /// Starts a sample with the secret of its agent, and waits until it listens.
    ///
    /// # Errors
    /// One line that names what is missing and the remedy.
    pub async fn start(language: Language, secret: &str) -> anyhow::Result<Self> {
        let run = Arc::new(RunDir::new("sample")?);
        let port = port::free()?;
        let mut settings = vec![
            ("PORT".to_owned(), port.to_string()),
            ("AGENT_SECRET".to_owned(), secret.to_owned()),
        ];
        let (program, name) = match language {
            Language::Python => {
                let PythonPackages { python, packages } = standard_webhooks_python(&run).await?;
                settings.push(("PYTHONPATH".into(), packages.display().to_string()));
                settings.push(("PYTHONDONTWRITEBYTECODE".into(), "1".into()));
                (python, "agent.py")
            }
            Language::JavaScript => {
                let (node, modules) = standard_webhooks_js(&run).await?;
                settings.push(("NODE_PATH".into(), modules.display().to_string()));
                (node, "agent.js")
            }
        };
        let file = run.path().join(name);
        fs::write(&file, Self::source(language))?;
        let process = Process::start(&run, language.as_str(), &program, &[file], &settings, None)?;
        let listening = async || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok();
        eventually("the sample listens", TIMEOUT, listening).await;
        Ok(Self { process, port, _run: run })
    }

    /// Returns the URL of the agent.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }
}
