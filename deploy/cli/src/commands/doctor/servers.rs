//! Checks of Postgres and NATS. A server that does not respond is a finding after a few seconds.

use super::{Finding, directory};
use shared::{
    config,
    directory::Directory,
    store::Store,
    stream::{self, BODY_BYTES_MAX, HEADER_BYTES_MAX, STREAM},
    telemetry::Chain,
};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Maximum time for a response.
const QUERY_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum difference between clocks. Slack's signatures are valid for 300 s.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(5);
/// Minimum version of Postgres, as `server_version_num`.
const MIN_POSTGRES_VERSION: i32 = 140_000;
/// Share of its maximum size above which the stream is a warning.
const NEARLY_FULL: f64 = 0.7;

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as i64)
}

/// Compares the clock of a server with the clock of this machine.
fn clock(component: &'static str, server_ms: i64, request_ms: i64, findings: &mut Vec<Finding>) {
    let local_ms = request_ms + (now_ms() - request_ms) / 2;
    let skew = (server_ms - local_ms).unsigned_abs();
    if u128::from(skew) > MAX_CLOCK_SKEW.as_millis() {
        findings.push(Finding::problem(
            component,
            format!("clock differs by {:.1} s from this machine's", skew as f64 / 1000.0),
            "run NTP on both: signatures expire after 300 s, and leases use the clock of Postgres",
        ));
    } else {
        findings.push(Finding::good(
            component,
            format!("clock differs by {skew} ms from this machine's"),
        ));
    }
}

/// Checks Postgres. Returns true if the schema can be queried.
pub(super) async fn postgres(store: &Store, findings: &mut Vec<Finding>) -> bool {
    const COMPONENT: &str = "postgres";
    let requested_at = now_ms();
    let facts = match tokio::time::timeout(QUERY_TIMEOUT, store.server_facts()).await {
        Ok(Ok(facts)) => facts,
        failed => {
            let reason = match failed {
                Ok(Err(error)) => Chain(&error).to_string(),
                _ => format!("no response within {QUERY_TIMEOUT:?}"),
            };
            findings.push(Finding::problem(
                COMPONENT,
                format!("failed to connect: {reason}"),
                "check TIDEGATE_POSTGRES_URL, and that Postgres is up",
            ));
            return false;
        }
    };
    clock(COMPONENT, facts.now_ms, requested_at, findings);
    if facts.version < MIN_POSTGRES_VERSION {
        let summary = format!("Postgres {} is not supported", facts.version / 10_000);
        findings.push(Finding::problem(COMPONENT, summary, "use Postgres 14 or newer"));
    }
    let required = Store::newest_migration();
    match facts.schema {
        Some(schema) if schema == required => {
            findings.push(Finding::good(
                COMPONENT,
                format!("schema has version {schema}, as required"),
            ));
            true
        }
        Some(schema) if schema > required => {
            findings.push(Finding::warning(
                COMPONENT,
                format!("schema has version {schema}, newer than the required {required}"),
                "finish the roll-out of the newer release",
            ));
            true
        }
        Some(schema) => {
            let summary = format!("schema has version {schema}; required is {required}");
            findings.push(Finding::problem(COMPONENT, summary, "run tidegate migrate"));
            false
        }
        None => {
            findings.push(Finding::problem(COMPONENT, "schema is missing", "run tidegate migrate"));
            false
        }
    }
}

/// Checks NATS, the stream, the permissions and, if the schema can be queried, the directory.
pub(super) async fn nats(
    settings: &config::Nats,
    store: Option<&Store>,
    findings: &mut Vec<Finding>,
) {
    const COMPONENT: &str = "nats";
    let unavailable = |reason: String| {
        Finding::problem(
            COMPONENT,
            format!("failed to connect: {reason}"),
            "check TIDEGATE_NATS_URL and TIDEGATE_NATS_NKEY_FILE, and that NATS is up",
        )
    };
    let client = match settings.connect("operator").await {
        Ok(client) => client,
        Err(error) => return findings.push(unavailable(Chain(&error).to_string())),
    };
    if !matches!(tokio::time::timeout(QUERY_TIMEOUT, client.flush()).await, Ok(Ok(()))) {
        return findings.push(unavailable(format!("no response within {QUERY_TIMEOUT:?}")));
    }
    let max_payload = client.server_info().max_payload;
    let required = BODY_BYTES_MAX + HEADER_BYTES_MAX;
    if max_payload < required {
        findings.push(Finding::problem(
            COMPONENT,
            format!("max_payload is {max_payload} bytes; the largest webhook needs {required}"),
            format!("set max_payload: {required} in the configuration of NATS"),
        ));
    }
    permissions(&client, findings).await;
    let js = config::jetstream(client.clone());
    let requested_at = now_ms();
    let info = client.request(format!("$JS.API.STREAM.INFO.{STREAM}"), "".into()).await;
    let info = info.ok().and_then(|m| serde_json::from_slice::<serde_json::Value>(&m.payload).ok());
    let ts = info.as_ref().and_then(|info| info["ts"].as_str());
    if let Some(server_time) = ts.and_then(|ts| OffsetDateTime::parse(ts, &Rfc3339).ok()) {
        clock(
            COMPONENT,
            (server_time.unix_timestamp_nanos() / 1_000_000) as i64,
            requested_at,
            findings,
        );
    }
    match js.get_stream(STREAM).await {
        Ok(stream) => {
            let info = stream.cached_info();
            let differences = stream::differences(&info.config);
            if differences.is_empty() {
                findings.push(Finding::good(
                    COMPONENT,
                    format!("stream {STREAM} has the required configuration"),
                ));
            } else {
                let summary = format!(
                    "stream {STREAM} differs from the required configuration: {}",
                    differences.join(", ")
                );
                findings.push(Finding::problem(COMPONENT, summary, "run tidegate migrate"));
            }
            if info.config.num_replicas < 3 {
                findings.push(Finding::warning(
                    COMPONENT,
                    format!("stream {STREAM} has replicas: {}", info.config.num_replicas),
                    "in production run three NATS servers, and tidegate migrate --replicas 3",
                ));
            }
            let share = info.state.bytes as f64 / info.config.max_bytes.max(1) as f64;
            if share > NEARLY_FULL {
                findings.push(Finding::warning(
                    COMPONENT,
                    format!("stream {STREAM} uses {:.0} % of its maximum size", share * 100.0),
                    "check the lag with tidegate partitions, or run tidegate migrate with a higher --max-bytes",
                ));
            }
        }
        Err(error) => findings.push(Finding::problem(
            COMPONENT,
            format!("failed to open stream {STREAM}: {error}"),
            "run tidegate migrate, or give this NATS user the permission to read the stream",
        )),
    }
    match (Directory::open(&js).await, store) {
        (Ok(directory), Some(store)) => directory::check(&directory, store, findings).await,
        (Ok(_), None) => {}
        (Err(error), _) => findings.push(Finding::problem(
            "directory",
            format!("failed to open: {}", Chain(&error)),
            "run tidegate migrate, or give this NATS user the permission to read the bucket",
        )),
    }
}

/// Compares the permissions of this NATS user with those that the commands require.
async fn permissions(client: &async_nats::Client, findings: &mut Vec<Finding>) {
    const COMPONENT: &str = "nats";
    let request = client.request("$SYS.REQ.USER.INFO", "".into());
    let Ok(Ok(response)) = tokio::time::timeout(QUERY_TIMEOUT, request).await else {
        return findings.push(Finding::warning(
            COMPONENT,
            "failed to read the permissions of this NATS user",
            "allow this user to publish to $SYS.REQ.USER.INFO",
        ));
    };
    let response: serde_json::Value = serde_json::from_slice(&response.payload).unwrap_or_default();
    let missing = forbidden(&response["data"]["permissions"]);
    if missing.is_empty() {
        findings.push(Finding::good(COMPONENT, "this NATS user has all required permissions"));
    } else {
        findings.push(Finding::problem(
            COMPONENT,
            format!("this NATS user must not publish to {}", missing.join(", ")),
            "allow these subjects for the operator's user in the configuration of NATS",
        ));
    }
}

/// Returns the subjects that the commands publish to and the permissions do not allow.
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
    let any = |patterns: &[String], subject: &str| patterns.iter().any(|p| matches(p, subject));
    let is_allowed =
        |subject: &str| (allow.is_empty() || any(&allow, subject)) && !any(&deny, subject);
    needed.into_iter().filter(|subject| !is_allowed(subject)).collect()
}

/// Returns true if a subject pattern with `*` and `>` matches a subject.
fn matches(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some(p), Some(s)) if p == "*" || p == s => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_matches_subject() {
        for (pattern, subject, yes) in [
            ("a.b", "a.b", true),
            ("a.*", "a.b", true),
            ("a.>", "a.b.c", true),
            (">", "a", true),
            ("a.>", "a", false),
            ("a.*", "a.b.c", false),
            ("a.b.c", "a.b", false),
        ] {
            assert_eq!(matches(pattern, subject), yes, "{pattern} {subject}");
        }
    }

    #[test]
    fn forbidden_subjects_are_named() {
        assert_eq!(forbidden(&serde_json::Value::Null), [""; 0], "no permissions, no limits");
        let some = serde_json::json!({
            "publish": { "allow": ["$JS.API.>"], "deny": ["$JS.API.STREAM.PURGE.>"] },
        });
        assert_eq!(forbidden(&some), ["$JS.API.STREAM.PURGE.SLACK_IN", "$KV.connections.x"]);
    }
}
