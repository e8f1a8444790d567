//! A message in a conversation: the agent it belongs to is asked, and its answer is said there.
//!
//! In: an event. Out: an outcome; for anything that is no message to an agent, "ignored". What a bot wrote triggers an
//! agent only if the connection's settings say so, and what we wrote never: two that answer each other never end. For those
//! that do, each answer carries in its metadata how many answers led to it, and after a few there is no other. One mention
//! comes as two events (`app_mention` and `message`); its `ts` makes them one trigger. An agent that takes its time is shown
//! to be at it, by the status that Slack has for threads.

use super::{
    Desk, Outcome,
    spoken::{self, Said},
    whose,
};
use crate::{
    agent::{AgentError, Answer, Question},
    say,
    slack::Method,
};
use shared::{
    codec::{
        envelope::DedupeKey,
        slack::{Event, EventBody},
    },
    store::{Agent, Chat, ChatState, Effects},
    types::{ChannelId, Destination, Outgoing, TeamId},
};
use std::time::Duration;

/// Answers in a row to what bots said, at most.
const HOPS_MAX: u64 = 3;
/// An agent that takes longer is shown to be at it.
const SLOW: Duration = Duration::from_secs(2);

/// The message that an event tells of, if it is one to an agent.
pub(super) fn read<'a>(desk: &Desk<'_>, body: &'a EventBody<'_>) -> Option<Message<'a>> {
    let event = body.event.0.as_ref().filter(|_| body.kind.get() == Some("event_callback"))?;
    Message::read(desk, body, event)
}

/// Does what a message asks of Tidegate itself, if it does.
pub(super) async fn command(desk: &Desk<'_>, message: &Message<'_>) -> Option<Outcome> {
    spoken::handle(desk, &message.said(), &message.trigger(desk)).await
}

/// Puts a message to its agent.
pub(super) async fn handle(desk: &Desk<'_>, message: &Message<'_>) -> Outcome {
    let trigger = message.trigger(desk);
    let (agent, session) = match whose::state_of(desk, &message.chat(desk)).await {
        Ok(ChatState { agent: Some(agent), session, .. }) => (agent, session),
        Ok(_) => return spoken::unlinked(desk, &message.said(), trigger),
        Err(error) => return Outcome::of_store(&error),
    };
    let asked = desk.workshop.seen.is_seen(&desk.part.owner.scope, &trigger);
    match tokio::try_join!(desk.is_done(), asked) {
        Ok((true, _)) => return Outcome::done("done"),
        Ok((false, true)) => return Outcome::done("same_trigger"),
        Ok((false, false)) => {}
        Err(error) => return Outcome::of_store(&error),
    }
    if !desk.part.is_ours() {
        return Outcome::Return;
    }
    match message.ask(desk, &agent, session).await {
        Ok(answer) => {
            let say = answer.map(|answer| message.reply(answer)).into_iter().collect();
            Effects { say, trigger: Some(trigger), outcome: "done", ..Effects::default() }.into()
        }
        Err(AgentError::Away(cause)) => Outcome::Retry { cause },
        Err(AgentError::Wrong(error)) => Outcome::Fault { error },
    }
}

/// A message to an agent.
pub(super) struct Message<'a> {
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
    /// How many answers led to it, if a bot wrote it.
    hops: u64,
}

impl<'a> Message<'a> {
    fn read(desk: &Desk<'_>, body: &'a EventBody<'_>, event: &'a Event<'_>) -> Option<Self> {
        // Subtypes tell of edits, joins and the like; these are still somebody saying something.
        let bots = desk.connection.settings.answer_bots;
        let said = match event.subtype.get() {
            None | Some("file_share" | "thread_broadcast" | "me_message") => true,
            Some("bot_message") => bots,
            Some(_) => false,
        };
        let is_message = matches!(event.kind.get(), Some("message" | "app_mention"));
        let user = event.user.get().or_else(|| event.bot_id.get().filter(|_| bots))?;
        let ours = desk.connection.bot_user.as_deref() == Some(user);
        let hops = if event.bot_id.get().is_some() { event.hops() } else { 0 };
        let by_bot = event.bot_id.get().is_some() && (!bots || hops >= HOPS_MAX);
        if !is_message || !said || ours || by_bot || event.hidden.0 || user == "USLACK" {
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
            hops,
        })
    }

    /// What makes a second webhook about the same message no second question.
    fn trigger(&self, desk: &Desk<'_>) -> DedupeKey {
        let parts = [self.channel.as_str().as_bytes(), self.ts.as_bytes()];
        DedupeKey::new(desk.connection.id, "trigger-of-agent", &parts)
    }

    /// Asks the agent; while it takes its time, the thread shows that.
    async fn ask(
        &self,
        desk: &Desk<'_>,
        agent: &Agent,
        session: i64,
    ) -> Result<Option<Answer>, AgentError> {
        let (id, question) = (desk.job.envelope.dedupe.as_str(), self.question(desk, session));
        let mut asking = std::pin::pin!(desk.workshop.agents.ask(agent, id, &question));
        let mut showing = std::pin::pin!(async {
            tokio::time::sleep(SLOW).await;
            self.show(desk, "is thinking…").await;
        });
        let mut shown = false;
        let answer = loop {
            tokio::select! {
                answer = &mut asking => break answer,
                () = &mut showing, if !shown => shown = true,
            }
        };
        // An answer ends the status by itself.
        if shown && !matches!(answer, Ok(Some(_))) {
            self.show(desk, "").await;
        }
        answer
    }

    /// Sets the thread's status, as a kindness: if Slack does not take it nothing is lost.
    async fn show(&self, desk: &Desk<'_>, status: &str) {
        let slack = &desk.workshop.slack;
        let Some(token) = &desk.connection.bot_token else { return };
        let Ok(turn) = slack.turn(desk.connection.id, Method::SetStatus).await else { return };
        let thread = self.thread_ts.unwrap_or(self.ts);
        let body = serde_json::json!({
            "channel_id": self.channel.as_str(), "thread_ts": thread, "status": status,
        });
        if desk.part.is_ours() {
            slack.call(turn, token, &body).await;
        }
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

    /// In a channel an answer goes into the message's thread; in a direct message it just follows, unless the agent wants
    /// it otherwise.
    fn reply(&self, answer: Answer) -> Outgoing {
        let in_thread = answer.thread.unwrap_or(!self.in_direct_message);
        let thread = match answer.thread {
            Some(false) => None,
            _ => self.thread_ts.or(in_thread.then_some(self.ts)),
        };
        let (channel, thread_ts) = (self.channel.clone(), thread.map(str::to_owned));
        let mut message = answer.message;
        let to = match self.user.parse() {
            Ok(user) if answer.ephemeral => Destination::PostEphemeral { channel, user, thread_ts },
            _ => {
                message["metadata"] = serde_json::json!({
                    "event_type": say::METADATA, "event_payload": { "hops": self.hops + 1 },
                });
                Destination::PostMessage { channel, thread_ts }
            }
        };
        Outgoing { to, message }
    }
}
