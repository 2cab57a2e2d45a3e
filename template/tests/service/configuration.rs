//! Configuration: which source wins, and how that is reported.

use crate::app::TestApp;
use crate::process::Launch;

/// What `check-config` prints.
pub async fn explained(launch: Launch) -> String {
    let ended = launch.run("check-config").await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    ended.out.join("\n")
}

pub fn assert_line(text: &str, line: &str) {
    assert!(text.lines().any(|one| one == line), "no line {line} in\n{text}");
}

pub async fn assert_defaults(launch: Launch, lines: &[&str]) {
    let text = explained(launch).await;
    for line in lines {
        assert_line(&text, &format!("{line}  # default"));
    }
}

#[tokio::test]
async fn later_sources_win_and_are_named() {
    let file = "[http]\ntrusted_proxies = [\"10.0.0.0/8\", \"::1\"]\n[cache]\ncapacity = 7\nttl = \"1m\"\n[jobs]\nconcurrency = 9\n";
    let launch = Launch::new(&[("APP__CACHE__CAPACITY", "8")]).file("config/production.toml", file);
    let text = explained(launch).await;
    assert_line(&text, "cache.capacity = \"8\"  # environment APP__CACHE__CAPACITY");
    assert_line(&text, "cache.ttl = \"1m\"  # config/production.toml");
    assert_line(&text, "http.trusted_proxies = [\"10.0.0.0/8\", \"::1\"]  # config/production.toml");
    assert_line(&text, "jobs.concurrency = 9  # config/production.toml");
    assert_line(&text, "jobs.max_attempts = 8  # default");

    let launch = Launch::new(&[("APP_CONFIG_FILE", "other.toml")]).file("config/production.toml", file);
    let text = explained(launch.file("other.toml", "[jobs]\nconcurrency = 5\n")).await;
    assert_line(&text, "jobs.concurrency = 5  # other.toml");
    assert_line(&text, "cache.capacity = 10000  # default");
}

#[tokio::test]
async fn development_has_defaults_of_its_own() {
    let local = |environment: &str| {
        let launch = Launch::new(&[("APP_ENV", environment)]);
        let launch = launch.without("APP__HTTP__HOST").without("APP__ADMIN__HOST");
        launch.without("APP__LOG__FORMAT").without("APP__SHUTDOWN__GRACE_DELAY")
    };
    for environment in ["staging", "production"] {
        let lines = [
            "http.host = \"0.0.0.0\"",
            "http.header_read_timeout = \"5s\"",
            "admin.host = \"0.0.0.0\"",
            "log.format = \"json\"",
            "shutdown.grace_delay = \"5s\"",
            "shutdown.drain_timeout = \"20s\"",
            "shutdown.flush_timeout = \"3s\"",
            "health.failure_threshold = 2",
            "webhook.url = \"\"",
            "cache.ttl = \"30s\"",
        ];
        assert_defaults(local(environment), &lines).await;
    }
    for launch in [local("development"), local("").without("APP_ENV")] {
        let text = explained(launch).await;
        assert_line(&text, "http.host = \"127.0.0.1\"  # default in development");
        assert_line(&text, "admin.host = \"127.0.0.1\"  # default in development");
        assert_line(&text, "log.format = \"pretty\"  # default in development");
        assert_line(&text, "shutdown.grace_delay = \"0s\"  # default in development");
    }
}

#[tokio::test]
async fn protection_is_on_by_default() {
    let lines = [
        "http.request_timeout = \"10s\"",
        "http.body_timeout = \"5s\"",
        "http.idle_timeout = \"75s\"",
        "http.max_connections = 10000",
        "http.max_in_flight = 1000",
        "http.max_body_size = \"1MiB\"",
        "http.trusted_proxies = []",
        "http.cors_allowed_origins = []",
        "jobs.queue_capacity = 1000",
        "jobs.concurrency = 4",
        "webhook.timeout = \"5s\"",
        "webhook.allow_private_addresses = false",
        "cache.capacity = 10000",
    ];
    let launch = Launch::new(&[]).without("APP__WEBHOOK__ALLOW_PRIVATE_ADDRESSES");
    assert_defaults(launch, &lines).await;
}

#[tokio::test]
async fn dotenv_fills_gaps_in_development_only() {
    let dotenv = "APP__CACHE__CAPACITY=11\nAPP__JOBS__CONCURRENCY=12\nAPP__LOG__FILTER=debug\n";
    let launch = |environment: &str| {
        let set = [("APP_ENV", environment), ("APP__JOBS__CONCURRENCY", "3"), ("RUST_LOG", "warn")];
        Launch::new(&set).file(".env", dotenv)
    };
    let text = explained(launch("development")).await;
    assert_line(&text, "cache.capacity = \"11\"  # .env APP__CACHE__CAPACITY");
    assert_line(&text, "jobs.concurrency = \"3\"  # environment APP__JOBS__CONCURRENCY");
    assert_line(&text, "log.filter = \"warn\"  # environment RUST_LOG");
    let text = explained(launch("production")).await;
    assert_line(&text, "cache.capacity = 10000  # default");
}

#[tokio::test]
async fn variables_of_platforms_are_honoured_below_our_own() {
    let launch = Launch::new(&[("PORT", "8123"), ("RUST_LOG", "warn")]).without("APP__HTTP__PORT");
    let text = explained(launch).await;
    assert_line(&text, "http.port = \"8123\"  # environment PORT");
    assert_line(&text, "log.filter = \"warn\"  # environment RUST_LOG");
    let text = explained(Launch::new(&[("PORT", "8123"), ("APP__HTTP__PORT", "8124")])).await;
    assert_line(&text, "http.port = \"8124\"  # environment APP__HTTP__PORT");

    let quiet = TestApp::launch(Launch::new(&[("RUST_LOG", "info,service::http=warn")])).await;
    quiet.create("a").await;
    assert!(!quiet.stop().await.names().contains(&"http.request".to_owned()));
}
