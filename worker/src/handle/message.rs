//! A message in a conversation: the agent it belongs to is asked, and its answer is said there.
//!
//! In: an event. Out: an outcome; for anything that is no message to an agent, "ignored". What a bot wrote, ourselves
//! above all, never triggers an agent: two that answer each other never end. One mention comes as two events
//! (`app_mention` and `message`); its `ts` makes them one trigger.

use super::{
    Desk, Outcome,
    spoken::{self, Said},
    whose,
};
use crate::agent::{AgentError, Question};
use shared::{
    codec::{
        envelope::DedupeKey,
        slack::{Event, EventBody},
    },
    store::{Chat, Effects},
    telemetry::Chain,
    types::{ChannelId, Destination, Outgoing, TeamId},
};

pub(super) async fn handle(desk: &Desk<'_>, body: &EventBody<'_>, event: &Event<'_>) -> Outcome {
    let Some(message) = Message::read(desk, body, event) else { return Outcome::done("ignored") };
    let parts = [message.channel.as_str().as_bytes(), message.ts.as_bytes()];
    let trigger = DedupeKey::new(desk.connection.id, "trigger-of-agent", &parts);
    if let Some(outcome) = spoken::handle(desk, &message.said(), &trigger).await {
        return outcome;
    }
    let (agent, session) = match whose::agent_of(desk, &message.chat(desk)).await {
        Ok((Some(agent), session)) => (agent, session),
        Ok((None, _)) => return spoken::unlinked(desk, &message.said(), trigger),
        Err(error) => return Outcome::Pause { cause: Chain(&error).to_string() },
    };
    match desk.workshop.store.is_seen(&desk.part.owner.scope, &trigger).await {
        Ok(true) => return Outcome::done("same_trigger"),
        Ok(false) => {}
        Err(error) => return Outcome::Pause { cause: Chain(&error).to_string() },
    }
    if !desk.part.is_ours() {
        return Outcome::Return;
    }
    let id = desk.job.envelope.dedupe.as_str();
    match desk.workshop.agents.ask(&agent, id, &message.question(desk, session)).await {
        Ok(answer) => {
            let say = answer.map(|answer| message.reply(answer)).into_iter().collect();
            Effects { say, trigger: Some(trigger), outcome: "done", ..Effects::default() }.into()
        }
        Err(AgentError::Away(cause)) => Outcome::Retry { cause },
        Err(AgentError::Wrong(error)) => Outcome::Fault { error },
    }
}

/// A message that a person wrote.
struct Message<'a> {
    team: TeamId,
    channel: ChannelId,
    user: &'a str,
    /// The user's workspace, where that need not be ours.
    user_team: Option<&'a str>,
    text: &'a str,
    ts: &'a str,
    /// The thread it stands in, if it does.
    thread_ts: Option<&'a str>,
    in_direct_message: bool,
}

impl<'a> Message<'a> {
    fn read(desk: &Desk<'_>, body: &'a EventBody<'_>, event: &'a Event<'_>) -> Option<Self> {
        // Subtypes tell of edits, joins and the like; these four are still somebody saying something.
        let said = matches!(
            event.subtype.get(),
            None | Some("file_share" | "thread_broadcast" | "me_message")
        );
        let is_message = matches!(event.kind.get(), Some("message" | "app_mention"));
        let user = event.user.get()?;
        let by_bot =
            event.bot_id.get().is_some() || desk.connection.bot_user.as_deref() == Some(user);
        if !is_message || !said || by_bot || event.hidden.0 || user == "USLACK" {
            return None;
        }
        let authorized = body.authorizations.0.as_ref().and_then(|a| a.team_id.get());
        let team = authorized.or_else(|| body.team_id.get()).and_then(|team| team.parse().ok());
        let channel: ChannelId = event.channel.get()?.parse().ok()?;
        Some(Self {
            team: desk.connection.team.clone().or(team)?,
            in_direct_message: event.channel_type.get() == Some("im")
                || channel.is_direct_message(),
            channel,
            user,
            user_team: event.user_team.get(),
            text: event.text.get().unwrap_or_default(),
            ts: event.ts.get()?,
            thread_ts: event.thread_ts.get(),
        })
    }

    fn chat(&self, desk: &Desk<'_>) -> Chat {
        let (team, channel) = (self.team.clone(), self.channel.clone());
        Chat { connection: desk.connection.id, team, channel }
    }

    fn said(&self) -> Said<'_> {
        Said {
            team: &self.team,
            channel: &self.channel,
            user: self.user,
            user_team: self.user_team,
            text: self.text,
            ts: self.ts,
            thread_ts: self.thread_ts,
            direct: self.in_direct_message,
        }
    }

    fn question(&self, desk: &Desk<'_>, session: i64) -> Question<'_> {
        Question {
            kind: "message",
            connection: desk.connection.id,
            team: &self.team,
            channel: &self.channel,
            user: self.user,
            text: self.text,
            ts: self.ts,
            thread_ts: self.thread_ts,
            session,
        }
    }

    /// In a channel an answer goes into the message's thread; in a direct message it just follows.
    fn reply(&self, message: serde_json::Value) -> Outgoing {
        let thread = self.thread_ts.or((!self.in_direct_message).then_some(self.ts));
        let to = Destination::PostMessage {
            channel: self.channel.clone(),
            thread_ts: thread.map(str::to_owned),
        };
        Outgoing { to, message }
    }
}
