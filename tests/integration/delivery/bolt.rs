//! Unmodified Bolt apps in Python and JavaScript behind Tidegate.

use serde_json::{Value, json};
use shared::{
    domain::AgentMode,
    secrets::Secret,
    store::{NewAgent, NewConnection},
};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use tests::{
    bolt::{Bolt, Language},
    eventually::eventually,
    slack::{Answer, unix_now, webhook::Webhook},
    test_env::{App, PAIR, SMALL, TIMEOUT, TestEnv, agent_id},
};

async fn forward_to(env: &TestEnv, app: &App, url: String) {
    let agent = NewAgent {
        org: app.org.clone(),
        id: agent_id(),
        name: "An app".into(),
        mode: AgentMode::Forward,
        url,
        secret: Secret::new(app.secret.clone()).expect("not empty"), // the app verifies with it
        timeout: NewAgent::TIMEOUT,
        max_concurrent: NewAgent::MAX_CONCURRENT,
        max_per_user: 1_000_000,
        retry_for: None,
        keep_for: NewAgent::KEEP_FOR,
        signs_as_slack: false,
        headers: Default::default(),
        policies: Default::default(),
    };
    env.store.put_agent(&agent).await.expect("Postgres");
}

fn use_sample_agent(new: &mut NewConnection) {
    new.agent = Some(agent_id());
}

/// Starts an app behind Tidegate.
async fn start_app(env: &TestEnv, language: Language) -> (App, Bolt) {
    let app = env.connect_as(use_sample_agent).await.expect("a connection");
    let bolt = Bolt::start(language, &env.slack, &app).await.expect("an app");
    forward_to(env, &app, bolt.url()).await;
    (app, bolt)
}

async fn command(env: &TestEnv, app: &App, name: &str, text: &str) -> Webhook {
    let webhook = Webhook::command(&env.slack, app, "C1", "U1", name, text);
    assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
    webhook
}

/// Returns an interaction with a `response_url` of its own.
fn interaction(env: &TestEnv, app: &App, kind: &str, more: Value) -> Webhook {
    let mut webhook = Webhook::command(&env.slack, app, "C1", "U1", "/x", "");
    let mut payload = json!({
        "type": kind, "team": { "id": app.team, "domain": "example" }, "user": { "id": "U1", "name": "steve", "team_id": app.team },
        "api_app_id": app.app, "token": "legacy-token", "trigger_id": env.slack.trigger_id(),
        "is_enterprise_install": false, "enterprise": null,
    });
    let fields = payload.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    webhook.body = form_urlencoded::Serializer::new(String::new())
        .append_pair("payload", &payload.to_string())
        .finish()
        .into_bytes();
    webhook.what = kind.into();
    webhook
}

/// Returns the submission of a view of the app with this title.
fn submission(env: &TestEnv, app: &App, view: &Value, title: &str) -> Webhook {
    let mut view = view.clone();
    view["team_id"] = app.team.clone().into();
    view["app_id"] = app.app.clone().into();
    view["state"] = json!({ "values": {
        "title": { "text": { "type": "plain_text_input", "value": title } },
        "assignee": { "assignee": { "type": "external_select", "selected_option": {
            "text": { "type": "plain_text", "text": "Ada" }, "value": "Ada",
        } } },
    } });
    interaction(env, app, "view_submission", json!({ "view": view }))
}

async fn submit(env: &TestEnv, app: &App, view: &Value, title: &str) -> Answer {
    env.send(app, &submission(env, app, view, title)).await.expect("an answer")
}

async fn wait_for_text(env: &TestEnv, wanted: &str) -> tests::slack::Receipt {
    env.slack.wait_for_receipt(wanted, |receipt| receipt.text() == wanted).await
}

async fn check_unmodified_app(language: Language) {
    let name = language.as_str();
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let (app, bolt) = start_app(&env, language).await;

    // Events: a message, a mention, and one without a listener.
    let hello = Webhook::message(&env.slack, &app, "C1", "U1", "hello there");
    assert_eq!(env.send(&app, &hello).await.expect("an answer").status, 200);
    wait_for_text(&env, &format!("{name} heard: hello there")).await;
    assert_eq!(bolt.received_texts("C1"), ["hello there"]);
    let ts = env.slack.ts();
    let mention =
        Webhook::message_event(&env.slack, &app, "app_mention", "C1", "U1", "<@UBOT> hi", &ts);
    env.send(&app, &mention).await.expect("an answer");
    wait_for_text(&env, &format!("{name} was mentioned by <@U1>")).await;
    let inner = json!({ "type": "reaction_added", "user": "U1", "reaction": "+1", "item_user": "U2",
        "item": { "type": "message", "channel": "C1", "ts": ts }, "event_ts": ts });
    let reaction = Webhook::event(&env.slack, &app, "a reaction", inner);
    env.send(&app, &reaction).await.expect("an answer");
    let outcome = env.wait_for_outcome(&reaction.dedup_key).await.outcome;
    let expected = if language == Language::Python { "unhandled" } else { "completed" };
    assert_eq!(outcome, expected, "Bolt for JavaScript accepts every event");

    // Commands: acknowledged with a text, with blocks, and later; and one without a listener.
    let path = |webhook: &Webhook| {
        webhook.response_url.rsplit_once("/commands").expect("a path").1.to_owned()
    };
    let echo = command(&env, &app, "/echo", "this").await;
    let reply = wait_for_text(&env, &format!("{name} says: this")).await;
    assert_eq!((reply.by.as_str(), reply.to.ends_with(&path(&echo))), ("response_url", true));
    command(&env, &app, "/blocks", "").await;
    let reply = wait_for_text(&env, &format!("{name} has blocks")).await;
    assert_eq!(
        (&reply.body["response_type"], &reply.body["blocks"][0]["type"]),
        (&json!("in_channel"), &json!("section"))
    );
    command(&env, &app, "/later", "").await;
    wait_for_text(&env, &format!("{name} says it later")).await;
    command(&env, &app, "/nothing", "").await;
    // In JavaScript an unknown command is like a late acknowledgement.
    let notice = match language {
        Language::Python => "The app does not handle `/nothing`.",
        Language::JavaScript => "The app did not acknowledge `/nothing` in time.",
    };
    wait_for_text(&env, notice).await;
    command(&env, &app, "/lobu", "help").await;
    env.slack
        .wait_for_receipt("the reply to /lobu help", |r| r.text().contains("/lobu link"))
        .await;

    // A click.
    let mut click = interaction(
        &env,
        &app,
        "block_actions",
        json!({
            "channel": { "id": "C1", "name": "general" }, "container": { "type": "message", "channel_id": "C1", "message_ts": ts },
            "actions": [{ "type": "button", "action_id": "approve", "block_id": "b", "value": "1", "action_ts": env.slack.ts() }],
        }),
    );
    let text = String::from_utf8(click.body).expect("text");
    let mut payload: Value = form_urlencoded::parse(text.as_bytes())
        .find_map(|(_, json)| serde_json::from_str(&json).ok())
        .expect("a payload");
    payload["response_url"] = click.response_url.clone().into();
    click.body = form_urlencoded::Serializer::new(String::new())
        .append_pair("payload", &payload.to_string())
        .finish()
        .into_bytes();
    env.send(&app, &click).await.expect("an answer");
    wait_for_text(&env, &format!("{name} approved it")).await;

    // A modal: opened, its menu filled, rejected with errors, corrected.
    command(&env, &app, "/ticket", "").await;
    let opened =
        env.slack.wait_for_receipt("a view is opened", |receipt| receipt.by == "views.open").await;
    let mut view = opened.body["view"].clone();
    (view["id"], view["hash"]) = (json!("V0TICKET"), json!("1.x"));
    view["root_view_id"] = json!("V0TICKET");
    let asks = json!({ "type": "block_suggestion", "action_id": "assignee", "block_id": "assignee", "value": "a", "view": view,
        "container": { "type": "view", "view_id": "V0TICKET" } });
    let menu = interaction(&env, &app, "block_suggestion", asks);
    let menu = env.send(&app, &menu).await.expect("an answer");
    let options: Value = serde_json::from_str(&menu.body).expect("JSON");
    let names: Vec<&str> = options["options"]
        .as_array()
        .expect("options")
        .iter()
        .filter_map(|o| o["value"].as_str())
        .collect();
    assert_eq!(names, ["Ada", "Alan"], "options in Slack's own request: {}", menu.body);
    let refused = submit(&env, &app, &view, "x").await;
    let errors: Value = serde_json::from_str(&refused.body).expect("JSON");
    assert_eq!(errors["response_action"], "errors", "{}", refused.body);
    assert_eq!(errors["errors"]["title"], format!("{name} wants at least three letters"));
    let taken = submit(&env, &app, &view, "broken door").await;
    assert_eq!((taken.status, taken.body.as_str()), (200, ""), "an empty answer closes the view");
    wait_for_text(&env, &format!("{name} made a ticket: broken door")).await;

    // Too late for Slack's request: the view is updated, with the submitted input.
    bolt.process.freeze();
    let late = submit(&env, &app, &view, "y").await;
    assert!(late.body.contains("Working on it"), "{}", late.body);
    bolt.process.thaw();
    let updated = env
        .slack
        .wait_for_receipt("the view is updated", |receipt| receipt.by == "views.update")
        .await;
    assert_eq!(updated.body["view_id"], "V0TICKET");
    let blocks = &updated.body["view"]["blocks"];
    assert_eq!(blocks[0]["element"]["initial_value"], "y");
    assert_eq!(
        blocks[1]["elements"][0]["text"],
        format!(":warning: {name} wants at least three letters")
    );

    let dead: i64 = sqlx::query_scalar("select count(*) from dead_letters")
        .fetch_one(&env.pool)
        .await
        .expect("a count");
    assert_eq!(dead, 0);
}

/// An unmodified Bolt app in Python handles events, commands, clicks and modals behind Tidegate.
#[tokio::test]
async fn runs_unmodified_python_app() {
    check_unmodified_app(Language::Python).await;
}

/// An unmodified Bolt app in JavaScript handles events, commands, clicks and modals behind
/// Tidegate.
#[tokio::test]
async fn runs_unmodified_javascript_app() {
    check_unmodified_app(Language::JavaScript).await;
}

/// An app that is down for 30 s under load gets everything afterwards, in order per conversation.
#[tokio::test]
async fn delivers_in_order_after_outage() {
    const OUTAGE: Duration = Duration::from_secs(30);
    const CONVERSATIONS: usize = 8;
    let env = TestEnv::start(PAIR).await.expect("a test environment");
    let mut apps = Vec::new();
    for language in [Language::Python, Language::JavaScript] {
        apps.push(start_app(&env, language).await);
    }
    let channel = |n: usize| format!("{}{n:03}", if n.is_multiple_of(2) { "C" } else { "D" });
    let mut sent: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let started = Instant::now();
    let (down, up) = (Duration::from_secs(3), Duration::from_secs(3) + OUTAGE);
    let (mut is_down, mut pace) = (false, tokio::time::interval(Duration::from_millis(125)));
    let thread = "1700000000.000100"; // messages of a channel are one conversation in a thread only
    for n in 0.. {
        let at = started.elapsed();
        if at > up + Duration::from_secs(3) {
            break;
        }
        if is_down != (down..up).contains(&at) {
            is_down = !is_down;
            for (_, bolt) in &apps {
                match is_down {
                    true => bolt.process.kill(),
                    false => bolt.process.restart().expect("it starts again"),
                }
            }
        }
        pace.tick().await;
        let (channel, text) = (channel(n % CONVERSATIONS), format!("number {n}"));
        for (app, _) in &apps {
            let ts = env.slack.ts();
            let inner = json!({ "type": "message", "channel": channel, "user": "U1", "text": text, "ts": ts,
                "thread_ts": thread, "event_ts": ts, "team": app.team,
                "channel_type": if channel.starts_with('D') { "im" } else { "channel" } });
            let webhook = Webhook::event(&env.slack, app, &text, inner);
            let answer = env.send(app, &webhook).await.expect("an answer");
            assert_eq!(answer.status, 200, "the webhook is accepted, also while the app is down");
        }
        sent.entry(channel).or_default().push(text);
    }
    let total: usize = sent.values().map(Vec::len).sum();
    assert!(total > 200, "under load: {total}");
    for (_, bolt) in &apps {
        eventually("the app has received everything", Duration::from_secs(90), async || {
            sent.iter()
                .all(|(channel, texts)| received_once(bolt, channel).len() == texts.len())
                .then_some(())
        })
        .await;
        for (channel, texts) in &sent {
            assert_eq!(
                &received_once(bolt, channel),
                texts,
                "in the order in which they were accepted"
            );
        }
    }
    let dead: i64 = sqlx::query_scalar("select count(*) from dead_letters")
        .fetch_one(&env.pool)
        .await
        .expect("a count");
    assert_eq!(dead, 0);
}

/// Returns the texts that an app received in a conversation, without repeats: a killed app may have
/// received one twice.
fn received_once(bolt: &Bolt, channel: &str) -> Vec<String> {
    let mut texts = bolt.received_texts(channel);
    let mut known = std::collections::BTreeSet::new();
    texts.retain(|text| known.insert(text.clone()));
    texts
}

/// A forwarded body has Slack's bytes and a new signature. Attempts share the header
/// `tidegate-delivery`.
#[tokio::test]
async fn forwards_signed_original_bytes() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(use_sample_agent).await.expect("a connection");
    forward_to(&env, &app, env.agent.url()).await;
    env.agent.set_failing(true);
    let odd = Webhook::command(&env.slack, &app, "C1", "U1", "/odd", "a+b ~*%2A ü \u{1F30A}");
    let (second, url) = (unix_now() - 200, env.ingests[0].url(&app));
    let signature = tests::slack::sign(&app.secret, &second.to_string(), &odd.body);
    let headers = [
        ("x-slack-signature", signature.as_str()),
        ("x-slack-request-timestamp", &second.to_string()),
        ("x-slack-retry-num", "1"),
    ];
    env.slack.send_with(&url, &odd, &headers).await.expect("an answer");
    eventually("the first attempt is refused", TIMEOUT, async || env.agent.requests().pop()).await;
    env.agent.set_failing(false);
    let outcome = env.wait_for_outcome(&odd.dedup_key).await.outcome;
    assert_eq!(outcome, "completed");
    let asked = env.agent.requests();
    assert!(asked.len() >= 2);
    for asked in &asked {
        let header =
            |name: &str| asked.headers.get(name).map(|v| v.to_str().expect("text").to_owned());
        assert_eq!(asked.body, odd.body);
        assert_eq!(header("content-type").as_deref(), Some("application/x-www-form-urlencoded"));
        assert_eq!(header("tidegate-delivery").as_deref(), Some(odd.dedup_key.as_str()));
        let timestamp = header("x-slack-request-timestamp").expect("a timestamp");
        assert!(unix_now().abs_diff(timestamp.parse().expect("a number")) < 60, "signed now");
        let signed = tests::slack::sign(&app.secret, &timestamp, &odd.body);
        assert_eq!(header("x-slack-signature"), Some(signed));
        assert_eq!(header("x-slack-retry-num"), None, "the app gets no retry header");
    }
}
