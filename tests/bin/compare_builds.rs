//! Compares two builds by their effects on a scenario: a day of fifty connections.
//!
//! ```text
//! cargo compare --effects before.json                                       in one checkout
//! cargo compare --compare before.json                                       in another
//! TIDEGATE_BIN_DIR=../other/target/debug cargo compare --compare before.json    with other programs
//! cargo compare --recording day.jsonl --effects before.json                 with one recording for both
//! ```
//!
//! Writes a file of effects, or prints the differences to such a file and exits 1 if there are any.
//! Without a recording the scenario is sent through this build's ingest and recorded, so that
//! changes of what ingest stores are also differences. With a recording both builds process the
//! same bytes. The effects come from processing the recording in a new stream, because those of a
//! live run depend on which answers were in time.

use anyhow::{Context, ensure};
use clap::Parser;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};
use tests::{
    effects::{Effects, report},
    recording::Recording,
    scenario::Scenario,
};

/// Compare two builds by their effects on a scenario. Exits 1 if they differ.
#[derive(Debug, Parser)]
#[command(name = "cargo compare")]
struct Options {
    /// Set the seed of the scenario.
    #[arg(long, value_name = "SEED", default_value_t = 7)]
    seed: u64,
    /// Read the recording from this file if it exists, else write it.
    #[arg(long, value_name = "FILE")]
    recording: Option<PathBuf>,
    /// Write the effects to a file.
    #[arg(long, value_name = "FILE")]
    effects: Option<PathBuf>,
    /// Compare with the effects in a file; exit 1 if they differ.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
}

/// A file of effects.
#[derive(Serialize, Deserialize)]
struct EffectsFile {
    seed: u64,
    effects: Effects,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Options::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

async fn run(options: Options) -> anyhow::Result<bool> {
    // Read before the scenario runs, so that a missing file is reported at once.
    let before = options.compare.as_deref().map(read).transpose()?;
    if let Some(EffectsFile { seed, .. }) = &before {
        ensure!(*seed == options.seed, "the file has effects of --seed {seed}; use the same seed");
    }
    let scenario = Scenario::of(options.seed)?;
    println!("scenario of seed {}: {} webhooks", options.seed, scenario.stored());
    let recording = match options.recording.as_deref() {
        Some(file) if file.is_file() => Recording::read(file)?,
        file => record(&scenario, file).await?,
    };
    println!("recorded: {} messages, {}", recording.messages.len(), recording.digest());
    let env = scenario.process(&recording).await?;
    let effects = Effects::of(&env).await?;
    drop(env);
    println!("processed: {} effects", effects.lines());
    let differences =
        before.map(|EffectsFile { effects: before, .. }| match before.is_of_version_1() {
            true => before
                .without_version_differences()
                .differences(&effects.clone().without_version_differences()),
            false => before.differences(&effects),
        });
    if let Some(file) = options.effects {
        let text = serde_json::to_string_pretty(&EffectsFile { seed: options.seed, effects })?;
        fs::write(&file, text).with_context(|| format!("failed to write {}", file.display()))?;
    }
    let Some(differences) = differences else { return Ok(true) };
    println!("{}", report(&differences));
    Ok(differences.is_empty())
}

async fn record(scenario: &Scenario, file: Option<&Path>) -> anyhow::Result<Recording> {
    let (_, recording) = scenario.run_live().await?;
    if let Some(file) = file {
        recording.write(file)?;
    }
    Ok(recording)
}

fn read(file: &Path) -> anyhow::Result<EffectsFile> {
    let text =
        fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()));
    serde_json::from_str(&text?)
        .with_context(|| format!("{} is not a file of effects", file.display()))
}
