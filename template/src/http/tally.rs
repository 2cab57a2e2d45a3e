//! What is counted of requests.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use metrics::{Counter, Histogram, counter, histogram};

/// The metrics of requests, each looked up once: to build the labels and find a metric by them anew would cost a
/// request more than all else that is done with it here.
#[derive(Debug, Default)]
pub struct Tally {
    /// By route: as many as there are series.
    answers: RwLock<HashMap<String, Kinds>>,
}

/// By method and status.
type Kinds = HashMap<(&'static str, u16), Answers>;

/// Answers of one kind.
#[derive(Debug)]
struct Answers {
    total: Counter,
    seconds: Histogram,
}

impl Answers {
    fn add(&self, seconds: f64) {
        self.total.increment(1);
        self.seconds.record(seconds);
    }
}

impl Tally {
    /// Counts an answer that took so many seconds.
    pub fn answered(&self, method: &'static str, route: &str, status: u16, seconds: f64) {
        let kind = (method, status);
        let known = self.answers.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(answers) = known.get(route).and_then(|kinds| kinds.get(&kind)) {
            return answers.add(seconds);
        }
        drop(known);
        let labels =
            [("method", method.to_owned()), ("route", route.to_owned()), ("status", status.to_string())];
        let total = counter!("http_requests_total", &labels);
        let answers = Answers { total, seconds: histogram!("http_request_duration_seconds", &labels) };
        answers.add(seconds);
        let mut known = self.answers.write().unwrap_or_else(PoisonError::into_inner);
        known.entry(route.to_owned()).or_default().insert(kind, answers);
    }
}
