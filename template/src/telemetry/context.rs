//! Ties log lines, spans and calls to the request that caused them: a task-local, which no log filter can switch off.

use std::panic::resume_unwind;
use std::sync::Arc;

use arrayvec::ArrayString;
use hyper::HeaderMap;
use serde::{Deserialize, Serialize};
use tracing::Instrument;

tokio::task_local! {
    static CURRENT: Context;
}

/// The identity of the work that the current task is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    pub request_id: Arc<str>,
    pub trace: Option<Trace>,
}

impl Context {
    /// The context of the current task, if it has one.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Runs `future` in this context. Tasks that it spawns don't inherit the context: pass it on to them.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, future)
    }

    pub fn enter<T>(self, work: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self, work)
    }

    /// Runs `work` in a task of its own, which ends it even if the caller is dropped. A panic is passed on to the caller.
    pub async fn run_detached<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
        let work = Self::current().unwrap_or_default().scope(work).in_current_span();
        tokio::spawn(work).await.unwrap_or_else(|panicked| resume_unwind(panicked.into_panic()))
    }
}

/// A position in a distributed trace: <https://www.w3.org/TR/trace-context/>.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// 32 hexadecimal digits, kept as text: ids are read, sent and logged more often than created.
    pub trace_id: ArrayString<32>,
    /// 16 hexadecimal digits.
    pub span_id: ArrayString<16>,
    pub sampled: bool,
}

impl Trace {
    /// A new trace that begins here, not sampled.
    pub fn begin() -> Self {
        Self { trace_id: random(), span_id: random(), sampled: false }
    }

    /// What the caller sent as `traceparent`, if it is valid and there is exactly one.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut sent = headers.get_all("traceparent").iter();
        let only = sent.next().filter(|_| sent.next().is_none())?;
        Self::parse(only.to_str().ok()?)
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let is_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let mut hex = |digits| parts.next().filter(|part| part.len() == digits && is_hex(part));
        let (version, trace_id, span_id, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        let given = |id: &str| id.bytes().any(|byte| byte != b'0');
        // Later versions may append fields, version 00 may not, and ff is invalid.
        let version_fits = version != "ff" && (version != "00" || parts.next().is_none());
        if !version_fits || !given(trace_id) || !given(span_id) {
            return None;
        }
        let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        Some(Self { trace_id: trace_id.try_into().ok()?, span_id: span_id.try_into().ok()?, sampled })
    }

    /// The same trace with a new span id, for our own part in it.
    pub fn child(&self) -> Self {
        Self { span_id: random(), ..*self }
    }

    /// The value of an outgoing `traceparent` header.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

/// `DIGITS` random hexadecimal digits.
fn random<const DIGITS: usize>() -> ArrayString<DIGITS> {
    let mut digits = ArrayString::new();
    let halves = fastrand::u128(..).to_ne_bytes().into_iter().flat_map(|byte| [byte / 16, byte % 16]);
    halves.take(DIGITS).for_each(|it| digits.push(char::from(b"0123456789abcdef"[usize::from(it)])));
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "12345678901234567890123456789012";
    const SPAN: &str = "1234567890123456";

    #[test]
    fn valid_traceparent_survives_the_round_trip() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(Trace::parse(text).map(|trace| trace.traceparent()).as_deref(), Some(text));
        let (one, other) = (Trace::begin(), Trace::begin());
        assert_eq!(Trace::parse(&one.traceparent()), Some(one));
        assert!(one.trace_id != other.trace_id && one.span_id != other.span_id, "{one:?} {other:?}");
    }

    /// The cases are those of the W3C's own test suite.
    #[test]
    fn only_a_valid_traceparent_is_a_trace() {
        let rest = format!("{ID}-{SPAN}-01");
        let valid = [
            format!("00-{rest}"),
            format!("00-{ID}-{SPAN}-00"),
            format!("00-{ID}-{SPAN}-02"),
            format!("00-{ID}-{SPAN}-03"),
            format!("00-{ID}-{SPAN}-ff"),
            format!("cc-{rest}"),
            format!("cc-{rest}-what-the-future-will-be-like"),
        ];
        for text in valid {
            let trace = Trace::parse(&text).expect("a trace");
            assert_eq!((&*trace.trace_id, &*trace.span_id), (ID, SPAN), "{text}");
            // Only the lowest bit of the flags means sampled.
            assert_eq!(trace.sampled, !text.ends_with("-00") && !text.ends_with("-02"), "{text}");
        }
        let invalid = [
            String::new(),
            "00".to_owned(),
            format!("00-{rest}."),
            format!("00-{rest}-what-the-future-will-be-like"),
            format!("cc-{rest}.what-the-future-will-be-like"),
            format!("ff-{rest}"),
            format!(".0-{rest}"),
            format!("0.-{rest}"),
            format!("000-{rest}"),
            format!("0000-{rest}"),
            format!("0-{rest}"),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-.{}-{SPAN}-01", &ID[1..]),
            format!("00-{}.-{SPAN}-01", &ID[1..]),
            format!("00-{}A-{SPAN}-01", &ID[1..]),
            format!("00-{ID}3-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", &ID[1..]),
            format!("00-{ID}-{}-01", "0".repeat(16)),
            format!("00-{ID}-.{}-01", &SPAN[1..]),
            format!("00-{ID}-{}.-01", &SPAN[1..]),
            format!("00-{ID}-{SPAN}7-01"),
            format!("00-{ID}-{}-01", &SPAN[1..]),
            format!("00-{ID}-{SPAN}-.0"),
            format!("00-{ID}-{SPAN}-0."),
            format!("00-{ID}-{SPAN}-001"),
            format!("00-{ID}-{SPAN}-1"),
        ];
        for text in invalid {
            assert_eq!(Trace::parse(&text), None, "{text}");
        }
    }

    #[test]
    fn one_traceparent_is_believed_and_two_are_not() {
        let (one, other) = (format!("00-{ID}-{SPAN}-01"), format!("00-{ID}-{SPAN}-00"));
        let mut headers = HeaderMap::new();
        headers.append("Trace-Parent", one.parse().expect("a value"));
        assert_eq!(Trace::from_headers(&headers), None);
        headers.append("TraceParent", one.parse().expect("a value"));
        assert!(Trace::from_headers(&headers).is_some());
        headers.append("traceparent", other.parse().expect("a value"));
        assert_eq!(Trace::from_headers(&headers), None);
    }
}
