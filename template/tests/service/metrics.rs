//! Metrics: every promised name is there, counts are right, and no client can make the number of series grow.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::json;

use crate::app::{Answer, TestApp, eventually, path_of};
use crate::receiver::Receiver;

/// The names that dashboards and alerts rely on.
fn promised() -> impl Iterator<Item = &'static str> {
    let names = vec![
        "http_requests_total",
        "http_request_duration_seconds",
        "http_requests_in_flight",
        "http_requests_in_flight_max",
        "http_connections",
        "http_connections_max",
        "errors_total",
        "panics_total",
        "jobs_queue_depth",
        "jobs_queue_depth_max",
        "jobs_queue_oldest_seconds",
        "jobs_total",
        "job_duration_seconds",
        "tasks_total",
        "cache_requests_total",
        "service_state",
        "service_info",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "tokio_workers",
        "tokio_alive_tasks",
        "log_lines_dropped_total",
    ];
    //@ if postgres
    let names =
        [names, vec!["db_pool_connections", "db_pool_acquire_seconds", "db_query_duration_seconds"]].concat();
    let names = [names, vec!["db_pool_connections_max"]].concat();
    let names = [names, vec!["dependency_up{dependency=\"postgres\"}"]].concat();
    //@ end
    //@ if redis
    let names =
        [names, vec!["dependency_up{dependency=\"redis\"}", "cache_requests_total{tier=\"redis\""]].concat();
    //@ end
    //@ if rate_limit
    let names = [names, vec!["rate_limited_total"]].concat();
    //@ end
    names.into_iter()
}

/// The series of a scrape: each sample without its value.
fn series(page: &str) -> BTreeSet<String> {
    let samples = page.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    samples.filter_map(|line| line.rsplit_once(' ')).map(|(series, _)| series.to_owned()).collect()
}

#[tokio::test]
async fn page_has_every_promised_name() {
    let receiver = Receiver::start().await;
    let mut app = TestApp::spawn(&[("APP__WEBHOOK__URL", receiver.url.as_str())]).await;
    assert_eq!(app.sample("jobs_queue_depth").await, Some(0.0), "from the start");
    let task = app.create("a").await;
    app.get(&path_of(&task)).await;
    app.get("/nowhere").await;
    app.complete(&task).await;
    app.process.event("job.done").await;
    // The queue is measured only once a second.
    let late = ["\njobs_queue_oldest_seconds ", "\njob_duration_seconds_count"];
    eventually(async || app.metrics().await, |page| late.iter().all(|name| page.contains(name))).await;
    let answer = app.admin("/metrics").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "text/plain; version=0.0.4"));
    let found = series(&answer.body);
    let missing = promised().filter(|name| !found.iter().any(|series| series.starts_with(name)));
    assert_eq!(missing.collect::<Vec<_>>(), [""; 0], "names without a series");
    let described =
        |name: &&str| answer.body.contains(&format!("# HELP {} ", name.split('{').next().unwrap_or(name)));
    let bare: Vec<_> = promised().filter(|name| !described(name)).collect();
    assert_eq!(bare, [""; 0], "names without a meaning");
    assert!(app.sample("tokio_alive_tasks").await > Some(3.0));
}

#[tokio::test]
async fn requests_and_errors_are_counted_by_route() {
    let app = TestApp::spawn(&[]).await;
    for _ in 0..3 {
        app.create("a").await;
    }
    app.post("/v1/tasks", &json!({ "title": "" })).await;
    let task = app.create("b").await;
    for _ in 0..2 {
        assert_eq!(app.complete(&task).await.status, 200);
    }
    app.delete(&path_of(&task)).await;
    let counted = [
        "http_requests_total{method=\"POST\",route=\"/v1/tasks\",status=\"201\"} 4",
        "http_requests_total{method=\"POST\",route=\"/v1/tasks\",status=\"422\"} 1",
        "http_requests_total{method=\"DELETE\",route=\"/v1/tasks/{id}\",status=\"204\"} 1",
        "http_request_duration_seconds_count{method=\"POST\",route=\"/v1/tasks\",status=\"201\"} 4",
        "errors_total{category=\"validation\"} 1",
        "tasks_total{event=\"created\"} 4",
        "tasks_total{event=\"completed\"} 1",
        "tasks_total{event=\"deleted\"} 1",
        "http_requests_in_flight 0",
        "service_state{state=\"ready\"} 1",
        "service_state{state=\"starting\"} 0",
    ];
    let all = |page: &String| counted.iter().all(|sample| page.lines().any(|line| line == *sample));
    eventually(async || app.metrics().await, all).await;
}

#[tokio::test]
async fn clients_can_not_add_series() {
    let app = TestApp::spawn(&[]).await;
    let ask = async |number: usize| {
        let method = Method::from_bytes(format!("MADE-UP-{number}").as_bytes()).expect("a method");
        let made_up = uuid::Uuid::now_v7();
        Answer::to(app.request(method, &format!("/{made_up}"))).await;
        app.get(&format!("/v1/tasks/{made_up}")).await;
        app.get(&format!("/v1/tasks?status={made_up}")).await;
        app.get(&format!("/v1/{made_up}?{made_up}")).await;
    };
    ask(0).await;
    // Meanwhile the service's own background work may add some series.
    let by_clients =
        |one: &String| ["http_", "errors_", "cache_"].iter().any(|prefix| one.starts_with(prefix));
    //@ if redis
    // So may a Redis that is slow to answer.
    let by_clients = |one: &String| by_clients(one) && !one.contains("outcome=\"error\"");
    //@ end
    let page = async || -> BTreeSet<String> {
        series(&app.metrics().await).into_iter().filter(by_clients).collect()
    };
    // A request is counted once its response is sent, which the client may receive a moment earlier.
    let before =
        eventually(page, |found| found.iter().any(|one| one.contains("GET") && one.contains("unmatched")))
            .await;
    for number in 1..20 {
        ask(number).await;
    }
    let after = page().await;
    let added: Vec<_> = after.difference(&before).collect();
    assert!(added.is_empty(), "{added:#?}");
}

#[tokio::test]
async fn connections_are_counted_while_they_are_open() {
    let app = TestApp::spawn(&[]).await;
    let has = |count: usize| move |page: &String| page.contains(&format!("http_connections {count}\n"));
    // One is the scrape's own connection.
    let first = app.connect().await;
    let second = app.connect().await;
    eventually(async || app.metrics().await, has(3)).await;
    drop((first, second));
    eventually(async || app.metrics().await, has(1)).await;
}
