//! Processes and servers that are killed, frozen, stopped and restarted.

use crate::{
    Run,
    matrix::Outcome,
    runner::{Runner, SIZE, TAKEN_OVER, ensure_in_time, held, replace_workers, send_everywhere},
};
use anyhow::{Context, ensure};
use shared::domain::ConnectionId;
use std::{
    process::Command,
    time::{Duration, Instant},
};
use tests::{
    checker::Verdict,
    fault::{CALM, FAULTS, Fault},
    link_code_race::LinkCodeRace,
    test_env::{App, TIMEOUT, TestEnv, agent_id},
};

pub async fn no_fault(_: Run) -> anyhow::Result<Outcome> {
    let runner = Runner { repeats: false, ..Runner::default() };
    let verdict = runner
        .run(async |_, _| {
            tokio::time::sleep(CALM).await;
            Ok(())
        })
        .await?;
    ensure_in_time(&verdict)?;
    ensure!(verdict.rejected == 0, "{} requests were rejected: {verdict}", verdict.rejected);
    held(verdict, [])
}

pub async fn ingest_killed(mut run: Run) -> anyhow::Result<Outcome> {
    let which = run.random.below(SIZE.ingests);
    let runner = Runner { repeats: false, ..Runner::default() };
    let verdict = runner.run(async |env, _| Fault::KillIngest.inject(env, which).await).await?;
    ensure_in_time(&verdict)?;
    held(verdict, [])
}

pub async fn worker_killed(_: Run) -> anyhow::Result<Outcome> {
    // With a slow agent there are always running attempts.
    let runner =
        Runner { text_prefix: "slow:300", pace: Duration::from_millis(400), ..Runner::default() };
    let verdict = runner.run(async |env, _| Fault::KillWorker.inject(env, 0).await).await?;
    ensure!(verdict.worst_gap < TAKEN_OVER, "{verdict}");
    held(verdict, [])
}

pub async fn worker_frozen(_: Run) -> anyhow::Result<Outcome> {
    let inject = async |env: &TestEnv, _: &App| Fault::FreezeWorker.inject(env, 0).await;
    held(Runner::default().run(inject).await?, [])
}

pub async fn worker_frozen_long(_: Run) -> anyhow::Result<Outcome> {
    let verdict = Runner::default()
        .run(async |env, _| {
            let worker = &env.workers[0].process;
            worker.freeze();
            tokio::time::sleep(Duration::from_secs(60)).await;
            worker.thaw();
            Ok(())
        })
        .await?;
    held(verdict, [])
}

pub async fn nats_killed(_: Run) -> anyhow::Result<Outcome> {
    let verdict = run_nats_outage(Duration::from_secs(3)).await?;
    ensure!(verdict.notified > 0, "no user of a command got a notice: {verdict}");
    held(verdict, [])
}

pub async fn nats_away(_: Run) -> anyhow::Result<Outcome> {
    let env = TestEnv::start(SIZE).await?;
    let before: Vec<u64> =
        env.ingests.iter().filter_map(|ingest| ingest.process.resident().ok()).collect();
    let mut worst = 0;
    let runner = Runner { repeats: false, users: 4, ..Runner::default() };
    let verdict = runner
        .run_in(&env, async |env, _| {
            stop_nats(env, Duration::from_secs(10)).await?;
            for (ingest, before) in env.ingests.iter().zip(&before) {
                worst = worst.max(ingest.process.resident()?.saturating_sub(*before));
            }
            Ok(())
        })
        .await?;
    ensure_in_time(&verdict)?;
    ensure!(verdict.notified > 0, "no user of a command got a notice: {verdict}");
    let grown = worst >> 20;
    ensure!(grown < 64, "an ingest grew by {grown} MiB while NATS was down");
    held(verdict, [format!("ingest grew by {grown} MiB")])
}

async fn run_nats_outage(lasting: Duration) -> anyhow::Result<Verdict> {
    let runner = Runner { repeats: false, users: 4, ..Runner::default() };
    let verdict = runner.run(async |env, _| stop_nats(env, lasting).await).await?;
    ensure_in_time(&verdict)?;
    Ok(verdict)
}

async fn stop_nats(env: &TestEnv, lasting: Duration) -> anyhow::Result<()> {
    env.nats.kill();
    tokio::time::sleep(lasting).await;
    env.nats.restart().await
}

/// Ingest accepts every webhook, and rejects an unknown connection.
pub async fn postgres_away(_: Run) -> anyhow::Result<Outcome> {
    let runner = Runner { drained_within: Duration::from_secs(90), ..Runner::default() };
    let verdict = runner
        .run(async |env, _| {
            env.postgres.freeze();
            ensure_unknown_is_rejected(env).await?;
            tokio::time::sleep(Duration::from_secs(10)).await;
            env.postgres.thaw();
            tokio::time::sleep(CALM).await;
            env.postgres.kill();
            tokio::time::sleep(Duration::from_secs(5)).await;
            env.postgres.restart().await
        })
        .await?;
    ensure_ingest_undisturbed(&verdict)?;
    held(verdict, [])
}

pub async fn postgres_away_long(_: Run) -> anyhow::Result<Outcome> {
    let runner = Runner { drained_within: Duration::from_secs(120), ..Runner::default() };
    let verdict = runner
        .run(async |env, _| {
            env.postgres.kill();
            ensure_unknown_is_rejected(env).await?;
            tokio::time::sleep(Duration::from_secs(60)).await;
            env.postgres.restart().await
        })
        .await?;
    ensure_ingest_undisturbed(&verdict)?;
    held(verdict, [])
}

/// Checks that ingest rejects an unknown connection by its directory, without Postgres.
async fn ensure_unknown_is_rejected(env: &TestEnv) -> anyhow::Result<()> {
    let url = env.ingests[0].path(&format!("/api/v1/webhooks/{}", ConnectionId::random()?));
    let answer = reqwest::Client::new().post(url).body("{}").send().await?;
    ensure!(answer.status() == 404, "an unknown connection was answered {}", answer.status());
    Ok(())
}

fn ensure_ingest_undisturbed(verdict: &Verdict) -> anyhow::Result<()> {
    ensure_in_time(verdict)?;
    ensure!(
        verdict.rejected == 0,
        "ingest does not use Postgres, but rejected requests: {verdict}"
    );
    Ok(())
}

/// Restarts the processes one by one, as Kubernetes does. Each reports that it is not ready, then
/// has its grace period.
pub async fn rolling_restart(_: Run) -> anyhow::Result<Outcome> {
    let mut env = TestEnv::without_processes(SIZE).await?;
    env.set("TIDEGATE_DRAIN_PERIOD", "1s");
    env.start_processes().await?;
    let runner = Runner { balanced: true, repeats: false, ..Runner::default() };
    let verdict = runner
        .run_in(&env, async |env, _| {
            for ingest in &env.ingests {
                ingest.process.terminate();
                let status = ingest.process.wait(TIMEOUT).await?;
                ensure!(status.success(), "an ingest ended with {status}");
                ingest.process.restart()?;
                ingest.wait_until_ready().await?;
            }
            for worker in &env.workers {
                worker.process.terminate();
                let status = worker.process.wait(TIMEOUT).await?;
                ensure!(status.success(), "a worker ended with {status}");
                worker.process.restart()?;
            }
            env.wait_until_balanced().await
        })
        .await?;
    ensure_in_time(&verdict)?;
    ensure!(verdict.rejected == 0, "{} requests were rejected: {verdict}", verdict.rejected);
    held(verdict, [])
}

/// Five people use each link code while Postgres is killed: one person wins each code, and every
/// person gets an answer.
pub async fn postgres_killed_mid_claim(_: Run) -> anyhow::Result<Outcome> {
    const CODES: u32 = 20;
    const RACERS: u32 = 5;
    let env = TestEnv::start(SIZE).await?;
    let app = env.connect().await?;
    let race = LinkCodeRace::new(&env, &app, CODES, RACERS).await?;
    let sending = async {
        for racer in 0..RACERS {
            for (_, webhook) in race.commands().filter(|(id, _)| id.1 == racer) {
                let answer = env.send(&app, webhook).await?;
                ensure!(answer.status == 200 && answer.body.is_empty(), "{answer:?}");
                tokio::time::sleep(Duration::from_millis(40)).await;
            }
        }
        anyhow::Ok(())
    };
    let killing = async {
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        env.postgres.kill();
        tokio::time::sleep(CALM).await;
        env.postgres.restart().await
    };
    let (sent, killed) = tokio::join!(sending, killing);
    sent?;
    killed?;
    race.wait_for_answers(&env, TIMEOUT).await?;
    let verdict = race.verdict(&env, TIMEOUT).await?;
    ensure!(verdict.holds(true), "{verdict:?}");
    held(verdict, [format!("each of {CODES} codes won once, by {} people", CODES * RACERS)])
}

/// A worker gets a memory limit below its size: the next large allocation ends it.
pub async fn worker_out_of_memory(_: Run) -> anyhow::Result<Outcome> {
    let prlimit = "/usr/bin/prlimit";
    if !std::path::Path::new(prlimit).is_file() {
        return Ok(Outcome::Skipped("prlimit is not installed; install util-linux".into()));
    }
    let mut ended = None;
    let verdict = Runner::default()
        .run(async |env, _| {
            let worker = &env.workers[0].process;
            let limit = Command::new(prlimit)
                .args([format!("--pid={}", worker.pid()), "--as=1000000".into()])
                .output()?;
            ensure!(limit.status.success(), "{}", String::from_utf8_lossy(&limit.stderr));
            ended = worker.wait(Duration::from_secs(15)).await.ok();
            if ended.is_none() {
                worker.kill(); // no allocation failed
            }
            worker.restart()?;
            Ok(())
        })
        .await?;
    let how = ended.map_or_else(
        || "no allocation failed; the worker was killed".into(),
        |s| format!("the worker ended: {s}"),
    );
    held(verdict, [how])
}

/// The schema of the next release is applied while this release runs: additions have no effect.
pub async fn schema_ahead(_: Run) -> anyhow::Result<Outcome> {
    let verdict = Runner { repeats: false, ..Runner::default() }
        .run(async |env, _| {
            for sql in [
                "alter table partition_cursors add column of_the_next_release text",
                "alter table outbox add column of_the_next_release text not null default 'x'",
                "create table of_the_next_release (id bigint)",
                "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
                 values (9999, 'next', true, '', 0)",
            ] {
                let applied = sqlx::query(sql).execute(&env.pool).await;
                applied.context("failed to apply the schema of the next release")?;
            }
            replace_workers(env).await
        })
        .await?;
    held(verdict, ["additions to the schema simulate the next release".into()])
}

/// Postgres is restored to an earlier state: later webhooks are still in the stream and are
/// processed again.
pub async fn postgres_restored(_: Run) -> anyhow::Result<Outcome> {
    let env = TestEnv::start(SIZE).await?;
    let mut lost = 0;
    let runner = Runner { drained_within: Duration::from_secs(90), ..Runner::default() };
    let verdict = runner
        .run_in(&env, async |env, _| {
            let idle = env.connect_as(|new| new.agent = Some(agent_id())).await?;
            env.postgres.save().await?;
            let before = count_deliveries(env).await?;
            // No later webhook arrives in the partitions of this connection, so none reveals the
            // loss.
            let forgotten = send_everywhere(env, &idle, "forgotten").await?;
            tokio::time::sleep(CALM).await;
            lost = count_deliveries(env).await? - before;
            env.postgres.restore().await?;
            for webhook in &forgotten {
                env.try_wait_for_outcome(&webhook.dedup_key).await?;
            }
            Ok(())
        })
        .await?;
    ensure_in_time(&verdict)?;
    ensure!(lost > 0, "no delivery ended between backup and restore: the test proves nothing");
    held(verdict, [format!("{lost} deliveries were lost and processed again")])
}

async fn count_deliveries(env: &TestEnv) -> anyhow::Result<i64> {
    let count = "select count(*) from delivery_log";
    Ok(sqlx::query_scalar(count).fetch_one(&env.pool).await?)
}

/// Injects random faults, one after the other, for the time of `--minutes`.
pub async fn at_random(mut run: Run) -> anyhow::Result<Outcome> {
    let runner = Runner { drained_within: Duration::from_secs(120), ..Runner::default() };
    let mut injected = Vec::new();
    let verdict = runner
        .run(async |env: &TestEnv, _: &App| {
            let began = Instant::now();
            while began.elapsed() < run.lasting {
                let (fault, which) = (*run.random.pick(&FAULTS), run.random.below(64));
                eprintln!("      {:6.1} s {fault:?} {which}", began.elapsed().as_secs_f64());
                fault.inject(env, which).await?;
                injected.push(fault);
                tokio::time::sleep(Duration::from_millis(200 + 100 * run.random.below(20) as u64))
                    .await;
            }
            Ok(())
        })
        .await?;
    held(verdict, [format!("{} faults", injected.len())])
}
