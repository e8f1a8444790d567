//! Faults of agents and of Slack, duplicate webhooks, and a tenant with much traffic.

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

/// The agent takes 8 s and 25 s in two conversations. The others are not delayed.
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
    ensure!(gap < Duration::from_secs(2), "two slow conversations delayed the others: {verdict}");
    held(verdict, [])
}

/// One message always fails, another fails three times. Only the first becomes a dead letter, after
/// three attempts.
pub async fn poison(_: Run) -> anyhow::Result<Outcome> {
    let env = TestEnv::start(SIZE).await?;
    let verdict = Runner { repeats: false, ..Runner::default() }
        .run_in(&env, async |env, app| {
            send_message(env, app, "D9001", "poison").await?;
            send_message(env, app, "D9001", "after the poison").await?;
            send_message(env, app, "D9002", "fail:3 away").await?;
            let wait_for_answer = async |text: &str| {
                let wanted = format!("I heard: {text}");
                try_eventually(text, Duration::from_secs(60), async || {
                    env.slack.receipts().into_iter().find(|receipt| receipt.text() == wanted)
                })
                .await
            };
            wait_for_answer("fail:3 away").await?;
            wait_for_answer("after the poison").await?;
            Ok(())
        })
        .await?;
    let dead = env.dead_letters().await?;
    ensure!(
        dead.len() == 1 && dead[0].attempts == 3,
        "expected one dead letter after three attempts: {dead:?}"
    );
    held(
        verdict,
        [format!("dead letter after {} attempts: {}", dead[0].attempts, dead[0].last_error)],
    )
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

/// Calls for one workspace get all faults of Slack, some of them after the call took effect. Calls
/// for another workspace get none.
pub async fn slack_errors(_: Run) -> anyhow::Result<Outcome> {
    const POST: &str = "chat.postMessage";
    let env = TestEnv::start(SIZE).await?;
    let other = env.connect_as(|new| new.agent = Some(agent_id())).await?;
    let mut slowest = Duration::ZERO;
    // After a 429 calls are spaced, so more load would only wait.
    let pace = Duration::from_secs(1);
    let runner = Runner { pace, drained_within: Duration::from_secs(90), ..Runner::default() };
    let verdict = runner
        .run_in(&env, async |env, app| {
            let rule = |fault, times: usize| {
                FaultRule::new(fault).on(POST).with_token(&app.token).times(times)
            };
            for rule in [
                rule(Fault::Status(503), 3),
                rule(Fault::ApiError("internal_error".into()), 2),
                rule(Fault::Cut, 3),
                rule(Fault::Cut, 6).after_effect(),
                rule(Fault::MidBody, 3).after_effect(),
                rule(Fault::Status(500), 3).after_effect(),
                rule(Fault::ApiError("fatal_error".into()), 2).after_effect(),
                rule(Fault::Garbage, 2).after_effect(),
                rule(Fault::Silent, 1),
                rule(Fault::RateLimited(1), 1),
            ] {
                env.slack.inject_fault(rule);
            }
            for n in 0..10 {
                let (text, began) = (format!("untroubled {n}"), Instant::now());
                send_message(env, &other, "D0001", &text).await?;
                try_eventually("the other workspace gets an answer", TIMEOUT, async || {
                    let receipts = env.slack.receipts();
                    receipts.iter().any(|receipt| receipt.text().ends_with(&text)).then_some(())
                })
                .await?;
                slowest = slowest.max(began.elapsed());
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Ok(())
        })
        .await?;
    ensure!(
        slowest < Duration::from_secs(4),
        "an answer in the other workspace took {slowest:?}: {verdict}"
    );
    ensure!(verdict.repeated == 0, "messages that Slack had accepted were sent again: {verdict}");
    held(verdict, [format!("slowest answer in another workspace {:.1} s", slowest.as_secs_f64())])
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
    tokio::time::sleep(Duration::from_millis(700)).await; // the window has no visible end
    for (_, webhook) in &sent {
        ensure_all_accepted(&env, &app, webhook, &mut history).await?;
    }
    let after = env.stored().await?;
    ensure!(after > before, "JetStream stored no copy after its window: the test proves nothing");
    // When the last message of a conversation is processed, all earlier ones are processed.
    for conversation in 0..6 {
        let last = send_message(&env, &app, &format!("D{conversation:04}"), "the last").await?;
        env.try_wait_for_outcome(&last.dedup_key).await?;
    }
    try_eventually("the last messages are answered", TIMEOUT, async || {
        let receipts = env.slack.receipts();
        (receipts.iter().filter(|receipt| receipt.text().ends_with("the last")).count() == 6)
            .then_some(())
    })
    .await?;
    let parse_id = |text: &str| {
        let (conversation, place) = text.rsplit(' ').next()?.split_once('/')?;
        Some((conversation.parse().ok()?, place.parse().ok()?))
    };
    for (id, webhook) in &sent {
        if env.find_outcome(&webhook.dedup_key).await.is_some() {
            history.done.push((*id, Duration::ZERO));
        }
    }
    history.posted =
        env.slack.receipts().iter().filter_map(|receipt| parse_id(receipt.text())).collect();
    let asked = env.agent.requests();
    history.agent_calls =
        asked.iter().filter_map(|a| parse_id(a.question["text"].as_str()?)).collect();
    let verdict = check(&history);
    ensure!(verdict.holds(false) && verdict.repeated_calls == 0, "{verdict:?}");
    held(
        verdict,
        [format!("{} requests, {} stored after the window", history.attempts, after - before)],
    )
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

/// Measures a quiet tenant alone, beside a tenant that sends a hundred times as much, and alone
/// again. Counts the replies of the other tenant during each wait, which shows the order on any
/// machine.
pub async fn noisy_tenant(_: Run) -> anyhow::Result<Outcome> {
    const SOLO: Duration = Duration::from_secs(4);
    const NOISE: Duration = Duration::from_secs(8);
    /// Maximum 90th percentile beside the other tenant. Alone an answer takes 20 ms; beside the
    /// other tenant each step waits for one of two cores.
    const BUSY_CORES: Duration = Duration::from_millis(300);
    /// Twice the number of concurrent attempts of two workers for one connection: attempts that
    /// have a slot, and attempts that get one during the wait.
    const AHEAD: usize = 32;
    let env = TestEnv::start(Size { ingests: 2, workers: 2, own_postgres: true }).await?;
    let quiet = env.connect_as(|new| new.agent = Some(agent_id())).await?;
    let mut solo = answers(&env, &quiet, "alone", SOLO).await?;
    let (mut beside, mut waiting) = (Vec::new(), 0);
    // 200 messages per second, of which two workers process about half: most messages wait for a
    // slot, not for a core.
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
    ensure!(
        waiting > 300,
        "only {waiting} messages of the noisy tenant waited: the test proves nothing"
    );
    let posts = env.slack.calls_of("chat.postMessage");
    let ahead = |wait: &Range<Instant>| {
        posts.iter().filter(|call| call.team != quiet.team && wait.contains(&call.at)).count()
    };
    let ahead = percentile_90(beside.iter().map(ahead));
    ensure!(
        ahead <= AHEAD,
        "{ahead} answers to the noisy tenant ({waiting} messages waited) preceded an answer to the quiet tenant"
    );
    let lasted = |wait: &Range<Instant>| wait.end - wait.start;
    let solo = percentile_90(solo.iter().map(lasted));
    let beside = percentile_90(beside.iter().map(lasted));
    let allowed = (2 * solo).max(BUSY_CORES);
    ensure!(
        beside < allowed,
        "the quiet tenant waited {beside:?} beside the noisy tenant, {solo:?} alone"
    );
    let (solo, beside) = (solo.as_millis(), beside.as_millis());
    let notes = format!(
        "quiet p90 {solo} ms alone; {beside} ms and {ahead} other answers beside {waiting} waiting messages"
    );
    held(verdict, [notes])
}

/// Sends two messages per second. Returns the time range in which each message waited for its
/// answer.
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
        let call = try_eventually("the quiet tenant gets an answer", TIMEOUT, async || {
            env.slack.call(|call| call.args["text"] == answer)
        })
        .await?;
        waits.push(sent..call.at);
    }
    Ok(waits)
}

/// Returns the 90th percentile.
fn percentile_90<T: Ord + Copy + Default>(all: impl Iterator<Item = T>) -> T {
    let mut all = Vec::from_iter(all);
    all.sort_unstable();
    all.get(all.len() * 9 / 10).copied().unwrap_or_default()
}
