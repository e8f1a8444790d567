//! Event stream of an agent: server-sent events with limits of size and silence.

use super::{
    AgentError, FailureKind,
    event_filter::{EVENT_BYTES_MAX, EventFilter},
    events::{AgentEvent, parse_event},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream::try_unfold};
use shared::{runtime::telemetry::ErrorChain, store::Agent};
use sse_stream::{Sse, SseByteStream};
use std::{pin::Pin, time::Duration};

/// Maximum characters of an event's id. A longer id is ignored.
const ID_CHARS_MAX: usize = 256;

/// Event with the id by which the agent resumes after it.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamEvent {
    pub id: Option<String>,
    pub event: AgentEvent,
}

/// Open stream of an agent. The call ends when it is dropped.
pub struct AgentStream {
    agent: String,
    events: Pin<Box<dyn Stream<Item = Result<Sse, sse_stream::Error>> + Send>>,
}

/// Failure to read the next bytes.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}")]
struct ReadError {
    kind: FailureKind,
    reason: String,
}

impl AgentStream {
    /// Creates the stream of a response. It fails if no byte arrives for `silence`.
    pub(super) fn of_response(
        agent: &Agent,
        response: reqwest::Response,
        silence: Duration,
    ) -> Self {
        let chunks = try_unfold(response, move |mut response| async move {
            let next = tokio::time::timeout(silence, response.chunk()).await;
            let failed = |reason| ReadError { kind: FailureKind::Failing, reason };
            let next = next.map_err(|_| failed(format!("silent for {silence:?}")))?;
            let next = next.map_err(|error| ReadError {
                kind: FailureKind::Unavailable,
                reason: ErrorChain(&error.without_url()).to_string(),
            })?;
            Ok(next.map(|chunk| (chunk, response)))
        });
        Self::of_chunks(agent, chunks)
    }

    fn of_chunks(
        agent: &Agent,
        chunks: impl Stream<Item = Result<Bytes, ReadError>> + Send + 'static,
    ) -> Self {
        let mut filter = EventFilter::default();
        let filtered = chunks.map(move |chunk| {
            filter.push(chunk?).map_err(|_| ReadError {
                kind: FailureKind::Unusable,
                reason: format!("an event exceeds {EVENT_BYTES_MAX} bytes"),
            })
        });
        let events = Box::pin(SseByteStream::new(Box::pin(filtered)));
        Self { agent: agent.id.to_string(), events }
    }

    /// Returns the next event that is not ignored, or `None` at the end of the response.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<StreamEvent>, AgentError> {
        while let Some(sse) = self.events.next().await {
            let sse = sse.map_err(|error| self.failure(error))?;
            let event = parse_event(
                sse.event.as_deref().unwrap_or_default(),
                sse.data.as_deref().unwrap_or_default(),
            );
            if event != AgentEvent::Ignored {
                return Ok(Some(StreamEvent {
                    id: sse.id.filter(|id| is_header_value(id)),
                    event,
                }));
            }
        }
        Ok(None)
    }

    fn failure(&self, error: sse_stream::Error) -> AgentError {
        let (kind, reason) = match error {
            sse_stream::Error::Body(error) => match error.downcast::<ReadError>() {
                Ok(error) => (error.kind, error.reason),
                Err(error) => (FailureKind::Unavailable, error.to_string()),
            },
            error => (FailureKind::Unusable, error.to_string()),
        };
        let message = format!("agent {}: its stream failed: {reason}", self.agent);
        AgentError { kind, message, retry_after: None }
    }
}

/// Returns whether an id can be sent back in a header.
fn is_header_value(id: &str) -> bool {
    !id.is_empty() && id.len() <= ID_CHARS_MAX && id.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use futures_util::stream;

    /// Returns the events in the chunks, and the failure if there is one.
    pub(crate) async fn events_of(
        agent: &Agent,
        chunks: Vec<Bytes>,
    ) -> (Vec<StreamEvent>, Option<AgentError>) {
        let chunks = stream::iter(chunks.into_iter().map(Ok));
        let (mut stream, mut events) = (AgentStream::of_chunks(agent, chunks), Vec::new());
        loop {
            match stream.next().await {
                Ok(Some(event)) => events.push(event),
                Ok(None) => return (events, None),
                Err(error) => return (events, Some(error)),
            }
        }
    }
}
