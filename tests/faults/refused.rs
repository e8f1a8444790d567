//! What is refused at the door while the load passes it: what nobody could have sent, and what Slack did not sign.

use crate::{
    Run,
    rows::Outcome,
    trial::{QUICK, SIZE, Trial, held, nothing_else_stored, undisturbed},
};
use anyhow::{Context, ensure};
use shared::{stream::BODY_BYTES_MAX, types::Surface};
use std::time::{Duration, Instant};
use tests::{
    slack::{
        Answer,
        forged::{self, GOOD_FOR},
        malformed, unix_now,
        webhook::Webhook,
    },
    until::try_until,
    world::{App, Ingest, SOON, World},
};

/// How often everything is fired, at each ingest.
const ROUNDS: usize = 6;
/// Nine in ten refusals take less: what is refused costs next to nothing. The others wait for a busy machine.
const AT_ONCE: Duration = Duration::from_millis(50);
/// An ingest may grow by some bodies at their limit, and by what the allocator keeps; not by what strangers announce.
const GROWS_MIB: u64 = 64;

/// A whole signing secret of nobody's.
const ANOTHER: &str = "00000000000000000000000000000000";

/// Both ingests are sent every sort of request that is none, and what is just within the limits.
pub async fn bodies(_: Run) -> anyhow::Result<Outcome> {
    let world = World::start(SIZE).await?;
    let resident = || -> anyhow::Result<Vec<u64>> {
        world.ingests.iter().map(|ingest| ingest.process.resident()).collect()
    };
    let before = resident()?;
    let (mut refused, mut taken, mut odd) = (Vec::new(), Vec::new(), 0);
    let trial = Trial { repeats: false, ..Trial::default() };
    let verdict = trial
        .in_world(&world, async |world, app| {
            for round in 0..ROUNDS {
                for ingest in &world.ingests {
                    refused.extend(malformed_at(world, app, ingest).await?);
                    if round > 0 {
                        continue;
                    }
                    taken.extend(within_limits_at(world, app, ingest).await?);
                    odd += not_understood_at(world, app, ingest).await?;
                }
            }
            Ok(())
        })
        .await?;
    undisturbed(&verdict)?;
    refused.sort_unstable();
    let (most, worst) = (refused[refused.len() * 9 / 10], refused[refused.len() - 1]);
    ensure!(most < AT_ONCE, "a refusal took {most:?}, the slowest {worst:?}");
    nothing_else_stored(&world, &verdict, taken.len() + odd).await?;
    for webhook in &taken {
        let handled = world.try_handled(&webhook.dedupe).await?;
        ensure!(handled.outcome == "completed", "{}: {handled:?}", webhook.what);
    }
    // Slack signed them, so they are kept for a person to look at.
    try_until("what nobody understands is dead", SOON, async || {
        (world.dead_letters().await.ok()?.len() == odd).then_some(())
    })
    .await?;
    let now = resident()?;
    let grown = now.iter().zip(&before).map(|(now, before)| now.saturating_sub(*before));
    let grown = grown.max().unwrap_or_default() >> 20;
    ensure!(grown < GROWS_MIB, "an ingest grew by {grown} MiB");
    let (count, most, worst) = (refused.len(), most.as_millis(), worst.as_millis());
    let notes = [
        format!("{count} refused, nine in ten within {most} ms, the slowest in {worst} ms"),
        format!("{odd} signed and not understood are dead; ingest grew by {grown} MiB"),
    ];
    held(verdict, notes)
}

/// Everything that is refused for its form, once; how long each answer took.
async fn malformed_at(world: &World, app: &App, ingest: &Ingest) -> anyhow::Result<Vec<Duration>> {
    let (url, secret) = (ingest.url(app), app.secret.as_str());
    let webhook = || Webhook::message(&world.slack, app, "D9000", "U1", "9000/0");
    let hello = webhook();
    let mut requests = malformed::two_lengths(&url, secret, &hello)?;
    requests.extend(malformed::too_large(&url, secret, &hello)?);
    requests.extend(malformed::other_bytes(&url, secret, &hello)?);
    let mut took = Vec::new();
    let mut is = |what: &str, answer: &Answer, status| {
        ensure!(answer.status == status, "{what}: {answer:?} in place of {status}");
        ensure!(answer.took < QUICK, "{what}: it took {:?}", answer.took);
        took.push(answer.took);
        Ok(())
    };
    for request in requests {
        is(&request.what, &request.send(&url, QUICK).await?, request.status)?;
    }
    let mut over = webhook();
    over.body.resize(BODY_BYTES_MAX + 1, b' ');
    is("a byte over the limit", &world.slack.send(&url, secret, &over).await?, 413)?;
    for forgery in forged::headers(&hello, secret) {
        is(forgery.what, &forgery.send(&world.slack, &url).await?, 401)?;
    }
    let ahead = unix_now() + GOOD_FOR + 3;
    let ahead = world.slack.send_signed_at(&url, secret, &hello, ahead).await?;
    is("from the future", &ahead, 401)?;
    // Neither is looked into before it is known to be Slack's.
    for webhook in malformed::not_understood(&world.slack) {
        is(&webhook.what, &world.slack.send(&url, ANOTHER, &webhook).await?, 401)?;
    }
    Ok(took)
}

/// A body as large as may be, and one a byte smaller.
async fn within_limits_at(
    world: &World,
    app: &App,
    ingest: &Ingest,
) -> anyhow::Result<Vec<Webhook>> {
    let mut taken = Vec::new();
    for bytes in [BODY_BYTES_MAX - 1, BODY_BYTES_MAX] {
        let mut webhook = Webhook::message(&world.slack, app, "D9001", "U1", "large");
        webhook.body.resize(bytes, b' ');
        let answer = world.slack.send(&ingest.url(app), &app.secret, &webhook).await?;
        ensure!(answer.status == 200, "{bytes} bytes: {answer:?}");
        taken.push(webhook);
    }
    Ok(taken)
}

/// Signed well, and of no use: taken, since only Slack can have sent it. How many.
async fn not_understood_at(world: &World, app: &App, ingest: &Ingest) -> anyhow::Result<usize> {
    let webhooks = malformed::not_understood(&world.slack);
    for webhook in &webhooks {
        let answer = world.slack.send(&ingest.url(app), &app.secret, webhook).await?;
        ensure!(answer.status == 200, "{}: {answer:?}", webhook.what);
    }
    Ok(webhooks.len())
}

/// Strangers sign messages and commands, at both ingests and both routes; and somebody who listened repeats a real one, until it
/// is five minutes old.
pub async fn forgeries(_: Run) -> anyhow::Result<Outcome> {
    let world = World::start(SIZE).await?;
    let other = world.connect().await?;
    let (mut strangers, mut tries, mut repeated) = (Vec::new(), 0, None);
    let trial = Trial { repeats: false, ..Trial::default() };
    let verdict = trial
        .in_world(&world, async |world, app| {
            let code = world.mint(app, &[Surface::Channel]).await?;
            for ingest in &world.ingests {
                tries += forged_at(world, app, &other, ingest, &code, &mut strangers).await?;
            }
            repeated = Some(repeated_until_old(world, app).await?);
            Ok(())
        })
        .await?;
    undisturbed(&verdict)?;
    let (genuine, copies) = repeated.context("the trial ran")?;
    nothing_else_stored(&world, &verdict, 1).await?;
    let handled = world.try_handled(&genuine.dedupe).await?;
    ensure!(handled.outcome == "completed", "the real one: {handled:?}");
    let receipts = world.slack.receipts();
    let answers = receipts.iter().filter(|receipt| receipt.text() == "I heard: said once").count();
    ensure!(answers == 1, "what was repeated was answered {answers} times");
    // That nobody was asked or told anything was the checker's to see: none of it was ever sent by Slack.
    let traces = "select (select count(*) from processed_keys p join unnest($1::text[]) as u (key)
                                             on p.key = substr(sha256(convert_to(u.key, 'UTF8')), 1, 16))
                       + (select count(*) from deliveries where dedup_key = any($1))
                       + (select count(*) from dead_letters where dedup_key = any($1))
                       + (select count(*) from link_codes where consumed_at is not null)";
    let keys: Vec<&str> = strangers.iter().map(|webhook| webhook.dedupe.as_str()).collect();
    let traces: i64 = sqlx::query_scalar(traces).bind(&keys).fetch_one(&world.pool).await?;
    ensure!(traces == 0, "{traces} forged webhooks left something behind");
    let said = strangers.iter().filter(|webhook| !webhook.response_url.is_empty());
    let said = said.filter(|w| receipts.iter().any(|r| w.response_url.ends_with(&r.to))).count();
    ensure!(said == 0, "{said} forged commands were answered");
    held(verdict, [format!("{tries} forgeries refused, a real one came {copies} times again")])
}

/// Every forgery of fresh webhooks, which go to those of strangers; how many tries that were.
async fn forged_at(
    world: &World,
    app: &App,
    other: &App,
    ingest: &Ingest,
    code: &str,
    strangers: &mut Vec<Webhook>,
) -> anyhow::Result<usize> {
    let mut tries = 0;
    let shared_url = ingest.path("/slack/events");
    for round in 0..ROUNDS {
        // In the words of the load, so that the checker would know it for something that Slack never sent.
        let message = Webhook::message(&world.slack, app, "D9100", "U1", &format!("9100/{round}"));
        let link = format!("link {code}");
        let command = Webhook::command(&world.slack, app, "C9100", "U1", "/lobu", &link);
        for webhook in [message, command] {
            let mut tried = Vec::new();
            for forgery in forged::signatures(&webhook, &app.secret, &other.secret) {
                tried.push((forgery.what, forgery.send(&world.slack, &ingest.url(app)).await?));
            }
            let crossed =
                world.slack.send(&ingest.url(app), &world.shared_secret, &webhook).await?;
            tried.push(("the shared app's secret", crossed));
            let crossed = world.slack.send(&shared_url, &app.secret, &webhook).await?;
            tried.push(("a connection's secret on the shared route", crossed));
            tries += tried.len();
            for (what, answer) in tried {
                ensure!(answer.status == 401 && answer.body.is_empty(), "{what}: {answer:?}");
                ensure!(answer.took < QUICK, "{what}: it took {:?}", answer.took);
            }
            strangers.push(webhook);
        }
    }
    Ok(tries)
}

/// A real message, signed a while ago, that comes again and again: until it is five minutes old it is taken, and nothing comes of
/// it; then it is refused. Gives how often it was taken again.
async fn repeated_until_old(world: &World, app: &App) -> anyhow::Result<(Webhook, usize)> {
    let webhook = Webhook::message(&world.slack, app, "D9200", "U1", "said once");
    let signed = unix_now() - GOOD_FOR + 4;
    let age = || unix_now() - signed;
    let send = async |n: usize| {
        let url = world.ingests[n % world.ingests.len()].url(app);
        world.slack.send_signed_at(&url, &app.secret, &webhook, signed).await
    };
    let (began, mut taken) = (Instant::now(), 0);
    // 4:59 is the last second in which it can't get too old on its way.
    while age() < GOOD_FOR {
        let answer = send(taken).await?;
        ensure!(answer.status == 200 || age() > GOOD_FOR, "{answer:?} at an age of {} s", age());
        taken += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(began.elapsed() < SOON && taken > 2, "it was taken {taken} times");
    try_until("it is 5:01 old", SOON, async || (age() > GOOD_FOR).then_some(())).await?;
    for n in 0..world.ingests.len() {
        let answer = send(n).await?;
        ensure!(answer.status == 401, "{answer:?} at an age of {} s", age());
    }
    Ok((webhook, taken - 1))
}
