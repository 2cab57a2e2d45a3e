//! A database that is gone, silent, full or read-only: requests fail in time, and the service recovers with it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection};
use tokio::net::TcpSocket;

use crate::app::{Answer, TestApp, eventually, path_of};
use crate::postgres::Database;
use crate::process::{Launch, Variables};
use crate::proxy::Proxy;
use crate::receiver::Receiver;

/// Frequent checks and short deadlines, so that a test need not wait long.
pub const FREQUENT_CHECKS: [(&str, &str); 4] = [
    ("APP__HEALTH__INTERVAL", "100ms"),
    ("APP__HEALTH__TIMEOUT", "100ms"),
    ("APP__DATABASE__ACQUIRE_TIMEOUT", "400ms"),
    ("APP__DATABASE__MAX_CONNECTIONS", "2"),
];

/// Deadlines that let a statement wait while the test looks at other things.
const PATIENT: [(&str, &str); 3] = [
    ("APP__DATABASE__STATEMENT_TIMEOUT", "30s"),
    ("APP__HTTP__REQUEST_TIMEOUT", "30s"),
    ("APP__SHUTDOWN__DRAIN_TIMEOUT", "30s"),
];

/// What a busy machine may add to a deadline: too little for the default deadline to pass for the one that was set.
const SLACK: Duration = Duration::from_millis(1500);

pub fn assert_unavailable(answer: &Answer) {
    assert_eq!((answer.status, &answer.json()["category"]), (503, &json!("unavailable")), "{answer:?}");
    assert!(answer.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds >= 1));
}

/// A service with frequent checks and additional `variables`.
async fn with_frequent_checks(variables: Variables<'_>) -> TestApp {
    TestApp::launch(Launch::new(&FREQUENT_CHECKS).set(variables)).await
}

async fn turns_ready(app: &TestApp, status: u16) {
    eventually(async || app.get("/ready").await.status, |now| *now == status).await;
}

#[tokio::test]
async fn server_that_goes_is_told_in_time_and_one_that_comes_back_is_used() {
    let database = Database::create().await;
    let (url, proxy) = database.behind_proxy().await;
    let mut app = TestApp::launch(Launch::new(&FREQUENT_CHECKS).set(&[("DATABASE_URL", &url)])).await;
    let task = app.create("a").await;

    proxy.cut();
    let began = Instant::now();
    let answer = app.get("/v1/tasks").await;
    assert_eq!((answer.status, &answer.json()["category"]), (503, &json!("unavailable")));
    assert!(!answer.header("retry-after").is_empty());
    assert!(began.elapsed() < Duration::from_millis(400) + SLACK, "{:?}", began.elapsed());
    eventually(async || app.get("/ready").await, |ready| ready.status == 503).await;
    assert_eq!(app.get("/ready").await.json(), json!({ "status": "unavailable" }), "nothing is named");
    let postgres = async || {
        let check = app.admin("/health/ready").await.json()["checks"][0].clone();
        assert_eq!((&check["name"], &check["required"]), (&json!("postgres"), &json!(true)));
        check
    };
    let down = eventually(postgres, |check| check["status"] == "down").await;
    assert!(down["error"].as_str() > Some(""), "operators are told why: {down}");
    assert_eq!(app.get("/health").await.status, 200, "a restart would not mend it");
    assert!(app.metrics().await.contains("dependency_up{dependency=\"postgres\"} 0\n"));

    proxy.mend();
    eventually(async || app.get("/ready").await.status, |status| *status == 200).await;
    let page = eventually(async || app.get("/v1/tasks").await, |page| page.status == 200).await;
    assert_eq!(page.json()["items"][0]["id"], task["id"]);
    assert_eq!(app.process.event("dependency.down").await["required"], true);
    let failed = app.process.event("request.failed").await;
    assert!(failed["cause"].as_str() > Some(""), "{failed}");
    app.process.event_where("http.request", |line| line["status"] == 503).await;
    let shown = app.stop().await.out.join("\n");
    assert!(!shown.contains(&url), "the URL may hold a password");
}

/// What a machine that carries the load as well may add to a deadline.
const BUSY: Duration = Duration::from_secs(2);
/// Two rounds of checks.
const NOTICED: Duration = Duration::from_millis(2 * (100 + 500));

#[tokio::test]
async fn outage_under_load_is_reported_in_time_and_leaves_nothing_behind() {
    for outage in ["gone", "silent", "full", "restarted", "read-only"] {
        let database = Database::create().await;
        let (by_proxy, proxy) = database.behind_proxy().await;
        let url = if outage == "full" { database.url_as_owner().await } else { by_proxy };
        let limits = [
            ("APP__DATABASE__STATEMENT_TIMEOUT", "400ms"),
            ("APP__HTTP__REQUEST_TIMEOUT", "1s"),
            // The checks compete with the clients' queries.
            ("APP__HEALTH__TIMEOUT", "500ms"),
        ];
        let app = with_frequent_checks(&[&[("DATABASE_URL", url.as_str())][..], &limits].concat()).await;
        let over = AtomicBool::new(false);
        let clients = join_all((0..8).map(|_| client(&app, &over)));
        let script = async {
            eventually(async || app.get("/v1/tasks").await, |page| page.json()["next_cursor"].is_string())
                .await;
            match outage {
                "gone" => proxy.cut(),
                "silent" => proxy.freeze(),
                "full" => database.limit_connections(0).await,
                "read-only" => database.set("default_transaction_read_only = on").await,
                _ => database.end_connections().await,
            }
            // The service stays ready as long as it can read.
            if !["restarted", "read-only"].contains(&outage) {
                let began = Instant::now();
                turns_ready(&app, 503).await;
                assert!(began.elapsed() < NOTICED + BUSY, "{outage}: noticed after {:?}", began.elapsed());
            }
            // Longer than anyone waits: requests from before have been given up.
            tokio::time::sleep(Duration::from_secs(2)).await;
            match outage {
                "full" => database.limit_connections(-1).await,
                "read-only" => database.set("default_transaction_read_only = off").await,
                _ => proxy.mend(),
            }
            let began = Instant::now();
            turns_ready(&app, 200).await;
            assert!(began.elapsed() < NOTICED + BUSY, "{outage}: ready after {:?}", began.elapsed());
            eventually(async || app.get("/v1/tasks").await.status, |status| *status == 200).await;
            over.store(true, Ordering::Relaxed);
        };
        let (answers, ()) = tokio::join!(clients, script);
        let answers = answers.concat();
        let late = answers.iter().find(|(_, took)| *took > Duration::from_secs(1) + BUSY);
        assert_eq!(late, None, "{outage}");
        let refused = answers.iter().filter(|(status, _)| *status == 503 || *status == 504).count();
        let served = answers.iter().filter(|(status, _)| *status == 200 || *status == 201).count();
        assert_eq!(served + refused, answers.len(), "{outage}: {answers:?}");
        assert!(refused > 0 || outage == "restarted", "{outage}: {answers:?}");
        // Both ends give up the connections that were cut off. What remains is the pool, and one for the check.
        eventually(async || database.connections().await, |count| (1..=2 + 1).contains(count)).await;
        let unused = |page: &String| page.contains("db_pool_connections{state=\"used\"} 0\n");
        eventually(async || app.metrics().await, unused).await;
    }
}

/// Writes and reads until it is `over`. Returns the status of each response, and how long it took.
async fn client(app: &TestApp, over: &AtomicBool) -> Vec<(u16, Duration)> {
    let mut answers = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let began = Instant::now();
        let status = app.post("/v1/tasks", &json!({ "title": "a" })).await.status;
        answers.push((status, began.elapsed()));
        let began = Instant::now();
        let status = app.get("/v1/tasks").await.status;
        answers.push((status, began.elapsed()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    answers
}

#[tokio::test]
async fn connection_that_the_server_has_ended_is_not_leased() {
    let app = TestApp::spawn(&[]).await;
    let task = app.create("a").await;
    app.process.database().end_connections().await;
    // A connection is trusted for only ten milliseconds after it was lent; later it is checked first.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(app.get("/v1/tasks").await.json()["items"][0]["id"], task["id"]);
}

#[tokio::test]
async fn connection_that_fell_silent_while_it_was_idle_costs_no_request() {
    let database = Database::create().await;
    let (url, proxy) = database.behind_proxy().await;
    let app = TestApp::spawn(&[
        ("DATABASE_URL", url.as_str()),
        ("APP__DATABASE__MAX_CONNECTIONS", "14"),
        ("APP__DATABASE__ACQUIRE_TIMEOUT", "4s"),
    ])
    .await;
    let lock = database.lock("tasks").await;
    let unlocked = async {
        database.wait_until_blocked("tasks", 14).await;
        lock.close().await.expect("the lock is given back");
    };
    let (pages, ()) = tokio::join!(join_all((0..14).map(|_| app.get("/v1/tasks"))), unlocked);
    assert!(pages.iter().all(|page| page.status == 200), "{pages:?}");
    // Connections that are open now stay silent for good.
    proxy.freeze();
    tokio::time::sleep(Duration::from_millis(50)).await;
    proxy.mend();
    assert_eq!(app.get("/v1/tasks").await.status, 200);
}

#[tokio::test]
async fn transaction_that_began_too_late_takes_no_write_with_it() {
    let database = Database::create().await;
    let (url, proxy) = database.behind_proxy().await;
    let one = [("APP__DATABASE__MAX_CONNECTIONS", "1"), ("APP__DATABASE__STATEMENT_TIMEOUT", "1s")];
    let app = TestApp::spawn(&[&one[..], &[("DATABASE_URL", &url)]].concat()).await;
    let task = app.create("a").await;
    proxy.hold("BEGIN");
    assert_unavailable(&app.complete(&task).await);
    // Only now does the server begin the transaction. Later writes on that connection would never be committed.
    proxy.mend();
    assert_eq!(app.patch(&path_of(&task), &json!({ "title": "b" })).await.status, 200);
    assert_eq!(database.count("tasks WHERE title = 'b'").await, 1);
}

#[tokio::test]
async fn locks_of_a_replica_that_vanished_do_not_outlast_it_for_long() {
    let database = Database::create().await;
    let (url, proxy) = database.behind_proxy().await;
    let quick = ("APP__DATABASE__STATEMENT_TIMEOUT", "1s");
    let app = TestApp::spawn(&[("DATABASE_URL", url.as_str()), quick]).await;
    let task = app.create("a").await;
    // From here on nothing reaches the server on that connection, not even that it was closed.
    proxy.hold("COMMIT");
    assert_unavailable(&app.complete(&task).await);
    eventually(async || database.open_transactions().await, |count| *count == 0).await;
    assert_eq!(database.count("tasks WHERE status = 'open'").await, 1);
}

#[tokio::test]
async fn completion_that_changes_nothing_leaves_no_transaction() {
    let app = TestApp::spawn(&[("APP__DATABASE__STATEMENT_TIMEOUT", "60s")]).await;
    let database = app.process.database();
    let task = app.create("a").await;
    assert_eq!(app.complete(&task).await.status, 200);
    // Otherwise a worker that looks for jobs would get the connection, and thereby end the transaction.
    let _lock = database.lock("jobs").await;
    // The job runner and the queue's watcher.
    database.wait_until_blocked("jobs", 2).await;
    assert_eq!(app.complete(&task).await.status, 200, "it is completed already");
    eventually(async || database.open_transactions().await, |count| *count == 0).await;
}

#[tokio::test]
async fn request_waits_for_a_server_that_starts() {
    let database = Database::create().await;
    assert_eq!(Launch::new(&[("DATABASE_URL", &database.url)]).run("migrate").await.code, Some(0));
    // Nobody listens on this port yet, and nobody else can: it is bound here.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
    let url = database.via(socket.local_addr().expect("an address"));
    let patient = [("APP__DATABASE__ACQUIRE_TIMEOUT", "8s"), ("APP__HTTP__REQUEST_TIMEOUT", "9s")];
    let app = TestApp::starting(Launch::new(&patient).set(&[("DATABASE_URL", &url)])).await;
    let start = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Proxy::on(socket.listen(16).expect("a listener"), &database.server())
    };
    let (answer, _proxy) = tokio::join!(app.get("/v1/tasks"), start);
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn schema_is_migrated_once_the_server_is_there() {
    let database = Database::create().await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
    let url = database.via(socket.local_addr().expect("an address"));
    let mut app = TestApp::starting(Launch::new(&FREQUENT_CHECKS).set(&[("DATABASE_URL", &url)])).await;
    assert_eq!(app.sample("service_state{state=\"starting\"}").await, Some(1.0));
    app.process.event("schema.migration_failed").await;
    let _proxy = Proxy::on(socket.listen(16).expect("a listener"), &database.server());
    let app = app.ready().await;
    app.create("a").await;
    let names = app.stop().await.names();
    let failures = names.iter().filter(|name| *name == "schema.migration_failed").count();
    assert!(failures < 10, "{failures} attempts");
}

#[tokio::test]
async fn exhausted_pool_turns_requests_away_in_time() {
    let app = TestApp::spawn(
        &[&FREQUENT_CHECKS[..], &[("APP__DATABASE__MAX_CONNECTIONS", "1")], &PATIENT].concat(),
    )
    .await;
    let (path, change) = (path_of(&app.create("a").await), json!({ "title": "b" }));
    let database = app.process.database();
    let lock = database.lock("tasks").await;
    let waiting = app.patch(&path, &change);
    let refused = async {
        // The only connection waits for the lock; any other request waits for the connection.
        database.wait_until_blocked("tasks", 1).await;
        for (series, expected) in
            [("db_pool_connections{state=\"used\"}", 1.0), ("db_pool_connections_max", 1.0)]
        {
            assert_eq!(app.sample(series).await, Some(expected), "{series}");
        }
        let began = Instant::now();
        let answer = app.get("/v1/tasks").await;
        let took = began.elapsed();
        assert!(
            app.sample("db_pool_acquire_seconds_sum").await >= Some(0.4),
            "what was waited in vain counts"
        );
        // Long enough for the checks to find the database down, if they had to wait as well.
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Otherwise all replicas would be taken out at once. One late check must not count: the next one is in time.
        turns_ready(&app, 200).await;
        lock.close().await.expect("the lock is given back");
        (answer, took)
    };
    let (patched, (answer, took)) = tokio::join!(waiting, refused);
    assert_eq!((answer.status, &answer.json()["category"]), (503, &json!("unavailable")));
    assert!(took >= Duration::from_millis(400) && took < Duration::from_millis(400) + SLACK, "{took:?}");
    assert_eq!(patched.status, 200, "what waited for the lock goes on");
}

#[tokio::test]
async fn statement_that_takes_too_long_is_ended() {
    let app = TestApp::spawn(&[("APP__DATABASE__STATEMENT_TIMEOUT", "300ms")]).await;
    let _lock = app.process.database().lock("tasks").await;
    let answer = app.get("/v1/tasks").await;
    assert_eq!((answer.status, &answer.json()["category"]), (503, &json!("unavailable")));
    // By the server: a statement that nobody waits for must not go on waiting for locks, or holding them.
    app.process.database().wait_until_blocked("tasks", 0).await;
    for word in ["statement", "canceling", "sql", "tasks\""] {
        assert!(!answer.body.to_lowercase().contains(word), "{word} in {}", answer.body);
    }
}

#[tokio::test]
async fn slow_query_is_logged_by_name_without_its_values() {
    let slow = Duration::from_millis(200);
    let mut app = TestApp::spawn(&[("APP__DATABASE__SLOW_QUERY_THRESHOLD", "200ms")]).await;
    let path = path_of(&app.create("canary").await);
    let (database, change) = (app.process.database(), json!({ "title": "another canary" }));
    let lock = database.lock("tasks").await;
    let unlocked = async {
        database.wait_until_blocked("tasks", 1).await;
        tokio::time::sleep(slow).await;
        lock.close().await.expect("the lock is given back");
    };
    let (patched, ()) = tokio::join!(app.patch(&path, &change), unlocked);
    assert_eq!(patched.status, 200);
    let told = app.process.event_where("database.slow_query", |line| line["query"] == "update_task").await;
    assert!(told["duration_seconds"].as_f64() >= Some(slow.as_secs_f64()), "{told}");
    assert_eq!((&told["level"], told["request_id"].is_string()), (&json!("WARN"), true), "{told}");
    assert!(!told.to_string().contains("canary"), "{told}");
}

/// Otherwise each would pass the load on to the next, which begins it again, and the cache panics after 200 of them.
#[tokio::test]
async fn load_of_a_task_goes_on_although_those_that_wait_for_it_leave() {
    let app = TestApp::spawn(&[]).await;
    let path = path_of(&app.create("a").await);
    let lock = app.process.database().lock("tasks").await;
    let impatient = (0..20).map(|number| {
        let patience = Duration::from_millis(300 + 30 * number);
        app.request(Method::GET, &path).timeout(patience).send()
    });
    assert!(join_all(impatient).await.iter().all(Result::is_err), "nobody is answered");
    lock.close().await.expect("the lock is given back");
    assert_eq!(app.get(&path).await.status, 200);
    assert_eq!(app.sample("db_query_duration_seconds_count{query=\"get_task\"}").await, Some(1.0));
}

/// Otherwise a database that blocks would look idle to whoever looks for the cause.
#[tokio::test]
async fn what_is_given_up_with_its_request_is_measured() {
    let settings = [
        ("APP__DATABASE__MAX_CONNECTIONS", "1"),
        ("APP__DATABASE__SLOW_QUERY_THRESHOLD", "100ms"),
        // Longer than the test waits, so that only the two clients give up.
        ("APP__DATABASE__STATEMENT_TIMEOUT", "20s"),
        ("APP__DATABASE__ACQUIRE_TIMEOUT", "19s"),
        ("APP__HTTP__REQUEST_TIMEOUT", "20s"),
    ];
    let mut app = TestApp::spawn(&settings).await;
    let _lock = app.process.database().lock("tasks").await;
    let impatient = || app.request(Method::GET, "/v1/tasks").timeout(Duration::from_secs(1)).send();
    // One waits for the lock, the other for the connection.
    let (first, second) = tokio::join!(impatient(), impatient());
    assert!(first.is_err() && second.is_err(), "nobody answers");
    app.process.event_where("database.slow_query", |line| line["query"] == "list_tasks").await;
    // Each is noticed when its own connection is closed.
    eventually(
        async || {
            let queries = app.sample("db_query_duration_seconds_count{query=\"list_tasks\"}").await;
            (queries, app.sample("db_pool_acquire_seconds_sum").await)
        },
        |(queries, waited)| *queries == Some(1.0) && *waited >= Some(0.3),
    )
    .await;
}

#[tokio::test]
async fn server_that_falls_silent_is_told_in_time_and_costs_neither_connections_nor_jobs() {
    let (database, receiver) = (Database::create().await, Receiver::start().await);
    let (url, proxy) = database.behind_proxy().await;
    let app = with_frequent_checks(&[
        ("DATABASE_URL", &url),
        ("APP__DATABASE__STATEMENT_TIMEOUT", "2s"),
        ("APP__HTTP__REQUEST_TIMEOUT", "1s"),
        ("APP__WEBHOOK__URL", &receiver.url),
    ])
    .await;
    let task = app.create("a").await;
    let lock = database.lock("jobs, tasks").await;
    let frozen = async {
        // A worker waits on one connection, the request on the other: the pool has no more.
        database.wait_until_blocked("jobs, tasks", 2).await;
        proxy.freeze();
        lock.close().await.expect("the locks are given back");
    };
    let began = Instant::now();
    let (cut_short, ()) = tokio::join!(app.get("/v1/tasks"), frozen);
    assert!([503, 504].contains(&cut_short.status), "{cut_short:?}");
    assert!(began.elapsed() < Duration::from_secs(1) + SLACK, "{:?}", began.elapsed());

    let began = Instant::now();
    assert_unavailable(&app.get("/v1/tasks").await);
    assert!(began.elapsed() < Duration::from_millis(400) + SLACK, "{:?}", began.elapsed());
    turns_ready(&app, 503).await;

    // Connections that were open stay silent: only new ones work, as after a failover.
    proxy.mend();
    turns_ready(&app, 200).await;
    assert_eq!(app.complete(&task).await.status, 200);
    assert_eq!(receiver.calls(1).await[0].json()["data"]["id"], task["id"]);
    eventually(async || database.connections().await, |count| (1..=2 + 1).contains(count)).await;
}

#[tokio::test]
async fn read_only_server_refuses_writes_and_goes_on_reading() {
    let app = with_frequent_checks(&[]).await;
    let database = app.process.database();
    let task = app.create("a").await;
    database.set("default_transaction_read_only = on").await;
    let change = json!({ "title": "b" });
    let write = async || app.patch(&path_of(&task), &change).await;
    let refused = eventually(write, |answer| answer.status != 200).await;
    assert_unavailable(&refused);
    assert_unavailable(&app.post("/v1/tasks", &change).await);
    assert_unavailable(&app.complete(&task).await);
    assert_unavailable(&app.delete(&path_of(&task)).await);
    assert_eq!(app.get("/v1/tasks").await.status, 200);
    assert_eq!(app.get(&path_of(&task)).await.status, 200);

    // Open connections stay with the read-only server, as with a former primary.
    database.set_for_new_connections("default_transaction_read_only = off").await;
    eventually(write, |answer| answer.status == 200).await;
    eventually(async || app.complete(&task).await.status, |status| *status == 200).await;
}

#[tokio::test]
async fn server_without_a_free_connection_is_told_in_time_and_asked_again() {
    let database = Database::create().await;
    let url = database.url_as_owner().await;
    let settings = [
        ("DATABASE_URL", url.as_str()),
        // Checking a password takes time before the server refuses.
        ("APP__HEALTH__TIMEOUT", "2s"),
        ("APP__DATABASE__ACQUIRE_TIMEOUT", "2s"),
        // Enough for no request to wait for a connection that a job's claim is trying to open.
        ("APP__DATABASE__MAX_CONNECTIONS", "5"),
    ];
    let mut app = with_frequent_checks(&settings).await;
    let task = app.create("a").await;
    database.limit_connections(0).await;
    turns_ready(&app, 503).await;
    let began = Instant::now();
    assert_unavailable(&app.get("/v1/tasks").await);
    let waited = Duration::from_millis(1750)..Duration::from_secs(2) + SLACK;
    assert!(waited.contains(&began.elapsed()), "one may become free: {:?}", began.elapsed());
    let full = |told: &Value| told.as_str().is_some_and(|told| told.contains("too many connections"));
    let error = async || app.admin("/health/ready").await.json()["checks"][0]["error"].clone();
    eventually(error, full).await;
    app.process.event_where("request.failed", |line| full(&line["cause"])).await;

    database.limit_connections(-1).await;
    turns_ready(&app, 200).await;
    let page = eventually(async || app.get("/v1/tasks").await, |page| page.status == 200).await;
    assert_eq!(page.json()["items"][0]["id"], task["id"]);
    // Those of the pool, and one for the check.
    eventually(async || database.connections().await, |count| (1..=5 + 1).contains(count)).await;
}

#[tokio::test]
async fn requests_share_what_connections_the_server_allows() {
    let database = Database::create().await;
    let url = database.url_as_owner().await;
    let settings = [("DATABASE_URL", url.as_str()), ("APP__DATABASE__MAX_CONNECTIONS", "10")];
    let app = TestApp::spawn(&settings).await;
    app.create("a").await;
    let slow = "ALTER TABLE tasks RENAME TO all_tasks;
        CREATE VIEW tasks AS SELECT all_tasks.* FROM all_tasks, pg_sleep(0.02)";
    let mut owner = PgConnection::connect(&url).await.expect("a connection");
    owner.execute(slow).await.expect("reads that take a while");
    // Of the ten that it may open, and one for the check.
    database.limit_connections(3).await;
    eventually(async || app.get("/v1/tasks").await.status, |status| *status == 200).await;
    let began = Instant::now();
    let client = async || {
        while began.elapsed() < Duration::from_secs(3) {
            assert_eq!(app.get("/v1/tasks").await.status, 200, "a connection is soon free again");
        }
    };
    join_all((0..8).map(|_| client())).await;
}

#[tokio::test]
async fn password_that_is_no_longer_taken_is_an_outage() {
    let database = Database::create().await;
    let app = with_frequent_checks(&[("DATABASE_URL", &database.url_as_owner().await)]).await;
    database.forbid_login().await;
    assert_unavailable(&app.get("/v1/tasks").await);
}

#[tokio::test]
async fn database_that_lets_nobody_in_is_unavailable() {
    let app = with_frequent_checks(&[]).await;
    let database = app.process.database();
    database.allow_connections(false).await;
    assert_unavailable(&app.get("/v1/tasks").await);
    database.allow_connections(true).await;
    // Opening it has ended the connections that had just been made.
    eventually(async || app.get("/v1/tasks").await.status, |status| *status == 200).await;
}
