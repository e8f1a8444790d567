//! Agents and Slack that misbehave, copies, and a tenant that is loud.

use crate::{
    Run,
    rows::Outcome,
    trial::{SIZE, Trial, held, in_time},
};
use anyhow::ensure;
use std::{
    ops::Range,
    time::{Duration, Instant},
};
use tests::{
    checker::{Fate, History, check},
    slack::{
        trouble::{Fault, Trouble},
        webhook::Webhook,
    },
    strike::CALM,
    until::try_until,
    world::{App, SOON, Size, World, agent_id},
};

/// Two conversations hang; the others go on at their pace.
pub async fn slow_agent(_: Run) -> anyhow::Result<Outcome> {
    let world = World::start(SIZE).await?;
    let verdict = Trial { repeats: false, ..Trial::default() }
        .in_world(&world, async |world, app| {
            for (channel, words) in
                [("D9001", "slow:8000 hangs"), ("D9002", "slow:25000 hangs longer")]
            {
                say(world, app, channel, words).await?;
            }
            tokio::time::sleep(Duration::from_secs(6)).await;
            Ok(())
        })
        .await?;
    let gap = verdict.worst_gap;
    ensure!(gap < Duration::from_secs(2), "two slow conversations held up all: {verdict}");
    held(verdict, [])
}

/// One message can never be handled, another's agent is away for a while: the first alone is dead, and only after its tries.
pub async fn poison(_: Run) -> anyhow::Result<Outcome> {
    let world = World::start(SIZE).await?;
    let verdict = Trial { repeats: false, ..Trial::default() }
        .in_world(&world, async |world, app| {
            say(world, app, "D9001", "poison").await?;
            say(world, app, "D9001", "after the poison").await?;
            say(world, app, "D9002", "fail:3 away").await?;
            let heard = async |text: &str| {
                let wanted = format!("I heard: {text}");
                try_until(text, Duration::from_secs(60), async || {
                    world.slack.receipts().into_iter().find(|receipt| receipt.text() == wanted)
                })
                .await
            };
            heard("fail:3 away").await?;
            heard("after the poison").await?;
            Ok(())
        })
        .await?;
    let dead = world.dead_letters().await?;
    ensure!(dead.len() == 1 && dead[0].attempts == 3, "dead: {dead:?}");
    held(verdict, [format!("dead after {} tries: {}", dead[0].attempts, dead[0].last_error)])
}

async fn say(world: &World, app: &App, channel: &str, text: &str) -> anyhow::Result<Webhook> {
    let webhook = Webhook::message(&world.slack, app, channel, "U1", text);
    let answer = world.send(app, &webhook).await?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(webhook)
}

/// Every sort of trouble that Slack can make, some of it after it took what it was told. Another workspace has none of it.
pub async fn slack_in_trouble(_: Run) -> anyhow::Result<Outcome> {
    const POST: &str = "chat.postMessage";
    let world = World::start(SIZE).await?;
    let other = world.connect_as(|new| new.agent = Some(agent_id())).await?;
    let mut slowest = Duration::ZERO;
    // After a 429 calls keep a distance: more would only be waited for.
    let pace = Duration::from_secs(1);
    let trial = Trial { pace, drained_within: Duration::from_secs(90), ..Trial::default() };
    let verdict = trial
        .in_world(&world, async |world, app| {
            let trouble = |fault, times: usize| {
                Trouble::new(fault).on(POST).with_token(&app.token).times(times)
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
                world.slack.trouble(made);
            }
            for n in 0..10 {
                let (text, began) = (format!("untroubled {n}"), Instant::now());
                say(world, &other, "D0001", &text).await?;
                try_until("the other workspace hears", SOON, async || {
                    let told = world.slack.receipts();
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

/// Every webhook comes five times at once, on both ingests, and again when JetStream has forgotten it.
pub async fn duplicates(_: Run) -> anyhow::Result<Outcome> {
    const WEBHOOKS: u32 = 60;
    let world = World::start(SIZE).await?;
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await?;
    let window = Duration::from_millis(500);
    world.change_stream(|stream| stream.duplicate_window = window).await?;
    let (mut history, mut sent) = (History::default(), Vec::new());
    for place in 0..WEBHOOKS {
        let (conversation, place) = (place % 6, place / 6);
        let text = format!("{conversation}/{place}");
        let channel = format!("D{conversation:04}");
        let webhook = Webhook::message(&world.slack, &app, &channel, "U1", &text);
        all_taken(&world, &app, &webhook, &mut history).await?;
        history.sent.insert((conversation, place), Fate::Accepted);
        sent.push(((conversation, place), webhook));
    }
    for (_, webhook) in &sent {
        world.try_handled(&webhook.dedupe).await?;
    }
    let before = world.stored().await?;
    tokio::time::sleep(Duration::from_millis(700)).await; // past the window: there is nothing to see that it is over
    for (_, webhook) in &sent {
        all_taken(&world, &app, webhook, &mut history).await?;
    }
    let after = world.stored().await?;
    ensure!(after > before, "no copy got past JetStream's window: nothing was proved");
    // A message of its own at the end of each conversation: what comes before it has been looked at.
    for conversation in 0..6 {
        let last = say(&world, &app, &format!("D{conversation:04}"), "the last").await?;
        world.try_handled(&last.dedupe).await?;
    }
    try_until("all is said", SOON, async || {
        let told = world.slack.receipts();
        (told.iter().filter(|receipt| receipt.text().ends_with("the last")).count() == 6)
            .then_some(())
    })
    .await?;
    let heard = |text: &str| {
        let (conversation, place) = text.rsplit(' ').next()?.split_once('/')?;
        Some((conversation.parse().ok()?, place.parse().ok()?))
    };
    for (said, webhook) in &sent {
        if world.look(&webhook.dedupe).await.is_some() {
            history.done.push((*said, Duration::ZERO));
        }
    }
    history.told =
        world.slack.receipts().iter().filter_map(|receipt| heard(receipt.text())).collect();
    let asked = world.agent.asked();
    history.asked = asked.iter().filter_map(|a| heard(a.question["text"].as_str()?)).collect();
    let verdict = check(&history);
    ensure!(verdict.holds(false) && verdict.asked_again == 0, "{verdict:?}");
    held(verdict, [format!("{} copies, {} past the window", history.attempts, after - before)])
}

async fn all_taken(
    world: &World,
    app: &App,
    webhook: &Webhook,
    history: &mut History,
) -> anyhow::Result<()> {
    let copies = (0..5).map(|_| world.send(app, webhook));
    for answer in futures_util::future::join_all(copies).await {
        let answer = answer?;
        ensure!(answer.status == 200, "{answer:?}");
        history.attempts += 1;
        history.slowest = history.slowest.max(answer.took);
    }
    Ok(())
}

/// How long a quiet tenant waits for its answers, alone, beside one that sends a hundred times as much, and alone again; and how many
/// answers the other one hears meanwhile, which says who goes first on however busy a machine.
pub async fn noisy_tenant(_: Run) -> anyhow::Result<Outcome> {
    const SOLO: Duration = Duration::from_secs(4);
    const NOISE: Duration = Duration::from_secs(8);
    /// Alone it takes some 20 ms. Beside the other every step of the way waits for its turn on two cores.
    const BUSY_CORES: Duration = Duration::from_millis(300);
    /// What two workers handle of one connection at once, twice: what had its slot already, and what gets it for a step in between.
    const AHEAD: usize = 32;
    let world = World::start(Size { ingests: 2, workers: 2, own_postgres: true }).await?;
    let quiet = world.connect_as(|new| new.agent = Some(agent_id())).await?;
    let mut solo = answers(&world, &quiet, "alone", SOLO).await?;
    let (mut beside, mut waiting) = (Vec::new(), 0);
    // 200 a second, of which two workers handle about half: most of it waits, and the cores do not.
    let trial = Trial {
        conversations: 40,
        users: 0,
        pace: Duration::from_millis(200),
        says: "slow:150",
        repeats: false,
        ..Trial::default()
    };
    let verdict = trial
        .in_world(&world, async |world, _| {
            beside = answers(world, &quiet, "beside", NOISE).await?;
            waiting = world.stored().await?.saturating_sub(world.finished().await?);
            Ok(())
        })
        .await?;
    in_time(&verdict)?;
    solo.extend(answers(&world, &quiet, "alone again", SOLO).await?);
    ensure!(waiting > 300, "only {waiting} of the noisy one waited: nothing was proved");
    let told = world.slack.calls_of("chat.postMessage");
    let ahead = |wait: &Range<Instant>| {
        told.iter().filter(|call| call.team != quiet.team && wait.contains(&call.at)).count()
    };
    let ahead = worst_but_one_in_ten(beside.iter().map(ahead));
    ensure!(ahead <= AHEAD, "{ahead} of the {waiting} of a noisy tenant went before a quiet one's");
    let lasted = |wait: &Range<Instant>| wait.end - wait.start;
    let solo = worst_but_one_in_ten(solo.iter().map(lasted));
    let beside = worst_but_one_in_ten(beside.iter().map(lasted));
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

/// From when to when each of some messages, two a second, waited for its answer.
async fn answers(
    world: &World,
    app: &App,
    what: &str,
    lasting: Duration,
) -> anyhow::Result<Vec<Range<Instant>>> {
    let (mut pace, mut waits) = (tokio::time::interval(CALM / 4), Vec::new());
    let over = Instant::now() + lasting;
    while Instant::now() < over {
        pace.tick().await;
        let (text, sent) = (format!("{what} {}", waits.len()), Instant::now());
        say(world, app, "D7000", &text).await?;
        let answer = format!("I heard: {text}");
        let heard = try_until("the quiet one hears", SOON, async || {
            world.slack.call(|call| call.args["text"] == answer)
        })
        .await?;
        waits.push(sent..heard.at);
    }
    Ok(waits)
}

/// The largest but for a tenth of them.
fn worst_but_one_in_ten<T: Ord + Copy + Default>(all: impl Iterator<Item = T>) -> T {
    let mut all = Vec::from_iter(all);
    all.sort_unstable();
    all.get(all.len() * 9 / 10).copied().unwrap_or_default()
}
