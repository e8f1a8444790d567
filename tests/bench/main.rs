//! Benchmark (`cargo bench`): speed of Tidegate beside the fastest possible programs on the same
//! machine.
//!
//! Starts real servers and release builds of the real programs. Prints ratios, measurements and a
//! line per target, as tables or as JSON. Adds each run to `history.jsonl`. The README beside this
//! file explains the figures.
//!
//! ```text
//! client, tenants              webhooks in a closed or open loop
//! baseline                     (a), (b) and (b′), the least code
//! commits                      (e), the commit statement alone
//! ingest_fixture, worker_fixture          servers of a measurement
//! ingest, hostile, worker, latency, isolation, backlog, failover      measurements
//! interleaved, machine, report            comparison, machine, output
//! ```
//!
//! No target is asserted, because a slow machine is not a defect.

mod against;
mod backlog;
mod baseline;
mod client;
mod commits;
mod failover;
mod hostile;
mod ingest;
mod isolation;
mod latency;
mod machine;
mod report;
mod ingest_fixture;
mod tenants;
mod interleaved;
mod worker;
mod worker_fixture;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use machine::{Machine, Watch};
use report::{Context, Report};
use std::{
    path::Path,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};
use tests::{fetch, run_dir::RunDir};

/// Measure Tidegate against its baselines: cargo bench, or cargo bench -- --only ingest.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --", bin_name = "cargo bench --", subcommand_negates_reqs = true)]
struct Args {
    /// Also measure the largest sizes: a backlog of 1,000,000 webhooks, 15,000 cold connections.
    #[arg(long)]
    full: bool,
    /// Measure only these parts, comma-separated. Default: all.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Print JSON instead of tables.
    #[arg(long)]
    json: bool,
    /// Add a note to this run in the history.
    #[arg(long)]
    note: Option<String>,
    /// Compare with a benchmark program of another checkout, in turns.
    #[arg(long, value_name = "PROGRAM")]
    against: Option<std::path::PathBuf>,
    /// Set the number of rounds of the comparison.
    #[arg(long, default_value_t = 3, requires = "against")]
    rounds: usize,
    /// Do not add the run to the history.
    #[arg(long)]
    no_history: bool,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<baseline::Role>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Ingest with one nats-server.
    Ingest,
    /// Ingest with three nats-servers.
    Replicated,
    /// Ingest with many connections, and its startup.
    Connections,
    /// Ingest beside hostile clients.
    Hostile,
    /// Workers.
    Worker,
    /// Time from receipt to commit.
    Latency,
    /// A tenant beside a tenant with a slow agent.
    Isolation,
    /// A backlog.
    Backlog,
    /// Cold connections.
    Hydration,
    /// Stalls after a worker is killed or stopped.
    Failover,
}

const SETTINGS: &str = "events of 2 KiB; R1: one nats-server synced every 2 min; R3: three on this machine, synced always; \
                        Postgres with fsync off; ingest and worker as they come, logging at info to a file; client, \
                        servers and programs share the machine";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(role) = args.role {
        return baseline::serve(role).await;
    }
    let names = |part: &Part| part.to_possible_value().map(|value| value.get_name().to_owned());
    if let Some(other) = args.against {
        let parts: Vec<String> = args.only.iter().filter_map(names).collect();
        return against::compare(&other, &parts, args.rounds);
    }
    let _ = rustls::crypto::ring::default_provider().install_default(); // for the harness's HTTP client
    let (began, watch) = (Instant::now(), Watch::start());
    let (mut report, mut failed) = (Report::default(), Vec::new());
    for part in Part::value_variants() {
        if !args.only.is_empty() && !args.only.contains(part) {
            continue;
        }
        let name = names(part).unwrap_or_default();
        eprintln!("{:>5.0} s  {name} …", began.elapsed().as_secs_f64());
        let measured = match part {
            Part::Ingest => ingest::alone(&mut report).await,
            Part::Replicated => ingest::replicated(&mut report).await,
            Part::Connections => ingest::connections(&mut report).await,
            Part::Hostile => hostile::acks(&mut report).await,
            Part::Worker => worker::throughput(&mut report).await,
            Part::Latency => latency::accept_to_committed(&mut report).await,
            Part::Isolation => isolation::beside_slow_agent(&mut report).await,
            Part::Backlog => backlog::drain(&mut report, args.full).await,
            Part::Hydration => backlog::hydration(&mut report, args.full).await,
            Part::Failover => failover::stalls(&mut report).await,
        };
        // The results of other parts are still printed.
        if let Err(error) = measured {
            eprintln!("failed to measure {name}: {error:#}");
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
        report::append_to_history(&history, &line)
            .with_context(|| format!("failed to write {}", history.display()))?;
    }
    anyhow::ensure!(failed.is_empty(), "failed to measure: {}", failed.join(", "));
    Ok(())
}
