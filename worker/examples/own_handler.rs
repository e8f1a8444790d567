//! Worker with an own handler that repeats each message. Has the settings of `worker`.

use shared::{
    domain::{Destination, OutgoingMessage},
    slack::InboundPayload,
};
use std::process::ExitCode;
use worker::{Handler, HandlerContext, HandlerOutcome};

struct Echo;

impl Handler for Echo {
    async fn handle(
        &self,
        context: &HandlerContext<'_>,
        inbound: &InboundPayload<'_>,
    ) -> HandlerOutcome {
        let InboundPayload::Event(body) = inbound else { return HandlerOutcome::completed() };
        let Some(event) = &body.event.0 else { return HandlerOutcome::completed() };
        let (Some(text), Some(Ok(channel)), false) =
            (event.text.get(), event.channel.get().map(str::parse), event.is_by_bot())
        else {
            return HandlerOutcome::completed();
        };
        let message = serde_json::json!({ "text": format!("{text} ({})", context.id()) });
        HandlerOutcome::send(vec![OutgoingMessage {
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
