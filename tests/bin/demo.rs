//! `cargo demo`: a whole Tidegate on this machine, and what it does, step by step.
//!
//! Starts a private nats-server and Postgres, two ingests, two workers, a fake Slack and a sample agent, and takes them
//! through seven steps, each with what was sent, answered, stored, handled and said. Then it stays up until Ctrl-C;
//! with `--once` it ends by itself, with 0 only if every step held.

use anyhow::{Context, ensure};
use clap::Parser;
use shared::types::Surface;
use std::{
    io::IsTerminal,
    process::ExitCode,
    time::{Duration, Instant},
};
use tests::{
    slack::{Answer, Receipt, webhook::Webhook},
    until::try_until,
    world::{App, PAIR, SOON, World, agent_id},
};

/// A whole Tidegate on this machine, and what it does, step by step.
#[derive(Parser)]
struct Args {
    /// End after the last step; the exit code says whether every step held.
    #[arg(long)]
    once: bool,
}

const CHANNEL: &str = "C0GENERAL";
const USER: &str = "U0STEVE";

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> anyhow::Result<bool> {
    println!("Tidegate: two ingests, two workers, a fake Slack, a sample agent");
    println!("building and starting …");
    let started = Instant::now();
    let world = World::start(PAIR).await?;
    println!(
        "up after {:.1} s: a private nats-server and Postgres, schema and stream made",
        started.elapsed().as_secs_f64()
    );

    let app = world.declare()?;
    let mut steps = Steps { number: 0, failed: 0 };
    steps.take("a signed slash command links a channel", link(&world, &app)).await;
    steps.take("the message after it is answered by the agent", message(&world, &app)).await;
    steps.take("a forged signature is refused, and nothing is stored", forged(&world, &app)).await;
    steps
        .take("one webhook delivered three times is handled once", three_times(&world, &app))
        .await;
    steps
        .take(
            "a connection made a moment ago works at once, on processes that never saw it",
            cold(&world),
        )
        .await;
    steps
        .take("a stopped connection is answered 404, and Slack asked not to retry", stopped(&world))
        .await;
    steps
        .take("a worker killed between accept and handling loses nothing", killed(&world, &app))
        .await;

    println!();
    let held = steps.failed == 0;
    match steps.failed {
        0 => println!("All {} steps held.", steps.number),
        failed => println!("{failed} of {} steps did not hold.", steps.number),
    }
    if !args.once {
        println!("Still up. POST signed webhooks to {}", world.ingests[0].url(&app));
        println!("signing secret {} (of this demo only). Ctrl-C ends it all.", app.secret);
        tokio::signal::ctrl_c().await?;
    }
    Ok(held)
}

struct Steps {
    number: u32,
    failed: u32,
}

impl Steps {
    async fn take(&mut self, title: &str, step: impl Future<Output = anyhow::Result<()>>) {
        self.number += 1;
        println!("\n{}", paint("1", &format!("{}. {title}", self.number)));
        match step.await {
            Ok(()) => println!("   {}", paint("32", "held")),
            Err(error) => {
                self.failed += 1;
                println!("   {}", paint("31", &format!("did not hold: {error:#}")));
            }
        }
    }
}

fn paint(code: &str, text: &str) -> String {
    if std::io::stdout().is_terminal() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

fn line(what: &str, says: impl std::fmt::Display) {
    println!("   {what:<9} {says}");
}

async fn link(world: &World, app: &App) -> anyhow::Result<()> {
    let code = world.mint_by_verb(app, Surface::Channel)?;
    let webhook =
        Webhook::command(&world.slack, app, CHANNEL, USER, "/lobu", &format!("link {code}"));
    accepted(world, app, &webhook).await?;
    let said = told(world, |receipt| webhook.response_url.ends_with(&receipt.to)).await?;
    ensure!(said.text().starts_with("Linked."), "the person was told {:?}", said.text());
    let bound = world.binding(app, CHANNEL).await?;
    line("Postgres", format!("{CHANNEL} is bound to agent {}", bound.as_deref().unwrap_or("none")));
    ensure!(bound == Some(agent_id().to_string()), "the channel is not bound");
    Ok(())
}

async fn message(world: &World, app: &App) -> anyhow::Result<()> {
    let webhook = Webhook::message(&world.slack, app, CHANNEL, USER, "is anybody there?");
    accepted(world, app, &webhook).await?;
    let said =
        told(world, |receipt| receipt.by == "chat.postMessage" && receipt.to == CHANNEL).await?;
    ensure!(said.text() == "I heard: is anybody there?", "the agent's answer is {:?}", said.text());
    ensure!(said.token.as_deref() == Some(app.token.as_str()), "it came with another token");
    Ok(())
}

async fn forged(world: &World, app: &App) -> anyhow::Result<()> {
    let before = world.stored().await?;
    let webhook = Webhook::message(&world.slack, app, CHANNEL, USER, "let me in");
    line("sent      ".trim(), "a message signed with another secret");
    let answer = world.slack.send(&world.ingests[0].url(app), "another secret", &webhook).await?;
    answered(&answer);
    ensure!(answer.status == 401, "it was answered {}", answer.status);
    let after = world.stored().await?;
    line("stored", format!("{} webhooks before, {} after", before, after));
    ensure!(before == after, "it was stored");
    Ok(())
}

async fn three_times(world: &World, app: &App) -> anyhow::Result<()> {
    let webhook = Webhook::message(&world.slack, app, CHANNEL, USER, "say this once");
    for _ in 0..3 {
        accepted(world, app, &webhook).await?;
    }
    // A message after it in the same conversation: when that is answered, all before it are over.
    let last = Webhook::message(&world.slack, app, CHANNEL, USER, "and then this");
    accepted(world, app, &last).await?;
    told(world, |receipt| receipt.text() == "I heard: and then this").await?;
    told(world, |receipt| receipt.text() == "I heard: say this once").await?;
    let said =
        world.slack.receipts().iter().filter(|r| r.text() == "I heard: say this once").count();
    let asked = world
        .agent
        .asked()
        .iter()
        .filter(|asked| asked.question["text"] == "say this once")
        .count();
    line("counted", format!("the agent was asked {asked} time, Slack was told {said} time"));
    ensure!(said == 1 && asked == 1, "it was handled more than once");
    Ok(())
}

async fn cold(world: &World) -> anyhow::Result<()> {
    let made = Instant::now();
    let app = world.declare()?;
    line("made", format!("connection {} in {} ms", app.connection, made.elapsed().as_millis()));
    let code = world.mint_by_verb(&app, Surface::Dm)?;
    let webhook =
        Webhook::command(&world.slack, &app, "D0DIRECT", USER, "/lobu", &format!("link {code}"));
    accepted(world, &app, &webhook).await?;
    let said = told(world, |receipt| webhook.response_url.ends_with(&receipt.to)).await?;
    ensure!(said.text().starts_with("Linked."), "the person was told {:?}", said.text());
    Ok(())
}

async fn stopped(world: &World) -> anyhow::Result<()> {
    let app = world.declare()?;
    let printed = world.tidegate(&["connections", "disable", &app.connection.to_string()])?;
    line("tidegate", printed.trim());
    let webhook = Webhook::message(&world.slack, &app, CHANNEL, USER, "hello?");
    for ingest in &world.ingests {
        line("sent", &webhook.what);
        let answer = world.slack.send(&ingest.url(&app), &app.secret, &webhook).await?;
        answered(&answer);
        let no_retry = answer.headers.get("x-slack-no-retry").is_some_and(|value| value == "1");
        ensure!(answer.status == 404 && no_retry, "it was answered {}", answer.status);
    }
    Ok(())
}

async fn killed(world: &World, app: &App) -> anyhow::Result<()> {
    const ELSEWHERE: &str = "C0RANDOM";
    let code = world.mint_by_verb(app, Surface::Channel)?;
    let webhook =
        Webhook::command(&world.slack, app, ELSEWHERE, USER, "/lobu", &format!("link {code}"));
    let owner = world.owner_of(app, ELSEWHERE).await?;
    // Frozen, it can't handle what is accepted now; then it is killed as it stands.
    owner.process.freeze();
    line("frozen", format!("{}, which owns the partition of {ELSEWHERE}", owner.id));
    line("sent", "/lobu link <code>");
    let answer = world.send(app, &webhook).await?;
    answered(&answer);
    ensure!(answer.status == 200, "it was answered {}", answer.status);
    ensure!(world.look(&webhook.dedupe).await.is_none(), "it was handled by a frozen worker");
    owner.process.kill();
    let since = Instant::now();
    line("killed", format!("{} with SIGKILL: accepted, not handled", owner.id));
    let handled = handled(world, &webhook).await?;
    ensure!(handled != owner.id, "it was handled by the worker that was killed");
    line("took over", format!("after {:.1} s, by the lease's end", since.elapsed().as_secs_f64()));
    let said = told(world, |receipt| webhook.response_url.ends_with(&receipt.to)).await?;
    ensure!(said.text().starts_with("Linked."), "the person was told {:?}", said.text());
    ensure!(world.binding(app, ELSEWHERE).await?.is_some(), "the channel is not bound");
    Ok(())
}

/// Sends a webhook, and follows it until a worker has handled it.
async fn accepted(world: &World, app: &App, webhook: &Webhook) -> anyhow::Result<()> {
    let what = if webhook.what.contains(" link ") { "/lobu link <code>" } else { &webhook.what };
    line("sent", what);
    let answer = world.send(app, webhook).await?;
    answered(&answer);
    ensure!(
        answer.status == 200 && answer.body.is_empty(),
        "it was answered {} {:?}",
        answer.status,
        answer.body
    );
    handled(world, webhook).await?;
    Ok(())
}

async fn handled(world: &World, webhook: &Webhook) -> anyhow::Result<String> {
    let look = async || world.look(&webhook.dedupe).await;
    let handled = try_until("handled", SOON, look).await.with_context(|| world.logs())?;
    line(
        "stored",
        format!("SLACK_IN sequence {}, partition {}", handled.sequence, handled.partition),
    );
    line("handled", format!("by {}", handled.worker));
    Ok(handled.worker)
}

async fn told(world: &World, wanted: impl Fn(&Receipt) -> bool) -> anyhow::Result<Receipt> {
    let look = async || world.slack.receipts().into_iter().find(|receipt| wanted(receipt));
    let receipt = try_until("Slack was told", Duration::from_secs(15), look)
        .await
        .with_context(|| world.logs())?;
    line("Slack got", format!("{}: {}", receipt.by, receipt.text()));
    Ok(receipt)
}

fn answered(answer: &Answer) {
    line("answer", format!("{} in {:.1} ms", answer.status, answer.took.as_secs_f64() * 1e3));
}
