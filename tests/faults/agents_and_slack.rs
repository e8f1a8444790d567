//! Faults of agents and of Slack, copies, and a tenant with much traffic.

use crate::{
    Run,
    matrix::Outcome,
    runner::{Runner, SIZE, ensure_in_time, held},
};
use anyhow::ensure;
use std::{
    ops::Range,
    time::{Duration, Instant},
};
use tests::{
    checker::{Acceptance, History, check},
    eventually::try_eventually,
    fault::CALM,
    slack::{
        fault_injection::{Fault, FaultRule},
        webhook::Webhook,
    },
    test_env::{App, Size, TIMEOUT, TestEnv, agent_id},
};

/// Two conversations hang; the others continue at their pace.
pub async fn slow_agent(_: Run) -> anyhow::Result<Outcome> {
    let env = TestEnv::start(SIZE).await?;
    let verdict = Runner { repeats: false, ..Runner::default() }
        .run_in(&env, async |env, app| {
            for (channel, words) in
                [("D9001", "slow:8000 hangs"), ("D9002", "slow:25000 hangs longer")]
            {
                send_message(env, app, channel, words).await?;
            }
            tokio::time::sleep(Duration::from_secs(6)).await;
            Ok(())
        })
        .await?;
    let gap = verdict.worst_gap;
    ensure!(gap < Duration::from_secs(2), "two slow conversations held up all: {verdict}");
    held(verdict, [])
}

/// One message always fails, and the agent of another is unavailable for a while: only the first
/// becomes a dead letter, after its attempts.
pub async fn poison(_: Run) -> anyhow::Result<Outcome> {
    let env = TestEnv::start(SIZE).await?;
    let verdict = Runner { repeats: false, ..Runner::default() }
        .run_in(&env, async |env, app| {
            send_message(env, app, "D9001", "poison").await?;
            send_message(env, app, "D9001", "after the poison").await?;
            send_message(env, app, "D9002", "fail:3 away").await?;
            let heard = async |text: &str| {
                let wanted = format!("I heard: {text}");
                try_eventually(text, Duration::from_secs(60), async || {
                    env.slack.receipts().into_iter().find(|receipt| receipt.text() == wanted)
                })
                .await
            };
            heard("fail:3 away").await?;
            heard("after the poison").await?;
            Ok(())
        })
        .await?;
    let dead = env.dead_letters().await?;
    ensure!(dead.len() == 1 && dead[0].attempts == 3, "dead: {dead:?}");
    held(verdict, [format!("dead after {} tries: {}", dead[0].attempts, dead[0].last_error)])
}

async fn send_message(
    env: &TestEnv,
    app: &App,
    channel: &str,
    text: &str,
) -> anyhow::Result<Webhook> {
    let webhook = Webhook::message(&env.slack, app, channel, "U1", text);
    let answer = env.send(app, &webhook).await?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(webhook)
}

/// All faults of Slack, some of them after the call took effect. Another workspace has none.
pub async fn slack_in_trouble(_: Run) -> anyhow::Result<Outcome> {
    const POST: &str = "chat.postMessage";
    let env = TestEnv::start(SIZE).await?;
    let other = env.connect_as(|new| new.agent = Some(agent_id())).await?;
    let mut slowest = Duration::ZERO;
    // After a 429 calls are spaced: more load would only wait.
    let pace = Duration::from_secs(1);
    let runner = Runner { pace, drained_within: Duration::from_secs(90), ..Runner::default() };
    let verdict = runner
        .run_in(&env, async |env, app| {
            let trouble = |fault, times: usize| {
                FaultRule::new(fault).on(POST).with_token(&app.token).times(times)
            };
            for made in [
                trouble(Fault::Status(503), 3),
                trouble(Fault::Says("internal_error".into()), 2),
                trouble(Fault::Cut, 3),
                trouble(Fault::Cut, 6).after_the_fact(),
                trouble(Fault::MidBody, 3).after_the_fact(),
                trouble(Fault::Status(500), 3).after_the_fact(),
                trouble(Fault::Says("fatal_error".into()), 2).after_the_fact(),
                trouble(Fault::Garbage, 2).after_the_fact(),
                trouble(Fault::Silent, 1),
                trouble(Fault::RateLimited(1), 1),
            ] {
                env.slack.inject_fault(made);
            }
            for n in 0..10 {
                let (text, began) = (format!("untroubled {n}"), Instant::now());
                send_message(env, &other, "D0001", &text).await?;
                try_eventually("the other workspace hears", TIMEOUT, async || {
                    let told = env.slack.receipts();
                    told.iter().any(|receipt| receipt.text().ends_with(&text)).then_some(())
                })
                .await?;
                slowest = slowest.max(began.elapsed());
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Ok(())
        })
        .await?;
    ensure!(slowest < Duration::from_secs(4), "another workspace waited {slowest:?}: {verdict}");
    ensure!(verdict.repeated == 0, "what Slack had taken was said again: {verdict}");
    held(verdict, [format!("another workspace waited {:.1} s at most", slowest.as_secs_f64())])
}

/// Every webhook is sent five times at once, on both ingests, and again after JetStream's dedup
/// window.
pub async fn duplicates(_: Run) -> anyhow::Result<Outcome> {
    const WEBHOOKS: u32 = 60;
    let env = TestEnv::start(SIZE).await?;
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await?;
    let window = Duration::from_millis(500);
    env.change_stream(|stream| stream.duplicate_window = window).await?;
    let (mut history, mut sent) = (History::default(), Vec::new());
    for place in 0..WEBHOOKS {
        let (conversation, place) = (place % 6, place / 6);
        let text = format!("{conversation}/{place}");
        let channel = format!("D{conversation:04}");
        let webhook = Webhook::message(&env.slack, &app, &channel, "U1", &text);
        ensure_all_accepted(&env, &app, &webhook, &mut history).await?;
        history.sent.insert((conversation, place), Acceptance::Accepted);
        sent.push(((conversation, place), webhook));
    }
    for (_, webhook) in &sent {
        env.try_wait_for_outcome(&webhook.dedup_key).await?;
    }
    let before = env.stored().await?;
    tokio::time::sleep(Duration::from_millis(700)).await; // past the window: there is nothing to see that it is over
    for (_, webhook) in &sent {
        ensure_all_accepted(&env, &app, webhook, &mut history).await?;
    }
    let after = env.stored().await?;
    ensure!(after > before, "no copy got past JetStream's window: nothing was proved");
    // A last message in each conversation: when it is handled, all before it are handled.
    for conversation in 0..6 {
        let last = send_message(&env, &app, &format!("D{conversation:04}"), "the last").await?;
        env.try_wait_for_outcome(&last.dedup_key).await?;
    }
    try_eventually("all is said", TIMEOUT, async || {
        let told = env.slack.receipts();
        (told.iter().filter(|receipt| receipt.text().ends_with("the last")).count() == 6)
            .then_some(())
    })
    .await?;
    let heard = |text: &str| {
        let (conversation, place) = text.rsplit(' ').next()?.split_once('/')?;
        Some((conversation.parse().ok()?, place.parse().ok()?))
    };
    for (said, webhook) in &sent {
        if env.find_outcome(&webhook.dedup_key).await.is_some() {
            history.done.push((*said, Duration::ZERO));
        }
    }
    history.posted =
        env.slack.receipts().iter().filter_map(|receipt| heard(receipt.text())).collect();
    let asked = env.agent.requests();
    history.agent_calls =
        asked.iter().filter_map(|a| heard(a.question["text"].as_str()?)).collect();
    let verdict = check(&history);
    ensure!(verdict.holds(false) && verdict.repeated_calls == 0, "{verdict:?}");
    held(verdict, [format!("{} copies, {} past the window", history.attempts, after - before)])
}

async fn ensure_all_accepted(
    env: &TestEnv,
    app: &App,
    webhook: &Webhook,
    history: &mut History,
) -> anyhow::Result<()> {
    let copies = (0..5).map(|_| env.send(app, webhook));
    for answer in futures_util::future::join_all(copies).await {
        let answer = answer?;
        ensure!(answer.status == 200, "{answer:?}");
        history.attempts += 1;
        history.slowest = history.slowest.max(answer.took);
    }
    Ok(())
}

/// Measures a quiet tenant alone, beside one that sends a hundred times as much, and alone again.
/// Counts the other tenant's replies meanwhile, which shows the order on any machine.
pub async fn noisy_tenant(_: Run) -> anyhow::Result<Outcome> {
    const SOLO: Duration = Duration::from_secs(4);
    const NOISE: Duration = Duration::from_secs(8);
    /// Alone it takes 20 ms. Beside the other tenant every step waits for its turn on two cores.
    const BUSY_CORES: Duration = Duration::from_millis(300);
    /// Twice the attempts of two workers for one connection: those with a slot, and those that get
    /// one meanwhile.
    const AHEAD: usize = 32;
    let env = TestEnv::start(Size { ingests: 2, workers: 2, own_postgres: true }).await?;
    let quiet = env.connect_as(|new| new.agent = Some(agent_id())).await?;
    let mut solo = answers(&env, &quiet, "alone", SOLO).await?;
    let (mut beside, mut waiting) = (Vec::new(), 0);
    // 200 per second, of which two workers handle about half: most messages wait, and the cores do
    // not.
    let runner = Runner {
        conversations: 40,
        users: 0,
        pace: Duration::from_millis(200),
        text_prefix: "slow:150",
        repeats: false,
        ..Runner::default()
    };
    let verdict = runner
        .run_in(&env, async |env, _| {
            beside = answers(env, &quiet, "beside", NOISE).await?;
            waiting = env.stored().await?.saturating_sub(env.finished().await?);
            Ok(())
        })
        .await?;
    ensure_in_time(&verdict)?;
    solo.extend(answers(&env, &quiet, "alone again", SOLO).await?);
    ensure!(waiting > 300, "only {waiting} of the noisy one waited: nothing was proved");
    let told = env.slack.calls_of("chat.postMessage");
    let ahead = |wait: &Range<Instant>| {
        told.iter().filter(|call| call.team != quiet.team && wait.contains(&call.at)).count()
    };
    let ahead = percentile_90(beside.iter().map(ahead));
    ensure!(ahead <= AHEAD, "{ahead} of the {waiting} of a noisy tenant went before a quiet one's");
    let lasted = |wait: &Range<Instant>| wait.end - wait.start;
    let solo = percentile_90(solo.iter().map(lasted));
    let beside = percentile_90(beside.iter().map(lasted));
    let allowed = (2 * solo).max(BUSY_CORES);
    ensure!(
        beside < allowed,
        "a quiet tenant waited {beside:?} beside a noisy one, {solo:?} alone"
    );
    let (solo, beside) = (solo.as_millis(), beside.as_millis());
    let notes = format!(
        "quiet p90 {solo} ms alone, {beside} ms and {ahead} others' answers beside {waiting} that waited"
    );
    held(verdict, [notes])
}

/// Returns from when to when each message waited for its answer, at two messages per second.
async fn answers(
    env: &TestEnv,
    app: &App,
    what: &str,
    lasting: Duration,
) -> anyhow::Result<Vec<Range<Instant>>> {
    let (mut pace, mut waits) = (tokio::time::interval(CALM / 4), Vec::new());
    let over = Instant::now() + lasting;
    while Instant::now() < over {
        pace.tick().await;
        let (text, sent) = (format!("{what} {}", waits.len()), Instant::now());
        send_message(env, app, "D7000", &text).await?;
        let answer = format!("I heard: {text}");
        let heard = try_eventually("the quiet one hears", TIMEOUT, async || {
            env.slack.call(|call| call.args["text"] == answer)
        })
        .await?;
        waits.push(sent..heard.at);
    }
    Ok(waits)
}

/// Returns the 90th percentile.
fn percentile_90<T: Ord + Copy + Default>(all: impl Iterator<Item = T>) -> T {
    let mut all = Vec::from_iter(all);
    all.sort_unstable();
    all.get(all.len() * 9 / 10).copied().unwrap_or_default()
}
