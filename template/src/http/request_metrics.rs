//! Request metrics.

use std::collections::BTreeMap;

use metrics::{Counter, Histogram, counter, histogram};
use parking_lot::RwLock;

/// The metrics of requests, each looked up once: finding one by its labels costs more than everything else in here.
#[derive(Debug, Default)]
pub struct RequestMetrics {
    /// By route: in all, one entry per combination of labels.
    by_route: RwLock<BTreeMap<String, Kinds>>,
}

/// By method and status.
type Kinds = BTreeMap<(&'static str, u16), (Counter, Histogram)>;

impl RequestMetrics {
    /// Counts a request that took `seconds`.
    pub fn record(&self, method: &'static str, route: &str, status: u16, seconds: f64) {
        let kind = (method, status);
        let count = |(total, duration): &(Counter, Histogram)| {
            total.increment(1);
            duration.record(seconds);
        };
        let known = self.by_route.read();
        if let Some(metrics) = known.get(route).and_then(|kinds| kinds.get(&kind)) {
            return count(metrics);
        }
        drop(known);
        let labels =
            [("method", method.to_owned()), ("route", route.to_owned()), ("status", status.to_string())];
        let total = counter!("http_requests_total", &labels);
        let metrics = (total, histogram!("http_request_duration_seconds", &labels));
        count(&metrics);
        let mut known = self.by_route.write();
        known.entry(route.to_owned()).or_default().insert(kind, metrics);
    }
}
