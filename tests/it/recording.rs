//! What lay in a stream is put into another and worked off again with the same effects; and what is not the same is named.

use shared::types::{ClaimCode, Surface};
use std::collections::BTreeSet;
use tests::{
    day::Day,
    effects::{Effects, report},
    fixtures,
    recording::{PAUSE, Recorded, Recording},
    slack::webhook::Webhook,
    world::{App, SMALL, SOON, Size, World, agent_id},
};

const WORKER_ONLY: Size = Size { ingests: 0, workers: 1, own_postgres: false };

/// Whoever changes what happens on the day, or what ingest makes of it, changes these: on purpose.
const SEED: u64 = 7;
const DAY: &str = "0b7e163683edcb10136f13e6b98e57813e34a85f45a51789fe9a80b7f2c8dfa9";
const RECORDING: &str = "6a8ba09b6ff3aea7b97c37b7ea341f4526de202c10499fe74512edeb6a921fa3";

#[test]
fn a_day_is_the_same_for_the_same_seed() {
    let (day, again, other) = (Day::of(SEED), Day::of(SEED), Day::of(SEED + 1));
    let (day, again) = (day.expect("a day"), again.expect("the same"));
    assert_eq!(day.digest(), again.digest());
    assert_ne!(day.digest(), other.expect("another").digest());
    assert!(day.stored() >= 2_000, "{}", day.stored());
    assert!(day.connections() >= 50, "{}", day.connections());
    assert_eq!(day.digest(), DAY, "the day became another: if it was to, say so here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_that_is_recorded_and_put_into_a_fresh_stream_leads_to_the_same() {
    let day = Day::of(SEED).expect("a day");
    let (world, recording) = day.live().await.expect("a day is lived");
    let live = Effects::of(&world).await.expect("effects");
    assert_eq!(recording.messages.len(), day.stored());
    let kinds: BTreeSet<&str> =
        recording.messages.iter().map(|m| m.header("Tidegate-Kind")).collect();
    assert_eq!(kinds.len(), 5, "event, command, interaction, options, unknown: {kinds:?}");
    let file = world.folder("recorded").expect("a folder").join("day.jsonl");
    recording.write(&file).expect("written");
    let read = Recording::read(&file).expect("read");
    assert_eq!(read, recording);
    drop(world);
    let world = day.work_off(&read).await.expect("worked off again");
    let again = Effects::of(&world).await.expect("effects");
    let differences = live.but_for_windows().differences(&again.but_for_windows());
    assert!(differences.is_empty(), "{}", report(&differences));
    let put = Recording::of(&world).await.expect("what was put in");
    for digest in [recording.digest(), put.digest()] {
        assert_eq!(
            digest, RECORDING,
            "what is stored of the day became another: if it was to, say so here"
        );
    }
}

/// A connection and a link code, the same in every world.
async fn declared(world: &World) -> App {
    let code: ClaimCode = CODE.parse().expect("a code");
    let app = world.connect_as(|new| {
        new.id = format!("{:032x}", 7).parse().expect("an id");
        new.agent = Some(agent_id());
    });
    let app = app.await.expect("a connection");
    world.mint(&app, &[Surface::Dm]).await.expect("a claim");
    let same = sqlx::query("update link_codes set code_hash = $1");
    same.bind(code.hash().as_bytes()).execute(&world.pool).await.expect("this code's");
    app
}
const CODE: &str = "7K3M-Q2XW-9FHA";

/// A code is used, and used again by somebody else; two people talk; a view is submitted, a menu asked for, something sent that
/// nobody understands.
async fn lived(world: &World, app: &App) {
    let slack = &world.slack;
    let link = format!("link {CODE}");
    let linked = Webhook::command(slack, app, "D1", "U1", "/lobu", &link);
    let late = Webhook::command(slack, app, "D2", "U2", "/lobu", &link);
    let fixtures = fixtures::all().expect("fixtures");
    let mut sent = vec![linked, late];
    for (channel, text) in
        [("D1", "one"), ("D2", "four"), ("D1", "two"), ("D2", "five"), ("D1", "three")]
    {
        sent.push(Webhook::message(slack, app, channel, "U1", text));
    }
    for name in ["view_submission", "block_suggestion"] {
        let fixture = fixtures.iter().find(|fixture| fixture.name == name);
        sent.push(fixture.expect("a fixture").webhook.clone());
    }
    sent.push(fixtures::webhook("of_tomorrow", &serde_json::json!({ "type": "of_tomorrow" })));
    for (n, webhook) in sent.iter().enumerate() {
        assert_eq!(world.send(app, webhook).await.expect("an answer").status, 200);
        if n < 2 {
            // The second is late, and all that follows is answered in a conversation that is linked.
            world.worked_off(SOON).await.expect("worked off");
            tokio::time::sleep(PAUSE).await;
        }
    }
    world.worked_off(SOON).await.expect("worked off");
}

async fn worked_off_again(recording: &Recording) -> Effects {
    let world = World::start(WORKER_ONLY).await.expect("a world");
    declared(&world).await;
    recording.put(&world).await.expect("put in");
    world.worked_off(SOON).await.expect("worked off");
    Effects::of(&world).await.expect("effects")
}

fn place(recording: &Recording, text: &str) -> usize {
    let said = format!("\"text\":\"{text}\"");
    let says = |m: &Recorded| String::from_utf8_lossy(&m.body).contains(&said);
    recording.messages.iter().position(says).expect("a message")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_into_a_fresh_stream_leads_to_the_same_and_what_is_missing_or_swapped_to_something_else()
 {
    let world = World::start(SMALL).await.expect("a world");
    let app = declared(&world).await;
    lived(&world, &app).await;
    let recording = Recording::of(&world).await.expect("a recording");
    let live = Effects::of(&world).await.expect("effects");
    let refused = recording.put(&world).await.expect_err("the stream is not fresh");
    assert!(refused.to_string().contains("10 messages lie in the stream"), "{refused}");
    drop(world);

    let id = app.connection;
    assert_eq!(live.0[&format!("binding {id} {} D1", app.team)], ["org-1/sample by U1"]);
    assert_eq!(live.0.keys().filter(|name| name.starts_with("claim ")).count(), 1);
    let told = |effects: &Effects, channel: &str| {
        let said = effects.0[&format!("told {} {channel}", app.team)].clone();
        let said =
            said.into_iter().filter_map(|line| Some(line.split_once("I heard: ")?.1.to_owned()));
        said.map(|line| line.chars().take_while(|c| c.is_ascii_lowercase()).collect())
            .collect::<Vec<String>>()
    };
    assert_eq!(
        (told(&live, "D1"), told(&live, "D2")),
        (words("one two three"), words("four five"))
    );

    // What came live and what was put in differ in what somebody waited for, and in nothing else.
    let again = worked_off_again(&recording).await;
    let shown = format!("told {} VNHU13V36", app.team);
    let differences = live.differences(&again);
    for one in &differences {
        let waited_for = one.what == shown
            || one.what == format!("webhook {id}:options:*")
            || one.what.starts_with(&format!("webhook {id}:action:"));
        assert!(waited_for, "{}", report(&differences));
    }
    assert!(again.0[&shown][0].starts_with("views.update "), "nobody waits any more: {again:?}");
    assert_eq!(live.but_for_windows(), again.clone().but_for_windows());

    let mut tampered = recording.clone();
    let (four, five) = (place(&tampered, "four"), place(&tampered, "five"));
    tampered.messages.swap(four, five);
    let missing = tampered.messages.remove(place(&tampered, "two"));
    let other = worked_off_again(&tampered).await;
    assert_eq!((told(&other, "D1"), told(&other, "D2")), (words("one three"), words("five four")));
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

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_that_can_not_be_put_in_says_why() {
    let world = World::without_processes(WORKER_ONLY).await.expect("servers");
    let file = world.write("some.jsonl", "{\"kind\":\"a shopping list\"}\n").expect("a file");
    let error = Recording::read(&file).expect_err("no recording");
    assert!(error.to_string().ends_with("some.jsonl is no recording of layout 1"), "{error}");
    let head = "{\"recording\":1,\"slack\":\"http://127.0.0.1:1\"}\n";
    let file =
        world.write("some.jsonl", &format!("{head}{{\"subject\":\"x\",\"headers\":{{}}}}\n"));
    let error = Recording::read(&file.expect("a file")).expect_err("half a message");
    assert!(error.to_string().starts_with("line 2 of "), "{error}");

    let body = vec![0xff, b'x'];
    let subject = format!("slack.in.3.{:032x}", 9);
    let headers = [("Nats-Msg-Id".to_owned(), "a key".to_owned())].into();
    let recording = Recording {
        slack: "http://127.0.0.1:1".into(),
        messages: vec![Recorded { subject, headers, body }],
    };
    let file = world.folder("recorded").expect("a folder").join("one.jsonl");
    recording.write(&file).expect("written");
    assert_eq!(Recording::read(&file).expect("read"), recording, "bytes that are no text");
    let error = recording.put(&world).await.expect_err("nobody's");
    let why = format!("connection {:032x} is not in this world: declare it first", 9);
    assert_eq!(error.to_string(), why);
}

#[test]
fn effects_that_differ_are_named() {
    let effects = |said: &[&str], bound: &str, webhook: &str| {
        let lines = [("told T1 D1", said), ("binding c T1 D1", &[bound]), (webhook, &["done"])];
        let owned = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        Effects(lines.map(|(name, lines)| (name.to_owned(), owned(lines))).into())
    };
    let (said, bound, webhook) = (["one", "two", "three"], "org/a by U1", "webhook k");
    let before = effects(&said, bound, webhook);
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
            effects(&said, "org/b by U1", webhook),
            "binding c T1 D1\n  - org/a by U1\n  + org/b by U1\n1 in all: 1 binding",
        ),
        (
            effects(&said, bound, "webhook l"),
            "webhook k\n  - done\nwebhook l\n  + done\n2 in all: 2 webhook",
        ),
    ] {
        assert_eq!(report(&before.differences(&after)), named);
    }
}
