//! One trace, from a client through request, query, cache and job to the webhook's receiver, as received by a
//! third-party collector.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::http::{Connection, head};
use crate::servers::rotel::Rotel;

use super::Site;
use super::clients::wait_until;
use super::peers::Receiver;
use super::shutdown::TASK;

const BOUND: Duration = Duration::from_secs(20);
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
/// The client's own span.
const CLIENT: &str = "b7ad6b7169203331";

const THE_CLIENT: &str = "the client";
const UNKNOWN: &str = "a span that is not there";

const CREATE: &str = "POST /v1/tasks";
const GET: &str = "GET /v1/tasks/{id}";
const COMPLETE: &str = "POST /v1/tasks/{id}/complete";
/// Which span has which parent.
const PARENTS: [(&str, &str); 12] = [
    (CREATE, THE_CLIENT),
    ("create_task", CREATE),
    (GET, THE_CLIENT),
    ("get", GET),
    ("get_task", GET),
    ("store", GET),
    (COMPLETE, THE_CLIENT),
    ("complete_task", COMPLETE),
    ("insert_job", COMPLETE),
    ("store", COMPLETE),
    ("webhook", COMPLETE),
    ("POST", "webhook"),
];

/// A collector that writes what it receives to a file.
pub struct Collector(Rotel);

impl Collector {
    pub fn start(site: &Site<'_>) -> Result<Self> {
        let program = site.rotel.context("rotel was not set up")?;
        Ok(Self(Rotel::start(program, &["--debug-log", "traces", "--debug-log-verbosity", "detailed"])?))
    }

    pub fn url(&self) -> String {
        self.0.url()
    }

    /// Whether each span has arrived with the right parent.
    fn has_all(&self) -> Result<bool> {
        let spans = self.spans()?;
        let is_there = |link: &(&str, &str)| {
            spans.iter().any(|(span, parent)| (span.name.as_str(), parent.as_str()) == *link)
        };
        // The last one to end, which shares its name with another.
        let late = spans.iter().any(|(span, _)| span.text.contains("http.response.status_code: Int(504)"));
        Ok(late && PARENTS.iter().all(is_there))
    }

    /// The spans of the trace, each with the name of its parent.
    fn spans(&self) -> Result<Vec<(Span, String)>> {
        let log = self.0.log()?;
        let all = || log.split("\nSpan #").skip(1).map(Span::read).filter(|span| span.trace == TRACE);
        let names: BTreeMap<String, String> = all().map(|span| (span.id, span.name)).collect();
        let below = |span: Span| {
            let parent = match names.get(&span.parent) {
                Some(name) => name,
                None if span.parent == CLIENT => THE_CLIENT,
                None => UNKNOWN,
            };
            let parent = parent.to_owned();
            (span, parent)
        };
        Ok(all().map(below).collect())
    }
}

struct Span {
    name: String,
    trace: String,
    id: String,
    parent: String,
    text: String,
}

impl Span {
    /// Parses a span from the collector's log.
    fn read(text: &str) -> Self {
        let field = |name: &str| {
            let value =
                text.lines().find_map(|line| line.trim().strip_prefix(name)?.trim().strip_prefix(':'));
            value.unwrap_or_default().trim().to_owned()
        };
        Self {
            name: field("Name"),
            trace: field("Trace ID"),
            id: field("ID"),
            parent: field("Parent ID"),
            text: text.to_owned(),
        }
    }
}

pub fn followed(site: &Site<'_>) -> Result<String> {
    let collector = Collector::start(site)?;
    let receiver = Receiver::start()?;
    receiver.answer();
    let (endpoint, url) = (collector.url(), receiver.url());
    let service = site.start(&[
        ("APP__OTLP__ENDPOINT", &endpoint),
        ("APP__WEBHOOK__URL", &url),
        ("APP__WEBHOOK__ALLOW_PRIVATE_ADDRESSES", "true"),
        ("APP__HTTP__BODY_TIMEOUT", "100ms"),
    ])?;
    let header = format!("traceparent: 00-{TRACE}-{CLIENT}-01\r\n");
    let mut client = Connection::open(service.public)?;
    let created = client.request("POST", "/v1/tasks", &header, TASK)?;
    let path = format!("/v1/tasks/{}", created.json()?["id"].as_str().context("no id")?);
    let read = client.request("GET", &path, &header, "")?;
    let completed = client.request("POST", &format!("{path}/complete"), &header, "")?;
    let nowhere = client.request("GET", "/nowhere", &header, "")?;
    let answers = [created.status, read.status, completed.status, nowhere.status];
    ensure!(answers == [201, 200, 200, 404], "answered {answers:?}");
    let mut slow = Connection::open(service.public)?;
    slow.send(&head("POST", "/v1/tasks", &header, 1))?;
    ensure!(slow.response()?.status == 504, "a body that does not come is no fault");
    wait_until("the webhook", BOUND, || Ok(receiver.delivered() == 1))?;
    let exit = site.stop(service)?;
    let flush = exit.event("telemetry.flush").context("no telemetry.flush")?;
    ensure!(flush["status"] == "ok", "{flush}");
    let count = complete(&collector, &receiver)?;
    Ok(format!("{count} spans, each with its parent, from the client to the receiver"))
}

/// Compares the spans that have arrived with the expected ones. Returns how many there are.
fn complete(collector: &Collector, receiver: &Receiver) -> Result<usize> {
    let arrived = wait_until("all spans, each below its parent", BOUND, || collector.has_all());
    let spans = collector.spans()?;
    let links = spans.iter().map(|(span, parent)| format!("{} below {parent}", span.name));
    let links = links.collect::<Vec<_>>().join(", ");
    arrived.with_context(|| format!("the collector has {links}"))?;
    ensure!(!links.contains(UNKNOWN), "a span without its parent: {links}");
    let named = |name| spans.iter().find(|(span, _)| span.name == name).map(|(span, _)| span).context(name);

    let (sent, call) = (receiver.traces(), format!("00-{TRACE}-{}-01", named("POST")?.id));
    ensure!(sent == [call.as_str()], "the receiver was sent {sent:?}, not {call}");
    for (name, attribute) in [
        (GET, "http.response.status_code: Int(200)"),
        ("webhook", "job.attempt: Int(1)"),
        ("webhook", "STATUS_CODE_UNSET"),
        ("POST", "server.address: Str(127.0.0.1)"),
    ] {
        let text = &named(name)?.text;
        ensure!(text.contains(attribute), "{name} has no {attribute}:\n{text}");
    }
    for (status, code) in [("200", "UNSET"), ("404", "UNSET"), ("504", "ERROR")] {
        let answered = format!("http.response.status_code: Int({status})");
        let spans: Vec<_> = spans.iter().filter(|(span, _)| span.text.contains(&answered)).collect();
        let told = spans.iter().all(|(span, _)| span.text.contains(&format!("STATUS_CODE_{code}\n")));
        ensure!(
            !spans.is_empty() && told,
            "not all of the {} spans of {status} have the status {code}",
            spans.len()
        );
    }
    Ok(spans.len())
}
