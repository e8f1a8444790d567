//! Settings and arguments that several commands share. Commands do not import each other.

use anyhow::Context;
use async_nats::jetstream;
use shared::{
    domain::{Actor, AgentId, OperatorName, OrgId},
    operations::Operations,
    runtime::config::{self, NatsConfig, PostgresConfig},
    secrets::{KeyRing, Secret},
    store::{KeyRings, PlanMode, Store},
};
use std::{
    env, fs,
    io::{self, IsTerminal},
    str::FromStr,
    time::Duration,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Settings of Postgres. Commands that encrypt or decrypt columns take keyrings as well.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Settings")]
pub struct StoreSettings {
    #[command(flatten)]
    postgres: PostgresConfig,
    /// Name under which the audit log records changes. Default: USER or LOGNAME.
    #[arg(long, env = "TIDEGATE_OPERATOR_NAME", value_name = "NAME")]
    operator_name: Option<OperatorName>,
}

/// Name of the operator if neither the setting nor `USER` nor `LOGNAME` is set.
const UNKNOWN_OPERATOR: &str = "unknown";

impl StoreSettings {
    /// Returns a store without keyrings. The first statement connects.
    pub fn open(&self) -> anyhow::Result<Store> {
        self.open_with(KeyRings::default())
    }

    /// Returns a store with keyrings. The first statement connects.
    pub fn open_with(&self, rings: KeyRings) -> anyhow::Result<Store> {
        Ok(Store::new(&self.postgres, rings, PlanMode::PerCall)?)
    }

    /// Returns the operations on a store, in the name of this operator.
    pub fn operations(&self, store: &Store) -> anyhow::Result<Operations> {
        let user_name =
            || ["USER", "LOGNAME"].iter().find_map(|name| env::var(name).ok()?.parse().ok());
        let name = match self.operator_name.clone().or_else(user_name) {
            Some(name) => name,
            None => UNKNOWN_OPERATOR.parse()?,
        };
        Ok(Operations::new(store.clone(), Actor::Operator(name)))
    }
}

/// Setting of the keyring of signing secrets.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Settings")]
pub struct SigningKeyring {
    /// Keyring of signing secrets, as k2:<base64>,k1:<base64>, file:<path> or exec:<command>.
    #[arg(
        long,
        env = "TIDEGATE_SIGNING_SECRET_KEYRING",
        value_name = "RING",
        value_parser = config::parse_key_ring,
        hide_env_values = true
    )]
    signing_secret_keyring: KeyRing,
}

impl SigningKeyring {
    /// Returns the keyring of signing secrets, and an empty one for tokens.
    pub fn rings(&self) -> KeyRings {
        KeyRings { signing: self.signing_secret_keyring.clone(), ..KeyRings::default() }
    }
}

/// Setting of the keyring of tokens, payloads and agents' secrets.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Settings")]
pub struct TokenKeyring {
    /// Keyring of tokens, payloads and agents' secrets, in the same form.
    #[arg(
        long,
        env = "TIDEGATE_TOKEN_KEYRING",
        value_name = "RING",
        value_parser = config::parse_key_ring,
        hide_env_values = true
    )]
    token_keyring: KeyRing,
}

impl TokenKeyring {
    /// Returns the keyring of tokens, and an empty one for signing secrets.
    pub fn rings(&self) -> KeyRings {
        KeyRings { tokens: self.token_keyring.clone(), ..KeyRings::default() }
    }
}

/// Settings of both keyrings.
#[derive(Debug, clap::Args)]
pub struct Keyrings {
    #[command(flatten)]
    signing: SigningKeyring,
    #[command(flatten)]
    tokens: TokenKeyring,
}

impl Keyrings {
    /// Returns both keyrings.
    pub fn rings(&self) -> KeyRings {
        KeyRings { signing: self.signing.rings().signing, ..self.tokens.rings() }
    }
}

/// Parses a secret argument: `file:<path>`, `env:<name>`, or `-` for standard input.
///
/// Rejects a literal secret: other users of the machine can read arguments, and Kubernetes stores
/// those of a pod.
pub fn secret(reference: &str) -> Result<Secret, String> {
    let text = match reference.split_once(':') {
        Some(("file", path)) => {
            fs::read_to_string(path).map_err(|error| format!("failed to read the file: {error}"))
        }
        Some(("env", name)) => env::var(name).map_err(|error| format!("{name}: {error}")),
        _ if reference == "-" => io::read_to_string(io::stdin())
            .map_err(|error| format!("failed to read standard input: {error}")),
        _ => Err("expected file:<path>, env:<name>, or - for standard input, \
                  because other users can read arguments"
            .to_owned()),
    };
    Secret::new(text?.trim_end().to_owned()).map_err(|error| error.to_string())
}

/// Path of the app-level token that `tidegate init` writes, relative to the declaration.
pub const APP_TOKEN_FILE: &str = ".tidegate/app.token";

/// Prompts for a secret without echo. `flag` is the argument that replaces the prompt.
pub fn prompt_secret(what: &str, flag: &str) -> anyhow::Result<Secret> {
    require_terminal(what, flag)?;
    let typed = dialoguer::Password::new().with_prompt(what).interact();
    let typed = typed.with_context(|| format!("failed to read {what}; pass {flag}"))?;
    Ok(Secret::new(typed.trim().to_owned())?)
}

/// Prompts for a text. `flag` is the argument that replaces the prompt.
pub fn prompt_text(what: &str, flag: &str, default: &str) -> anyhow::Result<String> {
    require_terminal(what, flag)?;
    let mut input = dialoguer::Input::<String>::new().with_prompt(what);
    if !default.is_empty() {
        input = input.default(default.to_owned());
    }
    input.interact_text().with_context(|| format!("failed to read {what}; pass {flag}"))
}

fn require_terminal(what: &str, flag: &str) -> anyhow::Result<()> {
    let is_terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
    anyhow::ensure!(is_terminal, "{what} is missing, and there is no terminal to ask; pass {flag}");
    Ok(())
}

/// Checks that an app-level token begins with `xapp-`.
pub fn check_app_token(token: &Secret) -> anyhow::Result<()> {
    anyhow::ensure!(
        token.expose().starts_with("xapp-"),
        "the app-level token does not begin with xapp-; create one with the scope \
         connections:write in the settings of the app, under Basic Information"
    );
    Ok(())
}

/// Time argument: a point in time, or a duration before now.
#[derive(Debug, Clone, Copy)]
pub enum TimeArgument {
    At(OffsetDateTime),
    Ago(time::Duration),
}

impl TimeArgument {
    /// Returns the time. A duration is subtracted from the time of Postgres, because this machine's
    /// clock may be off.
    pub async fn resolve(self, store: &Store) -> anyhow::Result<OffsetDateTime> {
        match self {
            Self::At(time) => Ok(time),
            Self::Ago(back) => {
                let time = store.now().await?.checked_sub(back);
                time.context("the duration is too long; pass a time")
            }
        }
    }
}

impl FromStr for TimeArgument {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
            return Ok(Self::At(time));
        }
        let back = humantime::parse_duration(text).ok();
        let back = back.and_then(|back| time::Duration::try_from(back).ok());
        back.map(Self::Ago).ok_or_else(|| "expected 1h or 2026-01-31T12:00:00Z".into())
    }
}

/// Maximum time to connect to NATS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Settings of NATS.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Settings")]
pub struct NatsSettings {
    #[command(flatten)]
    pub nats: NatsConfig,
}

impl NatsSettings {
    /// Returns a JetStream context whose client is connected.
    pub async fn jetstream(&self) -> anyhow::Result<jetstream::Context> {
        let client = self.nats.connect("operator").await?;
        let flushed = tokio::time::timeout(CONNECT_TIMEOUT, client.flush()).await;
        anyhow::ensure!(
            matches!(flushed, Ok(Ok(()))),
            "failed to connect to NATS at {} within {CONNECT_TIMEOUT:?}; check TIDEGATE_NATS_URL, \
             TIDEGATE_NATS_NKEY_FILE and TIDEGATE_NATS_CA_FILE",
            self.nats.servers()
        );
        Ok(config::jetstream(client))
    }

    /// Returns a JetStream context whose client may not be connected. The first request then fails.
    pub async fn lazy_jetstream(&self) -> anyhow::Result<jetstream::Context> {
        Ok(config::jetstream(self.nats.connect("operator").await?))
    }
}

/// Agent argument: `<organization>/<agent>`.
#[derive(Debug, Clone)]
pub struct AgentName {
    pub org: OrgId,
    pub agent: AgentId,
}

impl FromStr for AgentName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (org, agent) = text.split_once('/').ok_or("expected <organization>/<agent>")?;
        let org = org.parse().map_err(|error| format!("{error}"))?;
        Ok(Self { org, agent: agent.parse().map_err(|error| format!("{error}"))? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_literal_secrets() {
        let path = env::temp_dir().join(format!("tidegate-secret-{}", std::process::id()));
        fs::write(&path, "hunter2\n").expect("written");
        let read = secret(&format!("file:{}", path.display())).expect("a secret");
        assert_eq!(read.expose(), "hunter2");
        fs::write(&path, "\n").expect("written");
        let empty = secret(&format!("file:{}", path.display()));
        assert_eq!(empty.expect_err("empty"), "a secret must not be empty");
        fs::remove_file(&path).expect("removed");
        assert_eq!(secret("env:PATH").expect("a secret").expose(), env::var("PATH").expect("set"));
        for literal in ["hunter2", "xoxe-1-hunter2", "hunter2:x", "", "--"] {
            let error = secret(literal).expect_err("a literal");
            assert!(error.starts_with("expected file:<path>"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn parses_agent_names() {
        let name: AgentName = "acme/helper".parse().expect("a name");
        assert_eq!((name.org.as_str(), name.agent.as_str()), ("acme", "helper"));
        assert!("helper".parse::<AgentName>().is_err());
        assert!("a.b/helper".parse::<AgentName>().is_err());
    }
}
