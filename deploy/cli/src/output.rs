//! Output of commands: lines, JSON lines, tables and the exit code.
//!
//! Commands pass text from Slack, agents and users through [`sanitize`], so that it cannot control
//! the terminal.

use serde::Serialize;
use shared::{operations::OperationError, runtime::telemetry::ErrorChain};
use std::{
    fmt,
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

/// Name of a table column, and true if its cells are numbers, which are right-aligned.
pub type Column = (&'static str, bool);

/// Prints a line.
pub fn print_line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Prints a value as one line of JSON.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(print_line(&serde_json::to_string(value)?)?)
}

/// Prints items as JSON, one per line, or as a table.
pub fn print_list<T: Serialize>(
    items: &[T],
    as_json: bool,
    columns: &[Column],
    row: fn(&T) -> Vec<String>,
) -> anyhow::Result<()> {
    if as_json {
        return items.iter().try_for_each(print_json);
    }
    Ok(print_line(&render_table(columns, items, row))?)
}

/// Returns a table with a row per item. The last column is not padded.
pub fn render_table<T>(columns: &[Column], items: &[T], row: impl Fn(&T) -> Vec<String>) -> String {
    let names = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
    let rows: Vec<_> = std::iter::once(names).chain(items.iter().map(row)).collect();
    let width = |n: usize| rows.iter().map(|row| row[n].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(columns).zip(&widths).map(|((cell, (_, number)), &width)| {
            if *number { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns one line per fact: its name and its value.
pub fn render_facts(facts: &[(&str, String)]) -> String {
    let lines = facts.iter().map(|(name, fact)| format!("{name:<14}  {fact}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Prints the result of a pause (`paused`) or resumption. `changed` is false if it had no effect.
pub fn print_paused(
    subject: &str,
    paused: bool,
    changed: bool,
    as_json: bool,
) -> anyhow::Result<()> {
    if as_json {
        return print_json(&serde_json::json!({ "paused": paused, "changed": changed }));
    }
    let state = match (paused, changed) {
        (true, true) => "paused",
        (true, false) => "was already paused",
        (false, true) => "resumed",
        (false, false) => "was not paused",
    };
    Ok(print_line(&format!("{subject} {state}"))?)
}

/// Error of a command that found nothing to show or change. The exit code is 3.
#[derive(Debug)]
pub struct NotFoundError(String);

impl fmt::Display for NotFoundError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotFoundError {}

/// Returns a [`NotFoundError`] with this message.
pub fn not_found<T>(message: impl Into<String>) -> anyhow::Result<T> {
    Err(NotFoundError(message.into()).into())
}

/// Converts [`OperationError::NotFound`] to [`NotFoundError`], naming the command that lists the
/// rows.
pub fn require_found<T>(
    result: Result<T, OperationError>,
    list_command: &str,
) -> anyhow::Result<T> {
    match result {
        Err(OperationError::NotFound(row)) => {
            not_found(format!("{row} not found; list them with {list_command}"))
        }
        result => Ok(result?),
    }
}

/// Returns the text with each control character, line breaks included, replaced by U+FFFD.
pub fn sanitize(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Returns the sanitized text, or a dash if the text is absent or empty.
pub fn or_dash(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).map_or_else(|| "-".into(), sanitize)
}

/// Returns the text in an ANSI color if standard output is a terminal.
pub fn colorize(color: &str, text: &str) -> String {
    if io::stdout().is_terminal() { format!("\x1b[{color}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Replaces the progress line if standard error is a terminal.
pub fn print_progress(text: &str) {
    if io::stderr().is_terminal() {
        let _ = write!(io::stderr(), "\r\x1b[K{text}");
    }
}

/// Prints a line to standard error. Succeeds if the reader has closed the pipe.
pub fn print_note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints a warning to standard error.
pub fn print_warning(text: &str) {
    print_note(&format!("warning: {text}"));
}

/// Removes the progress line.
pub fn clear_progress() {
    print_progress("");
}

/// Prints the error of a command, if any, and returns its exit code.
pub fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            print_note(&ErrorChain(error.as_ref()).to_string());
            if error.is::<NotFoundError>() { ExitCode::from(3) } else { ExitCode::FAILURE }
        }
    }
}

/// Returns true if the reader has closed the pipe, as in `tidegate tail | head`.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
