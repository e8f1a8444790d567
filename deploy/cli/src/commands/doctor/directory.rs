//! Checks of the directory: entries older than Postgres, ingests that lag behind, and connections
//! that do not work.

use super::Finding;
use shared::{
    directory::{Directory, DirectoryEntry, DirectoryTimeoutError},
    domain::{ConnectionId, ConnectionStatus},
    runtime::telemetry::ErrorChain,
    store::{ConnectionSummary, Store},
};
use std::{collections::HashMap, time::Duration};

const COMPONENT: &str = "directory";
/// Maximum number of connections that a finding names.
const NAMED_MAX: usize = 10;

/// Compares the directory with Postgres, and each ingest with the directory. With `fix`, first
/// rewrites entries that are older than Postgres.
pub(super) async fn check(
    directory: &Directory,
    store: &Store,
    fix: bool,
    findings: &mut Vec<Finding>,
) {
    if fix {
        match write_stale(directory, store).await {
            Ok(0) => {}
            Ok(written) => {
                let summary = format!("entries written that were older than Postgres: {written}");
                findings.push(Finding::good(COMPONENT, summary));
            }
            Err(error) => findings.push(failed(&format!("{error:#}"))),
        }
    }
    let compared = async {
        let rows: HashMap<_, _> =
            store.connection_versions(0, i64::MAX).await?.into_iter().collect();
        let mut stale = Vec::new();
        for (&id, &version) in &rows {
            match directory.entry(id).await? {
                Some(entry) if entry.version() >= version => {}
                _ => stale.push(id.to_string()),
            }
        }
        for id in directory.connections().await?.into_iter().filter(|id| !rows.contains_key(id)) {
            if matches!(directory.entry(id).await?, Some(DirectoryEntry::Known(_))) {
                stale.push(format!("{id} (deleted)"));
            }
        }
        anyhow::Ok((stale, directory.identity().await?.1))
    };
    let (stale, revision) = match compared.await {
        Ok(compared) => compared,
        Err(error) => {
            return findings.push(failed(&format!("{error:#}")));
        }
    };
    findings.push(entries(&stale));
    findings.push(match directory.wait_until_applied(revision, Duration::ZERO).await {
        Ok(()) => ingests(&[]),
        Err(DirectoryTimeoutError::Behind(behind)) => ingests(&behind),
        Err(DirectoryTimeoutError::Directory(error)) => failed(&ErrorChain(&error).to_string()),
    });
    findings.extend(failed_connections(store).await);
}

/// Returns a warning for each connection that does not work.
async fn failed_connections(store: &Store) -> Vec<Finding> {
    match store.connection_summaries(None).await {
        Ok(connections) => {
            let failed = |c: &ConnectionSummary| failed_connection(c.id, c.status, &c.reason);
            connections.iter().filter_map(failed).collect()
        }
        Err(error) => vec![Finding::unread_connections(&error)],
    }
}

/// Writes entries that are older than Postgres. Returns their number.
///
/// Leaves entries of deleted connections to a worker, which knows their versions.
async fn write_stale(directory: &Directory, store: &Store) -> anyhow::Result<u64> {
    let mut written = 0;
    for (id, version) in store.connection_versions(0, i64::MAX).await? {
        if directory.entry(id).await?.is_some_and(|entry| entry.version() >= version) {
            continue;
        }
        if let Some(entry) = store.directory_entry(id).await? {
            directory.project(id, &entry).await?;
            written += 1;
        }
    }
    Ok(written)
}

fn entries(stale: &[String]) -> Finding {
    if stale.is_empty() {
        return Finding::good(COMPONENT, "has all connections of Postgres");
    }
    let named = stale.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    Finding::problem(
        COMPONENT,
        format!("entries older than Postgres: {} ({named})", stale.len()),
        "run tidegate doctor --fix; a running worker repairs them within 30 s: check with \
         tidegate partitions that workers run",
    )
}

fn ingests(behind: &[String]) -> Finding {
    if behind.is_empty() {
        return Finding::good(COMPONENT, "every running ingest has applied all entries");
    }
    Finding::problem(
        COMPONENT,
        format!("ingests that have not applied all entries: {}", behind.join(", ")),
        "check their logs: they fail to read the directory from NATS",
    )
}

fn failed(reason: &str) -> Finding {
    let remedy = "check the findings about Postgres and NATS";
    Finding::problem(COMPONENT, format!("failed to compare with Postgres: {reason}"), remedy)
}

/// Returns a warning if a connection has no token, or Slack has rejected its token.
fn failed_connection(id: ConnectionId, status: ConnectionStatus, reason: &str) -> Option<Finding> {
    let remedy = match status {
        ConnectionStatus::Pending => {
            "declare its bot_token with tidegate apply; an app in mode forward needs none, and \
             tidegate connections enable is enough"
        }
        ConnectionStatus::Error => "install the app again if Slack rejects its token",
        ConnectionStatus::Revoked => {
            "install the app again and declare its new token with tidegate apply, \
             or delete the connection"
        }
        _ => return None,
    };
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    Some(Finding::warning("slack", format!("connection {id} is {status}{reason}"), remedy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::{render, unreachable_store};

    #[test]
    fn renders_findings() {
        let ids = ["first".to_owned(), "second".to_owned()];
        let found = [entries(&[]), entries(&ids), ingests(&[]), ingests(&ids), failed("timed out")];
        insta::assert_snapshot!(render(&found), @r"
        good     directory has all connections of Postgres
        problem  directory entries older than Postgres: 2 (first, second)
                           → run tidegate doctor --fix; a running worker repairs them within 30 s: check with tidegate partitions that workers run
        good     directory every running ingest has applied all entries
        problem  directory ingests that have not applied all entries: first, second
                           → check their logs: they fail to read the directory from NATS
        problem  directory failed to compare with Postgres: timed out
                           → check the findings about Postgres and NATS
        ");
        let id = format!("{:032x}", 7).parse().expect("an id");
        let statuses =
            [ConnectionStatus::Pending, ConnectionStatus::Error, ConnectionStatus::Revoked];
        let found = statuses.map(|status| failed_connection(id, status, "token_revoked"));
        insta::assert_snapshot!(render(&found.map(|found| found.expect("found"))), @r"
        warning  slack     connection 00000000000000000000000000000007 is pending: token_revoked
                           → declare its bot_token with tidegate apply; an app in mode forward needs none, and tidegate connections enable is enough
        warning  slack     connection 00000000000000000000000000000007 is error: token_revoked
                           → install the app again if Slack rejects its token
        warning  slack     connection 00000000000000000000000000000007 is revoked: token_revoked
                           → install the app again and declare its new token with tidegate apply, or delete the connection
        ");
        assert!(failed_connection(id, ConnectionStatus::Active, "").is_none());
    }

    #[tokio::test]
    async fn reports_unread_connections() {
        let found = failed_connections(&unreachable_store()).await;
        let found = render(&found);
        assert!(
            found.starts_with("problem  postgres  failed to read the connections: "),
            "{found}"
        );
    }
}
