//! The fault matrix (`cargo faults`): faults of processes, links and resources under load, and the
//! guarantees that must hold.
//!
//! ```text
//! cargo faults                  faults that every change has to pass
//! cargo faults --nightly        all faults: a cluster, a full disk, wrong clocks, random faults
//! cargo faults --only 3 --only 10a
//! cargo faults --list
//! ```
//!
//! Prints a line per fault with the result of the checker: messages offered, accepted, applied,
//! lost, out of order, doubled, worst gap. Exits 1 if a guarantee does not hold. The seed, which is
//! printed, controls all random choices.

mod link_codes;
mod clock;
mod cluster;
mod crash;
mod operator_changes;
mod resource_exhaustion;
mod links;
mod panics;
mod rejected_requests;
mod matrix;
mod stream;
mod runner;
mod agents_and_slack;

use clap::Parser;
use matrix::{Outcome, ROWS, Row, Tier};
use serde_json::json;
use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
    time::{Duration, Instant},
};
use tests::fault::Random;

/// Run the fault matrix. Exits 1 if a guarantee does not hold under a fault.
#[derive(Debug, Parser)]
#[command(name = "faults")]
struct Options {
    /// Also run the long faults: a cluster of NATS, a full disk, wrong clocks, random faults.
    #[arg(long)]
    nightly: bool,
    /// Run only the fault with this number, for example 3 or 10a. May be repeated.
    #[arg(long, value_name = "NUMBER")]
    only: Vec<String>,
    /// Set the seed of random choices.
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Set the duration of the random faults in minutes.
    #[arg(long, value_name = "MINUTES", default_value_t = 30)]
    minutes: u64,
    /// List the faults.
    #[arg(long)]
    list: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// Parameters of a fault.
struct Run {
    random: Random,
    lasting: Duration,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let unknown = options.only.iter().find(|only| !ROWS.iter().any(|row| row.number == **only));
    if let Some(unknown) = unknown {
        eprintln!("unknown fault {unknown}; use --list to show the numbers");
        return ExitCode::from(64);
    }
    let wanted = |row: &&Row| match options.only.is_empty() {
        true => options.nightly || row.tier == Tier::EveryChange,
        false => options.only.iter().any(|only| only == row.number),
    };
    let chosen: Vec<&Row> = ROWS.iter().filter(wanted).collect();
    if options.list {
        ROWS.iter()
            .for_each(|row| println!("{:>4}  {:<9} {}", row.number, row.tier.as_str(), row.what));
        return ExitCode::SUCCESS;
    }
    let seed = options.seed.unwrap_or_else(|| getrandom::u64().unwrap_or(1));
    eprintln!("{} faults, --seed {seed}", chosen.len());
    let began = Instant::now();
    let mut report = Vec::new();
    for row in chosen {
        let lasting = Duration::from_secs(60 * options.minutes);
        // The seed of a row depends only on the main seed and the number of the row, so that a row
        // runs the same alone and in the matrix.
        let row_seed =
            row.number.bytes().fold(seed, |seed, byte| seed.rotate_left(8) ^ u64::from(byte));
        let run = Run { random: Random::new(row_seed), lasting };
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

/// Prints a line when a fault has run.
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

/// Prints the report: a line per fault.
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
                v.out_of_order.len() + v.calls_out_of_order.len(),
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
                line["out_of_order"] = (v.out_of_order.len() + v.calls_out_of_order.len()).into();
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
