//! Every sort of webhook is taken, on both routes, and put where it belongs.

use ingest::{classify, signature};
use shared::{
    codec::slack::{Media, Parts},
    partition::{Conversation, Lane, Partition},
    stream::STREAM,
    types::{ConnectionId, Kind},
};
use std::{collections::BTreeMap, time::SystemTime};
use tests::{
    fixtures::{self, Fixture},
    slack::{sign, unix_now},
    world::{Size, World},
};

const INGEST_ONLY: Size = Size { ingests: 1, workers: 0, own_postgres: false };

/// What ingest should find in a fixture: its kind, the installation (organisation and workspace) that it is for, its
/// channel and its conversation.
type Expected = (
    Kind,
    Option<(Option<&'static str>, Option<&'static str>)>,
    Option<&'static str>,
    Conversation<'static>,
);

fn expected() -> BTreeMap<&'static str, Expected> {
    use Conversation::{Channel, DirectMessage, Elsewhere, Person, Thread, View};
    use Kind::{Command, Event, Interaction, Options, Unknown};
    const TEAM: Option<(Option<&str>, Option<&str>)> = Some((None, Some("T0001TEAM")));
    const ORG: Option<(Option<&str>, Option<&str>)> = Some((Some("E0001ORG"), None));
    const CHAN: Option<&str> = Some("C0001CHAN");
    const DM: Option<&str> = Some("D0001DIRECT");
    const PARENT: &str = "1355517523.000005";
    let person = Person("C0001CHAN", "U0001USER");
    BTreeMap::from([
        ("message_channel", (Event, TEAM, CHAN, Thread("C0001CHAN", PARENT))),
        ("message_thread", (Event, TEAM, CHAN, Thread("C0001CHAN", PARENT))),
        ("message_changed", (Event, TEAM, CHAN, Thread("C0001CHAN", PARENT))),
        ("reaction_added", (Event, TEAM, CHAN, Thread("C0001CHAN", PARENT))),
        ("message_im", (Event, TEAM, DM, DirectMessage("D0001DIRECT"))),
        ("app_mention", (Event, TEAM, CHAN, Thread("C0001CHAN", "1515449522.000016"))),
        ("team_join", (Event, TEAM, None, Elsewhere("U0003NEW"))),
        ("channel_created", (Event, TEAM, Some("C0002NEW"), Channel("C0002NEW"))),
        ("assistant_thread_started", (Event, TEAM, DM, DirectMessage("D0001DIRECT"))),
        ("app_home_opened", (Event, TEAM, DM, DirectMessage("D0001DIRECT"))),
        ("app_uninstalled", (Event, TEAM, None, Elsewhere(""))),
        ("tokens_revoked", (Event, TEAM, None, Elsewhere(""))),
        ("app_rate_limited", (Event, TEAM, None, Elsewhere(""))),
        // Slack Connect: the outer team is the other company's, the installation is ours.
        (
            "connect_message",
            (Event, TEAM, Some("C0009SHARED"), Thread("C0009SHARED", "1355517523.000006")),
        ),
        ("grid_message", (Event, ORG, CHAN, Thread("C0001CHAN", "1355517523.000007"))),
        ("url_verification", (Unknown, None, None, Elsewhere(""))),
        ("command", (Command, TEAM, CHAN, person)),
        ("grid_command", (Command, ORG, CHAN, person)),
        ("ssl_check", (Unknown, None, None, Elsewhere(""))),
        ("block_actions", (Interaction, TEAM, CHAN, person)),
        ("message_action", (Interaction, TEAM, CHAN, person)),
        ("shortcut", (Interaction, TEAM, None, Person("_", "U0001USER"))),
        ("grid_shortcut", (Interaction, ORG, None, Person("_", "W0001USER"))),
        ("view_submission", (Interaction, TEAM, None, View("VNHU13V36"))),
        ("view_closed", (Interaction, TEAM, None, View("VNHU13V36"))),
        // The other company's user submits; the view says where the app is installed.
        ("connect_view_submission", (Interaction, TEAM, None, View("VNHU13V36"))),
        ("block_suggestion", (Options, TEAM, None, View("VNHU13V36"))),
    ])
}

#[test]
fn every_sort_of_webhook_is_routed_and_placed_by_the_ids_it_keeps_in_its_own_way() {
    let connection: ConnectionId = format!("{:032x}", 7).parse().expect("an id");
    let expected = expected();
    let fixtures = fixtures::all().expect("fixtures");
    assert_eq!(
        fixtures.len(),
        expected.len(),
        "a fixture that nobody expects, or the other way round"
    );
    for Fixture { name, webhook, .. } in &fixtures {
        let (kind, installation, channel, conversation) = expected[name.as_str()];
        let (secret, now) = ("secret", unix_now().to_string());
        let signature = sign(secret, &now, &webhook.body);
        let request = signature::UnverifiedRequest {
            signature: Some(&signature),
            timestamp: Some(&now),
            body: webhook.body.clone().into(),
        };
        let key = signature::SigningKey::new(
            &shared::secrets::Secret::new(secret.into()).expect("not empty"),
        );
        let verified = signature::verify(request, [&key], SystemTime::now()).expect("signed");
        let media = Media::from_content_type(webhook.content_type).expect("a media type");
        let parts: Parts<'_> = classify::split(media, &verified);
        let inbound = parts.read();
        let routing = classify::routing(&inbound);
        let found = routing.as_ref().map(|r| {
            assert_eq!(r.app.as_str(), "A0001APP", "{name}");
            (r.enterprise.as_ref().map(|id| id.as_str()), r.team.as_ref().map(|id| id.as_str()))
        });
        assert_eq!(found, installation, "{name}: whose it is");
        let placement = classify::place(connection, &inbound, &verified, || 0);
        let place = (placement.kind, placement.partition, placement.lane);
        let due = (kind, Partition::of(connection, channel), Lane::of(connection, conversation));
        assert_eq!(place, due, "{name}: where it belongs");
        let waits = matches!(
            name.as_str(),
            "view_submission" | "connect_view_submission" | "block_suggestion"
        );
        assert_eq!(
            classify::expects_sync_response(&inbound),
            waits,
            "{name}: whether an answer is waited for"
        );
    }
}

/// By this route, how many fixtures were answered 2xx, and what of them was stored, by kind.
async fn send_all(
    world: &World,
    shared: bool,
    connection: &tests::world::App,
) -> BTreeMap<String, u32> {
    let before = world.stored().await.expect("a count");
    let sent = fixtures::all().expect("fixtures").into_iter().map(async |fixture| {
        let answer = match shared {
            true => world.send_shared(&fixture.webhook).await,
            false => world.send(connection, &fixture.webhook).await,
        };
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, 200, "{} {}", fixture.name, answer.body);
    });
    futures_util::future::join_all(sent).await;
    let js = async_nats::jetstream::new(world.client().clone());
    let stream = js.get_stream(STREAM).await.expect("the stream");
    let mut kinds = BTreeMap::new();
    for sequence in before + 1..=stream.cached_info().state.last_sequence {
        let message = stream.get_raw_message(sequence).await.expect("a message");
        assert!(
            message.subject.ends_with(&connection.connection.to_string()),
            "{}",
            message.subject
        );
        *kinds
            .entry(message.headers.get("Tidegate-Kind").expect("a kind").to_string())
            .or_default() += 1;
    }
    kinds
}

#[tokio::test]
async fn every_sort_of_webhook_is_taken_on_both_routes() {
    let world = World::start(INGEST_ONLY).await.expect("a world");
    let app = world.connect_as(|new| {
        (new.app, new.team) = ("A0001APP".parse().expect("an id"), "T0001TEAM".parse().ok());
    });
    let app = app.await.expect("a workspace's connection");
    let all = [("command", 2), ("event", 15), ("interaction", 7), ("options", 1)];
    let all: BTreeMap<String, u32> = all.map(|(kind, count)| (kind.to_owned(), count)).into();
    assert_eq!(send_all(&world, false, &app).await, all);

    let world = World::start(INGEST_ONLY).await.expect("another world");
    let app = world.connect_as(|new| {
        (new.app, new.team) = ("A0001APP".parse().expect("an id"), "T0001TEAM".parse().ok());
    });
    let app = app.await.expect("a workspace's connection");
    // What is for the organisation as a whole is not this workspace's.
    let own = [("command", 1), ("event", 14), ("interaction", 6), ("options", 1)];
    let own: BTreeMap<String, u32> = own.map(|(kind, count)| (kind.to_owned(), count)).into();
    assert_eq!(send_all(&world, true, &app).await, own);
    let organisation = world.connect_as(|new| {
        (new.app, new.team) = ("A0001APP".parse().expect("an id"), None);
        new.enterprise = "E0001ORG".parse().ok();
    });
    let organisation = organisation.await.expect("an organisation's connection");
    let fixtures = fixtures::all().expect("fixtures");
    for fixture in fixtures.iter().filter(|fixture| fixture.name.starts_with("grid_")) {
        let before = world.stored().await.expect("a count");
        assert_eq!(world.send_shared(&fixture.webhook).await.expect("an answer").status, 200);
        assert_eq!(world.stored().await.expect("a count"), before + 1, "{}", fixture.name);
    }
    let js = async_nats::jetstream::new(world.client().clone());
    let stream = js.get_stream(STREAM).await.expect("the stream");
    let last = stream.get_last_raw_message_by_subject("slack.in.*.*").await.expect("a message");
    assert!(last.subject.ends_with(&organisation.connection.to_string()));
}
