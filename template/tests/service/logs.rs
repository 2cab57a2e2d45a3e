//! Logs: every line is one JSON object that can be traced to its request, and contains nothing that a client could
//! forge or that identifies a person.

use reqwest::Method;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::app::{Answer, TestApp, eventually, path_of};
use crate::receiver::Receiver;
use crate::wire::Wire;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

#[tokio::test]
async fn every_line_is_json_with_time_level_and_message() {
    let receiver = Receiver::start().await;
    receiver.answers(400);
    let mut app = TestApp::spawn(&[("APP__WEBHOOK__URL", receiver.url.as_str())]).await;
    app.complete(&app.create("a").await).await;
    app.process.event("job.failed").await;
    app.get("/nowhere").await;
    let ended = app.stop().await;
    assert!(ended.err.is_empty(), "nothing goes past the log: {:#?}", ended.err);
    let log = ended.log();
    assert!(log.len() > 8, "{log:#?}");
    for line in log {
        let timestamp = line["timestamp"].as_str().expect("a timestamp");
        let age = OffsetDateTime::now_utc() - OffsetDateTime::parse(timestamp, &Rfc3339).expect("a time");
        assert!((0..60).contains(&age.whole_seconds()), "{line}");
        assert!(line["target"].as_str().is_some_and(|target| target.starts_with("service::")), "{line}");
        assert!(["INFO", "WARN", "ERROR"].contains(&line["level"].as_str().expect("a level")), "{line}");
        let name = line["message"].as_str().expect("a message");
        let is_name = |text: &str| text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'_' | b'.'));
        assert!(!name.is_empty() && is_name(name), "a message is the name of an event: {line}");
    }
}

#[tokio::test]
async fn request_is_one_line_with_what_happened() {
    let mut app = TestApp::spawn(&[("APP__HTTP__TRUSTED_PROXIES", "127.0.0.1")]).await;
    let task = app.create("a").await;
    let request = app.request(Method::GET, &format!("{}?", path_of(&task))).header("x-request-id", "mine");
    Answer::to(request.header("x-forwarded-for", "9.9.9.9")).await;
    let line = app.process.event_where("http.request", |line| line["request_id"] == "mine").await;
    assert_eq!((&line["method"], &line["route"]), (&json!("GET"), &json!("/v1/tasks/{id}")));
    assert_eq!((&line["status"], &line["client"]), (&json!(200), &json!("9.9.9.0/24")));
    assert!(line["duration_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0 && seconds < 10.0));
    let created = app.process.event_where("http.request", |line| line["status"] == 201).await;
    assert_eq!(created["client"], "127.0.0.0/24", "no proxy was in between");
    let log = app.stop().await.log();
    assert_eq!(log.iter().filter(|line| line["message"] == "http.request").count(), 2, "{log:#?}");
}

#[tokio::test]
async fn access_lines_can_be_switched_off() {
    let app = TestApp::spawn(&[("APP__LOG__ACCESS", "false")]).await;
    app.create("a").await;
    assert!(!app.stop().await.names().contains(&"http.request".to_owned()));
}

#[tokio::test]
async fn trace_of_the_caller_is_continued() {
    let mut app = TestApp::spawn(&[]).await;
    let ask = async |id: &str, traceparent: &str| {
        let request = app.request(Method::GET, "/v1/tasks").header("x-request-id", id);
        Answer::to(request.header("traceparent", traceparent)).await;
    };
    ask("valid", &format!("00-{TRACE}-b7ad6b7169203331-01")).await;
    ask("invalid", &format!("00-{TRACE}-0000000000000000-01")).await;
    let line = app.process.event_where("http.request", |line| line["request_id"] == "valid").await;
    assert_eq!(line["trace_id"], TRACE);
    let span = line["span_id"].as_str().expect("a span");
    assert!(span.len() == 16 && span != "b7ad6b7169203331", "{span}");
    let line = app.process.event_where("http.request", |line| line["request_id"] == "invalid").await;
    assert_ne!(line["trace_id"], TRACE);
}

#[tokio::test]
async fn clients_can_not_forge_lines() {
    let app = TestApp::spawn(&[]).await;
    let hostile = r#"x","message":"service.exit","code":9,"x":""#;
    for header in ["x-request-id", "user-agent", "referer", "x-forwarded-for", "traceparent", "origin"] {
        Answer::to(app.request(Method::GET, "/v1/tasks").header(header, hostile)).await;
    }
    let mut wire = app.connect().await;
    wire.send("GET /%0a%7b%22message%22:%22service.exit%22%7d?%1b[2J HTTP/1.1\r\nhost: test\r\n\r\n").await;
    wire.answer().await;
    let mut wire = app.connect().await;
    wire.send("FORGED /v1/tasks HTTP/1.1\r\nhost: \"},{\r\nx-request-id: {\"a\":\"b\\n\"}\r\n\r\n").await;
    wire.answer().await;
    let ended = app.stop().await;
    let exits = ended.names().iter().filter(|name| *name == "service.exit").count();
    assert_eq!(exits, 1, "{:#?}", ended.out);
    let requests: Vec<Value> =
        ended.log().into_iter().filter(|line| line["message"] == "http.request").collect();
    assert_eq!(requests.len(), 8, "{requests:#?}");
    assert_eq!(requests[0]["request_id"], hostile, "kept, as text");
    assert_eq!(requests[7]["method"], "_OTHER");
}

#[tokio::test]
async fn other_lines_are_written_for_a_while_when_an_operator_asks() {
    let mut app = TestApp::spawn(&[]).await;
    let (address, admin, client) = (app.address, app.admin, app.client.clone());
    let change = async |query: &str, filter: &'static str| {
        let url = format!("http://{admin}/log/filter{query}");
        Answer::to(client.put(url).body(filter)).await.status
    };
    let break_off = async || {
        let mut wire = Wire::connect(address).await;
        wire.send("no HTTP\r\n\r\n").await;
        wire.answer_or_end().await;
    };
    break_off().await;
    // Only the scrape's own connection is left, so the end of the other one would have been logged by now.
    eventually(async || app.metrics().await, |page| page.contains("http_connections 1\n")).await;
    for (query, filter) in [("", ""), ("", "service=verbose"), ("?for=2h", "debug"), ("?until=1s", "debug")] {
        assert_eq!(change(query, filter).await, 400, "{query} {filter}");
    }
    assert_eq!(change("?for=1ms", "warn").await, 204);
    let first = app.process.event("log.filter_restored").await;
    for query in ["", "?for=1h", "?for=1m"] {
        assert_eq!(change(query, "info,service=debug").await, 204, "{query}");
    }
    break_off().await;
    app.process.event("connection.failed").await;
    assert_eq!(change("?for=2ms", "info,service=debug").await, 204);
    app.process.event_where("log.filter_restored", |line| line["timestamp"] != first["timestamp"]).await;
    break_off().await;
    let ended = app.stop().await;
    let failed = ended.names().iter().filter(|name| *name == "connection.failed").count();
    assert_eq!(failed, 1, "neither before nor after: {:#?}", ended.out);
    let log = ended.log();
    let changed = log.iter().filter(|line| line["message"] == "log.filter_changed");
    let times: Vec<_> = changed.map(|line| line["time"].as_str().unwrap_or_default()).collect();
    assert_eq!(times, ["1ms", "600s", "3600s", "60s", "2ms"]);
}
