//! A worker whose stages panic: always at a webhook with the text `panic:<stage>`, and once at some
//! other webhooks.

use std::{
    fs::File,
    hash::{DefaultHasher, Hash, Hasher},
    process::ExitCode,
};
use worker::{NoHandler, Stage};

/// A stage panics once at one in this many webhooks.
const ONE_IN: u64 = 24;

fn probe(stage: Stage, subject: &[u8]) {
    let name = match stage {
        Stage::Parse => "parse",
        Stage::Decide => "decide",
        Stage::Attempt => "attempt",
        Stage::Send => "send",
    };
    let always = format!("panic:{name}");
    if subject.windows(always.len()).any(|words| words == always.as_bytes()) {
        panic!("probe: {name}, always");
    }
    if stage == Stage::Decide {
        return; // a single panic of a decision makes a dead letter
    }
    let mut hasher = DefaultHasher::new();
    (name, subject).hash(&mut hasher);
    let hash = hasher.finish();
    // The file records the panic for the other workers of the run.
    if hash.is_multiple_of(ONE_IN) && File::create_new(format!("panicked-{hash:016x}")).is_ok() {
        panic!("probe: {name}, once");
    }
}

fn main() -> ExitCode {
    worker::run_with_probe(None::<NoHandler>, probe)
}
