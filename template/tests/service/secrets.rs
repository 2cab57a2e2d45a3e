//! Secrets: every one contains a canary, which is then looked for in all that the service outputs.

use reqwest::Method;
use serde_json::json;

use crate::app::{Answer, TestApp, path_of};
use crate::configuration::{assert_line, explained};
use crate::misconfiguration::refused;
use crate::process::{Ended, Launch};
use crate::receiver::Receiver;

/// "canary-canary-canary-canary" in base64, as the webhook's secret has to be.
pub const CANARY: &str = "Y2FuYXJ5LWNhbmFyeS1jYW5hcnktY2FuYXJ5";

/// A URL of `server` with the canary wherever a URL may carry a secret.
fn url(server: &str) -> String {
    format!("http://user:{CANARY}@{server}/{CANARY}?token={CANARY}")
}

/// A service with every secret set, `server` behind each URL that it calls by HTTP, and every line logged.
fn with_all_secrets(server: &str) -> Launch {
    let secret = format!("whsec_{CANARY}");
    let launch = Launch::new(&[("APP__WEBHOOK__URL", &url(server)), ("APP__WEBHOOK__SECRET", &secret)]);
    //@ if postgres
    let database = format!("postgres://user:{CANARY}@127.0.0.1:1/name?sslpassword={CANARY}");
    let launch = launch.set(&[("DATABASE_URL", &database)]);
    //@ end
    //@ if redis
    let launch = launch.set(&[("REDIS_URL", &crate::redis::with_wrong_password(CANARY))]);
    //@ end
    //@ if otlp
    let launch = launch.set(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://user:{CANARY}@{server}/{CANARY}")),
        ("APP__OTLP__SAMPLE_RATIO", "1"),
    ]);
    //@ end
    launch.set(&[("RUST_LOG", "trace")])
}

fn assert_not_output(ended: &Ended) {
    let said = ended.out.iter().chain(&ended.err);
    let found: Vec<_> = said.filter(|line| line.contains(CANARY)).collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[tokio::test]
async fn secrets_are_not_explained() {
    let text = explained(with_all_secrets("host")).await;
    assert!(!text.contains(CANARY), "{text}");
    assert_line(&text, "webhook.secret = [redacted]  # environment APP__WEBHOOK__SECRET");
    assert_line(&text, "webhook.url = [redacted]  # environment APP__WEBHOOK__URL");
    //@ if postgres
    assert_line(&text, "database.url = [redacted]  # environment DATABASE_URL");
    //@ end
    //@ if redis
    assert_line(&text, "redis.url = [redacted]  # environment REDIS_URL");
    //@ end
    //@ if otlp
    assert_line(&text, "otlp.endpoint = [redacted]  # environment OTEL_EXPORTER_OTLP_ENDPOINT");
    //@ end
}

#[tokio::test]
async fn secrets_that_are_refused_are_not_repeated() {
    let bad = format!("ftp://{CANARY}:{CANARY}");
    let variables = ["APP__WEBHOOK__URL", "APP__WEBHOOK__SECRET", "APP__CACHE__TTL", "APP__LOG__FORMAT"];
    let launch = Launch::new(&variables.map(|name| (name, bad.as_str())));
    //@ if postgres
    let launch = launch.set(&[("DATABASE_URL", &bad)]);
    //@ end
    //@ if redis
    let launch = launch.set(&[("REDIS_URL", &bad)]);
    //@ end
    //@ if otlp
    let launch = launch.set(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &bad)]);
    //@ end
    let faults = refused(launch).await;
    assert!(faults.len() >= variables.len() && !faults.concat().contains(CANARY), "{faults:#?}");
}

#[tokio::test]
async fn secrets_are_shown_nowhere() {
    let receiver = Receiver::start().await;
    receiver.answers(500);
    let launch = with_all_secrets(&receiver.address);
    //@ if postgres
    let database = crate::postgres::Database::create().await;
    let (address, proxy) = database.behind_proxy_with_password(CANARY).await;
    let launch = launch.set(&[("DATABASE_URL", &address)]);
    //@ end
    let mut app = TestApp::launch(launch).await;
    let task = app.create("a").await;
    app.complete(&task).await;
    app.process.event_where("job.retry", |line| line["reason"].to_string().contains("500")).await;
    receiver.answers(None);
    app.process.event_where("job.retry", |line| !line["reason"].to_string().contains("500")).await;
    //@ if postgres
    proxy.cut();
    crate::app::eventually(async || app.get("/v1/tasks").await.status, |status| *status == 503).await;
    //@ end
    for path in
        ["/health", "/ready", "/openapi.json", "/v1/tasks", "/v1/tasks?limit=x", &path_of(&task), "/nowhere"]
    {
        let answer = app.get(path).await;
        assert!(!format!("{answer:?}").contains(CANARY), "{path}: {answer:?}");
    }
    for path in ["/health/live", "/health/ready", "/metrics"] {
        let answer = app.admin(path).await;
        assert!(!format!("{answer:?}").contains(CANARY), "{path}: {answer:?}");
    }
    assert_not_output(&app.stop().await);
}

#[tokio::test]
async fn errors_about_absent_servers_show_no_secrets() {
    let launch = with_all_secrets("127.0.0.1:1");
    //@ if postgres
    let ended = launch.run("migrate").await;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert_not_output(&ended);
    let launch = with_all_secrets("127.0.0.1:1").set(&[("DATABASE_URL", crate::postgres::NOWHERE)]);
    //@ end
    let mut app = TestApp::launch(launch).await;
    app.complete(&app.create("a").await).await;
    app.process.event("job.retry").await;
    assert_not_output(&app.stop().await);
}

#[tokio::test]
async fn what_users_write_is_not_logged() {
    let app = TestApp::spawn(&[("RUST_LOG", "trace")]).await;
    let task = json!({ "title": "canary-title", "description": "canary-text" });
    let path = path_of(&app.post("/v1/tasks", &task).await.json());
    app.get(&path).await;
    app.get("/v1/tasks").await;
    app.patch(&path, &json!({ "title": "canary-title \u{7}" })).await;
    app.get("/v1/tasks?status=canary-query").await;
    app.get("/canary-path").await;
    let token = app.request(Method::GET, "/v1/tasks").bearer_auth("canary-token");
    Answer::to(token.header("cookie", "id=canary-cookie")).await;
    assert!(!app.metrics().await.contains("canary"));
    let ended = app.stop().await;
    let found: Vec<_> = ended.out.iter().chain(&ended.err).filter(|line| line.contains("canary")).collect();
    assert!(found.is_empty(), "{found:#?}");
}
