//! Processes of a test environment.

use super::{READY_WITHIN, Role, TestEnv};
use crate::{
    binaries::Binaries, eventually::try_eventually, port, process::Process, test_env::App,
};
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
    /// Worker id in Postgres.
    pub id: String,
    /// The process.
    pub process: Process,
    admin: String,
}

/// A control API with a console.
pub struct Control {
    /// The process.
    pub process: Process,
    address: String,
    admin: String,
    console: String,
}

impl TestEnv {
    /// Starts another control API and waits until it is ready.
    pub async fn start_control(&mut self) -> anyhow::Result<()> {
        let control = self.spawn_control()?;
        wait_until_ready("control", &control.admin("/readyz"), &control.process).await?;
        self.controls.push(control);
        Ok(())
    }

    /// Starts a control API.
    pub fn spawn_control(&self) -> anyhow::Result<Control> {
        let (listen, admin) =
            (format!("127.0.0.1:{}", port::free()?), format!("127.0.0.1:{}", port::free()?));
        let console = format!("127.0.0.1:{}", port::free()?);
        let mut settings = self.settings_of(Role::Control);
        settings.push(("TIDEGATE_CONSOLE_LISTEN".into(), console.clone()));
        settings.push(("TIDEGATE_HTTP_LISTEN".into(), listen.clone()));
        settings.push(("TIDEGATE_ADMIN_LISTEN".into(), admin.clone()));
        let name = format!("control-{}", self.controls.len() + 1);
        let program = &Binaries::get()?.control;
        let process = Process::start(&self.run, &name, program, &[] as &[&str], &settings, None)?;
        let (address, admin) = (format!("http://{listen}"), format!("http://{admin}"));
        let console = format!("http://{console}");
        Ok(Control { process, address, admin, console })
    }

    /// Starts another ingest and waits until it is ready.
    pub async fn start_ingest(&mut self) -> anyhow::Result<()> {
        let ingest = self.spawn_ingest()?;
        ingest.wait_until_ready().await?;
        self.ingests.push(ingest);
        Ok(())
    }

    /// Starts an ingest without waiting until it is ready. It is not added to `ingests`.
    pub fn spawn_ingest(&self) -> anyhow::Result<Ingest> {
        let (listen, admin) =
            (format!("127.0.0.1:{}", port::free()?), format!("127.0.0.1:{}", port::free()?));
        let mut settings = self.settings_of(Role::Ingest);
        settings.push(("TIDEGATE_HTTP_LISTEN".into(), listen.clone()));
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
        Ok(Ingest {
            process,
            address: format!("http://{listen}"),
            admin: format!("http://{admin}"),
        })
    }

    /// Starts another worker of the product.
    pub async fn start_worker(&mut self) -> anyhow::Result<()> {
        self.start_worker_of(&Binaries::get()?.worker)
    }

    /// Starts another worker that is an example of the product.
    pub async fn start_example(&mut self, name: &str) -> anyhow::Result<()> {
        self.start_worker_of(&Binaries::get()?.example(name)?)
    }

    /// Starts another worker from a folder of programs.
    pub fn start_worker_from(&mut self, dir: &Path) -> anyhow::Result<()> {
        self.start_worker_of(&dir.join("worker"))
    }

    /// Starts another worker from a program.
    pub fn start_worker_of(&mut self, program: &Path) -> anyhow::Result<()> {
        let id = format!("worker-{}", self.workers.len() + 1);
        let admin = format!("127.0.0.1:{}", port::free()?);
        let mut settings = self.settings_of(Role::Worker);
        settings.push(("TIDEGATE_WORKER_ID".into(), id.clone()));
        settings.push(("TIDEGATE_ADMIN_LISTEN".into(), admin.clone()));
        let (program, args) = match &self.namespace_prefix {
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
    /// Returns the URL of the route of an app's connection.
    pub fn url(&self, app: &App) -> String {
        format!("{}/api/v1/webhooks/{}", self.address, app.connection)
    }

    /// Returns the URL of a path.
    pub fn path(&self, path: &str) -> String {
        format!("{}{path}", self.address)
    }

    /// Returns the URL of the admin server.
    pub fn admin(&self, path: &str) -> String {
        format!("{}{path}", self.admin)
    }

    /// Returns the metrics page.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        Ok(reqwest::get(self.admin("/metrics")).await?.error_for_status()?.text().await?)
    }

    /// Returns the value of a metric by its name and labels, or 0 if it does not exist.
    pub async fn metric(&self, line: &str) -> anyhow::Result<f64> {
        metric(&self.admin("/metrics"), line).await
    }

    /// Waits until the ingest is ready.
    pub async fn wait_until_ready(&self) -> anyhow::Result<()> {
        wait_until_ready("ingest", &self.admin("/readyz"), &self.process).await
    }
}

impl Control {
    /// Returns the URL of a path of the API.
    pub fn path(&self, path: &str) -> String {
        format!("{}{path}", self.address)
    }

    /// Returns the URL of a page of the console.
    pub fn console(&self, path: &str) -> String {
        format!("{}{path}", self.console)
    }

    /// Returns the URL of the admin server.
    pub fn admin(&self, path: &str) -> String {
        format!("{}{path}", self.admin)
    }

    /// Returns the value of a metric by its name and labels, or 0 if it does not exist.
    pub async fn metric(&self, line: &str) -> anyhow::Result<f64> {
        metric(&self.admin("/metrics"), line).await
    }
}

async fn wait_until_ready(what: &str, url: &str, process: &Process) -> anyhow::Result<()> {
    let ready = async || reqwest::get(url).await.ok()?.status().is_success().then_some(());
    try_eventually(&format!("{what} is ready"), READY_WITHIN, ready)
        .await
        .with_context(|| process.log())
}

impl Worker {
    /// Returns the URL of the admin server.
    pub fn admin(&self, path: &str) -> String {
        format!("{}{path}", self.admin)
    }

    /// Returns the value of a metric by its name and labels, or 0 if it does not exist.
    pub async fn metric(&self, line: &str) -> anyhow::Result<f64> {
        metric(&self.admin("/metrics"), line).await
    }
}

async fn metric(page: &str, line: &str) -> anyhow::Result<f64> {
    let page = reqwest::get(page).await?.error_for_status()?.text().await?;
    let value = page.lines().find_map(|text| text.strip_prefix(line)?.trim().parse().ok());
    Ok(value.unwrap_or_default())
}
