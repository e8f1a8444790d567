//! Logs to standard output, one line an event; text on a terminal or for people, JSON for machines. Traces, when there
//! is a collector to send them to.
//!
//! Lines go out by a thread of their own (`lines`).
//!
//! A failure is logged once, where it is decided, with its whole chain ([`Chain`]). Never in a field: a
//! token, a secret, a code, a body, a `response_url`.
//!
//! A webhook's trace is begun by ingest and written into the envelope; the worker's span is a root of its own, linked to
//! it: a webhook that is tried again an hour later must not stretch the request's trace to an hour.

use crate::{
    codec::envelope::Word,
    config::Telemetry,
    lines::{self, Dropped, Rest},
};
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use std::{error::Error, fmt, io::IsTerminal, iter::successors};
use tracing::{Level, Metadata, Span, Subscriber, level_filters::LevelFilter};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt, filter_fn},
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

/// The target of our spans.
pub const TRACE: &str = "tidegate::trace";

/// What spans of a webhook in the stream call its subject: never the subject itself, which holds an id.
pub const DESTINATION: &str = "slack.in.{partition}.{connection}";

/// Logs and traces of this process. Sends what is left when it is dropped: keep it to the end.
#[must_use]
pub struct Telling {
    /// Lines of the log that nobody took.
    pub dropped: Dropped,
    provider: Option<SdkTracerProvider>,
    _rest: Rest,
}

impl Drop for Telling {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take() {
            let _ = provider.shutdown(); // a collector that is away loses its last traces
        }
    }
}

/// Starts logs, and traces if there is a collector. `service` is this program's name in them.
pub fn init(settings: &Telemetry, service: &'static str) -> Result<Telling, NoExporter> {
    // Also the exporter's TLS takes whichever provider is installed; there is one in this tree.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Spans go to the collector alone: without one they cost nothing.
    let filter = EnvFilter::new(format!("{},{TRACE}=off", settings.filter));
    // At TRACE the NATS client prints every message it reads, with what users wrote and typed.
    let prints_bodies = |metadata: &Metadata<'_>| {
        *metadata.level() == Level::TRACE && metadata.target().starts_with("async_nats")
    };
    let filter = filter.and(filter_fn(move |metadata| !prints_bodies(metadata)));
    let (lines, dropped, rest) = lines::to_stdout();
    let logs = tracing_subscriber::fmt::layer().with_writer(lines);
    let logs: Box<dyn Layer<Registry> + Send + Sync> = if settings.json {
        logs.json().flatten_event(true).with_filter(filter).boxed()
    } else {
        logs.with_ansi(std::io::stdout().is_terminal()).with_filter(filter).boxed()
    };
    let provider = settings
        .otlp_endpoint
        .as_deref()
        .map(|endpoint| provider(endpoint, service))
        .transpose()?;
    let registry = tracing_subscriber::registry().with(logs);
    match &provider {
        Some(provider) => registry.with(layer(provider)).init(),
        // Not a layer that is none: spans would be made for it all the same.
        None => registry.init(),
    }
    Ok(Telling { dropped, provider, _rest: rest })
}

fn provider(endpoint: &str, service: &'static str) -> Result<SdkTracerProvider, NoExporter> {
    let endpoint = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
    let exporter =
        SpanExporter::builder().with_http().with_endpoint(endpoint).build().map_err(NoExporter)?;
    let resource = Resource::builder().with_service_name(service).build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

fn layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let tracer = provider.tracer("tidegate");
    // Only our own spans: libraries' would be most of the traffic.
    let ours = filter_fn(|metadata| metadata.target() == TRACE);
    tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_filter(LevelFilter::INFO)
        .with_filter(ours)
}

/// There is no exporter for this address.
#[derive(Debug, thiserror::Error)]
#[error("TIDEGATE_OTLP_ENDPOINT is malformed: say http://collector:4318")]
pub struct NoExporter(#[source] opentelemetry_otlp::ExporterBuildError);

/// A span's W3C trace context, to be carried through the stream; `None` without a collector.
pub fn traceparent(span: &Span) -> Option<Word> {
    let context = span.context();
    let context = context.span().span_context().clone();
    let (trace, id, flags) = (context.trace_id(), context.span_id(), context.trace_flags().to_u8());
    context.is_valid().then(|| Word::new(format!("00-{trace}-{id}-{flags:02x}"))).flatten()
}

/// Links a span to the one whose trace context came through the stream. What is no context is left out.
pub fn link(span: &Span, traceparent: &Word) {
    let parts: Vec<&str> = traceparent.as_str().split('-').collect();
    let [_, trace, id, flags] = parts[..] else { return };
    let parsed = (TraceId::from_hex(trace), SpanId::from_hex(id), u8::from_str_radix(flags, 16));
    if let (Ok(trace), Ok(id), Ok(flags)) = parsed {
        let flags = TraceFlags::new(flags);
        span.add_link(SpanContext::new(trace, id, flags, true, TraceState::default()));
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
