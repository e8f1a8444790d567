//! Checks of Postgres. A server that does not respond within [`QUERY_TIMEOUT`] is a finding.

use super::{Finding, QUERY_TIMEOUT, clock};
use shared::{
    runtime::telemetry::ErrorChain,
    store::{Store, Transport},
};

const COMPONENT: &str = "postgres";
/// Minimum version of Postgres, in the form of `server_version_num`.
const MIN_VERSION: i32 = 140_000;

/// Checks the clock, TLS, version and schema of Postgres. Returns true if the schema can be
/// queried.
pub(super) async fn check(store: &Store, findings: &mut Vec<Finding>) -> bool {
    let requested_at = clock::now_ms();
    let facts = match tokio::time::timeout(QUERY_TIMEOUT, store.server_facts()).await {
        Ok(Ok(facts)) => facts,
        Ok(Err(error)) => {
            findings.push(unavailable(&ErrorChain(&error).to_string()));
            return false;
        }
        Err(_) => {
            findings.push(unavailable(&format!("no response within {QUERY_TIMEOUT:?}")));
            return false;
        }
    };
    findings.push(clock::compare(COMPONENT, facts.now_ms, clock::midpoint(requested_at)));
    findings.extend(transport(facts.transport));
    if facts.version < MIN_VERSION {
        let summary = format!("Postgres {} is not supported", facts.version / 10_000);
        findings.push(Finding::problem(COMPONENT, summary, "use Postgres 14 or newer"));
    }
    let required = Store::newest_migration();
    findings.push(schema(facts.schema, required));
    facts.schema.is_some_and(|version| version >= required)
}

/// Checks that the keyrings decrypt stored secrets. Skips keyrings that are not set.
pub(super) async fn check_keyrings(store: &Store, findings: &mut Vec<Finding>) {
    match store.find_obstacles().await {
        Ok(obstacles) => findings.extend(obstacles.iter().map(|obstacle| {
            Finding::problem("keys", obstacle.to_string(), "compare it with the workers' setting")
        })),
        Err(error) => findings.push(unavailable(&ErrorChain(&error).to_string())),
    }
}

fn unavailable(reason: &str) -> Finding {
    let remedy = "check TIDEGATE_POSTGRES_URL, TIDEGATE_POSTGRES_CA_FILE, and that Postgres is up";
    Finding::problem(COMPONENT, format!("failed to connect: {reason}"), remedy)
}

fn transport(transport: Transport) -> Option<Finding> {
    let summary = match transport {
        Transport::Local => return None,
        Transport::Verified => {
            return Some(Finding::good(COMPONENT, "TLS certificate is verified"));
        }
        Transport::Unverified => "TLS certificate is not verified",
        Transport::Clear => "connection is not encrypted",
    };
    let remedy = "remove sslmode from TIDEGATE_POSTGRES_URL, \
                  and set TIDEGATE_POSTGRES_CA_FILE to the certificate authority of Postgres";
    Some(Finding::warning(COMPONENT, summary, remedy))
}

fn schema(version: Option<i64>, required: i64) -> Finding {
    match version {
        Some(version) if version == required => {
            Finding::good(COMPONENT, format!("schema has the required version {version}"))
        }
        Some(version) if version > required => Finding::warning(
            COMPONENT,
            format!("schema has version {version}, newer than the required {required}"),
            "finish the rollout of the newer release",
        ),
        Some(version) => Finding::problem(
            COMPONENT,
            format!("schema has version {version}, older than the required {required}"),
            "run tidegate migrate",
        ),
        None => Finding::problem(COMPONENT, "schema is missing", "run tidegate migrate"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::render;

    #[test]
    fn renders_findings() {
        let schemas = [Some(3), Some(4), Some(2), None].map(|version| schema(version, 3));
        insta::assert_snapshot!(render(&schemas), @r"
        good     postgres  schema has the required version 3
        warning  postgres  schema has version 4, newer than the required 3
                           → finish the rollout of the newer release
        problem  postgres  schema has version 2, older than the required 3
                           → run tidegate migrate
        problem  postgres  schema is missing
                           → run tidegate migrate
        ");
        insta::assert_snapshot!(render(&[unavailable("no response within 3s")]), @r"
        problem  postgres  failed to connect: no response within 3s
                           → check TIDEGATE_POSTGRES_URL, TIDEGATE_POSTGRES_CA_FILE, and that Postgres is up
        ");
        let all = [Transport::Local, Transport::Verified, Transport::Unverified, Transport::Clear];
        let transports: Vec<_> = all.into_iter().filter_map(transport).collect();
        insta::assert_snapshot!(render(&transports), @r"
        good     postgres  TLS certificate is verified
        warning  postgres  TLS certificate is not verified
                           → remove sslmode from TIDEGATE_POSTGRES_URL, and set TIDEGATE_POSTGRES_CA_FILE to the certificate authority of Postgres
        warning  postgres  connection is not encrypted
                           → remove sslmode from TIDEGATE_POSTGRES_URL, and set TIDEGATE_POSTGRES_CA_FILE to the certificate authority of Postgres
        ");
    }
}
