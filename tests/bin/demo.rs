//! Demo (`cargo demo`): a complete deployment of Tidegate on this machine, shown in seven steps.
//!
//! Starts a private nats-server and Postgres, two ingests, two workers, a simulated Slack and a
//! sample agent. Each step prints what was sent, answered, stored and posted. Then the demo runs
//! until Ctrl-C. With `--once` it ends, with exit code 0 only if all steps succeeded.

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

/// Show a complete deployment of Tidegate on this machine in seven steps. With `--once`, exits 1 if
/// a step fails.
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
    println!("Tidegate: two ingests, two workers, a simulated Slack, a sample agent");
    println!("building and starting …");
    let started = Instant::now();
    let mut env = TestEnv::start(PAIR).await?;
    env.start_control().await?;
    println!(
        "up after {:.1} s: a private nats-server and Postgres, schema and stream created",
        started.elapsed().as_secs_f64()
    );

    let app = env.declare()?;
    let mut steps = Steps { number: 0, failed: 0 };
    steps.take("a signed slash command links a channel", link(&env, &app)).await;
    steps.take("the agent answers a message in the linked channel", message(&env, &app)).await;
    steps
        .take("a webhook with a forged signature is rejected and not stored", forged(&env, &app))
        .await;
    steps
        .take("a webhook that is sent three times is processed once", three_times(&env, &app))
        .await;
    steps
        .take("a new connection works at once on all running processes", unseen_connection(&env))
        .await;
    steps
        .take(
            "webhooks of a disabled connection get 404, and Slack is asked not to retry",
            disabled_connection(&env),
        )
        .await;
    steps
        .take(
            "a worker that is killed before processing loses no webhook",
            killed_worker(&env, &app),
        )
        .await;

    println!();
    let held = steps.failed == 0;
    match steps.failed {
        0 => println!("All {} steps succeeded.", steps.number),
        failed => println!("{failed} of {} steps failed.", steps.number),
    }
    if !args.once {
        println!("The demo is still running. POST signed webhooks to {}", env.ingests[0].url(&app));
        println!("The signing secret is {} (of this demo only).", app.secret);
        println!("The console is at {}", env.controls[0].console("/"));
        println!(
            "The API key is {} (of this demo only). Ctrl-C ends the demo.",
            key(&env, "owner", None)
        );
        println!(
            "To continue with a real workspace: deploy/QUICKSTART.md, tidegate init, tidegate dev --slack"
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
            Ok(()) => println!("   {}", paint("32", "succeeded")),
            Err(error) => {
                self.failed += 1;
                println!("   {}", paint("31", &format!("failed: {error:#}")));
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

fn line(label: &str, text: impl std::fmt::Display) {
    println!("   {label:<9} {text}");
}

async fn link(env: &TestEnv, app: &App) -> anyhow::Result<()> {
    let code = env.create_link_code_by_cli(app, Surface::Channel)?;
    let webhook =
        Webhook::command(&env.slack, app, CHANNEL, USER, "/lobu", &format!("link {code}"));
    send_accepted(env, app, &webhook).await?;
    let receipt =
        wait_for_receipt(env, |receipt| webhook.response_url.ends_with(&receipt.to)).await?;
    ensure!(receipt.text().starts_with("Linked."), "the person got {:?}", receipt.text());
    let bound = env.binding(app, CHANNEL).await?;
    line("Postgres", format!("{CHANNEL} is bound to agent {}", bound.as_deref().unwrap_or("none")));
    ensure!(bound == Some(agent_id().to_string()), "the channel is not bound");
    Ok(())
}

async fn message(env: &TestEnv, app: &App) -> anyhow::Result<()> {
    let webhook = Webhook::message(&env.slack, app, CHANNEL, USER, "is anybody there?");
    send_accepted(env, app, &webhook).await?;
    let receipt = wait_for_receipt(env, |receipt| {
        let is_notice = receipt.text().contains("linked this channel");
        receipt.by == "chat.postMessage" && receipt.to == CHANNEL && !is_notice
    })
    .await?;
    ensure!(
        receipt.text() == "I heard: is anybody there?",
        "the agent's answer is {:?}",
        receipt.text()
    );
    ensure!(
        receipt.token.as_deref() == Some(app.token.as_str()),
        "the answer was posted with another token"
    );
    Ok(())
}

async fn forged(env: &TestEnv, app: &App) -> anyhow::Result<()> {
    let before = env.stored().await?;
    let webhook = Webhook::message(&env.slack, app, CHANNEL, USER, "let me in");
    line("sent      ".trim(), "a message signed with another secret");
    let answer = env.slack.send(&env.ingests[0].url(app), "another secret", &webhook).await?;
    print_answer(&answer);
    ensure!(answer.status == 401, "the webhook was answered {}", answer.status);
    let after = env.stored().await?;
    line("stored", format!("{} webhooks before, {} after", before, after));
    ensure!(before == after, "the webhook was stored");
    Ok(())
}

async fn three_times(env: &TestEnv, app: &App) -> anyhow::Result<()> {
    let webhook = Webhook::message(&env.slack, app, CHANNEL, USER, "say this once");
    for _ in 0..3 {
        send_accepted(env, app, &webhook).await?;
    }
    // When a later message of the conversation is answered, the copies are processed.
    let last = Webhook::message(&env.slack, app, CHANNEL, USER, "and then this");
    send_accepted(env, app, &last).await?;
    wait_for_receipt(env, |receipt| receipt.text() == "I heard: and then this").await?;
    wait_for_receipt(env, |receipt| receipt.text() == "I heard: say this once").await?;
    let posts =
        env.slack.receipts().iter().filter(|r| r.text() == "I heard: say this once").count();
    let calls =
        env.agent.requests().iter().filter(|call| call.question["text"] == "say this once").count();
    line("counted", format!("agent called {calls} time, answer posted {posts} time"));
    ensure!(posts == 1 && calls == 1, "the webhook was not processed exactly once");
    Ok(())
}

async fn unseen_connection(env: &TestEnv) -> anyhow::Result<()> {
    let made = Instant::now();
    let app = env.declare()?;
    line("created", format!("connection {} in {} ms", app.connection, made.elapsed().as_millis()));
    let code = env.create_link_code_by_cli(&app, Surface::Dm)?;
    let webhook =
        Webhook::command(&env.slack, &app, "D0DIRECT", USER, "/lobu", &format!("link {code}"));
    send_accepted(env, &app, &webhook).await?;
    let receipt =
        wait_for_receipt(env, |receipt| webhook.response_url.ends_with(&receipt.to)).await?;
    ensure!(receipt.text().starts_with("Linked."), "the person got {:?}", receipt.text());
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
        ensure!(answer.status == 404 && no_retry, "the webhook was answered {}", answer.status);
    }
    Ok(())
}

async fn killed_worker(env: &TestEnv, app: &App) -> anyhow::Result<()> {
    const ELSEWHERE: &str = "C0RANDOM";
    let code = env.create_link_code_by_cli(app, Surface::Channel)?;
    let webhook =
        Webhook::command(&env.slack, app, ELSEWHERE, USER, "/lobu", &format!("link {code}"));
    let owner = env.owner_of(app, ELSEWHERE).await?;
    // Frozen, so that the worker does not process the next webhook before it is killed.
    owner.process.freeze();
    line("frozen", format!("{}, which owns the partition of {ELSEWHERE}", owner.id));
    line("sent", "/lobu link <code>");
    let answer = env.send(app, &webhook).await?;
    print_answer(&answer);
    ensure!(answer.status == 200, "the webhook was answered {}", answer.status);
    ensure!(
        env.find_outcome(&webhook.dedup_key).await.is_none(),
        "the frozen worker processed the webhook"
    );
    owner.process.kill();
    let since = Instant::now();
    line("killed", format!("{} with SIGKILL: the webhook is accepted and not processed", owner.id));
    let handled = wait_for_outcome(env, &webhook).await?;
    ensure!(handled != owner.id, "the killed worker processed the webhook");
    line(
        "took over",
        format!("after {:.1} s, when the lease had expired", since.elapsed().as_secs_f64()),
    );
    let receipt =
        wait_for_receipt(env, |receipt| webhook.response_url.ends_with(&receipt.to)).await?;
    ensure!(receipt.text().starts_with("Linked."), "the person got {:?}", receipt.text());
    ensure!(env.binding(app, ELSEWHERE).await?.is_some(), "the channel is not bound");
    Ok(())
}

/// Sends a webhook and waits until a worker has processed it.
async fn send_accepted(env: &TestEnv, app: &App, webhook: &Webhook) -> anyhow::Result<()> {
    let what = if webhook.what.contains(" link ") { "/lobu link <code>" } else { &webhook.what };
    line("sent", what);
    let answer = env.send(app, webhook).await?;
    print_answer(&answer);
    ensure!(
        answer.status == 200 && answer.body.is_empty(),
        "the webhook was answered {} {:?}",
        answer.status,
        answer.body
    );
    wait_for_outcome(env, webhook).await?;
    Ok(())
}

async fn wait_for_outcome(env: &TestEnv, webhook: &Webhook) -> anyhow::Result<String> {
    let find = async || env.find_outcome(&webhook.dedup_key).await;
    let handled = try_eventually("the webhook is processed", TIMEOUT, find)
        .await
        .with_context(|| env.logs())?;
    line(
        "stored",
        format!("SLACK_IN sequence {}, partition {}", handled.sequence, handled.partition),
    );
    line("processed", format!("by {}", handled.worker));
    Ok(handled.worker)
}

async fn wait_for_receipt(
    env: &TestEnv,
    wanted: impl Fn(&Receipt) -> bool,
) -> anyhow::Result<Receipt> {
    let find = async || env.slack.receipts().into_iter().find(|receipt| wanted(receipt));
    let receipt = try_eventually("the message is posted in Slack", Duration::from_secs(15), find)
        .await
        .with_context(|| env.logs())?;
    line("Slack got", format!("{}: {}", receipt.by, receipt.text()));
    Ok(receipt)
}

fn print_answer(answer: &Answer) {
    line("answer", format!("{} in {:.1} ms", answer.status, answer.took.as_secs_f64() * 1e3));
}
