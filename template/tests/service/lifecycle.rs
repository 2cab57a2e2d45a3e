//! From the first event to the exit code: what a shutdown promises to orchestrators and load balancers.

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rustix::process::Signal;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::net::unix::pipe::OpenOptions;
use tokio::time::sleep;
use uuid::Uuid;

use crate::app::{TestApp, eventually};
use crate::process::Launch;
use crate::wire::NEW_TASK_HEAD;

const NEW_TASK: &str = r#"{"title":"sent in two halves"}"#;

#[tokio::test]
async fn events_come_in_order_and_the_exit_is_clean() {
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")] {
        let app = TestApp::spawn(&[]).await;
        app.create("a").await;
        app.process.signal(signal);
        let ended = app.process.ended().await;
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        let mut order = ended.names();
        let milestones = [
            "service.start",
            "service.ready",
            "shutdown.begin",
            "shutdown.drain_complete",
            "telemetry.flush",
            "service.exit",
        ];
        order.retain(|name| milestones.contains(&name.as_str()));
        assert_eq!(order, milestones);
        let start = ended.event("service.start");
        assert_eq!(
            (start["version"].as_str(), start["env"].as_str()),
            (Some(env!("CARGO_PKG_VERSION")), Some("production"))
        );
        assert_eq!(ended.event("shutdown.begin")["in_flight"], 0);
        assert_eq!(ended.event("shutdown.begin")["reason"], name);
        assert_eq!(ended.event("shutdown.drain_complete")["in_flight"], 0);
        assert_eq!(ended.event("telemetry.flush")["status"], "disabled");
        assert_eq!(ended.event("service.exit")["code"], 0);
    }
}

#[tokio::test]
async fn upload_in_flight_is_finished_during_the_drain() {
    let mut app = TestApp::spawn(&[]).await;
    let mut upload = app.connect().await;
    upload.send_head(NEW_TASK.len()).await;
    upload.send(&NEW_TASK[..10]).await;
    eventually(async || app.metrics().await, |text| text.contains("http_requests_in_flight 1")).await;
    app.process.signal(Signal::TERM);
    assert_eq!(app.process.event("shutdown.begin").await["in_flight"], 1);
    eventually(async || TcpStream::connect(app.address).await.is_err(), |refused| *refused).await;
    assert_eq!(app.admin("/health/live").await.status, 200, "operators can watch the drain");
    upload.send(&NEW_TASK[10..]).await;
    let answer = upload.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (201, "close"));
    assert_eq!(upload.closed().await, "");
    let ended = app.process.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(ended.names().contains(&"shutdown.drain_complete".to_owned()));
}

#[tokio::test]
async fn new_requests_are_served_during_the_grace_delay() {
    let mut app = TestApp::spawn(&[("APP__SHUTDOWN__GRACE_DELAY", "3s")]).await;
    let mut kept = app.connect().await;
    let before = kept.get("/v1/tasks").await;
    assert_eq!((before.status, before.header("connection")), (200, ""));
    let began = Instant::now();
    app.process.signal(Signal::TERM);
    app.process.event("shutdown.begin").await;
    let during = kept.get("/v1/tasks").await;
    assert_eq!((during.status, during.header("connection")), (200, "close"));
    assert_eq!(kept.closed().await, "", "a connection ends with the answer that says so");
    assert_eq!(app.connect().await.get("/v1/tasks").await.status, 200, "new connections are taken too");
    let readiness = app.get("/ready").await;
    assert_eq!((readiness.status, readiness.body.as_str()), (503, r#"{"status":"draining"}"#));
    assert_eq!(readiness.header("retry-after"), "1");
    let readiness = app.admin("/health/ready").await;
    assert_eq!((readiness.status, &readiness.json()["status"]), (503, &"draining".into()));
    assert_eq!(app.get("/health").await.status, 200, "a draining process lives");
    let port = app.admin.port().to_string();
    let healthcheck = Launch::new(&[("APP__ADMIN__PORT", &port)]).run("healthcheck").await;
    assert_eq!(healthcheck.code, Some(0), "{healthcheck:?}");
    assert!(app.metrics().await.contains("service_state{state=\"draining\"} 1"));
    let ended = app.process.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(began.elapsed() >= Duration::from_secs(3), "the grace delay was kept");
}

/// Settings for a drain of half a second.
pub const SHORT_DRAIN: [(&str, &str); 4] = [
    ("APP__SHUTDOWN__DRAIN_TIMEOUT", "500ms"),
    ("APP__SHUTDOWN__FLUSH_TIMEOUT", "500ms"),
    ("APP__HTTP__REQUEST_TIMEOUT", "500ms"),
    ("APP__WEBHOOK__TIMEOUT", "500ms"),
];

#[tokio::test]
async fn half_sent_request_cuts_the_drain_short() {
    let app = TestApp::spawn(&SHORT_DRAIN).await;
    let mut half = app.connect().await;
    half.send("GET /v1/tasks HTTP/1.1\r\nhost: test\r\n").await;
    // Connections are accepted in order: once this one is answered, the other one is being read.
    assert_eq!(app.get("/health").await.status, 200);
    let began = Instant::now();
    let ended = app.stop().await;
    let took = began.elapsed();
    assert_eq!(ended.code, Some(3), "{ended:#?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert!(ended.names().contains(&"shutdown.drain_timeout".to_owned()));
    assert_eq!(ended.event("service.exit")["code"], 3);
    half.closed().await;
}

#[tokio::test]
async fn what_the_drain_cuts_off_is_logged_before_the_exit() {
    for _ in 0..5 {
        let mut app = TestApp::spawn(&SHORT_DRAIN).await;
        let mut clients = join_all((0..500).map(|_| app.connect())).await;
        let connected = async || app.sample("http_connections").await;
        eventually(connected, |count| count.is_some_and(|count| count >= 500.0)).await;
        app.process.signal(Signal::TERM);
        app.process.event("shutdown.begin").await;
        for client in &mut clients {
            // Sent so late that it can't time out before the drain does.
            client.try_send(&format!("{NEW_TASK_HEAD}content-length: 100\r\n\r\n{{")).await;
        }
        let ended = app.process.ended().await;
        let names = ended.names();
        assert_eq!(names.last().map(String::as_str), Some("service.exit"));
        // If this machine stalled and none of them was read in time, the attempt proves nothing.
        if ended.code == Some(3) {
            let cut = ended.event("shutdown.drain_timeout")["in_flight"].as_u64().expect("a number");
            let mut logged = ended.log();
            logged.retain(|line| line["message"] == "http.request");
            assert!(logged.iter().any(|line| line["status"] == 499), "it is no fault of the service");
            return assert!(logged.len() as u64 >= cut, "{} of {cut}", logged.len());
        }
    }
    panic!("no drain was cut short");
}

#[tokio::test]
async fn answer_that_is_not_read_is_in_flight_until_it_is_cut() {
    let app = TestApp::spawn(&[&SHORT_DRAIN[..], &[("APP__HTTP__BODY_TIMEOUT", "60s")]].concat()).await;
    let task = json!({ "title": "long", "description": "x".repeat(10_000) });
    for _ in 0..30 {
        eventually(async || app.post("/v1/tasks", &task).await.status, |status| *status == 201).await;
    }
    let mut deaf = app.connect().await;
    for _ in 0..100 {
        deaf.try_send("GET /v1/tasks?limit=100 HTTP/1.1\r\nhost: test\r\n\r\n").await;
    }
    let answered = async || {
        let metrics = app.metrics().await;
        metrics.lines().find(|line| line.starts_with("http_requests_total{method=\"GET\"")).map(str::to_owned)
    };
    // Once the kernel's buffers are full, no further request is answered, although the service still answers scrapes.
    let stuck = async || {
        let before = answered().await;
        for _ in 0..20 {
            sleep(Duration::from_millis(30)).await;
            if before.is_none() || before != answered().await {
                return false;
            }
        }
        true
    };
    eventually(stuck, |stuck| *stuck).await;
    let ended = app.stop().await;
    assert_eq!(ended.code, Some(3), "{ended:#?}");
    let in_flight = ended.event("shutdown.drain_timeout")["in_flight"].as_u64();
    assert!(in_flight.is_some_and(|count| count > 0), "{ended:#?}");
}

#[tokio::test]
async fn client_that_connected_before_the_drain_gets_its_first_answer() {
    // If this machine stalled for longer than such a client is given, the attempt proves nothing.
    for tries_left in (0..5).rev() {
        let app = TestApp::spawn(&[("APP__SHUTDOWN__GRACE_DELAY", "100ms")]).await;
        let mut late = app.connect().await;
        app.process.signal(Signal::TERM);
        // The drain has begun once nobody listens any more.
        let listened = Cell::new(Instant::now());
        let refused = async || {
            let before = Instant::now();
            let connected = TcpStream::connect(app.address).await.is_ok();
            if connected {
                listened.set(before);
            }
            !connected
        };
        eventually(refused, |refused| *refused).await;
        late.send("GET /v1/tasks HTTP/1.1\r\nhost: test\r\n\r\n").await;
        let waited = listened.get().elapsed();
        let answer = late.answer_or_end().await;
        let ended = app.process.ended().await;
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        if answer.is_none() && waited > Duration::from_millis(200) && tries_left > 0 {
            continue;
        }
        let answer = answer.expect("closed before an answer");
        assert_eq!((answer.status, answer.header("connection")), (200, "close"));
        return;
    }
}

#[tokio::test]
async fn clients_that_wait_to_be_accepted_at_the_stop_are_answered() {
    let app = TestApp::spawn(&[]).await;
    app.process.signal(Signal::STOP);
    app.process.signal(Signal::TERM);
    let ask = async || {
        let mut client = app.connect().await;
        client.send("GET /health HTTP/1.1\r\nhost: test\r\n\r\n").await;
        client
    };
    let mut waiting = join_all((0..500).map(|_| ask())).await;
    app.process.signal(Signal::CONT);
    for client in &mut waiting {
        assert_eq!(client.answer().await.status, 200);
    }
    let ended = app.process.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
}

#[tokio::test]
async fn second_signal_ends_the_process_at_once() {
    let mut app = TestApp::spawn(&[("APP__SHUTDOWN__GRACE_DELAY", "60s")]).await;
    app.process.signal(Signal::TERM);
    app.process.event("shutdown.begin").await;
    let began = Instant::now();
    app.process.signal(Signal::TERM);
    let ended = app.process.ended().await;
    assert_eq!(ended.code, Some(3), "{ended:#?}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(ended.names().contains(&"shutdown.forced".to_owned()));
    assert_eq!(ended.event("service.exit")["code"], 3);
}

#[tokio::test]
async fn signal_is_heard_before_the_configuration_is_read() {
    let pipe = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.toml", Uuid::now_v7()));
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let launch = Launch::new(&[]).set_bytes("APP_CONFIG_FILE", pipe.as_os_str());
    //@ if postgres
    let launch = launch.with_database().await;
    //@ end
    let mut process = launch.start("serve");
    // It can be opened once the service reads it.
    let writer = eventually(async || OpenOptions::new().open_sender(&pipe), Result::is_ok).await;
    process.signal(Signal::TERM);
    drop(writer);
    process.event("service.start").await;
    let ended = process.ended().await;
    fs::remove_file(pipe).expect("it is removed");
    assert_eq!((ended.code, &ended.event("service.exit")["code"]), (Some(0), &json!(0)), "{ended:#?}");
}

#[tokio::test]
async fn port_that_is_taken_is_a_fault() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address");
    let launch = Launch::new(&[("APP__HTTP__PORT", &address.port().to_string())]);
    let ended = launch.run("serve").await;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.event("service.failed")["cause"].to_string().contains(&address.to_string()));
    assert_eq!(ended.event("service.exit")["code"], 1);
}

#[tokio::test]
async fn healthcheck_tells_a_living_service_from_a_dead_one() {
    let app = TestApp::spawn(&[]).await;
    // Without root certificates, as in an image that has none.
    let ask = async |port: u16| {
        let port = port.to_string();
        Launch::new(&[("APP__ADMIN__PORT", &port), ("SSL_CERT_FILE", "none")]).run("healthcheck").await
    };
    let ended = ask(app.admin.port()).await;
    assert_eq!((ended.code, ended.out.join("")), (Some(0), "ok".to_owned()), "{ended:?}");
    // Nobody listens on this port, and no other test's service can: it is bound here.
    let taken = tokio::net::TcpSocket::new_v4().expect("a socket");
    taken.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    let ended = ask(taken.local_addr().expect("an address").port()).await;
    assert_eq!(ended.code, Some(1));
    assert!(!ended.err.is_empty(), "it says why");
    assert_eq!(ask(app.address.port()).await.code, Some(1), "somebody else answers there");
    let frozen = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    assert_eq!(ask(frozen.local_addr().expect("an address").port()).await.code, Some(1));
}
