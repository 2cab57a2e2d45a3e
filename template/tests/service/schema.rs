//! The schema: brought up to date by any number of replicas, and checked by readiness.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::Signal;
use serde_json::json;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, Connection, Executor, SqlSafeStr};
use tokio::time::timeout;

use crate::app::{TestApp, eventually, path_of};
use crate::contract::{DOCUMENT, rows};
use crate::documents::quoted;
use crate::outages::{FREQUENT_CHECKS, assert_unavailable};
use crate::postgres::Database;
use crate::process::Launch;
use crate::receiver::Receiver;

#[tokio::test]
async fn migrate_brings_the_schema_up_to_date_and_may_be_repeated() {
    let database = Database::create().await;
    let launch = || Launch::new(&[("DATABASE_URL", &database.url)]);
    for _ in 0..2 {
        let ended = launch().run("migrate").await;
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        assert!(ended.out.join("").contains("up to date"), "{ended:#?}");
        assert!(ended.out.join("").contains("schema.current"), "{ended:#?}");
    }
    let app = TestApp::launch(launch().set(&[("APP__DATABASE__MIGRATE_ON_START", "false")])).await;
    app.create("a").await;

    let ended = Launch::new(&[]).run("migrate").await;
    assert!(ended.code == Some(1) && !ended.err.is_empty(), "no server is a fault, in words: {ended:#?}");
}

#[tokio::test]
async fn migration_takes_the_time_that_it_needs() {
    let database = Database::create().await;
    // The second migration builds an index on `jobs`.
    migrate(&database, sqlx::migrate!(), 1).await;
    database.set("idle_in_transaction_session_timeout = 100").await;
    let mut lock = database.connect().await;
    lock.execute("SET idle_in_transaction_session_timeout = 0").await.expect("time");
    lock.execute("BEGIN; LOCK TABLE jobs").await.expect("the lock");
    let impatient = [("DATABASE_URL", database.url.as_str()), ("APP__DATABASE__STATEMENT_TIMEOUT", "50ms")];
    let unlocked = async {
        database.wait_until_blocked("jobs", 1).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        lock.close().await.expect("the lock is given back");
    };
    let (ended, ()) = tokio::join!(Launch::new(&impatient).run("migrate"), unlocked);
    assert_eq!(ended.code, Some(0), "{ended:#?}");
}

#[test]
fn migrations_are_embedded_anew_once_they_change() {
    assert!(include_str!("../../build.rs").contains("rerun-if-changed=migrations"));
}

/// A query that nobody has thought about is slow once its table has grown.
#[test]
fn review_covers_every_query_and_names_indexes_that_are_there() {
    let row = rows(&DOCUMENT).find(|cells| cells[0] == "`query`").expect("the label");
    let mut queries: BTreeSet<_> = quoted(row[1]).into_iter().collect();
    queries.retain(|name| !["begin", "commit"].contains(name));
    let review = include_str!("../../docs/data.md")
        .split("\n## ")
        .find(|part| part.starts_with("Queries"))
        .expect("it");
    let (mut reviewed, mut relations) = (BTreeSet::new(), BTreeSet::new());
    for cells in rows(review).filter(|cells| cells.len() == 3) {
        reviewed.extend(quoted(cells[0]));
        relations.extend(quoted(cells[2]));
    }
    assert_eq!(reviewed, queries);
    let schema: String = sqlx::migrate!().iter().map(|migration| migration.sql.as_str()).collect();
    let is_there =
        |name: &&str| schema.contains(&format!("TABLE {name} (")) || schema.contains(&format!(" {name} ON "));
    assert!(relations.len() > 4 && relations.iter().all(is_there), "{relations:?}");
}

#[tokio::test]
async fn replicas_that_start_together_migrate_once_and_share_their_tasks() {
    for version in [0, newest() - 1] {
        let database = Database::create().await;
        migrate(&database, sqlx::migrate!(), version).await;
        let start = async || TestApp::spawn(&[("DATABASE_URL", &database.url)]).await;
        let replicas = join_all((0..8).map(|_| start())).await;
        let task = replicas[0].create("a").await;
        for app in replicas {
            assert_eq!(app.get(&path_of(&task)).await.json(), task);
            let ended = app.stop().await;
            assert_eq!(ended.code, Some(0));
            let failed = ended.names().contains(&"schema.migration_failed".to_owned());
            assert!(!failed, "they take turns, and none does what another has done: {ended:#?}");
        }
        assert_eq!(
            database.count("pg_index WHERE NOT indisvalid").await,
            0,
            "those built CONCURRENTLY are whole"
        );
    }
}

/// The next attempt finds an index of that name, so nothing else would tell.
#[tokio::test]
async fn index_whose_build_was_cut_off_is_told() {
    let database = Database::create().await;
    let start = async || TestApp::spawn(&[("DATABASE_URL", &database.url)]).await;
    let app = start().await;
    app.create("a").await;
    app.create("a").await;
    let build = "CREATE UNIQUE INDEX CONCURRENTLY unbuilt ON tasks (title)";
    database.connect().await.execute(build).await.expect_err("two tasks have this title");
    let mut next = start().await;
    let told = next.process.event("schema.index_invalid").await;
    assert_eq!(told["index"], "unbuilt");
}

#[tokio::test]
async fn release_goes_on_while_later_ones_expand_and_contract_the_schema() {
    let (database, receiver) = (Database::create().await, Receiver::start().await);
    let variables = [
        ("DATABASE_URL", database.url.as_str()),
        ("APP__WEBHOOK__URL", receiver.url.as_str()),
        // One, so that the change meets the statements that are prepared on it.
        ("APP__DATABASE__MAX_CONNECTIONS", "1"),
    ];
    let app = TestApp::spawn(&variables).await;
    use_every_table(&app, &receiver).await;
    let mut migrations: Vec<_> = sqlx::migrate!().iter().cloned().collect();
    let later = [
        "ALTER TABLE tasks ADD COLUMN priority smallint NOT NULL DEFAULT 0; ALTER TABLE jobs ADD COLUMN note text",
        "ALTER TABLE tasks DROP COLUMN priority; ALTER TABLE jobs DROP COLUMN note",
    ];
    for (change, version) in later.into_iter().zip(newest() + 1..) {
        let kind = MigrationType::Simple;
        migrations.push(Migration::new(version, "later".into(), kind, change.into_sql_str(), false));
        migrate(&database, Migrator::with_migrations(migrations.clone()), version).await;
        assert_eq!(app.get("/ready").await.status, 200);
        use_every_table(&app, &receiver).await;
        let rolled_back = TestApp::spawn(&variables).await;
        use_every_table(&rolled_back, &receiver).await;
    }
}

#[tokio::test]
async fn column_that_changes_its_type_costs_each_connection_one_request() {
    let app = TestApp::spawn(&[("APP__DATABASE__MAX_CONNECTIONS", "1")]).await;
    let (done, task) = (app.create("a").await, app.create("a").await);
    app.complete(&done).await;
    let list = async || app.get("/v1/tasks").await;
    assert_eq!(list().await.status, 200);
    let change = async |length: u16| {
        let change = format!("ALTER TABLE tasks ALTER COLUMN title TYPE varchar({length})");
        app.process.database().connect().await.execute(AssertSqlSafe(change)).await.expect("another type");
    };
    change(300).await;
    assert_unavailable(&list().await);
    assert_eq!(list().await.status, 200, "on a new connection");
    app.complete(&done).await;
    change(400).await;
    assert_unavailable(&app.complete(&task).await);
    assert_eq!(app.complete(&task).await.status, 200);
}

/// Reads and writes in every way there is: each has to find what it needs.
async fn use_every_table(app: &TestApp, receiver: &Receiver) {
    let told = receiver.calls(0).await.len();
    let task = app.create("a").await;
    let path = path_of(&task);
    assert_eq!(app.get(&path).await.json(), task);
    assert_eq!(app.patch(&path, &json!({ "title": "b" })).await.status, 200);
    let completed = app.complete(&task).await;
    assert_eq!((completed.status, &app.complete(&task).await.json()), (200, &completed.json()));
    for list in ["/v1/tasks", "/v1/tasks?status=completed"] {
        assert_eq!(app.get(list).await.json()["items"], json!([completed.json()]));
    }
    assert_eq!(app.delete(&path).await.status, 204);
    assert_eq!(receiver.calls(told + 1).await[told].json()["data"], completed.json());
}

/// Brings a database to an older or a newer schema than this binary's.
async fn migrate(database: &Database, mut migrator: Migrator, version: i64) {
    migrator.set_locking(false);
    let mut connection = database.connect().await;
    migrator.run_to(version, &mut connection).await.expect("the migrations");
}

fn newest() -> i64 {
    sqlx::migrate!().iter().map(|migration| migration.version).max().expect("a migration")
}

/// Takes the lock of whoever migrates: the number is the one in src/store/schema.rs.
fn taken() -> String {
    format!("SELECT pg_advisory_lock({})", 0x7461_736b)
}

#[tokio::test]
async fn replica_waits_while_another_migrates() {
    let database = Database::create().await;
    let mut other = database.connect().await;
    other.execute(AssertSqlSafe(taken())).await.expect("the lock");
    let mut app = TestApp::starting(Launch::new(&[("DATABASE_URL", &database.url)])).await;
    let ready = timeout(Duration::from_millis(400), app.process.event("service.ready")).await;
    assert!(ready.is_err(), "it did not wait");
    // If it waited within a transaction, an index that the other one builds CONCURRENTLY would wait for its end.
    let held = "pg_stat_activity WHERE datname = current_database()
                AND xact_start < now() - interval '300 ms'";
    // On a busy machine one may last this long now and then; a replica that waits within one has it open all the time.
    eventually(async || database.count(held).await, |count| *count == 0).await;
    assert_eq!(app.get("/ready").await.json(), json!({ "status": "starting" }));
    other.close().await.expect("the lock is given back with the connection");
    app.ready().await;
}

#[tokio::test]
async fn command_can_be_stopped() {
    let database = Database::create().await;
    let mut other = database.connect().await;
    other.execute(AssertSqlSafe(taken())).await.expect("the lock");
    let migrating = Launch::new(&[("DATABASE_URL", &database.url)]).start("migrate");
    let connected = concat!(
        "pg_stat_activity WHERE datname = current_database() AND application_name = '",
        env!("CARGO_PKG_NAME"),
        "'"
    );
    eventually(async || database.count(connected).await, |count| *count > 0).await;
    migrating.signal(Signal::INT);
    let ended = migrating.ended().await;
    // By itself, and not by the signal: process 1 of a container would ignore that.
    assert_eq!((ended.code, ended.err.join("")), (Some(1), "stopped by SIGINT".to_owned()));
}

#[tokio::test]
async fn schema_that_is_behind_is_not_ready_until_it_is_migrated() {
    // The second case lacks a number below the newest: one that came later, by an update or from another branch.
    for (version, lost) in
        [(0, "success"), (newest() - 1, "version < (SELECT max(version) FROM _sqlx_migrations)")]
    {
        let database = Database::create().await;
        migrate(&database, sqlx::migrate!(), version).await;
        let by_hand = [("DATABASE_URL", database.url.as_str()), ("APP__DATABASE__MIGRATE_ON_START", "false")];
        let app = TestApp::starting(Launch::new(&FREQUENT_CHECKS).set(&by_hand)).await;
        let checked = async || app.admin("/health/ready").await;
        let behind = eventually(checked, |answer| answer.json()["checks"][0]["status"] == "down").await;
        assert_eq!((behind.status, &behind.json()["status"]), (503, &json!("starting")));
        assert_eq!(app.get("/health").await.status, 200);
        if version == 0 {
            assert_unavailable(&app.get("/v1/tasks").await);
        }
        assert_eq!(Launch::new(&by_hand).run("migrate").await.code, Some(0));
        let app = app.ready().await;

        let mut connection = database.connect().await;
        let lose = AssertSqlSafe(format!("DELETE FROM _sqlx_migrations WHERE {lost}"));
        connection.execute(lose).await.expect("the schema looks old");
        let behind = eventually(async || app.get("/ready").await, |ready| ready.status == 503).await;
        assert_eq!(behind.json(), json!({ "status": "unavailable" }));
        let ended = app.stop().await;
        assert!(!ended.names().contains(&"job.claim_failed".to_owned()), "no job runs before all is there");
    }
}
