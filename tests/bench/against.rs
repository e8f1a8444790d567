//! Comparison with the benchmark of another checkout, in turns.
//!
//! Runs this program and the other program as child processes, with the same parts. Their order
//! alternates from round to round. Figures with equal names are compared: a ratio is the median of
//! the ratios within each round.

use crate::interleaved::Series;
use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Stdio},
};

/// Figures of one program by part and name: values (one per round) and unit.
type Figures = BTreeMap<(String, String), (Series, String)>;

/// Prints the figures of both programs and their ratios.
pub fn compare(other: &Path, parts: &[String], rounds: usize) -> anyhow::Result<()> {
    ensure!(
        other.is_file(),
        "no benchmark program at {}; build it with cargo bench -p tests --no-run",
        other.display()
    );
    let this = std::env::current_exe()?;
    let (mut ours, mut theirs) = (Figures::default(), Figures::default());
    for round in 0..rounds {
        let mut turns = [(this.as_path(), &mut ours), (other, &mut theirs)];
        if round % 2 == 1 {
            turns.reverse();
        }
        for (program, figures) in turns {
            eprintln!("round {} of {rounds}: {}", round + 1, program.display());
            add(figures, &run(program, parts)?);
        }
    }
    println!("{:<12} {:<50} {:>10} {:>10} {:>7}", "part", "figure", "this", "other", "ratio");
    for ((part, name), (series, unit)) in &ours {
        let Some((other, _)) = theirs.get(&(part.clone(), name.clone())) else { continue };
        let (this, that, ratio) = (series.median(), other.median(), series.to(other));
        println!("{part:<12} {name:<50} {this:>10.2} {that:>10.2} {ratio:>7.2} {unit}");
    }
    Ok(())
}

fn run(program: &Path, parts: &[String]) -> anyhow::Result<Value> {
    let mut command = Command::new(program);
    command.args(["--bench", "--json", "--no-history"]).stderr(Stdio::inherit());
    if !parts.is_empty() {
        command.arg("--only").arg(parts.join(","));
    }
    let output =
        command.output().with_context(|| format!("failed to run {}", program.display()))?;
    ensure!(output.status.success(), "{} failed: {}", program.display(), output.status);
    let text = String::from_utf8(output.stdout)?;
    Ok(serde_json::from_str(text.lines().last().unwrap_or_default())?)
}

fn add(figures: &mut Figures, report: &Value) {
    let lists = [&report["figures"], &report["targets"]];
    for figure in lists.into_iter().flat_map(|list| list.as_array().into_iter().flatten()) {
        let text = |field: &str| figure[field].as_str().unwrap_or_default().to_owned();
        let Some(value) = figure["value"].as_f64().filter(|_| text("unit") != "×") else {
            continue;
        };
        let (series, unit) = figures.entry((text("part"), text("name"))).or_default();
        series.push(value);
        *unit = text("unit");
    }
}
