//! Decides events about the installation: app removed, tokens revoked, channel id changed, person
//! joined.
//!
//! An event changes only the connection of its own installation: a workspace's event does not
//! concern the connection of its organization, and no event concerns a preview connection, which
//! receives webhooks of many installations. `app_uninstalled` and `tokens_revoked` come in either
//! order and may be late: an event from before the current installation does not affect it. An app
//! gets the other events, too; the end of an installation must not wait for an app.

use super::{Input, event, messages, seconds};
use serde_json::json;
use shared::{
    domain::{ChannelId, Destination, OutgoingMessage, TeamId, UserId},
    slack::{parse_joined_user, parse_renamed_channel, parse_revoked_bots},
    store::{Change, ConversationChange, Decision, Effects, IgnoreReason, ProcessedAs},
};

/// Returns the decision on an event about the installation, `None` for any other webhook.
pub(super) fn decide(input: &Input<'_>) -> Option<Decision> {
    let (body, event) = event(input.webhook)?;
    let (connection, envelope) = (input.connection, input.webhook.envelope);
    let revoke = |why| {
        // Both times are by Slack's clock.
        let signed_at = || envelope.timestamp.as_str().parse().unwrap_or_default();
        let at = body.event_time.0.map_or_else(signed_at, seconds);
        silent(ConversationChange::Revoke { connection: connection.id, at, why })
    };
    let (change, app) = match event.kind.get()? {
        "app_uninstalled" => (Some(revoke("the app was uninstalled")), None),
        "tokens_revoked" => {
            let bots = parse_revoked_bots(&envelope.body);
            let is_own_bot = match &connection.bot_user {
                Some(bot) => bots.contains(bot),
                None => !bots.is_empty(), // an app has one bot user in a workspace
            };
            (is_own_bot.then(|| revoke("its tokens were revoked")), None)
        }
        "channel_id_changed" => (move_channel(input), input.app()),
        "team_join" => (welcome(input, messages::installation_team(body)), input.app()),
        _ => return None,
    };
    let (enterprise, team) = (connection.enterprise.as_ref(), connection.team.as_ref());
    let is_own = body.installations().iter().any(|named| named.is_of(enterprise, team));
    let change = change.filter(|_| is_own);
    let delivery = app.map(|app| input.delivery_to(app));
    let processed_as = match (&change, &delivery) {
        (Some(_), _) => ProcessedAs::InstallationEvent,
        (None, Some(_)) => ProcessedAs::Delivery,
        (None, None) => return Some(input.ignore(IgnoreReason::NothingToChange)),
    };
    let changes = change.into_iter().collect();
    Some(input.apply(Effects { changes, delivery, ..Effects::new(processed_as) }))
}

fn move_channel(input: &Input<'_>) -> Option<Change> {
    let (from, to) = parse_renamed_channel(&input.webhook.envelope.body)?;
    let (from, to): (ChannelId, ChannelId) = (from.parse().ok()?, to.parse().ok()?);
    Some(silent(ConversationChange::MoveChannel { connection: input.connection.id, from, to }))
}

fn welcome(input: &Input<'_>, team: Option<&str>) -> Option<Change> {
    let connection = input.connection;
    let joined = parse_joined_user(&input.webhook.envelope.body);
    let user: UserId = joined.filter(|_| connection.settings.welcome)?.parse().ok()?;
    let named = || team?.parse::<TeamId>().ok();
    let team = connection.team.clone().or_else(named)?;
    let text = format!(
        "Welcome, <@{user}>! Mention this app in a channel, write to it here, or use `{} help`.",
        input.options.slash_command
    );
    let to = Destination::DirectMessage { user: user.clone() };
    let greeting = OutgoingMessage { to, message: json!({ "text": text }) };
    let reply = move |is_first: bool| is_first.then(|| greeting.clone()).into_iter().collect();
    let action = ConversationChange::Welcome { connection: connection.id, team, user };
    Some(Change { action, reply: Box::new(reply) })
}

fn silent(action: ConversationChange) -> Change {
    Change { action, reply: Box::new(|_| Vec::new()) }
}
