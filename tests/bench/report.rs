//! Output of a run: ratios, measurements, and a line per target.

use crate::machine::Machine;
use serde::Serialize;
use std::{fmt::Write, fs::OpenOptions, io::Write as _, path::Path};

/// Results of a run.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    ratios: Vec<Figure>,
    figures: Vec<Figure>,
    targets: Vec<Target>,
    #[serde(skip)]
    part: &'static str,
}

#[derive(Debug, Serialize)]
struct Figure {
    part: &'static str,
    name: String,
    value: f64,
    unit: &'static str,
}

#[derive(Debug, Serialize)]
struct Target {
    part: &'static str,
    name: String,
    value: f64,
    bound: Bound,
    met: bool,
    unit: &'static str,
}

/// Condition of a target.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Minimum.
    AtLeast(f64),
    /// Maximum.
    AtMost(f64),
}

impl Bound {
    fn is_met(self, value: f64) -> bool {
        match self {
            Bound::AtLeast(least) => value >= least,
            Bound::AtMost(most) => value <= most,
        }
    }

    /// Returns the distance of a value from the condition, as a share of the condition.
    fn missed_by(self, value: f64) -> f64 {
        match self {
            Bound::AtLeast(least) => 1.0 - value / least,
            Bound::AtMost(most) => value / most - 1.0,
        }
    }
}

/// Conditions of a run.
#[derive(Debug, Serialize)]
pub struct Context {
    /// Time in seconds since 1970.
    pub at: u64,
    /// Note about the run.
    pub note: Option<String>,
    /// True if the largest sizes were measured.
    pub full: bool,
    /// Machine.
    pub machine: Machine,
    /// Share of the machine that other processes used.
    pub others: f64,
    /// Duration in seconds.
    pub seconds: f64,
    /// Settings of servers and programs.
    pub settings: &'static str,
}

impl Report {
    /// Sets the part of the following results.
    pub fn part(&mut self, part: &'static str) {
        self.part = part;
    }

    /// Adds a ratio.
    pub fn ratio(&mut self, name: impl Into<String>, value: f64) {
        self.ratios.push(Figure { part: self.part, name: name.into(), value, unit: "×" });
    }

    /// Adds a measurement.
    pub fn figure(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.figures.push(Figure { part: self.part, name: name.into(), value, unit });
    }

    /// Adds a target.
    pub fn target(
        &mut self,
        name: impl Into<String>,
        value: f64,
        bound: Bound,
        unit: &'static str,
    ) {
        let (name, met) = (name.into(), bound.is_met(value));
        self.targets.push(Target { part: self.part, name, value, bound, met, unit });
    }

    /// Adds a ratio with a target.
    pub fn ratio_target(&mut self, name: &str, value: f64, bound: Bound) {
        self.ratio(name, value);
        self.target(name, value, bound, "×");
    }

    /// Returns the tables.
    pub fn table(&self, context: &Context) -> String {
        let mut text = String::new();
        let mut section = |title: &str, lines: Vec<(&str, String)>| {
            let _ = writeln!(text, "\n{title}");
            let mut before = "";
            for (part, line) in lines {
                let shown = if part == before { "" } else { part };
                let _ = writeln!(text, "  {shown:<12} {line}");
                before = part;
            }
        };
        let figure =
            |f: &Figure| (f.part, format!("{:<62} {:>12} {}", f.name, number(f.value), f.unit));
        section("Ratios", self.ratios.iter().map(figure).collect());
        section("Measured", self.figures.iter().map(figure).collect());
        let target = |t: &Target| {
            let (word, bound) = match t.bound {
                Bound::AtLeast(least) => ("at least", least),
                Bound::AtMost(most) => ("at most", most),
            };
            let verdict = match t.met {
                true => "met".to_owned(),
                false => format!("missed by {:.0} %", t.bound.missed_by(t.value) * 100.0),
            };
            let wanted = format!("{word} {} {}", number(bound), t.unit);
            (t.part, format!("{:<62} {:>12}   {wanted:<18} {verdict}", t.name, number(t.value)))
        };
        section("Targets", self.targets.iter().map(target).collect());
        let _ = writeln!(
            text,
            "\n{}\n{}\nmeasured for {:.0} s; other processes used {:.0} % of the machine",
            context.machine.line(),
            context.settings,
            context.seconds,
            context.others * 100.0,
        );
        text
    }

    /// Returns the report as one line of JSON.
    pub fn json(&self, context: &Context) -> anyhow::Result<String> {
        let mut value = serde_json::to_value(self)?;
        value["context"] = serde_json::to_value(context)?;
        Ok(value.to_string())
    }
}

/// Adds a run to the history.
pub fn append_to_history(history: &Path, line: &str) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(history)?;
    Ok(writeln!(file, "{line}")?)
}

/// Formats a number with at least three significant digits and thousands separators.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => {
            let digits = format!("{value:.0}");
            let mut grouped = String::new();
            for (n, digit) in digits.chars().enumerate() {
                if n > 0 && (digits.len() - n).is_multiple_of(3) {
                    grouped.push(',');
                }
                grouped.push(digit);
            }
            grouped
        }
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
