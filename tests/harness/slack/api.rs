//! The Web API, as far as an app like ours calls it: one method, one function.
//!
//! In: a method, who calls, its arguments (JSON, a form or a query, as Slack takes them). Out: what Slack answers, and a line
//! in the book of calls. The order of checks is Slack's: the token, the scope, the limit, then the arguments.

use super::{
    Receipt, Slack,
    conversations::{Message, Page},
    http::Reply,
    tokens::{Installation, scopes},
    trouble::Fault,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The longest text of a message.
const TEXT_MAX: usize = 40_000;

/// Something that Slack was asked, taken or not.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its name: `chat.postMessage`, or `response_url`.
    pub method: String,
    /// The workspace that the token belongs to.
    pub team: String,
    /// The conversation, if it names one; the path of a `response_url`.
    pub channel: String,
    /// The token.
    pub token: Option<String>,
    /// All of its arguments.
    pub args: Value,
    /// When.
    pub at: Instant,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a call ended, as far as Slack knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect and was answered.
    Taken,
    /// `ok: false` and this word.
    Refused(String),
    /// 429, to come back after so many seconds.
    RateLimited(u64),
    /// Something went wrong by a test's will; whether it took effect all the same.
    Broken {
        /// What.
        fault: Fault,
        /// Whether it took effect.
        taken: bool,
    },
}

/// Why a call is refused: Slack's word, and what it says beside it.
struct Refused(String, Value);

impl From<&str> for Refused {
    fn from(error: &str) -> Self {
        Self(error.to_owned(), Value::Null)
    }
}

type Answered = Result<Value, Refused>;

/// The scope that a method needs.
fn needs(method: &str, channel: &str) -> Option<&'static str> {
    Some(match method {
        "chat.postMessage" | "chat.update" | "chat.postEphemeral" => "chat:write",
        "conversations.open" => "im:write",
        "conversations.history" | "conversations.replies" => match channel.chars().next() {
            Some('D') => "im:history",
            Some('G') => "groups:history",
            _ => "channels:history",
        },
        "users.info" => "users:read",
        "reactions.add" => "reactions:write",
        "assistant.threads.setStatus" => "assistant:write",
        _ => return None,
    })
}

/// What is said, and so leaves a receipt; the rest only asks.
fn tells(method: &str) -> bool {
    !matches!(
        method,
        "auth.test"
            | "users.info"
            | "conversations.history"
            | "conversations.replies"
            | "conversations.open"
            | "oauth.v2.access"
    )
}

/// A call of the Web API, answered.
pub(super) async fn call(slack: &Slack, method: &str, token: Option<String>, args: Value) -> Reply {
    let (fault, reply) = judge(slack, method, token, args);
    spoil(fault, reply).await
}

/// Something said by a `response_url`, answered.
pub(super) async fn respond(slack: &Slack, path: &str, body: Value) -> Reply {
    let (fault, reply) = judge_response(slack, path, body);
    spoil(fault, reply).await
}

fn judge(
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
        "oauth.v2.access" => None,
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
        outcome: Outcome::Taken,
    };

    let broken = state.troubles.strike(&call);
    let effective = broken.as_ref().is_none_or(|(fault, taken)| *taken || slow(fault));
    let mut answer = Err(Refused::from("internal_error"));
    let mut limited = None;
    if effective {
        let allowed = match caller {
            Some(Err(error)) => Err(Refused::from(error.as_str())),
            Some(Ok(there)) => allowed(method, &call.channel, &there),
            None => Ok(()),
        };
        answer = match (allowed, state.limits.take(&call, now)) {
            (Err(refused), _) => Err(refused),
            (Ok(()), Err(seconds)) => {
                limited = Some(seconds);
                Err("ratelimited".into())
            }
            (Ok(()), Ok(())) => perform(slack, &mut state, &call, installation.as_ref()),
        };
    }
    call.outcome = match (&broken, limited, &answer) {
        (Some((fault, _)), _, _) if !slow(fault) => {
            Outcome::Broken { fault: fault.clone(), taken: answer.is_ok() }
        }
        (_, Some(seconds), _) => Outcome::RateLimited(seconds),
        (_, None, Err(Refused(error, _))) => Outcome::Refused(error.clone()),
        (_, None, Ok(_)) => Outcome::Taken,
    };
    if answer.is_ok() && tells(method) {
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
        (None, Err(Refused(error, with))) => {
            let mut answer = json!({ "ok": false, "error": error });
            if let (Some(answer), Value::Object(with)) = (answer.as_object_mut(), with) {
                answer.extend(with);
            }
            Reply::ok(headers, answer)
        }
    };
    (broken.map(|(fault, _)| fault), reply)
}

fn judge_response(slack: &Slack, path: &str, body: Value) -> (Option<Fault>, Reply) {
    let now = slack.clock().now();
    let mut state = slack.state();
    let mut call = Call {
        method: "response_url".into(),
        team: String::new(),
        channel: path.to_owned(),
        token: None,
        args: body.clone(),
        at: Instant::now(),
        outcome: Outcome::Taken,
    };
    let broken = state.troubles.strike(&call);
    let effective = broken.as_ref().is_none_or(|(fault, taken)| *taken || slow(fault));
    let said = if effective { state.urls.take(path, now) } else { Err("not_taken") };
    call.outcome = match (&broken, said) {
        (Some((fault, _)), _) if !slow(fault) => {
            Outcome::Broken { fault: fault.clone(), taken: said.is_ok() }
        }
        (_, Err(error)) => Outcome::Refused(error.to_owned()),
        (_, Ok(())) => Outcome::Taken,
    };
    state.calls.push(call);
    if said.is_ok() {
        let to = path.to_owned();
        state.receipts.push(Receipt { by: "response_url".into(), to, token: None, body });
    }
    let reply = match said {
        Ok(()) => Reply::text(200, "ok"),
        Err(error) => Reply::text(404, error),
    };
    (broken.map(|(fault, _)| fault), reply)
}

/// Slow is no other answer.
fn slow(fault: &Fault) -> bool {
    matches!(fault, Fault::Slow(_))
}

/// What arrives instead of the answer.
async fn spoil(fault: Option<Fault>, reply: Reply) -> Reply {
    let Some(fault) = fault else { return reply };
    match fault {
        Fault::Says(error) => Reply::ok(Vec::new(), json!({ "ok": false, "error": error })),
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

fn allowed(method: &str, channel: &str, there: &Installation) -> Result<(), Refused> {
    match needs(method, channel) {
        Some(scope) if !there.scopes.contains(scope) => Err(Refused(
            "missing_scope".into(),
            json!({ "needed": scope, "provided": scopes(there) }),
        )),
        _ => Ok(()),
    }
}

/// The workspace that is meant: on Grid an app of the whole organization has to say it.
fn team(there: &Installation, args: &Value) -> String {
    let said = args["team_id"].as_str().map(str::to_owned);
    let own = there.team.clone().or_else(|| there.enterprise.clone());
    match &there.team {
        Some(team) => team.clone(),
        None => said.or(own).unwrap_or_default(),
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
            Ok(state.conversations.history(team, in_one(channel)?, &page(args)))
        }
        "conversations.replies" => {
            let (channel, root) = (in_one(channel)?, text("ts"));
            let found = state.conversations.replies(team, channel, root, &page(args));
            found.ok_or_else(|| "thread_not_found".into())
        }
        "chat.postMessage" => {
            let message = composed(slack, args, there)?;
            let answer = json!({
                "ok": true, "channel": channel, "ts": message.ts,
                "message": message.json(true),
            });
            state.conversations.add(team, in_one(channel)?, message);
            Ok(answer)
        }
        "chat.postEphemeral" => {
            let message = composed(slack, args, there)?;
            in_one(channel)?;
            match text("user") {
                "" => Err("user_not_in_channel".into()),
                _ => Ok(json!({ "ok": true, "message_ts": message.ts })),
            }
        }
        "chat.update" => {
            let new = composed(slack, args, there)?;
            let there = state.conversations.find(team, in_one(channel)?, text("ts"));
            let there = there.ok_or("message_not_found")?;
            if there.bot_id != new.bot_id {
                return Err("cant_update_message".into());
            }
            (there.text, there.blocks, there.edited) = (new.text, new.blocks, true);
            if !new.metadata.is_null() {
                there.metadata = new.metadata;
            }
            Ok(json!({ "ok": true, "channel": channel, "ts": there.ts, "text": there.text }))
        }
        "reactions.add" | "assistant.threads.setStatus" => {
            in_one(channel)?;
            Ok(json!({ "ok": true }))
        }
        "views.open" => Ok(state.views.open(args, now)?),
        "views.update" => Ok(state.views.update(args)?),
        "views.publish" => Ok(state.views.publish(team, args)?),
        _ => Err("unknown_method".into()),
    }
}

fn in_one(channel: &str) -> Result<&str, Refused> {
    if channel.is_empty() { Err("channel_not_found".into()) } else { Ok(channel) }
}

/// A message of this bot's, if Slack takes it.
fn composed(slack: &Slack, args: &Value, there: &Installation) -> Result<Message, Refused> {
    let text = args["text"].as_str().unwrap_or_default();
    let (blocks, metadata) = (&args["blocks"], &args["metadata"]);
    if text.is_empty() && blocks.is_null() && args["attachments"].is_null() {
        return Err("no_text".into());
    }
    if text.chars().count() > TEXT_MAX {
        return Err("msg_too_long".into());
    }
    if !blocks.is_null() && blocks.as_array().is_none_or(|blocks| blocks.len() > 50) {
        return Err("invalid_blocks".into());
    }
    let noted = metadata["event_type"].is_string() && metadata["event_payload"].is_object();
    if !metadata.is_null() && !noted {
        return Err("invalid_metadata_format".into());
    }
    Ok(Message {
        ts: slack.ts(),
        user: there.bot_user.clone(),
        bot_id: Some(there.bot_id()),
        text: text.to_owned(),
        blocks: blocks.clone(),
        thread_ts: args["thread_ts"].as_str().map(str::to_owned),
        metadata: metadata.clone(),
        edited: false,
    })
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
    /// Whether it took effect.
    pub fn took_effect(&self) -> bool {
        matches!(self.outcome, Outcome::Taken | Outcome::Broken { taken: true, .. })
    }

    /// How long before another call this one came.
    pub fn before(&self, later: &Call) -> Duration {
        later.at.saturating_duration_since(self.at)
    }
}
