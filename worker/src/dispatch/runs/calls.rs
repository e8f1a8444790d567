//! Calls to Slack that write a segment: a stream, or a message that is edited if streams are
//! refused.
//!
//! Called by `writer`. Waits for rate limits and for the connection. Ambiguous calls are resolved
//! here or reported to `writer`, never repeated blindly.

use super::{
    budget::{CallKind, Feature, UNSUPPORTED},
    slack_call::{CallOutcome, REFUSED, refused},
    writer::{AppendResult, WriteError, Writer},
};
use crate::{
    dispatch::content::{Chunk, render, text_of},
    slack::{Method, answer_metadata},
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;
use tracing::{info, warn};

/// Wait before an ambiguous call is reconciled, since Slack may still process it.
const AMBIGUITY_WAIT: Duration = Duration::from_secs(2);
/// Maximum wait for the start of a stream. Above it the segment becomes an edited message.
const START_WAIT_MAX: Duration = Duration::from_secs(2);
/// Slack's error codes for an invalid or too large message.
#[rustfmt::skip]
const FORM_ERRORS: [&str; 6] = [
    "invalid_blocks", "invalid_blocks_format", "msg_blocks_too_long", "msg_blocks_too_many",
    "msg_too_long", "invalid_chunks",
];
/// Slack's error code for a stream that has ended.
const NOT_STREAMING: &str = "message_not_in_streaming_state";
/// Slack's error code for a stream that a person stopped.
const STOPPED: &str = "stopped_by_user";

impl Writer {
    /// Returns whether the next segment may be a stream.
    pub(super) fn may_stream(&self) -> bool {
        let (budgets, id) = (&self.context.budgets, self.delivery.key.connection);
        budgets.has(id, Feature::Streams, Instant::now())
    }

    /// Begins the segment with its content. Returns the `ts` of its message.
    pub(super) async fn start_segment(&mut self) -> Result<String, WriteError> {
        loop {
            let called_at = Instant::now();
            let started = match self.state.edited {
                true => self.post().await?,
                false => match self.take_budget(CallKind::Start, self.settings.start_interval) {
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
                CallOutcome::Succeeded(answer) => {
                    let ts = answer["ts"].as_str().unwrap_or_default().to_owned();
                    self.written_at = Some(Instant::now());
                    self.check_thread(&answer, &ts).await?;
                    if !self.state.edited {
                        self.session.stream_began();
                    }
                    return Ok(ts);
                }
                CallOutcome::Ambiguous(reason) => {
                    warn!(reason, "start of segment ambiguous");
                    tokio::time::sleep(AMBIGUITY_WAIT).await;
                    if let Some(ts) = self.find_segment(called_at).await? {
                        return Ok(ts);
                    }
                }
                CallOutcome::Refused(code) if self.state.edited && self.simplify(&code) => {}
                CallOutcome::Refused(code) if self.state.edited => {
                    return Err(self.undeliverable("chat.postMessage", &code));
                }
                CallOutcome::Refused(code) => {
                    if is_unsupported(&code) {
                        let id = self.delivery.key.connection;
                        let budgets = &self.context.budgets;
                        budgets.record_unsupported(id, Feature::Streams, Instant::now());
                    }
                    info!(code, "stream refused; switching to edited message");
                    self.edit_from_now_on().await?;
                }
            }
        }
    }

    /// Switches the segment to an edited message. Saved before the call, since another worker looks
    /// up streams and edited messages in different ways.
    async fn edit_from_now_on(&mut self) -> Result<(), WriteError> {
        self.state.edited = true;
        self.save(Vec::new()).await
    }

    async fn start_stream(&self) -> Result<CallOutcome, WriteError> {
        let target = &self.target;
        let body = json!({
            "channel": target.channel.as_str(), "thread_ts": target.thread_ts,
            "recipient_user_id": target.user, "recipient_team_id": target.team.as_str(),
            "chunks": self.content,
        });
        self.call(Method::StartStream, &body).await
    }

    async fn post(&self) -> Result<CallOutcome, WriteError> {
        let mut body = render(&self.content, &self.closing(), Some(&self.mark()));
        body["channel"] = self.target.channel.as_str().into();
        body["thread_ts"] = self.target.thread_ts.as_str().into();
        let payload = &mut body["metadata"]["event_payload"];
        (payload["hops"], payload["agent"]) = (self.target.hops.into(), self.agent().into());
        self.call(Method::PostMessage, &body).await
    }

    fn agent(&self) -> String {
        format!("{}/{}", self.delivery.org, self.delivery.agent)
    }

    /// Deletes a message that Slack posted to the channel because its thread was deleted.
    async fn check_thread(&self, answer: &Value, ts: &str) -> Result<(), WriteError> {
        let is_in_thread = answer["message"]["thread_ts"] == *self.target.thread_ts;
        if !self.state.edited || is_in_thread {
            return Ok(());
        }
        let posted = json!({ "channel": self.target.channel.as_str(), "ts": ts });
        self.call(Method::DeleteMessage, &posted).await?;
        Err(WriteError::Undeliverable("message_deleted"))
    }

    /// Appends chunks to the segment. `self.content` includes them already.
    pub(super) async fn append_to_segment(
        &mut self,
        chunks: Vec<Chunk>,
    ) -> Result<AppendResult, WriteError> {
        if self.state.edited {
            let written = self.written_at.map(|at| at + self.settings.edit_interval);
            tokio::time::sleep_until(written.unwrap_or_else(Instant::now)).await;
            self.update_segment().await?;
            return Ok(AppendResult::Confirmed);
        }
        let body = json!({
            "channel": self.target.channel.as_str(), "ts": self.state.ts, "chunks": chunks,
        });
        while let Err(wait) = self.take_budget(CallKind::Append, self.settings.append_interval) {
            tokio::time::sleep(wait).await;
        }
        let called = self.call(Method::AppendStream, &body).await?;
        self.written_at = Some(Instant::now());
        match called {
            CallOutcome::Succeeded(_) => Ok(AppendResult::Confirmed),
            CallOutcome::Ambiguous(reason) => {
                warn!(reason, "part of answer ambiguous");
                tokio::time::sleep(AMBIGUITY_WAIT).await;
                Ok(AppendResult::Unknown)
            }
            CallOutcome::Refused(code) if code == NOT_STREAMING => Ok(AppendResult::Expired),
            CallOutcome::Refused(code) if code == STOPPED => {
                Err(WriteError::Undeliverable("stopped"))
            }
            CallOutcome::Refused(code) if code == "message_not_found" => {
                Err(self.undeliverable("chat.appendStream", &code))
            }
            CallOutcome::Refused(code) => {
                // `chat.update` may accept the whole segment in another format.
                warn!(code, "part of answer refused");
                Ok(AppendResult::Unknown)
            }
        }
    }

    /// Ends the segment, whose content Slack has confirmed.
    pub(super) async fn stop_segment(&mut self) -> Result<(), WriteError> {
        self.stop(false).await
    }

    /// Ends the segment whose last part is ambiguous. Updates the message if it lacks that part.
    pub(super) async fn settle_segment(&mut self) -> Result<(), WriteError> {
        self.stop(true).await
    }

    async fn stop(&mut self, is_ambiguous: bool) -> Result<(), WriteError> {
        if self.state.edited {
            return match is_ambiguous {
                true => self.update_segment().await,
                false => Ok(()),
            };
        }
        let mut body = json!({
            "channel": self.target.channel.as_str(), "ts": self.state.ts,
            "metadata": answer_metadata(self.target.hops, &self.agent()),
        });
        let (budgets, id) = (&self.context.budgets, self.delivery.key.connection);
        // Without a status, Slack shows that the agent has ended.
        let continues = !self.is_last
            && self.state.ended.is_none()
            && budgets.has(id, Feature::Sessions, Instant::now());
        let is_suspended =
            self.state.ask.is_some() && budgets.has(id, Feature::Sessions, Instant::now());
        if is_suspended {
            body["session_status"] = "suspended".into(); // waits for an approval
        } else if continues {
            body["session_status"] = "processing".into();
        }
        let closing = self.closing();
        if !closing.is_empty() {
            body["chunks"] = json!([Chunk::MarkdownText { text: closing.clone() }]);
        }
        loop {
            match self.call(Method::StopStream, &body).await? {
                CallOutcome::Succeeded(answer) => {
                    if !continues {
                        self.session.ended_by_slack();
                    }
                    let expected = text_of(&self.content) + &closing;
                    return match is_ambiguous && answer["message"]["text"] != *expected {
                        true => self.update_segment().await,
                        false => Ok(()),
                    };
                }
                CallOutcome::Refused(code) if code == NOT_STREAMING => {
                    return self.update_segment().await;
                }
                CallOutcome::Refused(code) if code == STOPPED => {
                    return Err(WriteError::Undeliverable("stopped"));
                }
                CallOutcome::Refused(code)
                    if is_unsupported(&code) && body["session_status"] != json!(null) =>
                {
                    budgets.record_unsupported(id, Feature::Sessions, Instant::now());
                    body["session_status"].take();
                }
                CallOutcome::Refused(code) => {
                    return Err(self.undeliverable("chat.stopStream", &code));
                }
                // Stopping again shows whether the stream has ended.
                CallOutcome::Ambiguous(_) => tokio::time::sleep(AMBIGUITY_WAIT).await,
            }
        }
    }

    /// Replaces the message of the segment by its whole content. Idempotent.
    pub(super) async fn update_segment(&mut self) -> Result<(), WriteError> {
        loop {
            let mut body = render(&self.content, &self.closing(), None);
            body["channel"] = self.target.channel.as_str().into();
            body["ts"] = self.state.ts.clone().into();
            let called = self.call(Method::UpdateMessage, &body).await?;
            self.written_at = Some(Instant::now());
            match called {
                CallOutcome::Succeeded(_) => return Ok(()),
                CallOutcome::Ambiguous(_) => tokio::time::sleep(AMBIGUITY_WAIT).await,
                CallOutcome::Refused(code) if self.simplify(&code) => {}
                CallOutcome::Refused(code) => return Err(self.undeliverable("chat.update", &code)),
            }
        }
    }

    fn take_budget(&self, kind: CallKind, interval: Duration) -> Result<(), Duration> {
        let id = self.delivery.key.connection;
        self.context.budgets.take(id, kind, interval, Instant::now())
    }

    /// Reduces the content to text after Slack refused its format. Returns false if the error has
    /// another cause or the content is only text.
    fn simplify(&mut self, code: &str) -> bool {
        let reduced: Vec<Chunk> = self.content.iter().filter_map(Chunk::reduced).collect();
        let is_simpler =
            FORM_ERRORS.contains(&code) && reduced != self.content && !reduced.is_empty();
        if is_simpler {
            self.content = reduced;
            warn!(run = self.target.run, code, "segment format refused; sending text only");
        }
        is_simpler
    }

    fn undeliverable(&self, method: &str, code: &str) -> WriteError {
        let run = &self.target.run;
        warn!(run, method, code, "answer undeliverable");
        match code {
            "message_not_found" | "thread_not_found" | "cant_update_message" => {
                WriteError::Undeliverable("message_deleted")
            }
            _ => refused(REFUSED, method, code),
        }
    }
}

fn is_unsupported(code: &str) -> bool {
    UNSUPPORTED.contains(&code)
}
