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
/// What each role may do.
const ROLES_SQL: &str = include_str!("../../../../postgres/roles.sql");

/// The running servers.
pub struct Servers {
    pub nats: Nats,
    pub postgres: Postgres,
}

impl Servers {
    /// Finds or fetches the servers, and starts them on the data of the state.
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
            let set = format!("alter role {name} password '{password}'");
            servers.postgres.execute(DATABASE, &set).await?;
            let url = servers.postgres.url(&name, &password, DATABASE);
            write_private(&state.key(&format!("{role}.url")), &url)?;
        }
        Ok(servers)
    }

    /// Grants the permissions of the roles: those of a migration's new tables after it.
    pub async fn grant(&self) -> anyhow::Result<()> {
        let granted = self.postgres.execute(DATABASE, ROLES_SQL).await;
        granted.context("failed to grant the permissions of deploy/postgres/roles.sql")
    }

    /// Stops both: the next start has nothing to recover.
    pub async fn stop(self) {
        self.nats.process().terminate();
        self.postgres.stop().await;
    }
}
