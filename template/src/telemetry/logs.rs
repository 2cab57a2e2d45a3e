//! Log lines: flat JSON for machines, coloured text for people, written by a thread of its own.

use std::fmt;
use std::io::{BufWriter, stdout};

use garde::Validate;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
//@ if otlp
use tracing_subscriber::filter::{FilterExt, filter_fn};
//@ end
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::{LookupSpan, Registry};

use super::context::Context;
use super::filter::{self, Filter};

/// In bytes, of one value; what is longer is cut. Some come from far away.
const LONGEST_VALUE: usize = 8192;

/// Lines that may wait for the writer. At a stopped reader this bounds the memory, not the requests.
const QUEUED_LINES: usize = 16_384;

/// In bytes, as much as a pipe holds. The writer keeps nothing back: it writes when no further line waits.
const WRITTEN_AT_ONCE: usize = 65_536;

#[derive(Debug, Deserialize, Validate)]
pub struct Config {
    #[garde(skip)]
    pub format: Format,
    #[garde(custom(is_filter))]
    pub filter: String,
    #[garde(skip)]
    pub access: bool,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub enum Format {
    Json,
    Pretty,
}

impl TryFrom<String> for Format {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match &*text {
            "json" => Ok(Self::Json),
            "pretty" => Ok(Self::Pretty),
            _ => Err("expected json or pretty"),
        }
    }
}

fn is_filter(filter: &str, (): &()) -> garde::Result {
    let expected = "expected levels such as \"info\" or \"info,service::jobs=debug\"";
    filter::parse(filter).map(drop).ok_or_else(|| garde::Error::new(expected))
}

/// Owns the writer's thread: dropping it writes what is queued.
#[derive(Debug)]
pub struct LogWriter {
    _guard: WorkerGuard,
    dropped: ErrorCounter,
    filter: Filter,
}

impl LogWriter {
    /// Counts the lines lost because the reader of stdout was too slow.
    pub fn dropped(&self) -> ErrorCounter {
        self.dropped.clone()
    }

    pub fn filter(&self) -> Filter {
        self.filter.clone()
    }
}

/// The layer that turns events into lines. It never waits for the reader: beyond the queue, lines are lost and counted.
pub fn layer(config: &Config) -> (Box<dyn Layer<Registry> + Send + Sync>, LogWriter) {
    let builder = NonBlockingBuilder::default().buffered_lines_limit(QUEUED_LINES).lossy(true);
    let (writer, guard) = builder.finish(BufWriter::with_capacity(WRITTEN_AT_ONCE, stdout()));
    let dropped = writer.error_counter();
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let layer = match config.format {
        Format::Json => layer.event_format(FlatJson).boxed(),
        Format::Pretty => layer.event_format(ForPeople).boxed(),
    };
    let configured = filter::parse(&config.filter).expect("a filter that was found valid");
    let (lets_through, filter) = Filter::new(configured);
    //@ if otlp
    // No line shows a span: where none is exported, none is made.
    let lets_through = lets_through.and(filter_fn(|about: &tracing::Metadata<'_>| about.is_event()));
    //@ end
    (layer.with_filter(lets_through).boxed(), LogWriter { _guard: guard, dropped, filter })
}

/// A line for people: what `tracing` prints, and the request it belongs to.
struct ForPeople;

impl<S, N> FormatEvent<S, N> for ForPeople
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if let Some(Context { request_id, trace }) = Context::current() {
            write!(writer, "[{request_id}")?;
            if let Some(trace) = trace {
                write!(writer, " {} {}", trace.trace_id, trace.span_id)?;
            }
            write!(writer, "] ")?;
        }
        tracing_subscriber::fmt::format().compact().format_event(context, writer, event)
    }
}

/// One JSON object a line, all fields at its top level: `message` is the event's name.
pub(super) struct FlatJson;

impl<S, N> FormatEvent<S, N> for FlatJson
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Line(Vec::with_capacity(512));
        line.0.extend_from_slice(b"{\"timestamp\":\"");
        OffsetDateTime::now_utc().format_into(&mut line.0, &Rfc3339).map_err(|_| fmt::Error)?;
        line.0.push(b'"');
        line.field("level", event.metadata().level().as_str());
        event.record(&mut line);
        line.field("target", event.metadata().target());
        Context::with_current(|context| {
            line.field("request_id", &*context.request_id);
            if let Some(trace) = &context.trace {
                line.field("trace_id", &trace.trace_id);
                line.field("span_id", &trace.span_id);
            }
        });
        line.0.extend_from_slice(b"}\n");
        writer.write_str(str::from_utf8(&line.0).map_err(|_| fmt::Error)?)
    }
}

/// The JSON object as far as it is written.
struct Line(Vec<u8>);

impl Line {
    fn field<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
        // Writing to memory can't fail, and neither can text, numbers and booleans as JSON.
        let _ = serde_json::to_writer(&mut self.0, value);
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field.name(), &value[..value.floor_char_boundary(LONGEST_VALUE)]);
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
