//! The fault matrix, run: what is killed, parted, slowed or filled up under load, and what must hold all the same.
//!
//! ```text
//! cargo faults                  what every change has to pass
//! cargo faults --nightly        the rest, too: a cluster, a full disk, skewed clocks, everything at random
//! cargo faults --only 3 --only 10a
//! cargo faults --list
//! ```
//!
//! In: nothing but the machine. Out: a line per fault, judged by the one checker: load offered, accepted, applied, lost, out of
//! order, doubled, worst gap. Ends badly when one does not hold. What chance decides is decided by a seed, which is printed.

mod claims;
mod clock;
mod cluster;
mod crash;
mod declared;
mod doors;
mod links;
mod panics;
mod refused;
mod rows;
mod stream;
mod trial;
mod work;

use clap::Parser;
use rows::{Outcome, ROWS, Row, Tier};
use serde_json::json;
use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
    time::{Duration, Instant},
};
use tests::strike::Random;

/// The fault matrix.
#[derive(Debug, Parser)]
#[command(name = "faults")]
struct Options {
    /// Also what takes long: a cluster of NATS, a full disk, skewed clocks, everything at random.
    #[arg(long)]
    nightly: bool,
    /// Only the fault with this number, as in 3 or 10a; may be said again.
    #[arg(long, value_name = "NUMBER")]
    only: Vec<String>,
    /// What chance decides is decided by this.
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// How long everything at random goes on, in minutes.
    #[arg(long, value_name = "MINUTES", default_value_t = 30)]
    minutes: u64,
    /// Only says what there is.
    #[arg(long)]
    list: bool,
    /// The report as JSON.
    #[arg(long)]
    json: bool,
}

/// What a row is given.
struct Run {
    random: Random,
    lasting: Duration,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let unknown = options.only.iter().find(|only| !ROWS.iter().any(|row| row.number == **only));
    if let Some(unknown) = unknown {
        eprintln!("there is no fault {unknown}: --list says which there are");
        return ExitCode::from(64);
    }
    let wanted = |row: &&Row| match options.only.is_empty() {
        true => options.nightly || row.tier == Tier::EveryChange,
        false => options.only.iter().any(|only| only == row.number),
    };
    let chosen: Vec<&Row> = ROWS.iter().filter(wanted).collect();
    if options.list {
        ROWS.iter()
            .for_each(|row| println!("{:>4}  {:<9} {}", row.number, row.tier.word(), row.what));
        return ExitCode::SUCCESS;
    }
    let seed = options.seed.unwrap_or_else(|| getrandom::u64().unwrap_or(1));
    eprintln!("{} faults, --seed {seed}", chosen.len());
    let began = Instant::now();
    let mut report = Vec::new();
    for row in chosen {
        let lasting = Duration::from_secs(60 * options.minutes);
        // A row's chances are its own: the same alone as among the others.
        let of_the_row =
            row.number.bytes().fold(seed, |seed, byte| seed.rotate_left(8) ^ u64::from(byte));
        let run = Run { random: Random::new(of_the_row), lasting };
        let (at, outcome) = (Instant::now(), (row.run)(run).await);
        let outcome = outcome.unwrap_or_else(|error| Outcome::Broken(format!("{error:#}")));
        show(row, &outcome, at.elapsed());
        report.push((row, outcome, at.elapsed()));
    }
    let broken =
        report.iter().filter(|(_, outcome, _)| matches!(outcome, Outcome::Broken(_))).count();
    if options.json {
        println!("{}", in_json(seed, &report));
    } else {
        summary(&report);
    }
    let (count, took) = (report.len(), began.elapsed().as_secs());
    eprintln!("\n{count} faults, {broken} broken, {took} s, --seed {seed}");
    if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A line as soon as a fault is over: the whole takes minutes.
fn show(row: &Row, outcome: &Outcome, took: Duration) {
    let colours = std::io::stderr().is_terminal();
    let paint = |code: &str, text: &str| match colours {
        true => format!("\x1b[{code}m{text}\x1b[0m"),
        false => text.to_owned(),
    };
    let word = match outcome {
        Outcome::Held(..) => paint("32", "held"),
        Outcome::Broken(_) => paint("31", "BROKEN"),
        Outcome::Skipped(_) => paint("33", "skipped"),
    };
    eprintln!("{:>4}  {word:<10} {:5.1} s  {}", row.number, took.as_secs_f64(), row.what);
    if let Outcome::Broken(why) | Outcome::Skipped(why) = outcome {
        eprintln!("      {why}");
    }
    let _unread = std::io::stderr().flush();
}

/// The report: a line per fault.
fn summary(report: &[(&Row, Outcome, Duration)]) {
    println!(
        "\n{:>4}  {:<58} {:>7} {:>8} {:>7} {:>4} {:>12} {:>7} {:>9}  notes",
        "#",
        "fault",
        "offered",
        "accepted",
        "applied",
        "lost",
        "out of order",
        "doubled",
        "worst gap"
    );
    for (row, outcome, _) in report {
        let start = format!("{:>4}  {:<58}", row.number, row.what);
        match outcome {
            Outcome::Held(v, notes) => println!(
                "{start} {:>7} {:>8} {:>7} {:>4} {:>12} {:>7} {:>7.1} s  {}",
                v.offered,
                v.accepted,
                v.applied,
                v.lost.len(),
                v.out_of_order.len() + v.asked_out_of_order.len(),
                v.doubled.len(),
                v.worst_gap.as_secs_f64(),
                notes.join("; "),
            ),
            Outcome::Broken(why) => {
                println!("{start} BROKEN: {}", why.lines().next().unwrap_or_default())
            }
            Outcome::Skipped(why) => println!("{start} skipped: {why}"),
        }
    }
}

fn in_json(seed: u64, report: &[(&Row, Outcome, Duration)]) -> serde_json::Value {
    let rows = report.iter().map(|(row, outcome, took)| {
        let mut line = json!({
            "number": row.number, "fault": row.what, "seconds": took.as_secs_f64(),
        });
        match outcome {
            Outcome::Held(v, notes) => {
                line["held"] = true.into();
                line["offered"] = v.offered.into();
                line["accepted"] = v.accepted.into();
                line["applied"] = v.applied.into();
                line["lost"] = v.lost.len().into();
                line["out_of_order"] = (v.out_of_order.len() + v.asked_out_of_order.len()).into();
                line["doubled"] = v.doubled.len().into();
                line["said_twice"] = v.repeated.into();
                line["worst_gap_seconds"] = v.worst_gap.as_secs_f64().into();
                line["notes"] = json!(notes);
            }
            Outcome::Broken(why) => {
                line["held"] = false.into();
                line["why"] = why.as_str().into();
            }
            Outcome::Skipped(why) => line["skipped"] = why.as_str().into(),
        }
        line
    });
    json!({ "seed": seed, "faults": rows.collect::<Vec<_>>() })
}
