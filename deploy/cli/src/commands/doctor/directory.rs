//! Checks of the directory: its copies of connections, the ingests that read it, and failed
//! connections.

use super::Finding;
use shared::{
    directory::{Directory, DirectoryWait, Entry},
    store::{ConnectionSummary, Store},
    telemetry::Chain,
    types::Status,
};
use std::{collections::HashMap, time::Duration};

/// Maximum number of connections that a finding names.
const MAX_NAMED: usize = 10;

/// Compares the directory with Postgres, and with what every ingest has applied.
pub(super) async fn check(directory: &Directory, store: &Store, findings: &mut Vec<Finding>) {
    const COMPONENT: &str = "directory";
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
            return findings.push(failed(format!("{error:#}")));
        }
    };
    if stale.is_empty() {
        findings.push(Finding::good(COMPONENT, "has all connections of Postgres"));
    } else {
        let named = stale.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join(", ");
        findings.push(Finding::problem(
            COMPONENT,
            format!("entries older than Postgres: {} ({named})", stale.len()),
            "check with tidegate partitions that a worker runs: it repairs them within 30 s",
        ));
    }
    match directory.applied_everywhere(revision, Duration::ZERO).await {
        Ok(()) => {
            findings.push(Finding::good(COMPONENT, "every running ingest has applied all entries"))
        }
        Err(DirectoryWait::Behind(behind)) => findings.push(Finding::problem(
            COMPONENT,
            format!("ingests that have not applied all entries: {}", behind.join(", ")),
            "read their logs: they fail to read the directory from NATS",
        )),
        Err(DirectoryWait::Directory(error)) => {
            findings.push(failed(Chain(&error).to_string()));
        }
    }
    if let Ok(connections) = store.connection_summaries(None).await {
        findings.extend(connections.iter().filter_map(failed_connection));
    }
}

fn failed(reason: String) -> Finding {
    let remedy = "check the findings about Postgres and NATS";
    Finding::problem("directory", format!("failed to compare with Postgres: {reason}"), remedy)
}

/// Returns a warning if Slack rejects the token of a connection.
fn failed_connection(connection: &ConnectionSummary) -> Option<Finding> {
    let remedy = match connection.status {
        Status::Error => "install the app again if Slack rejects its token",
        Status::Revoked => {
            "install the app again and declare its new token with tidegate apply, \
             or delete the connection"
        }
        _ => return None,
    };
    let ConnectionSummary { id, status, reason, .. } = connection;
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    Some(Finding::warning("slack", format!("connection {id} is {status}{reason}"), remedy))
}
