//! Webhooks of the scenario in Slack's format, made from the fixtures with ids and times of the
//! scenario.
//!
//! Ids contain a counter, so they are unique. Each `ts` advances the time by up to 4 s.

use super::tenants::Tenant;
use crate::{fault::Random, fixtures, recording::ANY_SLACK, slack::webhook::Webhook};
use anyhow::Context;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Start of the day, in seconds since 1970: 2025-03-04 08:00 UTC.
pub(super) const START: u64 = 1_741_075_200;

pub(super) struct WebhookWriter {
    fixtures: BTreeMap<String, Value>,
    pub random: Random,
    second: u64,
    count: u64,
}

impl WebhookWriter {
    pub fn new(random: Random) -> anyhow::Result<Self> {
        let fixtures =
            fixtures::all().into_iter().map(|one| (one.shape.name, one.content)).collect();
        Ok(Self { fixtures, random, second: START, count: 0 })
    }

    /// Starts an hour of the day.
    pub fn start_hour(&mut self, hour: u64) {
        self.second = self.second.max(START + hour * 3600);
    }

    /// Returns an unused number.
    pub fn number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    /// Returns a `ts` later than all before.
    pub fn ts(&mut self) -> String {
        self.second += self.random.below(5) as u64;
        let number = self.number();
        format!("{}.{number:06}", self.second)
    }

    /// Returns the start of the current minute, in seconds since 1970.
    pub fn minute(&self) -> u64 {
        self.second / 60 * 60
    }

    /// Returns the value at a path of a fixture.
    pub fn fixture(&self, name: &str, at: &str) -> anyhow::Result<Value> {
        let found = self.fixtures.get(name).and_then(|content| content.pointer(at));
        found.cloned().with_context(|| format!("the fixture {name} has no {at}"))
    }

    /// Returns an Events API webhook with an inner event.
    pub fn event(&mut self, tenant: &Tenant, inner: Value) -> Webhook {
        let app = &tenant.app;
        let team = tenant.enterprise.is_none().then_some(&app.team);
        let what = inner["type"].as_str().unwrap_or("event").to_owned();
        let content = json!({
            "token": "legacy-token", "team_id": app.team, "api_app_id": app.app, "event": inner,
            "type": "event_callback", "event_id": format!("Ev{:08}", self.number()),
            "event_time": self.second, "is_ext_shared_channel": false,
            "authorizations": [{
                "enterprise_id": tenant.enterprise, "team_id": team, "user_id": app.bot_user,
                "is_bot": true, "is_enterprise_install": tenant.enterprise.is_some(),
            }],
        });
        fixtures::webhook(&what, &content)
    }

    /// Returns a message event. `place` is the channel and the thread.
    pub fn message(
        &mut self,
        tenant: &Tenant,
        kind: &str,
        place: (&str, Option<&str>),
        user: &str,
        text: &str,
        ts: &str,
    ) -> Webhook {
        let (channel, thread) = place;
        let channel_type = if channel.starts_with('D') { "im" } else { "channel" };
        let mut inner = json!({
            "type": kind, "channel": channel, "user": user, "text": text, "ts": ts, "event_ts": ts,
            "channel_type": channel_type,
        });
        if let Some(thread) = thread {
            inner["thread_ts"] = thread.into();
        }
        self.event(tenant, inner)
    }

    /// Returns a slash command.
    pub fn command(
        &mut self,
        tenant: &Tenant,
        channel: &str,
        user: &str,
        command: &str,
        text: &str,
    ) -> anyhow::Result<Webhook> {
        let (app, number) = (&tenant.app, self.number());
        let mut form = self.fixture("command", "/_form")?;
        for (name, value) in [
            ("team_id", app.team.as_str()),
            ("api_app_id", app.app.as_str()),
            ("channel_id", channel),
            ("user_id", user),
            ("command", command),
            ("text", text),
            ("trigger_id", &self.trigger(number)),
            ("response_url", &response_url(tenant, number)),
        ] {
            form[name] = value.into();
        }
        if let Some(enterprise) = &tenant.enterprise {
            form["is_enterprise_install"] = "true".into();
            form["enterprise_id"] = enterprise.as_str().into();
        }
        Ok(fixtures::webhook(&format!("{command} {text}"), &json!({ "_form": form })))
    }

    /// Returns a click, a shortcut or a view.
    pub fn interaction(
        &mut self,
        tenant: &Tenant,
        fixture: &str,
        user: &str,
        channel: &str,
    ) -> anyhow::Result<Webhook> {
        let (app, number, ts) = (&tenant.app, self.number(), self.ts());
        let mut payload = self.fixture(fixture, "/_payload")?;
        let trigger = self.trigger(number);
        let view = format!("V{number:08}");
        for (at, value) in [
            ("/api_app_id", app.app.as_str()),
            ("/team/id", &app.team),
            ("/user/id", user),
            ("/user/team_id", &app.team),
            ("/trigger_id", &trigger),
            ("/response_url", &response_url(tenant, number)),
            ("/channel/id", channel),
            ("/container/channel_id", channel),
            ("/container/view_id", &view),
            ("/action_ts", &ts),
            ("/actions/0/action_ts", &ts),
            ("/view/id", &view),
            ("/view/root_view_id", &view),
            ("/view/team_id", &app.team),
            ("/view/app_installed_team_id", &app.team),
        ] {
            if let Some(there) = payload.pointer_mut(at) {
                *there = value.into();
            }
        }
        Ok(fixtures::webhook(fixture, &json!({ "_payload": payload })))
    }

    fn trigger(&self, number: u64) -> String {
        format!("{number}.{}.day", self.second)
    }
}

fn response_url(tenant: &Tenant, number: u64) -> String {
    format!("{ANY_SLACK}/commands/{}/{number}", tenant.app.team)
}
