//! Headers of requests to an agent: sealed at rest, and rotated with an overlap.

use shared::{
    secrets::Secret,
    store::{AgentHeaders, NewAgent},
};
use tests::{
    eventually::eventually,
    provision::new_agent,
    slack::webhook::Webhook,
    test_env::{App, SMALL, TIMEOUT, TestEnv, agent_id},
};

const OLD: &str = "Key old-1f0c5a";
const NEW: &str = "Key new-9d2e7b";

async fn put(env: &TestEnv, app: &App, name: &str, key: &str) {
    let agent = new_agent(&app.org, agent_id(), env.agent.url()).expect("an agent");
    let header = ("X-Key".to_owned(), Secret::new(key.into()).expect("a value"));
    let headers = AgentHeaders::new([header]).expect("a header");
    let agent = NewAgent { headers, name: name.into(), ..agent };
    env.store.put_agent(&agent).await.expect("Postgres");
}

async fn ask(env: &TestEnv, app: &App, text: &str) {
    let webhook = Webhook::message(&env.slack, app, "D1", "U1", text);
    assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
    let answer = format!("I heard: {text}");
    env.slack.wait_for_receipt("the answer", |r| r.text() == answer).await;
}

/// Requests carry the agent's headers, old or new during the overlap. Headers are not shown,
/// exported or logged.
#[tokio::test]
async fn sends_and_rotates_headers() {
    let env = TestEnv::start(SMALL).await.expect("servers");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    env.agent.require_key(OLD);
    put(&env, &app, "first", OLD).await;
    ask(&env, &app, "one").await;
    // The agent gets the new value later than Tidegate.
    put(&env, &app, "first", NEW).await;
    put(&env, &app, "another change keeps the overlap", NEW).await;
    let seen = async || {
        let agent = env.store.agent(&app.org, &agent_id()).await.ok()??;
        agent.headers.previous.map(|_| ())
    };
    eventually("both are kept", TIMEOUT, seen).await;
    ask(&env, &app, "two").await;
    env.agent.require_key(NEW);
    ask(&env, &app, "three").await;
    // The overlap ends.
    let ended = "update agents set headers_previous_until = now()";
    sqlx::query(ended).execute(&env.pool).await.expect("Postgres");
    let gone = async || {
        let left: i64 =
            sqlx::query_scalar("select count(*) from agents where headers_previous is not null")
                .fetch_one(&env.pool)
                .await
                .ok()?;
        (left == 0).then_some(())
    };
    eventually("replaced headers are deleted", TIMEOUT, gone).await;
    ask(&env, &app, "four").await;

    let rows: String = sqlx::query_scalar("select string_agg(a::text, ' ') from agents a")
        .fetch_one(&env.pool)
        .await
        .expect("rows");
    let agent = format!("{}/{}", app.org, agent_id());
    let shown = env.tidegate(&["agents", "show", &agent]).expect("an agent");
    let exported = env.tidegate(&["export", app.org.as_str()]).expect("an export");
    for text in [&rows, &shown, &exported, &env.logs()] {
        assert!(!text.contains("old-1f0c5a") && !text.contains("new-9d2e7b"), "{text}");
    }
}
