//! Processes die, freeze and go; what was accepted is handled all the same, once.

use futures_util::TryStreamExt;
use shared::types::Surface;
use std::time::{Duration, Instant};
use tests::{
    slack::webhook::Webhook,
    until::until,
    world::{PAIR, SMALL, SOON, Size, World, agent_id},
};

#[tokio::test]
async fn a_worker_killed_between_accept_and_handling_loses_nothing() {
    let world = World::start(PAIR).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let code = world.mint(&app, &[Surface::Channel]).await.expect("a code");
    let webhook =
        Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", &format!("link {code}"));
    let owner = world.owner_of(&app, "C1").await.expect("an owner");
    owner.process.freeze();
    assert_eq!(world.send(&app, &webhook).await.expect("an answer").status, 200);
    owner.process.kill();
    let said =
        world.slack.told("the person hears", |r| webhook.response_url.ends_with(&r.to)).await;
    assert!(said.text().starts_with("Linked."), "{}", said.text());
    assert_ne!(world.handled(&webhook.dedupe).await.worker, owner.id);
}

/// What a restored Postgres lost is read again, also where nothing comes after it and no lease ran out meanwhile.
#[tokio::test]
async fn what_a_restored_postgres_lost_is_handled_again_by_a_worker_that_goes_on() {
    let size = Size { ingests: 1, workers: 1, own_postgres: true };
    let mut world = World::without_processes(size).await.expect("servers");
    world.set("TIDEGATE_LEASE_TTL", "12s");
    world.start_processes().await.expect("processes");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    world.postgres.save().await.expect("it comes back");
    let webhook = Webhook::message(&world.slack, &app, "D1", "U1", "hello");
    assert_eq!(world.send(&app, &webhook).await.expect("an answer").status, 200);
    world.handled(&webhook.dedupe).await;
    world.postgres.restore().await.expect("it comes back");
    world.handled(&webhook.dedupe).await;
    assert_eq!(world.agent.asked().len(), 2);
}

/// Postgres refuses commits, as with a full disk, and workers are killed meanwhile: no webhook is given up for it, and Postgres is
/// not asked without end.
#[tokio::test]
async fn a_webhook_that_can_not_be_committed_is_not_taken_for_one_that_ends_processes() {
    const KILLS: usize = 4;
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let run = async |sql: &'static str| {
        sqlx::raw_sql(sql).execute(&world.pool).await.expect("done");
    };
    run("update partition_cursors set claims = 5;
         create function disk_full() returns trigger language plpgsql as
             $$ begin raise exception 'no space left' using errcode = '53100'; end $$;
         create trigger disk_full before insert on deliveries for each row execute function disk_full()")
        .await;
    let worker = &world.workers[0].process;
    worker.kill();
    let webhook = Webhook::message(&world.slack, &app, "D1", "U1", "hello");
    assert_eq!(world.send(&app, &webhook).await.expect("an answer").status, 200);
    let refused = || worker.log().matches("commit has an unknown result").count();
    for _ in 0..KILLS {
        let before = refused();
        worker.restart().expect("it starts");
        until("it tries", SOON, async || (refused() > before).then_some(())).await;
        worker.kill();
    }
    let before = refused();
    worker.restart().expect("it starts");
    until("it tries", SOON, async || (refused() > before).then_some(())).await;
    let (before, began) = (refused(), Instant::now());
    tokio::time::sleep(Duration::from_secs(3)).await;
    let tries = refused() - before;
    let most = began.elapsed().as_millis() as usize / 250 + 2;
    assert!(tries <= most, "{tries} tries in {:?}", began.elapsed());
    run("drop trigger disk_full on deliveries").await;
    assert_eq!(world.handled(&webhook.dedupe).await.outcome, "completed");
}

#[tokio::test]
async fn a_worker_frozen_past_its_lease_and_woken_changes_nothing() {
    let world = World::start(PAIR).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let owner = world.owner_of(&app, "C1").await.expect("an owner");
    owner.process.freeze();
    let webhook = Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", "help");
    world.send(&app, &webhook).await.expect("an answer");
    let handled = world.handled(&webhook.dedupe).await;
    assert_ne!(handled.worker, owner.id);
    owner.process.thaw();
    until("the sleeper finds out", SOON, async || {
        let log = owner.process.log();
        (log.contains("partition lost") || log.contains("row expired")).then_some(())
    })
    .await;
    world.settled().await.expect("it takes part again");
    let after = Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", "help");
    world.send(&app, &after).await.expect("an answer");
    world.slack.told("the one after", |receipt| after.response_url.ends_with(&receipt.to)).await;
    let receipts = world.slack.receipts();
    assert_eq!(
        receipts.iter().filter(|receipt| webhook.response_url.ends_with(&receipt.to)).count(),
        1
    );
}

#[tokio::test]
async fn a_worker_told_to_stop_gives_its_partitions_back_and_ends_well() {
    let world = World::start(PAIR).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let owner = world.owner_of(&app, "C1").await.expect("an owner");
    owner.process.terminate();
    let status = owner.process.wait(SOON).await.expect("it ends");
    assert!(status.success(), "{status}\n{}", owner.process.log());
    let times = |words| owner.process.log().matches(words).count();
    let (took, gave) = (times("took a partition"), times("gave a partition back"));
    assert_eq!(took, gave, "some were left to run out: {}", owner.process.log());
    world.settled().await.expect("the other takes all");
    let webhook = Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", "help");
    world.send(&app, &webhook).await.expect("an answer");
    assert_ne!(world.handled(&webhook.dedupe).await.worker, owner.id);
}

#[tokio::test]
async fn while_nats_is_away_slack_is_told_so_in_time_and_afterwards_all_goes_on() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    world.nats.kill();
    let event = Webhook::message(&world.slack, &app, "C1", "U1", "hello");
    let answer = world.send(&app, &event).await.expect("an answer");
    assert_eq!(
        (answer.status, &answer.headers["retry-after"]),
        (503, &"1".parse().expect("a value"))
    );
    assert!(answer.took < Duration::from_secs(3), "{:?}", answer.took);
    let command = Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", "help");
    let answer = world.send(&app, &command).await.expect("an answer");
    assert_eq!(answer.status, 200, "nobody sends a command again, so its user is told");
    assert!(
        answer.body.contains("try again") && answer.took < Duration::from_secs(3),
        "{answer:?}"
    );
    world.nats.restart().await.expect("NATS comes back");
    until("webhooks are taken again", SOON, async || {
        let answer = world.send(&app, &event).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
    assert_eq!(world.handled(&event.dedupe).await.outcome, "ignored");
}

#[tokio::test]
async fn while_postgres_is_away_webhooks_are_taken_and_afterwards_handled() {
    let world = World::start(Size { own_postgres: true, ..SMALL }).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    world.postgres.kill();
    let webhook = Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", "help");
    let answer = world.send(&app, &webhook).await.expect("an answer");
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    world.postgres.restart().await.expect("Postgres comes back");
    world
        .slack
        .told("the person hears", |receipt| webhook.response_url.ends_with(&receipt.to))
        .await;
}

/// Somebody deletes the readers, or the server forgets them: the partitions are read on, by new ones.
#[tokio::test]
async fn deleted_readers_are_made_anew_and_nothing_is_missed() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let js = async_nats::jetstream::new(world.client().clone());
    let stream = js.get_stream(shared::stream::STREAM).await.expect("the stream");
    let readers = async || {
        let names = stream.consumer_names().try_collect::<Vec<String>>().await;
        names.expect("names").into_iter().filter(|name| name.starts_with('p')).collect::<Vec<_>>()
    };
    let before = until("every partition is read", SOON, async || {
        let names = readers().await;
        (names.len() == 64).then_some(names)
    })
    .await;
    for name in &before {
        stream.delete_consumer(name).await.expect("it goes");
    }
    for n in 0..8 {
        let user = format!("U{n}");
        let webhook = Webhook::command(&world.slack, &app, "C1", &user, "/lobu", "help");
        world.send(&app, &webhook).await.expect("an answer");
        world.handled(&webhook.dedupe).await;
    }
    until("all of them are read again", SOON, async || (readers().await.len() == 64).then_some(()))
        .await;
}
