//! Streamed answers: parts, segments, refusals of Slack, killed workers, and deploys.
//!
//! Durations are 60 times shorter than Slack's and the worker's own.

use std::time::{Duration, Instant};
use tests::{
    agent::StreamedWords,
    eventually::{eventually, try_eventually},
    fault::Random,
    size::ci_or_full,
    slack::{
        conversations::Message,
        fault_injection::{Fault, FaultRule},
        streams::StreamingState,
        webhook::Webhook,
    },
    test_env::{App, PAIR, SMALL, Size, TIMEOUT, TestEnv, agent_id},
};

/// Maximum time from the agent's first event to the first text in Slack.
const FIRST_TEXT_WITHIN: Duration = Duration::from_millis(300);
/// Lifetime of a stream in Slack.
const LIFETIME: Duration = Duration::from_secs(5);

async fn start_env(size: Size) -> (TestEnv, App) {
    let mut env = TestEnv::without_processes(size).await.expect("servers");
    for (name, value) in [
        ("TIDEGATE_STREAMED_MESSAGE_MAX_AGE", "4s"),
        ("TIDEGATE_SLACK_APPEND_MIN_INTERVAL", "12ms"),
        ("TIDEGATE_SLACK_STREAM_MIN_INTERVAL", "50ms"),
        ("TIDEGATE_SLACK_EDIT_MIN_INTERVAL", "50ms"),
        ("TIDEGATE_SHUTDOWN_GRACE_PERIOD", "1s"),
    ] {
        env.set(name, value);
    }
    env.slack.set_streams(|streams| streams.lifetime = LIFETIME);
    env.start_processes().await.expect("processes");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    (env, app)
}

async fn ask(env: &TestEnv, app: &App, channel: &str, text: &str) -> Webhook {
    let webhook = Webhook::message(&env.slack, app, channel, "U1", text);
    assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
    webhook
}

fn expected(text: &str) -> String {
    StreamedWords::parse(text).expect("words").text()
}

/// Returns the messages of the bot, in order.
fn answers(env: &TestEnv, app: &App, channel: &str) -> Vec<Message> {
    let mut messages = env.slack.messages(&app.team, channel);
    messages.retain(|message| message.bot_id.is_some());
    messages
}

fn state(message: &Message) -> Option<StreamingState> {
    message.stream.as_ref().map(|stream| stream.state)
}

/// Returns the visible text: that of the blocks of an update, or of the stream.
fn shown(message: &Message) -> String {
    let blocks = message.blocks.as_array().into_iter().flatten();
    let texts: Vec<&str> = blocks.filter_map(|block| block["text"].as_str()).collect();
    if texts.is_empty() { message.text.clone() } else { texts.concat() }
}

fn joined(messages: &[Message]) -> String {
    messages.iter().map(shown).collect()
}

async fn wait_for_parts(env: &TestEnv) {
    let begun = async || (!env.slack.calls_of("chat.appendStream").is_empty()).then_some(());
    let begun = try_eventually("parts are appended", TIMEOUT, begun).await;
    begun.unwrap_or_else(|error| panic!("{error}: {:#?}\n{}", env.slack.calls(), env.logs()));
}

async fn count(env: &TestEnv, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&env.pool).await.expect("a count")
}

/// A streamed answer is complete in one message, its first text within 300 ms, and its run holds no
/// agent slot.
#[tokio::test]
async fn streams_whole_answer_once() {
    let (env, app) = start_env(SMALL).await;
    let text = "stream:40:50:8 please";
    let webhook = ask(&env, &app, "C1", text).await;
    wait_for_parts(&env).await;
    let slots = "select count(*) from agent_slots where lane is not null";
    assert_eq!(count(&env, slots).await, 0, "a run holds a slot");
    assert_eq!(count(&env, "select count(*) from runs").await, 1);
    assert_eq!(state(&answers(&env, &app, "C1")[0]), Some(StreamingState::InProgress));

    assert_eq!(env.wait_for_outcome(&webhook.dedup_key).await.outcome, "completed");
    let messages = answers(&env, &app, "C1");
    assert_eq!(joined(&messages), expected(text));
    assert_eq!((messages.len(), state(&messages[0])), (1, Some(StreamingState::Completed)));
    // Two agents that answer each other are stopped by this count.
    assert_eq!(messages[0].metadata["event_payload"]["hops"], 1);
    let started = &env.slack.calls_of("chat.startStream")[0];
    assert_eq!(started.args["thread_ts"], env.slack.messages(&app.team, "C1")[0].ts);
    assert_eq!(started.args["recipient_user_id"], "U1");
    let first = env.agent.first_event(webhook.dedup_key.as_str()).expect("it streamed");
    let took = started.at.saturating_duration_since(first);
    println!(
        "first text after {took:?}, {} appends",
        env.slack.calls_of("chat.appendStream").len()
    );
    assert!(took <= FIRST_TEXT_WITHIN, "first text after {took:?}");
    let question = &env.agent.requests()[0].question;
    assert_eq!(
        (&question["protocol"], &question["trigger"]["kind"]),
        (&2.into(), &"message".into())
    );
    assert!(question["run"].as_str().is_some_and(|run| run.starts_with("run_")), "{question}");
    assert_eq!(count(&env, "select count(*) from runs").await, 0, "the run outlived its delivery");
    assert_eq!(count(&env, "select count(*) from run_parts").await, 0);
}

/// The next question of a conversation waits for the streamed answer, and is answered after it.
#[tokio::test]
async fn orders_answer_after_stream() {
    let (env, app) = start_env(SMALL).await;
    ask(&env, &app, "D1", "hello").await;
    let text = "stream:20:50:8 please";
    ask(&env, &app, "D1", text).await;
    let last = ask(&env, &app, "D1", "and now").await;
    env.wait_for_outcome(&last.dedup_key).await;
    env.slack.wait_for_receipt("the last answer", |r| r.text() == "I heard: and now").await;
    let texts: Vec<String> = answers(&env, &app, "D1").iter().map(shown).collect();
    assert_eq!(texts, ["I heard: hello".into(), expected(text), "I heard: and now".into()]);
}

/// A long answer continues in another message before Slack ends the stream or its size limit is
/// reached.
#[tokio::test]
async fn continues_in_next_message() {
    let (env, app) = start_env(SMALL).await;
    let (slow, large) = ("stream:120:80:8 please", "stream:40:20:1000 please");
    let (of_slow, of_large) =
        (ask(&env, &app, "C1", slow).await, ask(&env, &app, "C2", large).await);
    env.wait_for_outcome(&of_slow.dedup_key).await;
    env.wait_for_outcome(&of_large.dedup_key).await;
    for (channel, text, least) in [("C1", slow, 3), ("C2", large, 5)] {
        let messages = answers(&env, &app, channel);
        assert!(messages.len() >= least, "{} messages in {channel}", messages.len());
        assert_eq!(joined(&messages), expected(text));
        assert!(messages.iter().all(|m| state(m) == Some(StreamingState::Completed) && !m.edited));
    }
}

/// Where Slack refuses streams, the answer is one edited message, and the refusal is remembered.
#[tokio::test]
async fn edits_message_without_streams() {
    let (env, app) = start_env(SMALL).await;
    env.slack.set_streams(|streams| streams.refuses = Some("channel_type_not_supported".into()));
    let text = "stream:30:30:8 please";
    for channel in ["C1", "C2"] {
        let webhook = ask(&env, &app, channel, text).await;
        env.wait_for_outcome(&webhook.dedup_key).await;
        let messages = answers(&env, &app, channel);
        assert_eq!((messages.len(), joined(&messages)), (1, expected(text)));
        assert_eq!((state(&messages[0]), messages[0].edited), (None, true));
        assert_eq!(messages[0].metadata["event_payload"]["hops"], 1);
    }
    assert_eq!(env.slack.calls_of("chat.startStream").len(), 1, "refusals are remembered");
}

/// A lost response of Slack, before or after the call took effect, repeats and loses no part of an
/// answer.
#[tokio::test]
async fn reconciles_ambiguous_calls() {
    let (env, app) = start_env(SMALL).await;
    let text = "stream:40:30:8 please";
    for (n, (method, taken)) in [
        ("chat.startStream", true),
        ("chat.startStream", false),
        ("chat.appendStream", true),
        ("chat.appendStream", false),
        ("chat.stopStream", true),
        ("chat.stopStream", false),
    ]
    .into_iter()
    .enumerate()
    {
        let channel = format!("C{n}");
        let fault = FaultRule::new(Fault::Cut).on(method).in_channel(&channel).times(1);
        env.slack.inject_fault(if taken { fault.after_effect() } else { fault });
        let webhook = ask(&env, &app, &channel, text).await;
        env.wait_for_outcome(&webhook.dedup_key).await;
        let messages = answers(&env, &app, &channel);
        assert_eq!(joined(&messages), expected(text), "{method}, taken: {taken}");
        assert!(messages.iter().all(|m| state(m) == Some(StreamingState::Completed)), "{method}");
    }
}

/// Workers killed while they stream repeat and lose no part of an answer.
#[tokio::test]
async fn repeats_no_part_after_kill() {
    const STREAMS: usize = 10;
    let pairs = ci_or_full(20, 1_000);
    let (env, app) = start_env(PAIR).await;
    let mut random = Random::new(7);
    let (mut killed, mut round) = (0, 0);
    while killed < pairs {
        round += 1;
        let text = "stream:80:50:8 please";
        let channels: Vec<String> = (0..STREAMS).map(|n| format!("C{round}x{n}")).collect();
        let mut webhooks = Vec::new();
        for channel in &channels {
            webhooks.push(ask(&env, &app, channel, text).await);
        }
        let began = Instant::now();
        let open = async || {
            (count(&env, "select count(*) from runs").await >= STREAMS as i64).then_some(())
        };
        let _ = try_eventually("all streams are open", Duration::from_secs(5), open).await;
        tokio::time::sleep(Duration::from_millis(random.below(1_500) as u64)).await;
        let worker = &env.workers[round % 2].process;
        killed += count(
            &env,
            "select count(*) from runs r join delivery_lanes l using (connection_id, lane)
               join workers w on w.id = l.worker where r.ended is null",
        )
        .await
            / 2;
        worker.kill();
        worker.restart().expect("it starts again");
        for webhook in &webhooks {
            env.wait_for_outcome(&webhook.dedup_key).await;
        }
        for channel in &channels {
            let messages = answers(&env, &app, channel);
            assert_eq!(joined(&messages), expected(text), "{channel}: {messages:#?}");
            for message in &messages {
                assert_eq!(state(message), Some(StreamingState::Completed), "{channel}");
            }
        }
        println!("round {round}: {killed} pairs, {:?}", began.elapsed());
    }
}

/// Kills the worker while it streams an answer, and starts it again.
async fn kill_during_stream(env: &TestEnv) {
    wait_for_parts(env).await;
    env.workers[0].process.kill();
    env.workers[0].process.restart().expect("it starts again");
}

/// An answer in JSON after a begun stream ends the message of the stream and is posted after it.
#[tokio::test]
async fn settles_stream_before_json() {
    let (env, app) = start_env(SMALL).await;
    let text = "stream:80:50:8 then json";
    let webhook = ask(&env, &app, "C1", text).await;
    kill_during_stream(&env).await;
    assert_eq!(env.wait_for_outcome(&webhook.dedup_key).await.outcome, "completed");
    env.slack.wait_for_receipt("the answer in JSON", |r| r.text() == "I heard it again").await;
    let messages = answers(&env, &app, "C1");
    assert_eq!((messages.len(), state(&messages[0])), (2, Some(StreamingState::Completed)));
    // All that was stored, which the agent was told by the header, is shown.
    let requests = env.agent.requests();
    let last = requests[1].headers["last-event-id"].to_str().expect("a number");
    let words = text.replace(":80:", &format!(":{last}:"));
    assert_eq!(shown(&messages[0]), expected(&words));
    assert_eq!(count(&env, "select count(*) from runs").await, 0);
}

/// A delivery that becomes a dead letter after a begun stream ends the message of the stream.
#[tokio::test]
async fn settles_stream_before_dead_letter() {
    let (env, app) = start_env(SMALL).await;
    let webhook = ask(&env, &app, "C1", "stream:80:50:8 then poison").await;
    kill_during_stream(&env).await;
    assert_eq!(env.wait_for_outcome(&webhook.dedup_key).await.outcome, "dead_letter");
    let messages = answers(&env, &app, "C1");
    assert_eq!((messages.len(), state(&messages[0])), (1, Some(StreamingState::Completed)));
}

/// The message of an ambiguous start is found behind more replies than one page has.
#[tokio::test]
async fn finds_stream_in_long_thread() {
    let (env, app) = start_env(SMALL).await;
    let fault = FaultRule::new(Fault::Cut).on("chat.startStream").times(1);
    env.slack.inject_fault(fault.after_effect());
    let text = "stream:20:30:8:500 please";
    let webhook = ask(&env, &app, "C1", text).await;
    let root = env.slack.messages(&app.team, "C1")[0].ts.clone();
    for n in 0..250 {
        let (ts, text) = (env.slack.ts(), format!("reply {n}"));
        env.slack.write_in_thread(&app.team, "C1", "U2", &text, &ts, Some(&root));
    }
    assert!(answers(&env, &app, "C1").is_empty(), "the answer began before the replies");
    env.wait_for_outcome(&webhook.dedup_key).await;
    let messages = answers(&env, &app, "C1");
    assert_eq!((messages.len(), joined(&messages)), (1, expected(text)));
}

/// A token that Slack revokes during a stream ends the run: the connection is revoked, the agent
/// gets the cancellation, and the delivery is a dead letter.
#[tokio::test]
async fn ends_run_of_revoked_token() {
    let (env, app) = start_env(SMALL).await;
    let webhook = ask(&env, &app, "C1", "stream:600:100:8 please").await;
    wait_for_parts(&env).await;
    env.slack.refuse_token(&app.token, "token_revoked");
    assert_eq!(env.wait_for_outcome(&webhook.dedup_key).await.outcome, "dead_letter");
    let dead = env.dead_letters().await.expect("a list");
    assert_eq!(dead[0].reason, "the connection was revoked");
    assert!(dead[0].last_error.contains("token_revoked"), "{}", dead[0].last_error);
    let revoked = "select count(*) from connections where status = 'revoked'";
    assert_eq!(count(&env, revoked).await, 1);
    let cancelled = async || env.agent.cancels().pop();
    let cancel = eventually("the agent gets the cancellation", TIMEOUT, cancelled).await;
    assert_eq!(cancel.reason, "deleted");
}

/// An answer that Slack refuses makes a dead letter, and the person gets a notice.
#[tokio::test]
async fn reports_refused_answer() {
    let (env, app) = start_env(SMALL).await;
    let refused = Fault::ApiError("is_archived".into());
    env.slack.inject_fault(FaultRule::new(refused).on("chat.appendStream"));
    let refused = Fault::ApiError("cant_broadcast_message".into());
    for method in ["chat.stopStream", "chat.update"] {
        env.slack.inject_fault(FaultRule::new(refused.clone()).on(method));
    }
    let webhook = ask(&env, &app, "C1", "stream:600:100:8 please").await;
    assert_eq!(env.wait_for_outcome(&webhook.dedup_key).await.outcome, "dead_letter");
    let dead = env.dead_letters().await.expect("a list");
    assert_eq!(dead[0].reason, "Slack refused the answer");
    assert_eq!(dead[0].last_error, "chat.stopStream: cant_broadcast_message");
    let is_notice = |r: &tests::slack::Receipt| {
        r.by == "chat.postEphemeral" && r.text().starts_with("Slack did not accept the answer.")
    };
    let notice = env.slack.wait_for_receipt("a notice", is_notice).await;
    assert_eq!(notice.body["user"], "U1");
}

/// A run continues over rolling deploys, and its agent never has two requests for it at once.
#[tokio::test]
async fn continues_run_over_deploys() {
    let (mut env, app) = start_env(PAIR).await;
    let deploys = ci_or_full(2, 5);
    let text = format!("stream:{}:100:8 please", 100 * deploys);
    let webhook = ask(&env, &app, "C1", &text).await;
    wait_for_parts(&env).await;
    for _ in 0..deploys {
        let running = env.workers.iter().filter(|worker| worker.process.is_running()).count();
        let first = env.workers.len() - running;
        for _ in 0..running {
            env.start_worker().await.expect("another worker");
        }
        for worker in &env.workers[first..first + running] {
            worker.process.terminate();
            worker.process.wait(Duration::from_secs(20)).await.expect("it ends");
        }
    }
    let is_open = env.find_outcome(&webhook.dedup_key).await.is_none();
    assert!(is_open, "the run ended before the last deploy");
    let ended = async || env.find_outcome(&webhook.dedup_key).await;
    let outcome = eventually("the run ends", Duration::from_secs(120), ended).await.outcome;
    assert_eq!(outcome, "completed");
    assert_eq!(joined(&answers(&env, &app, "C1")), expected(&text));
    assert!(env.agent.overlapping_ids().is_empty(), "the agent was asked twice at once");
    println!(
        "{} requests, {} messages",
        env.agent.requests().len(),
        answers(&env, &app, "C1").len()
    );
}
