//! `cargo bench`: how fast Tidegate is, beside what it could be at best on the same machine.
//!
//! In: nothing; real servers are started, and release builds of the real programs. Out: ratios, what was measured, and a
//! line per target, as a table or as JSON; each run is added to `history.jsonl`. What the figures mean, and what they do not
//! say, is in the README beside this file.
//!
//! ```text
//! client, tenants     a Slack in a hurry: closed loop and open loop
//! ceiling             (a) and (b), the least code
//! commits             (e), the bare commit statement
//! stage, workshop     what the way in is measured on, and the way out
//! ingest, worker, latency, isolation, backlog, failover      what is measured
//! turns, machine, report      how it is compared, where, and told
//! ```
//!
//! No target is asserted: a slow machine is no defect.

mod backlog;
mod ceiling;
mod client;
mod commits;
mod failover;
mod ingest;
mod isolation;
mod latency;
mod machine;
mod report;
mod stage;
mod tenants;
mod turns;
mod worker;
mod workshop;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use machine::{Machine, Watch};
use report::{Context, Report};
use std::{
    path::Path,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};
use tests::{fetch, guard::RunDir};

/// Measures Tidegate against its ceilings: cargo bench, or cargo bench -- --only ingest.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --", bin_name = "cargo bench --", subcommand_negates_reqs = true)]
struct Args {
    /// Also the largest sizes: a backlog of 1,000,000 webhooks, 20,000 cold connections.
    #[arg(long)]
    full: bool,
    /// Only these parts, comma-separated; all, when unset.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// JSON instead of tables.
    #[arg(long)]
    json: bool,
    /// What this run is about, for the history.
    #[arg(long)]
    note: Option<String>,
    /// Leaves the history as it is.
    #[arg(long)]
    no_history: bool,
    /// Said by cargo.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<ceiling::Role>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Ingest on one nats-server.
    Ingest,
    /// Ingest on three.
    Replicated,
    /// Ingest with many connections, and its start.
    Connections,
    /// Workers.
    Worker,
    /// From accept to committed.
    Latency,
    /// A tenant beside one whose agent is slow.
    Isolation,
    /// A backlog.
    Backlog,
    /// Cold connections.
    Hydration,
    /// A worker killed, and one told to go.
    Failover,
}

const SETTINGS: &str = "events of 2 KiB; R1: one nats-server synced every 2 min; R3: three on this machine, synced always; \
                        Postgres with fsync off; ingest and worker as they come, logging at info to a file; client, \
                        servers and programs share the machine";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(role) = args.role {
        return ceiling::serve(role).await;
    }
    let _ = rustls::crypto::ring::default_provider().install_default(); // for the harness's HTTP client
    let (began, watch) = (Instant::now(), Watch::start());
    let (mut report, mut failed) = (Report::default(), Vec::new());
    for part in Part::value_variants() {
        if !args.only.is_empty() && !args.only.contains(part) {
            continue;
        }
        let name = part.to_possible_value().map(|value| value.get_name().to_owned());
        let name = name.unwrap_or_default();
        eprintln!("{:>5.0} s  {name} …", began.elapsed().as_secs_f64());
        let measured = match part {
            Part::Ingest => ingest::alone(&mut report).await,
            Part::Replicated => ingest::replicated(&mut report).await,
            Part::Connections => ingest::connections(&mut report).await,
            Part::Worker => worker::throughput(&mut report).await,
            Part::Latency => latency::accept_to_committed(&mut report).await,
            Part::Isolation => isolation::beside_slow_agent(&mut report).await,
            Part::Backlog => backlog::drain(&mut report, args.full).await,
            Part::Hydration => backlog::hydration(&mut report, args.full).await,
            Part::Failover => failover::stalls(&mut report).await,
        };
        // What was measured before it, and what comes after, is worth having all the same.
        if let Err(error) = measured {
            eprintln!("{name} could not be measured: {error:#}");
            failed.push(name);
        }
    }
    let run = Arc::new(RunDir::new("bench")?);
    let (nats, postgres) = (fetch::nats_server(&run).await?, fetch::postgres_bin(&run).await?);
    let context = Context {
        at: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        note: args.note,
        full: args.full,
        machine: Machine::here(&nats, &postgres),
        others: watch.others(),
        seconds: began.elapsed().as_secs_f64(),
        settings: SETTINGS,
    };
    let line = report.json(&context)?;
    match args.json {
        true => println!("{line}"),
        false => print!("{}", report.table(&context)),
    }
    if !args.no_history {
        let history = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/history.jsonl");
        report::remember(&history, &line).with_context(|| history.display().to_string())?;
    }
    anyhow::ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}
