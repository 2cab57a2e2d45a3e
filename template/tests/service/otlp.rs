//! Traces exported to an OpenTelemetry collector, and a shutdown that no collector can hold up.

use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span, span::SpanKind, status::StatusCode};
use prost::Message;
use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;

use crate::app::{Answer, TestApp, eventually, path_of};
use crate::configuration::{assert_line, explained};
use crate::jobs::calling;
use crate::misconfiguration::{self, Row, assert_refused};
use crate::process::Launch;
use crate::receiver::{Call, Receiver};
use crate::tls;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// A service that exports every trace to `endpoint`, and waits for it for at most `flush` at shutdown.
async fn traced(endpoint: &str, flush: &str) -> TestApp {
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ("OTEL_SERVICE_NAME", "named-by-the-test"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=that-of-the-test"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=that-of-the-test"),
        ("APP__OTLP__SAMPLE_RATIO", "1.0"),
        ("APP__SHUTDOWN__FLUSH_TIMEOUT", flush),
    ];
    TestApp::spawn(&variables).await
}

#[tokio::test]
async fn spans_reach_the_collector_before_the_exit() {
    let collector = Receiver::start().await;
    collector.answers(200);
    let mut app = traced(&format!("http://user:p%40ss@{}/otlp/?token=1", collector.address), "10s").await;
    let request = app.request(Method::GET, "/v1/tasks").header("x-request-id", "traced");
    Answer::to(request.header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01"))).await;
    app.create("a").await;
    let line = app.process.event_where("http.request", |line| line["request_id"] == "traced").await;
    assert_eq!(line["trace_id"], TRACE);
    let ended = app.stop().await;
    assert_eq!((ended.code, &ended.event("telemetry.flush")["status"]), (Some(0), &json!("ok")));

    let calls = collector.calls(1).await;
    assert!(calls.iter().all(|call| call.path == "/otlp/v1/traces"), "{calls:#?}");
    // user:p@ss
    assert!(calls.iter().all(|call| call.header("authorization") == "Basic dXNlcjpwQHNz"), "{calls:#?}");
    assert!(calls.iter().all(|call| call.header("x-tenant") == "that-of-the-test"), "{calls:#?}");
    assert!(calls.iter().all(|call| call.header("content-type") == "application/x-protobuf"));
    let spans = exported(&calls);
    let span = named(&spans, "GET /v1/tasks");
    let ids = [&span.trace_id, &span.parent_span_id, &span.span_id].map(|id| hex(id));
    assert_eq!(ids, [TRACE, "b7ad6b7169203331", line["span_id"].as_str().expect("a span")]);
    assert_eq!(span.kind(), SpanKind::Server);
    let of = |key| attribute(&span.attributes, key);
    assert_eq!(of("http.request.method"), Some(Value::StringValue("GET".to_owned())));
    assert_eq!(of("http.route"), Some(Value::StringValue("/v1/tasks".to_owned())));
    assert_eq!(of("http.response.status_code"), Some(Value::IntValue(200)));
    // The one that had no caller.
    assert!(named(&spans, "POST /v1/tasks").parent_span_id.is_empty());
    for (key, value) in [
        ("service.name", "named-by-the-test"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("deployment.environment.name", "that-of-the-test"),
    ] {
        assert_eq!(of_the_service(&calls, key), Some(Value::StringValue(value.to_owned())), "{key}");
    }
}

#[tokio::test]
async fn webhook_is_called_in_a_span_that_tells_when_it_fails() {
    let (collector, receiver) = (Receiver::start().await, Receiver::start().await);
    collector.answers(200);
    receiver.answers(403);
    let all = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()), ("APP__OTLP__SAMPLE_RATIO", "1.0")];
    let mut app = calling(&receiver.url, &all).await;
    let task = app.create("a").await;
    app.complete(&task).await;
    app.process.event("job.failed").await;
    assert_eq!(app.stop().await.code, Some(0));
    let spans = exported(&collector.calls(1).await);
    let told = &receiver.calls(1).await[0];
    let id = told.header("traceparent")[36..52].to_owned();
    let call = spans.iter().find(|span| hex(&span.span_id) == id).expect("the span was exported");
    assert_eq!((call.name.as_str(), call.kind()), ("POST", SpanKind::Client));
    let of = |key| attribute(&call.attributes, key);
    assert_eq!(of("server.address"), Some(Value::StringValue("127.0.0.1".to_owned())));
    assert_eq!(of("http.response.status_code"), Some(Value::IntValue(403)));
    let job = spans.iter().find(|span| span.span_id == call.parent_span_id).expect("a parent");
    assert_eq!(job.name, "webhook");
    assert!(failed(call) && failed(job), "{call:?} of {job:?}");
}

#[tokio::test]
async fn caller_that_does_not_sample_is_followed() {
    let collector = Receiver::start().await;
    collector.answers(200);
    let app = traced(&collector.url, "10s").await;
    let request = app.request(Method::GET, "/v1/tasks");
    Answer::to(request.header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-00"))).await;
    app.create("a").await;
    assert_eq!(app.stop().await.code, Some(0));
    let spans = exported(&collector.calls(1).await);
    assert!(spans.iter().all(|span| hex(&span.trace_id) != TRACE), "{spans:?}");
    named(&spans, "POST /v1/tasks");
}

#[tokio::test]
async fn what_is_not_sampled_makes_no_spans() {
    let (collector, receiver) = (Receiver::start().await, Receiver::start().await);
    collector.answers(200);
    let none = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()), ("APP__OTLP__SAMPLE_RATIO", "0.0")];
    let mut app = calling(&receiver.url, &none).await;
    let task = app.create("a").await;
    let path = path_of(&task);
    assert_eq!(app.get(&path).await.status, 200);
    assert_eq!(app.complete(&task).await.status, 200);
    let told = &receiver.calls(1).await[0];
    let line = app.process.event_where("http.request", |line| line["status"] == 201).await;
    let trace = line["trace_id"].as_str().expect("a trace nonetheless");
    assert_ne!(told.header("traceparent"), "", "and so has the job");
    assert!(trace.len() == 32 && told.header("traceparent").ends_with("-00"), "{told:?}");
    assert!(app.metrics().await.contains("spans_ended_total 0\n"));
    let request = app.request(Method::GET, &path);
    Answer::to(request.header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01"))).await;
    assert!(!app.metrics().await.contains("spans_ended_total 0\n"), "that of a caller who samples");
    app.stop().await;
    let name = of_the_service(&collector.calls(1).await, "service.name");
    assert_eq!(name, Some(Value::StringValue(env!("CARGO_PKG_NAME").to_owned())), "it was given none");
}

#[tokio::test]
async fn some_are_sampled_and_some_are_not() {
    let collector = Receiver::start().await;
    collector.answers(200);
    let half = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()), ("APP__OTLP__SAMPLE_RATIO", "0.5")];
    let app = TestApp::spawn(&half).await;
    for _ in 0..100 {
        // One span each.
        assert_eq!(app.get("/health").await.status, 200);
    }
    let sampled = app.sample("spans_ended_total").await.expect("a number");
    assert!((10.0..=90.0).contains(&sampled), "{sampled} of 100");
}

#[tokio::test]
async fn collector_that_does_not_answer_can_not_hold_up_the_exit() {
    let collector = Receiver::start().await;
    collector.answers(None);
    let app = traced(&collector.url, "1s").await;
    app.create("a").await;
    let began = Instant::now();
    let ended = app.stop().await;
    let took = began.elapsed();
    assert_eq!((ended.code, &ended.event("telemetry.flush")["status"]), (Some(0), &json!("timeout")));
    // The exporter itself would give up only after five seconds.
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test]
async fn second_signal_is_heard_while_spans_are_flushed() {
    let collector = Receiver::start().await;
    collector.answers(None);
    let slow = ("APP__SHUTDOWN__FLUSH_TIMEOUT", "60s");
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str());
    let mut app = TestApp::spawn(&[endpoint, slow, ("APP__OTLP__SAMPLE_RATIO", "1.0")]).await;
    app.create("a").await;
    app.process.signal(Signal::TERM);
    app.process.event("shutdown.drain_complete").await;
    // The flush begins once everything else is closed.
    collector.calls(1).await;
    app.process.signal(Signal::TERM);
    let ended = app.process.ended().await;
    assert_eq!(ended.code, Some(3), "{ended:#?}");
    assert!(ended.names().contains(&"shutdown.forced".to_owned()));
}

#[tokio::test]
async fn collector_that_is_not_there_is_reported_and_harms_nothing() {
    // Long enough for the exporter's own retries, so that the failure is reported and not a timeout.
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"),
        ("APP__OTLP__SAMPLE_RATIO", "1.0"),
        ("APP__SHUTDOWN__FLUSH_TIMEOUT", "10s"),
    ];
    let app = TestApp::spawn(&variables).await;
    app.create("a").await;
    let ended = app.stop().await;
    assert_eq!((ended.code, &ended.event("telemetry.flush")["status"]), (Some(0), &json!("error")));
}

#[tokio::test]
async fn spans_are_sent_only_to_a_collector_that_a_root_vouches_for() {
    let collector = tls::Server::start();
    for (root, status) in [(&tls::Server::start(), "error"), (&collector, "ok")] {
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()),
            ("APP__OTLP__SAMPLE_RATIO", "1.0"),
            ("APP__SHUTDOWN__FLUSH_TIMEOUT", "10s"),
            // Nothing is exported before the flush.
            ("OTEL_BSP_SCHEDULE_DELAY", "60000"),
        ];
        let app = TestApp::launch(root.is_trusted_by(Launch::new(&variables))).await;
        app.create("a").await;
        assert_eq!(app.stop().await.event("telemetry.flush")["status"], status);
    }
}

#[tokio::test]
async fn flush_in_which_some_spans_are_refused_is_no_success() {
    let collector = Receiver::start().await;
    collector.answers(None);
    let one_by_one = ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1");
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str());
    let patient = ("APP__SHUTDOWN__FLUSH_TIMEOUT", "10s");
    let mut app = TestApp::spawn(&[endpoint, one_by_one, patient, ("APP__OTLP__SAMPLE_RATIO", "1.0")]).await;
    for _ in 0..40 {
        assert_eq!(app.get("/v1/tasks").await.status, 200);
    }
    app.process.signal(Signal::TERM);
    app.process.event("shutdown.drain_complete").await;
    // Closing what is left comes before the flush and may take a second.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    collector.answers(400);
    collector.calls(20).await;
    collector.answers(200);
    let ended = app.process.ended().await;
    assert_eq!((ended.code, &ended.event("telemetry.flush")["status"]), (Some(0), &json!("error")));
}

#[tokio::test]
async fn spans_that_no_collector_takes_are_counted() {
    let collector = Receiver::start().await;
    collector.answers(400);
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()),
        ("APP__OTLP__SAMPLE_RATIO", "1.0"),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("APP__HEALTH__INTERVAL", "100ms"),
    ];
    let app = TestApp::spawn(&variables).await;
    let collector_is_up = async || app.sample("dependency_up{dependency=\"collector\"}").await;
    let spans = async |what: &str| app.sample(&format!("spans_{what}_total")).await.expect("a number");
    app.create("a").await;
    collector.calls(1).await;
    assert!(spans("ended").await > 0.0);
    assert!(spans("exported").await == 0.0, "all was refused");
    eventually(collector_is_up, |up| *up == Some(0.0)).await;
    let ready = app.admin("/health/ready").await;
    assert_eq!((ready.status, &ready.json()["degraded"]), (200, &json!(true)));
    collector.answers(200);
    app.create("b").await;
    let taken = eventually(async || spans("exported").await, |taken| *taken > 0.0).await;
    assert!(taken < spans("ended").await, "what was lost stays lost");
    eventually(collector_is_up, |up| *up == Some(1.0)).await;
}

#[tokio::test]
async fn all_is_traced_in_development_and_a_tenth_elsewhere() {
    for (environment, line) in
        [("development", "1  # default in development"), ("production", "0.1  # default")]
    {
        let text = explained(Launch::new(&[("APP_ENV", environment)])).await;
        assert_line(&text, &format!("otlp.sample_ratio = {line}"));
    }
}

#[tokio::test]
async fn bad_settings_of_the_export_are_named() {
    let rows: &[Row] = &[
        ("APP__OTLP__SAMPLE_RATIO", "1.1", "otlp.sample_ratio", "expected 0.0 to 1.0"),
        ("APP__OTLP__SAMPLE_RATIO", "-0.1", "otlp.sample_ratio", "expected 0.0 to 1.0"),
        ("APP__OTLP__SAMPLE_RATIO", "NaN", "otlp.sample_ratio", "expected a number"),
        ("APP__OTLP__SAMPLE_RATIO", "half", "otlp.sample_ratio", "expected a number"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "otlp.endpoint", "expected an http or https URL"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "//canary", "otlp.endpoint", misconfiguration::URL),
    ];
    assert_refused(rows).await;
}

//@ if postgres
#[tokio::test]
async fn query_that_is_given_up_is_an_error_in_its_trace() {
    let collector = Receiver::start().await;
    collector.answers(200);
    let app = traced(&format!("http://{}", collector.address), "10s").await;
    let _lock = app.process.database().lock("tasks").await;
    // The client leaves once its query waits.
    tokio::select! {
        answer = app.get("/v1/tasks") => panic!("{answer:?}"),
        () = app.process.database().wait_until_blocked("tasks", 1) => {}
    }
    assert_eq!(app.stop().await.code, Some(0));
    let spans = exported(&collector.calls(1).await);
    assert!(failed(named(&spans, "list_tasks")), "{spans:?}");
}

//@ end
/// Everything that a collector was sent.
fn requests(calls: &[Call]) -> impl Iterator<Item = ResourceSpans> {
    let decoded = calls.iter().map(|call| ExportTraceServiceRequest::decode(call.body.clone()));
    decoded.flat_map(|request| request.expect("an export").resource_spans)
}

fn exported(calls: &[Call]) -> Vec<Span> {
    requests(calls).flat_map(|it| it.scope_spans).flat_map(|it| it.spans).collect()
}

/// An attribute of the resource, which is the service.
fn of_the_service(calls: &[Call], key: &str) -> Option<Value> {
    attribute(&requests(calls).next()?.resource?.attributes, key)
}

fn attribute(attributes: &[KeyValue], key: &str) -> Option<Value> {
    attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name} in {spans:?}"))
}

fn failed(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error)
}

fn hex(id: &[u8]) -> String {
    id.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
