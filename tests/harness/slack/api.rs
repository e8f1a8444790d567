//! The methods of the Web API that apps call.
//!
//! A call has a method, a token and arguments (JSON, a form or a query). It is recorded, and
//! answered as Slack answers it. Checks have Slack's order: token, scope, rate limit, arguments.

use super::{
    Receipt, Slack, blocks,
    conversations::{Message, Page},
    fault_injection::Fault,
    http::Reply,
    streams,
    tokens::{Installation, scopes},
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Maximum length of a message in characters.
const TEXT_MAX: usize = 40_000;
/// Maximum length of the text of an updated message in characters.
const UPDATE_TEXT_MAX: usize = 4_000;

/// A call, successful or not.
#[derive(Debug, Clone)]
pub struct Call {
    /// Method: `chat.postMessage`, …, or `response_url`.
    pub method: String,
    /// Workspace of the token.
    pub team: String,
    /// Conversation, if the call names one; the path of a `response_url`.
    pub channel: String,
    /// Token.
    pub token: Option<String>,
    /// Arguments.
    pub args: Value,
    /// Time.
    pub at: Instant,
    /// Result.
    pub outcome: Outcome,
}

/// Result of a call, as Slack knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The call took effect and was answered.
    Accepted,
    /// Answered with `ok: false` and this error.
    Refused(String),
    /// Answered with 429 and the seconds to wait.
    RateLimited(u64),
    /// An injected fault.
    Faulted {
        /// The fault.
        fault: Fault,
        /// True if the call took effect.
        taken: bool,
    },
}

/// An error of Slack, with additional fields.
pub(super) struct ApiError(String, Value);

impl From<&str> for ApiError {
    fn from(error: &str) -> Self {
        Self(error.to_owned(), Value::Null)
    }
}

type Answered = Result<Value, ApiError>;

/// Returns the scope that a method needs.
fn required_scope(method: &str, channel: &str) -> Option<&'static str> {
    Some(match method {
        "chat.postMessage"
        | "chat.update"
        | "chat.postEphemeral"
        | "chat.delete"
        | "chat.startStream"
        | "chat.appendStream"
        | "chat.stopStream"
        | "agents.sessions.setStatus"
        | "agents.sessions.rename" => "chat:write",
        "conversations.open" => "im:write",
        "conversations.history" | "conversations.replies" => match channel.chars().next() {
            Some('D') => "im:history",
            Some('G') => "groups:history",
            _ => "channels:history",
        },
        "users.info" | "bots.info" => "users:read",
        "reactions.add" => "reactions:write",
        "assistant.threads.setStatus"
        | "assistant.threads.setTitle"
        | "assistant.threads.setSuggestedPrompts" => "assistant:write",
        _ => return None,
    })
}

/// Returns true for methods that are recorded as receipts, because a person sees their effect.
fn leaves_receipt(method: &str) -> bool {
    !matches!(
        method,
        "auth.test"
            | "users.info"
            | "bots.info"
            | "conversations.history"
            | "conversations.replies"
            | "conversations.open"
            | "chat.delete"
            | "chat.startStream"
            | "chat.appendStream"
            | "chat.stopStream"
            | "agents.sessions.setStatus"
            | "agents.sessions.rename"
            | "assistant.threads.setTitle"
            | "assistant.threads.setSuggestedPrompts"
            | "oauth.v2.access"
            | "apps.connections.open"
    )
}

/// Answers a call of the Web API.
pub(super) async fn call(slack: &Slack, method: &str, token: Option<String>, args: Value) -> Reply {
    let (fault, reply) = take_call(slack, method, token, args);
    apply_fault(fault, reply).await
}

/// Answers a call of a `response_url`.
pub(super) async fn respond(slack: &Slack, path: &str, body: Value) -> Reply {
    let (fault, reply) = take_response(slack, path, body);
    apply_fault(fault, reply).await
}

fn take_call(
    slack: &Slack,
    method: &str,
    token: Option<String>,
    args: Value,
) -> (Option<Fault>, Reply) {
    let now = slack.clock().now();
    let mut state = slack.state();
    let channel = args["channel"].as_str().or_else(|| args["channel_id"].as_str());
    let channel = channel.unwrap_or_default().to_owned();
    let caller = match method {
        "oauth.v2.access" | "apps.connections.open" => None,
        _ => Some(match &token {
            None => Err("not_authed".to_owned()),
            Some(token) => state.tokens.caller(token, now).cloned().map_err(str::to_owned),
        }),
    };
    let installation = caller.as_ref().and_then(|caller| caller.as_ref().ok()).cloned();
    let team = installation.as_ref().map(|there| team(there, &args)).unwrap_or_default();
    let mut call = Call {
        method: method.to_owned(),
        team,
        channel,
        token,
        args,
        at: Instant::now(),
        outcome: Outcome::Accepted,
    };

    let broken = state.fault_rules.inject(&call);
    let effective = broken.as_ref().is_none_or(|(fault, taken)| *taken || only_delays(fault));
    let mut answer = Err(ApiError::from("internal_error"));
    let mut limited = None;
    if effective {
        let allowed = match caller {
            Some(Err(error)) => Err(ApiError::from(error.as_str())),
            Some(Ok(there)) => allowed(method, &call.channel, &there),
            None => Ok(()),
        };
        answer = match allowed.map(|()| state.limits.take(&call, now)) {
            Err(refused) => Err(refused),
            Ok(Err(seconds)) => {
                limited = Some(seconds);
                Err("ratelimited".into())
            }
            Ok(Ok(())) => perform(slack, &mut state, &call, installation.as_ref()),
        };
    }
    call.outcome = match (&broken, limited, &answer) {
        (Some((fault, _)), _, _) if !only_delays(fault) => {
            Outcome::Faulted { fault: fault.clone(), taken: answer.is_ok() }
        }
        (_, Some(seconds), _) => Outcome::RateLimited(seconds),
        (_, None, Err(ApiError(error, _))) => Outcome::Refused(error.clone()),
        (_, None, Ok(_)) => Outcome::Accepted,
    };
    if answer.is_ok() && leaves_receipt(method) {
        let Call { method, channel, token, args, .. } = call.clone();
        state.receipts.push(Receipt { by: method, to: channel, token, body: args });
    }
    state.calls.push(call);

    let mut headers = Vec::new();
    if let Some(there) = &installation {
        headers.push(("x-oauth-scopes", scopes(there)));
    }
    let reply = match (limited, answer) {
        (Some(seconds), _) => Reply::rate_limited(seconds),
        (None, Ok(answer)) => Reply::ok(headers, answer),
        (None, Err(ApiError(error, with))) => {
            let mut answer = json!({ "ok": false, "error": error });
            if let (Some(answer), Value::Object(with)) = (answer.as_object_mut(), with) {
                answer.extend(with);
            }
            Reply::ok(headers, answer)
        }
    };
    (broken.map(|(fault, _)| fault), reply)
}

fn take_response(slack: &Slack, path: &str, body: Value) -> (Option<Fault>, Reply) {
    let now = slack.clock().now();
    let mut state = slack.state();
    let mut call = Call {
        method: "response_url".into(),
        team: String::new(),
        channel: path.to_owned(),
        token: None,
        args: body.clone(),
        at: Instant::now(),
        outcome: Outcome::Accepted,
    };
    let broken = state.fault_rules.inject(&call);
    let effective = broken.as_ref().is_none_or(|(fault, taken)| *taken || only_delays(fault));
    let result = if effective { state.urls.take(path, now) } else { Err("not_taken") };
    call.outcome = match (&broken, result) {
        (Some((fault, _)), _) if !only_delays(fault) => {
            Outcome::Faulted { fault: fault.clone(), taken: result.is_ok() }
        }
        (_, Err(error)) => Outcome::Refused(error.to_owned()),
        (_, Ok(())) => Outcome::Accepted,
    };
    state.calls.push(call);
    if result.is_ok() {
        let to = path.to_owned();
        state.receipts.push(Receipt { by: "response_url".into(), to, token: None, body });
    }
    let reply = match result {
        Ok(()) => Reply::text(200, "ok"),
        Err(error) => Reply::text(404, error),
    };
    (broken.map(|(fault, _)| fault), reply)
}

/// Returns true if the fault only delays the answer.
fn only_delays(fault: &Fault) -> bool {
    matches!(fault, Fault::Slow(_))
}

/// Applies a fault to an answer.
async fn apply_fault(fault: Option<Fault>, reply: Reply) -> Reply {
    let Some(fault) = fault else { return reply };
    match fault {
        Fault::ApiError(error) => Reply::ok(Vec::new(), json!({ "ok": false, "error": error })),
        Fault::Status(status) => Reply::text(status, "<html>Slack is having trouble</html>"),
        Fault::RateLimited(seconds) => Reply::rate_limited(seconds),
        Fault::Slow(by) => {
            tokio::time::sleep(by).await;
            reply
        }
        Fault::Silent => std::future::pending().await,
        Fault::Cut => Reply::Cut,
        Fault::MidBody => Reply::MidBody,
        Fault::Garbage => Reply::text(200, "<html>no JSON</html>"),
    }
}

fn allowed(method: &str, channel: &str, there: &Installation) -> Result<(), ApiError> {
    match required_scope(method, channel) {
        Some(scope) if !there.scopes.contains(scope) => Err(ApiError(
            "missing_scope".into(),
            json!({ "needed": scope, "provided": scopes(there) }),
        )),
        _ => Ok(()),
    }
}

/// Returns the workspace of a call. On Grid an app of the whole organization names it in `team_id`.
fn team(there: &Installation, args: &Value) -> String {
    let named = args["team_id"].as_str().map(str::to_owned);
    let own = there.team.clone().or_else(|| there.enterprise.clone());
    match &there.team {
        Some(team) => team.clone(),
        None => named.or(own).unwrap_or_default(),
    }
}

fn perform(
    slack: &Slack,
    state: &mut super::State,
    call: &Call,
    there: Option<&Installation>,
) -> Answered {
    let (args, team, channel) = (&call.args, call.team.as_str(), call.channel.as_str());
    let text = |name: &str| args[name].as_str().unwrap_or_default();
    let now = slack.clock().now();
    let Some(there) = there else {
        return match call.method.as_str() {
            "oauth.v2.access" => Ok(state.tokens.access(args, now)?),
            "apps.connections.open" => {
                let token = call.token.as_deref().ok_or("not_authed")?;
                let ticket = state.sockets.open(token, format!("ticket-{}", slack.unique()))?;
                let url = format!("ws://{}/link/?ticket={ticket}", slack.address);
                Ok(json!({ "ok": true, "url": url }))
            }
            _ => Err("not_authed".into()),
        };
    };
    match call.method.as_str() {
        "auth.test" => Ok(json!({
            "ok": true, "url": "https://example.slack.com/", "team": "Example", "user": "tidegate",
            "team_id": there.team.as_ref().or(there.enterprise.as_ref()), "user_id": there.bot_user,
            "bot_id": there.bot_id(), "enterprise_id": there.enterprise,
            "is_enterprise_install": there.team.is_none(),
        })),
        "bots.info" => match text("bot") {
            id if id == there.bot_id() => Ok(json!({ "ok": true, "bot": {
                "id": id, "deleted": false, "name": "tidegate", "updated": 1700000000,
                "app_id": there.app, "user_id": there.bot_user, "icons": {},
            }})),
            _ => Err("bot_not_found".into()),
        },
        "users.info" => match text("user") {
            id if id.starts_with(['U', 'W']) => Ok(json!({ "ok": true, "user": {
                "id": id, "team_id": team, "name": "steve", "deleted": false,
                "is_bot": id == there.bot_user, "real_name": "Steve",
            }})),
            _ => Err("user_not_found".into()),
        },
        "conversations.open" => match text("users") {
            "" => Err("users_list_not_supplied".into()),
            users => {
                let id = state.conversations.open(users);
                Ok(json!({ "ok": true, "channel": { "id": id } }))
            }
        },
        "conversations.history" => {
            Ok(state.conversations.history(team, required_channel(channel)?, &page(args)))
        }
        "conversations.replies" => {
            let (channel, root) = (required_channel(channel)?, text("ts"));
            let found = state.conversations.replies(team, channel, root, &page(args));
            found.ok_or_else(|| "thread_not_found".into())
        }
        "chat.postMessage" => {
            let mut message = composed(slack, args, there)?;
            message.thread_ts.take_if(|root| state.conversations.is_deleted(team, channel, root));
            let answer = json!({
                "ok": true, "channel": channel, "ts": message.ts,
                "message": message.json(true),
            });
            state.conversations.add(team, required_channel(channel)?, message);
            Ok(answer)
        }
        "chat.postEphemeral" => {
            let message = composed(slack, args, there)?;
            required_channel(channel)?;
            match text("user") {
                "" => Err("user_not_in_channel".into()),
                _ => Ok(json!({ "ok": true, "message_ts": message.ts })),
            }
        }
        "chat.startStream" => {
            let message = message(slack, args, there);
            let to = (team, required_channel(channel)?);
            let thread = text("thread_ts");
            let started =
                streams::start(&mut state.conversations, &state.streams, to, args, message, now)?;
            let place = (team, channel, thread);
            state.sessions.set_by_stream(place, &"processing".into(), now)?;
            Ok(started)
        }
        "chat.appendStream" => {
            let to = (team, required_channel(channel)?);
            streams::append(&mut state.conversations, &state.streams, to, args, now)
        }
        "chat.stopStream" => {
            let to = (team, required_channel(channel)?);
            let stopped = streams::stop(&mut state.conversations, &state.streams, to, args, now)?;
            let thread = stopped["message"]["thread_ts"].as_str().unwrap_or_default();
            let place = (team, channel, thread);
            state.sessions.set_by_stream(place, &args["session_status"], now)?;
            Ok(stopped)
        }
        "chat.update" => {
            let new = composed(slack, args, there)?;
            if args["text"].as_str().is_some_and(|text| text.chars().count() > UPDATE_TEXT_MAX) {
                return Err("msg_too_long".into());
            }
            let there = state.conversations.find(team, required_channel(channel)?, text("ts"));
            let there = there.ok_or("message_not_found")?;
            if there.bot_id != new.bot_id {
                return Err("cant_update_message".into());
            }
            streams::before_update(there, &state.streams, now)?;
            (there.text, there.blocks, there.edited) = (new.text, new.blocks, true);
            if !new.metadata.is_null() {
                there.metadata = new.metadata;
            }
            Ok(json!({ "ok": true, "channel": channel, "ts": there.ts, "text": there.text }))
        }
        "chat.delete" => {
            match state.conversations.delete(team, required_channel(channel)?, text("ts")) {
                true => Ok(json!({ "ok": true, "channel": channel, "ts": text("ts") })),
                false => Err("message_not_found".into()),
            }
        }
        "agents.sessions.setStatus"
        | "agents.sessions.rename"
        | "assistant.threads.setStatus"
        | "assistant.threads.setTitle"
        | "assistant.threads.setSuggestedPrompts" => {
            let place = (team, required_channel(channel)?);
            state.sessions.call(&call.method, place, args, now)
        }
        "reactions.add" => {
            required_channel(channel)?;
            Ok(json!({ "ok": true }))
        }
        "views.open" => Ok(state.views.open(args, now)?),
        "views.update" => Ok(state.views.update(args)?),
        "views.publish" => Ok(state.views.publish(team, args)?),
        _ => Err("unknown_method".into()),
    }
}

fn required_channel(channel: &str) -> Result<&str, ApiError> {
    if channel.is_empty() { Err("channel_not_found".into()) } else { Ok(channel) }
}

/// Returns the message of the arguments, if Slack accepts it.
fn composed(slack: &Slack, args: &Value, there: &Installation) -> Result<Message, ApiError> {
    let text = args["text"].as_str().unwrap_or_default();
    let (blocks, metadata) = (&args["blocks"], &args["metadata"]);
    if text.is_empty() && blocks.is_null() && args["attachments"].is_null() {
        return Err("no_text".into());
    }
    if text.chars().count() > TEXT_MAX {
        return Err("msg_too_long".into());
    }
    blocks::check(blocks)?;
    let is_valid = metadata["event_type"].is_string() && metadata["event_payload"].is_object();
    if !metadata.is_null() && !is_valid {
        return Err("invalid_metadata_format".into());
    }
    Ok(Message {
        text: text.to_owned(),
        blocks: blocks.clone(),
        metadata: metadata.clone(),
        ..message(slack, args, there)
    })
}

/// Returns a message of the caller, without content.
fn message(slack: &Slack, args: &Value, there: &Installation) -> Message {
    Message {
        ts: slack.ts(),
        user: there.bot_user.clone(),
        bot_id: Some(there.bot_id()),
        text: String::new(),
        blocks: Value::Null,
        thread_ts: args["thread_ts"].as_str().map(str::to_owned),
        metadata: Value::Null,
        edited: false,
        stream: None,
    }
}

fn page(args: &Value) -> Page<'_> {
    let text = |name: &str| args[name].as_str().unwrap_or_default();
    let yes =
        |name: &str| args[name].as_bool().unwrap_or_else(|| matches!(text(name), "true" | "1"));
    let limit = args["limit"].as_u64().or_else(|| text("limit").parse().ok());
    Page {
        limit: limit.unwrap_or(100).clamp(1, 999) as usize,
        cursor: text("cursor"),
        oldest: text("oldest"),
        latest: text("latest"),
        inclusive: yes("inclusive"),
        metadata: yes("include_all_metadata"),
    }
}

impl Call {
    /// Returns true if the call took effect.
    pub fn took_effect(&self) -> bool {
        matches!(self.outcome, Outcome::Accepted | Outcome::Faulted { taken: true, .. })
    }

    /// Returns the time from this call to a later one.
    pub fn before(&self, later: &Call) -> Duration {
        later.at.saturating_duration_since(self.at)
    }
}
