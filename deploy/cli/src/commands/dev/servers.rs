//! nats-server and Postgres of `tidegate dev`, with the users and roles of a deployment.

use super::state::{ROLES, State};
use crate::dev_settings::write_private;
use anyhow::Context;
use dev::{
    finder,
    nats::{self, Nats},
    postgres::Postgres,
    run_dir::RunDir,
};
use std::sync::Arc;

/// Name of the database.
const DATABASE: &str = "tidegate";
/// Permissions of each role.
const ROLES_SQL: &str = include_str!("../../../../postgres/roles.sql");

/// Running nats-server and Postgres.
pub struct Servers {
    pub nats: Nats,
    pub postgres: Postgres,
}

impl Servers {
    /// Finds or fetches the servers, and starts them with the data in the folder of the state.
    ///
    /// Creates the database and the roles, and writes a file with the URL of each role.
    pub async fn start(run: &Arc<RunDir>, state: &State) -> anyhow::Result<Self> {
        let (nats, postgres) = tokio::join!(finder::nats_server(run), finder::postgres_bin(run));
        let (nats, postgres, users) = (nats?, postgres?, state.nats_users()?);
        let dir = state.path("nats");
        let place = nats::Place { dir: &dir, log: state.log("nats"), users: &users };
        let (data, log) = (state.path("postgres"), state.log("postgres"));
        let password = state.password("superuser")?;
        let (nats, postgres) = tokio::try_join!(
            Nats::start(run, &nats, &place),
            Postgres::start(run, &postgres, &data, &log, &password),
        )?;
        let servers = Self { nats, postgres };
        servers.postgres.ensure_database(DATABASE).await?;
        servers.grant().await?;
        for role in ROLES {
            let (name, password) = (format!("tidegate_{role}"), state.password(role)?);
            let statement = format!("alter role {name} password '{password}'");
            servers.postgres.execute(DATABASE, &statement).await?;
            let url = servers.postgres.url(&name, &password, DATABASE);
            write_private(&state.key(&format!("{role}.url")), &url)?;
        }
        Ok(servers)
    }

    /// Creates the roles and grants their permissions. Has to run again after a migration, for its
    /// new tables.
    pub async fn grant(&self) -> anyhow::Result<()> {
        let granted = self.postgres.execute(DATABASE, ROLES_SQL).await;
        granted.context("failed to run deploy/postgres/roles.sql")
    }

    /// Stops both servers cleanly, so that the next start needs no recovery.
    pub async fn stop(self) {
        self.nats.process().terminate();
        self.postgres.stop().await;
    }
}
