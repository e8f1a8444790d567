//! Changes by an operator under load: a rotated signing secret, and a row that changes without a
//! notification.

use crate::{
    Run,
    matrix::Outcome,
    runner::{Runner, SIZE, ensure_in_time, ensure_nothing_else_stored, ensure_undisturbed, held},
};
use anyhow::ensure;
use std::{
    cell::Cell,
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tests::{
    agent::Agent,
    eventually::try_eventually,
    fault::CALM,
    provision::new_agent,
    slack::webhook::Webhook,
    test_env::{App, Ingest, TIMEOUT, TestEnv},
};

/// A signing secret is rotated. During an overlap both secrets are valid, and Slack uses both. Then
/// Slack uses only the new secret, and only it is valid.
pub async fn secret_rotated(_: Run) -> anyhow::Result<Outcome> {
    const NEW: &str = "the-new-signing-secret-of-this-app";
    const OVERLAP: Duration = Duration::from_secs(8);
    let env = TestEnv::start(SIZE).await?;
    let runner = Runner { repeats: false, ..Runner::default() };
    let (mut taken, mut lasted) = (Vec::new(), Duration::ZERO);
    let verdict = runner
        .run_in(&env, async |env, app| {
            let (began, id) = (Instant::now(), app.connection.to_string());
            let overlap = format!("{}s", OVERLAP.as_secs());
            let new = env.secret_argument(NEW)?;
            let rotate = [
                "connections",
                "rotate-signing-secret",
                &id,
                "--secret",
                &new,
                "--overlap",
                &overlap,
            ];
            env.run_tidegate(&rotate).await?;
            let in_force = began.elapsed();
            runner.signing.use_secrets(&[&app.secret, NEW]);
            tokio::time::sleep((OVERLAP - in_force) / 2).await;
            runner.signing.use_secrets(&[NEW]);
            for ingest in &env.ingests {
                taken.extend(send_until_rejected(env, app, ingest).await?);
            }
            lasted = began.elapsed();
            // The overlap began between the start and the end of the command.
            ensure!(lasted >= OVERLAP, "the old secret was rejected after {lasted:?}");
            ensure!(lasted < OVERLAP + in_force + CALM, "the old secret was valid for {lasted:?}");
            for ingest in &env.ingests {
                let matched = async |secret: &str| {
                    let line =
                        format!("tidegate_ingest_signatures_verified_total{{secret=\"{secret}\"}}");
                    ingest.metric(&line).await
                };
                let (current, previous) = (matched("current").await?, matched("previous").await?);
                ensure!(current > 0.0 && previous > 0.0, "verified with the current secret {current} times, with the previous one {previous} times");
            }
            Ok(())
        })
        .await?;
    ensure_undisturbed(&verdict)?;
    ensure_nothing_else_stored(&env, &verdict, taken.len()).await?;
    for webhook in &taken {
        env.try_wait_for_outcome(&webhook.dedup_key).await?;
    }
    let seconds = lasted.as_secs_f64();
    held(verdict, [format!("the old secret was rejected {seconds:.1} s after the rotation began")])
}

/// Sends webhooks signed with the old secret until they are rejected, and checks that they stay
/// rejected. Returns the accepted webhooks.
async fn send_until_rejected(
    env: &TestEnv,
    app: &App,
    ingest: &Ingest,
) -> anyhow::Result<Vec<Webhook>> {
    let (began, mut taken, mut refused) = (Instant::now(), Vec::new(), 0);
    let mut pace = tokio::time::interval(Duration::from_millis(50));
    while refused < 5 {
        pace.tick().await;
        let webhook = Webhook::message(&env.slack, app, "C9300", "U1", "signed as before");
        let answer = env.slack.send(&ingest.url(app), &app.secret, &webhook).await?;
        match answer.status {
            401 => refused += 1,
            200 if refused == 0 => taken.push(webhook),
            _ => anyhow::bail!(
                "a webhook signed with the old secret was answered {answer:?} after {refused} rejections"
            ),
        }
        ensure!(began.elapsed() < TIMEOUT, "the old secret is not rejected");
    }
    Ok(taken)
}

/// A connection gets another agent without a notification: every decision queries Postgres, so the
/// change is in force at once.
pub async fn unannounced_change(_: Run) -> anyhow::Result<Outcome> {
    /// Maximum time until the change is in force for all calls: earlier decisions keep their agent.
    const IN_FORCE: Duration = Duration::from_secs(2);
    let env = TestEnv::start(SIZE).await?;
    let newer = Agent::start().await?;
    let mut seen_after = Duration::ZERO;
    let runner = Runner { repeats: false, ..Runner::default() };
    let verdict = runner
        .run_in(&env, async |env, app| {
            let id = "newer".parse().map_err(anyhow::Error::msg)?;
            env.store.put_agent(&new_agent(&app.org, id, newer.url())?).await?;
            for sql in [
                "alter table connections disable trigger connections_notify",
                "update connections set agent_id = 'newer'",
            ] {
                sqlx::query(sql).execute(&env.pool).await?;
            }
            let changed = Instant::now();
            let last = Cell::new((env.agent.requests().len(), Instant::now()));
            try_eventually("no worker calls the older agent", IN_FORCE + 2 * CALM, async || {
                let (asked, now) = (env.agent.requests().len(), Instant::now());
                if asked > last.get().0 {
                    last.set((asked, now));
                }
                let quiet = now - last.get().1;
                (quiet >= CALM && !newer.requests().is_empty()).then_some(())
            })
            .await?;
            seen_after = last.get().1 - changed;
            ensure!(seen_after < IN_FORCE, "the change was in force after {seen_after:?}");
            Ok(())
        })
        .await?;
    ensure_in_time(&verdict)?;
    ensure!(verdict.rejected == 0, "{} requests were rejected: {verdict}", verdict.rejected);
    let ids =
        |agent: &Agent| agent.requests().into_iter().map(|asked| asked.id).collect::<Vec<_>>();
    let (older, newer) = (ids(&env.agent), ids(&newer));
    let all: BTreeSet<&String> = older.iter().chain(&newer).collect();
    let each_once = all.len() == older.len() + newer.len() && all.len() == verdict.accepted;
    ensure!(
        each_once,
        "the agents got {} and {} requests, with repeats: {verdict}",
        older.len(),
        newer.len()
    );
    held(verdict, [format!("in force for all workers after {:.1} s", seen_after.as_secs_f64())])
}
