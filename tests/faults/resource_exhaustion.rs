//! Exhausted resources: a full disk, and sockets of clients that send nothing or slowly.

use crate::{
    Run,
    matrix::Outcome,
    runner::{Runner, ensure_in_time, ensure_nothing_else_stored, ensure_undisturbed, held},
};
use anyhow::{Context, ensure};
use std::{path::Path, process::Command, time::Duration};
use tests::{
    eventually::try_eventually,
    fault::CALM,
    slack::{
        slow_clients::{IDLE_MIN, SLOW_CLIENTS},
        webhook::Webhook,
    },
    test_env::{Size, TIMEOUT, TestEnv},
};

const SIZE: Size = Size { ingests: 2, workers: 2, own_postgres: true };

/// A tmpfs as the disk of a server. Unmounted when dropped.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    fn mount(at: &'a Path, mib: u32) -> anyhow::Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "mounting a tmpfs needs root");
        let size = format!("size={mib}m");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output();
        let mounted = mounted.context("failed to run `mount`")?;
        let errors = String::from_utf8_lossy(&mounted.stderr).trim().to_owned();
        ensure!(mounted.status.success(), "failed to mount a tmpfs: {errors}");
        Ok(Self(at))
    }

    fn grow(&self, mib: u32) -> anyhow::Result<()> {
        let size = format!("remount,size={mib}m");
        let grown = Command::new("mount").args(["-o", &size]).arg(self.0).status()?;
        ensure!(grown.success(), "failed to grow the tmpfs");
        Ok(())
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _best_effort = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// The disk of JetStream fills up: Slack gets answers in time, and no accepted webhook is lost.
/// After the disk is enlarged and the server restarted, webhooks are accepted again.
pub async fn disk_full(_: Run) -> anyhow::Result<Outcome> {
    let mut env = TestEnv::without_processes(SIZE).await?;
    let store = env.nats.store_dir().to_owned();
    // Stopped to move the store to the disk.
    env.nats.kill();
    let aside = store.with_file_name("aside");
    std::fs::rename(&store, &aside)?;
    std::fs::create_dir(&store)?;
    let disk = match Disk::mount(&store, 24) {
        Ok(disk) => disk,
        Err(why) => return Ok(Outcome::Skipped(format!("{why:#}"))),
    };
    let copied = Command::new("cp").arg("-a").arg(aside.join(".")).arg(&store).status()?;
    ensure!(copied.success(), "failed to copy the store to the tmpfs");
    env.nats.restart().await?;
    env.start_processes().await?;
    let mut refused = 0;
    let runner = Runner { users: 2, drained_within: Duration::from_secs(90), ..Runner::default() };
    let verdict = runner
        .run_in(&env, async |env, _| {
            let filler = env.connect().await?;
            let noise = async |n: u32| {
                let words: String = (0..100_000)
                    .filter_map(|_| char::from_digit(getrandom::u32().ok()? % 36, 36))
                    .collect();
                let webhook = Webhook::message(&env.slack, &filler, &format!("C{n}"), "U1", &words);
                env.send(&filler, &webhook).await
            };
            for n in 0..600 {
                if noise(n).await.is_ok_and(|answer| answer.status == 503) {
                    refused += 1;
                    if refused == 3 {
                        break;
                    }
                }
            }
            ensure!(refused == 3, "the disk did not fill up");
            disk.grow(256)?;
            tokio::time::sleep(CALM).await;
            env.nats.restart().await
        })
        .await?;
    ensure_in_time(&verdict)?;
    drop(env); // before the disk is unmounted
    held(verdict, ["accepted again only after a restart of NATS on the enlarged disk".into()])
}

/// Two hundred clients at each ingest send nothing or single bytes. Each is closed in time, and
/// other clients are served.
pub async fn slow_sockets(_: Run) -> anyhow::Result<Outcome> {
    const EACH: usize = 200;
    let env = TestEnv::start(SIZE).await?;
    let mut ages = Vec::new();
    let verdict = Runner { repeats: false, ..Runner::default() }
        .run_in(&env, async |env, app| {
            let webhook = Webhook::message(&env.slack, app, "D9000", "U1", "9000/0");
            let urls: Vec<_> = env.ingests.iter().map(|ingest| ingest.url(app)).collect();
            for _ in 0..2 {
                let clients = urls.iter().flat_map(|url| (0..EACH).map(move |n| (url, n)));
                let closed = clients.map(async |(url, n)| {
                    let slow = SLOW_CLIENTS[n % SLOW_CLIENTS.len()];
                    let closed = slow.closed(url, &app.secret, &webhook).await;
                    closed.with_context(|| format!("{slow:?}"))
                });
                ages.extend(futures_util::future::try_join_all(closed).await?);
            }
            Ok(())
        })
        .await?;
    ensure_undisturbed(&verdict)?;
    ensure_nothing_else_stored(&env, &verdict, 0).await?;
    ages.sort_unstable();
    let (first, last) = (ages[0], ages[ages.len() - 1]);
    ensure!(first >= IDLE_MIN, "a connection was closed too early, after {first:?}");
    held(
        verdict,
        [format!("{} sockets, each closed within {:.1} s", ages.len(), last.as_secs_f64())],
    )
}

/// Five thousand clients connect and send nothing. Memory is bounded, the health check answers, and
/// ingest becomes ready again.
pub async fn flood(_: Run) -> anyhow::Result<Outcome> {
    const IDLE: usize = 5_000;
    let env = TestEnv::start(SIZE).await?;
    let before = env.ingests[0].process.resident()?;
    let mut most = 0;
    let verdict = Runner { repeats: false, ..Runner::default() }
        .run_in(&env, async |env, app| {
            let address = env.ingests[0].url(app);
            let address =
                address.trim_start_matches("http://").split('/').next().unwrap_or_default();
            let mut idle = Vec::new();
            for _ in 0..IDLE {
                let opened = tokio::time::timeout(
                    Duration::from_millis(200),
                    tokio::net::TcpStream::connect(address),
                );
                match opened.await {
                    Ok(Ok(stream)) => idle.push(stream),
                    Ok(Err(error)) if error.raw_os_error() == Some(24) => {
                        anyhow::bail!("{error}: raise `ulimit -n`")
                    }
                    _ => {}
                }
            }
            most = idle.len();
            let health = reqwest::get(env.ingests[0].admin("/healthz")).await?;
            ensure!(health.status().is_success(), "the health check answered {}", health.status());
            Ok(())
        })
        .await?;
    let grown = env.ingests[0].process.resident()?.saturating_sub(before) >> 20;
    ensure!(grown < 256, "an ingest grew by {grown} MiB");
    try_eventually("ingest is ready again", TIMEOUT, async || {
        let ready = reqwest::get(env.ingests[0].admin("/readyz")).await.ok()?;
        ready.status().is_success().then_some(())
    })
    .await?;
    held(verdict, [format!("{most} connections, ingest grew by {grown} MiB")])
}
