//! `docs/observability.md` is a contract: it documents all that the service emits, and nothing that it doesn't.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::LazyLock;

use serde_json::Value;
use service::http::problem::Category;
use service::jobs::Kind;
use service::lifecycle::State;
use strum::VariantArray;

use crate::app::{TestApp, eventually, path_of};
use crate::documents::{quoted, root, sources};
use crate::receiver::Receiver;

pub static DOCUMENT: LazyLock<String> =
    LazyLock::new(|| fs::read_to_string(root().join("docs/observability.md")).expect("the document"));

/// Each documented event: its level and its fields.
static EVENTS: LazyLock<BTreeMap<&str, (&str, BTreeSet<&str>)>> = LazyLock::new(|| {
    let levels = ["ERROR", "WARN", "INFO", "DEBUG"];
    let events = rows(&DOCUMENT).filter(|cells| cells.len() == 4 && levels.contains(&cells[1]));
    events.map(|cells| (quoted(cells[0])[0], (cells[1], quoted(cells[2]).into_iter().collect()))).collect()
});

/// The fields that any line may have besides those of its event.
const COMMON: [&str; 7] = ["timestamp", "level", "message", "target", "request_id", "trace_id", "span_id"];

/// The cells of every table row, header rows included.
pub fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix('|'));
    lines.map(|line| line.split('|').map(str::trim).collect())
}

/// Checks a log line. It is called for every line in every test, whatever the test is about.
pub fn assert_documented(line: &Value) {
    let text = |field: &str| line[field].as_str().unwrap_or_default();
    if !text("target").starts_with("service") {
        return;
    }
    let Some((level, fields)) = EVENTS.get(text("message")) else {
        panic!("docs/observability.md has no event of this name: {line}")
    };
    let names = line.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
    let has: BTreeSet<&str> = names.filter(|name| !COMMON.contains(name)).collect();
    assert_eq!(
        (text("level"), &has),
        (*level, fields),
        "level and fields are otherwise in docs/observability.md: {line}"
    );
}

#[test]
fn documented_events_are_in_the_code() {
    let code = sources(&root().join("src"));
    assert!(EVENTS.len() > 20, "{EVENTS:#?}");
    for name in EVENTS.keys() {
        assert!(code.contains(&format!("\"{name}\"")), "nothing tells of {name}");
    }
}

/// The type and the label names of each metric.
type Metrics = BTreeMap<String, (String, BTreeSet<String>)>;

/// The metrics of a scrape, and the values of each label.
fn metrics_of(page: &str) -> (Metrics, BTreeSet<(String, String)>) {
    let (mut metrics, mut values) = (Metrics::new(), BTreeSet::new());
    let mut of_type = (String::new(), String::new());
    for line in page.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            of_type = (name.to_owned(), kind.to_owned());
            metrics.insert(of_type.0.clone(), (of_type.1.clone(), BTreeSet::new()));
        }
        let (Some(start), Some(end)) = (line.find('{'), line.rfind('}')) else { continue };
        for label in line[start + 1..end].split(',').filter_map(|label| label.split_once('=')) {
            let (name, value) = (label.0.to_owned(), label.1.trim_matches('"').to_owned());
            // `le` is the histogram's own label.
            if name != "le" && line.starts_with(&of_type.0) {
                metrics.entry(of_type.0.clone()).or_default().1.insert(name.clone());
                values.insert((name, value));
            }
        }
    }
    (metrics, values)
}

//@ if otlp
/// An address at which no collector listens.
const NOWHERE: &str = "http://127.0.0.1:1";

//@ end
/// A service that has done everything it can do.
async fn busy() -> TestApp {
    let receiver = Receiver::start().await;
    let variables = vec![("APP__WEBHOOK__URL", receiver.url.as_str())];
    //@ if otlp
    let variables = [variables, vec![("OTEL_EXPORTER_OTLP_ENDPOINT", NOWHERE)]].concat();
    //@ end
    let mut app = TestApp::spawn(&variables).await;
    let task = app.create("a").await;
    for path in [&path_of(&task), "/v1/tasks", "/v1/tasks?status=open", "/nowhere"] {
        app.get(path).await;
    }
    app.complete(&task).await;
    app.process.event("job.done").await;
    app.delete(&path_of(&task)).await;
    app
}

#[tokio::test]
async fn metrics_are_those_of_the_document() {
    let app = busy().await;
    let documented: Metrics = rows(&DOCUMENT)
        .filter(|cells| cells.len() == 5 && ["counter", "gauge", "histogram"].contains(&cells[1]))
        .map(|cells| {
            let labels = quoted(cells[3]).into_iter().map(str::to_owned).collect();
            (quoted(cells[0])[0].to_owned(), (cells[1].to_owned(), labels))
        })
        .collect();
    let differences = async || {
        let told = metrics_of(&app.metrics().await).0;
        let names: BTreeSet<&String> = told.keys().chain(documented.keys()).collect();
        let differs = names.into_iter().filter(|name| told.get(*name) != documented.get(*name));
        let tell = |name: &String| {
            format!("{name}: {:?} in docs/observability.md, {:?} told", documented.get(name), told.get(name))
        };
        differs.map(tell).collect::<Vec<_>>()
    };
    // The last request is counted once its response is sent, which the client may receive a moment earlier.
    eventually(differences, Vec::is_empty).await;

    let of_histograms = DOCUMENT.lines().find_map(|line| line.strip_prefix("Histograms have the buckets "));
    let buckets = of_histograms.expect("a line on buckets").split([',', ' ']).map(str::trim);
    let buckets: Vec<f64> = buckets.filter_map(|word| word.trim_end_matches('.').parse().ok()).collect();
    let page = app.metrics().await;
    let of_tasks = |line: &&str| line.contains("duration_seconds_bucket{") && line.contains("status=\"201\"");
    let bounds =
        page.lines().filter(of_tasks).filter_map(|line| line.split("le=\"").nth(1)?.split('"').next());
    let told: Vec<f64> =
        bounds.filter_map(|bound| bound.parse().ok()).filter(|bound: &f64| bound.is_finite()).collect();
    assert_eq!(told, buckets);
}

#[tokio::test]
async fn label_values_are_those_of_the_document() {
    let app = busy().await;
    let mut documented: BTreeSet<(&str, &str)> = BTreeSet::new();
    let labels = DOCUMENT.split("### Labels").nth(1).expect("a chapter on labels");
    for cells in rows(labels).filter(|cells| cells.len() == 2 && cells[0].starts_with('`')) {
        let label = quoted(cells[0])[0];
        documented.extend(quoted(cells[1]).into_iter().map(|value| (label, value)));
    }
    for cells in rows(labels).filter(|cells| cells.len() == 3 && cells[0].starts_with('`')) {
        documented.insert(("category", quoted(cells[0])[0]));
    }
    let page = app.metrics().await;
    // The document describes the values of these labels: there are too many to list.
    let listed = |label: &str| !["route", "status", "version", "commit"].contains(&label);
    let told = metrics_of(&page).1;
    for (label, value) in told.iter().filter(|(label, _)| listed(label)) {
        assert!(documented.contains(&(label.as_str(), value.as_str())), "undocumented: {label}={value}");
    }
    // Documented values are members of a closed set or literals in the code.
    let mut named: BTreeSet<&str> = Category::VARIANTS.iter().map(Category::into_str).collect();
    named.extend(State::VARIANTS.iter().map(State::into_str));
    named.extend(Kind::VARIANTS.iter().map(Kind::into_str));
    let code = sources(&root().join("src"));
    for (label, value) in documented.into_iter().filter(|(label, _)| listed(label)) {
        let known = named.contains(value) || code.contains(&format!("\"{value}\""));
        assert!(known, "nothing in the code: {label}={value}");
    }
}
//@ if otlp

#[test]
fn spans_are_those_of_the_document() {
    let code = sources(&root().join("src"));
    let spans = DOCUMENT.split("## Spans").nth(1).expect("a chapter on spans");
    let documented: BTreeSet<&str> = rows(spans)
        .filter(|cells| cells.len() == 5 && cells[0].starts_with('`'))
        .map(|cells| quoted(cells[0])[0])
        .collect();
    let begun = code.split("info_span!(").skip(1);
    let told: BTreeSet<&str> = begun.filter_map(|rest| rest.split('"').nth(1)).collect();
    assert_eq!(told, documented);
}
//@ end
