//! `worker`: handles stored webhooks, with agents.

use std::process::ExitCode;
use worker::{handle::AskAgents, start};

fn main() -> ExitCode {
    start::main(AskAgents)
}
