//! Agents' sessions: `agents.sessions.*` for apps that are declared as agents, and the older
//! methods `assistant.threads.*`.

use super::{Slack, api::ApiError};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

const STATUSES: [&str; 4] = ["active", "processing", "suspended", "closed"];
/// Maximum length of a title, in characters.
const TITLE_MAX: usize = 200;
const PROMPTS_MAX: usize = 4;

/// Kind of an app.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AppKind {
    /// Declared as an agent, with sessions.
    #[default]
    Agent,
    /// With assistant threads and without sessions.
    Assistant,
    /// With neither sessions nor assistant threads.
    Plain,
}

/// Settings of sessions.
#[derive(Debug, Clone)]
pub struct SessionSettings {
    /// Kind of all apps.
    pub kind: AppKind,
    /// Time after which `processing` becomes `active`.
    pub processing_for: Duration,
}

impl Default for SessionSettings {
    fn default() -> Self {
        Self { kind: AppKind::default(), processing_for: Duration::from_secs(3600) }
    }
}

/// Session of a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Status that was set last.
    pub status: String,
    /// Title.
    pub title: String,
    /// Time at which the status was set.
    pub since: SystemTime,
}

/// All sessions, by workspace, channel and first message of the thread.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    pub(super) settings: SessionSettings,
    all: BTreeMap<(String, String, String), Session>,
    /// Suggested prompts, by workspace and channel.
    prompts: BTreeMap<(String, String), Value>,
}

impl Sessions {
    fn set(&mut self, place: (&str, &str, &str), status: &str, title: &str, now: SystemTime) {
        let (team, channel, thread) = place;
        let key = (team.to_owned(), channel.to_owned(), thread.to_owned());
        let (status, title) = (status.to_owned(), title.to_owned());
        match self.all.get_mut(&key) {
            Some(session) => (session.status, session.since) = (status, now),
            None => drop(self.all.insert(key, Session { status, title, since: now })),
        }
    }

    /// Sets the status when a stream starts or stops.
    pub(super) fn set_by_stream(
        &mut self,
        place: (&str, &str, &str),
        status: &Value,
        now: SystemTime,
    ) -> Result<(), ApiError> {
        let status = status.as_str().unwrap_or("active");
        if !STATUSES.contains(&status) {
            return Err("invalid_status".into());
        }
        if self.settings.kind == AppKind::Agent {
            self.set(place, status, "", now);
        }
        Ok(())
    }

    /// Answers a call of `agents.sessions.*` or `assistant.threads.*`.
    pub(super) fn call(
        &mut self,
        method: &str,
        (team, channel): (&str, &str),
        args: &Value,
        now: SystemTime,
    ) -> Result<Value, ApiError> {
        let text = |name: &str| args[name].as_str().unwrap_or_default();
        let kind = self.settings.kind;
        if method.starts_with("agents.sessions") && kind != AppKind::Agent {
            return Err("not_authorized".into());
        }
        if kind == AppKind::Plain {
            return Err("not_agent_app".into());
        }
        let thread = text("thread_ts");
        match method {
            "agents.sessions.setStatus" => {
                if !STATUSES.contains(&text("status")) {
                    return Err("invalid_status".into());
                }
                if thread.is_empty() {
                    return Err("thread_ts_required".into());
                }
                self.set((team, channel, thread), text("status"), text("title"), now);
                Ok(json!({ "ok": true, "status": args["status"], "agent_status": args["status"] }))
            }
            "agents.sessions.rename" => {
                if !(1..=TITLE_MAX).contains(&text("title").chars().count()) {
                    return Err("invalid_name".into());
                }
                let key = (team.to_owned(), channel.to_owned(), thread.to_owned());
                let session = self.all.get_mut(&key).ok_or("session_not_found")?;
                session.title = text("title").to_owned();
                Ok(json!({ "ok": true, "title": args["title"] }))
            }
            "assistant.threads.setStatus" => {
                let status = if text("status").is_empty() { "active" } else { "processing" };
                self.set((team, channel, thread), status, "", now);
                Ok(json!({ "ok": true }))
            }
            "assistant.threads.setTitle" => {
                let key = (team.to_owned(), channel.to_owned(), thread.to_owned());
                if let Some(session) = self.all.get_mut(&key) {
                    session.title = text("title").to_owned();
                }
                Ok(json!({ "ok": true }))
            }
            _ => {
                let prompts = args["prompts"].as_array().filter(|all| all.len() <= PROMPTS_MAX);
                let is_prompt = |p: &Value| p["title"].is_string() && p["message"].is_string();
                if prompts.is_none_or(|prompts| !prompts.iter().all(is_prompt)) {
                    return Err("invalid_arguments".into());
                }
                match (kind, thread.is_empty()) {
                    (AppKind::Assistant, true) => return Err("missing_thread_ts".into()),
                    (AppKind::Agent, false) => {} // Slack ignores prompts of a thread
                    _ => {
                        let key = (team.to_owned(), channel.to_owned());
                        self.prompts.insert(key, args["prompts"].clone());
                    }
                }
                Ok(json!({ "ok": true }))
            }
        }
    }
}

impl Slack {
    /// Changes the settings of sessions.
    pub fn set_sessions(&self, change: impl FnOnce(&mut SessionSettings)) {
        change(&mut self.state().sessions.settings);
    }

    /// Returns the session of a thread, with the status that a person sees.
    pub fn session(&self, team: &str, channel: &str, thread_ts: &str) -> Option<Session> {
        let (now, state) = (self.clock().now(), self.state());
        let key = (team.to_owned(), channel.to_owned(), thread_ts.to_owned());
        let mut session = state.sessions.all.get(&key)?.clone();
        let expires = session.since + state.sessions.settings.processing_for;
        if session.status == "processing" && expires <= now {
            session.status = "active".into();
        }
        Some(session)
    }

    /// Returns the suggested prompts of a channel.
    pub fn prompts(&self, team: &str, channel: &str) -> Option<Value> {
        self.state().sessions.prompts.get(&(team.to_owned(), channel.to_owned())).cloned()
    }
}
