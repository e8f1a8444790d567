//! Under load, whatever is killed, frozen, told to go or comes: nothing accepted is lost, and every conversation keeps its order.
//!
//! Each fault alone, and then for a while one after the other at random, by a seed (`TIDEGATE_CHAOS_SEED`, printed) for so
//! long (`TIDEGATE_CHAOS_SECONDS`, 60 by default). The checker's line is printed with `--nocapture`.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};
use tests::{
    checker::{Verdict, check},
    load,
    strike::{CALM, FAULTS, Fault, Random},
    world::{Size, World, agent_id},
};

const SIZE: Size = Size { ingests: 2, workers: 3, own_postgres: true };
const CONVERSATIONS: u32 = 12;
/// Everything has to be done and said this long after the load.
const DRAINED_WITHIN: Duration = Duration::from_secs(60);

/// Runs load while something is done, and judges it.
async fn under_load(what: &str, strike: impl AsyncFnOnce(&World)) -> Verdict {
    let world = World::start(SIZE).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let over = AtomicBool::new(false);
    let striking = async {
        tokio::time::sleep(CALM).await;
        strike(&world).await;
        tokio::time::sleep(CALM).await;
        over.store(true, Ordering::Relaxed);
    };
    let (sent, ()) = tokio::join!(load::run(&world, &app, CONVERSATIONS, &over), striking);
    let history = sent.history(&world, DRAINED_WITHIN).await;
    let history = history.unwrap_or_else(|late| panic!("{what}: {late:#}\n{}", world.logs()));
    let verdict = check(&history);
    println!("{what}: {verdict}");
    assert!(verdict.holds(true), "{what}: {verdict:?}\n{}", world.logs());
    verdict
}

async fn alone(fault: Fault) -> Verdict {
    let strike = async |world: &World| fault.strike(world, 0).await.expect("it comes back");
    under_load(&format!("{fault:?}"), strike).await
}

#[tokio::test]
async fn without_a_fault_nothing_is_said_twice() {
    let verdict = under_load("calm", async |_: &World| tokio::time::sleep(CALM).await).await;
    assert!(verdict.holds(false), "{verdict:?}");
}

#[tokio::test]
async fn a_worker_is_killed() {
    alone(Fault::KillWorker).await;
}

#[tokio::test]
async fn a_worker_is_frozen_past_its_lease_and_wakes() {
    alone(Fault::FreezeWorker).await;
}

#[tokio::test]
async fn a_worker_is_told_to_stop_and_another_comes() {
    let verdict = alone(Fault::StopWorker).await;
    assert!(verdict.holds(false), "who is told to stop finishes what it says: {verdict:?}");
}

#[tokio::test]
async fn an_ingest_is_killed() {
    alone(Fault::KillIngest).await;
}

#[tokio::test]
async fn nats_is_killed_and_comes_back() {
    alone(Fault::KillNats).await;
}

#[tokio::test]
async fn postgres_is_killed_and_comes_back() {
    alone(Fault::KillPostgres).await;
}

#[tokio::test]
async fn postgres_hangs_and_goes_on() {
    alone(Fault::FreezePostgres).await;
}

#[tokio::test]
async fn one_fault_after_the_other_at_random() {
    let set = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seed = set("TIDEGATE_CHAOS_SEED").unwrap_or_else(|| getrandom::u64().expect("randomness"));
    let lasting = Duration::from_secs(set("TIDEGATE_CHAOS_SECONDS").unwrap_or(60));
    println!("TIDEGATE_CHAOS_SEED={seed}");
    under_load(&format!("chaos, seed {seed}"), async |world: &World| {
        let (began, mut random) = (Instant::now(), Random::new(seed));
        while began.elapsed() < lasting {
            let fault = FAULTS[random.below(FAULTS.len())];
            println!("{:5.1} s {fault:?}", began.elapsed().as_secs_f64());
            fault.strike(world, random.below(64)).await.expect("it comes back");
        }
    })
    .await;
}
