//! `tidegate dev`, `init` and `listen`: a deployment on this machine, a real workspace by Socket
//! Mode, and webhooks of production on a laptop.

use serde_json::json;
use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tests::{
    agent::Agent,
    binaries::Binaries,
    eventually::{eventually, try_eventually},
    process::{Process, process_exists},
    run_dir::RunDir,
    slack::{
        Slack,
        fault_injection::{Fault, FaultRule},
        sign,
        tokens::Installation,
        webhook::Webhook,
    },
    test_env::{App, SMALL, TIMEOUT, TestEnv},
};

/// Maximum time of the first start, which may fetch the servers.
const FIRST_START: Duration = Duration::from_secs(120);
/// Maximum time from `init` to an answer, once the programs are built.
const ROUTE_MAX: Duration = Duration::from_secs(120);
const APP_TOKEN: &str = "xapp-1-A0NEW-1-secret";

/// Folder of a developer, with a simulated Slack and an agent.
struct Laptop {
    slack: Slack,
    agent: Agent,
    app: App,
    run: Arc<RunDir>,
}

impl Laptop {
    async fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default(); // again for every test
        tokio::task::spawn_blocking(Binaries::get).await.expect("built").expect("binaries");
        let run = Arc::new(RunDir::new("laptop").expect("a folder"));
        let slack = Slack::start().await.expect("a Slack");
        let app = App {
            connection: "00000000000000000000000000000000".parse().expect("an id"),
            org: "local".parse().expect("an id"),
            secret: "0123456789abcdef0123456789abcdef".into(),
            token: "xoxb-of-the-laptop".into(),
            app: "A0NEW".into(),
            team: "T0NEW".into(),
            bot_user: "U0NEWBOT".into(),
        };
        slack.install(&app.token, Installation::new(&app.app, &app.team, &app.bot_user));
        slack.register_app_token(APP_TOKEN, &app.app);
        let agent = Agent::start().await.expect("an agent");
        for (name, secret) in [("signing", &*app.secret), ("bot", &*app.token), ("app", APP_TOKEN)]
        {
            std::fs::write(run.path().join(name), secret).expect("a file");
        }
        Self { slack, agent, app, run }
    }

    fn state(&self) -> PathBuf {
        self.run.path().join("state")
    }

    fn settings(&self) -> Vec<(String, String)> {
        [
            ("TIDEGATE_SLACK_API_URL", self.slack.api()),
            ("TIDEGATE_RESPONSE_URL_ORIGINS", self.slack.response_origin()),
            ("TIDEGATE_SLACK_CHANNEL_MIN_INTERVAL", "0s".into()),
            ("TIDEGATE_HANDLER_MAX_PER_USER", "1000000".into()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// Runs `tidegate` in the folder.
    fn tidegate(&self, args: &[&str]) -> Output {
        let mut command = Command::new(&Binaries::get().expect("binaries").tidegate);
        command.args(args).envs(self.settings()).current_dir(self.run.path());
        command.output().expect("it runs")
    }

    /// Runs `tidegate init` with the secrets of an app that exists.
    fn init(&self, more: &[&str]) -> Output {
        let (state, url) = (self.state().display().to_string(), self.agent.url());
        let args = ["init", "--name", "Helper", "--agent-url", &url, "--state", &state];
        let secrets = ["--signing-secret", "file:signing", "--bot-token", "file:bot"];
        self.tidegate(&[&args[..], &secrets, more].concat())
    }

    /// Starts `tidegate dev` and waits until it is ready.
    async fn dev(&self, more: &[&str]) -> Process {
        let state = self.state().display().to_string();
        let free = "127.0.0.1:0";
        let args = ["dev", "--state", &state, "--ingest-listen", free, "--control-listen", free];
        let program = &Binaries::get().expect("binaries").tidegate;
        let args = [&args[..], more].concat();
        let dev = Process::start(&self.run, "dev", program, &args, &self.settings(), None);
        let dev = dev.expect("it starts");
        let starts = dev.log().matches("ready after").count();
        let ready = async || {
            assert!(dev.is_running(), "{}", dev.log());
            (dev.log().matches("ready after").count() > starts).then_some(())
        };
        try_eventually("tidegate dev is ready", FIRST_START, ready).await.unwrap_or_else(|error| {
            panic!("{error}: {}", dev.log());
        });
        dev
    }

    /// Sends a direct message to the app by Socket Mode and waits for the answer.
    async fn ask(&self, text: &str) {
        let message = Webhook::message(&self.slack, &self.app, "D0STEVE", "U0STEVE", text);
        let delivered = self.slack.deliver_by_socket(&self.app.app, &message).await;
        assert!(delivered.ack.is_some(), "{}", self.dev_log());
        let expected = format!("I heard: {text}");
        eventually("the agent's answer is in Slack", TIMEOUT, async || {
            let messages = self.slack.messages(&self.app.team, "D0STEVE");
            messages.iter().any(|message| message.text == expected).then_some(())
        })
        .await;
    }

    fn dev_log(&self) -> String {
        std::fs::read_to_string(self.run.path().join("dev.log")).unwrap_or_default()
    }
}

fn output_text(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}

/// Returns the seconds in the last line `ready after`.
fn ready_after(log: &str) -> f64 {
    let (_, rest) = log.rsplit_once("ready after ").expect("the line");
    rest.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

/// Returns the processes whose command line names a folder.
fn processes_of(folder: &Path) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("processes").filter_map(Result::ok);
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let names = |id: &u32| {
        let command = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(&*folder.to_string_lossy())
    };
    ids.filter(names).collect()
}

/// `init` and `dev --slack` lead to an agent's answer in Slack within two minutes, print no secret,
/// and leave no process behind.
#[tokio::test(flavor = "multi_thread")]
async fn leads_newcomer_to_answer() {
    let laptop = Laptop::new().await;
    let started = Instant::now();
    let init = laptop.init(&["--app-token", "file:app"]);
    let text = output_text(&init);
    assert!(init.status.success(), "{text}");
    for expected in [
        "https://api.slack.com/apps?new_app=1&manifest_json=",
        "\"socket_mode_enabled\": true",
        "Slack accepts the tokens: app A0NEW, workspace T0NEW",
        "tidegate dev applies tidegate.toml when it starts",
        "Run tidegate dev --slack. Then send in Slack: a direct message to Helper, or /lobu help.",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let dev = laptop.dev(&["--slack"]).await;
    eventually("tidegate dev is connected", TIMEOUT, async || {
        (laptop.slack.socket_count("A0NEW") == 1).then_some(())
    })
    .await;
    laptop.ask("hello").await;
    let took = started.elapsed();
    assert!(took < ROUTE_MAX, "{took:?}");
    eprintln!("the laptop route took {took:.1?}");
    // A command is acknowledged, and its reply is sent.
    let command = Webhook::command(&laptop.slack, &laptop.app, "C1", "U0STEVE", "/lobu", "help");
    let delivered = laptop.slack.deliver_by_socket("A0NEW", &command).await;
    assert!(delivered.ack.is_some(), "{}", dev.log());
    laptop.slack.wait_for_receipt("help", |receipt| receipt.text().contains("/lobu")).await;
    let log = dev.log();
    assert!(!log.contains("warning: the app has"), "{log}");
    for secret in [&*laptop.app.secret, &*laptop.app.token, APP_TOKEN, "ticket-"] {
        assert!(!log.contains(secret) && !text.contains(secret), "{log}");
    }
    dev.signal(rustix::process::Signal::INT);
    let status = dev.wait(TIMEOUT).await.expect("it ends");
    assert!(status.success(), "{}", dev.log());
    assert_eq!(processes_of(&laptop.state()), [] as [u32; 0]);
}

/// A second start of `dev` takes less than three seconds and keeps everything. No process outlives
/// `dev`, even if it is killed.
#[tokio::test(flavor = "multi_thread")]
async fn restarts_in_three_seconds() {
    let laptop = Laptop::new().await;
    assert!(laptop.init(&["--app-token", "file:app"]).status.success());
    let dev = laptop.dev(&[]).await;
    let refused = laptop.tidegate(&["dev", "--state", &laptop.state().display().to_string()]);
    assert!(
        output_text(&refused).contains("tidegate dev is already running in"),
        "{}",
        output_text(&refused)
    );
    dev.signal(rustix::process::Signal::INT);
    dev.wait(TIMEOUT).await.expect("it ends");
    drop(dev);
    let dev = laptop.dev(&[]).await;
    let log = dev.log();
    let took = ready_after(&log);
    assert!(took < 3.0, "{log}");
    let (_, second) = log.split_once("ready after").expect("the first start");
    assert!(second.contains("changed: 0"), "{log}");
    // Operators use the settings that it prints.
    let settings = laptop.state().join("tidegate.env");
    let script = format!(". '{}' && exec \"$0\" status", settings.display());
    let program = &Binaries::get().expect("binaries").tidegate;
    let status = Command::new("/bin/sh").args(["-c", &script]).arg(program).output();
    let status = status.expect("it runs");
    assert!(output_text(&status).contains("64 of 64 held"), "{}", output_text(&status));
    let running = processes_of(&laptop.state());
    assert!(running.len() >= 2, "{running:?}");
    dev.kill();
    eventually("all processes have ended", TIMEOUT, async || {
        running.iter().all(|id| !process_exists(*id)).then_some(())
    })
    .await;
    drop(dev);
    let dev = laptop.dev(&[]).await;
    assert!(dev.log().matches("ready after").count() == 3, "{}", dev.log());
}

/// Webhooks of Socket Mode survive a refresh, a cut and failures of Slack and keep their order.
/// Those of an unknown workspace are not acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn relays_socket_mode() {
    let laptop = Laptop::new().await;
    assert!(laptop.init(&["--app-token", "file:app"]).status.success());
    let dev = laptop.dev(&["--slack"]).await;
    let connected = async |count: usize| {
        eventually("tidegate dev is connected", TIMEOUT, async || {
            (laptop.slack.socket_count("A0NEW") >= count).then_some(())
        })
        .await;
    };
    connected(1).await;
    // Both connections are open until Slack ends the old one: webhooks go to either.
    laptop.slack.disconnect_sockets("A0NEW", "refresh_requested");
    connected(2).await;
    for n in 0..6 {
        laptop.ask(&format!("refreshed {n}")).await;
    }
    // Failures of Slack that pass do not end the command.
    for fault in [Fault::ApiError("internal_error".into()), Fault::RateLimited(1)] {
        laptop.slack.inject_fault(FaultRule::new(fault).on("apps.connections.open").times(1));
    }
    laptop.slack.cut_sockets("A0NEW");
    eventually("Slack has limited the rate", TIMEOUT, async || {
        dev.log().contains("Slack limits the rate of calls; waiting 1s").then_some(())
    })
    .await;
    connected(1).await;
    laptop.ask("after a cut").await;
    // Events of one connection keep Slack's order.
    let texts: Vec<String> = (0..12).map(|n| format!("in order {n}")).collect();
    let message =
        |text: &str| Webhook::message(&laptop.slack, &laptop.app, "D0STEVE", "U0STEVE", text);
    let messages: Vec<_> = texts.iter().map(|text| message(text)).collect();
    let deliveries = messages.iter().map(|m| laptop.slack.deliver_by_socket("A0NEW", m));
    let delivered = futures_util::future::join_all(deliveries).await;
    assert!(delivered.iter().all(|delivered| delivered.attempts == 1), "{}", dev.log());
    eventually("the agent gets all messages", TIMEOUT, async || {
        let asked = laptop.agent.requests().into_iter();
        let asked =
            asked.filter_map(|request| request.question["text"].as_str().map(str::to_owned));
        let asked: Vec<_> = asked.filter(|text| text.starts_with("in order")).collect();
        (asked.len() == texts.len()).then(|| assert_eq!(asked, texts))
    })
    .await;
    eventually("the other connection is seen", TIMEOUT, async || {
        dev.log().contains("warning: the app has 2 connections").then_some(())
    })
    .await;
    // A webhook of a workspace without a connection is not acknowledged, and the log has the
    // reason.
    let stranger = App { team: "T0OTHER".into(), ..laptop.app.clone() };
    let command = Webhook::command(&laptop.slack, &stranger, "C1", "U1", "/lobu", "help");
    let delivered = laptop.slack.deliver_by_socket("A0NEW", &command).await;
    assert!(delivered.ack.is_none());
    let log = dev.log();
    assert!(log.contains("no connection of app A0NEW in workspace T0OTHER"), "{log}");
    laptop.slack.disable_sockets("A0NEW");
    let status = dev.wait(TIMEOUT).await.expect("it ends");
    assert_eq!(status.code(), Some(1));
    assert!(dev.log().contains("Socket Mode is disabled; enable it"), "{}", dev.log());
}

/// `init` names a wrong or missing secret with its remedy, and writes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn rejects_wrong_secrets() {
    let laptop = Laptop::new().await;
    let write = |name: &str, text: &str| {
        std::fs::write(laptop.run.path().join(name), text).expect("a file");
    };
    write("revoked", "xoxb-revoked");
    write("short", "0123");
    for (more, expected) in [
        (&["--app-token", "file:bot"][..], "does not begin with xapp-"),
        (&["--app-token", "file:revoked"], "does not begin with xapp-"),
        (&[], "App-level token (xapp-…) is missing, and there is no terminal to ask; pass"),
    ] {
        let ran = laptop.init(more);
        assert!(
            !ran.status.success() && output_text(&ran).contains(expected),
            "{}",
            output_text(&ran)
        );
    }
    write("unknown", "xapp-unknown");
    let ran = laptop.init(&["--app-token", "file:unknown"]);
    assert!(
        output_text(&ran).contains("Slack rejected the app-level token (invalid_auth)"),
        "{}",
        output_text(&ran)
    );
    for (signing, bot, expected) in [
        ("file:short", "file:bot", "the signing secret is malformed"),
        ("file:signing", "file:app", "does not begin with xoxb-"),
        ("file:signing", "file:revoked", "Slack rejected the bot token (invalid_auth)"),
    ] {
        let args = ["init", "--signing-secret", signing, "--bot-token", bot];
        let ran = laptop.tidegate(&[&args[..], &["--app-token", "file:app"]].concat());
        assert!(
            !ran.status.success() && output_text(&ran).contains(expected),
            "{}",
            output_text(&ran)
        );
    }
    assert!(!laptop.run.path().join("tidegate.toml").exists());
    write("tidegate.toml", "");
    let ran = laptop.init(&["--app-token", "file:app"]);
    assert!(
        output_text(&ran).contains("tidegate.toml exists; pass another file"),
        "{}",
        output_text(&ran)
    );
}

/// `init --base-url` needs no app-level token, and its manifest has the address of the connection.
#[tokio::test(flavor = "multi_thread")]
async fn prints_webhook_urls() {
    let laptop = Laptop::new().await;
    let ran = laptop.init(&["--base-url", "https://gateway.example.com"]);
    let text = output_text(&ran);
    assert!(ran.status.success(), "{text}");
    let file = std::fs::read_to_string(laptop.run.path().join("tidegate.toml")).expect("a file");
    let mut ids = file.lines().filter_map(|line| line.strip_prefix("id = \"")?.strip_suffix('"'));
    let id = ids.rfind(|id| id.len() == 32);
    let url = format!("https://gateway.example.com/api/v1/webhooks/{}", id.expect("a connection"));
    assert_eq!(text.matches(&json!(url).to_string()).count(), 4, "{text}");
    assert!(!laptop.run.path().join(".tidegate/app.token").exists());
}

/// Types the answers of a person at a terminal, when the program has turned its echo off: earlier
/// input is discarded. Ends the program after a minute.
const TYPIST: &str = r#"
import os, pty, select, signal, sys, termios, time

answers = dict(zip(["Signing secret", "Bot token", "App-level token", "URL of the agent"], sys.argv[1:5]))
pid, fd = pty.fork()
if pid == 0:
    os.execvp(sys.argv[5], sys.argv[5:])
deadline = time.monotonic() + 60
seen = b""
while True:
    if time.monotonic() > deadline:
        os.kill(pid, signal.SIGKILL)
    if select.select([fd], [], [], 0.02)[0]:
        try:
            read = os.read(fd, 4096)
        except OSError:
            break
        if not read:
            break
        seen += read
    for what, text in list(answers.items()):
        asked = what.encode() in seen.rsplit(b"\n", 1)[-1]
        if asked and not termios.tcgetattr(fd)[3] & termios.ECHO:
            del answers[what]
            os.write(fd, text.encode() + b"\r")
sys.stdout.buffer.write(seen)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

/// `init` asks for secrets at a terminal, does not show them, and stores them readable by their
/// owner only.
#[tokio::test(flavor = "multi_thread")]
async fn asks_for_secrets() {
    let laptop = Laptop::new().await;
    let typed = [&*laptop.app.secret, &*laptop.app.token, APP_TOKEN, &*laptop.agent.url()];
    let mut python = Command::new("python3");
    python.args(["-c", TYPIST]).args(typed).arg(&Binaries::get().expect("binaries").tidegate);
    python.args(["init", "--name", "Helper", "--state"]).arg(laptop.state());
    python.envs(laptop.settings()).env("TERM", "xterm").current_dir(laptop.run.path());
    let ran = python.output().expect("python3");
    let text = output_text(&ran);
    assert!(ran.status.success(), "{text}");
    assert!(text.contains("Slack accepts the tokens: app A0NEW"), "{text}");
    for secret in [&*laptop.app.secret, &*laptop.app.token, APP_TOKEN] {
        assert!(!text.contains(secret), "{text}");
    }
    let stored = laptop.run.path().join(".tidegate");
    for (name, secret) in [("signing.secret", &*laptop.app.secret), ("app.token", APP_TOKEN)] {
        let path = stored.join(name);
        assert_eq!(std::fs::read_to_string(&path).expect("a file"), secret);
        let mode = std::fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name}: {mode:o}");
    }
}

/// Request that an app received: headers and body.
type Mirrored = (axum::http::HeaderMap, Vec<u8>);

/// Starts an app that answers every request and records it.
async fn start_app() -> (String, Arc<Mutex<Vec<Mirrored>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    let take = move |headers: axum::http::HeaderMap, body: bytes::Bytes| {
        let kept = Arc::clone(&kept);
        async move {
            kept.lock().expect("a list").push((headers, body.to_vec()));
            "taken by the laptop"
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/slack/events", listener.local_addr().expect("an address"));
    let router = axum::Router::new().fallback(take);
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, seen)
}

/// `listen` forwards a connection's webhooks in order and with Slack's signature, without an effect
/// on production.
#[tokio::test(flavor = "multi_thread")]
async fn mirrors_webhooks_in_order() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let (app, other) = (env.declare().expect("an app"), env.declare().expect("another app"));
    let (url, seen) = start_app().await;
    let connection = app.connection.to_string();
    let args = ["listen", "--connection", &connection, "--forward", &url, "--count", "9"];
    let listen = env.start_tidegate("listen", &args).expect("it starts");
    eventually("tidegate listen is ready", TIMEOUT, async || {
        listen.log().contains("responses are printed, not sent").then_some(())
    })
    .await;
    let mut bodies = Vec::new();
    for n in 0..8 {
        let text = format!("message {n}");
        for app in [&app, &other] {
            let message = Webhook::message(&env.slack, app, "D1", "U1", &text);
            env.send(app, &message).await.expect("an answer");
            if app.connection.to_string() == connection {
                bodies.push(message.body);
            }
        }
    }
    let command = Webhook::command(&env.slack, &app, "D1", "U1", "/lobu", "help");
    env.send(&app, &command).await.expect("an answer");
    bodies.push(command.body);
    assert!(listen.wait(TIMEOUT).await.expect("it ends").success(), "{}", listen.log());
    let seen = seen.lock().expect("a list").clone();
    assert_eq!(seen.iter().map(|(_, body)| body.clone()).collect::<Vec<_>>(), bodies);
    for (headers, body) in &seen {
        let header = |name: &str| headers[name].to_str().expect("text");
        let signed = sign(&app.secret, header("x-slack-request-timestamp"), body);
        assert_eq!(header("x-slack-signature"), signed);
    }
    assert_eq!(listen.log().matches("answered 200 OK  taken by the laptop").count(), 9);
    // Production answers each message itself once and gets no answer of the laptop.
    eventually("production answers", TIMEOUT, async || {
        let messages = env.slack.messages(&app.team, "D1");
        let answers = messages.iter().filter(|message| message.bot_id.is_some()).count();
        (answers >= 8).then_some(())
    })
    .await;
    let receipts = env.slack.receipts();
    assert!(receipts.iter().all(|receipt| !receipt.body.to_string().contains("laptop")));
}
