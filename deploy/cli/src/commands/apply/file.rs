//! The file of `tidegate apply`.
//!
//! In: TOML. Out: what it declares, or everything that is wrong with it, each with its line and what to do.
//!
//! ```toml
//! [[organization]]
//! id = "acme"
//! name = "Acme"
//!
//! [[agent]]
//! organization = "acme"
//! id = "helper"
//! name = "Helper"
//! mode = "reply"                          # or "forward"
//! url = "https://helper.acme.example/"
//! secret = "env:HELPER_SECRET"            # secrets are never in the file: env:<name> or file:<path>
//! timeout = "60s"                         # limit of one attempt: 1s to 10m
//! max_concurrent = 16                     # attempts at once, on all workers together: 1 to 1000
//! retry_for = "1h"                        # from the first attempt; left out: 1h for mode reply, 24h for forward
//! keep_for = "72h"                        # wait for the first attempt
//!
//! [[connection]]
//! organization = "acme"
//! agent = "helper"                        # whom unlinked conversations belong to; may be left out
//! app = "A0123456"
//! team = "T0123456"                       # or enterprise = "E…", or neither, with preview_mode
//! preview_mode = false
//! signing_secret = "file:acme.signing"    # a path begins where this file lies
//! bot_token = "env:ACME_BOT_TOKEN"        # without one it is pending
//! bot_user = "U0123456"
//! settings = { surfaces = ["dm", "channel"], welcome = true, answer_bots = false }
//!
//! [[member]]                              # who may link the organization's agents by name
//! organization = "acme"
//! user = "steve"
//! slack = ["T0123456/U0654321"]
//! ```

use serde::Deserialize;
use shared::{
    secrets::Secret,
    store::{Clash, Declared, DeclaredConnection, DeclaredMember, NewAgent},
    types::{
        AgentId, AgentMode, AppId, ConnectionId, EnterpriseId, OrgId, Settings, Surface, TeamId,
        UserId,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    ops::{Range, RangeInclusive},
    path::Path,
    time::Duration,
};
use toml::Spanned;

/// Limits of an agent's `timeout`.
const TIMEOUTS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// Limits of an agent's `retry_for` and `keep_for`. Its deliveries carry their bytes, so the age of the stream does not matter.
const KEPT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(14 * 24 * 3600));
/// Limits of an agent's `max_concurrent`.
const CONCURRENT: RangeInclusive<u16> = 1..=1000;

/// Something that is wrong with the file.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    line: usize,
    text: String,
}

/// What a file declares, and where.
pub struct Read {
    pub declared: Declared,
    connection_lines: Vec<usize>,
}

impl Read {
    /// Clashes with what is there, with the lines they are about.
    pub fn located(&self, clashes: Vec<Clash>) -> Vec<Problem> {
        let line = |n: usize| self.connection_lines.get(n).copied().unwrap_or(1);
        clashes
            .into_iter()
            .map(|clash| Problem { line: line(clash.connection), text: clash.why })
            .collect()
    }
}

/// All problems, a line each.
pub fn tell(problems: &[Problem], file: &str) -> String {
    let lines = problems.iter().map(|p| format!("{file}:{}: {}", p.line, p.text));
    lines.chain(["nothing was applied".to_owned()]).collect::<Vec<_>>().join("\n")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    organization: Vec<Organization>,
    #[serde(default)]
    member: Vec<Member>,
    #[serde(default)]
    agent: Vec<Agent>,
    #[serde(default)]
    connection: Vec<Connection>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Organization {
    id: Spanned<OrgId>,
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Member {
    organization: Spanned<OrgId>,
    user: Spanned<AgentId>,
    slack: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Agent {
    organization: Spanned<OrgId>,
    id: Spanned<AgentId>,
    #[serde(default)]
    name: String,
    #[serde(default)]
    mode: AgentMode,
    url: Spanned<String>,
    secret: Spanned<String>,
    timeout: Option<Spanned<String>>,
    max_concurrent: Option<Spanned<u16>>,
    retry_for: Option<Spanned<String>>,
    keep_for: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Connection {
    id: Option<ConnectionId>,
    organization: OrgId,
    agent: Option<AgentId>,
    app: Spanned<AppId>,
    enterprise: Option<EnterpriseId>,
    team: Option<TeamId>,
    #[serde(default)]
    preview_mode: bool,
    signing_secret: Spanned<String>,
    bot_token: Option<Spanned<String>>,
    bot_user: Option<UserId>,
    #[serde(default)]
    settings: SettingsTable,
}

/// [`Settings`], with unknown keys refused.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SettingsTable {
    surfaces: Option<Vec<Surface>>,
    welcome: Option<bool>,
    answer_bots: Option<bool>,
}

impl From<SettingsTable> for Settings {
    fn from(table: SettingsTable) -> Self {
        let usual = Settings::default();
        Settings {
            surfaces: table.surfaces.unwrap_or(usual.surfaces),
            welcome: table.welcome.unwrap_or(usual.welcome),
            answer_bots: table.answer_bots.unwrap_or(usual.answer_bots),
        }
    }
}

/// Reads a file. `beside` is where relative paths of secrets begin.
pub fn read(text: &str, beside: &Path) -> Result<Read, Vec<Problem>> {
    let file: File = toml::from_str(text).map_err(|error| {
        let line = line_of(text, &error.span().unwrap_or(0..0));
        vec![Problem { line, text: error.message().replace('\n', " ") }]
    })?;
    let mut reader = Reader { text, beside, problems: Vec::new() };
    let read = reader.declared(file);
    reader.problems.sort();
    if reader.problems.is_empty() { Ok(read) } else { Err(reader.problems) }
}

struct Reader<'a> {
    text: &'a str,
    beside: &'a Path,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn declared(&mut self, file: File) -> Read {
        let mut declared = Declared::default();
        let mut connection_lines = Vec::new();
        let mut twice = BTreeMap::new();
        let (mut people, mut lists) = (BTreeMap::new(), BTreeMap::new());
        for organization in file.organization {
            let what = format!("organization {}", organization.id.get_ref());
            self.once(&mut twice, what, &organization.id.span());
            declared.organizations.push((organization.id.into_inner(), organization.name));
        }
        let organizations: BTreeSet<OrgId> =
            declared.organizations.iter().map(|(id, _)| id.clone()).collect();
        for member in file.member {
            self.of(&organizations, &member.organization);
            let what =
                format!("member {}/{}", member.organization.get_ref(), member.user.get_ref());
            self.once(&mut twice, what, &member.user.span());
            let user = member.user.get_ref();
            let identities: Vec<_> =
                member.slack.iter().filter_map(|id| self.identity(&mut people, user, id)).collect();
            let all: BTreeSet<String> =
                member.slack.iter().map(|id| id.get_ref().clone()).collect();
            if lists.entry(user.clone()).or_insert_with(|| all.clone()) != &all {
                let why =
                    format!("user {user} is declared above with other ids: say the same each time");
                self.problem(&member.user.span(), why);
            }
            declared.members.push(DeclaredMember {
                org: member.organization.into_inner(),
                user: member.user.get_ref().to_string(),
                identities,
            });
        }
        for agent in file.agent {
            self.of(&organizations, &agent.organization);
            let what = format!("agent {}/{}", agent.organization.get_ref(), agent.id.get_ref());
            self.once(&mut twice, what, &agent.id.span());
            self.address(&agent.url);
            let timeout = self.time(agent.timeout, TIMEOUTS, NewAgent::TIMEOUT);
            let retry_for =
                agent.retry_for.map(|time| self.time(Some(time), KEPT, NewAgent::KEEP_FOR));
            let keep_for = self.time(agent.keep_for, KEPT, NewAgent::KEEP_FOR);
            let max_concurrent = agent.max_concurrent.map_or(NewAgent::MAX_CONCURRENT, |max| {
                if !CONCURRENT.contains(max.get_ref()) {
                    let (least, most) = (CONCURRENT.start(), CONCURRENT.end());
                    self.problem(&max.span(), format!("max_concurrent is {least} to {most}"));
                }
                max.into_inner()
            });
            let Some(secret) = self.secret(&agent.secret) else { continue };
            declared.agents.push(NewAgent {
                org: agent.organization.into_inner(),
                id: agent.id.into_inner(),
                name: agent.name,
                mode: agent.mode,
                url: agent.url.into_inner(),
                secret,
                timeout,
                max_concurrent,
                retry_for,
                keep_for,
            });
        }
        for connection in file.connection {
            let span = connection.app.span();
            let installation = (connection.enterprise.as_ref(), connection.team.as_ref());
            if installation == (None, None) && !connection.preview_mode {
                self.problem(
                    &span,
                    "a connection is of a team or an enterprise: say which, or preview_mode = true"
                        .into(),
                );
            }
            let part = |id: Option<&str>| id.unwrap_or("_").to_owned();
            let what = format!(
                "connection {}/{}/{}",
                connection.app.get_ref(),
                part(installation.0.map(EnterpriseId::as_str)),
                part(installation.1.map(TeamId::as_str)),
            );
            self.once(&mut twice, what, &span);
            if let Some(id) = connection.id {
                self.once(&mut twice, format!("connection {id}"), &span);
            }
            let signing_secret = self.secret(&connection.signing_secret);
            let bot_token = connection.bot_token.as_ref().map(|token| self.secret(token));
            let (Some(signing_secret), None | Some(Some(_))) = (signing_secret, &bot_token) else {
                continue;
            };
            connection_lines.push(line_of(self.text, &span));
            declared.connections.push(DeclaredConnection {
                id: connection.id,
                org: connection.organization,
                agent: connection.agent,
                app: connection.app.into_inner(),
                enterprise: connection.enterprise,
                team: connection.team,
                preview_mode: connection.preview_mode,
                signing_secret,
                bot_token: bot_token.flatten(),
                bot_user: connection.bot_user,
                settings: connection.settings.into(),
            });
        }
        Read { declared, connection_lines }
    }

    fn problem(&mut self, span: &Range<usize>, text: String) {
        self.problems.push(Problem { line: line_of(self.text, span), text });
    }

    fn once(&mut self, there: &mut BTreeMap<String, usize>, what: String, span: &Range<usize>) {
        let line = line_of(self.text, span);
        if let Some(first) = there.get(&what) {
            let text = format!("{what} is declared in line {first} already: leave one of them out");
            self.problems.push(Problem { line, text });
        }
        there.entry(what).or_insert(line);
    }

    fn of(&mut self, organizations: &BTreeSet<OrgId>, org: &Spanned<OrgId>) {
        if !organizations.contains(org.get_ref()) {
            let text = format!(
                "organization {} is not declared: add [[organization]] with this id",
                org.get_ref()
            );
            self.problem(&org.span(), text);
        }
    }

    /// One person in Slack is one of our users, whatever they are a member of.
    fn identity(
        &mut self,
        known: &mut BTreeMap<String, AgentId>,
        user: &AgentId,
        text: &Spanned<String>,
    ) -> Option<(TeamId, UserId)> {
        let parsed = text.get_ref().split_once('/').and_then(|(team, user)| {
            Some((team.parse::<TeamId>().ok()?, user.parse::<UserId>().ok()?))
        });
        let other = known.get(text.get_ref()).filter(|other| *other != user);
        if let Some(other) = other {
            let why = format!("{} is user {other} already: give them one name", text.get_ref());
            self.problem(&text.span(), why);
        }
        known.entry(text.get_ref().clone()).or_insert_with(|| user.clone());
        if parsed.is_none() {
            self.problem(&text.span(), "say <team>/<user>, as in T0123456/U0654321".into());
        }
        parsed
    }

    fn address(&mut self, url: &Spanned<String>) {
        let address = url.get_ref();
        let rest = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://"));
        let host = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
        if host.is_none_or(|host| host.is_empty() || host.contains(char::is_whitespace)) {
            self.problem(&url.span(), "the url is no address: say https://host/path".into());
        }
    }

    /// A time within limits, or the usual one.
    fn time(
        &mut self,
        text: Option<Spanned<String>>,
        (least, most): (Duration, Duration),
        usual: Duration,
    ) -> Duration {
        let Some(text) = text else { return usual };
        let time = humantime::parse_duration(text.get_ref()).ok();
        time.filter(|time| (least..=most).contains(time)).unwrap_or_else(|| {
            let [least, most] = [least, most].map(humantime::format_duration);
            self.problem(
                &text.span(),
                format!("this is a time of {least} to {most}, as in \"60s\""),
            );
            usual
        })
    }

    /// What a reference stands for. A secret itself is refused, and never printed.
    fn secret(&mut self, reference: &Spanned<String>) -> Option<Secret> {
        let span = reference.span();
        let found = match reference.get_ref().split_once(':') {
            Some(("env", name)) => env::var(name).map_err(|_| {
                format!("the environment variable {name} is not set: set it, or name another")
            }),
            Some(("file", path)) => fs::read_to_string(self.beside.join(path))
                .map(|text| text.trim_end().to_owned())
                .map_err(|error| format!("{path} can't be read ({error}): put the secret there")),
            _ => Err("a secret is never in the file: say env:<name> or file:<path>".to_owned()),
        };
        let secret = found.and_then(|text| {
            Secret::new(text).map_err(|_| "the secret that this names is empty".to_owned())
        });
        secret.map_err(|text| self.problem(&span, text)).ok()
    }
}

fn line_of(text: &str, span: &Range<usize>) -> usize {
    1 + text.as_bytes()[..span.start.min(text.len())].iter().filter(|b| **b == b'\n').count()
}

#[cfg(test)]
mod tests;
