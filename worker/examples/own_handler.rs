//! A worker whose handler is ours: it says back what it hears, and counts nothing twice. Settings as for `worker`.

use shared::{
    codec::slack::Inbound,
    types::{Destination, Outgoing},
};
use std::process::ExitCode;
use worker::handle::{Desk, Handler, Outcome};

struct Echo;

impl Handler for Echo {
    async fn handle(&self, desk: &Desk<'_>, inbound: &Inbound<'_>) -> Outcome {
        let Inbound::Event(body) = inbound else { return Outcome::done("ignored") };
        let Some(event) = &body.event.0 else { return Outcome::done("ignored") };
        let (Some(text), Some(Ok(channel)), None) =
            (event.text.get(), event.channel.get().map(str::parse), event.bot_id.get())
        else {
            return Outcome::done("ignored");
        };
        let message = serde_json::json!({ "text": format!("{text} ({})", desk.id()) });
        Outcome::say(vec![Outgoing {
            to: Destination::PostMessage {
                channel,
                thread_ts: event.thread_ts.get().map(str::to_owned),
            },
            message,
        }])
    }
}

fn main() -> ExitCode {
    worker::start::main(Echo)
}
