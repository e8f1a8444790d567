//! Effects of webhooks as text lines, to compare two environments or two builds.
//!
//! [`Effects`] map names to lines. They are read from an environment in which everything is
//! processed: for each webhook its outcome, its lane and its outbox messages; every binding, link
//! code, session, greeting, wrong code and connection; the requests to agents and the messages in
//! Slack, in the order of each conversation. They are stored in a file as JSON.
//!
//! Effects exclude what depends on chance, time and the machine: times, sequences, workers, numbers
//! of attempts, message ids in metadata, and calls that show nothing or are made only because
//! something was slow (thread status, reconciliation). Messages in a channel outside its threads
//! come from several conversations without a common order, and are sorted. Only `chat.postMessage`
//! carries an id that prevents repeated posts. Other calls are repeated when Slack's answer is
//! late: two equal calls in a row count once, and the rows of the outbox show the intended
//! messages.

use crate::{
    agent::AgentRequest,
    recording::{ANY_SLACK, Recorded, Recording, replace_origin, stable_key},
    slack::api::{Call, Outcome},
    test_env::TestEnv,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::Row;
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

/// Queries of Postgres. Each row is a name and a line; lines of one name are in order.
const ROWS: [&str; 8] = [
    "select 'webhook ' || coalesce(dedup_key, subject), format('dead: %s: %s', reason, last_error) from dead_letters order by id",
    "select 'webhook ' || dedup_key, format('to be said by %s: %s', method, state)
       from (select outbox_id as id, dedup_key, method, 'sent' as state from outbox_log
             union all select id, dedup_key, method, 'failed ' || error from outbox_failures
             union all select id, dedup_key, method, 'pending' from outbox) messages order by id",
    "select format('binding %s %s %s', connection_id, team_id, channel_id), format('%s/%s by %s', org_id, agent_id, bound_by)
       from channel_bindings order by 1",
    "select 'claim ' || substr(encode(code_hash, 'hex'), 1, 16),
            format('used by %s in %s of %s: %s', consumed_user, consumed_channel, consumed_connection, consumed_by)
       from link_codes where consumed_at is not null order by 1",
    "select 'connection ' || id, format('%s %s', status, status_reason) from connections order by 1",
    "select format('session %s %s %s', connection_id, team_id, channel_id), number::text from conversation_sessions order by 1",
    "select format('welcome %s %s %s', connection_id, team_id, user_id), 'greeted' from welcomed_users order by 1",
    "select 'wrong codes ' || who, misses::text from link_code_attempts order by 1",
];
/// Outcomes of the webhooks with dedup keys `$1`, as [`TestEnv::find_outcome`] returns them.
/// Excludes dead letters.
const OUTCOMES: &str = "
    select u.key, coalesce((select outcome from delivery_log where dedup_key = u.key order by at desc limit 1),
                           (array['delivery', 'command', 'installation_event', 'notice'])[p.outcome], 'ignored') as outcome
      from unnest($1::text[]) as u (key)
      left join processed_keys p on p.key = substr(sha256(convert_to(u.key, 'UTF8')), 1, 16)
     where not exists (select from dead_letters where dedup_key = u.key)";

/// Calls that show nothing, or are made only because something was slow.
const UNCOMPARED: [&str; 6] = [
    "assistant.threads.setStatus",
    "auth.test",
    "conversations.history",
    "conversations.replies",
    "oauth.v2.access",
    "users.info",
];

/// Effects of webhooks: lines under the name of their subject.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Effects(pub BTreeMap<String, Vec<String>>);

/// A difference between two effects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Name of the subject.
    pub what: String,
    /// Lines before; empty if the name is new.
    pub before: Vec<String>,
    /// Lines after.
    pub after: Vec<String>,
}

impl Effects {
    /// Reads the effects so far.
    ///
    /// # Errors
    /// Errors of NATS or Postgres.
    pub async fn of(env: &TestEnv) -> anyhow::Result<Self> {
        let mut effects = Self::default();
        let recording = Recording::of(env).await?;
        let recorded: HashMap<&str, &Recorded> =
            recording.messages.iter().map(|message| (message.key(), message)).collect();
        let keys: Vec<&str> = recorded.keys().copied().collect();
        for row in sqlx::query(OUTCOMES).bind(keys).fetch_all(&env.pool).await? {
            let (key, outcome): (String, String) = (row.try_get("key")?, row.try_get("outcome")?);
            let lane = recorded.get(&*key).map_or("", |message| message.lane());
            effects.add(stable_key(&format!("webhook {key}")), format!("{outcome}, lane {lane}"));
        }
        for sql in ROWS {
            for row in sqlx::query(sql).fetch_all(&env.pool).await? {
                let (name, line): (String, String) = (row.try_get(0)?, row.try_get(1)?);
                effects.add(stable_key(&name), line.trim().to_owned());
            }
        }
        for asked in env.agent.requests() {
            let key = webhook_key(&asked);
            let lane = recorded.get(key).map_or("of nobody", |message| message.lane());
            effects
                .add(format!("asked in lane {lane}"), request_line(&asked, key, &recording.slack));
        }
        for call in env.slack.calls() {
            if !UNCOMPARED.contains(&call.method.as_str()) {
                effects.add_call(&call);
            }
        }
        effects = effects.separate_own_messages();
        for (name, lines) in &mut effects.0 {
            let of_chance = name.ends_with(":*");
            if of_chance || name.contains(" beside threads") {
                lines.sort_unstable();
            }
        }
        Ok(effects)
    }

    fn add(&mut self, name: String, line: String) {
        self.0.entry(name).or_default().push(line);
    }

    fn add_call(&mut self, call: &Call) {
        let (name, line) = message_of(call);
        let lines = self.0.entry(name).or_default();
        let again = call.method != "chat.postMessage" && lines.last() == Some(&line);
        if !again {
            lines.push(line);
        }
    }

    /// Returns the number of lines.
    pub fn lines(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Returns the effects without those that depend on whether Slack's request was still open: a
    /// submission that is answered within the request is not answered by `views.update`, and a
    /// menu's options are requested only while Slack waits. Use it to compare a live run with its
    /// recording.
    pub fn without_window_effects(mut self) -> Self {
        for lines in self.0.values_mut() {
            lines.retain(|line| !line.contains("views.update") && !line.contains(":options:"));
        }
        self.0.retain(|name, lines| !lines.is_empty() && !name.contains(":options:"));
        self
    }

    /// Moves Tidegate's own messages to a separate name, because they may precede replies of
    /// agents.
    fn separate_own_messages(self) -> Self {
        let mut apart = Self::default();
        for (name, lines) in self.0 {
            let mixed = name.starts_with("told ") && !name.ends_with(" by Tidegate");
            for line in lines {
                let own = mixed && line.contains(r#""event_payload":{}"#);
                apart.add(if own { format!("{name} by Tidegate") } else { name.clone() }, line);
            }
        }
        apart
    }

    /// Returns true if the effects were written by version 1, which recorded the partition.
    pub fn is_of_version_1(&self) -> bool {
        self.0.values().flatten().any(|line| line.contains(", partition "))
    }

    /// Returns the effects without what version 1 records differently. Keeps only the lane of each
    /// webhook and whether it is a dead letter.
    pub fn without_version_differences(self) -> Self {
        let neutral = |line: String| match line.split_once(", ") {
            _ if line.starts_with("dead: ") => Some("dead".to_owned()),
            _ if line.starts_with("to be said") => Some(line),
            // Only version 1 has lines for the second key of a webhook and the first key of a dead
            // letter.
            Some(("trigger" | "dead", _)) => None,
            Some((_, place)) => Some(format!("handled, {}", place.split(", ").last()?)),
            None => Some(line),
        };
        let neutral = |(name, lines): (String, Vec<String>)| {
            if !name.starts_with("webhook ") {
                return Some((name, lines));
            }
            let lines: Vec<String> = lines.into_iter().filter_map(neutral).collect();
            (!lines.is_empty()).then_some((name, lines))
        };
        Self(self.separate_own_messages().0.into_iter().filter_map(neutral).collect())
    }

    /// Returns the differences to other effects; empty if there are none.
    pub fn differences(&self, after: &Self) -> Vec<Difference> {
        let mut names: Vec<&String> = self.0.keys().chain(after.0.keys()).collect();
        names.sort_unstable();
        names.dedup();
        let lines = |of: &Self, name: &str| of.0.get(name).cloned().unwrap_or_default();
        let compared = names.into_iter().map(|name| Difference {
            what: name.clone(),
            before: lines(self, name),
            after: lines(after, name),
        });
        compared.filter(|compared| compared.before != compared.after).collect()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, before, after } = self;
        let sorted = |lines: &[String]| {
            let mut lines = lines.to_vec();
            lines.sort_unstable();
            lines
        };
        let reordered = sorted(before) == sorted(after);
        writeln!(f, "{what}{}", if reordered { " (in another order)" } else { "" })?;
        let common = longest_common(before, after);
        let (mut before, mut after) = (before.iter(), after.iter());
        for line in common.into_iter().map(Some).chain([None]) {
            for gone in before.by_ref().take_while(|gone| Some(*gone) != line) {
                writeln!(f, "  - {gone}")?;
            }
            for new in after.by_ref().take_while(|new| Some(*new) != line) {
                writeln!(f, "  + {new}")?;
            }
        }
        Ok(())
    }
}

/// Returns the longest common subsequence of two lists.
fn longest_common<'a>(one: &'a [String], other: &'a [String]) -> Vec<&'a String> {
    // Lengths of the longest common subsequences of the suffixes from each pair of positions.
    let mut length = vec![vec![0_usize; other.len() + 1]; one.len() + 1];
    for n in (0..one.len()).rev() {
        for m in (0..other.len()).rev() {
            length[n][m] = match one[n] == other[m] {
                true => length[n + 1][m + 1] + 1,
                false => length[n + 1][m].max(length[n][m + 1]),
            };
        }
    }
    let (mut n, mut m, mut common) = (0, 0, Vec::new());
    while n < one.len() && m < other.len() {
        if one[n] == other[m] {
            common.push(&one[n]);
            (n, m) = (n + 1, m + 1);
        } else if length[n + 1][m] >= length[n][m + 1] {
            n += 1;
        } else {
            m += 1;
        }
    }
    common
}

/// Formats differences: the first `SHOWN` of each kind, and their number.
pub fn report(differences: &[Difference]) -> String {
    const SHOWN: usize = 5;
    let mut sorts: BTreeMap<&str, Vec<&Difference>> = BTreeMap::new();
    for one in differences {
        sorts.entry(one.what.split(' ').next().unwrap_or_default()).or_default().push(one);
    }
    let (mut shown, mut counts) = (String::new(), Vec::new());
    for (sort, all) in sorts {
        shown.extend(all.iter().take(SHOWN).map(ToString::to_string));
        counts.push(format!("{} {sort}", all.len()));
    }
    match differences.len() {
        0 => "no difference".into(),
        count => format!("{shown}{count} in all: {}", counts.join(", ")),
    }
}

/// Returns the id of the webhook of a request to an agent.
fn webhook_key(asked: &AgentRequest) -> &str {
    let delivery = asked.headers.get("tidegate-delivery").and_then(|key| key.to_str().ok());
    delivery.unwrap_or(&asked.id)
}

fn request_line(asked: &AgentRequest, key: &str, slack: &str) -> String {
    if key == asked.id {
        return asked.question.to_string();
    }
    let any = replace_origin(&asked.body, slack, ANY_SLACK);
    let body = String::from_utf8_lossy(any.as_ref().map_or(&*asked.body, |body| body));
    format!("handed on {}: {body}", stable_key(key))
}

/// Returns the conversation of a call and its content.
fn message_of(call: &Call) -> (String, String) {
    let mut args = call.args.clone();
    let noted = args.pointer_mut("/metadata/event_payload");
    if let Some(noted) = noted.and_then(Value::as_object_mut) {
        noted.remove("id"); // the id of the outbox row
    }
    let (team, channel) = (&call.team, &call.channel);
    let text = |name: &str| args[name].as_str().unwrap_or_default();
    let thread = match text("thread_ts") {
        _ if channel.starts_with('D') => String::new(),
        "" => " beside threads".into(),
        ts => format!(" {ts}"),
    };
    let name = match call.method.as_str() {
        "response_url" => format!("told {channel}"),
        _ if !channel.is_empty() => format!("told {team} {channel}{thread}"),
        _ => {
            let of = ["view_id", "user_id", "users", "trigger_id"].map(text);
            let of = of.into_iter().find(|id| !id.is_empty()).unwrap_or_default();
            format!("told {team} {of}")
        }
    };
    let ended = match &call.outcome {
        Outcome::Accepted => String::new(),
        Outcome::Refused(word) => format!(" (refused: {word})"),
        other => format!(" ({other:?})"),
    };
    args.sort_all_objects();
    (name, format!("{}{ended} {}", call.method, Value::to_string(&args)))
}
