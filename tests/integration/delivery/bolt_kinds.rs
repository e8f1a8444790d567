//! Every webhook that Slack documents reaches the listener of its kind in an unmodified Bolt app.

use shared::{domain::AgentMode, store::NewAgent};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tests::{
    bolt::{Bolt, Language},
    eventually::eventually,
    fixtures,
    sdk::Sdk,
    shapes::Shape,
    test_env::{SMALL, TIMEOUT, TestEnv, agent_id, new_agent, of_fixtures},
};

/// Time for all webhooks to reach the app, on a loaded machine.
const FORWARDED_WITHIN: Duration = Duration::from_secs(120);

/// Returns the reason why Bolt does not receive a webhook.
fn unreceived(shape: &Shape, language: Language) -> Option<&String> {
    let in_language = match language {
        Language::Python => &shape.not_python,
        Language::JavaScript => &shape.not_javascript,
    };
    shape.unreceived.as_ref().or(in_language.as_ref())
}

async fn receives_every_kind(language: Language) {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| {
        of_fixtures(new);
        new.agent = Some(agent_id());
    });
    let app = app.await.expect("a connection");
    let fixtures: Vec<_> = fixtures::all()
        .into_iter()
        .filter(|fixture| unreceived(&fixture.shape, language).is_none())
        .collect();
    let types = fixtures.iter().filter_map(|fixture| fixture.content["event"]["type"].as_str());
    let types: BTreeSet<&str> = types.collect();
    let bolt = Bolt::start_with_kinds(language, &env.slack, &app, types).await.expect("an app");
    let agent = new_agent(&app.org, agent_id(), bolt.url()).expect("an agent");
    let mode = AgentMode::Forward;
    let agent = NewAgent { mode, signs_as_slack: true, ..agent };
    env.store.put_agent(&agent).await.expect("Postgres");

    let sdk = Sdk::get().await.expect("Slack's SDK");
    let webhooks = fixtures.iter().map(|fixture| &fixture.webhook);
    let url = env.ingests[0].url(&app);
    let answers = sdk.send(&url, &app.secret, webhooks, false).await.expect("answers");
    for (fixture, answer) in fixtures.iter().zip(&answers) {
        assert_eq!(answer.status, 200, "{} {}", fixture.shape.name, answer.body);
    }

    let due: BTreeMap<String, BTreeSet<String>> = fixtures
        .iter()
        .map(|fixture| {
            let Shape { name, bolt, .. } = &fixture.shape;
            (name.clone(), bolt.iter().cloned().collect())
        })
        .collect();
    let all = eventually("each webhook reaches a listener", FORWARDED_WITHIN * 2, async || {
        (bolt.kinds().len() >= due.len()).then_some(())
    });
    // The rows below name what is missing.
    let _ = tokio::time::timeout(FORWARDED_WITHIN, all).await;
    let received = bolt.kinds();
    for (name, kinds) in &due {
        assert_eq!(received.get(name), Some(kinds), "{name}");
    }
    env.wait_until_processed(TIMEOUT).await.expect("worked off");
    let dead: i64 = sqlx::query_scalar("select count(*) from dead_letters")
        .fetch_one(&env.pool)
        .await
        .expect("a count");
    assert_eq!(dead, 0);
}

/// Each documented webhook reaches the listener of its kind in a Python app.
#[tokio::test]
async fn delivers_every_kind_to_python() {
    receives_every_kind(Language::Python).await;
}

/// Each documented webhook reaches the listener of its kind in a JavaScript app.
#[tokio::test]
async fn delivers_every_kind_to_javascript() {
    receives_every_kind(Language::JavaScript).await;
}
