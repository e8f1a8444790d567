//! A worker whose handler does what the message says: hang, panic, or succeed; and whose decision does, too: panic, or end the
//! process.

use shared::codec::slack::Inbound;
use std::{process::ExitCode, time::Duration};
use worker::{Handler, HandlerContext, HandlerOutcome, Stage};

struct Unwell;

struct PrintsWhenDropped;

impl Drop for PrintsWhenDropped {
    fn drop(&mut self) {
        println!("cancelled in the middle");
    }
}

fn text<'a>(inbound: &'a Inbound<'_>) -> Option<&'a str> {
    match inbound {
        Inbound::Event(body) => body.event.0.as_ref().and_then(|event| event.text.get()),
        _ => None,
    }
}

impl Handler for Unwell {
    async fn handle(&self, _: &HandlerContext<'_>, inbound: &Inbound<'_>) -> HandlerOutcome {
        match text(inbound) {
            Some("hang") => {
                let cancelled = PrintsWhenDropped;
                tokio::time::sleep(Duration::from_secs(3600)).await;
                std::mem::forget(cancelled);
                println!("it woke up");
                HandlerOutcome::done()
            }
            Some("panic") => panic!("as it was told"),
            _ => HandlerOutcome::done(),
        }
    }
}

fn probe(stage: Stage, body: &[u8]) {
    let says = |text: &[u8]| body.windows(text.len()).any(|words| words == text);
    match stage {
        Stage::Decide if says(b"panic when it is decided") => panic!("as it was told"),
        Stage::Decide if says(b"end when it is decided") => std::process::abort(),
        _ => {}
    }
}

fn main() -> ExitCode {
    worker::run_with_probe(Some(Unwell), probe)
}
