//! Parser of the file of `tidegate apply`, for command line and control API. Returns the
//! declarations, or all problems with their lines and remedies. [`schema`] defines the format.

mod apps;
mod schema;

use super::agents::{
    KEEP_BOUNDS, MAX_CONCURRENT_BOUNDS, MAX_PER_USER_BOUNDS, TIMEOUT_BOUNDS, check_name, check_url,
};
use crate::{
    domain::{AgentId, AgentPolicies, EnterpriseId, NotificationEvent, OrgId, TeamId, UserId},
    secrets::Secret,
    store::{
        AgentHeaders, ConflictError, Declarations, Declared, DeclaredConnection, DeclaredMember,
        NewAgent, NotificationEndpoint,
    },
};
use schema::File;
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Range, RangeInclusive},
    time::Duration,
};
use toml::Spanned;

/// Problem of the file.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileProblem {
    /// Line, from 1.
    pub line: usize,
    /// Cause and remedy.
    pub text: String,
}

/// Declarations of a file, and their lines.
pub struct DeclarationFile {
    /// Declarations.
    pub declared: Declarations,
    app_lines: Vec<usize>,
    connection_lines: Vec<usize>,
}

impl DeclarationFile {
    /// Returns conflicts with existing rows as problems with their lines.
    pub fn locate(&self, conflicts: Vec<ConflictError>) -> Vec<FileProblem> {
        let line = |at: Declared| match at {
            Declared::App(n) => self.app_lines.get(n).copied(),
            Declared::Connection(n) => self.connection_lines.get(n).copied(),
            Declared::Nothing => None,
        };
        conflicts
            .into_iter()
            .map(|conflict| FileProblem {
                line: line(conflict.at).unwrap_or(1),
                text: conflict.why,
            })
            .collect()
    }
}

/// Returns the secret that a reference names, `env:<name>` or `file:<path>`, or cause and remedy.
pub type SecretSource<'a> = &'a mut (dyn FnMut(&str) -> Result<String, String> + Send);

/// Parses a file. `source` resolves its references to secrets.
pub fn read_declarations(
    text: &str,
    source: SecretSource<'_>,
) -> Result<DeclarationFile, Vec<FileProblem>> {
    let file: File = toml::from_str(text).map_err(|error| {
        let line = line_of(text, &error.span().unwrap_or(0..0));
        vec![FileProblem { line, text: error.message().replace('\n', " ") }]
    })?;
    let mut reader = Reader { text, source, problems: Vec::new() };
    let parsed = reader.declared(file);
    reader.problems.sort();
    if reader.problems.is_empty() { Ok(parsed) } else { Err(reader.problems) }
}

struct Reader<'a> {
    text: &'a str,
    source: SecretSource<'a>,
    problems: Vec<FileProblem>,
}

impl Reader<'_> {
    fn declared(&mut self, file: File) -> DeclarationFile {
        let mut declared = Declarations::default();
        let mut connection_lines = Vec::new();
        let mut lines = BTreeMap::new();
        let (mut users, mut lists) = (BTreeMap::new(), BTreeMap::new());
        for organization in file.organization {
            let item = format!("organization {}", organization.id.get_ref());
            self.require_unique(&mut lines, item, &organization.id.span());
            self.require(check_name(&organization.name), &organization.id.span());
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
            self.require(check_name(&agent.name), &agent.id.span());
            self.require(check_url(agent.url.get_ref()), &agent.url.span());
            let timeout = self.time(agent.timeout, TIMEOUT_BOUNDS, NewAgent::TIMEOUT);
            let retry_for =
                agent.retry_for.map(|time| self.time(Some(time), KEEP_BOUNDS, NewAgent::KEEP_FOR));
            let keep_for = self.time(agent.keep_for, KEEP_BOUNDS, NewAgent::KEEP_FOR);
            let max = (agent.max_concurrent, MAX_CONCURRENT_BOUNDS);
            let max_concurrent = self.limit("max_concurrent", max, NewAgent::MAX_CONCURRENT);
            let max = (agent.max_per_user, MAX_PER_USER_BOUNDS);
            let max_per_user = self.limit("max_per_user", max, NewAgent::MAX_PER_USER);
            let policies = AgentPolicies { edits: agent.edits, overlap: agent.overlap };
            let headers = self.headers(agent.headers, &agent.id.span());
            let Some(secret) = self.webhook_secret(&agent.secret) else { continue };
            declared.agents.push(NewAgent {
                org: agent.organization.into_inner(),
                id: agent.id.into_inner(),
                name: agent.name,
                mode: agent.mode,
                url: agent.url.into_inner(),
                secret,
                timeout,
                max_concurrent,
                max_per_user,
                retry_for,
                keep_for,
                signs_as_slack: agent.signs_as_slack,
                headers,
                policies,
            });
        }
        let (apps, app_lines) = self.apps(file.app, &organizations, &mut lines);
        declared.apps = apps;
        for connection in file.connection {
            let span = connection.app.span();
            let installation = (connection.enterprise.as_ref(), connection.team.as_ref());
            if installation == (None, None) && !connection.preview_mode {
                self.problem(
                    &span,
                    "no team or enterprise; add one, or preview_mode = true".into(),
                );
            }
            // A workspace is identified by its own id, with or without the id of its organization.
            let of_organization = || installation.0.map(EnterpriseId::as_str);
            let place = installation.1.map(TeamId::as_str).or_else(of_organization);
            let item =
                format!("connection {}/{}", connection.app.get_ref(), place.unwrap_or("(preview)"));
            self.require_unique(&mut lines, item, &span);
            if let Some(id) = connection.id {
                self.require_unique(&mut lines, format!("connection {id}"), &span);
            }
            let is_of_app = apps::is_declared(&declared.apps, connection.app.get_ref());
            if connection.signing_secret.is_none() && !is_of_app {
                let why = "no signing_secret; add one, or declare the app as [[app]]";
                self.problem(&span, why.into());
            }
            let signing_secret = connection.signing_secret.as_ref().map(|s| self.secret(s));
            let bot_token = connection.bot_token.as_ref().map(|token| self.secret(token));
            if let (Some(Some(token)), Some(reference)) = (&bot_token, &connection.bot_token)
                && !["xoxb-", "xoxe.xoxb-"].iter().any(|start| token.expose().starts_with(start))
            {
                let why = "the bot token does not begin with xoxb-; \
                           take the Bot User OAuth Token of OAuth & Permissions";
                self.problem(&reference.span(), why.into());
            }
            if !connection.app.get_ref().as_str().starts_with('A') {
                self.problem(&span, "malformed app; write its id, as in A0123456".into());
            }
            if connection.bot_user.as_ref().is_some_and(|id| !id.as_str().starts_with(['U', 'W'])) {
                self.problem(&span, "malformed bot_user; write its id, as in U0123456".into());
            }
            if [&signing_secret, &bot_token].iter().any(|secret| matches!(secret, Some(None))) {
                continue;
            }
            connection_lines.push(line_of(self.text, &span));
            declared.connections.push(DeclaredConnection {
                id: connection.id,
                org: connection.organization,
                agent: connection.agent,
                app: connection.app.into_inner(),
                enterprise: connection.enterprise,
                team: connection.team,
                preview_mode: connection.preview_mode,
                signing_secret: signing_secret.flatten(),
                bot_token: bot_token.flatten(),
                bot_user: connection.bot_user,
                settings: connection.settings.into(),
            });
        }
        declared.notifications = file.notifications.and_then(|found| self.notifications(found));
        DeclarationFile { declared, app_lines, connection_lines }
    }

    /// Returns the headers of calls, whose values are references.
    fn headers(
        &mut self,
        declared: BTreeMap<String, Spanned<String>>,
        span: &Range<usize>,
    ) -> AgentHeaders {
        let read = |(name, value)| Some((name, self.secret(&value)?));
        let headers: Vec<_> = declared.into_iter().filter_map(read).collect();
        AgentHeaders::new(headers).unwrap_or_else(|error| {
            self.problem(span, error.to_string());
            AgentHeaders::default()
        })
    }

    fn notifications(&mut self, declared: schema::Notifications) -> Option<NotificationEndpoint> {
        self.require(check_url(declared.url.get_ref()), &declared.url.span());
        let secret = self.webhook_secret(&declared.secret)?;
        let events = declared.events.unwrap_or_else(|| NotificationEvent::ALL.to_vec());
        Some(NotificationEndpoint::new(declared.url.into_inner(), secret, &events))
    }

    /// Returns the secret of a reference. Reports one that can't sign requests.
    fn webhook_secret(&mut self, reference: &Spanned<String>) -> Option<Secret> {
        let secret = self.secret(reference)?;
        if secret.webhook_key().is_none() {
            let why = "malformed secret; write whsec_ and base64 of 24 to 64 bytes, \
                       or a secret without whsec_";
            self.problem(&reference.span(), why.into());
        }
        Some(secret)
    }

    fn problem(&mut self, span: &Range<usize>, text: String) {
        self.problems.push(FileProblem { line: line_of(self.text, span), text });
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
            self.problems.push(FileProblem { line, text });
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

    /// Reports a rule that does not hold.
    fn require(&mut self, rule: Result<(), &'static str>, span: &Range<usize>) {
        if let Err(why) = rule {
            self.problem(span, why.into());
        }
    }

    /// Returns a number within bounds, or the default if there is none.
    fn limit<N: Copy + PartialOrd + std::fmt::Display>(
        &mut self,
        name: &str,
        (max, bounds): (Option<Spanned<N>>, RangeInclusive<N>),
        default: N,
    ) -> N {
        let Some(max) = max else { return default };
        if !bounds.contains(max.get_ref()) {
            let (least, most) = bounds.into_inner();
            let why = format!("{name} is out of bounds; write {least} to {most}");
            self.problem(&max.span(), why);
        }
        max.into_inner()
    }

    /// Parses a duration within bounds. Returns the default if there is none.
    fn time(
        &mut self,
        text: Option<Spanned<String>>,
        bounds: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        let Some(text) = text else { return default };
        let time = humantime::parse_duration(text.get_ref()).ok();
        time.filter(|time| bounds.contains(time)).unwrap_or_else(|| {
            let (least, most) = bounds.into_inner();
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
            Some(("env" | "file", _)) => (self.source)(reference.get_ref()),
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
