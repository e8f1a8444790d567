//! The handler that comes with Tidegate: agents answer.
//!
//! In: a webhook that is none of Tidegate's own business. Out: an outcome. What belongs to an app (mode `forward`) is handed
//! on, whatever it is. Else a message is put to its agent (mode `reply`), a command is ours whatever its name, and what a
//! person waits for with a view or a menu open is answered at once. Whose something is goes by its conversation; what has
//! none (views, shortcuts, most of what happens in a workspace) belongs to the connection's own agent.

use super::{Desk, Handler, Outcome, command, forward, message, view, whose};
use shared::{
    codec::slack::{Event, EventBody, Inbound, Interaction},
    store::{Agent, Chat, StoreError},
    types::{AgentMode, TeamId},
};

/// Puts webhooks to agents.
#[derive(Debug, Clone, Copy, Default)]
pub struct AskAgents;

impl Handler for AskAgents {
    fn asks_itself(&self) -> bool {
        true
    }

    async fn handle(&self, desk: &Desk<'_>, inbound: &Inbound<'_>) -> Outcome {
        let message = match inbound {
            Inbound::Event(body) => message::read(desk, body),
            _ => None,
        };
        // A command that is said as text is Tidegate's, whosever the conversation is.
        if let Some(message) = &message
            && let Some(outcome) = message::command(desk, message).await
        {
            return outcome;
        }
        match app(desk, inbound).await {
            Ok(Some(app)) => return forward::handle(desk, &app, inbound).await,
            Ok(None) => {}
            Err(error) => return Outcome::of_store(&error),
        }
        match (inbound, message) {
            (Inbound::Event(_), Some(message)) => message::handle(desk, &message).await,
            (Inbound::Event(body), None) => match body.kind.get() {
                Some("event_callback" | "app_rate_limited") => Outcome::done("ignored"),
                kind => super::not_understood(kind.unwrap_or("no type")),
            },
            (Inbound::Command(command), _) => command::handle(desk, command).await,
            (Inbound::Interaction(interaction), _) if interaction.kind.get().is_some() => {
                view::handle(desk, interaction)
            }
            (Inbound::Interaction(_) | Inbound::NotUnderstood, _) => {
                super::not_understood("neither event, command nor interaction")
            }
        }
    }
}

/// The app that a webhook is handed on to, if it belongs to one.
pub(super) async fn app(
    desk: &Desk<'_>,
    inbound: &Inbound<'_>,
) -> Result<Option<Agent>, StoreError> {
    if !desk.connection.forwards {
        return Ok(None); // so that nothing is asked for what nobody wants
    }
    let (team, channel) = match inbound {
        Inbound::Event(body) => of_event(body, body.event.0.as_ref()),
        Inbound::Command(command) => (Some(&*command.team_id), Some(&*command.channel_id)),
        Inbound::Interaction(interaction) => of_interaction(interaction),
        Inbound::NotUnderstood => (None, None),
    };
    let team: Option<TeamId> = team.and_then(|team| team.parse().ok());
    let agent = match (desk.connection.team.clone().or(team), channel.map(|id| id.parse())) {
        (Some(team), Some(Ok(channel))) => {
            let chat = Chat { connection: desk.connection.id, team, channel };
            whose::state_of(desk, &chat).await?.agent
        }
        _ => whose::own_agent(desk).await?,
    };
    Ok(agent.filter(|agent| agent.mode == AgentMode::Forward))
}

type Place<'a> = (Option<&'a str>, Option<&'a str>);

fn of_event<'a>(body: &'a EventBody<'_>, event: Option<&'a Event<'_>>) -> Place<'a> {
    let authorized = body.authorizations.0.as_ref().and_then(|a| a.team_id.get());
    let team = authorized.or_else(|| body.team_id.get());
    let channel = event.and_then(|event| {
        let of_item = || event.item.0.as_ref().and_then(|item| item.channel.get());
        let of_thread = || event.assistant_thread.0.as_ref().and_then(|t| t.channel_id.get());
        event.channel.get().or_else(of_item).or_else(of_thread)
    });
    (team, channel)
}

fn of_interaction<'a>(interaction: &'a Interaction<'_>) -> Place<'a> {
    let of_user = || interaction.user.0.as_ref().and_then(|user| user.team_id.get());
    let team = interaction.team.0.as_ref().and_then(|team| team.id.get()).or_else(of_user);
    let in_container = || interaction.container.0.as_ref().and_then(|c| c.channel_id.get());
    (team, interaction.channel.get().or_else(in_container))
}
