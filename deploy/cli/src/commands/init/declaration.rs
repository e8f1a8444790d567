//! Declaration file that `tidegate init` writes for `tidegate apply`.

use shared::domain::{AgentId, AgentMode, AppId, ConnectionId, EnterpriseId, OrgId, TeamId};

/// Folder of the secrets, beside the declaration.
pub const SECRETS_FOLDER: &str = ".tidegate";

/// Organization, agent and connection to declare.
#[derive(Debug)]
pub struct Declaration {
    pub organization: OrgId,
    pub agent: AgentId,
    pub mode: AgentMode,
    pub agent_url: String,
    pub connection: ConnectionId,
    pub app: AppId,
    pub team: Option<TeamId>,
    pub enterprise: Option<EnterpriseId>,
    pub bot_user: Option<String>,
}

impl Declaration {
    /// Returns the text of the file.
    pub fn render(&self) -> String {
        let installation = match (&self.team, &self.enterprise) {
            (Some(team), _) => format!("team = {}\n", quote(team.as_str())),
            (None, Some(enterprise)) => format!("enterprise = {}\n", quote(enterprise.as_str())),
            (None, None) => String::new(),
        };
        let bot_user = self.bot_user.as_deref();
        let bot_user = bot_user.map(|user| format!("bot_user = {}\n", quote(user)));
        format!(
            "# Written by tidegate init, for tidegate apply. deploy/tidegate.example.toml has every key.\n\
             \n[[organization]]\nid = {organization}\n\
             \n[[agent]]\norganization = {organization}\nid = {agent}\nmode = \"{mode}\"\n\
             url = {url}\nsecret = \"file:{SECRETS_FOLDER}/agent.secret\"\n\
             \n[[connection]]\nid = \"{connection}\"\norganization = {organization}\n\
             agent = {agent}          # answers conversations without a binding\n\
             app = {app}\n{installation}{bot_user}\
             signing_secret = \"file:{SECRETS_FOLDER}/signing.secret\"\n\
             bot_token = \"file:{SECRETS_FOLDER}/bot.token\"\n",
            organization = quote(self.organization.as_str()),
            agent = quote(self.agent.as_str()),
            mode = self.mode.as_str(),
            url = quote(&self.agent_url),
            connection = self.connection,
            app = quote(self.app.as_str()),
            bot_user = bot_user.unwrap_or_default(),
        )
    }
}

/// Returns a TOML string. TOML has the escapes of JSON, but requires one for U+007F.
fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_every_installation() {
        let id = "0123456789abcdef0123456789abcdef";
        let mut declaration = Declaration {
            organization: "local".parse().expect("an id"),
            agent: "agent".parse().expect("an id"),
            mode: AgentMode::Reply,
            agent_url: "http://localhost:8000/\"\n".into(),
            connection: id.parse().expect("an id"),
            app: "A1".parse().expect("an id"),
            team: "T1".parse().ok(),
            enterprise: "E1".parse().ok(),
            bot_user: Some("U1".into()),
        };
        let read = |declaration: &Declaration| -> toml::Table {
            toml::from_str(&declaration.render()).expect("TOML")
        };
        let table = read(&declaration);
        let connection = &table["connection"][0];
        assert_eq!(connection["team"].as_str(), Some("T1"));
        assert!(connection.get("enterprise").is_none());
        assert_eq!(connection["id"].as_str(), Some(id));
        assert_eq!(table["agent"][0]["url"].as_str(), Some("http://localhost:8000/\"\n"));
        (declaration.team, declaration.bot_user) = (None, None);
        let table = read(&declaration);
        assert_eq!(table["connection"][0]["enterprise"].as_str(), Some("E1"));
        assert!(table["connection"][0].get("bot_user").is_none());
    }
}
