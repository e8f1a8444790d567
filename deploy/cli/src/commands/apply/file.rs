//! Reads the file of `tidegate apply`. Returns its declarations, or all of its problems, each with
//! its line and a remedy. The format is documented in [`super::schema`].

use super::schema::File;
use shared::{
    secrets::Secret,
    store::{Clash, Declared, DeclaredConnection, DeclaredMember, NewAgent},
    types::{AgentId, EnterpriseId, OrgId, TeamId, UserId},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    ops::{Range, RangeInclusive},
    path::Path,
    time::Duration,
};
use toml::Spanned;

/// Bounds of an agent's `timeout`.
const TIMEOUT_BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// Bounds of an agent's `retry_for` and `keep_for`. The retention of the stream does not limit
/// them: deliveries contain their bytes.
const KEEP_BOUNDS: (Duration, Duration) =
    (Duration::from_secs(1), Duration::from_secs(14 * 24 * 3600));
/// Bounds of an agent's `max_concurrent`.
const MAX_CONCURRENT_BOUNDS: RangeInclusive<u16> = 1..=1000;

/// Problem of the file.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    line: usize,
    text: String,
}

/// Declarations of a file, and their lines.
pub struct ParsedFile {
    pub declared: Declared,
    connection_lines: Vec<usize>,
}

impl ParsedFile {
    /// Returns conflicts with existing rows as problems with their lines.
    pub fn locate(&self, clashes: Vec<Clash>) -> Vec<Problem> {
        let line = |n: usize| self.connection_lines.get(n).copied().unwrap_or(1);
        clashes
            .into_iter()
            .map(|clash| Problem { line: line(clash.connection), text: clash.why })
            .collect()
    }
}

/// Returns a line per problem.
pub fn render(problems: &[Problem], file: &str) -> String {
    let lines = problems.iter().map(|p| format!("{file}:{}: {}", p.line, p.text));
    lines.chain(["nothing applied".to_owned()]).collect::<Vec<_>>().join("\n")
}

/// Reads a file. Relative paths of secrets are relative to `folder`.
pub fn read(text: &str, folder: &Path) -> Result<ParsedFile, Vec<Problem>> {
    let file: File = toml::from_str(text).map_err(|error| {
        let line = line_of(text, &error.span().unwrap_or(0..0));
        vec![Problem { line, text: error.message().replace('\n', " ") }]
    })?;
    let mut reader = Reader { text, folder, problems: Vec::new() };
    let parsed = reader.declared(file);
    reader.problems.sort();
    if reader.problems.is_empty() { Ok(parsed) } else { Err(reader.problems) }
}

struct Reader<'a> {
    text: &'a str,
    folder: &'a Path,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn declared(&mut self, file: File) -> ParsedFile {
        let mut declared = Declared::default();
        let mut connection_lines = Vec::new();
        let mut lines = BTreeMap::new();
        let (mut users, mut lists) = (BTreeMap::new(), BTreeMap::new());
        for organization in file.organization {
            let item = format!("organization {}", organization.id.get_ref());
            self.require_unique(&mut lines, item, &organization.id.span());
            declared.organizations.push((organization.id.into_inner(), organization.name));
        }
        let organizations: BTreeSet<OrgId> =
            declared.organizations.iter().map(|(id, _)| id.clone()).collect();
        for member in file.member {
            self.require_organization(&organizations, &member.organization);
            let item =
                format!("member {}/{}", member.organization.get_ref(), member.user.get_ref());
            self.require_unique(&mut lines, item, &member.user.span());
            let user = member.user.get_ref();
            let identities: Vec<_> =
                member.slack.iter().filter_map(|id| self.identity(&mut users, user, id)).collect();
            let all: BTreeSet<String> =
                member.slack.iter().map(|id| id.get_ref().clone()).collect();
            if lists.entry(user.clone()).or_insert_with(|| all.clone()) != &all {
                let why = format!("user {user} is declared above with other ids; use the same ids");
                self.problem(&member.user.span(), why);
            }
            declared.members.push(DeclaredMember {
                org: member.organization.into_inner(),
                user: member.user.get_ref().to_string(),
                identities,
            });
        }
        for agent in file.agent {
            self.require_organization(&organizations, &agent.organization);
            let item = format!("agent {}/{}", agent.organization.get_ref(), agent.id.get_ref());
            self.require_unique(&mut lines, item, &agent.id.span());
            self.address(&agent.url);
            let timeout = self.time(agent.timeout, TIMEOUT_BOUNDS, NewAgent::TIMEOUT);
            let retry_for =
                agent.retry_for.map(|time| self.time(Some(time), KEEP_BOUNDS, NewAgent::KEEP_FOR));
            let keep_for = self.time(agent.keep_for, KEEP_BOUNDS, NewAgent::KEEP_FOR);
            let max_concurrent = agent.max_concurrent.map_or(NewAgent::MAX_CONCURRENT, |max| {
                if !MAX_CONCURRENT_BOUNDS.contains(max.get_ref()) {
                    let (least, most) =
                        (MAX_CONCURRENT_BOUNDS.start(), MAX_CONCURRENT_BOUNDS.end());
                    self.problem(
                        &max.span(),
                        format!("max_concurrent is out of bounds; write {least} to {most}"),
                    );
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
                    "no team or enterprise; add one, or preview_mode = true".into(),
                );
            }
            let part = |id: Option<&str>| id.unwrap_or("_").to_owned();
            let item = format!(
                "connection {}/{}/{}",
                connection.app.get_ref(),
                part(installation.0.map(EnterpriseId::as_str)),
                part(installation.1.map(TeamId::as_str)),
            );
            self.require_unique(&mut lines, item, &span);
            if let Some(id) = connection.id {
                self.require_unique(&mut lines, format!("connection {id}"), &span);
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
        ParsedFile { declared, connection_lines }
    }

    fn problem(&mut self, span: &Range<usize>, text: String) {
        self.problems.push(Problem { line: line_of(self.text, span), text });
    }

    fn require_unique(
        &mut self,
        lines: &mut BTreeMap<String, usize>,
        item: String,
        span: &Range<usize>,
    ) {
        let line = line_of(self.text, span);
        if let Some(first) = lines.get(&item) {
            let text = format!("{item} is declared in line {first} already; remove one of them");
            self.problems.push(Problem { line, text });
        }
        lines.entry(item).or_insert(line);
    }

    fn require_organization(&mut self, organizations: &BTreeSet<OrgId>, org: &Spanned<OrgId>) {
        if !organizations.contains(org.get_ref()) {
            let text = format!(
                "organization {} is not declared; add [[organization]] with this id",
                org.get_ref()
            );
            self.problem(&org.span(), text);
        }
    }

    /// Parses a Slack user, who is the same user in all organizations.
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
            let why = format!("{} is user {other} already; use one name", text.get_ref());
            self.problem(&text.span(), why);
        }
        known.entry(text.get_ref().clone()).or_insert_with(|| user.clone());
        if parsed.is_none() {
            self.problem(
                &text.span(),
                "malformed Slack user; write <team>/<user>, as in T0123456/U0654321".into(),
            );
        }
        parsed
    }

    fn address(&mut self, url: &Spanned<String>) {
        let address = url.get_ref();
        let rest = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://"));
        let host = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
        if host.is_none_or(|host| host.is_empty() || host.contains(char::is_whitespace)) {
            self.problem(&url.span(), "malformed url; write https://host/path".into());
        }
    }

    /// Parses a duration within bounds. Returns the default if there is none.
    fn time(
        &mut self,
        text: Option<Spanned<String>>,
        (least, most): (Duration, Duration),
        default: Duration,
    ) -> Duration {
        let Some(text) = text else { return default };
        let time = humantime::parse_duration(text.get_ref()).ok();
        time.filter(|time| (least..=most).contains(time)).unwrap_or_else(|| {
            let [least, most] = [least, most].map(humantime::format_duration);
            self.problem(
                &text.span(),
                format!("malformed duration; write one from {least} to {most}, as in \"60s\""),
            );
            default
        })
    }

    /// Returns the secret that a reference names. Rejects a secret in the file without printing it.
    fn secret(&mut self, reference: &Spanned<String>) -> Option<Secret> {
        let span = reference.span();
        let found = match reference.get_ref().split_once(':') {
            Some(("env", name)) => env::var(name).map_err(|_| {
                format!("environment variable {name} is not set; set it, or name another")
            }),
            Some(("file", path)) => fs::read_to_string(self.folder.join(path))
                .map(|text| text.trim_end().to_owned())
                .map_err(|error| {
                    format!("failed to read {path} ({error}); write the secret to this file")
                }),
            _ => Err("secret in the file; write env:<name> or file:<path> instead".to_owned()),
        };
        let secret = found.and_then(|text| {
            Secret::new(text).map_err(|_| "the secret is empty; set a value".to_owned())
        });
        secret.map_err(|text| self.problem(&span, text)).ok()
    }
}

fn line_of(text: &str, span: &Range<usize>) -> usize {
    1 + text.as_bytes()[..span.start.min(text.len())].iter().filter(|b| **b == b'\n').count()
}

#[cfg(test)]
mod tests;
