//! The schema: brought up to date by any number of replicas, and known to readiness.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::time::timeout;

use crate::app::{TestApp, eventually, path_of};
use crate::outages::WATCHFUL;
use crate::postgres::Database;
use crate::process::Launch;

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
    let replicas = join_all((0..8).map(|_| start())).await;
    let task = replicas[0].create("a").await;
    for app in replicas {
        assert_eq!(app.get(&path_of(&task)).await.json(), task);
        let ended = app.stop().await;
        assert_eq!(ended.code, Some(0));
        let failed = ended.names().contains(&"schema.migration_failed".to_owned());
        assert!(!failed, "they take turns: {ended:#?}");
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
