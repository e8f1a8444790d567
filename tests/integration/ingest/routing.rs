//! Routing and classification of every webhook that Slack documents, as its row states.

use ingest::{classify, signature};
use shared::{
    domain::{ConnectionId, MediaType, WebhookKind},
    slack::BodyParts,
    stream::{Conversation, Lane, Partition, STREAM},
};
use std::{collections::BTreeMap, time::SystemTime};
use tests::{
    fixtures::{self, Fixture},
    shapes::Shape,
    slack::{sign, unix_now},
    test_env::{App, Size, TestEnv},
};

const INGEST_ONLY: Size = Size { ingests: 1, workers: 0, own_postgres: false };

/// Returns the kind that a row stands for.
fn kind(fixture: &Fixture) -> WebhookKind {
    let Fixture { shape, content, .. } = fixture;
    match (content.get("_form"), content.get("_payload")) {
        _ if !shape.is_stored() => WebhookKind::Unknown,
        (Some(_), _) => WebhookKind::Command,
        (_, Some(_)) if shape.key == "options" => WebhookKind::Options,
        (_, Some(_)) => WebhookKind::Interaction,
        (None, None) => WebhookKind::Event,
    }
}

/// Parses a lane of the table: its kind, and the ids that it is made of.
fn conversation(shape: &Shape) -> Conversation<'_> {
    match *shape.lane.split(' ').collect::<Vec<_>>() {
        ["dm", channel] => Conversation::DirectMessage(channel),
        ["thread", channel, ts] => Conversation::Thread(channel, ts),
        ["channel", channel] => Conversation::Channel(channel),
        ["person", channel, user] => Conversation::Person(channel, user),
        ["view", root] => Conversation::View(root),
        ["else", subject] => Conversation::WithoutChannel(subject),
        ["else"] => Conversation::WithoutChannel(""),
        _ => panic!("{}: no lane is written as {:?}", shape.name, shape.lane),
    }
}

/// Returns the classification by ingest and the one of the row, as text.
fn classified(connection: ConnectionId, fixture: &Fixture) -> (String, String) {
    let Fixture { shape, webhook, .. } = fixture;
    let (secret, now) = ("secret", unix_now().to_string());
    let signature = sign(secret, &now, &webhook.body);
    let request = signature::UnverifiedRequest {
        signature: Some(&signature),
        timestamp: Some(&now),
        body: webhook.body.clone().into(),
    };
    let key =
        signature::SigningKey::new(&shared::secrets::Secret::new(secret.into()).expect("a secret"));
    let verified = signature::verify(request, [&key], SystemTime::now()).expect("signed");
    let media = MediaType::from_content_type(webhook.content_type).expect("a media type");
    let parts: BodyParts<'_> = classify::split(media, &verified);
    let inbound = parts.read();
    let install = inbound.installations().first().map(|install| {
        let enterprise = install.enterprise.as_ref().map(ToString::to_string);
        let ids = [enterprise, install.team.as_ref().map(ToString::to_string)];
        let app = inbound.app().map(str::to_owned);
        (app, ids.into_iter().flatten().collect::<Vec<_>>().join("/"))
    });
    let placement = classify::place_webhook(connection, &inbound, &verified, || 0);
    let key = placement.dedup_key.as_str().split(':').nth(1).expect("a kind").to_owned();
    let sync = classify::sync_response_kind(&inbound).is_some();
    let found = (install, placement.kind, placement.partition, placement.lane, key, sync);

    let install = shape.install.clone().map(|install| (shape.api_app_id(), install));
    let partition = Partition::of(connection, shape.channel.as_deref());
    let lane = Lane::of(connection, conversation(shape));
    let due = (install, kind(fixture), partition, lane, shape.key.clone(), shape.sync);
    (format!("{found:?}"), format!("{due:?}"))
}

/// Each documented webhook gets the installation, kind, partition, lane and dedup key of its row.
#[test]
fn classifies_every_shape() {
    let connection: ConnectionId = format!("{:032x}", 7).parse().expect("an id");
    let differs = |fixture: &Fixture| {
        let (found, due) = classified(connection, fixture);
        (found != due).then(|| format!("{}:\n found {found}\n due   {due}", fixture.shape.name))
    };
    let wrong: Vec<String> = fixtures::all().iter().filter_map(differs).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Rows have unique names and a source, and either a Bolt listener or a reason why there is none.
#[test]
fn names_every_shape_once_with_a_source() {
    let mut names = std::collections::BTreeSet::new();
    for shape in tests::shapes::all() {
        assert!(names.insert(shape.name.clone()), "two rows are called {}", shape.name);
        assert!(!shape.source.is_empty(), "{}", shape.name);
        let received = shape.bolt.is_some() != shape.unreceived.is_some();
        assert!(received, "{}: a Bolt listener, or the reason why none", shape.name);
    }
    assert!(names.len() > 190, "{}", names.len());
}

/// Sends webhooks by a route. Returns the number of stored ones by kind.
async fn stored<'f>(
    env: &TestEnv,
    shared: bool,
    app: &App,
    fixtures: impl Iterator<Item = &'f Fixture>,
) -> BTreeMap<String, usize> {
    let before = env.stored().await.expect("a count");
    let sent = fixtures.map(async |fixture| {
        let answer = match shared {
            true => env.send_shared(&fixture.webhook).await,
            false => env.send(app, &fixture.webhook).await,
        };
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, 200, "{} {}", fixture.shape.name, answer.body);
    });
    futures_util::future::join_all(sent).await;
    let js = async_nats::jetstream::new(env.client().clone());
    let stream = js.get_stream(STREAM).await.expect("the stream");
    let mut kinds = BTreeMap::new();
    for sequence in before + 1..=stream.cached_info().state.last_sequence {
        let message = stream.get_raw_message(sequence).await.expect("a message");
        assert!(message.subject.ends_with(&app.connection.to_string()), "{}", message.subject);
        let kind = message.headers.get("Tidegate-Kind").expect("a kind").to_string();
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

/// Returns the number of rows by kind.
fn counted<'f>(fixtures: impl Iterator<Item = &'f Fixture>) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for fixture in fixtures.filter(|fixture| fixture.shape.is_stored()) {
        *kinds.entry(kind(fixture).as_str().to_owned()).or_default() += 1;
    }
    kinds
}

/// Each documented webhook is accepted on its own and the shared route, and stored under its kind
/// for its installation.
#[tokio::test]
async fn accepts_every_shape_on_both_routes() {
    let (all, team) = (fixtures::all(), "T0001TEAM");
    let of_team = |fixture: &&Fixture| {
        fixture.shape.install.as_ref().is_some_and(|install| install.ends_with(team))
    };
    let of_organization = |fixture: &&Fixture| fixture.shape.install.as_deref() == Some("E0001ORG");

    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect_for_fixtures().await.expect("a connection");
    assert_eq!(stored(&env, false, &app, all.iter()).await, counted(all.iter()));

    let env = TestEnv::start(INGEST_ONLY).await.expect("another test environment");
    let app = env.connect_as(|new| {
        (new.app, new.team) = ("A0001APP".parse().expect("an id"), team.parse().ok());
    });
    let app = app.await.expect("a workspace's connection");
    // A webhook for the whole organization does not belong to this workspace.
    let own = counted(all.iter().filter(of_team));
    assert_eq!(stored(&env, true, &app, all.iter()).await, own);
    let organization = env.connect_as(|new| {
        (new.app, new.team) = ("A0001APP".parse().expect("an id"), None);
        new.enterprise = "E0001ORG".parse().ok();
    });
    let organization = organization.await.expect("an organization's connection");
    let own = counted(all.iter().filter(of_organization));
    let rows = all.iter().filter(of_organization);
    assert_eq!(stored(&env, true, &organization, rows).await, own);
}
