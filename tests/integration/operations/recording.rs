//! Recordings of a stream: they have the same effects in another stream, and differences are
//! reported.

use shared::domain::{LinkCode, Surface};
use std::collections::BTreeSet;
use tests::{
    effects::{Effects, report},
    fixtures,
    recording::{PAUSE, Recorded, Recording},
    scenario::Scenario,
    slack::webhook::Webhook,
    test_env::{App, SMALL, Size, TIMEOUT, TestEnv, agent_id, of_fixtures},
};

const WORKER_ONLY: Size = Size { ingests: 0, workers: 1, own_postgres: false };

/// Seed of the scenario, with its digest and that of its recording. A change of the scenario, or of
/// the stored envelopes, changes them.
const SEED: u64 = 7;
const SCENARIO: &str = "6f5b9e116d27a26910eb3e4deb0578f038a1673b6e8281fa26cbad7e9581819d";
const RECORDING: &str = "df47859223734a4484bf10802a5d7262d3776d674202d6e641abf87afeb1252c";

/// A seed always gives the same scenario, with the recorded digest and size.
#[test]
fn repeats_scenario_of_seed() {
    let (scenario, again, other) = (Scenario::of(SEED), Scenario::of(SEED), Scenario::of(SEED + 1));
    let (scenario, again) = (scenario.expect("a scenario"), again.expect("the same"));
    assert_eq!(scenario.digest(), again.digest());
    assert_ne!(scenario.digest(), other.expect("another").digest());
    assert!(scenario.stored() >= 2_000, "{}", scenario.stored());
    assert!(scenario.connections() >= 50, "{}", scenario.connections());
    assert_eq!(
        scenario.digest(),
        SCENARIO,
        "the scenario has changed: if that is intended, change the digest"
    );
}

/// A recording of the scenario has the effects of its live run in another environment, and the
/// recorded digest.
#[tokio::test(flavor = "multi_thread")]
async fn reproduces_effects_of_scenario() {
    let scenario = Scenario::of(SEED).expect("a scenario");
    let (env, recording) = scenario.run_live().await.expect("a live run");
    let live = Effects::of(&env).await.expect("effects");
    assert_eq!(recording.messages.len(), scenario.stored());
    let kinds: BTreeSet<&str> =
        recording.messages.iter().map(|m| m.header("Tidegate-Kind")).collect();
    assert_eq!(kinds.len(), 5, "event, command, interaction, options, unknown: {kinds:?}");
    let file = env.folder("recorded").expect("a folder").join("day.jsonl");
    recording.write(&file).expect("written");
    let read = Recording::read(&file).expect("read");
    assert_eq!(read, recording);
    drop(env);
    let env = scenario.process(&read).await.expect("processed again");
    let again = Effects::of(&env).await.expect("effects");
    let differences = live.without_window_effects().differences(&again.without_window_effects());
    assert!(differences.is_empty(), "{}", report(&differences));
    let put = Recording::of(&env).await.expect("what was put in");
    for digest in [recording.digest(), put.digest()] {
        assert_eq!(
            digest, RECORDING,
            "what is stored of the scenario has changed: if that is intended, change the digest"
        );
    }
}

/// Connects an app with a link code, with the same ids in every environment.
async fn connect_fixed_app(env: &TestEnv) -> App {
    let code: LinkCode = CODE.parse().expect("a code");
    let app = env.connect_as(|new| {
        of_fixtures(new);
        new.id = format!("{:032x}", 7).parse().expect("an id");
        new.agent = Some(agent_id());
    });
    let app = app.await.expect("a connection");
    env.create_link_code(&app, &[Surface::Dm]).await.expect("a claim");
    let same = sqlx::query("update link_codes set code_hash = $1");
    same.bind(code.hash().as_bytes()).execute(&env.pool).await.expect("this code's");
    app
}
const CODE: &str = "7K3M-Q2XW-9FHA";

/// Sends webhooks: a code is used, and used again by another person; two people write; a view is
/// submitted, options are requested, and an unparsable webhook is sent.
async fn send_webhooks(env: &TestEnv, app: &App) {
    let slack = &env.slack;
    let link = format!("link {CODE}");
    let linked = Webhook::command(slack, app, "D1", "U1", "/lobu", &link);
    let late = Webhook::command(slack, app, "D2", "U2", "/lobu", &link);
    let mut sent = vec![linked, late];
    for (channel, text) in
        [("D1", "one"), ("D2", "four"), ("D1", "two"), ("D2", "five"), ("D1", "three")]
    {
        sent.push(Webhook::message(slack, app, channel, "U1", text));
    }
    for name in ["view_submission", "block_suggestion"] {
        sent.push(fixtures::named(name).webhook);
    }
    sent.push(fixtures::webhook("of_tomorrow", &serde_json::json!({ "type": "of_tomorrow" })));
    for (n, webhook) in sent.iter().enumerate() {
        assert_eq!(env.send(app, webhook).await.expect("an answer").status, 200);
        if n < 2 {
            // The second use of the code is late. Everything after it is in a bound conversation.
            env.wait_until_processed(TIMEOUT).await.expect("worked off");
            tokio::time::sleep(PAUSE).await;
        }
    }
    env.wait_until_processed(TIMEOUT).await.expect("worked off");
}

async fn process_again(recording: &Recording) -> Effects {
    let env = TestEnv::start(WORKER_ONLY).await.expect("a test environment");
    connect_fixed_app(&env).await;
    recording.put(&env).await.expect("put in");
    env.wait_until_processed(TIMEOUT).await.expect("worked off");
    Effects::of(&env).await.expect("effects")
}

fn position_of(recording: &Recording, text: &str) -> usize {
    let field = format!("\"text\":\"{text}\"");
    let has_field = |m: &Recorded| String::from_utf8_lossy(&m.body).contains(&field);
    recording.messages.iter().position(has_field).expect("a message")
}

/// A recording has the effects of its live run. A missing or swapped message causes exactly the
/// differences it should.
#[tokio::test(flavor = "multi_thread")]
async fn reproduces_effects_exactly() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = connect_fixed_app(&env).await;
    send_webhooks(&env, &app).await;
    let recording = Recording::of(&env).await.expect("a recording");
    let live = Effects::of(&env).await.expect("effects");
    let refused = recording.put(&env).await.expect_err("the stream is not fresh");
    assert!(refused.to_string().contains("the stream has 10 messages"), "{refused}");
    drop(env);

    let id = app.connection;
    assert_eq!(live.0[&format!("binding {id} {} D1", app.team)], ["org-1/sample by U1"]);
    assert_eq!(live.0.keys().filter(|name| name.starts_with("claim ")).count(), 1);
    let answers_in = |effects: &Effects, channel: &str| {
        let lines = effects.0[&format!("told {} {channel}", app.team)].clone();
        let lines =
            lines.into_iter().filter_map(|line| Some(line.split_once("I heard: ")?.1.to_owned()));
        lines
            .map(|line| line.chars().take_while(|c| c.is_ascii_lowercase()).collect())
            .collect::<Vec<String>>()
    };
    assert_eq!(
        (answers_in(&live, "D1"), answers_in(&live, "D2")),
        (texts("one two three"), texts("four five"))
    );

    // A live run and its recording differ only in the requests that Slack waited for.
    let again = process_again(&recording).await;
    let shown = format!("told {} VNHU13V36", app.team);
    let differences = live.differences(&again);
    for one in &differences {
        let waited_for = one.what == shown
            || one.what == format!("webhook {id}:options:*")
            || one.what.starts_with(&format!("webhook {id}:action:"));
        assert!(waited_for, "{}", report(&differences));
    }
    assert!(again.0[&shown][0].starts_with("views.update "), "no request waits: {again:?}");
    assert_eq!(live.without_window_effects(), again.clone().without_window_effects());

    let mut tampered = recording.clone();
    let (four, five) = (position_of(&tampered, "four"), position_of(&tampered, "five"));
    tampered.messages.swap(four, five);
    let missing = tampered.messages.remove(position_of(&tampered, "two"));
    let other = process_again(&tampered).await;
    assert_eq!(
        (answers_in(&other, "D1"), answers_in(&other, "D2")),
        (texts("one three"), texts("five four"))
    );
    let differences = again.differences(&other);
    let named: BTreeSet<&str> = differences.iter().map(|one| one.what.as_str()).collect();
    let (lost, swapped) = (missing.lane(), recording.messages[four].lane());
    for name in [
        format!("webhook {}", missing.key()),
        format!("told {} D1", app.team),
        format!("told {} D2", app.team),
        format!("asked in lane {lost}"),
        format!("asked in lane {swapped}"),
    ] {
        assert!(named.contains(name.as_str()), "{name} is not in {named:?}");
    }
    assert_eq!(named.len(), 5, "{}", report(&differences));
}

fn texts(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// Files that are no recording, and recordings of unknown connections, are rejected with their
/// place.
#[tokio::test(flavor = "multi_thread")]
async fn rejects_invalid_recording() {
    let env = TestEnv::without_processes(WORKER_ONLY).await.expect("servers");
    let file = env.write("some.jsonl", "{\"kind\":\"a shopping list\"}\n").expect("a file");
    let error = Recording::read(&file).expect_err("no recording");
    assert!(error.to_string().ends_with("some.jsonl is not a recording of version 1"), "{error}");
    let head = "{\"recording\":1,\"slack\":\"http://127.0.0.1:1\"}\n";
    let file = env.write("some.jsonl", &format!("{head}{{\"subject\":\"x\",\"headers\":{{}}}}\n"));
    let error = Recording::read(&file.expect("a file")).expect_err("half a message");
    assert!(error.to_string().starts_with("line 2 of "), "{error}");

    let body = vec![0xff, b'x'];
    let subject = format!("slack.in.3.{:032x}", 9);
    let headers = [("Nats-Msg-Id".to_owned(), "a key".to_owned())].into();
    let recording = Recording {
        slack: "http://127.0.0.1:1".into(),
        messages: vec![Recorded { subject, headers, body }],
    };
    let file = env.folder("recorded").expect("a folder").join("one.jsonl");
    recording.write(&file).expect("written");
    assert_eq!(
        Recording::read(&file).expect("read"),
        recording,
        "the recording keeps bytes that are not UTF-8"
    );
    let error = recording.put(&env).await.expect_err("nobody's");
    let why = format!("connection {:032x} is not in this environment; declare it first", 9);
    assert_eq!(error.to_string(), why);
}

/// Reports name missing, added and reordered lines with their counts.
#[test]
fn reports_differences() {
    let effects = |messages: &[&str], bound: &str, webhook: &str| {
        let lines = [("told T1 D1", messages), ("binding c T1 D1", &[bound]), (webhook, &["done"])];
        let owned = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        Effects(lines.map(|(name, lines)| (name.to_owned(), owned(lines))).into())
    };
    let (messages, bound, webhook) = (["one", "two", "three"], "org/a by U1", "webhook k");
    let before = effects(&messages, bound, webhook);
    assert_eq!(report(&before.differences(&before.clone())), "no difference");
    for (after, named) in [
        (
            effects(&["one", "three", "two"], bound, webhook),
            "told T1 D1 (in another order)\n  - two\n  + two\n1 in all: 1 told",
        ),
        (effects(&["one", "three"], bound, webhook), "told T1 D1\n  - two\n1 in all: 1 told"),
        (
            effects(&["one", "two", "two", "three"], bound, webhook),
            "told T1 D1\n  + two\n1 in all: 1 told",
        ),
        (
            effects(&messages, "org/b by U1", webhook),
            "binding c T1 D1\n  - org/a by U1\n  + org/b by U1\n1 in all: 1 binding",
        ),
        (
            effects(&messages, bound, "webhook l"),
            "webhook k\n  - done\nwebhook l\n  + done\n2 in all: 2 webhook",
        ),
    ] {
        assert_eq!(report(&before.differences(&after)), named);
    }
}
