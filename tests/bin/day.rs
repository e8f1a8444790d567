//! Whether two builds do the same: a day of fifty connections is worked off, and what it led to kept, or compared.
//!
//! ```text
//! cargo day --effects before.json                                       in one checkout
//! cargo day --compare before.json                                       in another
//! TIDEGATE_BIN_DIR=../other/target/debug cargo day --compare before.json    or with the programs of another
//! cargo day --recording day.jsonl --effects before.json                 with one and the same recording for both
//! ```
//!
//! In: a seed, and perhaps a recording. Out: a file of effects; or every difference from such a file, by name, and a bad end if
//! there is one. Without a recording the day is sent through this build's ingest and recorded: then a change of what ingest
//! stores is a difference, too. With one, both builds work off the same bytes. Effects are always those of the recording put
//! into a fresh stream: what came live differs by what was answered in time.

use anyhow::{Context, ensure};
use clap::Parser;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};
use tests::{
    day::Day,
    effects::{Effects, report},
    recording::Recording,
};

/// Whether two builds do the same with a day's webhooks.
#[derive(Debug, Parser)]
#[command(name = "day")]
struct Options {
    /// What the day is made of.
    #[arg(long, value_name = "SEED", default_value_t = 7)]
    seed: u64,
    /// The day's recording: read if the file is there, else made and written.
    #[arg(long, value_name = "FILE")]
    recording: Option<PathBuf>,
    /// Writes down what the day led to.
    #[arg(long, value_name = "FILE")]
    effects: Option<PathBuf>,
    /// Compares with what was written down before; ends badly if something differs.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
}

/// A file of effects.
#[derive(Serialize, Deserialize)]
struct Kept {
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
    // Read first: nobody wants to hear after a minute that there is no such file.
    let before = options.compare.as_deref().map(read).transpose()?;
    if let Some(Kept { seed, .. }) = &before {
        ensure!(*seed == options.seed, "those are the effects of --seed {seed}");
    }
    let day = Day::of(options.seed)?;
    println!("the day of seed {}: {} webhooks", options.seed, day.stored());
    let recording = match options.recording.as_deref() {
        Some(file) if file.is_file() => Recording::read(file)?,
        file => made(&day, file).await?,
    };
    println!("recorded: {} messages, {}", recording.messages.len(), recording.digest());
    let world = day.work_off(&recording).await?;
    let effects = Effects::of(&world).await?;
    drop(world);
    println!("worked off: {} effects", effects.lines());
    let differences = before.map(|Kept { effects: before, .. }| match before.is_of_version_1() {
        true => before.but_for_version().differences(&effects.clone().but_for_version()),
        false => before.differences(&effects),
    });
    if let Some(file) = options.effects {
        let text = serde_json::to_string_pretty(&Kept { seed: options.seed, effects })?;
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let Some(differences) = differences else { return Ok(true) };
    println!("{}", report(&differences));
    Ok(differences.is_empty())
}

async fn made(day: &Day, file: Option<&Path>) -> anyhow::Result<Recording> {
    let (_, recording) = day.live().await?;
    if let Some(file) = file {
        recording.write(file)?;
    }
    Ok(recording)
}

fn read(file: &Path) -> anyhow::Result<Kept> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()));
    serde_json::from_str(&text?).with_context(|| format!("{} holds no effects", file.display()))
}
