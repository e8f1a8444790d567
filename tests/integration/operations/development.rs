//! Commands for development: `agents test`, `trigger`, `link-codes create` and `status`.

use serde_json::json;
use tests::{
    agent::Agent,
    eventually::eventually,
    test_env::{SMALL, Size, TIMEOUT, TestEnv},
};

/// `agents test` calls an agent as a worker does and reports its answer, invalid ones, and that it
/// accepts a wrong signature.
#[tokio::test(flavor = "multi_thread")]
async fn tests_agent_without_deployment() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let agent = Agent::start().await.expect("an agent");
    let secret = env.secret_argument("agent-secret").expect("a file");
    let test = |text: &str| {
        let url = agent.url();
        let args = ["agents", "test", &url, "--secret", &secret, "--text", text];
        let ran = env.try_tidegate(&args).expect("it runs");
        (ran.status.code(), String::from_utf8(ran.stdout).expect("text"))
    };
    let (code, output) = test("hello");
    assert_eq!(code, Some(0), "{output}");
    for text in
        ["good     status     200", "first byte after", "| I heard: hello", "wrong signature"]
    {
        assert!(output.contains(text), "{text}: {output}");
    }
    let asked = agent.requests().remove(0);
    assert_eq!(asked.question["type"], json!("message"));
    for header in ["idempotency-key", "webhook-id", "webhook-timestamp", "webhook-signature"] {
        assert!(asked.headers.contains_key(header), "{header}");
    }
    for (text, problem) in [
        ("json nonsense", "not a JSON object"),
        ("json {\"text\":1}", "field text has a wrong type"),
        ("poison", "422"),
    ] {
        let (code, output) = test(text);
        assert!(code == Some(1) && output.contains(problem), "{text}: {output}");
    }
}

/// `trigger` sends documented webhooks that ingest accepts, none of them as a duplicate, and names
/// its mistakes.
#[tokio::test(flavor = "multi_thread")]
async fn triggers_documented_webhooks() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.declare().expect("a connection");
    let (url, secret) =
        (env.ingests[0].url(&app), env.secret_argument(&app.secret).expect("a file"));
    let team = app.team.clone();
    let trigger = |kind: &str, secret: &str, more: &[&str]| {
        let args = ["trigger", kind, "--url", &url, "--secret", secret, "--team", &team, "--app"];
        let ran =
            env.try_tidegate(&[&args, &[app.app.as_str()][..], more].concat()).expect("it runs");
        let output = String::from_utf8([ran.stdout, ran.stderr].concat()).expect("text");
        (ran.status.code(), output)
    };
    let list = env.tidegate(&["trigger", "--list"]).expect("a list");
    assert!(list.lines().count() > 200 && list.contains("app_mention"), "{list}");
    for kind in ["message_im", "app_mention", "block_actions", "command"] {
        let kind = list.lines().find(|line| line.starts_with(kind)).expect(kind);
        let kind = kind.split_whitespace().next().expect("a name");
        let (code, output) = trigger(kind, &secret, &[]);
        assert!(code == Some(0) && output.contains("answered 200"), "{kind}: {output}");
        let (code, output) = trigger(kind, &secret, &["--text", "again"]);
        assert!(code == Some(0) && output.contains("answered 200"), "{kind} twice: {output}");
    }
    let stored = env.stored().await.expect("a count");
    assert_eq!(stored, 8, "none is a duplicate");
    let wrong = env.secret_argument("another").expect("a file");
    let (code, output) = trigger("app_mention", &wrong, &[]);
    assert!(code == Some(1) && output.contains("pass the signing secret"), "{output}");
    let (code, output) = trigger("no_such_kind", &secret, &[]);
    assert!(code == Some(1) && output.contains("tidegate trigger --list"), "{output}");
}

/// A code that no conversation accepts is created with a warning, and printed with its id and end.
#[tokio::test(flavor = "multi_thread")]
async fn warns_of_useless_link_code() {
    let size = Size { ingests: 1, workers: 0, own_postgres: false };
    let env = TestEnv::start(size).await.expect("a test environment");
    let app = env.declare().expect("a connection");
    let create = |more: &[&str]| {
        let args = ["link-codes", "create", "--org", app.org.as_str(), "--agent", "sample"];
        let ran = env.try_tidegate(&[&args[..], more].concat()).expect("it runs");
        assert!(ran.status.success());
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (text(ran.stdout), text(ran.stderr))
    };
    let (code, warning) = create(&[]);
    assert!(!code.trim().is_empty());
    assert!(warning.contains("no conversation accepts this code"), "{warning}");
    let connection = app.connection.to_string();
    let (printed, warning) = create(&["--connection", &connection, "--json"]);
    assert_eq!(warning, "");
    let printed: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
    for field in ["id", "code", "ttl_seconds", "expires_at"] {
        assert!(!printed[field].is_null(), "{field}: {printed}");
    }
}

/// `status` fits on one screen, and fails and names missing processes if none run.
#[tokio::test(flavor = "multi_thread")]
async fn shows_status_on_one_screen() {
    let mut env = TestEnv::start(SMALL).await.expect("a test environment");
    env.declare().expect("a connection");
    let status = |env: &TestEnv| {
        let ran = env.try_tidegate(&["status"]).expect("it runs");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (ran.status.code(), text(ran.stdout), text(ran.stderr))
    };
    let (code, screen, output) = status(&env);
    assert_eq!(code, Some(0), "{screen}{output}");
    assert!(screen.contains("1 live") && screen.contains("64 of 64 held"), "{screen}");
    assert!(screen.contains("1 active") && screen.lines().count() <= 24, "{screen}");
    drop(env.workers.pop());
    drop(env.ingests.pop());
    eventually("the processes are reported as missing", TIMEOUT, async || {
        let (code, _, output) = status(&env);
        (code == Some(1) && output.contains("no ingest runs; partitions without a worker: 64"))
            .then_some(())
    })
    .await;
}
