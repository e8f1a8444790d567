//! Fields of interactions that Tidegate reads.

use crate::codec::loose::{First, Flag, Id, Object, Text};
use serde::Deserialize;

/// Click, shortcut, view or options load.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // Slack's names: docs.slack.dev/reference/interaction-payloads
pub struct Interaction<'a> {
    #[serde(borrow, rename = "type")]
    pub kind: Text<'a>,
    #[serde(borrow)]
    pub trigger_id: Text<'a>,
    #[serde(borrow)]
    pub api_app_id: Text<'a>,
    #[serde(borrow)]
    pub action_ts: Text<'a>,
    #[serde(borrow)]
    pub response_url: Text<'a>,
    #[serde(borrow)]
    pub team: Object<Team<'a>>,
    #[serde(borrow)]
    pub enterprise: Id<'a>,
    pub is_enterprise_install: Flag,
    #[serde(borrow)]
    pub user: Object<User<'a>>,
    #[serde(borrow)]
    pub channel: Id<'a>,
    #[serde(borrow)]
    pub container: Object<Container<'a>>,
    #[serde(borrow)]
    pub view: Object<View<'a>>,
    #[serde(borrow)]
    pub actions: First<Action<'a>>,
}

/// `team` of an interaction. `null` in organization-wide installations.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Team<'a> {
    #[serde(borrow)]
    pub id: Text<'a>,
    #[serde(borrow)]
    pub enterprise_id: Text<'a>,
}

/// `user` of an interaction: the person who acted.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct User<'a> {
    #[serde(borrow)]
    pub id: Text<'a>,
    #[serde(borrow)]
    pub team_id: Text<'a>,
}

/// `container` of a click.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Container<'a> {
    #[serde(borrow)]
    pub channel_id: Text<'a>,
}

/// `view` of an interaction.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct View<'a> {
    #[serde(borrow)]
    pub id: Text<'a>,
    #[serde(borrow)]
    pub root_view_id: Text<'a>,
    #[serde(borrow)]
    pub team_id: Text<'a>,
    #[serde(borrow)]
    pub app_installed_team_id: Text<'a>,
}

/// First of `actions`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Action<'a> {
    #[serde(borrow)]
    pub action_ts: Text<'a>,
}
