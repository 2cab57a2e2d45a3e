//! Counts spans that have ended and spans that a collector has taken: the difference is lost or on its way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::Counter;
use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor};

use crate::health::LastFailure;

/// Spans on their way to the collector.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) exporter: opentelemetry_otlp::SpanExporter,
    pub(super) spans: Counter,
    pub(super) last: LastFailure,
    /// Exports.
    pub(super) failed: Arc<AtomicU64>,
}

impl SpanExporter for Taken {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len() as u64;
        let taken = self.exporter.export(batch).await;
        // The error itself may name the endpoint, of which a part may be secret.
        self.last.send_replace(taken.is_err().then(|| "the last export failed".to_owned()));
        self.failed.fetch_add(taken.is_err().into(), Ordering::Relaxed);
        taken.inspect(|()| self.spans.increment(count))
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Spans on their way to a batch.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) batches: BatchSpanProcessor,
    pub(super) spans: Counter,
}

impl SpanProcessor for Ended {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        self.spans.increment(1);
        self.batches.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}
