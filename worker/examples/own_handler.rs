//! Worker with its own handler, which repeats each message. Settings are those of `worker`.

use shared::{
    codec::slack::Inbound,
    types::{Destination, Outgoing},
};
use std::process::ExitCode;
use worker::{Handler, HandlerContext, HandlerOutcome};

struct Echo;

impl Handler for Echo {
    async fn handle(&self, context: &HandlerContext<'_>, inbound: &Inbound<'_>) -> HandlerOutcome {
        let Inbound::Event(body) = inbound else { return HandlerOutcome::done() };
        let Some(event) = &body.event.0 else { return HandlerOutcome::done() };
        let (Some(text), Some(Ok(channel)), None) =
            (event.text.get(), event.channel.get().map(str::parse), event.bot_id.get())
        else {
            return HandlerOutcome::done();
        };
        let message = serde_json::json!({ "text": format!("{text} ({})", context.id()) });
        HandlerOutcome::send(vec![Outgoing {
            to: Destination::PostMessage {
                channel,
                thread_ts: event.thread_ts.get().map(str::to_owned),
            },
            message,
        }])
    }
}

fn main() -> ExitCode {
    worker::run(Some(Echo))
}
