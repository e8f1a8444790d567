//! A race of two thousand people for two hundred link codes.

use crate::{
    Run,
    matrix::Outcome,
    runner::{ANSWERED_WITHIN, Runner, ensure_in_time, held},
};
use anyhow::{Context, ensure};
use std::time::{Duration, Instant};
use tests::{link_code_race::LinkCodeRace, test_env::TestEnv};

const CODES: u32 = 200;
const EACH: u32 = 10;
/// Number of concurrent commands: more than people per code, but few enough for a small machine to
/// answer in time.
const AT_ONCE: usize = 50;
/// Maximum time from the first command to the last answer.
const HEARD_WITHIN: Duration = Duration::from_secs(60);

/// Ten people use each code at the same time, beside conversations of the same workspace: one of
/// them wins, and each other person gets one answer.
pub async fn race(_: Run) -> anyhow::Result<Outcome> {
    let env = TestEnv::start(crate::runner::SIZE).await?;
    let mut race = None;
    let (mut slowest, mut took) = (Duration::ZERO, Duration::ZERO);
    let runner = Runner {
        conversations: 6,
        pace: Duration::from_millis(300),
        repeats: false,
        ..Runner::default()
    };
    let verdict = runner
        .run_in(&env, async |env, app| {
            let people = LinkCodeRace::new(env, app, CODES, EACH).await?;
            let began = Instant::now();
            slowest = people.run(env, app, AT_ONCE).await?;
            people.wait_for_answers(env, HEARD_WITHIN).await?;
            took = began.elapsed();
            race = Some(people);
            Ok(())
        })
        .await?;
    ensure_in_time(&verdict)?;
    ensure!(slowest < ANSWERED_WITHIN, "the answer to a command took {slowest:?}: {verdict}");
    let race = race.context("the race did not run")?;
    let raced = race.verdict(&env, HEARD_WITHIN).await?;
    ensure!(raced.holds(false), "the race broke a guarantee: {raced}\n{raced:?}");
    let notes = format!(
        "{} of {} people won in {:.0} s, slowest answer {} ms",
        CODES,
        raced.accepted,
        took.as_secs_f64(),
        slowest.as_millis()
    );
    held(verdict, [notes])
}
