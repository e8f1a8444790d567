//! What an operator changes while webhooks come: a signing secret, and a row of which no worker is told.

use crate::{
    Run,
    rows::Outcome,
    trial::{SIZE, Trial, held, in_time, nothing_else_stored, undisturbed},
};
use anyhow::ensure;
use std::{
    cell::Cell,
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tests::{
    agent::Agent,
    provision::new_agent,
    slack::webhook::Webhook,
    strike::CALM,
    until::try_until,
    world::{App, Ingest, SOON, World},
};

/// A signing secret is replaced: for a while both are good, and Slack uses both; then only the new one is, and Slack has none of
/// the old ones left.
pub async fn secret_rotated(_: Run) -> anyhow::Result<Outcome> {
    const NEW: &str = "the-new-signing-secret-of-this-app";
    const OVERLAP: Duration = Duration::from_secs(8);
    let world = World::start(SIZE).await?;
    let trial = Trial { repeats: false, ..Trial::default() };
    let (mut taken, mut lasted) = (Vec::new(), Duration::ZERO);
    let verdict = trial
        .in_world(&world, async |world, app| {
            let (began, id) = (Instant::now(), app.connection.to_string());
            let overlap = format!("{}s", OVERLAP.as_secs());
            let rotate = [
                "connections",
                "rotate-signing-secret",
                &id,
                "--secret",
                NEW,
                "--overlap",
                &overlap,
            ];
            world.operate(&rotate).await?;
            let in_force = began.elapsed();
            trial.signing.with(&[&app.secret, NEW]);
            tokio::time::sleep((OVERLAP - in_force) / 2).await;
            trial.signing.with(&[NEW]);
            for ingest in &world.ingests {
                taken.extend(until_refused(world, app, ingest).await?);
            }
            lasted = began.elapsed();
            // Between the two moments that are certain: before the verb began, and once it was in force.
            ensure!(lasted >= OVERLAP, "the old secret was refused after {lasted:?}");
            ensure!(lasted < OVERLAP + in_force + CALM, "the old secret was good for {lasted:?}");
            for ingest in &world.ingests {
                let matched = async |secret: &str| {
                    let line =
                        format!("tidegate_ingest_signatures_verified_total{{secret=\"{secret}\"}}");
                    ingest.metric(&line).await
                };
                let (current, previous) = (matched("current").await?, matched("previous").await?);
                ensure!(current > 0.0 && previous > 0.0, "matched {current} and {previous}");
            }
            Ok(())
        })
        .await?;
    undisturbed(&verdict)?;
    nothing_else_stored(&world, &verdict, taken.len()).await?;
    for webhook in &taken {
        world.try_handled(&webhook.dedupe).await?;
    }
    let seconds = lasted.as_secs_f64();
    held(verdict, [format!("the old secret was refused {seconds:.1} s after the rotation began")])
}

/// Signs with the old secret until that is refused, and then it stays so; gives what was taken before.
async fn until_refused(world: &World, app: &App, ingest: &Ingest) -> anyhow::Result<Vec<Webhook>> {
    let (began, mut taken, mut refused) = (Instant::now(), Vec::new(), 0);
    let mut pace = tokio::time::interval(Duration::from_millis(50));
    while refused < 5 {
        pace.tick().await;
        let webhook = Webhook::message(&world.slack, app, "C9300", "U1", "signed as before");
        let answer = world.slack.send(&ingest.url(app), &app.secret, &webhook).await?;
        match answer.status {
            401 => refused += 1,
            200 if refused == 0 => taken.push(webhook),
            _ => anyhow::bail!("the old secret got {answer:?} after {refused} refusals"),
        }
        ensure!(began.elapsed() < SOON, "the old secret is good for ever");
    }
    Ok(taken)
}

/// A connection gets another agent, and nobody hears of it: every decision asks Postgres, so it is in force at once.
pub async fn nobody_told(_: Run) -> anyhow::Result<Outcome> {
    /// What was decided before keeps its agent, and a question may be under way.
    const IN_FORCE: Duration = Duration::from_secs(2);
    let world = World::start(SIZE).await?;
    let newer = Agent::start().await?;
    let mut seen_after = Duration::ZERO;
    let trial = Trial { repeats: false, ..Trial::default() };
    let verdict = trial
        .in_world(&world, async |world, app| {
            let id = "newer".parse().map_err(anyhow::Error::msg)?;
            world.store.put_agent(&new_agent(&app.org, id, newer.url())?).await?;
            for sql in [
                "alter table connections disable trigger connections_notify",
                "update connections set agent_id = 'newer'",
            ] {
                sqlx::query(sql).execute(&world.pool).await?;
            }
            let changed = Instant::now();
            let last = Cell::new((world.agent.asked().len(), Instant::now()));
            try_until("no worker asks the older agent", IN_FORCE + 2 * CALM, async || {
                let (asked, now) = (world.agent.asked().len(), Instant::now());
                if asked > last.get().0 {
                    last.set((asked, now));
                }
                let quiet = now - last.get().1;
                (quiet >= CALM && !newer.asked().is_empty()).then_some(())
            })
            .await?;
            seen_after = last.get().1 - changed;
            ensure!(seen_after < IN_FORCE, "it was seen after {seen_after:?}");
            Ok(())
        })
        .await?;
    in_time(&verdict)?;
    ensure!(verdict.turned_away == 0, "{} were turned away: {verdict}", verdict.turned_away);
    let ids = |agent: &Agent| agent.asked().into_iter().map(|asked| asked.id).collect::<Vec<_>>();
    let (older, newer) = (ids(&world.agent), ids(&newer));
    let all: BTreeSet<&String> = older.iter().chain(&newer).collect();
    let each_once = all.len() == older.len() + newer.len() && all.len() == verdict.accepted;
    ensure!(each_once, "{} and {} were asked: {verdict}", older.len(), newer.len());
    held(verdict, [format!("in force for all workers after {:.1} s", seen_after.as_secs_f64())])
}
