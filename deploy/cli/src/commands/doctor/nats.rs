//! Checks of NATS. A server that does not respond within [`QUERY_TIMEOUT`] is a finding.

use super::{Finding, QUERY_TIMEOUT, clock, directory, processes};
use async_nats::{Client, jetstream};
use shared::{
    directory::Directory,
    runtime::{config, telemetry::ErrorChain},
    store::Store,
    stream::{self, BODY_BYTES_MAX, HEADER_BYTES_MAX, STREAM},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

const COMPONENT: &str = "nats";
/// Share of the stream's maximum size above which the finding is a warning.
const NEARLY_FULL: f64 = 0.7;

/// Checks NATS, the stream and the permissions. With a store, also the directory and the processes.
///
/// `store` is `None` if its schema cannot be queried. `fix` applies to the directory.
pub(super) async fn check(
    settings: &config::NatsConfig,
    store: Option<&Store>,
    fix: bool,
    findings: &mut Vec<Finding>,
) {
    let client = match settings.connect("operator").await {
        Ok(client) => client,
        Err(error) => {
            let reason = ErrorChain(&error).to_string();
            return findings.push(unavailable(&settings.servers(), &reason));
        }
    };
    if !matches!(tokio::time::timeout(QUERY_TIMEOUT, client.flush()).await, Ok(Ok(()))) {
        let reason = format!("no response within {QUERY_TIMEOUT:?}");
        return findings.push(unavailable(&settings.servers(), &reason));
    }
    findings.extend(max_payload(client.server_info().max_payload));
    findings.push(permissions(&client).await);
    findings.extend(server_clock(&client).await);
    let js = config::jetstream(client);
    check_stream(&js, findings).await;
    match (Directory::open(&js).await, store) {
        (Ok(directory), Some(store)) => {
            directory::check(&directory, store, fix, findings).await;
            processes::check(&directory, store, findings).await;
        }
        (Ok(_), None) => {}
        (Err(error), _) => findings.push(Finding::problem(
            "directory",
            format!("failed to open: {}", ErrorChain(&error)),
            "run tidegate migrate, or give this NATS user the permission to read the bucket",
        )),
    }
}

fn unavailable(servers: &str, reason: &str) -> Finding {
    let remedy = "check TIDEGATE_NATS_URL and TIDEGATE_NATS_NKEY_FILE, and that NATS is up";
    Finding::problem(COMPONENT, format!("failed to connect to {servers}: {reason}"), remedy)
}

fn max_payload(bytes: usize) -> Option<Finding> {
    let required = BODY_BYTES_MAX + HEADER_BYTES_MAX;
    let summary = format!("max_payload is {bytes} bytes; the largest webhook needs {required}");
    let remedy = format!("set max_payload: {required} in the configuration of NATS");
    (bytes < required).then(|| Finding::problem(COMPONENT, summary, remedy))
}

async fn server_clock(client: &Client) -> Option<Finding> {
    let requested_at = clock::now_ms();
    let info = client.request(format!("$JS.API.STREAM.INFO.{STREAM}"), "".into()).await.ok()?;
    let info: serde_json::Value = serde_json::from_slice(&info.payload).ok()?;
    let server = OffsetDateTime::parse(info["ts"].as_str()?, &Rfc3339).ok()?;
    let server_ms = (server.unix_timestamp_nanos() / 1_000_000) as i64;
    Some(clock::compare(COMPONENT, server_ms, clock::midpoint(requested_at)))
}

async fn check_stream(js: &jetstream::Context, findings: &mut Vec<Finding>) {
    match js.get_stream(STREAM).await {
        Ok(stream) => {
            let info = stream.cached_info();
            findings.push(configuration(&stream::differences(&info.config)));
            findings.extend(replicas(info.config.num_replicas));
            findings.extend(size(info.state.bytes, info.config.max_bytes));
        }
        Err(error) => findings.push(Finding::problem(
            COMPONENT,
            format!("failed to open stream {STREAM}: {error}"),
            "run tidegate migrate, or give this NATS user the permission to read the stream",
        )),
    }
}

fn configuration(differences: &[&str]) -> Finding {
    if differences.is_empty() {
        let summary = format!("stream {STREAM} has the required configuration");
        return Finding::good(COMPONENT, summary);
    }
    let differences = differences.join(", ");
    let summary = format!("stream {STREAM} differs from the required configuration: {differences}");
    Finding::problem(COMPONENT, summary, "run tidegate migrate")
}

fn replicas(number: usize) -> Option<Finding> {
    let remedy = "in production run three NATS servers, and tidegate migrate --replicas 3";
    let summary = format!("stream {STREAM} has fewer than three replicas: {number}");
    (number < 3).then(|| Finding::warning(COMPONENT, summary, remedy))
}

fn size(bytes: u64, max_bytes: i64) -> Option<Finding> {
    let share = bytes as f64 / max_bytes.max(1) as f64;
    let summary = format!("stream {STREAM} uses {:.0} % of its maximum size", share * 100.0);
    let remedy = "check the lag with tidegate partitions, or raise --max-bytes of tidegate migrate";
    (share > NEARLY_FULL).then(|| Finding::warning(COMPONENT, summary, remedy))
}

/// Compares the permissions of this NATS user with those that commands require.
async fn permissions(client: &Client) -> Finding {
    let request = client.request("$SYS.REQ.USER.INFO", "".into());
    let Ok(Ok(response)) = tokio::time::timeout(QUERY_TIMEOUT, request).await else {
        return Finding::warning(
            COMPONENT,
            "failed to read the permissions of this NATS user",
            "allow this user to publish to $SYS.REQ.USER.INFO",
        );
    };
    let response: serde_json::Value = serde_json::from_slice(&response.payload).unwrap_or_default();
    permission(&forbidden(&response["data"]["permissions"]))
}

fn permission(forbidden: &[String]) -> Finding {
    if forbidden.is_empty() {
        return Finding::good(COMPONENT, "this NATS user has all required permissions");
    }
    Finding::problem(
        COMPONENT,
        format!("this NATS user has no permission to publish to {}", forbidden.join(", ")),
        "allow these subjects for the operator's user in the configuration of NATS",
    )
}

/// Returns the subjects that commands publish to and the permissions do not allow.
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
    use crate::commands::doctor::render;

    #[test]
    fn matches_subject_patterns() {
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
    fn names_forbidden_subjects() {
        assert_eq!(
            forbidden(&serde_json::Value::Null),
            [""; 0],
            "without permissions, all subjects are allowed"
        );
        let some = serde_json::json!({
            "publish": { "allow": ["$JS.API.>"], "deny": ["$JS.API.STREAM.PURGE.>"] },
        });
        assert_eq!(forbidden(&some), ["$JS.API.STREAM.PURGE.SLACK_IN", "$KV.connections.x"]);
    }

    #[test]
    fn renders_findings() {
        let findings = [unavailable("nats:4222", "no response within 3s"), permission(&[])];
        insta::assert_snapshot!(render(&findings), @r"
        problem  nats      failed to connect to nats:4222: no response within 3s
                           → check TIDEGATE_NATS_URL and TIDEGATE_NATS_NKEY_FILE, and that NATS is up
        good     nats      this NATS user has all required permissions
        ");
        let subjects = ["$KV.connections.x".to_owned(), "$JS.API.>".to_owned()];
        insta::assert_snapshot!(render(&[permission(&subjects)]), @r"
        problem  nats      this NATS user has no permission to publish to $KV.connections.x, $JS.API.>
                           → allow these subjects for the operator's user in the configuration of NATS
        ");
        insta::assert_snapshot!(render(&[configuration(&[]), configuration(&["its subjects"])]), @r"
        good     nats      stream SLACK_IN has the required configuration
        problem  nats      stream SLACK_IN differs from the required configuration: its subjects
                           → run tidegate migrate
        ");
        let size =
            [max_payload(1_024), replicas(1), size(8, 10)].map(|found| found.expect("found"));
        insta::assert_snapshot!(render(&size), @r"
        problem  nats      max_payload is 1024 bytes; the largest webhook needs 1114112
                           → set max_payload: 1114112 in the configuration of NATS
        warning  nats      stream SLACK_IN has fewer than three replicas: 1
                           → in production run three NATS servers, and tidegate migrate --replicas 3
        warning  nats      stream SLACK_IN uses 80 % of its maximum size
                           → check the lag with tidegate partitions, or raise --max-bytes of tidegate migrate
        ");
        assert!(replicas(3).is_none() && super::size(7, 10).is_none());
    }
}
