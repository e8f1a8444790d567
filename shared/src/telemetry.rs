//! Logs and traces.
//!
//! Logs go to standard output, one line per event, as text or JSON, written by the thread of
//! `lines`. Traces go to a collector, if one is set. A failure is logged once, where it is handled,
//! with its causes ([`Chain`]). No field contains a token, secret, code, body or `response_url`.
//!
//! Ingest starts a webhook's trace and stores its context in the envelope. The span of the worker
//! is a root linked to that trace, so that a later attempt does not extend the trace of the
//! request.

use crate::{
    codec::envelope::Word,
    config::Telemetry,
    lines::{self, Dropped, LogFlushGuard},
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

/// Target of Tidegate's spans.
pub const TRACE: &str = "tidegate::trace";

/// Destination of webhook spans. Contains no ids, unlike the subject itself.
pub const DESTINATION: &str = "slack.in.{partition}.{connection}";

/// Guard of logs and traces. Flushes on drop, so that `main` keeps it to the end.
#[must_use]
pub struct Telling {
    /// Counter of dropped log lines.
    pub dropped: Dropped,
    provider: Option<SdkTracerProvider>,
    _flush: LogFlushGuard,
}

impl Drop for Telling {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take() {
            let _ = provider.shutdown(); // an unavailable collector loses the last traces
        }
    }
}

/// Starts logs, and traces if a collector is set. `service` is the name of the program in traces.
pub fn init(settings: &Telemetry, service: &'static str) -> Result<Telling, NoExporter> {
    // The exporter's TLS uses the installed provider. This workspace contains one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Spans go only to the collector. Without a collector they cost nothing.
    let filter = EnvFilter::new(format!("{},{TRACE}=off", settings.filter));
    // At level TRACE the NATS client logs every message it reads, including user text.
    let prints_bodies = |metadata: &Metadata<'_>| {
        *metadata.level() == Level::TRACE && metadata.target().starts_with("async_nats")
    };
    let filter = filter.and(filter_fn(move |metadata| !prints_bodies(metadata)));
    let (lines, dropped, flush) = lines::to_stdout();
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
        // Not an optional layer, which would create spans without a collector.
        None => registry.init(),
    }
    Ok(Telling { dropped, provider, _flush: flush })
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
    // Spans of libraries would be most of the traffic.
    let ours = filter_fn(|metadata| metadata.target() == TRACE);
    tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_filter(LevelFilter::INFO)
        .with_filter(ours)
}

/// Failure to create an exporter.
#[derive(Debug, thiserror::Error)]
#[error("TIDEGATE_OTLP_ENDPOINT is malformed; use http://collector:4318")]
pub struct NoExporter(#[source] opentelemetry_otlp::ExporterBuildError);

/// Returns the W3C trace context of a span, to be stored in the envelope. `None` without a
/// collector.
pub fn traceparent(span: &Span) -> Option<Word> {
    let context = span.context();
    let context = context.span().span_context().clone();
    let (trace, id, flags) = (context.trace_id(), context.span_id(), context.trace_flags().to_u8());
    context.is_valid().then(|| Word::new(format!("00-{trace}-{id}-{flags:02x}"))).flatten()
}

/// Links a span to the trace context of an envelope. Ignores an invalid context.
pub fn link(span: &Span, traceparent: &Word) {
    let parts: Vec<&str> = traceparent.as_str().split('-').collect();
    let [_, trace, id, flags] = parts[..] else { return };
    let parsed = (TraceId::from_hex(trace), SpanId::from_hex(id), u8::from_str_radix(flags, 16));
    if let (Ok(trace), Ok(id), Ok(flags)) = parsed {
        let flags = TraceFlags::new(flags);
        span.add_link(SpanContext::new(trace, id, flags, true, TraceState::default()));
    }
}

/// Displays an error with all its causes on one line, without repetitions. `%error` shows only the
/// first.
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = successors(Some(self.0), |error| (*error).source()).map(ToString::to_string);
        let line = texts
            .reduce(|line, text| if line.ends_with(&text) { line } else { line + ": " + &text });
        f.write_str(&line.unwrap_or_default())
    }
}
