//! `cargo demo`: a complete Tidegate on this machine, shown in seven steps.
//!
//! Starts a private nats-server and Postgres, two ingests, two workers, a simulated Slack and a
//! sample agent. Each step prints what was sent, answered, stored and posted. Then the demo runs
//! until Ctrl-C; with `--once` it ends, with exit code 0 only if every step held.

use anyhow::{Context, ensure};
use clap::Parser;
use shared::domain::Surface;
use std::{
    io::IsTerminal,
    process::ExitCode,
    time::{Duration, Instant},
};
use tests::{
    eventually::try_eventually,
    install::key,
    slack::{Answer, Receipt, webhook::Webhook},
    test_env::{App, PAIR, TIMEOUT, TestEnv, agent_id},
};

/// Show a complete Tidegate on this machine in seven steps. Exits 1 if a step of `--once` does not
/// hold.
#[derive(Parser)]
struct Args {
    /// End after the last step.
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
    let mut env = TestEnv::start(PAIR).await?;
    env.start_control().await?;
    println!(
        "up after {:.1} s: a private nats-server and Postgres, schema and stream made",
        started.elapsed().as_secs_f64()
    );

    let app = env.declare()?;
    let mut steps = Steps { number: 0, failed: 0 };
    steps.take("a signed slash command links a channel", link(&env, &app)).await;
    steps.take("the message after it is answered by the agent", message(&env, &app)).await;
    steps.take("a forged signature is refused, and nothing is stored", forged(&env, &app)).await;
    steps.take("one webhook delivered three times is handled once", three_times(&env, &app)).await;
    steps
        .take(
            "a connection made a moment ago works at once, on processes that never saw it",
            unseen_connection(&env),
        )
        .await;
    steps
        .take(
            "a stopped connection is answered 404, and Slack asked not to retry",
            disabled_connection(&env),
        )
        .await;
    steps
        .take(
            "a worker killed between accept and handling loses nothing",
            killed_worker(&env, &app),
        )
        .await;

    println!();
    let held = steps.failed == 0;
    match steps.failed {
        0 => println!("All {} steps held.", steps.number),
        failed => println!("{failed} of {} steps did not hold.", steps.number),
    }
    if !args.once {
        println!("Still up. POST signed webhooks to {}", env.ingests[0].url(&app));
        println!("signing secret {} (of this demo only).", app.secret);
        println!("The console is at {}", env.controls[0].console("/"));
        println!("API key {} (of this demo only). Ctrl-C ends it all.", key(&env, "owner", None));
        println!(
            "To go on with a real workspace: deploy/QUICKSTART.md, tidegate init, tidegate dev --slack"
        );
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

async fn link(env: &TestEnv, app: &App) -> anyhow::Result<()> {
    let code = env.create_link_code_by_cli(app, Surface::Channel)?;
    let webhook =
        Webhook::command(&env.slack, app, CHANNEL, USER, "/lobu", &format!("link {code}"));
    send_accepted(env, app, &webhook).await?;
    let said = wait_for_receipt(env, |receipt| webhook.response_url.ends_with(&receipt.to)).await?;
    ensure!(said.text().starts_with("Linked."), "the person was told {:?}", said.text());
    let bound = env.binding(app, CHANNEL).await?;
    line("Postgres", format!("{CHANNEL} is bound to agent {}", bound.as_deref().unwrap_or("none")));
    ensure!(bound == Some(agent_id().to_string()), "the channel is not bound");
    Ok(())
}

async fn message(env: &TestEnv, app: &App) -> anyhow::Result<()> {
    let webhook = Webhook::message(&env.slack, app, CHANNEL, USER, "is anybody there?");
    send_accepted(env, app, &webhook).await?;
    let said = wait_for_receipt(env, |receipt| {
        let is_notice = receipt.text().contains("linked this channel");
        receipt.by == "chat.postMessage" && receipt.to == CHANNEL && !is_notice
    })
    .await?;
    ensure!(said.text() == "I heard: is anybody there?", "the agent's answer is {:?}", said.text());
    ensure!(said.token.as_deref() == Some(app.token.as_str()), "it came with another token");
    Ok(())
}

async fn forged(env: &TestEnv, app: &App) -> anyhow::Result<()> {
    let before = env.stored().await?;
    let webhook = Webhook::message(&env.slack, app, CHANNEL, USER, "let me in");
    line("sent      ".trim(), "a message signed with another secret");
    let answer = env.slack.send(&env.ingests[0].url(app), "another secret", &webhook).await?;
    print_answer(&answer);
    ensure!(answer.status == 401, "it was answered {}", answer.status);
    let after = env.stored().await?;
    line("stored", format!("{} webhooks before, {} after", before, after));
    ensure!(before == after, "it was stored");
    Ok(())
}

async fn three_times(env: &TestEnv, app: &App) -> anyhow::Result<()> {
    let webhook = Webhook::message(&env.slack, app, CHANNEL, USER, "say this once");
    for _ in 0..3 {
        send_accepted(env, app, &webhook).await?;
    }
    // A message after it in the same conversation: when it is answered, all before it are done.
    let last = Webhook::message(&env.slack, app, CHANNEL, USER, "and then this");
    send_accepted(env, app, &last).await?;
    wait_for_receipt(env, |receipt| receipt.text() == "I heard: and then this").await?;
    wait_for_receipt(env, |receipt| receipt.text() == "I heard: say this once").await?;
    let said = env.slack.receipts().iter().filter(|r| r.text() == "I heard: say this once").count();
    let asked = env
        .agent
        .requests()
        .iter()
        .filter(|asked| asked.question["text"] == "say this once")
        .count();
    line("counted", format!("the agent was asked {asked} time, Slack was told {said} time"));
    ensure!(said == 1 && asked == 1, "it was handled more than once");
    Ok(())
}

async fn unseen_connection(env: &TestEnv) -> anyhow::Result<()> {
    let made = Instant::now();
    let app = env.declare()?;
    line("made", format!("connection {} in {} ms", app.connection, made.elapsed().as_millis()));
    let code = env.create_link_code_by_cli(&app, Surface::Dm)?;
    let webhook =
        Webhook::command(&env.slack, &app, "D0DIRECT", USER, "/lobu", &format!("link {code}"));
    send_accepted(env, &app, &webhook).await?;
    let said = wait_for_receipt(env, |receipt| webhook.response_url.ends_with(&receipt.to)).await?;
    ensure!(said.text().starts_with("Linked."), "the person was told {:?}", said.text());
    Ok(())
}

async fn disabled_connection(env: &TestEnv) -> anyhow::Result<()> {
    let app = env.declare()?;
    let printed = env.tidegate(&["connections", "disable", &app.connection.to_string()])?;
    line("tidegate", printed.trim());
    let webhook = Webhook::message(&env.slack, &app, CHANNEL, USER, "hello?");
    for ingest in &env.ingests {
        line("sent", &webhook.what);
        let answer = env.slack.send(&ingest.url(&app), &app.secret, &webhook).await?;
        print_answer(&answer);
        let no_retry = answer.headers.get("x-slack-no-retry").is_some_and(|value| value == "1");
        ensure!(answer.status == 404 && no_retry, "it was answered {}", answer.status);
    }
    Ok(())
}

async fn killed_worker(env: &TestEnv, app: &App) -> anyhow::Result<()> {
    const ELSEWHERE: &str = "C0RANDOM";
    let code = env.create_link_code_by_cli(app, Surface::Channel)?;
    let webhook =
        Webhook::command(&env.slack, app, ELSEWHERE, USER, "/lobu", &format!("link {code}"));
    let owner = env.owner_of(app, ELSEWHERE).await?;
    // A frozen worker can't handle the next webhook; then it is killed.
    owner.process.freeze();
    line("frozen", format!("{}, which owns the partition of {ELSEWHERE}", owner.id));
    line("sent", "/lobu link <code>");
    let answer = env.send(app, &webhook).await?;
    print_answer(&answer);
    ensure!(answer.status == 200, "it was answered {}", answer.status);
    ensure!(
        env.find_outcome(&webhook.dedup_key).await.is_none(),
        "it was handled by a frozen worker"
    );
    owner.process.kill();
    let since = Instant::now();
    line("killed", format!("{} with SIGKILL: accepted, not handled", owner.id));
    let handled = wait_for_outcome(env, &webhook).await?;
    ensure!(handled != owner.id, "it was handled by the worker that was killed");
    line("took over", format!("after {:.1} s, by the lease's end", since.elapsed().as_secs_f64()));
    let said = wait_for_receipt(env, |receipt| webhook.response_url.ends_with(&receipt.to)).await?;
    ensure!(said.text().starts_with("Linked."), "the person was told {:?}", said.text());
    ensure!(env.binding(app, ELSEWHERE).await?.is_some(), "the channel is not bound");
    Ok(())
}

/// Sends a webhook and waits until a worker has handled it.
async fn send_accepted(env: &TestEnv, app: &App, webhook: &Webhook) -> anyhow::Result<()> {
    let what = if webhook.what.contains(" link ") { "/lobu link <code>" } else { &webhook.what };
    line("sent", what);
    let answer = env.send(app, webhook).await?;
    print_answer(&answer);
    ensure!(
        answer.status == 200 && answer.body.is_empty(),
        "it was answered {} {:?}",
        answer.status,
        answer.body
    );
    wait_for_outcome(env, webhook).await?;
    Ok(())
}

async fn wait_for_outcome(env: &TestEnv, webhook: &Webhook) -> anyhow::Result<String> {
    let look = async || env.find_outcome(&webhook.dedup_key).await;
    let handled = try_eventually("handled", TIMEOUT, look).await.with_context(|| env.logs())?;
    line(
        "stored",
        format!("SLACK_IN sequence {}, partition {}", handled.sequence, handled.partition),
    );
    line("handled", format!("by {}", handled.worker));
    Ok(handled.worker)
}

async fn wait_for_receipt(
    env: &TestEnv,
    wanted: impl Fn(&Receipt) -> bool,
) -> anyhow::Result<Receipt> {
    let look = async || env.slack.receipts().into_iter().find(|receipt| wanted(receipt));
    let receipt = try_eventually("Slack was told", Duration::from_secs(15), look)
        .await
        .with_context(|| env.logs())?;
    line("Slack got", format!("{}: {}", receipt.by, receipt.text()));
    Ok(receipt)
}

fn print_answer(answer: &Answer) {
    line("answer", format!("{} in {:.1} ms", answer.status, answer.took.as_secs_f64() * 1e3));
}
