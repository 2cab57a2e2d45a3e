//! Configuration: which source wins, what is refused and how it is named, and that no secret is ever shown.

use crate::app::TestApp;
use crate::process::{Ended, Launch, Variables};
use crate::receiver::Receiver;

/// What `check-config` says.
async fn explained(launch: Launch) -> String {
    let ended = launch.run("check-config").await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    ended.out.join("\n")
}

/// What is said of a configuration that is refused.
async fn refused(launch: Launch) -> Vec<String> {
    let Ended { code, out, err } = launch.run("serve").await;
    assert_eq!(code, Some(78), "{err:#?}");
    assert!(out.is_empty(), "nothing was started: {out:#?}");
    assert_eq!(err[0], "bad configuration:");
    err[1..].to_vec()
}

fn assert_line(text: &str, line: &str) {
    assert!(text.lines().any(|one| one == line), "no line {line} in\n{text}");
}

#[tokio::test]
async fn later_sources_win_and_are_named() {
    let file = "[cache]\ncapacity = 7\nttl = \"1m\"\n[jobs]\nconcurrency = 9\n";
    let launch = Launch::new(&[("APP__CACHE__CAPACITY", "8")]).file("config/production.toml", file);
    let text = explained(launch).await;
    assert_line(&text, "cache.capacity = \"8\"  # environment APP__CACHE__CAPACITY");
    assert_line(&text, "cache.ttl = \"1m\"  # config/production.toml");
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
        launch.without("APP__HTTP__HOST").without("APP__LOG__FORMAT").without("APP__SHUTDOWN__GRACE_DELAY")
    };
    for environment in ["staging", "production"] {
        let text = explained(local(environment)).await;
        assert_line(&text, "http.host = \"0.0.0.0\"  # default");
        assert_line(&text, "shutdown.grace_delay = \"5s\"  # default");
    }
    for launch in [local("development"), local("").without("APP_ENV")] {
        let text = explained(launch).await;
        assert_line(&text, "http.host = \"127.0.0.1\"  # default in development");
        assert_line(&text, "log.format = \"pretty\"  # default in development");
        assert_line(&text, "shutdown.grace_delay = \"0s\"  # default in development");
    }
}

#[tokio::test]
async fn dotenv_fills_gaps_in_development_only() {
    let dotenv = "APP__CACHE__CAPACITY=11\nAPP__JOBS__CONCURRENCY=12\n";
    let launch = |environment: &str| {
        Launch::new(&[("APP_ENV", environment), ("APP__JOBS__CONCURRENCY", "3")]).file(".env", dotenv)
    };
    let text = explained(launch("development")).await;
    assert_line(&text, "cache.capacity = \"11\"  # .env APP__CACHE__CAPACITY");
    assert_line(&text, "jobs.concurrency = \"3\"  # environment APP__JOBS__CONCURRENCY");
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

#[tokio::test]
async fn each_class_of_fault_is_named_with_its_source() {
    let cases: [(Variables, &str); 12] = [
        (
            &[("APP_ENV", "prod")],
            "APP_ENV (environment APP_ENV): expected development, staging or production",
        ),
        (&[("APP__CACHE__CAPACITY", "many")], "cache.capacity (environment APP__CACHE__CAPACITY): expected "),
        (&[("APP__CACHE__CAPACITY", "-1")], "cache.capacity (environment APP__CACHE__CAPACITY): expected "),
        (&[("APP__LOG__ACCESS", "maybe")], "log.access (environment APP__LOG__ACCESS): expected "),
        (&[("APP__LOG__FORMAT", "xml")], "log.format (environment APP__LOG__FORMAT): expected "),
        (&[("RUST_LOG", "a=b=c")], "log.filter (environment RUST_LOG): expected levels such as"),
        (
            &[("APP__CACHE__TTL", "5 parsecs")],
            "cache.ttl (environment APP__CACHE__TTL): expected a duration such",
        ),
        (
            &[("APP__HEALTH__TIMEOUT", "1ms")],
            "health.timeout (environment APP__HEALTH__TIMEOUT): expected 10ms to",
        ),
        (&[("APP__HTTP__PRT", "1")], "http.prt (environment APP__HTTP__PRT): unknown key, expected one of "),
        (
            &[("APP__WEBHOOK__URL", "ftp://host/")],
            "webhook.url (environment APP__WEBHOOK__URL): expected an http",
        ),
        (
            &[("APP__HTTP__TRUSTED_PROXIES", "10/8")],
            "http.trusted_proxies (environment APP__HTTP__TRUSTED_PROXIES):",
        ),
        (
            &[("APP__HTTP__REQUEST_TIMEOUT", "30s")],
            "http.request_timeout (environment APP__HTTP__REQUEST_TIMEOUT): expected at most",
        ),
    ];
    for (variables, expected) in cases {
        let faults = refused(Launch::new(variables)).await;
        assert!(faults.iter().any(|fault| fault.starts_with(expected)), "{expected} in {faults:#?}");
        assert_eq!(faults.len(), 1, "nothing else is wrong: {faults:#?}");
    }
}

#[tokio::test]
async fn all_faults_are_told_at_once() {
    let file = "[http]\nport = 70000\ncolour = \"red\"\n[jobs]\nconcurrency = 0\n";
    let launch = Launch::new(&[("APP__CACHE__TTL", "soon"), ("APP__ADMIN__HOST", "somewhere")]);
    let faults = refused(launch.without("APP__HTTP__PORT").file("config/production.toml", file)).await;
    let keys: Vec<_> = faults.iter().filter_map(|fault| fault.split(':').next()).collect();
    assert_eq!(
        keys,
        [
            "admin.host (environment APP__ADMIN__HOST)",
            "cache.ttl (environment APP__CACHE__TTL)",
            "http.colour (config/production.toml)",
            "http.port (config/production.toml)",
            "jobs.concurrency (config/production.toml)",
        ]
    );
}

#[tokio::test]
async fn files_that_can_not_be_read_are_faults() {
    let faults = refused(Launch::new(&[("APP_CONFIG_FILE", "missing.toml")])).await;
    assert!(faults[0].starts_with("APP_CONFIG_FILE (missing.toml): "), "{faults:#?}");
    let secret = "[webhook]\nsecret = canary\n";
    let faults = refused(Launch::new(&[]).file("config/production.toml", secret)).await;
    assert!(faults[0].starts_with("(file) (config/production.toml): expected TOML"), "{faults:#?}");
    assert!(!faults.join("\n").contains("canary"), "{faults:#?}");
    let faults = refused(Launch::new(&[("APP_ENV", "development")]).file(".env", "= canary =\n")).await;
    assert!(faults[0].starts_with(".env (.env): expected "), "{faults:#?}");
    assert!(!faults.join("\n").contains("canary"), "{faults:#?}");
}

#[tokio::test]
async fn secrets_are_shown_nowhere() {
    // "canary-canary-canary-canary" in base64.
    let canary = "Y2FuYXJ5LWNhbmFyeS1jYW5hcnktY2FuYXJ5";
    let receiver = Receiver::start().await;
    receiver.answers(500);
    let secret = format!("whsec_{canary}");
    let url = format!("http://user:{canary}@{}/{canary}?token={canary}", receiver.address);
    let variables = [("APP__WEBHOOK__SECRET", secret.as_str()), ("APP__WEBHOOK__URL", url.as_str())];

    let text = explained(Launch::new(&variables)).await;
    assert_line(&text, "webhook.secret = [redacted]  # environment APP__WEBHOOK__SECRET");
    assert_line(&text, "webhook.url = [redacted]  # environment APP__WEBHOOK__URL");
    assert!(!text.contains(canary), "{text}");

    let broken = [
        ("APP__WEBHOOK__SECRET", canary),
        ("APP__WEBHOOK__URL", "ftp://canary"),
        ("APP__CACHE__TTL", canary),
    ];
    let faults = refused(Launch::new(&broken)).await;
    assert!(faults.len() == 3 && !faults.join("\n").contains(canary), "{faults:#?}");

    let mut app = TestApp::spawn(&[&variables, [("RUST_LOG", "trace")].as_slice()].concat()).await;
    app.complete(&app.create("a").await).await;
    app.process.event("job.retry").await;
    assert!(!app.metrics().await.contains(canary));
    let ended = app.stop().await;
    let found: Vec<_> = ended.out.iter().chain(&ended.err).filter(|line| line.contains(canary)).collect();
    assert!(found.is_empty(), "{found:#?}");
}
