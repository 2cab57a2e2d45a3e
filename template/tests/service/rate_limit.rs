//! Rate limits: a client that asks too much is told when to come back, others and probes are not affected, and nobody
//! gets a second budget by lying about their address.

use std::time::{Duration, Instant};

//@ if redis
use futures_util::{StreamExt, future::join_all};
use redis::AsyncCommands;
//@ end
use reqwest::Method;
use serde_json::json;

use crate::app::{Answer, TestApp, path_of};
use crate::configuration::assert_defaults;
use crate::misconfiguration::{self, Row, assert_refused};
use crate::process::{Launch, Variables};

/// Budgets that no test uses up: most tests are not about limits.
pub const UNLIMITED: Variables = &[
    ("APP__RATE_LIMIT__PER_CLIENT_PER_SECOND", "1000000"),
    ("APP__RATE_LIMIT__PER_CLIENT_BURST", "1000000"),
    ("APP__RATE_LIMIT__WRITES_PER_SECOND", "1000000"),
    ("APP__RATE_LIMIT__WRITES_BURST", "1000000"),
    ("APP__RATE_LIMIT__GLOBAL_PER_SECOND", "1000000"),
    ("APP__RATE_LIMIT__GLOBAL_BURST", "1000000"),
];

/// Three requests per client; the budget regains one each second.
const THREE: [(&str, &str); 2] =
    [("APP__RATE_LIMIT__PER_CLIENT_PER_SECOND", "1"), ("APP__RATE_LIMIT__PER_CLIENT_BURST", "3")];

/// The result of `ask`, unless that took a second: budgets have grown by then.
async fn within_a_second<T>(ask: impl Future<Output = T>) -> Option<T> {
    let began = Instant::now();
    let answers = ask.await;
    (began.elapsed() < Duration::from_secs(1)).then_some(answers)
}

/// Retries if this machine stalled, each time with a budget that nothing was taken from.
async fn retry_if_stalled<T>(ask: impl AsyncFn(usize) -> Option<T>) -> T {
    for round in 0..3 {
        if let Some(answers) = ask(round).await {
            return answers;
        }
    }
    panic!("a few requests take more than a second, time and again");
}

/// A service with `variables`, and the result of `ask` if it came at once.
async fn with_service<T>(variables: Variables<'_>, ask: impl AsyncFn(&TestApp) -> T) -> (TestApp, T) {
    retry_if_stalled(async |_| {
        let app = TestApp::spawn(variables).await;
        let answers = within_a_second(ask(&app)).await?;
        Some((app, answers))
    })
    .await
}

/// The statuses that a burst of requests gets. `forwarded` makes the `x-forwarded-for` of each.
async fn burst(app: &TestApp, forwarded: impl Fn(usize) -> String) -> Vec<u16> {
    let mut statuses = Vec::new();
    for number in 0..5 {
        let request = app.request(Method::GET, "/v1/tasks").header("x-forwarded-for", forwarded(number));
        statuses.push(Answer::to(request).await.status);
    }
    statuses
}

#[tokio::test]
async fn there_are_budgets_by_default() {
    let launch = UNLIMITED.iter().fold(Launch::new(&[]), |launch, (name, _)| launch.without(name));
    let lines = [
        "rate_limit.per_client_per_second = 50",
        "rate_limit.per_client_burst = 100",
        "rate_limit.global_per_second = 2000",
        "rate_limit.global_burst = 4000",
        "rate_limit.writes_per_second = 20",
        "rate_limit.writes_burst = 50",
    ];
    assert_defaults(launch, &lines).await;
}

#[tokio::test]
async fn client_beyond_its_budget_is_told_when_to_come_back() {
    let limits = [THREE.as_slice(), &[("APP__LOG__FILTER", "info,service::http::rate_limit=debug")]].concat();
    //@ if redis
    let limits = [limits.as_slice(), &[crate::redis::PATIENT]].concat();
    //@ end
    let ask = async |app: &TestApp| {
        let mut answers = Vec::new();
        for path in ["/v1/tasks", "/v1/tasks", "/v1/tasks", "/nowhere", "/v1/tasks"] {
            answers.push(app.get(path).await);
        }
        (answers, app.metrics().await)
    };
    let (mut app, (answers, metrics)) = with_service(&limits, ask).await;
    for (answer, left) in answers.iter().zip([2, 1, 0]) {
        assert_eq!((answer.status, answer.header("ratelimit-policy")), (200, r#""per_client";q=3;w=3"#));
        let limit = answer.header("ratelimit");
        assert!(limit.starts_with(&format!(r#""per_client";r={left};t="#)), "{limit}");
    }
    assert_eq!(answers[3].status, 429, "what is not there, too");
    let refused = &answers[4];
    assert!(refused.header("ratelimit").starts_with(r#""per_client";r=0;t="#), "{refused:?}");
    assert_eq!((refused.status, refused.header("content-type")), (429, "application/problem+json"));
    assert_eq!(refused.json()["category"], "rate_limited");
    let seconds: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((1..=2).contains(&seconds), "{seconds}");
    assert!(metrics.contains("rate_limited_total{policy=\"per_client\"} 2\n"), "{metrics}");
    assert!(metrics.contains("errors_total{category=\"rate_limited\"} 2\n"), "{metrics}");
    assert_eq!(app.process.event("rate_limit.refused").await["policy"], "per_client");

    for _ in 0..5 {
        for path in ["/health", "/ready"] {
            assert_eq!(app.get(path).await.status, 200, "{path} is exempt");
        }
        assert_eq!(app.admin("/metrics").await.status, 200);
    }
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    assert_eq!(app.get("/v1/tasks").await.status, 200, "Retry-After was true");
}

#[tokio::test]
async fn forged_addresses_gain_nothing_behind_none_one_and_two_proxies() {
    // Each proxy appends the address it saw; anything to the left of those was made up by the client.
    for (trusted, appended) in
        [("", ""), ("127.0.0.1", ", 9.9.9.9"), ("127.0.0.1,10.0.0.0/8", ", 9.9.9.9, 10.0.0.2")]
    {
        let variables = [&THREE[..], &[("APP__HTTP__TRUSTED_PROXIES", trusted)]].concat();
        let ask = async |app: &TestApp| burst(app, |number| format!("10.1.1.{number}{appended}")).await;
        let (_, statuses) = with_service(&variables, ask).await;
        assert_eq!(statuses, [200, 200, 200, 429, 429], "one client behind {trusted:?}");
    }
}

#[tokio::test]
async fn clients_behind_a_trusted_proxy_have_budgets_of_their_own() {
    let trusted = [THREE.as_slice(), &[("APP__HTTP__TRUSTED_PROXIES", "127.0.0.1")]].concat();
    // One customer has a whole /64 to choose addresses from.
    let ask = async |app: &TestApp| {
        let clients = burst(app, |number| format!("10.0.0.{number}")).await;
        let spread = burst(app, |number| format!("2001:db8:1:2:{number}::9")).await;
        (clients, spread, burst(app, |number| format!("2001:db8:1:{number}::9")).await)
    };
    let (_, (clients, spread, others)) = with_service(&trusted, ask).await;
    assert_eq!(clients, [200; 5], "five clients");
    assert_eq!(spread, [200, 200, 200, 429, 429], "one network");
    assert_eq!(others, [200, 200, 429, 200, 200]);

    // If all the addresses are those of proxies, the first one counts as the client.
    let trusted = [THREE.as_slice(), &[("APP__HTTP__TRUSTED_PROXIES", "127.0.0.1,10.0.0.0/8")]].concat();
    let ask = async |app: &TestApp| burst(app, |number| format!("10.0.0.{number}, 10.9.9.9")).await;
    assert_eq!(with_service(&trusted, ask).await.1, [200; 5]);
}

#[tokio::test]
async fn writes_have_a_stricter_budget() {
    let limits = [
        ("APP__RATE_LIMIT__WRITES_PER_SECOND", "1"),
        ("APP__RATE_LIMIT__WRITES_BURST", "2"),
        ("APP__HTTP__TRUSTED_PROXIES", "127.0.0.1"),
    ];
    let ask = async |app: &TestApp| {
        let path = path_of(&app.create("a").await);
        let patched = app.patch(&path, &json!({ "title": "b" })).await.status;
        let deleted = app.delete(&path).await.status;
        let read = [app.get(&path).await.status, Answer::to(app.request(Method::HEAD, &path)).await.status];
        let other = app.request(Method::DELETE, &path).header("x-forwarded-for", "9.9.9.9");
        ([patched, deleted], read, Answer::to(other).await.status, app.metrics().await)
    };
    let (_, (writes, read, other, metrics)) = with_service(&limits, ask).await;
    assert_eq!(writes, [200, 429]);
    assert_eq!(read, [200, 200], "reading goes on");
    assert_eq!(other, 204, "each client has a budget of its own");
    assert!(metrics.contains("rate_limited_total{policy=\"writes\"} 1\n"));
}

#[tokio::test]
async fn all_clients_together_have_a_budget() {
    let limits = [
        ("APP__RATE_LIMIT__GLOBAL_PER_SECOND", "1"),
        ("APP__RATE_LIMIT__GLOBAL_BURST", "3"),
        ("APP__HTTP__TRUSTED_PROXIES", "127.0.0.0/8"),
    ];
    let ask =
        async |app: &TestApp| (burst(app, |number| format!("10.0.0.{number}")).await, app.metrics().await);
    let (_, (statuses, metrics)) = with_service(&limits, ask).await;
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    assert!(metrics.contains("rate_limited_total{policy=\"global\"} 2\n"));
}

#[tokio::test]
async fn headers_tell_how_a_budget_grows() {
    let limits =
        [("APP__RATE_LIMIT__PER_CLIENT_PER_SECOND", "2"), ("APP__RATE_LIMIT__PER_CLIENT_BURST", "8")];
    let answer = TestApp::spawn(&limits).await.get("/v1/tasks").await;
    assert_eq!(answer.header("ratelimit-policy"), r#""per_client";q=8;w=4"#);
    assert_eq!(answer.header("ratelimit"), r#""per_client";r=7;t=1"#, "half a second is rounded up");
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
        crate::redis::PATIENT,
    ];
    let shared = [THREE.as_slice(), &shared].concat();
    let (one, other) = (TestApp::spawn(&shared).await, TestApp::spawn(&shared).await);
    // Another client each time, until one has made all its requests within a second.
    let ask = async |round: usize| {
        let mut statuses = Vec::new();
        for app in [&one, &other, &one, &other, &other] {
            let request =
                app.request(Method::GET, "/v1/tasks").header("x-forwarded-for", format!("10.0.1.{round}"));
            let answer = Answer::to(request).await;
            if answer.status == 429 {
                let seconds: u64 = answer.header("retry-after").parse().expect("seconds");
                assert!((1..=2).contains(&seconds), "{seconds}");
            }
            statuses.push(answer.status);
        }
        statuses
    };
    assert_eq!(
        retry_if_stalled(async |round| within_a_second(ask(round)).await).await,
        [200, 200, 200, 429, 429]
    );
    proxy.cut();
    for app in [&one, &other] {
        let ask = async |round| within_a_second(burst(app, |_| format!("10.0.2.{round}"))).await;
        assert_eq!(retry_if_stalled(ask).await, [200, 200, 200, 429, 429]);
    }
}

#[tokio::test]
async fn replicas_share_the_budget_of_all_clients() {
    // Other replicas each time, with a budget that nothing was taken from.
    let asked = retry_if_stalled(async |_| {
        let (url, namespace) = (crate::redis::server(), uuid::Uuid::now_v7().to_string());
        let shared = [
            ("REDIS_URL", url.as_str()),
            ("APP__REDIS__NAMESPACE", &namespace),
            ("APP__RATE_LIMIT__GLOBAL_PER_SECOND", "1"),
            ("APP__RATE_LIMIT__GLOBAL_BURST", "3"),
            ("APP__HTTP__TRUSTED_PROXIES", "127.0.0.1"),
            crate::redis::PATIENT,
        ];
        let (one, other) = (TestApp::spawn(&shared).await, TestApp::spawn(&shared).await);
        let ask = async {
            let mut answers = Vec::new();
            for (number, app) in [&one, &other, &one, &other].into_iter().enumerate() {
                let request = app.request(Method::GET, "/v1/tasks");
                answers.push(Answer::to(request.header("x-forwarded-for", format!("10.0.3.{number}"))).await);
            }
            answers
        };
        let answers = within_a_second(ask).await?;
        Some((answers, other.sample("rate_limited_total{policy=\"global\"}").await))
    });
    let (answers, counted) = asked.await;
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 200, 200, 429]);
    assert_eq!(answers[3].header("ratelimit-policy"), r#""global";q=3;w=3"#);
    assert_eq!(counted, Some(1.0));
}

#[tokio::test]
async fn clock_of_redis_that_was_set_back_costs_one_budget_at_most() {
    let (url, namespace) = (crate::redis::server(), uuid::Uuid::now_v7().to_string());
    let shared = [("REDIS_URL", url.as_str()), ("APP__REDIS__NAMESPACE", &namespace), crate::redis::PATIENT];
    let app = TestApp::spawn(&[THREE.as_slice(), &shared].concat()).await;
    let mut redis = crate::redis::connected().await;
    let (seconds, _): (u64, u64) = redis::cmd("TIME").query_async(&mut redis).await.expect("a time");
    let budget = format!("{namespace}:rate:per_client:1:3:127.0.0.1");
    let _: () = redis.set(budget, (seconds + 3600) * 1_000_000).await.expect("an answer");
    let answer = app.get("/v1/tasks").await;
    assert_eq!((answer.status, answer.header("retry-after")), (429, "1"));
    let served = async || app.get("/v1/tasks").await.status;
    crate::app::eventually(served, |status| *status == 200).await;
}

#[tokio::test]
async fn busy_client_is_served_from_what_was_taken_ahead_and_gets_no_more_by_that() {
    let (url, namespace) = (crate::redis::server(), uuid::Uuid::now_v7().to_string());
    let shared = [
        ("REDIS_URL", url.as_str()),
        ("APP__REDIS__NAMESPACE", &namespace),
        ("APP__RATE_LIMIT__PER_CLIENT_PER_SECOND", "1"),
        ("APP__RATE_LIMIT__PER_CLIENT_BURST", "640"),
        crate::redis::PATIENT,
    ];
    let (one, other) = (TestApp::spawn(&shared).await, TestApp::spawn(&shared).await);
    let began = Instant::now();
    for _ in 0..10 {
        assert_eq!(one.get("/v1/tasks").await.status, 200);
    }
    // The budget takes one second to recover for each request that was taken from it.
    let mut redis = crate::redis::connected().await;
    let taken: i64 =
        redis.pttl(format!("{namespace}:rate:per_client:1:640:127.0.0.1")).await.expect("a time");
    let since = i64::try_from(began.elapsed().as_millis()).expect("a short time");
    assert!((10_500 - since..=30_000).contains(&taken), "{taken} ms after {since}");

    let (mut served, mut lost) = (10, 32);
    for _ in 0..640 {
        for app in [&one, &other] {
            let asked = Instant::now();
            served += u64::from(app.get("/v1/tasks").await.status == 200);
            // After half a second, what each replica has taken ahead, one in 32 of the budget, may have lapsed.
            lost += if asked.elapsed().as_millis() < 500 { 0 } else { 2 * 640 / 32 };
        }
    }
    let most = 641 + began.elapsed().as_secs();
    assert!(
        (640_u64.saturating_sub(lost)..=most).contains(&served),
        "{served} were served, {lost} may be lost"
    );
}

#[tokio::test]
async fn requests_of_one_client_that_come_at_once_ask_redis_together() {
    let (url, namespace) = (crate::redis::server(), uuid::Uuid::now_v7().to_string());
    let shared = [("REDIS_URL", url.as_str()), ("APP__REDIS__NAMESPACE", &namespace), crate::redis::PATIENT];
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
