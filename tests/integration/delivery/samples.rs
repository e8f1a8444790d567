//! The sample agents of `worker/examples`: verified signatures, streamed answers, cancelled runs.

use shared::{secrets::Secret, store::NewAgent};
use tests::{
    bolt::Language,
    eventually::eventually,
    provision::new_agent,
    samples::Sample,
    slack::webhook::Webhook,
    test_env::{SMALL, TIMEOUT, TestEnv, agent_id},
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// Maximum lines of a sample agent, without imports.
const LINES_MAX: usize = 25;

/// The Python and the JavaScript sample agent verify signatures, stream answers and end cancelled
/// runs, in at most 25 lines.
#[tokio::test]
async fn verifies_streams_and_cancels() {
    let mut env = TestEnv::without_processes(SMALL).await.expect("servers");
    env.set("TIDEGATE_SLACK_APPEND_MIN_INTERVAL", "12ms");
    env.start_processes().await.expect("processes");
    for language in [Language::Python, Language::JavaScript] {
        let name = language.as_str();
        let is_import = |line: &&str| {
            line.starts_with("import ") || line.starts_with("from ") || line.contains("require(")
        };
        let lines = Sample::source(language).lines().filter(|line| !line.trim().is_empty());
        let lines = lines.filter(|line| !is_import(line)).skip(1).count();
        assert!(lines <= LINES_MAX, "{name} has {lines} lines");
        let sample = Sample::start(language, SECRET).await.expect("a sample");
        let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
        let agent = new_agent(&app.org, agent_id(), sample.url()).expect("an agent");
        let secret = Secret::new(SECRET.into()).expect("a secret");
        env.store.put_agent(&NewAgent { secret, ..agent }).await.expect("Postgres");

        let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "good morning to all");
        env.send(&app, &webhook).await.expect("an answer");
        assert_eq!(env.wait_for_outcome(&webhook.dedup_key).await.outcome, "completed", "{name}");
        let messages = env.slack.messages(&app.team, "C1");
        let text = &messages.last().expect("an answer").text;
        assert_eq!(text.trim(), "good morning to all", "{name}");

        let forged = reqwest::Client::new().post(sample.url()).header("webhook-id", "1");
        let forged = forged.header("webhook-timestamp", "1").header("webhook-signature", "v1,AAAA");
        let refused = forged.body("{}").send().await.expect("an answer");
        assert_eq!(refused.status().as_u16(), 401, "{name}");

        let long = Webhook::message(&env.slack, &app, "D1", "U1", &"word ".repeat(400));
        env.send(&app, &long).await.expect("an answer");
        let begun = async || {
            let mut messages = env.slack.messages(&app.team, "D1");
            messages.retain(|message| message.bot_id.is_some());
            (!messages.is_empty()).then_some(())
        };
        eventually("the answer begins", TIMEOUT, begun).await;
        let stop = Webhook::message(&env.slack, &app, "D1", "U1", "!stop");
        env.send(&app, &stop).await.expect("an answer");
        assert_eq!(env.wait_for_outcome(&long.dedup_key).await.outcome, "stopped", "{name}");
        let cancelled = async || sample.process.log().contains("cancelled run_").then_some(());
        eventually("the sample ends its work", TIMEOUT, cancelled).await;
    }
}
