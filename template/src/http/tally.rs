//! What is counted of requests.

use std::collections::HashMap;

use metrics::{Counter, Histogram, counter, histogram};
use parking_lot::RwLock;

/// The metrics of requests, each looked up once: to find one by its labels costs more than all else in here.
#[derive(Debug, Default)]
pub struct Tally {
    /// By route: as many as there are series.
    answers: RwLock<HashMap<String, Kinds>>,
}

/// By method and status.
type Kinds = HashMap<(&'static str, u16), (Counter, Histogram)>;

impl Tally {
    /// Counts an answer that took so many seconds.
    pub fn answered(&self, method: &'static str, route: &str, status: u16, seconds: f64) {
        let kind = (method, status);
        let count = |(total, duration): &(Counter, Histogram)| {
            total.increment(1);
            duration.record(seconds);
        };
        let known = self.answers.read();
        if let Some(metrics) = known.get(route).and_then(|kinds| kinds.get(&kind)) {
            return count(metrics);
        }
        drop(known);
        let labels =
            [("method", method.to_owned()), ("route", route.to_owned()), ("status", status.to_string())];
        let total = counter!("http_requests_total", &labels);
        let metrics = (total, histogram!("http_request_duration_seconds", &labels));
        count(&metrics);
        let mut known = self.answers.write();
        known.entry(route.to_owned()).or_default().insert(kind, metrics);
    }
}
