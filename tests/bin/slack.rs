//! A simulated Slack for any gateway: sends one webhook, one webhook of every kind, or a load, and
//! checks the answers as Slack does.
//!
//! ```text
//! export SLACK_SIGNING_SECRET=…
//! cargo run -p tests --bin slack -- --url http://127.0.0.1:8080/api/v1/webhooks/<id> send --command "/lobu help"
//! cargo run -p tests --bin slack -- --url … scenario
//! cargo run -p tests --bin slack -- --url … load --rate 50 --seconds 10
//! ```
//!
//! Prints a line per webhook: the answer, its time in ms, and whether Slack would accept it. With
//! `--json` prints the same as JSON. Exits 1 if Slack would not accept an answer. Serves a Web API
//! and `response_url`s and prints their URLs, so that a gateway that is configured with them can
//! post.

use clap::{Parser, Subcommand};
use serde_json::{Value, json};
use shared::{domain::ConnectionId, secrets::Secret};
use std::{io::IsTerminal, process::ExitCode, time::Duration};
use tests::{
    fixtures,
    slack::{
        Answer, Slack,
        conformance::{self, Expects},
        delivery::{Attempt, Reason},
        unix_now,
        webhook::Webhook,
    },
    test_env::App,
};

/// Send webhooks to a gateway as Slack does, and check the answers. Exits 1 if Slack would not
/// accept an answer.
#[derive(Debug, Parser)]
#[command(name = "slack")]
struct Options {
    /// URL for webhooks: of a connection, or the shared route.
    #[arg(long, value_name = "URL")]
    url: reqwest::Url,
    /// Signing secret of the app, as the gateway has it.
    #[arg(
        long,
        env = "SLACK_SIGNING_SECRET",
        value_name = "SECRET",
        hide_env_values = true,
        value_parser = shared::runtime::config::parse_secret
    )]
    secret: Secret,
    /// Id of the app.
    #[arg(long, value_name = "APP", default_value = "A0001APP")]
    app: String,
    /// Id of the workspace.
    #[arg(long, value_name = "TEAM", default_value = "T0001TEAM")]
    team: String,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Send one webhook.
    Send {
        /// Send a message with this text.
        #[arg(long, value_name = "TEXT", conflicts_with = "command")]
        message: Option<String>,
        /// Send a slash command, for example "/lobu help".
        #[arg(long, value_name = "COMMAND")]
        command: Option<String>,
        /// Conversation.
        #[arg(long, value_name = "CHANNEL", default_value = "C0001CHAN")]
        channel: String,
        /// Author.
        #[arg(long, value_name = "USER", default_value = "U0001USER")]
        user: String,
        /// Retry as Slack does: at once, after one minute, after five minutes.
        #[arg(long)]
        retry: bool,
    },
    /// Send one webhook of every kind, copies, and forgeries.
    Scenario,
    /// Send messages in many conversations at a rate.
    Load {
        /// Webhooks per second.
        #[arg(long, value_name = "N", default_value_t = 20)]
        rate: u32,
        /// Duration in seconds.
        #[arg(long, value_name = "SECONDS", default_value_t = 10)]
        seconds: u32,
        /// Number of conversations.
        #[arg(long, value_name = "N", default_value_t = 20)]
        conversations: u32,
    },
}

/// A webhook, its answer, and the result of the check.
struct Line {
    what: String,
    answer: Option<Answer>,
    wrong: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Options::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> anyhow::Result<bool> {
    let _first = rustls::crypto::ring::default_provider().install_default();
    let slack = Slack::start().await?;
    eprintln!("Web API at {}, response_urls at {}", slack.api(), slack.response_origin());
    let app = App {
        connection: ConnectionId::random()?, // not used: the URL names the connection
        org: "example".parse()?,
        secret: options.secret.expose().to_owned(),
        token: "xoxb-example".into(),
        app: options.app.clone(),
        team: options.team.clone(),
        bot_user: "U0BOT".into(),
    };
    let lines = match &options.verb {
        Verb::Send { message, command, channel, user, retry } => {
            let webhook = match command {
                Some(text) => {
                    let (command, text) = text.split_once(' ').unwrap_or((text, ""));
                    Webhook::command(&slack, &app, channel, user, command, text)
                }
                None => {
                    let text = message.as_deref().unwrap_or("hello");
                    Webhook::message(&slack, &app, channel, user, text)
                }
            };
            let expects = if command.is_some() { Expects::Message } else { Expects::Accepted };
            send(&options, &slack, &app, webhook, expects, *retry).await
        }
        Verb::Scenario => scenario(&options, &slack, &app).await?,
        Verb::Load { rate, seconds, conversations } => {
            return load(&options, &slack, &app, *rate, *seconds, *conversations).await;
        }
    };
    report(&options, &lines);
    Ok(lines.iter().all(|line| line.wrong.is_none()))
}

async fn send(
    options: &Options,
    slack: &Slack,
    app: &App,
    webhook: Webhook,
    expects: Expects,
    retry: bool,
) -> Vec<Line> {
    let url = options.url.as_str();
    let attempts = match retry && expects == Expects::Accepted {
        true => slack.deliver(url, &app.secret, &webhook, false).await.attempts,
        false => vec![slack.attempt(url, &app.secret, &webhook, None).await],
    };
    attempts.into_iter().map(|attempt| line(&webhook.what, expects, "", attempt)).collect()
}

fn line(what: &str, expects: Expects, challenge: &str, attempt: Attempt) -> Line {
    let wrong = match &attempt.answer {
        Some(answer) => conformance::wrong(expects, challenge, answer),
        None => attempt.wrong.map(|reason: Reason| reason.as_str().to_owned()),
    };
    let what = match attempt.number {
        0 => what.to_owned(),
        number => format!("{what} (retry {number})"),
    };
    Line { what, answer: attempt.answer, wrong }
}

/// Sends one webhook of every kind with new ids, a message and its copy, and forgeries.
async fn scenario(options: &Options, slack: &Slack, app: &App) -> anyhow::Result<Vec<Line>> {
    let (url, mut lines) = (options.url.as_str(), Vec::new());
    for fixture in fixtures::all() {
        let text = fixture.content.to_string();
        let text = text.replace("A0001APP", &app.app).replace("T0001TEAM", &app.team);
        let mut content: Value = serde_json::from_str(&text)?;
        own_ids(slack, &mut content);
        let webhook = fixtures::webhook(&fixture.shape.name, &content);
        let expects = conformance::expects(&content);
        let challenge = content["challenge"].as_str().unwrap_or_default();
        let attempt = slack.attempt(url, &app.secret, &webhook, None).await;
        lines.push(line(&fixture.shape.name, expects, challenge, attempt));
    }
    let message = Webhook::message(slack, app, "C0001CHAN", "U0001USER", "a message and its copy");
    for what in ["a message", "a copy of the message"] {
        let attempt = slack.attempt(url, &app.secret, &message, None).await;
        lines.push(line(what, Expects::Accepted, "", attempt));
    }
    let attempt = slack.attempt(url, "not the secret", &message, None).await;
    lines.push(line("signed with another secret", Expects::Refusal, "", attempt));
    let old = slack.send_signed_at(url, &app.secret, &message, unix_now() - 301).await?;
    let wrong = conformance::wrong(Expects::Refusal, "", &old);
    lines.push(Line { what: "signed 301 s ago".into(), answer: Some(old), wrong });
    let bare = slack.send_with(url, &message, &[]).await?;
    let wrong = conformance::wrong(Expects::Refusal, "", &bare);
    lines.push(Line { what: "not signed".into(), answer: Some(bare), wrong });
    Ok(lines)
}

/// Sets new ids, so that a second run does not send copies of the webhooks of the first run.
fn own_ids(slack: &Slack, content: &mut Value) {
    let mark = format!("{}{}", unix_now(), slack.unique());
    for (at, start) in
        [("/event_id", "Ev"), ("/_form/trigger_id", "1."), ("/_payload/trigger_id", "1.")]
    {
        if let Some(there) = content.pointer_mut(at) {
            *there = format!("{start}{mark}").into();
        }
    }
}

fn report(options: &Options, lines: &[Line]) {
    if options.json {
        let lines: Vec<Value> = lines
            .iter()
            .map(|line| {
                json!({
                    "what": line.what,
                    "status": line.answer.as_ref().map(|answer| answer.status),
                    "ms": line.answer.as_ref().map(|answer| answer.took.as_millis() as u64),
                    "body": line.answer.as_ref().map(|answer| &answer.body),
                    "satisfied": line.wrong.is_none(),
                    "wrong": line.wrong,
                })
            })
            .collect();
        println!("{}", Value::from(lines));
        return;
    }
    let colours = std::io::stdout().is_terminal();
    println!("{:<34} {:>6} {:>8}  Slack", "webhook", "answer", "ms");
    for line in lines {
        let (status, took) =
            line.answer.as_ref().map_or(("none".into(), String::new()), |answer| {
                (answer.status.to_string(), format!("{:.1}", answer.took.as_secs_f64() * 1e3))
            });
        let opinion = match (&line.wrong, colours) {
            (None, false) => "satisfied".to_owned(),
            (None, true) => "\x1b[32msatisfied\x1b[0m".to_owned(),
            (Some(wrong), false) => format!("NOT SATISFIED: {wrong}"),
            (Some(wrong), true) => format!("\x1b[31mNOT SATISFIED: {wrong}\x1b[0m"),
        };
        let what: String = line.what.chars().take(34).collect();
        println!("{what:<34} {status:>6} {took:>8}  {opinion}");
    }
}

async fn load(
    options: &Options,
    slack: &Slack,
    app: &App,
    rate: u32,
    seconds: u32,
    conversations: u32,
) -> anyhow::Result<bool> {
    let total = rate.saturating_mul(seconds).max(1);
    let mut due = tokio::time::interval(Duration::from_secs(1) / rate.max(1));
    let mut sending = tokio::task::JoinSet::new();
    let terminal = std::io::stderr().is_terminal();
    for n in 0..total {
        due.tick().await;
        let channel = format!("D{:04}", n % conversations.max(1));
        let webhook = Webhook::message(slack, app, &channel, "U0001USER", &format!("message {n}"));
        let (slack, url, secret) = (slack.clone(), options.url.to_string(), app.secret.clone());
        sending.spawn(async move { slack.attempt(&url, &secret, &webhook, None).await });
        if terminal && n.is_multiple_of(rate.max(1)) {
            eprint!("\r{n} of {total}");
        }
    }
    let attempts = sending.join_all().await;
    if terminal {
        eprintln!();
    }
    let mut took: Vec<f64> = attempts
        .iter()
        .filter_map(|attempt| Some(attempt.answer.as_ref()?.took.as_secs_f64() * 1e3))
        .collect();
    took.sort_by(f64::total_cmp);
    let at = |share: f64| took.get(((took.len() as f64 - 1.0) * share) as usize).copied();
    let failed: Vec<&Attempt> = attempts.iter().filter(|attempt| attempt.wrong.is_some()).collect();
    let mut reasons: Vec<&str> =
        failed.iter().filter_map(|attempt| attempt.wrong.map(Reason::as_str)).collect();
    reasons.sort_unstable();
    reasons.dedup();
    let off = slack.is_disabled(options.url.as_str());
    if options.json {
        println!(
            "{}",
            json!({
                "sent": attempts.len(), "failed": failed.len(), "reasons": reasons,
                "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": took.last(), "disabled": off,
            })
        );
    } else {
        let ms = |value: Option<f64>| value.map_or("-".into(), |ms| format!("{ms:.1} ms"));
        println!("sent      {} at {rate} per second", attempts.len());
        println!(
            "answers   p50 {}, p99 {}, slowest {}",
            ms(at(0.5)),
            ms(at(0.99)),
            ms(took.last().copied())
        );
        println!("failed    {} {}", failed.len(), reasons.join(", "));
        println!(
            "Slack     {}",
            if off { "would have disabled the app" } else { "keeps the app enabled" }
        );
    }
    Ok(failed.is_empty())
}
