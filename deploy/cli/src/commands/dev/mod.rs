//! `tidegate dev`: a complete deployment on this machine, without containers and without root.
//!
//! Finds or fetches nats-server and Postgres, migrates them, and runs ingest, worker and control.
//! The state is kept in a folder. When the command ends, even by SIGKILL, all its processes end.
//! With `--slack` it receives webhooks from a real workspace by Socket Mode.

mod programs;
mod servers;
mod slack;
mod state;

use crate::{output, settings, slack_api::SlackApi};
use anyhow::{Context, bail};
use dev::run_dir::RunDir;
use programs::{Program, free_address, run_tidegate};
use reqwest::{Client, Url};
use servers::Servers;
use shared::{
    runtime::config::{PostgresConfig, parse_key_ring},
    secrets::Secret,
    store::{KeyRings, PlanMode, Store},
};
use slack::Relay;
use state::State;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::signal::unix::{SignalKind, signal};

/// Maximum time for a response of a program on this machine.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum Postgres connections of the relay.
const RELAY_CONNECTIONS: u32 = 4;

/// Arguments of `tidegate dev`.
#[derive(Debug, clap::Args)]
pub struct Dev {
    /// Folder of the state. Default: tidegate-dev in XDG_DATA_HOME or ~/.local/share;
    /// /var/lib/tidegate-dev for root.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// File to apply after the start. Default: tidegate.toml, if it exists.
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Address for webhooks. Port 0 selects a free port.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    ingest_listen: SocketAddr,
    /// Address of the control API. Port 0 selects a free port.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081")]
    control_listen: SocketAddr,
    /// Receive webhooks of a real workspace by Socket Mode, which needs no public URL.
    #[arg(long)]
    slack: bool,
    /// App-level token for Socket Mode, as file:<path>, env:<name>, or - for standard input.
    /// Default: the token that tidegate init stored beside the file, or a prompt.
    #[arg(long, value_parser = settings::secret, requires = "slack")]
    app_token: Option<Secret>,
    /// Base URL of Slack's Web API.
    #[arg(
        long,
        env = "TIDEGATE_SLACK_API_URL",
        value_name = "URL",
        default_value = "https://slack.com/api/"
    )]
    slack_api_url: Url,
}

impl Dev {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        let _ = rustls::crypto::ring::default_provider().install_default(); // once in a process
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let token = if self.slack { Some(self.token()?) } else { None };
        let began = Instant::now();
        let state = State::open(self.state.as_deref())?;
        let run = Arc::new(RunDir::new("dev")?);
        let mut started = Started::default();
        let ran = tokio::select! {
            ran = self.serve(&run, &state, token, &mut started, began) => ran,
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
        };
        started.stop().await;
        ran
    }

    async fn serve(
        &self,
        run: &Arc<RunDir>,
        state: &State,
        token: Option<Secret>,
        started: &mut Started,
        began: Instant,
    ) -> anyhow::Result<()> {
        let ingest_listen = free_address(self.ingest_listen, "--ingest-listen")?;
        let control_listen = free_address(self.control_listen, "--control-listen")?;
        let keys = state.path("keys").display().to_string();
        run_tidegate(&["keygen", "--out", &keys, "--if-missing"], Vec::new()).await?;
        let servers = started.servers.insert(Servers::start(run, state).await?);
        let nats_url = servers.nats.url();
        run_tidegate(&["migrate"], state.settings("owner", &nats_url)).await?;
        servers.grant().await?;
        for (name, listen) in
            [("ingest", Some(ingest_listen)), ("worker", None), ("control", Some(control_listen))]
        {
            started.programs.push(Program::start(run, state, name, &nats_url, listen)?);
        }
        let http = Client::builder().no_proxy().timeout(LOCAL_TIMEOUT).build()?;
        for program in &started.programs {
            program.wait_until_ready(&http).await?;
        }
        let operator = state.settings("operator", &nats_url);
        if let Some(file) = self.file_to_apply() {
            let shown = file.display().to_string();
            let applied = run_tidegate(&["apply", "--file", &shown], operator.clone()).await?;
            output::print_line(applied.trim_end())?;
        }
        let env_file = state.write_operator_settings(&operator)?;
        for (name, location) in [
            ("webhooks", format!("http://{ingest_listen}/api/v1/webhooks/<connection>")),
            ("control API", format!("http://{control_listen}")),
            ("NATS", nats_url.clone()),
            ("Postgres", format!("addresses in {}", state.key("operator.url").display())),
            ("logs", state.path("logs").display().to_string()),
            ("settings", format!(". {}", env_file.display())),
        ] {
            output::print_line(&format!("{name:<12} {location}"))?;
        }
        let took = began.elapsed().as_secs_f64();
        output::print_line(&format!("ready after {took:.1} s; press Ctrl-C to stop"))?;
        let relay = async {
            match token {
                None => std::future::pending().await,
                Some(token) => {
                    let store = open_store(state)?;
                    let ingest = format!("http://{ingest_listen}/").parse()?;
                    let api = SlackApi::new(&self.slack_api_url)?;
                    Relay::new(store, http, ingest, api, token).run().await
                }
            }
        };
        let [ingest, worker, control] = &started.programs[..] else {
            bail!("expected three programs")
        };
        tokio::select! {
            ended = ingest.ended() => bail!(ended),
            ended = worker.ended() => bail!(ended),
            ended = control.ended() => bail!(ended),
            ended = relay => ended,
        }
    }

    /// Returns the file to apply: `--file`, or `tidegate.toml` if it exists.
    fn file_to_apply(&self) -> Option<PathBuf> {
        let default = PathBuf::from("tidegate.toml");
        self.file.clone().or_else(|| Some(default).filter(|file| file.exists()))
    }

    /// Returns the app-level token: from the argument, the file of `tidegate init`, or a prompt.
    fn token(&self) -> anyhow::Result<Secret> {
        let file = self.file.clone().unwrap_or_else(|| PathBuf::from("tidegate.toml"));
        let stored = file.parent().unwrap_or(Path::new("")).join(settings::APP_TOKEN_FILE);
        let token = match &self.app_token {
            Some(token) => token.clone(),
            None if stored.is_file() => {
                let reference = format!("file:{}", stored.display());
                settings::secret(&reference).map_err(anyhow::Error::msg)?
            }
            None => settings::prompt_secret("App-level token (xapp-…)", "--app-token")?,
        };
        settings::check_app_token(&token)?;
        Ok(token)
    }
}

/// Opens the store of the relay, which looks up connections and their signing secrets.
fn open_store(state: &State) -> anyhow::Result<Store> {
    let path = state.key("operator.url");
    let url = std::fs::read_to_string(&path)
        .with_context(|| format!("failed to read {}", path.display()))?;
    let ring = |name: &str| {
        let reference = format!("file:{}", state.key(name).display());
        parse_key_ring(&reference).map_err(anyhow::Error::msg)
    };
    let rings = KeyRings { signing: ring("signing.keys")?, tokens: ring("token.keys")? };
    let settings = PostgresConfig { url, ca_file: None, max_connections: RELAY_CONNECTIONS };
    Ok(Store::new(&settings, rings, PlanMode::PerCall)?)
}

/// Running programs and servers. `stop` ends the programs first.
#[derive(Default)]
struct Started {
    programs: Vec<Program>,
    servers: Option<Servers>,
}

impl Started {
    async fn stop(self) {
        let mut ending = tokio::task::JoinSet::new();
        for program in self.programs {
            ending.spawn(program.stop());
        }
        ending.join_all().await;
        if let Some(servers) = self.servers {
            servers.stop().await;
        }
    }
}
