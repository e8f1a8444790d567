//! Installation of an app that a webhook was sent for.
//!
//! The order in which a body is searched is that of Bolt. The outer `team_id` of an event may be
//! another company's (Slack Connect), and `user.team_id` an organization's id (Enterprise Grid).

use crate::{
    domain::{EnterpriseId, TeamId},
    slack::{Command, EventBody, InboundPayload, Interaction},
};

/// Installation in a workspace or in an Enterprise organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// Enterprise organization, if named.
    pub enterprise: Option<EnterpriseId>,
    /// Workspace. `None` for an organization-wide installation.
    pub team: Option<TeamId>,
}

impl Installation {
    /// Creates an installation from ids of a body. Malformed ids are ignored.
    fn new(enterprise: Option<&str>, team: Option<&str>, is_org_wide: bool) -> Option<Self> {
        let (organization, team) = match team {
            Some(id) if id.starts_with('E') => (Some(id), None),
            team => (None, team),
        };
        let enterprise = enterprise.or(organization).and_then(|id| id.parse().ok());
        let team = team.filter(|_| !is_org_wide || enterprise.is_none());
        let team = team.and_then(|id| id.parse().ok());
        (enterprise.is_some() || team.is_some()).then_some(Self { enterprise, team })
    }

    /// Returns whether this is the installation of a connection with these ids.
    pub fn is_of(&self, enterprise: Option<&EnterpriseId>, team: Option<&TeamId>) -> bool {
        match (&self.team, team) {
            (Some(own), Some(team)) => own == team,
            (None, None) => enterprise.is_some() && self.enterprise.as_ref() == enterprise,
            _ => false,
        }
    }

    /// Returns whether a webhook that names this installation may be for a connection with these
    /// ids: also for a workspace of an organization-wide connection, and always for a preview
    /// connection.
    pub fn may_be_of(&self, enterprise: Option<&EnterpriseId>, team: Option<&TeamId>) -> bool {
        match (&self.team, team) {
            (Some(own), Some(team)) => own == team,
            (Some(_), None) => {
                let both = self.enterprise.as_ref().zip(enterprise);
                both.is_none_or(|(own, enterprise)| own == enterprise)
            }
            (None, Some(_)) => self.enterprise.as_ref() == enterprise,
            (None, None) => enterprise.is_none() || self.enterprise.as_ref() == enterprise,
        }
    }
}

impl InboundPayload<'_> {
    /// Returns the app that the body names. Shortcuts and legacy interactions name none.
    pub fn app(&self) -> Option<&str> {
        let app = match self {
            Self::Event(body) => body.api_app_id.get(),
            Self::Command(command) => Some(&*command.api_app_id),
            Self::Interaction(interaction) => interaction.api_app_id.get(),
            Self::Unparsable => None,
        };
        app.filter(|app| !app.is_empty())
    }

    /// Returns the installations that the body names. Only an event may have several.
    pub fn installations(&self) -> Vec<Installation> {
        match self {
            Self::Event(body) => body.installations(),
            Self::Command(command) => of_command(command).into_iter().collect(),
            Self::Interaction(interaction) => of_interaction(interaction).into_iter().collect(),
            Self::Unparsable => Vec::new(),
        }
    }
}

impl EventBody<'_> {
    /// Returns the installations that the event was sent for.
    pub fn installations(&self) -> Vec<Installation> {
        let of_authorizations = self.authorizations.0.iter().filter_map(|a| {
            let (enterprise, team) = (a.enterprise_id.get(), a.team_id.get());
            Installation::new(enterprise, team, a.is_enterprise_install.0)
        });
        let authorized: Vec<Installation> = of_authorizations.collect();
        if !authorized.is_empty() {
            return authorized;
        }
        let (enterprise, team) = (self.enterprise_id.get(), self.team_id.get());
        let of_context = || {
            let (enterprise, team) = (self.context_enterprise_id.get(), self.context_team_id.get());
            Installation::new(enterprise, team, false)
        };
        Installation::new(enterprise, team, false).or_else(of_context).into_iter().collect()
    }
}

fn of_command(command: &Command<'_>) -> Option<Installation> {
    let is_org_wide = command.is_enterprise_install == "true";
    let non_empty = |id| Some(id).filter(|id: &&str| !id.is_empty());
    let (enterprise, team) = (non_empty(&command.enterprise_id), non_empty(&command.team_id));
    Installation::new(enterprise, team, is_org_wide)
}

fn of_interaction(interaction: &Interaction<'_>) -> Option<Installation> {
    let (team, view) = (interaction.team.0.as_ref(), interaction.view.0.as_ref());
    let of_team = || team?.enterprise_id.get();
    let enterprise = interaction.enterprise.get().or_else(of_team);
    let team = view
        .and_then(|view| view.app_installed_team_id.get())
        .or_else(|| team?.id.get())
        .or_else(|| interaction.user.0.as_ref()?.team_id.get())
        .or_else(|| view?.team_id.get());
    Installation::new(enterprise, team, interaction.is_enterprise_install.0)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{BodyParts, MediaType},
        *,
    };

    fn named(media: MediaType, body: &str) -> Vec<String> {
        let parts = BodyParts::split(media, body.as_bytes());
        let word = |id: Option<&str>| id.unwrap_or("-").to_owned();
        let installations = parts.read().installations();
        let named = installations.iter().map(|Installation { enterprise, team }| {
            let enterprise = word(enterprise.as_ref().map(EnterpriseId::as_str));
            format!("{enterprise} {}", word(team.as_ref().map(TeamId::as_str)))
        });
        named.collect()
    }

    #[test]
    fn reads_installations_of_events() {
        for (body, expected) in [
            (r#"{"team_id":"T1"}"#, &["- T1"][..]),
            (r#"{"team_id":"T1","enterprise_id":"E1"}"#, &["E1 T1"]),
            (r#"{"team_id":"E1"}"#, &["E1 -"]),
            (r#"{"team_id":null,"context_team_id":"T1"}"#, &["- T1"]),
            (
                r#"{"team_id":"T9","authorizations":[{"team_id":"T8"},
                    {"enterprise_id":"E1","team_id":"T1","is_enterprise_install":true}]}"#,
                &["- T8", "E1 -"],
            ),
            (r#"{"team_id":"T1","authorizations":[]}"#, &["- T1"]),
            (r#"{"team_id":"T1","authorizations":[{"team_id":"no id!"}]}"#, &["- T1"]),
            (r#"{"authorizations":{"team_id":"T1"}}"#, &["- T1"]),
            (r#"{"event":{}}"#, &[]),
        ] {
            assert_eq!(named(MediaType::Json, body), expected, "{body}");
        }
    }

    #[test]
    fn reads_installations_of_forms() {
        for (body, expected) in [
            ("command=/x&team_id=T1&enterprise_id=E1&is_enterprise_install=false", &["E1 T1"][..]),
            ("command=/x&team_id=T1&enterprise_id=E1&is_enterprise_install=true", &["E1 -"]),
            ("command=/x&team_id=T1&is_enterprise_install=true", &["- T1"]),
            ("command=/x", &[]),
            (r#"payload={"team":null,"user":{"team_id":"E1"}}"#, &["E1 -"]),
            (r#"payload={"team":{"id":"T1","enterprise_id":"E1"}}"#, &["E1 T1"]),
            (r#"payload={"team":{"id":"T9"},"view":{"app_installed_team_id":"T1"}}"#, &["- T1"]),
            (r#"payload={"team":null,"enterprise":null,"user":{"id":"U1"}}"#, &[]),
        ] {
            assert_eq!(named(MediaType::Form, body), expected, "{body}");
        }
    }

    #[test]
    fn compares_with_connection() {
        let of = |enterprise: Option<&str>, team: Option<&str>| {
            let parsed = Installation::new(enterprise, team, false);
            parsed.map_or((None, None), |found| (found.enterprise, found.team))
        };
        // Ids of the webhook, ids of the connection, expected `is_of`, expected `may_be_of`.
        for (named, connection, is_of, may_be_of) in [
            ((None, Some("T1")), (None, Some("T1")), true, true),
            ((Some("E1"), Some("T1")), (None, Some("T1")), true, true),
            ((None, Some("T1")), (Some("E1"), Some("T1")), true, true),
            ((None, Some("T2")), (None, Some("T1")), false, false),
            ((Some("E1"), Some("T2")), (Some("E1"), Some("T1")), false, false),
            ((Some("E1"), None), (Some("E1"), None), true, true),
            ((Some("E2"), None), (Some("E1"), None), false, false),
            ((Some("E1"), Some("T1")), (Some("E1"), None), false, true),
            ((Some("E2"), Some("T1")), (Some("E1"), None), false, false),
            ((None, Some("T1")), (Some("E1"), None), false, true),
            ((Some("E1"), None), (Some("E1"), Some("T1")), false, true),
            ((Some("E1"), None), (None, Some("T1")), false, false),
            ((None, Some("T1")), (None, None), false, true),
            ((Some("E1"), None), (None, None), false, true),
        ] {
            let installation = Installation::new(named.0, named.1, false).expect("it is named");
            let (enterprise, team) = of(connection.0, connection.1);
            let (enterprise, team) = (enterprise.as_ref(), team.as_ref());
            let found =
                (installation.is_of(enterprise, team), installation.may_be_of(enterprise, team));
            assert_eq!(found, (is_of, may_be_of), "{named:?} {connection:?}");
        }
    }
}
