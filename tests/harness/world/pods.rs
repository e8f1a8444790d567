//! The processes of a world.
//!
//! In: settings, those of the world. Out: an [`Ingest`] or a [`Worker`] that runs, and what it says of itself.

use super::{READY_WITHIN, Role, World};
use crate::{binaries::Binaries, port, process::Process, until::try_until, world::App};
use anyhow::Context;
use std::path::Path;

/// An ingest process.
pub struct Ingest {
    /// The process.
    pub process: Process,
    address: String,
    admin: String,
}

/// A worker process.
pub struct Worker {
    /// Its name in Postgres.
    pub id: String,
    /// The process.
    pub process: Process,
    admin: String,
}

impl World {
    /// Starts one more ingest and waits until it is ready.
    pub async fn start_ingest(&mut self) -> anyhow::Result<()> {
        let (listen, admin) =
            (format!("127.0.0.1:{}", port::free()?), format!("127.0.0.1:{}", port::free()?));
        let mut settings = self.settings_of(Role::Ingest);
        settings.push(("TIDEGATE_LISTEN".into(), listen.clone()));
        settings.push(("TIDEGATE_ADMIN_LISTEN".into(), admin.clone()));
        let name = format!("ingest-{}", self.ingests.len() + 1);
        let process = Process::start(
            &self.run,
            &name,
            &Binaries::get()?.ingest,
            &[] as &[&str],
            &settings,
            None,
        )?;
        let ingest = Ingest {
            process,
            address: format!("http://{listen}"),
            admin: format!("http://{admin}"),
        };
        ingest.ready().await?;
        self.ingests.push(ingest);
        Ok(())
    }

    /// Starts one more worker.
    pub async fn start_worker(&mut self) -> anyhow::Result<()> {
        self.start_worker_of(&Binaries::get()?.worker)
    }

    /// Starts one more worker, which is an example of how to write one's own.
    pub async fn start_example(&mut self, name: &str) -> anyhow::Result<()> {
        self.start_worker_of(&Binaries::get()?.example(name)?)
    }

    /// Starts one more worker, of another build: the one in this directory.
    pub fn start_worker_from(&mut self, dir: &Path) -> anyhow::Result<()> {
        self.start_worker_of(&dir.join("worker"))
    }

    /// Starts one more worker, which is that program.
    pub fn start_worker_of(&mut self, program: &Path) -> anyhow::Result<()> {
        let id = format!("worker-{}", self.workers.len() + 1);
        let admin = format!("127.0.0.1:{}", port::free()?);
        let mut settings = self.settings_of(Role::Worker);
        settings.push(("TIDEGATE_WORKER_ID".into(), id.clone()));
        settings.push(("TIDEGATE_ADMIN_LISTEN".into(), admin.clone()));
        let (program, args) = match &self.within {
            None => (program.to_owned(), Vec::new()),
            Some((ip, prefix)) => {
                let mut args = prefix.clone();
                args.push(program.display().to_string());
                (ip.clone(), args)
            }
        };
        let process = Process::start(&self.run, &id, &program, &args, &settings, None)?;
        self.workers.push(Worker { id, process, admin: format!("http://{admin}") });
        Ok(())
    }
}

impl Ingest {
    /// The address of an app's own route.
    pub fn url(&self, app: &App) -> String {
        format!("{}/api/v1/webhooks/{}", self.address, app.connection)
    }

    /// The address of a path.
    pub fn path(&self, path: &str) -> String {
        format!("{}{path}", self.address)
    }

    /// Its health's address.
    pub fn admin(&self, path: &str) -> String {
        format!("{}{path}", self.admin)
    }

    /// The page that Prometheus reads.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        Ok(reqwest::get(self.admin("/metrics")).await?.error_for_status()?.text().await?)
    }

    /// One figure of that page, by its name and labels as they stand there; 0 if it does not.
    pub async fn metric(&self, line: &str) -> anyhow::Result<f64> {
        metric(&self.admin("/metrics"), line).await
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let ready = async || {
            let answer = reqwest::get(self.admin("/readyz")).await.ok()?;
            answer.status().is_success().then_some(())
        };
        try_until("ingest is ready", READY_WITHIN, ready).await.with_context(|| self.process.log())
    }
}

impl Worker {
    /// Its health's address.
    pub fn admin(&self, path: &str) -> String {
        format!("{}{path}", self.admin)
    }

    /// One figure of its page of metrics, by its name and labels as they stand there; 0 if it does not.
    pub async fn metric(&self, line: &str) -> anyhow::Result<f64> {
        metric(&self.admin("/metrics"), line).await
    }
}

async fn metric(page: &str, line: &str) -> anyhow::Result<f64> {
    let page = reqwest::get(page).await?.error_for_status()?.text().await?;
    let value = page.lines().find_map(|text| text.strip_prefix(line)?.trim().parse().ok());
    Ok(value.unwrap_or_default())
}
