//! A stock app, in Python and in JavaScript, stands behind Tidegate as it would behind Slack itself.

use serde_json::{Value, json};
use shared::{
    secrets::Secret,
    store::{NewAgent, NewConnection},
    types::AgentMode,
};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use tests::{
    bolt::{Bolt, Language},
    slack::{Answer, unix_now, webhook::Webhook},
    until::until,
    world::{App, PAIR, SMALL, SOON, World, agent_id},
};

async fn forwarded_to(world: &World, app: &App, url: String) {
    let agent = NewAgent {
        org: app.org.clone(),
        id: agent_id(),
        name: "An app".into(),
        mode: AgentMode::Forward,
        url,
        secret: Secret::new("not used".into()).expect("not empty"),
        timeout: NewAgent::TIMEOUT,
        max_concurrent: NewAgent::MAX_CONCURRENT,
        retry_for: None,
        keep_for: NewAgent::KEEP_FOR,
    };
    world.store.put_agent(&agent).await.expect("Postgres");
}

fn answered(new: &mut NewConnection) {
    new.agent = Some(agent_id());
}

/// An app behind Tidegate.
async fn behind(world: &World, language: Language) -> (App, Bolt) {
    let app = world.connect_as(answered).await.expect("a connection");
    let bolt = Bolt::start(language, &world.slack, &app).await.expect("an app");
    forwarded_to(world, &app, bolt.url()).await;
    (app, bolt)
}

async fn command(world: &World, app: &App, name: &str, text: &str) -> Webhook {
    let webhook = Webhook::command(&world.slack, app, "C1", "U1", name, text);
    assert_eq!(world.send(app, &webhook).await.expect("an answer").status, 200);
    webhook
}

/// An interaction; the webhook's `response_url` is its own.
fn interaction(world: &World, app: &App, kind: &str, more: Value) -> Webhook {
    let mut webhook = Webhook::command(&world.slack, app, "C1", "U1", "/x", "");
    let mut payload = json!({
        "type": kind, "team": { "id": app.team, "domain": "example" }, "user": { "id": "U1", "name": "steve", "team_id": app.team },
        "api_app_id": app.app, "token": "legacy-token", "trigger_id": world.slack.trigger_id(),
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

/// The submission of the view that the app opened, with this title.
fn submission(world: &World, app: &App, view: &Value, title: &str) -> Webhook {
    let mut view = view.clone();
    view["team_id"] = app.team.clone().into();
    view["app_id"] = app.app.clone().into();
    view["state"] = json!({ "values": {
        "title": { "text": { "type": "plain_text_input", "value": title } },
        "assignee": { "assignee": { "type": "external_select", "selected_option": {
            "text": { "type": "plain_text", "text": "Ada" }, "value": "Ada",
        } } },
    } });
    interaction(world, app, "view_submission", json!({ "view": view }))
}

async fn submit(world: &World, app: &App, view: &Value, title: &str) -> Answer {
    world.send(app, &submission(world, app, view, title)).await.expect("an answer")
}

async fn says(world: &World, wanted: &str) -> tests::slack::Receipt {
    world.slack.told(wanted, |receipt| receipt.text() == wanted).await
}

async fn stands_behind(language: Language) {
    let name = language.as_str();
    let world = World::start(SMALL).await.expect("a world");
    let (app, bolt) = behind(&world, language).await;

    // Events: a message, a mention, and one that nobody in the app listens for.
    let hello = Webhook::message(&world.slack, &app, "C1", "U1", "hello there");
    assert_eq!(world.send(&app, &hello).await.expect("an answer").status, 200);
    says(&world, &format!("{name} heard: hello there")).await;
    assert_eq!(bolt.heard("C1"), ["hello there"]);
    let ts = world.slack.ts();
    let mention = Webhook::said(&world.slack, &app, "app_mention", "C1", "U1", "<@UBOT> hi", &ts);
    world.send(&app, &mention).await.expect("an answer");
    says(&world, &format!("{name} was mentioned by <@U1>")).await;
    let inner = json!({ "type": "reaction_added", "user": "U1", "reaction": "+1", "item_user": "U2",
        "item": { "type": "message", "channel": "C1", "ts": ts }, "event_ts": ts });
    let reaction = Webhook::event(&world.slack, &app, "a reaction", inner);
    world.send(&app, &reaction).await.expect("an answer");
    let outcome = world.handled(&reaction.dedupe).await.outcome;
    let expected = if language == Language::Python { "unhandled" } else { "completed" };
    assert_eq!(outcome, expected, "JavaScript takes every event");

    // Commands: acknowledged by a text, by blocks, later; and one that nobody in the app knows.
    let path = |webhook: &Webhook| {
        webhook.response_url.rsplit_once("/commands").expect("a path").1.to_owned()
    };
    let echo = command(&world, &app, "/echo", "this").await;
    let said = says(&world, &format!("{name} says: this")).await;
    assert_eq!((said.by.as_str(), said.to.ends_with(&path(&echo))), ("response_url", true));
    command(&world, &app, "/blocks", "").await;
    let said = says(&world, &format!("{name} has blocks")).await;
    assert_eq!(
        (&said.body["response_type"], &said.body["blocks"][0]["type"]),
        (&json!("in_channel"), &json!("section"))
    );
    command(&world, &app, "/later", "").await;
    says(&world, &format!("{name} says it later")).await;
    command(&world, &app, "/nothing", "").await;
    says(&world, "The app does not handle `/nothing`.").await;
    command(&world, &app, "/lobu", "help").await;
    world.slack.told("Tidegate's own command", |r| r.text().contains("/lobu link")).await;

    // A click.
    let mut click = interaction(
        &world,
        &app,
        "block_actions",
        json!({
            "channel": { "id": "C1", "name": "general" }, "container": { "type": "message", "channel_id": "C1", "message_ts": ts },
            "actions": [{ "type": "button", "action_id": "approve", "block_id": "b", "value": "1", "action_ts": world.slack.ts() }],
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
    world.send(&app, &click).await.expect("an answer");
    says(&world, &format!("{name} approved it")).await;

    // A modal: opened, its menu filled, refused with errors, corrected.
    command(&world, &app, "/ticket", "").await;
    let opened = world.slack.told("a view is opened", |receipt| receipt.by == "views.open").await;
    let mut view = opened.body["view"].clone();
    (view["id"], view["hash"]) = (json!("V0TICKET"), json!("1.x"));
    view["root_view_id"] = json!("V0TICKET");
    let asks = json!({ "type": "block_suggestion", "action_id": "assignee", "block_id": "assignee", "value": "a", "view": view,
        "container": { "type": "view", "view_id": "V0TICKET" } });
    let menu = interaction(&world, &app, "block_suggestion", asks);
    let menu = world.send(&app, &menu).await.expect("an answer");
    let options: Value = serde_json::from_str(&menu.body).expect("JSON");
    let names: Vec<&str> = options["options"]
        .as_array()
        .expect("options")
        .iter()
        .filter_map(|o| o["value"].as_str())
        .collect();
    assert_eq!(names, ["Ada", "Alan"], "in Slack's own request: {}", menu.body);
    let refused = submit(&world, &app, &view, "x").await;
    let errors: Value = serde_json::from_str(&refused.body).expect("JSON");
    assert_eq!(errors["response_action"], "errors", "{}", refused.body);
    assert_eq!(errors["errors"]["title"], format!("{name} wants at least three letters"));
    let taken = submit(&world, &app, &view, "broken door").await;
    assert_eq!((taken.status, taken.body.as_str()), (200, ""), "an empty answer closes the view");
    says(&world, &format!("{name} made a ticket: broken door")).await;

    // Too late for Slack's own request: the view is updated instead, with what was typed.
    bolt.process.freeze();
    let late = submit(&world, &app, &view, "y").await;
    assert!(late.body.contains("Working on it"), "{}", late.body);
    bolt.process.thaw();
    let updated =
        world.slack.told("the view is updated", |receipt| receipt.by == "views.update").await;
    assert_eq!(updated.body["view_id"], "V0TICKET");
    let blocks = &updated.body["view"]["blocks"];
    assert_eq!(blocks[0]["element"]["initial_value"], "y");
    assert_eq!(
        blocks[1]["elements"][0]["text"],
        format!(":warning: {name} wants at least three letters")
    );

    let dead: i64 = sqlx::query_scalar("select count(*) from dead_letters")
        .fetch_one(&world.pool)
        .await
        .expect("a count");
    assert_eq!(dead, 0);
}

#[tokio::test]
async fn a_stock_app_in_python_stands_behind_tidegate_as_it_is() {
    stands_behind(Language::Python).await;
}

#[tokio::test]
async fn a_stock_app_in_javascript_stands_behind_tidegate_as_it_is() {
    stands_behind(Language::JavaScript).await;
}

#[tokio::test]
async fn an_app_that_is_away_for_half_a_minute_under_load_loses_nothing_and_no_conversations_order()
{
    const AWAY: Duration = Duration::from_secs(30);
    const CONVERSATIONS: usize = 8;
    let world = World::start(PAIR).await.expect("a world");
    let mut apps = Vec::new();
    for language in [Language::Python, Language::JavaScript] {
        apps.push(behind(&world, language).await);
    }
    let channel = |n: usize| format!("{}{n:03}", if n.is_multiple_of(2) { "C" } else { "D" });
    let mut sent: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let started = Instant::now();
    let (down, up) = (Duration::from_secs(3), Duration::from_secs(3) + AWAY);
    let (mut is_down, mut pace) = (false, tokio::time::interval(Duration::from_millis(125)));
    let thread = "1700000000.000100"; // a channel's messages are one conversation by their thread
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
            let ts = world.slack.ts();
            let inner = json!({ "type": "message", "channel": channel, "user": "U1", "text": text, "ts": ts,
                "thread_ts": thread, "event_ts": ts, "team": app.team,
                "channel_type": if channel.starts_with('D') { "im" } else { "channel" } });
            let webhook = Webhook::event(&world.slack, app, &text, inner);
            let answer = world.send(app, &webhook).await.expect("an answer");
            assert_eq!(answer.status, 200, "accepted, whether the app is there or not");
        }
        sent.entry(channel).or_default().push(text);
    }
    let total: usize = sent.values().map(Vec::len).sum();
    assert!(total > 200, "under load: {total}");
    for (_, bolt) in &apps {
        until("the app has heard everything", Duration::from_secs(90), async || {
            sent.iter()
                .all(|(channel, texts)| first_heard(bolt, channel).len() == texts.len())
                .then_some(())
        })
        .await;
        for (channel, texts) in &sent {
            assert_eq!(
                &first_heard(bolt, channel),
                texts,
                "in the order in which they were accepted"
            );
        }
    }
    let dead: i64 = sqlx::query_scalar("select count(*) from dead_letters")
        .fetch_one(&world.pool)
        .await
        .expect("a count");
    assert_eq!(dead, 0);
}

/// What an app heard in a conversation, without repeats: it was killed, and may have heard one twice.
fn first_heard(bolt: &Bolt, channel: &str) -> Vec<String> {
    let mut heard = bolt.heard(channel);
    let mut known = std::collections::BTreeSet::new();
    heard.retain(|text| known.insert(text.clone()));
    heard
}

#[tokio::test]
async fn what_is_handed_on_is_byte_for_byte_slacks_signed_anew_and_a_repeat_is_recognised() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(answered).await.expect("a connection");
    forwarded_to(&world, &app, world.agent.url()).await;
    world.agent.break_down(true);
    let odd = Webhook::command(&world.slack, &app, "C1", "U1", "/odd", "a+b ~*%2A ü \u{1F30A}");
    let (second, url) = (unix_now() - 200, world.ingests[0].url(&app));
    let signature = tests::slack::sign(&app.secret, &second.to_string(), &odd.body);
    let headers = [
        ("x-slack-signature", signature.as_str()),
        ("x-slack-request-timestamp", &second.to_string()),
        ("x-slack-retry-num", "1"),
    ];
    world.slack.send_with(&url, &odd, &headers).await.expect("an answer");
    until("it is refused once", SOON, async || world.agent.asked().pop()).await;
    world.agent.break_down(false);
    let outcome = world.handled(&odd.dedupe).await.outcome;
    assert_eq!(outcome, "completed");
    let asked = world.agent.asked();
    assert!(asked.len() >= 2);
    for asked in &asked {
        let header =
            |name: &str| asked.headers.get(name).map(|v| v.to_str().expect("text").to_owned());
        assert_eq!(asked.body, odd.body);
        assert_eq!(header("content-type").as_deref(), Some("application/x-www-form-urlencoded"));
        assert_eq!(header("tidegate-delivery").as_deref(), Some(odd.dedupe.as_str()));
        let timestamp = header("x-slack-request-timestamp").expect("a timestamp");
        assert!(unix_now().abs_diff(timestamp.parse().expect("a number")) < 60, "signed now");
        let signed = tests::slack::sign(&app.secret, &timestamp, &odd.body);
        assert_eq!(header("x-slack-signature"), Some(signed));
        assert_eq!(header("x-slack-retry-num"), None, "to the app it is no retry");
    }
}
