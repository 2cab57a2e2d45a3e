//! Redis: replicas see each other's writes, and do without Redis when it is gone.

use std::time::{Duration, Instant};

//@ if rate_limit
use futures_util::future::join_all;
//@ end
//@ if postgres
use redis::AsyncCommands;
//@ end
use reqwest::{Method, Url};
use serde_json::json;
//@ if postgres
use sqlx::{Connection, Executor};
//@ end
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::time::timeout;

//@ if postgres or rate_limit
use crate::app::Answer;
//@ end
use crate::app::{TestApp, eventually, json_body, path_of};
use crate::configuration::assert_defaults;
use crate::misconfiguration::{Row, assert_refused};
//@ if postgres
use crate::postgres::Database;
//@ end
use crate::process::{Launch, PATIENCE, Variables};
use crate::proxy::{Proxy, server_of, via};

/// The URL of the server that replicas share.
#[expect(clippy::disallowed_methods, reason = "what the tests run against is no part of the service")]
pub fn server() -> String {
    std::env::var("REDIS_URL").expect("set REDIS_URL to a server for tests, such as redis://127.0.0.1:6379/0")
}

/// A URL of the server with a password that it rejects.
pub fn with_wrong_password(password: &str) -> String {
    as_user("nobody", password)
}

fn as_user(name: &str, password: &str) -> String {
    let mut url: Url = server().parse().expect("REDIS_URL is a URL");
    url.set_username(name).expect("a user");
    url.set_password(Some(password)).expect("a password");
    url.into()
}

/// A connection to the server.
pub async fn connected() -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(server()).expect("a URL");
    client.get_multiplexed_async_connection().await.expect("Redis")
}

/// A URL of the server behind a proxy.
pub async fn behind_proxy() -> (String, Proxy) {
    let url: Url = server().parse().expect("REDIS_URL is a URL");
    let proxy = Proxy::to(&server_of(&url, 6379)).await;
    (via(url, proxy.address), proxy)
}

/// For replicas that must not bypass Redis when the machine stalls.
pub const PATIENT: (&str, &str) = ("APP__REDIS__TIMEOUT", "5s");

/// Waits until `replicas` replicas follow what others in this namespace write: each clears its cache as it begins.
pub async fn wait_for_followers(namespace: &str, replicas: u32) {
    let redis = connected().await;
    let followers = async || -> (String, u32) {
        let mut numsub = redis::cmd("PUBSUB");
        numsub.arg("NUMSUB").arg(format!("{namespace}:task:changes"));
        numsub.query_async(&mut redis.clone()).await.expect("an answer")
    };
    eventually(followers, |(_, count)| *count == replicas).await;
}

#[tokio::test]
async fn redis_is_not_waited_for_by_default() {
    let lines = ["redis.timeout = \"100ms\"", "redis.ttl = \"5m\""];
    assert_defaults(Launch::new(&[]), &lines).await;
}

#[tokio::test]
async fn service_without_redis_is_ready_and_degraded() {
    let (url, proxy) = behind_proxy().await;
    let often = [("APP__HEALTH__INTERVAL", "200ms"), ("APP__HEALTH__TIMEOUT", "200ms")];
    let app = TestApp::launch(Launch::new(&often).set(&[("REDIS_URL", &url)])).await;
    let task = app.create("a").await;
    proxy.cut();
    let ready = async || app.admin("/health/ready").await;
    // Both, since a required dependency may have been slow to answer as well.
    eventually(ready, |answer| answer.status == 200 && answer.json()["degraded"] == true).await;
    eventually(async || app.get("/ready").await.json(), |ready| *ready == json!({ "status": "ready" })).await;
    assert!(app.metrics().await.contains("dependency_up{dependency=\"redis\"} 0\n"));
    app.get(&path_of(&task)).await;
    let failed = async || app.sample("cache_requests_total{tier=\"redis\",outcome=\"error\"}").await;
    assert!(failed().await >= Some(1.0));

    let began = Instant::now();
    for number in 0..20 {
        let path = path_of(&task);
        assert_eq!(app.patch(&path, &json!({ "title": number.to_string() })).await.status, 200);
        assert_eq!(app.get(&path).await.json()["title"], number.to_string(), "never an old value");
    }
    // Each request may wait for redis.timeout until the breaker opens, and none after that. Otherwise they would take
    // four seconds.
    assert!(began.elapsed() < Duration::from_millis(3500), "{:?}", began.elapsed());

    proxy.mend();
    eventually(ready, |answer| answer.json()["degraded"] == false).await;
    wait_until_breaker_closes(&app).await;
}

#[tokio::test]
async fn redis_is_told_nothing_before_tls_where_its_url_asks_for_tls() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("rediss://{}", listener.local_addr().expect("an address"));
    let _app = TestApp::spawn(&[("REDIS_URL", &url), PATIENT]).await;
    let first = async || {
        let accepted = timeout(PATIENCE, listener.accept()).await.expect("a connection in time");
        accepted.expect("a connection").0.read_u8().await.ok()
    };
    // None if the service, on a slow machine, gave up before it sent anything. It tries again.
    assert_eq!(eventually(first, Option::is_some).await, Some(0x16), "a handshake (RFC 8446, 5.1)");
}

#[tokio::test]
async fn memory_serves_on_while_redis_is_gone() {
    let (url, proxy) = behind_proxy().await;
    let app = TestApp::spawn(&[("REDIS_URL", &url)]).await;
    let path = path_of(&app.create("a").await);
    let misses = async || app.sample("cache_requests_total{tier=\"memory\",outcome=\"miss\"}").await;
    proxy.cut();
    // The cache is cleared once, since changes are not announced from now on.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(app.get(&path).await.status, 200);
    let before = misses().await;
    // Long enough for several attempts to subscribe again.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(app.get(&path).await.status, 200);
    assert_eq!(misses().await, before);
}

#[tokio::test]
async fn redis_that_refuses_writes_is_left_alone_until_it_takes_them() {
    // Like a replica of Redis that has yet to become the primary: it can be read from, and answers pings.
    let (name, url) = user_without("-@write").await;
    let app = TestApp::spawn(&[("REDIS_URL", url.as_str()), ("APP__HEALTH__INTERVAL", "100ms")]).await;
    let path = path_of(&app.create("a").await);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        assert_eq!(app.patch(&path, &json!({ "title": "b" })).await.status, 200);
        assert_eq!(app.get(&path).await.json()["title"], "b");
    }
    assert!(app.process.has("cache.breaker_open") && !app.process.has("cache.breaker_closed"));

    acl(&["SETUSER", &name, "+@write"]).await;
    wait_until_breaker_closes(&app).await;
    acl(&["DELUSER", &name]).await;
}

#[tokio::test]
async fn redis_that_lets_nobody_subscribe_is_told_once() {
    let (name, url) = user_without("-subscribe").await;
    let mut app = TestApp::spawn(&[("REDIS_URL", &url)]).await;
    let told = app.process.event("cache.follow_failed").await;
    assert!(told["reason"].as_str().is_some_and(|reason| reason.contains("subscribe")), "{told}");
    // Long enough for it to be tried again.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let path = path_of(&app.create("a").await);
    assert_eq!(app.get(&path).await.json()["title"], "a");
    let ended = app.stop().await;
    assert_eq!(ended.names().iter().filter(|name| *name == "cache.follow_failed").count(), 1, "{ended:#?}");
    acl(&["DELUSER", &name]).await;
}

/// Changes the users of Redis, by the arguments of `ACL`.
async fn acl(arguments: &[&str]) {
    let mut connection = connected().await;
    redis::cmd("ACL").arg(arguments).exec_async(&mut connection).await.expect("Redis has users");
}

/// Creates a user who may do everything but what `rule` takes away. Returns its name, and the URL that it logs in by.
async fn user_without(rule: &str) -> (String, String) {
    let name = format!("test-{}", uuid::Uuid::now_v7());
    acl(&["SETUSER", &name, "on", ">secret", "~*", "&*", "+@all", rule]).await;
    let url = as_user(&name, "secret");
    (name, url)
}

/// Waits until requests go to Redis again.
async fn wait_until_breaker_closes(app: &TestApp) {
    let read = async || {
        app.get(&path_of(&app.create("b").await)).await;
        app.process.has("cache.breaker_closed")
    };
    eventually(read, |closed| *closed).await;
}

/// Two replicas of one service, the second with `variables`.
async fn replicas(variables: Variables<'_>) -> (TestApp, TestApp) {
    replicas_in(&uuid::Uuid::now_v7().to_string(), variables).await
}

/// The same, with keys in this namespace.
async fn replicas_in(namespace: &str, variables: Variables<'_>) -> (TestApp, TestApp) {
    let shared = [("APP__REDIS__NAMESPACE", namespace)];
    let one = TestApp::spawn(&[shared[0], PATIENT]).await;
    let launch = Launch::new(variables).set(&shared);
    //@ if postgres
    let launch = launch.set(&[("DATABASE_URL", &one.process.database().url)]);
    //@ end
    let two = TestApp::launch(launch).await;
    wait_for_followers(namespace, 2).await;
    (one, two)
}

/// Waits until a replica no longer answers with the old `title`. Returns how long that took.
async fn wait_until_forgotten(replica: &TestApp, path: &str, title: &str) -> Duration {
    let began = Instant::now();
    eventually(async || replica.get(path).await, |answer| answer.json()["title"] != title).await;
    began.elapsed()
}

#[tokio::test]
async fn replica_forgets_at_once_what_another_has_written() {
    let (one, two) = replicas(&[PATIENT]).await;
    let path = path_of(&one.create("a").await);
    for app in [&one, &two, &two] {
        assert_eq!(app.get(&path).await.json()["title"], "a");
    }
    let metrics = two.metrics().await;
    assert!(metrics.contains("cache_requests_total{tier=\"redis\",outcome=\"hit\"} 1\n"), "{metrics}");
    assert!(metrics.contains("cache_requests_total{tier=\"memory\",outcome=\"hit\"} 1\n"), "{metrics}");
    let missed = one.sample("cache_requests_total{tier=\"redis\",outcome=\"miss\"}").await;
    assert_eq!(missed, Some(1.0), "which is no error");

    assert_eq!(one.patch(&path, &json!({ "title": "b" })).await.status, 200);
    let took = wait_until_forgotten(&two, &path, "a").await;
    // That is before its own copy expires.
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(one.get(&path).await.json()["title"], "b");
    assert_eq!(one.delete(&path).await.status, 204);
    eventually(async || two.get(&path).await.status, |status| *status == 404).await;
}

//@ if postgres
#[tokio::test]
async fn what_a_server_that_lags_has_replaces_nothing_newer() {
    let (one, two) = replicas(&[PATIENT]).await;
    let path = path_of(&one.create("a").await);
    assert_eq!(one.patch(&path, &json!({ "title": "b" })).await.status, 200);
    let mut connection = one.process.database().connect().await;
    // Like a standby that has yet to receive the change.
    connection.execute("UPDATE tasks SET title = 'a', version = 1").await.expect("the change");
    assert_eq!(two.get(&path).await.json()["title"], "a");
    connection.execute("UPDATE tasks SET title = 'b', version = 2").await.expect("the change");
    assert_eq!(one.get(&path).await.json()["title"], "b", "which it has acknowledged");
}

//@ end
#[tokio::test]
async fn change_that_was_missed_while_redis_was_gone_is_not_hidden() {
    let (url, proxy) = behind_proxy().await;
    let (one, two) = replicas(&[("REDIS_URL", &url)]).await;
    for _ in 0..3 {
        let path = path_of(&one.create("a").await);
        one.get(&path).await;
        proxy.cut();
        proxy.mend();
        // The second replica caches the task before it listens again; then the first one changes it.
        two.get(&path).await;
        assert_eq!(one.patch(&path, &json!({ "title": "b" })).await.status, 200);
        let took = wait_until_forgotten(&two, &path, "a").await;
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
}

#[tokio::test]
async fn change_that_was_missed_while_redis_had_vanished_is_not_hidden() {
    let (url, proxy) = behind_proxy().await;
    let (one, two) = replicas(&[("REDIS_URL", &url)]).await;
    let path = path_of(&one.create("a").await);
    for app in [&one, &two] {
        assert_eq!(app.get(&path).await.json()["title"], "a");
    }
    proxy.freeze();
    assert_eq!(one.patch(&path, &json!({ "title": "b" })).await.status, 200);
    // No connection was closed: only silence tells the second replica that it may miss changes.
    let took = wait_until_forgotten(&two, &path, "a").await;
    assert!(took < Duration::from_secs(5), "{took:?}");
}

//@ if postgres
#[tokio::test]
async fn outage_of_one_replica_costs_the_others_nothing_that_was_only_read() {
    let (url, proxy) = behind_proxy().await;
    let namespace = uuid::Uuid::now_v7().to_string();
    let (one, two) = replicas_in(&namespace, &[("REDIS_URL", &url)]).await;
    let mut paths = Vec::new();
    for _ in 0..6 {
        let path = path_of(&one.create("a").await);
        assert_eq!(one.get(&path).await.status, 200, "which Redis now has");
        paths.push(path);
    }
    let mut redis = connected().await;
    let [written, overtaken, read @ ..] = &paths[..] else { panic!("they are six") };
    let (gone, kept) = read.split_at(2);
    let change = "UPDATE tasks SET title = 'b', version = 2 WHERE id = (SELECT id FROM tasks ORDER BY id OFFSET 1 LIMIT 1)";
    one.process.database().connect().await.execute(change).await.expect("a change that nobody told of");
    proxy.cut();
    for path in read {
        assert_eq!(two.get(path).await.status, 200);
    }
    assert_eq!(two.get(overtaken).await.json()["title"], "b");
    assert_eq!(two.patch(written, &json!({ "title": "b" })).await.status, 200);
    for path in gone {
        let deleted: u32 = redis.del(key(&namespace, path)).await.expect("an answer");
        assert_eq!(deleted, 1);
    }
    proxy.mend();
    // What was written comes first.
    wait_until_forgotten(&one, written, "a").await;
    wait_until_forgotten(&one, overtaken, "a").await;
    for path in gone {
        let marked =
            async || redis.clone().exists::<_, bool>(key(&namespace, path)).await.expect("an answer");
        eventually(marked, |marked| *marked).await;
    }
    // The others have been told of in the same round, or are in the next.
    tokio::time::sleep(Duration::from_millis(500)).await;
    for path in kept {
        let entry: String = redis.get(key(&namespace, path)).await.expect("an answer");
        assert!(entry.contains('{'), "replaced, though nobody has written it: {entry}");
    }
    let misses = async || one.sample("cache_requests_total{tier=\"memory\",outcome=\"miss\"}").await;
    let before = misses().await.expect("some");
    for path in read {
        assert_eq!(one.get(path).await.json()["title"], "a");
    }
    // Now and then the change of one task counts for another too.
    assert!(misses().await.is_some_and(|now| now <= before + 1.0), "memory has what nobody has written");
}

#[tokio::test]
async fn deleted_task_does_not_come_back_with_redis() {
    let (ones_url, ones_proxy) = behind_proxy().await;
    let (url, proxy) = behind_proxy().await;
    let namespace = uuid::Uuid::now_v7().to_string();
    let shared = [("APP__REDIS__NAMESPACE", namespace.as_str())];
    let one = TestApp::launch(Launch::new(&shared).set(&[("REDIS_URL", &ones_url)])).await;
    let same = [("REDIS_URL", url.as_str()), ("DATABASE_URL", &one.process.database().url)];
    let often = [("APP__HEALTH__INTERVAL", "100ms")];
    let two = TestApp::launch(Launch::new(&shared).set(&same).set(&often)).await;
    let path = path_of(&one.create("a").await);
    assert_eq!(one.get(&path).await.status, 200, "which Redis now has");
    for proxy in [&ones_proxy, &proxy] {
        proxy.cut();
    }
    assert_eq!(one.delete(&path).await.status, 204);
    let ready = async || two.admin("/health/ready").await;
    eventually(ready, |answer| answer.json()["degraded"] == true).await;
    assert_eq!(two.get(&path).await.status, 404);
    // The first replica still can't tell Redis about the deletion.
    proxy.mend();
    eventually(ready, |answer| answer.json()["degraded"] == false).await;
    assert_eq!(two.get(&path).await.status, 404);
}

/// The key of a task in Redis.
fn key(namespace: &str, path: &str) -> String {
    format!("{namespace}:task:{}", path.rsplit('/').next().expect("an id"))
}

/// Loads a task whose version is 2, while `other` replaces what the lookup has found in Redis. Waits until Redis has
/// what is `wanted`.
async fn load_while_replaced(other: Option<&str>, wanted: impl Fn(&str) -> bool) {
    let namespace = uuid::Uuid::now_v7().to_string();
    let app = TestApp::spawn(&[("APP__REDIS__NAMESPACE", namespace.as_str()), PATIENT]).await;
    // Any change that it hears of while it loads, even one of its own, makes it load again.
    wait_for_followers(&namespace, 1).await;
    let path = path_of(&app.create("a").await);
    let change = "UPDATE tasks SET title = 'b', version = 2";
    app.process.database().connect().await.execute(change).await.expect("a change that nobody hears of");
    let key = key(&namespace, &path);
    let redis = connected().await;
    let database = app.process.database();
    let lock = database.lock("tasks").await;
    let meddle = async {
        database.wait_until_blocked("tasks", 1).await;
        let deleted: u32 = redis.clone().del(&key).await.expect("an answer");
        assert_eq!(deleted, 1, "the look-up has left something, or found it");
        if let Some(other) = other {
            let () = redis.clone().set_ex(&key, other, 60).await.expect("an answer");
        }
        lock.close().await.expect("the lock is given back");
    };
    let (answer, ()) = tokio::join!(app.get(&path), meddle);
    assert_eq!(answer.json()["title"], "b");
    let stored = async || redis.clone().get::<_, Option<String>>(&key).await.expect("an answer");
    let stored =
        eventually(stored, |stored| stored.as_deref().is_some_and(&wanted)).await.unwrap_or_default();
    assert!(!stored.contains('{'), "a task where a write may be hidden: {stored}");
    let left: i64 = redis.clone().pttl(&key).await.expect("a time");
    assert!(
        (1..=330_000).contains(&left),
        "{left} ms, where redis.ttl is 5 minutes and a tenth may be added"
    );
}

/// Otherwise each of the two releases in a rollout would keep what the other one has replaced.
#[tokio::test]
async fn release_with_another_shape_shares_marks_and_reads_no_task_of_this_one() {
    let namespace = uuid::Uuid::now_v7().to_string();
    let app =
        TestApp::spawn(&[("APP__REDIS__NAMESPACE", namespace.as_str()), ("APP__CACHE__TTL", "1ms")]).await;
    let task = app.create("a").await;
    let (path, redis) = (path_of(&task), connected().await);
    let key = key(&namespace, &path);
    let stored = async || redis.clone().get::<_, Option<String>>(&key).await.expect("an answer");
    app.get(&path).await;
    let own = eventually(stored, Option::is_some).await.expect("an entry");
    let (version, json) = own.split_once(":v1").expect("the version and the shape");
    let () = redis
        .clone()
        .set(&key, format!("{version}:v0{}", json.replace("\"a\"", "\"other\"")))
        .await
        .expect("an answer");
    assert_eq!(app.get(&path).await.json()["title"], "a");
    app.delete(&path).await;
    assert!(stored().await.is_some_and(|mark| !mark.contains('{')), "a mark for both");
}

#[tokio::test]
async fn what_was_loaded_is_stored_only_where_no_write_can_be_hidden() {
    let later = "3:write";
    load_while_replaced(Some(later), |stored| stored == later).await;
    // Redis was flushed, and the mark of a write perhaps with it; another lookup came; an earlier write was made up.
    // What was answered is remembered: nothing older is believed, and Redis is told.
    for other in [None, Some("0:look-up"), Some("1:write")] {
        load_while_replaced(other, |stored| stored.starts_with("2:")).await;
    }
}

#[tokio::test]
async fn deleted_task_is_not_restored_by_an_earlier_load() {
    for stored in [true, false] {
        let namespace = uuid::Uuid::now_v7().to_string();
        let app = TestApp::spawn(&[("APP__REDIS__NAMESPACE", namespace.as_str()), PATIENT]).await;
        wait_for_followers(&namespace, 1).await;
        let task = app.create("a").await;
        let path = path_of(&task);
        let key = key(&namespace, &path);
        let database = app.process.database();
        let mut redis = connected().await;
        // The mark left by the lookup of another replica, which loads the task before it is deleted.
        let () = redis.set_ex(&key, "0:look-up", 60).await.expect("an answer");
        let mut lock = database.lock("tasks").await;
        let meddle = async {
            database.wait_until_blocked("tasks", 1).await;
            if stored {
                let () = redis.set_ex(&key, format!("1:{task}"), 60).await.expect("an answer");
            }
            lock.execute("DELETE FROM tasks; COMMIT").await.expect("a deletion that nobody hears of");
        };
        let (answer, ()) = tokio::join!(app.get(&path), meddle);
        assert_eq!(answer.status, 404);
        let there: String = redis.get(&key).await.expect("an answer");
        assert_ne!(there, "0:look-up", "where the other replica would store the task now");
        assert_eq!(app.get(&path).await.status, 404);
    }
}

#[tokio::test]
async fn replica_whose_write_was_refused_reads_anew() {
    let (url, proxy) = behind_proxy().await;
    let (one, two) = replicas(&[("REDIS_URL", &url)]).await;
    let path = path_of(&one.create("a").await);
    proxy.cut();
    assert_eq!(two.get(&path).await.json()["title"], "a");
    assert_eq!(one.patch(&path, &json!({ "title": "b" })).await.status, 200);
    let request = json_body(two.request(Method::PATCH, &path), &json!({ "title": "c" }));
    assert_eq!(Answer::to(request.header("if-match", "\"1\"")).await.status, 412);
    assert_eq!(two.get(&path).await.json()["title"], "b", "or the client would never get past it");

    let path = path_of(&one.create("a").await);
    assert_eq!(two.get(&path).await.json()["title"], "a");
    assert_eq!(one.patch(&path, &json!({ "title": "b" })).await.status, 200);
    let request = two.request(Method::POST, &format!("{path}/complete"));
    assert_eq!(Answer::to(request.header("if-match", "\"1\"")).await.status, 412);
    assert_eq!(two.get(&path).await.json()["title"], "b", "of a completion, too");
}

#[tokio::test]
async fn write_whose_outcome_is_lost_is_not_hidden() {
    let database = Database::create().await;
    let (url, proxy) = database.behind_proxy().await;
    let one = [("APP__DATABASE__MAX_CONNECTIONS", "1"), ("APP__DATABASE__STATEMENT_TIMEOUT", "2s")];
    let app = TestApp::spawn(&[&one[..], &[("DATABASE_URL", &url)]].concat()).await;
    let path = path_of(&app.create("a").await);
    // The first change prepares the statement on this connection: the second one is a single message to the server.
    assert_eq!(app.patch(&path, &json!({ "title": "b" })).await.status, 200);
    assert_eq!(app.get(&path).await.json()["title"], "b", "which Redis now has");
    let lock = database.lock("tasks").await;
    let change = json!({ "title": "c" });
    let meddle = async {
        database.wait_until_blocked("tasks", 1).await;
        proxy.freeze();
        lock.close().await.expect("the lock is let go");
    };
    let (answer, ()) = tokio::join!(app.patch(&path, &change), meddle);
    assert_eq!(answer.status, 503, "it was stored, and nobody can tell");
    proxy.mend();
    let read = eventually(async || app.get(&path).await, |answer| answer.status == 200).await;
    assert_eq!(read.json()["title"], "c");
}

//@ end
#[tokio::test]
async fn write_is_finished_though_its_client_has_left() {
    let (url, proxy) = behind_proxy().await;
    let often = [("APP__HEALTH__INTERVAL", "100ms"), ("APP__HEALTH__TIMEOUT", "3s")];
    // The checks open the breaker only after three timeouts: until then a write waits for Redis.
    let slow = [("REDIS_URL", url.as_str()), ("APP__REDIS__TIMEOUT", "2s")];
    let launch = Launch::new(&often).set(&slow);
    //@ if rate_limit
    let launch = launch.set(&[("APP__HTTP__TRUSTED_PROXIES", "127.0.0.1")]);
    //@ end
    let app = TestApp::launch(launch).await;
    let path = path_of(&app.create("a").await);
    assert_eq!(app.get(&path).await.json()["title"], "a", "which Redis now has");
    proxy.freeze();
    //@ if rate_limit
    // Else the request would wait for its budget and not get to the write. Three clients, so that they wait at once.
    join_all((0..3).map(|number| {
        let forwarded = format!("10.0.0.{number}");
        Answer::to(app.request(Method::GET, "/v1/tasks").header("x-forwarded-for", forwarded))
    }))
    .await;
    //@ end
    // Repeated until one gets as far as the write before its client leaves.
    let left = async || {
        let change = json_body(app.request(Method::PATCH, &path), &json!({ "title": "b" }));
        change.timeout(Duration::from_millis(500)).send().await.expect_err("Redis is still waited for");
        app.get("/v1/tasks").await
    };
    eventually(left, |page| page.json()["items"][0]["title"] == "b").await;

    let ready = async || app.admin("/health/ready").await;
    eventually(ready, |answer| answer.json()["degraded"] == true).await;
    proxy.mend();
    eventually(ready, |answer| answer.json()["degraded"] == false).await;
    // Otherwise the old value would be served for as long as Redis keeps it.
    eventually(async || app.get(&path).await, |answer| answer.json()["title"] == "b").await;
}

#[tokio::test]
async fn bad_settings_of_redis_are_named() {
    let rows: &[Row] = &[
        ("REDIS_URL", "", "redis.url", "expected redis://:password@host:port/0"),
        ("REDIS_URL", "http://canary@host/", "redis.url", "expected redis://:password@host:port/0"),
        ("APP__REDIS__TIMEOUT", "10s", "redis.timeout", "expected less than http.request_timeout"),
        ("APP__REDIS__TTL", "0ms", "redis.ttl", "expected 1ms to 86400s"),
    ];
    assert_refused(rows).await;
}
