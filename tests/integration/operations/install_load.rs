//! Installations, re-installations, removals and token refreshes of many workspaces at once, under
//! a load of questions.

use futures_util::future::join_all;
use reqwest::StatusCode;
use serde_json::json;
use shared::domain::ConnectionId;
use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
};
use tests::{
    eventually::eventually,
    install::{APP, SIGNING, Setup},
    size::ci_or_full,
    slack::{Receipt, oauth::Allowed, webhook::Webhook},
    test_env::{App, Size, TIMEOUT},
};

const SERVERS: Size = Size { ingests: 1, workers: 2, own_postgres: false };
/// Concurrent questions of the load.
const LANES: usize = 4;

/// Mentions the bot in a workspace, each time as another person, and waits for the answer.
async fn ask(setup: &Setup, app: &App, channel: &str, text: &str) {
    // An agent takes a limited number of questions from one person.
    let user = format!("U{channel}");
    let mention = format!("<@{}> {text}", app.bot_user);
    let (slack, ts) = (&setup.env.slack, setup.env.slack.ts());
    let webhook = Webhook::message_event(slack, app, "app_mention", channel, &user, &mention, &ts);
    let url = setup.env.ingests[0].path("/slack/events");
    assert_eq!(slack.send(&url, SIGNING, &webhook).await.expect("an answer").status, 200, "{text}");
    slack.wait_for_receipt(text, |receipt: &Receipt| receipt.text().contains(text)).await;
}

/// Asks one question after another until `ends`. Returns their number.
async fn load(setup: &Setup, app: &App, lane: usize, ends: &AtomicBool) -> usize {
    let mut asked = 0;
    while !ends.load(Ordering::Relaxed) {
        let (channel, text) = (format!("C{lane}X{asked}"), format!("load {lane} {asked} end"));
        ask(setup, app, &channel, &text).await;
        asked += 1;
    }
    asked
}

/// Makes a worker refresh the token.
async fn refresh(setup: &Setup, app: &App) {
    let id = app.connection;
    let generation = format!("select generation from token_rotations where connection_id = '{id}'");
    let before = setup.count(&generation).await;
    let due = "update token_rotations set refresh_at = now() where connection_id = $1";
    sqlx::query(due).bind(id.to_string()).execute(&setup.env.pool).await.expect("due");
    eventually("the token is refreshed", 2 * TIMEOUT, async || {
        (setup.count(&generation).await > before).then_some(())
    })
    .await;
}

/// Removes the app as a person does, and waits until the connection is revoked.
async fn remove(setup: &Setup, app: &App) {
    let slack = &setup.env.slack;
    slack.uninstall(APP, &app.team);
    let removal = json!({ "type": "app_uninstalled" });
    let webhook = Webhook::event(slack, app, "app_uninstalled", removal);
    let url = setup.env.ingests[0].path("/slack/events");
    assert_eq!(slack.send(&url, SIGNING, &webhook).await.expect("an answer").status, 200);
    let id = app.connection;
    let revoked =
        format!("select count(*) from connections where id = '{id}' and status = 'revoked'");
    eventually("the connection is revoked", TIMEOUT, async || {
        (setup.count(&revoked).await == 1).then_some(())
    })
    .await;
}

/// Runs the rounds of one workspace. Returns its connections, which should be one.
async fn live(setup: &Setup, team: &str, rounds: usize) -> BTreeSet<ConnectionId> {
    let mut connections = BTreeSet::new();
    for round in 0..rounds {
        if round % 4 != 3 {
            let page = setup.install("acme", &Allowed::in_team(team)).await;
            assert_eq!(page.status(), StatusCode::OK, "{team} {round}");
        }
        let app = setup.app_in(team).await;
        connections.insert(app.connection);
        ask(setup, &app, "C0TEAM", &format!("question {team} {round} end")).await;
        match round % 4 {
            1 => remove(setup, &app).await,
            3 => refresh(setup, &app).await,
            _ => {}
        }
    }
    connections
}

/// Each workspace keeps one connection through installations, re-installations, removals and
/// refreshes, and gets an answer after each of them, while other workspaces do the same and a load
/// goes on.
#[tokio::test(flavor = "multi_thread")]
async fn keeps_teams_apart_under_load() {
    let (teams, rounds) = ci_or_full((6, 4), (100, 40));
    let setup = Setup::start(SERVERS).await;
    assert_eq!(setup.install("acme", &Allowed::in_team("T0LOAD")).await.status(), StatusCode::OK);
    let loaded = setup.app_in("T0LOAD").await;
    let ends = AtomicBool::new(false);
    let lanes = join_all((0..LANES).map(|lane| load(&setup, &loaded, lane, &ends)));
    let changes = async {
        let names: Vec<String> = (0..teams).map(|n| format!("T0TEAM{n:03}")).collect();
        let all = join_all(names.iter().map(|team| live(&setup, team, rounds))).await;
        ends.store(true, Ordering::Relaxed);
        all
    };
    let (asked, all) = tokio::join!(lanes, changes);
    assert!(all.iter().all(|of_team| of_team.len() == 1), "{all:?}");
    let different: BTreeSet<&ConnectionId> = all.iter().flatten().collect();
    assert_eq!(different.len(), teams, "two workspaces share a connection");
    assert_eq!(setup.count("select count(*) from connections").await, teams as i64 + 1);
    assert_eq!(setup.count("select count(*) from token_rotations").await, teams as i64 + 1);
    println!("questions of the load: {asked:?}");
    assert!(asked.iter().all(|asked| *asked > 0), "{asked:?}");
    setup.env.tidegate(&["ledger", "verify"]).expect("every webhook is accounted for");
}
