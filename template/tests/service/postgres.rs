//! Postgres: the schema is brought up to date by any number of replicas, what was acknowledged survives a crash,
//! and a server that is gone is told within the time that was set. Each test has a database of its own.

use std::time::{Duration, Instant};

use reqwest::Url;
use rustix::process::Signal;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::time::timeout;
use uuid::Uuid;

use crate::app::{TestApp, eventually, path_of};
use crate::misconfiguration::{Row, assert_refused};
use crate::process::Launch;
use crate::proxy::Proxy;
use crate::receiver::Receiver;

/// What no server listens at: enough for commands that ask none.
pub const NOWHERE: &str = "postgres://nobody@127.0.0.1:1/nowhere";

/// A database of a test's own, dropped with it.
#[derive(Debug)]
pub struct Database {
    pub url: String,
    name: String,
}

impl Database {
    pub async fn create() -> Self {
        let name = format!("test_{}", Uuid::now_v7().simple());
        administer(format!("CREATE DATABASE {name}"))
            .await
            .expect("the server of DATABASE_URL makes a database");
        let mut url: Url = server().parse().expect("DATABASE_URL is a URL");
        url.set_path(&name);
        Self { url: url.into(), name }
    }

    /// The URL of this database behind a proxy in front of its server.
    async fn behind_proxy(&self) -> (String, Proxy) {
        let mut url: Url = self.url.parse().expect("a URL");
        let host = url.host_str().expect("a host");
        let proxy = Proxy::to(&format!("{host}:{}", url.port().unwrap_or(5432))).await;
        url.set_host(Some("127.0.0.1")).expect("a host");
        url.set_port(Some(proxy.address.port())).expect("a port");
        (url.into(), proxy)
    }

    /// The same for a user of this database alone, who has a password.
    pub async fn behind_proxy_with_password(&self, password: &str) -> (String, Proxy) {
        let name = &self.name;
        administer(format!("CREATE ROLE {name} SUPERUSER LOGIN PASSWORD '{password}'"))
            .await
            .expect("a role");
        let (url, proxy) = self.behind_proxy().await;
        let mut url: Url = url.parse().expect("a URL");
        url.set_username(name).expect("a user");
        url.set_password(Some(password)).expect("a password");
        (url.into(), proxy)
    }

    async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("the database")
    }

    async fn count(&self, table: &str) -> i64 {
        let sql = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        sqlx::query_scalar(sql).fetch_one(&mut self.connect().await).await.expect("a count")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let name = &self.name;
        let database = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
        let role = format!("DROP ROLE IF EXISTS {name}");
        // The test's own runtime can't be waited for here.
        let dropped = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map(|runtime| {
                runtime.block_on(async {
                    administer(database).await?;
                    administer(role).await
                })
            })
        });
        let _ = dropped.join();
    }
}

/// The server that tests make their databases on.
#[expect(clippy::disallowed_methods, reason = "what the tests run against is no part of the service")]
pub fn server() -> String {
    std::env::var("DATABASE_URL").expect(
        "set DATABASE_URL to a PostgreSQL superuser's URL, such as postgres://postgres@127.0.0.1:5432/postgres",
    )
}

async fn administer(sql: String) -> sqlx::Result<()> {
    let mut connection = PgConnection::connect(&server()).await?;
    connection.execute(AssertSqlSafe(sql)).await?;
    connection.close().await
}

/// Checks that are made often, so that a test need not wait long for one.
const WATCHFUL: [(&str, &str); 4] = [
    ("APP__HEALTH__INTERVAL", "100ms"),
    ("APP__HEALTH__TIMEOUT", "100ms"),
    ("APP__DATABASE__ACQUIRE_TIMEOUT", "400ms"),
    ("APP__DATABASE__MAX_CONNECTIONS", "2"),
];

#[tokio::test]
async fn migrate_brings_the_schema_up_to_date_and_may_be_repeated() {
    let database = Database::create().await;
    let launch = || Launch::new(&[("DATABASE_URL", &database.url)]);
    for _ in 0..2 {
        let ended = launch().run("migrate").await;
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        assert!(ended.out.join("").contains("up to date"), "{ended:#?}");
    }
    let app = TestApp::launch(launch().set(&[("APP__DATABASE__MIGRATE_ON_START", "false")])).await;
    app.create("a").await;

    let ended = Launch::new(&[]).run("migrate").await;
    assert!(ended.code == Some(1) && !ended.err.is_empty(), "no server is a fault, in words: {ended:#?}");
}

#[tokio::test]
async fn replicas_that_start_together_migrate_once_and_share_their_tasks() {
    let database = Database::create().await;
    let start = async || TestApp::spawn(&[("DATABASE_URL", &database.url)]).await;
    let (one, two, three) = tokio::join!(start(), start(), start());
    let task = one.create("a").await;
    for app in [&two, &three] {
        assert_eq!(app.get(&path_of(&task)).await.json(), task);
    }
    for app in [one, two, three] {
        let ended = app.stop().await;
        assert_eq!(ended.code, Some(0));
        assert!(
            !ended.names().contains(&"schema.migration_failed".to_owned()),
            "they take turns: {ended:#?}"
        );
    }
}

#[tokio::test]
async fn replica_waits_while_another_migrates() {
    let database = Database::create().await;
    let mut other = database.connect().await;
    // The number is the one in src/store/schema.rs.
    let taken = format!("SELECT pg_advisory_lock({})", 0x7461_736b);
    other.execute(AssertSqlSafe(taken)).await.expect("the lock");
    let mut app = TestApp::starting(Launch::new(&[("DATABASE_URL", &database.url)])).await;
    let ready = timeout(Duration::from_millis(400), app.process.event("service.ready")).await;
    assert!(ready.is_err(), "it did not wait");
    assert_eq!(app.get("/ready").await.json(), json!({ "status": "starting" }));
    other.close().await.expect("the lock is given back with the connection");
    app.ready().await;
}

#[tokio::test]
async fn schema_that_is_behind_is_not_ready_and_one_that_is_ahead_is() {
    let database = Database::create().await;
    let by_hand = [("DATABASE_URL", database.url.as_str()), ("APP__DATABASE__MIGRATE_ON_START", "false")];
    let app = TestApp::starting(Launch::new(&WATCHFUL).set(&by_hand)).await;
    let checked = async || app.admin("/health/ready").await;
    let empty = eventually(checked, |answer| answer.json()["checks"][0]["status"] == "down").await;
    assert_eq!((empty.status, &empty.json()["status"]), (503, &json!("starting")));
    assert_eq!(app.get("/health").await.status, 200);
    assert_eq!(Launch::new(&by_hand).run("migrate").await.code, Some(0));
    let app = app.ready().await;

    let mut connection = database.connect().await;
    connection.execute("DELETE FROM _sqlx_migrations").await.expect("the schema looks old");
    let behind = eventually(async || app.get("/ready").await, |ready| ready.status == 503).await;
    assert_eq!(behind.json(), json!({ "status": "unavailable" }));
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES (99999999999999, 'of a later release', true, 'x', 0)";
    connection.execute(newer).await.expect("the schema looks new");
    eventually(async || app.get("/ready").await.status, |status| *status == 200).await;
    let rolled_back = TestApp::spawn(&by_hand).await;
    assert_eq!(rolled_back.get("/ready").await.status, 200, "a rollback starts");
}

#[tokio::test]
async fn server_that_goes_is_told_in_time_and_one_that_comes_back_is_used() {
    let database = Database::create().await;
    let (url, proxy) = database.behind_proxy().await;
    let mut app = TestApp::launch(Launch::new(&WATCHFUL).set(&[("DATABASE_URL", &url)])).await;
    let task = app.create("a").await;

    proxy.cut();
    let began = Instant::now();
    let answer = app.get("/v1/tasks").await;
    assert_eq!((answer.status, &answer.json()["category"]), (503, &json!("unavailable")));
    assert!(!answer.header("retry-after").is_empty());
    assert!(began.elapsed() < Duration::from_millis(400 + 500), "{:?}", began.elapsed());
    eventually(async || app.get("/ready").await, |ready| ready.status == 503).await;
    assert_eq!(app.get("/ready").await.json(), json!({ "status": "unavailable" }), "nothing is named");
    let ready = app.admin("/health/ready").await.json();
    assert_eq!(
        (&ready["checks"][0]["name"], &ready["checks"][0]["status"]),
        (&json!("postgres"), &json!("down"))
    );
    assert_eq!(app.get("/health").await.status, 200, "a restart would not mend it");
    assert!(app.metrics().await.contains("dependency_up{dependency=\"postgres\"} 0\n"));

    proxy.mend();
    eventually(async || app.get("/ready").await.status, |status| *status == 200).await;
    let page = app.get("/v1/tasks").await;
    assert_eq!((page.status, &page.json()["items"][0]["id"]), (200, &task["id"]));
    app.process.event("dependency.down").await;
    app.process.event_where("http.request", |line| line["status"] == 503).await;
    let shown = app.stop().await.out.join("\n");
    assert!(!shown.contains(&url), "the URL may hold a password");
}

#[tokio::test]
async fn exhausted_pool_turns_requests_away_in_time() {
    let app =
        TestApp::spawn(&[&WATCHFUL, [("APP__DATABASE__MAX_CONNECTIONS", "1")].as_slice()].concat()).await;
    let (path, change) = (path_of(&app.create("a").await), json!({ "title": "b" }));
    let database = app.process.database();
    let mut connection = database.connect().await;
    let mut transaction = connection.begin().await.expect("a transaction");
    transaction.execute("LOCK TABLE tasks").await.expect("the lock");
    let waiting = app.patch(&path, &change);
    let refused = async {
        // The one connection waits for the lock; whoever comes now waits for the connection.
        let blocked = "pg_locks WHERE NOT granted AND relation = 'tasks'::regclass";
        eventually(async || database.count(blocked).await, |count| *count == 1).await;
        let began = Instant::now();
        let answer = app.get("/v1/tasks").await;
        let took = began.elapsed();
        transaction.rollback().await.expect("the lock is given back");
        (answer, took)
    };
    let (patched, (answer, took)) = tokio::join!(waiting, refused);
    assert_eq!((answer.status, &answer.json()["category"]), (503, &json!("unavailable")));
    assert!(took >= Duration::from_millis(400) && took < Duration::from_millis(400 + 500), "{took:?}");
    assert_eq!(patched.status, 200, "what waited for the lock goes on");
}

#[tokio::test]
async fn statement_that_takes_too_long_is_ended() {
    let app = TestApp::spawn(&[("APP__DATABASE__STATEMENT_TIMEOUT", "300ms")]).await;
    let mut connection = app.process.database().connect().await;
    let mut transaction = connection.begin().await.expect("a transaction");
    transaction.execute("LOCK TABLE tasks").await.expect("the lock");
    let answer = app.get("/v1/tasks").await;
    assert_eq!((answer.status, &answer.json()["category"]), (503, &json!("unavailable")));
    for word in ["statement", "canceling", "sql", "tasks\""] {
        assert!(!answer.body.to_lowercase().contains(word), "{word} in {}", answer.body);
    }
}

#[tokio::test]
async fn job_of_an_acknowledged_completion_survives_a_crash() {
    let database = Database::create().await;
    let receiver = Receiver::start().await;
    receiver.answers(500);
    let variables = [("DATABASE_URL", database.url.as_str()), ("APP__WEBHOOK__URL", receiver.url.as_str())];
    let mut crashed = TestApp::spawn(&variables).await;
    let task = crashed.create("a").await;
    assert_eq!(crashed.complete(&task).await.status, 200);
    crashed.process.event("job.retry").await;
    eventually(
        async || database.count("jobs WHERE run_at < now() + interval '3 seconds'").await,
        |count| *count == 1,
    )
    .await;
    crashed.process.signal(Signal::KILL);
    assert_eq!(crashed.process.ended().await.code, None);

    receiver.answers(204);
    let mut restarted = TestApp::spawn(&variables).await;
    restarted.process.event("job.done").await;
    let calls = receiver.calls(2).await;
    let last = calls.last().expect("a call");
    assert_eq!(last.json()["data"]["id"], task["id"]);
    assert!(calls.iter().all(|call| call.header("webhook-id") == last.header("webhook-id")));
    eventually(async || database.count("jobs").await, |count| *count == 0).await;
}

#[tokio::test]
async fn completion_that_was_not_committed_leaves_no_job() {
    let database = Database::create().await;
    let receiver = Receiver::start().await;
    let variables = [("DATABASE_URL", database.url.as_str()), ("APP__WEBHOOK__URL", receiver.url.as_str())];
    let app = TestApp::spawn(&variables).await;
    let task = app.create("a").await;
    let mut connection = database.connect().await;
    let refuse = "ALTER TABLE jobs ADD CONSTRAINT none CHECK (false) NOT VALID";
    connection.execute(refuse).await.expect("the table is altered");
    let answer = app.complete(&task).await;
    assert!(answer.status == 409 || answer.status == 500, "{answer:?}");
    assert_eq!(app.get(&path_of(&task)).await.json(), task, "both are written, or neither is");
    assert_eq!(database.count("jobs").await, 0);
}

#[tokio::test]
async fn stop_before_the_database_is_there_is_clean() {
    let app = TestApp::starting(Launch::new(&[("DATABASE_URL", NOWHERE_ELSE)])).await;
    let ready = app.get("/ready").await;
    assert_eq!((ready.status, ready.json()), (503, json!({ "status": "starting" })));
    assert_eq!(app.get("/health").await.status, 200);
    assert_eq!(app.stop().await.code, Some(0));
}

#[tokio::test]
async fn database_that_never_comes_is_a_fault() {
    let patience = [("DATABASE_URL", NOWHERE_ELSE), ("APP__HEALTH__STARTUP_TIMEOUT", "300ms")];
    let ended = Launch::new(&patience).run("serve").await;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert_eq!(ended.event("service.failed")["level"], "ERROR");
    assert!(!ended.out.join("").contains("nobody"), "the URL may hold a password");
}

/// As [`NOWHERE`], but chosen by the test.
const NOWHERE_ELSE: &str = "postgres://nobody@127.0.0.1:2/nowhere";

#[tokio::test]
async fn bad_settings_of_the_database_are_named() {
    let rows: &[Row] = &[
        ("DATABASE_URL", "", "database.url", "expected postgres://user:password@host:port/name"),
        ("DATABASE_URL", "canary", "database.url", "expected postgres://user:password@host:port/name"),
        ("DATABASE_URL", "mysql://canary@host/", "database.url", "expected postgres://"),
        ("APP__DATABASE__MAX_CONNECTIONS", "0", "database.max_connections", "expected at least 1"),
        (
            "APP__DATABASE__ACQUIRE_TIMEOUT",
            "10s",
            "database.acquire_timeout",
            "expected less than http.request_",
        ),
        ("APP__DATABASE__MIGRATE_ON_START", "never", "database.migrate_on_start", "expected a boolean"),
    ];
    assert_refused(rows).await;
}
