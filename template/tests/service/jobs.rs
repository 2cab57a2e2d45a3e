//! Work outside the request: the webhook of a completed task, delivered as Standard Webhooks says, retried until the
//! receiver accepts it, and not sent again after that.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::Method;
use ring::hmac;
use rustix::process::Signal;
use serde_json::json;

use crate::app::{Answer, TestApp, eventually, path_of};
use crate::process::Variables;
use crate::proxy::Proxy;
use crate::receiver::{Call, Receiver};

const KEY: [u8; 32] = [7; 32];

/// A service that calls `url`, with additional `variables`.
pub async fn calling(url: &str, variables: Variables<'_>) -> TestApp {
    let secret = format!("whsec_{}", BASE64.encode(KEY));
    let calling = [("APP__WEBHOOK__URL", url), ("APP__WEBHOOK__SECRET", secret.as_str())];
    TestApp::spawn(&[&calling, variables].concat()).await
}

/// Waits until this number of runs with this outcome has been counted.
async fn counted(app: &TestApp, outcome: &str, runs: u64) {
    let sample = format!("jobs_total{{job=\"webhook\",outcome=\"{outcome}\"}} {runs}\n");
    eventually(async || app.metrics().await, |text| text.contains(&sample)).await;
}

fn is_signed(call: &Call) -> bool {
    let signed =
        [call.header("webhook-id").as_bytes(), b".", call.header("webhook-timestamp").as_bytes(), b"."];
    let message = [signed.concat(), call.body.to_vec()].concat();
    let signature =
        call.header("webhook-signature").strip_prefix("v1,").and_then(|text| BASE64.decode(text).ok());
    let key = hmac::Key::new(hmac::HMAC_SHA256, &KEY);
    signature.is_some_and(|signature| hmac::verify(&key, &message, &signature).is_ok())
}

//@ if postgres
#[tokio::test]
async fn job_that_might_not_end_before_the_deadline_is_not_started_however_long_requests_take() {
    let receiver = Receiver::start().await;
    receiver.answers(None);
    let limits = [
        ("APP__JOBS__CONCURRENCY", "5"),
        ("APP__SHUTDOWN__DRAIN_TIMEOUT", "4s"),
        // A second less, as recording how a run ended takes time too; workers look for due jobs twice a second.
        ("APP__WEBHOOK__TIMEOUT", "2900ms"),
        ("APP__HTTP__REQUEST_TIMEOUT", "3s"),
    ];
    let mut app = calling(&receiver.url, &limits).await;
    for _ in 0..5 {
        app.complete(&app.create("a").await).await;
    }
    let mut slow = app.connect().await;
    slow.send("POST /v1/tasks HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{")
        .await;
    receiver.calls(5).await;
    receiver.answers(500);
    // The next attempts are due while that request is waited for, from half a second on and within 1.5 s.
    app.process.event("job.retry").await;
    let ended = app.stop().await;
    assert_eq!((ended.code, receiver.calls(5).await.len()), (Some(0), 5), "{ended:#?}");
}

//@ end
#[tokio::test]
async fn completed_task_is_announced_once_with_id_time_signature_and_trace() {
    let receiver = Receiver::start().await;
    let mut app = calling(&format!("{}/hook?token=1", receiver.url), &[]).await;
    let task = app.create("a").await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let request = app.request(Method::POST, &format!("{}/complete", path_of(&task)));
    let traced = request.header("traceparent", format!("00-{trace}-b7ad6b7169203331-01"));
    let completed = Answer::to(traced.header("x-request-id", "cause")).await.json();

    let call = receiver.calls(1).await.remove(0);
    assert_eq!((call.path.as_str(), call.header("content-type")), ("/hook", "application/json"));
    assert!(is_signed(&call), "{call:?}");
    let age = time::OffsetDateTime::now_utc().unix_timestamp()
        - call.header("webhook-timestamp").parse::<i64>().expect("seconds");
    assert!((0..=5).contains(&age), "{age}");
    let event = call.json();
    assert_eq!((&event["type"], &event["data"]), (&json!("task.completed"), &completed));
    assert_eq!(event["timestamp"], completed["completed_at"]);
    let parent: Vec<_> = call.header("traceparent").split('-').collect();
    assert!(parent.len() == 4 && parent[1] == trace && parent[2] != "b7ad6b7169203331", "{parent:?}");

    let done = app.process.event("job.done").await;
    assert_eq!((&done["id"], &done["request_id"]), (&json!(call.header("webhook-id")), &json!("cause")));
    assert_eq!((&done["attempts"], &done["trace_id"]), (&json!(1), &json!(trace)));

    // A second completion sends nothing; the webhook of another task would come after anything that it had sent.
    assert_eq!(app.complete(&task).await.status, 200);
    let other = app.create("b").await;
    assert_eq!(app.complete(&other).await.status, 200);
    let calls = receiver.calls(2).await;
    assert_eq!(calls[1].json()["data"]["id"], other["id"]);
    assert_ne!(calls[1].header("webhook-id"), calls[0].header("webhook-id"));
    let begun = calls[1].header("traceparent");
    assert!(begun.ends_with("-00"), "one begins where the caller sent none, and is not recorded: {begun}");
    app.stop().await;
    assert_eq!(receiver.calls(2).await.len(), 2);
}

#[tokio::test]
async fn delivery_is_repeated_until_it_is_taken() {
    let receiver = Receiver::start().await;
    receiver.answers(500);
    let mut app = calling(&receiver.url, &[]).await;
    assert_eq!(app.complete(&app.create("a").await).await.status, 200, "the request does not wait for it");
    let retry = app.process.event("job.retry").await;
    assert_eq!(retry["attempts"], 1);
    receiver.answers(204);
    let calls = receiver.calls(2).await;
    assert_eq!(
        calls[0].header("webhook-id"),
        calls[1].header("webhook-id"),
        "a receiver can tell a repetition"
    );
    assert_eq!(calls[0].body, calls[1].body);
    assert!(calls.iter().all(is_signed));
    // Two, unless the second attempt came before the receiver had changed its answer.
    let attempts = app.process.event("job.done").await["attempts"].as_u64().expect("a number");
    assert_eq!(
        receiver.calls(2).await.len() as u64,
        attempts,
        "each is a call, and the one that is taken is the last"
    );
    counted(&app, "retry", attempts - 1).await;
    counted(&app, "done", 1).await;
}

#[tokio::test]
async fn pauses_between_attempts_grow() {
    let receiver = Receiver::start().await;
    receiver.answers(500);
    let mut app = calling(&receiver.url, &[]).await;
    app.complete(&app.create("a").await).await;
    let third = app.process.event_where("job.retry", |line| line["attempts"] == 3).await;
    let pause = third["retry_in"].as_str().and_then(|text| text.strip_suffix('s')?.parse().ok());
    assert!((2.0..=6.0).contains(&pause.unwrap_or(0.0)), "4 s, give or take half: {third}");
}

#[tokio::test]
async fn receiver_that_comes_back_gets_what_it_missed() {
    let receiver = Receiver::start().await;
    let proxy = Proxy::to(&receiver.address).await;
    proxy.cut();
    let mut app = calling(&format!("http://{}/", proxy.address), &[]).await;
    let task = app.create("a").await;
    assert_eq!(app.complete(&task).await.status, 200);
    app.process.event("job.retry").await;
    proxy.mend();
    assert_eq!(receiver.calls(1).await[0].json()["data"]["id"], task["id"]);
}

#[tokio::test]
async fn delivery_that_is_refused_or_tried_too_often_is_given_up() {
    // Some client errors may be temporary, such as Request Timeout or Too Early, and are retried like server errors.
    let answers = vec![(400, 1), (410, 1), (408, 2), (409, 2), (425, 2), (503, 2)];
    //@ if rate_limit
    let answers = [answers, vec![(429, 2)]].concat();
    //@ end
    for (status, attempts) in answers {
        let receiver = Receiver::start().await;
        receiver.answers(status);
        let mut app = calling(&receiver.url, &[("APP__JOBS__MAX_ATTEMPTS", "2")]).await;
        // There from the start: an alert can't see the increase that makes a series appear.
        counted(&app, "failed", 0).await;
        app.complete(&app.create("a").await).await;
        let failed = app.process.event("job.failed").await;
        assert_eq!((&failed["level"], &failed["attempts"]), (&json!("ERROR"), &json!(attempts)), "{status}");
        assert!(failed["reason"].to_string().contains(&status.to_string()), "{failed}");
        assert_eq!(receiver.calls(attempts).await.len(), attempts);
        counted(&app, "failed", 1).await;
    }
}

#[tokio::test]
async fn full_queue_refuses_before_anything_is_written() {
    let receiver = Receiver::start().await;
    receiver.answers(None);
    let limits = [("APP__JOBS__QUEUE_CAPACITY", "1"), ("APP__JOBS__CONCURRENCY", "2")];
    let app = calling(&receiver.url, &limits).await;
    assert_eq!(app.sample("jobs_queue_depth_max").await, Some(1.0));
    let (mut completed, mut refused) = (None, None);
    // Two run and one waits; the test has no say in which.
    for number in 1..=4 {
        let task = app.create(&number.to_string()).await;
        let answer = app.complete(&task).await;
        if answer.status != 200 {
            refused = Some((answer, task));
            break;
        }
        completed = Some(answer.json());
    }
    let (answer, task) = refused.expect("one of four is too many");
    assert_eq!((answer.status, &answer.json()["category"]), (503, &json!("overloaded")));
    assert!(answer.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds >= 1));
    assert_eq!(app.get(&path_of(&task)).await.json(), task, "nothing was written");
    assert_eq!(app.patch(&path_of(&task), &json!({ "title": "b" })).await.status, 200, "the rest goes on");

    let completed = completed.expect("some of four have room");
    let again = app.complete(&completed).await;
    assert_eq!(
        (again.status, again.json()),
        (200, completed.clone()),
        "no one is to be told, so no room is needed"
    );
    let request = app.request(Method::POST, &format!("{}/complete", path_of(&completed)));
    let stale = Answer::to(request.header("if-match", "\"1\"")).await;
    assert_eq!((stale.status, &stale.json()["category"]), (412, &json!("conflict")));
    let nothing = app.complete(&json!({ "id": "00000000-0000-7000-8000-000000000000" })).await;
    assert_eq!(nothing.status, 404);
}

#[tokio::test]
async fn jobs_that_are_tried_again_take_room_as_well() {
    let receiver = Receiver::start().await;
    receiver.answers(500);
    let limits = [("APP__JOBS__QUEUE_CAPACITY", "3"), ("APP__JOBS__CONCURRENCY", "1")];
    let app = calling(&receiver.url, &limits).await;
    let mut taken = 0;
    for number in 0..20 {
        let status = app.complete(&app.create(&number.to_string()).await).await.status;
        assert!([200, 503].contains(&status), "{status}");
        taken += usize::from(status == 200);
    }
    assert!((3..=4).contains(&taken), "{taken} of 20, where three wait and one runs");
}

#[tokio::test]
async fn receiver_that_fails_leaves_the_service_ready_and_degraded() {
    let receiver = Receiver::start().await;
    receiver.answers(500);
    let app = calling(&receiver.url, &[("APP__HEALTH__INTERVAL", "100ms")]).await;
    let degraded = async || {
        let answer = app.admin("/health/ready").await;
        (answer.status == 200).then(|| answer.json()["degraded"].clone())
    };
    eventually(degraded, |degraded| *degraded == Some(json!(false))).await;
    app.complete(&app.create("a").await).await;
    eventually(degraded, |degraded| *degraded == Some(json!(true))).await;
    assert_eq!(app.sample("dependency_up{dependency=\"webhook\"}").await, Some(0.0));
    // The receiver works: what it refuses for good is the event.
    receiver.answers(410);
    eventually(degraded, |degraded| *degraded == Some(json!(false))).await;

    receiver.answers(500);
    app.complete(&app.create("b").await).await;
    eventually(degraded, |degraded| *degraded == Some(json!(true))).await;
    receiver.answers(204);
    eventually(degraded, |degraded| *degraded == Some(json!(false))).await;
}

#[tokio::test]
async fn queue_tells_how_long_it_is_and_how_old() {
    let receiver = Receiver::start().await;
    receiver.answers(None);
    let app = calling(&receiver.url, &[("APP__JOBS__CONCURRENCY", "1")]).await;
    for title in ["a", "b"] {
        app.complete(&app.create(title).await).await;
    }
    let gauges = async || {
        [app.sample("jobs_queue_depth").await, app.sample("jobs_queue_oldest_seconds").await]
            .map(Option::unwrap_or_default)
    };
    eventually(gauges, |[depth, age]| *depth >= 1.0 && (1.0..60.0).contains(age)).await;
    receiver.answers(204);
    eventually(gauges, |gauges| *gauges == [0.0, 0.0]).await;
    // The first job ran for as long as the second one waited.
    let took = app.sample("job_duration_seconds_sum{job=\"webhook\"}").await;
    assert!((1.0..60.0).contains(&took.unwrap_or_default()), "{took:?}");
}

#[tokio::test]
async fn jobs_run_up_to_the_concurrency_limit() {
    let receiver = Receiver::start().await;
    receiver.answers(None);
    let slow = [("APP__WEBHOOK__TIMEOUT", "20s"), ("APP__JOBS__CONCURRENCY", "2")];
    let app = calling(&receiver.url, &slow).await;
    for title in ["a", "b", "c"] {
        app.complete(&app.create(title).await).await;
    }
    receiver.calls(2).await;
    //@ if postgres
    // No other replica takes one of them meanwhile.
    let held = "jobs WHERE run_at > now() + interval '45 seconds'";
    assert_eq!(app.process.database().count(held).await, 2);
    //@ end
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(receiver.calls(2).await.len(), 2);
    receiver.answers(204);
    receiver.calls(3).await;
}

#[tokio::test]
async fn jobs_are_run_as_they_come() {
    let receiver = Receiver::start().await;
    let app = calling(&receiver.url, &[]).await;
    let began = Instant::now();
    for number in 1..=20 {
        app.complete(&app.create("a").await).await;
        receiver.calls(number).await;
    }
    // A worker is woken for each, rather than finding it when it next polls.
    assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
}

#[tokio::test]
async fn job_that_waits_to_be_tried_again_does_not_cut_the_drain_short() {
    let receiver = Receiver::start().await;
    receiver.answers(500);
    let mut app = calling(&receiver.url, &[]).await;
    app.complete(&app.create("a").await).await;
    app.process.event("job.retry").await;
    receiver.answers(204);
    let ended = app.stop().await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
}

#[tokio::test]
async fn jobs_that_run_and_those_that_wait_are_finished_during_the_drain() {
    let receiver = Receiver::start().await;
    receiver.answers(None);
    let mut app = calling(&receiver.url, &[("APP__JOBS__CONCURRENCY", "1")]).await;
    for title in ["a", "b", "c"] {
        app.complete(&app.create(title).await).await;
    }
    receiver.calls(1).await;
    app.process.signal(Signal::TERM);
    app.process.event("shutdown.begin").await;
    receiver.answers(204);
    let ended = app.process.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    let names = ended.names();
    let before = names.iter().take_while(|event| *event != "shutdown.drain_complete");
    assert_eq!(before.filter(|event| *event == "job.done").count(), 3, "{names:?}");
}

#[tokio::test]
async fn names_that_lead_inside_are_called_only_where_allowed() {
    let receiver = Receiver::start().await;
    let port = receiver.address.rsplit(':').next().expect("a port");
    let url = format!("http://localhost:{port}/");
    let mut app = calling(&url, &[("APP__WEBHOOK__ALLOW_PRIVATE_ADDRESSES", "false")]).await;
    app.complete(&app.create("a").await).await;
    let retry = app.process.event("job.retry").await;
    assert!(retry["reason"].to_string().contains("allow_private_addresses"), "{retry}");
    assert!(receiver.calls(0).await.is_empty(), "no connection was made");

    let allowed = calling(&url, &[]).await;
    allowed.complete(&allowed.create("a").await).await;
    receiver.calls(1).await;
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let receiver = Receiver::start().await;
    receiver.answers(307);
    let mut app = calling(&format!("{}/hook", receiver.url), &[]).await;
    app.complete(&app.create("a").await).await;
    let retry = app.process.event("job.retry").await;
    assert!(retry["reason"].to_string().contains("307"), "{retry}");
    let calls = receiver.calls(1).await;
    assert!(calls.iter().all(|call| call.path == "/hook"), "{calls:?}");
}
