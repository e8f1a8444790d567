//! What the verbs print: lines, JSON lines, tables with aligned columns. Text that came from outside can't steer the
//! terminal.

use serde::Serialize;
use std::{
    fmt,
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

/// A column's name, and whether it is numbers.
pub type Column = (&'static str, bool);

/// Prints a line.
pub fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Prints a thing as one line of JSON.
pub fn json(thing: &impl Serialize) -> anyhow::Result<()> {
    Ok(line(&serde_json::to_string(thing)?)?)
}

/// Prints a table. Numbers stand to the right of their column; the last column is not padded.
pub fn table(columns: &[Column], rows: &[Vec<String>]) -> io::Result<()> {
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(n, (name, _))| {
            let cells = rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.chars().count());
            cells.max().unwrap_or(0).max(name.chars().count())
        })
        .collect();
    let names = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
    for row in std::iter::once(&names).chain(rows) {
        let cells = row.iter().zip(columns).zip(&widths).map(|((cell, (_, number)), &width)| {
            if *number { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        line(cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// Prints a thing's facts, a line each.
pub fn facts(facts: &[(&str, String)]) -> anyhow::Result<()> {
    for (name, fact) in facts {
        line(&format!("{name:<14}  {fact}"))?;
    }
    Ok(())
}

/// Nothing is there of what was asked for, or to be acted on. The exit code is 3.
#[derive(Debug)]
pub struct NothingMatched(String);

impl fmt::Display for NothingMatched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NothingMatched {}

/// Ends a verb with [`NothingMatched`].
pub fn nothing_matched<T>(what: impl Into<String>) -> anyhow::Result<T> {
    Err(NothingMatched(what.into()).into())
}

/// The text on one line, without control characters.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The text, or a dash.
pub fn or_dash(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).map_or_else(|| "-".into(), plain)
}

/// The text in a colour, when a person looks at it.
pub fn painted(colour: &str, text: &str) -> String {
    if io::stdout().is_terminal() {
        format!("\x1b[{colour}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// Says how far a long run is, when a person watches. Each line takes the place of the one before.
pub fn progress(text: &str) {
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
    }
}

/// Clears the line of [`progress`].
pub fn progress_over() {
    progress("");
}

/// Returns the exit code for the result of a command, and prints its error.
pub fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            if error.is::<NothingMatched>() { ExitCode::from(3) } else { ExitCode::FAILURE }
        }
    }
}

/// Returns true if the reader of the output stopped reading, as in `tidegate tail | head`.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
