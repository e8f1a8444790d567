//! `tidegate init`: guides an operator from no Slack app to a declared connection.
//!
//! Prints the manifest of an app and the link that creates it, reads its secrets from files, the
//! environment or a prompt, looks up their app and workspace in Slack, writes the declaration, and
//! applies it to the deployment that the environment names, or to a running `tidegate dev`.

mod declaration;

use crate::{
    app_manifest::{self, DEFAULT_FEATURES, Delivery, base_url, creation_link},
    dev_settings, output,
    settings::{self, APP_TOKEN_FILE},
    slack_api::{SlackApi, SocketAddress, TokenFacts, TokenLookup},
};
use anyhow::{Context, bail, ensure};
use declaration::{Declaration, SECRETS_FOLDER};
use reqwest::Url;
use shared::{
    domain::{AgentId, AgentMode, AppId, ConnectionId, OrgId},
    secrets::Secret,
};
use std::{
    env, fs,
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Command,
};

/// Number of hexadecimal digits of a signing secret.
const SIGNING_SECRET_LENGTH: usize = 32;
/// Default of the prompt for the URL of the agent: deploy/compose/agent.py on this machine.
const DEFAULT_AGENT_URL: &str = "http://localhost:8000/";

/// Arguments of `tidegate init`.
#[derive(Debug, clap::Args)]
pub struct Init {
    /// File to write.
    #[arg(short, long, value_name = "FILE", default_value = "tidegate.toml")]
    file: PathBuf,
    /// Name of the app.
    #[arg(long, default_value = "Lobu")]
    name: String,
    /// Slash command, including the slash.
    #[arg(long, env = "TIDEGATE_SLASH_COMMAND", value_name = "COMMAND", default_value = "/lobu")]
    slash_command: String,
    /// Public URL of this deployment, for example https://gateway.example.com. Without it, the app
    /// uses Socket Mode.
    #[arg(long, env = "TIDEGATE_BASE_URL", value_name = "URL", value_parser = base_url)]
    base_url: Option<String>,
    /// Organization to declare.
    #[arg(long, value_name = "ORG", default_value = "local")]
    organization: OrgId,
    /// Agent to declare.
    #[arg(long, value_name = "AGENT", default_value = "agent")]
    agent: AgentId,
    /// URL of the agent. Default: a prompt.
    #[arg(long, value_name = "URL")]
    agent_url: Option<String>,
    /// Mode of the agent: reply, or forward for a Bolt app.
    #[arg(long, value_name = "MODE", default_value = "reply")]
    agent_mode: AgentMode,
    /// Signing secret of the app, as file:<path>, env:<name>, or - for standard input. Default: a
    /// prompt.
    #[arg(long, value_name = "SECRET", value_parser = settings::secret)]
    signing_secret: Option<Secret>,
    /// Bot token of the app in the workspace, in the same form.
    #[arg(long, value_name = "SECRET", value_parser = settings::secret)]
    bot_token: Option<Secret>,
    /// App-level token with connections:write, for Socket Mode, in the same form.
    #[arg(long, value_name = "SECRET", value_parser = settings::secret, conflicts_with = "base_url")]
    app_token: Option<Secret>,
    /// Folder of the state of tidegate dev. Default: that of tidegate dev.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Base URL of Slack's Web API.
    #[arg(
        long,
        env = "TIDEGATE_SLACK_API_URL",
        value_name = "URL",
        default_value = "https://slack.com/api/"
    )]
    slack_api_url: Url,
}

/// Secrets of an app.
struct Secrets {
    signing: Secret,
    bot: Secret,
    app: Option<Secret>,
}

impl Init {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        let shown = self.file.display();
        ensure!(!self.file.exists(), "{shown} exists; pass another file with --file");
        ensure!(
            self.slash_command.starts_with('/'),
            "--slash-command does not begin with a slash; pass /<name>"
        );
        let connection = ConnectionId::random()?;
        self.explain(connection)?;
        let secrets = self.secrets()?;
        let api = SlackApi::new(&self.slack_api_url)?;
        let facts = check(&api, &secrets).await?;
        let agent_url = match &self.agent_url {
            Some(url) => url.clone(),
            None => settings::prompt_text("URL of the agent", "--agent-url", DEFAULT_AGENT_URL)?,
        };
        let app = facts.app.context(
            "Slack did not return the app of the bot token; \
             add the scope users:read to the app, and install it again",
        )?;
        let app: AppId = app.parse().context("Slack returned a malformed app id")?;
        let installation = facts.installation;
        let workspace = installation.team.as_ref().map(ToString::to_string);
        let workspace =
            workspace.or_else(|| installation.enterprise.as_ref().map(ToString::to_string));
        let workspace = workspace.unwrap_or_default();
        output::print_line(&format!("Slack accepts the tokens: app {app}, workspace {workspace}"))?;
        let declaration = Declaration {
            organization: self.organization.clone(),
            agent: self.agent.clone(),
            mode: self.agent_mode,
            agent_url,
            connection,
            app,
            team: installation.team,
            enterprise: installation.enterprise,
            bot_user: facts.bot_user,
        };
        self.write(&declaration, &secrets)?;
        output::print_line(&format!("wrote {shown}, and the secrets to {SECRETS_FOLDER}/"))?;
        self.apply()?;
        let socket_mode = match self.base_url {
            Some(_) => String::new(),
            None => "Run tidegate dev --slack. ".to_owned(),
        };
        Ok(output::print_line(&format!(
            "{socket_mode}Then send in Slack: a direct message to {}, or {} help.",
            output::sanitize(&self.name),
            self.slash_command
        ))?)
    }

    /// Prints the manifest, the link that creates the app, and the places of its secrets in Slack.
    fn explain(&self, connection: ConnectionId) -> anyhow::Result<()> {
        let url = self.base_url.as_ref().map(|base| format!("{base}/api/v1/webhooks/{connection}"));
        let delivery = url.as_deref().map_or(Delivery::SocketMode, Delivery::Http);
        let manifest =
            app_manifest::build(&self.slash_command, delivery, &self.name, &DEFAULT_FEATURES);
        output::print_line(&serde_json::to_string_pretty(&manifest)?)?;
        let app_token = match self.base_url {
            Some(_) => "",
            None => "\n  Basic Information, App-Level Tokens: generate one with connections:write",
        };
        Ok(output::print_line(&format!(
            "\nCreate the app from this manifest, and choose its workspace:\n\n  {}\n\n\
             Then install it, and copy from its settings:\n\
             \x20 Basic Information, App Credentials: the signing secret{app_token}\n\
             \x20 OAuth & Permissions: the bot token\n",
            creation_link(&manifest)
        ))?)
    }

    /// Returns the secrets from the arguments, or prompts for them.
    fn secrets(&self) -> anyhow::Result<Secrets> {
        let take = |given: &Option<Secret>, what: &str, flag: &str| match given {
            Some(secret) => Ok(secret.clone()),
            None => settings::prompt_secret(what, flag),
        };
        let signing = take(&self.signing_secret, "Signing secret", "--signing-secret")?;
        let is_hex = signing.expose().bytes().all(|b| b.is_ascii_hexdigit());
        ensure!(
            is_hex && signing.expose().len() == SIGNING_SECRET_LENGTH,
            "the signing secret is malformed; copy the {SIGNING_SECRET_LENGTH} hexadecimal digits \
             from Basic Information, App Credentials"
        );
        let bot = take(&self.bot_token, "Bot token (xoxb-…)", "--bot-token")?;
        ensure!(
            bot.expose().starts_with("xoxb-"),
            "the bot token does not begin with xoxb-; copy the Bot User OAuth Token from OAuth & \
             Permissions"
        );
        let app = match self.base_url {
            Some(_) => None,
            None => Some(take(&self.app_token, "App-level token (xapp-…)", "--app-token")?),
        };
        app.iter().try_for_each(settings::check_app_token)?;
        Ok(Secrets { signing, bot, app })
    }

    /// Writes the declaration, and the secrets to files that only their owner can read.
    fn write(&self, declaration: &Declaration, secrets: &Secrets) -> anyhow::Result<()> {
        let beside = self.file.parent().unwrap_or(Path::new(""));
        let folder = beside.join(SECRETS_FOLDER);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.with_context(|| format!("failed to create folder {}", folder.display()))?;
        let write = |name: &str, text: &str| dev_settings::write_private(&folder.join(name), text);
        write(".gitignore", "*\n")?;
        write("signing.secret", secrets.signing.expose())?;
        write("bot.token", secrets.bot.expose())?;
        if let Some(token) = &secrets.app {
            dev_settings::write_private(&beside.join(APP_TOKEN_FILE), token.expose())?;
        }
        if !folder.join("agent.secret").exists() {
            let (first, second) = (ConnectionId::random()?, ConnectionId::random()?);
            write("agent.secret", &format!("{first}{second}"))?;
        }
        fs::write(&self.file, declaration.render())
            .with_context(|| format!("failed to write {}", self.file.display()))
    }

    /// Applies the file to the deployment that the environment names, or to a running `tidegate
    /// dev`.
    fn apply(&self) -> anyhow::Result<()> {
        let settings = match env::var_os("TIDEGATE_NATS_URL") {
            Some(_) => Some(Vec::new()),
            None => dev_settings::read(&dev_settings::state_dir(self.state.as_deref())?),
        };
        let shown = self.file.display();
        let Some(settings) = settings else {
            let line =
                format!("no deployment is running; tidegate dev applies {shown} when it starts");
            return Ok(output::print_line(&line)?);
        };
        let mut command = Command::new(env::current_exe().context("failed to find this program")?);
        let ran = command.args(["apply", "--file"]).arg(&self.file).envs(settings).status();
        let status = ran.context("failed to run tidegate apply")?;
        if !status.success() {
            bail!("failed to apply {shown}; correct it, and run tidegate apply --file {shown}");
        }
        Ok(())
    }
}

/// Looks up the app and installation of the bot token, and checks the app-level token.
async fn check(api: &SlackApi, secrets: &Secrets) -> anyhow::Result<TokenFacts> {
    let facts = match api.look_up_token(&secrets.bot).await {
        TokenLookup::Found(facts) => facts,
        TokenLookup::Rejected(code) => bail!(
            "Slack rejected the bot token ({}); install the app, and copy the Bot User OAuth Token \
             from OAuth & Permissions",
            output::sanitize(&code)
        ),
        TokenLookup::Failed(why) => bail!("failed to look up the bot token in Slack: {why}"),
        TokenLookup::RateLimited(wait) => {
            bail!("Slack limits the rate of calls; run tidegate init again after {wait:?}")
        }
    };
    let Some(token) = &secrets.app else { return Ok(facts) };
    match api.open_socket(token).await? {
        SocketAddress::Url(_) => Ok(facts),
        SocketAddress::Rejected(code) => bail!(
            "Slack rejected the app-level token ({}); create one with the scope connections:write \
             under Basic Information, and enable Socket Mode",
            output::sanitize(&code)
        ),
        SocketAddress::Failed(why) => bail!("failed to check the app-level token in Slack: {why}"),
        SocketAddress::RateLimited(wait) => {
            bail!("Slack limits the rate of calls; run tidegate init again after {wait:?}")
        }
    }
}
