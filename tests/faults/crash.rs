//! What dies, hangs, goes and comes back.

use crate::{
    Run,
    rows::Outcome,
    trial::{SIZE, TAKEN_OVER, Trial, held, in_time, replace_workers, say_everywhere},
};
use anyhow::{Context, ensure};
use shared::types::ConnectionId;
use std::{
    process::Command,
    time::{Duration, Instant},
};
use tests::{
    checker::Verdict,
    race::Race,
    strike::{CALM, FAULTS, Fault},
    world::{App, SOON, World, agent_id},
};

pub async fn nothing(_: Run) -> anyhow::Result<Outcome> {
    let trial = Trial { repeats: false, ..Trial::default() };
    let verdict = trial
        .run(async |_, _| {
            tokio::time::sleep(CALM).await;
            Ok(())
        })
        .await?;
    in_time(&verdict)?;
    ensure!(verdict.turned_away == 0, "{} were turned away: {verdict}", verdict.turned_away);
    held(verdict, [])
}

pub async fn ingest_killed(mut run: Run) -> anyhow::Result<Outcome> {
    let which = run.random.below(SIZE.ingests);
    let trial = Trial { repeats: false, ..Trial::default() };
    let verdict = trial.run(async |world, _| Fault::KillIngest.strike(world, which).await).await?;
    in_time(&verdict)?;
    held(verdict, [])
}

pub async fn worker_killed(_: Run) -> anyhow::Result<Outcome> {
    // With an agent that takes a moment there is always something in hand.
    let trial = Trial { says: "slow:300", pace: Duration::from_millis(400), ..Trial::default() };
    let verdict = trial.run(async |world, _| Fault::KillWorker.strike(world, 0).await).await?;
    ensure!(verdict.worst_gap < TAKEN_OVER, "{verdict}");
    held(verdict, [])
}

pub async fn worker_frozen(_: Run) -> anyhow::Result<Outcome> {
    let strike = async |world: &World, _: &App| Fault::FreezeWorker.strike(world, 0).await;
    held(Trial::default().run(strike).await?, [])
}

pub async fn worker_frozen_long(_: Run) -> anyhow::Result<Outcome> {
    let verdict = Trial::default()
        .run(async |world, _| {
            let worker = &world.workers[0].process;
            worker.freeze();
            tokio::time::sleep(Duration::from_secs(60)).await;
            worker.thaw();
            Ok(())
        })
        .await?;
    held(verdict, [])
}

pub async fn nats_killed(_: Run) -> anyhow::Result<Outcome> {
    let verdict = nats_gone(Duration::from_secs(3)).await?;
    ensure!(verdict.told_so > 0, "no command was told that it was not taken: {verdict}");
    held(verdict, [])
}

pub async fn nats_away(_: Run) -> anyhow::Result<Outcome> {
    let world = World::start(SIZE).await?;
    let before: Vec<u64> =
        world.ingests.iter().filter_map(|ingest| ingest.process.resident().ok()).collect();
    let mut worst = 0;
    let trial = Trial { repeats: false, users: 4, ..Trial::default() };
    let verdict = trial
        .in_world(&world, async |world, _| {
            away(world, Duration::from_secs(10)).await?;
            for (ingest, before) in world.ingests.iter().zip(&before) {
                worst = worst.max(ingest.process.resident()?.saturating_sub(*before));
            }
            Ok(())
        })
        .await?;
    in_time(&verdict)?;
    ensure!(verdict.told_so > 0, "no command was told that it was not taken: {verdict}");
    let grown = worst >> 20;
    ensure!(grown < 64, "an ingest grew by {grown} MiB while NATS was away");
    held(verdict, [format!("ingest grew by {grown} MiB")])
}

async fn nats_gone(lasting: Duration) -> anyhow::Result<Verdict> {
    let trial = Trial { repeats: false, users: 4, ..Trial::default() };
    let verdict = trial.run(async |world, _| away(world, lasting).await).await?;
    in_time(&verdict)?;
    Ok(verdict)
}

async fn away(world: &World, lasting: Duration) -> anyhow::Result<()> {
    world.nats.kill();
    tokio::time::sleep(lasting).await;
    world.nats.restart().await
}

/// Every webhook is taken all the same, and an unknown connection is unknown.
pub async fn postgres_away(_: Run) -> anyhow::Result<Outcome> {
    let trial = Trial { drained_within: Duration::from_secs(90), ..Trial::default() };
    let verdict = trial
        .run(async |world, _| {
            world.postgres.freeze();
            strangers_are_unknown(world).await?;
            tokio::time::sleep(Duration::from_secs(10)).await;
            world.postgres.thaw();
            tokio::time::sleep(CALM).await;
            world.postgres.kill();
            tokio::time::sleep(Duration::from_secs(5)).await;
            world.postgres.restart().await
        })
        .await?;
    nothing_of_it_at_the_door(&verdict)?;
    held(verdict, [])
}

pub async fn postgres_away_long(_: Run) -> anyhow::Result<Outcome> {
    let trial = Trial { drained_within: Duration::from_secs(120), ..Trial::default() };
    let verdict = trial
        .run(async |world, _| {
            world.postgres.kill();
            strangers_are_unknown(world).await?;
            tokio::time::sleep(Duration::from_secs(60)).await;
            world.postgres.restart().await
        })
        .await?;
    nothing_of_it_at_the_door(&verdict)?;
    held(verdict, [])
}

/// The directory says so, and needs no Postgres for it.
async fn strangers_are_unknown(world: &World) -> anyhow::Result<()> {
    let url = world.ingests[0].path(&format!("/api/v1/webhooks/{}", ConnectionId::random()?));
    let answer = reqwest::Client::new().post(url).body("{}").send().await?;
    ensure!(answer.status() == 404, "an unknown connection got {}", answer.status());
    Ok(())
}

fn nothing_of_it_at_the_door(verdict: &Verdict) -> anyhow::Result<()> {
    in_time(verdict)?;
    ensure!(verdict.turned_away == 0, "ingest knows no Postgres, and turned away: {verdict}");
    Ok(())
}

/// As a cluster does it: one after the other, who is to go first says that it is not ready, then has its grace.
pub async fn rolling_restart(_: Run) -> anyhow::Result<Outcome> {
    let mut world = World::without_processes(SIZE).await?;
    world.set("TIDEGATE_DRAIN_DELAY", "1s");
    world.start_processes().await?;
    let trial = Trial { balanced: true, repeats: false, ..Trial::default() };
    let verdict = trial
        .in_world(&world, async |world, _| {
            for ingest in &world.ingests {
                ingest.process.terminate();
                let status = ingest.process.wait(SOON).await?;
                ensure!(status.success(), "an ingest ended by {status}");
                ingest.process.restart()?;
                ingest.ready().await?;
            }
            for worker in &world.workers {
                worker.process.terminate();
                let status = worker.process.wait(SOON).await?;
                ensure!(status.success(), "a worker ended by {status}");
                worker.process.restart()?;
            }
            world.settled().await
        })
        .await?;
    in_time(&verdict)?;
    ensure!(verdict.turned_away == 0, "{} were turned away: {verdict}", verdict.turned_away);
    held(verdict, [])
}

/// Codes, and five people racing for each, while Postgres dies: one wins each, and everybody hears something.
pub async fn postgres_killed_mid_claim(_: Run) -> anyhow::Result<Outcome> {
    const CODES: u32 = 20;
    const RACERS: u32 = 5;
    let world = World::start(SIZE).await?;
    let app = world.connect().await?;
    let race = Race::new(&world, &app, CODES, RACERS).await?;
    let sending = async {
        for racer in 0..RACERS {
            for (_, webhook) in race.commands().filter(|(said, _)| said.1 == racer) {
                let answer = world.send(&app, webhook).await?;
                ensure!(answer.status == 200 && answer.body.is_empty(), "{answer:?}");
                tokio::time::sleep(Duration::from_millis(40)).await;
            }
        }
        anyhow::Ok(())
    };
    let killing = async {
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        world.postgres.kill();
        tokio::time::sleep(CALM).await;
        world.postgres.restart().await
    };
    let (sent, killed) = tokio::join!(sending, killing);
    sent?;
    killed?;
    race.heard(&world, SOON).await?;
    let verdict = race.judged(&world, SOON).await?;
    ensure!(verdict.holds(true), "{verdict:?}");
    held(verdict, [format!("{CODES} codes won once each by {} people", CODES * RACERS)])
}

/// A worker that is given no more memory than it has: the first larger demand ends it.
pub async fn worker_out_of_memory(_: Run) -> anyhow::Result<Outcome> {
    let prlimit = "/usr/bin/prlimit";
    if !std::path::Path::new(prlimit).is_file() {
        return Ok(Outcome::Skipped("there is no prlimit here".into()));
    }
    let mut ended = None;
    let verdict = Trial::default()
        .run(async |world, _| {
            let worker = &world.workers[0].process;
            let limit = Command::new(prlimit)
                .args([format!("--pid={}", worker.pid()), "--as=1000000".into()])
                .output()?;
            ensure!(limit.status.success(), "{}", String::from_utf8_lossy(&limit.stderr));
            ended = worker.wait(Duration::from_secs(15)).await.ok();
            if ended.is_none() {
                worker.kill(); // it got by with what it had
            }
            worker.restart()?;
            Ok(())
        })
        .await?;
    let how =
        ended.map_or_else(|| "it got by, and was killed".into(), |s| format!("it ended: {s}"));
    held(verdict, [how])
}

/// The next release has migrated, and this one still runs: what is added disturbs nobody.
pub async fn schema_ahead(_: Run) -> anyhow::Result<Outcome> {
    let verdict = Trial { repeats: false, ..Trial::default() }
        .run(async |world, _| {
            for sql in [
                "alter table partition_cursors add column of_the_next_release text",
                "alter table outbox add column of_the_next_release text not null default 'x'",
                "create table of_the_next_release (id bigint)",
                "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
                 values (9999, 'next', true, '', 0)",
            ] {
                sqlx::query(sql).execute(&world.pool).await.context("the next release migrates")?;
            }
            replace_workers(world).await
        })
        .await?;
    held(
        verdict,
        ["there is no release before this one to run: an addition stands for the next".into()],
    )
}

/// Postgres is brought back as it was some time ago: what was handled since lies in the stream, and is handled again.
pub async fn postgres_restored(_: Run) -> anyhow::Result<Outcome> {
    let world = World::start(SIZE).await?;
    let mut lost = 0;
    let trial = Trial { drained_within: Duration::from_secs(90), ..Trial::default() };
    let verdict = trial
        .in_world(&world, async |world, _| {
            let idle = world.connect_as(|new| new.agent = Some(agent_id())).await?;
            world.postgres.save().await?;
            let before = handled(world).await?;
            // Nothing comes into its partitions afterwards by which its owner would notice.
            let forgotten = say_everywhere(world, &idle, "forgotten").await?;
            tokio::time::sleep(CALM).await;
            lost = handled(world).await? - before;
            world.postgres.restore().await?;
            for webhook in &forgotten {
                world.try_handled(&webhook.dedupe).await?;
            }
            Ok(())
        })
        .await?;
    in_time(&verdict)?;
    ensure!(lost > 0, "nothing was handled in between: nothing was proved");
    held(verdict, [format!("{lost} deliveries were forgotten, and made again")])
}

async fn handled(world: &World) -> anyhow::Result<i64> {
    let count = "select count(*) from delivery_log";
    Ok(sqlx::query_scalar(count).fetch_one(&world.pool).await?)
}

/// One fault after the other, and at most two worlds' worth of a machine.
pub async fn at_random(mut run: Run) -> anyhow::Result<Outcome> {
    let trial = Trial { drained_within: Duration::from_secs(120), ..Trial::default() };
    let mut struck = Vec::new();
    let verdict = trial
        .run(async |world: &World, _: &App| {
            let began = Instant::now();
            while began.elapsed() < run.lasting {
                let (fault, which) = (*run.random.pick(&FAULTS), run.random.below(64));
                eprintln!("      {:6.1} s {fault:?} {which}", began.elapsed().as_secs_f64());
                fault.strike(world, which).await?;
                struck.push(fault);
                tokio::time::sleep(Duration::from_millis(200 + 100 * run.random.below(20) as u64))
                    .await;
            }
            Ok(())
        })
        .await?;
    held(verdict, [format!("{} faults", struck.len())])
}
