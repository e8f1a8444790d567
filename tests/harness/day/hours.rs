//! What people do, hour by hour.
//!
//! In: a seed. Out: the stretches of a [`Day`]. In a stretch no two conversations are one, and none changes what another
//! hangs on: who is taken is taken until the next.

use super::{
    Day, Sent, Talk,
    pen::Pen,
    tenants::{self, CHANNELS, Code, PEOPLE, Tenant},
};
use crate::{fixtures, slack::webhook::Webhook, strike::Random};
use serde_json::{Value, json};
use shared::types::Surface;
use std::collections::HashSet;

/// Hours in which people talk and then type commands.
const HOURS: u64 = 5;
/// Conversations of a tenant in an hour, at least, if it is not a busy one.
const TALKS: usize = 1;
/// What people say.
const WORDS: [&str; 12] = [
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
/// How the sample agent is told to behave, now and then.
const MANNERS: [&str; 5] = ["blocks", "whisper", "silent", "slow:40", "fail:1"];
/// Leave late in the day, and how: a word of Slack's for it, and whether the bot's own token is meant.
const LEAVERS: [(usize, &str); 7] = [
    (9, "app_uninstalled"),
    (19, "app_uninstalled"),
    (29, "app_uninstalled"),
    (39, "app_uninstalled"),
    (12, "tokens_revoked"),
    (22, "tokens_revoked"),
    (32, "tokens_revoked"),
];

struct Script {
    tenants: Vec<Tenant>,
    pen: Pen,
    /// Codes of each tenant that nobody used yet.
    codes: Vec<Code>,
    /// Codes that were used up in an hour before, and whose.
    used: Vec<(usize, String)>,
    /// Channels that are linked, and whose.
    linked: Vec<(usize, String)>,
    /// What is taken in this stretch.
    taken: HashSet<String>,
}

pub(super) fn day(seed: u64) -> anyhow::Result<Day> {
    let mut random = Random::new(seed);
    let tenants = tenants::all(&mut random)?;
    let (pen, codes, taken) = (Pen::new(random)?, Vec::new(), HashSet::new());
    let mut script = Script { tenants, pen, codes, used: Vec::new(), linked: Vec::new(), taken };
    let mut stretches = Vec::new();
    for hour in 0..HOURS {
        script.pen.hour(hour);
        stretches.push(script.talking(|_| true)?);
        stretches.push(script.commands()?);
    }
    script.pen.hour(HOURS);
    stretches.push(script.renamed()?);
    stretches.push(script.leaving()?);
    Ok(Day { tenants: script.tenants, codes: script.codes, stretches })
}

impl Script {
    fn sent(&mut self, tenant: &Tenant, webhook: Webhook) -> Sent {
        // Slack sends events again, and nothing else.
        let again = webhook.content_type == "application/json" && self.chance(50);
        Sent { tenant: tenant.number, webhook, again, stored: true }
    }

    /// Once in so many.
    fn chance(&mut self, in_so_many: usize) -> bool {
        self.pen.random.below(in_so_many) == 0
    }

    /// Whether nobody has this yet in this stretch.
    fn take(&mut self, what: String) -> bool {
        self.taken.insert(what)
    }

    fn someone(&mut self, tenant: &Tenant) -> String {
        let n = self.pen.random.below(PEOPLE);
        tenant.user(n)
    }

    fn words(&mut self) -> String {
        let words = *self.pen.random.pick(&WORDS);
        match self.chance(12) {
            true => format!("{} {words}", self.pen.random.pick(&MANNERS)),
            false => words.to_owned(),
        }
    }

    /// An hour's talk, at these tenants.
    fn talking(&mut self, at: impl Fn(&Tenant) -> bool) -> anyhow::Result<Vec<Talk>> {
        self.taken.clear();
        let mut talks = Vec::new();
        for tenant in self.tenants.clone().iter().filter(|tenant| at(tenant)) {
            for _ in 0..tenant.busy * (TALKS + self.pen.random.below(2)) {
                let talk = match self.pen.random.below(100) {
                    0..40 => self.thread(tenant)?,
                    40..62 => self.direct(tenant)?,
                    62..72 => self.click(tenant)?,
                    72..78 => self.view(tenant)?,
                    78..80 => self.options(tenant)?,
                    80..86 => self.typed(tenant)?,
                    86..91 => self.joined(tenant)?,
                    91..95 => self.news(tenant)?,
                    95..98 => self.odd(tenant),
                    _ => self.handshake(tenant)?,
                };
                talks.push(talk);
            }
        }
        talks.retain(|talk| !talk.is_empty());
        Ok(talks)
    }

    /// A thread in a channel: mentions, edits, reactions and bots among what people say.
    fn thread(&mut self, tenant: &Tenant) -> anyhow::Result<Talk> {
        let channel = tenant.channel(self.pen.random.below(CHANNELS));
        let (root, mut talk, mut last) = (self.pen.ts(), Vec::new(), None);
        for n in 0..1 + self.pen.random.below(6) {
            let (user, ts) =
                (self.someone(tenant), if n == 0 { root.clone() } else { self.pen.ts() });
            let place = (channel.as_str(), (n > 0).then_some(root.as_str()));
            let mention = self.chance(4);
            let text = match mention {
                true => format!("{} {}", tenant.mention(), self.words()),
                false => self.words(),
            };
            // One mention is two events, in either order.
            let mut kinds = if mention { vec!["message", "app_mention"] } else { vec!["message"] };
            if self.chance(2) {
                kinds.reverse();
            }
            for kind in kinds {
                let webhook = self.pen.said(tenant, kind, place, &user, &text, &ts);
                talk.push(self.sent(tenant, webhook));
            }
            last = Some((user, text, ts));
        }
        if let Some((user, text, ts)) = last.filter(|_| self.chance(4)) {
            let mut inner = self.pen.fixture("message_changed", "/event")?;
            let edited = self.pen.ts();
            inner["channel"] = channel.as_str().into();
            inner["ts"] = edited.as_str().into();
            inner["message"] = json!({
                "type": "message", "user": user, "text": format!("{text} (edited)"), "ts": ts,
                "thread_ts": root, "edited": { "user": user, "ts": edited },
            });
            let webhook = self.pen.event(tenant, inner);
            talk.push(self.sent(tenant, webhook));
        }
        if self.chance(4) {
            let mut inner = self.pen.fixture("reaction_added", "/event")?;
            inner["user"] = self.someone(tenant).into();
            inner["item"]["channel"] = channel.as_str().into();
            inner["item"]["ts"] = root.as_str().into();
            inner["event_ts"] = self.pen.ts().into();
            let webhook = self.pen.event(tenant, inner);
            talk.push(self.sent(tenant, webhook));
        }
        if self.chance(6) {
            let (hops, ts) = (self.pen.random.below(5), self.pen.ts());
            let noted = json!({ "event_type": "tidegate", "event_payload": { "hops": hops } });
            let webhook = self.pen.event(
                tenant,
                json!({
                    "type": "message", "subtype": "bot_message", "bot_id": "B0OTHER", "text": "deployed",
                    "channel": channel, "channel_type": "channel", "ts": ts, "event_ts": ts,
                    "thread_ts": root, "metadata": noted,
                }),
            );
            talk.push(self.sent(tenant, webhook));
        }
        Ok(talk)
    }

    /// A direct message and what follows it; commands that are said as text among it.
    fn direct(&mut self, tenant: &Tenant) -> anyhow::Result<Talk> {
        let n = self.pen.random.below(PEOPLE);
        let (user, channel) = (tenant.user(n), tenant.direct(n));
        let mut talk = Vec::new();
        if !self.take(channel.clone()) {
            return Ok(talk);
        }
        if self.chance(4) {
            let name = *self.pen.random.pick(&["app_home_opened", "assistant_thread_started"]);
            let mut inner = self.pen.fixture(name, "/event")?;
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
            inner["event_ts"] = self.pen.ts().into();
            let webhook = self.pen.event(tenant, inner);
            talk.push(self.sent(tenant, webhook));
        }
        for _ in 0..1 + self.pen.random.below(5) {
            let text = match self.pen.random.below(24) {
                0 => "/lobu status".into(),
                1 => "lobu help".into(),
                2 => "/lobu new".into(),
                3 => "/lobu unlink".into(),
                4 => format!("/lobu link {}", self.minted(tenant, Surface::Dm)),
                5 => "loose and beside the thread".into(),
                _ => self.words(),
            };
            let ts = self.pen.ts();
            let webhook = self.pen.said(tenant, "message", (&channel, None), &user, &text, &ts);
            talk.push(self.sent(tenant, webhook));
        }
        Ok(talk)
    }

    fn click(&mut self, tenant: &Tenant) -> anyhow::Result<Talk> {
        let fixture = *self.pen.random.pick(&["block_actions", "message_action", "shortcut"]);
        let (user, channel) =
            (self.someone(tenant), tenant.channel(self.pen.random.below(CHANNELS)));
        let place = if fixture == "shortcut" { "nowhere" } else { &channel };
        if !self.take(format!("{user} in {place}")) {
            return Ok(Vec::new());
        }
        let webhook = self.pen.interaction(tenant, fixture, &user, &channel)?;
        Ok(vec![self.sent(tenant, webhook)])
    }

    fn view(&mut self, tenant: &Tenant) -> anyhow::Result<Talk> {
        let fixture = if self.chance(3) { "view_closed" } else { "view_submission" };
        let user = self.someone(tenant);
        let webhook = self.pen.interaction(tenant, fixture, &user, "")?;
        Ok(vec![self.sent(tenant, webhook)])
    }

    fn options(&mut self, tenant: &Tenant) -> anyhow::Result<Talk> {
        let user = self.someone(tenant);
        let webhook = self.pen.interaction(tenant, "block_suggestion", &user, "")?;
        Ok(vec![self.sent(tenant, webhook)])
    }

    /// Commands that change nothing.
    fn typed(&mut self, tenant: &Tenant) -> anyhow::Result<Talk> {
        let (user, channel) =
            (self.someone(tenant), tenant.channel(self.pen.random.below(CHANNELS)));
        if !self.take(format!("{user} in {channel}")) {
            return Ok(Vec::new());
        }
        let said = [("/lobu", "help"), ("/lobu", ""), ("/lobu", "what?"), ("/weather", "Basel")];
        let (command, text) = *self.pen.random.pick(&said);
        let webhook = self.pen.command(tenant, &channel, &user, command, text)?;
        Ok(vec![self.sent(tenant, webhook)])
    }

    /// Somebody joins the workspace; now and then Slack tells of it twice, under two ids.
    fn joined(&mut self, tenant: &Tenant) -> anyhow::Result<Talk> {
        let mut inner = self.pen.fixture("team_join", "/event")?;
        inner["user"]["id"] = format!("UNEW{:05}", self.pen.number()).into();
        inner["user"]["team_id"] = tenant.app.team.as_str().into();
        let mut talk = Vec::new();
        for _ in 0..1 + usize::from(self.chance(4)) {
            let webhook = self.pen.event(tenant, inner.clone());
            talk.push(self.sent(tenant, webhook));
        }
        Ok(talk)
    }

    /// What happens in a workspace and concerns no agent.
    fn news(&mut self, tenant: &Tenant) -> anyhow::Result<Talk> {
        if self.chance(2) {
            let mut inner = self.pen.fixture("channel_created", "/event")?;
            inner["channel"]["id"] = format!("CNEW{:05}", self.pen.number()).into();
            let webhook = self.pen.event(tenant, inner);
            return Ok(vec![self.sent(tenant, webhook)]);
        }
        if !self.take(format!("{} as a whole", tenant.app.team)) {
            return Ok(Vec::new());
        }
        let mut content = self.pen.fixture("app_rate_limited", "")?;
        content["team_id"] = tenant.app.team.as_str().into();
        content["api_app_id"] = tenant.app.app.as_str().into();
        content["minute_rate_limited"] = self.pen.minute().into();
        let webhook = fixtures::webhook("app_rate_limited", &content);
        Ok(vec![self.sent(tenant, webhook)])
    }

    /// What nobody understands: a person finds it among the dead.
    fn odd(&mut self, tenant: &Tenant) -> Talk {
        if !self.take(format!("{} as a whole", tenant.app.team)) {
            return Vec::new();
        }
        let number = self.pen.number();
        let content: Value = json!({
            "type": "of_tomorrow", "number": number, "team_id": tenant.app.team,
            "api_app_id": tenant.app.app,
        });
        let webhook = fixtures::webhook("of_tomorrow", &content);
        // A copy of it is known by its bytes and the second it was signed in: Slack never sends such again.
        vec![Sent { tenant: tenant.number, webhook, again: false, stored: true }]
    }

    /// An address is entered at Slack: answered at the door.
    fn handshake(&mut self, tenant: &Tenant) -> anyhow::Result<Talk> {
        let content = self.pen.fixture("url_verification", "")?;
        let webhook = fixtures::webhook("url_verification", &content);
        Ok(vec![Sent { tenant: tenant.number, webhook, again: false, stored: false }])
    }

    /// A code that nobody used yet, good here.
    fn minted(&mut self, tenant: &Tenant, surface: Surface) -> String {
        let code = tenant.code(&mut self.pen.random, &[surface]);
        let shown = code.code.clone();
        self.codes.push(code);
        shown
    }

    /// Commands that change who answers where: in each channel one person, who does one thing after the other.
    fn commands(&mut self) -> anyhow::Result<Vec<Talk>> {
        self.taken.clear();
        let (mut talks, mut linked, mut used) = (Vec::new(), Vec::new(), Vec::new());
        for tenant in &self.tenants.clone() {
            for n in 0..tenant.busy.min(CHANNELS) {
                let first = self.pen.random.below(PEOPLE);
                let channel = tenant.channel((first + n) % CHANNELS);
                let (user, other) = (tenant.user(n), tenant.user(PEOPLE - 1 - n));
                if !self.take(channel.clone()) {
                    continue;
                }
                let mut says: Vec<String> = Vec::new();
                match self.pen.random.below(10) {
                    0..3 => {
                        let code = self.minted(tenant, Surface::Channel);
                        says.extend([format!("link {code}"), "status".into()]);
                        used.push((tenant.number, code));
                        linked.push((tenant.number, channel.clone()));
                    }
                    3 => {
                        let code = self.minted(tenant, Surface::Channel);
                        let link = format!("link {code}");
                        says.extend([link.clone(), link.clone(), "unlink".into(), link]);
                    }
                    4 => says.push(format!("link {}", self.unknown(tenant))),
                    5 => {
                        let code = self.minted(tenant, Surface::Dm);
                        says.extend([format!("link {code}"), "link".into()]);
                    }
                    6 => {
                        let theirs = self.used.iter().find(|(owner, _)| *owner == tenant.number);
                        let code = theirs.map(|(_, code)| code.clone());
                        let code = code.unwrap_or_else(|| "nonsense".into());
                        says.extend([format!("link {code}"), "status".into()]);
                    }
                    7 => says.extend(["new", "status", "clear"].map(str::to_owned)),
                    8 if tenant.preview => {
                        says.extend(
                            ["agents", "try helper", "status", "try nobody"].map(str::to_owned),
                        );
                    }
                    8 => says.extend(["agents", "unlink"].map(str::to_owned)),
                    _ => {
                        let code = self.minted(tenant, Surface::Channel);
                        talks.push(self.in_thread(tenant, &channel, [&user, &other], &code));
                        continue;
                    }
                }
                let mut talk = Vec::new();
                for text in says {
                    let webhook = self.pen.command(tenant, &channel, &user, "/lobu", &text)?;
                    talk.push(self.sent(tenant, webhook));
                }
                talks.push(talk);
            }
        }
        self.linked.extend(linked);
        self.used.extend(used);
        Ok(talks)
    }

    /// Two people use a code in one thread, as text: the second is late. Then the thread goes on with the agent.
    fn in_thread(&mut self, tenant: &Tenant, channel: &str, users: [&str; 2], code: &str) -> Talk {
        let (root, mut talk) = (self.pen.ts(), Vec::new());
        let link = format!("/lobu link {code}");
        let says = [(users[0], &*link), (users[1], &*link), (users[1], "so, who answers here?")];
        for (n, (user, text)) in says.into_iter().enumerate() {
            let (ts, thread) = match n {
                0 => (root.clone(), None),
                _ => (self.pen.ts(), Some(root.as_str())),
            };
            let webhook = self.pen.said(tenant, "message", (channel, thread), user, text, &ts);
            talk.push(self.sent(tenant, webhook));
        }
        talk
    }

    /// A code that is none here: made up, another connection's, or too old.
    fn unknown(&mut self, tenant: &Tenant) -> String {
        let other = self.tenants[(tenant.number + 1) % self.tenants.len()].clone();
        match self.pen.random.below(3) {
            0 => tenants::code(&mut self.pen.random),
            1 if !other.preview && !tenant.preview => self.minted(&other, Surface::Channel),
            _ => {
                let code = tenant.code(&mut self.pen.random, &[Surface::Channel]);
                let shown = code.code.clone();
                self.codes.push(Code { expired: true, ..code });
                shown
            }
        }
    }

    /// Linked channels get new ids.
    fn renamed(&mut self) -> anyhow::Result<Vec<Talk>> {
        self.taken.clear();
        let mut talks = Vec::new();
        for (number, channel) in self.linked.clone() {
            let tenant = self.tenants[number].clone();
            if self.take(tenant.app.team.clone()) && talks.len() < 6 {
                let ts = self.pen.ts();
                let webhook = self.pen.event(
                    &tenant,
                    json!({
                        "type": "channel_id_changed", "old_channel_id": channel,
                        "new_channel_id": format!("CMOVED{:03}", tenant.number), "event_ts": ts,
                    }),
                );
                talks.push(vec![self.sent(&tenant, webhook)]);
            }
        }
        Ok(talks)
    }

    /// Some remove the app, or only a person's token; the others go on talking.
    fn leaving(&mut self) -> anyhow::Result<Vec<Talk>> {
        let leaves = |tenant: &Tenant| LEAVERS.iter().any(|(number, _)| *number == tenant.number);
        let mut talks = self.talking(|tenant| !leaves(tenant))?;
        let persons = [(13, "tokens_revoked"), (33, "tokens_revoked")];
        for (number, word) in LEAVERS.into_iter().chain(persons) {
            let tenant = self.tenants[number].clone();
            let mut inner = self.pen.fixture(word, "/event")?;
            if word == "tokens_revoked" {
                let bots = if leaves(&tenant) { vec![&tenant.app.bot_user] } else { Vec::new() };
                inner["tokens"] = json!({ "oauth": [tenant.user(0)], "bot": bots });
            }
            let mut webhook = self.pen.event(&tenant, inner);
            webhook.what = word.into();
            // Not sent again: the second would come to a connection that may be known to be gone.
            let sent = Sent { tenant: number, webhook, again: false, stored: true };
            talks.push(vec![sent]);
        }
        Ok(talks)
    }
}
