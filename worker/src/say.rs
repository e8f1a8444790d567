//! One thing said to Slack: where, with whose token, and what follows from Slack's answer.
//!
//! In: a row of the outbox whose turn it is. Out: how that ended. Every message carries a mark of its row as metadata. A row
//! that may have been said is looked up by that mark before it is said again; where Slack gives no way to look (a
//! `response_url`, an ephemeral message, a view, a missing scope, a method closed to us for longer than a minute), the
//! doubt is counted and the row said again.

use crate::{
    Workshop,
    part::Part,
    slack::{Called, Method, Responded, counted::DoubtSettled, error::Action},
};
use serde_json::{Value, json};
use shared::{
    secrets::Secret,
    store::{Connection, Doubt, Queued, SendResult},
    telemetry::Chain,
    types::{Destination, Fallback, Status},
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tracing::{error, info, warn};

/// The type of our metadata.
pub const METADATA: &str = "tidegate";
/// Slack lets a `response_url` be used so often,
const USES_MAX: i64 = 5;
/// and for so long.
const USED_WITHIN: Duration = Duration::from_secs(30 * 60);
/// What had no answer is looked up after this long: Slack may still be at it.
const DOUBT_PAUSE: Duration = Duration::from_secs(2);
/// Between two looks at a partition that may not be ours any more.
const NOT_OURS: Duration = Duration::from_millis(250);
/// Longest wait between two tries.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// For what a person has to mend, or Slack to finish.
const LONG_PAUSE: Duration = Duration::from_secs(60);
/// Longest that a doubt waits for a limit of Slack's to pass.
const LOOK_UP_WITHIN: Duration = Duration::from_secs(60);
/// Pages of a conversation that are looked through.
const PAGES: usize = 4;
/// Our clock and Slack's may differ by this much.
const CLOCKS: Duration = Duration::from_secs(60);
/// So many refusals of a token in a row, each confirmed by `auth.test`, put its connection in error.
const REFUSALS_MAX: i32 = 3;

/// Says it.
pub async fn say(workshop: &Workshop, part: &Part, row: &Queued, doubt: &mut Doubt) -> SendResult {
    let saying = Saying { workshop, part, row };
    match &row.outgoing.to {
        Destination::ResponseUrl { url, fallback } => {
            saying.respond(url, fallback.as_ref(), doubt).await
        }
        to => match saying.connection().await {
            Ok((connection, token)) => {
                let speaker = Speaker { saying, connection, token };
                speaker.by_web_api(to, row.outgoing.message.clone(), doubt).await
            }
            Err(result) => result,
        },
    }
}

#[derive(Clone, Copy)]
struct Saying<'a> {
    workshop: &'a Workshop,
    part: &'a Part,
    row: &'a Queued,
}

/// One with a token.
struct Speaker<'a> {
    saying: Saying<'a>,
    connection: Arc<Connection>,
    token: Secret,
}

impl<'a> Saying<'a> {
    async fn connection(self) -> Result<(Arc<Connection>, Secret), SendResult> {
        let hydrated = self.workshop.hydrator.connection(self.row.connection).await;
        let connection = hydrated
            .map_err(|error| SendResult::Later(again(self.row), Chain(&error).to_string()))?;
        let connection =
            connection.ok_or_else(|| SendResult::Failed("the connection does not exist".into()))?;
        if matches!(connection.status, Status::Stopped | Status::Revoked) {
            return Err(SendResult::Failed(format!("the connection is {}", connection.status)));
        }
        match connection.bot_token.clone() {
            Some(token) => Ok((connection, token)),
            None => Err(SendResult::Failed("the connection has no bot token".into())),
        }
    }

    /// Asked last: from here to Slack nothing waits for anything of ours.
    fn is_ours(self) -> Result<(), SendResult> {
        let lost = || SendResult::Untried(NOT_OURS, "the partition is not ours any more".into());
        self.part.is_ours().then_some(()).ok_or_else(lost)
    }

    async fn respond(
        self,
        url: &str,
        fallback: Option<&Fallback>,
        doubt: &mut Doubt,
    ) -> SendResult {
        let (row, message) = (self.row, &self.row.outgoing.message);
        let why = if row.uses >= USES_MAX {
            "the response_url was used five times".to_owned()
        } else if row.age >= USED_WITHIN {
            "the response_url is half an hour old".to_owned()
        } else {
            if let Err(lost) = self.is_ours() {
                return lost;
            }
            self.resent(doubt);
            match self.workshop.slack.respond(url, message).await {
                Responded::Done => return SendResult::Sent,
                Responded::Limited(after) => return SendResult::Later(after, "limited".into()),
                Responded::NotSent(why) => return SendResult::Later(again(row), why),
                Responded::Unclear(why) => {
                    return SendResult::Doubtful(DOUBT_PAUSE.max(again(row)), why);
                }
                Responded::Refused(why) => return SendResult::Failed(why),
                Responded::UsedUp(why) => why,
            }
        };
        let Some(fallback) = fallback else { return SendResult::Failed(why) };
        let Some(message) = by_web_api_instead(message) else {
            return SendResult::Failed(format!("{why}, and only it can replace a message"));
        };
        info!(outbox = row.id, why, "told by the Web API instead");
        self.resent(doubt); // what a response_url was told bears no mark to look for
        let (channel, user) = (fallback.channel.clone(), fallback.user.clone());
        let to = match self.row.outgoing.message["response_type"] == "in_channel" {
            true => Destination::PostMessage { channel, thread_ts: None },
            false => Destination::PostEphemeral { channel, user, thread_ts: None },
        };
        match self.connection().await {
            Ok((connection, token)) => {
                Speaker { saying: self, connection, token }.by_web_api(&to, message, doubt).await
            }
            Err(result) => result,
        }
    }

    /// It is said again though it may have been said, and nobody can tell.
    fn resent(self, doubt: &mut Doubt) {
        if doubt.open {
            warn!(
                outbox = self.row.id,
                to = self.row.outgoing.to.as_str(),
                "it may have been said before; saying it again"
            );
            self.workshop.slack.counted.doubt(self.row.outgoing.to.as_str(), DoubtSettled::Resent);
            *doubt = Doubt { open: false, resent: true };
        }
    }
}

impl Speaker<'_> {
    async fn by_web_api(&self, to: &Destination, message: Value, doubt: &mut Doubt) -> SendResult {
        let (method, body) = match to {
            Destination::DirectMessage { user } => {
                let open = json!({ "users": user.as_str() });
                let opened = match self.call(Method::OpenConversation, &open).await {
                    Ok(Called::Done(answer)) => answer["channel"]["id"].as_str().map(str::to_owned),
                    Ok(other) => return self.settle(other, None).await,
                    Err(result) => return result,
                };
                match opened.map(|channel| channel.parse()) {
                    Some(Ok(channel)) => {
                        let to = Destination::PostMessage { channel, thread_ts: None };
                        return Box::pin(self.by_web_api(&to, message, doubt)).await;
                    }
                    _ => {
                        return SendResult::Later(
                            again(self.saying.row),
                            "Slack opened no conversation".into(),
                        );
                    }
                }
            }
            to => request(to, message, self.saying.row),
        };
        if doubt.open {
            match to {
                Destination::PostMessage { channel, thread_ts } => {
                    match self.look_up(channel.as_str(), thread_ts.as_deref()).await {
                        LookedUp::Found => {
                            self.saying
                                .workshop
                                .slack
                                .counted
                                .doubt(method.as_str(), DoubtSettled::Found);
                            return SendResult::Sent;
                        }
                        LookedUp::Absent => {
                            self.saying
                                .workshop
                                .slack
                                .counted
                                .doubt(method.as_str(), DoubtSettled::Absent);
                            doubt.open = false;
                        }
                        LookedUp::Later(after, why) => return SendResult::Untried(after, why),
                        LookedUp::Closed(why) => {
                            info!(
                                outbox = self.saying.row.id,
                                why, "Slack can't be asked whether it was said"
                            );
                            self.saying.resent(doubt);
                        }
                    }
                }
                _ => self.saying.resent(doubt),
            }
        }
        let channel = body["channel"].as_str();
        if let (Method::PostMessage, Some(channel)) = (method, channel)
            && let Err(after) =
                self.saying.workshop.slack.limits.channel(self.connection.id, channel)
        {
            return SendResult::Untried(after, "a message a second is what a channel takes".into());
        }
        match self.call(method, &body).await {
            Ok(called) => self.settle(called, channel).await,
            Err(result) => result,
        }
    }

    /// Calls a method when it is its turn, if the partition is still ours then.
    async fn call(&self, method: Method, body: &Value) -> Result<Called, SendResult> {
        let slack = &self.saying.workshop.slack;
        let busy = |after| SendResult::Untried(after, "not its turn yet".into());
        let turn = slack.turn(self.connection.id, method).await.map_err(busy)?;
        self.saying.is_ours()?;
        Ok(slack.call(turn, &self.token, body).await)
    }

    /// Whether Slack has it.
    async fn look_up(&self, channel: &str, thread_ts: Option<&str>) -> LookedUp {
        let row = self.saying.row;
        let mark = row.mark();
        let since = SystemTime::now() - row.age - CLOCKS;
        let since = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let method = if thread_ts.is_some() { Method::Replies } else { Method::History };
        let mut cursor = String::new();
        for _ in 0..PAGES {
            let body = json!({
                "channel": channel, "ts": thread_ts, "oldest": format!("{since}.000000"), "inclusive": true,
                "include_all_metadata": true, "limit": 100,
                "cursor": (!cursor.is_empty()).then_some(&cursor),
            });
            let answer = match self.call(method, &body).await {
                Ok(Called::Done(answer)) => answer,
                // Where a method is open once a minute, as it is to some apps, waiting for it would hold up the lane.
                Ok(Called::Limited(after)) | Err(SendResult::Untried(after, _)) => {
                    return match row.age < LOOK_UP_WITHIN && after <= LOOK_UP_WITHIN {
                        true => {
                            LookedUp::Later(after, "whether it was said can be asked later".into())
                        }
                        false => LookedUp::Closed("limited".into()),
                    };
                }
                Ok(Called::Refused(_, word)) => return LookedUp::Closed(word),
                Ok(Called::NotSent(why) | Called::Unclear(why)) => {
                    return LookedUp::Later(again(row), why);
                }
                Err(_) => return LookedUp::Later(Duration::ZERO, "not now".into()),
            };
            let ours = |message: &Value| {
                let metadata = &message["metadata"];
                metadata["event_type"] == METADATA && metadata["event_payload"]["id"] == *mark
            };
            if answer["messages"].as_array().is_some_and(|messages| messages.iter().any(ours)) {
                return LookedUp::Found;
            }
            cursor =
                answer["response_metadata"]["next_cursor"].as_str().unwrap_or_default().to_owned();
            if cursor.is_empty() {
                return LookedUp::Absent;
            }
        }
        LookedUp::Closed("too much was said since".into())
    }

    /// What follows from Slack's answer.
    async fn settle(&self, called: Called, channel: Option<&str>) -> SendResult {
        let row = self.saying.row;
        let (word, text) = match called {
            Called::Done(_) => {
                self.works().await;
                return SendResult::Sent;
            }
            Called::Limited(after) => return SendResult::Later(after, "limited".into()),
            Called::NotSent(why) => return SendResult::Later(again(row), why),
            Called::Unclear(why) => return SendResult::Doubtful(DOUBT_PAUSE.max(again(row)), why),
            Called::Refused(word, text) => (word, text),
        };
        let workshop = self.saying.workshop;
        match word.action() {
            Action::Revoke => {
                self.refused(Status::Revoked, &text).await;
                SendResult::Failed(text)
            }
            Action::Confirm => self.confirm(text).await,
            Action::Mend => {
                error!(connection = %self.connection.id, word = text, "Slack refuses how we call it: a person has to look");
                self.refused(Status::Error, &text).await;
                SendResult::Later(LONG_PAUSE, text)
            }
            Action::Refresh => self.refresh(text).await,
            Action::Pause => SendResult::Later(LONG_PAUSE, text),
            Action::Alert => {
                error!(connection = %self.connection.id, word = text, "Slack does not take calls from our address: a person has to look");
                SendResult::Later(LONG_PAUSE, text)
            }
            Action::StopTeam | Action::Elsewhere => {
                if let Some(channel) = channel
                    && let Err(error) =
                        workshop.store.note_refused(self.connection.id, channel, &text).await
                {
                    warn!(error = %Chain(&error), "a refused conversation could not be noted");
                }
                SendResult::Failed(text)
            }
            Action::Degrade => {
                warn!(connection = %self.connection.id, to = row.outgoing.to.as_str(), "the app lacks a scope: it has to be installed anew");
                SendResult::Failed(text)
            }
            Action::Wait => SendResult::Later(LONG_PAUSE, text),
            Action::PauseTenant => {
                for method in [Method::PostMessage, Method::PostEphemeral, Method::UpdateMessage] {
                    workshop
                        .slack
                        .limits
                        .limited(self.connection.id, method.as_str(), LONG_PAUSE)
                        .await;
                }
                SendResult::Later(LONG_PAUSE, text)
            }
            Action::Reconcile => SendResult::Doubtful(DOUBT_PAUSE.max(again(row)), text),
            Action::Reread | Action::Fail => SendResult::Failed(text),
        }
    }

    /// The token is over: whoever refreshes tokens is told.
    async fn refresh(&self, text: String) -> SendResult {
        let (row, workshop) = (self.saying.row, self.saying.workshop);
        let Connection { id, version, .. } = *self.connection;
        match workshop.store.refresh_now(id, version).await {
            Ok(true) => {
                workshop.token_is_over.notify_one();
                SendResult::Later(again(row), text)
            }
            Ok(false) => {
                self.refused(Status::Error, &text).await;
                SendResult::Later(LONG_PAUSE, text)
            }
            Err(error) => SendResult::Later(again(row), Chain(&error).to_string()),
        }
    }

    /// The token is called invalid: that may be so, or our address is not welcome. `auth.test` says which.
    async fn confirm(&self, text: String) -> SendResult {
        let row = self.saying.row;
        let refused = match self.call(Method::AuthTest, &json!({})).await {
            Ok(Called::Refused(word, text)) => match word.action() {
                Action::Revoke => {
                    self.refused(Status::Revoked, &text).await;
                    return SendResult::Failed(text);
                }
                action => action == Action::Confirm,
            },
            _ => false,
        };
        if refused {
            self.saying.workshop.refusals.note(self.connection.id);
            let (id, version) = (self.connection.id, self.connection.version);
            match self.saying.workshop.store.count_refusal(id, version).await {
                Ok(count) if count >= REFUSALS_MAX => self.refused(Status::Error, &text).await,
                Ok(_) => {}
                Err(error) => {
                    warn!(connection = %id, error = %Chain(&error), "a refusal could not be counted")
                }
            }
        }
        SendResult::Later(again(row), text)
    }

    async fn refused(&self, status: Status, word: &str) {
        let (id, version) = (self.connection.id, self.connection.version);
        let why = format!("Slack says: {word}");
        let store = &self.saying.workshop.store;
        match store.connection_refused(id, Some(version), status, &why).await {
            Ok(changed) => {
                warn!(connection = %id, %status, word, changed, "Slack refuses the connection")
            }
            Err(error) => {
                warn!(connection = %id, error = %Chain(&error), "a refusal could not be written down")
            }
        }
    }

    /// Slack took it: the token is good.
    async fn works(&self) {
        let (id, version) = (self.connection.id, self.connection.version);
        let refused = self.saying.workshop.refusals.forget(id);
        if (refused || self.connection.status == Status::Error)
            && let Err(error) = self.saying.workshop.store.connection_works(id, version).await
        {
            warn!(connection = %id, error = %Chain(&error), "a connection that works stays marked as in error");
        }
    }
}

enum LookedUp {
    Found,
    Absent,
    Later(Duration, String),
    /// There is no way to look.
    Closed(String),
}

/// The method that says it, and its arguments.
fn request(to: &Destination, message: Value, row: &Queued) -> (Method, Value) {
    match to {
        Destination::PostMessage { channel, thread_ts } => {
            let mut body = message;
            body["channel"] = channel.as_str().into();
            if let Some(ts) = thread_ts {
                body["thread_ts"] = ts.as_str().into();
            }
            body["metadata"]["event_type"] = METADATA.into();
            body["metadata"]["event_payload"]["id"] = row.mark().into();
            (Method::PostMessage, body)
        }
        Destination::PostEphemeral { channel, user, thread_ts } => {
            let mut body = message;
            body["channel"] = channel.as_str().into();
            body["user"] = user.as_str().into();
            if let Some(ts) = thread_ts {
                body["thread_ts"] = ts.as_str().into();
            }
            (Method::PostEphemeral, body)
        }
        Destination::UpdateMessage { channel, ts } => {
            let mut body = message;
            body["channel"] = channel.as_str().into();
            body["ts"] = ts.as_str().into();
            (Method::UpdateMessage, body)
        }
        Destination::OpenView { trigger_id } => {
            (Method::OpenView, json!({ "trigger_id": trigger_id, "view": message }))
        }
        Destination::UpdateView { view_id } => {
            (Method::UpdateView, json!({ "view_id": view_id, "view": message }))
        }
        Destination::PublishView { user } => {
            (Method::PublishView, json!({ "user_id": user.as_str(), "view": message }))
        }
        // Resolved before: a `response_url` has no method, and a direct message is a message once it is open.
        Destination::ResponseUrl { .. } | Destination::DirectMessage { .. } => {
            (Method::PostMessage, message)
        }
    }
}

/// What a `response_url` would have taken, as the Web API takes it; none, if only the address can do it.
fn by_web_api_instead(message: &Value) -> Option<Value> {
    let only_there = |name: &str| message[name] == true;
    if only_there("replace_original") || only_there("delete_original") {
        return None;
    }
    let mut message = message.clone();
    let fields = message.as_object_mut()?;
    for name in ["response_type", "replace_original", "delete_original"] {
        fields.remove(name);
    }
    Some(message)
}

/// Whoever sends decides when it is too old to be tried.
fn again(row: &Queued) -> Duration {
    Duration::from_millis(500 << row.attempts.clamp(0, 10)).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_a_response_url_can_do_is_not_said_another_way() {
        let plain = json!({ "response_type": "ephemeral", "text": "hi" });
        assert_eq!(by_web_api_instead(&plain), Some(json!({ "text": "hi" })));
        assert_eq!(by_web_api_instead(&json!({ "delete_original": true })), None);
    }
}
