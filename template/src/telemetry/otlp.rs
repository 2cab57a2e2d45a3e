//! Exports spans to an OTLP collector, in batches, from a thread of its own. Off without an endpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use garde::Validate;
use metrics::{Counter, counter};
use opentelemetry::KeyValue;
use opentelemetry::trace::{
    SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
};
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter};
use reqwest::Url;
use reqwest::blocking::Client;
use scopeguard::{ScopeGuard, guard};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tracing::span::Id;
use tracing::{Instrument, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::{FilterExt, dynamic_filter_fn, filter_fn};
use tracing_subscriber::layer::{self, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::context::Trace;
use crate::config::value::{between, is_http, optional};
use crate::health::{Check, LastFailure};

#[derive(Debug, Deserialize, Validate)]
pub struct Config {
    #[serde(deserialize_with = "optional")]
    #[garde(custom(is_http))]
    pub endpoint: Option<SecretString>,
    #[garde(custom(between(0.0, 1.0)))]
    pub sample_ratio: f64,
    #[serde(deserialize_with = "optional")]
    #[garde(skip)]
    pub service_name: Option<String>,
}

/// The exporter's handle; without an endpoint it does nothing.
#[derive(Debug)]
pub struct Exporter {
    provider: Option<SdkTracerProvider>,
    last: LastFailure,
    /// Exports that failed.
    failed: Arc<AtomicU64>,
    flush_timeout: Duration,
}

/// The layer that exports spans; None without an endpoint. Don't call this in a runtime: the client starts its own.
pub fn layer<S>(config: &Config, flush_timeout: Duration) -> Result<(Option<impl Layer<S>>, Exporter)>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let (last, failed) = (LastFailure::default(), Arc::default());
    let Some(endpoint) = &config.endpoint else {
        return Ok((None, Exporter { provider: None, last, failed, flush_timeout }));
    };
    let client =
        Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().context("otlp client")?;
    // Credentials in the URL become a header: the exporter would not send them, and the client would log them.
    let mut url: Url = endpoint.expose_secret().parse().context("otlp endpoint")?;
    // A query may hold a token, and stays at the end.
    url.path_segments_mut().expect("http").pop_if_empty().extend(["v1", "traces"]);
    let model = client.post(url).build().context("otlp endpoint")?;
    let headers = model.headers().iter();
    let headers = headers.filter_map(|(name, it)| Some((name.to_string(), it.to_str().ok()?.to_owned())));
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        // Only a blocking client works in the batch thread; unless one is set, the asynchronous one is used.
        .with_http_client(client)
        .with_endpoint(model.url().as_str())
        .with_headers(headers.collect())
        .build()
        .context("otlp exporter")?;
    let spans = counter!("spans_exported_total");
    let exporter = CountingExporter { exporter, spans, last: last.clone(), failed: Arc::clone(&failed) };
    let name = config.service_name.clone().unwrap_or_else(|| env!("CARGO_PKG_NAME").to_owned());
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder().with_service_name(name).with_attribute(version).build();
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        // Work that is not sampled gets no span in the first place: see [`span`].
        .with_sampler(Sampler::AlwaysOn)
        .with_resource(resource)
        .build();
    // Events go to the log, and spans of the HTTP stack underneath would trace the export itself.
    let own = filter_fn(|about| about.is_span() && about.target().starts_with("service"));
    // Spans within a request or a job are exported only if the request or job itself is.
    let below = dynamic_filter_fn(|span, around: &layer::Context<'_, S>| {
        ["request", "job"].contains(&span.name()) || around.lookup_current().is_some()
    });
    let layer = tracing_opentelemetry::layer().with_location(false).with_threads(false);
    let layer = layer.with_tracer(provider.tracer("service")).and_then(Ended(counter!("spans_ended_total")));
    let exporter = Exporter { provider: Some(provider), last, failed, flush_timeout };
    Ok((Some(layer.with_filter(own.and(below))), exporter))
}

/// Counts spans that have ended. Those that have not been exported are lost or still on their way.
struct Ended(Counter);

impl<S: Subscriber> Layer<S> for Ended {
    fn on_close(&self, _: Id, _: layer::Context<'_, S>) {
        self.0.increment(1);
    }
}

/// Counts spans in batches that the collector answered with success.
#[derive(Debug)]
struct CountingExporter {
    exporter: opentelemetry_otlp::SpanExporter,
    spans: Counter,
    last: LastFailure,
    /// Exports that failed.
    failed: Arc<AtomicU64>,
}

impl SpanExporter for CountingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len() as u64;
        let taken = self.exporter.export(batch).await;
        // The error itself may contain the endpoint, parts of which may be secret.
        self.last.send_replace(taken.is_err().then(|| "the last export failed".to_owned()));
        self.failed.fetch_add(taken.is_err().into(), Ordering::Relaxed);
        taken.inspect(|()| self.spans.increment(count))
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl Exporter {
    pub fn check(&self) -> Option<Check> {
        self.provider.as_ref().map(|_| Check::passive("collector", self.last.clone()))
    }

    /// Sends what is buffered, within `shutdown.flush_timeout` whatever the collector does. None without an endpoint.
    pub fn flush(&self) -> Option<&'static str> {
        let (provider, timeout) = (self.provider.clone()?, self.flush_timeout);
        let (done, outcome) = std::sync::mpsc::channel();
        // The SDK's own flush reports only on the last batch, and has a timeout of its own.
        let failed = self.failed.load(Ordering::Relaxed);
        std::thread::spawn(move || done.send(provider.shutdown_with_timeout(Duration::MAX)));
        Some(match outcome.recv_timeout(timeout) {
            Ok(Ok(())) if self.failed.load(Ordering::Relaxed) == failed => "ok",
            Ok(_) => "error",
            Err(_) => "timeout",
        })
    }
}

/// Runs `work` in `span`, and marks the span as failed if `work` fails or is dropped before it completes.
pub async fn within<T, E>(span: Span, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let unless_done = guard(span.clone(), |span| failed(&span));
    let result = work.instrument(span).await;
    if result.is_ok() {
        ScopeGuard::into_inner(unless_done);
    }
    result
}

/// Marks a span as failed.
pub fn failed(span: &Span) {
    span.set_status(Status::error(""));
}

/// The span for work at `trace`, caused by `caller`, and its position in the trace. Unsampled work gets no span.
pub fn span(
    caller: Option<&Trace>,
    trace: Option<Trace>,
    make: impl FnOnce() -> Span,
) -> (Span, Option<Trace>) {
    if trace.as_ref().is_none_or(|trace| !trace.sampled) {
        return (Span::none(), trace);
    }
    let span = make();
    if let Some(parent) = caller.and_then(remote) {
        // Fails if no layer exports this span, which is fine.
        let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(parent));
    }
    let context = span.context();
    let ours = context.span().span_context().clone();
    let exported = format!("00-{}-{}-{:02x}", ours.trace_id(), ours.span_id(), ours.trace_flags());
    (span, Trace::parse(&exported).or(trace))
}

/// The caller's span, which is known to be sampled.
fn remote(trace: &Trace) -> Option<SpanContext> {
    let trace_id = TraceId::from_hex(&trace.trace_id).ok()?;
    let span_id = SpanId::from_hex(&trace.span_id).ok()?;
    Some(SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, true, TraceState::default()))
}
