//! Two thousand people, two hundred codes.

use crate::{
    Run,
    rows::Outcome,
    trial::{ANSWERED_WITHIN, Trial, held, in_time},
};
use anyhow::{Context, ensure};
use std::time::{Duration, Instant};
use tests::{race::Race, world::World};

const CODES: u32 = 200;
const EACH: u32 = 10;
/// Commands under way at once: more than people of one code, and no more than this machine answers in time.
const AT_ONCE: usize = 50;
/// From the first command to the last answer.
const HEARD_WITHIN: Duration = Duration::from_secs(60);

/// Ten people use each code at the same moment, beside conversations of the same workspace: one of them wins, the others are told
/// so, each once.
pub async fn raced_for(_: Run) -> anyhow::Result<Outcome> {
    let world = World::start(crate::trial::SIZE).await?;
    let mut race = None;
    let (mut slowest, mut took) = (Duration::ZERO, Duration::ZERO);
    let trial = Trial {
        conversations: 6,
        pace: Duration::from_millis(300),
        repeats: false,
        ..Trial::default()
    };
    let verdict = trial
        .in_world(&world, async |world, app| {
            let people = Race::new(world, app, CODES, EACH).await?;
            let began = Instant::now();
            slowest = people.run(world, app, AT_ONCE).await?;
            people.heard(world, HEARD_WITHIN).await?;
            took = began.elapsed();
            race = Some(people);
            Ok(())
        })
        .await?;
    in_time(&verdict)?;
    ensure!(slowest < ANSWERED_WITHIN, "a command's answer took {slowest:?}: {verdict}");
    let race = race.context("the trial ran")?;
    let raced = race.judged(&world, HEARD_WITHIN).await?;
    ensure!(raced.holds(false), "of the race: {raced}\n{raced:?}");
    let notes = format!(
        "{} of {} people won in {:.0} s, slowest answer {} ms",
        CODES,
        raced.accepted,
        took.as_secs_f64(),
        slowest.as_millis()
    );
    held(verdict, [notes])
}
