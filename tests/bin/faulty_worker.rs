//! A worker whose handler hangs, panics or succeeds, and whose decision panics or ends the process,
//! as the text of the message requests.

use shared::slack::InboundPayload;
use std::{process::ExitCode, time::Duration};
use worker::{Handler, HandlerContext, HandlerOutcome, Stage};

struct FaultyHandler;

struct CancelNotice;

impl Drop for CancelNotice {
    fn drop(&mut self) {
        println!("cancelled in the middle");
    }
}

fn text<'a>(inbound: &'a InboundPayload<'_>) -> Option<&'a str> {
    match inbound {
        InboundPayload::Event(body) => body.event.0.as_ref().and_then(|event| event.text.get()),
        _ => None,
    }
}

impl Handler for FaultyHandler {
    async fn handle(&self, _: &HandlerContext<'_>, inbound: &InboundPayload<'_>) -> HandlerOutcome {
        match text(inbound) {
            Some("hang") => {
                let cancelled = CancelNotice;
                tokio::time::sleep(Duration::from_secs(3600)).await;
                std::mem::forget(cancelled);
                println!("it woke up");
                HandlerOutcome::completed()
            }
            Some("panic") => panic!("requested by the message"),
            _ => HandlerOutcome::completed(),
        }
    }
}

fn probe(stage: Stage, body: &[u8]) {
    let has = |text: &[u8]| body.windows(text.len()).any(|words| words == text);
    match stage {
        Stage::Decide if has(b"panic when it is decided") => panic!("requested by the message"),
        Stage::Decide if has(b"end when it is decided") => std::process::abort(),
        _ => {}
    }
}

fn main() -> ExitCode {
    worker::run_with_probe(Some(FaultyHandler), probe)
}
