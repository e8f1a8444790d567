//! Timeline of a [`Scenario`]: the webhooks of each hour.
//!
//! In a stretch (the time between two pauses) no conversation changes what another depends on: a
//! name that one conversation reserves stays reserved until the next stretch.

use super::{
    Exchange, Scenario, Sent,
    tenants::{self, CHANNELS, Code, PEOPLE, Tenant},
    webhooks::WebhookWriter,
};
use crate::{fault::Random, fixtures, slack::webhook::Webhook};
use serde_json::{Value, json};
use shared::domain::Surface;
use std::collections::HashSet;

/// Number of hours. Each has conversations, then commands.
const HOURS: u64 = 5;
/// Minimum number of conversations of a tenant per hour, before the factor of a busy tenant.
const EXCHANGES_MIN: usize = 1;
/// Texts of messages.
const MESSAGE_TEXTS: [&str; 12] = [
    "is the build green?",
    "who is on call today?",
    "summarize this thread, please",
    "Grüße aus Köln ☀",
    "what did we decide about the invoices",
    "can you look at <https://example.com/a?b=c&amp;d=e|this>?",
    "thanks!",
    "when does the train to Basel leave?",
    "I think we should wait",
    "draft an answer to Ms. Ferreira",
    "first line\nsecond line\n\tthird",
    "and now in one sentence",
];
/// Instructions for the sample agent in some messages.
const AGENT_INSTRUCTIONS: [&str; 5] = ["blocks", "whisper", "silent", "slow:40", "fail:1"];
/// Tenants that remove the app at the end, with Slack's event.
const REMOVALS: [(usize, &str); 7] = [
    (9, "app_uninstalled"),
    (19, "app_uninstalled"),
    (29, "app_uninstalled"),
    (39, "app_uninstalled"),
    (12, "tokens_revoked"),
    (22, "tokens_revoked"),
    (32, "tokens_revoked"),
];

struct ScenarioBuilder {
    tenants: Vec<Tenant>,
    writer: WebhookWriter,
    /// All codes of all tenants.
    codes: Vec<Code>,
    /// Codes used in an earlier hour, with their tenant.
    used: Vec<(usize, String)>,
    /// Bound channels, with their tenant.
    linked: Vec<(usize, String)>,
    /// Names reserved in this stretch.
    taken: HashSet<String>,
}

pub(super) fn generate(seed: u64) -> anyhow::Result<Scenario> {
    let mut random = Random::new(seed);
    let tenants = tenants::generate_all(&mut random)?;
    let (writer, codes, taken) = (WebhookWriter::new(random)?, Vec::new(), HashSet::new());
    let mut builder =
        ScenarioBuilder { tenants, writer, codes, used: Vec::new(), linked: Vec::new(), taken };
    let mut stretches = Vec::new();
    for hour in 0..HOURS {
        builder.writer.start_hour(hour);
        stretches.push(builder.exchanges(|_| true)?);
        stretches.push(builder.commands()?);
    }
    builder.writer.start_hour(HOURS);
    stretches.push(builder.channel_id_changes()?);
    stretches.push(builder.removals()?);
    Ok(Scenario { tenants: builder.tenants, codes: builder.codes, stretches })
}

impl ScenarioBuilder {
    fn sent(&mut self, tenant: &Tenant, webhook: Webhook) -> Sent {
        // Slack resends events only.
        let again = webhook.content_type == "application/json" && self.one_in(50);
        Sent { tenant: tenant.number, webhook, again, stored: true }
    }

    /// Returns true in one of `in_so_many` cases, at random.
    fn one_in(&mut self, in_so_many: usize) -> bool {
        self.writer.random.below(in_so_many) == 0
    }

    /// Reserves a name in this stretch. Returns false if it is reserved already.
    fn reserve(&mut self, what: String) -> bool {
        self.taken.insert(what)
    }

    fn random_user(&mut self, tenant: &Tenant) -> String {
        let n = self.writer.random.below(PEOPLE);
        tenant.user(n)
    }

    fn random_text(&mut self) -> String {
        let words = *self.writer.random.pick(&MESSAGE_TEXTS);
        match self.one_in(12) {
            true => format!("{} {words}", self.writer.random.pick(&AGENT_INSTRUCTIONS)),
            false => words.to_owned(),
        }
    }

    /// Returns the conversations of an hour, for the tenants that `at` selects.
    fn exchanges(&mut self, at: impl Fn(&Tenant) -> bool) -> anyhow::Result<Vec<Exchange>> {
        self.taken.clear();
        let mut exchanges = Vec::new();
        for tenant in self.tenants.clone().iter().filter(|tenant| at(tenant)) {
            for _ in 0..tenant.busy * (EXCHANGES_MIN + self.writer.random.below(2)) {
                let exchange = match self.writer.random.below(100) {
                    0..40 => self.thread(tenant)?,
                    40..62 => self.direct(tenant)?,
                    62..72 => self.click(tenant)?,
                    72..78 => self.view(tenant)?,
                    78..80 => self.options(tenant)?,
                    80..86 => self.read_only_command(tenant)?,
                    86..91 => self.team_join(tenant)?,
                    91..95 => self.unrelated_event(tenant)?,
                    95..98 => self.unparsable(tenant),
                    _ => self.handshake(tenant)?,
                };
                exchanges.push(exchange);
            }
        }
        exchanges.retain(|exchange| !exchange.is_empty());
        Ok(exchanges)
    }

    /// Returns a thread in a channel: messages with mentions, edits, reactions and bots.
    fn thread(&mut self, tenant: &Tenant) -> anyhow::Result<Exchange> {
        let channel = tenant.channel(self.writer.random.below(CHANNELS));
        let (root, mut exchange, mut last) = (self.writer.ts(), Vec::new(), None);
        for n in 0..1 + self.writer.random.below(6) {
            let (user, ts) =
                (self.random_user(tenant), if n == 0 { root.clone() } else { self.writer.ts() });
            let place = (channel.as_str(), (n > 0).then_some(root.as_str()));
            let mention = self.one_in(4);
            let text = match mention {
                true => format!("{} {}", tenant.mention(), self.random_text()),
                false => self.random_text(),
            };
            // A mention is two events, in either order.
            let mut kinds = if mention { vec!["message", "app_mention"] } else { vec!["message"] };
            if self.one_in(2) {
                kinds.reverse();
            }
            for kind in kinds {
                let webhook = self.writer.message(tenant, kind, place, &user, &text, &ts);
                exchange.push(self.sent(tenant, webhook));
            }
            last = Some((user, text, ts));
        }
        if let Some((user, text, ts)) = last.filter(|_| self.one_in(4)) {
            let mut inner = self.writer.fixture("message_changed", "/event")?;
            let edited = self.writer.ts();
            inner["channel"] = channel.as_str().into();
            inner["ts"] = edited.as_str().into();
            inner["message"] = json!({
                "type": "message", "user": user, "text": format!("{text} (edited)"), "ts": ts,
                "thread_ts": root, "edited": { "user": user, "ts": edited },
            });
            inner["previous_message"] = json!({
                "type": "message", "user": user, "text": text, "ts": ts, "thread_ts": root,
            });
            let webhook = self.writer.event(tenant, inner);
            exchange.push(self.sent(tenant, webhook));
        }
        if self.one_in(4) {
            let mut inner = self.writer.fixture("reaction_added", "/event")?;
            inner["user"] = self.random_user(tenant).into();
            inner["item"]["channel"] = channel.as_str().into();
            inner["item"]["ts"] = root.as_str().into();
            inner["event_ts"] = self.writer.ts().into();
            let webhook = self.writer.event(tenant, inner);
            exchange.push(self.sent(tenant, webhook));
        }
        if self.one_in(6) {
            let (hops, ts) = (self.writer.random.below(5), self.writer.ts());
            let noted = json!({ "event_type": "tidegate", "event_payload": { "hops": hops } });
            let webhook = self.writer.event(
                tenant,
                json!({
                    "type": "message", "subtype": "bot_message", "bot_id": "B0OTHER", "text": "deployed",
                    "channel": channel, "channel_type": "channel", "ts": ts, "event_ts": ts,
                    "thread_ts": root, "metadata": noted,
                }),
            );
            exchange.push(self.sent(tenant, webhook));
        }
        Ok(exchange)
    }

    /// Returns a direct message and its continuation, with commands as text.
    fn direct(&mut self, tenant: &Tenant) -> anyhow::Result<Exchange> {
        let n = self.writer.random.below(PEOPLE);
        let (user, channel) = (tenant.user(n), tenant.direct(n));
        let mut exchange = Vec::new();
        if !self.reserve(channel.clone()) {
            return Ok(exchange);
        }
        if self.one_in(4) {
            let name = *self.writer.random.pick(&["app_home_opened", "assistant_thread_started"]);
            let mut inner = self.writer.fixture(name, "/event")?;
            for (at, value) in [
                ("/user", user.as_str()),
                ("/channel", &channel),
                ("/assistant_thread/user_id", &user),
                ("/assistant_thread/channel_id", &channel),
            ] {
                if let Some(there) = inner.pointer_mut(at) {
                    *there = value.into();
                }
            }
            inner["event_ts"] = self.writer.ts().into();
            let webhook = self.writer.event(tenant, inner);
            exchange.push(self.sent(tenant, webhook));
        }
        for _ in 0..1 + self.writer.random.below(5) {
            let text = match self.writer.random.below(24) {
                0 => "/lobu status".into(),
                1 => "lobu help".into(),
                2 => "/lobu new".into(),
                3 => "/lobu unlink".into(),
                4 => format!("/lobu link {}", self.unused_code(tenant, Surface::Dm)),
                5 => "loose and beside the thread".into(),
                _ => self.random_text(),
            };
            let ts = self.writer.ts();
            let webhook =
                self.writer.message(tenant, "message", (&channel, None), &user, &text, &ts);
            exchange.push(self.sent(tenant, webhook));
        }
        Ok(exchange)
    }

    fn click(&mut self, tenant: &Tenant) -> anyhow::Result<Exchange> {
        let fixture = *self.writer.random.pick(&["block_actions", "message_action", "shortcut"]);
        let (user, channel) =
            (self.random_user(tenant), tenant.channel(self.writer.random.below(CHANNELS)));
        let place = if fixture == "shortcut" { "nowhere" } else { &channel };
        if !self.reserve(format!("{user} in {place}")) {
            return Ok(Vec::new());
        }
        let webhook = self.writer.interaction(tenant, fixture, &user, &channel)?;
        Ok(vec![self.sent(tenant, webhook)])
    }

    fn view(&mut self, tenant: &Tenant) -> anyhow::Result<Exchange> {
        let fixture = if self.one_in(3) { "view_closed" } else { "view_submission" };
        let user = self.random_user(tenant);
        let webhook = self.writer.interaction(tenant, fixture, &user, "")?;
        Ok(vec![self.sent(tenant, webhook)])
    }

    fn options(&mut self, tenant: &Tenant) -> anyhow::Result<Exchange> {
        let user = self.random_user(tenant);
        let webhook = self.writer.interaction(tenant, "block_suggestion", &user, "")?;
        Ok(vec![self.sent(tenant, webhook)])
    }

    /// Returns commands that change nothing.
    fn read_only_command(&mut self, tenant: &Tenant) -> anyhow::Result<Exchange> {
        let (user, channel) =
            (self.random_user(tenant), tenant.channel(self.writer.random.below(CHANNELS)));
        if !self.reserve(format!("{user} in {channel}")) {
            return Ok(Vec::new());
        }
        let commands =
            [("/lobu", "help"), ("/lobu", ""), ("/lobu", "what?"), ("/weather", "Basel")];
        let (command, text) = *self.writer.random.pick(&commands);
        let webhook = self.writer.command(tenant, &channel, &user, command, text)?;
        Ok(vec![self.sent(tenant, webhook)])
    }

    /// Returns the event of a new member, sometimes twice with two ids.
    fn team_join(&mut self, tenant: &Tenant) -> anyhow::Result<Exchange> {
        let mut inner = self.writer.fixture("team_join", "/event")?;
        inner["user"]["id"] = format!("UNEW{:05}", self.writer.number()).into();
        inner["user"]["team_id"] = tenant.app.team.as_str().into();
        let mut exchange = Vec::new();
        for _ in 0..1 + usize::from(self.one_in(4)) {
            let webhook = self.writer.event(tenant, inner.clone());
            exchange.push(self.sent(tenant, webhook));
        }
        Ok(exchange)
    }

    /// Returns events that concern no agent.
    fn unrelated_event(&mut self, tenant: &Tenant) -> anyhow::Result<Exchange> {
        if self.one_in(2) {
            let mut inner = self.writer.fixture("channel_created", "/event")?;
            inner["channel"]["id"] = format!("CNEW{:05}", self.writer.number()).into();
            let webhook = self.writer.event(tenant, inner);
            return Ok(vec![self.sent(tenant, webhook)]);
        }
        if !self.reserve(format!("{} as a whole", tenant.app.team)) {
            return Ok(Vec::new());
        }
        let mut content = self.writer.fixture("app_rate_limited", "")?;
        content["team_id"] = tenant.app.team.as_str().into();
        content["api_app_id"] = tenant.app.app.as_str().into();
        content["minute_rate_limited"] = self.writer.minute().into();
        let webhook = fixtures::webhook("app_rate_limited", &content);
        Ok(vec![self.sent(tenant, webhook)])
    }

    /// Returns a webhook that cannot be parsed. It becomes a dead letter.
    fn unparsable(&mut self, tenant: &Tenant) -> Exchange {
        if !self.reserve(format!("{} as a whole", tenant.app.team)) {
            return Vec::new();
        }
        let number = self.writer.number();
        let content: Value = json!({
            "type": "of_tomorrow", "number": number, "team_id": tenant.app.team,
            "api_app_id": tenant.app.app,
        });
        let webhook = fixtures::webhook("of_tomorrow", &content);
        // Not resent, because Slack sends no such webhook. Its dedup key is a hash of the body.
        vec![Sent { tenant: tenant.number, webhook, again: false, stored: true }]
    }

    /// Returns the handshake of a new request URL, which ingest answers and does not store.
    fn handshake(&mut self, tenant: &Tenant) -> anyhow::Result<Exchange> {
        let content = self.writer.fixture("url_verification", "")?;
        let webhook = fixtures::webhook("url_verification", &content);
        Ok(vec![Sent { tenant: tenant.number, webhook, again: false, stored: false }])
    }

    /// Creates a code for a surface and returns its text.
    fn unused_code(&mut self, tenant: &Tenant, surface: Surface) -> String {
        let code = tenant.code(&mut self.writer.random, &[surface]);
        let shown = code.code.clone();
        self.codes.push(code);
        shown
    }

    /// Returns commands that change bindings. In each channel one person sends them, in order.
    fn commands(&mut self) -> anyhow::Result<Vec<Exchange>> {
        self.taken.clear();
        let (mut exchanges, mut linked, mut used) = (Vec::new(), Vec::new(), Vec::new());
        for tenant in &self.tenants.clone() {
            for n in 0..tenant.busy.min(CHANNELS) {
                let first = self.writer.random.below(PEOPLE);
                let channel = tenant.channel((first + n) % CHANNELS);
                let (user, other) = (tenant.user(n), tenant.user(PEOPLE - 1 - n));
                if !self.reserve(channel.clone()) {
                    continue;
                }
                let mut texts: Vec<String> = Vec::new();
                match self.writer.random.below(10) {
                    0..3 => {
                        let code = self.unused_code(tenant, Surface::Channel);
                        texts.extend([format!("link {code}"), "status".into()]);
                        used.push((tenant.number, code));
                        linked.push((tenant.number, channel.clone()));
                    }
                    3 => {
                        let code = self.unused_code(tenant, Surface::Channel);
                        let link = format!("link {code}");
                        texts.extend([link.clone(), link.clone(), "unlink".into(), link]);
                    }
                    4 => texts.push(format!("link {}", self.invalid_code(tenant))),
                    5 => {
                        let code = self.unused_code(tenant, Surface::Dm);
                        texts.extend([format!("link {code}"), "link".into()]);
                    }
                    6 => {
                        let theirs = self.used.iter().find(|(owner, _)| *owner == tenant.number);
                        let code = theirs.map(|(_, code)| code.clone());
                        let code = code.unwrap_or_else(|| "nonsense".into());
                        texts.extend([format!("link {code}"), "status".into()]);
                    }
                    7 => texts.extend(["new", "status", "clear"].map(str::to_owned)),
                    8 if tenant.preview => {
                        texts.extend(
                            ["agents", "try helper", "status", "try nobody"].map(str::to_owned),
                        );
                    }
                    8 => texts.extend(["agents", "unlink"].map(str::to_owned)),
                    _ => {
                        let code = self.unused_code(tenant, Surface::Channel);
                        exchanges.push(self.codes_in_thread(
                            tenant,
                            &channel,
                            [&user, &other],
                            &code,
                        ));
                        continue;
                    }
                }
                let mut exchange = Vec::new();
                for text in texts {
                    let webhook = self.writer.command(tenant, &channel, &user, "/lobu", &text)?;
                    exchange.push(self.sent(tenant, webhook));
                }
                exchanges.push(exchange);
            }
        }
        self.linked.extend(linked);
        self.used.extend(used);
        Ok(exchanges)
    }

    /// Returns a thread in which two people use the same code as text. The second use is too late.
    /// Then the thread continues with the agent.
    fn codes_in_thread(
        &mut self,
        tenant: &Tenant,
        channel: &str,
        users: [&str; 2],
        code: &str,
    ) -> Exchange {
        let (root, mut exchange) = (self.writer.ts(), Vec::new());
        let link = format!("/lobu link {code}");
        let texts = [(users[0], &*link), (users[1], &*link), (users[1], "so, who answers here?")];
        for (n, (user, text)) in texts.into_iter().enumerate() {
            let (ts, thread) = match n {
                0 => (root.clone(), None),
                _ => (self.writer.ts(), Some(root.as_str())),
            };
            let webhook =
                self.writer.message(tenant, "message", (channel, thread), user, text, &ts);
            exchange.push(self.sent(tenant, webhook));
        }
        exchange
    }

    /// Returns an invalid code: unknown, of another connection, or expired.
    fn invalid_code(&mut self, tenant: &Tenant) -> String {
        let other = self.tenants[(tenant.number + 1) % self.tenants.len()].clone();
        match self.writer.random.below(3) {
            0 => tenants::code(&mut self.writer.random),
            1 if !other.preview && !tenant.preview => self.unused_code(&other, Surface::Channel),
            _ => {
                let code = tenant.code(&mut self.writer.random, &[Surface::Channel]);
                let shown = code.code.clone();
                self.codes.push(Code { expired: true, ..code });
                shown
            }
        }
    }

    /// Returns events that change the ids of bound channels.
    fn channel_id_changes(&mut self) -> anyhow::Result<Vec<Exchange>> {
        self.taken.clear();
        let mut exchanges = Vec::new();
        for (number, channel) in self.linked.clone() {
            let tenant = self.tenants[number].clone();
            if self.reserve(tenant.app.team.clone()) && exchanges.len() < 6 {
                let ts = self.writer.ts();
                let webhook = self.writer.event(
                    &tenant,
                    json!({
                        "type": "channel_id_changed", "old_channel_id": channel,
                        "new_channel_id": format!("CMOVED{:03}", tenant.number), "event_ts": ts,
                    }),
                );
                exchanges.push(vec![self.sent(&tenant, webhook)]);
            }
        }
        Ok(exchanges)
    }

    /// Returns the last conversations: some tenants remove the app or revoke a person's token, the
    /// others continue.
    fn removals(&mut self) -> anyhow::Result<Vec<Exchange>> {
        let leaves = |tenant: &Tenant| REMOVALS.iter().any(|(number, _)| *number == tenant.number);
        let mut exchanges = self.exchanges(|tenant| !leaves(tenant))?;
        let persons = [(13, "tokens_revoked"), (33, "tokens_revoked")];
        for (number, word) in REMOVALS.into_iter().chain(persons) {
            let tenant = self.tenants[number].clone();
            let mut inner = self.writer.fixture(word, "/event")?;
            if word == "tokens_revoked" {
                let bots = if leaves(&tenant) { vec![&tenant.app.bot_user] } else { Vec::new() };
                inner["tokens"] = json!({ "oauth": [tenant.user(0)], "bot": bots });
            }
            let mut webhook = self.writer.event(&tenant, inner);
            webhook.what = word.into();
            // Not resent: ingest would reject or accept the copy, depending on the speed of the
            // directory.
            let sent = Sent { tenant: number, webhook, again: false, stored: true };
            exchanges.push(vec![sent]);
        }
        Ok(exchanges)
    }
}
