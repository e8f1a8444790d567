//! Slack's side of a segment: a stream, or a message that is edited where streams are refused.

use super::{
    budget::{Feature, Pace, UNSUPPORTED},
    writer::{Appended, WriteEnd, Writer},
};
use crate::{
    dispatch::content::{Chunk, render, text_of},
    slack::{Action, ApiResult, Method, hops_metadata},
};
use serde_json::{Value, json};
use shared::{domain::ConnectionStatus, runtime::telemetry::ErrorChain, store::Connection};
use std::time::Duration;
use tokio::time::Instant;
use tracing::{info, warn};

/// Wait before an ambiguous call is settled, since Slack may still process it.
const AMBIGUITY_WAIT: Duration = Duration::from_secs(2);
/// Wait after a failure of the connection or its token.
const CONNECTION_WAIT: Duration = Duration::from_secs(5);
/// Wait after a call that was not sent.
const RETRY_WAIT: Duration = Duration::from_millis(500);
/// Wait for the begin of a stream above which the segment is a message instead.
const START_WAIT_MAX: Duration = Duration::from_secs(2);
/// Slack's errors about the form of a message.
#[rustfmt::skip]
const FORM_ERRORS: [&str; 6] = [
    "invalid_blocks", "invalid_blocks_format", "msg_blocks_too_long", "msg_blocks_too_many",
    "msg_too_long", "invalid_chunks",
];
/// Slack's error that says that the stream has ended.
const NOT_STREAMING: &str = "message_not_in_streaming_state";
/// Slack's error after a person stopped the stream.
const STOPPED: &str = "stopped_by_user";

/// Result of a call that was neither limited nor refused for its token.
pub(super) enum Called {
    Succeeded(Value),
    Refused(String),
    Ambiguous(String),
}

impl Writer {
    /// Returns whether the next segment may be a stream.
    pub(super) fn may_stream(&self) -> bool {
        let (budgets, id) = (&self.context.budgets, self.delivery.key.connection);
        budgets.has(id, Feature::Streams, Instant::now())
    }

    /// Begins the segment with its content. Returns the id of the message.
    pub(super) async fn start_segment(&mut self) -> Result<String, WriteEnd> {
        loop {
            let called_at = Instant::now();
            let started = match self.state.edited {
                true => self.post().await?,
                false => match self.pace(Pace::Start, self.settings.start_interval) {
                    Ok(()) => self.start_stream().await?,
                    Err(wait) if wait > START_WAIT_MAX => {
                        self.edit_from_now_on().await?;
                        continue;
                    }
                    Err(wait) => {
                        tokio::time::sleep(wait).await;
                        continue;
                    }
                },
            };
            match started {
                Called::Succeeded(answer) => {
                    let ts = answer["ts"].as_str().unwrap_or_default().to_owned();
                    self.written_at = Some(Instant::now());
                    self.check_thread(&answer, &ts).await?;
                    if !self.state.edited {
                        self.session.stream_began();
                    }
                    return Ok(ts);
                }
                Called::Ambiguous(reason) => {
                    warn!(reason, "begin of a segment is ambiguous");
                    tokio::time::sleep(AMBIGUITY_WAIT).await;
                    if let Some(ts) = self.find_segment(called_at).await? {
                        return Ok(ts);
                    }
                }
                Called::Refused(code) if self.state.edited && self.simplify(&code) => {}
                Called::Refused(code) if self.state.edited => {
                    return Err(self.refused("chat.postMessage", &code));
                }
                Called::Refused(code) => {
                    if is_unsupported(&code) {
                        let id = self.delivery.key.connection;
                        let budgets = &self.context.budgets;
                        budgets.record_unsupported(id, Feature::Streams, Instant::now());
                    }
                    info!(code, "stream refused; the answer is a message that is edited");
                    self.edit_from_now_on().await?;
                }
            }
        }
    }

    /// Switches the segment to a message that is edited. Saved before the call, since another worker
    /// looks for the two in different ways.
    async fn edit_from_now_on(&mut self) -> Result<(), WriteEnd> {
        self.state.edited = true;
        self.save(Vec::new()).await
    }

    async fn start_stream(&self) -> Result<Called, WriteEnd> {
        let target = &self.target;
        let body = json!({
            "channel": target.channel.as_str(), "thread_ts": target.thread_ts,
            "recipient_user_id": target.user, "recipient_team_id": target.team.as_str(),
            "chunks": self.content,
        });
        self.call(Method::StartStream, &body).await
    }

    async fn post(&self) -> Result<Called, WriteEnd> {
        let mut body = render(&self.content, &self.closing(), Some(&self.mark()));
        body["channel"] = self.target.channel.as_str().into();
        body["thread_ts"] = self.target.thread_ts.as_str().into();
        body["metadata"]["event_payload"]["hops"] = self.target.hops.into();
        self.call(Method::PostMessage, &body).await
    }

    /// Deletes a message that Slack posted beside its thread, since the thread was deleted.
    async fn check_thread(&self, answer: &Value, ts: &str) -> Result<(), WriteEnd> {
        let is_in_thread = answer["message"]["thread_ts"] == *self.target.thread_ts;
        if !self.state.edited || is_in_thread {
            return Ok(());
        }
        let posted = json!({ "channel": self.target.channel.as_str(), "ts": ts });
        self.call(Method::DeleteMessage, &posted).await?;
        Err(WriteEnd::Gone("message_deleted"))
    }

    /// Appends chunks, which are in the content.
    pub(super) async fn append_to_segment(
        &mut self,
        chunks: Vec<Chunk>,
    ) -> Result<Appended, WriteEnd> {
        if self.state.edited {
            let written = self.written_at.map(|at| at + self.settings.edit_interval);
            tokio::time::sleep_until(written.unwrap_or_else(Instant::now)).await;
            self.update_segment().await?;
            return Ok(Appended::Confirmed);
        }
        let body = json!({
            "channel": self.target.channel.as_str(), "ts": self.state.ts, "chunks": chunks,
        });
        while let Err(wait) = self.pace(Pace::Append, self.settings.append_interval) {
            tokio::time::sleep(wait).await;
        }
        let called = self.call(Method::AppendStream, &body).await?;
        self.written_at = Some(Instant::now());
        match called {
            Called::Succeeded(_) => Ok(Appended::Confirmed),
            Called::Ambiguous(reason) => {
                warn!(reason, "part of an answer is ambiguous");
                tokio::time::sleep(AMBIGUITY_WAIT).await;
                Ok(Appended::Unknown)
            }
            Called::Refused(code) if code == NOT_STREAMING => Ok(Appended::Expired),
            Called::Refused(code) if code == STOPPED => Err(WriteEnd::Gone("stopped")),
            Called::Refused(code) if code == "message_not_found" => {
                Err(self.refused("chat.appendStream", &code))
            }
            Called::Refused(code) => {
                // The whole segment in another form may be accepted.
                warn!(code, "part of an answer refused");
                Ok(Appended::Unknown)
            }
        }
    }

    /// Ends the segment, which Slack has with all of its content.
    pub(super) async fn stop_segment(&mut self) -> Result<(), WriteEnd> {
        self.stop(false).await
    }

    /// Ends the segment, and makes it whole if Slack lacks its last part.
    pub(super) async fn settle_segment(&mut self) -> Result<(), WriteEnd> {
        self.stop(true).await
    }

    async fn stop(&mut self, is_ambiguous: bool) -> Result<(), WriteEnd> {
        if self.state.edited {
            return match is_ambiguous {
                true => self.update_segment().await,
                false => Ok(()),
            };
        }
        let mut body = json!({
            "channel": self.target.channel.as_str(), "ts": self.state.ts,
            "metadata": hops_metadata(self.target.hops),
        });
        let (budgets, id) = (&self.context.budgets, self.delivery.key.connection);
        // Else Slack shows that the agent has ended.
        let goes_on =
            self.state.ended.is_none() && budgets.has(id, Feature::Sessions, Instant::now());
        let is_suspended =
            self.state.ask.is_some() && budgets.has(id, Feature::Sessions, Instant::now());
        if is_suspended {
            body["session_status"] = "suspended".into(); // people are asked
        } else if goes_on {
            body["session_status"] = "processing".into();
        }
        let closing = self.closing();
        if !closing.is_empty() {
            body["chunks"] = json!([Chunk::MarkdownText { text: closing.clone() }]);
        }
        loop {
            match self.call(Method::StopStream, &body).await? {
                Called::Succeeded(answer) => {
                    if !goes_on {
                        self.session.ended_by_slack();
                    }
                    let expected = text_of(&self.content) + &closing;
                    return match is_ambiguous && answer["message"]["text"] != *expected {
                        true => self.update_segment().await,
                        false => Ok(()),
                    };
                }
                Called::Refused(code) if code == NOT_STREAMING => {
                    return self.update_segment().await;
                }
                Called::Refused(code) if code == STOPPED => return Err(WriteEnd::Gone("stopped")),
                Called::Refused(code)
                    if is_unsupported(&code) && body["session_status"] != json!(null) =>
                {
                    budgets.record_unsupported(id, Feature::Sessions, Instant::now());
                    body["session_status"].take();
                }
                Called::Refused(code) => return Err(self.refused("chat.stopStream", &code)),
                // Another stop tells.
                Called::Ambiguous(_) => tokio::time::sleep(AMBIGUITY_WAIT).await,
            }
        }
    }

    /// Replaces the message of the segment by its whole content. May be repeated.
    pub(super) async fn update_segment(&mut self) -> Result<(), WriteEnd> {
        loop {
            let mut body = render(&self.content, &self.closing(), None);
            body["channel"] = self.target.channel.as_str().into();
            body["ts"] = self.state.ts.clone().into();
            let called = self.call(Method::UpdateMessage, &body).await?;
            self.written_at = Some(Instant::now());
            match called {
                Called::Succeeded(_) => return Ok(()),
                Called::Ambiguous(_) => tokio::time::sleep(AMBIGUITY_WAIT).await,
                Called::Refused(code) if self.simplify(&code) => {}
                Called::Refused(code) => return Err(self.refused("chat.update", &code)),
            }
        }
    }

    /// Calls a method. Waits for rate limits, the token and a connection to Slack.
    pub(super) async fn call(&self, method: Method, body: &Value) -> Result<Called, WriteEnd> {
        let clients = &self.context.clients;
        let id = self.delivery.key.connection;
        loop {
            let connection = match clients.connections.connection(id).await {
                Ok(Some(connection)) if connection.status != ConnectionStatus::Revoked => {
                    connection
                }
                Ok(_) => return Err(WriteEnd::Gone("connection_deleted")),
                Err(error) => {
                    warn!(error = %ErrorChain(&error), "failed to load connection of a run");
                    self.wait(RETRY_WAIT).await?;
                    continue;
                }
            };
            let is_stopped = connection.status == ConnectionStatus::Stopped;
            let Some(token) = connection.bot_token.as_ref().filter(|_| !is_stopped) else {
                self.wait(CONNECTION_WAIT).await?;
                continue;
            };
            let permit = match clients.slack.permit(id, method).await {
                Ok(permit) => permit,
                Err(wait) => {
                    self.wait(wait).await?;
                    continue;
                }
            };
            if !self.term.holds() {
                return Err(WriteEnd::Lost);
            }
            let wait = match clients.slack.call(permit, token, body).await {
                ApiResult::Succeeded(answer) => return Ok(Called::Succeeded(answer)),
                ApiResult::Ambiguous(reason) => return Ok(Called::Ambiguous(reason)),
                ApiResult::Refused(Action::Reconcile, code) => return Ok(Called::Ambiguous(code)),
                ApiResult::RateLimited(wait) => wait,
                ApiResult::NotSent(_) => RETRY_WAIT,
                ApiResult::Refused(action, code) => {
                    match self.after_refusal(action, &connection).await {
                        Some(wait) => wait,
                        None => return Ok(Called::Refused(code)),
                    }
                }
            };
            self.wait(wait).await?;
        }
    }

    /// Returns the wait after a refusal of the token, `None` if the call itself was refused.
    async fn after_refusal(&self, action: Action, connection: &Connection) -> Option<Duration> {
        let clients = &self.context.clients;
        match action {
            Action::RefreshToken => {
                let (id, version) = (connection.id, connection.version);
                if let Ok(true) = clients.store.request_token_refresh(id, version).await {
                    clients.token_expired.notify_one();
                    return Some(RETRY_WAIT);
                }
                Some(CONNECTION_WAIT)
            }
            // The next message of the outbox changes the state of the connection.
            Action::Revoke
            | Action::ConfirmToken
            | Action::MarkMisconfigured
            | Action::ReloadToken
            | Action::Pause
            | Action::ReportBlockedAddress
            | Action::Wait
            | Action::PauseMessages => Some(CONNECTION_WAIT),
            Action::RefuseTeam
            | Action::ReportMissingScope
            | Action::RefuseConversation
            | Action::Reconcile
            | Action::Fail => None,
        }
    }

    async fn wait(&self, time: Duration) -> Result<(), WriteEnd> {
        tokio::time::sleep(time).await;
        if self.term.holds() { Ok(()) } else { Err(WriteEnd::Lost) }
    }

    fn pace(&self, pace: Pace, interval: Duration) -> Result<(), Duration> {
        let id = self.delivery.key.connection;
        self.context.budgets.take(id, pace, interval, Instant::now())
    }

    /// Reduces blocks and tasks to text after a refusal of the form. Returns false if only text was
    /// left.
    fn simplify(&mut self, code: &str) -> bool {
        let reduced: Vec<Chunk> = self.content.iter().filter_map(Chunk::reduced).collect();
        let is_simpler =
            FORM_ERRORS.contains(&code) && reduced != self.content && !reduced.is_empty();
        if is_simpler {
            self.content = reduced;
            warn!(run = self.target.run, code, "segment refused for its form; sending its text");
        }
        is_simpler
    }

    fn refused(&self, method: &str, code: &str) -> WriteEnd {
        let run = &self.target.run;
        warn!(run, method, code, "answer cannot be sent any more");
        WriteEnd::Gone(match code {
            "message_not_found" | "thread_not_found" | "cant_update_message" => "message_deleted",
            _ => "refused_by_slack",
        })
    }
}

fn is_unsupported(code: &str) -> bool {
    UNSUPPORTED.contains(&code)
}
