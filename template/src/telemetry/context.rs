//! What ties log lines, spans and outgoing calls to the request that caused them.
//!
//! It travels in a task-local and not in a span, so that no log filter can switch correlation off.

use std::fmt::Write;
use std::sync::Arc;

use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};

tokio::task_local! {
    static CURRENT: Context;
}

/// The identity of the work that runs in this task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    pub request_id: Arc<str>,
    pub trace: Option<Trace>,
}

impl Context {
    /// The context of this task, if it works for a request.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Runs `future` in this context. A task that it spawns has to be given the context anew.
    pub async fn scope<F: Future>(self, future: F) -> F::Output {
        CURRENT.scope(self, future).await
    }

    /// Runs `work` in this context.
    pub fn enter<T>(self, work: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self, work)
    }
}

/// A position in a distributed trace: <https://www.w3.org/TR/trace-context/>.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    pub sampled: bool,
}

impl Trace {
    /// What the caller sent as `traceparent`, if it is valid and there is exactly one.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut sent = headers.get_all("traceparent").iter();
        match (sent.next(), sent.next()) {
            (Some(only), None) => Self::parse(only.to_str().ok()?),
            _ => None,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace_id, span_id, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hex = |part: &str, length: usize| {
            part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let given = |part: &str| part.bytes().any(|byte| byte != b'0');
        // A later version may append fields; this one may not, and ff is forbidden.
        let version_fits = hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
        let ids_fit = hex(trace_id, 32) && given(trace_id) && hex(span_id, 16) && given(span_id);
        if !version_fits || !ids_fit || !hex(flags, 2) {
            return None;
        }
        let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        Some(Self { trace_id: trace_id.to_owned(), span_id: span_id.to_owned(), sampled })
    }

    /// The same trace one step further: a span id of our own.
    pub fn child(&self) -> Self {
        let mut span_id = String::with_capacity(16);
        let _ = write!(span_id, "{:016x}", fastrand::u64(1..));
        Self { span_id, ..self.clone() }
    }

    /// The value of an outgoing `traceparent` header.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_traceparent_survives_the_round_trip() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(Trace::parse(text).map(|trace| trace.traceparent()).as_deref(), Some(text));
    }

    #[test]
    fn invalid_traceparent_is_no_trace() {
        for text in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-extra",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
        ] {
            assert_eq!(Trace::parse(text), None, "{text}");
        }
    }
}
