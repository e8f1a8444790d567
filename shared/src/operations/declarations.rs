//! Operations on the whole deployment: declarations, key rotation.

use super::{Operations, Result, directory};
use crate::{
    directory::Directory,
    store::{
        ApplyMode, ConflictError, Declarations, Plan, RewrapStats, SEALED_COLUMNS, SealedColumn,
    },
};
use async_nats::jetstream;

impl Operations {
    /// Applies declarations, and waits until every live ingest has them, or only computes the plan.
    /// Calls `review` with the plan, after its commit.
    pub async fn apply_declarations(
        &self,
        js: &jetstream::Context,
        declared: &Declarations,
        mode: ApplyMode,
        review: impl FnOnce(&Plan),
    ) -> Result<std::result::Result<Plan, Vec<ConflictError>>> {
        self.require_all_orgs()?;
        self.require_signing_ring()?;
        // NATS must be reachable before Postgres changes: every change must reach the directory.
        if !mode.dry_run {
            Directory::open(js).await?;
        }
        let applied = self.store.apply_declarations(&self.actor, declared, mode).await?;
        let plan = match applied {
            Ok(plan) => plan,
            Err(conflicts) => return Ok(Err(conflicts)),
        };
        review(&plan);
        if plan.is_applied {
            // Apps before connections: the secrets of an app verify its connections' webhooks.
            directory::publish_apps(&self.store, js, &plan.apps, &plan.deleted_apps).await?;
            if self.deletes_traffic {
                for &deleted in &plan.deleted {
                    self.store.delete_connection(deleted).await?;
                }
            }
            directory::publish(&self.store, js, &plan.connections).await?;
            for &deleted in &plan.deleted {
                directory::publish_tombstone(&self.store, js, deleted).await?;
                if self.deletes_traffic {
                    directory::purge_webhooks(&self.store, js, deleted).await?;
                }
            }
        }
        Ok(Ok(plan))
    }

    /// Encrypts all values with the newest key of their keyring, also in the directory. After each
    /// step, calls `step` with the column, the number of written values, and whether the column is
    /// finished. Returns the values that did not open.
    pub async fn rewrap(
        &self,
        js: &jetstream::Context,
        mut step: impl FnMut(&SealedColumn, u64, bool),
    ) -> Result<Vec<String>> {
        self.require_all_orgs()?;
        self.store.begin_rewrap(&self.actor).await?;
        let mut unopened = Vec::new();
        for column in &SEALED_COLUMNS {
            let (mut after, mut written) = (String::new(), 0);
            loop {
                let RewrapStats { next, written: of_step, unopened: not_opened } =
                    self.store.rewrap(column, &after).await?;
                written += of_step;
                unopened.extend(not_opened);
                step(column, written, next.is_none());
                let Some(next) = next else { break };
                after = next;
            }
        }
        // The directory holds the ciphertexts of signing secrets.
        let versions = self.store.connection_versions(0, i64::MAX).await?;
        let ids: Vec<_> = versions.into_iter().map(|(id, _)| id).collect();
        // A connection that was deleted meanwhile has no secret left.
        directory::publish_existing(&self.store, js, &ids).await?;
        let apps = self.store.app_entries().await?;
        let apps: Vec<_> = apps.into_iter().map(|(id, _)| id).collect();
        directory::publish_apps(&self.store, js, &apps, &[]).await?;
        Ok(unopened)
    }
}
