//! Logs to standard output, one line an event; text on a terminal or for people, JSON for machines.
//!
//! A failure is logged once, where it is decided, with its whole chain ([`Chain`]). Never in a field: a
//! token, a secret, a code, a body, a `response_url`.

use crate::config::Telemetry;
use std::{error::Error, fmt, io::IsTerminal, iter::successors};
use tracing_subscriber::EnvFilter;

/// Starts logging.
pub fn init(settings: &Telemetry) {
    let filter = EnvFilter::new(&settings.filter);
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stdout);
    if settings.json {
        logs.json().flatten_event(true).init();
    } else {
        logs.with_ansi(std::io::stdout().is_terminal()).init();
    }
}

/// An error with all its causes on one line, none twice. `%error` would stop at the first.
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = successors(Some(self.0), |error| (*error).source()).map(ToString::to_string);
        let line = texts
            .reduce(|line, text| if line.ends_with(&text) { line } else { line + ": " + &text });
        f.write_str(&line.unwrap_or_default())
    }
}
