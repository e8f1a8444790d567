//! A worker whose handler does what it is told: hang, panic, or be well.

use shared::codec::slack::Inbound;
use std::{process::ExitCode, time::Duration};
use worker::handle::{Desk, Handler, Outcome};

struct Unwell;

struct SaysWhenDropped;

impl Drop for SaysWhenDropped {
    fn drop(&mut self) {
        println!("cancelled in the middle");
    }
}

impl Handler for Unwell {
    async fn handle(&self, _: &Desk<'_>, inbound: &Inbound<'_>) -> Outcome {
        let text = match inbound {
            Inbound::Event(body) => body.event.0.as_ref().and_then(|event| event.text.get()),
            _ => None,
        };
        match text {
            Some("hang") => {
                let cancelled = SaysWhenDropped;
                tokio::time::sleep(Duration::from_secs(3600)).await;
                std::mem::forget(cancelled);
                println!("it woke up");
                Outcome::done("woken")
            }
            Some("panic") => panic!("as it was told"),
            _ => Outcome::done("well"),
        }
    }
}

fn main() -> ExitCode {
    worker::start::main(Unwell)
}
