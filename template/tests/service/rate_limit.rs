//! Rate limits: who asks too much is told when to come back, others and probes are not affected, and nobody
//! gets a second budget by lying about the address.

//@ if redis
use futures_util::{StreamExt, future::join_all};
use redis::AsyncCommands;
//@ end
use reqwest::Method;
use serde_json::json;

use crate::app::{Answer, TestApp, path_of};
use crate::misconfiguration::{self, Row, assert_refused};
use crate::process::Variables;

/// More than any test asks for: most tests are not about limits.
pub const UNLIMITED: Variables = &[
    ("APP__RATE_LIMIT__PER_CLIENT_PER_SECOND", "1000000"),
    ("APP__RATE_LIMIT__PER_CLIENT_BURST", "1000000"),
    ("APP__RATE_LIMIT__WRITES_PER_SECOND", "1000000"),
    ("APP__RATE_LIMIT__WRITES_BURST", "1000000"),
    ("APP__RATE_LIMIT__GLOBAL_PER_SECOND", "1000000"),
    ("APP__RATE_LIMIT__GLOBAL_BURST", "1000000"),
];

/// Three requests a client; the next one comes in a second.
const THREE: [(&str, &str); 2] =
    [("APP__RATE_LIMIT__PER_CLIENT_PER_SECOND", "1"), ("APP__RATE_LIMIT__PER_CLIENT_BURST", "3")];

/// What a burst of requests is answered. `forwarded` tells the `x-forwarded-for` of each.
async fn burst(app: &TestApp, forwarded: impl Fn(usize) -> String) -> Vec<u16> {
    let mut statuses = Vec::new();
    for number in 0..5 {
        let request = app.request(Method::GET, "/v1/tasks").header("x-forwarded-for", forwarded(number));
        statuses.push(Answer::to(request).await.status);
    }
    statuses
}

#[tokio::test]
async fn client_beyond_its_budget_is_told_when_to_come_back() {
    let app = TestApp::spawn(&THREE).await;
    for left in [2, 1, 0] {
        let answer = app.get("/v1/tasks").await;
        assert_eq!((answer.status, answer.header("ratelimit-policy")), (200, r#""per_client";q=3;w=3"#));
        let limit = answer.header("ratelimit");
        assert!(limit.starts_with(&format!(r#""per_client";r={left};t="#)), "{limit}");
    }
    assert_eq!(app.get("/nowhere").await.status, 429, "what is not there, too");
    let refused = app.get("/v1/tasks").await;
    assert!(refused.header("ratelimit").starts_with(r#""per_client";r=0;t="#), "{refused:?}");
    assert_eq!((refused.status, refused.header("content-type")), (429, "application/problem+json"));
    assert_eq!(refused.json()["category"], "rate_limited");
    let seconds: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((1..=2).contains(&seconds), "{seconds}");
    let metrics = app.metrics().await;
    assert!(metrics.contains("rate_limited_total{policy=\"per_client\"} 2\n"), "{metrics}");
    assert!(metrics.contains("errors_total{category=\"rate_limited\"} 2\n"), "{metrics}");

    for _ in 0..5 {
        for path in ["/health", "/ready"] {
            assert_eq!(app.get(path).await.status, 200, "{path} is exempt");
        }
        assert_eq!(app.admin("/metrics").await.status, 200);
    }
    tokio::time::sleep(std::time::Duration::from_secs(seconds)).await;
    assert_eq!(app.get("/v1/tasks").await.status, 200, "Retry-After was true");
}

#[tokio::test]
async fn forged_addresses_gain_nothing_behind_none_one_and_two_proxies() {
    // Each proxy appends the address it saw; what stands left of that is the client's own invention.
    for (trusted, appended) in
        [("", ""), ("127.0.0.1", ", 9.9.9.9"), ("127.0.0.1,10.0.0.0/8", ", 9.9.9.9, 10.0.0.2")]
    {
        let app = TestApp::spawn(&[&THREE[..], &[("APP__HTTP__TRUSTED_PROXIES", trusted)]].concat()).await;
        let statuses = burst(&app, |number| format!("10.1.1.{number}{appended}")).await;
        assert_eq!(statuses, [200, 200, 200, 429, 429], "one client behind {trusted:?}");
    }
}

#[tokio::test]
async fn clients_behind_a_trusted_proxy_have_budgets_of_their_own() {
    let trusted = [THREE.as_slice(), &[("APP__HTTP__TRUSTED_PROXIES", "127.0.0.1")]].concat();
    let app = TestApp::spawn(&trusted).await;
    assert_eq!(burst(&app, |number| format!("10.0.0.{number}")).await, [200; 5], "five clients");
    // One customer has a whole /64 to choose from.
    let spread = burst(&app, |number| format!("2001:db8:1:2::{number}")).await;
    assert_eq!(spread, [200, 200, 200, 429, 429], "one network");
    assert_eq!(burst(&app, |number| format!("2001:db8:1:{number}::9")).await, [200, 200, 429, 200, 200]);
}

#[tokio::test]
async fn writes_have_a_stricter_budget() {
    let limits = [("APP__RATE_LIMIT__WRITES_PER_SECOND", "1"), ("APP__RATE_LIMIT__WRITES_BURST", "2")];
    let app = TestApp::spawn(&limits).await;
    let path = path_of(&app.create("a").await);
    assert_eq!(app.patch(&path, &json!({ "title": "b" })).await.status, 200);
    assert_eq!(app.delete(&path).await.status, 429);
    assert_eq!(app.get(&path).await.status, 200, "reading goes on");
    assert!(app.metrics().await.contains("rate_limited_total{policy=\"writes\"} 1\n"));
}

#[tokio::test]
async fn all_clients_together_have_a_budget() {
    let limits = [
        ("APP__RATE_LIMIT__GLOBAL_PER_SECOND", "1"),
        ("APP__RATE_LIMIT__GLOBAL_BURST", "3"),
        ("APP__HTTP__TRUSTED_PROXIES", "127.0.0.0/8"),
    ];
    let app = TestApp::spawn(&limits).await;
    assert_eq!(burst(&app, |number| format!("10.0.0.{number}")).await, [200, 200, 200, 429, 429]);
    assert!(app.metrics().await.contains("rate_limited_total{policy=\"global\"} 2\n"));
}

#[tokio::test]
async fn bad_limits_are_named() {
    let rows: &[Row] = &[
        ("APP__RATE_LIMIT__WRITES_BURST", "0", "rate_limit.writes_burst", "expected 1 to 4294967295"),
        ("APP__RATE_LIMIT__WRITES_BURST", "-1", "rate_limit.writes_burst", misconfiguration::WHOLE),
    ];
    assert_refused(rows).await;
}
//@ if redis

#[tokio::test]
async fn replicas_share_one_budget_and_have_their_own_when_redis_is_gone() {
    let (url, proxy) = crate::redis::behind_proxy().await;
    let namespace = uuid::Uuid::now_v7().to_string();
    let shared = [
        ("REDIS_URL", url.as_str()),
        ("APP__REDIS__NAMESPACE", &namespace),
        ("APP__HTTP__TRUSTED_PROXIES", "127.0.0.1"),
    ];
    let shared = [THREE.as_slice(), &shared].concat();
    let (one, other) = (TestApp::spawn(&shared).await, TestApp::spawn(&shared).await);
    let mut statuses = Vec::new();
    for app in [&one, &other, &one, &other, &other] {
        let request = app.request(Method::GET, "/v1/tasks").header("x-forwarded-for", "10.0.0.1");
        let answer = Answer::to(request).await;
        if answer.status == 429 {
            let seconds: u64 = answer.header("retry-after").parse().expect("seconds");
            assert!((1..=2).contains(&seconds), "{seconds}");
        }
        statuses.push(answer.status);
    }
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    proxy.cut();
    for app in [&one, &other] {
        assert_eq!(burst(app, |_| "10.0.0.2".to_owned()).await, [200, 200, 200, 429, 429]);
    }
}

#[tokio::test]
async fn busy_client_is_served_from_what_was_taken_ahead_and_gets_no_more_by_that() {
    let (url, namespace) = (crate::redis::server(), uuid::Uuid::now_v7().to_string());
    let shared = [
        ("REDIS_URL", url.as_str()),
        ("APP__REDIS__NAMESPACE", &namespace),
        ("APP__RATE_LIMIT__PER_CLIENT_PER_SECOND", "1"),
        ("APP__RATE_LIMIT__PER_CLIENT_BURST", "640"),
    ];
    let (one, other) = (TestApp::spawn(&shared).await, TestApp::spawn(&shared).await);
    for _ in 0..10 {
        assert_eq!(one.get("/v1/tasks").await.status, 200);
    }
    // The budget is whole again in a second for each request that was taken from it.
    let mut redis =
        redis::Client::open(url).expect("a URL").get_multiplexed_async_connection().await.expect("Redis");
    let taken: i64 =
        redis.pttl(format!("{namespace}:{{rate}}:per_client:1:640:127.0.0.1")).await.expect("a time");
    assert!((10_500..=30_000).contains(&taken), "{taken} ms");

    let began = std::time::Instant::now();
    let mut served = 10;
    for _ in 0..640 {
        for app in [&one, &other] {
            served += u64::from(app.get("/v1/tasks").await.status == 200);
        }
    }
    let most = 641 + began.elapsed().as_secs();
    assert!((608..=most).contains(&served), "{served} were served");
}

#[tokio::test]
async fn requests_of_one_client_that_come_at_once_ask_redis_together() {
    let (url, namespace) = (crate::redis::server(), uuid::Uuid::now_v7().to_string());
    let shared = [("REDIS_URL", url.as_str()), ("APP__REDIS__NAMESPACE", &namespace)];
    let app = TestApp::spawn(&[UNLIMITED, &shared].concat()).await;
    let client = redis::Client::open(&*url).expect("a URL");
    let monitor = client.get_async_monitor().await.expect("Redis");
    for answer in join_all((0..64).map(|_| app.get("/v1/tasks"))).await {
        assert_eq!(answer.status, 200);
    }
    let mut connection = client.get_multiplexed_async_connection().await.expect("Redis");
    redis::cmd("ECHO").arg(&namespace).exec_async(&mut connection).await.expect("an echo");
    let over = |line: &String| line.contains("\"ECHO\"") && line.contains(&namespace);
    let commands = monitor.into_on_message().take_while(|line| std::future::ready(!over(line)));
    let commands: Vec<String> = commands.collect().await;
    let scripts = commands.iter().filter(|line| line.contains("\"EVALSHA\"") && line.contains(&namespace));
    let asked = scripts.count();
    assert!((1..=12).contains(&asked), "asked {asked} times: {commands:#?}");
}
//@ end
