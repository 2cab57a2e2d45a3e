//! Log lines: flat JSON for machines, plain text for people.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use garde::Validate;
use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
//@ if otlp
use tracing_subscriber::filter::{FilterExt, filter_fn};
//@ end
use tracing_subscriber::layer::{self, Layer};
use tracing_subscriber::registry::Registry;

use super::context::Context;
use super::filter::{self, Filter};
use super::lines::Lines;
use crate::config::value::check;

/// In bytes; longer values are truncated. Some come from outside.
const MAX_VALUE_BYTES: usize = 8192;

#[derive(Debug, Deserialize, Validate)]
#[garde(allow_unvalidated)]
pub struct Config {
    #[garde(custom(is_format))]
    pub format: String,
    #[garde(custom(is_filter))]
    pub filter: String,
    pub access: bool,
}

fn is_format(format: &str, (): &()) -> garde::Result {
    check(matches!(format, "json" | "pretty"), "expected json or pretty")
}

fn is_filter(filter: &str, (): &()) -> garde::Result {
    let expected = "expected levels such as \"info\" or \"info,service::server=debug\"";
    check(filter::parse(filter).is_some(), expected)
}

/// The layer that turns events into lines, the writer of these lines, and the handle that changes the filter.
pub fn layer(config: &Config) -> Result<(Box<dyn Layer<Registry> + Send + Sync>, Lines, Filter)> {
    let lines = Lines::start().context("log writer")?;
    let writer = lines.clone();
    let layer = if config.format == "json" { FlatJson(writer).boxed() } else { Pretty(writer).boxed() };
    let configured = filter::parse(&config.filter).expect("a filter that was found valid");
    let (lets_through, filter) = Filter::new(configured);
    //@ if otlp
    // Log lines don't show spans, so a span that is not exported is not created.
    let lets_through = lets_through.and(filter_fn(|about: &tracing::Metadata<'_>| about.is_event()));
    //@ end
    Ok((layer.with_filter(lets_through).boxed(), lines, filter))
}

/// Plain text lines, each of which begins with the request it belongs to.
struct Pretty(Lines);

impl<S: Subscriber> Layer<S> for Pretty {
    fn on_event(&self, event: &Event<'_>, _: layer::Context<'_, S>) {
        let mut line = String::new();
        if let Some(Context { request_id, trace }) = Context::current() {
            let trace = trace.map(|trace| format!(" {} {}", trace.trace_id, trace.span_id));
            let _ = write!(line, "[{request_id}{}] ", trace.unwrap_or_default());
        }
        let (now, about) = (humantime::format_rfc3339_micros(SystemTime::now()), event.metadata());
        let _ = write!(line, "{now} {:>5} {}:", about.level(), about.target());
        event.record(&mut |field: &Field, value: &dyn fmt::Debug| {
            let _ = match field.name() {
                "message" => write!(line, " {value:?}"),
                name => write!(line, " {name}={value:?}"),
            };
        });
        // Input from outside must neither break the line nor send control characters to the terminal.
        self.0.push(format!("{}\n", line.replace(char::is_control, " ")).as_bytes());
    }
}

/// One JSON object per line, with all fields at the top level; `message` is the event's name.
pub(super) struct FlatJson(pub(super) Lines);

impl<S: Subscriber> Layer<S> for FlatJson {
    fn on_event(&self, event: &Event<'_>, _: layer::Context<'_, S>) {
        let mut line = Line(Vec::with_capacity(512));
        // Writing to memory can't fail.
        let _ = write!(line.0, "{{\"timestamp\":\"{}\"", humantime::format_rfc3339_micros(SystemTime::now()));
        line.field("level", event.metadata().level().as_str());
        event.record(&mut line);
        line.field("target", event.metadata().target());
        if let Some(Context { request_id, trace }) = Context::current() {
            line.field("request_id", &*request_id);
            if let Some(trace) = trace {
                line.field("trace_id", &*trace.trace_id);
                line.field("span_id", &*trace.span_id);
            }
        }
        line.0.extend_from_slice(b"}\n");
        self.0.push(&line.0);
    }
}

/// The JSON object as written so far.
struct Line(Vec<u8>);

impl Line {
    fn field<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
        // Encoding text, numbers or booleans can't fail.
        let _ = serde_json::to_writer(&mut self.0, value);
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field.name(), &value[..value.floor_char_boundary(MAX_VALUE_BYTES)]);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field.name(), &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field.name(), &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.field(field.name(), &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field.name(), &value);
    }
}

#[cfg(test)]
mod tests {
    use tracing::info;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn line_for_people_begins_with_its_request() {
        let lines = Lines::default();
        let log = tracing_subscriber::registry().with(Pretty(lines.clone()));
        let context = Context { request_id: "cause".into(), trace: None };
        tracing::subscriber::with_default(log, || context.enter(|| info!(from = %"a\nb", "planted")));
        let text = lines.queued();
        assert!(text.starts_with("[cause] ") && text.ends_with("planted from=a b\n"), "{text}");
    }
}
