//! Logs and traces.
//!
//! Logs go to standard output, one line per event, as text or JSON, written by the thread of
//! `log_writer`. Traces go to a collector, if OpenTelemetry's variables name one. A failure is
//! logged once, where it is handled, with its causes ([`ErrorChain`]). No field contains a token,
//! secret, code, body or `response_url`.
//!
//! Ingest starts a webhook's trace and stores its context in the envelope. The span of the worker
//! is a root linked to that trace, so that a later attempt does not extend the trace of the
//! request.

use crate::{
    domain::HeaderToken,
    runtime::{
        DroppedLines,
        config::{LogFormat, TelemetryConfig},
        log_writer::{self, LogFlushGuard},
    },
};
use opentelemetry::{
    Key, KeyValue,
    trace::{
        SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
    },
};
use opentelemetry_otlp::{
    OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, SpanExporter,
};
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
pub const TRACE_TARGET: &str = "tidegate::trace";

/// Help text on the settings of traces. They have no flags: the OpenTelemetry SDK reads them.
pub const TRACE_SETTINGS: &str = "\
Traces: OTEL_EXPORTER_OTLP_ENDPOINT names a collector for OTLP over HTTP, as http://collector:4318;
without a collector there are no traces. OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER and the
other variables of the OpenTelemetry SDK apply.";

/// Destination of webhook spans. Contains no ids, unlike the subject itself.
pub const DESTINATION_TEMPLATE: &str = "slack.in.{partition}.{connection}";

/// Guard of logs and traces. Flushes on drop: `main` keeps it until the end.
#[must_use]
pub struct TelemetryGuard {
    /// Counter of dropped log lines.
    pub dropped: DroppedLines,
    provider: Option<SdkTracerProvider>,
    _flush: LogFlushGuard,
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take() {
            let _ = provider.shutdown(); // an unavailable collector loses the last traces
        }
    }
}

/// Returns whether the environment names a collector for traces.
pub fn has_collector() -> Result<bool, CollectorError> {
    names_collector(|variable| std::env::var(variable).ok())
}

/// Checks both variables that may name a collector. An empty one counts as unset, as the
/// OpenTelemetry specification requires.
fn names_collector(value: impl Fn(&str) -> Option<String>) -> Result<bool, CollectorError> {
    let mut named = false;
    for variable in [OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, OTEL_EXPORTER_OTLP_ENDPOINT] {
        let Some(url) = value(variable).filter(|url| !url.is_empty()) else { continue };
        let host = ["http://", "https://"].iter().find_map(|scheme| url.strip_prefix(scheme));
        if host.is_none_or(|host| host.is_empty() || host.contains(char::is_whitespace)) {
            return Err(CollectorError(variable));
        }
        named = true;
    }
    Ok(named)
}

/// Malformed URL of a collector. The value is omitted because it may contain a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is malformed: use a URL, as in http://collector:4318")]
pub struct CollectorError(&'static str);

/// Starts logs, and traces if a collector is named. `service` is the name of the program in traces,
/// unless the environment has another.
pub fn init(
    settings: &TelemetryConfig,
    service: &'static str,
) -> Result<TelemetryGuard, TelemetryError> {
    // The exporter's TLS uses the crypto provider of the process. Fails if it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Spans go only to the collector. Without a collector they cost nothing.
    let filter = EnvFilter::new(format!("{},{TRACE_TARGET}=off", settings.filter));
    // At level TRACE the NATS client logs every message it reads, including user text.
    let prints_bodies = |metadata: &Metadata<'_>| {
        *metadata.level() == Level::TRACE && metadata.target().starts_with("async_nats")
    };
    let filter = filter.and(filter_fn(move |metadata| !prints_bodies(metadata)));
    let (lines, dropped, flush) = log_writer::start();
    let logs = tracing_subscriber::fmt::layer().with_writer(lines);
    let logs: Box<dyn Layer<Registry> + Send + Sync> = match settings.format {
        LogFormat::Json => logs.json().flatten_event(true).with_filter(filter).boxed(),
        LogFormat::Text => {
            logs.with_ansi(std::io::stdout().is_terminal()).with_filter(filter).boxed()
        }
    };
    let provider = has_collector()?.then(|| provider(service)).transpose()?;
    let registry = tracing_subscriber::registry().with(logs);
    match &provider {
        Some(provider) => registry.with(layer(provider)).init(),
        // Not an optional layer, which would create spans without a collector.
        None => registry.init(),
    }
    Ok(TelemetryGuard { dropped, provider, _flush: flush })
}

/// Returns a provider whose endpoint, headers, resource and sampler are those of the environment.
fn provider(service: &'static str) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = SpanExporter::builder().with_http().build().map_err(TelemetryError::Exporter)?;
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter);
    Ok(provider.with_resource(with_default_name(Resource::builder().build(), service)).build())
}

/// Returns the resource with a service name. The SDK's default is `unknown_service:<program>`.
fn with_default_name(resource: Resource, service: &'static str) -> Resource {
    let name = resource.get(&Key::from_static_str("service.name"));
    if name.is_some_and(|name| !name.as_str().starts_with("unknown_service")) {
        return resource;
    }
    let attributes = resource.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    Resource::builder_empty().with_attributes(attributes).with_service_name(service).build()
}

fn layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let tracer = provider.tracer("tidegate");
    // Spans of libraries would be most of the traffic.
    let ours = filter_fn(|metadata| metadata.target() == TRACE_TARGET);
    tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_filter(LevelFilter::INFO)
        .with_filter(ours)
}

/// Failure to start logs and traces.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A variable of OpenTelemetry is malformed.
    #[error(transparent)]
    Collector(#[from] CollectorError),
    /// The SDK created no exporter.
    #[error("failed to create an exporter of traces; check the variables OTEL_EXPORTER_OTLP_*")]
    Exporter(#[source] opentelemetry_otlp::ExporterBuildError),
}

/// Returns the W3C trace context of a span, to be stored in the envelope. `None` without a
/// collector.
pub fn traceparent(span: &Span) -> Option<HeaderToken> {
    let context = span.context();
    let context = context.span().span_context().clone();
    let (trace, id, flags) = (context.trace_id(), context.span_id(), context.trace_flags().to_u8());
    context.is_valid().then(|| HeaderToken::new(format!("00-{trace}-{id}-{flags:02x}"))).flatten()
}

/// Links a span to the trace context of an envelope. Ignores an invalid context.
pub fn link_span(span: &Span, traceparent: &HeaderToken) {
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
pub struct ErrorChain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = successors(Some(self.0), |error| (*error).source()).map(ToString::to_string);
        let line = texts
            .reduce(|line, text| if line.ends_with(&text) { line } else { line + ": " + &text });
        f.write_str(&line.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_either_collector_variable() {
        let named = |base: &str, traces: &str| {
            names_collector(|variable| {
                Some(if variable == OTEL_EXPORTER_OTLP_ENDPOINT { base } else { traces }.to_owned())
            })
        };
        assert_eq!(names_collector(|_| None), Ok(false));
        assert_eq!(named("", ""), Ok(false));
        assert_eq!(named("http://collector:4318", ""), Ok(true));
        assert_eq!(named("", "https://collector/custom"), Ok(true));
        let base = Err(CollectorError("OTEL_EXPORTER_OTLP_ENDPOINT"));
        assert_eq!(named("collector:4318", "http://collector:4318/v1/traces"), base);
        assert_eq!(named("http://", ""), base);
        let traces = Err(CollectorError("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"));
        assert_eq!(named("http://collector:4318", "ftp://user:hunter2@collector"), traces);
    }

    #[test]
    fn names_service_by_environment() {
        let name = |attributes: Vec<KeyValue>| {
            let found = Resource::builder_empty().with_attributes(attributes).build();
            let named = with_default_name(found, "ingest");
            assert_eq!(named.get(&Key::new("zone")), Some("a".into()));
            named.get(&Key::new("service.name"))
        };
        let zone = KeyValue::new("zone", "a");
        assert_eq!(name(vec![zone.clone()]), Some("ingest".into()));
        let unknown = KeyValue::new("service.name", "unknown_service:ingest");
        assert_eq!(name(vec![zone.clone(), unknown]), Some("ingest".into()));
        let own = KeyValue::new("service.name", "gateway");
        assert_eq!(name(vec![zone, own]), Some("gateway".into()));
    }
}
