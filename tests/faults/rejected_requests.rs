//! Invalid and forged requests that ingest rejects under load.

use crate::{
    Run,
    matrix::Outcome,
    runner::{QUICK, Runner, SIZE, ensure_nothing_else_stored, ensure_undisturbed, held},
};
use anyhow::{Context, ensure};
use shared::{domain::Surface, stream::BODY_BYTES_MAX};
use std::time::{Duration, Instant};
use tests::{
    eventually::try_eventually,
    slack::{
        Answer,
        forged::{self, GOOD_FOR},
        malformed, unix_now,
        webhook::Webhook,
    },
    test_env::{App, Ingest, TIMEOUT, TestEnv},
};

/// Number of times that each ingest gets the requests.
const ROUNDS: usize = 6;
/// Maximum 90th percentile of the time of a rejection. Others may wait for a busy machine.
const AT_ONCE: Duration = Duration::from_millis(50);
/// Maximum growth of an ingest in MiB: some bodies of the maximum size, and the reserve of the
/// allocator.
const GROWS_MIB: u64 = 64;

/// A well-formed signing secret of no connection.
const ANOTHER: &str = "00000000000000000000000000000000";

/// Both ingests get every kind of invalid request, and requests of the maximum size.
pub async fn bodies(_: Run) -> anyhow::Result<Outcome> {
    let env = TestEnv::start(SIZE).await?;
    let resident = || -> anyhow::Result<Vec<u64>> {
        env.ingests.iter().map(|ingest| ingest.process.resident()).collect()
    };
    let before = resident()?;
    let (mut refused, mut taken, mut odd) = (Vec::new(), Vec::new(), 0);
    let runner = Runner { repeats: false, ..Runner::default() };
    let verdict = runner
        .run_in(&env, async |env, app| {
            for round in 0..ROUNDS {
                for ingest in &env.ingests {
                    refused.extend(send_malformed(env, app, ingest).await?);
                    if round > 0 {
                        continue;
                    }
                    taken.extend(send_within_limits(env, app, ingest).await?);
                    odd += send_unparsable(env, app, ingest).await?;
                }
            }
            Ok(())
        })
        .await?;
    ensure_undisturbed(&verdict)?;
    refused.sort_unstable();
    let (most, worst) = (refused[refused.len() * 9 / 10], refused[refused.len() - 1]);
    ensure!(most < AT_ONCE, "nine in ten rejections took up to {most:?}, the slowest {worst:?}");
    ensure_nothing_else_stored(&env, &verdict, taken.len() + odd).await?;
    for webhook in &taken {
        let handled = env.try_wait_for_outcome(&webhook.dedup_key).await?;
        ensure!(handled.outcome == "completed", "{}: {handled:?}", webhook.what);
    }
    // Slack signed the unparsable webhooks, so they are kept as dead letters.
    try_eventually("the unparsable webhooks are dead letters", TIMEOUT, async || {
        (env.dead_letters().await.ok()?.len() == odd).then_some(())
    })
    .await?;
    let now = resident()?;
    let grown = now.iter().zip(&before).map(|(now, before)| now.saturating_sub(*before));
    let grown = grown.max().unwrap_or_default() >> 20;
    ensure!(grown < GROWS_MIB, "an ingest grew by {grown} MiB");
    let (count, most, worst) = (refused.len(), most.as_millis(), worst.as_millis());
    let notes = [
        format!("{count} rejected, nine in ten within {most} ms, the slowest in {worst} ms"),
        format!(
            "{odd} signed but unparsable webhooks are dead letters; ingest grew by {grown} MiB"
        ),
    ];
    held(verdict, notes)
}

/// Sends every malformed request once. Returns the times of the answers.
async fn send_malformed(
    env: &TestEnv,
    app: &App,
    ingest: &Ingest,
) -> anyhow::Result<Vec<Duration>> {
    let (url, secret) = (ingest.url(app), app.secret.as_str());
    let webhook = || Webhook::message(&env.slack, app, "D9000", "U1", "9000/0");
    let hello = webhook();
    let mut requests = malformed::two_lengths(&url, secret, &hello)?;
    requests.extend(malformed::too_large(&url, secret, &hello)?);
    requests.extend(malformed::other_bytes(&url, secret, &hello)?);
    let mut took = Vec::new();
    let mut is = |what: &str, answer: &Answer, status| {
        ensure!(answer.status == status, "{what}: answered {answer:?} instead of {status}");
        ensure!(answer.took < QUICK, "{what}: answered after {:?}", answer.took);
        took.push(answer.took);
        Ok(())
    };
    for request in requests {
        is(&request.what, &request.send(&url, QUICK).await?, request.status)?;
    }
    let mut over = webhook();
    over.body.resize(BODY_BYTES_MAX + 1, b' ');
    is("a byte over the limit", &env.slack.send(&url, secret, &over).await?, 413)?;
    for forgery in forged::headers(&hello, secret) {
        is(forgery.what, &forgery.send(&env.slack, &url).await?, 401)?;
    }
    let ahead = unix_now() + GOOD_FOR + 3;
    let ahead = env.slack.send_signed_at(&url, secret, &hello, ahead).await?;
    is("from the future", &ahead, 401)?;
    // Bodies are not parsed before the signature is checked.
    for webhook in malformed::not_understood(&env.slack) {
        is(&webhook.what, &env.slack.send(&url, ANOTHER, &webhook).await?, 401)?;
    }
    Ok(took)
}

/// Sends a body of the maximum size, and a body with a byte less. Returns the webhooks.
async fn send_within_limits(
    env: &TestEnv,
    app: &App,
    ingest: &Ingest,
) -> anyhow::Result<Vec<Webhook>> {
    let mut taken = Vec::new();
    for bytes in [BODY_BYTES_MAX - 1, BODY_BYTES_MAX] {
        let mut webhook = Webhook::message(&env.slack, app, "D9001", "U1", "large");
        webhook.body.resize(bytes, b' ');
        let answer = env.slack.send(&ingest.url(app), &app.secret, &webhook).await?;
        ensure!(answer.status == 200, "{bytes} bytes: {answer:?}");
        taken.push(webhook);
    }
    Ok(taken)
}

/// Sends signed but unparsable webhooks, which ingest accepts. Returns their number.
async fn send_unparsable(env: &TestEnv, app: &App, ingest: &Ingest) -> anyhow::Result<usize> {
    let webhooks = malformed::not_understood(&env.slack);
    for webhook in &webhooks {
        let answer = env.slack.send(&ingest.url(app), &app.secret, webhook).await?;
        ensure!(answer.status == 200, "{}: {answer:?}", webhook.what);
    }
    Ok(webhooks.len())
}

/// Attackers send forged messages and commands to both ingests and both routes, and replay a
/// genuine webhook until it is five minutes old.
pub async fn forgeries(_: Run) -> anyhow::Result<Outcome> {
    let env = TestEnv::start(SIZE).await?;
    let other = env.connect().await?;
    let (mut strangers, mut tries, mut repeated) = (Vec::new(), 0, None);
    let runner = Runner { repeats: false, ..Runner::default() };
    let verdict = runner
        .run_in(&env, async |env, app| {
            let code = env.create_link_code(app, &[Surface::Channel]).await?;
            for ingest in &env.ingests {
                tries += send_forgeries(env, app, &other, ingest, &code, &mut strangers).await?;
            }
            repeated = Some(replay_until_old(env, app).await?);
            Ok(())
        })
        .await?;
    ensure_undisturbed(&verdict)?;
    let (genuine, copies) = repeated.context("no webhook was replayed")?;
    ensure_nothing_else_stored(&env, &verdict, 1).await?;
    let handled = env.try_wait_for_outcome(&genuine.dedup_key).await?;
    ensure!(handled.outcome == "completed", "the genuine webhook: {handled:?}");
    let receipts = env.slack.receipts();
    let answers = receipts.iter().filter(|receipt| receipt.text() == "I heard: said once").count();
    ensure!(answers == 1, "the replayed webhook was answered {answers} times");
    // The checker finds calls and posts of forged messages, because the load never sent them.
    let traces = "select (select count(*) from processed_keys p join unnest($1::text[]) as u (key)
                                             on p.key = substr(sha256(convert_to(u.key, 'UTF8')), 1, 16))
                       + (select count(*) from deliveries where dedup_key = any($1))
                       + (select count(*) from dead_letters where dedup_key = any($1))
                       + (select count(*) from link_codes where consumed_at is not null)";
    let keys: Vec<&str> = strangers.iter().map(|webhook| webhook.dedup_key.as_str()).collect();
    let traces: i64 = sqlx::query_scalar(traces).bind(&keys).fetch_one(&env.pool).await?;
    ensure!(traces == 0, "forged webhooks left {traces} rows");
    let commands = strangers.iter().filter(|webhook| !webhook.response_url.is_empty());
    let answered =
        commands.filter(|w| receipts.iter().any(|r| w.response_url.ends_with(&r.to))).count();
    ensure!(answered == 0, "{answered} forged commands were answered");
    held(verdict, [format!("{tries} forgeries rejected, {copies} replays had no effect")])
}

/// Sends every forgery of new webhooks to an ingest. Returns the number of requests.
async fn send_forgeries(
    env: &TestEnv,
    app: &App,
    other: &App,
    ingest: &Ingest,
    code: &str,
    strangers: &mut Vec<Webhook>,
) -> anyhow::Result<usize> {
    let mut tries = 0;
    let shared_url = ingest.path("/slack/events");
    for round in 0..ROUNDS {
        // In the format of the load, so that the checker detects an effect of a message that was
        // not sent.
        let message = Webhook::message(&env.slack, app, "D9100", "U1", &format!("9100/{round}"));
        let link = format!("link {code}");
        let command = Webhook::command(&env.slack, app, "C9100", "U1", "/lobu", &link);
        for webhook in [message, command] {
            let mut tried = Vec::new();
            for forgery in forged::signatures(&webhook, &app.secret, &other.secret) {
                tried.push((forgery.what, forgery.send(&env.slack, &ingest.url(app)).await?));
            }
            let crossed = env.slack.send(&ingest.url(app), &env.shared_secret, &webhook).await?;
            tried.push(("the shared app's secret", crossed));
            let crossed = env.slack.send(&shared_url, &app.secret, &webhook).await?;
            tried.push(("a connection's secret on the shared route", crossed));
            tries += tried.len();
            for (what, answer) in tried {
                ensure!(answer.status == 401 && answer.body.is_empty(), "{what}: {answer:?}");
                ensure!(answer.took < QUICK, "{what}: answered after {:?}", answer.took);
            }
            strangers.push(webhook);
        }
    }
    Ok(tries)
}

/// Replays a genuine message. Until it is five minutes old it is accepted without effect, then it
/// is rejected. Returns the message and the number of accepted replays.
async fn replay_until_old(env: &TestEnv, app: &App) -> anyhow::Result<(Webhook, usize)> {
    let webhook = Webhook::message(&env.slack, app, "D9200", "U1", "said once");
    let signed = unix_now() - GOOD_FOR + 4;
    let age = || unix_now() - signed;
    let send = async |n: usize| {
        let url = env.ingests[n % env.ingests.len()].url(app);
        env.slack.send_signed_at(&url, &app.secret, &webhook, signed).await
    };
    let (began, mut taken) = (Instant::now(), 0);
    // Until 4:59 the message can't become too old during the request.
    while age() < GOOD_FOR {
        let answer = send(taken).await?;
        ensure!(answer.status == 200 || age() > GOOD_FOR, "{answer:?} at an age of {} s", age());
        taken += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(
        began.elapsed() < TIMEOUT && taken > 2,
        "the message was accepted {taken} times within {:?}",
        began.elapsed()
    );
    try_eventually("the message is 5:01 old", TIMEOUT, async || (age() > GOOD_FOR).then_some(()))
        .await?;
    for n in 0..env.ingests.len() {
        let answer = send(n).await?;
        ensure!(answer.status == 401, "{answer:?} at an age of {} s", age());
    }
    Ok((webhook, taken - 1))
}
