//! Postgres, NATS, and the directory between them.
//!
//! In: where they are. Out: findings. Each question waits for a few seconds at most: a server that is away is a finding, not
//! a reason to hang.

use super::Finding;
use shared::{
    config,
    directory::{Directory, DirectoryWait, Entry},
    store::Store,
    stream::{self, BODY_BYTES_MAX, HEADER_BYTES_MAX, STREAM},
    telemetry::Chain,
    types::Status,
};
use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Longest wait for an answer.
const WITHIN: Duration = Duration::from_secs(3);
/// Clocks may differ by this much; Slack's signatures are good for 300 s.
const SKEW_MAX: Duration = Duration::from_secs(5);
/// Postgres has to be this new.
const POSTGRES_MIN: i32 = 140_000;
/// Above this share of its room the stream is looked at by a person.
const FULL: f64 = 0.7;
/// So many connections are named.
const NAMED_MAX: usize = 10;

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as i64)
}

/// Compares a server's clock with ours.
fn clock(of: &'static str, theirs_ms: i64, asked_ms: i64, found: &mut Vec<Finding>) {
    let ours = asked_ms + (now_ms() - asked_ms) / 2;
    let skew = (theirs_ms - ours).unsigned_abs();
    if u128::from(skew) > SKEW_MAX.as_millis() {
        found.push(Finding::problem(
            of,
            format!("its clock and this machine's differ by {:.1} s", skew as f64 / 1000.0),
            "run NTP on both: Slack's signatures are refused 300 s off, and leases are timed by Postgres",
        ));
    } else {
        found.push(Finding::good(of, format!("its clock is {skew} ms from ours")));
    }
}

/// Whether it can be asked more.
pub(super) async fn postgres(store: &Store, found: &mut Vec<Finding>) -> bool {
    const OF: &str = "postgres";
    let asked = now_ms();
    let facts = match tokio::time::timeout(WITHIN, store.server_facts()).await {
        Ok(Ok(facts)) => facts,
        Ok(Err(error)) => {
            let what = format!("it does not answer: {}", Chain(&error));
            found.push(Finding::problem(
                OF,
                what,
                "check TIDEGATE_POSTGRES_URL, and that it is up",
            ));
            return false;
        }
        Err(_) => {
            let what = format!("it does not answer within {WITHIN:?}");
            found.push(Finding::problem(
                OF,
                what,
                "check TIDEGATE_POSTGRES_URL, and that it is up",
            ));
            return false;
        }
    };
    clock(OF, facts.now_ms, asked, found);
    if facts.version < POSTGRES_MIN {
        let what = format!("it is version {}", facts.version / 10_000);
        found.push(Finding::problem(OF, what, "use Postgres 14 or newer"));
    }
    let wanted = Store::newest_migration();
    match facts.schema {
        Some(schema) if schema == wanted => {
            found.push(Finding::good(
                OF,
                format!("the schema is at {schema}, as this release needs"),
            ));
            true
        }
        Some(schema) if schema > wanted => {
            found.push(Finding::warning(
                OF,
                format!("the schema is at {schema}, newer than this release's {wanted}"),
                "finish the roll-out: a newer release migrated it",
            ));
            true
        }
        Some(schema) => {
            let what = format!("the schema is at {schema}; this release needs {wanted}");
            found.push(Finding::problem(OF, what, "run tidegate migrate"));
            false
        }
        None => {
            found.push(Finding::problem(OF, "there is no schema", "run tidegate migrate"));
            false
        }
    }
}

pub(super) async fn nats(settings: &config::Nats, store: Option<&Store>, found: &mut Vec<Finding>) {
    const OF: &str = "nats";
    let away = |what: String| {
        Finding::problem(
            OF,
            what,
            "check TIDEGATE_NATS_URL and TIDEGATE_NATS_NKEY_FILE, and that it is up",
        )
    };
    let client = match settings.connect("operator").await {
        Ok(client) => client,
        Err(error) => return found.push(away(format!("no connection: {}", Chain(&error)))),
    };
    if !matches!(tokio::time::timeout(WITHIN, client.flush()).await, Ok(Ok(()))) {
        return found.push(away(format!("it does not answer within {WITHIN:?}")));
    }
    let max_payload = client.server_info().max_payload;
    if max_payload < BODY_BYTES_MAX + HEADER_BYTES_MAX {
        found.push(Finding::problem(
            OF,
            format!(
                "it takes messages of {max_payload} bytes; the largest webhook needs {}",
                BODY_BYTES_MAX + HEADER_BYTES_MAX
            ),
            format!("set max_payload: {} in its configuration", BODY_BYTES_MAX + HEADER_BYTES_MAX),
        ));
    }
    permissions(&client, found).await;
    let js = config::jetstream(client.clone());
    let asked = now_ms();
    let info = client.request(format!("$JS.API.STREAM.INFO.{STREAM}"), "".into()).await;
    let info = info.ok().and_then(|m| serde_json::from_slice::<serde_json::Value>(&m.payload).ok());
    let ts = info.as_ref().and_then(|info| info["ts"].as_str());
    if let Some(theirs) = ts.and_then(|ts| OffsetDateTime::parse(ts, &Rfc3339).ok()) {
        clock(OF, (theirs.unix_timestamp_nanos() / 1_000_000) as i64, asked, found);
    }
    match js.get_stream(STREAM).await {
        Ok(stream) => {
            let info = stream.cached_info();
            let wrong = stream::differences(&info.config);
            if wrong.is_empty() {
                found.push(Finding::good(OF, format!("the stream {STREAM} is as it has to be")));
            } else {
                let what = format!(
                    "the stream {STREAM} differs from what this release needs: {}",
                    wrong.join(", ")
                );
                found.push(Finding::problem(OF, what, "run tidegate migrate"));
            }
            if info.config.num_replicas < 3 {
                found.push(Finding::warning(
                    OF,
                    format!("the stream has {} copy of everything", info.config.num_replicas),
                    "in production run three servers, and tidegate migrate --replicas 3",
                ));
            }
            let share = info.state.bytes as f64 / info.config.max_bytes.max(1) as f64;
            if share > FULL {
                found.push(Finding::warning(
                    OF,
                    format!("the stream uses {:.0} % of its room", share * 100.0),
                    "look at tidegate deliveries list and tidegate partitions for what is not worked off, or raise --max-bytes",
                ));
            }
        }
        Err(error) => found.push(Finding::problem(
            OF,
            format!("there is no stream {STREAM} for us: {error}"),
            "run tidegate migrate; if that was done, this user lacks the permission to look at it",
        )),
    }
    match (Directory::open(&js).await, store) {
        (Ok(directory), Some(store)) => freshness(&directory, store, found).await,
        (Ok(_), None) => {}
        (Err(error), _) => found.push(Finding::problem(
            "directory",
            format!("{}", Chain(&error)),
            "run tidegate migrate; if that was done, this user lacks the permission to read it",
        )),
    }
}

/// What the server says that this user may do, against what the verbs need.
async fn permissions(client: &async_nats::Client, found: &mut Vec<Finding>) {
    const OF: &str = "nats";
    let asked = client.request("$SYS.REQ.USER.INFO", "".into());
    let Ok(Ok(answer)) = tokio::time::timeout(WITHIN, asked).await else {
        return found.push(Finding::warning(
            OF,
            "the server does not say what this user may do",
            "allow it to publish to $SYS.REQ.USER.INFO, or check the permissions by hand",
        ));
    };
    let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
    let missing = forbidden(&answer["data"]["permissions"]);
    if missing.is_empty() {
        found.push(Finding::good(OF, "this user may do what the verbs need"));
    } else {
        found.push(Finding::problem(
            OF,
            format!("this user may not publish to {}", missing.join(", ")),
            "give the operator's user these permissions in the server's configuration",
        ));
    }
}

/// What the verbs publish to, as far as this user may not.
fn forbidden(permissions: &serde_json::Value) -> Vec<String> {
    let needed = [
        format!("$JS.API.STREAM.INFO.{STREAM}"),
        format!("$JS.API.STREAM.PURGE.{STREAM}"),
        format!("$JS.API.CONSUMER.CREATE.{STREAM}.x.slack.in.0.x"),
        "$JS.API.STREAM.INFO.KV_connections".to_owned(),
        "$JS.API.STREAM.INFO.KV_ingests".to_owned(),
        "$KV.connections.x".to_owned(),
    ];
    let list = |name: &str| -> Vec<String> {
        let list = permissions["publish"][name].as_array().cloned().unwrap_or_default();
        list.iter().filter_map(|subject| subject.as_str().map(str::to_owned)).collect()
    };
    let (allow, deny) = (list("allow"), list("deny"));
    let any = |patterns: &[String], subject: &str| patterns.iter().any(|p| covers(p, subject));
    let may = |subject: &str| (allow.is_empty() || any(&allow, subject)) && !any(&deny, subject);
    needed.into_iter().filter(|subject| !may(subject)).collect()
}

/// Whether a subject with `*` and `>` covers another.
fn covers(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some(p), Some(s)) if p == "*" || p == s => {}
            _ => return false,
        }
    }
}

/// Whether the directory says what Postgres says, and every ingest has read it.
async fn freshness(directory: &Directory, store: &Store, found: &mut Vec<Finding>) {
    const OF: &str = "directory";
    let compared = async {
        let rows: HashMap<_, _> = store.connection_versions().await?.into_iter().collect();
        let mut stale = Vec::new();
        for (&id, &version) in &rows {
            match directory.entry(id).await? {
                Some(entry) if entry.version() >= version => {}
                _ => stale.push(id.to_string()),
            }
        }
        for id in directory.connections().await?.into_iter().filter(|id| !rows.contains_key(id)) {
            if matches!(directory.entry(id).await?, Some(Entry::Known(_))) {
                stale.push(format!("{id} (deleted)"));
            }
        }
        anyhow::Ok((stale, directory.identity().await?.1))
    };
    let (stale, revision) = match compared.await {
        Ok(compared) => compared,
        Err(error) => {
            return found.push(Finding::problem(OF, format!("{error:#}"), "see above"));
        }
    };
    if stale.is_empty() {
        found.push(Finding::good(OF, "it says what Postgres says"));
    } else {
        let named = stale.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
        found.push(Finding::problem(
            OF,
            format!("{} of its entries are old: {named}", stale.len()),
            "a worker repairs this within half a minute: is one running? tidegate partitions says",
        ));
    }
    match directory.applied_everywhere(revision, Duration::ZERO).await {
        Ok(()) => found.push(Finding::good(OF, "every ingest that runs has read all of it")),
        Err(DirectoryWait::Behind(behind)) => found.push(Finding::problem(
            OF,
            format!("these ingests are behind: {}", behind.join(", ")),
            "look at their logs: they can't read NATS, or were cut off from it",
        )),
        Err(DirectoryWait::Directory(error)) => {
            found.push(Finding::problem(OF, format!("{}", Chain(&error)), "see above"));
        }
    }
    if let Ok(connections) = store.connection_summaries(None).await {
        for one in connections {
            let remedy = match one.status {
                Status::Error => {
                    "look at what Slack says of its token; install the app again if it is bad"
                }
                Status::Revoked => {
                    "install the app again and give tidegate apply the new token, or delete the connection"
                }
                _ => continue,
            };
            let why =
                if one.reason.is_empty() { String::new() } else { format!(": {}", one.reason) };
            let what = format!("connection {} is {}{why}", one.id, one.status);
            found.push(Finding::warning("slack", what, remedy));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_covered_as_nats_says() {
        for (pattern, subject, yes) in [
            ("a.b", "a.b", true),
            ("a.*", "a.b", true),
            ("a.>", "a.b.c", true),
            (">", "a", true),
            ("a.>", "a", false),
            ("a.*", "a.b.c", false),
            ("a.b.c", "a.b", false),
        ] {
            assert_eq!(covers(pattern, subject), yes, "{pattern} {subject}");
        }
    }

    #[test]
    fn what_a_user_may_not_do_is_named() {
        assert_eq!(forbidden(&serde_json::Value::Null), [""; 0], "no permissions, no limits");
        let some = serde_json::json!({ "publish": { "allow": ["$JS.API.>"], "deny": ["$JS.API.STREAM.PURGE.>"] } });
        assert_eq!(forbidden(&some), ["$JS.API.STREAM.PURGE.SLACK_IN", "$KV.connections.x"]);
    }
}
