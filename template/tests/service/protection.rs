//! What one client can't do to the others: deadlines, caps and limits, each shown with a client that exceeds it.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;

use crate::app::{Answer, TestApp, eventually};
use crate::wire::{NEW_TASK_HEAD, Wire};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn connections_without_a_whole_head_are_closed() {
    let app = TestApp::spawn(&[("APP__HTTP__HEADER_READ_TIMEOUT", "500ms")]).await;
    let began = Instant::now();
    let mut silent = app.connect().await;
    let mut half = app.connect().await;
    half.send("GET /health HTTP/1.1\r\nhost: te").await;
    let mut preface = app.connect().await;
    preface.send("PRI * HTTP/2.0\r\n").await;
    let mut second = app.connect().await;
    assert_eq!(second.get("/health").await.status, 200);
    second.send("GET /hea").await;
    for connection in [&mut silent, &mut half, &mut preface, &mut second] {
        connection.closed().await;
        let took = began.elapsed();
        assert!(took >= SECOND / 2 && took < SECOND * 4, "{took:?}");
        assert_eq!(app.get("/health").await.status, 200, "others are served");
    }
}

#[tokio::test]
async fn head_that_comes_byte_by_byte_is_not_waited_for() {
    let app = TestApp::spawn(&[("APP__HTTP__HEADER_READ_TIMEOUT", "500ms")]).await;
    let began = Instant::now();
    let mut slow = app.connect().await;
    slow.send("GET /health HTTP/1.1\r\nx-slow: ").await;
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    while tokio::time::timeout(Duration::from_millis(1), slow.closed()).await.is_err() {
        ticks.tick().await;
        slow.try_send("x").await;
        assert!(began.elapsed() < SECOND * 4, "each byte moves the deadline");
    }
    assert!(began.elapsed() >= SECOND / 2);
}

#[tokio::test]
async fn idle_connections_are_kept_for_a_while_and_closed() {
    let app = TestApp::spawn(&[("APP__HTTP__IDLE_TIMEOUT", "2s")]).await;
    let mut kept = app.connect().await;
    for _ in 0..2 {
        assert_eq!(kept.get("/health").await.status, 200);
        assert!(tokio::time::timeout(SECOND / 5, kept.closed()).await.is_err(), "closed too early");
    }
    let began = Instant::now();
    kept.closed().await;
    assert!(began.elapsed() < SECOND * 8, "{:?}", began.elapsed());
}

#[tokio::test]
async fn body_that_stalls_is_given_up() {
    let app = TestApp::spawn(&[("APP__HTTP__BODY_TIMEOUT", "300ms")]).await;
    let began = Instant::now();
    let mut upload = app.connect().await;
    upload.send_head(100).await;
    upload.send("{").await;
    let answer = upload.answer().await;
    assert_eq!((answer.status, &answer.json()["category"]), (504, &json!("timeout")));
    let took = began.elapsed();
    assert!(took >= SECOND * 3 / 10 && took < SECOND * 4, "{took:?}");
    let told = async || {
        let of = "{method=\"POST\",route=\"/v1/tasks\",status=\"504\"}";
        app.sample(&format!("http_request_duration_seconds_sum{of}")).await
    };
    let seconds = eventually(told, Option::is_some).await.unwrap_or_default();
    assert!(seconds >= 0.3 && seconds <= took.as_secs_f64(), "{seconds} of {took:?}");
}

#[tokio::test]
async fn request_that_takes_too_long_is_given_up() {
    let limits = [("APP__HTTP__REQUEST_TIMEOUT", "300ms"), ("APP__HTTP__BODY_TIMEOUT", "60s")];
    let app = TestApp::spawn(&limits).await;
    let mut upload = app.connect().await;
    upload.send_head(100).await;
    let answer = upload.answer().await;
    assert_eq!((answer.status, &answer.json()["category"]), (504, &json!("timeout")));
}

#[tokio::test]
async fn answer_before_the_body_has_come_tells_that_the_connection_ends() {
    let app = TestApp::spawn(&[]).await;
    for line in ["POST /nowhere", "PUT /v1/tasks"] {
        let mut client = app.connect().await;
        client.send(&format!("{line} HTTP/1.1\r\nhost: test\r\ncontent-length: 13\r\n\r\n")).await;
        assert_eq!(client.answer().await.header("connection"), "close", "{line}");
    }
    let mut client = app.connect().await;
    client.begin(13).await;
    client.send(r#"{"title":"a"}"#).await;
    assert_eq!(client.answer().await.header("connection"), "", "a body that was read is in nobody's way");
}

#[tokio::test]
async fn requests_beyond_the_cap_are_turned_away_and_probes_are_not() {
    let slow = ("APP__HTTP__BODY_TIMEOUT", "60s");
    let app = TestApp::spawn(&[("APP__HTTP__MAX_IN_FLIGHT", "1"), slow]).await;
    let mut holding = app.connect().await;
    holding.begin(13).await;
    assert!(app.metrics().await.contains("http_requests_in_flight 1\n"));
    let refused = app.get("/v1/tasks").await;
    assert_eq!((refused.status, &refused.json()["category"]), (503, &json!("overloaded")));
    assert!(refused.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds >= 1), "{refused:?}");
    for path in ["/health", "/ready"] {
        assert_eq!(app.get(path).await.status, 200, "{path}");
    }
    assert_eq!(app.admin("/metrics").await.status, 200);
    holding.send(r#"{"title":"a"}"#).await;
    assert_eq!(holding.answer().await.status, 201, "what was taken is finished");
    eventually(async || app.get("/v1/tasks").await.status, |status| *status == 200).await;
}

#[tokio::test]
async fn connections_beyond_the_cap_wait_for_a_place() {
    let patient = ("APP__HTTP__HEADER_READ_TIMEOUT", "60s");
    let app = TestApp::spawn(&[("APP__HTTP__MAX_CONNECTIONS", "1"), patient]).await;
    let mut first = app.connect().await;
    assert_eq!(first.get("/health").await.status, 200);
    let mut waiting = app.connect().await;
    let request = waiting.get("/health");
    tokio::pin!(request);
    assert!(tokio::time::timeout(SECOND / 5, &mut request).await.is_err(), "it was not to be served yet");
    drop(first);
    assert_eq!(request.await.status, 200);

    // The admin port has a cap as well, or its connections would take the descriptors that the service itself needs.
    for silent in [false, true] {
        let probe = async |_| {
            let mut probe = Wire::connect(app.admin).await;
            if !silent {
                assert_eq!(probe.get("/health/live").await.status, 200);
            }
            probe
        };
        let _probes = join_all((0..100).map(probe)).await;
        let mut waiting = Wire::connect(app.admin).await;
        let request = waiting.get("/health/live");
        tokio::pin!(request);
        assert!(tokio::time::timeout(SECOND / 5, &mut request).await.is_err(), "it was not to be served yet");
        assert_eq!(request.await.status, 200, "they are not kept for long");
    }
}

#[tokio::test]
async fn body_that_comes_byte_by_byte_takes_no_page_for_each() {
    let app =
        TestApp::spawn(&[("APP__HTTP__BODY_TIMEOUT", "60s"), ("APP__HTTP__REQUEST_TIMEOUT", "20s")]).await;
    let memory = async || app.sample("process_resident_memory_bytes").await.expect("the metric");
    let before = memory().await;
    let mut uploads = Vec::new();
    for _ in 0..40 {
        let mut upload = app.connect().await;
        upload.send_head(100_000).await;
        uploads.push(upload);
    }
    for _ in 0..400 {
        for upload in &mut uploads {
            upload.send("x").await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let grown = memory().await - before;
    assert!(grown < 15e6, "{grown} bytes for 16,000");
}

/// A service with long pages, which waits at most `body_timeout` for a client to read some of one.
async fn with_long_pages(body_timeout: &str) -> TestApp {
    let app = TestApp::spawn(&[("APP__HTTP__BODY_TIMEOUT", body_timeout)]).await;
    for _ in 0..30 {
        let task = json!({ "title": "long", "description": "x".repeat(10_000) });
        assert_eq!(app.post("/v1/tasks", &task).await.status, 201);
    }
    app
}

#[tokio::test]
async fn client_that_reads_nothing_is_dropped() {
    let app = with_long_pages("300ms").await;
    let open = |count: usize| move |text: &String| text.contains(&format!("http_connections {count}\n"));
    // The test's own connections, one to each listener, and this third one.
    let mut deaf = app.connect().await;
    eventually(async || app.metrics().await, open(3)).await;
    // More than the kernel buffers for a client that does not read.
    for _ in 0..40 {
        deaf.try_send("GET /v1/tasks?limit=100 HTTP/1.1\r\nhost: test\r\n\r\n").await;
    }
    eventually(async || app.metrics().await, open(2)).await;
    drop(deaf);
}

#[tokio::test]
async fn client_that_reads_slowly_gets_all_and_is_let_go_of() {
    let app = with_long_pages("3s").await;
    let mut slow = app.connect().await;
    for _ in 0..150 {
        slow.send("GET /v1/tasks?limit=100 HTTP/1.1\r\nhost: test\r\n\r\n").await;
    }
    for _ in 0..150 {
        tokio::time::sleep(Duration::from_millis(40)).await;
        assert_eq!(slow.answer().await.status, 200);
    }
    eventually(async || app.sample("http_requests_in_flight").await, |count| *count == Some(0.0)).await;
    assert_eq!(slow.get("/health").await.status, 200);
}

#[tokio::test]
async fn head_without_end_is_refused() {
    let app = TestApp::spawn(&[("APP__HTTP__HEADER_READ_TIMEOUT", "60s")]).await;
    let mut large = app.connect().await;
    large.send("GET /health HTTP/1.1\r\nx-large: ").await;
    let part = "x".repeat(64 * 1024);
    for _ in 0..16 {
        large.try_send(&part).await;
    }
    let said = large.closed().await;
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 431"), "{said}");
    assert_eq!(app.get("/health").await.status, 200);
}

#[tokio::test]
async fn browsers_of_other_origins_are_let_in_only_where_configured() {
    let ask = async |app: &TestApp, origin: &str| {
        let preflight = app.request(Method::OPTIONS, "/v1/tasks").header("origin", origin);
        let preflight = Answer::to(preflight.header("access-control-request-method", "POST")).await;
        let plain = Answer::to(app.request(Method::GET, "/v1/tasks").header("origin", origin)).await;
        [preflight, plain].map(|answer| answer.header("access-control-allow-origin").to_owned())
    };
    let ours = "https://app.example.com";
    let closed = TestApp::spawn(&[]).await;
    assert_eq!(ask(&closed, ours).await, ["", ""]);
    let local = "http://localhost:3000";
    let both = [ours, local].join(", ");
    let open = TestApp::spawn(&[("APP__HTTP__CORS_ALLOWED_ORIGINS", both.as_str())]).await;
    assert_eq!(ask(&open, ours).await, [ours, ours]);
    assert_eq!(ask(&open, local).await, [local, local]);
    assert_eq!(ask(&open, "https://evil.example.com").await, ["", ""]);
    assert_eq!(Answer::to(open.request(Method::OPTIONS, "/v1/tasks")).await.status, 405);
    let preflight = open.request(Method::OPTIONS, "/v1/tasks").header("origin", ours);
    let preflight = Answer::to(preflight.header("access-control-request-method", "PATCH")).await;
    let methods = preflight.header("access-control-allow-methods");
    for method in ["GET", "POST", "PATCH", "DELETE"] {
        assert!(methods.contains(method), "{method}: {methods}");
    }
    let allowed = preflight.header("access-control-allow-headers");
    for header in ["authorization", "content-type", "if-match", "x-request-id", "traceparent"] {
        assert!(allowed.contains(header), "{header}: {allowed}");
    }
    let answer = Answer::to(open.request(Method::GET, "/v1/tasks").header("origin", ours)).await;
    let exposed: Vec<&str> = answer.header("access-control-expose-headers").split(',').collect();
    for header in ["etag", "location", "retry-after", "x-request-id"] {
        assert!(exposed.contains(&header), "{header}: {exposed:?}");
    }
    //@ if rate_limit
    assert!(["ratelimit", "ratelimit-policy"].iter().all(|header| exposed.contains(header)), "{exposed:?}");
    //@ end
}

#[tokio::test]
async fn every_answer_tells_browsers_to_be_careful() {
    let app = TestApp::spawn(&[]).await;
    for path in ["/v1/tasks", "/nowhere", "/health", "/docs"] {
        let answer = app.get(path).await;
        let careful = [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
        ];
        for (header, value) in careful {
            assert_eq!(answer.header(header), value, "{path} {header}");
        }
        let policy: Vec<&str> = answer.header("content-security-policy").split("; ").collect();
        for own in ["default-src 'none'", "connect-src 'self'", "script-src 'self'", "style-src 'self'"] {
            assert!(policy.contains(&own), "{path} {own}: {policy:?}");
        }
    }
}

#[tokio::test]
async fn client_that_waits_to_be_asked_for_its_body_is_asked_or_refused() {
    let app = TestApp::spawn(&[]).await;
    let mut wire = app.connect().await;
    wire.begin(13).await;
    wire.send(r#"{"title":"a"}"#).await;
    assert_eq!(wire.answer().await.status, 201);

    for (refused, status) in [("content-length: 1048577", 413), ("content-length: 13\r\nhost: test", 400)] {
        let mut wire = app.connect().await;
        wire.send(&format!("{NEW_TASK_HEAD}expect: 100-continue\r\n{refused}\r\n\r\n")).await;
        assert_eq!(wire.answer().await.status, status, "the final answer, and no 100 before it");
        assert_eq!(wire.closed().await, "", "what follows may be the body or not");
    }
}

#[tokio::test]
async fn refusal_reaches_a_client_that_goes_on_sending() {
    let app = TestApp::spawn(&[]).await;
    let mut wire = app.connect().await;
    wire.send_head(8 << 20).await;
    let part = "x".repeat(1 << 16);
    for _ in 0..128 {
        wire.send(&part).await;
    }
    let answer = wire.answer().await;
    assert_eq!((answer.status, &answer.json()["category"]), (413, &json!("too_large")));
    wire.closed().await;
}

#[tokio::test]
async fn clients_of_http_1_0_are_served() {
    let app = TestApp::spawn(&[]).await;
    let mut once = app.connect().await;
    once.send("GET /v1/tasks HTTP/1.0\r\n\r\n").await;
    assert_eq!(once.answer().await.status, 200);
    assert_eq!(once.closed().await, "");

    let mut kept = app.connect().await;
    for _ in 0..2 {
        kept.send("GET /v1/tasks HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await;
        let answer = kept.answer().await;
        assert_eq!((answer.status, answer.header("connection")), (200, "keep-alive"));
    }
    kept.send("GET /v1/tasks HTTP/1.0\r\nconnection: close\r\n\r\n").await;
    assert_eq!(kept.answer().await.status, 200);
    assert_eq!(kept.closed().await, "");
}

#[tokio::test]
async fn other_protocols_are_not_switched_to() {
    let app = TestApp::spawn(&[]).await;
    let offers = [
        "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AQIDBAUGBwgJCgsMDQ4PEA==",
        "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__",
    ];
    for offer in offers {
        let mut wire = app.connect().await;
        wire.send(&format!("GET /v1/tasks HTTP/1.1\r\nhost: test\r\n{offer}\r\n\r\n")).await;
        let answer = wire.answer().await;
        assert_eq!((answer.status, answer.header("upgrade")), (200, ""));
        assert_eq!(wire.get("/health").await.status, 200, "the connection goes on as it was");
    }
}
