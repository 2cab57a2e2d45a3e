//! Postgres: what was acknowledged survives a crash, and what was not committed is not announced. Each test has a
//! database of its own.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Method, Url};
use rustix::process::Signal;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;
use uuid::Uuid;

use crate::app::{TestApp, eventually, json_body, path_of};
use crate::configuration::assert_defaults;
use crate::lifecycle::SHORT_DRAIN;
use crate::misconfiguration::{Row, assert_refused};
use crate::process::{Launch, PATIENCE};
use crate::proxy::{Proxy, server_of, via};
use crate::receiver::Receiver;
//@ if redis
use crate::redis;
//@ end

/// A URL at which no server listens: enough for commands that use no database.
pub const NOWHERE: &str = "postgres://nobody@127.0.0.1:1/nowhere";

/// A database for one test alone, dropped with this value.
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
    pub async fn behind_proxy(&self) -> (String, Proxy) {
        let proxy = Proxy::to(&self.server()).await;
        (self.via(proxy.address), proxy)
    }

    pub fn server(&self) -> String {
        server_of(&self.url.parse().expect("a URL"), 5432)
    }

    pub fn via(&self, address: SocketAddr) -> String {
        via(self.url.parse().expect("a URL"), address)
    }

    /// The same for a user who is created for this database and has a password.
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

    /// The URL of this database for a user who owns it and has no other rights.
    pub async fn url_as_owner(&self) -> String {
        let name = &self.name;
        administer(format!("CREATE ROLE {name} LOGIN PASSWORD '{name}'")).await.expect("a role");
        self.alter(&format!("OWNER TO {name}")).await;
        let mut url: Url = self.url.parse().expect("a URL");
        url.set_username(name).expect("a user");
        url.set_password(Some(name)).expect("a password");
        url.into()
    }

    /// Locks all others out of `tables` until the returned connection is closed.
    pub async fn lock(&self, tables: &str) -> PgConnection {
        let mut connection = self.connect().await;
        connection.execute(AssertSqlSafe(format!("BEGIN; LOCK TABLE {tables}"))).await.expect("the lock");
        connection
    }

    /// Waits until `count` statements are waiting for a lock on `tables`.
    pub async fn wait_until_blocked(&self, tables: &str, count: i64) {
        let waiting = format!("pg_locks WHERE NOT granted AND relation = ANY ('{{{tables}}}'::regclass[])");
        eventually(async || self.count(&waiting).await, |now| *now == count).await;
    }

    /// Allows the owner `count` connections, and ends those that are open.
    pub async fn limit_connections(&self, count: i32) {
        administer(format!("ALTER ROLE {} CONNECTION LIMIT {count}", self.name)).await.expect("a limit");
        self.end_connections().await;
    }

    /// Stops the owner from logging in, and ends open connections.
    pub async fn forbid_login(&self) {
        administer(format!("ALTER ROLE {} NOLOGIN", self.name)).await.expect("a role");
        self.end_connections().await;
    }

    /// Changes a setting of the database for all connections: those that are open are ended.
    pub async fn set(&self, setting: &str) {
        self.set_for_new_connections(setting).await;
        self.end_connections().await;
    }

    pub async fn set_for_new_connections(&self, setting: &str) {
        self.alter(&format!("SET {setting}")).await;
    }

    /// Lets everybody in or nobody, and ends open connections.
    pub async fn allow_connections(&self, open: bool) {
        self.alter(&format!("ALLOW_CONNECTIONS {open}")).await;
        self.end_connections().await;
    }

    async fn alter(&self, what: &str) {
        administer(format!("ALTER DATABASE {} {what}", self.name)).await.expect("the database is altered");
    }

    /// Ends all connections, as a restart does, including those that are still being made: these have already read the
    /// settings, and show up only through the lock that they hold.
    pub async fn end_connections(&self) {
        administer(format!(
            "SELECT pg_terminate_backend(pid) FROM (
                 SELECT pid FROM pg_locks WHERE classid = 'pg_database'::regclass
                     AND objid = (SELECT oid FROM pg_database WHERE datname = '{name}')
                 UNION ALL SELECT pid FROM pg_stat_activity WHERE datname = '{name}'
             ) AS all_of_them",
            name = self.name
        ))
        .await
        .expect("connections are ended");
    }

    /// How many connections services have to this database.
    pub async fn connections(&self) -> i64 {
        self.connections_that("true").await
    }

    /// How many of them are idle in a transaction.
    pub async fn open_transactions(&self) -> i64 {
        self.connections_that("state = 'idle in transaction'").await
    }

    async fn connections_that(&self, condition: &str) -> i64 {
        let (name, service) = (&self.name, env!("CARGO_PKG_NAME"));
        let theirs = format!("datname = '{name}' AND application_name = '{service}'");
        self.count(&format!("pg_stat_activity WHERE {theirs} AND {condition}")).await
    }

    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("the database")
    }

    pub async fn count(&self, table: &str) -> i64 {
        let sql = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        sqlx::query_scalar(sql).fetch_one(&mut self.connect().await).await.expect("a count")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let name = &self.name;
        let database = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
        let role = format!("DROP ROLE IF EXISTS {name}");
        // `drop` can't wait for the test's own runtime.
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

/// The URL of the server on which tests create their databases.
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

#[tokio::test]
async fn the_database_is_not_waited_for_by_default() {
    let lines = [
        "database.max_connections = 10",
        "database.acquire_timeout = \"2s\"",
        "database.statement_timeout = \"5s\"",
    ];
    assert_defaults(Launch::new(&[]), &lines).await;
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
    assert_eq!(answer.status, 409, "{answer:?}");
    assert_eq!(app.get(&path_of(&task)).await.json(), task, "both are written, or neither is");
    assert_eq!(database.count("jobs").await, 0);
}

#[tokio::test]
async fn replica_that_knows_no_receiver_leaves_the_job_to_one_that_does() {
    let (database, receiver) = (Database::create().await, Receiver::start().await);
    receiver.answers(None);
    let shared = ("DATABASE_URL", database.url.as_str());
    let one_at_once = ("APP__JOBS__CONCURRENCY", "1");
    let app = TestApp::spawn(&[shared, one_at_once, ("APP__WEBHOOK__URL", &receiver.url)]).await;
    let mut other = TestApp::spawn(&[shared]).await;
    for title in ["a", "b"] {
        app.complete(&app.create(title).await).await;
    }
    other.process.event("job.retry").await;
    other.stop().await;
    receiver.answers(204);
    eventually(async || database.count("jobs").await, |count| *count == 0).await;
}

#[tokio::test]
async fn job_of_another_version_is_reported_and_kept() {
    let database = Database::create().await;
    let variables = [("DATABASE_URL", database.url.as_str())];
    let mut app = TestApp::spawn(&variables).await;
    let none = "jobs_total{job=\"unreadable\",outcome=\"failed\"} 0\n";
    assert!(app.metrics().await.contains(none), "an alert can't see the increase that makes a series appear");
    let strange =
        "INSERT INTO jobs (id, job, attempts) SELECT gen_random_uuid(), '{', 4 FROM generate_series(1, 20)";
    database.connect().await.execute(strange).await.expect("jobs");
    let failed = app.process.event("job.failed").await;
    assert_eq!((&failed["job"], &failed["attempts"]), (&json!("unreadable"), &json!(5)));
    let all = "jobs_total{job=\"unreadable\",outcome=\"failed\"} 20\n";
    eventually(async || app.metrics().await, |text| text.contains(all)).await;
    // Operators can list them. Polled, since a job is counted before its failure is stored.
    let letters = async || Launch::new(&variables).run("dead-letters list").await.log();
    eventually(letters, |letters| letters.len() == 20).await;
}

#[tokio::test]
async fn job_of_a_newer_version_is_left_to_it_for_a_while() {
    let database = Database::create().await;
    let mut app = TestApp::spawn(&[("DATABASE_URL", database.url.as_str())]).await;
    let newer = "INSERT INTO jobs (id, job) VALUES (gen_random_uuid(), '{\"kind\":\"later\"}')";
    database.connect().await.execute(newer).await.expect("a job");
    let left = app.process.event("job.retry").await;
    assert_eq!((&left["job"], &left["attempts"]), (&json!("unreadable"), &json!(1)));
    assert_eq!(database.count("jobs WHERE failed_at IS NULL AND run_at > now()").await, 1);
}

/// Otherwise it would take down one replica after another, without end.
#[tokio::test]
async fn job_whose_runs_all_ended_their_process_is_not_run_again() {
    let (database, receiver) = (Database::create().await, Receiver::start().await);
    let variables = [
        ("DATABASE_URL", database.url.as_str()),
        ("APP__WEBHOOK__URL", receiver.url.as_str()),
        ("APP__JOBS__MAX_ATTEMPTS", "1"),
    ];
    let mut app = TestApp::spawn(&variables).await;
    receiver.answers(410);
    app.complete(&app.create("a").await).await;
    let mut connection = database.connect().await;
    for (runs, reason) in [(0, "answered 410"), (5, "answered 410"), (6, "too many runs never finished")] {
        let cut_off = format!("UPDATE jobs SET attempts = {runs}, run_at = now(), failed_at = NULL");
        if runs > 0 {
            connection.execute(sqlx::AssertSqlSafe(cut_off)).await.expect("a job");
        }
        let failed = app.process.event_where("job.failed", |line| line["attempts"] == runs + 1).await;
        assert!(failed["reason"].as_str().is_some_and(|told| told.contains(reason)), "{failed}");
        eventually(async || database.count("jobs WHERE failed_at IS NOT NULL").await, |count| *count == 1)
            .await;
    }
    assert_eq!(receiver.calls(2).await.len(), 2);
}

#[tokio::test]
async fn dead_letters_are_listed_and_run_again_under_their_ids() {
    let (database, receiver) = (Database::create().await, Receiver::start().await);
    receiver.answers(410);
    let variables = [("DATABASE_URL", database.url.as_str()), ("APP__WEBHOOK__URL", receiver.url.as_str())];
    let mut app = TestApp::spawn(&variables).await;
    let run = async |command: &str| Launch::new(&variables).run(&format!("dead-letters {command}")).await;
    let listed = async || run("list").await.log();
    for (title, count) in [("a", 1), ("b", 2)] {
        app.complete(&app.create(title).await).await;
        eventually(listed, |letters| letters.len() == count).await;
    }
    let (letters, calls) = (listed().await, receiver.calls(2).await);
    let listed_ids = [&letters[0]["id"], &letters[1]["id"]];
    assert_eq!(listed_ids, [&calls[1], &calls[0]].map(|call| call.header("webhook-id")), "newest first");
    assert!(letters[0]["failed_at"].is_string(), "{letters:#?}");
    assert_eq!((&letters[0]["job"], &letters[0]["attempts"]), (&json!("webhook"), &json!(1)));
    assert!(letters[0]["reason"].to_string().contains("410"), "{letters:#?}");
    let other = TestApp::spawn(&variables).await;
    let depth = async || other.sample("jobs_queue_depth").await;
    assert_eq!(eventually(depth, Option::is_some).await, Some(0.0), "they take no room");
    other.stop().await;

    receiver.answers(204);
    let id = letters[1]["id"].as_str().expect("an id");
    let ended = run(&format!("requeue {id}")).await;
    assert_eq!((ended.code, ended.out.concat().as_str()), (Some(0), "1 requeued"));
    assert_eq!(receiver.calls(3).await[2].header("webhook-id"), id);
    assert_eq!(app.process.event("job.done").await["attempts"], 1, "it starts over");
    assert_eq!(run("requeue --all").await.out.concat(), "1 requeued", "the other one is left");
    assert_eq!(letters[0]["id"], receiver.calls(4).await[3].header("webhook-id"));
    eventually(async || database.count("jobs").await, |count| *count == 0).await;

    assert!(listed().await.is_empty());
    let ended = run(&format!("requeue {id}")).await;
    assert!(ended.code == Some(1) && ended.err.concat().contains("no dead letter has this id"), "{ended:#?}");
    for unclear in ["requeue", "requeue 1", &format!("requeue {id} --all")] {
        assert_eq!(run(unclear).await.code, Some(2), "{unclear}");
    }
}

#[tokio::test]
async fn write_is_finished_during_the_drain_though_its_client_has_left() {
    let patient = [("APP__DATABASE__STATEMENT_TIMEOUT", "20s"), ("APP__HTTP__REQUEST_TIMEOUT", "20s")];
    for creates in [false, true] {
        let mut app = TestApp::spawn(&patient).await;
        let complete = format!("{}/complete", path_of(&app.create("a").await));
        let write = if creates {
            json_body(app.request(Method::POST, "/v1/tasks"), &json!({ "title": "b" }))
        } else {
            app.request(Method::POST, &complete)
        };
        let lock = app.process.database().lock("tasks").await;
        // The client leaves once its write waits.
        tokio::select! {
            answer = write.send() => panic!("{answer:?}"),
            () = app.process.database().wait_until_blocked("tasks", 1) => {}
        }
        app.process.signal(Signal::TERM);
        app.process.event("shutdown.begin").await;
        // Longer than closing everything may take at the end.
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!app.process.has("shutdown.drain_complete"));
        lock.close().await.expect("the lock is given back");
        app.process.event("shutdown.drain_complete").await;
        let written = "tasks WHERE completed_at IS NOT NULL OR title = 'b'";
        assert_eq!(app.process.database().count(written).await, 1);
        assert_eq!(app.process.ended().await.code, Some(0));
    }
}

#[tokio::test]
async fn write_that_outlasts_the_drain_is_told_and_does_not_hold_up_the_exit() {
    // Requests have time to reach the database even on a slow machine.
    let patient = [
        ("APP__DATABASE__STATEMENT_TIMEOUT", "30s"),
        ("APP__HTTP__REQUEST_TIMEOUT", "2s"),
        ("APP__SHUTDOWN__DRAIN_TIMEOUT", "2s"),
    ];
    let mut app = TestApp::spawn(&[&SHORT_DRAIN[..], &patient].concat()).await;
    let path = path_of(&app.create("a").await);
    let _lock = app.process.database().lock("tasks").await;
    let mut client = app.connect().await;
    let head = "host: test\r\ncontent-type: application/json\r\ncontent-length: 13";
    client.send(&format!("PATCH {path} HTTP/1.1\r\n{head}\r\n\r\n{{\"title\":\"b\"}}")).await;
    app.process.database().wait_until_blocked("tasks", 1).await;
    drop(client);
    app.process.signal(Signal::TERM);
    let cut = app.process.event("shutdown.drain_timeout").await;
    assert_eq!(cut["writes"], 1);
    // Long before the statement times out.
    let ended = app.process.ended().await;
    assert_eq!(ended.code, Some(3), "{ended:#?}");
}

#[tokio::test]
async fn what_others_have_changed_is_seen_once_the_cache_has_let_go_of_it() {
    let launch = Launch::new(&[("APP__CACHE__TTL", "300ms")]);
    //@ if redis
    let launch = launch.set(&[("APP__REDIS__TTL", "300ms"), redis::PATIENT]);
    //@ end
    let app = TestApp::launch(launch).await;
    let path = path_of(&app.create("a").await);
    assert_eq!(app.get(&path).await.json()["title"], "a");
    let change = "UPDATE tasks SET title = 'b', version = 2";
    app.process.database().connect().await.execute(change).await.expect("a change that nobody hears of");
    // However often it is read meanwhile.
    eventually(async || app.get(&path).await, |answer| answer.json()["title"] == "b").await;
}

#[tokio::test]
async fn readers_that_miss_together_share_one_query() {
    const READERS: usize = 500;
    // The one query waits until all readers are there.
    let patient = [("APP__HTTP__REQUEST_TIMEOUT", "20s"), ("APP__DATABASE__STATEMENT_TIMEOUT", "20s")];
    let launch = Launch::new(&[("APP__HTTP__MAX_IN_FLIGHT", "1000")]).set(&patient);
    //@ if redis
    let namespace = Uuid::now_v7().to_string();
    let launch = launch.set(&[("APP__REDIS__NAMESPACE", &namespace)]);
    //@ end
    let app = TestApp::launch(launch).await;
    //@ if redis
    // A replica that begins to follow the others clears its cache, which would cause a second query.
    redis::wait_for_followers(&namespace, 1).await;
    //@ end
    let path = path_of(&app.create("a").await);
    let lock = app.process.database().lock("tasks").await;
    let readers = join_all((0..READERS).map(|_| app.get(&path)));
    let unlocked = async {
        let all_wait = format!("http_requests_in_flight {READERS}\n");
        eventually(async || app.metrics().await, |page| page.contains(&all_wait)).await;
        lock.close().await.expect("the lock is given back");
    };
    let (answers, ()) = tokio::join!(readers, unlocked);
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(app.sample("db_query_duration_seconds_count{query=\"get_task\"}").await, Some(1.0));
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
async fn server_without_tls_is_told_nothing_where_the_url_requires_tls() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let url = format!("postgres://nobody@{address}/nowhere?sslmode=verify-full");
    let migrating = Launch::new(&[("DATABASE_URL", &url)]).start("migrate");
    let told = async {
        let (mut stream, _) = listener.accept().await?;
        let (mut asked, mut more) = ([0; 8], Vec::new());
        stream.read_exact(&mut asked).await?;
        stream.write_all(b"N").await?;
        stream.read_to_end(&mut more).await?;
        std::io::Result::Ok((asked, more))
    };
    let (asked, more) = timeout(PATIENCE, told).await.expect("an end in time").expect("a connection");
    assert_eq!(asked, [0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f], "an SSLRequest");
    assert_eq!(more, b"", "the server has no TLS");
    assert_eq!(migrating.ended().await.code, Some(1));
}

#[tokio::test]
async fn database_that_never_comes_is_a_fault() {
    let patience = [("DATABASE_URL", NOWHERE_ELSE), ("APP__HEALTH__STARTUP_TIMEOUT", "300ms")];
    for migrates in ["true", "false"] {
        let launch = Launch::new(&patience).set(&[("APP__DATABASE__MIGRATE_ON_START", migrates)]);
        let ended = launch.run("serve").await;
        assert_eq!(ended.code, Some(1), "{ended:#?}");
        let failed = ended.event("service.failed");
        assert_eq!(failed["level"], "ERROR");
        assert!(migrates == "true" || failed["cause"].to_string().contains("postgres ("), "{failed}");
        assert!(!ended.out.join("").contains("nobody"), "the URL may hold a password");
    }
}

/// Like [`NOWHERE`], but chosen by the test, so that no database takes its place.
const NOWHERE_ELSE: &str = "postgres://nobody@127.0.0.1:2/nowhere";

#[tokio::test]
async fn bad_settings_of_the_database_are_named() {
    let rows: &[Row] = &[
        ("DATABASE_URL", "", "database.url", "expected postgres://user:password@host:port/name"),
        ("DATABASE_URL", "canary", "database.url", "expected postgres://user:password@host:port/name"),
        ("DATABASE_URL", "mysql://canary@host/", "database.url", "expected postgres://"),
        ("APP__DATABASE__MAX_CONNECTIONS", "0", "database.max_connections", "expected 1 to 10000"),
        ("APP__DATABASE__STATEMENT_TIMEOUT", "0s", "database.statement_timeout", "expected 10ms to 600s"),
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
