//! Faults under load, which lose no accepted webhook and keep every conversation in order.
//!
//! Each fault alone, then random faults from a seed (`TIDEGATE_CHAOS_SEED`, printed) for a time
//! (`TIDEGATE_CHAOS_PERIOD`, `60s` by default). `--nocapture` prints the verdict of the checker.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};
use tests::{
    checker::{Verdict, check},
    fault::{CALM, FAULTS, Fault, Random},
    load,
    test_env::{Size, TestEnv, agent_id},
};

const SIZE: Size = Size { ingests: 2, workers: 3, own_postgres: true };
const CONVERSATIONS: u32 = 12;
/// Maximum time after the load until everything is processed.
const DRAINED_WITHIN: Duration = Duration::from_secs(60);

/// Runs load during a fault. Fails if the checker finds a violation.
async fn run_under_load(what: &str, inject: impl AsyncFnOnce(&TestEnv)) -> Verdict {
    let env = TestEnv::start(SIZE).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let over = AtomicBool::new(false);
    let striking = async {
        tokio::time::sleep(CALM).await;
        inject(&env).await;
        tokio::time::sleep(CALM).await;
        over.store(true, Ordering::Relaxed);
    };
    let (sent, ()) = tokio::join!(load::run(&env, &app, CONVERSATIONS, &over), striking);
    let history = sent.history(&env, DRAINED_WITHIN).await;
    let history = history.unwrap_or_else(|late| panic!("{what}: {late:#}\n{}", env.logs()));
    let verdict = check(&history);
    println!("{what}: {verdict}");
    assert!(verdict.holds(true), "{what}: {verdict:?}\n{}", env.logs());
    verdict
}

async fn run_alone(fault: Fault) -> Verdict {
    let inject = async |env: &TestEnv| fault.inject(env, 0).await.expect("it comes back");
    run_under_load(&format!("{fault:?}"), inject).await
}

/// Without a fault every webhook is processed once and in order.
#[tokio::test]
async fn sends_once_without_fault() {
    let verdict = run_under_load("calm", async |_: &TestEnv| tokio::time::sleep(CALM).await).await;
    assert!(verdict.holds(false), "{verdict:?}");
}

/// Killing a worker under load loses and reorders nothing.
#[tokio::test]
async fn survives_killed_worker() {
    run_alone(Fault::KillWorker).await;
}

/// Freezing a worker under load loses and reorders nothing.
#[tokio::test]
async fn survives_frozen_worker() {
    run_alone(Fault::FreezeWorker).await;
}

/// Stopping a worker under load loses, reorders and repeats nothing.
#[tokio::test]
async fn survives_replaced_worker() {
    let verdict = run_alone(Fault::StopWorker).await;
    assert!(verdict.holds(false), "a stopped worker finishes its sends: {verdict:?}");
}

/// Killing an ingest under load loses and reorders nothing.
#[tokio::test]
async fn survives_killed_ingest() {
    run_alone(Fault::KillIngest).await;
}

/// Killing NATS under load loses and reorders nothing.
#[tokio::test]
async fn survives_killed_nats() {
    run_alone(Fault::KillNats).await;
}

/// Killing Postgres under load loses and reorders nothing.
#[tokio::test]
async fn survives_killed_postgres() {
    run_alone(Fault::KillPostgres).await;
}

/// Freezing Postgres under load loses and reorders nothing.
#[tokio::test]
async fn survives_frozen_postgres() {
    run_alone(Fault::FreezePostgres).await;
}

/// Random faults one after the other, from a printed seed, lose and reorder nothing.
#[tokio::test]
async fn survives_random_faults() {
    let set = |name| std::env::var(name).ok();
    let seed = set("TIDEGATE_CHAOS_SEED").and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| getrandom::u64().expect("randomness"));
    let period = set("TIDEGATE_CHAOS_PERIOD").unwrap_or_else(|| "60s".into());
    let lasting = shared::runtime::config::parse_duration(&period).expect("TIDEGATE_CHAOS_PERIOD");
    println!("TIDEGATE_CHAOS_SEED={seed}");
    run_under_load(&format!("chaos, seed {seed}"), async |env: &TestEnv| {
        let (began, mut random) = (Instant::now(), Random::new(seed));
        while began.elapsed() < lasting {
            let fault = FAULTS[random.below(FAULTS.len())];
            println!("{:5.1} s {fault:?}", began.elapsed().as_secs_f64());
            fault.inject(env, random.below(64)).await.expect("it comes back");
        }
    })
    .await;
}
