//! Events about the installation itself: removed, its tokens revoked, a channel's id changed, somebody joined.
//!
//! In: an event. Out: an outcome, if it is one of these. `app_uninstalled` and `tokens_revoked` come in either order and
//! may come late: what happened before the present installation was made does not touch it.

use super::{Desk, Outcome};
use shared::{
    codec::{
        lifecycle,
        slack::{Event, EventBody},
    },
    store::{Change, Effects, What},
    types::{ChannelId, Destination, Outgoing, TeamId, UserId},
};

pub(super) fn handle(desk: &Desk<'_>, body: &EventBody<'_>, event: &Event<'_>) -> Option<Outcome> {
    Some(match event.kind.get()? {
        "app_uninstalled" => revoke(desk, body, "the app was uninstalled"),
        "tokens_revoked" => {
            let bots = lifecycle::revoked_bots(&desk.job.envelope.body);
            let ours = match &desk.connection.bot_user {
                Some(bot) => bots.contains(bot),
                None => !bots.is_empty(), // an app has one bot user in a workspace
            };
            if ours {
                revoke(desk, body, "its tokens were revoked")
            } else {
                Outcome::done("ignored")
            }
        }
        "channel_id_changed" => channel_id_changed(desk),
        "team_join" => welcome(desk, body),
        _ => return None,
    })
}

fn revoke(desk: &Desk<'_>, body: &EventBody<'_>, why: &'static str) -> Outcome {
    let arrived = (desk.job.envelope.received_at_ms / 1000) as i64;
    let at = body.event_time.0.map_or(arrived, seconds);
    change(What::Revoke { connection: desk.connection.id, at, why }, |_| Vec::new())
}

/// Slack has been seen to write micro- and milliseconds here.
fn seconds(event_time: u64) -> i64 {
    let seconds = match event_time {
        0..100_000_000_000 => event_time,
        100_000_000_000..100_000_000_000_000 => event_time / 1000,
        _ => event_time / 1_000_000,
    };
    seconds as i64
}

fn channel_id_changed(desk: &Desk<'_>) -> Outcome {
    let renamed = lifecycle::renamed_channel(&desk.job.envelope.body);
    let parsed = renamed.and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    let Some((from, to)) = parsed else { return Outcome::done("ignored") };
    let (from, to): (ChannelId, ChannelId) = (from, to);
    change(What::MoveChannel { connection: desk.connection.id, from, to }, |_| Vec::new())
}

fn welcome(desk: &Desk<'_>, body: &EventBody<'_>) -> Outcome {
    let connection = desk.connection;
    let user = lifecycle::joined_person(&desk.job.envelope.body);
    let user = user.filter(|_| connection.settings.welcome).and_then(|user| user.parse().ok());
    let authorized = body.authorizations.0.as_ref().and_then(|a| a.team_id.get());
    let team = authorized.or_else(|| body.team_id.get()).and_then(|team| team.parse().ok());
    let (Some(user), Some(team)) = (user, connection.team.clone().or(team)) else {
        return Outcome::done("ignored");
    };
    let (user, team): (UserId, TeamId) = (user, team);
    let text = format!(
        "Welcome, <@{user}>! I am here if you need me: mention me in a channel, write to me here, or say `{} help`.",
        desk.workshop.command
    );
    let greeting = Outgoing {
        to: Destination::DirectMessage { user: user.clone() },
        message: serde_json::json!({ "text": text }),
    };
    let what = What::Welcome { connection: connection.id, team, user };
    change(what, move |first| if first { vec![greeting.clone()] } else { Vec::new() })
}

fn change(what: What, reply: impl Fn(bool) -> Vec<Outgoing> + Send + Sync + 'static) -> Outcome {
    let changes = vec![Change { what, reply: Box::new(reply) }];
    Effects { changes, outcome: "done", ..Effects::default() }.into()
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn an_event_time_is_read_in_whichever_unit_it_comes() {
        for time in [1_515_449_522, 1_515_449_522_000, 1_515_449_522_000_016] {
            assert_eq!(seconds(time), 1_515_449_522);
        }
    }
}
